"""Policies for batches, rehearsed: what share of the items is answered in time, with the costs of a real network.

The fixed policy has no idea of a deadline, so it is given the best chance: of a grid of `max_batch` and `max_wait`,
what answers the most in each scenario, by hindsight. `timeout` is the same with a third setting: what has waited so
long when its turn comes is given up, as servers do that have a queue timeout.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np

from streamer.batcher import Batch, Batcher, DeadlineBatcher, Part, Shed
from streamer.costs import Costs
from streamer.rehearsal import Seconds, poisson, rehearse, switching

WAITS = (0.0, 0.05, 0.1, 0.2, 0.5)
"""`max_wait` in the grid, as shares of the deadline."""
TIMEOUTS = (0.4, 0.6, 0.8, 1.0)
"""The queue's timeout in the grid, as shares of the deadline."""


@dataclass(frozen=True)
class Rehearsed:
    """One scenario: shares of the items that were answered in time, and the grid's best.

    `load` is the rate of a steady one, as a share of the network's peak, else 0.
    """

    scenario: str
    load: float
    items: int
    adaptive: float
    fixed: float
    fixed_at: tuple[int, float]
    timeout: float
    timeout_at: tuple[int, float, float]


class Timeout(Batcher[int]):
    """The fixed policy with a timeout in the queue."""

    def __init__(self, max_batch: int, max_wait: float, timeout: float) -> None:
        super().__init__(max_batch, max_wait)
        self.timeout = timeout

    def next(self, now: float, *, draining: bool = False) -> Batch[int] | Shed[int] | float | None:
        old: list[Part[int]] = []
        while self._queue and self._queue[0].since + self.timeout < now:
            item = self._queue.popleft()
            old.append(Part(item.key, item.start, item.stop))
        if old:
            n = sum(part.size for part in old)
            self.waiting -= n
            return Shed(old, n)
        return super().next(now, draining=draining)


def scenarios(peak: float, deadline: float, seconds: float) -> Iterator[tuple[str, float, Seconds]]:
    """Name, load if it is a steady one, and arrivals; rates are shares of the network's peak [items/s]."""
    for share in (0.1, 0.5, 0.8, 0.95, 1.2, 1.5):
        yield f"Poisson, {share:g} of the peak", share, poisson(share * peak, seconds, np.random.default_rng(1))
    for title, low, high, dwell in (
        ("short bursts", 0.2, 1.5, deadline),
        ("long bursts", 0.2, 2.0, 5 * deadline),
        ("a load that comes and goes", 0.3, 1.2, seconds / 4),
    ):
        arrivals = switching((low * peak, high * peak), dwell, seconds, np.random.default_rng(1))
        yield f"{title}, {low:g} and {high:g}", 0.0, arrivals


def policies(measured: Mapping[int, float], deadline: float, items: int) -> list[Rehearsed]:
    """Rehearse every scenario.

    Parameters
    ----------
    measured : mapping of int to float
        Seconds of a batch by its size; between those the cost is a line.
    deadline : float
        Seconds after an item's arrival.
    items : int
        About so many in each scenario, at the network's peak.
    """
    known = sorted(measured)
    grid = [(n, share * deadline) for n in known for share in WAITS]
    peak = _costs(measured).peak
    out = []
    for title, load, arrivals in scenarios(peak, deadline, items / peak):
        in_time = partial(_in_time, arrivals, deadline, measured)
        fixed = {at: in_time(Batcher(*at)) for at in grid}
        timeout = {(*at, of * deadline): in_time(Timeout(*at, of * deadline)) for at in grid for of in TIMEOUTS}
        best, best_timeout = max(fixed, key=fixed.__getitem__), max(timeout, key=timeout.__getitem__)
        adaptive = in_time(DeadlineBatcher(_costs(measured)))
        found = adaptive[0], fixed[best][0], best, timeout[best_timeout][0], best_timeout
        out.append(Rehearsed(title, load, arrivals.size, *found))
    return out


def _costs(measured: Mapping[int, float]) -> Costs:
    known = sorted(measured)
    sizes = np.arange(known[0], known[-1] + 1)
    seconds = np.interp(sizes, known, np.maximum.accumulate([measured[n] for n in known]))
    return Costs(dict(zip(sizes.tolist(), seconds.tolist(), strict=True)))


def _in_time(
    arrivals: Seconds, deadline: float, measured: Mapping[int, float], batcher: Batcher[int]
) -> tuple[float, float]:
    """The share that is answered in time; what is better of two that are equal there: their mean lateness, negative."""
    due = arrivals + deadline
    answered = rehearse(batcher, arrivals, due, _costs(measured))
    given = np.isfinite(answered)
    return float(np.mean(answered <= due)), -float(np.mean((answered - arrivals)[given])) if given.any() else 0.0
