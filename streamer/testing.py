"""Small parts for tests: a schema, blocks, a stage of every role and a chain of them. No detector, model or file."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from streamer.batcher import Part
from streamer.block import (
    CORE_COLUMNS,
    Array,
    Block,
    Column,
    Columns,
    Schema,
    core_columns,
    count_column,
    with_failures,
)
from streamer.config import CoreConfig, HopConfig
from streamer.deadline import with_shed
from streamer.pipeline import Pipeline, StageSpec
from streamer.runner import Process, Run
from streamer.stage import LATE, BatchStage, Missing, Sink, Source, Stage, Unit, everything

TOY = Schema(
    [
        *CORE_COLUMNS,
        Column("event", "u8"),
        count_column("Hit"),
        Column("Hit_energy", "f4", "Hit"),
        count_column("Cell", "Hit", (2,)),
        Column("Cell_index", "u2", "Cell"),
    ]
)
"""Events with hits, hits with two lists of cells each."""


async def until(condition: Callable[[], object], timeout: float = 20.0) -> None:
    """Return as soon as `condition()` is true.

    Raises
    ------
    TimeoutError
        It was not within `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not true within {timeout:g} s")
        await asyncio.sleep(0.001)


@contextlib.contextmanager
def run_folder() -> Iterator[Run]:
    """A run with a folder of its own; its path is short, because socket paths must be."""
    with TemporaryDirectory(prefix="st-", dir="/tmp") as path:
        yield Run.open(Path(path))


def toy_columns(n_events: int, first_event: int = 0) -> Columns:
    """Event `i` has `i % 3` hits of the energy i, hit `k` has `k % 2` and one cells."""
    events = np.arange(first_event, first_event + n_events, dtype=np.uint64)
    n_hits = (events % 3).astype(np.int32)
    total = int(n_hits.sum())
    cells = np.stack([np.arange(total) % 2, np.ones(total)], axis=1).astype(np.int32)  # axes: hit, list
    return {
        "event": events,
        "nHit": n_hits,
        "Hit_energy": np.repeat(events, n_hits).astype(np.float32),
        "nCell": cells,
        "Cell_index": np.arange(cells.sum(), dtype=np.uint16),
    }


def toy_block(block_id: int = 1, n_events: int = 4, first_event: int = 0) -> Block:
    """A block as the schema `TOY` declares it."""
    core = core_columns(np.full(n_events, time.time_ns()))
    columns = core | toy_columns(n_events, first_event)
    return Block(block_id, n_events, {name: columns[name] for name in TOY.by_name})


class ToySource(Source):
    """Gives `n_events` events in steps; with `pause_at`, it waits there until `go` is set."""

    outputs = TOY

    def __init__(self, n_events: int, step: int = 16, pause_at: int = -1) -> None:
        super().__init__()
        self.n_events, self.step, self.pause_at = n_events, step, pause_at
        self.given = 0
        self.go = threading.Event()

    def read(self, missing: Missing = everything) -> Iterator[Columns]:
        while self.given < self.n_events:
            if self.given == self.pause_at:
                self.go.wait()
            n = min(self.step, self.n_events - self.given)
            self.given += n
            yield toy_columns(n, self.given - n) | {"sequence": np.arange(self.given - n, self.given)}


class ToyStage(Stage):
    """Hands each block to a function."""

    inputs = outputs = TOY

    def __init__(self, work: Callable[[Block], Block] = lambda block: block) -> None:
        super().__init__()
        self.work = work

    def process(self, block: Block) -> Block:
        return self.work(block)


class ToyBatchStage(BatchStage):
    """Its items are the hits, their result is ten times the energy; hits with an energy in `bad` raise."""

    inputs = outputs = TOY

    def __init__(self, max_batch: int = 8, max_wait: float = 0.001, bad: tuple[float, ...] = ()) -> None:
        super().__init__()
        self.queues, self.max_wait, self.bad = {"hits": max_batch}, max_wait, bad
        self.batches: list[list[float]] = []

    def items(self, block: Block) -> dict[str, int]:
        return {"hits": int(block.columns["nHit"].sum())}

    def infer(self, queue: str, parts: list[Part[Block]]) -> Array:
        energies = np.concatenate([part.key.columns["Hit_energy"][part.start : part.stop] for part in parts])
        self.batches.append(energies.tolist())
        if np.isin(energies, self.bad).any():
            raise ValueError("a bad hit")
        return energies * 10

    def finish(self, block: Block, results: dict[str, Array], why: Mapping[str, Mapping[int, str]]) -> Block:
        columns: Columns = {**block.columns, "Hit_energy": results["hits"].astype(np.float32)}
        events = np.repeat(np.arange(block.n_events), block.columns["nHit"])
        failed = {int(events[item]): text for item, text in why["hits"].items() if text != LATE}
        late = events[[item for item, text in why["hits"].items() if text == LATE]]
        return block.with_columns(with_shed(with_failures(columns, failed, self.mark), late, self.mark))

    def failed(self, n_items: int) -> Array:
        return np.full(n_items, np.nan, np.float32)


class ToySink(Sink):
    """Keeps what it is given; `synced` are the block ids that a `sync` has covered."""

    inputs = TOY

    def __init__(self, commit_interval: float = 0.01, commit_events: int = 64) -> None:
        super().__init__()
        self.commit_interval, self.commit_events = commit_interval, commit_events
        self.blocks: list[Block] = []
        self.synced: list[int] = []
        self.ended = ""

    def write(self, block: Block) -> None:
        self.blocks.append(block)

    async def sync(self) -> None:
        self.synced = [block.id for block in self.blocks]

    async def finish(self) -> None:
        self.ended = "finished"

    async def abandon(self) -> None:
        self.ended = "abandoned"

    @property
    def events(self) -> list[int]:
        """The events that were written, in order."""
        return [int(event) for block in self.blocks for event in block.columns["event"]]


@dataclass(frozen=True)
class Made(StageSpec):
    """A place in the chain whose stage object is already there."""

    unit: Unit | None = None

    def make(self, config: CoreConfig) -> Unit:
        assert self.unit is not None
        return self.unit


class ToyChain:
    """A chain whose "processes" are tasks of this one's loop: real sockets, and stages that a test can look into.

    Parameters
    ----------
    names : list of str
        The stages, in chain order.
    """

    def __init__(self, run: Run, names: list[str], config: CoreConfig) -> None:
        self.run, self.names, self.config = run, names, config
        self.processes: list[Process] = []
        self._mains: list[asyncio.Task[int]] = []

    def start(self, name: str, unit: Unit, replica: int = 0) -> Process:
        """Begin one process, also one that was there before."""
        chain = tuple(Made(place, "", unit=unit) for place in self.names)
        pipeline = Pipeline("toy", CoreConfig, chain, "", "")
        process = Process(pipeline, name, replica, self.config, self.run, supervised=False)
        self.processes.append(process)
        self._mains.append(asyncio.create_task(process.main()))
        return process

    async def close(self) -> None:
        """Kill what is left."""
        for process, main in zip(self.processes, self._mains, strict=True):
            if not main.done():
                await self.kill(process)

    async def kill(self, process: Process) -> None:
        """End a process in the middle of what it does."""
        process.crash(RuntimeError("killed by the test"))
        await self._mains[self.processes.index(process)]

    async def codes(self, timeout: float = 20.0) -> list[int]:
        """Wait for the end of all processes; their exit codes."""
        return await asyncio.wait_for(asyncio.gather(*self._mains), timeout)


def quick(**hop: float) -> CoreConfig:
    """A configuration for tests: the protocol's waits are short."""
    return CoreConfig(hop=HopConfig.model_validate({"heartbeat": 0.05, "peer_timeout": 5.0, **hop}))
