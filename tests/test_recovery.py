"""Whatever dies: every event comes out once, and the books say so. Real processes, real kills."""

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot
from physics_helpers import Process, Processes, call, event, sum_model, wait_until, write_hits

from stages.detector.ecal import eb_detid

N_FILES, N_ENTRIES, N_EVENTS = 3, 100, 3000


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Files in which the event `i` has one photon, whose score is i + 1."""
    folder = tmp_path_factory.mktemp("recovery")
    made = []
    for k in range(N_FILES):
        numbers = range(k * N_ENTRIES, (k + 1) * N_ENTRIES)
        events = [
            event(i, EBRecHit=[(int(eb_detid(20, 11)), float(i + 1))], Photon=[(34.0, 0.34, 0.005)]) for i in numbers
        ]
        made.append(write_hits(folder / f"{k}.root", events))
    return made


@pytest.fixture
def streamer(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as made:
        yield made


def options(inputs: list[Path], tmp_path: Path, *more: object) -> list[Any]:
    model = sum_model(tmp_path / "sum.onnx")
    return ["run", *inputs, "--output", tmp_path / "out", "--tagger", f"eg={model}", "--loop", "--events", N_EVENTS,
            "--rate", 2000, *more]  # fmt: skip


def assert_whole(out: Path, n_files: int | None = None) -> None:
    """Every event is there once with its score, each file in order, and the books close."""
    files = sorted(out.glob("scores*.root"))
    assert n_files is None or len(files) == n_files
    names = ["replay", "sourceFile", "sourceEntry", "nPhoton", "Photon_egScore"]
    numbers = []
    for path in files:
        with uproot.open(path) as file:
            columns = file["Events"].arrays(names, library="np")
        replay, source, entry = (columns[name].astype(int) for name in names[:3])
        number = (replay * N_FILES + source) * N_ENTRIES + entry
        assert np.all(np.diff(number) > 0)
        scores = np.concatenate(columns["Photon_egScore"])
        np.testing.assert_array_equal(scores, number % (N_FILES * N_ENTRIES) + 1)
        numbers.append(number)
    np.testing.assert_array_equal(np.sort(np.concatenate(numbers)), np.arange(N_EVENTS))
    code, said, _ = call("ledger", out, "--json")
    books = json.loads(said)
    assert (code, books["problems"]) == (0, [])
    assert books["total"] == {"fed": N_EVENTS, "scored": N_EVENTS, "errors": 0, "in_flight": 0}
    assert sum(lumi["fed"] for lumi in books["lumisections"]) == N_EVENTS


@pytest.mark.parametrize("name", ["reader-0", "framer-0", "tagger-1", "writer-0"])
def test_a_stage_that_is_killed_costs_nothing(
    streamer: Processes, inputs: list[Path], tmp_path: Path, name: str
) -> None:
    process = streamer(*options(inputs, tmp_path, "--replicas", "tagger=2"))
    process.wait_for_events(500)
    process.stage(name).kill()
    process.check()
    assert f"{name} died of SIGKILL; it is started again" in process.err
    assert_whole(tmp_path / "out", 1)


def test_a_frozen_stage_that_comes_back_does_no_harm(streamer: Processes, inputs: list[Path], tmp_path: Path) -> None:
    more = ["--replicas", "cropper=2", "--set", "hop.heartbeat=0.1", "--set", "hop.peer_timeout=0.5"]
    process = streamer(*options(inputs, tmp_path, *more))
    process.wait_for_events(500)
    frozen = process.stage("cropper-1")
    frozen.suspend()
    wait_until(lambda: process.metrics("reader-0")["streamer_blocks_redelivered_total"] > 0, "a block sent again")
    frozen.resume()
    process.check()
    assert "are overdue and are sent again" in process.err
    assert_whole(tmp_path / "out", 1)


@pytest.mark.parametrize("replicas", ["reader=2,writer=2", "tagger=1"])
def test_a_run_that_was_killed_goes_on(streamer: Processes, inputs: list[Path], tmp_path: Path, replicas: str) -> None:
    process = streamer(*options(inputs, tmp_path, "--replicas", replicas, "--set", "writer.segment_events=400"))
    process.wait_for_events(500)
    family = process.children()
    process.popen.kill()
    for child in family:
        child.wait(20)
    code, said, _ = call("ledger", tmp_path / "out")
    assert (code, "the books do not close" in said) == (1, True)
    again: Process = streamer("run", "--resume", tmp_path / "out")
    again.check()
    assert_whole(tmp_path / "out")
    assert len(list((tmp_path / "out").glob("scores*.root"))) > 2


def test_a_resumed_run_that_is_stopped_before_it_fed_what_was_lost_says_so(
    streamer: Processes, inputs: list[Path], tmp_path: Path
) -> None:
    process = streamer(*options(inputs, tmp_path))
    process.wait_for_events(500)
    process.stage("tagger-0").suspend()
    at_writer = process.metrics("writer-0")["streamer_events_total/ok"]
    wait_until(lambda: process.metrics("reader-0")["streamer_events_total/ok"] > at_writer, "events under way")
    family = process.children()
    process.popen.kill()
    for child in family:
        child.wait(20)
    stopped = streamer("run", "--resume", tmp_path / "out")
    stopped.stage("reader-0")
    stopped.signal(signal.SIGTERM)
    stopped.check(1)
    (complaint,) = stopped.complaints
    assert re.fullmatch(
        r"\d+ events were fed and are not on disk, the first is number \d+; what was committed is safe, "
        rf"go on with: streamer run --resume {tmp_path / 'out'}", complaint)  # fmt: skip
    streamer("run", "--resume", tmp_path / "out").check()
    assert_whole(tmp_path / "out")


def test_a_book_that_a_power_cut_shortened_still_closes(
    streamer: Processes, inputs: list[Path], tmp_path: Path
) -> None:
    process = streamer(*options(inputs, tmp_path))
    process.wait_for_events(500)
    process.signal(signal.SIGTERM)
    process.check()
    book = tmp_path / "out/books/reader-0.fed"
    os.truncate(book, book.stat().st_size // 2)
    assert call("ledger", tmp_path / "out")[0] == 1
    streamer("run", "--resume", tmp_path / "out").check()
    assert_whole(tmp_path / "out", 2)


def test_more_readers_than_files_are_refused(inputs: list[Path], tmp_path: Path) -> None:
    code, _, err = call("run", *inputs, "--output", tmp_path / "out", "--replicas", "reader=4")
    assert code == 2
    assert err.splitlines()[-1] == "streamer: replicas.reader = 4: there are not so many input files (3)"


def test_a_run_that_was_stopped_goes_on(streamer: Processes, inputs: list[Path], tmp_path: Path) -> None:
    process = streamer(*options(inputs, tmp_path))
    process.wait_for_events(500)
    process.signal(signal.SIGTERM)
    process.check()
    streamer("run", "--resume", tmp_path / "out").check()
    assert_whole(tmp_path / "out", 2)
