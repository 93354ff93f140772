"""In which order events are fed where that is not the order of the files: shuffled, mixed, or both. Pure.

All follows from a seed, and any part of it without what is before it: a run that goes on finds the same event under the
same number. Nothing is read event by event: of each input a page takes the next few, and shuffled inputs are read in
pieces of many events.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Int64s = npt.NDArray[np.int64]

POOL_PIECES = 4
"""Of a shuffled input, the events of so many pieces are shuffled together."""
TURN_PAGES = 16
"""So many pages in a row are of the same replica."""
_DEALT = 1024

_COUNTS, _PLACES, _PIECES, _EVENTS = range(4)  # what random numbers are for


def replica_of(number: int, n_page: int, n_replicas: int) -> int:
    """Which replica of the reader feeds the event with this number, where they share pages of so many events."""
    return number // n_page // TURN_PAGES % n_replicas


@dataclass(frozen=True)
class Piece:
    """The entries `first` to `last` (not included) of a file."""

    file: int
    first: int
    last: int


@dataclass(frozen=True)
class Pool:
    """Some events of a line.

    Attributes
    ----------
    begin : int
        The place of its first event in the line, all passes counted.
    replay : int
        The pass.
    pieces : list of Piece
    places : int64, shape (n_events,), optional
        Where in the pool the events of the pieces stand, one piece after the other; None: as they come.
    """

    begin: int
    replay: int
    pieces: list[Piece]
    places: Int64s | None

    @property
    def n_events(self) -> int:
        return sum(piece.last - piece.first for piece in self.pieces)


class Line:
    """The events of one input, in the order in which they are fed, pass after pass.

    Parameters
    ----------
    sizes : sequence of (file, n_events)
    n_piece : int
        Events of a piece.
    seed : sequence of int, optional
        Of the random order; None: as they stand in the files.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], n_piece: int, seed: Sequence[int] | None = None) -> None:
        self.n_events = sum(n for _, n in sizes)
        self._seed = seed
        step = n_piece if seed is not None else max((n for _, n in sizes), default=1)
        self._pieces = [Piece(file, a, min(a + step, n)) for file, n in sizes for a in range(0, n, max(1, step))]

    def pools(self, place: int) -> Iterator[Pool]:
        """From the pool that the event at this place is in, for ever."""
        replay = place // self.n_events
        while True:
            for pool in self._of_pass(replay):
                if pool.begin + pool.n_events > place:
                    yield pool
            replay += 1

    def _of_pass(self, replay: int) -> Iterator[Pool]:
        pieces, n_together = self._pieces, 1
        if self._seed is not None:
            random = np.random.default_rng((_PIECES, *self._seed, replay))
            pieces, n_together = [pieces[k] for k in random.permutation(len(pieces))], POOL_PIECES
        begin = replay * self.n_events
        for k in range(0, len(pieces), n_together):
            pool = Pool(begin, replay, pieces[k : k + n_together], None)
            if self._seed is not None:
                random = np.random.default_rng((_EVENTS, *self._seed, replay, k))
                pool = Pool(begin, replay, pool.pieces, random.permutation(pool.n_events))
            yield pool
            begin += pool.n_events


@dataclass(frozen=True)
class Page:
    """Some consecutive events of the feed.

    Attributes
    ----------
    begin : int
        The number of the first one.
    lines : int64, shape (n_events,)
        The line that each is of.
    firsts : int64, shape (n_lines,)
        The place in each line of the first event that is taken from it.
    """

    begin: int
    lines: Int64s
    firsts: Int64s

    def ends_at(self, sizes: Int64s) -> tuple[int, int]:
        """The first number for which a line of these sizes has no event any more, and that line; -1 for none."""
        found = self.begin + self.lines.size, -1
        for line in np.flatnonzero(self.firsts + np.bincount(self.lines, minlength=sizes.size) > sizes):
            place = np.flatnonzero(self.lines == line)[max(0, int(sizes[line] - self.firsts[line]))]
            found = min(found, (self.begin + int(place), int(line)))
        return found


class Order:
    """Which line each event is of: an independent draw, by weights.

    Parameters
    ----------
    sizes : sequence of int
        Events of each line, at least one.
    weights : sequence of float
        Of each line, above 0; with a sum of anything.
    n_page : int
        Events of a page.
    loop : bool
        Lines begin again at their end; else the feed ends with the first one that does.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], n_page: int, seed: int, *, loop: bool) -> None:
        self.sizes, self.n_page, self.seed = np.array(sizes, np.int64), n_page, seed
        self._shares = np.array(weights, np.float64) / np.sum(weights)
        self.end, self.ends_with = (1 << 62, -1) if loop else self._end()

    def _end(self) -> tuple[int, int]:
        """The number of events until a line has no more, and that line."""
        firsts = np.zeros(self.sizes.size, np.int64)
        for k, counts in enumerate(self._counts()):
            if (firsts + counts > self.sizes).any():
                return self._page(k, counts, firsts).ends_at(self.sizes)
            firsts += counts
        raise AssertionError("unreachable")

    def _counts(self) -> Iterator[Int64s]:
        """How many events of each line are in page after page."""
        random = np.random.default_rng((_COUNTS, self.seed))
        while True:
            yield from random.multinomial(self.n_page, self._shares, size=_DEALT)

    def _page(self, k: int, counts: Int64s, firsts: Int64s) -> Page:
        lines = np.repeat(np.arange(counts.size), counts)
        if counts.size > 1:
            lines = np.random.default_rng((_PLACES, self.seed, k)).permutation(lines)
        return Page(k * self.n_page, lines, firsts.copy())

    def pages(self, replica: int = 0, n_replicas: int = 1) -> Iterator[Page]:
        """The pages of one replica's share, in order; without a loop the last one is cut to `end`."""
        firsts = np.zeros(self.sizes.size, np.int64)
        for k, counts in enumerate(self._counts()):
            left = self.end - k * self.n_page
            if left <= 0:
                return
            if replica_of(k * self.n_page, self.n_page, n_replicas) == replica:
                page = self._page(k, counts, firsts)
                yield Page(page.begin, page.lines[:left], page.firsts)
            firsts += counts

    def needs(self, n_events: int) -> Int64s:
        """How many events of each line are among the first `n_events`: int64, shape (n_lines,)."""
        firsts = np.zeros(self.sizes.size, np.int64)
        for k, counts in enumerate(self._counts()):
            left = n_events - k * self.n_page
            if left <= self.n_page:
                return firsts + np.bincount(self._page(k, counts, firsts).lines[:left], minlength=firsts.size)
            firsts += counts
        raise AssertionError("unreachable")
