"""When events leave the reader. Pure: time is injected."""

import numpy as np
import numpy.typing as npt

from streamer.arrivals import DRAWN, Bunches, Even, Poisson, Profile, Schedule, Seconds, Steady, filling_of
from streamer.config import FeedConfig
from streamer.errors import UsageError

_KINDS = {
    "fixed": ("rate", "even"),
    "poisson": ("rate", "poisson"),
    "bunches": ("rate", "bunches"),
    "pileup": ("pileup", "bunches"),
}

SHARE = 8
"""See `Feed.next`."""
FAR_S = 5e9
"""A time that never comes, and whose nanoseconds still fit into 64 bits."""


class Feed:
    """Cuts the input into blocks and gives each event the moment it is due.

    With a rate, each event has its place in a schedule that knows nothing of the chain, so that latency counts from the
    schedule and a slow chain cannot hide its lateness. Without one, events are due when they are asked for.

    Parameters
    ----------
    config : FeedConfig
    start_ns : int
        Unix time of the first event [ns].
    source, n_sources : int
        Which of so many sources this is; each has its share of the rate, and random numbers of its own.
    """

    def __init__(self, config: FeedConfig, start_ns: int, source: int = 0, n_sources: int = 1) -> None:
        self.config, self.start_ns = config, start_ns
        self.fed = 0
        self._schedule = schedule_of(config, source, n_sources) if config.hertz else None
        self._drawn: npt.NDArray[np.int64] = np.zeros(0, np.int64)

    def next(self, available: int, now_ns: int, way: float = 0.0) -> npt.NDArray[np.int64]:
        """When each event of the next block is due [Unix time in ns]; the block leaves with its last one.

        A block is closed when it has `block_events`, or when its first event has waited `block_wait`; a feed that is
        late catches up in full blocks. Where events are long on their way, the chain is loaded, and each block costs it
        something besides: then a block waits for up to an eighth of the way, at most eight times `block_wait`. Under a
        deadline a block is never longer than an eighth of that, for no event leaves a stage before its whole block.

        Parameters
        ----------
        available : int
            Events at hand, at least one; the block takes the first `result.size` of them.
        way : float
            How long events are on their way at present [s].
        """
        most = min(self.config.block_events, available)
        if self._schedule is None:
            self.fed += most
            return np.full(most, now_ns, np.int64)
        due = self._ahead(self._schedule, most)
        wait = min(max(self.config.block_wait, way / SHARE), SHARE * self.config.block_wait)
        until = max(int(due[0]) + int(wait * 1e9), now_ns - self.start_ns)
        if self.config.deadline:
            until = min(until, int(due[0]) + int(self.config.deadline * 1e9) // SHARE)
        n = int(np.searchsorted(due, until, side="right"))
        self.fed += n
        self._drawn = self._drawn[n:]
        return self.start_ns + due[:n]

    def _ahead(self, schedule: Schedule, n: int) -> npt.NDArray[np.int64]:
        """When the next `n` events are due [ns since the start]."""
        if self._drawn.size < n:
            self._drawn = np.concatenate([self._drawn, _ns(schedule.take(max(n, DRAWN)))])
        return self._drawn[:n]


def feed_settings(text: str) -> dict[str, object]:
    """The settings of a feed in a few words.

    `max`, `fixed 2000`, `poisson 2000`, `bunches 2000` [Hz], `pileup 0.001` (bunches, by the mean number of
    collisions), `steps 10s:500 1s:3000` (at equal distances) or `bursts ...` (at random ones).

    Raises
    ------
    UsageError
        It is none of these.
    """
    kind, *words = text.split() or [""]
    try:
        if kind == "max" and not words:
            return {"feed.rate": 0.0}
        if kind in ("steps", "bursts") and words:
            steps = [tuple(word.split(":")) for word in words]
            arrivals = "even" if kind == "steps" else "poisson"
            return {"feed.profile": [[length, float(rate)] for length, rate in steps], "feed.arrivals": arrivals}
        if kind in _KINDS and len(words) == 1:
            key, arrivals = _KINDS[kind]
            return {f"feed.{key}": float(words[0]), "feed.arrivals": arrivals}
    except ValueError:
        pass
    raise UsageError(
        f"--feed '{text}': write max, 'fixed HZ', 'poisson HZ', 'bunches HZ', 'pileup MEAN', or a profile such as "
        "'steps 10s:500 1s:3000' or 'bursts 10s:500 1s:3000'"
    )


def schedule_of(config: FeedConfig, source: int = 0, n_sources: int = 1) -> Schedule:
    """When the events of one of several sources come."""
    random = np.random.default_rng((config.seed, source))
    if config.arrivals == "bunches":
        return Bunches(filling_of(config.filling), config.hertz / n_sources, random)
    unit = Poisson(random) if config.arrivals == "poisson" else Even()
    if config.profile:
        return Profile(unit, [(length, rate / n_sources) for length, rate in config.profile])
    return Steady(unit, config.hertz / n_sources)


def _ns(seconds: Seconds) -> npt.NDArray[np.int64]:
    found: npt.NDArray[np.int64] = (np.minimum(seconds, FAR_S) * 1e9).astype(np.int64)
    return found
