"""The books of blocks and events, held against plain sets and sums; the clock is the test's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.ledger import IdSet, Ledger, Window
from streamer.testing import toy_block

# --- Ids ---


@given(st.lists(st.integers(0, 40) | st.integers(0, 1 << 62)))
def test_idset_is_a_set(ids: list[int]) -> None:
    ours, plain = IdSet(), set[int]()
    for block_id in ids:
        assert ours.add(block_id) == (block_id not in plain)
        plain.add(block_id)
    for block_id in {near for i in plain for near in (i - 1, i, i + 1)} | {-1, 0}:
        assert (block_id in ours) == (block_id in plain)
    assert [i for first, last in ours for i in range(first, last + 1)] == sorted(plain)


@given(st.permutations(range(30)))
def test_ids_in_any_order_become_one_interval(ids: list[int]) -> None:
    ours = IdSet()
    for block_id in ids:
        ours.add(block_id)
    assert list(ours) == [(0, 29)]


def test_intervals_are_apart_and_in_order() -> None:
    ours = IdSet()
    for block_id in (7, 3, 1, 9, 2):
        ours.add(block_id)
    assert list(ours) == [(1, 3), (7, 7), (9, 9)]
    ours.add(8)
    assert list(ours) == [(1, 3), (7, 9)]


# --- The window ---


def window(*sizes: int, max_events: int = 100, redeliver_after: float = 10.0) -> Window:
    """Blocks 1, 2, 3 ... of these sizes, sent at the times 1, 2, 3 ..."""
    made = Window(max_events, redeliver_after)
    for block_id, n_events in enumerate(sizes, 1):
        made.add(toy_block(block_id, n_events), float(block_id))
    return made


def test_window_is_full_when_one_more_block_does_not_fit() -> None:
    blocks = window(40, 40)
    assert (len(blocks), blocks.events) == (2, 80)
    assert not blocks.full(20)
    assert blocks.full(21)


def test_one_block_always_fits_into_an_empty_window() -> None:
    blocks = window()
    assert not blocks.full(1000)
    blocks.add(toy_block(1, 1000), 0.0)
    assert blocks.full(1)


def test_commit_makes_room() -> None:
    blocks = window(10, 20, 30)
    assert blocks.commit([(1, 1), (3, 3)]) == 40
    assert (len(blocks), blocks.events) == (1, 20)
    assert blocks.commit([(2, 2)]) == 20
    assert (len(blocks), blocks.events) == (0, 0)


@pytest.mark.parametrize(
    "intervals", [[], [(4, 9)], [(0, 0)], [(3, 1)], [(9, 1 << 62)], [(1 << 61, 1 << 62)], [(2, 1)], [(0, 0), (7, 7)]]
)
def test_ids_that_are_not_here_do_no_harm(intervals: list[tuple[int, int]]) -> None:
    blocks = window(10, 20, 30)
    assert blocks.commit(intervals) == 0
    assert (len(blocks), blocks.events) == (3, 60)


def test_a_commit_that_comes_twice_counts_once() -> None:
    blocks = window(10, 20, 30)
    assert blocks.commit([(1, 2), (1, 2)]) == 30
    assert blocks.commit([(1, 2)]) == 0
    assert blocks.events == 30


def test_a_commit_of_everything_there_could_be_is_quick() -> None:
    blocks = window(10, 20, 30)
    assert blocks.commit([(0, 1 << 62)]) == 60
    assert len(blocks) == 0


def test_overdue_blocks_get_the_next_attempt_and_a_new_clock() -> None:
    blocks = window(10, 20, 30)  # sent at 1, 2 and 3
    assert blocks.overdue(10.9) == []
    late = blocks.overdue(12.0)
    assert [(block.id, block.attempt) for block in late] == [(1, 2), (2, 2)]
    assert blocks.overdue(12.5) == []
    assert [(block.id, block.attempt) for block in blocks.overdue(13.0)] == [(3, 2)]
    assert [(block.id, block.attempt) for block in blocks.overdue(22.0)] == [(1, 3), (2, 3)]
    assert blocks.events == 60


def test_committed_blocks_are_never_overdue() -> None:
    blocks = window(10, 20)
    blocks.commit([(1, 1)])
    assert [block.id for block in blocks.overdue(1e9)] == [2]


ids = st.integers(0, 30)


@given(st.lists(st.tuples(st.sampled_from(["add", "commit"]), ids, ids)))
def test_window_counts_what_it_holds(steps: list[tuple[str, int, int]]) -> None:
    blocks, plain = Window(100, 10.0), dict[int, int]()
    for what, a, b in steps:
        if what == "add" and a not in plain:
            plain[a] = b + 1
            blocks.add(toy_block(a, b + 1), 0.0)
        elif what == "commit":
            gone = [i for i in plain if a <= i <= b]
            assert blocks.commit([(a, b)]) == sum(plain.pop(i) for i in gone)
        assert (len(blocks), blocks.events) == (len(plain), sum(plain.values()))


# --- The ledger ---


@pytest.mark.parametrize(
    ("fed", "scored", "errors", "in_flight", "closes"),
    [(0, 0, 0, 0, True), (10, 7, 1, 2, True), (10, 7, 1, 1, False), (10, 10, 1, 0, False), (10, 9, 1, 0, True)],
)
def test_ledger_closes_when_every_event_is_accounted_for(
    fed: int, scored: int, errors: int, in_flight: int, closes: bool
) -> None:
    assert Ledger(fed, scored, errors, in_flight).closes is closes
