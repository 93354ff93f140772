"""What `streamer inspect` tells of an event file."""

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from stages.config import CHANNELS, TAGGERS, Config, TaggerSpec
from stages.formats import open_events
from stages.formats.tree import TreeFile
from stages.records import READABLE, needed
from stages.sources import channels_of, choose
from streamer.errors import UsageError


def show_file(path: Path | str, config: Config) -> None:
    """Print what the file holds and which taggers it can feed."""
    console = Console()
    file = open_events(path, config.input)
    kind = f"{file.kind} {file.layout}" if isinstance(file, TreeFile) else file.kind
    console.print(f"[bold]{escape(str(file.path))}[/]  {kind}, {file.n_events:,} events", soft_wrap=True)
    wanted = {column.name for column in needed(config)}
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("column", "in the file", "needed", "unit", "meaning"):
        table.add_column(title)
    for column in READABLE:
        own = file.names.get(column.name)
        there = "[red]no[/]" if own is None else "yes" if own == column.name else f"as {own}"
        need = "" if column.name not in wanted else "optional" if column.optional else "yes"
        table.add_row(column.name, there, need, column.unit, column.doc)
    console.print(table)
    given = channels_of(file, config)
    missing = [channel for channel in CHANNELS if channel not in given]
    console.print(f"channels: {', '.join(given) or 'none'}", soft_wrap=True)
    if missing:
        console.print(f"[yellow]empty[/]: {', '.join(missing)}", soft_wrap=True)
    built_in = {name: TaggerSpec.model_validate({"model": "none", **table}) for name, table in TAGGERS.items()}
    for name, spec in (built_in | config.taggers).items():
        try:
            choice = choose(file, config.model_copy(update={"taggers": {name: spec}}))
            verdict = "\n    ".join(["[green]can be fed[/]", *choice.notes])
        except UsageError as error:
            lines = (escape(line.removeprefix(f"{file.path}: ")) for line in str(error).splitlines())
            verdict = "\n    ".join(["[red]no[/]", *lines])
        console.print(f"tagger [bold]{name}[/] ({spec.objects}, {', '.join(spec.channels)}): {verdict}", soft_wrap=True)
    file.close()
