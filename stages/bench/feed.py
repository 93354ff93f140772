"""`streamer bench feed`: whether events leave the reader as they were asked for.

A reader's own process feeds numbered events over a real hop, by each profile and at each rate. For each event are noted
when it was due, which latencies count from, and when its block left.

A random profile is a Poisson process whose rate changes with time. Where time is counted by how many events are
expected until then, its gaps must be exponential, whatever the rate does: the Kolmogorov-Smirnov test holds them to
that, once for the times that events were due and once for those at which they left.
"""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stages.bench.feed_chain import CLOCKWORK, DEPARTURES, RECORDED_HZ
from stages.bench.pipeline import begin
from stages.bench.plot import Told
from stages.bench.ways import run_through
from stages.config import Config
from streamer.arrivals import ORBIT_HZ, SLOTS, Seconds, filling_of
from streamer.config import FeedConfig, changed

PROFILES = ("fixed", "poisson", "bunches", "bursts", "recorded")
QUANTILES = (0.5, 0.99, 1.0)
LEAST_EVENTS, MOST_EVENTS = 100, 100_000
STEP_S = 0.25
"""How long the rate is half of what is asked, and then one and a half times, in `bursts`."""


@dataclass(frozen=True)
class Plan:
    """Which rates [Hz], and how long each stream is, about [s]."""

    rates: tuple[float, ...] = (100.0, 1000.0, 10_000.0)
    seconds: float = 4.0


@dataclass(frozen=True)
class Fed:
    """One stream.

    Attributes
    ----------
    hz, left_hz : float
        Events a second, by when they were due and by when they left.
    expected : float
        How many were expected in the time that it took, `events` of them came.
    gap_s, gap_spread_s : float
        Mean and standard deviation of the distances between due times.
    ks, ks_left : (float, float)
        Statistic and p-value of the test, by when they were due and by when they left; (0, 1) for equal distances.
    late_s : dict of float to float
        How long after they were due events left: quantiles.
    in_slots : float
        For `bunches`, the share of events that are due when bunches meet.
    """

    profile: str
    asked_hz: float
    events: int
    hz: float
    left_hz: float
    expected: float
    gap_s: float
    gap_spread_s: float
    ks: tuple[float, float]
    ks_left: tuple[float, float]
    late_s: dict[float, float]
    events_per_block: float
    in_slots: float


@dataclass(frozen=True)
class Times:
    """When the events of a stream were due, and left [s since the feed began]."""

    due: Seconds
    left: Seconds


@dataclass(frozen=True)
class Result:
    """What `feed.json` holds, and the times that it was made of."""

    about: dict[str, Any]
    plan: Plan
    streams: list[Fed]
    times: list[Times]


def settings(profile: str, hz: float) -> dict[str, Any]:
    """The settings of a feed of this profile with this mean rate."""
    if profile == "bursts":
        return {"feed.profile": [[STEP_S, hz / 2], [STEP_S, 1.5 * hz]], "feed.arrivals": "poisson"}
    if profile == "recorded":
        return {"feed.arrivals": profile, "feed.speed": hz / RECORDED_HZ}
    return {"feed.rate": hz, "feed.arrivals": "even" if profile == "fixed" else profile}


def bench_feed(config: Config, plan: Plan, output: Path) -> Result:
    """Measure, and leave `feed.json` in the folder `output`.

    Raises
    ------
    StreamerError
        A stream fails.
    KeyboardInterrupt
        The measurement was stopped. Nothing is left then.
    """
    about = begin(output)
    streams: list[Fed] = []
    times: list[Times] = []
    wanted = [(profile, hz) for profile in PROFILES for hz in plan.rates]
    with TemporaryDirectory(prefix=".bench-", dir=output) as folder, Told(len(wanted)) as told:
        for profile, hz in wanted:
            told.step(f"{profile} {hz:,g} Hz")
            n = int(np.clip(hz * plan.seconds, LEAST_EVENTS, MOST_EVENTS))
            where = {
                "feed.events": n,
                "feed.seed": config.feed.seed + len(streams),
                "writer.dir": str(Path(folder).resolve()),
            }
            once = changed(config, settings(profile, hz) | where)
            run_through(CLOCKWORK, once, told.running)
            fed, found = measured(profile, hz, once.feed, np.load(Path(folder) / DEPARTURES))
            streams.append(fed)
            times.append(found)
    result = Result(about, plan, streams, times)
    plain = {"about": about, "plan": asdict(plan), "streams": [asdict(stream) for stream in streams]}
    (output / "feed.json").write_text(json.dumps(plain, indent=2) + "\n")
    return result


def measured(profile: str, hz: float, feed: FeedConfig, departures: Any) -> tuple[Fed, Times]:
    """What is to be said of a stream.

    Parameters
    ----------
    departures : int64, shape (3, n_events)
        When events were due and left [ns], and the number of the first event of their block.
    """
    due_ns, left_ns, blocks = departures[:, np.argsort(departures[0], kind="stable")]
    begin = int(due_ns[0])
    if profile == "bunches":  # the feed began with an orbit
        begin -= _into_orbit(feed)
    times = Times((due_ns - begin) * 1e-9, (left_ns - begin) * 1e-9)
    gaps, late = np.diff(times.due), times.left - times.due
    span, span_left = times.due[-1] - times.due[0], np.ptp(times.left)
    asked = [expected(profile, hz, feed, some) for some in (times.due, np.sort(times.left))]
    none = (0.0, 1.0)
    fed = Fed(
        profile=profile,
        asked_hz=hz,
        events=due_ns.size,
        hz=(due_ns.size - 1) / span,
        left_hz=(due_ns.size - 1) / span_left,
        expected=1 + float(asked[0][-1] - asked[0][0]),
        gap_s=float(gaps.mean()),
        gap_spread_s=float(gaps.std()),
        ks=none if profile == "fixed" else against_exponential(np.diff(asked[0])),
        ks_left=none if profile == "fixed" else against_exponential(np.diff(asked[1])),
        late_s={q: float(np.quantile(late, q, method="higher")) for q in QUANTILES},
        events_per_block=due_ns.size / np.unique(blocks).size,
        in_slots=in_slots(times.due, feed) if profile == "bunches" else 0.0,
    )
    return fed, times


def _into_orbit(feed: FeedConfig) -> int:
    """When the first event of a feed by bunches is due [ns after the feed began]."""
    from streamer.feed import Feed

    return int(Feed(feed, 0).next(1, 0)[0])


def expected(profile: str, hz: float, feed: FeedConfig, times: Seconds) -> Seconds:
    """How many events are expected until these times [s since the feed began]."""
    if profile == "bursts":
        rounds, rest = np.divmod(times, 2 * STEP_S)
        low, high = hz / 2, 1.5 * hz
        return rounds * 2 * STEP_S * hz + low * np.minimum(rest, STEP_S) + high * np.maximum(rest - STEP_S, 0)
    if profile == "bunches":
        filled = np.array(filling_of(feed.filling))
        orbits, rest = np.divmod(times * ORBIT_HZ, 1.0)
        crossings = orbits * filled.size + np.searchsorted(filled, rest * SLOTS - 0.5)
        return crossings.astype(np.float64) * (hz / (ORBIT_HZ * filled.size))
    return hz * times


def in_slots(due: Seconds, feed: FeedConfig) -> float:
    """The share of events that are due within a tenth of a slot of where bunches meet."""
    slots = due * ORBIT_HZ % 1 * SLOTS
    filled = np.zeros(SLOTS, bool)
    filled[filling_of(feed.filling)] = True
    near = np.round(slots).astype(int)
    return float(np.mean(filled[near % SLOTS] & (np.abs(slots - near) < 0.1)))


def against_exponential(gaps: Seconds) -> tuple[float, float]:
    """The Kolmogorov-Smirnov statistic of gaps against exponential ones with a mean of 1, and its p-value."""
    n = gaps.size
    wanted = 1 - np.exp(-np.sort(gaps))
    steps = np.arange(n + 1) / n
    distance = float(max(np.abs(wanted - steps[1:]).max(), np.abs(wanted - steps[:-1]).max()))
    return distance, p_value(distance * (np.sqrt(n) + 0.12 + 0.11 / np.sqrt(n)))


def p_value(scaled: float) -> float:
    """The chance of a larger statistic (Kolmogorov's distribution; scaled as M. A. Stephens, JRSS B 32 (1970) 115)."""
    if scaled < 0.2:
        return 1.0
    return float(np.clip(2 * sum(_terms(scaled)), 0, 1))


def _terms(scaled: float) -> Iterator[float]:
    for k in range(1, 101):
        yield (-1) ** (k - 1) * np.exp(-2 * k**2 * scaled**2)
