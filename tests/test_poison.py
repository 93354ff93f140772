"""Events that fail: one that kills whoever works on it, one whose score is no number, one that a stage refuses."""

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot
from physics_helpers import Processes, call, deadly_model, event, sum_model, write_hits

from stages import PIPELINE
from stages.detector.ecal import eb_detid

N_EVENTS, DEADLY = 4_000, 1321


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The event i has one photon, whose score is i + 1."""
    return events(tmp_path_factory.mktemp("poison"), N_EVENTS)


def events(folder: Path, n: int) -> Path:
    hit = int(eb_detid(20, 11))
    made = [event(i, EBRecHit=[(hit, float(i + 1))], Photon=[(34.0, 0.34, 0.005)]) for i in range(n)]
    return write_hits(folder / "events.root", made)


@pytest.fixture
def streamer(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as made:
        yield made


def scores(out: Path, n: int = N_EVENTS) -> tuple[Any, Any]:
    """Errors and scores by event."""
    with uproot.open(out / "scores.root") as file:
        columns = file["Events"].arrays(["sourceEntry", "error", "nPhoton", "Photon_egScore"], library="np")
    np.testing.assert_array_equal(columns["sourceEntry"], np.arange(n))
    return columns["error"], columns["Photon_egScore"]


def failed(out: Path) -> list[dict[str, Any]]:
    code, said, _ = call("errors", out, "--json")
    assert code == 0
    return [json.loads(line) for line in said.splitlines()]


def assert_log_tells_all(text: str) -> None:
    """Of the run with the deadly event, each line is an object that says who speaks and of what."""
    log = [json.loads(line) for line in text.splitlines()]
    assert len({line["run"] for line in log}) == 1
    for line in log:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert {line["level"], line["stage"]} <= {"INFO", "WARNING", "ERROR", "supervisor", *PIPELINE.names}
    said = {line["message"]: line for line in log}
    (aside,) = (line for text, line in said.items() if "is set aside: poison" in text)
    about = {name: aside[name] for name in ("level", "logger", "stage", "replica", "event")}
    place = {"stage": "reader", "replica": 0, "event": DEADLY}
    assert about == {"level": "ERROR", "logger": "streamer.feeding", **place}
    died = [line for text, line in said.items() if re.match(r"tagger-\d died of SIGFPE; it is started again", text)]
    assert {(line["stage"], line["logger"]) for line in died} == {("supervisor", "streamer.supervisor")}
    words = [line for line in log if "Fatal Python error: Floating point exception" in line["message"]]
    assert {(line["stage"], line["logger"]) for line in words} == {("tagger", "stderr")}
    assert {line["replica"] for line in words} <= {0, 1}


def test_an_event_that_kills_is_set_aside_and_its_neighbours_come_out(
    streamer: Processes, inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONFAULTHANDLER", "1")  # the interpreter's own words, beside the log
    out, model = tmp_path / "out", deadly_model(tmp_path / "deadly.onnx", DEADLY + 1)
    fast = ["--set", "supervisor.backoff_max=0.1", "--log-format", "json"]
    process = streamer("run", inputs, "--output", out, "--tagger", f"eg={model}", "--replicas", "tagger=2", *fast)
    process.check()
    assert_log_tells_all(process.err)
    errors, found = scores(out)
    assert np.flatnonzero(errors).tolist() == [DEADLY]
    good = np.delete(np.arange(N_EVENTS), DEADLY)
    np.testing.assert_array_equal(np.concatenate(found[good]), good + 1)
    assert call("ledger", out)[0] == 0

    (line,) = failed(out)
    assert (line["number"], line["event"], line["sourceEntry"]) == (DEADLY, DEADLY, DEADLY)
    assert (line["source"], line["stage"]) == (str(inputs), "tagger")
    assert "died of SIGFPE" in line["reason"]
    again = shlex.split(line["again"])
    with uproot.open(again[2]) as one, uproot.open(inputs) as all_of_them:
        assert one["Events"].num_entries == 1
        for branch in all_of_them["Events"].branches:
            before = branch.array(library="np", entry_start=DEADLY, entry_stop=DEADLY + 1)
            np.testing.assert_array_equal(one["Events"][branch.name].array(library="np")[0], before[0])

    retry = streamer(*again[1:])
    retry.check()
    assert "died of SIGFPE" in retry.err
    (line,) = failed(Path(again[-1]))
    assert "died of SIGFPE" in line["reason"]


@pytest.mark.long
def test_a_score_that_is_no_number_costs_its_event_alone(streamer: Processes, tmp_path: Path) -> None:
    out, inputs = tmp_path / "out", events(tmp_path, 500)
    process = streamer(
        "run", inputs, "--output", out, "--tagger", f"eg={sum_model(tmp_path / 'nan.onnx', limit=490.5)}"
    )
    process.check()
    errors, _ = scores(out, 500)
    assert np.flatnonzero(errors).tolist() == list(range(490, 500))
    lines = failed(out)
    assert [line["sourceEntry"] for line in lines] == list(range(490, 500))
    assert {line["reason"] for line in lines} == {"the score of the eg tagger is nan"}
    assert "10 events could not be processed; see which, and why: streamer errors" in process.err
    code, said, _ = call("errors", out)
    assert (code, f"entry 490 of {inputs}" in said) == (0, True)
    retry = streamer(*shlex.split(lines[0]["again"])[1:])
    retry.check()
    assert failed(Path(shlex.split(lines[0]["again"])[-1]))[0]["reason"] == "the score of the eg tagger is nan"
