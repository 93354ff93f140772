"""The menu at work in the writer: each event's paths, prescaled."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from stages.kernels import njit
from stages.menu.flags import FLAGS, sections, unpacked
from stages.menu.menu import Menu
from stages.menu.schedule import Place, Schedule
from stages.order import replica_of
from streamer.block import Block

_ALL = np.zeros((0, 0), np.uint8)


class Trigger:
    """Decides what is accepted, in the order in which events are written.

    A path's accepts are numbered from 1 in this order, and those are kept whose number the prescale divides: so each
    N-th is, whatever came between, and a switch to another prescale counts on.

    Parameters
    ----------
    schedule : Schedule
        Of columns of the menu.
    n_readers : int
        How many share the input.
    n_page : int
        They share its pages of so many events, where it is shuffled or mixed (`stages.order`); 0: they share its files.

    Attributes
    ----------
    passed : int64, shape (n_paths,)
        How many accepts each path had, before prescales; what numbers go on from.
    counts : int64, shape (3, n_paths)
        Events by `STEPS`, since this process began.
    outcomes : int64, shape (3,)
        Events by `OUTCOMES`, likewise.
    """

    def __init__(self, menu: Menu, schedule: Schedule, n_readers: int = 1, n_page: int = 0) -> None:
        self.menu, self.schedule, self._n_readers, self._n_page = menu, schedule, n_readers, n_page
        n = len(menu.paths)
        self.passed = np.zeros(n, np.int64)
        self.counts = np.zeros((3, n), np.int64)
        self.outcomes = np.zeros(3, np.int64)

    def decide(self, block: Block) -> Block:
        """The same events with what the menu makes of them (`stages.records.decisions`)."""
        columns, n = block.columns, block.n_events
        flags, n_paths = self.menu.program(columns, n), len(self.menu.paths)
        passed, seeded = flags[:n_paths], flags[n_paths:] if self.menu.seeded else _ALL
        held = np.empty(n, np.uint8)
        for section, some in sections(block):
            held[some] = self.menu.columns.index(self.schedule.column(section, self._place(block, some)))
        bits = np.zeros((3, n, self.menu.n_bytes), np.uint8)
        good = columns["error"] == 0
        settle(
            seeded, passed, good, held, self.menu.prescales, self.passed, self.counts, self.outcomes, bits
        )  # fmt: skip
        decided = dict(zip(FLAGS, bits, strict=True))
        return block.with_columns({**columns, **decided, "prescaleColumn": held})

    def remember(self, blocks: Iterable[Block]) -> None:
        """Go on behind blocks that an earlier life has decided."""
        for block in blocks:
            self.passed += unpacked(block.columns["pathPassed"], len(self.menu.paths)).sum(0, dtype=np.int64)
            for section, some in sections(block):
                held = int(block.columns["prescaleColumn"][some][0])
                self.schedule.saw(section, self._place(block, some), self.menu.columns[held])

    def _place(self, block: Block, some: Any) -> Place:
        """Where the last of some events of a block stands."""
        last = block.n_events - 1 if isinstance(some, slice) else int(some[-1])
        number = block.id + last
        if self._n_page:
            return Place(number, replica_of(number, self._n_page, self._n_readers))
        return Place(number, int(block.columns["sourceFile"][last]) % self._n_readers)


@njit(cache=True, nogil=True)
def settle(
    seeded: Any, passed: Any, good: Any, held: Any, prescales: Any, numbers: Any, counts: Any, outcomes: Any, bits: Any
) -> None:
    """From what each path says of each event to what becomes of it: seeds, prescales, bits and counts.

    Parameters
    ----------
    seeded : uint8, shape (n_paths, n_events)
        What the seeds say; without events where all events are seeded.
    passed : uint8, shape (n_paths, n_events)
        What seeds and expressions say.
    good : bool, shape (n_events,)
        The others could not be processed, and no path looks at them.
    held : uint8, shape (n_events,)
        The prescale column of each event.
    prescales : int64, shape (n_columns, n_paths)
    numbers : int64, shape (n_paths,)
        Accepts so far, before prescales; counted on.
    counts : int64, shape (3, n_paths)
        Events by `STEPS`; counted on.
    outcomes : int64, shape (3,)
        Events by `OUTCOMES`; counted on.
    bits : uint8, shape (3, n_events, n_bytes)
        Zeros; a bit a path is set in what is seeded, passed, accepted.
    """
    n_paths, n_events = passed.shape
    n_good = 0
    fate = np.full(n_events, -1, np.int8)
    for event in range(n_events):
        if good[event]:
            fate[event] = 1
            n_good += 1
    for path in range(n_paths):
        byte, bit = path // 8, np.uint8(1 << (path % 8))
        n_seeded = n_passed = n_accepted = 0
        if seeded.shape[1]:
            for event in range(n_events):
                if seeded[path, event] and good[event]:
                    bits[0, event, byte] |= bit
                    n_seeded += 1
        else:
            n_seeded = n_good
        for event in range(n_events):
            if not (passed[path, event] and good[event]):
                continue
            n_passed += 1
            bits[1, event, byte] |= bit
            each = prescales[held[event], path]
            if each > 0 and (numbers[path] + n_passed) % each == 0:
                n_accepted += 1
                bits[2, event, byte] |= bit
                fate[event] = 0
            elif fate[event] == 1:
                fate[event] = 2
        numbers[path] += n_passed
        counts[0, path] += n_seeded
        counts[1, path] += n_passed
        counts[2, path] += n_accepted
    if not seeded.shape[1]:
        last = np.uint8(255 >> (-n_paths % 8))
        for event in range(n_events):
            if good[event]:
                bits[0, event] = 255
                bits[0, event, bits.shape[2] - 1] = last
    for event in range(n_events):
        if fate[event] >= 0:
            outcomes[fate[event]] += 1
