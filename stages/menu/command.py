"""`streamer prescale`: another prescale column while a run goes on."""

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from stages import PIPELINE
from streamer.control_commands import RunOption, the_run
from streamer.errors import UsageError

AHEAD = (2, 8, 32, 128, 512)
"""So many lumisections ahead a column is asked for, one after the other, where they begin sooner than all agree."""


def prescale(
    column: Annotated[str, typer.Argument(help="A prescale column of the menu, or 'default'.", show_default=False)],
    output: RunOption = None,
    at_lumisection: Annotated[
        int,
        typer.Option("--at-lumisection", min=0, metavar="N", help="From this one on; 0 = from the next one on."),
    ] = 0,
) -> None:
    """Switch to another prescale column while a run goes on, exactly at the edge of a lumisection.

    A lumisection of which an event has been decided keeps its column to its end; several writers agree on one that
    none of them has seen. Every event of the output tells the
    prescales that held for it ([bold]HLT_PATH_prescale[/bold]).

    [bold]Examples[/bold]

      streamer prescale 2e34
      streamer prescale default --at-lumisection 120
    """
    folder, status = the_run(output)
    writers = [row["metrics"] for row in status["processes"] if row["name"].startswith(f"{PIPELINE.names[-1]}-")]
    if at_lumisection or len(writers) == 1:
        _ask(folder, column, at_lumisection)
    else:
        at_lumisection = _agreed(folder, column, writers)
    which = f"lumisection {at_lumisection}" if at_lumisection else "the next lumisection"
    print(f"prescale column '{column}' from {which} on; one that has begun keeps its own")


def _ask(folder: Path, column: str, since: int) -> None:
    from streamer.control import CHANGE_TIMEOUT_S, ask

    settings = {"menu.prescale_column": column, "menu.prescale_from": since}
    ask(folder, {"do": "change", "stage": PIPELINE.names[-1], "settings": settings}, CHANGE_TIMEOUT_S)


def _agreed(folder: Path, column: str, writers: list[str]) -> int:
    """Ask several writers for a column from the next lumisection on that none of them has seen; which that is.

    Raises
    ------
    UsageError
        They refuse it for another reason than that it has begun meanwhile.
    """
    for ahead in AHEAD:
        since = _begun(writers) + ahead
        try:
            _ask(folder, column, since)
            break
        except UsageError:
            if ahead == AHEAD[-1] or _begun(writers) < since:
                raise
    return since


def _begun(writers: list[str]) -> int:
    """The last lumisection that has begun at any writer, by the addresses of their metrics."""
    from streamer.child import scrape

    last = 0.0
    for address in writers:
        with contextlib.suppress(OSError, ValueError):  # it is just being started again, and will say so when asked
            last = max(last, scrape(address).get("streamer_lumisection", 0.0))
    return int(last)
