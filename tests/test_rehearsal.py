"""Arrivals that are played to a batcher: the same decisions as in the engine, without its clock."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.bench.policies import Timeout, policies
from streamer.batcher import Batcher, DeadlineBatcher
from streamer.costs import Costs
from streamer.rehearsal import poisson, rehearse, switching

COSTS = {1: 2.0, 4: 4.0}


def answers(batcher: Batcher[int], arrivals: list[float], within: float = 1000.0) -> list[float]:
    at = np.array(arrivals)
    return rehearse(batcher, at, at + within, Costs(COSTS)).tolist()


def test_a_fixed_batch_is_closed_when_it_is_full_or_old_or_the_last() -> None:
    assert answers(Batcher(4, 10.0), [0, 1, 2, 3]) == [7] * 4
    assert answers(Batcher(4, 1.5), [0, 1, 4]) == [5.5, 5.5, 7.5]
    assert answers(Batcher(4, 100.0), [0, 1]) == [5, 5]


def test_what_comes_while_a_batch_is_worked_on_waits_for_the_next() -> None:
    assert answers(DeadlineBatcher(Costs(COSTS)), [0, 1, 1.5]) == [2, 6, 6]


def test_what_is_given_up_is_never_answered() -> None:
    assert answers(DeadlineBatcher(Costs(COSTS)), [0, 0.5], within=2.5) == [2, np.inf]
    assert answers(Timeout(1, 0.0, 1.0), [0, 0.5]) == [2, np.inf]
    assert answers(Timeout(1, 0.0, 2.0), [0, 0.5]) == [2, 4]


@given(st.lists(st.floats(0, 5), max_size=40), st.sampled_from(["fixed", "adaptive", "timeout"]), st.floats(0.1, 20))
def test_every_item_is_answered_once_or_given_up(gaps: list[float], kind: str, within: float) -> None:
    made = {"fixed": Batcher(4, 1.0), "adaptive": DeadlineBatcher(Costs(COSTS)), "timeout": Timeout(4, 1.0, within)}
    arrivals = np.cumsum(gaps)
    answered = rehearse(made[kind], arrivals, arrivals + within, Costs(COSTS))
    assert not made[kind].waiting
    assert np.all(answered >= arrivals + 2.0)
    if kind == "fixed":
        assert np.all(np.isfinite(answered))
    if kind == "adaptive":
        late = answered[np.isfinite(answered)] - (arrivals + within)[np.isfinite(answered)]
        assert np.all(late <= 1e-9), "paid for, and too late"


def test_arrivals_have_the_rates_that_were_asked_for() -> None:
    random = np.random.default_rng(5)
    assert poisson(1000, 20.0, random).size == pytest.approx(20_000, abs=5 * np.sqrt(20_000))
    changing = switching((100.0, 3000.0), 0.5, 10.0, random)
    assert np.all(np.diff(changing) >= 0)
    high = int(np.sum(changing % 1.0 >= 0.5))
    assert high == pytest.approx(15_000, abs=5 * np.sqrt(15_000))
    assert changing.size - high == pytest.approx(500, abs=5 * np.sqrt(500))


LARGE_BATCHES_PAY = {1: 0.2e-3, 8: 0.43e-3, 64: 2.28e-3}
TOO_LARGE_ONES_DO_NOT = {1: 0.135e-3, 8: 0.944e-3, 64: 8.1e-3}


@pytest.mark.parametrize(
    ("measured", "deadline"), [(LARGE_BATCHES_PAY, 3e-3), (LARGE_BATCHES_PAY, 6e-3), (TOO_LARGE_ONES_DO_NOT, 20e-3)]
)
def test_the_adaptive_policy_is_never_worse_than_the_best_fixed_one(
    measured: dict[int, float], deadline: float
) -> None:
    """By hindsight, of a grid."""
    found = policies(measured, deadline, 2500)
    assert len(found) == 9
    for case in found:
        best = max(case.fixed, case.timeout)
        assert case.adaptive >= 0.97 * best, case
        if case.load > 1:
            assert case.adaptive >= 1.2 * case.fixed, case
