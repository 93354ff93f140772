"""Mixed and shuffled inputs through the whole chain: shares, truth, exactly once, errors. Real processes and files."""

import itertools
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot
from physics_helpers import Processes, event, sum_model, write_hits

from stages.books import read_books
from stages.config import Config, InputConfig
from stages.detector.ecal import eb_detid
from stages.error_stream import read_lines
from stages.mix import groups
from stages.reader import Reader
from streamer.errors import UsageError

WHO = ("sourceInput", "sourceFile", "sourceEntry", "replay", "run", "event", "Photon_egScore")
DETID = int(eb_detid(20, 11))


def write_input(path: Path, run: int, n: int) -> Path:
    """Events of one photon each, whose energy [GeV] is that of its crystal: 20 + entry / 10; an electron in run 1."""
    energies = 20.0 + np.arange(n) / 10
    events = [
        event(k, EBRecHit=[(DETID, energy)], Photon=[(energy, 0.34, 0.005, DETID, int(run == 1))]) | {"run": run}
        for k, energy in enumerate(energies.tolist())
    ]
    return write_hits(path, events)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Signal, and background of two files."""
    folder = tmp_path_factory.mktemp("inputs")
    write_input(folder / "signal.root", 1, 300)
    write_input(folder / "background-0.root", 2, 900)
    write_input(folder / "background-1.root", 3, 500)
    return folder


@pytest.fixture
def streamer(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as made:
        yield made


def mix(inputs: Path) -> tuple[str, ...]:
    return ("--mix", f"{inputs}/signal.root=1", "--mix", f"{inputs}/background-*.root=9")


def read(out: Path) -> dict[str, np.ndarray]:
    with uproot.open(out / "scores.root") as file:
        arrays = file["Events"].arrays(WHO, how=dict)
    return {name: np.asarray(array if name in WHO[:-1] else array[:, 0]) for name, array in arrays.items()}


def test_a_mix_goes_on_with_the_same_events_after_a_crash(streamer: Processes, inputs: Path, tmp_path: Path) -> None:
    model = sum_model(tmp_path / "sum.onnx")
    common = (
        *(*mix(inputs), "--shuffle", "--loop", "--events", 6_000, "--tagger", f"eg={model}"),
        *("--set", "input.step_events=100", "--set", "feed.max_in_flight=500", "--set", "replicas.reader=2"),
    )
    broken = streamer("run", *common, "-o", tmp_path / "broken")
    broken.wait_for_events(1000)
    broken.signal(signal.SIGKILL)
    broken.wait()
    later = write_input(inputs / "background-2.root", 4, 50)
    streamer("run", "--resume", tmp_path / "broken").check()
    later.unlink()  # it came when the run had begun
    told = streamer("run", *common, "-o", tmp_path / "whole").check().out
    assert not read_books(tmp_path / "broken").why_not
    found, wanted = read(tmp_path / "broken"), read(tmp_path / "whole")
    for name in WHO:
        assert np.array_equal(found[name], wanted[name]), name
    n_signal = int(np.sum(found["sourceInput"] == 0))
    assert n_signal == pytest.approx(600, abs=5 * np.sqrt(6_000 * 0.1 * 0.9))
    assert np.array_equal(found["run"] == 1, found["sourceInput"] == 0), "it is known where an event is from"
    assert np.array_equal(found["sourceFile"], found["run"] - 1)
    who = np.stack([found[name].astype(np.int64) for name in WHO[1:4]])
    assert np.unique(who, axis=1).shape[1] == 6_000
    assert np.array_equal(found["event"], found["sourceEntry"])
    np.testing.assert_allclose(found["Photon_egScore"], 20.0 + found["event"] / 10, rtol=1e-5)
    for name, number in (("signal.root", 0), ("background-*.root", 1)):
        scores = found["Photon_egScore"][found["sourceInput"] == number]
        first, second = (part.split() for part in told.split(name)[1:])
        asked, n, share, errors = first[:4]
        scored, mean, *quantiles = second[:5]
        assert (asked, errors) == (("10.00%", "90.00%")[number], "0")
        assert n == scored == f"{scores.size:,}"
        assert share == f"{scores.size / 6000:.2%}"
        assert [mean, *quantiles] == [f"{x:.3f}" for x in (scores.mean(), *np.quantile(scores, (0.1, 0.5, 0.9)))]
    assert re.search(r"eg +0\.\d+ \+- .* 300 +1,400 +roc_eg.png", told), "for the AUC each event counts once"
    inside = found["sourceEntry"][(found["run"] == 1) & (found["replay"] == 0)]
    assert sorted(inside) == list(range(300)), "each pass has every event"
    assert inside.tolist() != sorted(inside)


@pytest.mark.long
def test_a_stopped_service_does_not_read_all_of_its_scores(streamer: Processes, inputs: Path, tmp_path: Path) -> None:
    common = (*mix(inputs), "--go-on", "-o", tmp_path / "out", "--tagger", f"eg={sum_model(tmp_path / 'sum.onnx')}")
    service = streamer("run", *common, "--loop", "--events", 5000, "--rate", 1000)
    service.wait_for_events(200)
    streamer("stop").check()
    stopped = service.check()
    assert "it goes on when it is started again" in stopped.err
    assert "asked" not in stopped.out
    assert re.search("asked +events +share", streamer("run", *common, "--loop", "--events", 5000).check().out)


@pytest.mark.long
def test_errors_of_a_mix_name_their_file_and_can_be_tried_again(
    streamer: Processes, inputs: Path, tmp_path: Path
) -> None:
    out, model = tmp_path / "out", sum_model(tmp_path / "sum.onnx", limit=109.45)  # of background-0 the last 5
    streamer("run", *mix(inputs), "--loop", "--events", 1500, "-o", out, "--tagger", f"eg={model}").check()
    lines = list(read_lines(out / "errors"))
    assert lines
    assert {line["source"] for line in lines} == {str(inputs / "background-0.root")}
    assert all(line["event"] == line["sourceEntry"] > 893 and line["run"] == 2 for line in lines)
    again = lines[0]["again"].split()
    streamer(*again[1:]).check()
    (line,) = read_lines(Path(again[-1]) / "errors")
    assert (line["run"], line["event"]) == (2, lines[0]["event"])


def reader(**settings: Any) -> Reader:
    return Reader(Config.model_validate({"input": settings.pop("input"), **settings}))


def test_what_cannot_be_mixed_is_told_in_one_line(inputs: Path, tmp_path: Path) -> None:
    signal_, background = str(inputs / "signal.root"), str(inputs / "background-*.root")
    write_hits(tmp_path / "empty.root", [])
    few = {"files": [signal_, background], "weights": [1, 1]}
    for given, feed, said in (
        (
            few,
            {"events": 2000},
            r"signal.root: has 300 events, and 2,000 of the mix need 1,022; ask for at most 590 \(--events\)",
        ),
        ({"files": [signal_, str(inputs)], "weights": [1, 1]}, {}, "signal.root: is in two inputs of the mix"),
        ({"files": [signal_, signal_], "weights": [1, 1]}, {}, "signal.root: is in two inputs of the mix"),
        (
            {"files": [signal_, str(tmp_path / "empty.root")], "weights": [1, 1]},
            {},
            "empty.root: has no events; leave it out",
        ),
    ):
        with pytest.raises(UsageError, match=said) as error:
            reader(input=given, feed=feed).setup()
        assert len(str(error.value).splitlines()) == 1
    for given, said in (
        ({"files": ["a", "b"], "weights": [1]}, "'weights' are 1, and 'files' 2"),
        ({"files": ["a"], "weights": [0]}, "greater than 0"),
    ):
        with pytest.raises(ValueError, match=said):
            reader(input=given)
    with pytest.raises(ValueError, match="goes by the order of the input; leave out"):
        reader(input={"shuffle": True}, feed={"lumisections": 2})
    asked = reader(input=few, feed={"events": 590})
    asked.setup()
    assert sum(columns["sequence"].size for columns in asked.read()) >= 590


class Name(str):
    """A file that counts how often any is looked at."""

    n_looks = 0

    def __eq__(self, other: object) -> bool:
        Name.n_looks += 1
        return str(self) == str(other)

    def __hash__(self) -> int:
        Name.n_looks += 1
        return hash(str(self))


def test_a_file_is_looked_at_no_more_often_where_there_are_many(monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config.model_validate({"input": {"files": ["a", "b"], "weights": [1, 9]}})

    def by_name(_: InputConfig) -> list[list[Name]]:
        return [[Name(f"{name}{k}.root") for k in range(500)] for name in "ab"]

    monkeypatch.setattr(InputConfig, "by_name", by_name)
    monkeypatch.setattr(InputConfig, "expanded", lambda given: [*itertools.chain(*given.by_name())])
    assert groups(config) == [[*range(500)], [*range(500, 1000)]]
    assert 1000 <= Name.n_looks < 10_000


def test_the_command_line_says_what_is_wrong_before_anything_starts(
    streamer: Processes, inputs: Path, tmp_path: Path
) -> None:
    asked = (
        (("run", *mix(inputs), "--events", 100_000), "signal.root: has 300 events, and 100,000 of the mix need"),
        (("run", "--mix", "signal.root"), "--mix 'signal.root': write input=weight, such as signal.root=0.1"),
        (("run", "a.root", "--mix", "b.root=1"), "--mix names inputs of its own; leave INPUT out"),
    )
    out = "--output", tmp_path / "out"
    for process, said in [(streamer(*args, *out), said) for args, said in asked]:
        assert process.wait() == 2
        assert any(said in line for line in process.complaints), process.err


def test_a_shuffled_input_has_every_event_once(inputs: Path) -> None:
    given = {"files": [str(inputs)], "shuffle": True, "step_events": 64, "seed": 3}
    shuffled = reader(input=given)
    shuffled.setup()
    steps = list(shuffled.read())
    numbers = np.concatenate([step["sequence"] for step in steps])
    assert numbers.tolist() == list(range(1700))
    who = np.concatenate([step["sourceFile"] * 1000 + step["sourceEntry"] for step in steps])
    assert np.unique(who).size == 1700
    assert np.unique(who[:200] // 1000).size == 3, "from everywhere"
    assert json.dumps(who.tolist()) != json.dumps(sorted(who.tolist()))
    again = reader(input=given)
    again.setup()
    later = list(again.read(lambda first, last: [(first, last)] if first >= 640 else []))
    assert np.concatenate([s["sourceFile"] * 1000 + s["sourceEntry"] for s in later]).tolist() == who[640:].tolist()
