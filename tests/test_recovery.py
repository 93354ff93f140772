"""What a run that was cut short leaves, and how it goes on. Kills at random moments are in `test_chaos.py`."""

import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from physics_helpers import Processes, assert_end, call, sum_model, wait_until
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


@pytest.mark.long
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
    assert_end(family)
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


@pytest.mark.long
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
    scores = tmp_path / "out/scores_1.root"
    whole = scores.read_bytes()
    scores.write_bytes(whole[:-1])
    code, said, _ = call("ledger", tmp_path / "out")
    assert (code, f"the books do not close: {scores} has {len(whole) - 1:,} bytes" in said) == (1, True)
    scores.unlink()
    code, said, _ = call("ledger", tmp_path / "out")
    assert (code, f"the books do not close: {scores} is not there" in said) == (1, True)
    assert call("ledger", tmp_path / "out", "--moved")[0] == 0
    again = streamer("run", "--resume", tmp_path / "out").check()
    assert f"finished files that are not there any more: 1; see which: streamer ledger {tmp_path / 'out'}" in again.err


def test_more_readers_than_files_are_refused(inputs: list[Path], tmp_path: Path) -> None:
    code, _, err = call("run", *inputs, "--output", tmp_path / "out", "--replicas", "reader=4")
    assert code == 2
    assert err.splitlines()[-1] == "streamer: replicas.reader = 4: there are not so many input files (3)"
