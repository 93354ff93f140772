"""Metrics: the histograms' arithmetic, and the pages as Prometheus sees them over HTTP."""

import shutil
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from streamer.batcher import REASONS
from streamer.block import WIRE_REASONS
from streamer.errors import UsageError
from streamer.metrics import (
    EVENT_BUCKETS,
    LATENCY_BUCKETS,
    BatchMetrics,
    EventHistogram,
    SinkMetrics,
    StageMetrics,
    WaitHistograms,
    serve,
)


def histogram() -> EventHistogram:
    return EventHistogram("streamer_test_seconds", "a test", CollectorRegistry())


def buckets(made: EventHistogram) -> tuple[dict[float, float], float, float]:
    """Upper edges to cumulative counts; the count and the sum."""
    (family,) = made.collect()
    edges = {float(s.labels["le"]): s.value for s in family.samples if s.name.endswith("_bucket")}
    (count,) = [s.value for s in family.samples if s.name.endswith("_count")]
    (total,) = [s.value for s in family.samples if s.name.endswith("_sum")]
    return edges, count, total


# --- The histogram of events ---

SHAPES = {
    "exponential": lambda rng: rng.exponential(0.01, 20_000),
    "lognormal": lambda rng: rng.lognormal(-5, 1.5, 20_000),
    "uniform": lambda rng: rng.uniform(1e-4, 10, 20_000),
    "all the same": lambda rng: np.full(1000, 0.0123),
    "a tail": lambda rng: np.concatenate([np.full(9800, 1e-3), rng.uniform(1, 100, 200)]),
    "at the ends": lambda rng: np.concatenate([np.full(100, 1e-6), np.full(300, 999.0)]),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("q", [0.01, 0.25, 0.5, 0.95, 0.99, 0.999, 1.0])
def test_quantiles_are_exact_to_a_percent(shape: str, q: float) -> None:
    values = SHAPES[shape](np.random.default_rng(3))
    made = histogram()
    for part in np.array_split(values, 7):
        made.observe(part)
    wanted = np.quantile(values, q, method="inverted_cdf")
    assert made.quantile(q) == pytest.approx(wanted, rel=0.015)


def test_quantile_of_nothing_is_no_number() -> None:
    assert np.isnan(histogram().quantile(0.5))


@given(st.lists(st.floats(-1, 1e4), max_size=50))
def test_buckets_are_cumulative(values: list[float]) -> None:
    made = histogram()
    made.observe(np.array(values))
    edges, count, total = buckets(made)
    assert list(edges) == [*EVENT_BUCKETS, float("inf")]
    seen = [max(value, 0.0) for value in values]
    assert edges == {edge: sum(value <= edge for value in seen) for edge in edges}
    assert count == len(values)
    assert total == pytest.approx(sum(seen))


def test_a_clock_that_stepped_back_counts_as_no_time() -> None:
    made = histogram()
    made.observe(np.array([-5.0, 0.0]))
    edges, count, total = buckets(made)
    assert (edges[EVENT_BUCKETS[0]], count, total) == (2, 2, 0.0)


@given(st.lists(st.tuples(st.floats(0, 100), st.integers(1, 70)), max_size=20))
def test_waits_count_as_often_as_items_waited(waits: list[tuple[float, int]]) -> None:
    made = WaitHistograms("streamer_test_seconds", "a test", "queue", ["eg", "qg"], CollectorRegistry())
    for seconds, n in waits:
        made.of["eg"].observe(seconds, n)
    one_by_one = histogram()
    for seconds, n in waits:
        one_by_one.observe(np.full(n, seconds))
    (family,) = made.collect()
    for queue, wanted in (("eg", buckets(one_by_one)), ("qg", buckets(histogram()))):
        mine = [sample for sample in family.samples if sample.labels["queue"] == queue]
        edges = {float(s.labels["le"]): s.value for s in mine if s.name.endswith("_bucket")}
        assert edges == {edge: wanted[0][edge] for edge in [*LATENCY_BUCKETS, float("inf")]}
        assert [s.value for s in mine if s.name.endswith("_count")] == [wanted[1]]
        assert [s.value for s in mine if s.name.endswith("_sum")] == pytest.approx([wanted[2]])


@pytest.mark.parametrize("seconds", [0.0, 1e-300, 1e6, 9.3e9])
def test_values_beyond_the_ends_are_counted(seconds: float) -> None:
    made = histogram()
    made.observe(np.array([seconds]))
    assert buckets(made)[1] == 1
    assert made.quantile(0.5) == pytest.approx(min(max(seconds, 1e-6), 1e3))


@pytest.fixture
def busy_interpreter() -> Iterator[None]:
    """Threads take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("busy_interpreter")
def test_histogram_can_be_read_while_it_is_filled() -> None:
    made, values = histogram(), np.full(4, 0.25)
    n_threads, n_calls = 4, 400
    torn: list[tuple[float, float]] = []

    def fill() -> None:
        for _ in range(n_calls):
            made.observe(values)

    threads = [threading.Thread(target=fill) for _ in range(n_threads)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        _, count, total = buckets(made)
        if total != count * 0.25:
            torn.append((count, total))
    for thread in threads:
        thread.join()
    assert buckets(made)[1:] == (4 * n_threads * n_calls, n_threads * n_calls * 1.0)
    assert torn == []


# --- The page ---

TALLIES = {"hits_dropped": ("nan_energy", "bad_detid")}


def everything() -> StageMetrics:
    """All metrics that any process has."""
    metrics = StageMetrics("writer", 2, TALLIES)
    SinkMetrics(metrics.registry)
    BatchMetrics.of(metrics.registry, ["eg", "qg"], REASONS)
    metrics.limits(max_batch=64, commit_events=2048)
    return metrics


@contextmanager
def served(metrics: StageMetrics, state: Callable[[], str] = lambda: "running") -> Iterator[str]:
    server, port = serve(metrics.registry, "127.0.0.1", 0, state)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.shutdown()
        server.server_close()


def get(url: str) -> tuple[int, str, str]:
    """Status, content type, text."""
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(page: dict[Any, float], name: str, **labels: str) -> float:
    return page[name, frozenset(labels.items())]


def test_page_is_what_prometheus_parses() -> None:
    metrics = everything()
    metrics.events["ok"].inc(5)
    metrics.duration.observe(0.003)
    metrics.credits.set_function(lambda: 17)
    with served(metrics) as url:
        status, kind, text = get(f"{url}/metrics")
    assert status == 200
    assert kind.startswith("text/plain")
    page = samples(text)
    assert value(page, "streamer_events_total", stage="writer", outcome="ok") == 5
    assert value(page, "streamer_stage_duration_seconds_bucket", stage="writer", le="0.005") == 1
    assert value(page, "streamer_stage_duration_seconds_bucket", stage="writer", le="0.002") == 0
    assert value(page, "streamer_credits_available", stage="writer") == 17
    assert value(page, "streamer_limit", what="max_batch") == 64
    assert any(name == "streamer_build_info" and ("replica", "2") in labels for name, labels in page)


def test_every_label_set_is_there_from_the_start() -> None:
    with served(everything()) as url:
        page = samples(get(f"{url}/metrics")[2])
    for outcome in ("ok", "error"):
        assert value(page, "streamer_events_total", stage="writer", outcome=outcome) == 0
    for reason in WIRE_REASONS:
        assert value(page, "streamer_messages_refused_total", stage="writer", reason=reason) == 0
    for reason in TALLIES["hits_dropped"]:
        assert value(page, "streamer_hits_dropped_total", stage="writer", reason=reason) == 0
    for queue in ("eg", "qg"):
        for reason in REASONS:
            assert value(page, "streamer_batch_closed_total", queue=queue, reason=reason) == 0
        for direction in ("in", "out"):
            assert value(page, "streamer_batch_transfer_bytes_total", queue=queue, direction=direction) == 0
        for name in ("size_count", "size_sum", "wait_seconds_count", "wait_seconds_sum", "items_waiting",
                     "padding_total", "seconds_total"):  # fmt: skip
            assert value(page, f"streamer_batch_{name}", queue=queue) == 0
        assert value(page, "streamer_items_shed_total", queue=queue) == 0
    for direction in ("in", "out"):
        assert value(page, "streamer_bytes_total", stage="writer", direction=direction) == 0
    for name in ("blocks_total", "busy_seconds_total", "blocks_redelivered_total", "blocks_in_flight",
                 "queue_wait_seconds_count", "stage_duration_seconds_sum"):  # fmt: skip
        assert value(page, f"streamer_{name}", stage="writer") == 0
    for name in ("event_latency_seconds", "commit_latency_seconds"):
        for edge in [*map(str, EVENT_BUCKETS), "+Inf"]:
            assert any(
                key[0] == f"streamer_{name}_bucket" and dict(key[1])["le"] in (edge, repr(float(edge))) for key in page
            )


def test_what_a_stage_counted_is_taken_over() -> None:
    metrics = everything()
    metrics.count({("hits_dropped", "nan_energy"): 3})
    metrics.count({("hits_dropped", "nan_energy"): 2, ("hits_dropped", "bad_detid"): 1})
    with served(metrics) as url:
        page = samples(get(f"{url}/metrics")[2])
    assert value(page, "streamer_hits_dropped_total", stage="writer", reason="nan_energy") == 5
    assert value(page, "streamer_hits_dropped_total", stage="writer", reason="bad_detid") == 1


def test_healthz_tells_the_state_of_the_moment() -> None:
    life = {"starting": 503, "ready": 200, "running": 200, "draining": 200, "stopped": 503, "failed": 503}
    state = ""
    with served(everything(), lambda: state) as url:
        for state, status in life.items():
            assert get(f"{url}/healthz") == (status, "application/json", f'{{"state": "{state}"}}')


def test_other_pages_are_not_there() -> None:
    with served(everything()) as url:
        status, _, text = get(f"{url}/")
    assert status == 404
    assert "/metrics" in text


def test_page_is_served_to_several_at_once() -> None:
    got: list[int] = []
    with served(everything()) as url:
        threads = [threading.Thread(target=lambda: got.append(get(f"{url}/metrics")[0])) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    assert got == [200] * 8


def test_port_in_use_is_told_with_a_hint() -> None:
    metrics = everything()
    with served(metrics) as url:
        port = int(url.rpartition(":")[2])
        with pytest.raises(UsageError, match=rf"127\.0\.0\.1:{port} .*in use.*metrics\.base_port"):
            serve(metrics.registry, "127.0.0.1", port, str)


def test_address_that_is_not_ours_is_told() -> None:
    with pytest.raises(UsageError, match="metrics cannot be served"):
        serve(CollectorRegistry(), "192.0.2.1", 0, str)


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian package prometheus)")
def test_promtool_finds_nothing_to_complain_about() -> None:
    with served(everything()) as url:
        page = get(f"{url}/metrics")[2]
    done = subprocess.run(["promtool", "check", "metrics"], input=page, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
