"""Generated events as an event file."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import uproot

from stages.conversion import schema_of
from stages.formats.root import write_events
from stages.records import INPUT
from stages.simulation import egamma
from streamer import __version__
from streamer.block import Columns
from streamer.errors import UsageError

STEP_EVENTS = 2000

_COLLECTIONS = ("EBRecHit", "EERecHit", "Photon", "")
_UNKNOWN = ("Photon_seedDetId", "Photon_superClusterIdx")
_COLUMNS = [c for c in INPUT if c.collection in _COLLECTIONS and c.name not in _UNKNOWN]


def settings_of(path: Path) -> dict[str, Any]:
    """How a file was generated: process, events, seed ...; empty for a file that was not."""
    with uproot.open(path) as file:
        found: dict[str, Any] = json.loads(str(file["generator"])) if "generator;1" in file else {}
    return found


def generate_file(n_events: int, out: Path, seed: int, on_step: Callable[[int], None] | None = None) -> None:
    """Write `n_events` single electrons and photons; the same seed gives the same events.

    Parameters
    ----------
    on_step : callable, optional
        Told how many events each step made.

    Raises
    ------
    UsageError
        The file cannot be written.
    """
    schema = schema_of(_COLUMNS)

    def steps() -> Iterator[Columns]:
        for first in range(1, n_events + 1, STEP_EVENTS):
            n = min(STEP_EVENTS, n_events + 1 - first)
            made = egamma.generate(n, seed, first)
            nothing = {name: array for name, array in schema.empty(n).items() if name not in made}  # the endcaps
            yield {**nothing, **made}
            if on_step is not None:
                on_step(n)

    settings = {
        "process": "single electrons and photons in the ECAL barrel",
        "pt_gev": egamma.PT_GEV,
        "max_eta": egamma.MAX_ETA,
        "seed": seed,
        "events": n_events,
        "version": __version__,
        "numpy": np.__version__,
    }
    try:
        write_events(out, schema, steps(), title="generated events", metadata={"generator": json.dumps(settings)})
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror or error})") from None
