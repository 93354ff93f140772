"""The menu at work in the writer: each event's paths, prescaled."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from stages.kernels import njit
from stages.menu.menu import Menu
from stages.menu.schedule import Schedule, Section
from streamer.block import Array, Block

OUTCOMES = ("accepted", "rejected", "prescaled")
"""What a menu makes of an event: some path accepts it; none passes it; those that pass it are prescaled away."""
STEPS = ("seeded", "passed", "accepted")
"""How far a path takes an event."""


class Trigger:
    """Decides what is accepted, in the order in which events are written.

    A path's accepts are numbered from 1 in this order, and those are kept whose number the prescale divides: so each
    N-th is, whatever came between, and a switch to another prescale counts on.

    Parameters
    ----------
    schedule : Schedule
        Of columns of the menu.

    Attributes
    ----------
    passed : int64, shape (n_paths,)
        How many accepts each path had, before prescales; what numbers go on from.
    counts : int64, shape (3, n_paths)
        Events by `STEPS`, since this process began.
    outcomes : int64, shape (3,)
        Events by `OUTCOMES`, likewise.
    """

    def __init__(self, menu: Menu, schedule: Schedule) -> None:
        self.menu, self.schedule = menu, schedule
        n = len(menu.paths)
        self.passed = np.zeros(n, np.int64)
        self.counts = np.zeros((3, n), np.int64)
        self.outcomes = np.zeros(3, np.int64)

    def decide(self, block: Block) -> Block:
        """The same events with what the menu makes of them (`stages.records.decisions`)."""
        columns, n = block.columns, block.n_events
        good = (columns["error"] == 0).view(np.uint8)
        seeded = self.menu.seeds(columns, n) & good
        passed = self.menu.program(columns, n) & seeded
        held = np.empty(n, np.uint8)
        for section, some in sections(block):
            held[some] = self.menu.columns.index(self.schedule.column(section))
        accepted = np.zeros_like(passed)
        keep_each_nth(passed, held, self.menu.prescales, self.passed, accepted)
        for row, flags in enumerate((seeded, passed, accepted)):
            self.counts[row] += flags.sum(1, dtype=np.int64)
        some, kept = passed.any(0), accepted.any(0)
        self.outcomes += int(kept.sum()), int((~some & (good == 1)).sum()), int((some & ~kept).sum())
        decided = {
            "pathSeeded": packed(seeded),
            "pathPassed": packed(passed),
            "pathAccepted": packed(accepted),
            "prescaleColumn": held,
        }
        return block.with_columns({**columns, **decided})

    def remember(self, blocks: Iterable[Block]) -> None:
        """Go on behind blocks that an earlier life has decided."""
        for block in blocks:
            self.passed += unpacked(block.columns["pathPassed"], len(self.menu.paths)).sum(0, dtype=np.int64)
            for section, some in sections(block):
                held = int(block.columns["prescaleColumn"][some][0])
                self.schedule.saw(section, self.menu.columns[held])


def sections(block: Block) -> Iterator[tuple[Section, Any]]:
    """The lumisections of a block, and which of its events are in each."""
    found = np.stack([block.columns[name].astype(np.int64) for name in ("replay", "run", "luminosityBlock")], axis=1)
    if (found == found[0]).all():
        yield (int(found[0, 0]), int(found[0, 1]), int(found[0, 2])), slice(None)
        return
    each, place = np.unique(found, axis=0, return_inverse=True)
    for k, (replay, run, lumisection) in enumerate(each.tolist()):
        yield (replay, run, lumisection), np.flatnonzero(place.reshape(-1) == k)


def packed(flags: Array) -> Array:
    """Bits of each event: from uint8 of shape (n_paths, n_events) to one of (n_events, n_bytes)."""
    return np.ascontiguousarray(np.packbits(flags, axis=0, bitorder="little").T)


def unpacked(bits: Array, n_paths: int) -> Array:
    """The other way: uint8, shape (n_events, n_paths)."""
    return np.unpackbits(bits, axis=1, count=n_paths, bitorder="little")


@njit(cache=True, nogil=True)
def keep_each_nth(passed: Any, held: Any, prescales: Any, numbers: Any, accepted: Any) -> None:
    """Apply prescales, event by event.

    Parameters
    ----------
    passed : uint8, shape (n_paths, n_events)
    held : uint8, shape (n_events,)
        The prescale column of each event.
    prescales : int64, shape (n_columns, n_paths)
    numbers : int64, shape (n_paths,)
        Accepts so far; counted on.
    accepted : uint8, shape (n_paths, n_events)
        Zeros, in which what is kept is set.
    """
    for path in range(passed.shape[0]):
        number = numbers[path]
        for event in range(passed.shape[1]):
            if passed[path, event]:
                number += 1
                each = prescales[held[event], path]
                if each > 0 and number % each == 0:
                    accepted[path, event] = 1
        numbers[path] = number
