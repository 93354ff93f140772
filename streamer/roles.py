"""The four loops: how a source, a stage, a batching stage and a sink are driven."""

import asyncio
import contextlib
import itertools
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer import hop
from streamer.batcher import REASONS
from streamer.block import Array, Block, Columns
from streamer.engine import Engine
from streamer.feed import Feed
from streamer.ledger import IdSet, Window
from streamer.metrics import BatchMetrics, SinkMetrics
from streamer.stage import BatchStage, Sink, Source, Stage, Unit

if TYPE_CHECKING:
    from streamer.runner import Process

log = logging.getLogger(__name__)

QUANTILES = ("0.5", "0.95", "0.99")
QUICK_S = 0.5e-3
"""A block that takes less is processed in the loop, which still answers in time."""
DONE_BLOCKS = 4096
"""The last blocks of which the writer's report tells when they were fed and done."""


async def play(process: "Process", unit: Unit) -> None:
    """Drive `unit` by its role until the stream is over or the process is told to stop."""
    if isinstance(unit, Source):
        await _Feeding(process, unit).run()
    elif isinstance(unit, Stage):
        await _run_stage(process, unit)
    elif isinstance(unit, BatchStage):
        await _run_batch_stage(process, unit)
    elif isinstance(unit, Sink):
        await _Writing(process, unit).run()
    else:
        raise TypeError(f"{type(unit).__name__} plays none of the roles in streamer.stage")


class _Feeding:
    """A source at work: reads ahead, cuts blocks, keeps the window."""

    def __init__(self, process: "Process", unit: Source) -> None:
        self.process, self.unit, self.config = process, unit, process.config.feed
        self.window = Window(self.config.max_in_flight, self.config.redeliver_after)
        self.space = asyncio.Event()
        process.metrics.in_flight.set_function(lambda: len(self.window))
        process.metrics.limits(max_in_flight_events=self.window.max_events, read_ahead=self.config.read_ahead)

    def committed(self, intervals: list[tuple[int, int]]) -> None:
        self.window.commit(intervals)
        self.space.set()

    async def run(self) -> None:
        process, stopping = self.process, self.process.stopping
        commits = hop.CommitReceiver(
            process.context,
            process.commit_address,
            process.run.token,
            process.config.hop,
            self.committed,
            process.refused,
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(commits.close)
            outlet = await stack.enter_async_context(process.outlet())
            await process.or_stopped(outlet.first_credit())
            if stopping.is_set():  # the chain must still be told that the stream is over
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(process.config.hop.peer_timeout):
                        await outlet.first_credit()
            process.tell("running")
            redelivery = process.background(self.redeliver(outlet))
            stack.callback(redelivery.cancel)
            await self.feed(outlet)
            process.metrics.count(self.unit.take_tally())
            process.tell("draining")
            while len(self.window):
                await self.more_space()
            redelivery.cancel()
            await outlet.end()

    async def feed(self, outlet: hop.Outlet) -> None:
        stopping = self.process.stopping
        feed = Feed(self.config, time.time_ns())
        ids = itertools.count(1)
        async with contextlib.aclosing(self.read_ahead()) as steps:
            async for columns in steps:
                first, n_step = 0, len(columns["event"])
                while first < n_step:
                    if feed.over or stopping.is_set():
                        return
                    due = feed.next(n_step - first, time.time_ns())
                    await self.sleep_until(int(due[-1]))
                    while self.window.full(due.size) and not stopping.is_set():
                        await self.process.or_stopped(self.more_space())
                    if stopping.is_set():
                        return
                    block = self.block(next(ids), columns, first, due)
                    first += due.size
                    self.window.add(block, time.monotonic())
                    await self.process.send(outlet, block)
                    self.process.book_done(block, self.unit)

    def block(self, block_id: int, columns: Columns, first: int, due: Array) -> Block:
        """The events from `first` on, as many as have a due time, with the core's own columns."""
        schema, n = self.unit.outputs, due.size
        core = {"fedTime": due, "error": np.zeros(n, np.uint8)}
        whole = {
            **columns,
            **{name: np.broadcast_to(array[:1], len(columns["event"])) for name, array in core.items()},
        }
        return Block(block_id, n, {**schema.slice(whole, first, first + n), **core})

    async def sleep_until(self, due_ns: int) -> None:
        wait = (due_ns - time.time_ns()) * 1e-9
        if wait > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait):
                    await self.process.stopping.wait()

    def more_space(self) -> Coroutine[Any, Any, object]:
        """The next commit, to be awaited; one that comes between this call and the waiting counts, too."""
        self.space.clear()
        return self.space.wait()

    async def redeliver(self, outlet: hop.Outlet) -> None:
        while True:
            await asyncio.sleep(min(1.0, self.window.redeliver_after / 2))
            for block in self.window.overdue(time.monotonic()):
                log.warning("block %d is overdue; attempt %d", block.id, block.attempt)
                self.process.metrics.redelivered.inc()
                await outlet.send(block)

    async def read_ahead(self) -> AsyncGenerator[Columns, None]:
        """The source's steps, from a thread that is at most `feed.read_ahead` steps ahead."""
        loop = asyncio.get_running_loop()
        steps: queue.Queue[Columns | None] = queue.Queue(self.config.read_ahead)
        arrived = asyncio.Semaphore(0)
        enough = threading.Event()

        def put(item: Columns | None) -> None:
            while not enough.is_set():
                with contextlib.suppress(queue.Full):
                    steps.put(item, timeout=0.1)
                    loop.call_soon_threadsafe(arrived.release)
                    return

        def read() -> None:
            try:
                source = iter(self.unit.read())
                item: Columns | None = {}
                while item is not None and not enough.is_set():
                    begin = time.perf_counter()
                    item = next(source, None)
                    took = time.perf_counter() - begin
                    self.process.metrics.busy.inc(took)
                    self.process.metrics.duration.observe(took)
                    put(item)
            except BaseException as error:
                self.process.crash(error)

        reading = self.process.in_worker(read)
        task = asyncio.ensure_future(reading)
        try:
            while not self.process.stopping.is_set():
                await self.process.or_stopped(arrived.acquire())
                if self.process.stopping.is_set():
                    return
                item = steps.get_nowait()
                if item is None:
                    return
                yield item
        finally:
            enough.set()
            await task


async def _run_stage(process: "Process", unit: Stage) -> None:
    metrics = process.metrics
    per_event = QUICK_S  # what an event takes [s], a moving average
    async with process.outlet() as outlet:
        await process.or_stopped(outlet.first_credit())
        async with process.inlet(unit) as inlet:
            metrics.in_flight.set_function(lambda: inlet.waiting() + 1)
            while (item := await inlet.receive()) is not None:
                block, link = item
                process.book_arrival(block, inlet)
                if per_event * block.n_events < QUICK_S:  # the hand-over to the worker would cost more
                    done, took, cpu = _timed(unit, block)
                    process.worked_in_loop_s += cpu
                else:
                    done, took, cpu = await process.in_worker(_timed, unit, block)
                per_event += 0.1 * (cpu / block.n_events - per_event)
                metrics.duration.observe(took)
                metrics.busy.inc(took)
                await process.send(outlet, done)
                process.book_done(done, unit)
                await link.done(block)
            process.tell("draining")
            await outlet.end(final=inlet.complete)


def _timed(unit: Stage, block: Block) -> tuple[Block, float, float]:
    """What `_process` gives, and the wall-clock and processor time [s] that it took; waiting to begin is not in it."""
    begin, cpu_begin = time.perf_counter(), time.thread_time()
    done = _process(unit, block)
    return done, time.perf_counter() - begin, time.thread_time() - cpu_begin


def _process(unit: Stage, block: Block) -> Block:
    try:
        return unit.process(block)
    except Exception:
        log.debug("block %d failed as a whole; trying its events one by one", block.id, exc_info=True)
        unit.take_tally()  # it is counted again
        return _one_by_one(unit, block)


def _one_by_one(unit: Stage, block: Block) -> Block:
    """Process each event alone; one that fails loses its collections and is marked."""
    parts = []
    for i in range(block.n_events):
        one = Block(block.id, 1, unit.inputs.slice(block.columns, i, i + 1))
        try:
            parts.append(unit.process(one).columns)
        except Exception as error:
            log.error("event %d of block %d: %s: %s", i, block.id, type(error).__name__, error)
            left = unit.inputs.emptied(one.columns)
            left["error"] = np.full(1, unit.mark, np.uint8)
            parts.append(unit.process(one.with_columns(left)).columns)
    return block.with_columns(unit.outputs.concat(parts))


async def _run_batch_stage(process: "Process", unit: BatchStage) -> None:
    loop = asyncio.get_running_loop()
    finished: asyncio.Queue[tuple[Block, hop.Link]] = asyncio.Queue()  # bounded by the inlet's credits
    left = asyncio.Event()
    holding = 0

    def hand_back(block: Block, link: hop.Link) -> None:
        loop.call_soon_threadsafe(finished.put_nowait, (block, link))

    async def send_finished(outlet: hop.Outlet) -> None:
        nonlocal holding
        while True:
            block, link = await finished.get()
            process.metrics.duration.observe((time.time_ns() - block.stamps["arrived"]) * 1e-9)
            await process.send(outlet, block)
            process.book_done(block, unit)
            await link.done(block)
            holding -= 1
            left.set()

    batches = BatchMetrics.of(process.metrics.registry, unit.queues, REASONS)
    process.metrics.limits(**{f"max_batch_{queue}": most for queue, most in unit.queues.items()})
    process.metrics.in_flight.set_function(lambda: holding)
    engine = Engine(unit, process.metrics, batches, hand_back, process.crash)
    try:
        async with process.outlet() as outlet:
            sending = process.background(send_finished(outlet))
            await process.or_stopped(outlet.first_credit())
            async with process.inlet(unit) as inlet:
                while (item := await inlet.receive()) is not None:
                    process.book_arrival(item[0], inlet)
                    holding += 1
                    engine.submit(*item)
                process.tell("draining")
                engine.drain()
                while holding:
                    left.clear()
                    await left.wait()
                await outlet.end(final=inlet.complete)
            sending.cancel()
    finally:
        engine.close()


class _Writing:
    """A sink at work: drops what it has, brings the rest to disk, and only then commits."""

    def __init__(self, process: "Process", unit: Sink) -> None:
        self.process, self.unit = process, unit
        self.latencies = SinkMetrics(process.metrics.registry)
        self.commits = hop.CommitSender(process.context, process.commit_address, process.run.token)
        self.have = IdSet()
        self.fresh = IdSet()
        self.fresh_times: list[Array] = []
        self.n_fresh = 0
        self.done: deque[tuple[int, int, int]] = deque(maxlen=DONE_BLOCKS)  # events, fed and done [Unix ns]
        self.wake = asyncio.Event()
        self.over = False

    async def run(self) -> None:
        process, unit = self.process, self.unit
        process.tell("ready")
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self.commits.close)
            inlet = await stack.enter_async_context(process.inlet(unit))
            syncing = process.background(self.sync_often())
            stack.callback(syncing.cancel)
            process.metrics.in_flight.set_function(lambda: inlet.waiting() + len(self.fresh_times))
            process.metrics.limits(commit_events=unit.commit_events)
            while (item := await inlet.receive()) is not None:
                block, link = item
                process.book_arrival(block, inlet)
                self.take(block)
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

    def take(self, block: Block) -> None:
        """Write a block, unless we have it: then its commit was lost, and is only sent again."""
        metrics, fed = self.process.metrics, block.columns["fedTime"]
        self.fresh.add(block.id)
        if not self.have.add(block.id):
            metrics.redelivered.inc()
            return
        begin, cpu_begin = time.perf_counter(), time.thread_time()
        self.unit.write(block)
        took = time.perf_counter() - begin
        self.process.worked_in_loop_s += time.thread_time() - cpu_begin
        now = time.time_ns()
        self.process.facts.setdefault("first_fed_ns", int(fed[0]))
        self.process.facts["last_done_ns"] = now
        self.done.append((block.n_events, int(fed[0]), now))
        self.latencies.latency.observe((now - fed) * 1e-9)
        metrics.duration.observe(took)
        metrics.busy.inc(took)
        self.process.book_done(block, self.unit, bad=int(np.count_nonzero(block.columns["error"])))
        self.fresh_times.append(fed)
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

    async def sync(self) -> None:
        ids, times = self.fresh, self.fresh_times
        self.fresh, self.fresh_times, self.n_fresh = IdSet(), [], 0
        begin = time.perf_counter()
        await self.unit.sync()
        if times:
            self.process.metrics.busy.inc(time.perf_counter() - begin)
            self.latencies.commit_latency.observe((time.time_ns() - np.concatenate(times)) * 1e-9)
        await self.commits.commit(ids)
