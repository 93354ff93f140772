"""The books: which blocks are under way, which are on disk, and what became of every event. Pure: time is injected."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from streamer.block import Block


class IdSet:
    """A set of block ids kept as closed intervals: small, because ids arrive nearly in order."""

    def __init__(self) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []

    def __contains__(self, block_id: int) -> bool:
        place = bisect_right(self._firsts, block_id) - 1
        return place >= 0 and block_id <= self._lasts[place]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._lasts, strict=True)

    def add(self, block_id: int) -> bool:
        """Add an id; False when it was there."""
        if block_id in self:
            return False
        place = bisect_right(self._firsts, block_id)
        joins_left = place > 0 and self._lasts[place - 1] == block_id - 1
        joins_right = place < len(self._firsts) and self._firsts[place] == block_id + 1
        if joins_left and joins_right:
            self._lasts[place - 1] = self._lasts.pop(place)
            self._firsts.pop(place)
        elif joins_left:
            self._lasts[place - 1] = block_id
        elif joins_right:
            self._firsts[place] = block_id
        else:
            self._firsts.insert(place, block_id)
            self._lasts.insert(place, block_id)
        return True


@dataclass
class _Flight:
    block: Block
    sent_at: float


class Window:
    """The reader's blocks that are fed and not yet on disk.

    It bounds memory and latency from end to end: the feed stops while `full`.

    Parameters
    ----------
    max_events : int
    redeliver_after : float
        Seconds after which a block counts as overdue.
    """

    def __init__(self, max_events: int, redeliver_after: float) -> None:
        self.max_events, self.redeliver_after = max_events, redeliver_after
        self.events = 0
        self._flights: dict[int, _Flight] = {}

    def __len__(self) -> int:
        return len(self._flights)

    def full(self, n_events: int) -> bool:
        """Whether `n_events` more do not fit; one block always fits into an empty window."""
        return bool(self._flights) and self.events + n_events > self.max_events

    def add(self, block: Block, now: float) -> None:
        self._flights[block.id] = _Flight(block, now)
        self.events += block.n_events

    def commit(self, intervals: Iterable[tuple[int, int]]) -> int:
        """Forget blocks that are on disk; returns their number of events. Ids that are not here do no harm."""
        done = 0
        for first, last in intervals:
            if last - first < len(self._flights):
                ids = [i for i in range(first, last + 1) if i in self._flights]
            else:
                ids = [i for i in self._flights if first <= i <= last]
            for block_id in ids:
                done += self._flights.pop(block_id).block.n_events
        self.events -= done
        return done

    def overdue(self, now: float) -> list[Block]:
        """Blocks to send again, with the next attempt number; their clock starts anew."""
        late = [f for f in self._flights.values() if now - f.sent_at >= self.redeliver_after]
        for flight in late:
            flight.block.attempt += 1
            flight.sent_at = now
        return [flight.block for flight in late]


@dataclass(frozen=True)
class Ledger:
    """What became of every event that was fed."""

    fed: int
    scored: int
    errors: int
    in_flight: int = 0

    @property
    def closes(self) -> bool:
        return self.fed == self.scored + self.errors + self.in_flight
