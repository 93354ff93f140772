"""The writer: one entry an event, in the order of feeding; an output folder that is never spoilt."""

import hashlib
import json
import logging
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot
from physics_helpers import fill_disk, read_scores, small_disk

from stages import records
from stages.config import Config
from stages.writer import JOURNAL, SCORES, Writer, finish, prepare_folder, write_scores
from streamer.block import Block
from streamer.errors import StreamerError, UsageError


def config(folder: Path, **writer: Any) -> Config:
    return Config.model_validate({"writer": {"dir": folder, **writer}, "input": {"files": ["a.root", "b.ig"]}})


def started(folder: Path, **writer: Any) -> Writer:
    made = Writer(config(folder, **writer))
    made.setup()
    return made


def block(block_id: int, n: int = 3) -> Block:
    """A block as the tagger sends it: event number 10 * id + k has k photons."""
    columns = records.scores(Config()).empty(n)
    members = n * (n - 1) // 2
    columns["event"] = np.arange(n, dtype=np.uint64) + 10 * block_id
    columns["nPhoton"] = np.arange(n, dtype=np.int32)
    columns["error"] = np.array([2] + [0] * (n - 1), np.uint8)
    for name, column in records.scores(Config()).by_name.items():
        if column.per == "Photon":
            columns[name] = (np.arange(members) + 0.25 * block_id).astype(column.wire_dtype)
    records.scores(Config()).check(columns, n)
    return Block(block_id, n, columns)


async def fed(writer: Writer, ids: list[int]) -> None:
    for block_id in ids:
        writer.write(block(block_id))
        await writer.sync()


def assert_holds(path: Path, ids: list[int]) -> None:
    got = read_scores(path)
    assert got["event"] == [10 * i + k for i in ids for k in range(3)]
    assert got["Photon_egScore"] == [[j + 0.25 * i for j in part] for i in ids for part in ([], [0], [1, 2])]
    assert got["error"] == [2, 0, 0] * len(ids)
    assert "fedTime" not in got


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("kind", ["ttree", "rntuple"])
async def test_every_event_has_one_entry_in_the_order_of_feeding(tmp_path: Path, kind: str) -> None:
    writer = started(tmp_path / "deep/out", format=kind)
    await fed(writer, [2, 1, 4, 3])
    assert names(writer.path.parent) == [JOURNAL]
    await writer.finish()
    writer.close()
    assert names(writer.path.parent) == [SCORES]
    assert_holds(writer.path, [1, 2, 3, 4])
    with uproot.open(writer.path) as file:
        assert ("RNTuple" in type(file["Events"]).__name__) == (kind == "rntuple")
        assert json.loads(str(file["streamer_sources"])) == ["a.root", "b.ig"]
        taggers = json.loads(str(file["streamer_taggers"]))
    assert {name: tagger["sha256"] for name, tagger in taggers.items()} == {
        "eg": hashlib.sha256(Config().taggers["eg"].model.read_bytes()).hexdigest()
    }
    assert writer.about() == {"output": str(writer.path)}


async def test_no_events_make_a_valid_empty_file(tmp_path: Path) -> None:
    for kind in ("ttree", "rntuple"):
        writer = started(tmp_path / kind, format=kind)
        await writer.finish()
        writer.close()
        assert names(tmp_path / kind) == [SCORES]
        got = read_scores(writer.path)
        assert got["event"] == got["Photon_egScore"] == []


async def test_a_folder_with_results_is_refused_and_replaced_only_on_request(tmp_path: Path) -> None:
    first = started(tmp_path)
    await fed(first, [1])
    await first.finish()
    first.close()
    with pytest.raises(UsageError, match=f"{SCORES}: exists; choose another --output, or --overwrite"):
        started(tmp_path)
    second = started(tmp_path, overwrite=True)
    await fed(second, [2, 3])
    assert_holds(tmp_path / SCORES, [1])  # until there is something better
    await second.finish()
    second.close()
    assert_holds(tmp_path / SCORES, [2, 3])
    assert names(tmp_path) == [SCORES]


async def test_a_run_that_broke_off_can_be_finished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = started(tmp_path, format="rntuple")
    await fed(writer, [3, 1])
    writer.write(block(2))  # never synced, never committed
    await writer.abandon()
    writer.close()
    assert f"are safe in {tmp_path / JOURNAL}" in caplog.text
    with pytest.raises(UsageError, match="a run broke off here; save its results with: streamer finish"):
        started(tmp_path)
    assert finish(tmp_path) == (tmp_path / SCORES, 6)
    assert_holds(tmp_path / SCORES, [1, 3])
    assert names(tmp_path) == [SCORES]
    with uproot.open(tmp_path / SCORES) as file:
        assert "RNTuple" in type(file["Events"]).__name__, "as the run was configured"
    with pytest.raises(UsageError, match="nothing to finish"):
        finish(tmp_path)


async def test_a_left_journal_can_be_dropped(tmp_path: Path) -> None:
    writer = started(tmp_path)
    await fed(writer, [1])
    writer.close()
    again = started(tmp_path, overwrite=True)
    await fed(again, [5])
    await again.finish()
    again.close()
    assert_holds(tmp_path / SCORES, [5])


async def test_a_run_without_results_leaves_no_journal(tmp_path: Path) -> None:
    writer = started(tmp_path)
    await writer.sync()
    await writer.abandon()
    writer.close()
    assert names(tmp_path) == []
    started(tmp_path).close()
    assert names(tmp_path) == []


async def test_two_runs_do_not_share_a_folder(tmp_path: Path) -> None:
    writer = started(tmp_path)
    await fed(writer, [1])
    for overwrite in (False, True):
        with pytest.raises(UsageError, match="another run is writing there; choose another --output"):
            started(tmp_path, overwrite=overwrite)
    with pytest.raises(UsageError, match="a run is writing it; let that end first"):
        finish(tmp_path)
    await fed(writer, [2])
    await writer.finish()
    writer.close()
    assert_holds(tmp_path / SCORES, [1, 2])


async def test_a_damaged_journal_gives_the_rest_and_is_kept(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = started(tmp_path)
    sizes = []
    for block_id in (1, 2, 3):
        await fed(writer, [block_id])
        sizes.append((tmp_path / JOURNAL).stat().st_size)
    writer.close()
    data = bytearray((tmp_path / JOURNAL).read_bytes())
    data[(sizes[0] + sizes[1]) // 2] ^= 0x80
    (tmp_path / JOURNAL).write_bytes(data)
    assert finish(tmp_path)[1] == 6
    assert_holds(tmp_path / SCORES, [1, 3])
    assert f"block at byte {sizes[0]}" in caplog.text
    assert names(tmp_path) == ["scores.damaged", SCORES]
    assert (tmp_path / "scores.damaged").read_bytes() == data


def test_what_cannot_be_finished_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to finish"):
        finish(tmp_path / "nowhere")
    (tmp_path / JOURNAL).write_bytes(b"")
    with pytest.raises(UsageError, match="broke off before its first result; start it again with --overwrite"):
        finish(tmp_path)
    (tmp_path / JOURNAL).write_bytes(b"not a journal at all")
    with pytest.raises(UsageError, match="journal"):
        finish(tmp_path)
    assert names(tmp_path) == [JOURNAL]


async def test_a_journal_with_settings_that_are_no_more_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Config, "model_dump", lambda *_, **__: {"writer": {"colour": "red"}})
    writer = started(tmp_path)
    await fed(writer, [1])
    writer.close()
    with pytest.raises(UsageError, match="not a journal of this version"):
        finish(tmp_path)


@pytest.mark.parametrize("where", ["file", "file/below", "file/far/below"])
def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UsageError, match=r"cannot be written \(.+\); choose another --output") as error:
        prepare_folder(tmp_path / where)
    assert str(tmp_path / where) in str(error.value)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    for folder in (Path("/proc/1"), Path("/sys")):
        if folder.is_dir():
            with pytest.raises(UsageError, match="cannot be written"):
                prepare_folder(folder)


def test_a_disk_that_is_read_only_is_told(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "20m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with pytest.raises(
            UsageError, match=r"out: cannot be written \(Read-only file system\); choose another --output"
        ):
            started(disk / "out")


def test_a_full_disk_is_told_before_the_start(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        with pytest.raises(UsageError, match=r"the disk is full \(\d+ MB free, at least 16 MB are needed\)"):
            started(disk / "out")
        fill_disk(disk / "ballast")
        with pytest.raises(UsageError, match=r"No space left on device|the disk is full"):
            started(disk / "out")


async def test_a_disk_that_fills_up_costs_nothing_that_was_committed(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "20m") as disk:
        writer = started(disk / "out")
        await fed(writer, [1, 2])
        fill_disk(disk / "ballast")
        writer.write(block(3, n=300))
        with pytest.raises(StreamerError, match="results cannot be written") as error:
            await writer.sync()
        assert error.value.exit_code == 1
        await writer.abandon()
        writer.close()
        with pytest.raises(StreamerError, match=r"scores.root: cannot be written .*make room"):
            finish(disk / "out")
        (disk / "ballast").unlink()
        assert finish(disk / "out") == (disk / "out" / SCORES, 6)
        assert_holds(disk / "out" / SCORES, [1, 2])


async def test_a_disk_that_is_full_at_the_very_end_leaves_the_journal(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "20m") as disk:
        writer = started(disk / "out")
        await fed(writer, [1, 2])
        fill_disk(disk / "ballast")
        with pytest.raises(StreamerError, match=r"all results are safe in .*; make room and run: streamer finish"):
            await writer.finish()
        await writer.abandon()
        writer.close()
        (disk / "ballast").unlink()
        assert finish(disk / "out")[1] == 6
        assert_holds(disk / "out" / SCORES, [1, 2])


async def test_results_are_on_disk_after_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    true_fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        true_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", watched)
    writer = started(tmp_path)
    await fed(writer, [1])
    assert synced == [(tmp_path / JOURNAL).stat().st_size]
    writer.close()


def test_scores_of_a_stream_longer_than_one_step_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.writer.WRITE_EVENTS", 7)
    ids = list(range(1, 21))
    assert write_scores(tmp_path / SCORES, iter([block(i) for i in ids]), config(tmp_path), {}) == 60
    assert_holds(tmp_path / SCORES, ids)


def test_the_log_is_quiet_when_all_is_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    started(tmp_path).close()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
