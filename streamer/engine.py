"""The thread in which a batching stage works: blocks go in, batches span them, finished blocks come out.

What takes no longer than handing it to another thread and back is worked on at once by the thread that brings it, while
the engine's own has nothing to do. Only one of the two works at a time.
"""

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np

from streamer.batcher import Batch, Batcher, DeadlineBatcher, Part, Shed
from streamer.blackbox import BlackBox
from streamer.block import Array, Block
from streamer.device import Device
from streamer.errors import one_line, told
from streamer.metrics import BatchMetrics, StageMetrics
from streamer.stage import LATE, BatchStage
from streamer.tracing import Tracer

log = logging.getLogger(__name__)

QUICK_S = 0.5e-3
"""A batch that takes less is worked on at once; the loop, which brings it, still answers in time."""

L = TypeVar("L")


@dataclass(eq=False)
class _Job(Generic[L]):
    block: Block
    link: L
    results: dict[str, Array]
    why: dict[str, dict[int, str]]
    left: int
    since: float


_Decision: TypeAlias = tuple[str, Batch[_Job[L]] | Shed[_Job[L]]]


class Engine(Generic[L]):
    """Runs a `BatchStage`.

    What waits here is bounded by the credits that the stage's inlet grants.

    Parameters
    ----------
    box : BlackBox
        Told what is being worked on.
    on_done : callable
        Called with each finished block and the link it came on, from the engine's thread or from `submit`.
    on_crash : callable
        Called when the stage's own bookkeeping fails; the process cannot go on.
    tracer : Tracer, optional
        Told of each batch.
    """

    def __init__(
        self,
        stage: BatchStage,
        metrics: StageMetrics,
        batches: dict[str, BatchMetrics],
        box: BlackBox,
        on_done: Callable[[Block, L], None],
        on_crash: Callable[[BaseException], None],
        tracer: Tracer | None = None,
    ) -> None:
        self._tracer = tracer
        self._stage, self._metrics, self._batches, self._box = stage, metrics, batches, box
        self._on_done, self._on_crash = on_done, on_crash
        self._device: Device[_Job[L]] = Device()
        for queue in stage.queues:
            self._put(queue)
        self._jobs = Counter(dict.fromkeys(stage.queues, 0))  # of each queue, those that are here
        self._lock = threading.Lock()
        self._ready = threading.Condition(self._lock)  # the engine's thread waits for it
        self._draining = self._closing = self._working = False
        self._decided: _Decision[L] | None = None  # for the engine's thread, taken when a block was brought
        for name, metrics_of_queue in batches.items():
            metrics_of_queue.waiting.set_function(partial(self.waiting, name))
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def _put(self, queue: str) -> None:
        stage = self._stage
        batcher: Batcher[_Job[L]]
        if queue in stage.costs:
            batcher = DeadlineBatcher(stage.costs[queue])
        else:
            batcher = Batcher(stage.queues[queue], stage.max_wait)
        self._device.put(queue, batcher, stage.priorities.get(queue, 0))

    def _metrics_of(self, queue: str) -> BatchMetrics:
        return self._batches[label(queue)]

    def waiting(self, name: str) -> int:
        """Items of a queue that wait for a batch."""
        with self._lock:
            return sum(n for queue, n in self._device.waiting() if label(queue) == name)

    def submit(self, block: Block, link: L, *, timed: bool = True) -> bool:
        """Queue a block's items, and work on them here if that is quick; returns whether some that wait have a deadline
        (`expire`), which is so only if it is `timed`."""
        items = self._stage.items(block)
        results = {queue: self._stage.failed(n) for queue, n in items.items()}
        now = time.monotonic()
        n_items = sum(items.values())
        job = _Job(block, link, results, {queue: {} for queue in items}, n_items, now)
        deadlines = {queue: self._deadlines(queue, block) if n and timed else None for queue, n in items.items()}
        with self._lock:
            for queue, n in items.items():
                self._jobs[queue] += 1
                if n:
                    if queue not in self._device:
                        self._put(queue)
                    self._device[queue].add(job, n, now, deadlines=deadlines[queue], alone=block.alone)
        if not n_items:
            self._finish(job)
            return False
        self._work_at_once()
        return job.left > 0 and any(one is not None for one in deadlines.values())

    def _work_at_once(self) -> None:
        """As long as the engine's thread has nothing to do and what is to be done is quick, do it here."""
        while True:
            with self._lock:
                if self._working or self._decided is not None:
                    return  # it will ask when it is free
                decision = self._device.next(time.monotonic(), draining=self._draining)
                if decision is None:  # nothing waits
                    return
                if not isinstance(decision, tuple) or not self._is_quick(*decision):
                    self._decided = decision if isinstance(decision, tuple) else None
                    self._ready.notify()
                    return
                self._working = True
            try:
                self._do(*decision)
            finally:
                with self._lock:
                    self._working = False

    def _is_quick(self, queue: str, what: "Batch[_Job[L]] | Shed[_Job[L]]") -> bool:
        costs = self._stage.costs.get(queue) if self._stage.at_once else None
        return costs is not None and isinstance(what, Batch) and costs.of(what.size) < QUICK_S

    def _deadlines(self, queue: str, block: Block) -> Array | None:
        """By our clock."""
        deadlines = self._stage.deadlines(queue, block) if queue in self._stage.costs else None
        return None if deadlines is None else time.monotonic() + (deadlines - time.time_ns()) * 1e-9

    def expire(self) -> float:
        """Give up what can no longer make it, also while a batch is worked on; returns when to come again [s from now].

        To be called from another thread than the engine's own.
        """
        now = time.monotonic()
        with self._lock:
            given_up = self._device.expired(now)
            next_at = self._device.last_begin
        for queue, shed in given_up:
            for job in self._given_up(queue, shed):
                self._finish(job)  # the black box is the batch's
        return next_at - now

    def drain(self) -> None:
        """Nothing more will come: do not wait for fuller batches."""
        with self._lock:
            self._draining = True
            self._ready.notify()

    def close(self) -> None:
        with self._lock:
            self._closing = True
            self._ready.notify()
        self._thread.join(timeout=5)

    def _run(self) -> None:
        try:
            while (decided := self._next()) is not None:
                self._do(*decided)
        except BaseException as error:
            self._on_crash(error)

    def _do(self, queue: str, what: "Batch[_Job[L]] | Shed[_Job[L]]") -> None:
        for job in self._given_up(queue, what) if isinstance(what, Shed) else self._work(queue, what):
            with self._box.working([job.block]):
                self._finish(job)

    def _next(self) -> "_Decision[L] | None":
        """What the engine's thread is to do."""
        with self._lock:
            self._working = False
            while not self._closing:
                now = time.monotonic()
                if self._decided is not None:
                    decision: Any = self._decided
                    self._decided = None
                else:
                    decision = None if self._working else self._device.next(now, draining=self._draining)
                if isinstance(decision, tuple):
                    self._working = True
                    return decision
                self._ready.wait(None if decision is None else decision - now)
            return None

    def _work(self, queue: str, batch: Batch[_Job[L]]) -> Iterator[_Job[L]]:
        """Work on a batch; gives the jobs that are complete with it."""
        metrics = self._metrics_of(queue)
        now = time.monotonic()
        for part in batch.parts:
            metrics.wait.observe(now - part.key.since, part.size)
        begin = time.perf_counter()
        results, whole = self._infer(queue, batch)
        took = time.perf_counter() - begin
        self._metrics.busy.inc(took)
        if whole and queue in self._stage.costs:
            self._stage.costs[queue].learn(batch.size, took)
        if len(results) != batch.size:
            raise RuntimeError(f"{len(results)} results for a batch of {batch.size} items")
        if self._tracer is not None:
            self._tracer.batch(self._stage, queue, label(queue), batch, took)
        metrics.seconds.inc(took)
        metrics.size.observe(batch.size)
        metrics.closed[batch.reason].inc()
        if n_padded := self._stage.padded(queue, batch.size) - batch.size:
            metrics.padding.inc(n_padded)
        for counter, n_bytes in zip(metrics.transfer, self._stage.transferred(queue, batch.size), strict=True):
            if n_bytes:
                counter.inc(n_bytes)
        place = 0
        for part in batch.parts:
            part.key.results[queue][part.start : part.stop] = results[place : place + part.size]
            place += part.size
            if self._is_last(part):
                yield part.key

    def _given_up(self, queue: str, shed: Shed[_Job[L]]) -> Iterator[_Job[L]]:
        """Book what is given up; gives the jobs that are complete with it."""
        self._metrics_of(queue).shed.inc(shed.size)
        for part in shed.parts:
            part.key.why[queue].update(dict.fromkeys(range(part.start, part.stop), LATE))
            if self._is_last(part):
                yield part.key

    def _is_last(self, part: Part[_Job[L]]) -> bool:
        """These items are done. Some of a block may be given up while others of it are worked on."""
        with self._lock:
            part.key.left -= part.size
            return not part.key.left

    def _infer(self, queue: str, batch: Batch[_Job[L]]) -> tuple[Array, bool]:
        """The results, and whether the batch was worked on as a whole."""
        parts = [Part(part.key.block, part.start, part.stop) for part in batch.parts]
        with self._box.working([part.key for part in parts]):
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
        self._on_done(self._stage.finish(job.block, job.results, job.why), job.link)
        with self._lock:
            for queue in job.results:
                self._jobs[queue] -= 1
            for queue in [queue for queue, n in self._jobs.items() if not n and queue not in self._stage.queues]:
                del self._jobs[queue]
                self._device.drop(queue)
                self._stage.forget(queue)


def label(queue: str) -> str:
    """What metrics call it."""
    return queue.partition("#")[0]
