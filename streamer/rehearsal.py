"""A batcher rehearsed: arrivals are played to it without clock, device or network."""

import numpy as np
import numpy.typing as npt

from streamer.batcher import Batch, Batcher, Shed
from streamer.costs import Costs

Seconds = npt.NDArray[np.float64]


def rehearse(batcher: Batcher[int], arrivals: Seconds, deadlines: Seconds, costs: Costs) -> Seconds:
    """When each item is answered [s]; infinity for those that are given up.

    Parameters
    ----------
    arrivals : float64, shape (n,)
        When each item comes [s], not falling.
    deadlines : float64, shape (n,)
        When each item's answer is worth nothing any more [s].
    costs : Costs
        What a batch takes on the device that is played.
    """
    answered = np.full(arrivals.size, np.inf)
    now, n_come = 0.0, 0
    while n_come < arrivals.size or batcher.waiting:
        while n_come < arrivals.size and arrivals[n_come] <= now:
            at = float(arrivals[n_come])
            batcher.add(n_come, 1, at, deadlines=deadlines[n_come : n_come + 1])
            n_come += 1
        decision = batcher.next(now, draining=n_come == arrivals.size)
        if isinstance(decision, Batch):
            now += costs.of(decision.size)
            answered[[part.key for part in decision.parts]] = now
        elif not isinstance(decision, Shed):
            until = np.inf if decision is None else decision
            now = max(now, min(until, float(arrivals[n_come])) if n_come < arrivals.size else until)
    return answered


def poisson(rate: float, seconds: float, random: np.random.Generator) -> Seconds:
    """Arrivals that are independent of each other."""
    return np.sort(random.uniform(0.0, seconds, random.poisson(rate * seconds)))


def switching(rates: tuple[float, ...], dwell: float, seconds: float, random: np.random.Generator) -> Seconds:
    """A Poisson process whose rate changes every `dwell` seconds [s]: bursts, or a load that comes and goes."""
    begins = np.arange(0.0, seconds, dwell)
    parts = [begin + poisson(rates[k % len(rates)], dwell, random) for k, begin in enumerate(begins)]
    return np.concatenate(parts)
