"""When events leave the reader. Pure: time is injected."""

import numpy as np
import numpy.typing as npt

from streamer.config import FeedConfig

FAR_S = 5e9
"""A time that never comes, and whose nanoseconds still fit into 64 bits."""


class Feed:
    """Cuts the input into blocks and gives each event the moment it is due.

    With a rate, event i is due at `start + i / rate` whatever the chain does, so that latency counts from the
    schedule and a slow chain cannot hide its lateness. Without one, events are due when they are asked for.

    Parameters
    ----------
    config : FeedConfig
    start_ns : int
        Unix time of the first event [ns].
    """

    def __init__(self, config: FeedConfig, start_ns: int) -> None:
        self.config, self.start_ns = config, start_ns
        self.fed = 0
        self._most = config.block_events
        if config.rate:
            self._most = min(self._most, 1 + int(config.block_wait * config.rate))

    def next(self, available: int, now_ns: int) -> npt.NDArray[np.int64]:
        """When each event of the next block is due [Unix time in ns]; the block leaves with its last one.

        Parameters
        ----------
        available : int
            Events at hand, at least one; the block takes the first `result.size` of them.
        """
        n = min(max(self._most, self._overdue(now_ns)), available)
        if self.config.rate:
            places = np.arange(self.fed, self.fed + n)
            seconds = np.minimum(places / self.config.rate, FAR_S)
            due = self.start_ns + (seconds * 1e9).astype(np.int64)
        else:
            due = np.full(n, now_ns, np.int64)
        self.fed += n
        return due

    def _overdue(self, now_ns: int) -> int:
        """Events that should have left by now, up to a full block: a feed that is late catches up in large blocks."""
        if not self.config.rate:
            return 0
        due = min((now_ns - self.start_ns) * 1e-9, FAR_S) * self.config.rate
        return min(self.config.block_events, int(due) - self.fed)
