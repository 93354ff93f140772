"""The batching thread, with a stage whose results tell which item they belong to."""

import queue
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from streamer.batcher import REASONS, Part
from streamer.blackbox import BlackBox
from streamer.block import SHED, Array, Block
from streamer.costs import Costs
from streamer.engine import Engine
from streamer.metrics import BatchMetrics, StageMetrics
from streamer.testing import ToyBatchStage, toy_block

Why = Mapping[str, Mapping[int, str]]

NEVER_S = 1000.0
WAIT_S = 20.0


class Bench:
    """An engine at work, and what came out of it."""

    def __init__(self, stage: ToyBatchStage, box: BlackBox) -> None:
        self.stage = stage
        self.metrics = StageMetrics("tagger", 0, {})
        batches = BatchMetrics.of(CollectorRegistry(), stage.queues, REASONS)
        self.batches = next(iter(batches.values()))
        self.done: queue.Queue[tuple[Block, str]] = queue.Queue()
        self.crashes: queue.Queue[BaseException] = queue.Queue()
        self.engine: Engine[str] = Engine(
            stage, self.metrics, batches, box, lambda *item: self.done.put(item), self.crashes.put
        )

    def submit(self, *blocks: Block) -> None:
        for block in blocks:
            self.engine.submit(block, f"link of {block.id}")

    def take(self) -> Block:
        block, link = self.done.get(timeout=WAIT_S)
        assert link == f"link of {block.id}"
        return block

    def closed(self) -> dict[str, int]:
        return {reason: int(n) for reason, counter in self.batches.closed.items() if (n := counter._value.get())}


Make = Callable[..., Bench]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Make]:
    made: list[Bench] = []

    def make(stage: ToyBatchStage | None = None, **settings: Any) -> Bench:
        made.append(Bench(stage or ToyBatchStage(**settings), BlackBox(tmp_path / "box")))
        return made[-1]

    yield make
    for one in made:
        one.engine.close()


def hits(n_hits: int, block_id: int, first: float = 0.0) -> Block:
    """One event with `n_hits` hits of the energies first, first + 1, ..."""
    block = toy_block(block_id, 1)
    return block.with_columns(
        {
            **block.columns,
            "nHit": np.array([n_hits], np.int32),
            "Hit_energy": np.arange(first, first + n_hits, dtype=np.float32),
            "nCell": np.zeros((n_hits, 2), np.int32),
        }
    )


def energies(block: Block) -> list[float]:
    return [float(energy) for energy in block.columns["Hit_energy"]]


def test_results_find_their_blocks(bench: Make) -> None:
    at_work = bench(max_batch=8)
    rng = np.random.default_rng(4)
    blocks = [hits(int(n), i, 100.0 * i) for i, n in enumerate(rng.integers(0, 30, 60))]
    at_work.submit(*blocks)
    done = {block.id: block for block in (at_work.take() for _ in blocks)}
    for block in blocks:
        assert energies(done[block.id]) == [10 * energy for energy in energies(block)]
        assert done[block.id].stamps is block.stamps
    assert all(len(batch) <= 8 for batch in at_work.stage.batches)


def test_items_are_worked_on_in_the_order_of_their_arrival(bench: Make) -> None:
    at_work = bench(max_batch=8, max_wait=NEVER_S)
    at_work.submit(*(hits(5, i, 5.0 * i) for i in range(7)))
    at_work.engine.drain()
    assert [at_work.take().id for _ in range(7)] == list(range(7))
    assert at_work.stage.batches == [[float(i) for i in range(k, min(k + 8, 35))] for k in range(0, 35, 8)]
    assert at_work.closed() == {"full": 4, "drain": 1}


def test_blocks_share_a_batch(bench: Make) -> None:
    at_work = bench(max_batch=6, max_wait=NEVER_S)
    at_work.submit(hits(2, 1), hits(2, 2), hits(2, 3))
    assert [at_work.take().id for _ in range(3)] == [1, 2, 3]
    assert at_work.closed() == {"full": 1}


def test_an_item_that_fails_does_not_hurt_its_neighbours(bench: Make) -> None:
    at_work = bench(max_batch=6, max_wait=NEVER_S, bad=(101.0, 202.0))
    at_work.submit(hits(3, 1, 100.0), hits(3, 2, 200.0), hits(6, 3, 300.0))
    first, second, third = (at_work.take() for _ in range(3))
    np.testing.assert_array_equal(energies(first), [1000, np.nan, 1020])
    np.testing.assert_array_equal(energies(second), [2000, 2010, np.nan])
    assert energies(third) == [3000, 3010, 3020, 3030, 3040, 3050]
    assert at_work.stage.batches[1:7] == [[100.0], [101.0], [102.0], [200.0], [201.0], [202.0]]
    assert at_work.crashes.empty()


def test_a_batch_of_nothing_but_bad_items(bench: Make) -> None:
    at_work = bench(max_batch=2, bad=(0.0, 1.0))
    at_work.submit(hits(2, 1))
    np.testing.assert_array_equal(energies(at_work.take()), [np.nan, np.nan])


def test_a_block_without_items_waits_for_nobody(bench: Make) -> None:
    at_work = bench(max_batch=8, max_wait=NEVER_S)
    at_work.submit(hits(3, 1), hits(0, 2))
    assert at_work.take().id == 2
    assert at_work.stage.batches == []


def test_a_batch_is_closed_after_the_wait(bench: Make) -> None:
    at_work = bench(max_batch=8, max_wait=0.001)
    at_work.submit(hits(3, 1))
    assert at_work.take().id == 1
    assert at_work.closed() == {"max_wait": 1}


def test_draining_empties_the_queue_and_what_comes_after(bench: Make) -> None:
    at_work = bench(max_batch=8, max_wait=NEVER_S)
    at_work.submit(hits(3, 1))
    at_work.engine.drain()
    assert at_work.take().id == 1
    at_work.submit(hits(1, 2))
    assert at_work.take().id == 2
    assert at_work.closed() == {"drain": 2}


def test_metrics_tell_sizes_and_what_waits(bench: Make) -> None:
    at_work = bench(max_batch=4, max_wait=NEVER_S)
    at_work.submit(hits(3, 1))
    assert at_work.engine.waiting("hits") == 3
    at_work.submit(hits(2, 2))
    assert at_work.take().id == 1
    assert at_work.engine.waiting("hits") == 1
    assert at_work.batches.size._sum.get() == 4
    at_work.engine.drain()
    assert at_work.take().id == 2
    assert at_work.batches.size._sum.get() == 5
    assert at_work.metrics.busy._value.get() > 0


def test_close_ends_the_thread_whatever_waits(bench: Make) -> None:
    at_work = bench(max_batch=8, max_wait=NEVER_S)
    at_work.submit(hits(3, 1))
    at_work.engine.close()
    assert not any(thread.name == "engine" and thread.is_alive() for thread in threading.enumerate())
    assert at_work.done.empty()


class TwoQueues(ToyBatchStage):
    """Its hits are worked on twice, in batches of 4 and of 2; the results add up."""

    def __init__(self) -> None:
        super().__init__(max_wait=NEVER_S)
        self.queues = {"wide": 4, "narrow": 2}
        self.order: list[tuple[str, list[float]]] = []

    def items(self, block: Block) -> dict[str, int]:
        return dict.fromkeys(self.queues, int(block.columns["nHit"].sum()))

    def infer(self, queue: str, parts: list[Part[Block]]) -> Array:
        results = super().infer(queue, parts)
        self.order.append((queue, self.batches[-1]))
        return results if queue == "wide" else results * 100

    def finish(self, block: Block, results: dict[str, Array], why: Why) -> Block:
        return super().finish(block, {"hits": results["wide"] + results["narrow"]}, {"hits": why["wide"]})


def test_every_queue_has_batches_of_its_own_and_a_block_waits_for_all(bench: Make) -> None:
    stage = TwoQueues()
    at_work = bench(stage)
    at_work.submit(hits(3, 1, 1.0), hits(2, 2, 4.0))
    at_work.engine.drain()
    assert energies(at_work.take()) == [1010, 2020, 3030]
    assert energies(at_work.take()) == [4040, 5050]
    for name, most in stage.queues.items():
        batches = [batch for whose, batch in stage.order if whose == name]
        assert [energy for batch in batches for energy in batch] == [1, 2, 3, 4, 5]
        assert {len(batch) for batch in batches[:-1]} == {most}


def test_the_queue_that_has_waited_longest_has_its_turn_first(bench: Make) -> None:
    begun, go_on = threading.Event(), threading.Event()

    class Held(TwoQueues):
        def infer(self, queue: str, parts: list[Part[Block]]) -> Array:
            begun.set()
            assert go_on.wait(WAIT_S)
            return super().infer(queue, parts)

    stage = Held()
    at_work = bench(stage)
    at_work.submit(hits(2, 1, 1.0))  # closes a narrow batch; the wide queue has waited since then
    assert begun.wait(WAIT_S)
    at_work.submit(hits(2, 2, 3.0))  # now both can be closed, and the wide one holds the older item
    go_on.set()
    assert energies(at_work.take()) == [1010, 2020]
    at_work.take()
    assert [queue for queue, _ in stage.order] == ["narrow", "wide", "narrow"]


class Contended(TwoQueues):
    """Of a block's two batches only one can be in time, by what they are said to cost [s]."""

    def __init__(self) -> None:
        super().__init__()
        self.costs = {"wide": Costs({1: 1000.0}), "narrow": Costs({1: 1000.0})}

    def deadlines(self, queue: str, block: Block) -> Array | None:
        return np.array([time.time_ns() + 1500 * 10**9])


@pytest.mark.parametrize("first", ["wide", "narrow"])
def test_where_not_all_can_be_in_time_the_higher_priority_comes_first(first: str, bench: Make) -> None:
    stage = Contended()
    stage.priorities = {first: 1}
    at_work = bench(stage)
    at_work.submit(hits(1, 1, 1.0))
    assert energies(at_work.take()) == [1010]
    assert stage.order[0][0] == first


class Short(ToyBatchStage):
    """Forgets a result."""

    def infer(self, queue: str, parts: list[Part[Block]]) -> Array:
        return super().infer(queue, parts)[1:]


class Clumsy(ToyBatchStage):
    """Cannot put results into a block."""

    def finish(self, block: Block, results: dict[str, Array], why: Why) -> Block:
        raise KeyError("score")


@pytest.mark.parametrize(("kind", "told"), [(Short, "1 results for a batch of 2"), (Clumsy, "score")])
def test_a_stage_that_breaks_its_word_ends_the_process(bench: Make, kind: type[ToyBatchStage], told: str) -> None:
    at_work = bench(kind(max_batch=2))
    at_work.submit(hits(2, 1))
    assert told in str(at_work.crashes.get(timeout=WAIT_S))
    assert at_work.done.empty()


class Timed(ToyBatchStage):
    """Its hits cost a tenth of a second each batch; a hit of the energy e has its deadline at `begin` + e seconds."""

    def __init__(self) -> None:
        super().__init__(max_batch=4)
        self.costs = {"hits": Costs({1: 0.1, 4: 0.1})}
        self.mark = 4
        self.begin_ns, self.go_on = time.time_ns(), threading.Event()

    def deadlines(self, queue: str, block: Block) -> Array | None:
        return np.asarray(self.begin_ns + block.columns["Hit_energy"].astype(np.float64) * 1e9)

    def infer(self, queue: str, parts: list[Part[Block]]) -> Array:
        assert self.go_on.wait(WAIT_S)
        return super().infer(queue, parts)


def test_a_free_device_takes_what_waits_earliest_deadline_first(bench: Make) -> None:
    stage = Timed()
    at_work = bench(stage)
    at_work.submit(hits(1, 1, 5000.0))
    while at_work.engine.waiting("hits"):  # it is worked on
        time.sleep(0.001)
    at_work.submit(hits(3, 2, 7000.0), hits(2, 3, 6000.0))
    stage.go_on.set()
    assert {at_work.take().id for _ in range(3)} == {1, 2, 3}
    assert stage.batches == [[5000.0], [7000.0, 6000.0, 6001.0, 7001.0], [7002.0]] or stage.batches == [
        [5000.0], [6000.0, 6001.0, 7000.0, 7001.0], [7002.0]]  # fmt: skip
    assert at_work.closed() == {"idle": 2, "full": 1}
    assert stage.costs["hits"].of(1) != 0.1, "what a batch costs is learned"


def test_who_is_too_late_is_given_up_and_its_block_comes_all_the_same(bench: Make) -> None:
    stage = Timed()
    stage.go_on.set()
    at_work = bench(stage)
    at_work.submit(hits(3, 1, -9.0), hits(2, 2, 5000.0))
    first, second = sorted((at_work.take() for _ in range(2)), key=lambda block: block.id)
    np.testing.assert_array_equal(energies(first), [np.nan] * 3)
    assert first.columns["error"].tolist() == [SHED + at_work.stage.mark]
    assert energies(second) == [50000, 50010]
    assert at_work.batches.shed._value.get() == 3
    assert at_work.batches.size._sum.get() == 2


def test_who_can_no_longer_make_it_does_not_wait_for_the_batch_that_is_worked_on(bench: Make) -> None:
    stage = Timed()
    at_work = bench(stage)
    at_work.submit(hits(6, 1, 5000.0))  # four are worked on, two wait
    while at_work.engine.waiting("hits") != 2:
        time.sleep(0.001)
    soon = (time.time_ns() - stage.begin_ns) * 1e-9 + 0.4
    at_work.submit(hits(2, 2, soon))
    assert 0 < at_work.engine.expire() < 0.4, "work on it must begin a tenth of a second before its deadline"
    while not at_work.batches.shed._value.get():
        time.sleep(0.01)
        wait = at_work.engine.expire()
    assert at_work.batches.shed._value.get() == 1
    assert 0.5 < wait <= 1.01, "the second hit's deadline is a second later"
    while at_work.engine.expire() < 1000.0:
        time.sleep(0.01)
    assert at_work.take().columns["error"].tolist() == [SHED + at_work.stage.mark]
    assert stage.batches == [], "the batch is still worked on"
    stage.go_on.set()
    assert energies(at_work.take()) == [50000, 50010, 50020, 50030, 50040, 50050]
    assert at_work.engine.expire() == np.inf


def test_a_block_of_which_some_are_given_up_while_others_are_worked_on(bench: Make) -> None:
    stage = Timed()
    at_work = bench(stage)
    block = hits(6, 1)
    soon = (time.time_ns() - stage.begin_ns) * 1e-9 + 0.3
    block.columns["Hit_energy"] = np.repeat([soon, soon + 5000.0], [5, 1]).astype(np.float32)
    at_work.submit(block)
    while at_work.engine.waiting("hits") != 2:
        time.sleep(0.001)
    while at_work.engine.expire() < 1000.0:
        time.sleep(0.01)
    assert at_work.done.empty()
    stage.go_on.set()
    done = at_work.take()
    assert np.isnan(done.columns["Hit_energy"]).tolist() == [False] * 4 + [True, False]
    assert done.columns["error"].tolist() == [SHED + at_work.stage.mark]


class Padded(ToyBatchStage):
    """Runs batches of 4 and of 8; an item is 100 bytes, its result 10."""

    def padded(self, queue: str, n: int) -> int:
        return 4 if n <= 4 else 8

    def transferred(self, queue: str, n: int) -> tuple[int, int]:
        return 100 * self.padded(queue, n), 10 * self.padded(queue, n)


def test_what_batches_are_padded_with_is_counted(bench: Make) -> None:
    at_work = bench(Padded(max_batch=8, max_wait=NEVER_S))
    at_work.submit(hits(8, 1), hits(3, 2))
    at_work.engine.drain()
    assert {at_work.take().id, at_work.take().id} == {1, 2}
    assert at_work.batches.padding._value.get() == 1
    assert at_work.batches.size._sum.get() == 11
    assert [counter._value.get() for counter in at_work.batches.transfer] == [1200, 120]


def test_how_long_items_waited_and_the_device_worked_is_told(bench: Make) -> None:
    at_work = bench(max_batch=8, max_wait=0.01)
    at_work.submit(hits(5, 1), hits(2, 2))
    at_work.take()
    at_work.take()
    below, total = at_work.batches.wait.buckets()
    assert below[-1] == 7
    assert total >= 5 * 0.01, "the first waited until its batch was closed"
    assert at_work.batches.seconds._value.get() == at_work.metrics.busy._value.get() > 0


class Threads(ToyBatchStage):
    """Remembers which thread a batch was worked on in; a batch of four waits until it may go on."""

    def __init__(self, seconds: float) -> None:
        super().__init__(max_batch=4)
        self.costs = {"hits": Costs({1: seconds, 2: seconds, 4: 1.0})}
        self.go_on, self.threads = threading.Event(), []

    def infer(self, queue: str, parts: list[Part[Block]]) -> Array:
        self.threads.append(threading.current_thread().name)
        if sum(part.size for part in parts) == 4:
            assert self.go_on.wait(WAIT_S)
        return super().infer(queue, parts)


def test_what_is_quick_is_worked_on_at_once(bench: Make) -> None:
    stage = Threads(seconds=1e-4)
    at_work = bench(stage)
    here = threading.current_thread().name
    at_work.submit(hits(1, 1), hits(2, 2))
    assert [at_work.done.get_nowait()[0].id for _ in range(2)] == [1, 2]
    assert stage.threads == [here, here]
    at_work.submit(hits(4, 3))
    while len(stage.threads) < 3:
        time.sleep(0.001)
    at_work.submit(hits(1, 4))
    assert at_work.done.empty(), "one at a time"
    stage.go_on.set()
    assert [at_work.take().id for _ in range(2)] == [3, 4]
    assert stage.threads[2:] == ["engine", "engine"]
    assert at_work.batches.size._sum.get() == 8


def test_what_takes_longer_is_left_to_the_engine(bench: Make) -> None:
    stage = Threads(seconds=1e-2)
    at_work = bench(stage)
    at_work.submit(hits(1, 1))
    assert at_work.take().id == 1
    assert stage.threads == ["engine"]


def test_blocks_from_one_thread_and_the_engine_at_once_are_each_answered_once(bench: Make) -> None:
    stage = Threads(seconds=1e-4)
    stage.go_on.set()
    at_work = bench(stage)
    for number in range(2000):
        at_work.submit(hits((1, 2, 4, 3)[number % 4], number, number))
    found = {block.id: energies(block) for block in (at_work.take() for _ in range(2000))}
    assert found == {n: [10.0 * (n + k) for k in range((1, 2, 4, 3)[n % 4])] for n in range(2000)}
    assert at_work.done.empty()
    assert set(stage.threads) == {"engine", threading.current_thread().name}
