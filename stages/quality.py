"""Data quality: what the detector frames hold, how many objects events have, and how the taggers score them.

The framer counts channels, the writer objects and scores; only events that were worked on count, not those that failed,
were shed, or that no path of a menu wants.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from prometheus_client import CollectorRegistry

from stages import records
from stages.config import UNITS, Config, digest
from stages.detector.layout import N_PIXELS, N_TOWERS
from stages.swapped import began_with_others
from streamer.block import Array, Columns
from streamer.quality import Histograms, Quantity

_STEPS = (1.0, 1.6, 2.5, 4.0, 6.3)  # five bins a decade
OCCUPANCY_EDGES = (0.0, *(float(f"{step}e{decade}") for decade in range(-5, 0) for step in _STEPS), 1.0)
ENERGY_EDGES = (0.0, *(float(f"{step}e{decade}") for decade in range(5) for step in _STEPS), 1e5)
OBJECT_EDGES = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 20.0, 50.0)
SCORE_EDGES = (
    *(k / 20 for k in range(21)),
    *(2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 16.0, 25.0, 40.0, 63.0, 100.0, 160.0, 250.0, 400.0, 630.0, 1000.0),
)
"""Fine between 0 and 1, where most scores are; coarse above, for networks that give momenta or masses. Below there is
one bin: Prometheus has no sum of a histogram with negative ones."""

OCCUPANCY, ENERGY, OBJECTS, SCORE = (
    "streamer_channel_occupancy_ratio",
    "streamer_channel_energy_gev",
    "streamer_event_objects",
    "streamer_score",
)


def quantities(config: Config, networks: Mapping[str, str] | None = None) -> dict[str, Quantity]:
    """What is measured, by the names of the metrics.

    Parameters
    ----------
    networks : mapping of str to str, optional
        SHA-256 of each tagger's network, which its scores depend on.
    """
    energies = [channel for channel in config.channels if UNITS[channel] == "GeV"]
    found = (
        Quantity(
            OCCUPANCY,
            "occupancy",
            "share of a channel's pixels (HCAL: towers) in an event that are not empty",
            "channel",
            dict.fromkeys(config.channels, ""),
            OCCUPANCY_EDGES,
        ),
        Quantity(
            ENERGY,
            "energy",
            "sum of a channel in an event: energy, of tracks their transverse momenta",
            "channel",
            dict.fromkeys(energies, ""),
            ENERGY_EDGES,
        ),
        Quantity(OBJECTS, "objects", "objects in an event", "objects", dict.fromkeys(config.objects, ""), OBJECT_EDGES),
        Quantity(
            SCORE,
            "score",
            "scores of a tagger",
            "tagger",
            {name: (networks or {}).get(name, "") for name in config.taggers},
            SCORE_EDGES,
        ),
    )
    return {one.name: one for one in found if one.of}


def measured(config: Config) -> tuple[Quantity, ...]:
    """What a run measures, with the networks that it has now.

    Raises
    ------
    UsageError
        What the output folder tells of replaced networks cannot be read.
    """
    networks = {name: digest(spec.model) for name, spec in config.taggers.items()}
    found = quantities(config, networks)
    if replaced := began_with_others(config, networks):
        found[SCORE] = replace(found[SCORE], began=replaced)
    return tuple(found.values())


def _marks(columns: Columns) -> tuple[Array, ...]:
    """What tells which events count; copied, as the columns are parts of a whole message."""
    marks = (columns["error"].copy(),)
    return (*marks, columns[records.SEEDED.name].copy()) if records.SEEDED.name in columns else marks


def _counts(error: Array, seeded: Array | None = None) -> Array:
    """Which events count, by their marks: bool, shape (n_events,)."""
    good: Array = error == 0
    return good if seeded is None else good & (seeded != 0)


class ChannelQuality:
    """What a framer tells of its channels."""

    def __init__(self, config: Config, registry: CollectorRegistry) -> None:
        known = quantities(config)
        n_cells = np.array([[N_TOWERS if name == "HCAL" else N_PIXELS] for name in config.channels])
        energies = [place for place, channel in enumerate(config.channels) if UNITS[channel] == "GeV"]

        def occupancies(counts: Array, *marks: Array) -> Array:
            return np.asarray(counts[_counts(*marks)].T / n_cells)  # axes: channel, event

        def sums(totals: Array, *marks: Array) -> Array:
            return totals[_counts(*marks)].T[energies]

        self._occupancy = Histograms(known[OCCUPANCY], registry, occupancies)
        self._energy = Histograms(known[ENERGY], registry, sums) if energies else None

    def add(self, columns: Columns, counts: Array, totals: Array) -> None:
        """Take the frames of a block.

        Parameters
        ----------
        counts : int32, shape (n_events, n_channels)
            Pixels that are not empty.
        totals : float64, shape (n_events, n_channels)
            Sums over them.
        """
        n_events, marks = len(counts), _marks(columns)
        self._occupancy.add(n_events, counts, *marks)
        if self._energy is not None:
            self._energy.add(n_events, totals, *marks)


class ScoreQuality:
    """What a writer tells of objects and scores."""

    def __init__(self, config: Config, registry: CollectorRegistry) -> None:
        known = quantities(config)
        self._objects = Histograms(known[OBJECTS], registry, _of_good) if OBJECTS in known else None
        self._scores = Histograms(known[SCORE], registry, _of_scored)
        self._counts = ["error", *(f"n{objects}" for objects in config.objects)]
        self._columns = [records.score_column(name, spec).name for name, spec in config.taggers.items()]

    def add(self, columns: Columns) -> None:
        """Take the scored events of a block."""
        n_events = len(columns["error"])
        if self._objects is not None:
            self._objects.add(n_events, *[columns[name] for name in self._counts])
        self._scores.add(n_events, *[columns[name] for name in self._columns])


def _of_good(error: Array, *counts: Array) -> list[Array]:
    good = _counts(error)
    return [one[good] for one in counts]


def _of_scored(*scores: Array) -> list[Array]:
    return [one[one != -1] for one in scores]
