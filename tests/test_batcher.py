"""When batches are closed; the clock is the test's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.batcher import REASONS, Batch, Batcher, Part

MAX_BATCH, MAX_WAIT = 4, 10.0

# What is done at a time, and what must come of it: an addition (key, items), or a question and its answer, where
# a batch is "reason: parts". Two letters and a range are a part: a0-2 is items 0 and 1 of a.
TABLE = [
    ("nothing waits", [(0, "ask", None), (99, "drain", None)]),
    ("one item waits for its time", [(0, ("a", 1)), (0, "ask", 10.0), (9, "ask", 10.0), (10, "ask", "max_wait: a0-1")]),
    ("a batch is full", [(0, ("a", 4)), (0, "ask", "full: a0-4"), (0, "ask", None)]),
    ("two keys fill a batch", [(0, ("a", 3)), (1, ("b", 1)), (1, "ask", "full: a0-3 b0-1")]),
    ("a key is split", [(0, ("a", 6)), (0, "ask", "full: a0-4"), (0, "ask", 10.0), (10, "ask", "max_wait: a4-6")]),
    (
        "a key is split twice",
        [(0, ("a", 9)), (0, "ask", "full: a0-4"), (0, "ask", "full: a4-8"), (0, "drain", "drain: a8-9")],
    ),
    (
        "what is left of a key has waited as long as all of it",
        [(0, ("a", 3)), (8, ("b", 3)), (8, "ask", "full: a0-3 b0-1"), (8, "ask", 18.0), (18, "ask", "max_wait: b1-3")],
    ),
    ("the oldest decides", [(0, ("a", 1)), (9, ("b", 1)), (9, "ask", 10.0), (10, "ask", "max_wait: a0-1 b0-1")]),
    ("full comes before late", [(0, ("a", 5)), (99, "ask", "full: a0-4"), (99, "ask", "max_wait: a4-5")]),
    ("late comes before drained", [(0, ("a", 1)), (10, "drain", "max_wait: a0-1")]),
    ("draining waits for nobody", [(0, ("a", 1)), (1, "drain", "drain: a0-1"), (1, "drain", None)]),
    (
        "who is to be alone shares no batch",
        [(0, ("a", 1)), (0, ("b", 1, "alone")), (1, ("c", 1)), (1, "ask", 10.0), (10, "ask", "max_wait: a0-1"),
         (10, "ask", "alone: b0-1"), (10, "ask", 11.0)],
    ),
    ("who is alone is not waited for", [(0, ("a", 1, "alone")), (0, "ask", "alone: a0-1")]),
    (
        "who is alone may need several batches",
        [(0, ("a", 6, "alone")), (0, ("b", 9)), (0, "ask", "alone: a0-4"), (0, "ask", "alone: a4-6"),
         (0, "ask", "full: b0-4")],
    ),
    ("asked late", [(0, ("a", 1)), (1e6, "ask", "max_wait: a0-1")]),
]  # fmt: skip


def answer(batch: Batch[str] | float | None) -> str | float | None:
    if not isinstance(batch, Batch):
        return batch
    assert batch.size == sum(part.size for part in batch.parts)
    return f"{batch.reason}: " + " ".join(f"{part.key}{part.start}-{part.stop}" for part in batch.parts)


@pytest.mark.parametrize("steps", [row[1] for row in TABLE], ids=[row[0] for row in TABLE])
def test_arrivals_lead_to_decisions(steps: list[tuple[float, object, object]]) -> None:
    batcher: Batcher[str] = Batcher(MAX_BATCH, MAX_WAIT)
    for step in steps:
        now, what = step[:2]
        if isinstance(what, tuple):
            batcher.add(*what[:2], now, alone=what[2:] == ("alone",))
        else:
            assert answer(batcher.next(now, draining=what == "drain")) == step[2]


def test_without_a_wait_whatever_is_there_is_taken() -> None:
    batcher: Batcher[str] = Batcher(MAX_BATCH, 0.0)
    batcher.add("a", 1, 5.0)
    assert answer(batcher.next(5.0)) == "max_wait: a0-1"


arrivals = st.lists(st.tuples(st.floats(0, 3), st.integers(1, 12)), max_size=30)


@given(arrivals, st.integers(1, 9), st.floats(0, 5))
def test_every_item_is_answered_once_and_in_order(
    gaps: list[tuple[float, int]], max_batch: int, max_wait: float
) -> None:
    batcher: Batcher[int] = Batcher(max_batch, max_wait)
    since: dict[int, float] = {}
    done: list[tuple[int, int]] = []
    now = 0.0

    def take(decision: Batch[int] | float | None) -> bool:
        if not isinstance(decision, Batch):
            return False
        assert decision.reason in REASONS
        assert 1 <= decision.size <= max_batch
        done.extend((part.key, i) for part in decision.parts for i in range(part.start, part.stop))
        return True

    for key, (gap, n_items) in enumerate(gaps):
        now += gap
        since[key] = now
        batcher.add(key, n_items, now)
        while take(decision := batcher.next(now)):
            pass
        waiting = [(k, i) for k, (_, n) in enumerate(gaps[: key + 1]) for i in range(n)][len(done) :]
        assert batcher.waiting == len(waiting) < max_batch or not waiting
        if waiting:  # not one of them has waited too long, and we know when to ask again
            assert decision == since[waiting[0][0]] + max_wait
            assert now < min(since[k] for k, _ in waiting) + max_wait
        else:
            assert decision is None
    while take(batcher.next(now, draining=True)):
        pass
    assert done == [(key, i) for key, (_, n_items) in enumerate(gaps) for i in range(n_items)]
    assert batcher.waiting == 0


def test_part_knows_its_size() -> None:
    assert Part("a", 3, 7).size == 4
