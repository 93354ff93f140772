"""The search for the highest rate that keeps a deadline, on streams whose latency is a formula."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stages import PIPELINE
from stages.bench.knee import Plan, of_blocks, stream
from stages.bench.knee_command import knee
from stages.bench.plot import Told
from stages.config import packaged
from streamer.errors import UsageError
from streamer.knee import Knee, Probe, find
from streamer.writing import Done


def queue(peak: float, noise: float = 0.0, seed: int = 0) -> Callable[[float], Probe]:
    """A queue that answers up to `peak` a second, in 1 ms when alone; sometimes the machine is busy with something."""
    dice = np.random.default_rng(seed)

    def probe(rate: float) -> Probe:
        busy = dice.random() < noise
        load = rate / peak * (1.5 if busy else 1.0)
        late = 0.001 / (1 - load) if load < 1 else 10.0
        answered = rate / max(1.0, load)
        return Probe(rate, answered, answered if late <= 0.02 else 0.0, 0, {"0.5": late / 4, "0.99": late})

    return probe


@pytest.mark.parametrize("start", [10.0, 900.0, 20_000.0])
def test_finds_where_latency_reaches_the_deadline(start: float) -> None:
    found = find(queue(1000.0), 0.02, start)  # p99 is 20 ms at 950
    assert 950 / 1.05 <= found.rate <= 950
    assert [one.offered for one in found.confirmed] == [pytest.approx(found.rate)] * len(found.confirmed)
    assert sum(one.holds(0.02) for one in found.confirmed) == 2
    assert len(found.probes) < 30


def test_a_busy_moment_does_not_lower_the_knee() -> None:
    rates = [find(queue(1000.0, 0.1, seed), 0.02, 700.0).rate for seed in range(40)]
    assert np.median(rates) > 900
    assert np.mean(np.array(rates) > 800) > 0.9


def test_what_is_confirmed_has_held_more_often_than_not() -> None:
    for seed in range(40):
        found = find(queue(1000.0, 0.3, seed), 0.02, 700.0, repeats=5)
        assert 2 * sum(one.holds(0.02) for one in found.confirmed) > 5


def test_a_deadline_that_nothing_keeps_has_no_knee() -> None:
    found = find(queue(1000.0), 0.0005, 500.0, lowest=5.0)
    assert (found.rate, found.confirmed) == (0.0, [])
    assert min(one.offered for one in found.probes) < 5.0


@pytest.mark.parametrize(
    ("changed", "holds"),
    [({}, True), ({"answered": 96.0}, False), ({"lost": 1}, False), ({"latency_s": {"0.99": 0.021}}, False)],
)
def test_a_rate_holds_when_all_is_answered_in_time(changed: dict[str, object], holds: bool) -> None:
    given = {"offered": 100.0, "answered": 100.0, "in_time": 100.0, "lost": 0, "latency_s": {"0.99": 0.02}}
    assert Probe(**{**given, **changed}).holds(0.02) is holds  # type: ignore[arg-type]


def test_every_probe_is_told() -> None:
    told: list[tuple[float, bool]] = []
    found: Knee = find(queue(1000.0), 0.02, 700.0, told=lambda one, good: told.append((one.offered, good)))
    assert told == [(one.offered, one.holds(0.02)) for one in found.probes]


SECOND = 1_000_000_000


def test_blocks_tell_of_their_events() -> None:
    rows = [
        Done(100, 0, k * SECOND // 10, k * SECOND // 10 + 99_000_000, k * SECOND // 10 + 110_000_000) for k in range(40)
    ]  # 1000 events a second, answered 11 to 110 ms after they were due
    one = of_blocks(np.array(rows), 1000.0, 0.0605, 3)
    assert one.latency_s["0.5"] == pytest.approx(0.061, abs=0.001)
    assert one.latency_s["0.99"] == pytest.approx(0.109, abs=0.002)
    assert one.answered == pytest.approx(1000, rel=0.01)
    assert one.in_time == pytest.approx(500, rel=0.01)
    assert one.lost == 3


def test_what_was_shed_is_no_answer() -> None:
    rows = [
        Done(100, 40, k * SECOND // 10, k * SECOND // 10 + 99_000_000, k * SECOND // 10 + 110_000_000)
        for k in range(40)
    ]
    one = of_blocks(np.array(rows), 1000.0, 0.0605, 1600)
    assert one.latency_s["0.99"] == pytest.approx(0.07, abs=0.002)  # the others are 11 to 70 ms late
    assert one.answered == pytest.approx(600, rel=0.01)
    assert one.in_time == pytest.approx(500, rel=0.01)


def test_what_comes_ever_later_falls_behind() -> None:
    rows = [Done(100, 0, k * 10**8, k * 10**8 + 99_000_000, int(k * 1.1 * 10**8) + 110_000_000) for k in range(40)]
    assert of_blocks(np.array(rows), 1000.0, 10.0, 0).answered == pytest.approx(1000 / 1.1, rel=0.01)


def test_a_stream_through_the_pipeline(tmp_path: Path) -> None:
    config = PIPELINE.load_config(None, {"input.files": [packaged("samples/egamma.root")], "writer.dir": str(tmp_path)})
    with Told(1) as told:
        one = stream(config, Plan(deadline=5.0, seconds=2.5), 200.0, told)  # type: ignore[arg-type]
    assert one.holds(5.0)
    assert one.in_time == pytest.approx(200, rel=0.3)
    assert 0 < one.latency_s["0.5"] <= one.latency_s["0.9"] <= one.latency_s["0.99"]


def test_a_deadline_is_a_time() -> None:
    with pytest.raises(UsageError, match="--deadline 'soon': write a time above 0"):
        knee(deadline="soon")
