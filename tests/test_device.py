"""Queues that share a device: whose turn it is. The clock is the test's, costs are known."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.batcher import Batch, Batcher, DeadlineBatcher, Shed
from streamer.costs import Costs
from streamer.device import TURN_AFTER, Device
from streamer.rehearsal import Seconds, poisson, rehearse_together

# Microseconds.
COSTS = {
    "eg": {1: 200.0, 2: 300.0, 4: 500.0, 8: 900.0},
    "jet": {1: 2000.0, 2: 3000.0, 4: 5000.0, 8: 9000.0},
}

# What is done at a time [us], and what must come of it. An addition is a queue, a key and its items' deadlines.
BOTH_AT_ONCE = [(0, ("jet", "j", [9400] * 8)), (0, ("eg", "e", [3000] * 4))]
TABLE = [
    ("nothing waits", {}, [(0, "ask", None)]),
    ("who has waited longest comes first, and takes what it has", {},
     [(0, ("jet", "j", [99_000] * 2)), (1, ("eg", "e", [50_000])), (1, "ask", "jet idle: j0-2"),
      (3001, "ask", "eg idle: e0-1"), (3201, "ask", None)]),
    ("also without deadlines", {},
     [(0, ("jet", "j", None)), (1, ("eg", "e", None)), (2, ("jet", "k", None)), (3, "ask", "jet idle: j0-1 k0-1"),
      (3003, "ask", "eg idle: e0-1")]),
    ("just in time, one after the other", {},
     [(0, ("jet", "j", [99_000] * 8)), (1, ("eg", "e", [9201])), (1, "ask", "jet full: j0-8"),
      (9001, "ask", "eg idle: e0-1")]),
    ("a microsecond less: who must begin first comes first", {},
     [(0, ("jet", "j", [99_000] * 8)), (1, ("eg", "e", [9200])), (1, "ask", "eg idle: e0-1"),
      (201, "ask", "jet full: j0-8")]),
    ("too late for sure", {},
     [(0, ("jet", "j", [1999])), (0, ("eg", "e", [200])), (0, "ask", "jet shed: j0-1"), (0, "ask", "eg idle: e0-1")]),
    ("a batch is cut for another queue, at no loss", {},
     [(0, ("jet", "j", [5000] + [20_000] * 3)), (0, ("eg", "e", [4000] * 4)), (0, "ask", "jet deadline: j0-2"),
      (3000, "ask", "eg idle: e0-4"), (3500, "ask", "jet idle: j2-4")]),
    ("it is not, where that would cost more", {},
     [*BOTH_AT_ONCE, (0, "ask", "jet full: j0-8"), (9000, "ask", "eg shed: e0-4")]),
    ("a lower priority runs for as long as a higher one can wait", {"eg": 1},
     [*BOTH_AT_ONCE, (0, "ask", "jet deadline: j0-1"), (2000, "ask", "eg idle: e0-4")]),
    ("and a higher one waits for nobody", {"jet": 1},
     [*BOTH_AT_ONCE, (0, "ask", "jet full: j0-8"), (9000, "ask", "eg shed: e0-4")]),
    ("when nothing waits any more, age decides again", {},
     [(0, ("jet", "j", [99_000] * 8)), (1, ("eg", "e", [9200])), (1, "ask", "eg idle: e0-1"),
      (201, "ask", "jet full: j0-8"), (9201, "ask", None), (9300, ("jet", "k", [99_000])),
      (9301, ("eg", "f", [50_000])), (9301, "ask", "jet idle: k0-1")]),
    ("alone even then", {},
     [(0, ("jet", "j", [90_000])), (0, ("jet", "k", [80_000], "alone")), (1, ("eg", "e", [90_000])),
      (1, "ask", "jet alone: k0-1"), (2001, "ask", "jet idle: j0-1")]),
]  # fmt: skip


def device_of(costs: dict[str, dict[int, float]], priorities: dict[str, int]) -> Device[object]:
    device: Device[object] = Device()
    for queue, seconds in costs.items():
        device.put(queue, DeadlineBatcher(Costs(seconds)), priorities.get(queue, 0))
    return device


def told(decision: object) -> object:
    if not isinstance(decision, tuple):
        return decision
    queue, what = decision
    assert what.size == sum(part.size for part in what.parts)
    reason = what.reason if isinstance(what, Batch) else "shed"
    return f"{queue} {reason}: " + " ".join(f"{part.key}{part.start}-{part.stop}" for part in what.parts)


@pytest.mark.parametrize(("priorities", "steps"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_arrivals_lead_to_decisions(priorities: dict[str, int], steps: list[tuple[float, object, object]]) -> None:
    device = device_of(COSTS, priorities)
    for step in steps:
        now, what = step[:2]
        if isinstance(what, tuple):
            queue, key, deadlines, *alone = what
            made = np.array(deadlines, float) if deadlines else None
            device[queue].add(key, len(deadlines or [0]), now, deadlines=made, alone=bool(alone))
        else:
            assert told(device.next(now)) == step[2]


# --- Whatever comes ---


@dataclass
class Streams:
    """Queues with their costs, priorities, and how long after its arrival each item has its deadline; what comes: at a
    time, to a queue, so many items."""

    costs: dict[str, dict[int, float]]
    priorities: dict[str, int]
    within: dict[str, float]
    coming: list[tuple[float, str, int]]


@st.composite
def streams(draw: st.DrawFn) -> Streams:
    names = ["a", "b", "c"][: draw(st.integers(2, 3))]
    costs: dict[str, dict[int, float]] = {}
    for name in names:
        fixed, each = draw(st.floats(0.01, 3)), draw(st.floats(0, 1))
        sizes = draw(st.sampled_from([[1], [1, 2, 4], [1, 3, 8], [1, 2, 3, 4, 5], [4]]))
        costs[name] = {size: fixed + each * size for size in sizes}
    priorities = {name: draw(st.integers(0, 1)) for name in names}
    within = {name: draw(st.floats(0, 20) | st.just(math.inf)) for name in names}
    coming, now = [], 0.0
    for gap, name, n in draw(st.lists(st.tuples(st.floats(0, 3), st.sampled_from(names), st.integers(1, 9)))):
        now += gap
        coming.append((now, name, n))
    return Streams(costs, priorities, within, coming)


@dataclass
class Played:
    """When each item was answered, and which were given up."""

    answered: dict[tuple[str, int, int], float] = field(default_factory=dict)
    shed: set[tuple[str, int, int]] = field(default_factory=set)


Decided = tuple[Device[object], str, Batch[object] | Shed[object], float]


def play(given: Streams, played: Played) -> Iterator[Decided]:
    """Every decision and its time, with the device as it is behind it."""
    device, todo, now = device_of(given.costs, given.priorities), [*given.coming], 0.0
    while todo or any(n for _, n in device.waiting()):
        if not any(n for _, n in device.waiting()):
            now = max(now, todo[0][0])
        while todo and todo[0][0] <= now:
            at, queue, n = todo.pop(0)
            device[queue].add(len(todo), n, at, deadlines=np.full(n, at + given.within[queue]))
        decision = device.next(now)
        assert isinstance(decision, tuple), "a free device waits though something could be done"
        queue, what = decision
        items = [(queue, int(part.key), i) for part in what.parts for i in range(part.start, part.stop)]  # type: ignore[call-overload]
        assert len(set(items)) == what.size >= 1
        assert not {*items} & (played.answered.keys() | played.shed), "answered twice"
        begin = now
        if isinstance(what, Batch):
            now += Costs(given.costs[queue]).of(what.size)
            played.answered |= dict.fromkeys(items, now)
        else:
            played.shed |= {*items}
        yield device, queue, what, begin


@given(streams())
def test_every_item_is_answered_in_time_or_given_up_and_once(given: Streams) -> None:
    played = Played()
    for _ in play(given, played):
        pass
    n_come = len(given.coming)
    come = {(name, n_come - 1 - k, i): at for k, (at, name, n) in enumerate(given.coming) for i in range(n)}
    assert played.answered.keys() | played.shed == come.keys()
    for item, at in played.answered.items():
        assert at <= (come[item] + given.within[item[0]]) * (1 + 1e-9), "paid for, and too late"


def greedy_answers_all(given: Streams) -> bool:
    """Whether firing whatever waits in the queue that has waited longest answers every item in time."""
    todo, now = [*given.coming], 0.0
    waiting: dict[str, list[float]] = {name: [] for name in given.costs}
    while todo or any(waiting.values()):
        if not any(waiting.values()):
            now = max(now, todo[0][0])
        while todo and todo[0][0] <= now:
            at, name, n = todo.pop(0)
            waiting[name] += [at] * n
        name = min((name for name in waiting if waiting[name]), key=lambda name: waiting[name][0])
        costs = Costs(given.costs[name])
        n = min(len(waiting[name]), costs.max_batch)
        now += costs.of(n)
        if any(now > at + given.within[name] for at in waiting[name][:n]):
            return False
        del waiting[name][:n]
    return True


@given(streams())
def test_nobody_is_shed_whom_firing_whatever_waits_would_have_answered(given: Streams) -> None:
    if any(isinstance(what, Shed) for _, _, what, _ in play(given, Played())):
        assert not greedy_answers_all(given)


@given(streams())
def test_a_queue_holds_no_more_than_comes_within_a_deadline(given: Streams) -> None:
    for device, _, _, now in play(given, Played()):
        device.expired(now)
        for name, n in device.waiting():
            since = now - given.within[name]
            assert n <= sum(m for at, queue, m in given.coming if queue == name and since <= at <= now)


@given(streams())
def test_no_queue_is_passed_over_for_longer_than_its_turn_takes_to_come(given: Streams) -> None:
    """Who came earlier may be served first, and so may others for `TURN_AFTER` of their longest batches."""
    full = {name: max(costs.values()) for name, costs in given.costs.items()}
    passed = dict.fromkeys(full, 0.0)
    for device, queue, what, _ in play(given, Played()):
        if isinstance(what, Shed):
            continue
        mine = Costs(given.costs[queue]).of(what.size)
        for name, n in device.waiting():
            younger = min(part.key for part in what.parts) < device[name]._queue[0].key if n else False  # type: ignore
            if name != queue and n and younger:
                passed[name] += mine
                longest = max(seconds for other, seconds in full.items() if other != name)
                assert passed[name] <= TURN_AFTER * longest + len(full) * max(full.values())
        passed[queue] = 0.0


@given(streams())
def test_a_queue_that_is_alone_is_served_as_by_its_own_batcher(given: Streams) -> None:
    name = "a"
    device, alone = device_of({name: given.costs[name]}, {}), DeadlineBatcher[object](Costs(given.costs[name]))
    now = 0.0
    for key, (at, _, n) in enumerate(given.coming):
        now = max(at, now)
        for batcher in (device[name], alone):
            batcher.add(key, n, at, deadlines=np.full(n, at + given.within[name]))
        while key % 3 and alone.waiting:
            decision = alone.next(now)
            assert device.next(now) == (name, decision)
            now += Costs(given.costs[name]).of(decision.size) if isinstance(decision, Batch) else 0.0


def test_queues_without_deadlines_are_asked_in_the_order_of_their_age() -> None:
    device: Device[str] = Device()
    device.put("wide", Batcher(4, 10.0))
    device.put("narrow", Batcher(2, 10.0))
    device["wide"].add("a", 2, 0.0)
    assert device.next(1.0) == 10.0
    device["narrow"].add("b", 2, 1.0)
    assert told(device.next(1.0)) == "narrow full: b0-2"
    device["narrow"].add("c", 1, 2.0)
    assert device.next(2.0) == 10.0
    assert told(device.next(12.0)) == "wide max_wait: a0-2"
    assert told(device.next(2.0, draining=True)) == "narrow drain: c0-1"
    assert device.next(12.0) is None
    device.drop("narrow")
    assert "narrow" not in device
    assert "wide" in device


# --- Two networks: E/Gamma, and one of jets that costs ten times as much a crop ---

LINES = {"eg": 1e-4, "jet": 1e-3}


class Apart(Device[int]):
    """The batchers know nothing of each other; who is most urgent is asked first."""

    def next(self, now: float, *, draining: bool = False) -> tuple[str, Batch[int] | Shed[int]] | float | None:
        return self._by_age(now, draining)


def costs_of(name: str) -> Costs:
    return Costs({n: LINES[name] * (1 + n) for n in range(1, 65)})


def arrivals(loads: dict[str, float], seconds: float) -> dict[str, Seconds]:
    random = np.random.default_rng(1)
    return {name: poisson(load * costs_of(name).peak, seconds, random) for name, load in loads.items()}


def in_time(device: Device[int], come: dict[str, Seconds], within: float, high: str = "") -> dict[str, float]:
    """The share of each queue's items that is answered in time."""
    for name in come:
        device.put(name, DeadlineBatcher(costs_of(name)), int(name == high))
    due = {name: at + within for name, at in come.items()}
    answered = rehearse_together(device, come, due, {name: costs_of(name) for name in come})
    return {name: float(np.mean(answered[name] <= due[name])) for name in come}


@pytest.mark.parametrize("within", [0.02, 0.05, 0.1])
@pytest.mark.parametrize("load", [0.8, 1.2, 1.5])
def test_together_they_answer_more_than_apart(load: float, within: float) -> None:
    come = arrivals({"eg": load / 2, "jet": load / 2}, 2.0)
    together, apart = in_time(Device(), come, within), in_time(Apart(), come, within)
    print(f"load {load:g}, within {within:g} s: apart {apart}, together {together}")
    assert sum(together.values()) >= sum(apart.values()) - 0.01
    if load > 1:
        assert sum(together.values()) >= 1.1 * sum(apart.values())
        assert min(together.values()) >= 1.15 * min(apart.values())
        assert max(together.values()) - min(together.values()) < 0.2, "each loses about as much"


@pytest.mark.parametrize(("flooded", "other"), [("eg", "jet"), ("jet", "eg")])
def test_who_asks_for_less_than_its_part_hardly_loses(flooded: str, other: str) -> None:
    shares = in_time(Device(), arrivals({flooded: 1.2, other: 0.3}, 2.0), 0.05)
    assert shares[other] > 0.95
    assert shares[flooded] > 0.5


@pytest.mark.parametrize("within", [0.02, 0.1])
@pytest.mark.parametrize(("high", "low"), [("eg", "jet"), ("jet", "eg")])
@pytest.mark.parametrize("of_high", [0.5, 0.75, 1.05])
def test_a_higher_priority_hardly_feels_the_others(high: str, low: str, of_high: float, within: float) -> None:
    """At 1.5 times what the device can do; and yet the lower one has its turns. As long as all can be in time, nobody
    is preferred, so that it takes about a deadline until the overload shows."""
    seconds = 2.0
    come = arrivals({high: of_high, low: 1.5 - of_high}, seconds)
    shares, alone = in_time(Device(), come, within, high), in_time(Device(), {high: come[high]}, within)
    assert shares[high] >= alone[high] - within / seconds - 0.03
    assert shares[low] > 0.01


@pytest.mark.parametrize("within", [0.02, math.inf])
def test_below_the_peak_the_queues_do_not_grow(within: float) -> None:
    come = arrivals({"eg": 0.4, "jet": 0.4}, 4.0)
    device: Device[int] = Device()
    for name in come:
        device.put(name, DeadlineBatcher(costs_of(name)))
    due = {name: at + within for name, at in come.items()}
    answered = rehearse_together(device, come, due, {name: costs_of(name) for name in come})
    for name, at in come.items():
        done = np.isfinite(answered[name])
        assert np.max(answered[name][done] - at[done]) < 0.2
        assert np.mean(done) > 0.97
