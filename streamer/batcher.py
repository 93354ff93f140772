"""When to close a batch. Pure: no clock, no thread, no model; time is injected."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Generic, TypeVar

REASONS = ("full", "max_wait", "drain", "alone")
"""Why a batch was closed; the label values of `streamer_batch_closed_total`."""

K = TypeVar("K")


@dataclass(frozen=True, slots=True)
class Part(Generic[K]):
    """The items `start` to `stop` of what was added under `key`."""

    key: K
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, slots=True)
class Batch(Generic[K]):
    """Items that are worked on together, and why no more were waited for."""

    parts: list[Part[K]]
    size: int
    reason: str


@dataclass(slots=True)
class _Waiting(Generic[K]):
    key: K
    start: int
    stop: int
    since: float
    alone: bool


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

    def add(self, key: K, n_items: int, now: float, *, alone: bool = False) -> None:
        """Queue `n_items` (at least one) under `key`."""
        self._queue.append(_Waiting(key, 0, n_items, now, alone))
        self.waiting += n_items

    @property
    def oldest(self) -> float:
        """Since when the item waits that has waited the longest; never, if none does."""
        return self._queue[0].since if self._queue else math.inf

    def next(self, now: float, *, draining: bool = False) -> Batch[K] | float | None:
        """The batch to work on now; or when to ask again; or None: ask when something was added."""
        if not self.waiting:
            return None
        due = self._queue[0].since + self.max_wait
        if self._queue[0].alone:
            return self._close("alone")
        if self.waiting >= self.max_batch:
            return self._close("full")
        if now >= due:
            return self._close("max_wait")
        if draining:
            return self._close("drain")
        return due

    def _close(self, reason: str) -> Batch[K]:
        parts: list[Part[K]] = []
        size, was_alone = 0, False
        while self._queue and size < self.max_batch:
            head = self._queue[0]
            if parts and (head.alone or was_alone):
                break
            stop = min(head.stop, head.start + self.max_batch - size)
            parts.append(Part(head.key, head.start, stop))
            size += stop - head.start
            head.start = stop
            if head.start == head.stop:
                self._queue.popleft()
            was_alone = head.alone
        self.waiting -= size
        return Batch(parts, size, reason)
