"""`streamer prescale`: another prescale column while a run goes on."""

from typing import Annotated

import typer

from streamer.control_commands import RunOption, the_run


def prescale(
    column: Annotated[str, typer.Argument(help="A prescale column of the menu, or 'default'.", show_default=False)],
    output: RunOption = None,
    at_lumisection: Annotated[
        int,
        typer.Option("--at-lumisection", min=0, metavar="N", help="From this one on; 0 = from the next one on."),
    ] = 0,
) -> None:
    """Switch to another prescale column while a run goes on, exactly at the edge of a lumisection.

    A lumisection of which an event has been decided keeps its column to its end. Every event of the output tells the
    prescales that held for it ([bold]HLT_PATH_prescale[/bold]).

    [bold]Examples[/bold]

      streamer prescale 2e34
      streamer prescale default --at-lumisection 120
    """
    from streamer.control import ask

    folder, _ = the_run(output)
    settings = {"menu.prescale_column": column, "menu.prescale_from": at_lumisection}
    ask(folder, {"do": "change", "stage": "writer", "settings": settings})
    which = f"lumisection {at_lumisection}" if at_lumisection else "the next lumisection"
    print(f"prescale column '{column}' from {which} on; one that has begun keeps its own")
