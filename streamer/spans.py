"""Spans go to a collector: OTLP over HTTP, from a thread of their own that the stream never waits for."""

import contextlib
import logging
import os
import threading
from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, TraceFlags
from opentelemetry.trace.status import Status, StatusCode
from prometheus_client import CollectorRegistry, Counter

from streamer import __version__
from streamer.tracing import Told, span_id

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

MOST_QUEUED = 8192
"""So many spans wait at most; what comes then is left out."""
MOST_SENT = 512
"""Spans in one request."""
PAUSE_S = 5.0
"""A request costs as much as hundred spans, so it is made for many."""
PATIENCE_S = 1.0
"""At the end, so long is waited for a collector that does not answer."""
OUTCOMES = ("sent", "full", "failed")
_library = logging.getLogger("opentelemetry")
_library.addHandler(logging.NullHandler())
_SCOPE = InstrumentationScope("streamer", __version__)
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)


class Exporting:
    """Sends the spans of one process.

    Parameters
    ----------
    endpoint : str
        The collector's address, without a path; empty: as the variables `OTEL_EXPORTER_OTLP_*` say.
    """

    def __init__(self, endpoint: str, run: str, stage: str, replica: int, registry: CollectorRegistry) -> None:
        self._exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces" if endpoint else None)
        self._where = urlsplit(endpoint or _by_environment()).netloc.rpartition("@")[2]
        about: dict[str, str | int] = {
            "service.namespace": "streamer",
            "service.name": stage,
            "service.instance.id": f"{run}/{stage}-{replica}",
            "service.version": __version__,
            "streamer.run": run,
            "streamer.replica": replica,
        }
        self._resource = _Ours(Resource.create(about).attributes)
        counter = Counter(
            "streamer_spans", "spans of traces: sent, left out as too many waited, or refused by the collector",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self._counts = {outcome: counter.labels(outcome) for outcome in OUTCOMES}
        self._waiting: deque[Told] = deque()
        self._n_waiting = self._n_sending = 0  # spans, of which one that is told may have some
        self._lock = threading.Lock()
        self._wake, self._closing = threading.Event(), False
        self._complained = False
        self._why = _Why()
        _library.propagate = False  # it complains at each try; we do once
        _library.addHandler(self._why)
        self._thread = threading.Thread(target=self._run, name="spans", daemon=True)
        self._thread.start()

    def put(self, told: Told) -> None:
        """Send this soon."""
        n = 1 + len(told.parts)
        with self._lock:
            fits = self._n_waiting + n <= MOST_QUEUED and not self._closing
            if fits:
                self._waiting.append(told)
                self._n_waiting += n
        if not fits:
            self._counts["full"].inc(n)
        elif self._n_waiting >= MOST_SENT:
            self._wake.set()

    def close(self) -> None:
        """Send what is left, within `PATIENCE_S`; the rest counts as failed."""
        self._closing = True
        self._wake.set()
        self._thread.join(PATIENCE_S)
        with self._lock:
            left, self._n_waiting, self._n_sending = self._n_waiting + self._n_sending, 0, 0
            self._waiting.clear()
        self._counts["failed"].inc(left)
        _library.removeHandler(self._why)
        self._exporter.shutdown()  # type: ignore[no-untyped-call]

    def _run(self) -> None:
        while True:
            self._wake.wait(PAUSE_S)
            self._wake.clear()
            over = self._closing  # looked at before: what comes meanwhile is for the next turn
            while taken := self._take():
                self._send(taken)
            if over:
                return

    def _take(self) -> list[Told]:
        """What is sent together."""
        some, n = [], 0
        with self._lock:
            while self._waiting and n < MOST_SENT:
                some.append(self._waiting.popleft())
                n += 1 + len(some[-1].parts)
            self._n_waiting, self._n_sending = self._n_waiting - n, n
        return some

    def _send(self, some: list[Told]) -> None:
        self._why.text = ""
        try:
            spans = [span for told in some for span in self._made(told)]
            good = self._exporter.export(spans) is SpanExportResult.SUCCESS
        except Exception as error:  # whatever a client of HTTP can come up with: the stream goes on
            good, self._why.text = False, f"{type(error).__name__}: {error}"
        with self._lock:
            n, self._n_sending = self._n_sending, 0  # none, where that was counted as failed meanwhile
        self._counts["sent" if good else "failed"].inc(n)
        if good == self._complained:
            self._complained = not good
            if good:
                log.warning("the collector of traces at %s takes spans again", self._where)
            else:
                why = " ".join(self._why.text.split())[:200]
                told = "the collector of traces at %s takes no spans; they are left out, and counted (%s)"
                log.warning(told, self._where, why)

    def _made(self, told: Told) -> "Iterator[ReadableSpan]":
        context = _context(told.trace_id, told.span_id)
        yield self._span(
            told.name,
            context,
            _context(told.trace_id, told.parent) if told.parent else None,
            told.begin,
            told.end,
            attributes=told.about,
            links=[Link(_context(*link)) for link in told.links],
            status=Status(StatusCode.ERROR, told.error) if told.error else Status(),
        )
        for part in told.parts:
            one = _context(told.trace_id, span_id(told.trace_id, f"{told.span_id:x} {part.name}"))
            yield self._span(part.name, one, context, part.begin, part.end)

    def _span(
        self, name: str, context: SpanContext, parent: SpanContext | None, begin: int, end: int, **more: Any
    ) -> ReadableSpan:
        return ReadableSpan(
            name=name,
            context=context,
            parent=parent,
            resource=self._resource,
            instrumentation_scope=_SCOPE,
            start_time=begin,
            end_time=max(begin, end),  # a clock may step
            **more,
        )


def _by_environment() -> str:
    names = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
    return next((os.environ[name] for name in names if os.environ.get(name)), "http://localhost:4318")


def _context(trace_id: int, span: int) -> SpanContext:
    return SpanContext(trace_id, span, is_remote=False, trace_flags=_SAMPLED)


class _Ours(Resource):
    """The library asks for the hash with each span, and makes a text of everything for it."""

    def __hash__(self) -> int:
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


class _Why(logging.Handler):
    """Remembers the first that the library says of a request: later it only says that it has given up."""

    text = ""

    def emit(self, record: logging.LogRecord) -> None:
        with contextlib.suppress(Exception):
            self.text = self.text or record.getMessage()
