"""How far from the optimum it is that a free network never waits: figures of docs/batching.md."""

import math

import numpy as np
import pytest

from streamer.batcher import Batch, Batcher, DeadlineBatcher, Shed
from streamer.costs import Costs
from streamer.rehearsal import poisson, rehearse

ONCE_AND_EACH = [(0.17e-3, 33e-6, 128), (0.02e-3, 118e-6, 64), (1e-3, 20e-6, 128)]
"""Seconds that a batch costs once, seconds for each of its crops, and the largest batch."""


class Threshold(Batcher[int]):
    """Begins when so many wait: with the right number, the optimum for Poisson arrivals without deadlines."""

    def __init__(self, threshold: int, max_batch: int) -> None:
        super().__init__(max_batch, math.inf)
        self.threshold = threshold

    def next(self, now: float, *, draining: bool = False) -> Batch[int] | Shed[int] | float | None:
        if self.waiting and (self.waiting >= self.threshold or draining):
            return self._close("idle", self.max_batch)
        return None


@pytest.mark.parametrize("load", [0.05, 0.6, 0.9])
@pytest.mark.parametrize(("once", "each", "most"), ONCE_AND_EACH)
def test_a_free_network_that_never_waits_is_near_the_optimum(once: float, each: float, most: int, load: float) -> None:
    costs = {n: once + n * each for n in range(1, most + 1)}
    rate = load * Costs(costs).peak
    arrivals = poisson(rate, 6000 / rate, np.random.default_rng(1))

    def late(batcher: Batcher[int]) -> tuple[float, float]:
        latency = rehearse(batcher, arrivals, np.full(arrivals.size, np.inf), Costs(costs)) - arrivals
        return float(latency.mean()), float(np.quantile(latency, 0.99))

    mean, p99 = late(DeadlineBatcher(Costs(costs)))
    best = [late(Threshold(threshold, most)) for threshold in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)]
    assert mean <= 1.01 * min(one for one, _ in best)
    assert p99 <= 1.03 * min(one for _, one in best)
    assert mean < 0.95 * late(Threshold(most, most))[0], "thresholds matter, if they are far from the best"
