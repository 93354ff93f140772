"""Time stamps as they were recorded, made into times that a feed can follow. Pure.

Stamps may be missing, out of order, or years away from their neighbours. The feed then neither stops nor runs wild.
"""

from typing import Literal

import numpy as np
import numpy.typing as npt

Nanoseconds = npt.NDArray[np.int64]

Oddity = Literal["none", "backwards", "jump"]
ODDITIES: tuple[Oddity, ...] = ("none", "backwards", "jump")
"""What can be odd: no time stamp; one before that of an earlier event; one further away than `max_gap`."""


class Recorded:
    """Follows time stamps as far as they go on; always forwards, and by at most `max_gap_ns` from event to event.

    An event without a stamp, or with one a little before those of earlier events, comes with the one in front of it. At
    a stamp further away, in whatever direction, the clock begins anew: `max_gap_ns` later where that lies ahead, at
    once where it lies behind. A single wrong stamp so costs `max_gap_ns` at most.
    """

    def __init__(self, max_gap_ns: int) -> None:
        self.max_gap_ns = max_gap_ns
        self._stamp: int | None = None  # the latest that was followed
        self._clock = 0

    def take(self, stamps: Nanoseconds, *, anew: bool) -> tuple[Nanoseconds, dict[Oddity, Nanoseconds]]:
        """When these events come [ns since the first of all], and the places of odd ones.

        Parameters
        ----------
        stamps : int64, shape (n,)
            In ns from anywhere; 0 and less for none.
        anew : bool
            Something else begins with the first one, such as a file: it need not follow the last one.
        """
        known = np.flatnonzero(stamps > 0)
        times = np.full(stamps.size, -1, np.int64)
        odd: dict[Oddity, list[int]] = {"none": np.flatnonzero(stamps <= 0).tolist(), "backwards": [], "jump": []}
        start, clock_before = 0, self._clock
        while start < known.size:
            rest = stamps[known[start:]]
            if self._stamp is None:
                self._stamp = int(rest[0])
            latest = np.maximum.accumulate(np.concatenate([[self._stamp], rest]))
            far = np.abs(rest - latest[:-1]) > self.max_gap_ns
            n = int(far.argmax()) if far.any() else rest.size
            followed = known[start : start + n]
            times[followed] = self._clock + (latest[1 : n + 1] - self._stamp)
            odd["backwards"] += followed[rest[:n] < latest[:n]].tolist()
            self._clock, self._stamp = self._clock + int(latest[n]) - self._stamp, int(latest[n])
            if n < rest.size:
                if not (anew and start + n == 0):
                    odd["jump"].append(int(known[start + n]))
                    self._clock += self.max_gap_ns if rest[n] > latest[n] else 0
                self._stamp = int(rest[n])
            start += n
        # Those without a stamp come with the one before them.
        found = np.maximum.accumulate(np.concatenate([[clock_before], times]))[1:]
        return found, {kind: np.array(places, np.int64) for kind, places in odd.items()}
