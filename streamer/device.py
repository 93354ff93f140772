"""Several batchers share a device: whose turn it is, and how large a batch may be. Pure: time is injected."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from streamer.batcher import Batch, Batcher, DeadlineBatcher, Shed

TURN_AFTER = 16
"""A queue with work has its turn when others had the device for as long as so many of their longest batches take."""
FAIRNESS = 16.0
"""One in a hundred lost, by a queue that had less than its part, counts as so many hundredths of a deadline."""
MEMORY = 16.0
"""What was lost is forgotten within about so many deadlines, and who had the device within so many full batches."""

K = TypeVar("K")


@dataclass(slots=True)
class _Timed(Generic[K]):
    """A queue under deadlines, and what it had of the device."""

    name: str
    batcher: DeadlineBatcher[K]
    priority: int
    passed: float = 0.0
    """Seconds that others had since its last batch, while it had work."""
    used: float = 0.0
    """Of the device's time of late, the share that it had."""
    answered: float = 0.0
    lost: float = 0.0
    at: float = -math.inf

    @property
    def full(self) -> float:
        """Seconds of a full batch."""
        return self.batcher.costs.of(self.batcher.max_batch)

    @property
    def losses(self) -> float:
        """Of what was decided of late, the share that was given up."""
        return self.lost / (self.lost + self.answered) if self.lost else 0.0

    def load(self, now: float) -> float:
        """What it asks of the device, as a share of its time."""
        return self.batcher.rate(now) / self.batcher.costs.peak

    def book(self, decision: Batch[K] | Shed[K], now: float) -> None:
        """Count what was decided."""
        left = math.exp(-max(now - self.at, 0.0) / (MEMORY * max(self.batcher.within, self.full)))
        self.at = now
        self.answered *= left
        self.lost *= left
        if isinstance(decision, Batch):
            self.answered += decision.size
        else:
            self.lost += decision.size


class Device(Generic[K]):
    """The batchers of one device.

    As long as all can be in time, who has waited longest comes first, and takes whatever it has (`DeadlineBatcher`).
    When that would make somebody late, and from then on until nothing waits:

    - who must begin first comes first; a queue that loses more although it had less than its part comes before;
    - what the others ask of the device is part of the price of its time;
    - a batch is cut when that answers more of another queue than it costs;
    - a queue of lower priority runs only for as long as those of higher priority can wait;
    - and yet it has its turn when others had the device for too long (`TURN_AFTER`).

    A batcher that is alone decides for itself. Of those without deadlines, the one whose oldest item has waited longest
    is asked first.
    """

    def __init__(self) -> None:
        self._batchers: dict[str, Batcher[K]] = {}
        self._timed: dict[str, _Timed[K]] = {}
        self._strained = False

    def put(self, name: str, batcher: Batcher[K], priority: int = 0) -> None:
        """One more queue. Where not all can be in time, higher priorities come first."""
        self._batchers[name] = batcher
        if isinstance(batcher, DeadlineBatcher):
            self._timed[name] = _Timed(name, batcher, priority)

    def drop(self, name: str) -> None:
        """A queue that is gone."""
        self._batchers.pop(name, None)
        self._timed.pop(name, None)

    def __contains__(self, name: str) -> bool:
        return name in self._batchers

    def __getitem__(self, name: str) -> Batcher[K]:
        return self._batchers[name]

    def waiting(self) -> Iterator[tuple[str, int]]:
        """Items that wait, by queue."""
        return ((name, batcher.waiting) for name, batcher in self._batchers.items())

    @property
    def last_begin(self) -> float:
        """When work must begin for the first item of all to be in time."""
        return min((queue.batcher.last_begin for queue in self._timed.values()), default=math.inf)

    def expired(self, now: float) -> list[tuple[str, Shed[K]]]:
        """What could not make it even if it were worked on now and alone, by queue."""
        found = []
        for queue in self._timed.values():
            if shed := queue.batcher.expired(now):
                queue.book(shed, now)
                found.append((queue.name, shed))
        return found

    def next(self, now: float, *, draining: bool = False) -> tuple[str, Batch[K] | Shed[K]] | float | None:
        """What to do now that the device is free: work on a batch, or give up items, each of one queue; or wait.

        A number says when to ask again; None: when something was added.
        """
        if len(self._batchers) == 1 or len(self._timed) < len(self._batchers):
            return self._by_age(now, draining)
        ready = [queue for queue in self._timed.values() if queue.batcher.waiting]
        if not ready:
            self._strained = False
            return None
        for queue in ready:
            if shed := queue.batcher.expired(now):
                return self._booked(queue, shed, now)
        if not self._strained:
            ready.sort(key=lambda queue: queue.batcher.since)
            if self._all_make_it(ready, now):
                return self._ask(ready[0], now)
            self._strained = True
        return self._by_need(ready, now)

    def _by_age(self, now: float, draining: bool) -> tuple[str, Batch[K] | Shed[K]] | float | None:
        """The first that has something to do."""
        queues = [pair for pair in self._batchers.items() if pair[1].waiting]
        if len(queues) > 1:
            queues.sort(key=lambda pair: pair[1].urgency)
        wake = math.inf
        for name, batcher in queues:
            decision = batcher.next(now, draining=draining)
            if isinstance(decision, (Batch, Shed)):
                return name, decision
            wake = wake if decision is None else min(wake, decision)
        return None if wake == math.inf else wake

    def _all_make_it(self, ready: list[_Timed[K]], now: float) -> bool:
        """Whether each queue's first item is in time when one after the other takes whatever it has."""
        for queue in ready:
            batcher = queue.batcher
            now += batcher.costs.of(min(batcher.waiting, batcher.max_batch))
            if now > batcher.due:
                return False
        return True

    def _by_need(self, ready: list[_Timed[K]], now: float) -> tuple[str, Batch[K] | Shed[K]]:
        """Not all can be in time."""
        overdue = max(ready, key=lambda queue: queue.passed / self._full_of_others(queue))
        if overdue.passed >= TURN_AFTER * self._full_of_others(overdue):
            costs = overdue.batcher.costs
            seconds = min(self._leave(overdue, now), self._full_of_others(overdue))
            return self._ask(overdue, now, costs.most(seconds) or costs.sizes[0])
        part = sum(queue.used for queue in self._timed.values()) / len(ready)

        def need(queue: _Timed[K]) -> float:
            batcher = queue.batcher
            begin = batcher.due - batcher.costs.of(min(batcher.waiting, batcher.costs.best))
            wronged = queue.losses > 0.0 and queue.used < part and batcher.within < math.inf
            return begin - FAIRNESS * batcher.within * queue.losses if wronged else begin

        ready.sort(key=need)
        for queue in ready:
            seconds = self._leave(queue, now)
            if most := queue.batcher.max_batch if seconds == math.inf else queue.batcher.costs.most(seconds):
                return self._ask(queue, now, self._cut(queue, ready, now, most))
        first = max(ready, key=lambda queue: queue.priority)  # those whose leave it would need have nothing to do
        return self._ask(first, now, first.batcher.costs.sizes[0])

    def _full_of_others(self, one: _Timed[K]) -> float:
        """Seconds of the others' longest batch."""
        return max(queue.full for queue in self._timed.values() if queue is not one)

    def _leave(self, one: _Timed[K], now: float) -> float:
        """For how long the device may be taken from those of higher priority: until their first items, together with
        what will probably have come by then, must begin."""
        limit = math.inf
        for queue in self._timed.values():
            if queue.priority <= one.priority:
                continue
            batcher, rate = queue.batcher, queue.batcher.rate(now)
            slack = batcher.due - now if batcher.waiting else batcher.within
            if slack == math.inf or not (batcher.waiting or rate * slack > 0.5):
                continue
            wait = max(0.0, slack - batcher.costs.of(max(1, min(batcher.waiting, batcher.max_batch))))
            n = batcher.waiting + math.ceil(rate * wait + 2.0 * math.sqrt(rate * wait))
            limit = min(limit, slack - batcher.costs.of(max(1, min(n, batcher.max_batch))))
        return limit

    def _cut(self, one: _Timed[K], ready: list[_Timed[K]], now: float, most: int) -> int:
        """The most items of a batch: fewer, where that answers more of what waits in queues of the same priority.

        What is answered or lost counts as much as the time that it takes in the best batch, less the price of that
        time, which is the load. In a lasting overload nothing is cut.
        """
        costs, load = one.batcher.costs, sum(queue.load(now) for queue in self._timed.values())
        n = min(one.batcher.waiting, most, costs.best)
        end = now + costs.of(n)
        others = (queue.batcher for queue in ready if queue is not one and queue.priority == one.priority)
        late = [other for other in others if other.last_begin < end]
        if not late or load >= 1.0 or end > one.batcher.due:
            return most
        small = costs.most(min(other.last_begin for other in late) - now)
        if not 0 < small < n:
            return most
        then, saved = now + costs.of(small), 0.0
        for other in late:
            k = min(other.waiting, other.costs.most(other.due - then))
            saved += min(k, other.n_before(end + other.costs.of(1))) / other.costs.peak
            then += other.costs.of(k) if k else 0.0
        longer = costs.of(small) + costs.of(n - small) - costs.of(n)
        lost = max(0, min(n, one.batcher.n_before(then + costs.of(n - small))) - small) / costs.peak
        return small if (1.0 - load) * (saved - lost) > load * longer else most

    def _ask(self, queue: _Timed[K], now: float, most: int = 0) -> tuple[str, Batch[K] | Shed[K]]:
        others = (other for other in self._timed.values() if other is not queue)
        load = sum(other.load(now) for other in others) if self._strained else 0.0
        decision = queue.batcher.next(now, most=most, load=load)
        assert isinstance(decision, Batch | Shed), "what is under deadlines never waits for a free device"
        return self._booked(queue, decision, now)

    def _booked(self, queue: _Timed[K], decision: Batch[K] | Shed[K], now: float) -> tuple[str, Batch[K] | Shed[K]]:
        queue.book(decision, now)
        if isinstance(decision, Batch):
            took = queue.batcher.costs.of(decision.size)
            left = math.exp(-took / (MEMORY * max(other.full for other in self._timed.values())))
            for other in self._timed.values():
                other.used *= left
                if other.batcher.waiting:
                    other.passed += took
            queue.used += 1.0 - left
            queue.passed = 0.0
        return queue.name, decision
