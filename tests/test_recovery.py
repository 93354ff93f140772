"""Whatever dies: every event comes out once, and the books say so. Real processes, real kills."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from physics_helpers import Process, Processes, call, sum_model, wait_until
from recovery_helpers import assert_whole, write_numbered

N_EVENTS = 3000


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_numbered(tmp_path_factory.mktemp("recovery"))


@pytest.fixture
def streamer(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as made:
        yield made


def options(inputs: list[Path], tmp_path: Path, *more: object) -> list[Any]:
    model = sum_model(tmp_path / "sum.onnx")
    return ["run", *inputs, "--output", tmp_path / "out", "--tagger", f"eg={model}", "--loop", "--events", N_EVENTS,
            "--rate", 2000, *more]  # fmt: skip


@pytest.mark.parametrize("name", ["reader-0", "writer-0"])
def test_a_stage_that_is_killed_costs_nothing(
    streamer: Processes, inputs: list[Path], tmp_path: Path, name: str
) -> None:
    process = streamer(*options(inputs, tmp_path, "--replicas", "tagger=2"))
    process.wait_for_events(500)
    process.stage(name).kill()
    process.check()
    assert f"{name} died of SIGKILL; it is started again" in process.err
    assert_whole(tmp_path / "out", N_EVENTS, 1)


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
    assert_whole(tmp_path / "out", N_EVENTS, 1)


def test_a_run_that_was_killed_goes_on(streamer: Processes, inputs: list[Path], tmp_path: Path) -> None:
    more = ["--replicas", "reader=2,writer=2", "--set", "writer.segment_events=400"]
    process = streamer(*options(inputs, tmp_path, *more))
    process.wait_for_events(500)
    family = process.children()
    process.popen.kill()
    for child in family:
        child.wait(20)
    code, said, _ = call("ledger", tmp_path / "out")
    assert (code, "the books do not close" in said) == (1, True)
    again: Process = streamer("run", "--resume", tmp_path / "out")
    again.check()
    assert_whole(tmp_path / "out", N_EVENTS)
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
    assert_whole(tmp_path / "out", N_EVENTS)


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
    assert_whole(tmp_path / "out", N_EVENTS, 2)


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
    assert_whole(tmp_path / "out", N_EVENTS, 2)
