"""The thread in which a batching stage works: blocks go in, batches span them, finished blocks come out."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from streamer.batcher import Batch, Batcher, Part
from streamer.block import Array, Block
from streamer.metrics import BatchMetrics, StageMetrics
from streamer.stage import BatchStage

log = logging.getLogger(__name__)

L = TypeVar("L")


@dataclass(eq=False)
class _Job(Generic[L]):
    block: Block
    link: L
    n_items: int
    results: list[Array] = field(default_factory=list)
    n_done: int = 0


class Engine(Generic[L]):
    """Runs a `BatchStage`.

    What waits here is bounded by the credits that the stage's inlet grants.

    Parameters
    ----------
    on_done : callable
        Called from the engine's thread with each finished block and the link it came on.
    on_crash : callable
        Called when the stage's own bookkeeping fails; the process cannot go on.
    """

    def __init__(
        self,
        stage: BatchStage,
        metrics: StageMetrics,
        batches: BatchMetrics,
        on_done: Callable[[Block, L], None],
        on_crash: Callable[[BaseException], None],
    ) -> None:
        self._stage, self._metrics, self._batches = stage, metrics, batches
        self._on_done, self._on_crash = on_done, on_crash
        self._batcher: Batcher[_Job[L]] = Batcher(stage.max_batch, stage.max_wait)
        self._ready = threading.Condition()
        self._draining = self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, block: Block, link: L) -> None:
        """Queue a block's items."""
        job = _Job(block, link, self._stage.items(block))
        if not job.n_items:
            self._finish(job)
            return
        with self._ready:
            self._batcher.add(job, job.n_items, time.monotonic())
            self._batches.waiting.set(self._batcher.waiting)
            self._ready.notify()

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
            while (batch := self._next()) is not None:
                self._work(batch)
        except BaseException as error:
            self._on_crash(error)

    def _next(self) -> Batch[_Job[L]] | None:
        with self._ready:
            while not self._closing:
                now = time.monotonic()
                decision = self._batcher.next(now, draining=self._draining)
                if isinstance(decision, Batch):
                    self._batches.waiting.set(self._batcher.waiting)
                    return decision
                self._ready.wait(None if decision is None else decision - now)
            return None

    def _work(self, batch: Batch[_Job[L]]) -> None:
        parts = [Part(part.key.block, part.start, part.stop) for part in batch.parts]
        begin = time.perf_counter()
        try:
            results = self._stage.infer(parts)
        except Exception as error:
            log.warning("a batch of %d failed (%s); trying its items one by one", batch.size, _line(error))
            results = np.concatenate([self._infer_one(part, i) for part in parts for i in range(part.size)])
        self._metrics.busy.inc(time.perf_counter() - begin)
        if len(results) != batch.size:
            raise RuntimeError(f"{len(results)} results for a batch of {batch.size} items")
        self._batches.size.observe(batch.size)
        self._batches.closed[batch.reason].inc()
        place = 0
        for part in batch.parts:
            job = part.key
            job.results.append(results[place : place + part.size])
            job.n_done += part.size
            place += part.size
            if job.n_done == job.n_items:
                self._finish(job)

    def _infer_one(self, part: Part[Block], i: int) -> Array:
        one = Part(part.key, part.start + i, part.start + i + 1)
        try:
            return self._stage.infer([one])
        except Exception as error:
            log.error("item %d of block %d: %s", one.start, part.key.id, _line(error))
            return self._stage.failed(1)

    def _finish(self, job: _Job[L]) -> None:
        results = np.concatenate(job.results) if job.results else self._stage.failed(0)
        self._on_done(self._stage.finish(job.block, results), job.link)


def _line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
