"""The commands that measure: bench, and bench kernels, safety, menu, tagger, peers, feed."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stages.commands import InputArgument, TaggerOption, chosen_taggers
from streamer.cli import ConfigOption, SetOption, overrides
from streamer.errors import UsageError


def add_bench(app: typer.Typer) -> None:
    """Add them to the command line."""
    measure = typer.Typer(
        cls=BenchGroup,
        invoke_without_command=True,
        subcommand_metavar="| kernels ... | safety ... | menu ... | tagger ... | peers ... | feed ...",
    )
    measure.callback()(bench)
    measure.command("kernels")(bench_kernels)
    measure.command("safety")(bench_safety)
    measure.command("menu")(bench_menu)
    measure.command("tagger")(bench_tagger)
    measure.command("peers")(bench_peers)
    measure.command("feed")(bench_feed)
    app.add_typer(measure, name="bench", rich_help_panel="Measure")


class BenchGroup(TyperGroup):
    """`bench` takes inputs itself; only the name of a command in the first place is a command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        named = bool(args) and args[0] in self.commands
        ctx.allow_interspersed_args = not named
        if named:
            self.params = []  # else the inputs would take the name, and what comes behind it
        return super().parse_args(ctx, args)


def bench(
    ctx: typer.Context,
    inputs: InputArgument = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for bench.json and bench.png.")] = Path(
        "streamer-bench"
    ),
    config: ConfigOption = None,
    set_: SetOption = None,
    tagger: Annotated[
        list[str] | None, typer.Option(metavar="NAME[=MODEL.onnx]", help="The tagger, by default eg.")
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Windows of a stream that are measured.")] = 10,
    events: Annotated[int, typer.Option(min=2, help="Events of a window.")] = 1000,
    drop: Annotated[int, typer.Option(min=0, help="Events at the start of each window that do not count.")] = 300,
    sustained: Annotated[int, typer.Option(min=1, help="Events of one stream through the pipeline.")] = 40_000,
    rounds: Annotated[int, typer.Option(min=1, help="How often all ways take turns.")] = 3,
) -> None:
    """Measure throughput and latency as the CMS paper does, and what the time goes into.

    On the same events, in turn: the [bold]seed's way[/bold] (one process of Python, event
    by event, dense frames, one crop a call), the [bold]pipeline[/bold] as streamer run
    starts it, and the [bold]limit[/bold] (the same kernels in one process, without
    transport). Without INPUT the packaged events are used. The seed's way is known for
    photons in the ECAL alone; other taggers are measured without.

    Takes two minutes. Leave the machine alone meanwhile.

    [bold]Examples[/bold]

      streamer bench
      streamer bench --tagger top --events 200 --drop 60 --sustained 3000
      streamer bench 'data/*.ig' --tagger eg=my.onnx --output bench
      streamer bench --set replicas.tagger=2 --set tagger.max_batch=128
      streamer bench kernels --help
      streamer bench safety --help
      streamer bench menu --help
      streamer bench tagger --help
      streamer bench peers --help
      streamer bench feed --help
    """
    if ctx.invoked_subcommand:
        return
    from dataclasses import asdict

    from stages import PIPELINE
    from stages.bench.pipeline import Plan, bench
    from stages.bench.plot import show
    from stages.config import TAGGERS

    wanted = chosen_taggers(tagger or [])
    own = next((text for text in tagger or [] if text in TAGGERS), "eg")
    wanted["input.files"] = inputs or [own_events(own)]
    plan = Plan(events=events, drop=drop, repeats=repeats, sustained=sustained, rounds=rounds)
    effective = PIPELINE.load_config(config, {**overrides(set_), **wanted})
    show(asdict(bench(effective, plan, output)))  # type: ignore[arg-type]
    typer.echo(f"figures  {output / 'bench.json'}  {output / 'bench.png'}")


def bench_kernels(
    inputs: InputArgument = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for kernels.json and kernels.png.")] = Path(
        "streamer-bench"
    ),
    config: ConfigOption = None,
    set_: SetOption = None,
    repeats: Annotated[int, typer.Option(min=1, help="How often all that is measured takes turns.")] = 10,
) -> None:
    """Measure frames, crops and dense tensors in one thread, beside a dense way, and how the cost grows.

    As the [bold]top[/bold] tagger sees events: eight channels, five jets, crops of 128 x 128
    pixels. No network is needed. On generated events, and on those of INPUT where it is
    given; both ways must give the same tensors. Cost by hits and by jets is measured on
    generated events.

    Takes a minute. Leave the machine alone meanwhile.

    [bold]Examples[/bold]

      streamer bench kernels
      streamer bench kernels 'data/*.ig' --output bench
      streamer bench kernels --set taggers.top.crop=64 --set framer.tracks_at=ecal
    """
    from dataclasses import asdict

    from stages import PIPELINE
    from stages.bench.kernels import Plan, kernels
    from stages.bench.kernels_plot import show
    from stages.config import packaged

    wanted = {
        "taggers.top.pt_min": 0,
        **overrides(set_),
        "taggers.top.model": packaged("models/eg.onnx"),  # none is loaded
        "taggers.top.allow_empty": True,
        "input.files": inputs or [],
    }
    effective: Any = PIPELINE.load_config(config, wanted)
    effective = effective.model_copy(update={"taggers": {"top": effective.taggers["top"]}})
    show(asdict(kernels(effective, Plan(repeats=repeats), output)))
    typer.echo(f"figures  {output / 'kernels.json'}  {output / 'kernels.png'}")


def bench_safety(
    inputs: InputArgument = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for safety.json; its disk is the one that is measured.")
    ] = Path("streamer-bench"),
    config: ConfigOption = None,
    set_: SetOption = None,
    tagger: TaggerOption = None,
    events: Annotated[int, typer.Option(min=1000, help="Events of a stream.")] = 40_000,
    rounds: Annotated[int, typer.Option(min=1, help="How often both ways take turns.")] = 5,
) -> None:
    """Measure what it costs that no event is lost: the stream with all its books, and without any.

    In turn, on the same events: the [bold]stream[/bold] as streamer run starts it, with the reader's
    book, the journal and its fsync before each commit; and one whose reader keeps no book and
    whose writer forgets what it is given and commits it at once. Without INPUT the packaged
    events are used.

    Takes two minutes. Leave the machine alone meanwhile.

    [bold]Examples[/bold]

      streamer bench safety
      streamer bench safety 'data/*.ig' --output /mnt/slow-disk/bench
      streamer bench safety --set writer.commit_interval='10 ms'
    """
    from stages import PIPELINE
    from stages.bench.safety import Plan, safety, show
    from stages.config import packaged

    wanted = {"input.files": inputs or [packaged("samples/egamma.root")], **chosen_taggers(tagger or [])}
    effective: Any = PIPELINE.load_config(config, {**overrides(set_), **wanted})
    show(safety(effective, Plan(events=events, rounds=rounds), output))
    typer.echo(f"figures  {output / 'safety.json'}")


def bench_menu(
    inputs: InputArgument = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for menu.json.")] = Path("streamer-bench"),
    config: ConfigOption = None,
    set_: SetOption = None,
    tagger: TaggerOption = None,
    paths: Annotated[int, typer.Option(min=1, max=1000, help="Of the menu.")] = 200,
    events: Annotated[int, typer.Option(min=1000, help="Events of a stream.")] = 40_000,
    rounds: Annotated[int, typer.Option(min=1, help="How often both ways take turns.")] = 3,
) -> None:
    """Measure what a menu costs: the stream with one and without, and the menu's own work apart.

    The menu is made for the configured taggers, no two of its paths alike. Without INPUT the
    packaged events are used.

    Takes a minute. Leave the machine alone meanwhile.

    [bold]Examples[/bold]

      streamer bench menu
      streamer bench menu qg.root --tagger qg --paths 500
    """
    from stages import PIPELINE
    from stages.bench.menu import Plan, show
    from stages.bench.menu import bench_menu as measured
    from stages.config import packaged

    wanted = {"input.files": inputs or [packaged("samples/egamma.root")], **chosen_taggers(tagger or [])}
    effective: Any = PIPELINE.load_config(config, {**overrides(set_), **wanted})
    show(measured(effective, Plan(paths=paths, events=events, rounds=rounds), output))
    typer.echo(f"figures  {output / 'menu.json'}")


def bench_tagger(
    inputs: InputArgument = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for tagger.json and tagger.png.")] = Path(
        "streamer-bench"
    ),
    config: ConfigOption = None,
    set_: SetOption = None,
    tagger: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=MODEL.onnx]", help="Measure this tagger; may be repeated.", show_default="all packaged"
        ),
    ] = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each stream is, about.")] = 4.0,
    rounds: Annotated[int, typer.Option(min=1, help="How often network and stage take turns.")] = 3,
    thin: Annotated[float, typer.Option(min=1, metavar="HZ", help="Events a second of the thin stream.")] = 500.0,
) -> None:
    """Measure what the tagger makes of its networks: crops a second beside the bare network, and latency by load.

    The tagger's process runs between two real hops, each tagger for itself: at full speed, in
    turn with the [bold]bare network[/bold] on a batch that is ready; on a thin stream, an event
    a block; and at shares of its full speed, with random arrivals, by both policies for
    batches (tagger.policy). Without INPUT the packaged events are used. One inference thread,
    unless tagger.threads is set.

    Takes three minutes a tagger. Leave the machine alone meanwhile.

    [bold]Examples[/bold]

      streamer bench tagger
      streamer bench tagger --tagger eg --rounds 5
      streamer bench tagger qg.root --tagger qg=my.onnx --set tagger.threads=2
    """
    from stages.bench.tagger import Plan
    from stages.bench.tagger import bench_tagger as measured
    from stages.bench.tagger_plot import plot, show
    from stages.config import TAGGERS

    configs = dict(_alone(text, inputs, config, set_, {}) for text in tagger or TAGGERS)
    result = measured(configs, Plan(seconds=seconds, rounds=rounds, thin=thin), output)
    show(result)
    plot(result, output / "tagger.png")
    typer.echo(f"figures  {output / 'tagger.json'}  {output / 'tagger.png'}")


def bench_peers(
    inputs: InputArgument = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for peers.json and peers.png.")] = Path(
        "streamer-bench"
    ),
    config: ConfigOption = None,
    set_: SetOption = None,
    tagger: Annotated[
        str, typer.Option(metavar="NAME[=MODEL.onnx]", help="The tagger whose network all of them serve.")
    ] = "eg",
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each stream is, about.")] = 4.0,
    rounds: Annotated[int, typer.Option(min=1, help="How often all of them take turns.")] = 3,
    thin: Annotated[float, typer.Option(min=1, metavar="HZ", help="Crops a second of the thin stream.")] = 500.0,
) -> None:
    """Measure the tagger beside other servers that make batches: crops a second, processor time, latency.

    On the same network and crops, in turn: the [bold]bare[/bold] network on batches that are
    ready; a server as one writes it [bold]by hand[/bold] over ZeroMQ; [bold]mosec[/bold] over HTTP, where
    it is installed (pip install 'e2e-streamer\\[peers]'); and the [bold]tagger[/bold] between
    two real hops. The servers are asked for one crop at a time. Latency is looked
    at on a thin stream, and at half of what each of them can do, with random
    arrivals, and counts from when a crop was due. All must give the same scores.
    Without INPUT the packaged events are used. One inference thread and the
    adaptive policy, unless tagger.threads and tagger.policy are set.

    Takes three minutes. Leave the machine alone meanwhile.

    [bold]Examples[/bold]

      streamer bench peers
      streamer bench peers --tagger qg --seconds 8
      streamer bench peers mine.root --tagger eg=my.onnx --rounds 5
    """
    from stages.bench.peers import Plan
    from stages.bench.peers import bench_peers as measured
    from stages.bench.peers_plot import plot, show

    name, effective = _alone(tagger, inputs, config, set_, {"tagger.policy": "adaptive"})
    result = measured(name, effective, Plan(seconds=seconds, rounds=rounds, thin=thin), output)
    show(result)
    plot(result, output / "peers.png")
    typer.echo(f"figures  {output / 'peers.json'}  {output / 'peers.png'}")


def bench_feed(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for feed.json and feed.png.")] = Path(
        "streamer-bench"
    ),
    config: ConfigOption = None,
    set_: SetOption = None,
    rates: Annotated[str, typer.Option(metavar="HZ,...", help="Events a second on average.")] = "100,1000,10000",
    seconds: Annotated[float, typer.Option(min=0.1, help="How long each stream is, about.")] = 4.0,
) -> None:
    """Measure whether events leave the reader as they were asked for: rates, gaps, structure, lateness.

    A reader's own process feeds numbered events over a real hop, by each profile:
    fixed, poisson, bunches of the LHC, bursts (a rate that changes), and recorded time
    stamps. A [bold]Kolmogorov-Smirnov test[/bold] holds random gaps against those
    of a Poisson process, for the times that events were due and for those at which they
    left. Each event leaves alone, unless it is late or feed.block_wait is set.

    Takes two minutes. Leave the machine alone meanwhile.

    [bold]Examples[/bold]

      streamer bench feed
      streamer bench feed --rates 10000 --seconds 10
      streamer bench feed --set feed.block_wait='5 ms' --set 'feed.filling=36(36b 7e)'
    """
    from stages import PIPELINE
    from stages.bench.feed import Plan
    from stages.bench.feed import bench_feed as measured
    from stages.bench.feed_plot import plot, show

    try:
        wanted = tuple(float(rate) for rate in rates.split(","))
    except ValueError:
        wanted = ()
    if not wanted or not all(0 < rate < float("inf") for rate in wanted):
        raise UsageError(f"--rates '{rates}': write rates above 0, such as 100,1000")
    effective: Any = PIPELINE.load_config(config, {"feed.block_wait": 0, **overrides(set_)})
    result = measured(effective, Plan(rates=wanted, seconds=seconds), output)
    show(result)
    plot(result, output / "feed.png", effective.feed.filling)
    typer.echo(f"figures  {output / 'feed.json'}  {output / 'feed.png'}")


def own_events(tagger: str) -> str:
    """The packaged events of a built-in tagger."""
    from stages.config import packaged

    return packaged(f"samples/{'egamma' if tagger == 'eg' else tagger}.root")


def _alone(
    text: str, inputs: list[str] | None, config: Path | None, set_: list[str] | None, defaults: dict[str, Any]
) -> tuple[str, Any]:
    """A tagger by its name or `NAME=MODEL.onnx`, and a configuration with it alone, one thread, and events for it."""
    from stages import PIPELINE
    from stages.config import TAGGERS

    name = text.partition("=")[0].strip()
    files = {"input.files": inputs or [own_events(name if name in TAGGERS else "eg")]}
    wanted = {"tagger.threads": 1, **defaults, **overrides(set_), **files, **chosen_taggers([text])}
    effective: Any = PIPELINE.load_config(config, wanted)
    return name, effective.model_copy(update={"taggers": {name: effective.taggers[name]}})
