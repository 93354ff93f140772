"""`streamer status`, `stop` and `scale`: what can be asked of a run from another terminal."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from streamer.errors import UsageError

RunOption = Annotated[
    Path | None,
    typer.Argument(
        metavar="[DIR]", help="The run's output folder; not needed where one run goes on.", show_default=False
    ),
]


def the_run(output: Path | None) -> tuple[Path, dict[str, Any]]:
    """The one run that goes on, or that of an output folder: its private folder and its status."""
    from streamer.control import runs
    from streamer.folders import runtime_dir

    found, silent = runs(runtime_dir())
    if output is not None:
        wanted = str(output.resolve())
        found = {folder: status for folder, status in found.items() if status["output"] == wanted}
    if not found:
        which = f"{output}: no run goes on there" if output else "no run goes on"
        if silent:
            raise UsageError(f"{which} that answers; of these the processes hang: {', '.join(map(str, silent))}")
        raise UsageError(f"{which} (of this user, under {runtime_dir()}); begin one with: streamer run")
    if len(found) > 1:
        outputs = ", ".join(sorted(status["output"] for status in found.values()))
        raise UsageError(f"{len(found)} runs go on; name the output folder of one: {outputs}")
    return next(iter(found.items()))


def status(
    output: RunOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """How a run does: its processes, their states, and what they have done."""
    _, now = the_run(output)
    if as_json:
        print(json.dumps(now, indent=1))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("process", "state"):
        table.add_column(name)
    for name in ("pid", "up", "restarts", "events", "errors", "blocks held", "memory"):
        table.add_column(name, justify="right")
    for row in now["processes"]:
        counts = [f"{row[name]:,}" for name in ("restarts", "events", "errors", "blocks")]
        memory = f"{row['rss_bytes'] / 1e6:,.0f} MB"
        table.add_row(row["name"], row["state"], str(row["pid"]), f"{row['up_s']:,.0f} s", *counts, memory)
    console = Console(highlight=False)
    console.print(table)
    shed = f"{now['shed']:,} shed, " if now["shed"] else ""
    console.print(
        f"{now['state']}: {now['fed']:,} fed, {now['done']:,} done, {now['errors']:,} of them errors, {shed}"
        f"{now['rate']:,.0f}/s   {now['output']}",
        soft_wrap=True,
    )


def stop(
    output: RunOption = None,
    now: Annotated[
        bool, typer.Option("--now/--drain", help="Break off; or let out first what was fed.", show_default="--drain")
    ] = False,
) -> None:
    """Stop a run. What was fed comes out first, unless it is to stop now: then the run can be resumed."""
    from streamer.control import ask

    folder, _ = the_run(output)
    ask(folder, {"do": "stop", "now": now})


def scale(
    wanted: Annotated[str, typer.Argument(metavar="STAGE=N", help="Such as tagger=3.", show_default=False)],
    output: RunOption = None,
) -> None:
    """Have more or fewer replicas of a stage while a run goes on; nothing is lost.

    [bold]Example[/bold]

      streamer scale tagger=3
    """
    from streamer.control import ask

    stage, _, n = wanted.partition("=")
    if not n.strip().isdecimal():
        raise UsageError(f"{wanted!r}: write STAGE=N, such as tagger=3")
    folder, _ = the_run(output)
    ask(folder, {"do": "scale", "stage": stage.strip(), "replicas": int(n)})


def top(output: RunOption = None) -> None:
    """Watch a run in the terminal: rates, latency, the chain and its bottleneck, batches, the ledger. Ctrl-C ends it.

    The same in a browser: streamer run --monitor
    """
    import contextlib

    from rich.console import Console

    from streamer.control import ask
    from streamer.monitor.terminal import watch

    folder, _ = the_run(output)
    with contextlib.suppress(KeyboardInterrupt):
        watch(lambda history: ask(folder, {"do": "watch", "history": history}), Console(highlight=False))
