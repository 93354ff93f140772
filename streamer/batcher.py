"""When to close a batch, and what to shed. Pure: no clock, no thread, no model; time is injected."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Generic, NamedTuple, TypeVar

import numpy as np

from streamer.block import Array
from streamer.costs import Costs

REASONS = ("full", "deadline", "idle", "max_wait", "drain", "alone")
"""Why a batch was closed; the label values of `streamer_batch_closed_total`."""

RATE_WINDOW = 32
"""The rate of arrivals is that of about so many full batches."""
LOOK_AHEAD = 4
"""So many full batches are looked at when it is decided whom to shed."""

K = TypeVar("K")


class Part(NamedTuple, Generic[K]):
    """The items `start` to `stop` of what was added under `key`."""

    key: K
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


class Batch(NamedTuple, Generic[K]):
    """Items that are worked on together, and why no more were waited for."""

    parts: list[Part[K]]
    size: int
    reason: str


class Shed(NamedTuple, Generic[K]):
    """Items that are not worked on: they could not be done in time any more, or at the cost of more others."""

    parts: list[Part[K]]
    size: int


@dataclass(slots=True)
class _Waiting(Generic[K]):
    key: K
    start: int
    stop: int
    since: float
    alone: bool
    deadlines: Array | None = None

    @property
    def timed(self) -> bool:
        return self.deadlines is not None

    @property
    def due(self) -> float:
        """Deadline of the first item that is left; of all of them the earliest."""
        return math.inf if self.deadlines is None else float(self.deadlines[self.start])

    @property
    def last_due(self) -> float:
        """Of the last item."""
        return math.inf if self.deadlines is None else float(self.deadlines[self.stop - 1])

    @property
    def left(self) -> Array:
        """Deadlines of the items that are left."""
        n = self.stop - self.start
        return np.full(n, math.inf) if self.deadlines is None else self.deadlines[self.start : self.stop]

    def take(self, n: int) -> Part[K]:
        self.start += n
        return Part(self.key, self.start - n, self.start)


class Batcher(Generic[K]):
    """First come, first served batches of at most `max_batch` items.

    A batch is closed when it is full, when its oldest item has waited `max_wait` seconds, or when nothing more
    will come. Items of one key may be split over batches; they stay in order. Items that are to be alone share no
    batch with those of other keys.

    Parameters
    ----------
    max_batch : int
    max_wait : float
        Seconds.
    """

    def __init__(self, max_batch: int, max_wait: float) -> None:
        self.max_batch, self.max_wait = max_batch, max_wait
        self.waiting = 0
        self._queue: deque[_Waiting[K]] = deque()

    def add(self, key: K, n_items: int, now: float, *, deadlines: Array | None = None, alone: bool = False) -> None:
        """Queue `n_items` (at least one) under `key`."""
        self._put(_Waiting(key, 0, n_items, now, alone, deadlines))

    def _put(self, item: _Waiting[K]) -> None:
        self._queue.append(item)
        self.waiting += item.stop

    @property
    def since(self) -> float:
        """Since when the first item waits."""
        return self._queue[0].since if self._queue else math.inf

    @property
    def urgency(self) -> tuple[float, float]:
        """Of several batchers that share a device, who has the least comes first: when work must begin for the first
        item to be in time, and since when it waits."""
        return math.inf, self.since

    def expired(self, now: float) -> Shed[K] | None:
        """Items that could not make it even if they were worked on now and alone."""
        return None

    def next(self, now: float, *, draining: bool = False) -> Batch[K] | Shed[K] | float | None:
        """What to do now that the device is free: work on a batch, give up items, or wait.

        A number says when to ask again; None: when something was added.
        """
        if not self.waiting:
            return None
        due = self._queue[0].since + self.max_wait
        if self._queue[0].alone:
            return self._close("alone", self.max_batch)
        if self.waiting >= self.max_batch:
            return self._close("full", self.max_batch)
        if now >= due:
            return self._close("max_wait", self.max_batch)
        if draining:
            return self._close("drain", self.max_batch)
        return due

    def _close(self, reason: str, most: int) -> Batch[K]:
        parts: list[Part[K]] = []
        left, was_alone = most, False
        while self._queue and left:
            head = self._queue[0]
            if parts and (head.alone or was_alone):
                break
            n = min(head.stop - head.start, left)
            parts.append(head.take(n))
            left -= n
            if head.start == head.stop:
                self._queue.popleft()
            was_alone = head.alone
        self.waiting -= most - left
        return Batch(parts, most - left, reason)


class DeadlineBatcher(Batcher[K]):
    """Batches that answer as many items as possible before their deadlines; earliest deadline first.

    A free device never waits: it takes whatever is there, so that batches are small when the stream is thin and grow by
    themselves with the load, as more comes while one is worked on. Who can no longer make it is shed. When not
    all that wait can make it, either a smaller batch saves the first ones, or they are shed for the sake of a larger
    batch: what answers more, at the price of the device's time (`docs/batching.md`). From then on, and until all that
    wait fit into one batch, no batch is larger than the size that does the most items a second.

    Items without deadlines are never shed, and those that come later do not pass them.

    Parameters
    ----------
    costs : Costs
        Of the network; also says which batches can be run.

    Attributes
    ----------
    within : float
        How long after its arrival the newest item has its deadline [s].
    """

    def __init__(self, costs: Costs) -> None:
        super().__init__(costs.max_batch, 0.0)
        self.costs = costs
        self.within = math.inf
        self._rate, self._rate_at = 0.0, -math.inf
        self._strained = False  # since some could not make it in the batch that they would have been in

    def _put(self, item: _Waiting[K]) -> None:
        window = RATE_WINDOW * self.costs.of(self.max_batch)
        elapsed = max(item.since - self._rate_at, 0.0)
        self._rate = self._rate * math.exp(-elapsed / window) + item.stop / window
        self._rate_at = max(item.since, self._rate_at)
        self.within = max(item.due - item.since, 0.0)
        place = len(self._queue)
        while place and self._queue[place - 1].timed and self._queue[place - 1].due > item.due:
            place -= 1
        self._queue.insert(place, item)
        self.waiting += item.stop

    @property
    def due(self) -> float:
        """The earliest deadline."""
        return self._queue[0].due if self._queue else math.inf

    @property
    def last_begin(self) -> float:
        """When work must begin for the first item to be in time."""
        return self.due - self.costs.of(1)

    @property
    def urgency(self) -> tuple[float, float]:
        return self.last_begin, self.since

    def expired(self, now: float) -> Shed[K] | None:
        n = self.n_before(now + self.costs.of(1))
        return self._shed(n) if n else None

    def n_before(self, limit: float) -> int:
        """How many have their deadlines before that."""
        n = 0
        for item in self._queue:
            if item.due >= limit:
                break
            n += int(np.searchsorted(item.left, limit))
        return n

    def rate(self, now: float) -> float:
        """Items that come a second."""
        window = RATE_WINDOW * self.costs.of(self.max_batch)
        return self._rate * math.exp(-max(now - self._rate_at, 0.0) / window)

    def next(
        self, now: float, *, draining: bool = False, most: int = 0, load: float = 0.0
    ) -> Batch[K] | Shed[K] | float | None:
        """As for every batcher.

        Parameters
        ----------
        most : int
            Items in a batch at most; 0: as many as can be run.
        load : float
            What others ask of the device, as a share of its time.
        """
        if not self.waiting:
            return None
        if shed := self.expired(now):
            return shed
        most = min(most or self.max_batch, self.max_batch)
        if self._queue[0].alone:
            return self._close("alone", most)
        usual = self.costs.best if self._strained else self.max_batch
        n = min(self.waiting, most, usual)
        if now + self.costs.of(n) <= self._queue[0].due:
            self._strained = self._strained and n < self.waiting
            return self._close("full" if n == usual else "idle" if n == self.waiting else "deadline", n)
        self._strained = True
        return self._squeeze(now, min(most, self.costs.best), load)

    def _squeeze(self, now: float, limit: int, load: float) -> Batch[K] | Shed[K]:
        """The first items do not make it in the batch that they would be in; none is to be larger than `limit`."""
        deadlines = self._deadlines(LOOK_AHEAD * self.max_batch)
        small = min(self.costs.most(deadlines[0] - now), deadlines.size, limit)
        n_shed = self._first_that_fits(deadlines, now, limit)
        price = min(self._rate + load * self.costs.peak, self.costs.peak)
        saving = self._worth(deadlines, 0, small, now, limit, price)
        shedding = self._worth(deadlines, n_shed, min(limit, deadlines.size - n_shed), now, limit, price)
        if small and saving >= shedding:
            return self._close("deadline", small)
        return self._shed(n_shed)

    def _first_that_fits(self, deadlines: Array, now: float, limit: int) -> int:
        """How many must go so that the next one makes it in the batch that it is then in."""
        sizes = np.minimum(np.arange(deadlines.size, 0, -1), limit)
        fits = now + self.costs.of_each(sizes) <= deadlines
        return int(np.argmax(fits)) if fits.any() else deadlines.size

    def _worth(self, deadlines: Array, first: int, n: int, now: float, limit: int, price: float) -> float:
        """How many of those that wait are answered in time, less what the device could do in that time.

        `first` of them are given up, then `n` are worked on; no later batch is larger than `limit`.
        """
        begin, answered, n_all = now, 0, deadlines.size
        while first < n_all and n:
            now += self.costs.of(n)
            answered += n
            first += n
            while first < n_all and not (
                n := min(self.costs.most(float(deadlines[first]) - now), limit, n_all - first)
            ):
                first += 1
        return answered - price * (now - begin)

    def _deadlines(self, most: int) -> Array:
        """The earliest, in order."""
        return np.sort(np.concatenate([item.left for item in self._first(most)]))[:most]

    def _close(self, reason: str, most: int) -> Batch[K]:
        n = self.waiting
        if most >= n and not any(item.alone for item in self._queue):
            parts = [item.take(item.stop - item.start) for item in self._queue]
            self._queue.clear()
            self.waiting = 0
            return Batch(parts, n, reason)
        head = self._queue[0]
        parts = self._take([head] if head.alone else [item for item in self._first(most) if not item.alone], most)
        return Batch(parts, sum(part.size for part in parts), reason)

    def _shed(self, n: int) -> Shed[K]:
        return Shed(self._take(self._first(n), n), n)

    def _first(self, most: int) -> list[_Waiting[K]]:
        """Those that have the `most` earliest deadlines, and perhaps some more; none behind one without deadlines,
        which has its turn first."""
        found: list[_Waiting[K]] = []
        n, latest = 0, -math.inf
        for item in self._queue:
            if (n >= most and item.due >= latest) or item.timed != self._queue[0].timed:
                break
            found.append(item)
            n += item.stop - item.start
            latest = max(latest, item.last_due)
        return found

    def _take(self, items: list[_Waiting[K]], most: int) -> list[Part[K]]:
        """The items with the earliest deadlines of these."""
        deadlines = np.concatenate([item.left for item in items])
        limit = np.partition(deadlines, most - 1)[most - 1] if most < deadlines.size else math.inf
        counts = [int(np.searchsorted(item.left, limit)) for item in items]
        left = min(most, deadlines.size) - sum(counts)
        for k, item in enumerate(items):  # of those at the limit, who comes first
            more = min(left, int(np.searchsorted(item.left, limit, side="right")) - counts[k])
            counts[k] += more
            left -= more
        parts = [item.take(n) for item, n in zip(items, counts, strict=True) if n]
        left_over = [item for item in self._queue if item.start < item.stop]
        n_timed = next((k for k, item in enumerate(left_over) if not item.timed), len(left_over))
        self._queue = deque(sorted(left_over[:n_timed], key=lambda item: item.due) + left_over[n_timed:])
        self.waiting -= sum(counts)
        return parts
