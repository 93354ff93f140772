"""From what each process tells Prometheus to what people want to know of the run. Pure: no clock, no network.

Rates are differences over the last seconds. A process that was started again counts from zero, as in Prometheus.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streamer.metrics import EVENT_EDGES
from streamer.reference import NOTABLE

SPAN_S = 5.0
"""Rates are over about so long."""
KEPT = 900
"""So many looks are kept for who opens the page later: fifteen minutes."""
BEHIND = 0.95
"""A stream that writes less than this share of what is fed falls behind."""
BUSY = 0.5
"""A stage that is busy for less of its time holds nobody up."""
MOST_OF_ALL = 1024
"""Of a whole run so many looks are kept; when there are twice as many, every other one goes."""
SERIES = ("fed", "done", "p50", "p95", "p99", "dead", "in_flight")
LATENCY = "streamer_event_latency_seconds_bucket"

Values = Mapping[str, float]


@dataclass(frozen=True)
class Seen:
    """A process as it was found: its place in the chain, its state, and the samples of its metrics page."""

    stage: str
    replica: int
    state: str
    life: int
    values: Values
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.replica}"


class _Past:
    """The last looks at one process."""

    def __init__(self) -> None:
        self.life = -1
        self.looks: deque[tuple[float, Values]] = deque()
        self.ended: dict[str, float] = {}  # what its predecessors had counted

    def look(self, now: float, seen: Seen) -> None:
        if seen.life != self.life:
            self.life = seen.life
            if self.looks:
                for key, value in self.looks[-1][1].items():
                    self.ended[key] = self.ended.get(key, 0.0) + value
            self.looks.clear()
            self.looks.append((now, {}))  # it counts from zero
        if seen.values:
            self.looks.append((now, seen.values))
        while len(self.looks) > 2 and self.looks[1][0] <= now - SPAN_S:
            self.looks.popleft()

    @property
    def span(self) -> float:
        return self.looks[-1][0] - self.looks[0][0] if self.looks else 0.0

    def value(self, key: str) -> float:
        return self.looks[-1][1].get(key, 0.0) if self.looks else 0.0

    def total(self, key: str) -> float:
        """With what was counted by processes that it took the place of."""
        return self.value(key) + self.ended.get(key, 0.0)

    def grown(self, key: str) -> float:
        if not self.looks:
            return 0.0
        return max(0.0, self.looks[-1][1].get(key, 0.0) - self.looks[0][1].get(key, 0.0))

    def rate(self, key: str) -> float:
        return self.grown(key) / self.span if self.span else 0.0

    def keys(self, name: str) -> list[str]:
        """The samples of a metric, by their labels."""
        return [key for key in (self.looks[-1][1] if self.looks else ()) if key.partition("/")[0] == name]


class Watch:
    """What is going on, second by second.

    Parameters
    ----------
    stages : sequence of str
        In chain order.

    Attributes
    ----------
    history : sequence of list
        The last looks: when, and a number for each of `SERIES`.
    whole : list of list
        Looks of the whole run, the further apart the longer it is.
    state : dict
        What the last look found.
    """

    def __init__(self, stages: list[str]) -> None:
        self.stages = stages
        self._past: dict[str, _Past] = {}
        self._seen: list[Seen] = []
        self.history: deque[list[float | None]] = deque(maxlen=KEPT)
        self.whole: list[list[float | None]] = []
        self._every = self._n_looks = 1
        self.state: dict[str, Any] = {}

    def look(self, now: float, processes: Iterable[Seen]) -> dict[str, Any]:
        """Take in what was found at a time [Unix s]; returns what is to be shown, as plain data."""
        self._seen = list(processes)
        for seen in self._seen:
            self._past.setdefault(seen.name, _Past()).look(now, seen)
        for gone in self._past.keys() - {seen.name for seen in self._seen}:
            del self._past[gone]
        stages = [self._stage(name) for name in self.stages]
        busiest = max(stages, key=lambda one: one["busy"])
        if busiest["busy"] >= BUSY:
            busiest["bottleneck"] = True
        self.state = {
            "at": now,
            "stages": stages,
            "totals": self._totals(),
            "rates": {"fed": stages[0]["rate"], "done": stages[-1]["rate"]},
            "latency": self._latency(),
            "dead": min(
                1.0, sum(p.rate(k) for p in self._of(self.stages[0]) for k in p.keys("streamer_dead_seconds_total"))
            ),
            "batches": self._batches(),
            "paths": self._paths(),
            "limits": {k: v for p in self._past.values() for k, v in self._limits(p)},
        }
        late = self.state["latency"]
        values = (
            *(self.state["rates"][k] for k in ("fed", "done")),
            *(late.get(q) for q in ("0.5", "0.95", "0.99")),
            *(self.state["dead"], self.state["totals"]["in_flight"]),
        )
        self.history.append([now, *values])
        self._keep_for_ever(self.history[-1])
        return self.state

    def _keep_for_ever(self, row: list[float | None]) -> None:
        self._n_looks += 1
        if self._n_looks % self._every == 0:
            self.whole.append(row)
        if len(self.whole) >= 2 * MOST_OF_ALL:
            self.whole, self._every = self.whole[::2], 2 * self._every

    def _of(self, stage: str) -> list[_Past]:
        return [self._past[seen.name] for seen in self._seen if seen.stage == stage]

    def _stage(self, name: str) -> dict[str, Any]:
        processes = [seen for seen in self._seen if seen.stage == name]
        pasts = self._of(name)

        def mean(numerator: str, denominator: str) -> float | None:
            n = sum(past.grown(denominator) for past in pasts)
            return sum(past.grown(numerator) for past in pasts) / n if n else None

        busy = [past.rate("streamer_busy_seconds_total") for past in pasts]
        events = [self._events_rate(past) for past in pasts]
        return {
            "name": name,
            "bottleneck": False,
            "rate": sum(events),
            "busy": min(1.0, sum(busy) / len(busy)) if busy else 0.0,
            "wait_s": mean("streamer_queue_wait_seconds_sum", "streamer_queue_wait_seconds_count"),
            "credits": sum(past.value("streamer_credits_available") for past in pasts),
            "blocks": sum(past.value("streamer_blocks_in_flight") for past in pasts),
            "bytes_out": sum(past.rate("streamer_bytes_total/out") for past in pasts),
            "replicas": [
                {
                    "name": seen.name,
                    "state": seen.state,
                    "rate": rate,
                    "busy": min(1.0, used),
                    "cpu": past.rate("process_cpu_seconds_total"),
                    **seen.about,
                }
                for seen, past, rate, used in zip(processes, pasts, events, busy, strict=True)
            ],
        }

    @staticmethod
    def _events_rate(past: _Past) -> float:
        return sum(past.rate(key) for key in past.keys("streamer_events_total"))

    def _totals(self) -> dict[str, Any]:
        first, last = self._of(self.stages[0]), self._of(self.stages[-1])

        def total(pasts: list[_Past], name: str) -> dict[str, float]:
            out: dict[str, float] = {}
            for past in pasts:
                for key in {*past.keys(name), *(k for k in past.ended if k.partition("/")[0] == name)}:
                    label = key.partition("/")[2]
                    out[label] = out.get(label, 0.0) + past.total(key)
            return out

        def count(pasts: list[_Past], name: str) -> dict[str, int]:
            return {label: int(n) for label, n in total(pasts, name).items()}

        dropped = count(first, "streamer_events_dropped_total")
        outcomes = count(last, "streamer_events_total")
        written = sum(outcomes.values())
        fed = max(sum(count(first, "streamer_events_total").values()), written)  # which may be looked at a moment later
        return {
            "fed": fed + sum(dropped.values()),
            "scored": outcomes.pop("ok", 0),
            **{name: outcomes.get(name, 0) for name in ("error", *outcomes)},
            "dropped": dropped,
            "in_flight": fed - written,
            "dead_s": total(first, "streamer_dead_seconds_total"),
        }

    def _latency(self) -> dict[str, float]:
        """Quantiles over the last seconds; none where nothing was written."""
        pasts = self._of(self.stages[-1])
        counts = np.array([sum(past.grown(f"{LATENCY}/{edge}") for past in pasts) for edge in EVENT_EDGES])
        return {q: quantile(counts, float(q)) for q in ("0.5", "0.95", "0.99")} if counts[-1] else {}

    def _batches(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        for past in self._past.values():
            for key in past.keys("streamer_batch_size_count"):
                queue = key.partition("/")[2]
                one = out.setdefault(
                    queue, {"n": 0.0, "items": 0.0, "seconds": 0.0, "waiting": 0.0, "shed": 0.0, "closed": {}}
                )
                one["n"] += past.rate(key)
                one["items"] += past.rate(f"streamer_batch_size_sum/{queue}")
                one["seconds"] += past.rate(f"streamer_batch_seconds_total/{queue}")
                one["waiting"] += past.value(f"streamer_batch_items_waiting/{queue}")
                one["shed"] += past.rate(f"streamer_items_shed_total/{queue}")
                for closed in past.keys("streamer_batch_closed_total"):
                    of, _, reason = closed.partition("/")[2].partition(",")
                    if of == queue:
                        one["closed"][reason] = one["closed"].get(reason, 0.0) + past.rate(closed)
        for one in out.values():
            one["mean"] = one["items"] / one["n"] if one["n"] else None
        return out

    def _paths(self) -> dict[str, dict[str, dict[str, float]]]:
        """What a menu makes of events: rate and total by path and step."""
        out: dict[str, dict[str, dict[str, float]]] = {}
        for past in self._of(self.stages[-1]):
            for key in past.keys("streamer_path_events_total"):
                path, _, step = key.partition("/")[2].rpartition(",")
                one = out.setdefault(path, {}).setdefault(step, {"rate": 0.0, "total": 0.0})
                one["rate"] += past.rate(key)
                one["total"] += past.value(key)
        return out

    @staticmethod
    def _limits(past: _Past) -> list[tuple[str, float]]:
        return [(key.partition("/")[2], past.value(key)) for key in past.keys("streamer_limit")]


def verdict(state: str, seen: Mapping[str, Any], drift: tuple[str, float] | None = None) -> list[tuple[str, str]]:
    """What a look at the page must tell: lines, each `good`, `warn`, `bad` or neither.

    Parameters
    ----------
    state : str
        The run's.
    seen : mapping
        As `Watch.look` gives it.
    drift : (str, float), optional
        What is furthest from its reference, and how far.
    """
    totals, rates, stages = seen["totals"], seen["rates"], seen["stages"]
    said = []
    down = [one["name"] for stage in stages for one in stage["replicas"] if one["state"] in ("restarting", "failed")]
    if down:
        said.append(("bad", f"down: {', '.join(down)}"))
    if rates["done"]:
        said.append(("good", "taking data"))
    else:
        said.append(("bad", "no data") if state == "running" else ("warn", state))
    if rates["done"] < BEHIND * rates["fed"]:
        tight = [stage["name"] for stage in stages if stage["bottleneck"]]
        said.append(("warn", f"falling behind{f': {tight[0]}' if tight else ''}"))
    elif rates["done"]:
        said.append(("good", "keeping up"))
    if totals["error"]:
        said.append(("warn", f"{totals['error']:,} errors"))
    lost = sum(totals["dropped"].values()) + totals.get("shed", 0)
    said.append(("warn", f"{lost:,} lost") if lost else ("good", "nothing lost"))
    if drift is not None:
        what, apart = drift
        said.append(("good", "as the reference") if apart < NOTABLE else ("warn", f"drift {apart:.2f}: {what}"))
    return said


def quantile(below: Any, q: float) -> float:
    """The value [s] that a share of a Prometheus histogram lies below; even within a bucket, on a log scale.

    Parameters
    ----------
    below : array of float, shape (n_edges,)
        Counts up to each of `streamer.metrics.EVENT_EDGES`.
    """
    edges = np.array([float(edge) for edge in EVENT_EDGES])
    place = int(np.searchsorted(below, q * below[-1]))
    if place == 0:
        return float(edges[0])
    if math.isinf(edges[place]):
        return float(edges[place - 1])
    before = float(below[place - 1])
    share = (q * float(below[-1]) - before) / max(float(below[place]) - before, 1e-9)
    return float(edges[place - 1] * (edges[place] / edges[place - 1]) ** share)
