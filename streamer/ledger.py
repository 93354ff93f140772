"""The books: which events are under way, which are on disk, and what became of every one. Pure: time is injected.

Every event has a *sequence number*, its place in the input (see `streamer.stage.Source`). A block's id is the number of
its first event, the others follow without a gap; so that a set of events is a set of intervals, however they are cut
into blocks, now or by a reader that was started again.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from streamer.block import Block, Schema

Intervals = list[tuple[int, int]]
"""Closed intervals of sequence numbers."""

EARLY_S = 1.0
"""A block is not sent again earlier, whatever has overtaken it."""
QUIET_S = 5.0
"""... nor earlier than this when nothing at all comes back."""
DEADLY = 2
"""An event of which so many processes have died is sent to no more of them."""


class IdSet:
    """A set of sequence numbers kept as closed intervals: small, because events arrive nearly in order."""

    def __init__(self, intervals: Iterable[tuple[int, int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in intervals:
            self.add(first, last)

    def __contains__(self, number: int) -> bool:
        place = bisect_right(self._firsts, number) - 1
        return place >= 0 and number <= self._lasts[place]

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._firsts, self._lasts, strict=True)

    def __len__(self) -> int:
        """How many intervals there are."""
        return len(self._firsts)

    @property
    def size(self) -> int:
        """How many numbers there are."""
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    def add(self, first: int, last: int | None = None) -> int:
        """Add the numbers `first` to `last`; returns how many are new."""
        last = first if last is None else last
        if self._lasts and self._lasts[-1] == first - 1 <= last:  # mostly they come in order
            self._lasts[-1] = last
            return last - first + 1
        low, high = bisect_left(self._lasts, first - 1), bisect_right(self._firsts, last + 1)
        had = sum(max(0, min(last, self._lasts[k]) - max(first, self._firsts[k]) + 1) for k in range(low, high))
        n_new = last - first + 1 - had
        if low < high:
            first, last = min(first, self._firsts[low]), max(last, self._lasts[high - 1])
        self._firsts[low:high], self._lasts[low:high] = [first], [last]
        return n_new

    def missing(self, first: int, last: int) -> Intervals:
        """Those of the numbers `first` to `last` that are not in the set."""
        out = []
        for k in range(bisect_left(self._lasts, first), len(self._firsts)):
            if self._firsts[k] > last:
                break
            if self._firsts[k] > first:
                out.append((first, self._firsts[k] - 1))
            first = self._lasts[k] + 1
        if first <= last:
            out.append((first, last))
        return out

    def cut(self, first: int, last: int) -> Iterator[tuple[int, int, bool]]:
        """The numbers `first` to `last` in pieces, each with whether it is in the set."""
        for a, b in self.missing(first, last):
            if first < a:
                yield first, a - 1, True
            yield a, b, False
            first = b + 1
        if first <= last:
            yield first, last, True


@dataclass(frozen=True)
class Stripes:
    """Which sink keeps which events: stripes of `width` sequence numbers, dealt out in turn.

    So an event has one place where it can be written, and a block that comes a second time comes to the same one. A
    sink counts its own events without gaps (`to_local`), or its set of them would have an interval a stripe.
    """

    n: int = 1
    width: int = 1

    def owner(self, number: int) -> int:
        return number // self.width % self.n

    def room(self, number: int) -> int:
        """How many numbers from this one on stay in one stripe."""
        return self.width - number % self.width if self.n > 1 else 1 << 62

    def cut(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The events `first` to `last`, stripe by stripe."""
        while first <= last:
            end = min(last, first + self.room(first) - 1)
            yield first, end
            first = end + 1

    def to_local(self, number: int) -> int:
        if self.n == 1:
            return number
        return number // (self.width * self.n) * self.width + number % self.width

    def to_global(self, number: int, owner: int) -> int:
        if self.n == 1:
            return number
        return (number // self.width * self.n + owner) * self.width + number % self.width


class Kept:
    """The events that are on disk, by the sink that keeps them."""

    def __init__(self, stripes: Stripes) -> None:
        self.stripes = stripes
        self.sets = [IdSet() for _ in range(stripes.n)]

    def add(self, first: int, last: int) -> int:
        """Add events; returns how many are new."""
        owner, local = self.stripes.owner, self.stripes.to_local
        return sum(self.sets[owner(a)].add(local(a), local(b)) for a, b in self.stripes.cut(first, last))

    def missing(self, first: int, last: int) -> Intervals:
        """Those of the events `first` to `last` that are not on disk."""
        out: Intervals = []
        for a, b in self.stripes.cut(first, last):
            k = self.stripes.owner(a)
            local = self.sets[k].missing(self.stripes.to_local(a), self.stripes.to_local(b))
            for x, y in local:
                x, y = self.stripes.to_global(x, k), self.stripes.to_global(y, k)
                if out and out[-1][1] == x - 1:
                    out[-1] = (out[-1][0], y)
                else:
                    out.append((x, y))
        return out

    def of(self, sink: int) -> Iterator[tuple[int, int]]:
        """What a sink has, as intervals of sequence numbers."""
        width = self.stripes.width
        for first, last in self.sets[sink]:
            while first <= last:
                end = last if self.stripes.n == 1 else min(last, first + width - first % width - 1)
                yield self.stripes.to_global(first, sink), self.stripes.to_global(end, sink)
                first = end + 1


@dataclass
class _Flight:
    block: Block
    sent_at: float
    n_bytes: int
    deaths: int = 0  # of processes that worked on nothing else


class Window:
    """The reader's blocks that are fed and not yet on disk.

    It bounds memory and latency from end to end: the feed stops while `full`.

    A block is sent again when it is overdue: when a block that was sent after it has come to disk and it has waited
    three times as long as blocks do; when nothing has come for ten times as long; and in any case after
    `redeliver_after`. With each attempt the patience doubles.

    Parameters
    ----------
    max_events : int
    redeliver_after : float
        Seconds.
    max_bytes : int
        Of the columns; the block that reaches this is the last.

    Attributes
    ----------
    usual : float
        How long blocks take to disk at present, rather too long than too short [s].
    """

    def __init__(self, max_events: int, redeliver_after: float, max_bytes: int = 1 << 62) -> None:
        self.max_events, self.redeliver_after, self.max_bytes = max_events, redeliver_after, max_bytes
        self.events = self.bytes = 0
        self._flights: dict[int, _Flight] = {}
        self.usual = 0.0
        self._newest = -math.inf  # when the last-sent of the blocks on disk was sent

    def __len__(self) -> int:
        return len(self._flights)

    def full(self, n_events: int) -> bool:
        """Whether `n_events` more do not fit; one block always fits into an empty window."""
        too_many = self.events + n_events > self.max_events or self.bytes >= self.max_bytes
        return bool(self._flights) and too_many

    def add(self, block: Block, now: float) -> None:
        flight = self._flights[block.id] = _Flight(block, now, block.n_bytes)
        self.events += block.n_events
        self.bytes += flight.n_bytes

    def commit(self, intervals: Iterable[tuple[int, int]], now: float) -> int:
        """Forget blocks whose events are on disk; returns their number of events. Others do no harm."""
        done = 0
        for first, last in intervals:
            for block_id in self._within(first, last):
                flight = self._flights.pop(block_id)
                done += flight.block.n_events
                self.bytes -= flight.n_bytes
                self._newest = max(self._newest, flight.sent_at)
                # Of a block that was sent twice it is not known which attempt came through.
                if flight.block.attempt == 1 and flight.sent_at > -math.inf:
                    self.usual = max(0.99 * self.usual, now - flight.sent_at)
        self.events -= done
        return done

    def _within(self, first: int, last: int) -> list[int]:
        """The blocks whose events all lie in an interval."""
        found, end = [], first
        while (flight := self._flights.get(end)) is not None and end + flight.block.n_events - 1 <= last:
            found.append(end)
            end += flight.block.n_events
        if end <= last:  # it holds others, too: all are looked at
            found = [i for i, f in self._flights.items() if first <= i and i + f.block.n_events - 1 <= last]
        return found

    def doubt(self, sink: int, stripes: Stripes) -> None:
        """A sink has begun anew: what was under way to it may be lost, and is overdue."""
        for block_id, flight in self._flights.items():
            if stripes.owner(block_id) == sink:
                flight.sent_at = -math.inf

    def died(self, working: Intervals, schema: Schema) -> list[Block]:
        """A process has died while it worked on these events; returns the events (in blocks of one) that it died of.

        Its blocks are overdue, and travel alone from now on. A block that was alone when a process died of it is split
        into its events; an event of which, alone, two have died, is held to be what kills them.
        """
        poison = []
        for flight in list(self._flights.values()):
            block = flight.block
            first, last = block.id, block.id + block.n_events - 1
            if not block.alone:
                if any(a <= first and last <= b for a, b in working):
                    block.alone, flight.sent_at = True, -math.inf
            elif (first, last) in working:
                flight.deaths, flight.sent_at = flight.deaths + 1, -math.inf
                if block.n_events > 1:
                    del self._flights[first]
                    self.bytes -= flight.n_bytes
                    for i in range(block.n_events):
                        one = block.part(schema, i, i + 1)
                        self._flights[one.id] = _Flight(one, -math.inf, one.n_bytes)
                        self.bytes += one.n_bytes
                elif flight.deaths >= DEADLY:
                    poison.append(block)
        return poison

    def replace(self, block: Block) -> None:
        """The block is to travel with other columns."""
        flight = self._flights[block.id]
        self.bytes -= flight.n_bytes
        flight.block, flight.n_bytes = block, block.n_bytes
        self.bytes += flight.n_bytes

    def overdue(self, now: float) -> list[Block]:
        """Blocks to send again, with the next attempt number; their clock starts anew."""
        late = [flight for flight in self._flights.values() if self._is_overdue(flight, now)]
        for flight in late:
            flight.block.attempt += 1
            flight.sent_at = now
        return [flight.block for flight in late]

    def _is_overdue(self, flight: _Flight, now: float) -> bool:
        overtaken = flight.sent_at < self._newest
        patience = max(EARLY_S, 3 * self.usual) if overtaken else max(QUIET_S, 10 * self.usual)
        patience *= 2.0 ** min(flight.block.attempt - 1, 30)
        return now - flight.sent_at >= min(patience, self.redeliver_after)


@dataclass(frozen=True)
class Ledger:
    """What became of every event that was fed. `late` are those that were scored, and not before their deadline."""

    fed: int
    scored: int
    errors: int
    in_flight: int = 0
    dropped: int = 0
    shed: int = 0
    late: int = 0

    @property
    def in_time(self) -> int:
        return self.scored - self.late

    @property
    def closes(self) -> bool:
        return self.fed == self.scored + self.errors + self.shed + self.in_flight + self.dropped
