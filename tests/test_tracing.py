"""Traces: which events, what a collector gets of them, and that a bad collector does not disturb the stream."""

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from physics_helpers import Processes

from streamer import logs, tracing
from streamer.batcher import Batch, Part
from streamer.block import SHED, Array, Block
from streamer.config import CoreConfig, TraceConfig, load
from streamer.errors import UsageError
from streamer.runner import Run
from streamer.testing import ToyBatchStage, ToyChain, ToySink, ToySource, ToyStage, quick, toy_block
from streamer.tracing import Sampling, require

pytest.importorskip("opentelemetry.sdk")

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace.sampling import Decision, TraceIdRatioBased

RUN = "0123456789abcdef"
N_EVENTS = 24


# ---- which events


@given(st.integers(0, 1 << 60), st.integers(1, 200), st.sampled_from([0.0, 0.001, 0.01, 0.3, 1.0]))
def test_all_processes_trace_the_events_that_a_sampler_of_opentelemetry_would(first: int, n: int, share: float) -> None:
    sampling, sampler = Sampling(RUN, share), TraceIdRatioBased(share)
    found = sampling.of(first, n)
    assert found == [event for i in range(n) for event in sampling.of(first + i, 1)]  # however blocks are cut
    drawn = (sampler.should_sample(None, sampling.trace_id(first + i), "event").decision for i in range(n))
    assert found == [first + i for i, decision in enumerate(drawn) if decision is Decision.RECORD_AND_SAMPLE]


def test_the_share_is_met_and_ids_are_of_one_event() -> None:
    sampling = Sampling(RUN, 0.01)
    found = sampling.of(0, 1_000_000)
    assert 9_600 < len(found) < 10_400  # four standard deviations
    residues = Counter(event % 256 for event in found)  # blocks have 256 events
    assert max(residues.values()) < 80
    ids = {sampling.trace_id(event) for event in range(100_000)}
    assert len(ids) == 100_000
    assert {f"{trace:032x}"[:16] for trace in ids} == {RUN}


# ---- a collector


@dataclass
class Collector:
    """Takes OTLP over HTTP, as a real one would; `status` is what it answers, `hold` lets it not answer."""

    status: int = 200
    hold: threading.Event | None = None
    spans: list[tuple[dict[str, Any], Span]] = field(default_factory=list)
    n_requests: int = 0
    address: str = ""


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            made.n_requests += 1
            if made.hold is not None:
                made.hold.wait()
                return
            if made.status == 200 and self.path == "/v1/traces":
                assert self.headers["Content-Type"] == "application/x-protobuf"
                for one in ExportTraceServiceRequest.FromString(body).resource_spans:
                    about = {pair.key: _plain(pair.value) for pair in one.resource.attributes}
                    made.spans += [(about, span) for scope in one.scope_spans for span in scope.spans]
            self.send_response(made.status)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    made.address = f"http://127.0.0.1:{server.server_port}"
    yield made
    if made.hold is not None:
        made.hold.set()
    server.shutdown()
    server.server_close()


def _plain(value: Any) -> Any:
    return getattr(value, value.WhichOneof("value"))


def about(span: Span) -> dict[str, Any]:
    return {pair.key: _plain(pair.value) for pair in span.attributes}


def part_of(spans: list[Span], span: Span) -> dict[str, Span]:
    return {one.name: one for one in spans if one.parent_span_id == span.span_id}


class Refusing(ToyStage):
    """Refuses the event 5."""

    def process(self, block: Block) -> Block:
        if ((block.columns["event"] == 5) & (block.columns["error"] == 0)).any():
            raise ValueError("not this one")
        return block


class Tagging(ToyBatchStage):
    """Says which events its items are of."""

    def events(self, queue: str, block: Block) -> Array:
        return np.repeat(np.arange(block.n_events), block.columns["nHit"])


async def stream(run: Run, trace: TraceConfig, capsys: pytest.CaptureFixture[str]) -> dict[str, dict[str, float]]:
    """Four processes' metrics at the end of a stream of `N_EVENTS` events."""
    config = quick().model_copy(update={"trace": trace})
    config = config.model_copy(update={"feed": config.feed.model_copy(update={"block_events": 4})})
    chain = ToyChain(run, ["reader", "framer", "tagger", "writer"], config)
    units = {"writer": ToySink(), "tagger": Tagging(), "framer": Refusing(), "reader": ToySource(N_EVENTS)}
    try:
        for name, unit in units.items():
            chain.start(name, unit)
        assert await chain.codes() == [0, 0, 0, 0]
        sink = units["writer"]
        assert isinstance(sink, ToySink)
        assert sorted(sink.events) == list(range(N_EVENTS))
    finally:
        await chain.close()
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    reports = [line["report"]["metrics"] for line in said if line["state"] == "stopped"]
    assert len(reports) == 4
    return {name: report for name in units for report in reports if _is_of(report, name)}


def _is_of(report: dict[str, float], name: str) -> bool:
    own = {"reader": "streamer_dead_seconds_total/window", "tagger": "streamer_batch_size_count/hits"}
    own |= {"writer": "streamer_commit_latency_seconds_count"}
    found = next((stage for stage, key in own.items() if key in report), "framer")
    return found == name


def spans_by(reports: dict[str, dict[str, float]], outcome: str) -> int:
    return int(sum(report[f"streamer_spans_total/{outcome}"] for report in reports.values()))


async def test_a_collector_gets_each_event_s_way_and_batches_are_linked(
    run: Run, collector: Collector, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.address)  # the standard's own variable
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    reports = await stream(run, TraceConfig(share=1.0), capsys)
    assert spans_by(reports, "sent") == len(collector.spans)
    assert (spans_by(reports, "full"), spans_by(reports, "failed")) == (0, 0)

    resources = {(one["service.name"], one["service.instance.id"]) for one, _ in collector.spans}
    assert resources == {(name, f"{run.id}/{name}-0") for name in ("reader", "framer", "tagger", "writer")}
    assert {(one["service.namespace"], one["deployment.environment.name"]) for one, _ in collector.spans} == {
        ("streamer", "test")
    }
    traces, sampling = defaultdict(list), Sampling(run.id, 1.0)
    for _, span in collector.spans:
        traces[int.from_bytes(span.trace_id)].append(span)
    tagged: dict[bytes, Span] = {}
    for event in range(N_EVENTS):
        spans = traces.pop(sampling.trace_id(event))
        assert len({span.span_id for span in spans}) == len(spans)
        (root,) = (span for span in spans if not span.parent_span_id)
        assert (root.name, about(root)["streamer.event.sequence"]) == ("event", event)
        assert about(root)["streamer.event.number"] == event
        stages = part_of(spans, root)
        begun = {name: span.start_time_unix_nano for name, span in stages.items()}
        assert sorted(begun, key=begun.__getitem__) == ["reader", "framer", "tagger", "writer"]
        n_parts = 0
        for name, wanted in (
            *(("reader", ["fill", "wait"]), ("framer", ["wait", "work"]), ("writer", ["wait", "work", "sync"])),
            ("tagger", ["wait", "work"] if event % 3 and event != 5 else ["wait"]),
        ):
            parts = part_of(spans, stages[name])
            assert sorted(parts) == sorted(wanted), (event, name)
            n_parts += len(parts)
            for part in parts.values():
                assert part.start_time_unix_nano <= part.end_time_unix_nano
                assert stages[name].start_time_unix_nano <= part.start_time_unix_nano
                assert part.end_time_unix_nano <= stages[name].end_time_unix_nano
        assert len(spans) == 5 + n_parts  # nothing without a parent
        assert root.end_time_unix_nano == stages["writer"].end_time_unix_nano
        assert root.start_time_unix_nano == stages["reader"].start_time_unix_nano
        bad = {name for name, span in {"event": root, **stages}.items() if span.status.code == 2}
        assert bad == ({"event", "framer"} if event == 5 else set())
        assert about(root)["streamer.outcome"] == ("error" if event == 5 else "ok")
        if event == 5:
            assert root.status.message == "ValueError: not this one"
        tagged[stages["tagger"].span_id] = stages["tagger"]
    linked = defaultdict(set)
    for (batch,) in traces.values():  # what is left are the batches
        assert batch.name == "batch hits"
        assert 1 <= about(batch)["streamer.batch.size"] <= 8
        assert batch.links
        for link in batch.links:
            assert tagged[link.span_id].trace_id == link.trace_id
            linked[link.span_id].add(batch.span_id)
    for span in tagged.values():
        assert {link.span_id for link in span.links} == linked[span.span_id]
        assert bool(span.links) == bool(about(span)["streamer.event.sequence"] % 3 and span.status.code != 2
                                        and about(span)["streamer.event.sequence"] != 5)  # fmt: skip


@pytest.mark.parametrize("how", ["away", "hangs", "refuses"])
async def test_a_bad_collector_costs_spans_and_nothing_else(
    how: str,
    run: Run,
    collector: Collector,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    from streamer import spans

    monkeypatch.setattr(spans, "PATIENCE_S", 0.3)
    monkeypatch.setattr(spans, "MOST_QUEUED", 100)
    endpoint = collector.address
    if how == "away":
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{unused.getsockname()[1]}"
    elif how == "hangs":
        collector.hold = threading.Event()
    else:
        collector.status = 400
    reports = await stream(run, TraceConfig(share=1.0, endpoint=endpoint), capsys)
    assert spans_by(reports, "sent") == 0
    left_out = spans_by(reports, "full") + spans_by(reports, "failed")
    n_batches = int(reports["tagger"]["streamer_batch_size_count/hits"])
    n_single = sum(1 for event in range(N_EVENTS) if event % 3 and event != 5)
    assert left_out == N_EVENTS * (1 + 3 + 3 + 2 + 4) + n_single + n_batches
    complaints = [r for r in caplog.records if r.levelno >= logging.WARNING and r.name == "streamer.spans"]
    assert len(complaints) <= 4  # once a process
    if how == "refuses":
        assert len(complaints) == 4
        assert f"at {endpoint.removeprefix('http://')} takes no spans" in complaints[0].getMessage()
        assert "400" in complaints[0].getMessage()


async def test_what_waits_is_bounded(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    from prometheus_client import CollectorRegistry

    from streamer import spans

    monkeypatch.setattr(spans, "PATIENCE_S", 0.1)
    collector.hold = threading.Event()
    registry = CollectorRegistry()
    exporting = spans.Exporting(collector.address, RUN, "framer", 0, registry)
    parts = (tracing.Part("wait", 0, 1), tracing.Part("work", 1, 2))
    for i in range(10_000):
        exporting.put(tracing.Told("framer", 1 << 64, i + 1, 0, 0, 2, parts))
        assert exporting._n_waiting <= spans.MOST_QUEUED
    await asyncio.to_thread(exporting.close)
    counts = {o: registry.get_sample_value("streamer_spans_total", {"outcome": o}) or 0 for o in spans.OUTCOMES}
    assert counts["sent"] == 0
    assert counts["full"] + counts["failed"] == 30_000


def test_a_wait_for_an_event_s_batches_is_of_its_own_items() -> None:
    kept: list[tracing.Told] = []

    class Keeps:
        def put(self, told: tracing.Told) -> None:
            kept.append(told)

        def close(self) -> None:
            pass

    class Job:
        block = toy_block(0, 6)  # 0, 1, 2, 0, 1, 2 hits

    tracer = tracing.Tracer(Sampling(RUN, 1.0), "tagger", 3, Keeps())
    stage = Tagging()
    tracer.batch(stage, "hits", "hits", Batch([Part(Job(), 0, 2)], 2, "full"), 0.0)  # of event 1, and one of 2
    tracer.batch(stage, "hits", "hits", Batch([Part(Job(), 2, 4)], 2, "full"), 0.0)  # the other of 2, and 4
    ids = {tracing.span_id(Sampling(RUN, 1.0).trace_id(event), "tagger"): event for event in range(6)}
    assert [[ids[link.span_id] for link in batch.links] for batch in kept] == [[1, 2], [2, 4]]
    Job.block.stamps |= {"cropper": 1, "tagger": 2}
    kept.clear()
    tracer.batched(Job.block)
    assert [len(told.links) for told in kept] == [0, 1, 2, 0, 1, 0]
    assert not tracer._batches


def test_what_is_sent_again_shed_or_dropped_is_told() -> None:
    kept: list[tracing.Told] = []

    class Keeps:
        def put(self, told: tracing.Told) -> None:
            kept.append(told)

        def close(self) -> None:
            pass

    sampling = Sampling(RUN, 1.0)
    reader, framer, writer = (tracing.Tracer(sampling, name, mark, Keeps()) for name, mark in
                              (("reader", 1), ("framer", 2), ("writer", 5)))  # fmt: skip
    block = toy_block(7, 1)
    block.stamps |= {"reader": time.time_ns()}
    reader.fed(block)
    again = replace(block, attempt=2)
    reader.fed(again)
    first, second = kept
    assert first.trace_id == second.trace_id
    assert first.span_id != second.span_id
    assert (second.about["streamer.attempt"], second.parts) == (2, ())
    assert second.begin >= first.end

    kept.clear()
    again.columns["error"] = np.array([SHED + 2], np.uint8)
    again.stamps |= {"framer": time.time_ns()}
    framer.passed(again, 0.0)
    writer.committed(writer.written(again, 0.0))
    outcomes = [(told.name, told.about.get("streamer.outcome"), told.error) for told in kept]
    assert outcomes == [("framer", "shed", ""), ("writer", None, ""), ("event", "shed", "")]

    kept.clear()
    reader.dropped(block, "window")
    (root,) = kept
    assert (root.name, root.about["streamer.dropped"], root.error) == ("event", "window", "dropped: window")
    assert root.begin == int(block.columns["fedTime"][0])


def test_the_log_names_the_trace_of_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    sampling = Sampling(RUN, 0.3)
    monkeypatch.setattr(logs, "_sampling", sampling)
    (traced, *_), told = sampling.of(0, 100), {}
    untraced = next(event for event in range(100) if not sampling.of(event, 1))
    for event in (traced, untraced):
        token = logs.working.set((toy_block(event, 1),))
        record = logging.makeLogRecord({"msg": "of it", "levelname": "INFO", "event": event})
        logs.stamp(record)
        logs.working.reset(token)
        told[event] = json.loads(logs.to_json(record)).get("trace_id")
    assert told == {traced: f"{sampling.trace_id(traced):032x}", untraced: None}


# ---- off, and wrong


async def test_without_traces_nothing_of_them_is_there(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    reports = await stream(run, TraceConfig(), capsys)
    assert not [key for report in reports.values() for key in report if "spans" in key]
    modules = "streamer.roles, streamer.runner, streamer.supervisor, stages.tagger"
    code = f"import sys, {modules}; print([name for name in sys.modules if 'opentel' in name])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("endpoint", "said"),
    [
        ("127.0.0.1:4318", "not an address such as http://127.0.0.1:4318"),
        ("http://me:secret@collector:4318", "put it into OTEL_EXPORTER_OTLP_HEADERS"),
    ],
)
def test_a_wrong_endpoint_is_told(endpoint: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        load(CoreConfig, None, {"trace.endpoint": endpoint})


def test_opentelemetry_that_is_not_installed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(tracing, "find_spec", none)
    require(CoreConfig())
    with pytest.raises(UsageError, match=r"trace.share = 0.01: .*pip install 'e2e-streamer\[trace\]'"):
        require(CoreConfig(trace=TraceConfig(share=0.01)))


@pytest.mark.long
def test_a_run_sends_the_traces_of_its_share(
    collector: Collector, tmp_path: Path, hits_file: Path, tiny_model: Path
) -> None:
    with Processes(tmp_path) as streamer:
        settings = ["--set", "trace.share=0.1", "--set", f"trace.endpoint={collector.address}"]
        process = streamer("run", hits_file, "--loop", "--events", 3000, "-o", tmp_path / "out", *settings,
                           "--tagger", f"eg={tiny_model}", "--replicas", "framer=2,tagger=2")  # fmt: skip
        process.check()
    roots = [span for _, span in collector.spans if span.name == "event"]
    sequences = sorted(about(span)["streamer.event.sequence"] for span in roots)
    (run,) = {one["streamer.run"] for one, _ in collector.spans}
    assert sequences == Sampling(run, 0.1).of(0, 3000)
    stages = Counter(span.name for _, span in collector.spans)
    assert {stages[name] for name in ("reader", "framer", "cropper", "tagger", "writer")} == {len(roots)}
