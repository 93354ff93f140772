"""The thread in which a batching stage works: blocks go in, batches span them, finished blocks come out."""

import logging
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from streamer.batcher import Batch, Batcher, DeadlineBatcher, Part, Shed
from streamer.blackbox import BlackBox
from streamer.block import Array, Block
from streamer.errors import one_line, told
from streamer.metrics import BatchMetrics, StageMetrics
from streamer.stage import BatchStage

log = logging.getLogger(__name__)

LATE = "too late: its deadline passed, or would have, before it was scored"
"""Why an item has no result that was shed."""

L = TypeVar("L")


@dataclass(eq=False)
class _Job(Generic[L]):
    block: Block
    link: L
    n_items: int
    results: dict[str, list[Array]]
    why: dict[str, dict[int, str]]
    n_done: int = 0


class Engine(Generic[L]):
    """Runs a `BatchStage`.

    What waits here is bounded by the credits that the stage's inlet grants.

    Parameters
    ----------
    box : BlackBox
        Told what is being worked on.
    on_done : callable
        Called from the engine's thread with each finished block and the link it came on.
    on_crash : callable
        Called when the stage's own bookkeeping fails; the process cannot go on.
    """

    def __init__(
        self,
        stage: BatchStage,
        metrics: StageMetrics,
        batches: dict[str, BatchMetrics],
        box: BlackBox,
        on_done: Callable[[Block, L], None],
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self._stage, self._metrics, self._batches, self._box = stage, metrics, batches, box
        self._on_done, self._on_crash = on_done, on_crash
        self._batchers: dict[str, Batcher[_Job[L]]] = {
            queue: DeadlineBatcher(stage.costs[queue]) if queue in stage.costs else Batcher(max_batch, stage.max_wait)
            for queue, max_batch in stage.queues.items()
        }
        self._ready = threading.Condition()
        self._draining = self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, block: Block, link: L) -> None:
        """Queue a block's items."""
        items = self._stage.items(block)
        job = _Job(block, link, sum(items.values()), {queue: [] for queue in items}, {queue: {} for queue in items})
        if not job.n_items:
            self._finish(job)
            return
        deadlines = {queue: self._deadlines(queue, block) for queue in items}
        now = time.monotonic()
        with self._ready:
            for queue, n in items.items():
                if n:
                    self._batchers[queue].add(job, n, now, deadlines=deadlines[queue], alone=block.alone)
                    self._batches[queue].waiting.set(self._batchers[queue].waiting)
            self._ready.notify()

    def _deadlines(self, queue: str, block: Block) -> Array | None:
        """By our clock."""
        deadlines = self._stage.deadlines(queue, block) if queue in self._stage.costs else None
        return None if deadlines is None else time.monotonic() + (deadlines - time.time_ns()) * 1e-9

    def drain(self) -> None:
        """Nothing more will come: do not wait for fuller batches."""
        with self._ready:
            self._draining = True
            self._ready.notify()

    def close(self) -> None:
        with self._ready:
            self._closing = True
            self._ready.notify()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            while (decided := self._next()) is not None:
                queue, what = decided
                if isinstance(what, Shed):
                    self._give_up(queue, what)
                else:
                    self._work(queue, what)
        except BaseException as error:
            self._on_crash(error)

    def _next(self) -> tuple[str, Batch[_Job[L]] | Shed[_Job[L]]] | None:
        with self._ready:
            while not self._closing:
                now = time.monotonic()
                wake = math.inf
                for queue, batcher in sorted(self._batchers.items(), key=lambda pair: pair[1].urgency):
                    decision = batcher.next(now, draining=self._draining)
                    if isinstance(decision, Batch | Shed):
                        self._batches[queue].waiting.set(batcher.waiting)
                        return queue, decision
                    wake = min(wake, math.inf if decision is None else decision)
                self._ready.wait(None if wake == math.inf else wake - now)
            return None

    def _work(self, queue: str, batch: Batch[_Job[L]]) -> None:
        begin = time.perf_counter()
        results, whole = self._infer(queue, batch)
        took = time.perf_counter() - begin
        self._metrics.busy.inc(took)
        if whole and queue in self._stage.costs:
            self._stage.costs[queue].learn(batch.size, took)
        if len(results) != batch.size:
            raise RuntimeError(f"{len(results)} results for a batch of {batch.size} items")
        self._batches[queue].size.observe(batch.size)
        self._batches[queue].closed[batch.reason].inc()
        place = 0
        for part in batch.parts:
            self._hand_back(queue, part, results[place : place + part.size])
            place += part.size

    def _give_up(self, queue: str, shed: Shed[_Job[L]]) -> None:
        self._batches[queue].shed.inc(shed.size)
        for part in shed.parts:
            part.key.why[queue].update(dict.fromkeys(range(part.start, part.stop), LATE))
            self._hand_back(queue, part, self._stage.failed(part.size))

    def _hand_back(self, queue: str, part: Part[_Job[L]], results: Array) -> None:
        """Items of one block come in their order, whether they were worked on or not."""
        job = part.key
        job.results[queue].append(results)
        job.n_done += part.size
        if job.n_done == job.n_items:
            with self._box.working([job.block]):
                self._finish(job)

    def _infer(self, queue: str, batch: Batch[_Job[L]]) -> tuple[Array, bool]:
        """The results, and whether the batch was worked on as a whole."""
        parts = [Part(part.key.block, part.start, part.stop) for part in batch.parts]
        with self._box.working(part.key for part in parts):
            try:
                return self._stage.infer(queue, parts), True
            except Exception as error:
                why = one_line(error)
        log.warning("%s: a batch of %d failed (%s); trying its items one by one", queue, batch.size, why)
        ones = [self._infer_one(queue, part.key, i) for part in batch.parts for i in range(part.start, part.stop)]
        return np.concatenate(ones), False

    def _infer_one(self, queue: str, job: _Job[L], i: int) -> Array:
        with self._box.working([job.block]):
            try:
                return self._stage.infer(queue, [Part(job.block, i, i + 1)])
            except Exception as error:
                log.error("%s: item %d of block %d: %s", queue, i, job.block.id, one_line(error))
                job.why[queue][i] = told(error)
                return self._stage.failed(1)

    def _finish(self, job: _Job[L]) -> None:
        results = {queue: np.concatenate([self._stage.failed(0), *parts]) for queue, parts in job.results.items()}
        self._on_done(self._stage.finish(job.block, results, job.why), job.link)
