"""What a menu decides, as it stands in blocks: a bit a path, and which lumisection each event is of."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from stages.menu.schedule import Section
from streamer.block import LUMISECTION, Array, Block
from streamer.fedbook import FEED_RUN

OUTCOMES = ("accepted", "rejected", "prescaled")
"""What a menu makes of an event: some path accepts it; none passes it; those that pass it are prescaled away."""
STEPS = ("seeded", "passed", "accepted")
"""How far a path takes an event."""
FLAGS = ("pathSeeded", "pathPassed", "pathAccepted")
"""The columns that hold a bit a path of these."""


def sections(block: Block) -> Iterator[tuple[Section, Any]]:
    """The lumisections of a block, and which of its events are in each. Those that the feed counts know no passes."""
    if LUMISECTION.name in block.columns:
        counted = block.columns[LUMISECTION.name]
        parts = [np.zeros_like(counted), np.full_like(counted, FEED_RUN), counted]
    else:
        parts = [block.columns[name] for name in ("replay", "run", "luminosityBlock")]
    if all((part == part[0]).all() for part in parts):
        replay, run, lumisection = (int(part[0]) for part in parts)
        yield (replay, run, lumisection), slice(None)
        return
    found = np.stack([part.astype(np.int64) for part in parts], axis=1)
    each, place = np.unique(found, axis=0, return_inverse=True)
    for k, (replay, run, lumisection) in enumerate(each.tolist()):
        yield (replay, run, lumisection), np.flatnonzero(place.reshape(-1) == k)


def unpacked(bits: Array, n_paths: int) -> Array:
    """The other way: uint8, shape (n_events, n_paths)."""
    return np.unpackbits(bits, axis=1, count=n_paths, bitorder="little")
