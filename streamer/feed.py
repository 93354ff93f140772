"""When events leave the reader. Pure: time is injected."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from streamer.arrivals import DRAWN, Bunches, Even, Poisson, Profile, Schedule, Seconds, Steady, filling_of
from streamer.block import Columns
from streamer.config import FeedConfig, lumisection_of
from streamer.errors import UsageError

_KINDS = {
    "fixed": ("rate", "even"),
    "poisson": ("rate", "poisson"),
    "bunches": ("rate", "bunches"),
    "pileup": ("pileup", "bunches"),
}
_NOTHING: dict[str, object] = {
    "feed.rate": 0.0,
    "feed.arrivals": "even",
    "feed.profile": [],
    "feed.pileup": 0.0,
    "feed.speed": 1.0,
}
"""As fast as the chain takes them, whatever a configuration file says."""

SHARE = 1 / 2
"""A block may wait for so large a share of the time that blocks are on their way,"""
MOST = 32
"""... but for no more than so many times `block_wait`,"""
MOST_OF_DEADLINE = 1 / 16
"""... and for no more than so large a share of the deadline; in an overload, of that for the share that is answered,"""
LEAST_ANSWERED = 1 / 4
"""... which is taken to be no smaller than this,"""
FEW = 32
"""... unless so few events come in that time: what their blocks cost besides is then more than what they save."""
SKIPPED = 1 << 20
"""So many events are drawn at a time that are skipped."""
FAR_S = 5e9
"""A time that never comes, and whose nanoseconds still fit into 64 bits."""
_NEVER = (1 << 63) - 1


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

    Attributes
    ----------
    passed : int
        How far it has come: when the last event was due that it has cut, after the start [ns]; `duration` at the end.
    """

    def __init__(self, config: FeedConfig, start_ns: int, source: int = 0, n_sources: int = 1) -> None:
        self.config, self.start_ns = config, start_ns
        self.fed = self.passed = 0
        self._schedule = schedule_of(config, source, n_sources) if config.hertz else None
        self._drawn: npt.NDArray[np.int64] = np.zeros(0, np.int64)
        self._recorded_at: int | None = None  # what is due at the start
        self._end = int(config.duration * 1e9) or _NEVER

    def skip(self, n: int, passed: int) -> None:
        """Go on behind the first `n` events of the schedule, or without one where `passed` was so much [ns].

        The next event is due at the start.
        """
        if self._schedule is None:
            self.passed, self.start_ns = passed, self.start_ns - passed
            return
        if not n:
            return
        while n:
            passed = min(n, SKIPPED)
            self._ahead(self._schedule, passed)
            self._drawn, n = self._drawn[passed:], n - passed
        self.start_ns -= int(self._ahead(self._schedule, 1)[0])

    def over(self, now_ns: int) -> bool:
        """Whether `duration` has passed."""
        return now_ns - self.start_ns >= self._end

    def next(
        self,
        available: int,
        now_ns: int,
        way: float = 0.0,
        recorded: npt.NDArray[np.int64] | None = None,
        *,
        answered: float = 1.0,
        again: bool = False,
    ) -> npt.NDArray[np.int64]:
        """When each event of the next block is due [Unix time in ns]; the block leaves with its last one.

        A block is closed when it has `block_events`, or when its first event has waited `block_wait`; a feed that is
        late catches up in full blocks. Each block costs the chain something besides its events. Where blocks are long
        on their way, the chain is loaded or slow: then a block waits for up to half of the way, at most 32 times
        `block_wait`. Under a deadline a block is never longer than a sixteenth of that, for no event leaves a stage
        before its whole block; and where not all is answered, it holds no more than the chain answers in that time, or
        a few.

        Parameters
        ----------
        available : int
            Events at hand, at least one; the block takes the first `result.size` of them. None: `duration` is over.
        way : float
            How long blocks are on their way at present [s].
        recorded : int64, shape (available,), optional
            When they were recorded [ns], not falling; for `arrivals = "recorded"`.
        answered : float
            The share of what is due that is answered at present, and not dropped or shed.
        again : bool
            These had their time in an earlier life: they are due, also if `duration` is over.
        """
        most = min(self.config.block_events, available)
        if recorded is not None:
            due = self._as_recorded(recorded[:most], now_ns)
        elif self._schedule is not None:
            due = self._ahead(self._schedule, most)
        else:
            due = np.full(most, now_ns - self.start_ns, np.int64)
        if not again:
            due = due[: np.searchsorted(due, self._end)]
        if not due.size:
            self.passed = self._end
            return due
        wait = min(max(self.config.block_wait, SHARE * way), MOST * self.config.block_wait)
        until = max(int(due[0]) + int(wait * 1e9), now_ns - self.start_ns)
        if self.config.deadline:
            most_ns = int(MOST_OF_DEADLINE * self.config.deadline * 1e9)
            few = int(due[min(FEW, due.size) - 1]) - int(due[0])
            until = min(until, int(due[0]) + min(most_ns, max(few, int(most_ns * max(answered, LEAST_ANSWERED)))))
        n = int(np.searchsorted(due, until, side="right"))
        self.fed, self.passed = self.fed + n, int(due[n - 1])
        self._drawn = self._drawn[n:]
        return self.start_ns + due[:n]

    def _as_recorded(self, recorded: npt.NDArray[np.int64], now_ns: int) -> npt.NDArray[np.int64]:
        """When events are due [ns since the first one]."""
        if self._recorded_at is None:
            self.start_ns = now_ns - self.passed
            self._recorded_at = int(recorded[0]) - int(self.passed * self.config.speed)
        return _ns((recorded - self._recorded_at).astype(np.float64) * (1e-9 / self.config.speed))

    def _ahead(self, schedule: Schedule, n: int) -> npt.NDArray[np.int64]:
        """When the next `n` events are due [ns since the start]."""
        if self._drawn.size < n:
            self._drawn = np.concatenate([self._drawn, _ns(schedule.take(max(n, DRAWN)))])
        return self._drawn[:n]


class Lumisections:
    """Counts the lumisections of the input that are fed, in whatever order they come.

    Parameters
    ----------
    most : int
        0: any number.
    known : iterable of (run, lumisection)
        Those that were fed before.
    """

    def __init__(self, most: int, known: Iterable[tuple[int, int]] = ()) -> None:
        self.most, self._known = most, set(known)

    def room(self, columns: Columns) -> int:
        """How many of these events come before the first one of a lumisection too many."""
        if not self.most:
            return 1 << 62
        runs, lumis = columns["run"].astype(np.uint64), columns["luminosityBlock"].astype(np.uint64)
        keys, firsts = np.unique(runs << np.uint64(32) | lumis, return_index=True)
        for place in np.argsort(firsts):
            lumi = divmod(int(keys[place]), 1 << 32)
            if lumi not in self._known and len(self._known) == self.most:
                return int(firsts[place])
            self._known.add(lumi)
        return int(runs.size)


class LumiClock:
    """Counts lumisections by the feed's own clock, or by its events.

    By time each life of a feed begins another one: none has a pause in it. An event that is fed again keeps its own,
    and one before it that was not booked goes with it: lumisections never fall.

    Parameters
    ----------
    length : str
        As `FeedConfig.lumisection`.
    last : int
        The last one that was fed before.
    before : iterable of (first, last, lumisection)
        Sequence numbers of events that were fed before, also of what is between them.
    most : int
        No event of a later one is fed; 0: any number.
    """

    def __init__(self, length: str, last: int = 0, before: Iterable[tuple[int, int, int]] = (), most: int = 0) -> None:
        seconds, self._events = lumisection_of(length)
        self._ns, self._last, self._most = round(seconds * 1e9), last, most
        self._begin: int | None = None
        rows = np.array(sorted(before), np.int64).reshape(-1, 3)
        self._firsts, self._ends, self._lumis = rows[:, 0], rows[:, 1], rows[:, 2]

    def of(self, first: int, due: npt.NDArray[np.int64]) -> npt.NDArray[np.uint32]:
        """The lumisection of each of some events in a row, up to the first one that is not fed any more.

        Parameters
        ----------
        first : int
            Sequence number of the first of them.
        due : int64, shape (n_events,)
            When they are due [ns], not falling.
        """
        numbers = first + np.arange(due.size)
        if self._events:
            found = 1 + numbers // self._events
        else:
            place = np.searchsorted(self._firsts, numbers, side="right") - 1
            again = (place >= 0) & (numbers <= np.append(self._ends, -1)[place])
            kept = np.append(self._lumis, 0)[np.where(again, place, place + 1)]
            new = kept == 0
            if self._begin is None and new.any():
                self._begin = int(due[new][0])
            counted = self._last + 1 + (due - (self._begin or 0)) // self._ns
            found = np.where(new, counted, kept)
        n = int(np.searchsorted(found, self._most, side="right")) if self._most else due.size
        return found[:n].astype(np.uint32)


def feed_settings(text: str) -> dict[str, object]:
    """The settings of a feed in a few words.

    `max`, `fixed 2000`, `poisson 2000`, `bunches 2000` [Hz], `pileup 0.001` (bunches, by the mean number of
    collisions), `steps 10s:500 1s:3000` (at equal distances), `bursts ...` (at random ones), `recorded` or `recorded 2`
    (by time stamps, twice as fast).

    Raises
    ------
    UsageError
        It is none of these, or nothing would ever come.
    """
    kind, *words = text.split() or [""]
    try:
        if kind == "max" and not words:
            return _NOTHING
        if kind == "recorded" and len(words) <= 1:
            return {**_NOTHING, "feed.arrivals": kind, "feed.speed": _above_0(text, *words or ["1"])}
        if kind in ("steps", "bursts") and words:
            steps = [tuple(word.split(":")) for word in words]
            profile = [[length, float(rate)] for length, rate in steps]
            arrivals = "even" if kind == "steps" else "poisson"
            return {**_NOTHING, "feed.profile": profile, "feed.arrivals": arrivals}
        if kind in _KINDS and len(words) == 1:
            key, arrivals = _KINDS[kind]
            return {**_NOTHING, f"feed.{key}": _above_0(text, *words), "feed.arrivals": arrivals}
    except ValueError:
        pass
    raise UsageError(
        f"--feed '{text}': write max, 'fixed HZ', 'poisson HZ', 'bunches HZ', 'pileup MEAN', 'recorded', "
        "'recorded SPEED', or a profile such as 'steps 10s:500 1s:3000' or 'bursts 10s:500 1s:3000'"
    )


def _above_0(text: str, word: str) -> float:
    number = float(word)
    if not number > 0:
        raise UsageError(f"--feed '{text}': nothing would ever come; write a number above 0, or 'max'")
    return number


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
    """To the nearest: cut off, one event in a few would be due 1 ns before the edge of a lumisection it lies on."""
    found: npt.NDArray[np.int64] = np.rint(np.minimum(seconds, FAR_S) * 1e9).astype(np.int64)
    return found
