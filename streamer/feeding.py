"""How a source is driven: reads ahead, cuts blocks, keeps the window, sends again what is lost."""

import asyncio
import contextlib
import itertools
import logging
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer import hop, keeping
from streamer.alarm import Alarm
from streamer.block import FED_TIME, LUMISECTION, Array, Block, Columns, WireError, core_columns, with_failures
from streamer.commits import CommitReceiver
from streamer.deadline import PROBES, SHARE_MEMORY, UNKNOWN, Way, n_before, without_first
from streamer.disk import patiently
from streamer.fedbook import Fed, FedBook
from streamer.feed import Feed, LumiClock, Lumisections
from streamer.ledger import Intervals, Kept, Window
from streamer.metrics import SourceMetrics
from streamer.stage import Source

if TYPE_CHECKING:
    from streamer.runner import Process

log = logging.getLogger(__name__)

REDELIVERY_POLL_S = 0.25
BOOK_FLUSH_S = 1.0
FIRST_WAY_S = 0.02
"""Until a sink has told how long blocks take: the first ones are slow everywhere, and short ones would pile up."""
WARN_AFTER_S = 2.0
"""The first blocks may be slow; by then others have shown how fast the chain is."""

DROPPED = ("window", "credit", "disk", "deadline")
"""Why a live feed drops events: too many are under way, the next stage takes none, the book cannot be written, or it is
too late for them already."""
OVER = "over"
"""Why there is no room for events any more: the feed's time has passed."""


class Feeding:
    """A source at work: reads ahead, cuts blocks, keeps the window."""

    def __init__(self, process: "Process", unit: Source) -> None:
        self.process, self.unit, self.config = process, unit, process.config.feed
        max_bytes = self.config.max_in_flight_mb << 20
        self.window = Window(self.config.max_in_flight, self.config.redeliver_after, max_bytes)
        self.stripes = process.stripes
        self.kept = Kept(self.stripes)
        books = process.config.books
        self.book_path = None if books is None else books / f"{process.name}-{process.replica}.fed"
        self.book: FedBook | None = None
        self.space = asyncio.Event()
        self.dead: tuple[str, int] | None = None  # why nothing is taken, and since when [ns]
        self.last_due = 0  # of what was dropped last [ns]
        self.way = FIRST_WAY_S  # how long blocks take to a sink at present [s]
        self.taken = self.answered = 1.0  # shares: of what is due that is sent, and of that what is not shed
        self.n_probes = PROBES  # blocks that are sent in any case, to learn how long they take
        self.since, self.warned = time.monotonic(), False  # that this is longer than the deadline
        self.metrics = SourceMetrics(process.metrics.registry, DROPPED)
        self.alarm = Alarm()
        process.metrics.in_flight.set_function(lambda: len(self.window))
        process.metrics.in_flight_bytes.set_function(lambda: self.window.bytes)
        limits = {"max_in_flight_events": self.window.max_events, "max_in_flight_bytes": max_bytes}
        process.metrics.limits(**limits, read_ahead=self.config.read_ahead, **unit.limits)

    def committed(self, intervals: Intervals, way: float, answered: float) -> None:
        self.way = way or self.way  # a sink that has seen nothing does not know
        self.answered = answered
        self.window.commit(intervals, time.monotonic())
        self.space.set()

    def sink_has(self, sink: int, intervals: Intervals, again: bool) -> None:
        """A sink has told everything that it has on disk."""
        keeping.sink_has(self.window, self.kept, sink, intervals, again, time.monotonic())
        if again:
            self.space.set()

    def died(self, name: str, how: str, working: Intervals) -> None:
        """A process has died at work. Its events are sent again, and what kills is set aside."""
        pipeline, schema = self.process.pipeline, self.unit.outputs
        stage = name.rpartition("-")[0]
        if stage not in pipeline.names or name not in self.process.replicas_of(stage):
            raise WireError("header", "a death of somebody who does not belong to this run")
        for block in self.window.died(working, schema):
            why = f"poison: {name} {how}, and so did another before it, while it worked on nothing but this event"
            log.error("event %d is set aside: %s", block.id, why, extra={"event": block.id})
            left = with_failures(schema.emptied(block.columns), {0: why}, pipeline.place(stage) + 1)
            self.window.replace(block.with_columns(left))

    async def run(self) -> None:
        process, stopping = self.process, self.process.stopping
        commits = CommitReceiver(
            process.context,
            process.commit_address(process.replica),
            process.run.token,
            process.config.hop,
            process.replicas_of(process.pipeline.names[-1]),
            self.committed,
            self.sink_has,
            self.died,
            process.refused,
        )
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(commits.close)
            stack.callback(self.alarm.close)
            outlet = await stack.enter_async_context(process.outlet(self.unit))
            await process.or_stopped(outlet.first_credit())
            if stopping.is_set():  # the chain must still be told that the stream is over
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(process.config.hop.peer_timeout):
                        await outlet.first_credit()
            await process.or_stopped(commits.everything())
            process.tell("running")
            if not stopping.is_set():
                await self.open_book(stack)
                redelivery = process.background(self.redeliver(outlet))
                stack.callback(redelivery.cancel)
                stack.callback(process.background(self.stop_waiting()).cancel)
                self.since = time.monotonic()
                await self.feed(outlet)
                self.live(self.last_due)
                process.metrics.count(self.unit.take_tally())
                process.tell("draining")
                while len(self.window):
                    await self.more_space()
                self.warn(outlet.ways.get(process.name, UNKNOWN))
                redelivery.cancel()
                if self.book is not None:
                    await self.patiently(self.book.flush)
            process.tell("draining")
            await outlet.end()
        process.facts["complete"] = True

    async def open_book(self, stack: contextlib.AsyncExitStack) -> None:
        """Go on with the book of what was fed, where there is one."""
        path, process = self.book_path, self.process
        if path is None:
            return
        goes_on = any(self.kept.sets)

        def opened() -> None:
            self.book = FedBook(path, process.run.id, self.unit.identity(), goes_on=goes_on)

        await self.patiently(opened)
        assert self.book is not None
        book = self.book
        stack.callback(book.close)
        if process.replica == 0:
            for sink in range(self.stripes.n):
                await self.patiently(partial(book.add_found, self.kept.of(sink)))
        flushing = process.background(self.flush_book(book))
        stack.callback(flushing.cancel)

    async def patiently(self, work: Callable[[], object]) -> None:
        assert self.book_path is not None
        what = "the book of fed events cannot be written"
        await patiently(work, self.process.config.disk_patience, self.book_path, what)

    async def flush_book(self, book: FedBook) -> None:
        while True:
            await asyncio.sleep(BOOK_FLUSH_S)
            await self.patiently(book.flush)

    async def booked(self, block: Block) -> bool:
        """Book a block that is about to be sent; false when the disk takes nothing and we are told to stop, or do not
        wait."""
        book = self.book
        if book is None:
            return True
        try:
            book.add(block)
        except OSError:
            if self.config.overflow == "drop":
                return False
            trying = self.process.background(self.patiently(partial(book.add, block)))
            await self.process.or_stopped(trying)
            return trying.done() and not trying.cancelled() and trying.exception() is None
        return True

    async def stop_waiting(self) -> None:
        """When we are told to stop, whatever the feed waits for."""
        await self.process.stopping.wait()
        self.alarm.stop()
        self.space.set()

    async def feed(self, outlet: hop.Outlet) -> None:
        process, stopping = self.process, self.process.stopping
        n_sources = len(process.replicas_of(process.name))
        feed = Feed(self.config, time.time_ns(), process.replica, n_sources)
        before = Fed() if self.book is None else self.book.fed
        feed.skip(self.done_before(), before.passed)
        last_before = max((last for _, last in before.ids), default=-1)
        limit = self.config.events or 1 << 62
        clock = self.lumi_clock()
        known = () if self.book is None else self.book.fed.lumis
        lumisections = Lumisections(0 if clock else self.config.lumisections, known)
        async with contextlib.aclosing(self.read_ahead()) as steps:
            async for columns in steps:
                numbers, recorded = columns.pop("sequence"), columns.pop("recorded", None)
                n = min(int(np.searchsorted(numbers, limit)), lumisections.room(columns))
                whole = {**columns, **core_columns(np.zeros(numbers.size, np.int64))}
                if clock is not None:
                    whole[LUMISECTION.name] = np.zeros(numbers.size, np.uint32)
                ends = self.unit.outputs.ends(whole)
                for first, end, owed in self.pieces(numbers[:n]):
                    while first < end:
                        number = int(numbers[first])
                        available = min(end - first, self.stripes.room(number))
                        stamps = None if recorded is None else recorded[first : first + available]
                        again = number <= last_before
                        answered = self.taken * self.answered
                        due = feed.next(available, time.time_ns(), self.way, stamps, answered=answered, again=again)
                        if self.book is not None and self.config.duration:
                            self.book.passed = feed.passed
                        counted = {} if clock is None else {LUMISECTION.name: clock.of(number, due)}
                        for lumis in counted.values():
                            due = due[: lumis.size]
                        if not due.size:
                            return
                        part = self.unit.outputs.slice(whole, first, first + due.size, ends)
                        fed = Block(number, due.size, {**part, **core_columns(due), **counted})
                        await self.sleep_until(int(due[-1]))  # what can be done before is done by then
                        why_not = await self.room(due.size, outlet, feed, owed)
                        if stopping.is_set() or why_not == OVER:
                            return
                        first += due.size
                        block = self.in_time(fed, outlet, owed)
                        if block is None:
                            continue
                        if not why_not and not owed and not await self.booked(block):
                            if stopping.is_set():
                                return
                            why_not = "disk"
                        if why_not:
                            self.drop(block, why_not)
                            continue
                        self.live(int(block.columns[FED_TIME.name][0]))
                        self.taken += SHARE_MEMORY * (1 - self.taken)
                        self.window.add(block, time.monotonic())
                        await process.send(outlet, block)
                        if process.tracer is not None:
                            process.tracer.fed(block)
                        process.book_done(block, self.unit)
                if n < numbers.size or (numbers.size and numbers[-1] >= limit - 1):
                    return

    def lumi_clock(self) -> LumiClock | None:
        """What counts lumisections, where the feed does; it goes on behind those that were fed before."""
        if not self.config.lumisection:
            return None
        length, most = self.config.lumisection, self.config.lumisections
        if self.book is None:
            return LumiClock(length, most=most)
        last = max((lumi for _, lumi in self.book.fed.lumis), default=0)
        return LumiClock(length, last, self.book.lumis_before(), most)

    def waits(self, owed: bool) -> bool:
        """Whether events wait for the chain. Those that were fed before do in any case, for they may be in it."""
        return owed or self.config.overflow == "wait"

    async def room(self, n_events: int, outlet: hop.Outlet, feed: Feed, owed: bool) -> str:
        """Wait until there is room for a block; or, where the feed does not wait, why there is none."""
        if self.waits(owed):
            while self.window.full(n_events) and not self.process.stopping.is_set():
                if feed.over(time.time_ns()) and not owed:
                    return OVER
                await self.more_space()
            return ""
        if self.window.full(n_events):
            return "window"
        return "" if outlet.credits() else "credit"

    def done_before(self) -> int:
        """Events that this source fed in an earlier life and that are not fed again."""
        if self.book is None:
            return 0
        fed = self.book.fed
        again = (piece for first, last in fed.ids for piece in self.kept.missing(first, last))
        again = (piece for first, last in again for piece in fed.dropped.missing(first, last))
        return fed.ids.size - sum(last - first + 1 for first, last in again)

    def in_time(self, block: Block, outlet: hop.Outlet, owed: bool) -> Block | None:
        """The block without what is too late already: dropped, or where the feed waits shed. None: nothing is left."""
        within = int(self.config.deadline * 1e9)
        if not within or self.n_probes:
            self.n_probes -= self.n_probes > 0
            return block
        way = outlet.ways.get(self.process.name, UNKNOWN)
        if time.monotonic() - self.since > WARN_AFTER_S:
            self.warn(way)
        waits = self.waits(owed)
        n = n_before(block.columns[FED_TIME.name], time.time_ns() - within + waits * way.usual)
        if n and waits:
            return block.with_columns(without_first(self.unit.outputs, block.columns, n, self.unit.mark))
        if n:
            self.drop(block.part(self.unit.outputs, 0, n), "deadline")
        return block.part(self.unit.outputs, n, block.n_events) if n < block.n_events else None

    def warn(self, way: Way) -> None:
        """Tell once if nothing has come through the chain within the deadline."""
        if way.least > self.config.deadline * 1e9 > 0 and not self.warned:
            self.warned = True
            told = f"the way through the chain takes at least {way.least * 1e-6:.3g} ms here"
            log.warning(
                "feed.deadline = %g ms, but %s: hardly an answer comes in time", 1e3 * self.config.deadline, told
            )

    def drop(self, block: Block, reason: str) -> None:
        """The chain could not take these events when they were due."""
        self.metrics.dropped[reason].inc(block.n_events)
        self.taken -= SHARE_MEMORY * self.taken
        if self.process.tracer is not None:
            self.process.tracer.dropped(block, reason)
        due = block.columns[FED_TIME.name]
        self.last_due = int(due[-1])
        if self.dead is None:
            self.dead = reason, int(due[0])
        if self.book is not None:
            self.book.drop(block, reason)

    def live(self, due_ns: int) -> None:
        """The chain takes events again."""
        if self.dead is not None:
            reason, since = self.dead
            self.metrics.dead[reason].inc(max(0, due_ns - since) * 1e-9)
            self.dead = None

    def pieces(self, numbers: Array) -> Iterator[tuple[int, int, bool]]:
        """The ranges of a step's events that have consecutive numbers and are neither on disk nor dropped.

        With each range, whether its events are owed: an earlier life of this reader has fed them.
        """
        fed = Fed() if self.book is None else self.book.fed
        breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
        for start, end in itertools.pairwise([0, *breaks.tolist(), numbers.size]):
            if start < end:
                shift = start - int(numbers[start])
                for piece in self.kept.missing(int(numbers[start]), int(numbers[end - 1])):
                    for part in fed.dropped.missing(*piece):
                        for first, last, owed in fed.ids.cut(*part):
                            yield first + shift, last + shift + 1, owed

    async def sleep_until(self, due_ns: int) -> None:
        wait = (due_ns - time.time_ns()) * 1e-9
        if wait > 0:
            await self.alarm.sleep(wait)
        elif self.config.overflow == "drop":
            await asyncio.sleep(0)  # a feed that is behind must still hear what has come to disk

    def more_space(self) -> Coroutine[Any, Any, object]:
        """The next commit, to be awaited; one that comes between this call and the waiting counts, too."""
        self.space.clear()
        return self.space.wait()

    async def redeliver(self, outlet: hop.Outlet) -> None:
        while True:
            await asyncio.sleep(min(REDELIVERY_POLL_S, self.window.redeliver_after / 2))
            late = self.window.overdue(time.monotonic())
            if late:
                numbers = ", ".join(str(block.id) for block in late[:5]) + (", ..." if len(late) > 5 else "")
                log.warning("%d blocks are overdue and are sent again (%s)", len(late), numbers)
            for block in late:
                self.process.metrics.redelivered.inc()
                await outlet.send(block)
                if self.process.tracer is not None:
                    self.process.tracer.fed(block)

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
                source = iter(self.unit.read(self.kept.missing))
                item: Columns | None = {}
                while item is not None and not enough.is_set():
                    begin, self.process.reading_since = time.perf_counter(), time.monotonic()
                    item = next(source, None)
                    self.process.reading_since = None
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
