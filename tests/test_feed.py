"""When events are due; the clock is the test's."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.config import FeedConfig
from streamer.feed import Feed

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


@given(st.floats(0.01, 1e7), st.floats(0, 1), st.integers(1, 1000), st.integers(1, 5000))
def test_no_event_waits_longer_for_its_block_than_block_wait(
    rate: float, block_wait: float, block_events: int, available: int
) -> None:
    paced = feed(rate=rate, block_wait=block_wait, block_events=block_events)
    for _ in range(3):
        due = paced.next(available, START)
        assert 1 <= due.size <= min(block_events, available)
        assert due[-1] - due[0] <= block_wait * 1e9 + 1
        assert np.all(np.diff(due) >= 0)


def test_schedule_does_not_drift() -> None:
    paced = feed(rate=30_000, block_wait="1 s", block_events=10_000)
    for _ in range(90):
        last = paced.next(10_000, START)[-1]
    assert abs(int(last) - START - round((900_000 - 1) / 30_000 * 1e9)) <= 1


@pytest.mark.parametrize("rate", [1e-300, 1e-9])
def test_hopeless_rates_lie_in_the_far_future_and_not_in_the_past(rate: float) -> None:
    hopeless = feed(rate=rate)
    assert hopeless.next(1, START).tolist() == [START]
    for _ in range(20):
        assert hopeless.next(1, START)[0] > START


def test_a_late_feed_catches_up_in_full_blocks_and_keeps_its_schedule() -> None:
    late = feed(rate=1000, block_events=200, block_wait="5 ms")
    assert late.next(1000, START).size == 6
    due = late.next(1000, START + 150_000_000)  # 150 events should have left, 6 have
    assert due.size == 144
    assert due[0] - START == 6_000_000
    assert late.next(1000, START + 10**10).size == 200
    assert late.next(1000, START).size == 6
