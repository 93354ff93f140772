"""How a sink is driven: drops what it has, brings the rest to disk, and only then commits."""

import asyncio
import contextlib
import logging
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from streamer.block import SHED, Array, Block, has_failed
from streamer.commits import CommitSender
from streamer.deadline import SHARE_MEMORY, Survey, too_late
from streamer.keeping import Keeping
from streamer.metrics import SinkMetrics
from streamer.stage import Sink
from streamer.tracing import Told

if TYPE_CHECKING:
    from streamer.runner import Process

log = logging.getLogger(__name__)

QUANTILES = ("0.5", "0.95", "0.99")
GLIMPSE_NS = 1_000_000_000
"""The live page is shown an event so often, and those that failed."""
DONE_BLOCKS = 4096
"""The last blocks of which the writer's report tells one by one."""
WAY_MEMORY = 1 / 16
"""Weight of the newest block in how long blocks take."""


class Done(NamedTuple):
    """A block that was written: its events, those of them with an error, when the first and the last were due and
    when all were done [Unix ns]."""

    n_events: int
    n_bad: int
    first_due: int
    last_due: int
    at: int


class Writing:
    """A sink at work: drops what it has, brings the rest to disk, and only then commits."""

    def __init__(self, process: "Process", unit: Sink) -> None:
        self.process, self.unit = process, unit
        self.latencies = SinkMetrics(process.metrics.registry)
        self.keeping = Keeping(process.stripes, unit.inputs, unit.kept())
        self.fresh_times: list[Array] = []
        self.n_fresh = 0
        self.traced: list[tuple[Told, Told]] = []  # written, and not on disk yet
        self.done: deque[Done] = deque(maxlen=DONE_BLOCKS)
        self.glimpsed = self.failures_told = 0
        self.way = 0.0  # how long blocks take from the source [s]
        self.answered = 1.0  # the share of their events that was not shed
        self.wake = asyncio.Event()
        self.over = False
        self.within = int(process.config.feed.deadline * 1e9)
        self.survey = Survey(process.pipeline.names[:-1], process.config.feed.deadline)

    def commit_senders(self) -> list[CommitSender]:
        process = self.process
        return [
            CommitSender(
                process.context,
                process.commit_address(k),
                process.run.token,
                process.config.hop,
                f"{process.name}-{process.replica}",
                lambda: self.keeping.on_disk,
                process.refused,
            )
            for k in range(len(process.replicas_of(process.pipeline.names[0])))
        ]

    async def run(self) -> None:
        process, unit = self.process, self.unit
        process.tell("ready")
        async with contextlib.AsyncExitStack() as stack:
            self.commits = self.commit_senders()
            for sender in self.commits:
                stack.push_async_callback(sender.close)
            inlet = await stack.enter_async_context(process.inlet(unit))
            syncing = process.background(self.sync_often())
            stack.callback(syncing.cancel)
            process.metrics.in_flight.set_function(lambda: inlet.waiting() + len(self.fresh_times))
            process.metrics.limits(commit_events=unit.commit_events)
            while (item := await inlet.receive()) is not None:
                block, link = item
                await process.settled(block)
                now = time.time_ns()
                process.change_before(block)
                process.book_arrival(block, inlet, now)
                self.take(block, now)
                self.see_way(block, now)
                if self.within:
                    self.survey.learn(block, now)
                    inlet.ways = self.survey.ways(now)
                await link.done(block)
            process.tell("draining")
            self.over = True
            self.wake.set()
            await syncing
            if inlet.complete:
                await unit.finish()
            else:
                await unit.abandon()
        process.facts["done"] = list(self.done)
        process.facts["latency_s"] = {q: self.latencies.latency.quantile(float(q)) for q in QUANTILES}
        process.facts["commit_latency_s"] = {q: self.latencies.commit_latency.quantile(float(q)) for q in QUANTILES}

    def see_way(self, block: Block, now: int) -> None:
        """Learn how long blocks take, from those that were sent once; this one has come now [Unix ns]."""
        source = self.process.pipeline.names[0]
        if block.attempt == 1 and source in block.stamps:
            took = max(0.0, (now - block.stamps[source]) * 1e-9)
            self.way += WAY_MEMORY * (took - self.way) if self.way else took
            error = block.columns["error"]
            share = np.count_nonzero(error < SHED) / block.n_events if self.within else 1.0
            self.answered += SHARE_MEMORY * (share - self.answered)

    def take(self, block: Block, now: int) -> None:
        """Write those events of a block that we have not: of the others the commit was lost, and is sent again.

        The block has come now [Unix ns].
        """
        parts = self.keeping.take(block)
        if sum(part.n_events for part in parts) < block.n_events:
            self.process.metrics.redelivered.inc()
        for part in parts:
            self.write(part, now)

    def write(self, block: Block, now: int) -> None:
        metrics, fed, error = self.process.metrics, block.columns["fedTime"], block.columns["error"]
        block.stamps[self.process.name] = now
        begin, cpu_begin = time.perf_counter(), time.thread_time()
        with self.process.box.working([block]):
            self.unit.write(block)
        took = time.perf_counter() - begin
        self.process.worked_in_loop_s += time.thread_time() - cpu_begin
        self.process.facts.setdefault("first_fed_ns", int(fed[0]))
        self.process.facts["last_done_ns"] = now
        n_bad = int(np.count_nonzero(error))
        self.done.append(Done(block.n_events, n_bad, int(fed[0]), int(fed[-1]), now))
        answered = fed[error < SHED] if n_bad else fed.copy()  # of a whole message
        self.latencies.latency.observe((now - answered) * 1e-9)
        if self.within:
            self.latencies.late.inc(int(np.count_nonzero(too_late(block, now, self.within))))
        if self.process.tracer is not None:
            self.traced += self.process.tracer.written(block, took)
        metrics.duration.observe(took)
        metrics.busy.inc(took)
        n_failed = int(np.count_nonzero(has_failed(error))) if n_bad else 0
        self.process.book_done(block, self.unit, (n_failed, block.n_events - answered.size))
        if self.process.config.monitor.on and now - self.glimpsed >= GLIMPSE_NS:
            self.glimpsed = now
            self.process.tell(self.process.life.state, glimpse=self.unit.glimpse(block))
        self.fresh_times.append(answered)
        self.n_fresh += block.n_events
        if self.n_fresh >= self.unit.commit_events:
            self.wake.set()

    async def sync_often(self) -> None:
        over = False
        while not over:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self.unit.commit_interval):
                    await self.wake.wait()
            self.wake.clear()
            over = self.over  # looked at before the sync: what comes during one is left for the next
            await self.sync()
            self.tell_failures(now=over)

    def tell_failures(self, *, now: bool) -> None:
        """Show the live page which events failed: at once, or when it was not told for a while."""
        if self.process.config.monitor.on and (now or time.time_ns() - self.failures_told >= GLIMPSE_NS):
            self.failures_told = time.time_ns()
            if failures := self.unit.failures():
                self.process.tell(self.process.life.state, failures=failures)

    async def sync(self) -> None:
        times, self.fresh_times, self.n_fresh = self.fresh_times, [], 0
        traced, self.traced = self.traced, []
        begin = time.perf_counter()
        self.keeping.begin_sync()
        await self.unit.sync()
        done = self.keeping.end_sync()
        if self.process.tracer is not None:
            self.process.tracer.committed(traced)
        if times:
            self.process.metrics.busy.inc(time.perf_counter() - begin)
            self.latencies.commit_latency.observe((time.time_ns() - np.concatenate(times)) * 1e-9)
        for sender in self.commits:
            await sender.commit(done, self.way, self.answered)
