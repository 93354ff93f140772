"""Batches under deadlines: whom they answer, whom they give up. The clock is the test's, costs are known."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.batcher import REASONS, Batch, DeadlineBatcher, Shed
from streamer.costs import Costs

COSTS = {1: 2.0, 2: 3.0, 4: 4.0}

# What is done at a time, and what must come of it. An addition is a key, and its items' deadlines or their number.
TABLE = [
    ("nothing waits", [(0, "ask", None)]),
    ("a free device takes what is there", [(0, ("a", [99])), (0, "ask", "idle: a0-1"), (0, "ask", None)]),
    ("and as much as fits", [(0, ("a", [99] * 5)), (0, "ask", "full: a0-4"), (0, "ask", "idle: a4-5")]),
    ("the earliest deadline comes first", [(0, ("a", [90] * 3)), (1, ("b", [50] * 2)), (1, "ask", "full: b0-2 a0-2")]),
    ("just in time", [(0, ("a", [4] * 4)), (0, "ask", "full: a0-4")]),
    ("too late for sure", [(0, ("a", [2, 9])), (0.1, "ask", "shed: a0-1"), (0.1, "ask", "idle: a1-2")]),
    ("a smaller batch saves the first", [(0, ("a", [3, 3, 9, 9])), (0, "ask", "deadline: a0-2"),
     (3, "ask", "idle: a2-4")]),
    ("all too late", [(0, ("a", [1, 1])), (0, ("b", [1])), (0, "ask", "shed: a0-2 b0-1"), (0, "ask", None)]),
    ("the first goes for the sake of four others", [(0, ("a", [2.5])), (0, ("b", [4.5] * 4)), (0, "ask", "shed: a0-1"),
     (0, "ask", "full: b0-4")]),
    ("who has no deadline is not passed", [(0, ("a", 1)), (1, ("b", [9])), (1, "ask", "idle: a0-1 b0-1")]),
    ("not by smaller batches either", [(0, ("a", 6)), (1, ("b", [50])), (1, "ask", "full: a0-4"), (1, ("c", [40])),
     (1, "ask", "full: a4-6 c0-1 b0-1")]),
    ("and passes nobody", [(0, ("a", [50] * 3)), (0, ("b", 4)), (0, ("c", [40] * 2)), (0, "ask", "full: a0-3"),
     (0, "ask", "full: b0-4"), (0, "ask", "idle: c0-2")]),
    ("it is not shed for others", [(0, ("a", 1)), (0, ("b", [1])), (0, "ask", "idle: a0-1 b0-1")]),
    ("alone even then", [(0, ("a", [50])), (0, ("b", [40], "alone")), (0, "ask", "alone: b0-1"),
     (0, "ask", "idle: a0-1")]),
]  # fmt: skip


def answer(decision: object) -> object:
    if not isinstance(decision, Batch | Shed):
        return decision
    assert decision.size == sum(part.size for part in decision.parts)
    reason = decision.reason if isinstance(decision, Batch) else "shed"
    return f"{reason}: " + " ".join(f"{part.key}{part.start}-{part.stop}" for part in decision.parts)


def test_when_not_all_can_make_it_no_batch_is_larger_than_the_one_that_does_the_most() -> None:
    batcher: DeadlineBatcher[str] = DeadlineBatcher(Costs({1: 1.0, 2: 1.0, 8: 9.0}))
    batcher.add("a", 8, 0.0, deadlines=np.full(8, 99.0))
    assert answer(batcher.next(0.0)) == "full: a0-8"
    batcher.add("b", 7, 9.0, deadlines=np.array([12.0] + [99.0] * 6))
    assert answer(batcher.next(9.0)) == "deadline: b0-2"
    assert answer(batcher.next(10.0)) == "full: b2-4"
    assert answer(batcher.next(11.0)) == "full: b4-6"
    assert answer(batcher.next(12.0)) == "idle: b6-7"
    batcher.add("c", 7, 13.0, deadlines=np.full(7, 99.0))
    assert answer(batcher.next(13.0)) == "idle: c0-7"


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_batch_is_as_small_as_others_need_it(most: int) -> None:
    batcher: DeadlineBatcher[str] = DeadlineBatcher(Costs(COSTS))
    batcher.add("a", 4, 0.0, deadlines=np.full(4, 99.0))
    assert answer(batcher.next(0.0, most=most)) == f"deadline: a0-{most}"
    assert answer(batcher.next(9.0, most=4)) == f"idle: a{most}-4"


def test_the_price_of_time_knows_what_others_ask_of_the_device() -> None:
    for load, wanted in ((0.0, "deadline: a0-1"), (1.0, "shed: a0-1")):
        batcher: DeadlineBatcher[str] = DeadlineBatcher(Costs(COSTS))
        batcher.add("a", 1, 0.0, deadlines=np.array([2.5]))
        batcher.add("b", 4, 0.0, deadlines=np.full(4, 99.0))
        assert answer(batcher.next(0.0, load=load)) == wanted


@pytest.mark.parametrize("steps", [row[1] for row in TABLE], ids=[row[0] for row in TABLE])
def test_arrivals_lead_to_decisions(steps: list[tuple[float, object, object]]) -> None:
    batcher: DeadlineBatcher[str] = DeadlineBatcher(Costs(COSTS))
    for step in steps:
        now, what = step[:2]
        if isinstance(what, tuple):
            key, deadlines, *alone = what
            if isinstance(deadlines, int):
                batcher.add(key, deadlines, now)
            else:
                batcher.add(key, len(deadlines), now, deadlines=np.array(deadlines, float), alone=bool(alone))
        else:
            assert answer(batcher.next(now)) == step[2]


Arrivals = list[tuple[float, list[float]]]
"""Time since the one before, and how long after it each item's deadline is (sorted)."""

arrivals = st.lists(
    st.tuples(st.floats(0, 4), st.lists(st.floats(0, 12), min_size=1, max_size=7).map(sorted)), max_size=25
)
costs = st.tuples(
    st.floats(0.01, 3), st.floats(0, 1), st.sampled_from([[1], [1, 2, 4], [1, 3, 8], [1, 2, 3, 4, 5]])
).map(lambda drawn: {size: drawn[0] + drawn[1] * size for size in drawn[2]})


def in_order(given: Arrivals) -> list[tuple[float, int, list[float]]]:
    now, made = 0.0, []
    for key, (gap, slack) in enumerate(given):
        now += gap
        made.append((now, key, [now + s for s in slack]))
    return made


def greedy_answers_all(given: Arrivals, costs: Costs) -> bool:
    """Whether firing whatever waits, first come first served, answers every item in time."""
    todo, now, waiting = in_order(given), 0.0, []
    while todo or waiting:
        if not waiting:
            now = max(now, todo[0][0])
        while todo and todo[0][0] <= now:
            waiting += todo.pop(0)[2]
        n = min(len(waiting), costs.max_batch)
        now += costs.of(n)
        if any(now > deadline for deadline in waiting[:n]):
            return False
        del waiting[:n]
    return True


def streamed(given: Arrivals, costs: Costs) -> tuple[dict[tuple[int, int], float], set[tuple[int, int]]]:
    """When each item was answered, and which were shed; every item is one or the other, once."""
    batcher: DeadlineBatcher[int] = DeadlineBatcher(costs)
    todo, now = in_order(given), 0.0
    answered: dict[tuple[int, int], float] = {}
    shed: set[tuple[int, int]] = set()
    due = {(key, i): d for _, key, deadlines in todo for i, d in enumerate(deadlines)}
    while todo or batcher.waiting:
        if not batcher.waiting:
            now = max(now, todo[0][0])
        while todo and todo[0][0] <= now:
            at, key, deadlines = todo.pop(0)
            batcher.add(key, len(deadlines), at, deadlines=np.array(deadlines))
        decision = batcher.next(now)
        assert isinstance(decision, Batch | Shed), "a free device waits though something could be done"
        items = [(part.key, i) for part in decision.parts for i in range(part.start, part.stop)]
        assert len(items) == decision.size >= 1
        assert not {*items} & (answered.keys() | shed)
        if isinstance(decision, Shed):
            shed |= {*items}
            continue
        assert decision.reason in REASONS
        assert decision.size <= costs.max_batch
        now += costs.of(decision.size)
        answered |= dict.fromkeys(items, now)
        assert all(now <= due[item] * (1 + 1e-9) for item in items), "paid for, and too late"
    assert answered.keys() | shed == due.keys()
    return answered, shed


@given(arrivals, costs)
def test_nobody_is_shed_whom_firing_whatever_waits_would_have_answered(
    given: Arrivals, seconds: dict[int, float]
) -> None:
    _, shed = streamed(given, Costs(seconds))
    if shed:
        assert not greedy_answers_all(given, Costs(seconds))


@given(arrivals, costs)
def test_nobody_waits_who_can_no_longer_make_it(given: Arrivals, seconds: dict[int, float]) -> None:
    """Which bounds the queue: it holds no more than comes within a deadline."""
    batcher: DeadlineBatcher[int] = DeadlineBatcher(Costs(seconds))
    for at, key, deadlines in in_order(given):
        batcher.add(key, len(deadlines), at, deadlines=np.array(deadlines))
        batcher.expired(at)
        left = [d for item in batcher._queue for d in item.deadlines[item.start : item.stop]]  # type: ignore[index]
        assert len(left) == batcher.waiting
        assert all(deadline >= at + seconds[1] for deadline in left)
        assert batcher.urgency[0] == (min(left) - seconds[1] if left else math.inf)


@given(arrivals, costs, st.sets(st.integers(0, 24)))
def test_who_has_no_deadline_is_answered_and_passed_by_none_that_comes_later(
    given: Arrivals, seconds: dict[int, float], without: set[int]
) -> None:
    batcher: DeadlineBatcher[int] = DeadlineBatcher(Costs(seconds))
    todo, now, waiting = in_order(given), 0.0, set()
    while todo or batcher.waiting:
        if not batcher.waiting:
            now = max(now, todo[0][0])
        while todo and todo[0][0] <= now:
            at, key, deadlines = todo.pop(0)
            batcher.add(key, len(deadlines), at, deadlines=None if key in without else np.array(deadlines))
            waiting |= {(key, i) for i in range(len(deadlines))}
        decision = batcher.next(now)
        assert isinstance(decision, Batch | Shed)
        items = {(part.key, i) for part in decision.parts for i in range(part.start, part.stop)}
        assert items <= waiting
        waiting -= items
        left = [key for key, _ in waiting if key in without]
        if isinstance(decision, Batch):
            assert not left or max(key for key, _ in items) <= min(left)
            now += seconds[1]
        else:
            assert not {key for key, _ in items} & without
    assert not waiting
