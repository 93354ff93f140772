"""What a process tells Prometheus, and the little server that tells it.

Label sets are created at the start, so that a zero is a zero and not a gap. Buckets sit where a trigger's
deadlines are, 0.1 ms to 10 s.
"""

import bisect
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import numpy as np
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    disable_created_metrics,
    make_wsgi_app,
)
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from streamer import __version__
from streamer.block import WIRE_REASONS, Array
from streamer.errors import UsageError
from streamer.quality import MOST_WAITING

disable_created_metrics()  # type: ignore[no-untyped-call]  # a line more for each of ours, of no use to anybody

LATENCY_BUCKETS = (
    *(1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2),
    *(0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0),
)
EDGES = [*(repr(float(edge)) for edge in LATENCY_BUCKETS), "+Inf"]
_STEPS = 10, 15, 20, 30, 50, 70
EVENT_BUCKETS = (*(step * 10.0**decade / 1e6 for decade in range(1, 6) for step in _STEPS), 10.0)
"""Finer ones, for what is asked for most: a p99 that dashboards make of them is at most half too large."""
EVENT_EDGES = [*(repr(edge) for edge in EVENT_BUCKETS), "+Inf"]
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
OUTCOMES = ("ok", "error", "shed")


class EventHistogram(Collector):
    """A histogram that takes a whole block's values at once and also knows exact-to-1 % quantiles.

    Prometheus sees `EVENT_BUCKETS`; inside, bins of 1 % width from 1 us to 1000 s feed `quantile`.
    """

    _PER_DECADE = 232  # bins of 1 %

    def __init__(self, name: str, doc: str, registry: CollectorRegistry) -> None:
        self.name, self.doc = name, doc
        self._fine = np.zeros(9 * self._PER_DECADE + 1, np.int64)
        self._counts = np.zeros(len(EVENT_BUCKETS) + 1, np.int64)
        self._sum = 0.0
        self._waiting: list[Array] = []
        self._n_waiting = 0
        self._lock = threading.Lock()  # the page is made in another thread
        registry.register(self)

    def observe(self, seconds: Array) -> None:
        """Count an array of values [s]; negative ones (a clock that stepped) count as zero.

        The array is kept for a while, and must not change.
        """
        if not seconds.size:
            return
        with self._lock:
            self._waiting.append(seconds)
            self._n_waiting += seconds.size
            if self._n_waiting >= MOST_WAITING:
                self._sort()

    def _sort(self) -> None:
        """Put the values that wait into the bins."""
        if not self._waiting:
            return
        seconds = np.maximum(np.concatenate(self._waiting), 0.0)
        self._waiting, self._n_waiting = [], 0
        fine = np.log10(np.maximum(seconds, 1e-6)) * self._PER_DECADE + 6 * self._PER_DECADE
        fine = np.minimum(np.rint(fine).astype(np.int64), self._fine.size - 1)
        self._sum += float(seconds.sum())
        self._counts += np.bincount(np.searchsorted(EVENT_BUCKETS, seconds), minlength=self._counts.size)
        self._fine += np.bincount(fine, minlength=self._fine.size)

    def quantile(self, q: float) -> float:
        """The value [s] below which the share `q` of all values lies, to 1 %; NaN without values."""
        with self._lock:
            self._sort()
            below = np.cumsum(self._fine)
        if not below[-1]:
            return float("nan")
        place = int(np.searchsorted(below, q * below[-1]))
        return float(10 ** (place / self._PER_DECADE - 6))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self.name, self.doc)
        with self._lock:
            self._sort()
            below, total = np.cumsum(self._counts).tolist(), self._sum
        family.add_metric([], list(zip(EVENT_EDGES, below, strict=True)), sum_value=total)
        yield family


class WaitHistogram:
    """One label's part of a `WaitHistograms`: takes the same value for many items at once, and sooner than Prometheus'
    own takes one, which every block of every process would wait for."""

    def __init__(self) -> None:
        self._counts = [0] * (len(LATENCY_BUCKETS) + 1)
        self._sum = 0.0
        self._lock = threading.Lock()  # the page is made in another thread

    def observe(self, seconds: float, n: int = 1) -> None:
        """Count `n` items with this value [s]."""
        place = bisect.bisect_left(LATENCY_BUCKETS, seconds)
        with self._lock:
            self._counts[place] += n
            self._sum += seconds * n

    def buckets(self) -> tuple[list[int], float]:
        """Cumulative counts, and the sum of all values."""
        with self._lock:
            return list(itertools.accumulate(self._counts)), self._sum


class WaitHistograms(Collector):
    """Histograms of one name, by a label."""

    def __init__(self, name: str, doc: str, label: str, values: Iterable[str], registry: CollectorRegistry) -> None:
        self.name, self.doc, self.label = name, doc, label
        self.of = {value: WaitHistogram() for value in values}
        registry.register(self)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(self.name, self.doc, labels=[self.label])
        for value, histogram in self.of.items():
            below, total = histogram.buckets()
            family.add_metric([value], list(zip(EDGES, below, strict=True)), sum_value=total)
        yield family


class StageMetrics:
    """The metrics of one process.

    Parameters
    ----------
    stage, replica : str, int
        Who we are; `stage` is a label, the replica is told by the endpoint.
    tallies : mapping of str to sequence of str
        A stage's own counters: name to the reasons it can count.
    """

    def __init__(self, stage: str, replica: int, tallies: dict[str, tuple[str, ...]]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.stage = stage
        events = Counter("streamer_events", "events done", ["stage", "outcome"], registry=registry)
        self.events = {outcome: events.labels(stage, outcome) for outcome in OUTCOMES}
        self.blocks = Counter("streamer_blocks", "blocks done", ["stage"], registry=registry).labels(stage)
        self.duration, self.queue_wait = (
            WaitHistograms(f"streamer_{name}_seconds", doc, "stage", [stage], registry).of[stage]
            for name, doc in (
                ("stage_duration", "time a stage worked on one block"),
                ("queue_wait", "time a block waited between two stages"),
            )
        )
        self.busy = Counter("streamer_busy_seconds", "time a stage was working", ["stage"], registry=registry).labels(
            stage
        )
        bytes_total = Counter(
            "streamer_bytes", "bytes of blocks that crossed a hop", ["stage", "direction"], registry=registry
        )
        self.bytes_in = bytes_total.labels(stage, "in")
        self.bytes_out = bytes_total.labels(stage, "out")
        self.credits = Gauge(
            "streamer_credits_available",
            "events that the next stage's replicas would take now",
            ["stage"],
            registry=registry,
        ).labels(stage)
        self.in_flight = Gauge(
            "streamer_blocks_in_flight",
            "blocks that this process holds (at the reader: fed and not yet on disk)",
            ["stage"],
            registry=registry,
        ).labels(stage)
        self.in_flight_bytes = Gauge(
            "streamer_in_flight_bytes", "size of the blocks that are fed and not yet on disk (reader)", ["stage"],
            registry=registry,
        ).labels(stage)  # fmt: skip
        self.work_age = Gauge(
            "streamer_work_age_seconds",
            "how long the piece of work takes that goes on, or since when the process does not answer its own calls",
            ["stage"],
            registry=registry,
        ).labels(stage)
        refused = Counter("streamer_messages_refused", "messages refused", ["stage", "reason"], registry=registry)
        self.refused = {reason: refused.labels(stage, reason) for reason in WIRE_REASONS}
        self.redelivered = Counter(
            "streamer_blocks_redelivered", "blocks sent again (reader) or seen twice (tagger, writer)", ["stage"],
            registry=registry,
        ).labels(stage)  # fmt: skip
        self.tallies: dict[str, dict[str, Counter]] = {}
        for name, reasons in tallies.items():
            counter = Counter(f"streamer_{name}", name.replace("_", " "), ["stage", "reason"], registry=registry)
            self.tallies[name] = {reason: counter.labels(stage, reason) for reason in reasons}
        self._limit = Gauge("streamer_limit", "bounds of queues and windows", ["what"], registry=registry)
        build = Info("streamer_build", "what is running", registry=registry)
        build.info({"version": __version__, "stage": stage, "replica": str(replica)})

    def limits(self, **limits: float) -> None:
        """Publish the bounds of this process's queues: `streamer_limit{what}`."""
        for what, value in limits.items():
            self._limit.labels(what).set(value)

    def count(self, tally: dict[tuple[str, str], int]) -> None:
        """Take over what a stage counted."""
        for (name, reason), n in tally.items():
            self.tallies[name][reason].inc(n)


class SourceMetrics:
    """What only the first stage knows: what the chain did not take."""

    def __init__(self, registry: CollectorRegistry, reasons: Iterable[str]) -> None:
        dropped = Counter(
            "streamer_events_dropped", "events not taken when they were due", ["reason"], registry=registry
        )
        dead = Counter("streamer_dead_seconds", "time in which no event was taken", ["reason"], registry=registry)
        self.dropped = {reason: dropped.labels(reason) for reason in reasons}
        self.dead = {reason: dead.labels(reason) for reason in self.dropped}


class SinkMetrics:
    """What only the last stage knows: the end-to-end latency, the time until data are on disk, and who was late."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.latency = EventHistogram(
            "streamer_event_latency_seconds",
            "from the moment an event was due to leave the reader until its result reached the writer",
            registry,
        )
        self.commit_latency = EventHistogram(
            "streamer_commit_latency_seconds",
            "from the moment an event was due to leave the reader until its result was on disk",
            registry,
        )
        self.late = Counter("streamer_events_late", "events answered after their deadline", registry=registry)


@dataclass(frozen=True)
class BatchMetrics:
    """What only a batching stage knows of one of its queues: sizes, why batches were closed, and what waits.

    `seconds` are the device's, of inference; `transfer` counts the bytes to it and from it.
    """

    size: Histogram
    closed: dict[str, Counter]
    waiting: Gauge
    wait: WaitHistogram
    shed: Counter
    padding: Counter
    seconds: Counter
    transfer: tuple[Counter, Counter]

    @staticmethod
    def of(registry: CollectorRegistry, queues: Iterable[str], reasons: Iterable[str]) -> "dict[str, BatchMetrics]":
        """The metrics of every queue."""
        size = Histogram("streamer_batch_size", "items in a batch", ["queue"], buckets=SIZE_BUCKETS, registry=registry)
        closed = Counter("streamer_batch_closed", "batches closed, and why", ["queue", "reason"], registry=registry)
        waiting = Gauge("streamer_batch_items_waiting", "items waiting for a batch", ["queue"], registry=registry)
        shed = Counter("streamer_items_shed", "items given up for their deadlines", ["queue"], registry=registry)
        padding = Counter("streamer_batch_padding", "places in batches that held nothing", ["queue"], registry=registry)
        seconds = Counter("streamer_batch_seconds", "time of inference", ["queue"], registry=registry)
        transfer = Counter(
            "streamer_batch_transfer_bytes", "bytes of batches to the device and from it, padding included",
            ["queue", "direction"], registry=registry,
        )  # fmt: skip
        queues, reasons = tuple(queues), tuple(reasons)
        wait = WaitHistograms(
            "streamer_batch_wait_seconds", "time an item waited until its batch was begun", "queue", queues, registry
        )
        return {
            queue: BatchMetrics(
                size.labels(queue),
                {reason: closed.labels(queue, reason) for reason in reasons},
                waiting.labels(queue),
                wait.of[queue],
                shed.labels(queue),
                padding.labels(queue),
                seconds.labels(queue),
                (transfer.labels(queue, "in"), transfer.labels(queue, "out")),
            )
            for queue in queues
        }


_POLL_S = 0.1  # how long the end of a process may wait for its server


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 16


class _QuietHandler(WSGIRequestHandler):
    timeout = 5

    def log_message(self, format: str, *args: Any) -> None:
        """Scrapes are not news."""


def serve(registry: CollectorRegistry, host: str, port: int, state: Callable[[], str]) -> tuple[WSGIServer, int]:
    """Serve /metrics and /healthz from a thread of their own.

    Parameters
    ----------
    state : callable
        The life-cycle word; /healthz answers 200 for `ready`, `running` and `draining`, else 503.

    Returns
    -------
    server, port
        Call `server.shutdown()` at the end.

    Raises
    ------
    UsageError
        The port is taken.
    """
    metrics_app = make_wsgi_app(registry)

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/healthz":
            word = state()
            healthy = word in ("ready", "running", "draining")
            status = "200 OK" if healthy else "503 Service Unavailable"
            start_response(status, [("Content-Type", "application/json")])
            return [json.dumps({"state": word}).encode()]
        if environ["PATH_INFO"] == "/metrics":
            page: Iterable[bytes] = metrics_app(environ, start_response)
            return page
        start_response("404 Not Found", [("Content-Type", "text/plain")])
        return [b"/metrics and /healthz are here\n"]

    try:
        server = make_server(host, port, app, _Server, _QuietHandler)
    except (OSError, socket.gaierror) as error:
        raise UsageError(
            f"metrics cannot be served on {host}:{port} ({error.strerror}); "
            "set metrics.base_port to a free port, or to 0 for any"
        ) from None
    threading.Thread(target=server.serve_forever, args=(_POLL_S,), name="metrics", daemon=True).start()
    return server, server.server_port
