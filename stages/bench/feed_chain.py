"""A reader of nothing but numbers, and somebody who notes when they left, for `streamer bench feed`.

The reader's process is the real one, and so is the hop behind it. `python -m stages.bench.feed_chain stage NAME ...` is
one of the two.
"""

import itertools
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from stages.bench.unsafe import UNSAFE, main
from stages.config import Config
from streamer.arrivals import Poisson, Seconds
from streamer.block import CORE_COLUMNS, FED_TIME, Array, Block, Columns, Schema
from streamer.pipeline import StageSpec
from streamer.stage import Missing, Sink, Source, everything

DEPARTURES = "departures.npy"
STEP_EVENTS = 1000
RECORDED_HZ = 1000.0
"""The rate of the time stamps that the reader tells."""


def recorded(n: int) -> Seconds:
    """The first `n` time stamps [s]."""
    return Poisson(np.random.default_rng(7)).take(n) / RECORDED_HZ


class Numbers(Source):
    """Events that are nothing but counted."""

    outputs = Schema(CORE_COLUMNS)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._n, self._recorded = config.feed.events, config.feed.arrivals == "recorded"

    def read(self, missing: Missing = everything) -> Iterator[Columns]:
        stamps = (recorded(self._n) * 1e9).astype(np.int64) if self._recorded else np.zeros(0, np.int64)
        for first in itertools.count(0, STEP_EVENTS):
            if first >= self._n:
                return
            numbers = np.arange(first, min(first + STEP_EVENTS, self._n))
            yield {"sequence": numbers} | ({"recorded": stamps[numbers]} if self._recorded else {})


class Departures(Sink):
    """Leaves for each event when it was due, when its block left the reader, and when it came."""

    commit_events = 1
    inputs = Schema(CORE_COLUMNS)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self._path = config.writer.dir / DEPARTURES
        self.commit_interval = config.writer.commit_interval
        self._noted: list[tuple[int, Array, int]] = []

    def write(self, block: Block) -> None:
        self._noted.append((block.id, block.columns[FED_TIME.name].copy(), block.stamps["reader"]))

    async def sync(self) -> None:
        pass

    async def finish(self) -> None:
        rows = [
            np.stack([due, np.full(due.size, left), np.full(due.size, number)]) for number, due, left in self._noted
        ]
        np.save(self._path, np.concatenate(rows, axis=1))

    async def abandon(self) -> None:
        pass


CLOCKWORK = replace(
    UNSAFE,
    chain=(
        StageSpec("reader", "stages.bench.feed_chain:Numbers"),
        StageSpec("writer", "stages.bench.feed_chain:Departures"),
    ),
    program="stages.bench.feed_chain",
)

if __name__ == "__main__":
    sys.exit(main(CLOCKWORK))
