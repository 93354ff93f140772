"""Time stamps that a feed can follow, whatever they are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.recorded import Recorded

GAP = 1000


def take(*parts: list[int], anew: bool = False) -> tuple[list[int], dict[str, list[int]]]:
    recorded, times, odd = Recorded(GAP), [], {"none": [], "backwards": [], "jump": []}
    for part in parts:
        found, strange = recorded.take(np.array(part, np.int64), anew=anew)
        for kind, places in strange.items():
            odd[kind] += (places + len(times)).tolist()
        times += found.tolist()
    return times, odd


@pytest.mark.parametrize(
    ("stamps", "times", "odd"),
    [
        ([500, 510, 510, 600], [0, 10, 10, 100], {}),
        ([500, 520, 510, 530], [0, 20, 20, 30], {"backwards": [2]}),
        ([500, 0, -7, 530], [0, 0, 0, 30], {"none": [1, 2]}),
        ([0, 0, 530, 540], [0, 0, 0, 10], {"none": [0, 1]}),
        ([500, 10**18, 10**18 + 5], [0, GAP, GAP + 5], {"jump": [1]}),
        ([10**18, 500, 505], [0, 0, 5], {"jump": [1]}),
        ([500, 10**18, 505, 510], [0, GAP, GAP, GAP + 5], {"jump": [1, 2]}),
        ([2**63 - 1, 1, 2**63 - 1], [0, 0, GAP], {"jump": [1, 2]}),
        ([], [], {}),
    ],
)
def test_what_is_odd_is_told_and_bounded(stamps: list[int], times: list[int], odd: dict[str, list[int]]) -> None:
    nothing = {"none": [], "backwards": [], "jump": []}
    assert take(stamps) == (times, nothing | odd)
    assert take(*([stamp] for stamp in stamps)) == (times, nothing | odd), "in steps of one event"


def test_another_file_need_not_follow() -> None:
    assert take([500, 510], [10**15, 10**15 + 3], anew=True) == (
        [0, 10, 10, 13],
        {"none": [], "backwards": [], "jump": []},
    )
    assert take([500, 510], [600], anew=True)[0] == [0, 10, 100], "but it can"


@given(st.lists(st.lists(st.integers(-5, 2**63 - 1), max_size=8), max_size=5))
def test_time_never_goes_back_nor_far(parts: list[list[int]]) -> None:
    times, odd = take(*parts)
    gaps = np.diff(np.array([0, *times]))
    assert ((gaps >= 0) & (gaps <= GAP)).all()
    assert sum(map(len, odd.values())) <= len(times)
