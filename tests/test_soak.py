"""The soak's judgement: a leak is told, noise and a sawtooth are not."""

import numpy as np
import pytest
from soak import Seen, Series, line, quantile, told


def seen(
    growth_mb: float = 0.0,
    step_mb: float = 0.0,
    files: int = 0,
    in_flight: float = 0.0,
    p99_s: float = 0.0,
    rate: float = 100,
) -> Seen:
    """Ten minutes of one process, with what grows in them."""
    at_s = np.arange(0, 600, 2.0)
    rising, rng = at_s / at_s[-1], np.random.default_rng(1)
    sawtooth = 5e6 * (at_s % 30) / 30  # as of the writer, which makes a file now and then
    uss = 80e6 + growth_mb * 1e6 * rising + step_mb * 1e6 * (rising > 0.5) + sawtooth + rng.normal(0, 1e5, at_s.size)
    series = Series(
        at_s.tolist(),
        uss.tolist(),
        uss.tolist(),
        (20 + np.floor(files * rising + 0.5) + (rng.random(at_s.size) < 0.2)).tolist(),
        [8.0] * at_s.size,
        (10 + in_flight * rising + rng.normal(0, 1, at_s.size)).tolist(),
    )
    return Seen({"reader-0": series}, at_s.tolist(), (rate * at_s).tolist(), (0.02 + p99_s * rising).tolist())


@pytest.mark.parametrize(
    ("what", "wrong"),
    [
        ({}, ""),
        ({"growth_mb": 1}, ""),
        ({"growth_mb": -10}, ""),
        ({"step_mb": 10}, ""),
        ({"growth_mb": 10}, "reader-0 grows by"),
        ({"files": 4}, "reader-0 had at least 21 files, and then 23"),
        ({"in_flight": 30}, "blocks were in flight"),
        ({"p99_s": 0.1}, "the p99 of the latency was"),
        ({"rate": 90}, "only 90 of 100 events a second"),
    ],
)
def test_what_grows_is_told(what: dict[str, float], wrong: str, capsys: pytest.CaptureFixture[str]) -> None:
    lines = told(seen(**what), 100)  # type: ignore[arg-type]
    assert len(lines) == bool(wrong)
    assert all(wrong in one for one in lines)
    assert "reader-0" in capsys.readouterr().out


def test_the_slope_is_that_of_the_line_and_its_uncertainty_that_of_the_noise() -> None:
    rng, at_s = np.random.default_rng(2), np.arange(1000.0)
    pulls = []
    for _ in range(200):
        slope, error = line(at_s, 3 + 0.25 * at_s + rng.normal(0, 20, at_s.size))
        pulls.append((slope - 0.25) / error)
    assert abs(np.mean(pulls)) < 0.3
    assert 0.8 < np.std(pulls) < 1.4


def test_a_quantile_lies_within_its_bucket() -> None:
    below = {0.1: 50.0, 0.2: 98.0, 0.5: 100.0, float("inf"): 100.0}
    assert quantile(0.99, below) == pytest.approx(0.35)
    assert quantile(0.5, below) == pytest.approx(0.1)
    assert np.isinf(quantile(0.99, {0.1: 0.0, float("inf"): 5.0}))
    assert np.isnan(quantile(0.99, {0.1: 0.0, float("inf"): 0.0}))
