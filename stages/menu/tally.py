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
places, those that no event was seeded for are left out."""


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
            flags = [columns[name][some] for name in FLAGS]
            for row, bits in enumerate(flags):
                count_bits(readonly(bits), found.paths[row])
            passed, kept = flags[1].any(1), flags[2].any(1)
            rejected = ~passed & (columns["error"][some] == 0)
            found.outcomes += int(kept.sum()), int(rejected.sum()), int((passed & ~kept).sum())
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
            [*lumi, *found.outcomes.tolist(), round(found.seconds, 6), _sparse(found.paths)]
            for lumi, found in sorted(self.counts().items())
        ]


@njit(cache=True, nogil=True)
def count_bits(bits: Any, counts: Any) -> None:
    """Count for each path the events whose bit is set.

    Parameters
    ----------
    bits : uint8, shape (n_events, n_bytes)
    counts : int64, shape (n_paths,)
        Counted on.
    """
    for event in range(bits.shape[0]):
        for byte in range(bits.shape[1]):
            left = bits[event, byte]
            if left:
                for path in range(8 * byte, min(8 * byte + 8, counts.size)):
                    counts[path] += left & 1
                    left >>= 1


def _sparse(paths: Array) -> list[list[int]]:
    return [[int(k), *paths[:, k].tolist()] for k in np.flatnonzero(paths[0])]


def read_row(row: Row, n_paths: int) -> tuple[Lumi, Counts]:
    """A row of a manifest."""
    run, lumi, *outcomes, seconds, paths = row
    found = Counts(np.array(outcomes, np.int64), np.zeros((3, n_paths), np.int64), seconds)
    for place, *steps in paths:
        found.paths[:, place] = steps
    return (run, lumi), found
