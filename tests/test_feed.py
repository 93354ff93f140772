"""When events are due; the clock is the test's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.config import FeedConfig
from streamer.errors import UsageError
from streamer.feed import Feed, Lumisections, feed_settings

START = 1_700_000_000_000_000_000


def feed(**settings: object) -> Feed:
    return Feed(FeedConfig.model_validate(settings), START)


def test_without_a_rate_events_are_due_when_they_are_asked_for() -> None:
    unpaced = feed(block_events=4)
    assert unpaced.next(3, START + 7).tolist() == [START + 7] * 3
    assert unpaced.next(9, START + 8).tolist() == [START + 8] * 4
    assert unpaced.fed == 7


def test_with_a_rate_events_are_due_by_the_schedule_whatever_the_time_is() -> None:
    paced = feed(rate=1000, block_events=4, block_wait="1 s")
    assert (paced.next(9, START) - START).tolist() == [0, 1_000_000, 2_000_000, 3_000_000]
    assert (paced.next(2, START + 10**12) - START).tolist() == [4_000_000, 5_000_000]


def test_at_a_low_rate_blocks_hold_one_event() -> None:
    slow = feed(rate=10, block_wait="5 ms")
    assert slow.next(100, START).size == 1


ARRIVALS = st.sampled_from(["even", "poisson"])


@given(ARRIVALS, st.floats(0.01, 1e7), st.floats(0, 1), st.integers(1, 1000), st.integers(1, 5000))
def test_no_event_waits_longer_for_its_block_than_block_wait(
    arrivals: str, rate: float, block_wait: float, block_events: int, available: int
) -> None:
    paced = feed(arrivals=arrivals, rate=rate, block_wait=block_wait, block_events=block_events)
    for _ in range(3):
        due = paced.next(available, START)
        assert 1 <= due.size <= min(block_events, available)
        assert due[-1] - due[0] <= block_wait * 1e9 + 1
        assert np.all(np.diff(due) >= 0)


def test_blocks_are_larger_where_the_way_is_long() -> None:
    sizes = [feed(rate=10_000, block_wait="5 ms").next(1000, START, way).size for way in (0.0, 0.01, 0.04, 0.05, 9.0)]
    assert sizes == [51, 51, 201, 251, 256]
    assert feed(rate=1000, block_wait="5 ms").next(1000, START, 9.0).size == 161, "at most 32 times as long"


def test_under_a_deadline_blocks_are_no_longer_than_a_sixteenth_of_it_even_if_late() -> None:
    for now, way in ((START, 9.0), (START + 10**12, 0.0)):
        assert feed(rate=10_000, deadline="80 ms").next(1000, now, way).size == 51


@pytest.mark.parametrize(
    ("rate", "answered", "n"),
    [(40_000, 1.0, 201), (40_000, 0.5, 101), (40_000, 0.25, 51), (40_000, 0.0, 51), (10_000, 0.5, 32), (1000, 0.3, 6)],
)
def test_in_an_overload_blocks_hold_what_the_chain_answers_in_that_time_or_a_few(
    rate: float, answered: float, n: int
) -> None:
    assert feed(rate=rate, deadline="80 ms").next(1000, 0, 1.0, answered=answered).size == n
    assert feed(rate=10_000).next(1000, 0, 1.0, answered=answered).size == feed(rate=10_000).next(1000, 0, 1.0).size


def test_a_deadline_without_a_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="'deadline' counts from when events are due, and these never are; set a 'rat"):
        feed(deadline="40 ms")
    assert feed(deadline="40 ms", profile=[["1 s", 5]]).config.deadline == 0.04


def test_schedule_does_not_drift() -> None:
    paced = feed(rate=30_000, block_wait="1 s", block_events=10_000)
    for _ in range(90):
        last = paced.next(10_000, START)[-1]
    assert abs(int(last) - START - round((900_000 - 1) / 30_000 * 1e9)) <= 1


@given(st.lists(st.tuples(st.integers(1, 300), st.floats(0, 2)), min_size=1, max_size=30), st.integers(0, 9))
def test_the_schedule_knows_nothing_of_how_it_is_asked(asked: list[tuple[int, float]], seed: int) -> None:
    settings = {"arrivals": "poisson", "rate": 5000, "seed": seed}
    broken = feed(**settings, block_events=100)
    parts = [broken.next(available, START + int(late * 1e9)) for available, late in asked]
    whole = feed(**settings, block_events=10_000)
    n = sum(part.size for part in parts)
    assert np.concatenate(parts).tolist() == whole.next(n, START + 10**12).tolist()


def test_random_arrivals_have_the_rate_and_the_gaps_of_a_poisson_process() -> None:
    random = Feed(FeedConfig(arrivals="poisson", rate=2000, block_events=50_000), START, (3,))
    gaps = np.diff(random.next(50_000, START + 10**12)) * 1e-9
    assert gaps.mean() == pytest.approx(1 / 2000, rel=5 / np.sqrt(gaps.size))
    assert gaps.std() == pytest.approx(1 / 2000, rel=0.03)
    assert np.mean(gaps > 1 / 2000) == pytest.approx(np.exp(-1), abs=0.02)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 5 / np.sqrt(gaps.size)


def test_replicas_and_seeds_have_arrivals_of_their_own() -> None:
    config = FeedConfig(arrivals="poisson", rate=100, block_wait=60)
    first, other = (Feed(config, START, replica, 2).next(50, START) for replica in (0, 1))
    seeded = Feed(config.model_copy(update={"seed": 1}), START, 0, 2).next(50, START)
    assert first.tolist() == Feed(config, START, 0, 2).next(50, START).tolist()
    assert len({tuple(due.tolist()) for due in (first, other, seeded)}) == 3


@pytest.mark.parametrize("arrivals", ["even", "poisson"])
@pytest.mark.parametrize("rate", [1e-300, 1e-9])
def test_hopeless_rates_lie_in_the_far_future_and_not_in_the_past(rate: float, arrivals: str) -> None:
    hopeless = feed(rate=rate, arrivals=arrivals)
    assert hopeless.next(1, START).tolist() == [START]
    for _ in range(20):
        assert hopeless.next(1, START)[0] > START


def test_a_late_feed_catches_up_in_full_blocks_and_keeps_its_schedule() -> None:
    late = feed(rate=1000, block_events=200, block_wait="5 ms")
    assert late.next(1000, START).size == 6
    due = late.next(1000, START + 150_000_000)  # 151 events should have left, 6 have
    assert due.size == 145
    assert due[0] - START == 6_000_000
    assert late.next(1000, START + 10**10).size == 200
    assert late.next(1000, START).size == 6


def test_a_feed_is_told_in_a_few_words() -> None:
    for text, wanted in (
        ("max", {}),
        ("fixed 2000", {"feed.rate": 2000.0}),
        ("poisson 1e3", {"feed.rate": 1000.0, "feed.arrivals": "poisson"}),
        ("bunches 500", {"feed.rate": 500.0, "feed.arrivals": "bunches"}),
        ("pileup 0.001", {"feed.pileup": 0.001, "feed.arrivals": "bunches"}),
        ("bursts 10s:500 1s:3000", {"feed.profile": [["10s", 500.0], ["1s", 3000.0]], "feed.arrivals": "poisson"}),
        ("recorded", {"feed.arrivals": "recorded"}),
        ("recorded 0.5", {"feed.arrivals": "recorded", "feed.speed": 0.5}),
    ):
        whatever_was_configured = {"rate": 7.0, "arrivals": "poisson", "profile": (), "pileup": 0.0}
        told = {key.removeprefix("feed."): value for key, value in feed_settings(text).items()}
        found = FeedConfig.model_validate(whatever_was_configured | told)
        assert found == FeedConfig.model_validate({key.removeprefix("feed."): value for key, value in wanted.items()})
    for text in ("", "slow", "fixed", "fixed fast", "max 3", "poisson 1 2", "steps 10s", "steps 10s:1:2", "recorded x"):
        with pytest.raises(UsageError, match="write max, 'fixed HZ'"):
            feed_settings(text)
    for text in ("fixed 0", "poisson -3", "bunches 0", "pileup 0", "recorded 0", "fixed nan"):
        with pytest.raises(UsageError, match=f"--feed '{text}': nothing would ever come; write a number above 0"):
            feed_settings(text)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"profile": [["1 s", 0]]}, "no rate above 0"),
        ({"profile": [["0 s", 5]]}, "greater than 0"),
        ({"profile": [["1 s", 5]], "rate": 3}, "rates of its own"),
        ({"pileup": 1.0}, "takes the place of 'rate'"),
        ({"arrivals": "bunches"}, "set 'rate' to at most that, or 'pileup'"),
        ({"arrivals": "bunches", "rate": 1e9}, "bunches meet 27,663,930 times a second"),
        ({"filling": "3564e"}, "without a bunch"),
        ({"arrivals": "poisson"}, "needs a 'rate' above 0"),
        ({"arrivals": "recorded", "rate": 5}, "has times of its own"),
        ({"speed": 2}, "only with 'arrivals' = \"recorded\""),
    ],
)
def test_a_feed_that_cannot_be_is_told_before_the_start(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        FeedConfig.model_validate(settings)


@pytest.mark.parametrize("arrivals", ["even", "poisson"])
def test_a_feed_that_goes_on_takes_up_its_schedule(arrivals: str) -> None:
    settings = {"arrivals": arrivals, "profile": [["1 s", 100], ["1 s", 300]], "block_events": 500, "block_wait": 99.0}
    whole = feed(**settings).next(500, START) - START
    later = feed(**settings, duration="3 s")
    later.skip(123, 0)
    due = later.next(500, START)
    assert due[0] == START
    n = np.searchsorted(whole, 3_000_000_000) - 123
    assert np.abs((due - START) - (whole[123:] - whole[123])[:n]).max() <= 1, "and the time it has is what was left"
    assert due.size == n
    assert later.over(START + 3_000_000_000 - int(whole[123]))
    assert not later.over(START)


def test_a_feed_stops_in_time() -> None:
    paced = feed(rate=100, duration="50 ms", block_wait=0)
    assert [paced.next(9, START).size for _ in range(6)] == [1, 1, 1, 1, 1, 0]
    unpaced = feed(duration="50 ms")
    assert unpaced.next(9, START + 49_000_000).size == 9
    assert unpaced.next(9, START + 50_000_000).size == 0


def test_a_feed_without_a_schedule_that_goes_on_has_the_time_that_was_left() -> None:
    first = feed(duration="10 s")
    first.next(9, START + 9 * 10**9)
    assert first.passed == 9 * 10**9
    later = feed(duration="10 s")
    later.skip(5000, first.passed)
    assert later.next(9, START + 10**9 - 1).tolist() == [START + 10**9 - 1] * 9
    assert later.next(9, START + 10**9).size == 0
    assert later.passed == 10 * 10**9
    assert later.next(9, START + 10**9, again=True).tolist() == [START + 10**9] * 9, "what was fed has had its time"

    played = feed(arrivals="recorded", speed=2, block_wait="9 s", duration="10 s")
    played.skip(5000, first.passed)
    times = np.array([50, 51, 52, 53]) * 10**9
    assert (played.next(4, START + 7, 0.0, times) - START).tolist() == [7, 7 + 5 * 10**8]
    assert played.passed == 95 * 10**8
    assert played.next(2, START + 7, 0.0, times[2:]).size == 0


def test_recorded_times_are_followed_from_the_first_event_on() -> None:
    played = feed(arrivals="recorded", speed=2, block_wait="1 s", duration="1 s")
    times = np.array([5, 6, 6, 7, 8]) * 10**9
    assert (played.next(4, START + 10**9, 0.0, times[:4]) - START).tolist() == [10**9, 15 * 10**8, 15 * 10**8]
    assert played.next(2, START + 10**9, 0.0, times[3:]).size == 0


def test_lumisections_are_counted_in_whatever_order_they_come() -> None:
    lumis = Lumisections(3, [(1, 7)])

    def columns(*values: int) -> dict[str, np.ndarray]:
        return {"run": np.ones(len(values), np.uint32), "luminosityBlock": np.array(values, np.uint32)}

    assert lumis.room(columns(7, 9, 7)) == 3
    assert lumis.room(columns(9, 8, 8, 7, 6, 9)) == 4
    assert lumis.room(columns(8, 6)) == 1
    assert Lumisections(0).room(columns(1, 2, 3)) >= 3


def test_sources_share_a_profile() -> None:
    config = FeedConfig.model_validate(
        {"profile": [["1 s", 100], ["1 s", 300]], "block_events": 1000, "block_wait": 9.0}
    )
    both = np.sort(np.concatenate([Feed(config, 0, source, 2).next(400, 0) for source in (0, 1)]))
    counts, _ = np.histogram(both * 1e-9, [0, 1, 2, 3, 4])
    assert counts.tolist() == [100, 300, 100, 300]
