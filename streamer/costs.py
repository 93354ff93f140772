"""What a batch costs, by its size: learned at warm-up, kept current while running. Pure: times are given."""

import bisect
import math
from collections.abc import Mapping
from itertools import accumulate

import numpy as np

from streamer.block import Array

MEMORY = 1 / 16
"""Weight of the newest measurement in how fast the machine is."""
OWN_MEMORY = MEMORY / 8
"""... and in what is special of its size."""
MAX_STEP = 4.0
"""A measurement that is so many times the mean counts as no more: a pause of the machine is not the network's cost."""

NEARLY = 0.98
"""Of sizes that do so much of the peak, the largest is the best: it has the least work around it."""


def useful_sizes(measured: Mapping[int, float], waste: float = 0.1) -> list[int]:
    """The batch sizes worth warming up: padding to the next one costs no more than so large a share.

    Where a batch costs nearly the same whatever its size, few sizes do; where each item costs, many are needed.

    Parameters
    ----------
    measured : mapping of int to float
        Seconds of some sizes, the smallest and the largest that are wanted among them; between them the cost is a line.
    """
    known = sorted(measured)
    costs = np.maximum.accumulate([measured[size] for size in known])
    of = np.interp(np.arange(known[-1] + 1), known, costs)
    sizes = [known[0]]
    while sizes[-1] < known[-1]:
        least = sizes[-1] + 1  # who is padded the most
        fits = np.flatnonzero(of[least:] <= (1.0 + waste) * of[least])
        sizes.append(least + int(fits[-1]))
    return sizes


def largest_useful(measured: Mapping[int, float], overhead: float = 0.0, loss: float = 0.4) -> int:
    """The largest size that does about as many items a second as the best; a larger one is late for nothing.

    On a processor a batch that leaves its cache can be slower than two of half its size.

    Parameters
    ----------
    measured : mapping of int to float
        Seconds by size.
    overhead : float
        Seconds that each batch costs besides.
    loss : float
        So large a share may be missing: at a start, with other processes beside, no time is known better.
    """
    rates = {n: n / (seconds + overhead) for n, seconds in measured.items()}
    best = max(rates.values())
    return max(n for n, rate in rates.items() if rate >= (1.0 - loss) * best)


class Costs:
    """Seconds that a batch takes, by its size; only the sizes that were warmed up are run.

    A size that is seldom run follows the others: how much slower or faster the machine has become since the warm-up is
    learned of all of them, and what is special of one size of its own measurements.

    Parameters
    ----------
    seconds : mapping of int to float
        What each size took at warm-up. A larger batch never counts as cheaper than a smaller one.
    """

    def __init__(self, seconds: Mapping[int, float]) -> None:
        if not seconds or min(seconds) < 1 or not all(0.0 < s < math.inf for s in seconds.values()):
            raise ValueError("sizes of at least one, with finite costs above zero, are needed")
        self.sizes = sorted(seconds)
        self._own = [seconds[size] for size in self.sizes]
        # The costs are the first, none below one before it, times the second; another thread may read meanwhile.
        self._shape_and_drift = list(accumulate(self._own, max)), 1.0

    @property
    def max_batch(self) -> int:
        return self.sizes[-1]

    def size(self, n: int) -> int:
        """The size that a batch of `n` items is padded to."""
        return self.sizes[self._place(n)]

    def of(self, n: int) -> float:
        """Seconds that a batch of `n` items takes, padding included."""
        shape, drift = self._shape_and_drift
        return shape[self._place(n)] * drift

    def of_each(self, n: Array) -> Array:
        """The same for many."""
        shape, drift = self._shape_and_drift
        found: Array = np.array(shape)[np.searchsorted(self.sizes, n)] * drift
        return found

    def most(self, seconds: float) -> int:
        """The largest size that takes no longer than this; 0 for none."""
        shape, drift = self._shape_and_drift
        place = bisect.bisect_right(shape, seconds, key=lambda one: one * drift)
        return self.sizes[place - 1] if place else 0

    @property
    def best(self) -> int:
        """The size that does the most items a second, or nearly (`NEARLY`)."""
        per_s = self._per_s()
        enough = NEARLY * max(per_s)
        return max(size for size, rate in zip(self.sizes, per_s, strict=True) if rate >= enough)

    @property
    def peak(self) -> float:
        """Items a second, of the size that does the most."""
        return max(self._per_s())

    def _per_s(self) -> list[float]:
        shape, drift = self._shape_and_drift
        return [size / (seconds * drift) for size, seconds in zip(self.sizes, shape, strict=True)]

    def learn(self, n: int, seconds: float) -> None:
        """A batch of `n` items took so long."""
        place = self._place(n)
        shape, drift = self._shape_and_drift
        ratio = min(seconds / (shape[place] * drift), MAX_STEP)
        drift *= 1.0 + MEMORY * (ratio - 1.0)
        expected = self._own[place] * drift
        self._own[place] *= 1.0 + OWN_MEMORY * (min(seconds / expected, MAX_STEP) - 1.0)
        self._shape_and_drift = self._shaped(shape, place), drift

    def _shaped(self, shape: list[float], place: int) -> list[float]:
        """The shape since the cost at a place has changed."""
        shape = shape.copy()
        least = shape[place - 1] if place else 0.0
        for k in range(place, len(shape)):
            least = max(least, self._own[k])
            if k > place and shape[k] == least:  # and so are all that follow
                break
            shape[k] = least
        return shape

    def _place(self, n: int) -> int:
        if not 1 <= n <= self.sizes[-1]:
            raise ValueError(f"a batch of {n} items; 1 to {self.sizes[-1]} can be run")
        return bisect.bisect_left(self.sizes, n)
