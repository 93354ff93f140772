"""The measurement of feeds: that it measures what it says, with a real reader's process and a real hop."""

import json
from pathlib import Path

import numpy as np
import pytest

from stages import PIPELINE
from stages.bench import feed as bench_feed
from stages.bench.feed import PROFILES, Plan, against_exponential, expected, measured, p_value, settings
from stages.bench.feed_chain import recorded
from stages.bench.feed_plot import plot, show
from stages.config import Config
from streamer.arrivals import ORBIT_HZ, filling_of
from streamer.config import changed
from streamer.feed import Feed


@pytest.fixture(scope="module")
def config() -> Config:
    loaded = PIPELINE.load_config(None, {"feed.block_wait": 0})
    assert isinstance(loaded, Config)
    return loaded


def test_the_test_of_kolmogorov_and_smirnov_has_its_tabulated_values() -> None:
    assert p_value(1.22385) == pytest.approx(0.10, abs=1e-4)
    assert p_value(1.35810) == pytest.approx(0.05, abs=1e-4)
    assert p_value(1.62762) == pytest.approx(0.01, abs=1e-4)
    assert p_value(0.0) == 1.0
    dice = np.random.default_rng(3)
    chances = np.array([against_exponential(dice.exponential(1, 300))[1] for _ in range(400)])
    assert np.mean(chances < 0.1) == pytest.approx(0.1, abs=0.06)
    distance, chance = against_exponential(np.ones(300))
    assert distance == pytest.approx(1 - np.exp(-1))
    assert chance < 1e-6


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("hz", [100.0, 1000.0, 10_000.0])
def test_each_profile_is_what_was_asked_for(config: Config, profile: str, hz: float) -> None:
    """The arrivals of a feed as they are, of which a real stream is told below: 100,000, as fast as they are made."""
    n = 100_000
    feed = changed(config, settings(profile, hz) | {"feed.block_events": 65_536}).feed
    schedule, parts = Feed(feed, 10**18), []
    stamps = (recorded(n) * 1e9).astype(np.int64) if profile == "recorded" else None
    while (done := sum(part.size for part in parts)) < n:
        given = None if stamps is None else stamps[done:]
        parts.append(schedule.next(n - done, (1 << 62) if done else 10**18, 0.0, given))
    due = np.concatenate(parts)
    fed, _ = measured(profile, hz, feed, np.stack([due, due, np.arange(n)]))
    assert fed.events == n
    assert fed.hz == pytest.approx(hz, rel=0.02)
    assert fed.events - fed.expected == pytest.approx(0, abs=1.5 if profile == "fixed" else 4 * np.sqrt(n))
    assert fed.ks == fed.ks_left
    assert fed.ks[1] > 0.01
    assert fed.in_slots == (1.0 if profile == "bunches" else 0.0)
    assert fed.gap_spread_s == pytest.approx(
        {"fixed": 0.0, "bursts": fed.gap_spread_s}.get(profile, 1 / hz), rel=0.03, abs=1e-9
    )


def test_time_is_counted_by_the_events_that_are_expected(config: Config) -> None:
    bursts = changed(config, settings("bursts", 1000)).feed
    assert expected("bursts", 1000, bursts, np.array([0.0, 0.1, 0.25, 0.35, 0.5, 0.6])).tolist() == pytest.approx(
        [0, 50, 125, 275, 500, 550]
    )
    bunches = changed(config, settings("bunches", 1000)).feed
    n_filled = len(filling_of(bunches.filling))
    times = np.arange(4) / ORBIT_HZ
    wanted = np.arange(4) * n_filled * 1000 / (n_filled * ORBIT_HZ)
    assert expected("bunches", 1000, bunches, times + 1e-12).tolist() == pytest.approx(wanted.tolist(), abs=1e-9)


def test_a_real_reader_is_measured(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench_feed, "PROFILES", ("bunches", "recorded"))
    result = bench_feed.bench_feed(config, Plan(rates=(500.0,), seconds=0.4), tmp_path / "out")
    told = json.loads((tmp_path / "out" / "feed.json").read_text())
    assert [stream["profile"] for stream in told["streams"]] == ["bunches", "recorded"]
    for one, times in zip(result.streams, result.times, strict=True):
        assert one.events == times.due.size == 200
        assert np.all(times.left >= times.due), "no event leaves before it is due"
        assert 0 <= one.late_s[0.5] <= one.late_s[0.99] <= one.late_s[1.0]
    bunches, played = result.streams
    assert bunches.in_slots == 1.0
    np.testing.assert_allclose(result.times[1].due, recorded(200) * 2, atol=1e-6)
    assert played.hz == pytest.approx(199 / (recorded(200)[-1] * 2), rel=1e-6)
    show(result)
    assert "100.0% of the events are due when bunches meet" in capsys.readouterr().out
    plot(result, tmp_path / "feed.png", config.feed.filling)
    assert (tmp_path / "feed.png").read_bytes()[:4] == b"\x89PNG"
