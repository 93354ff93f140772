"""What batches cost; all times are the test's."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.costs import Costs, largest_useful, useful_sizes


def line(fixed: float, each: float, sizes: list[int]) -> dict[int, float]:
    return {size: fixed + each * size for size in sizes}


def test_a_batch_is_padded_to_the_next_size_and_costs_as_much() -> None:
    costs = Costs({1: 2.0, 4: 3.0, 16: 8.0})
    assert [costs.size(n) for n in (1, 2, 4, 5, 16)] == [1, 4, 4, 16, 16]
    assert [costs.of(n) for n in (1, 2, 4, 5, 16)] == [2.0, 3.0, 3.0, 8.0, 8.0]
    assert [costs.most(s) for s in (1.9, 2.0, 7.9, 99.0)] == [0, 1, 4, 16]
    assert (costs.max_batch, costs.best, costs.peak) == (16, 16, 2.0)
    for n in (0, 17):
        with pytest.raises(ValueError, match="1 to 16 can be run"):
            costs.of(n)


def test_a_larger_batch_is_never_thought_cheaper() -> None:
    costs = Costs({1: 2.0, 2: 1.0, 4: 1.5, 8: 9.0})
    assert [costs.of(n) for n in (1, 2, 4, 8)] == [2.0, 2.0, 2.0, 9.0]


def test_the_best_size_does_nearly_the_most_items_a_second_and_follows_what_is_learned() -> None:
    costs = Costs({1: 1.0, 8: 4.0, 16: 8.1, 64: 40.0})
    assert (costs.best, costs.peak) == (16, 2.0)
    for _ in range(500):
        costs.learn(16, 16.0)
        costs.learn(8, 4.0)
        costs.learn(1, 1.0)
        costs.learn(64, 20.0)
    assert costs.best == 64
    assert costs.peak == pytest.approx(3.2, rel=0.1)


@pytest.mark.parametrize("seconds", [{}, {0: 1.0}, {1: 0.0}, {1: math.nan}, {1: math.inf}])
def test_costs_that_are_none_are_refused(seconds: dict[int, float]) -> None:
    with pytest.raises(ValueError, match="finite costs above zero"):
        Costs(seconds)


def test_a_machine_that_becomes_slower_is_learned_for_all_sizes() -> None:
    costs = Costs(line(1.0, 0.1, [1, 8, 64]))
    for _ in range(200):
        costs.learn(8, 2 * 1.8)
    assert costs.of(8) == pytest.approx(3.6, rel=0.02)
    assert costs.of(1) > 1.5 * 1.1  # never run since, and slower all the same
    assert costs.of(64) > 1.5 * 7.4


def test_what_is_special_of_a_size_is_learned_of_that_size() -> None:
    costs = Costs(line(1.0, 0.1, [1, 8, 64]))
    for _ in range(500):
        costs.learn(1, 1.1)
        costs.learn(8, 1.8)
        costs.learn(64, 15.0)
    assert costs.of(64) == pytest.approx(15.0, rel=0.1)
    assert costs.of(1) == pytest.approx(1.1, rel=0.1)


def test_a_pause_of_the_machine_is_hardly_learned() -> None:
    costs = Costs({1: 1.0})
    costs.learn(1, 1000.0)
    assert costs.of(1) < 1.5
    for _ in range(100):
        costs.learn(1, 1.0)
    assert costs.of(1) == pytest.approx(1.0, rel=0.05)


@given(st.floats(1e-6, 1.0), st.floats(0.0, 1.0), st.integers(1, 300), st.floats(0.02, 0.5))
def test_padding_wastes_little_and_few_sizes_do(fixed: float, each: float, largest: int, waste: float) -> None:
    measured = line(fixed, each, sorted({1, (largest + 1) // 2, largest}))
    sizes = useful_sizes(measured, waste)
    assert (sizes[0], sizes[-1]) == (1, largest)
    assert sizes == sorted(set(sizes))
    for before, size in itertools.pairwise(sizes):
        if size > before + 1:
            assert fixed + each * size <= (1 + waste) * (fixed + each * (before + 1)) * (1 + 1e-9)


def test_where_the_size_is_free_two_sizes_do() -> None:
    assert useful_sizes({1: 1.0, 1000: 1.0}) == [1, 1000]
    assert len(useful_sizes(line(0.17, 0.033, [1, 64]))) < 30


def test_batches_are_no_larger_than_pays() -> None:
    leaves_the_cache = {1: 1.1, 2: 2.1, 4: 8.0, 8: 17.0}
    assert largest_useful(leaves_the_cache) == 2
    assert largest_useful({1: 1.1, 2: 1.2, 4: 1.4, 8: 1.8}) == 8
    assert largest_useful({1: 1.0, 2: 2.0, 4: 4.0}) == 4, "of equals the largest: each batch costs something besides"
    assert largest_useful({1: 0.1, 2: 0.22, 4: 0.44}, overhead=0.2) == 4
    assert largest_useful({64: 3.0}) == 64
