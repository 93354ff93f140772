"""The books of events and blocks, held against plain sets and sums; the clock is the test's."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.ledger import EARLY_S, QUIET_S, IdSet, Kept, Ledger, Stripes, Window
from streamer.testing import TOY, toy_block

spans = st.tuples(st.integers(0, 60), st.integers(0, 9)).map(lambda pair: (pair[0], sum(pair)))
"""Closed intervals of numbers."""
some_stripes = st.builds(Stripes, st.integers(1, 4), st.integers(1, 9))


def numbers(intervals: object) -> list[int]:
    """The numbers of intervals, in their order."""
    return [i for first, last in intervals for i in range(first, last + 1)]  # type: ignore[attr-defined]


# --- Sequence numbers ---


@given(st.lists(st.integers(0, 40) | st.integers(0, 1 << 62)))
def test_idset_is_a_set(ids: list[int]) -> None:
    ours, plain = IdSet(), set[int]()
    for number in ids:
        assert ours.add(number) == (number not in plain)
        plain.add(number)
    for number in {near for i in plain for near in (i - 1, i, i + 1)} | {-1, 0}:
        assert (number in ours) == (number in plain)
    assert numbers(ours) == sorted(plain)
    assert ours.size == len(plain)


@given(st.lists(spans), spans)
def test_idset_takes_intervals_and_tells_what_is_missing(added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    ours, plain = IdSet(), set[int]()
    for first, last in added:
        new = set(range(first, last + 1)) - plain
        assert ours.add(first, last) == len(new)
        plain |= new
        assert numbers(ours) == sorted(plain)
    assert ours.size == len(plain)
    assert len(ours) == len(list(ours)) == sum(i - 1 not in plain for i in plain)
    missing = ours.missing(*asked)
    assert numbers(missing) == [i for i in range(asked[0], asked[1] + 1) if i not in plain]
    assert all(a[1] + 1 < b[0] for a, b in pairwise(missing)), "no interval is cut in two"
    pieces = [(first, last, inside) for first, last, inside in ours.cut(*asked) if first <= last]
    assert [i in plain for i in range(asked[0], asked[1] + 1)] == [
        inside for first, last, inside in pieces for _ in range(first, last + 1)
    ]
    assert all(a[1] + 1 == b[0] and a[2] != b[2] for a, b in pairwise(pieces)), "each piece is as long as it can be"
    assert list(IdSet(added)) == list(IdSet(reversed(added))) == list(ours)


def test_nothing_is_missing_of_no_numbers() -> None:
    assert IdSet().missing(5, 4) == IdSet([(3, 8)]).missing(5, 4) == []


@given(st.permutations(range(30)))
def test_ids_in_any_order_become_one_interval(ids: list[int]) -> None:
    ours = IdSet()
    for number in ids:
        ours.add(number)
    assert list(ours) == [(0, 29)]


def test_intervals_are_apart_and_in_order() -> None:
    ours = IdSet()
    for number in (7, 3, 1, 9, 2):
        ours.add(number)
    assert list(ours) == [(1, 3), (7, 7), (9, 9)]
    ours.add(8)
    assert list(ours) == [(1, 3), (7, 9)]
    assert (len(ours), ours.size) == (2, 6)


def test_huge_intervals_cost_nothing() -> None:
    ours = IdSet([(0, 1 << 61)])
    assert ours.add(1 << 60, 1 << 62) == 1 << 61
    assert ours.missing(0, (1 << 62) + 1) == [((1 << 62) + 1, (1 << 62) + 1)]


# --- Stripes, and what is kept ---


@given(some_stripes, st.integers(0, 1 << 61))
def test_each_sink_counts_its_own_events_and_finds_them_again(stripes: Stripes, number: int) -> None:
    owner = stripes.owner(number)
    assert 0 <= owner < stripes.n
    assert stripes.to_global(stripes.to_local(number), owner) == number


@given(some_stripes)
def test_a_sink_counts_without_gaps(stripes: Stripes) -> None:
    for owner in range(stripes.n):
        own = [i for i in range(200) if stripes.owner(i) == owner]
        assert [stripes.to_local(i) for i in own] == list(range(len(own)))


def test_events_are_dealt_out_in_turn() -> None:
    assert [Stripes(3, 2).owner(i) for i in range(8)] == [0, 0, 1, 1, 2, 2, 0, 0]
    assert [Stripes(3, 2).to_local(i) for i in range(8)] == [0, 1, 0, 1, 0, 1, 2, 3]
    assert [Stripes(1, 2).to_local(i) for i in range(8)] == list(range(8))


@given(some_stripes, spans)
def test_a_cut_leaves_no_event_out_and_no_piece_with_two_owners(stripes: Stripes, span: tuple[int, int]) -> None:
    pieces = list(stripes.cut(*span))
    assert numbers(pieces) == list(range(span[0], span[1] + 1))
    assert all(len({stripes.owner(i) for i in range(a, b + 1)}) == 1 for a, b in pieces)
    assert all(stripes.room(a) > b - a for a, b in pieces)
    if stripes.n == 1:
        assert pieces == [span]


@given(some_stripes, st.lists(spans), spans)
def test_kept_is_a_set_by_sink(stripes: Stripes, added: list[tuple[int, int]], asked: tuple[int, int]) -> None:
    kept, plain = Kept(stripes), set[int]()
    for first, last in added:
        new = set(range(first, last + 1)) - plain
        assert kept.add(first, last) == len(new)
        plain |= new
    missing = kept.missing(*asked)
    assert numbers(missing) == [i for i in range(asked[0], asked[1] + 1) if i not in plain]
    assert all(a[1] + 1 < b[0] for a, b in pairwise(missing)), "no interval is cut in two"
    for sink in range(stripes.n):
        assert numbers(kept.of(sink)) == sorted(i for i in plain if stripes.owner(i) == sink)
    assert sum(ids.size for ids in kept.sets) == len(plain)


def test_a_sink_that_has_all_its_events_has_one_interval() -> None:
    kept = Kept(Stripes(4, 8))
    kept.add(0, 999)
    assert [len(ids) for ids in kept.sets] == [1] * 4


# --- The window ---


def window(*sizes: int, every: float = 1.0, max_events: int = 100, redeliver_after: float = 1000.0) -> Window:
    """Blocks of these sizes, behind one another from event 100 on, sent at the times 1, 2, 3 ... times `every`."""
    made, first = Window(max_events, redeliver_after), 100
    for time, n_events in enumerate(sizes, 1):
        made.add(toy_block(first, n_events), every * time)
        first += n_events
    return made


def late(blocks: Window, now: float) -> list[tuple[int, int]]:
    """First event and attempt of the blocks that are overdue."""
    return [(block.id, block.attempt) for block in blocks.overdue(now)]


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
    blocks = window(10, 20, 30)  # from 100, 110 and 130
    assert blocks.commit([(100, 109), (130, 159)], 5.0) == 40
    assert (len(blocks), blocks.events) == (1, 20)
    assert blocks.commit([(110, 129)], 5.0) == 20
    assert (len(blocks), blocks.events) == (0, 0)


def test_a_block_is_under_way_until_all_its_events_are_on_disk() -> None:
    blocks = window(10, 20)
    assert blocks.commit([(100, 108), (101, 109), (109, 128)], 5.0) == 0
    assert (len(blocks), blocks.events) == (2, 30)
    assert blocks.commit([(100, 128)], 5.0) == 10
    assert blocks.commit([(110, 129)], 5.0) == 20


@pytest.mark.parametrize(
    "intervals",
    [[], [(160, 900)], [(0, 99)], [(130, 100)], [(160, 1 << 62)], [(1 << 61, 1 << 62)], [(109, 108)], [(0, 0), (7, 7)]],
)
def test_events_that_are_not_here_do_no_harm(intervals: list[tuple[int, int]]) -> None:
    blocks = window(10, 20, 30)
    assert blocks.commit(intervals, 5.0) == 0
    assert (len(blocks), blocks.events) == (3, 60)


def test_a_commit_that_comes_twice_counts_once() -> None:
    blocks = window(10, 20, 30)
    assert blocks.commit([(100, 129), (100, 129)], 5.0) == 30
    assert blocks.commit([(100, 129)], 5.0) == 0
    assert blocks.events == 30


def test_a_commit_of_everything_there_could_be_is_quick() -> None:
    blocks = window(10, 20, 30)
    assert blocks.commit([(0, 1 << 62)], 5.0) == 60
    assert len(blocks) == 0


def test_when_nothing_comes_back_blocks_are_sent_again_with_ever_more_patience() -> None:
    blocks = window(10, 20)  # sent at 1 and 2
    assert late(blocks, 1 + QUIET_S - 0.1) == []
    assert late(blocks, 1 + QUIET_S) == [(100, 2)]
    assert late(blocks, 2 + QUIET_S) == [(110, 2)]
    assert late(blocks, 1 + 3 * QUIET_S - 0.1) == []
    assert late(blocks, 1 + 3 * QUIET_S) == [(100, 3)]
    assert late(blocks, 2 + 3 * QUIET_S) == [(110, 3)]
    assert late(blocks, 1 + 7 * QUIET_S) == [(100, 4)]
    assert blocks.events == 30


def test_patience_ends_with_redeliver_after() -> None:
    blocks = window(10, redeliver_after=12.0)  # sent at 1
    times = []
    for now in range(100):
        times += [now for _ in blocks.overdue(float(now))]
    assert times == [6, 16, 28, 40, 52, 64, 76, 88]  # after 5, 10 and then always 12


def test_redeliver_after_can_be_shorter_than_any_patience() -> None:
    blocks = window(10, redeliver_after=0.5)
    assert late(blocks, 1.4) == []
    assert late(blocks, 1.5) == [(100, 2)]


def test_a_block_that_was_overtaken_is_sent_again_early() -> None:
    blocks = window(10, 20, 30, every=0.25)  # sent at 0.25, 0.5 and 0.75
    blocks.commit([(110, 129)], 0.75)
    assert late(blocks, 0.25 + EARLY_S - 0.1) == []
    assert late(blocks, 0.25 + EARLY_S) == [(100, 2)]
    assert late(blocks, 0.75 + QUIET_S - 0.1) == [], "nothing that was sent later has come"
    assert late(blocks, 0.75 + QUIET_S) == [(130, 2)]


def test_patience_follows_what_blocks_usually_take() -> None:
    blocks = window(10, 20, 30)
    blocks.commit([(110, 129)], 6.0)  # took 4 s
    assert late(blocks, 1 + 3 * 4 - 0.1) == []
    assert late(blocks, 1 + 3 * 4) == [(100, 2)], "overtaken: three times as long"
    assert late(blocks, 3 + 10 * 4 - 0.1) == []
    assert late(blocks, 3 + 10 * 4) == [(130, 2)], "not overtaken: ten times as long"


def test_a_block_that_was_sent_twice_does_not_tell_how_long_blocks_take() -> None:
    blocks = window(10, 10, 10)
    assert [i for i, _ in late(blocks, 7.0)] == [100, 110]
    blocks.commit([(110, 119)], 900.0)  # sent at 7; nobody knows which attempt came through
    blocks.add(toy_block(200, 10), 901.0)
    assert (200, 2) in late(blocks, 901 + QUIET_S), "900 s are not usual"


def test_a_sink_that_has_begun_anew_puts_its_own_blocks_in_doubt() -> None:
    blocks = Window(100, 1000.0)
    for first in (0, 10, 20, 30):
        blocks.add(toy_block(first, 10), 50.0)
    blocks.doubt(1, Stripes(2, 10))
    assert late(blocks, 50.0) == [(10, 2), (30, 2)]
    assert late(blocks, 50.0 + QUIET_S) == [(0, 2), (20, 2)]


def test_a_block_in_doubt_that_comes_to_disk_after_all_overtakes_nobody() -> None:
    blocks = window(10, 10)
    blocks.doubt(0, Stripes())
    assert blocks.commit([(110, 119)], 3.0) == 10
    assert late(blocks, 3.0) == [(100, 2)]
    blocks.add(toy_block(300, 10), 3.0)
    assert late(blocks, 3.0 + QUIET_S - 0.1) == []
    assert late(blocks, 3.0 + QUIET_S) == [(300, 2)]


def attempts(blocks: Window, now: float = 50.0) -> list[tuple[int, int, bool]]:
    return [(block.id, block.n_events, block.alone) for block in blocks.overdue(now)]


def test_blocks_that_a_process_died_near_travel_alone() -> None:
    blocks = window(10, 10, 10)
    assert blocks.died([(100, 119)], TOY) == []
    assert attempts(blocks, 0.0) == [(100, 10, True), (110, 10, True)]


def test_a_block_that_kills_alone_is_split_and_an_event_that_kills_twice_alone_is_poison() -> None:
    blocks = window(4, 4)
    for _ in range(2):
        assert blocks.died([(100, 103)], TOY) == []
    assert attempts(blocks, 0.0) == [(100, 1, True), (101, 1, True), (102, 1, True), (103, 1, True)]
    assert (len(blocks), blocks.events) == (5, 8)
    assert blocks.died([(102, 102)], TOY) == []
    assert attempts(blocks, 0.0) == [(102, 1, True)]
    (poison,) = blocks.died([(102, 102)], TOY)
    assert poison.id == 102
    assert poison.columns["event"].tolist() == [2]
    blocks.replace(poison.with_columns({"event": poison.columns["event"] + 7}))
    assert [block.columns["event"].tolist() for block in blocks.overdue(0.0)] == [[9]]
    blocks.commit([(100, 107)], 1.0)
    assert (len(blocks), blocks.events) == (0, 0)


def test_a_death_at_an_older_cut_of_the_block_is_nobodys_fault() -> None:
    blocks = window(4)
    for _ in range(2):
        blocks.died([(100, 103)], TOY)
    for _ in range(5):
        assert blocks.died([(100, 103)], TOY) == []


def test_a_death_at_work_that_is_done_is_forgotten() -> None:
    blocks = window(4)
    assert blocks.died([(0, 50)], TOY) == []
    assert attempts(blocks, 1.0) == []


def test_committed_blocks_are_never_overdue() -> None:
    blocks = window(10, 20)
    blocks.commit([(100, 109)], 1.5)
    assert late(blocks, 1e9) == [(110, 2)]


starts = st.integers(0, 30).map(lambda i: 10 * i)


@given(st.lists(st.tuples(st.sampled_from(["add", "commit"]), starts, st.integers(0, 300))))
def test_window_counts_what_it_holds(steps: list[tuple[str, int, int]]) -> None:
    blocks, plain = Window(100, 10.0), dict[int, int]()
    for what, a, b in steps:
        if what == "add" and a not in plain:
            plain[a] = b % 10 + 1
            blocks.add(toy_block(a, plain[a]), 0.0)
        elif what == "commit":
            gone = [i for i, n in plain.items() if a <= i and i + n - 1 <= b]
            assert blocks.commit([(a, b)], 1.0) == sum(plain.pop(i) for i in gone)
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
    with_others = Ledger(fed + 5, scored, errors, in_flight, dropped=2, shed=3, late=min(1, scored))
    assert with_others.closes is closes
    assert with_others.in_time == scored - min(1, scored)
