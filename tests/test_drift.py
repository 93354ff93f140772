"""The window, at made-up times."""

import numpy as np
import pytest

from streamer.config import QualityConfig
from streamer.monitor.drift import LOOKS_BEFORE, MOST_KEPT, Drift
from streamer.monitor.watch import Seen
from streamer.quality import Quantity
from streamer.reference import LARGE, MIXED, Distribution, Taken

EDGES = (0.0, 1.0, 2.0)
SCORE = Quantity("score", "score", "", "tagger", {"eg": "12ab"}, EDGES)
KEY = "score", "eg"
GOOD = Taken({KEY: Distribution(np.array([0, 500, 400, 100]), 1000.0, "12ab", EDGES)})
CONFIG = QualityConfig(window=10.0, events=100)


def page(*counts: float) -> dict[str, float]:
    below = np.cumsum(counts).tolist()
    return dict(zip(SCORE.keys("eg"), below, strict=True)) | {"score_sum/eg": float(sum(counts))}


def seen(*counts: float, replica: int = 0, life: int = 0, pid: int = 1) -> Seen:
    return Seen("writer", replica, "running", life, page(*counts) if counts else {}, {"pid": pid})


def test_only_the_window_is_compared() -> None:
    drift = Drift([SCORE], CONFIG, GOOD)
    for second in range(30):
        drift.look(second, [seen(0, 50 * second, 40 * second, 10 * second)])
    assert drift.now[KEY] < 0.02
    assert drift.shown[0]["counts"] == [0, 500, 400, 100], "ten seconds"
    for second in range(30, 45):
        drift.look(second, [seen(0, 1450, 1160, 290 + 100 * (second - 29))])
    assert drift.now[KEY] > LARGE
    assert drift.largest_now() == ("score eg", drift.now[KEY])
    assert list(drift.metrics()) == [("score", "eg", drift.now[KEY])]
    assert drift.news() == [f"far from the reference (drift): score eg {drift.now[KEY]:.2f}"]
    assert drift.news() == [], "once"
    for second in range(45, 60):
        n = 50 * (second - 44), 40 * (second - 44), 10 * (second - 44)
        drift.look(second, [seen(0, 1450 + n[0], 1160 + n[1], 1790 + n[2])])
    assert drift.now[KEY] < 0.02
    assert [line.partition(":")[0] for line in drift.news()] == ["as the reference again (drift)"]
    assert drift.whole().drift[KEY] > LARGE, "it is not forgotten"
    assert len(drift._kept) <= MOST_KEPT + 2


def test_nothing_is_said_of_too_few() -> None:
    drift = Drift([SCORE], CONFIG, GOOD)
    drift.look(0.0, [seen(0, 0, 0, 0)])
    drift.look(1.0, [seen(0, 0, 0, 99)])
    assert drift.now == {}
    assert drift.shown[0]["why_not"] == "99 entries so far, 100 are needed"
    assert drift.largest_now() is None
    drift.look(2.0, [seen(0, 0, 0, 100)])
    assert drift.now[KEY] > LARGE
    drift.look(20.0, [seen(0, 0, 0, 100)])
    drift.look(22.0, [seen(0, 0, 0, 100)])
    assert drift.now == {}, "when nothing comes any more"
    assert Drift([SCORE], CONFIG).shown[0]["why_not"] == "no reference"


def test_deaths_and_replicas_are_added_up() -> None:
    drift = Drift([SCORE], CONFIG, GOOD)
    drift.look(0.0, [seen(0, 1, 0, 0), seen(0, 2, 0, 0, replica=1, pid=2)])
    drift.look(1.0, [seen(0, 10, 0, 0), seen(0, 20, 0, 0, replica=1, pid=2)])
    drift.look(2.0, [seen(), seen(0, 20, 0, 0, replica=1, pid=2)])  # not asked for its buckets, or silent
    drift.look(3.0, [seen(0, 5, 0, 0, life=1, pid=3), seen(0, 25, 0, 0, replica=1, pid=2)])
    assert drift.whole().found[KEY].counts.tolist() == [0, 10 + 5 + 25, 0, 0]
    drift.take(seen(0, 30, 0, 0, replica=1, pid=2))  # its last words
    drift.look(4.0, [seen(0, 6, 0, 0, life=1, pid=3)])
    drift.look(5.0, [seen(0, 7, 0, 0, life=1, pid=3), seen(0, 3, 0, 0, replica=1, pid=4)])
    assert drift.whole().found[KEY].counts.tolist() == [0, 10 + 7 + 30 + 3, 0, 0]
    assert drift.whole().found[KEY].total == 50.0
    assert len(drift._last) == 2


def test_another_network_is_not_held_against_the_reference() -> None:
    drift = Drift([SCORE], CONFIG, GOOD)
    drift.look(0.0, [seen(0, 0, 0, 0)])
    drift.look(1.0, [seen(0, 500, 400, 100)])
    assert drift.now[KEY] < 0.02
    other = Quantity("score", "score", "", "tagger", {"eg": "34cd"}, EDGES)
    assert drift.change([other])
    assert not drift.change([other])
    drift.look(2.0, [seen(0, 1000, 800, 200)])  # a lumisection may take a while
    assert drift.now == {}
    assert drift.shown[0]["why_not"] == "its network is just being changed"
    drift.changed()
    for second in range(LOOKS_BEFORE):  # what was under way
        drift.look(3.0 + second, [seen(0, 1000, 800, 1200)])
    drift.look(8.0, [seen(0, 1000, 800, 2200)])
    assert drift.now == {}
    assert drift.shown[0]["reference"] is None
    assert drift.shown[0]["counts"] == [0, 0, 0, 1000], "its window begins with it"
    assert drift.shown[0]["why_not"] == "another network than the reference's"
    assert drift.whole().found[KEY].of == MIXED
    drift.change([SCORE])
    drift.look(9.0, [seen(0, 1000, 800, 4000)])
    assert drift.now == {}, "the other one's scores go on"
    drift.changed()
    for second in range(LOOKS_BEFORE):
        drift.look(10.0 + second, [seen(0, 1000, 800, 5000)])
    drift.look(14.0, [seen(0, 1500, 1200, 5100)])
    assert drift.now[KEY] < 0.02, "the first one is back"
    assert drift.whole().drift[KEY] < 0.02


def test_a_run_that_was_over_at_once_is_compared_as_a_whole() -> None:
    drift = Drift([SCORE], CONFIG, GOOD)
    drift.take(seen(0, 0, 0, 100))
    assert drift.now == {}
    assert drift.whole().drift[KEY] > LARGE


@pytest.mark.parametrize("counts", [[0, 99, 0, 0], [0, 0, 0, 0]])
def test_a_thin_reference_says_nothing(counts: list[int]) -> None:
    thin = Taken({KEY: Distribution(np.array(counts), 1.0, "12ab", EDGES)})
    drift = Drift([SCORE], CONFIG, thin)
    drift.look(0.0, [seen(0, 500, 400, 100)])
    assert drift.now == {}
    assert drift.shown[0]["why_not"] == f"the reference has {sum(counts)} entries, 100 are needed"
