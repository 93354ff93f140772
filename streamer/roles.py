"""The loops: how a stage and a batching stage are driven; the two ends are in `streamer.feeding` and `.writing`."""

import asyncio
import logging
import math
import threading
import time
from typing import TYPE_CHECKING

from streamer import hop
from streamer.batcher import REASONS
from streamer.block import Block, with_failures
from streamer.deadline import UNKNOWN, Room, Shedder, taken
from streamer.engine import Engine
from streamer.errors import one_line, told
from streamer.feeding import Feeding
from streamer.metrics import BatchMetrics
from streamer.stage import BatchStage, Sink, Source, Stage, Unit
from streamer.writing import Writing

if TYPE_CHECKING:
    from streamer.runner import Process

log = logging.getLogger(__name__)

QUICK_S = 0.5e-3
"""A block that takes less is processed in the loop, which still answers in time."""


LEAST_WAIT_S = 1e-3
"""Items that can no longer make it are looked for no more often than this."""


async def play(process: "Process", unit: Unit) -> None:
    """Drive `unit` by its role until the stream is over or the process is told to stop."""
    if isinstance(unit, Source):
        await Feeding(process, unit).run()
    elif isinstance(unit, Stage):
        await _run_stage(process, unit)
    elif isinstance(unit, BatchStage):
        await _run_batch_stage(process, unit)
    elif isinstance(unit, Sink):
        await Writing(process, unit).run()
    else:
        raise TypeError(f"{type(unit).__name__} plays none of the roles in streamer.stage")


async def _run_stage(process: "Process", unit: Stage) -> None:
    metrics, shedding = process.metrics, _shedding(process, unit)
    per_event = math.inf  # what an event takes [s], a moving average
    async with process.outlet(unit) as outlet:
        await process.or_stopped(outlet.first_credit())
        async with process.inlet(unit) as inlet:
            metrics.in_flight.set_function(lambda: inlet.waiting() + 1)
            while (item := await inlet.receive()) is not None:
                block, link = item
                process.change_before(block)
                at = time.time_ns()
                waited = (at - block.stamps["arrived"]) * 1e-9
                if shedding is not None:
                    block = shedding.shed(block, outlet)
                spared = shedding is not None and bool(block.columns["error"].all())
                with process.box.working([block]):
                    if spared or per_event * block.n_events < QUICK_S:  # the hand-over to the worker would cost more
                        done, took, cpu = _timed(unit, block, spared)
                        process.worked_in_loop_s += cpu
                    else:
                        done, took, cpu = await process.in_worker(_timed, unit, block)
                if not spared:
                    took_each = cpu / block.n_events
                    per_event = took_each if math.isinf(per_event) else per_event + 0.1 * (took_each - per_event)
                await process.send(outlet, done)
                # The block does not wait for what is counted of it.
                process.book_arrival(block, inlet, at)
                metrics.duration.observe(took)
                metrics.busy.inc(took)
                if process.tracer is not None:
                    process.tracer.passed(done, took)
                process.book_done(done, unit)
                if shedding is not None:
                    shedding.left(block, waited, inlet, outlet)
                await link.done(block)
            process.tell("draining")
            await outlet.end(final=inlet.complete)


class _Shedding:
    """Shedding in a stage, and what it tells the stage before of the ways and of its room."""

    def __init__(self, process: "Process", unit: Stage | BatchStage) -> None:
        self._stamp = taken(process.name)
        seconds = process.config.feed.deadline
        self.shedder = Shedder(seconds, unit.inputs, unit.mark)
        self.room = Room(process.config.hop.credit_events, seconds)

    def shed(self, block: Block, outlet: hop.Outlet) -> Block:
        """A block that is taken up now, without what cannot be answered in time any more."""
        now = block.stamps[self._stamp] = time.time_ns()
        return self.shedder.shed(block, now, outlet.ways.get(self._stamp, UNKNOWN))

    def left(self, block: Block, waited: float, inlet: hop.Inlet, outlet: hop.Outlet) -> None:
        """A block has left, and had waited so long for its turn [s]."""
        self.room.learn(block.n_events, waited, time.monotonic())
        inlet.room, inlet.ways = self.room.events, outlet.ways


def _shedding(process: "Process", unit: Stage | BatchStage) -> _Shedding | None:
    """Where there is no deadline, none."""
    return _Shedding(process, unit) if process.config.feed.deadline else None


def _timed(unit: Stage, block: Block, spared: bool = False) -> tuple[Block, float, float]:
    """What `_process` gives, and the wall-clock and processor time [s] that it took; waiting to begin is not in it.

    Parameters
    ----------
    spared : bool
        No event of the block is left to be worked on.
    """
    begin, cpu_begin = time.perf_counter(), time.thread_time()
    bare = unit.outputs.bare(block.columns) if spared else None
    done = _process(unit, block) if bare is None else block.with_columns(bare)
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
            number = block.id + i
            log.error("event %d could not be processed: %s", number, one_line(error), extra={"event": number})
            left = with_failures(unit.inputs.emptied(one.columns), {0: told(error)}, unit.mark)
            parts.append(unit.process(one.with_columns(left)).columns)
    return block.with_columns(unit.outputs.concat(parts))


async def _run_batch_stage(process: "Process", unit: BatchStage) -> None:
    loop, ours = asyncio.get_running_loop(), threading.get_ident()
    finished: asyncio.Queue[tuple[Block, hop.Link]] = asyncio.Queue()  # bounded by the inlet's credits
    left = asyncio.Event()
    submitted = asyncio.Event()
    holding = 0
    held: dict[tuple[int, int], int] = {}  # blocks by their first event and length, and when they were taken up

    def hand_back(block: Block, link: hop.Link) -> None:
        if threading.get_ident() == ours:
            finished.put_nowait((block, link))
        else:
            loop.call_soon_threadsafe(finished.put_nowait, (block, link))

    async def send_finished(outlet: hop.Outlet, inlet: hop.Inlet) -> None:
        nonlocal holding
        while True:
            block, link = await finished.get()
            stay = (time.time_ns() - block.stamps["arrived"]) * 1e-9
            await process.send(outlet, block)
            # The block does not wait for what is counted of it.
            process.book_arrival(block, inlet, held[block.id, block.n_events])
            process.metrics.duration.observe(stay)
            if process.tracer is not None:
                process.tracer.batched(block)
            process.book_done(block, unit)
            if shedding is not None:
                shedding.left(block, stay, inlet, outlet)
            await link.done(block)
            del held[block.id, block.n_events]
            holding -= 1
            left.set()

    async def expire() -> None:
        while True:
            wait = engine.expire()
            if math.isinf(wait):  # no deadlines, or nothing waits
                submitted.clear()
                await submitted.wait()
            else:
                await asyncio.sleep(max(wait, LEAST_WAIT_S))

    batches = BatchMetrics.of(process.metrics.registry, unit.queues, REASONS)
    process.metrics.limits(**{f"max_batch_{queue}": most for queue, most in unit.queues.items()})
    process.metrics.in_flight.set_function(lambda: holding)
    engine = Engine(unit, process.metrics, batches, process.box, hand_back, process.crash, process.tracer)
    shedding = _shedding(process, unit)
    try:
        async with process.outlet(unit) as outlet:
            expiring = process.background(expire())
            await process.or_stopped(outlet.first_credit())
            async with process.inlet(unit) as inlet:
                sending = process.background(send_finished(outlet, inlet))
                while (item := await inlet.receive()) is not None:
                    block, link = item
                    process.change_before(block)
                    at = time.time_ns()
                    if (block.id, block.n_events) in held:  # sent again, and here all the time: work is not done twice
                        process.book_arrival(block, inlet, at)
                        process.metrics.redelivered.inc()
                        await link.done(block)
                        continue
                    held[block.id, block.n_events] = at
                    probes = False
                    if shedding is not None:
                        unit.way_s = outlet.ways.get(process.name, UNKNOWN).usual * 1e-9
                        probes = shedding.shedder.probes
                        block = shedding.shed(block, outlet)
                    holding += 1
                    if engine.submit(block, link, timed=not probes):
                        submitted.set()
                process.tell("draining")
                engine.drain()
                while holding:
                    left.clear()
                    await left.wait()
                await outlet.end(final=inlet.complete)
            sending.cancel()
            expiring.cancel()
    finally:
        engine.close()
