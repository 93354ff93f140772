"""Batchers rehearsed, alone or together on a device: arrivals are played to them without clock, device or network."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from streamer.batcher import Batch, Batcher
from streamer.costs import Costs
from streamer.device import Device

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
    device: Device[int] = Device()
    device.put("", batcher)
    return rehearse_together(device, {"": arrivals}, {"": deadlines}, {"": costs})[""]


def rehearse_together(
    device: Device[int],
    arrivals: Mapping[str, Seconds],
    deadlines: Mapping[str, Seconds],
    costs: Mapping[str, Costs],
) -> dict[str, Seconds]:
    """The same for several queues that share a device; everything by queue."""
    answered = {queue: np.full(at.size, np.inf) for queue, at in arrivals.items()}
    coming = sorted((t, k, queue) for queue, at in arrivals.items() for k, t in enumerate(at.tolist()))
    now, n_come = 0.0, 0
    while n_come < len(coming) or any(n for _, n in device.waiting()):
        while n_come < len(coming) and coming[n_come][0] <= now:
            at, k, queue = coming[n_come]
            device[queue].add(k, 1, at, deadlines=deadlines[queue][k : k + 1])
            n_come += 1
        decision = device.next(now, draining=n_come == len(coming))
        if isinstance(decision, tuple):
            queue, what = decision
            if isinstance(what, Batch):
                now += costs[queue].of(what.size)
                answered[queue][[part.key for part in what.parts]] = now
        else:
            until = np.inf if decision is None else decision
            now = max(now, min(until, coming[n_come][0]) if n_come < len(coming) else until)
    return answered


def poisson(rate: float, seconds: float, random: np.random.Generator) -> Seconds:
    """Arrivals that are independent of each other."""
    return np.sort(random.uniform(0.0, seconds, random.poisson(rate * seconds)))


def switching(rates: tuple[float, ...], dwell: float, seconds: float, random: np.random.Generator) -> Seconds:
    """A Poisson process whose rate changes every `dwell` seconds [s]: bursts, or a load that comes and goes."""
    begins = np.arange(0.0, seconds, dwell)
    parts = [begin + poisson(rates[k % len(rates)], dwell, random) for k, begin in enumerate(begins)]
    return np.concatenate(parts)
