"""Schedules: whether events come as they were asked for, by number and by structure."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.arrivals import (
    FILLING,
    ORBIT_HZ,
    SLOTS,
    Bunches,
    Even,
    Poisson,
    Profile,
    Schedule,
    Steady,
    filling_of,
    rate_of_pileup,
)

KINDS = ("even", "poisson", "profile", "bunches")


def made(kind: str, rate: float = 1000.0, seed: int = 1) -> Schedule:
    random = np.random.default_rng(seed)
    if kind == "bunches":
        return Bunches(filling_of(FILLING), rate, random)
    unit = Even() if kind == "even" else Poisson(random)
    return Profile(unit, [(1.0, rate / 2), (0.5, 2 * rate)]) if kind == "profile" else Steady(unit, rate)


def distance(found: np.ndarray, wanted: np.ndarray) -> float:
    """The Kolmogorov-Smirnov statistic of what was found against its expected distribution, times sqrt(n)."""
    n = found.size
    ends = np.arange(n + 1) / n
    return float(np.sqrt(n) * max(np.abs(wanted - ends[1:]).max(), np.abs(wanted - ends[:-1]).max()))


@pytest.mark.parametrize("rate", [100.0, 1e3, 1e4])
def test_a_poisson_process_is_one(rate: float) -> None:
    gaps = np.sort(np.diff(Steady(Poisson(np.random.default_rng(5)), rate).take(100_001)))
    assert distance(gaps, 1 - np.exp(-rate * gaps)) < 1.63, "less in 99 % of all cases"


@pytest.mark.parametrize("rate", [100.0, 1e3, 1e4])
@pytest.mark.parametrize("kind", KINDS)
def test_the_rate_is_what_was_asked_for(kind: str, rate: float) -> None:
    times = made(kind, rate).take(100_000)
    assert 100_000 / times[-1] == pytest.approx(rate, rel=0.05 if kind == "profile" else 0.02), (
        "a profile ends anywhere"
    )


@given(st.sampled_from(KINDS), st.lists(st.integers(0, 6000), min_size=1, max_size=6))
def test_a_schedule_knows_nothing_of_how_it_is_asked(kind: str, asked: list[int]) -> None:
    schedule, whole = made(kind), made(kind).take(sum(asked))
    pieces = np.concatenate([schedule.take(n) for n in asked])
    np.testing.assert_allclose(pieces, whole, rtol=0, atol=1e-9)
    assert np.all(np.diff(pieces) >= 0)


def test_a_profile_is_followed() -> None:
    profile = Profile(Even(), [(1.0, 10.0), (1.0, 0.0), (0.5, 100.0)])
    times = profile.take(180)
    counts, _ = np.histogram(times, np.arange(0, 7.6, 0.5))
    assert counts.tolist() == [5, 5, 0, 0, 50] * 3


def test_bunches_meet_in_their_slots_alone() -> None:
    filled = filling_of(FILLING)
    assert len(filled) == 2460
    times = Bunches(filled, 10_000.0, np.random.default_rng(2)).take(50_000)
    slots = times * ORBIT_HZ % 1 * SLOTS
    assert np.abs(slots - np.round(slots)).max() < 1e-3
    seen = np.bincount(np.round(slots).astype(int) % SLOTS, minlength=SLOTS)
    assert seen[sorted(set(range(SLOTS)) - set(filled))].sum() == 0
    assert seen[filled].min() > 0
    gaps = np.sort(np.diff(np.round(times * ORBIT_HZ * SLOTS)))
    assert gaps[0] >= 1, "a crossing is fed once"


def test_every_crossing_can_be_fed() -> None:
    times = Bunches([0, 2], 2 * ORBIT_HZ, np.random.default_rng(1)).take(6)
    np.testing.assert_allclose(times * ORBIT_HZ * SLOTS, [0, 2, SLOTS, SLOTS + 2, 2 * SLOTS, 2 * SLOTS + 2])


def test_pile_up_says_how_many_crossings_count() -> None:
    assert rate_of_pileup([0], 1e-4) == pytest.approx(1e-4 * ORBIT_HZ, rel=1e-3)
    assert rate_of_pileup(filling_of(FILLING), 50) == pytest.approx(2460 * ORBIT_HZ)


def test_filling_patterns() -> None:
    assert filling_of("2b 1e 2(1b 2e)") == [0, 1, 3, 6]
    assert filling_of("2(1b 2(1e 1b))") == [0, 2, 4, 5, 7, 9]
    assert filling_of("3564b") == list(range(3564))
    for text, said in (
        ("", "without a bunch"),
        ("12e", "without a bunch"),
        ("0b", "without a bunch"),
        ("36x", "'36x': write '36b'"),
        ("2(36b", "a bracket is not closed"),
        ("36b)", "a bracket is closed"),
        ("3565b", "more than the 3564 slots"),
        ("99999999(99999999(1b))", "more than the 3564 slots"),
        ("9(" * 20, "in more than eight"),
    ):
        with pytest.raises(ValueError, match=said.replace("(", r"\(")):
            filling_of(text)
