"""Watches the time stamps that a feed follows: odd ones are counted, and the first of each kind is told."""

import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stages.formats.base import Step
from stages.records import TIME
from streamer.block import Columns
from streamer.config import FeedConfig
from streamer.recorded import Oddity, Recorded
from streamer.report import duration

log = logging.getLogger(__name__)

_DAY_S = 86_400.0
_IN_SHORT = {"none": "are missing", "backwards": "lie before an earlier one", "jump": "are far from the one before"}
_MOST_NS = 4e18


class Watch:
    """The time stamps of a source.

    Parameters
    ----------
    feed : FeedConfig
    count : callable
        Told (`odd_time_stamps`, kind, number).
    """

    def __init__(self, feed: FeedConfig, count: Callable[[str, str, int], None]) -> None:
        self._wanted, self._count = feed.arrivals == "recorded", count
        self._recorded = Recorded(int(min(feed.max_gap * feed.speed * 1e9, _MOST_NS)))
        self._max_gap = feed.max_gap
        self._told: set[str] = set()
        self._path: Path | str = ""
        self._anew, self._last = True, 0
        self._n, self._odd = 0, Counter[str]()

    def begin(self, path: Path | str) -> None:
        """Another file begins, whose time stamps need not follow."""
        self._path, self._anew = path, True

    def times(self, step: Step) -> Columns:
        """The column `recorded` of a step, where it is wanted."""
        if not self._wanted:
            return {}
        stamps = step.columns[TIME.name]
        times, odd = self._recorded.take(stamps, anew=self._anew)
        for kind, places in odd.items():
            self._count("odd_time_stamps", kind, places.size)
            self._odd[kind] += places.size
            if places.size and kind not in self._told:
                self._told.add(kind)
                self._tell(kind, int(step.entries[places[0]]), self._apart(stamps, int(places[0])))
        self._anew, self._last, self._n = False, int(stamps[-1]), self._n + stamps.size
        return {"recorded": times}

    def _apart(self, stamps: "np.ndarray[tuple[int], np.dtype[np.int64]]", place: int) -> str:
        """How far an event is from the one before it."""
        seconds = abs(int(stamps[place]) - int(stamps[place - 1] if place else self._last)) * 1e-9
        return f"{seconds / _DAY_S:,.1f} days" if seconds > _DAY_S else duration(seconds)

    def _tell(self, kind: Oddity, entry: int, apart: str) -> None:
        """One line: what, where, and what comes of it."""
        what, then = {
            "none": ("has no time stamp", "it comes with the event before it"),
            "backwards": ("was recorded before an earlier one", "it comes at once"),
            "jump": (
                f"was recorded {apart} from the one before it",
                f"the feed goes on in at most {duration(self._max_gap)} (feed.max_gap)",
            ),
        }[kind]
        log.warning(
            "%s: entry %d %s; %s. Others are counted. If many are so, see whether [input.columns] %s is right, "
            "and input.time_unit",
            *(self._path, entry, what, then, TIME.name),
        )

    def close(self) -> None:
        """Tell how many were odd."""
        if self._odd.total():
            told = ", ".join(f"{n:,} {_IN_SHORT[kind]}" for kind, n in self._odd.items() if n)
            log.warning("of %s time stamps, %s", f"{self._n:,}", told)
