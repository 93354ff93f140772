"""What only the supervisor can tell Prometheus: the run as a whole, over the deaths of its processes."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

STATES = ("starting", "ready", "running", "draining", "restarting", "stopped", "failed")


class RunMetrics(Collector):
    """The run's own page.

    Parameters
    ----------
    seen : callable
        As `Watch.look` gave it last; empty before the first look.
    drift : callable
        As `Drift.metrics`.
    output : Path or None
        The folder whose disk is looked at.
    """

    def __init__(
        self,
        seen: Callable[[], Mapping[str, Any]],
        drift: Callable[[], Iterable[tuple[str, str, float]]],
        output: Path | None,
    ) -> None:
        self._seen, self._drift, self._output = seen, drift, output
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def page(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        seen = self._seen()
        if seen:
            totals = seen["totals"]
            events = CounterMetricFamily(
                "streamer_run_events", "events of the run, over the deaths of its processes", labels=["outcome"]
            )
            for outcome, n in totals.items():
                if isinstance(n, int) and outcome != "in_flight":
                    events.add_metric([outcome], n)
            events.add_metric(["dropped"], sum(totals["dropped"].values()))
            yield events
            yield GaugeMetricFamily(
                "streamer_run_in_flight_events", "events fed and not yet written", value=totals["in_flight"]
            )
            processes = GaugeMetricFamily("streamer_processes", "processes by state", labels=["stage", "state"])
            restarts = CounterMetricFamily(
                "streamer_restarts", "processes started in place of others that died", labels=["stage"]
            )
            for stage in seen["stages"]:
                states = Counter(one["state"] for one in stage["replicas"])
                for state in STATES:
                    processes.add_metric([stage["name"], state], states[state])
                restarts.add_metric([stage["name"]], sum(one.get("restarts", 0) for one in stage["replicas"]))
            yield processes
            yield restarts
        drift = GaugeMetricFamily(
            "streamer_drift",
            "how far data are from those of the reference: population stability index over the window",
            labels=["quantity", "value"],
        )
        for quantity, value, apart in self._drift():
            drift.add_metric([quantity, value], apart)
        yield drift
        if self._output is not None and self._output.exists():
            disk = shutil.disk_usage(self._output)
            yield GaugeMetricFamily("streamer_disk_free_bytes", "free where the results are written", value=disk.free)
            yield GaugeMetricFamily("streamer_disk_size_bytes", "size of that disk", value=disk.total)
