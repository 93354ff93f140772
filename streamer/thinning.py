"""Lines that say the same again and again: some are let through, the others are counted."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

BURST, SPAN_S = 20, 10.0
"""Of one kind so many lines are let through within so many seconds."""


@dataclass
class _Kind:
    since: float
    n: int = 0
    last: logging.LogRecord | None = None  # of those that were left out


class Thinning:
    """Thins what comes from one place of the code, of which there are only so many.

    Nothing is left out silently: a line that takes the place of the others says how many they were.

    Parameters
    ----------
    burst, span : int, float
        So many records of a place are let through within so many seconds.
    clock : callable
        Gives seconds.
    """

    def __init__(self, burst: int = BURST, span: float = SPAN_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst, self._span, self._clock = burst, span, clock
        self._kinds: dict[tuple[str, int], _Kind] = {}

    def takes(self, record: logging.LogRecord) -> bool:
        """Whether a record is to be written."""
        place = record.pathname, record.lineno
        kind = self._kinds.get(place)
        if kind is None:
            kind = self._kinds[place] = _Kind(self._clock())
        kind.n += 1
        if kind.n <= self._burst:
            return True
        kind.last = record
        return False

    def left_out(self, *, all_: bool = False) -> list[logging.LogRecord]:
        """A record for each kind whose time is over (or for all), of which some were left out."""
        now, told = self._clock(), []
        for place, kind in list(self._kinds.items()):
            if all_ or now - kind.since >= self._span:
                del self._kinds[place]
                if kind.last is not None:
                    told.append(_summary(kind.last, kind.n - self._burst))
        return told


def _summary(last: logging.LogRecord, n: int) -> logging.LogRecord:
    record = logging.makeLogRecord(last.__dict__)
    text = last.getMessage()
    record.msg, record.args = f"{text} (and {n - 1:,} more lines like this were left out)" if n > 1 else text, ()
    record.left_out = n - 1
    return record
