"""Input that is fed again and again is read once, and is the same each time."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from physics_helpers import event, write_hits

from stages.config import Config
from stages.formats.base import Step
from stages.formats.tree import TreeFile
from stages.kept import Kept
from stages.reader import Reader
from streamer.block import Columns

N_EVENTS, STEP = 25, 10


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The entries from which on files are read."""
    noted: list[int] = []
    as_it_is = TreeFile.read

    def read(file: TreeFile, columns: Any, report: Any, first: int = 0) -> Iterator[Step]:
        noted.append(first)
        return as_it_is(file, columns, report, first)

    monkeypatch.setattr(TreeFile, "read", read)
    return noted


@pytest.fixture
def hits(tmp_path: Path) -> Path:
    random = np.random.default_rng(1)
    return write_hits(
        tmp_path / "events.root",
        [
            event(
                i, EBRecHit=[(838861313 + k, float(random.random())) for k in range(i % 4)], Photon=[(30.0 + i, 0, 0)]
            )
            for i in range(N_EVENTS)
        ],
    )


def reader_of(path: Path, loop: bool = True, **settings: Any) -> Reader:
    given = {"files": [str(path)], "step_events": STEP, **settings}
    reader = Reader(Config.model_validate({"input": given, "feed": {"loop": loop}}))
    reader.setup()
    return reader


def passes(reader: Reader, n: int, n_events: int = N_EVENTS) -> list[Columns]:
    """What a reader gives in so many passes."""
    found, steps = [], reader.read()
    for _ in range(n):
        parts: list[Columns] = []
        while sum(part["sequence"].size for part in parts) < n_events:
            parts.append(next(steps))
        found.append({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
    return found


def assert_same(passes: list[Columns]) -> None:
    for k, one in enumerate(passes):
        for name, array in passes[0].items():
            wanted = (
                array if name not in ("sequence", "replay") else array + k * (N_EVENTS if name == "sequence" else 1)
            )
            np.testing.assert_array_equal(one[name], wanted, name)


def test_a_loop_reads_its_input_once_and_gives_the_same_each_time(hits: Path, reads: list[int]) -> None:
    reader = reader_of(hits)
    assert_same(passes(reader, 4))
    assert reads == [0]
    assert reader.limits == {"input_kept_bytes": 64 << 20}


def test_what_is_no_loop_keeps_nothing(hits: Path) -> None:
    reader = reader_of(hits, loop=False)
    assert_same(passes(reader, 1))
    assert reader.limits == {"input_kept_bytes": 0}
    assert not reader._kept._steps


@pytest.mark.parametrize("settings", [{"keep_mb": 0}, {}])
def test_what_does_not_fit_is_read_each_time(
    hits: Path, reads: list[int], settings: dict[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    reader = reader_of(hits, **settings)
    if not settings:
        reader._kept.most = 600  # bytes: less than there are, and more than a step
    with caplog.at_level(logging.INFO):
        assert_same(passes(reader, 3))
    assert reads == [0, 0, 0]
    assert not reader._kept._steps
    assert ("does not fit" in caplog.text) == (not settings)


def test_a_loop_goes_on_in_the_middle_of_its_input(hits: Path, reads: list[int]) -> None:
    def missing(first: int, last: int) -> list[tuple[int, int]]:
        return [(max(first, 13), last)] if last >= 13 else []

    reader = reader_of(hits)
    steps = reader.read(missing)
    numbers = np.concatenate([next(steps)["sequence"] for _ in range(2 + 3 + 3)])
    np.testing.assert_array_equal(numbers, 13 + np.arange(numbers.size))
    assert reads == [13, 0], "the steps of the second pass have other borders"


def test_a_shuffled_loop_reads_its_input_once(hits: Path, reads: list[int]) -> None:
    kept = passes(reader_of(hits, shuffle=True), 4)
    assert sorted(reads) == [0, 10, 20], "each step once"
    anew = passes(reader_of(hits, shuffle=True, keep_mb=0), 4)
    assert len(reads) > 12
    for ours, theirs in zip(kept, anew, strict=True):
        for name, array in ours.items():
            np.testing.assert_array_equal(array, theirs[name], name)


def test_steps_that_lack_entries_are_read_each_time() -> None:
    def read(first: int) -> Iterator[Step]:
        asked.append(first)
        for entries in ([0, 1], [2, 4], [5, 6], [8, 9]):  # 3 and 7 cannot be read
            if entries[0] >= first:
                yield Step(np.array(entries), {"event": np.array(entries)})

    kept, asked = Kept(1 << 20), list[int]()
    for _ in range(3):
        found = [entry for step in kept.read(0, 0, 10, read) for entry in step.entries.tolist()]
        assert found == [0, 1, 2, 4, 5, 6, 8, 9]
    assert asked == [0, 2, 2], "what is wrong is found and told again"
