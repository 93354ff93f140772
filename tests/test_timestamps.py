"""Feeds that follow the time stamps of their input: from the branch in the file to when events are due."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
from physics_helpers import Processes, columns_of, event, sum_model

from stages.config import Config, InputConfig
from stages.formats import open_events
from stages.formats.ig import time_ns
from stages.reader import Reader
from stages.records import TIME
from streamer.errors import UsageError

SECOND = 10**9
NOW = 1_700_000_000 * SECOND


@pytest.fixture
def streamer(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as made:
        yield made


def with_times(path: Path, **branches: Any) -> Path:
    """Events with branches of their own beside ours."""
    n = len(next(iter(branches.values())))
    columns = columns_of([event(k, Photon=[(20.0, 0.1, 0.1)]) for k in range(n)])
    types: dict[str, Any] = {name: columns[name].dtype for name in ("run", "luminosityBlock", "event")}
    arrays: dict[str, Any] = {name: columns[name] for name in types}
    for collection in ("EBRecHit", "EERecHit", "Photon"):
        members = [name for name in columns if name.startswith(f"{collection}_")]
        counts = columns[f"n{collection}"]
        arrays[collection] = ak.zip({name.partition("_")[2]: ak.unflatten(columns[name], counts) for name in members})
        types[collection] = arrays[collection].type.content
    types |= {name: np.asarray(values).dtype for name, values in branches.items()}
    with uproot.recreate(path) as file:
        file.mktree("Events", types).extend(arrays | {name: np.asarray(values) for name, values in branches.items()})
    return path


def reader(*paths: Path, **settings: Any) -> Reader:
    feed = {"arrivals": "recorded", **settings.pop("feed", {})}
    made = Reader(Config.model_validate({"input": {"files": [str(p) for p in paths], **settings}, "feed": feed}))
    made.setup()
    return made


def recorded(made: Reader) -> list[int]:
    return np.concatenate([step["recorded"] for step in made.read()]).tolist()


@pytest.mark.parametrize(
    ("unit", "values"),
    [
        ("auto", np.array([1.5e9, 1.5e9 + 0.5, 1.5e9 + 2])),
        ("auto", np.array([NOW, NOW + SECOND // 2, NOW + 2 * SECOND], np.uint64)),
        ("ms", np.array([1_000, 1_500, 3_000], np.int32)),
        ("us", np.array([1e6, 1.5e6, 3e6], np.float32)),
        ("edm", np.array([7 << 32, (7 << 32) + 500_000, 9 << 32], np.uint64)),
    ],
)
def test_time_stamps_in_any_unit(tmp_path: Path, unit: str, values: np.ndarray) -> None:
    path = with_times(tmp_path / "a.root", stamp=values)
    made = reader(path, columns={"time": "stamp"}, time_unit=unit)
    assert recorded(made) == [0, SECOND // 2, 2 * SECOND]


def test_orbit_and_bunch_crossing_are_a_time(tmp_path: Path) -> None:
    orbits, crossings = np.array([1000, 1000, 12245], np.uint32), np.array([0, 3563, 0], np.int32)
    found = recorded(reader(with_times(tmp_path / "a.root", orbitNumber=orbits, bunchCrossing=crossings)))
    assert found[0] == 0
    assert found[1] == pytest.approx(88_899, abs=2), "almost a turn of 88.924 us"
    assert found[2] == pytest.approx(SECOND, rel=1e-3)


def test_the_event_display_tells_when_events_were_recorded(real_events: list[Path]) -> None:
    assert time_ns("2012-Jul-04 12:00:45.665530 GMT") == 1_341_403_245_665_530_000
    assert time_ns("2012-May-14 (nan)") == 0
    file = open_events(real_events[0], InputConfig())
    times = next(file.read([TIME], lambda *_: None)).columns["time"]
    assert np.all((times > 1.3e18) & (times < 1.4e18))


def test_what_is_odd_costs_one_line_and_is_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    year = 3600 * 24 * 365 * SECOND
    first = with_times(tmp_path / "a.root", time=NOW + np.array([0, 5, 3, 3 * year, 8, 10, 5 * year]))
    other = with_times(tmp_path / "b.root", time=np.array([7, 9, 0]))
    made = reader(first, other, feed={"max_gap": 1.0})
    with caplog.at_level(logging.WARNING):
        times = recorded(made)
    a, b = SECOND, 2 * SECOND
    assert times == [0, 5, 5, a + 5, a + 5, a + 7, b + 7, b + 7, b + 9, b + 9]
    assert {kind: n for (_, kind), n in made.take_tally().items()} == {"backwards": 1, "jump": 3, "none": 1}
    assert len(caplog.messages) == 3
    assert caplog.messages[1].startswith(
        f"{first}: entry 3 was recorded 1,095.0 days from the one before it; the feed goes on in at most 1 s "
        "(feed.max_gap). Others are counted. "
    )
    made.close()
    assert caplog.messages[3] == (
        "of 10 time stamps, 1 are missing, 1 lie before an earlier one, 3 are far from the one before"
    )


def test_a_file_without_time_stamps_is_told_so(tmp_path: Path) -> None:
    path = with_times(tmp_path / "a.root", evtTime=np.array([1.0]))
    with pytest.raises(UsageError) as error:
        reader(path)
    assert str(error.value) == (
        f"{path}: no column 'time' (when it was recorded, since 1970 or since the run began) for feed.arrivals = "
        '"recorded"; if \'evtTime\' is it, set [input.columns] time = "evtTime"'
    )


def test_a_run_follows_the_time_stamps(streamer: Processes, tmp_path: Path) -> None:
    times = NOW + np.array([0, 2, 4, 3600 * 24 * 900, 3600 * 24 * 900 + 1]) * SECOND
    path, model = with_times(tmp_path / "a.root", time=times), sum_model(tmp_path / "sum.onnx")
    feed = ("--feed", "recorded 20", "--set", "feed.max_gap=0.2")
    run = streamer("run", path, "-o", tmp_path / "out", *feed, "--tagger", f"eg={model}")
    run.check()
    assert "5 fed = 5 scored" in run.out
    assert run.err.count("900.0 days from the one before it") == 1
    rate = float(run.out.partition("throughput")[2].split()[0])
    assert rate < 5 / 0.4, "200 ms, a gap of 200 ms and 50 ms"
