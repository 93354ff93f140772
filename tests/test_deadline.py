"""Who is shed, and what is learned of the ways; the clock is the test's. And a whole chain in an overload, played."""

import heapq
from collections.abc import Callable
from itertools import count

import numpy as np
import pytest

from streamer.block import SHED, Block, core_columns, failures, has_failed, with_failures
from streamer.config import FeedConfig
from streamer.deadline import (
    MEMORY,
    PROBES,
    UNKNOWN,
    Pace,
    Room,
    Shedder,
    Survey,
    Way,
    taken,
    too_late,
    with_shed,
)
from streamer.feed import Feed
from streamer.testing import TOY, toy_columns

MS = 1_000_000
MARK = 2


def block(*due_ms: float, first: int = 0) -> Block:
    due = (np.array(due_ms) * MS).astype(np.int64)
    columns = core_columns(due) | toy_columns(due.size, first)
    return Block(first, due.size, {name: columns[name] for name in TOY.by_name})


def ready(seconds: float = 0.1) -> Shedder:
    """One that has seen enough."""
    shedder = Shedder(seconds, TOY, MARK)
    for _ in range(PROBES):
        assert shedder.probes
        assert not shedder.shed(block(0.0), 10**15, Way(10**12, 1)).columns["error"].any()
    assert not shedder.probes
    return shedder


@pytest.mark.parametrize(
    ("now", "usual", "shed"),
    [(100, 0, 0), (101, 0, 1), (60, 40, 0), (61, 40, 1), (75, 40, 2), (80, 20, 0), (200, 0, 6), (10, 95, 1)],
)
def test_the_first_events_are_shed_when_they_cannot_make_it(now: int, usual: int, shed: int) -> None:
    """They were due 0, 10, ... 50 ms after the clock began, and have 100 ms."""
    left = ready().shed(block(0, 10, 20, 30, 40, 50), now * MS, Way(usual * MS, 1))
    TOY.check(left.columns, 6)
    assert left.columns["error"].tolist() == [SHED + MARK] * shed + [0] * (6 - shed)
    assert left.columns["event"].tolist() == list(range(6))
    assert left.columns["nHit"].tolist() == [0] * shed + [i % 3 for i in range(shed, 6)]
    assert left.columns["Hit_energy"].tolist() == [i for i in range(shed, 6) for _ in range(i % 3)]


def test_who_has_failed_stays_failed_and_keeps_the_reason() -> None:
    failed = block(0, 10, 20, 30)
    failed = failed.with_columns(with_failures(failed.columns, {1: "broken", 3: "as well"}, 1))
    left = ready().shed(failed, 125 * MS, UNKNOWN).columns
    TOY.check(left, 4)
    assert left["error"].tolist() == [SHED + MARK, 1, SHED + MARK, 1]
    assert failures(left) == {1: "broken", 3: "as well"}
    assert has_failed(left["error"]).tolist() == [False, True, False, True]
    again = with_failures(with_shed(left, np.arange(4), MARK + 1), {0: "no"}, 3)
    assert again["error"].tolist() == left["error"].tolist()


def test_a_pace_follows_what_is_so_at_present_and_is_believed_less_and_less() -> None:
    pace = Pace(0.1)
    assert pace.way(0.0) == UNKNOWN
    for k in range(MEMORY):
        pace.learn(0.05 if k % 4 == 3 else 0.01, 1.0)
    assert pace.way(1.0) == (50 * MS, 10 * MS)
    usual = [pace.way(1.0 + age).usual for age in (0.0125, 0.025, 0.05, 0.1)]
    assert usual == pytest.approx([50 * MS, 25 * MS, 6.25 * MS, 50 * MS / 128], rel=1e-5)
    pace.learn(0.004, 1.3)  # all others are older than two deadlines
    assert pace.way(1.3) == (4 * MS, 4 * MS)
    pace.learn(-1.0, 1.3)
    assert pace.way(1.3).least == 0


def test_a_survey_learns_of_blocks_that_bring_answers_and_came_at_once() -> None:
    survey = Survey(["reader"], 0.1)
    shed = block(0)
    for made in (block(0), shed.with_columns(with_shed(shed.columns, np.array([0]), MARK)), block(0)):
        made.stamps = {"reader": 5 * MS, "somebody": 1}
        survey.learn(made, 9 * MS)
        assert survey.ways(9 * MS)["reader"].usual == 4 * MS
    late = block(0)
    late.stamps, late.attempt = {"reader": -(10**9), taken("reader"): 0}, 2
    survey.learn(late, 9 * MS)
    assert survey.ways(9 * MS) == {"reader": (4 * MS, 0), taken("reader"): UNKNOWN}, "least is told of some blocks only"


def test_room_is_for_what_is_done_within_a_share_of_the_deadline() -> None:
    room = Room(512, 1.6)  # a block waits a tenth of a second at most
    for k in range(10):
        room.learn(10, 0.2, 0.05 * k)  # 200 a second
    assert room.events == 20
    for k in range(100):
        room.learn(10, 0.01, 1.0 + k)
    assert room.events == 512
    room.learn(300, 0.2, 101.0)
    assert room.events == 512, "two blocks, and no more than there is credit for"


def test_who_is_late_was_scored_and_is_over_the_deadline() -> None:
    some = block(0, 10, 20)
    assert too_late(some, 110 * MS, 100 * MS).tolist() == [True, False, False]
    some = some.with_columns(with_shed(some.columns, np.array([0]), MARK))
    assert not too_late(some, 110 * MS, 100 * MS).any()


# --- A chain in an overload

STAGES = ("reader", "framer", "tagger", "writer")
COSTS = {"framer": (0.5e-3, 50e-6), "tagger": (1e-3, 180e-6)}
"""Seconds of a block, and of each event that is worked on."""
DEADLINE_S = 0.1


class Played:
    """A chain of stages with inlets and credits, whose time is the test's; `done` are events by what became of them."""

    def __init__(self, rate: float, seconds: float) -> None:
        config = FeedConfig(rate=rate, arrivals="poisson", deadline=DEADLINE_S, overflow="drop")
        self.feed, self.until, self.now = Feed(config, 0), int(seconds * 1e9), 0
        self.random = np.random.default_rng(1)
        self.survey = Survey(STAGES[:-1], DEADLINE_S)
        self.shedders = {stage: Shedder(DEADLINE_S, TOY, k + 2) for k, stage in enumerate(COSTS)}
        self.rooms = {stage: Room(512, DEADLINE_S) for stage in COSTS}
        self.held, self.queues = dict.fromkeys(COSTS, 0), {stage: list[Block]() for stage in COSTS}
        self.busy = dict.fromkeys(COSTS, False)
        self.stuck: list[Callable[[], None]] = []
        self.done = {"in time": 0, "late": 0, "shed": 0, "dropped": 0, "fed": 0}
        self._coming: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()
        self.feed_next()
        while self._coming:
            self.now, _, what = heapq.heappop(self._coming)
            what()

    def at(self, when: int, what: Callable[[], None]) -> None:
        heapq.heappush(self._coming, (when, next(self._order), what))

    def feed_next(self) -> None:
        if self.now < self.until:
            due = self.feed.next(256, self.now, 0.05)
            self.at(max(self.now, int(due[-1])), lambda: self.fed(due))

    def fed(self, due: np.ndarray) -> None:
        self.done["fed"] += due.size
        if self.has_room("framer"):
            made = Block(0, due.size, {**TOY.empty(due.size), **core_columns(due)}, stamps={"reader": self.now})
            self.arrive("framer", made)
        else:
            self.done["dropped"] += due.size
        self.feed_next()

    def has_room(self, stage: str) -> bool:
        return stage == "writer" or self.held[stage] < self.rooms[stage].events

    def arrive(self, stage: str, came: Block) -> None:
        came.stamps["arrived"] = self.now
        if stage == "writer":
            self.write(came)
            return
        self.held[stage] += came.n_events
        self.queues[stage].append(came)
        self.work(stage)

    def work(self, stage: str) -> None:
        if self.busy[stage] or not self.queues[stage]:
            return
        self.busy[stage] = True
        came = self.queues[stage].pop(0)
        waited = (self.now - came.stamps["arrived"]) * 1e-9
        came.stamps[taken(stage)] = self.now
        came = self.shedders[stage].shed(came, self.now, self.survey.ways(self.now)[taken(stage)])
        once, each = COSTS[stage]
        seconds = (once + each * np.count_nonzero(came.columns["error"] == 0)) * self.random.lognormal(0, 0.2)
        self.at(self.now + int(seconds * 1e9), lambda: self.leave(stage, came, waited))

    def leave(self, stage: str, came: Block, waited: float) -> None:
        following = STAGES[STAGES.index(stage) + 1]
        if not self.has_room(following):
            self.stuck.append(lambda: self.leave(stage, came, waited))
            return
        came.stamps[stage] = self.now
        self.rooms[stage].learn(came.n_events, waited, self.now * 1e-9)
        self.held[stage] -= came.n_events
        self.busy[stage] = False
        self.arrive(following, came)
        self.work(stage)
        stuck, self.stuck = self.stuck, []
        for again in stuck:
            again()

    def write(self, came: Block) -> None:
        n_late = np.count_nonzero(too_late(came, self.now, int(DEADLINE_S * 1e9)))
        n_shed = np.count_nonzero(came.columns["error"])
        self.done["late"] += n_late
        self.done["shed"] += n_shed
        self.done["in time"] += came.n_events - n_late - n_shed
        self.survey.learn(came, self.now)


@pytest.mark.parametrize("load", [0.7, 1.5, 3.0])
def test_in_an_overload_as_many_are_answered_in_time_as_the_chain_can_do(load: float) -> None:
    capacity = 5000.0  # of the tagger, in blocks of some dozens
    done = Played(load * capacity, 4.0).done
    assert done["fed"] == done["in time"] + done["late"] + done["shed"] + done["dropped"]
    assert done["in time"] > 0.85 * min(done["fed"], 4.0 * capacity)
    assert done["late"] < 0.03 * done["in time"]
