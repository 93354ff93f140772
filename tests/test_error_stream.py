"""What a writer tells of failed events, and its limits; `test_poison` sees the whole of it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from physics_helpers import event, write_hits

from stages import PIPELINE, error_stream, records
from stages.config import Config
from stages.error_stream import ErrorStream, read_lines
from streamer.block import Block, core_columns, with_failures
from streamer.deadline import with_shed


def stream(folder: Path, n_files: int = 10) -> ErrorStream:
    source = write_hits(folder / "a.root", [event(i) for i in range(20)])
    out = folder / "out"
    out.mkdir()
    settings: dict[str, Any] = {"input": {"files": [str(source)]}, "writer": {"dir": out, "error_files": n_files}}
    return ErrorStream(Config.model_validate(settings), PIPELINE.names, 0)


def block(config: Config, first: int, n: int, *failed: int) -> Block:
    """Events, of which some have failed in the tagger."""
    schema = records.scores(config)
    columns = {**schema.empty(n), **core_columns(np.zeros(n, np.int64)), "sourceEntry": np.arange(first, first + n)}
    why = {i: f"no good\nand the traceback of {first + i}" for i in failed}
    return Block(first, n, with_failures(columns, why, 1 + PIPELINE.names.index("tagger")))


def files(errors: ErrorStream) -> list[str]:
    return sorted(path.name for path in errors.folder.glob("*"))


def test_nothing_is_made_where_nothing_fails(tmp_path: Path) -> None:
    errors = stream(tmp_path)
    errors.add(block(errors.config, 0, 5), 0)
    errors.flush()
    errors.finish()
    assert not errors.folder.exists()


def test_what_was_shed_is_no_error(tmp_path: Path) -> None:
    errors = stream(tmp_path)
    shed = block(errors.config, 0, 5)
    shed = shed.with_columns(with_shed(shed.columns, np.array([1, 2]), 2))
    errors.add(shed, 0)
    errors.flush()
    errors.rewrite(0, [shed])
    assert not errors.folder.exists()
    mixed = shed.with_columns(with_failures(shed.columns, {1: "too late for that", 4: "no good"}, 4))
    errors.rewrite(0, [mixed])
    assert [(line["number"], line["reason"]) for line in read_lines(errors.folder)] == [(4, "no good")]
    errors.close()


def test_lines_are_told_at_once_and_made_anew_with_their_file(tmp_path: Path) -> None:
    errors = stream(tmp_path)
    blocks = [block(errors.config, 0, 5, 1, 3), block(errors.config, 5, 5, 0)]
    errors.add(blocks[0], 0)
    errors.flush()
    assert [line["number"] for line in read_lines(errors.folder)] == [1, 3]
    errors.rewrite(0, blocks)
    lines = list(read_lines(errors.folder))
    assert [(line["number"], line["stage"], line["reason"]) for line in lines] == [
        (i, "tagger", "no good") for i in (1, 3, 5)
    ]
    assert lines[2]["traceback"] == "and the traceback of 5"
    errors.finish()
    assert files(errors) == ["0-1.root", "0-3.root", "0-5.root", "errors.jsonl", "pipeline.toml"]
    errors.drop()
    assert not errors.folder.exists()


def test_the_last_ones_are_shown_once_and_not_at_length(tmp_path: Path) -> None:
    errors = stream(tmp_path, n_files=0)
    long = block(errors.config, 0, 25)
    why = dict.fromkeys(range(25), "no good " + "and so on " * 1000 + "\nand its traceback")
    errors.add(long.with_columns(with_failures(long.columns, why, 4)), 0)
    assert errors.take_shown() == [], "not before they are told"
    errors.flush()
    shown = errors.take_shown()
    assert [one["number"] for one in shown] == [*range(5, 25)]
    assert all(len(one["reason"]) == 1000 and "traceback" not in one for one in shown)
    assert shown[-1]["again"].startswith("streamer run ")
    assert errors.take_shown() == []
    errors.close()


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    errors = stream(tmp_path)
    errors.rewrite(0, [block(errors.config, 0, 5, 1)])
    errors.close()
    with errors.path(0).open("a") as file:
        file.write(json.dumps({"number": 7})[:5])
    assert [line["number"] for line in read_lines(errors.folder)] == [1]


def test_no_more_files_than_allowed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    errors = stream(tmp_path, n_files=2)
    errors.rewrite(0, [block(errors.config, 0, 20, *range(20))])
    errors.finish()
    assert len(list(read_lines(errors.folder))) == 20
    assert files(errors) == ["0-0.root", "0-1.root", "errors.jsonl", "pipeline.toml"]
    assert caplog.text.count("which is the limit") == 1


def test_an_input_that_cannot_be_read_again_is_told_once_and_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a basket")

    monkeypatch.setattr(error_stream, "save_event", broken)
    errors = stream(tmp_path, n_files=3)
    for _ in range(2):
        errors.rewrite(0, [block(errors.config, 0, 20, *range(20))])
    errors.finish()
    assert caplog.text.count("cannot be saved: KeyError: 'a basket'") == 3
    assert files(errors) == ["errors.jsonl", "pipeline.toml"]
