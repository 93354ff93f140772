"""The command line. The core's own commands stand here; the pipeline adds the rest."""

import inspect
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from streamer import __version__, logs
from streamer.config import LogConfig, load, parse_set, to_toml
from streamer.control_commands import scale, status, stop, top
from streamer.errors import EXIT_FAILED, EXIT_USAGE, StreamerError, UsageError, one_line
from streamer.folders import give_caches_a_place
from streamer.pipeline import installed_pipeline, resolve
from streamer.reference_command import reference

log = logging.getLogger(__name__)

app = typer.Typer(
    name="streamer",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""See how your neural networks would do [bold]online[/bold]: detector hits stream through reader, framer,
    cropper, tagger and writer, and come out scored.

    Begin with [bold cyan]streamer demo[/bold cyan]. Then [bold cyan]streamer inspect FILE[/bold cyan] tells what is in
    your own file, and [bold cyan]streamer run FILE --output DIR[/bold cyan] scores it.""",
)

ConfigOption = Annotated[
    Path | None, typer.Option("--config", "-c", help="TOML file; see: streamer config", show_default=False)
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="KEY=VALUE", help="Set one value, such as tagger.max_batch=32"),
]
LogLevelOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="[PACKAGE=]LEVEL",
        help="The least that is logged, such as WARNING or streamer.hop=DEBUG; may be repeated.",
        show_default="INFO",
    ),
]
LogFormatOption = Annotated[
    str | None, typer.Option(metavar="FORMAT", help="pretty, or json: a JSON object a line.", show_default="pretty")
]

_asked: dict[str, Any] = {}  # of the log, before the command's name


def version(value: bool) -> None:
    if value:
        print(f"streamer {__version__}")
        raise typer.Exit


@app.callback()
def root(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Tell more in the log: --log-level DEBUG.")] = False,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
    version: Annotated[
        bool, typer.Option("--version", callback=version, is_eager=True, help="Tell the version.")
    ] = False,
) -> None:
    _asked.clear()
    _asked.update(log_settings(log_level or (["DEBUG"] if verbose else None), log_format))
    logs.set_up(load(installed_pipeline().config, None, _asked).log if _asked else LogConfig())


def log_settings(level: list[str] | None, form: str | None) -> dict[str, Any]:
    """What `--log-level` and `--log-format` ask for, as dotted configuration keys."""
    given = {"log.level": ",".join(level) if level else None, "log.format": form}
    return {key: value for key, value in given.items() if value is not None}


def overrides(sets: list[str] | None) -> dict[str, Any]:
    """What `--set` asks for, and the options of the log before the command's name."""
    return {**_asked, **dict(parse_set(text) for text in sets or [])}


@app.command(rich_help_panel="Configuration")
def config(config: ConfigOption = None, set_: SetOption = None) -> None:
    """Print the effective configuration, commented. A good start for a file of your own:

    streamer config > my.toml
    """
    print(to_toml(installed_pipeline().load_config(config, overrides(set_))), end="")


@app.command(rich_help_panel="Configuration")
def check(
    config: Annotated[Path, typer.Argument(help="TOML file", show_default=False)], set_: SetOption = None
) -> None:
    """Is a configuration valid? Tells every problem at once: keys, values, inputs, models, output folder."""
    pipeline = installed_pipeline()
    effective = pipeline.load_config(config, overrides(set_))
    problems = resolve(pipeline.checks)(effective)
    if problems:
        raise UsageError("\n".join(f"{config}: {line}" for line in problems))
    print(f"{config} is fine")


@app.command(rich_help_panel="Stream")
def stage(
    name: Annotated[str, typer.Argument(help="reader, framer, cropper, tagger or writer")],
    replica: Annotated[int, typer.Option(help="Which replica of the stage this is, from 0.")] = 0,
    config: ConfigOption = None,
    set_: SetOption = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(help="Folder that the processes of one run share (by default $XDG_RUNTIME_DIR/streamer/default)."),
    ] = None,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
    predecessor: Annotated[str, typer.Option(hidden=True)] = "died",
    slot: Annotated[int | None, typer.Option(hidden=True)] = None,
    log_level: LogLevelOption = None,
    log_format: LogFormatOption = None,
) -> None:
    """Run one process of the pipeline, as systemd, Slurm or Kubernetes would start it.

    Give all of them the same configuration and run folder. Each tells its state on standard output.
    """
    from streamer.folders import runtime_dir
    from streamer.runner import Run, run_stage

    pipeline = installed_pipeline()
    effective = pipeline.load_config(config, {**overrides(set_), **log_settings(log_level, log_format)})
    pipeline.place(name)
    if not 0 <= replica < effective.n_replicas(name):
        raise UsageError(f"--replica {replica}: the configuration has replicas.{name} = {effective.n_replicas(name)}")
    run = Run.open(run_dir or runtime_dir() / "default")
    code = run_stage(pipeline, name, replica, effective, run, supervised=supervised, predecessor=predecessor, slot=slot)
    leave(code)


@app.command(hidden=True)
def draw(config: Annotated[Path, typer.Option("--config")]) -> None:
    """Draw events for the live page: asked and answered in lines of JSON."""
    from streamer.monitor.drawing import draw_for_ever

    draw_for_ever(installed_pipeline(), config)


@app.command(hidden=True)
def rehearse(stage: str, run_dir: Annotated[Path, typer.Option("--run-dir")]) -> None:
    """Try a change of a run before its replicas get ready for it: told on standard input, answered in JSON."""
    from streamer import rehearsing

    leave(rehearsing.rehearse(installed_pipeline(), stage, run_dir))


@app.command(hidden=True)
def forkserver(
    fd: int, modules: list[str], supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False
) -> None:
    """Import modules, and become the processes that the socket `fd` asks for."""
    from streamer.forkserver import serve

    serve(fd, modules, lambda arguments: app(arguments, standalone_mode=False))


for command in (status, top, stop, scale, reference):
    app.command(rich_help_panel="Stream")(command)


def leave(code: int) -> NoReturn:
    """End this process, of which all is closed, without taking the interpreter and its compiled code apart: that costs
    up to half a second of processor time, in which five stages of a run stand in each other's way."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def let_help_flow(app: typer.Typer) -> None:
    """Paragraphs of a command's help fill the lines of the terminal, not those of the source; what is indented stays.

    Typer joins lines in the first paragraph alone.
    """
    for info in (*app.registered_commands, app.registered_callback):
        if info is not None and (text := inspect.getdoc(info.callback)):
            paragraphs = text.split("\n\n")
            info.help = "\n\n".join(one if one.startswith(" ") else one.replace("\n", " ") for one in paragraphs)
    for group in app.registered_groups:
        if group.typer_instance is not None:
            let_help_flow(group.typer_instance)


def main() -> None:
    """Entry point: every foreseen error is one line (or one line a problem) and an exit code."""
    logs.set_up(LogConfig())
    give_caches_a_place()
    try:
        resolve(installed_pipeline().add_commands)(app)
        let_help_flow(app)
        app()
    except StreamerError as error:
        for line in str(error).splitlines():
            logs.say(line)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(EXIT_USAGE)
    except OSError as error:  # a disk, a socket, a file that has just gone
        log.debug("traceback", exc_info=True)
        logs.say(f"{error.filename}: {error.strerror}" if error.filename and error.strerror else one_line(error))
        sys.exit(EXIT_FAILED)
