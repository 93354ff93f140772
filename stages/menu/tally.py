"""What a menu has made of events, by lumisection: counted from the journal, kept in the manifest."""

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stages.kernels import njit
from stages.menu.flags import FLAGS, sections
from streamer.block import Array, Block, readonly
from streamer.fedbook import Lumi

Row = list[Any]
"""`[run, lumisection, accepted, rejected, prescaled, seconds, [[path, seeded, passed, accepted], ...]]`; paths by their
places, but for those whose seeds wanted all events and that none has passed."""


@dataclass
class Counts:
    """What became of the events of a lumisection.

    Attributes
    ----------
    outcomes : int64, shape (3,)
        Accepted, rejected, prescaled.
    paths : int64, shape (3, n_paths)
        Seeded, passed, accepted after the prescale.
    seconds : float
        How long it was fed.
    """

    outcomes: Array
    paths: Array
    seconds: float = 0.0

    @classmethod
    def none(cls, n_paths: int) -> "Counts":
        return cls(np.zeros(3, np.int64), np.zeros((3, n_paths), np.int64))

    def add(self, other: "Counts") -> None:
        """Count those, too."""
        self.outcomes += other.outcomes
        self.paths += other.paths
        self.seconds += other.seconds


@dataclass
class _Clock:
    """How the time of the feed is shared among lumisections: what passes until an event is due is that of its own.

    So the times of lumisections that come again and again, as with `feed.loop`, add up to that of the whole feed. The
    events that are due first, and first after a pause, have none; their share is what all have on average.

    Parameters
    ----------
    went_on : sequence of int
        When the run went on after a pause [Unix ns].
    """

    went_on: Sequence[int] = ()
    seconds: dict[Lumi, float] = field(default_factory=lambda: defaultdict(float))
    n: int = 0
    n_first: int = 0
    _first: int = 0
    _last: int = 0
    _part: int = 0

    def add(self, due: Array, lumis: list[tuple[Lumi, Any]]) -> None:
        """Take the next events: when each was due [ns], and which are in each lumisection."""
        part = bisect_right(self.went_on, int(due[0]))
        if not self.n or part != self._part:
            self._first, self._last, self._part = int(due[0]), int(due[0]), part
        waits = np.maximum(np.diff(due, prepend=self._last), 0) * 1e-9  # another reader's events begin at its beginning
        for lumi, some in lumis:
            self.seconds[lumi] += float(waits[some].sum())
        self.n += due.size
        self.n_first += int(np.count_nonzero(due == self._first))
        self._last = int(due[-1])

    def of(self, lumi: Lumi) -> float:
        """The time of a lumisection [s]."""
        rest = self.n - self.n_first
        return self.seconds[lumi] * self.n / rest if rest else 0.0


@dataclass
class MenuTally:
    """Counts the events of blocks that the menu has decided; they come in the order of the feed."""

    n_paths: int
    went_on: Sequence[int] = ()
    _counts: dict[Lumi, Counts] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._clock = _Clock(self.went_on)

    def add(self, block: Block) -> None:
        """Count the events of a block."""
        columns = block.columns
        lumis = [(section[1:], some) for section, some in sections(block)]
        for lumi, some in lumis:
            found = self._counts.setdefault(lumi, Counts.none(self.n_paths))
            bits = [readonly(columns[name][some]) for name in FLAGS]
            count_bits(*bits, readonly(columns["error"][some]), found.paths, found.outcomes)
        self._clock.add(columns["fedTime"], lumis)

    def counts(self) -> dict[Lumi, Counts]:
        """All that was counted."""
        for lumi, found in self._counts.items():
            found.seconds = self._clock.of(lumi)
        return self._counts

    def rows(self) -> list[Row]:
        """The same for a manifest."""
        return [
            [*lumi, *found.outcomes.tolist(), round(found.seconds, 6), _sparse(found)]
            for lumi, found in sorted(self.counts().items())
        ]


@njit(cache=True, nogil=True)
def count_bits(seeded: Any, passed: Any, accepted: Any, error: Any, paths: Any, outcomes: Any) -> None:
    """Count events by path and by what became of them.

    Parameters
    ----------
    seeded, passed, accepted : uint8, shape (n_events, n_bytes)
        A bit a path.
    error : uint8, shape (n_events,)
        0 for those that were processed.
    paths : int64, shape (3, n_paths)
        Counted on.
    outcomes : int64, shape (3,)
        Accepted, rejected, prescaled; counted on.
    """
    for event in range(error.size):
        fate = 1 if error[event] == 0 else -1
        for byte in range(seeded.shape[1]):
            if passed[event, byte] and fate != 0:
                fate = 2
            if accepted[event, byte]:
                fate = 0
            for row, bits in enumerate((seeded, passed, accepted)):
                left = bits[event, byte]
                path = 8 * byte
                while left:
                    paths[row, path] += left & 1
                    left >>= 1
                    path += 1
        if fate >= 0:
            outcomes[fate] += 1


def _sparse(found: Counts) -> list[list[int]]:
    told = (found.paths[0] != found.outcomes.sum()) | (found.paths[1] > 0)
    return [[int(k), *found.paths[:, k].tolist()] for k in np.flatnonzero(told)]


def read_row(row: Row, n_paths: int) -> tuple[Lumi, Counts]:
    """A row of a manifest."""
    run, lumi, *outcomes, seconds, paths = row
    found = Counts(np.array(outcomes, np.int64), np.zeros((3, n_paths), np.int64), seconds)
    found.paths[0] = found.outcomes.sum()
    for place, *steps in paths:
        found.paths[:, place] = steps
    return (run, lumi), found
