"""What a run's data look like now, against the reference of a good run. Pure: no clock, no network, no file.

Counts are added up over all processes and over their deaths, as in Prometheus; what one had counted in the last seconds
before it was killed is missing.
"""

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from streamer.config import QualityConfig
from streamer.monitor.watch import Seen
from streamer.quality import Quantity
from streamer.reference import LARGE, MIXED, NOTABLE, Distribution, Key, Taken, apart, compared

MOST_KEPT = 32
"""So many looks are kept of a window."""
LOOKS_BEFORE = 3
"""So many looks after a change what was worked on before it has come out."""

Floats = npt.NDArray[np.float64]


class Drift:
    """The distributions of a run, of the last time and of all.

    Parameters
    ----------
    quantities : sequence of Quantity
        What is measured.
    reference : Taken, optional
        That fits them.

    Attributes
    ----------
    names : frozenset of str
        The samples that must be scraped.
    now : dict
        By quantity and value, how far it is from the reference over the window; without those of which too little was
        seen.
    shown : list of dict
        What the window holds, as plain data: one for each quantity and value of its label.
    """

    def __init__(self, quantities: Sequence[Quantity], config: QualityConfig, reference: Taken | None = None) -> None:
        self.config, self.reference = config, reference
        self.names = frozenset(f"{one.name}_bucket" for one in quantities)
        self.now: dict[Key, float] = {}
        self._quantities = {(one.name, value): one for one in quantities for value in one.of}
        self._of = {(one.name, value): of for one in quantities for value, of in one.of.items()}
        self._mixed: set[Key] = set()
        self._awaited: set[Key] = set()  # asked for, and not yet made or not yet seen
        self._looks_left = 0  # before these begin, once it is made; 0: it is not
        self._keys = {key: [*one.keys(key[1]), f"{one.name}_sum/{key[1]}"] for key, one in self._quantities.items()}
        self._total = {key: np.zeros(len(names)) for key, names in self._keys.items()}  # entries of each bin, sum
        self._last: dict[tuple[str, Any], dict[Key, Floats]] = {}  # by process: cumulative counts, sum
        self._kept: deque[tuple[float, dict[Key, Floats]]] = deque()
        self._largest: dict[Key, float] = {}
        self._far: set[Key] = set()
        self.shown = self._show()

    def take(self, seen: Seen) -> bool:
        """Take in what a process has counted; whether its page told."""
        process = seen.name, seen.about.get("pid", seen.life)
        told = False
        for key, names in self._keys.items():
            if names[0] not in seen.values:
                continue
            told = True
            now = np.array([seen.values.get(name, 0.0) for name in names])
            before = self._last.setdefault(process, {}).get(key)
            self._last[process][key] = now
            new = now if before is None or (now[:-1] < before[:-1]).any() else now - before
            self._total[key][:-1] += np.diff(new[:-1], prepend=0.0)
            self._total[key][-1] += new[-1]
        return told

    def look(self, now: float, processes: Iterable[Seen]) -> None:
        """Take in all processes at a time [s], where their pages told."""
        processes = list(processes)
        if not self._kept:
            self._kept.append((now, {key: total.copy() for key, total in self._total.items()}))
        told = [self.take(seen) for seen in processes]
        if not any(told):
            return
        alive = {(seen.name, seen.about.get("pid", seen.life)) for seen in processes}
        self._last = {process: last for process, last in self._last.items() if process in alive}
        if now - self._kept[-1][0] >= self.config.window / MOST_KEPT:
            self._kept.append((now, {key: total.copy() for key, total in self._total.items()}))
        while len(self._kept) > 1 and self._kept[1][0] <= now - self.config.window:
            self._kept.popleft()
        if self._looks_left:
            self._looks_left -= 1
            if not self._looks_left:
                self._begin()
        self._compare()
        self.shown = self._show()

    def change(self, quantities: Iterable[Quantity]) -> bool:
        """What distributions depend on is to change: nothing is said of these until they come, and their whole is one
        of several; whether there are any."""
        keys = {(one.name, value): of for one in quantities for value, of in one.of.items()}
        new = {key: of for key, of in keys.items() if of != self._of[key]}
        self._of |= new
        self._mixed |= {*new}
        self._awaited |= {*new}
        if new:
            self._looks_left = 0
        return bool(new)

    def changed(self) -> None:
        """The change is made: the windows begin anew when what was worked on before it has come out."""
        self._looks_left = LOOKS_BEFORE

    def _begin(self) -> None:
        for key in self._awaited:
            for _, totals in self._kept:
                totals[key] = self._total[key].copy()
        self._awaited.clear()

    def whole(self) -> Taken:
        """All that was counted, with the largest drift of each, over a window or as a whole."""
        found = {
            key: self._distribution(key, total, MIXED if key in self._mixed else self._of[key])
            for key, total in self._total.items()
        }
        drift = dict(self._largest)
        if self.reference is not None:
            for key, apart_as_whole in compared(Taken(found), self.reference, self.config.events):
                drift[key] = max(drift.get(key, 0.0), apart_as_whole)
        return Taken(found, drift=drift)

    def _show(self) -> list[dict[str, Any]]:
        out = []
        for key, quantity in self._quantities.items():
            one, other = self._window(key), self._other(key)
            out.append(
                {
                    "quantity": quantity.called,
                    "value": key[1],
                    "edges": quantity.edges,
                    "counts": one.counts.tolist(),
                    "mean": one.mean,
                    "reference": None if other is None else (other.counts / max(other.entries, 1)).round(5).tolist(),
                    "reference_mean": None if other is None else other.mean,
                    "drift": self.now.get(key),
                    "why_not": "" if key in self.now else self._why_not(key, one, other),
                }
            )
        return out

    def largest_now(self) -> tuple[str, float] | None:
        """What is furthest from its reference at the moment, such as `score eg`, and how far."""
        if not self.now:
            return None
        key = max(self.now, key=lambda one: self.now[one])
        return f"{self._quantities[key].called} {key[1]}", self.now[key]

    def news(self) -> list[str]:
        """What is to be told since the last call: what is far from its reference now, and what is no longer."""
        gone = [key for key, drift in self.now.items() if drift >= LARGE and key not in self._far]
        back = [key for key, drift in self.now.items() if drift < NOTABLE and key in self._far]
        self._far = (self._far | {*gone}) - {*back}
        return [
            f"{what}: " + ", ".join(f"{self._quantities[key].called} {key[1]} {self.now[key]:.2f}" for key in keys)
            for what, keys in (("far from the reference (drift)", gone), ("as the reference again (drift)", back))
            if keys
        ]

    def metrics(self) -> Iterator[tuple[str, str, float]]:
        """What people call the quantity, the value of its label, and how far it is from its reference."""
        for key, drift in self.now.items():
            yield self._quantities[key].called, key[1], drift

    def _compare(self) -> None:
        self.now = {}
        for key in self._keys:
            one, other = self._window(key), self._other(key)
            if other is not None and not self._why_not(key, one, other):
                self.now[key] = apart(one.counts, other.counts)
                self._largest[key] = max(self._largest.get(key, 0.0), self.now[key])

    def _why_not(self, key: Key, one: Distribution, other: Distribution | None) -> str:
        if self.reference is None:
            return "no reference"
        if key in self._awaited:
            return "its network is just being changed"
        if other is None:
            return "another network than the reference's"
        least = self.config.events
        if other.entries < least:
            return f"the reference has {other.entries:,} entries, {least:,} are needed"
        return "" if one.entries >= least else f"{one.entries:,} entries so far, {least:,} are needed"

    def _other(self, key: Key) -> Distribution | None:
        """The reference, where it holds."""
        if key in self._awaited:
            return None
        other = self.reference.found.get(key) if self.reference is not None else None
        return other if other is not None and other.of == self._of[key] else None

    def _window(self, key: Key) -> Distribution:
        before = self._kept[0][1][key] if self._kept else 0.0
        return self._distribution(key, self._total[key] - before, self._of[key])

    def _distribution(self, key: Key, values: Floats, of: str) -> Distribution:
        return Distribution(values[:-1].astype(np.int64), float(values[-1]), of, self._quantities[key].edges)
