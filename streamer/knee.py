"""Where latency bends up: the highest rate at which a stream keeps its deadline. Pure: streams are a function's."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

STEP = 1.5
"""Rates are that far apart as long as all have held, or none."""
KEEPS_UP = 0.97
"""A stream that answers less than this share of what it is offered falls behind."""


@dataclass(frozen=True)
class Probe:
    """A stream at a rate [Hz], without its beginning.

    Attributes
    ----------
    offered, answered, in_time : float
        Events a second: due, answered, and answered within the deadline.
    lost : int
        Events that were shed or dropped.
    latency_s : dict of str to float
        Quantiles, such as `"0.99"`, of what was answered, from when an event was due [s].
    """

    offered: float
    answered: float
    in_time: float
    lost: int
    latency_s: dict[str, float]

    def holds(self, deadline: float) -> bool:
        """Nothing was lost, 99 of 100 were in time, and nothing piles up."""
        kept_up = self.answered >= KEEPS_UP * self.offered
        return kept_up and not self.lost and self.latency_s["0.99"] <= deadline


@dataclass(frozen=True)
class Knee:
    """The highest rate that holds [Hz], 0 for none; every probe; those at that rate."""

    rate: float
    probes: list[Probe] = field(default_factory=list)
    confirmed: list[Probe] = field(default_factory=list)


def find(
    probe: Callable[[float], Probe],
    deadline: float,
    start: float,
    *,
    resolution: float = 0.05,
    repeats: int = 3,
    lowest: float = 1.0,
    told: Callable[[Probe, bool], None] = lambda *_: None,
) -> Knee:
    """Halve the ratio between a rate that holds and one that does not; then make sure of the one that holds.

    Machines have moments: a rate does not hold when two streams in a row do not. In the end more than half of
    `repeats` streams must hold; until so many do, lower rates are tried, in growing steps.

    Parameters
    ----------
    probe : callable
        Streams at a rate.
    deadline : float
        Seconds.
    start : float
        The first rate to try.
    resolution : float
        The rate is known so well.
    lowest : float
        When this does not hold, none does.
    told : callable
        Given each probe, and whether it holds.
    """
    probes: list[Probe] = []

    def holds(rate: float) -> bool:
        probes.append(probe(rate))
        good = probes[-1].holds(deadline)
        told(probes[-1], good)
        return good

    def at(rate: float) -> list[Probe]:
        return [one for one in probes if math.isclose(one.offered, rate)]

    def sure(rate: float) -> bool:
        while True:
            n_good = sum(one.holds(deadline) for one in at(rate))
            if 2 * n_good > repeats:
                return True
            if 2 * (len(at(rate)) - n_good) >= repeats:
                return False
            holds(rate)

    low, high, rate = 0.0, math.inf, start
    while high > (1 + resolution) * low:
        if holds(rate) or holds(rate):
            low = rate
        else:
            high = rate
        if high < lowest:
            return Knee(0.0, probes)
        rate = low * STEP if high == math.inf else high / STEP if low == 0 else math.sqrt(low * high)
    step = 1 + resolution
    while low >= lowest and not sure(low):
        low, step = low / step, min(step * step, STEP)
    return Knee(low, probes, at(low)) if low >= lowest else Knee(0.0, probes)
