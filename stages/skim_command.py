"""`streamer skim`: the accepted events of a run, complete, from its source files."""

from pathlib import Path
from typing import Annotated

import typer

from streamer.errors import StreamerError, UsageError


def skim(
    folder: Annotated[Path, typer.Argument(metavar="OUTPUT", help="Output folder of a run that has ended.")],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[INPUT...]",
            help="The source files, where they are elsewhere now, or if their URLs had secrets: all, in their order.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to make.")] = Path("skim.root"),
    stream: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Events of this stream of the menu; with several, of any.")
    ] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN", help="Events for which this column of the results is not 0; with several, any of them."
        ),
    ] = None,
    events: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Events that stand there, run:lumisection:event a line.")
    ] = None,
    without: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Leave out a column, or all that a pattern such as 'L1_*' fits."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
) -> None:
    """Copy events out of the files that a run was fed from, with all their columns, byte for byte.

    An event that was fed several times is copied once. Events are in the order of the input. Source files with other
    columns go to skim_1.root and so on; those of the CMS event display to a file .ig.

    [bold]Examples[/bold]

      streamer skim out --stream physics -o skim.root
      streamer skim out --select HLT_Photon40
      streamer skim out --events picked.txt
      streamer skim out --select error --without 'L1_*'
    """
    from stages.inputs import expand
    from stages.skim import any_of, listed, of_streams
    from stages.skim import skim as copied

    if bool(stream) + bool(select) + bool(events) != 1:
        raise UsageError("say which events: --stream NAME, or --select COLUMN, or --events FILE")
    if output.suffix == ".parquet":
        raise UsageError(f"{output}: a skim has the columns and the kind of its source; choose an --output .root")
    if output.exists() and not overwrite:
        raise UsageError(f"{output}: exists; choose another --output, or --overwrite")
    selection = listed(events) if events else of_streams(stream) if stream else any_of(select or [])
    try:
        made = copied(folder, selection, output, expand(inputs) if inputs else (), without or ())
    except OSError as error:
        raise StreamerError(f"{output}: cannot be written ({error.strerror or error})") from None
    for path, n in made:
        print(f"{n:,} events in {path}")
