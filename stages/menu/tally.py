"""What a menu has made of events, by lumisection: counted from the journal, kept in the manifest."""

from collections import defaultdict
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
class _Span:
    """From when to when events were due [ns], and how many."""

    first: int = 1 << 62
    last: int = 0
    n: int = 0

    @property
    def seconds(self) -> float:
        """n events span n - 1 of their distances."""
        return max(0, self.last - self.first) * 1e-9 * self.n / (self.n - 1) if self.n > 1 else 0.0


@dataclass
class MenuTally:
    """Counts the events of blocks that the menu has decided."""

    n_paths: int
    _counts: dict[Lumi, Counts] = field(default_factory=dict)
    _spans: dict[tuple[int, int, int], _Span] = field(default_factory=lambda: defaultdict(_Span))

    def add(self, block: Block) -> None:
        """Count the events of a block."""
        columns = block.columns
        for section, some in sections(block):
            found = self._counts.setdefault(section[1:], Counts.none(self.n_paths))
            bits = [readonly(columns[name][some]) for name in FLAGS]
            count_bits(*bits, readonly(columns["error"][some]), found.paths, found.outcomes)
            due, span = columns["fedTime"][some], self._spans[section]
            span.first, span.last = min(span.first, int(due.min())), max(span.last, int(due.max()))
            span.n += due.size

    def counts(self) -> dict[Lumi, Counts]:
        """All that was counted."""
        for found in self._counts.values():
            found.seconds = 0.0
        for section, span in self._spans.items():
            self._counts[section[1:]].seconds += span.seconds
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
