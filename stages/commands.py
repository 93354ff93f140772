"""The commands that know events: run, demo, finish, inspect, convert, view; those of networks and bench are apart."""

import asyncio
import logging
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from streamer import logs
from streamer.cli import ConfigOption, LogFormatOption, LogLevelOption, SetOption, log_settings, overrides
from streamer.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE, StreamerError, UsageError
from streamer.feed import feed_settings

InputArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="INPUT...", help="Event files (.root, .ig), globs, folders or URLs.", show_default=False),
]
TaggerOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[=MODEL.onnx]",
        help="Score with this tagger, with its own network or another; may be repeated.",
        show_default="eg",
    ),
]
MonitorOption = Annotated[
    bool | None, typer.Option("--monitor/--no-monitor", help="Serve a live page on loopback, and print its address.")
]
ReplicasOption = Annotated[str | None, typer.Option(help="Processes per stage, such as framer=2,tagger=1.")]

DEMO = {"egamma": 0.9, "qg": 0.03, "top": 0.025, "tau": 0.045}
"""The packaged events, and which share of them is in each file; `samples/demo.json` is the reference of 50,000."""


def add_commands(app: typer.Typer) -> None:
    """Add this pipeline's commands to the command line."""
    from stages.bench.commands import add_bench
    from stages.bench.knee_command import knee
    from stages.errors_command import errors
    from stages.ledger_command import ledger
    from stages.menu.command import prescale
    from stages.network_commands import add_networks
    from stages.skim_command import skim

    app.command(rich_help_panel="Stream")(run)
    app.command(rich_help_panel="Stream")(demo)
    app.command(rich_help_panel="Stream")(finish)
    app.command(rich_help_panel="Stream")(ledger)
    app.command(rich_help_panel="Stream")(errors)
    app.command(rich_help_panel="Stream")(prescale)
    app.command(rich_help_panel="Stream")(skim)
    app.command(rich_help_panel="Event files")(inspect)
    app.command(rich_help_panel="Event files")(convert)
    app.command(rich_help_panel="Event files")(view)
    add_networks(app)
    add_bench(app)
    app.command(rich_help_panel="Measure")(knee)


def run(
    inputs: InputArgument = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder for scores.root.", show_default="streamer-out"),
    ] = None,
    config: ConfigOption = None,
    set_: SetOption = None,
    events: Annotated[int | None, typer.Option(help="Stop after so many events.")] = None,
    rate: Annotated[float | None, typer.Option(metavar="HZ", help="A live feed: so many events a second.")] = None,
    feed: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="A live feed: max, 'fixed HZ', 'poisson HZ', 'bunches HZ' or 'pileup MEAN' (LHC), by a table of times "
            "and rates ('steps 10s:500 1s:3000', 'bursts 10s:500 1s:3000'), or by the input's time stamps: 'recorded', "
            "'recorded SPEED'.",
        ),
    ] = None,
    for_: Annotated[
        str | None, typer.Option("--for", metavar="TIME", help="Feed for so long, such as '60 s' or '2 h'.")
    ] = None,
    lumisections: Annotated[int | None, typer.Option(metavar="N", help="Stop after so many lumisections.")] = None,
    lumisection: Annotated[
        str | None,
        typer.Option(
            metavar="LENGTH",
            help="Count lumisections by the feed's clock, each so long: '23.31 s', as CMS, or '10000 events'.",
            show_default="as the input tells",
        ),
    ] = None,
    mix: Annotated[
        list[str] | None,
        typer.Option(
            metavar="INPUT=WEIGHT",
            help="In place of INPUT...: events of several inputs at random, each by its weight; may be repeated.",
        ),
    ] = None,
    shuffle: Annotated[
        bool, typer.Option("--shuffle", help="Events in random order; input.seed says in which.")
    ] = False,
    deadline: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Shed what cannot be answered so long after it was due, such as '100 ms'."),
    ] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Start again at the end of the input, until stopped.")] = False,
    replicas: ReplicasOption = None,
    tagger: TaggerOption = None,
    menu: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Accept events by the paths of this file.", show_default="every event is kept"
        ),
    ] = None,
    prescale_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The menu's prescale column to begin with.")
    ] = None,
    monitor: MonitorOption = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Hold the data against a good run's (see: streamer reference).",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier scores.root.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Go on with this output folder's run and configuration; INPUT is needed only if its URLs had secrets.",
        ),
    ] = None,
    go_on: Annotated[
        bool,
        typer.Option(
            "--go-on", help="For services: begin, or go on where there is a run; what is finished ends at once."
        ),
    ] = False,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Stream events through the chain and write their scores.

    Ctrl-C (or SIGTERM) drains: what was fed comes out, the file is closed, the table is printed. Where the input has
    truth labels, each tagger's AUC is told too, and its ROC curve is drawn beside the scores.

    [bold]Examples[/bold]

      streamer run events.root --output out
      streamer run 'data/*.ig' --rate 500 --loop
      streamer run events.root --feed 'poisson 2000' --loop --monitor
      streamer run events.root --feed 'poisson 2000' --loop --for '10 min'
      streamer run --mix signal.root=0.1 --mix background.root=0.9 --shuffle --loop --events 100000
      streamer run qg.root --tagger qg
      streamer run events.root --menu menu.toml --prescale-column 2e34
      streamer run --resume out
      streamer run --config /etc/streamer/stream.toml --go-on
      streamer run data/ --replicas framer=2,tagger=2 --tagger eg=my.onnx --tagger top
    """
    if resume is not None:
        from stages.finishing import resumed

        refused = {"--output": output, "--config": config, "--tagger": tagger, "--menu": menu}
        for option, given in {**refused, "--prescale-column": prescale_column}.items():
            if given:
                raise UsageError(f"--resume goes on with the run's own configuration; leave {option} out")
        overwrite = False
    if go_on and (resume is not None or overwrite):
        raise UsageError("--go-on goes on where there is a run; leave --resume and --overwrite out")
    options = {
        "feed.events": events,
        "feed.rate": rate,
        "feed.deadline": deadline,
        "feed.loop": loop or None,
        "monitor.on": monitor,
        "quality.reference": None if reference is None else str(reference),
        "feed.duration": for_,
        "feed.lumisections": lumisections,
        "feed.lumisection": lumisection,
        "input.shuffle": shuffle or None,
        "writer.overwrite": overwrite or None,
        "writer.dir": None if output is None else str(output),
        "input.files": inputs or None,
        "menu.file": None if menu is None else str(menu),
        "menu.prescale_column": prescale_column,
    }
    wanted: dict[str, Any] = {key: value for key, value in options.items() if value is not None}
    if feed is not None:
        if rate is not None:
            raise UsageError("--feed has a rate of its own; leave --rate out")
        wanted |= feed_settings(feed)
    if rate == 0:
        raise UsageError("--rate 0: nothing would ever come; leave it out to feed as fast as the chain takes events")
    if mix:
        if inputs:
            raise UsageError("--mix names inputs of its own; leave INPUT out")
        wanted |= mixed(mix)
    wanted |= pairs("--replicas", "replicas.{}", (replicas or "").split(",") if replicas else [], int)
    wanted |= chosen_taggers(tagger or []) | log_settings(log_level, log_format)
    begun = {} if resume is None else resumed(resume)
    stream(config, {**begun, **overrides(set_), **wanted}, "streamer run", go_on=go_on)


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for scores.root.")] = Path("streamer-demo"),
    events: Annotated[int, typer.Option(help="Stop after so many events.")] = 20_000,
    replicas: ReplicasOption = None,
    monitor: MonitorOption = True,
    set_: SetOption = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Stream the packaged events through the four packaged networks: five processes, no setting, no GPU needed.

    The packaged events are made by `streamer generate`: electrons and photons, jets of quarks and gluons, and top
    quarks and tau leptons against QCD. They come at random, again and again until there are enough, and are held
    against a packaged reference (see: streamer reference).
    """
    from stages.config import TAGGERS, packaged

    wanted: dict[str, Any] = {
        "input.files": [packaged(f"samples/{name}.root") for name in DEMO],
        "input.weights": list(DEMO.values()),
        "quality.reference": packaged("samples/demo.json"),
        "feed.loop": True,
        "feed.events": events,
        "monitor.on": monitor,
        "writer.dir": str(output),
        "writer.overwrite": True,
    }
    wanted |= chosen_taggers(list(TAGGERS))
    wanted |= pairs("--replicas", "replicas.{}", (replicas or "").split(",") if replicas else [], int)
    own = {**overrides(set_), **log_settings(log_level, log_format)}
    if any(key.startswith("taggers.") for key in own):
        del wanted["quality.reference"]  # it is that of the packaged networks
    stream(None, {**wanted, **own}, "streamer demo", shares=False)


def stream(path: Path | None, wanted: dict[str, Any], title: str, *, go_on: bool = False, shares: bool = True) -> None:
    """Run the pipeline with a live line and a final table; exits with the run's code.

    Parameters
    ----------
    go_on : bool
        Go on with the run of the output folder where there is one, else begin.
    shares : bool
        Tell what became of each input of a mix.
    """
    from stages import PIPELINE
    from stages.inputs import is_remote, several
    from streamer.config import changed
    from streamer.report import LiveLine, show, summarise
    from streamer.supervisor import Supervisor

    config = PIPELINE.load_config(path, wanted)
    given = config.input  # type: ignore[attr-defined]
    files = given.expanded()
    if given.weights:  # as many inputs as weights, whatever files each one means
        absolute = [text if is_remote(text) else str(Path(text).expanduser().absolute()) for text in given.files]
        where: dict[str, Any] = {"input.files": absolute, "input.found": given.found or several(absolute)}
    else:
        where = {"input.files": [file if isinstance(file, str) else str(file.resolve()) for file in files]}
    where |= {"writer.dir": str(config.writer.dir.resolve())}  # type: ignore[attr-defined]
    if config.quality.reference is not None:
        where |= {"quality.reference": str(config.quality.reference.resolve())}
    config = changed(config, where)  # not read again: a file may be a pipe, as in `--menu <(command)`
    if go_on:
        from stages.finishing import going_on

        settings, told = going_on(config)  # type: ignore[arg-type]
        config = changed(config, settings)
        logs.set_up(config.log)
        logs.say(told, logging.INFO, who="")
    with LiveLine(title, config.log) as line:
        outcome = asyncio.run(Supervisor(PIPELINE, config, line.update).run())
    folder = config.writer.dir  # type: ignore[attr-defined]
    if all(outcome.reports.values()):
        from stages.books import read_books
        from stages.ledger_files import leave

        books = read_books(folder)
        leave(folder, books, outcome)
        summary = summarise(PIPELINE.names, outcome.reports)
        problems = tuple(line for line in books.why_not if line not in books.missing)
        show(replace(summary, ledger=books.ledger, problems=problems, shed=dict(books.shed_at)), outcome)
        if books.menu is not None:
            books.menu.show()
        if books.ledger.errors:
            told = f"{books.ledger.errors:,} events could not be processed; see which, and why: streamer errors {{}}"
            logs.say(told.format(shlex.quote(str(folder))), logging.WARNING, who="")
        if books.missing:
            told = f"finished files that are not there any more: {len(books.missing)}; see which: streamer ledger {{}}"
            logs.say(told.format(shlex.quote(str(folder))), logging.WARNING, who="")
        if outcome.exit_code == EXIT_OK and problems:  # stopped before what an earlier run lost was fed again
            outcome = replace(outcome, exit_code=EXIT_FAILED, error="; ".join(problems))
    error = outcome.error
    if outcome.exit_code == EXIT_OK:
        from stages import mix_table, truth
        from streamer.reference_command import tell_drift

        if shares and not (go_on and outcome.stopped):  # it reads all that a service has ever written
            mix_table.tell(folder)
        truth.tell(folder)
        tell_drift(outcome.quality)
        if go_on:
            how = "stopped; it goes on when it is started again" if outcome.stopped else "finished; nothing is left"
            logs.say(f"{folder}: the run is {how}", logging.INFO, who="")
        later = go_on and outcome.stopped  # a service manager does not wait for so long
        error = "" if later else _complete_events(config, config.input.expanded())  # type: ignore[attr-defined]
        if error:
            outcome = replace(outcome, exit_code=EXIT_FAILED)
    elif outcome.exit_code != EXIT_USAGE and "streamer finish" not in error:
        error += f"; what was committed is safe, go on with: streamer run --resume {folder}"
    for text in error.splitlines():
        logs.say(text)
    raise typer.Exit(outcome.exit_code)


def _complete_events(config: Any, inputs: Sequence[Path | str] = ()) -> str:
    """Copy the complete events that streams of the menu want; returns what went wrong, in lines."""
    if not any(stream.keeps_source for stream in config.menu.streams.values()):
        return ""
    from stages.menu.complete import copy_complete

    return "\n".join(copy_complete(config, inputs))


def chosen_taggers(texts: list[str]) -> dict[str, Any]:
    """`name` of a built-in tagger or `name=model` as dotted configuration keys."""
    from stages.config import TAGGERS

    own = [text.strip() for text in texts if text.strip() in TAGGERS]
    given = [text for text in texts if text.strip() not in TAGGERS]
    built_in: dict[str, Any] = {f"taggers.{name}": {} for name in own}
    return built_in | pairs("--tagger", "taggers.{}.model", given, str)


def mixed(texts: list[str]) -> dict[str, Any]:
    """`input=weight` texts as configuration keys."""
    files, weights = [], []
    for text in texts:
        file, equals, weight = text.rpartition("=")  # a URL may have such a sign, too
        try:
            weights.append(float(weight))
        except ValueError:
            equals = ""
        if not equals or not file:
            raise UsageError(f"--mix {text!r}: write input=weight, such as signal.root=0.1")
        files.append(file)
    return {"input.files": files, "input.weights": weights}


def pairs(option: str, key: str, texts: list[str], kind: type) -> dict[str, Any]:
    """`name=value` texts of an option as dotted configuration keys."""
    out = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            out[key.format(name.strip())] = kind(value)
        except ValueError:
            equals = ""
        if not equals or not name.strip() or not value.strip():
            raise UsageError(f"{option} {text!r}: write name=value, such as {_EXAMPLE[option]}")
    return out


_EXAMPLE = {"--replicas": "framer=2,tagger=1", "--tagger": "eg=MODEL.onnx"}


def finish(folder: Annotated[Path, typer.Argument(help="Output folder of a run that broke off.")]) -> None:
    """Turn what a run that broke off has on disk into ROOT files. To go on with it: streamer run --resume."""
    from stages import mix_table, truth
    from stages.finishing import finish as finish_folder
    from stages.finishing import settings_of

    path, n = finish_folder(folder)
    print(f"{n:,} events in {path}")
    mix_table.tell(folder)
    truth.tell(folder)
    if error := _complete_events(settings_of(folder)):
        raise StreamerError(error)


def inspect(
    file: Annotated[str, typer.Argument(help="Event file or URL.", show_default=False)],
    config: ConfigOption = None,
    set_: SetOption = None,
) -> None:
    """What is in an event file: how many events, which of our columns it has, which taggers it can feed."""
    from stages import PIPELINE
    from stages.inspection import show_file

    show_file(file, PIPELINE.load_config(config, overrides(set_)))  # type: ignore[arg-type]


def convert(
    files: Annotated[
        list[str],
        typer.Argument(metavar="INPUT... OUT.root", help="Event files, then the ROOT file to make."),
    ],
    rntuple: Annotated[bool, typer.Option("--rntuple", help="Write an RNTuple instead of a TTree.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace OUT.root.")] = False,
) -> None:
    """Copy events of any readable kind into one ROOT file with our columns.

    streamer convert data/*.ig events.root
    """
    from stages.conversion import convert_files

    *inputs, out = files
    if not inputs:
        raise UsageError("name at least one input and then the file to make: streamer convert INPUT... OUT.root")
    n = convert_files(inputs, Path(out), rntuple=rntuple, overwrite=overwrite)
    print(f"{n:,} events in {out}")


def view(
    file: Annotated[str, typer.Argument(help="Event file or URL.", show_default=False)],
    event: Annotated[int, typer.Option("--event", "-e", min=0, metavar="N", help="Entry in the file, from 0.")] = 0,
    channels: Annotated[
        str | None, typer.Option(help="Such as ECAL,HCAL.", show_default="all that the file gives")
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The picture: .png, .pdf or .svg.")] = Path(
        "event.png"
    ),
    config: ConfigOption = None,
    set_: SetOption = None,
    tagger: TaggerOption = None,
) -> None:
    """Draw an event: the detector frame channel by channel, photons and jets with their crops and scores.

    [bold]Examples[/bold]

      streamer view data.ig --event 3
      streamer view events.root -e 12 --channels ECAL,HCAL --tagger qg=my.onnx -o event.pdf
    """
    from stages import PIPELINE
    from stages.view import see
    from stages.view_plot import draw

    wanted = overrides(set_) | chosen_taggers(tagger or [])
    names = tuple(name.strip() for name in (channels or "").split(",") if name.strip())
    seen, notes = see(file, event, PIPELINE.load_config(config, wanted), names)  # type: ignore[arg-type]
    draw(seen, output)
    for note in notes:
        typer.echo(f"streamer: {note}", err=True)
    print(output)


def checks(config: Any) -> list[str]:
    """Problems of a valid configuration that only a look at files and models can show."""
    from stages.checking import problems

    return problems(config)
