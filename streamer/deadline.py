"""Deadlines: events that come too late are shed before anybody pays for them. Pure: time is injected.

A stage takes up a block, and sheds the first of its events that can no longer be answered in time: they lose their
collections, get the stage's mark in the column `error` (`streamer.block.SHED`), and go their way to the sink, which
keeps them like all others. What can no longer make it is known from the *way*, how long blocks take to the sink at
present: the sink measures it on those that bring answers, from when each stage took them up and was done with them, and
the stages hand it on to the front with their credits (`streamer.hop`).

In an overload events wait until they have just as much time left as is counted on. So all that must wait should do so
at the front, where nothing has been paid for them, and the stages behind take no more ahead than they do within a small
share of the deadline (`Room`).
"""

import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from streamer.block import SHED, Array, Block, Columns, Schema

MEMORY = 16
"""So many blocks are remembered at most,"""
AGE = 2.0
"""... and for so many deadlines."""
QUIET = 1 / 8
"""When no answer came for so large a share of a deadline, what is remembered halves with each further one."""
USUAL = 0.9
"""Of the blocks that are remembered, so large a share took no longer than is counted on. With less, events are worked
on and come too late all the same: in an overload, all that are not shed have no more time left than this."""
SHARE_MEMORY = 1 / 64
"""Weight of the newest block in what share of the events is answered."""
PROBES = 8
"""The first blocks are worked on in any case, to learn what they take."""
SHARE = 1 / 16
"""Events should wait before a stage for so large a share of the deadline at most."""
GROWTH = 1.1
"""With each block that has not waited longer, so many times as much room is made."""


class Way(NamedTuple):
    """How long blocks take to the sink [ns], usually and at least; 0, 0 where that is not known."""

    usual: int = 0
    least: int = 0


UNKNOWN = Way()

Ways = dict[str, Way]
"""By stage, from when it was done with a block; and by `taken(stage)`, from when it took it up."""


def taken(stage: str) -> str:
    """The stamp of a block that says when a stage took it up; there only under a deadline."""
    return f"to {stage}"


class Pace:
    """How long something takes at present.

    Parameters
    ----------
    deadline : float
        What is older than some deadlines [s] is forgotten; and where nothing was done for that long, perhaps because it
        would have taken too long, less and less is believed of it, so that it is tried again.
    """

    def __init__(self, deadline: float) -> None:
        self._deadline = deadline
        self._latest: deque[tuple[float, float]] = deque()
        self._sorted: list[float] = []
        self._least, self._n = math.inf, 0

    def learn(self, seconds: float, now: float) -> None:
        """It took so long; negative spans (a clock that stepped) count as none."""
        seconds = max(seconds, 0.0)
        while self._latest and (len(self._latest) == MEMORY or now - self._latest[0][0] > AGE * self._deadline):
            del self._sorted[bisect_left(self._sorted, self._latest.popleft()[1])]
        self._latest.append((now, seconds))
        insort(self._sorted, seconds)
        self._least, self._n = min(self._least, seconds), self._n + 1

    def way(self, now: float) -> Way:
        if not self._latest:
            return UNKNOWN
        usual = self._sorted[int(USUAL * (len(self._sorted) - 1))]
        age = (now - self._latest[-1][0]) / (QUIET * self._deadline)
        least = self._least if self._n >= PROBES else 0.0
        return Way(int(usual * 2.0 ** min(0.0, 1.0 - age) * 1e9), int(least * 1e9))


class Survey:
    """What a sink learns of the ways that lead to it.

    Parameters
    ----------
    stages : iterable of str
        Those before it.
    deadline : float
    """

    def __init__(self, stages: Iterable[str], deadline: float) -> None:
        self._paces = {stamp: Pace(deadline) for stage in stages for stamp in (stage, taken(stage))}

    def learn(self, block: Block, now: int) -> None:
        """A block has come [Unix time in ns]. One without answers, or that was sent again, tells nothing of the way."""
        if block.attempt == 1 and not block.columns["error"].all():
            for stamp, at in block.stamps.items():
                if stamp in self._paces:
                    self._paces[stamp].learn((now - at) * 1e-9, now * 1e-9)

    def ways(self, now: int) -> Ways:
        return {stamp: pace.way(now * 1e-9) for stamp, pace in self._paces.items()}


class Room:
    """How many events a stage may take ahead: what it does within a share of the deadline.

    Parameters
    ----------
    most : int
    seconds : float
        The deadline.
    """

    def __init__(self, most: int, seconds: float) -> None:
        self.events = self._most = most
        self._seconds = SHARE * seconds
        self._left: deque[tuple[float, int]] = deque(maxlen=MEMORY)  # when blocks left, and how large they were

    def learn(self, n_events: int, waited: float, now: float) -> None:
        """A block has left the stage, and waited so long before it was taken up [s]."""
        self._left.append((now, n_events))
        since, n_first = self._left[0]
        if waited <= self._seconds:
            self.events = min(self._most, int(GROWTH * self.events) + 1)
        elif now > since:
            rate = (sum(n for _, n in self._left) - n_first) / (now - since)
            two_blocks = 2 * max(n for _, n in self._left)  # one to work on, and the next
            self.events = min(self._most, max(int(rate * self._seconds), two_blocks))


class Shedder:
    """What one stage gives up.

    Parameters
    ----------
    seconds : float
        From when an event was due to its deadline.
    schema : Schema
        Of the blocks that come.
    mark : int
        The stage's value of the column `error`.
    """

    def __init__(self, seconds: float, schema: Schema, mark: int) -> None:
        self._within, self._schema, self._mark = int(seconds * 1e9), schema, mark
        self._n_probes = PROBES

    @property
    def probes(self) -> bool:
        """Whether blocks are still worked on in any case."""
        return self._n_probes > 0

    def shed(self, block: Block, now: int, way: Way) -> Block:
        """The block without what cannot be answered in time any more.

        Parameters
        ----------
        now : int
            When it is taken up [Unix time in ns].
        way : Way
            From then to the sink.
        """
        n = 0
        if self._n_probes:
            self._n_probes -= not block.columns["error"].all()
        else:
            n = n_before(block.columns["fedTime"], now + way.usual - self._within)
        if n:
            block = block.with_columns(without_first(self._schema, block.columns, n, self._mark))
        return block


def n_before(due: Array, limit: int) -> int:
    """How many of the first events were due before that [Unix time in ns]."""
    before = due < limit
    return due.size if before.all() else int(np.argmin(before))


def too_late(block: Block, now: int, within: int) -> Array:
    """Which of a block's events were scored, and yet come too late: more than `within` ns after they were due."""
    late: Array = (block.columns["fedTime"] < now - within) & (block.columns["error"] == 0)
    return late


def without_first(schema: Schema, columns: Columns, n: int, mark: int) -> Columns:
    """The same events, the first `n` of which are shed."""
    return with_shed(schema.emptied(columns, n), np.arange(n), mark)


def with_shed(columns: Columns, events: Array, mark: int) -> Columns:
    """The same columns, with events marked as shed. One that has failed, or was shed before, stays as it is."""
    error = columns["error"].copy()
    error[events] = np.where(error[events] == 0, SHED + mark, error[events])
    return {**columns, "error": error}
