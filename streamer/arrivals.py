"""When events come: schedules that know nothing of the chain. Pure: times are seconds since the start.

A schedule is asked for the next events as often as wanted, and goes on where it was. Random ones follow from a seed.
"""

import re
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Seconds = npt.NDArray[np.float64]

ORBIT_HZ = 11_245.5
"""How often a proton goes round in the LHC [Hz] (L. Evans and P. Bryant, JINST 3 (2008) S08001)."""
SLOTS = 3564
"""Places for bunches on an orbit, 24.95 ns apart."""
FILLING = "12b 35e 17(2(48b 7e) 48b 37e)"
"""2460 bunches in trains of 48, three to an injection, much as in 2018; see `filling_of`. The rest is the abort gap."""
DRAWN = 4096
"""So many random numbers are drawn at a time."""


class Schedule(Protocol):
    """A source of arrival times."""

    def take(self, n: int) -> Seconds:
        """The next `n` times, not falling."""


class Even:
    """A unit rate: the numbers 0, 1, 2, ..."""

    def __init__(self) -> None:
        self._taken = 0

    def take(self, n: int) -> Seconds:
        self._taken += n
        return np.arange(self._taken - n, self._taken, dtype=np.float64)


class Poisson:
    """A unit rate: arrivals that are independent of each other, the first at 0 or later."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random, self._last = random, 0.0
        self._drawn: Seconds = np.zeros(1)

    def take(self, n: int) -> Seconds:
        while self._drawn.size < n:
            more = self._last + np.cumsum(self._random.exponential(1.0, DRAWN))
            self._last = float(more[-1])
            self._drawn = np.concatenate([self._drawn, more])
        taken, self._drawn = self._drawn[:n], self._drawn[n:]
        return taken


class Profile:
    """Another schedule of unit rate, at a rate that follows a table, again and again.

    Parameters
    ----------
    steps : sequence of (seconds, rate)
        For so long, so many events a second; at least one rate is above 0.
    """

    def __init__(self, unit: Schedule, steps: Sequence[tuple[float, float]]) -> None:
        self._unit = unit
        lengths, rates = np.array(steps, np.float64).T
        self._ends = np.concatenate([[0.0], np.cumsum(lengths)])
        self._counts = np.concatenate([[0.0], np.cumsum(lengths * rates)])

    def take(self, n: int) -> Seconds:
        """Where the number of events that are expected until then is that of the unit rate."""
        rounds, rest = np.divmod(self._unit.take(n), self._counts[-1])
        place = np.searchsorted(self._counts, rest, side="right") - 1  # behind steps in which nothing comes
        place = np.minimum(place, self._counts.size - 2)
        share = (rest - self._counts[place]) / (self._counts[place + 1] - self._counts[place])
        found: Seconds = rounds * self._ends[-1] + self._ends[place] + share * np.diff(self._ends)[place]
        return found


class Steady:
    """Another schedule of unit rate, at this rate [Hz]."""

    def __init__(self, unit: Schedule, rate: float) -> None:
        self._unit, self._rate = unit, rate

    def take(self, n: int) -> Seconds:
        return self._unit.take(n) / self._rate


class Bunches:
    """Crossings of bunches in the LHC, of which each is fed by chance.

    Parameters
    ----------
    filled : int, shape (n,)
        The slots of the orbit with bunches that meet.
    rate : float
        Events a second on average, at most one for each crossing.
    """

    def __init__(self, filled: Sequence[int], rate: float, random: np.random.Generator) -> None:
        self._filled, self._random = np.array(filled), random
        self._chance = min(1.0, rate / (ORBIT_HZ * len(filled)))
        self._crossing = -1

    def take(self, n: int) -> Seconds:
        crossings = self._crossing + np.cumsum(self._random.geometric(self._chance, n))
        if n:
            self._crossing = int(crossings[-1])
        orbit, place = np.divmod(crossings, self._filled.size)
        found: Seconds = (orbit + self._filled[place] / SLOTS) / ORBIT_HZ
        return found


def rate_of_pileup(filled: Sequence[int], pileup: float) -> float:
    """Crossings a second with at least one collision, of which there are `pileup` on average."""
    return float(ORBIT_HZ * len(filled) * -np.expm1(-pileup))


_PART = re.compile(r"\s*(?:(\d+)\s*\(|(\d+)([be])|(\)))")


def filling_of(text: str) -> list[int]:
    """The slots with bunches of a filling pattern such as `12b 39e 3(36b 7e)`: 12 bunches, 39 empty slots, and so on.

    Raises
    ------
    ValueError
        It cannot be read, has no bunch, or more slots than the orbit.
    """
    stack: list[tuple[int, list[bool]]] = [(1, [])]
    place = 0
    while text[place:].strip():
        part = _PART.match(text, place)
        if part is None:
            raise ValueError(f"'{text[place:].strip()}': write '36b' for bunches, '7e' for empty slots, '3(36b 7e)'")
        place = part.end()
        times, number, kind, _ = part.groups()
        if times:
            stack.append((int(times), []))
            if len(stack) > 8:
                raise ValueError("brackets in more than eight brackets")
        elif kind:
            stack[-1][1].extend([kind == "b"] * min(int(number), SLOTS + 1))
        elif len(stack) > 1:
            n, inner = stack.pop()
            stack[-1][1].extend((inner * min(n, SLOTS + 1))[: SLOTS + 1])
        else:
            raise ValueError("a bracket is closed that was not opened")
        if len(stack[-1][1]) > SLOTS:
            raise ValueError(f"more than the {SLOTS} slots of the orbit")
    if len(stack) > 1:
        raise ValueError("a bracket is not closed")
    filled = [slot for slot, bunch in enumerate(stack[0][1]) if bunch]
    if not filled:
        raise ValueError("a filling pattern without a bunch")
    return filled
