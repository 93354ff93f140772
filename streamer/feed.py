"""When events leave the reader. Pure: time is injected."""

import numpy as np
import numpy.typing as npt

from streamer.config import FeedConfig

SHARE = 8
"""See `Feed.next`."""
FAR_S = 5e9
"""A time that never comes, and whose nanoseconds still fit into 64 bits."""
DRAWN = 4096
"""So many random gaps are drawn at a time."""


class Feed:
    """Cuts the input into blocks and gives each event the moment it is due.

    With a rate, each event has its place in a schedule that knows nothing of the chain, so that latency counts from the
    schedule and a slow chain cannot hide its lateness. Without one, events are due when they are asked for.

    Parameters
    ----------
    config : FeedConfig
    start_ns : int
        Unix time of the first event [ns].
    seed : sequence of int
        Of the random arrivals.
    """

    def __init__(self, config: FeedConfig, start_ns: int, seed: tuple[int, ...] = ()) -> None:
        self.config, self.start_ns = config, start_ns
        self.fed = 0
        self._random = np.random.default_rng((config.seed, *seed))
        self._drawn: npt.NDArray[np.int64] = np.zeros(1 if config.rate else 0, np.int64)
        self._last_s = 0.0

    def next(self, available: int, now_ns: int, way: float = 0.0) -> npt.NDArray[np.int64]:
        """When each event of the next block is due [Unix time in ns]; the block leaves with its last one.

        A block is closed when it has `block_events`, or when its first event has waited `block_wait`; a feed that is
        late catches up in full blocks. Where events are long on their way, the chain is loaded, and each block costs it
        something besides: then a block waits for up to an eighth of the way, at most eight times `block_wait`.

        Parameters
        ----------
        available : int
            Events at hand, at least one; the block takes the first `result.size` of them.
        way : float
            How long events are on their way at present [s].
        """
        most = min(self.config.block_events, available)
        if not self.config.rate:
            self.fed += most
            return np.full(most, now_ns, np.int64)
        due = self._ahead(most)
        wait = min(max(self.config.block_wait, way / SHARE), SHARE * self.config.block_wait)
        until = max(int(due[0]) + int(wait * 1e9), now_ns - self.start_ns)
        n = int(np.searchsorted(due, until, side="right"))
        self.fed += n
        self._drawn = self._drawn[n:]
        return self.start_ns + due[:n]

    def _ahead(self, n: int) -> npt.NDArray[np.int64]:
        """When the next `n` events are due [ns since the start]."""
        if self.config.arrivals == "even":
            return _ns(np.arange(self.fed, self.fed + n) / self.config.rate)
        while self._drawn.size < n:
            seconds = self._last_s + np.cumsum(self._random.exponential(1.0, DRAWN) / self.config.rate)
            self._last_s = float(seconds[-1])
            self._drawn = np.concatenate([self._drawn, _ns(seconds)])
        return self._drawn[:n]


def _ns(seconds: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = (np.minimum(seconds, FAR_S) * 1e9).astype(np.int64)
    return found
