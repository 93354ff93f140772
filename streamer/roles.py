"""The loops: how a stage and a batching stage are driven; the two ends are in `streamer.feeding` and `.writing`."""

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING

from streamer import hop
from streamer.batcher import REASONS
from streamer.block import Block, with_failures
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
    metrics = process.metrics
    per_event = QUICK_S  # what an event takes [s], a moving average
    async with process.outlet() as outlet:
        await process.or_stopped(outlet.first_credit())
        async with process.inlet(unit) as inlet:
            metrics.in_flight.set_function(lambda: inlet.waiting() + 1)
            while (item := await inlet.receive()) is not None:
                block, link = item
                process.book_arrival(block, inlet)
                with process.box.working([block]):
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
            log.error("event %d could not be processed: %s", block.id + i, one_line(error))
            left = with_failures(unit.inputs.emptied(one.columns), {0: told(error)}, unit.mark)
            parts.append(unit.process(one.with_columns(left)).columns)
    return block.with_columns(unit.outputs.concat(parts))


async def _run_batch_stage(process: "Process", unit: BatchStage) -> None:
    loop = asyncio.get_running_loop()
    finished: asyncio.Queue[tuple[Block, hop.Link]] = asyncio.Queue()  # bounded by the inlet's credits
    left = asyncio.Event()
    submitted = asyncio.Event()
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
    engine = Engine(unit, process.metrics, batches, process.box, hand_back, process.crash)
    try:
        async with process.outlet() as outlet:
            sending = process.background(send_finished(outlet))
            expiring = process.background(expire())
            await process.or_stopped(outlet.first_credit())
            async with process.inlet(unit) as inlet:
                while (item := await inlet.receive()) is not None:
                    process.book_arrival(item[0], inlet)
                    holding += 1
                    if engine.submit(*item):
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
