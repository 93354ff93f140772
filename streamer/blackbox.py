"""The black box: what a process is working on, in a file that outlives it.

When a process dies, its successor finds there which blocks it was at, and tells the sources (`streamer.commits`). An
event that kills whoever works on it is so told from one that was only near (`streamer.ledger.Window.died`).
"""

import mmap
import secrets
import struct
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from streamer.block import Block
from streamer.ledger import IdSet, Intervals
from streamer.logs import working

_SIZE = 4096
_HEAD = struct.Struct("<16s q")  # the life that wrote it, and how many intervals follow
_INTERVAL = struct.Struct("<qq")
MOST = 100
"""Intervals that are kept; work on more is not told in full. They fit into one control message."""


@dataclass(frozen=True)
class Death:
    """What a process left that died at work.

    Attributes
    ----------
    life : str
        Names the dead process, so that its death counts once.
    working : list of (first, last)
        The events it was working on.
    """

    life: str
    working: Intervals


class BlackBox:
    """A process's own.

    Attributes
    ----------
    before : Death or None
        What the predecessor was at, if it died at work.
    since : float or None
        When the work began that goes on now (`time.monotonic`).
    """

    def __init__(self, path: Path) -> None:
        self.since: float | None = None
        self._life = secrets.token_hex(8).encode()
        with path.open("a+b") as file:
            file.truncate(_SIZE)
            self._map = mmap.mmap(file.fileno(), _SIZE)
        self.before = self._read()

    def _read(self) -> Death | None:
        life, n = _HEAD.unpack_from(self._map)
        if not 0 < n <= MOST:
            return None
        intervals = [_INTERVAL.unpack_from(self._map, _HEAD.size + k * _INTERVAL.size) for k in range(n)]
        if not all(0 <= first <= last for first, last in intervals):
            return None
        return Death(life.decode("ascii", "replace"), intervals)

    def working(self, blocks: Iterable[Block]) -> "Work":
        """Work on these blocks (`with box.working(blocks):`), which the log names meanwhile. An error that leaves this
        ends the process, and so it stays written down."""
        return Work(self, tuple(blocks))

    def begin(self, blocks: tuple[Block, ...]) -> None:
        """Write down what is worked on from now on."""
        at: Iterable[tuple[int, int]] = [(block.id, block.id + block.n_events - 1) for block in blocks]
        if len(blocks) > 1:
            at = IdSet(at)  # neighbours are one interval
        n = 0
        _HEAD.pack_into(self._map, 0, self._life, 0)
        for n, interval in enumerate(at, 1):
            if n > MOST:
                break
            _INTERVAL.pack_into(self._map, _HEAD.size + (n - 1) * _INTERVAL.size, *interval)
        _HEAD.pack_into(self._map, 0, self._life, min(n, MOST))
        self.since = time.monotonic()

    def end(self) -> None:
        """Nothing is worked on any more."""
        self.since = None
        _HEAD.pack_into(self._map, 0, self._life, 0)

    def close(self) -> None:
        self._map.close()


class Work:
    """What is between `begin` and `end` of a black box."""

    __slots__ = ("_blocks", "_box", "_told")

    def __init__(self, box: BlackBox, blocks: tuple[Block, ...]) -> None:
        self._box, self._blocks = box, blocks

    def __enter__(self) -> None:
        self._box.begin(self._blocks)
        self._told = working.set(self._blocks)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            working.reset(self._told)
            self._box.end()
