"""`streamer ledger`: what became of every event."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from stages.ledger_files import NAMES, lines_of, plain
from streamer.errors import EXIT_FAILED

MOST_LINES = 40
"""Lumisections in the table; JSON has all."""


def ledger(
    folder: Annotated[Path, typer.Argument(help="Output folder of a run.")] = Path("streamer-out"),
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, with every lumisection.")] = False,
    moved: Annotated[bool, typer.Option("--moved", help="Finished files may have been moved elsewhere.")] = False,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the run: rates, latency and dead time, paths.")
    ] = None,
) -> None:
    """What became of every event that was fed, per lumisection and in total. Works while the run goes on, too.

    With a menu: what each path took and kept, and its rate over the time in which it was fed. A run that has ended
    leaves the same as ledger.json, and its complete lumisections as lumi_mask.json.

    What the readers fed is held against what the writers have on disk. Exit code 1 when the books do not close.
    """
    from stages.books import read_books

    books = read_books(folder, moved=moved)
    if picture is not None:
        from stages.ledger_plot import draw

        draw(folder, books, picture)
        typer.echo(f"picture  {picture}", err=True)
    if as_json:
        print(json.dumps(plain(books), indent=1))
    else:
        _show(books, folder)
    if books.why_not:
        raise typer.Exit(EXIT_FAILED)


def _show(books: Any, folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("run", "lumisection", *(name.replace("_", " ") for name in NAMES[2:])):
        table.add_column(name, justify="right")
    lines = lines_of(books)
    for line in lines[:MOST_LINES]:
        table.add_row(*(str(line[0]), str(line[1]), *(f"{n:,}" for n in line[2:])))
    if len(lines) > MOST_LINES:
        table.add_row("...", f"{len(lines) - MOST_LINES:,} more")
    total = books.ledger
    table.add_row("all", "", *(f"{getattr(total, name):,}" for name in NAMES[2:]), style="bold")
    console = Console()
    console.print(table)
    for what, counts in (("shed at", books.shed_at), ("dropped for", books.reasons)):
        if counts:
            console.print(f"{what}: {', '.join(f'{n:,} {name}' for name, n in counts.items())}", highlight=False)
    if books.menu is not None:
        books.menu.show(MOST_LINES)
    if not books.why_not:
        console.print("the books close" + (", and the run goes on" if books.running else ""))
    for line in books.why_not:
        console.print(f"[bold red]the books do not close:[/] {line}", highlight=False, soft_wrap=True)
    if books.in_flight and not books.running:
        console.print(f"go on with: streamer run --resume {folder}", highlight=False, soft_wrap=True)
