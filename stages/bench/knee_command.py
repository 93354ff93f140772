"""`streamer knee`: events a second of this machine at a given deadline."""

from pathlib import Path
from typing import Annotated, Any

import typer

from stages.bench.commands import own_events
from stages.commands import InputArgument, ReplicasOption, TaggerOption, chosen_taggers, pairs
from streamer.cli import ConfigOption, SetOption, overrides
from streamer.errors import UsageError


def knee(
    inputs: InputArgument = None,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for knee.json and knee.png.")] = Path(
        "streamer-knee"
    ),
    config: ConfigOption = None,
    set_: SetOption = None,
    tagger: TaggerOption = None,
    replicas: ReplicasOption = None,
    deadline: Annotated[
        str, typer.Option(metavar="TIME", help="99 of 100 events must be answered so long after they were due.")
    ] = "100 ms",
    seconds: Annotated[float, typer.Option(min=2.0, help="How long each stream is.")] = 6.0,
    repeats: Annotated[int, typer.Option(min=1, help="More than half of so many streams at the knee must hold.")] = 3,
) -> None:
    """Find the highest rate at which events are answered in time, and how many machines 100 kHz would take.

    The whole pipeline is started for each rate, as streamer run does it, and fed at random
    distances (Poisson). Latency counts from when an event was due to when its scores have
    reached the writer. A rate holds when p99 is within the deadline and nothing is lost.
    The input is fed in a loop, and read only once where it fits into memory (input.keep_mb),
    as events of a live feed need not be read.

    Then latency is measured at shares of the [bold]knee[/bold], and drawn against the rate. Without
    INPUT the packaged events are used.

    Takes three minutes. Leave the machine alone meanwhile.

    [bold]Examples[/bold]

      streamer knee
      streamer knee --tagger top --deadline "200 ms"
      streamer knee run.root -c pipeline.toml --replicas tagger=2
    """
    from pydantic import TypeAdapter, ValidationError

    from stages import PIPELINE
    from stages.bench.knee import Plan, measure
    from stages.bench.knee_plot import plot, show
    from stages.config import TAGGERS
    from streamer.config import PositiveSeconds

    try:
        within = TypeAdapter(PositiveSeconds).validate_python(deadline)
    except ValidationError:
        raise UsageError(f"--deadline {deadline!r}: write a time above 0, such as '100 ms'") from None
    wanted: dict[str, Any] = {**overrides(set_), **chosen_taggers(tagger or [])}
    wanted |= pairs("--replicas", "replicas.{}", (replicas or "").split(",") if replicas else [], int)
    if inputs:
        wanted["input.files"] = inputs
    effective: Any = PIPELINE.load_config(config, wanted)
    if not effective.input.files:
        own = [name for name in TAGGERS if name in effective.taggers] or list(TAGGERS)
        effective = PIPELINE.load_config(config, {**wanted, "input.files": list(map(own_events, own))})
    result = measure(effective, Plan(within, seconds, repeats), output)
    show(result)
    plot(result, output / "knee.png")
    typer.echo(f"figures  {output / 'knee.json'}  {output / 'knee.png'}")
