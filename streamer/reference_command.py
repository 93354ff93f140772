"""`streamer reference`: keeps what the data of a good run looked like, and holds other runs against it."""

import math
from bisect import bisect
from pathlib import Path
from typing import Annotated

import typer

from streamer.config import QualityConfig
from streamer.control_commands import the_run
from streamer.errors import EXIT_FAILED, UsageError
from streamer.reference import FILE, LARGE, MIXED, NOTABLE, Taken, compared, read, taken


def reference(
    run: Annotated[
        Path | None,
        typer.Argument(
            metavar="[DIR]",
            help="Output folder of a run that goes on or has ended; not needed where one run goes on.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Keep it as a reference in this file.")
    ] = None,
    against: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Hold it against the reference in this file.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
) -> None:
    """What the data of a run looked like: how full each channel was, how many objects events had, how they scored.

    Of a good run it is kept with -o, and a later one is told to watch for what differs: streamer run --reference FILE.
    A run that has ended is held against it with --against. How far two distributions are apart is told as their
    population stability index: up to 0.1 is nothing, from 0.25 on something has changed (exit code 1).

    [bold]Examples[/bold]

      streamer reference good-run -o good.json
      streamer run events.root --reference good.json
      streamer reference other-run --against good.json
    """
    now = _of(run)
    if not any(one.entries for one in now.found.values()):
        raise UsageError(f"{run or 'the run'}: nothing has been measured yet")
    if output is not None:
        _keep(now, output, overwrite=overwrite)
    elif against is None:
        _show(now)
    if against is not None:
        raise typer.Exit(EXIT_FAILED if _compare(now, against) else 0)


def _of(run: Path | None) -> Taken:
    """What a run that goes on, or has ended, has measured."""
    from streamer.control import ask

    try:
        folder, _ = the_run(run)
    except UsageError:
        if run is None:
            raise
        path = run / FILE if run.is_dir() else run
        if run.is_dir() and not path.exists():
            raise UsageError(f"{run}: no run goes on there, and none has left its {FILE} at its end") from None
        return read(path)
    return taken(ask(folder, {"do": "quality"}))


def _keep(now: Taken, path: Path, *, overwrite: bool) -> None:
    for (_, value), one in now.found.items():
        if one.of == MIXED:
            raise UsageError(f"the network of '{value}' was changed while the run went on; take another run")
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists; choose another name, or --overwrite")
    try:
        Taken(now.found, now.made).write(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from None
    least = QualityConfig().events
    few = [f"{_called(name)} {value}" for (name, value), one in now.found.items() if one.entries < least]
    if few:
        told = f"of these nothing can be said, with fewer than {least} entries: {', '.join(few)}"
        typer.echo(f"streamer: {told}", err=True)
    print(path)


def tell_drift(now: Taken) -> None:
    """Print how far the data of a run that has ended were from the reference at most, where there was one."""
    if now.drift:
        (name, value), drift = max(now.drift.items(), key=lambda item: item[1])
        print(f"drift   at most {drift:.2f} ({_called(name)} {value}); {_WORDS[bisect(_STEPS, drift)]}")


_STEPS = NOTABLE, LARGE
_WORDS = "the data were as the reference", "worth a look", "something has changed"


def _called(name: str) -> str:
    """`streamer_channel_occupancy_ratio` as people read it."""
    return name.removeprefix("streamer_").replace("_", " ")


def _show(now: Taken) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("quantity")
    table.add_column("of")
    for title in ("entries", "mean", *(("largest drift",) if now.drift else ())):
        table.add_column(title, justify="right")
    for (name, value), one in now.found.items():
        drift = [f"{now.drift[name, value]:.3f}" if (name, value) in now.drift else "-"] if now.drift else []
        table.add_row(_called(name), value, f"{one.entries:,}", _number(one.mean), *drift)
    Console(highlight=False).print(table)


def _compare(now: Taken, path: Path) -> bool:
    """Print how far a run is from its reference; whether something has changed."""
    from rich.console import Console
    from rich.table import Table

    other, least = read(path), QualityConfig().events
    drifts = dict(compared(now, other, least))
    if not drifts:
        told = f"has nothing of what this run has at least {least} entries of, with the same networks and bins"
        raise UsageError(f"{path}: {told}")
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("quantity")
    table.add_column("of")
    for title in ("entries", "mean", "reference", "drift"):
        table.add_column(title, justify="right")
    for (name, value), drift in sorted(drifts.items(), key=lambda item: -item[1]):
        one, before = now.found[name, value], other.found[name, value]
        style = "bold red" if drift >= LARGE else "yellow" if drift >= NOTABLE else ""
        means = _number(one.mean), _number(before.mean)
        table.add_row(_called(name), value, f"{one.entries:,}", *means, f"{drift:.3f}", style=style)
    console = Console(highlight=False)
    console.print(table)
    left = [f"{_called(name)} {value}" for name, value in now.found.keys() - drifts.keys()]
    if left:
        console.print(f"not compared (too few entries, another network or other bins): {', '.join(sorted(left))}")
    return max(drifts.values()) >= LARGE


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"
