"""The commands that make networks: generate events with truth labels, and train on them."""

import signal
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from streamer.cli import ConfigOption, SetOption, overrides
from streamer.control_commands import RunOption
from streamer.errors import UsageError


def add_networks(app: typer.Typer) -> None:
    """Add these commands to the command line."""
    app.command(rich_help_panel="Networks")(generate)
    app.command(rich_help_panel="Networks")(compare)
    app.command(rich_help_panel="Networks")(train)
    app.command(rich_help_panel="Networks")(quantize)
    app.command(rich_help_panel="Stream")(model)


class Process(StrEnum):
    """What can be generated."""

    EGAMMA = "egamma"
    QG = "qg"
    TOP = "top"
    TAU = "tau"


class Trainable(StrEnum):
    """What can be trained."""

    EG = "eg"
    QG = "qg"
    TOP = "top"
    TAU = "tau"


class Arch(StrEnum):
    """What a network can be."""

    SMALL = "small"
    SIMPLENET = "simplenet"
    VIT = "vit"
    POINTS = "points"


class Kind(StrEnum):
    """What a network can be made."""

    INT8 = "int8"
    FLOAT16 = "float16"


def generate(
    process: Annotated[
        Process,
        typer.Argument(
            help="egamma: single electrons and photons of 50 GeV; qg: QCD jets, quarks against gluons; top: hadronic "
            "ttbar against QCD; tau: H to tau tau against QCD.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Option("--output", "-o", help="The ROOT file to make.", show_default=False)],
    n: Annotated[int, typer.Option("--events", "-n", min=1, help="How many events.")] = 10_000,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="The same seed gives the same events.")] = 1,
    pileup: Annotated[
        float, typer.Option(min=0, max=200, metavar="MU", help="Mean number of minimum bias events on top of each.")
    ] = 0.0,
    jobs: Annotated[int, typer.Option("--jobs", "-j", min=1, max=256, help="Processes that generate.")] = 1,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    strips: Annotated[
        bool, typer.Option(help="Hits in the silicon strips: half of the file, and no built-in tagger sees them.")
    ] = True,
) -> None:
    """Make events with truth labels: PYTHIA 8 collisions at 13 TeV, or single particles, in a fast simulation of CMS.

    The file has hits, tracks and jets in our own layout, as `streamer inspect` shows. All but egamma need the extra
    'generate'.

    [bold]Examples[/bold]

      streamer generate egamma -n 10000 -o egamma.root
      streamer generate top -n 20000 -o top.root --seed 7 --jobs 2
      streamer generate qg -n 1000 -o busy.root --pileup 30
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from stages.simulation.sample import generate_file

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    signal.signal(signal.SIGINT, _interrupt_once)
    try:
        with Progress(*columns, transient=True) as progress:
            task = progress.add_task(f"generating {process}", total=n)
            done = lambda made: progress.advance(task, made)  # noqa: E731
            options = {"pileup": pileup, "jobs": jobs, "strips": strips, "overwrite": overwrite}
            generate_file(n, out, seed, done, process=process, **options)  # type: ignore[arg-type]
    except KeyboardInterrupt:
        typer.echo(f"streamer: stopped; nothing is kept of {out}", err=True)
        raise typer.Exit(130) from None
    print(f"{n:,} events in {out}")


def _interrupt_once(number: int, frame: Any) -> None:
    """A second Ctrl-C must not break into the clearing up, which leaves no process and no half of a file behind."""
    signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def compare(
    first: Annotated[str, typer.Argument(help="Event file, glob or folder.", show_default=False)],
    second: Annotated[str, typer.Argument(help="Another.", show_default=False)],
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture: .png, .pdf or .svg.")] = Path(
        "compare.png"
    ),
    events: Annotated[int, typer.Option(min=1, help="Take so many events of each at most.")] = 1000,
) -> None:
    """Hold two samples against each other: multiplicities, energies and the occupancy of each channel.

    streamer compare generated.root 'real/*.ig' -o compare.png
    """
    from rich.console import Console
    from rich.table import Table

    from stages.comparison import count, draw, rows
    from stages.config import Config
    from stages.inputs import expand, shown

    console = Console()
    samples = []
    for text in (first, second):
        name = Path(str(shown(text))).name or text
        with console.status(f"counting {name}"):
            samples.append(count(name, expand([text]), Config(), events))
    draw(samples[0], samples[1], output)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("mean in an event")
    for title in (*(sample.name for sample in samples), "ratio"):
        table.add_column(title, justify="right")
    for what, one, other, ratio in rows(samples[0], samples[1]):
        table.add_row(what, f"{one:,.1f}", f"{other:,.1f}", f"{ratio:.2f}")
    console.print(table)
    print(output)


def train(
    tagger: Annotated[
        Trainable,
        typer.Argument(
            help="eg: electrons against photons; qg: jets of quarks against gluons; top and tau: their jets against "
            "others.",
            show_default=False,
        ),
    ],
    input: Annotated[
        list[Path],
        typer.Option("--input", "-i", help="Event file with truth labels; may be repeated.", show_default=False),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="The ONNX file to make.", show_default=False)],
    test: Annotated[
        list[Path] | None,
        typer.Option(help="Events for the final AUC; may be repeated.", show_default="the last fifth of each input"),
    ] = None,
    arch: Annotated[
        Arch,
        typer.Option(
            help="small: a small SimpleNet, fast and good; simplenet: the published one, 30 times slower; vit: a "
            "vision transformer; points: Deep Sets on the brightest pixels, the fastest, and also written as "
            "NAME.points.onnx for taggers.NAME.input = 'points'."
        ),
    ] = Arch.SMALL,
    epochs: Annotated[
        int, typer.Option(min=1, help="Passes over the events at most; four without progress end it.")
    ] = 12,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="Of weights, order and mirroring.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="Threads; their number can change the last digits.")] = 2,
    batch: Annotated[int | None, typer.Option(min=1, help="Crops in a step.", show_default="by network")] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-9, max=10.0, help="At the top of its cycle.", show_default="by network")
    ] = None,
    channels: Annotated[
        str | None, typer.Option(metavar="A,B", help="See only these of the tagger's channels.", show_default="all")
    ] = None,
    shuffle_labels: Annotated[
        bool,
        typer.Option("--shuffle-labels", help="Deal out the labels anew: nothing to learn, the AUC must be 0.5."),
    ] = False,
) -> None:
    """Train a network on labelled events. Needs the extra 'train'.

    It is written as ONNX, ready for `streamer run --tagger`, with a model card and its ROC picture beside it. The
    figures on them are of events that it never saw. A GPU is used where there is one. Ctrl-C ends the training and
    keeps the best network so far.

    [bold]Examples[/bold]

      streamer generate qg -n 20000 -o qg.root --seed 1
      streamer train qg --input qg.root --output qg.onnx
      streamer train qg -i qg.root -o check.onnx --shuffle-labels --epochs 3
      streamer train top -i top.root --test other.root -o top.onnx --arch points
      streamer run other.root --output out --tagger top=top.onnx
    """
    import sys

    from rich.console import Console
    from rich.progress import Progress

    from stages.training.session import train_tagger
    from stages.training.settings import Settings

    console = Console(stderr=True)
    picked = tuple(name.strip() for name in (channels or "").split(",") if name.strip())
    settings = Settings(tagger, arch, epochs, seed, threads, batch, learning_rate, picked, shuffle_labels)
    command = f"streamer train {tagger} {' '.join(f'--input {path.name}' for path in input)}"
    command += "".join(f" --test {path.name}" for path in test or [])
    command += f" --output {output.name} --arch {arch} --seed {seed} --epochs {epochs} --threads {threads}"
    command += f" --batch {batch}" if batch else ""
    command += f" --learning-rate {learning_rate:g}" if learning_rate else ""
    command += f" --channels {','.join(picked)}" if picked else ""
    command += " --shuffle-labels" if shuffle_labels else ""
    try:
        with Progress(console=console, transient=True) as progress:
            reading = progress.add_task("events read", total=None)
            task = progress.add_task("batches", total=None)
            done = train_tagger(
                settings,
                input,
                test or [],
                output,
                command=command,
                tell=lambda line: console.print(line, highlight=False, soft_wrap=True),
                on_read=lambda n: progress.advance(reading, n),
                on_batch=lambda k, n: progress.update(task, completed=k, total=n),
            )
    except KeyboardInterrupt:
        print("streamer: stopped before there was a network to keep; nothing is written", file=sys.stderr)
        raise typer.Exit(130) from None
    print(f"AUC {done.auc:.4f} +- {done.auc_error:.4f} on events it never saw")
    print(", ".join(str(path) for path in (done.model, done.card, done.roc, done.points) if path))
    if done.stopped:
        print(f"streamer: stopped by hand after {done.epochs} epochs; the best so far is kept", file=sys.stderr)
        raise typer.Exit(130)


def quantize(
    model: Annotated[
        str, typer.Argument(help="The ONNX file, or one of eg, qg, top, tau: a packaged one.", show_default=False)
    ],
    calibrate: Annotated[
        list[Path], typer.Option(help="Event file with truth labels; may be repeated.", show_default=False)
    ],
    tagger: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What the network looks at: eg, qg, top, tau.", show_default="packaged: its own"
        ),
    ] = None,
    to: Annotated[Kind, typer.Option(help="int8 for processors, float16 for GPUs.")] = Kind.INT8,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="The ONNX file to make.", show_default="NAME.int8.onnx, here")
    ] = None,
    test: Annotated[
        list[Path] | None,
        typer.Option(help="Events for the AUC; may be repeated.", show_default="what is not calibrated with"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """Make a network int8 or float16: smaller, faster, and held against what it was.

    The AUC before and after is that of crops that were not calibrated with; if it falls by more than 0.005, nothing is
    written. A model card is written beside the network.

    [bold]Examples[/bold]

      streamer quantize qg --calibrate qg.root
      streamer quantize my-top.onnx --tagger top --calibrate train.root --test test.root -o fast-top.onnx
      streamer quantize qg --calibrate qg.root --to float16
    """
    from rich.console import Console

    from stages import PIPELINE
    from stages.quantize import BATCH, find, quantize_network

    effective: Any = PIPELINE.load_config(config, overrides(set_))
    path, name = find(model, tagger, effective)
    out = output or Path(f"{path.stem}.{to}.onnx")
    command = f"streamer quantize {model if model == name else f'{path.name} --tagger {name}'}"
    command += "".join(f" --calibrate {file.name}" for file in calibrate)
    command += "".join(f" --test {file.name}" for file in test or []) + f" --to {to} --output {out.name}"
    with Console(stderr=True).status(f"making {out.name}"):
        done = quantize_network(
            to, path, name, effective, calibrate, test or [], out, command=command, overwrite=overwrite
        )
    used = f"calibrated with {done.n_calibration:,} crops, " if done.n_calibration else ""
    print(f"{used}tested on {done.n_test:,}{' others' if used else ' crops'}")
    (auc, auc_now), (error, error_now) = done.auc, done.auc_error
    print(f"AUC {auc:.4f} +- {error:.4f} before, {auc_now:.4f} +- {error_now:.4f} as {to}")
    print(
        f"change of the AUC {done.change:+.4f} +- {done.change_error:.4f}; scores are {done.apart:.4f} apart on average"
    )
    (ms, ms_now), (size, size_now) = done.milliseconds, done.n_bytes
    print(
        f"{ms:.3f} ms a crop before, {ms_now:.3f} ms as {to}: {ms / ms_now:.2f} times as fast (batch {BATCH}, 1 thread)"
    )
    print(f"{size:,} bytes before, {size_now:,} as {to}")
    print(f"{done.model}, {done.card}")


def model(
    wanted: Annotated[str, typer.Argument(metavar="NAME=NEW.onnx", help="Such as eg=better.onnx.", show_default=False)],
    output: RunOption = None,
    at_lumisection: Annotated[
        bool, typer.Option("--at-lumisection", help="Wait for the next lumisection.", show_default=False)
    ] = False,
) -> None:
    """Replace a tagger's network while a run goes on; no event is lost, and none waits for it.

    The new one is tried in a process of its own, loaded beside the old one, and scores from a block on; a column of the
    output ([bold]egModel[/bold] for eg) tells which network an event was scored by. One that cannot be used, or that
    crashes or hangs where it is tried, is refused, and the old one stays.

    [bold]Example[/bold]

      streamer model eg=better.onnx
    """
    from streamer.control import CHANGE_TIMEOUT_S, ask
    from streamer.control_commands import the_run

    name, equals, path = wanted.partition("=")
    if not equals or not name or not path:
        raise UsageError(f"{wanted!r}: write NAME=NEW.onnx, such as eg=better.onnx")
    folder, _ = the_run(output)
    change = {"settings": {f"taggers.{name}.model": str(Path(path).resolve())}, "at_lumisection": at_lumisection}
    ask(folder, {"do": "change", "stage": "tagger", **change}, CHANGE_TIMEOUT_S)
