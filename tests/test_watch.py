"""What the live page makes of the metrics of all processes, at made-up times."""

import numpy as np
import pytest

from streamer.metrics import EVENT_EDGES
from streamer.monitor.shown import FAILURES, remember
from streamer.monitor.watch import KEPT, LATENCY, MOST_OF_ALL, Seen, Watch, quantile

STAGES = ["reader", "tagger", "writer"]


def counted(stage: str, n: float, **more: float) -> dict[str, float]:
    return {"streamer_events_total/ok": n, "streamer_events_total/error": 0.0, **more}


def chain(n: float, written: float, life: int = 0, **tagger: float) -> list[Seen]:
    return [
        Seen("reader", 0, "running", 0, counted("reader", n)),
        Seen("tagger", 0, "running", life, counted("tagger", n, **tagger)),
        Seen("writer", 0, "running", 0, counted("writer", written)),
    ]


def test_rates_are_over_the_last_seconds() -> None:
    watch = Watch(STAGES)
    for second in range(20):
        state = watch.look(1000.0 + second, chain(100.0 * second, 100.0 * second))
    assert state["rates"] == {"fed": pytest.approx(100.0), "done": pytest.approx(100.0)}
    for second in range(20, 24):
        state = watch.look(1000.0 + second, chain(1900.0, 1900.0))
    assert 0 < state["rates"]["done"] < 50
    for second in range(24, 30):
        state = watch.look(1000.0 + second, chain(1900.0, 1900.0))
    assert state["rates"]["done"] == 0
    assert len(watch.history) == 30
    assert watch.history[10][:3] == [1010.0, pytest.approx(100.0), pytest.approx(100.0)]


def test_a_process_that_was_started_again_counts_on() -> None:
    watch = Watch(STAGES)
    for second in range(10):
        watch.look(second, [Seen("writer", 0, "running", 0, counted("writer", 100.0 * second))])
    restarting = watch.look(10, [Seen("writer", 0, "restarting", 0, {})])
    assert restarting["totals"]["scored"] == 900
    assert restarting["stages"][2]["replicas"][0]["state"] == "restarting"
    watch.look(11, [Seen("writer", 0, "running", 1, counted("writer", 0.0))])
    state = watch.look(12, [Seen("writer", 0, "running", 1, counted("writer", 100.0))])
    assert state["totals"]["scored"] == 1000
    assert state["rates"]["done"] == pytest.approx(100.0)


def test_the_busiest_stage_is_the_bottleneck() -> None:
    watch = Watch(STAGES)
    for second in range(8):
        state = watch.look(second, chain(10 * second, 10 * second, streamer_busy_seconds_total=0.9 * second))
    assert [stage["bottleneck"] for stage in state["stages"]] == [False, True, False]
    assert state["stages"][1]["busy"] == pytest.approx(0.9)
    idle = Watch(STAGES)
    for second in range(8):
        state = idle.look(second, chain(10 * second, 10 * second, streamer_busy_seconds_total=0.1 * second))
    assert not any(stage["bottleneck"] for stage in state["stages"])


def test_every_event_is_somewhere() -> None:
    lost = {"streamer_events_dropped_total/window": 30.0, "streamer_dead_seconds_total/window": 2.5}
    watch = Watch(STAGES)
    writer = {"streamer_events_total/ok": 800.0, "streamer_events_total/error": 50.0}
    state = watch.look(
        1.0,
        [Seen("reader", 0, "running", 0, counted("reader", 1000.0, **lost)), Seen("writer", 0, "running", 0, writer)],
    )
    totals = state["totals"]
    assert totals["fed"] == totals["scored"] + totals["error"] + sum(totals["dropped"].values()) + totals["in_flight"]
    assert (totals["fed"], totals["in_flight"], totals["dead_s"]) == (1030, 150, {"window": 2.5})


def test_batches_by_queue_and_reason() -> None:
    watch = Watch(STAGES)

    def seen(n: float) -> list[Seen]:
        values = {"streamer_batch_size_count/eg": n, "streamer_batch_size_sum/eg": 8 * n,
                  "streamer_batch_closed_total/eg,idle": 0.75 * n, "streamer_batch_closed_total/eg,full": 0.25 * n,
                  "streamer_batch_closed_total/egg,full": 77.0, "streamer_batch_items_waiting/eg": 3.0}  # fmt: skip
        return [Seen("tagger", k, "running", 0, values) for k in range(2)]

    watch.look(0.0, seen(0.0))
    one = watch.look(2.0, seen(20.0))["batches"]["eg"]
    assert (one["n"], one["items"], one["mean"], one["waiting"]) == (20.0, 160.0, 8.0, 6.0)
    assert one["closed"] == {"idle": 15.0, "full": 5.0}


def test_paths_by_step() -> None:
    watch = Watch(STAGES)

    def seen(n: float) -> list[Seen]:
        values = {
            "streamer_path_events_total/E2E_A_v1,accepted": n,
            "streamer_path_events_total/E2E_A_v1,passed": 3 * n,
        }
        return [Seen("writer", k, "running", 0, values) for k in range(2)]

    watch.look(0.0, seen(0.0))
    found = watch.look(2.0, seen(10.0))["paths"]
    steps = {"accepted": {"rate": 10.0, "total": 20.0}, "passed": {"rate": 30.0, "total": 60.0}}
    assert found == {"E2E_A_v1": steps}


def test_latency_is_that_of_the_last_seconds() -> None:
    def seen(early: float, late: float) -> list[Seen]:
        below = np.where(np.array([float(edge) for edge in EVENT_EDGES]) >= 0.01, early, 0.0)
        below += np.where(np.array([float(edge) for edge in EVENT_EDGES]) >= 1.0, late, 0.0)
        return [
            Seen(
                "writer", 0, "running", 0, {f"{LATENCY}/{edge}": n for edge, n in zip(EVENT_EDGES, below, strict=True)}
            )
        ]

    watch = Watch(STAGES)
    assert watch.look(0, seen(0, 0))["latency"] == {}
    first = watch.look(1, seen(100, 0))["latency"]
    assert 0.005 < first["0.5"] <= 0.01
    for second in range(2, 12):
        last = watch.look(second, seen(100, 100 * second))["latency"]
    assert 0.5 < last["0.5"] <= 1.0


def test_quantiles_of_a_histogram() -> None:
    edges = np.array([float(edge) for edge in EVENT_EDGES])
    values = np.random.default_rng(0).lognormal(np.log(0.03), 1.0, 100_000)
    below = np.array([(values <= edge).sum() for edge in edges])
    for q in (0.5, 0.95, 0.99):
        assert quantile(below, q) == pytest.approx(np.quantile(values, q), rel=0.3)
    only_beyond = np.where(np.isinf(edges), 5, 0)
    assert quantile(only_beyond, 0.5) == edges[-2]


def test_what_is_kept_is_bounded() -> None:
    watch = Watch(STAGES)
    for second in range(KEPT + 50):
        watch.look(second, chain(second, second))
    assert len(watch.history) == KEPT
    assert len(watch.whole) == KEPT + 50
    for second in range(KEPT + 50, 5000):
        watch.look(second, chain(second, second))
    assert MOST_OF_ALL <= len(watch.whole) < 2 * MOST_OF_ALL
    assert np.diff([row[0] for row in watch.whole]).max() <= 8, "evenly, over the whole run"  # type: ignore[arg-type]
    assert watch.whole[-1][0] > 4990  # type: ignore[operator]
    assert all(len(past.looks) < 10 for past in watch._past.values())
    watch.look(6000, [])
    assert not watch._past


def test_the_last_failures_are_kept_each_once() -> None:
    kept: dict[str, dict[str, object]] = {}
    for life in range(3):
        remember(kept, [{"again": f"command {i}", "number": 100 * life + i} for i in range(FAILURES + 5)])
    assert [one["number"] for one in kept.values()] == [200 + i for i in range(5, FAILURES + 5)]
    remember(kept, [{"again": "command 7", "number": 999}])
    assert [one["number"] for one in kept.values()][-1] == 999
    assert len(kept) == FAILURES
