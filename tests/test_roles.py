"""The roles at work: whole chains of real processes' code over real sockets, with toy stages that tests look into."""

import asyncio
import errno
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from streamer import roles
from streamer.batcher import Part
from streamer.blackbox import BlackBox
from streamer.block import SHED, Array, Block, Columns, failures
from streamer.config import CoreConfig, FeedConfig
from streamer.errors import UsageError
from streamer.fedbook import FedBook, read
from streamer.feed import Feed
from streamer.feeding import FIRST_WAY_S, Feeding
from streamer.ledger import Stripes
from streamer.metrics import StageMetrics
from streamer.roles import _process
from streamer.runner import Process, Run
from streamer.stage import Missing
from streamer.testing import (
    TOY,
    ToyBatchStage,
    ToyChain,
    ToySink,
    ToySource,
    ToyStage,
    quick,
    toy_block,
    toy_columns,
    until,
)
from streamer.writing import Writing

NAMES = ["reader", "framer", "tagger", "writer"]
FRAMER_MARK = 2
CREDITS = "streamer_credits_available", {"stage": "reader"}


def config(*, redeliver_after: float = 1000.0, **feed: Any) -> CoreConfig:
    settings = {"block_events": 8, "max_in_flight": 64, "redeliver_after": redeliver_after, **feed}
    return quick(credit_events=16).model_copy(update={"feed": FeedConfig.model_validate(settings)})


@asynccontextmanager
async def chain(
    run: Run, settings: CoreConfig | None = None, names: list[str] | None = None
) -> AsyncIterator[ToyChain]:
    """A chain without processes; whatever is left of those that the test starts is killed at the end."""
    made = ToyChain(run, names or NAMES, settings or config())
    try:
        yield made
    finally:
        await made.close()


def start(
    made: ToyChain,
    source: ToySource | None = None,
    framer: ToyStage | None = None,
    tagger: ToyBatchStage | None = None,
    sink: ToySink | None = None,
) -> list[Process]:
    """One process for each stage, in chain order."""
    units = source or ToySource(200), framer or ToyStage(), tagger or ToyBatchStage(), sink or ToySink()
    return [made.start(name, unit) for name, unit in zip(NAMES, units, strict=True)]


def done_events(process: Process, outcome: str = "ok") -> int:
    return int(process.metrics.events[outcome]._value.get())


def redelivered(process: Process) -> int:
    return int(process.metrics.redelivered._value.get())


# --- A stream from its beginning to its end ---


async def test_every_event_comes_out_once_and_in_order(run: Run) -> None:
    async with chain(run) as made:
        sink = ToySink()
        processes = start(made, ToySource(400, step=50), sink=sink)
        assert await made.codes() == [0, 0, 0, 0]
        assert sink.events == list(range(400))
        assert sink.ended == "finished"
        assert sorted(sink.synced) == [block.id for block in sink.blocks]
        for process in processes:
            assert (done_events(process), done_events(process, "error"), redelivered(process)) == (400, 0, 0)
            assert process.context.closed
        for before, after in pairwise(process.metrics for process in processes):
            assert before.bytes_out._value.get() == after.bytes_in._value.get() > 0
            counts, waited = after.queue_wait.buckets()
            assert counts[-1] == len(sink.blocks)
            assert waited > 0, "from when the stage before was done with a block, not from when this one was"
        for block in sink.blocks:
            TOY.check(block.columns, block.n_events)
            assert list(block.stamps) == ["reader", "framer", "tagger", "arrived", "writer"]
            assert sorted(block.stamps.values()) == list(block.stamps.values())
            events = np.repeat(block.columns["event"], block.columns["nHit"])
            assert block.columns["Hit_energy"].tolist() == (10 * events).tolist()
        facts = processes[-1].facts
        assert 0 < facts["first_fed_ns"] < facts["last_done_ns"]
        assert 0 < facts["latency_s"]["0.5"] <= facts["latency_s"]["0.99"]


async def test_the_feed_knows_how_long_blocks_are_on_their_way(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(block: Block) -> Block:
        time.sleep(0.02)
        return block

    told: list[float] = []
    as_it_is = Feed.next

    def next_block(feed: Feed, available: int, now_ns: int, way: float, *rest: Any, **more: Any) -> Any:
        told.append(way)
        return as_it_is(feed, available, now_ns, way, *rest, **more)

    monkeypatch.setattr(Feed, "next", next_block)
    async with chain(run, config(rate=200.0)) as made:
        start(made, ToySource(100), ToyStage(slow))
        assert await made.codes() == [0, 0, 0, 0]
    assert told[0] == FIRST_WAY_S
    assert told[-1] >= 0.02


async def test_processes_tell_their_life(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    async with chain(run, names=["reader", "writer"]) as made:
        made.start("writer", ToySink())
        reader = made.start("reader", ToySource(10))
        assert await made.codes() == [0, 0]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    told = Counter(line["state"] for line in lines)
    assert told == {"starting": 2, "ready": 2, "running": 2, "draining": 2, "stopped": 2}
    assert all(line["metrics"].startswith("http://127.0.0.1:") for line in lines if line["state"] == "starting")
    reports = [line["report"]["metrics"] for line in lines if line["state"] == "stopped"]
    assert [report["streamer_events_total/ok"] for report in reports] == [10, 10]
    assert reader.state == "stopped"


async def test_replicas_share_the_stream(run: Run) -> None:
    settings = config().model_copy(update={"replicas": {"framer": 3, "tagger": 2}})
    async with chain(run, settings) as made:
        sink = ToySink()
        made.start("reader", ToySource(300))
        framers = [made.start("framer", ToyStage(), replica) for replica in range(3)]
        taggers = [made.start("tagger", ToyBatchStage(), replica) for replica in range(2)]
        made.start("writer", sink)
        assert await made.codes() == [0] * 7
        assert sorted(sink.events) == list(range(300))
        assert sum(map(done_events, framers)) == sum(map(done_events, taggers)) == 300


async def test_a_replica_that_comes_late_takes_its_share(run: Run) -> None:
    settings = config().model_copy(update={"replicas": {"framer": 2}})
    async with chain(run, settings) as made:
        sink, source = ToySink(), ToySource(400, pause_at=80)
        start(made, source, sink=sink)
        await until(lambda: len(sink.events) == 80)
        late = made.start("framer", ToyStage(), 1)
        reader = made.processes[0]
        await until(lambda: reader.metrics.registry.get_sample_value(*CREDITS) == 32)  # both can take blocks
        source.go.set()
        assert await made.codes() == [0] * 5
        assert sorted(sink.events) == list(range(400))
        assert done_events(late) > 0


@pytest.mark.parametrize("order", [[0, 1, 2, 3], [3, 2, 1, 0]])
async def test_processes_may_start_in_any_order(order: list[int], run: Run) -> None:
    async with chain(run) as made:
        sink = ToySink()
        units = ToySource(50), ToyStage(), ToyBatchStage(), sink
        for place in order:
            process = made.start(NAMES[place], units[place])
            await until(lambda process=process: process.state in ("ready", "running"))  # type: ignore[misc]
        assert await made.codes() == [0] * 4
        assert sink.events == list(range(50))


@pytest.mark.parametrize("n_events", [1, 20, 25])
async def test_feed_stops_after_the_wanted_number_of_events(n_events: int, run: Run) -> None:
    async with chain(run, config(events=n_events)) as made:
        sink = ToySink()
        start(made, ToySource(1000, step=10), sink=sink)
        assert await made.codes() == [0] * 4
        assert sink.events == list(range(n_events))


async def test_an_empty_stream_ends(run: Run) -> None:
    async with chain(run) as made:
        sink = ToySink()
        start(made, ToySource(0), sink=sink)
        assert await made.codes() == [0] * 4
        assert (sink.blocks, sink.ended) == ([], "finished")


async def test_no_more_is_under_way_than_the_window_allows(run: Run) -> None:
    class Slow(ToySink):
        most = 0

        async def sync(self) -> None:
            under_way = reader.given - len(self.synced) * 8  # read ahead included
            self.most = max(self.most, under_way)
            await super().sync()

    async with chain(run, config(max_in_flight=32, read_ahead=1)) as made:
        sink, reader = Slow(), ToySource(400, step=8)
        start(made, reader, sink=sink)
        assert await made.codes() == [0] * 4
        assert len(sink.events) == 400
        assert 0 < sink.most <= 32 + 3 * 8  # one step in the queue, one in the reading thread, one in the loop


async def test_a_commit_between_looking_and_waiting_is_not_missed() -> None:
    process: Any = SimpleNamespace(config=config(), metrics=StageMetrics("reader", 0, {}), stripes=Stripes())
    feeding = Feeding(process, ToySource(0))
    feeding.window.add(toy_block(1, 4), 0.0)
    waiting = feeding.more_space()
    feeding.committed([(1, 4)], 0.25, 1.0)  # the last one: no other commit will wake us
    await asyncio.wait_for(waiting, 20)
    assert len(feeding.window) == 0


async def test_blocks_are_long_until_a_sink_has_told_how_long_they_take(run: Run) -> None:
    feed = FeedConfig(rate=4000, block_events=64, max_in_flight=512)
    async with chain(run, quick(credit_events=512).model_copy(update={"feed": feed})) as made:
        sink = ToySink()
        start(made, ToySource(200, step=200), sink=sink)
        assert await made.codes() == [0] * 4
        assert sink.blocks[0].n_events >= 40, "4 in a millisecond, block_wait"
    process: Any = SimpleNamespace(config=config(), metrics=StageMetrics("reader", 0, {}), stripes=Stripes())
    feeding = Feeding(process, ToySource(0))
    feeding.committed([], 0.0, 1.0)  # it has seen nothing yet
    assert feeding.way == FIRST_WAY_S
    feeding.committed([(1, 4)], 0.002, 1.0)
    assert feeding.way == 0.002


async def test_what_is_dropped_makes_blocks_shorter_and_so_does_what_is_shed() -> None:
    live = config(rate=1e5, overflow="drop", deadline="10 ms")
    metrics = StageMetrics("reader", 0, {})
    process: Any = SimpleNamespace(config=live, metrics=metrics, stripes=Stripes(), name="reader", tracer=None)
    feeding = Feeding(process, ToySource(0))
    assert feeding.taken == 1.0
    for _ in range(64):
        feeding.drop(toy_block(1, 4), "credit")
    assert 0.3 < feeding.taken < 0.4
    process = SimpleNamespace(config=live, pipeline=SimpleNamespace(names=["reader", "writer"]))
    process.metrics, process.stripes = StageMetrics("writer", 0, {}), Stripes()
    writing = Writing(process, ToySink())
    for n in (0, 2):  # of four are shed
        block = toy_block(1, 4)
        block.columns["error"][:n], block.stamps["reader"] = SHED + 1, time.time_ns()
        writing.see_way(block, time.time_ns())
    assert writing.answered == 1 - 0.5 / 64


async def test_what_was_fed_and_is_late_is_shed_and_not_dropped() -> None:
    live = config(rate=1e5, overflow="drop", deadline="10 ms")
    registry = StageMetrics("reader", 0, {})
    process: Any = SimpleNamespace(config=live, metrics=registry, stripes=Stripes(), name="reader", tracer=None)
    feeding = Feeding(process, ToySource(0))
    feeding.n_probes, outlet, late = 0, cast(Any, SimpleNamespace(ways={})), toy_block(1, 4)
    late.columns["fedTime"] -= 10**9
    shed = feeding.in_time(late, outlet, owed=True)
    assert shed is not None
    assert shed.columns["error"].tolist() == [SHED + feeding.unit.mark] * 4
    assert feeding.dead is None
    assert feeding.in_time(late, outlet, owed=False) is None
    assert feeding.dead is not None, "these are dropped"


# --- Events that cannot be processed ---


def fails_on(*bad: int) -> Callable[[Block], Block]:
    """Raises for blocks that hold one of the bad events, unless nothing is left of it."""

    def work(block: Block) -> Block:
        columns = block.columns
        for event, n_hits in zip(columns["event"], columns["nHit"], strict=True):
            if event in bad and n_hits:
                raise ValueError(f"event {event} is bad")
        return block

    return work


def test_an_event_that_fails_is_marked_alone() -> None:
    stage = ToyStage(fails_on(4, 8))
    stage.mark = FRAMER_MARK
    block = toy_block(7, 10)
    done = _process(stage, block)
    TOY.check(done.columns, 10)
    assert (done.id, done.stamps) == (7, block.stamps)
    assert done.columns["event"].tolist() == list(range(10))
    assert np.flatnonzero(done.columns["error"]).tolist() == [4, 8]
    assert set(done.columns["error"].tolist()) == {0, FRAMER_MARK}
    assert done.columns["nHit"].tolist() == [0, 1, 2, 0, 0, 2, 0, 1, 0, 0]
    assert done.columns["Hit_energy"].tolist() == [1, 2, 2, 5, 5, 7]


def test_a_block_of_which_everything_fails_keeps_its_events() -> None:
    stage = ToyStage(fails_on(1, 2))
    stage.mark = FRAMER_MARK
    done = _process(stage, toy_block(7, 2, first_event=1))
    assert done.columns["error"].tolist() == [FRAMER_MARK] * 2
    assert done.columns["event"].tolist() == [1, 2]


class Counting(ToyStage):
    """Counts its events before it may fail."""

    tallies = {"seen": ("all",)}  # noqa: RUF012

    def process(self, block: Block) -> Block:
        self.count("seen", "all", block.n_events)
        return super().process(block)


def test_what_a_failed_try_counted_is_not_counted_again() -> None:
    stage = Counting(fails_on(4))
    done = _process(stage, toy_block(1, 4))
    assert done.n_events == 4
    assert stage.take_tally() == {("seen", "all"): 4}
    _process(stage, toy_block(1, 4, first_event=3))
    assert stage.take_tally()["seen", "all"] in (4, 5)  # the bad one is tried once more, with nothing left of it


async def test_failing_events_travel_on_and_are_counted_where_they_failed(run: Run) -> None:
    async with chain(run) as made:
        sink = ToySink()
        processes = start(made, ToySource(100), ToyStage(fails_on(7, 8, 64)), sink=sink)
        assert await made.codes() == [0] * 4
        assert sink.events == list(range(100))
        errors = {int(e): int(mark) for b in sink.blocks for e, mark in zip(b.columns["event"], b.columns["error"],
                                                                            strict=True) if mark}  # fmt: skip
        assert errors == {7: FRAMER_MARK, 8: FRAMER_MARK, 64: FRAMER_MARK}
        why = {block.id + i: text for block in sink.blocks for i, text in failures(block.columns).items()}
        assert list(why) == [7, 8, 64]
        assert all(text.splitlines()[:2] == [f"ValueError: event {event} is bad", "Traceback (most recent call last):"]
                   for event, text in why.items())  # fmt: skip
        assert [done_events(process, "error") for process in processes] == [0, 3, 0, 3]
        assert [done_events(process) for process in processes] == [100, 97, 100, 97]


async def test_an_item_that_fails_costs_no_other_item(run: Run) -> None:
    async with chain(run) as made:
        sink = ToySink()
        start(made, ToySource(50), tagger=ToyBatchStage(bad=(13.0,)), sink=sink)
        assert await made.codes() == [0] * 4
        energies = np.concatenate([block.columns["Hit_energy"] for block in sink.blocks])
        events = np.concatenate([np.repeat(b.columns["event"], b.columns["nHit"]) for b in sink.blocks])
        np.testing.assert_array_equal(energies, np.where(events == 13, np.nan, 10.0 * events))


# --- Once and only once ---


async def test_a_lost_block_is_sent_again(run: Run) -> None:
    lost: list[int] = []

    def lose(block: Block) -> Block:
        """The first tries of blocks 16 and 24 are no blocks for the next stage: it refuses them."""
        if block.id in (16, 24) and block.attempt == 1:
            lost.append(block.id)
            return block.with_columns({n: array for n, array in block.columns.items() if n != "Cell_index"})
        return block

    async with chain(run, config(redeliver_after=0.2)) as made:
        sink = ToySink()
        reader, _, tagger, writer = start(made, ToySource(120), ToyStage(lose), sink=sink)
        assert await made.codes() == [0] * 4
        assert lost == [16, 24]
        assert sorted(sink.events) == list(range(120))
        assert {block.id: block.attempt for block in sink.blocks if block.id in (16, 24)} == {16: 2, 24: 2}
        assert tagger.metrics.refused["schema"]._value.get() == 2
        assert redelivered(reader) >= 2
        assert done_events(writer) == 120


async def test_a_process_that_dies_costs_nothing(run: Run) -> None:
    def die(block: Block) -> Block:
        """Event 40 and what comes after it are lost with the process."""
        if block.id < 40:
            return block
        framer.crash(RuntimeError("killed by the test"))
        return block.with_columns({n: array for n, array in block.columns.items() if n != "Cell_index"})

    async with chain(run, config(redeliver_after=0.2)) as made:
        sink = ToySink()
        _, framer, _, _ = start(made, ToySource(400), ToyStage(die), sink=sink)
        await until(lambda: framer.state == "failed")
        made.start("framer", ToyStage())
        assert await made.codes() == [0, 1, 0, 0, 0]
        assert sorted(sink.events) == list(range(400))
        assert sink.ended == "finished"


async def test_the_writer_drops_what_it_has(run: Run) -> None:
    class Late(ToySink):
        """Nothing is on disk before some blocks have come twice."""

        async def sync(self) -> None:
            await until(lambda: redelivered(writer) >= 5)
            await super().sync()

    async with chain(run, config(redeliver_after=0.05)) as made:
        sink = Late()
        reader, _, _, writer = start(made, ToySource(100), sink=sink)
        assert await made.codes() == [0] * 4
        assert sink.events == list(range(100))
        assert redelivered(reader) >= redelivered(writer) >= 5
        assert done_events(writer) == 100


async def test_the_tagger_does_no_work_twice_on_what_it_holds(run: Run) -> None:
    class Slow(ToyBatchStage):
        """Works on nothing before some blocks have come twice."""

        def infer(self, queue: str, parts: list[Part[Block]]) -> Array:
            assert several.wait(10)
            return super().infer(queue, parts)

    several = threading.Event()
    async with chain(run, config(redeliver_after=0.05, max_in_flight=8)) as made:  # room for a second block
        sink, tagger = ToySink(), Slow()
        reader, _, process, writer = start(made, ToySource(100), tagger=tagger, sink=sink)
        await until(lambda: process.state == "running" and redelivered(process) >= 5)
        several.set()
        assert await made.codes() == [0] * 4
        assert sink.events == list(range(100))
        n_worked, n_hits = sum(map(len, tagger.batches)), toy_columns(100, 0)["Hit_energy"].size
        assert redelivered(reader) >= redelivered(process) + redelivered(writer)
        assert n_worked == n_hits or redelivered(writer), "only what had left already is worked on again"


async def test_what_comes_during_a_sync_is_committed_after_the_next(tmp_path: Path) -> None:
    told: list[object] = []

    class Busy(ToySink):
        async def sync(self) -> None:
            if len(self.blocks) == 1:
                writing.take(toy_block(5, 4), now=time.time_ns())
            told.append("on disk")

    class Sender:
        async def commit(self, ids: Iterable[tuple[int, int]], way: float, answered: float) -> None:
            told.append(list(ids))

    process: Any = SimpleNamespace(
        metrics=StageMetrics("writer", 0, {}),
        box=BlackBox(tmp_path / "box"),
        stripes=Stripes(),
        facts={},
        worked_in_loop_s=0.0,
        tracer=None,
        book_done=lambda block, unit, counts: None,
        name="writer",
        pipeline=SimpleNamespace(names=["reader", "writer"]),
        config=config(),
    )
    writing = Writing(process, Busy())
    commits: Any = [Sender()]
    writing.commits = commits
    writing.take(toy_block(1, 4), now=time.time_ns())
    await writing.sync()
    await writing.sync()
    assert told == ["on disk", [(1, 4)], "on disk", [(5, 8)]]


async def test_each_writer_gets_its_own_events_wherever_blocks_begin(run: Run) -> None:
    settings = config().model_copy(update={"replicas": {"writer": 2}})
    async with chain(run, settings, ["reader", "writer"]) as made:
        sinks = ToySink(), ToySink()
        made.start("reader", ToySource(200, step=12))
        for replica, sink in enumerate(sinks):
            made.start("writer", sink, replica)
        assert await made.codes() == [0] * 3
        for replica, sink in enumerate(sinks):
            assert sink.events == [i for i in range(200) if i // 8 % 2 == replica]


async def test_what_is_on_disk_from_before_is_not_fed(run: Run) -> None:
    class Resumed(ToySink):
        def kept(self) -> list[tuple[int, int]]:
            return [(0, 9), (50, 99)]

    async with chain(run, names=["reader", "writer"]) as made:
        sink = Resumed()
        reader = made.start("reader", ToySource(120))
        made.start("writer", sink)
        assert await made.codes() == [0, 0]
        assert sink.events == [*range(10, 50), *range(100, 120)]
        assert done_events(reader) == 60


# --- Stops ---


async def test_sigterm_to_the_reader_drains_the_chain(run: Run) -> None:
    async with chain(run) as made:
        sink, source = ToySink(), ToySource(10**9)
        for name, unit in zip(NAMES[1:], (ToyStage(), ToyBatchStage(), sink), strict=True):
            made.start(name, unit)
        await until(lambda: made.processes[-1].state == "running")
        reader = made.start("reader", source)  # the last one started is the one whose signal handler counts here
        await until(lambda: len(sink.blocks) > 10)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await made.codes() == [0] * 4
        assert sink.ended == "finished"
        assert sink.events == list(range(done_events(reader)))


async def test_sigterm_while_the_window_is_full(run: Run) -> None:
    class Stuck(ToySink):
        async def sync(self) -> None:
            await until(lambda: reader.stopping.is_set())
            await super().sync()

    async with chain(run) as made:
        sink = Stuck()
        reader, *_ = start(made, ToySource(10**9), sink=sink)
        await until(lambda: len(sink.events) == 64)  # all that may be under way
        reader.stopping.set()
        assert await made.codes() == [0] * 4
        assert sink.events == list(range(64))


async def test_a_stop_while_the_next_event_is_far_away(run: Run) -> None:
    async with chain(run, config(rate=1e-6)) as made:
        sink = ToySink()
        reader, *_ = start(made, ToySource(100), sink=sink)
        await until(lambda: len(sink.events) == 1)
        reader.stopping.set()
        assert await made.codes() == [0] * 4
        assert sink.events == [0]


class Booked(CoreConfig):
    """A configuration with a place for books."""

    dir: Path

    @property
    def books(self) -> Path:
        return self.dir

    @property
    def disk_patience(self) -> float:
        return 60.0


@pytest.mark.parametrize("stop", [False, True])
async def test_what_is_not_booked_is_not_fed(
    stop: bool, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    disk_is_full = asyncio.Event()
    true_add = FedBook.add

    def add(book: FedBook, block: Block) -> None:
        if disk_is_full.is_set():
            raise OSError(errno.ENOSPC, "No space left on device")
        true_add(book, block)

    monkeypatch.setattr(FedBook, "add", add)
    monkeypatch.setattr("streamer.disk.RETRY_S", 0.01)
    settings = Booked.model_validate({**config().model_dump(), "dir": tmp_path})
    async with chain(run, settings) as made:
        sink = ToySink()
        reader, *_ = start(made, ToySource(10_000), sink=sink)
        await until(lambda: len(sink.blocks) > 10)
        disk_is_full.set()
        await until(lambda: "reader-0.fed: the book of fed events cannot be written" in caplog.text)
        await until(lambda: len(sink.events) == done_events(reader))
        assert sink.events == list(range(len(sink.events)))
        if stop:
            reader.stopping.set()
        else:
            disk_is_full.clear()
        assert await made.codes() == [0] * 4
        assert (len(sink.events) == 10_000) == (not stop)
    assert list(read(tmp_path / "reader-0.fed").ids) == [(0, len(sink.events) - 1)]


async def test_what_was_fed_is_not_dropped_when_it_is_fed_again(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Slow(ToySink):
        async def sync(self) -> None:
            await all_is_well.wait()
            await super().sync()

    def held(block: Block) -> Block:
        assert may_pass.acquire(timeout=60)
        return block

    def told(owner: type, name: str) -> list[int]:
        """The ids of the blocks that the reader hands to a method."""
        ids, method = list[int](), getattr(owner, name)

        def noting(self: Any, *args: Any) -> Any:
            ids.extend(arg.id for arg in args if isinstance(arg, Block) and getattr(self, "name", "reader") == "reader")
            return method(self, *args)

        monkeypatch.setattr(owner, name, noting)
        return ids

    monkeypatch.setattr(roles, "QUICK_S", 0.0)  # who waits does so in the worker
    may_pass, all_is_well, sink = threading.Semaphore(0), asyncio.Event(), Slow()
    sent, dropped = told(Process, "send"), told(Feeding, "drop")
    live = Booked.model_validate({**config(rate=1e5, overflow="drop").model_dump(), "dir": tmp_path})
    async with chain(run, live) as made:
        reader, *_ = start(made, ToySource(400), ToyStage(held), sink=sink)
        await until(lambda: dropped)
        assert sent == [0, 8], "what the framer takes ahead"
        await made.kill(reader)
        dropped.clear()
        larger = live.feed.model_copy(update={"block_events": 12})  # else no block would be owed in part
        made.config = live.model_copy(update={"feed": larger})
        reader = made.start("reader", ToySource(400))
        may_pass.release()  # now there is room for one block that is fed again, and for no other
        await until(lambda: 12 in sent or dropped)
        assert not dropped
        may_pass.release(1000)
        all_is_well.set()
        await until(lambda: reader.state == "stopped")
    fed = read(tmp_path / "reader-0.fed")
    assert list(fed.ids) == [(0, 399)]
    gone = [event for first, last in fed.dropped for event in range(first, last + 1)]
    assert sorted([*sink.events, *gone]) == list(range(400)), "each event is dropped or written, and once"


async def test_a_feed_whose_time_is_over_feeds_what_was_lost_and_ends(run: Run, tmp_path: Path) -> None:
    before = FedBook(tmp_path / "reader-0.fed", run.id, ToySource(0).identity(), goes_on=False)
    before.add(toy_block(0, 20))
    before.drop(toy_block(20, 4), "credit")
    before.add(toy_block(26, 4))  # 24 and 25 were dropped, and their booking was lost
    before.passed = 3600 * 10**9
    await before.flush()
    before.close()
    settings = Booked.model_validate({**config(duration="1 h").model_dump(), "dir": tmp_path})
    async with chain(run, settings) as made:
        sink = ToySink()
        start(made, ToySource(1000), sink=sink)
        assert await made.codes() == [0] * 4
    assert sink.events == [*range(20), *range(24, 30)]


async def test_a_stop_before_anybody_listens(run: Run) -> None:
    settings = config().model_copy(update={"hop": quick(peer_timeout=0.2).hop})
    async with chain(run, settings) as made:
        reader = made.start("reader", ToySource(100))
        await until(lambda: reader.state == "ready")
        reader.stopping.set()
        assert await made.codes() == [0]
        assert done_events(reader) == 0


async def test_a_stop_before_the_first_event_ends_the_whole_chain(run: Run) -> None:
    async with chain(run) as made:
        reader = made.start("reader", ToySource(100))
        await until(lambda: reader.state == "ready")
        reader.stopping.set()
        sink = ToySink()
        for name, unit in zip(NAMES[1:], (ToyStage(), ToyBatchStage(), sink), strict=True):
            made.start(name, unit)
        assert await made.codes() == [0] * 4
        assert (sink.blocks, sink.ended) == ([], "finished")


@pytest.mark.parametrize("place", [1, 2])
async def test_a_middle_stage_that_is_stopped_loses_nothing(place: int, run: Run) -> None:
    async with chain(run) as made:  # nothing is sent again in this chain
        sink, source = ToySink(), ToySource(480, pause_at=240)
        processes = start(made, source, sink=sink)
        await until(lambda: len(sink.blocks) > 10)
        processes[place].stopping.set()
        await until(lambda: processes[place].state == "stopped")
        made.start(NAMES[place], ToyStage() if place == 1 else ToyBatchStage())
        source.go.set()
        assert await made.codes() == [0] * 5
        assert sorted(sink.events) == list(range(480))
        assert redelivered(processes[0]) == 0


async def test_a_writer_that_is_stopped_commits_what_it_took(run: Run) -> None:
    class Slow(ToySink):
        """Is stopped while it brings data to disk, and while more data come in."""

        async def sync(self) -> None:
            covered = [block.id for block in self.blocks]
            if covered and not writer.stopping.is_set():
                await until(lambda: len(self.blocks) > len(covered))
                writer.stopping.set()
                await until(lambda: told.count("draining") == 2)  # it has left, and taken what was under way
            self.synced = covered

    async with chain(run, config(max_in_flight=1_000_000), ["reader", "writer"]) as made:
        sink, told = Slow(), list[str]()
        reader = made.start("reader", ToySource(10**9))
        writer = made.start("writer", sink)
        tell = writer.tell
        writer.tell = lambda state, **facts: (told.append(state), tell(state, **facts))  # type: ignore
        await until(lambda: writer.state == "stopped")
        assert sink.ended == "abandoned"
        assert sink.synced == [block.id for block in sink.blocks]
        await made.kill(reader)


async def test_a_stop_after_the_end_of_the_stream_changes_nothing(run: Run) -> None:
    class Stopped(ToySink):
        async def sync(self) -> None:
            await super().sync()
            if writer.state == "draining":  # the end has come from the front
                writer.stopping.set()

    async with chain(run, names=["reader", "writer"]) as made:
        sink = Stopped()
        made.start("reader", ToySource(50))
        writer = made.start("writer", sink)
        assert await made.codes() == [0, 0]
        assert writer.stopping.is_set()
        assert (len(sink.events), sink.ended) == (50, "finished")


# --- Processes that fail ---


class Broken(ToySource):
    def read(self, missing: Missing) -> Iterator[Columns]:
        yield from super().read(missing)
        raise OSError(5, "Input/output error", "events.root")


async def test_a_source_that_fails_ends_its_process_with_a_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    async with chain(run, names=["reader", "writer"]) as made:
        reader = made.start("reader", Broken(10))
        made.start("writer", ToySink())
        await until(lambda: reader.state == "failed")
    failed = [json.loads(line) for line in capsys.readouterr().out.splitlines() if '"failed"' in line]
    assert (failed[0]["error"], failed[0]["exit"]) == ("events.root: Input/output error", 1)


class Unready(ToyStage):
    def setup(self) -> None:
        raise UsageError("model.onnx: cannot be read; set taggers.eg.model")


async def test_a_stage_that_cannot_be_set_up_ends_as_the_users_mistake(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    async with chain(run) as made:
        made.start("framer", Unready())
        assert await made.codes() == [2]
    assert '"model.onnx: cannot be read; set taggers.eg.model"' in capsys.readouterr().out


class Full(ToySink):
    def write(self, block: Block) -> None:
        raise OSError(28, "No space left on device", "scores.journal")


async def test_a_sink_that_cannot_write_ends_its_process_with_a_line(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    async with chain(run, names=["reader", "writer"]) as made:
        made.start("reader", ToySource(10))
        writer = made.start("writer", Full())
        await until(lambda: writer.state == "failed")
        assert writer.context.closed
    assert '"scores.journal: No space left on device"' in capsys.readouterr().out


# --- Counts from other threads ---


class Meddler(str):
    """A reason whose first look-up lets another thread take the tally."""

    def __new__(cls, thread: threading.Thread) -> "Meddler":
        made = super().__new__(cls, "all")
        made.thread = thread
        return made

    thread: threading.Thread

    def __hash__(self) -> int:
        if self.thread.ident is None:
            self.thread.start()
            self.thread.join(0.1)  # it must wait for us
        return super().__hash__()


def test_counts_are_not_lost_to_a_thread_that_takes_them() -> None:
    stage, total = ToyStage(), Counter[tuple[str, str]]()
    taker = threading.Thread(target=lambda: total.update(stage.take_tally()))
    stage.count("seen", Meddler(taker), 3)
    taker.join()
    total.update(stage.take_tally())
    assert total == {("seen", "all"): 3}
