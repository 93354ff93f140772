"""The tagger alone in a chain, for `streamer bench tagger`: crops come from memory, answers are timed and forgotten.

Source and sink are processes like any others; the two hops to and from the tagger are the real ones.
`python -m stages.bench.crops stage NAME ...` is one of the processes.
"""

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import cycle
from typing import Any

import numpy as np

from stages import CHAIN, records
from stages.bench.unsafe import UNSAFE, Forgetful, main
from stages.config import Config
from stages.cropper import Cropper
from stages.framer import Framer
from stages.reader import Reader
from streamer.block import CORE_COLUMNS, FED_TIME, Array, Block, Columns, core_columns
from streamer.pipeline import StageSpec
from streamer.stage import Missing, Source, everything

STEP_EVENTS = 256
KEPT_EVENTS = 2048
"""The first events of the input; they are fed again and again."""
ANSWERS, SCORES = "answers.npy", "scores-{}.npy"


def crops(config: Config) -> Columns:
    """The first events of the input as the cropper leaves them."""
    step = config.input.model_copy(update={"step_events": STEP_EVENTS})
    config = config.model_copy(update={"input": step, "feed": config.feed.model_copy(update={"loop": False})})
    reader, framer, cropper = Reader(config), Framer(config), Cropper(config)
    for unit in (reader, framer, cropper):
        unit.setup()
    parts: list[Columns] = []
    n = 0
    for columns in reader.read():
        events = len(columns["event"])
        block = Block(0, events, {**columns, **core_columns(np.zeros(events, np.int64))})
        parts.append(cropper.process(framer.process(block)).columns)
        n += events
        if n >= KEPT_EVENTS:
            break
    reader.close()
    return cropper.outputs.concat(parts)


class Crops(Source):
    """Events that have been framed and cropped already."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config, self.outputs = config, records.crops(config)

    def setup(self) -> None:
        made = crops(self.config)
        own = {column.name for column in CORE_COLUMNS}
        self._n = len(made[FED_TIME.name])
        cuts = [(first, min(first + STEP_EVENTS, self._n)) for first in range(0, self._n, STEP_EVENTS)]
        steps = [self.outputs.slice(made, first, last) for first, last in cuts]
        self._steps = [{name: array for name, array in step.items() if name not in own} for step in steps]
        self._n_items = {name: self._items(made, name) for name in self.config.taggers}

    def _items(self, made: Columns, tagger: str) -> int:
        """What its network is given in one pass."""
        if tagger not in self.config.crops:
            return self._n
        return int(made[f"n{records.crop_names(self.config.crops[tagger])[0]}"].sum())

    def about(self) -> dict[str, Any]:
        return {"items_per_event": {name: n / self._n for name, n in self._n_items.items()}}

    def read(self, missing: Missing = everything) -> Iterator[Columns]:
        begin = 0
        for step in cycle(self._steps):
            n = len(next(iter(step.values())))
            yield {**step, "sequence": np.arange(begin, begin + n)}
            begin += n


class Answers(Forgetful):
    """Notes for each event when it was due, when its answer came, and whether it has one; leaves `answers.npy`.

    The scores of each tagger's objects are left in `scores-NAME.npy`, in the order in which they were fed.
    """

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self._dir = config.writer.dir
        self._noted: list[tuple[int, Array, Array]] = []
        self._columns = {name: records.score_column(name, spec).name for name, spec in config.taggers.items()}
        self._scores: list[tuple[int, dict[str, Array]]] = []

    def write(self, block: Block) -> None:
        self._noted.append((time.time_ns(), block.columns[FED_TIME.name].copy(), block.columns["error"] == 0))
        scores = {name: block.columns[column].copy() for name, column in self._columns.items()}
        self._scores.append((block.id, scores))

    async def finish(self) -> None:
        if not self._noted:  # stopped before the first answer
            return
        rows = [np.stack([due, np.full(due.size, at), good.astype(np.int64)]) for at, due, good in self._noted]
        np.save(self._dir / ANSWERS, np.concatenate(rows, axis=1))
        parts = [scores for _, scores in sorted(self._scores, key=lambda one: one[0])]
        for name in self._columns:
            np.save(self._dir / SCORES.format(name), np.concatenate([part[name] for part in parts]))


CROPS = replace(
    UNSAFE,
    chain=(
        StageSpec("reader", "stages.bench.crops:Crops"),
        CHAIN[3],
        StageSpec("writer", "stages.bench.crops:Answers"),
    ),
    program="stages.bench.crops",
)

if __name__ == "__main__":
    sys.exit(main(CROPS))
