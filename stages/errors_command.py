"""`streamer errors`: the events that could not be processed."""

import json
from pathlib import Path
from typing import Annotated

import typer

from streamer.errors import UsageError

MOST_LINES = 20
"""Events in the list; JSON has all."""


def errors(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run.")] = Path("streamer-out"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, a line for each event, all of them.")] = False,
) -> None:
    """The events that could not be processed: which, where they come from, why, and the command that tries one again.

    Works while the run goes on, too. Their tracebacks are in the JSON.
    """
    from rich.console import Console

    from stages.error_stream import read_lines

    if not (folder / "books").is_dir():
        raise UsageError(f"{folder}: no run was begun there (there is no {folder / 'books'})")
    console = Console(highlight=False, soft_wrap=True)
    n = 0
    for n, line in enumerate(read_lines(folder / "errors"), 1):
        if as_json:
            print(json.dumps(line))
        elif n <= MOST_LINES:
            who = f"run {line['run']} lumisection {line['luminosityBlock']} event {line['event']}"
            console.print(f"[bold]{who}[/], entry {line['sourceEntry']} of {line['source']}", markup=True)
            console.print(f"  {line['stage']}: {line['reason']}", markup=False)
            console.print(f"  again: {line['again']}", markup=False)
    if not as_json and n > MOST_LINES:
        console.print(f"... and {n - MOST_LINES:,} more: streamer errors {folder} --json", markup=False)
    elif not as_json and not n:
        console.print("no event failed")
