"""The writer: one entry an event, in the order of the input; what is on disk outlives whatever ends a run."""

import asyncio
import errno
import hashlib
import json
import logging
import os
import shutil
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot
from physics_helpers import fill_disk, read_scores, small_disk, sum_model

from stages import records
from stages.books import read_books
from stages.config import Config
from stages.finishing import finish, finish_run, going_on, resumed, settings_of
from stages.manifest import Manifest, OpenManifest, Segment
from stages.results import SCORES, Results, write_scores
from stages.stored import SUFFIX, opened
from stages.writer import Writer, prepare_folder
from streamer.block import Block
from streamer.errors import StreamerError, UsageError
from streamer.journal import Journal
from streamer.ledger import Stripes

MANIFEST = "books/writer-0.manifest"


def journal(segment: int, replica: int = 0) -> str:
    return f"books/writer-{replica}.{segment:06d}.journal"


def config(folder: Path, more: dict[str, Any] | None = None, **writer: Any) -> Config:
    return Config.model_validate(
        {"writer": {"dir": folder, **writer}, "input": {"files": ["a.root", "b.ig"]}, **(more or {})}
    )


def started(
    folder: Path,
    run: str = "first",
    replica: int = 0,
    n_replicas: int = 1,
    more: dict[str, Any] | None = None,
    **writer: Any,
) -> Writer:
    """A writer as the runner sets it up; `more` are other sections of the configuration."""
    made = Writer(config(folder, more, **writer))
    made.run_id, made.replica, made.n_replicas = run, replica, n_replicas
    try:
        made.setup()
    except BaseException:
        made.close()
        raise
    return made


def block(k: int, n: int = 3) -> Block:
    """The k-th block as the tagger sends it: its j-th event has the number 10 * k + j, and j photons."""
    columns = records.scores(Config()).empty(n)
    members = n * (n - 1) // 2
    columns["event"] = np.arange(n, dtype=np.uint64) + 10 * k
    columns["run"] = np.full(n, 7, np.uint32)
    columns["luminosityBlock"] = np.full(n, k, np.uint32)
    columns["nPhoton"] = np.arange(n, dtype=np.int32)
    columns["error"] = np.array([2] + [0] * (n - 1), np.uint8)
    for name, column in records.scores(Config()).by_name.items():
        if column.per == "Photon":
            columns[name] = (np.arange(members) + 0.25 * k).astype(column.wire_dtype)
    records.scores(Config()).check(columns, n)
    return Block(3 * k, n, columns)


async def fed(writer: Writer, ks: list[int]) -> None:
    for k in ks:
        writer.write(block(k))
        await writer.sync()


async def ended(writer: Writer) -> None:
    await writer.finish()
    writer.close()


async def killed(writer: Writer, to: Path) -> None:
    """What a writer that is killed at this moment leaves, in another folder."""
    shutil.copytree(writer.config.writer.dir, to)
    await ended(writer)


async def converted(writer: Writer) -> None:
    """Wait for the file that is being finished beside the stream."""
    if writer._conversion is not None:
        await asyncio.wait([writer._conversion])


def assert_holds(path: Path, ks: list[int]) -> None:
    got = read_scores(path)
    assert got["event"] == [10 * k + j for k in ks for j in range(3)]
    assert got["Photon_egScore"] == [[j + 0.25 * k for j in part] for k in ks for part in ([], [0], [1, 2])]
    assert got["error"] == [2, 0, 0] * len(ks)
    assert "fedTime" not in got


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*")
                  if path.is_file() and path.parent.name != "errors")  # fmt: skip


def kept(writer: Writer) -> list[int]:
    return sorted(i for first, last in writer.kept() for i in range(first, last + 1))


# --- A run that goes well ---


@pytest.mark.parametrize("kind", ["ttree", "rntuple", "parquet"])
async def test_every_event_has_one_entry_in_the_order_of_the_input(tmp_path: Path, kind: str) -> None:
    folder, scores = tmp_path / "deep/out", "scores.parquet" if kind == "parquet" else SCORES
    writer = started(folder, format=kind)
    await fed(writer, [2, 1, 4, 3])
    assert names(folder) == [journal(0), MANIFEST]
    await ended(writer)
    assert names(folder) == [MANIFEST, scores]
    assert_holds(folder / scores, [1, 2, 3, 4])
    if kind != "parquet":
        with uproot.open(folder / SCORES) as root:
            assert ("RNTuple" in type(root["Events"]).__name__) == (kind == "rntuple")
    with opened(folder / scores) as file:
        assert json.loads(file.text("streamer_sources")) == ["a.root", "b.ig"]
        taggers = json.loads(file.text("streamer_taggers"))
    assert {name: tagger["sha256"] for name, tagger in taggers.items()} == {
        "eg": hashlib.sha256(Config().taggers["eg"].model.read_bytes()).hexdigest()
    }
    assert writer.about() == {"output": str(folder / scores)}
    assert Manifest(folder / MANIFEST).segments()[0].file == scores
    if kind == "parquet":
        with pytest.raises(UsageError, match=r"scores.parquet: exists; choose another --output, or --overwrite"):
            started(folder, "second")
        again = started(folder, "second", overwrite=True)  # as a TTree
        await fed(again, [5])
        await ended(again)
        assert names(folder) == [MANIFEST, SCORES], "a file of another form does not stay for one of this run"


async def test_the_manifest_says_what_is_in_the_file(tmp_path: Path) -> None:
    writer = started(tmp_path)
    await fed(writer, [2, 1, 4])
    assert not Manifest(tmp_path / MANIFEST).complete
    await ended(writer)
    manifest = Manifest(tmp_path / MANIFEST)
    assert manifest.complete
    assert manifest.run == manifest.about["run"] == "first"
    assert manifest.about["config"]["input"]["files"] == ["a.root", "b.ig"]
    (segment,) = manifest.segments()
    data = (tmp_path / SCORES).read_bytes()
    assert (segment.file, segment.events, segment.errors) == (SCORES, 9, 3)
    assert segment.ids == [[3, 8], [12, 14]]
    assert segment.lumis == [[7, k, 3, 1] for k in (1, 2, 4)]
    assert (segment.bytes, segment.sha256) == (len(data), hashlib.sha256(data).hexdigest())


async def test_no_events_make_a_valid_empty_file(tmp_path: Path) -> None:
    for kind in ("ttree", "rntuple"):
        await ended(started(tmp_path / kind, format=kind))
        assert names(tmp_path / kind) == [MANIFEST, SCORES]
        got = read_scores(tmp_path / kind / SCORES)
        assert got["event"] == got["Photon_egScore"] == []
        assert Manifest(tmp_path / kind / MANIFEST).complete


async def test_a_long_run_makes_several_files_and_finishes_them_on_the_way(tmp_path: Path) -> None:
    writer = started(tmp_path, segment_events=6)
    for k in (2, 1, 3, 4, 5, 6, 7):
        await fed(writer, [k])
        await converted(writer)
    files = [SCORES, "scores_1.root", "scores_2.root"]
    assert names(tmp_path) == [journal(3), MANIFEST, *files]
    for file, ks in zip(files, ([1, 2], [3, 4], [5, 6]), strict=True):
        assert_holds(tmp_path / file, ks)
    await ended(writer)
    assert_holds(tmp_path / "scores_3.root", [7])
    assert names(tmp_path) == [MANIFEST, *files, "scores_3.root"]
    segments = Manifest(tmp_path / MANIFEST).segments()
    assert [segment.file for segment in segments] == [*files, "scores_3.root"]
    assert [segment.events for segment in segments] == [6, 6, 6, 3]


async def test_what_comes_while_a_file_is_being_finished_goes_into_the_next(tmp_path: Path) -> None:
    writer = started(tmp_path, segment_events=3)
    await fed(writer, [1, 2, 3])  # no time to finish one in between
    await ended(writer)
    found = [event for file in names(tmp_path) if file != MANIFEST for event in read_scores(tmp_path / file)["event"]]
    assert found == [10 * k + j for k in (1, 2, 3) for j in range(3)]


async def test_what_comes_during_the_last_sync_of_a_file_goes_into_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true_sync, late = Journal.sync, [block(2)]

    async def sync(self: Journal) -> None:
        await true_sync(self)
        while late:
            writer.write(late.pop())

    monkeypatch.setattr(Journal, "sync", sync)
    writer = started(tmp_path, segment_events=3)
    await fed(writer, [1])
    await ended(writer)
    assert_holds(tmp_path / SCORES, [1])
    assert_holds(tmp_path / "scores_1.root", [2])


async def test_a_file_that_ends_with_the_stream_is_the_last(tmp_path: Path) -> None:
    writer = started(tmp_path, segment_events=6)
    await fed(writer, [1, 2])
    await ended(writer)
    assert names(tmp_path) == [MANIFEST, SCORES]


async def test_an_old_file_is_finished_too(tmp_path: Path) -> None:
    writer = started(tmp_path, segment_interval=0.05)
    await fed(writer, [1])
    await asyncio.sleep(0.06)
    await writer.sync()
    await converted(writer)
    assert_holds(tmp_path / SCORES, [1])
    await asyncio.sleep(0.06)
    await writer.sync()  # nothing has come since
    await ended(writer)
    assert names(tmp_path) == [MANIFEST, SCORES]


async def test_each_of_several_writers_has_its_own_files(tmp_path: Path) -> None:
    more = {"replicas": {"writer": 2}, "feed": {"block_events": 3}}
    both = [started(tmp_path, replica=k, n_replicas=2, more=more) for k in range(2)]
    for k in (3, 0, 1, 2):
        assert Stripes(2, 3).owner(3 * k) == k % 2
        await fed(both[k % 2], [k])
    for writer in both:
        await ended(writer)
    assert names(tmp_path) == [MANIFEST, "books/writer-1.manifest", "scores-1.root", SCORES]
    assert_holds(tmp_path / SCORES, [0, 2])
    assert_holds(tmp_path / "scores-1.root", [1, 3])
    assert Manifest(tmp_path / "books/writer-1.manifest").segments()[0].ids == [[0, 5]]


async def test_results_are_on_disk_after_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    true_fsync = os.fsync

    def watched(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_size)
        true_fsync(descriptor)

    writer = started(tmp_path)
    monkeypatch.setattr(os, "fsync", watched)
    await fed(writer, [1])
    assert synced == [(tmp_path / journal(0)).stat().st_size]
    writer.close()


# --- What lies in the folder already ---


async def test_a_folder_with_results_is_refused_and_replaced_only_on_request(tmp_path: Path) -> None:
    first = started(tmp_path, segment_events=3)
    for k in (1, 4):
        await fed(first, [k])
        await converted(first)
    await ended(first)
    assert names(tmp_path) == [MANIFEST, SCORES, "scores_1.root"]
    with pytest.raises(UsageError, match=f"{SCORES}: exists; choose another --output, or --overwrite"):
        started(tmp_path, "second")
    second = started(tmp_path, "second", overwrite=True)
    await second.sync()
    assert_holds(tmp_path / SCORES, [1])  # until there is something better
    await fed(second, [2, 3])
    assert names(tmp_path) == [journal(0), MANIFEST]
    await ended(second)
    assert_holds(tmp_path / SCORES, [2, 3])
    assert names(tmp_path) == [MANIFEST, SCORES]
    assert [segment.events for segment in Manifest(tmp_path / MANIFEST).segments()] == [6]


async def test_results_that_no_manifest_knows_are_refused_too(tmp_path: Path) -> None:
    (tmp_path / "scores_2.root").write_bytes(b"somebody's")
    with pytest.raises(UsageError, match=r"scores_2.root: exists"):
        started(tmp_path, resume=True)
    assert (tmp_path / "scores_2.root").read_bytes() == b"somebody's"


async def test_without_results_the_old_ones_make_way_at_the_end(tmp_path: Path) -> None:
    first = started(tmp_path, segment_events=3)
    for k in (1, 4):
        await fed(first, [k])
        await converted(first)
    await ended(first)
    await ended(started(tmp_path, "second", overwrite=True))
    assert names(tmp_path) == [MANIFEST, SCORES]
    assert read_scores(tmp_path / SCORES)["event"] == []


async def test_a_run_that_broke_off_can_be_finished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = started(tmp_path, format="rntuple")
    await fed(writer, [3, 1])
    writer.write(block(2))  # never synced, never committed
    await writer.abandon()
    writer.close()
    assert f"results are safe in {tmp_path / journal(0)}" in caplog.text
    assert f"streamer run --resume {tmp_path}" in caplog.text
    with pytest.raises(UsageError, match=r"a run broke off here; go on with: streamer run --resume .*streamer finish"):
        started(tmp_path, "second")
    assert await asyncio.to_thread(finish, tmp_path) == (tmp_path / SCORES, 6)
    assert_holds(tmp_path / SCORES, [1, 3])
    assert names(tmp_path) == [MANIFEST, SCORES]
    with uproot.open(tmp_path / SCORES) as file:
        assert "RNTuple" in type(file["Events"]).__name__, "as the run was configured"
    with pytest.raises(UsageError, match="nothing to finish"):
        await asyncio.to_thread(finish, tmp_path)
    await asyncio.to_thread(finish_run, config(tmp_path))  # nothing to do is no problem there
    assert_holds(tmp_path / SCORES, [1, 3])


async def test_a_left_journal_can_be_dropped(tmp_path: Path) -> None:
    writer = started(tmp_path)
    await fed(writer, [1])
    writer.close()
    again = started(tmp_path, "second", overwrite=True)
    await fed(again, [5])
    await ended(again)
    assert_holds(tmp_path / SCORES, [5])
    assert names(tmp_path) == [MANIFEST, SCORES]


async def test_a_run_without_results_leaves_nothing(tmp_path: Path) -> None:
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
    for how in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(UsageError, match="another run is writing there; choose another --output"):
            started(tmp_path, "second", **how)
    with pytest.raises(UsageError, match="a run is writing there; let that end first"):
        await asyncio.to_thread(finish, tmp_path)
    await fed(writer, [2])
    await ended(writer)
    assert_holds(tmp_path / SCORES, [1, 2])


# --- Going on ---


async def test_a_process_that_is_started_again_goes_on(tmp_path: Path) -> None:
    writer = started(tmp_path)
    assert kept(writer) == []
    await fed(writer, [1, 4])
    writer.write(block(2))  # never synced
    writer.close()
    again = started(tmp_path)
    assert kept(again) == [3, 4, 5, 12, 13, 14]
    await fed(again, [2])
    await ended(again)
    assert_holds(tmp_path / SCORES, [1, 2, 4])
    assert names(tmp_path) == [MANIFEST, SCORES]
    assert Manifest(tmp_path / MANIFEST).run == "first"


async def test_a_file_that_was_there_and_not_yet_in_the_manifest_is_made_anew_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add, held = OpenManifest.add, threading.Event()

    def late(manifest: OpenManifest, segment: Segment) -> None:
        held.wait(20)
        add(manifest, segment)

    monkeypatch.setattr(OpenManifest, "add", late)
    writer = started(tmp_path / "a", segment_events=6)
    await fed(writer, [1, 2, 3])  # the first file is finished beside the stream
    while not (tmp_path / "a" / SCORES).exists():
        await asyncio.sleep(0.01)
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # what a writer leaves that is killed now
    held.set()
    await ended(writer)
    again = started(tmp_path / "b", segment_events=6)
    await fed(again, [4])
    await ended(again)
    assert names(tmp_path / "b") == [MANIFEST, SCORES, "scores_1.root"]
    assert_holds(tmp_path / "b" / SCORES, [1, 2])
    assert_holds(tmp_path / "b/scores_1.root", [3, 4])


async def test_another_run_goes_on_when_it_is_asked_to(tmp_path: Path) -> None:
    writer = started(tmp_path, segment_events=6)
    for k in (1, 2, 4):
        await fed(writer, [k])
        await converted(writer)
    writer.close()
    again = started(tmp_path, "second", resume=True)
    assert kept(again) == [*range(3, 9), 12, 13, 14]
    await fed(again, [3])
    await ended(again)
    assert_holds(tmp_path / SCORES, [1, 2])
    assert_holds(tmp_path / "scores_1.root", [3, 4])
    manifest = Manifest(tmp_path / MANIFEST)
    assert (manifest.run, manifest.about["run"], manifest.complete) == ("second", "first", True)


async def test_a_run_that_ended_in_order_goes_on_in_another_file(tmp_path: Path) -> None:
    writer = started(tmp_path)
    await fed(writer, [1])
    await ended(writer)
    again = started(tmp_path, "second", resume=True)
    assert not Manifest(tmp_path / MANIFEST).complete
    assert kept(again) == [3, 4, 5]
    await fed(again, [2])
    await ended(again)
    assert_holds(tmp_path / SCORES, [1])
    assert_holds(tmp_path / "scores_1.root", [2])
    await ended(started(tmp_path, "third", resume=True))
    assert names(tmp_path) == [MANIFEST, SCORES, "scores_1.root"]
    assert Manifest(tmp_path / MANIFEST).complete


async def test_with_nothing_there_resume_begins(tmp_path: Path) -> None:
    writer = started(tmp_path, resume=True)
    assert kept(writer) == []
    await fed(writer, [1])
    await ended(writer)
    assert_holds(tmp_path / SCORES, [1])


async def test_a_writer_killed_while_it_finishes_a_file_finishes_it_when_it_comes_back(tmp_path: Path) -> None:
    writer = started(tmp_path / "a", segment_events=6)
    await fed(writer, [2, 1])
    await killed(writer, tmp_path / "b")
    (tmp_path / "b/scores.root.part").write_bytes(b"half a file")
    again = started(tmp_path / "b")
    assert kept(again) == list(range(3, 9))
    await fed(again, [3])
    await ended(again)
    assert_holds(tmp_path / "b" / SCORES, [1, 2, 3])
    assert names(tmp_path / "b") == [MANIFEST, SCORES]


@pytest.mark.parametrize("why", ["", "/bin/false", "/nowhere", "no room"])
async def test_a_long_segment_is_finished_by_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    monkeypatch.setattr("stages.writer.LEAST_EVENTS", 6)
    making, made_here = Results.make, []

    def make(*args: Any) -> Segment:
        made_here.append(args[2])
        return making(*args)

    monkeypatch.setattr(Results, "make", make)
    if why.startswith("/"):
        monkeypatch.setattr("stages.segment.sys.executable", why)
    elif why == "no room":
        (tmp_path / "scores.root.part").mkdir()
    writer = started(tmp_path, segment_events=6)
    await fed(writer, [2, 1])
    await fed(writer, [3])
    if why == "no room":
        await logged("results cannot be written", caplog)
        (tmp_path / "scores.root.part").rmdir()
    await converted(writer)
    assert_holds(tmp_path / SCORES, [1, 2])
    assert made_here == ([0] if why.startswith("/") else [])
    assert ("it is made by the writer itself" in caplog.text) == why.startswith("/")
    await ended(writer)
    assert made_here[-1] == 1, "the last one holds nobody up"
    one, other = Manifest(tmp_path / MANIFEST).segments()
    assert (one.ids, one.events, other.ids) == ([[3, 8]], 6, [[9, 11]])
    assert one.sha256 == hashlib.sha256((tmp_path / SCORES).read_bytes()).hexdigest()
    assert names(tmp_path) == [MANIFEST, SCORES, "scores_1.root"]


async def test_a_long_segment_that_cannot_be_read_back_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("stages.writer.LEAST_EVENTS", 6)
    writer = started(tmp_path, segment_events=6)
    await fed(writer, [2])
    with (tmp_path / journal(0)).open("r+b") as file:
        file.seek(-10, os.SEEK_END)
        file.write(b"\xff" * 10)
    await fed(writer, [1])
    await converted(writer)
    with pytest.raises(StreamerError, match="block 6 cannot be read back"):
        await writer.finish()
    writer.close()
    assert "it is made by the writer itself" not in caplog.text
    assert "Traceback" not in capfd.readouterr().err


async def logged(text: str, caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(20):
        while text not in caplog.text:
            await asyncio.sleep(0.01)


async def test_a_writer_killed_before_it_drops_a_finished_journal_counts_nothing_twice(tmp_path: Path) -> None:
    writer = started(tmp_path, segment_events=6)
    await fed(writer, [1, 2])
    left = (tmp_path / journal(0)).read_bytes()
    await fed(writer, [3])
    await converted(writer)
    writer.close()
    (tmp_path / journal(0)).write_bytes(left)
    again = started(tmp_path)
    assert names(tmp_path) == [journal(1), MANIFEST, SCORES]
    assert sorted(again.kept()) == [(3, 8), (9, 11)]
    await ended(again)
    assert [segment.events for segment in Manifest(tmp_path / MANIFEST).segments()] == [6, 3]


async def test_a_writer_killed_before_the_manifest_has_a_file_makes_it_anew(tmp_path: Path) -> None:
    writer = started(tmp_path / "a")
    await fed(writer, [1, 2])
    await killed(writer, tmp_path / "b")
    shutil.copy(tmp_path / "a" / SCORES, tmp_path / "b" / SCORES)
    assert await asyncio.to_thread(finish, tmp_path / "b") == (tmp_path / "b" / SCORES, 6)
    assert_holds(tmp_path / "b" / SCORES, [1, 2])
    assert names(tmp_path / "b") == [MANIFEST, SCORES]


@pytest.mark.parametrize(
    ("more", "what"),
    [
        ({"taggers": {"eg": {"pt_min": 33}}}, r"other settings of \[taggers\]"),
        ({"framer": {"tracks_at": "ecal"}}, r"other settings of \[framer\]"),
        ({"input": {"files": ["a.root"]}}, r"other settings of \[input\]"),
    ],
)
async def test_a_run_with_other_settings_does_not_go_on(tmp_path: Path, more: dict[str, Any], what: str) -> None:
    writer = started(tmp_path)
    await fed(writer, [1])
    writer.close()
    before = (tmp_path / journal(0)).read_bytes()
    with pytest.raises(UsageError, match=what):
        started(tmp_path, "second", more=more, resume=True)
    assert (tmp_path / journal(0)).read_bytes() == before
    started(tmp_path, "second", more={"feed": {"rate": 10}, "tagger": {"max_batch": 3}}, resume=True).close()


def tell_otherwise(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the settings with which a manifest says that its run began."""
    first, *rest = path.read_text().splitlines(keepends=True)
    about = json.loads(first)
    change(about["config"])
    path.write_text(json.dumps(about) + "\n" + "".join(rest))


async def test_a_run_of_a_version_that_had_fewer_settings_goes_on(tmp_path: Path) -> None:
    more: dict[str, Any] = {"taggers": {"eg": {"pt_min": 40}}, "framer": {"tracks_at": "ecal"}}
    writer = started(tmp_path, more=more)
    await fed(writer, [1])
    writer.close()

    def without_some(config: dict[str, Any]) -> None:
        for section, key in (("input", "fat_jets"), ("framer", "hits_from")):
            del config[section][key]
        for key in ("priority", "normalise", "signal", "crop"):
            del config["taggers"]["eg"][key]

    tell_otherwise(tmp_path / MANIFEST, without_some)
    wanted = config(tmp_path, more)
    assert going_on(wanted)[1] == f"{tmp_path}: the run there goes on"
    again = started(tmp_path, "second", more=more, resume=True)
    assert kept(again) == [3, 4, 5]
    again.close()
    with pytest.raises(UsageError, match=r"other settings of \[framer\]"):
        started(tmp_path, "third", more=more | {"framer": {**more["framer"], "hits_from": "vertex"}}, resume=True)


@pytest.mark.parametrize(
    ("section", "why"),
    [
        ("framer", "unknown key 'framer.hits_fro'; did you mean 'hits_from'?"),
        ("input", "'input.step_events': Input should be greater than or equal to 1 (it is 0)"),
        ("taggers", "unknown key 'taggers.eg.colour'"),
    ],
)
async def test_a_run_with_settings_that_this_version_does_not_know_does_not_go_on(
    tmp_path: Path, section: str, why: str
) -> None:
    writer = started(tmp_path)
    await fed(writer, [1])
    writer.close()
    odd = {"framer": {"hits_fro": 1}, "input": {"step_events": 0}, "taggers": {"colour": 1}}[section]
    tell_otherwise(
        tmp_path / MANIFEST,
        lambda config: (config["taggers"]["eg"] if section == "taggers" else config[section]).update(odd),
    )
    told = f"{tmp_path}: the run there is not of this version of streamer ({why}); choose another --output (writer.dir)"
    with pytest.raises(UsageError) as refused:
        started(tmp_path, "second", resume=True)
    assert str(refused.value) == told
    with pytest.raises(UsageError) as refused:
        going_on(config(tmp_path))
    assert str(refused.value) == told
    for read in (resumed, read_books, settings_of, finish):
        with pytest.raises(UsageError) as refused:
            await asyncio.to_thread(read, tmp_path)
        assert str(refused.value) == f"{tmp_path / MANIFEST}: not a manifest of this version of streamer ({why})"


async def test_a_run_with_another_network_does_not_go_on(tmp_path: Path) -> None:
    model = sum_model(tmp_path / "m.onnx")
    more = {"taggers": {"eg": {"model": model}}}
    writer = started(tmp_path / "out", more=more)
    await fed(writer, [1])
    writer.close()
    sum_model(model, limit=3.0)
    with pytest.raises(UsageError, match="other networks"):
        started(tmp_path / "out", "second", more=more, resume=True)
    sum_model(model)
    started(tmp_path / "out", "second", more=more, resume=True).close()


async def test_a_run_with_other_stripes_does_not_go_on(tmp_path: Path) -> None:
    def with_writers(n: int, width: int) -> Writer:
        more = {"replicas": {"writer": n}, "feed": {"block_events": width}}
        return started(tmp_path, str((n, width)), n_replicas=n, more=more, resume=True)

    writer = with_writers(2, 3)
    await fed(writer, [0])
    writer.close()
    for n, width in ((1, 3), (3, 3), (2, 6)):
        with pytest.raises(UsageError, match=r"has replicas.writer = 2 and feed.block_events = 3; go on with the same"):
            with_writers(n, width)
    again = with_writers(2, 3)
    assert kept(again) == [0, 1, 2]
    again.close()


async def test_a_single_writer_goes_on_with_blocks_of_any_size(tmp_path: Path) -> None:
    writer = started(tmp_path, more={"feed": {"block_events": 3}})
    await fed(writer, [1])
    writer.close()
    again = started(tmp_path, "second", more={"feed": {"block_events": 50}}, resume=True)
    assert kept(again) == [3, 4, 5]
    again.close()


async def test_the_token_of_the_page_is_not_kept_with_the_results(tmp_path: Path) -> None:
    writer = started(tmp_path, more={"monitor": {"on": True, "token": "open-sesame"}})
    await fed(writer, [1])
    await ended(writer)
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert not any(b"open-sesame" in path.read_bytes() for path in files)


async def test_the_settings_of_a_run_come_back_from_its_folder(tmp_path: Path) -> None:
    writer = started(tmp_path / "a", more={"feed": {"rate": 5}}, overwrite=True, segment_events=77)
    await fed(writer, [1])
    writer.close()
    (tmp_path / "a").rename(tmp_path / "b")
    found = Config.model_validate(resumed(tmp_path / "b"))
    assert found == config(tmp_path / "b", {"feed": {"rate": 5}}, overwrite=False, resume=True, segment_events=77)
    for folder in (tmp_path / "a", tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="no run was begun there"):
            resumed(folder)


async def test_a_service_begins_and_goes_on_with_what_was_asked_for_last(tmp_path: Path) -> None:
    wanted = config(tmp_path, {"input": {"files": ["a.root", "b.root"]}}, overwrite=True)
    assert going_on(wanted) == ({"writer.resume": True, "writer.overwrite": False}, f"{tmp_path}: a new run begins")
    writer = started(tmp_path, more={"input": {"files": ["a.root"]}})
    await fed(writer, [1])
    writer.manifest.ask({"asked": ["quiet", 3]})
    writer.close()
    settings, told = going_on(wanted)
    assert settings["input.files"] == ["a.root"]
    assert (settings["menu.prescale_column"], settings["menu.prescale_from"]) == ("quiet", 3)
    assert told == f"{tmp_path}: the run there goes on with the input files that it began with, 1 of now 2"
    other = going_on(config(tmp_path, {"input": {"files": ["c.root", "d.root"]}}))
    assert "input.files" not in other[0], "the writer refuses it"


async def test_a_mix_goes_on_with_the_files_that_it_began_with(tmp_path: Path) -> None:
    mix = {"files": ["s.root", "b-*.root"], "weights": [1, 9]}
    began = {**mix, "found": [[], ["b-0.root"]]}
    assert Config.model_validate({"input": began}).input.expanded() == [Path("s.root"), Path("b-0.root")]
    writer = started(tmp_path, more={"input": began})
    await fed(writer, [1])
    writer.close()
    now = {**mix, "found": [[], ["b-0.root", "b-1.root"]]}
    settings, told = going_on(config(tmp_path, {"input": now}))
    assert settings["input.found"] == ((), ("b-0.root",))
    assert told == f"{tmp_path}: the run there goes on with the input files that it began with, 2 of now 3"
    same = going_on(config(tmp_path, {"input": began}))
    assert (same[0].get("input.found"), same[1]) == (None, f"{tmp_path}: the run there goes on")


# --- What goes wrong ---


async def test_a_damaged_journal_gives_the_rest_and_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    writer = started(tmp_path / "a")
    sizes = []
    for k in (1, 2, 3):
        await fed(writer, [k])
        sizes.append((tmp_path / "a" / journal(0)).stat().st_size)
    writer.close()
    data = bytearray((tmp_path / "a" / journal(0)).read_bytes())
    data[(sizes[0] + sizes[1]) // 2] ^= 0x80
    (tmp_path / "a" / journal(0)).write_bytes(data)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert (await asyncio.to_thread(finish, tmp_path / "a"))[1] == 6
    assert_holds(tmp_path / "a" / SCORES, [1, 3])
    assert f"block at byte {sizes[0]} is damaged" in caplog.text
    assert Manifest(tmp_path / "a" / MANIFEST).segments()[0].ids == [[3, 5], [9, 11]]
    again = started(tmp_path / "b", "second", resume=True)
    assert kept(again) == [3, 4, 5, 9, 10, 11], "a run that goes on makes it again"
    await fed(again, [2])
    await ended(again)
    assert_holds(tmp_path / "b" / SCORES, [1, 2, 3])


def test_what_cannot_be_finished_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing to finish"):
        finish(tmp_path / "nowhere")
    (tmp_path / "books").mkdir()
    for text in (b"not a manifest at all\n", b'{"format": "streamer manifest 1", "run": "r"}\n'):
        (tmp_path / MANIFEST).write_bytes(text)
        with pytest.raises(UsageError, match="manifest"):
            finish(tmp_path)
        assert (tmp_path / MANIFEST).read_bytes() == text
    assert names(tmp_path) == [MANIFEST]


async def test_a_run_with_settings_that_are_no_more_is_told(tmp_path: Path) -> None:
    writer = started(tmp_path)
    await fed(writer, [1])
    writer.close()
    text = (tmp_path / MANIFEST).read_text()
    (tmp_path / MANIFEST).write_text(text.replace('"segment_events"', '"colour"'))
    with pytest.raises(UsageError, match="not a manifest of this version"):
        await asyncio.to_thread(finish, tmp_path)
    assert (tmp_path / journal(0)).exists()


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
    with small_disk(tmp_path / "disk", "512k") as disk:
        with pytest.raises(UsageError, match=r"the disk is full \(0 MB free, at least 1 MB are needed\)"):
            started(disk / "out")
        fill_disk(disk / "ballast")
        with pytest.raises(UsageError, match=r"No space left on device|the disk is full"):
            started(disk / "out")


async def test_a_disk_that_fills_up_costs_nothing_that_was_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streamer.disk.RETRY_S", 0.01)
    with small_disk(tmp_path / "disk", "20m") as disk:
        writer = started(disk / "out", disk_patience=0.1)
        await fed(writer, [1, 2])
        fill_disk(disk / "ballast")
        writer.write(block(3, n=300))
        with pytest.raises(StreamerError, match="results cannot be written") as error:
            await writer.sync()
        assert error.value.exit_code == 1
        assert f"make room and go on with: streamer run --resume {disk / 'out'}" in str(error.value)
        assert caplog.text.count("the stream waits up to") == 1
        await writer.abandon()
        writer.close()
        with pytest.raises(StreamerError, match=r"out: .*(No space left on device|the disk is full)"):
            await asyncio.to_thread(finish, disk / "out")
        (disk / "ballast").unlink()
        assert await asyncio.to_thread(finish, disk / "out") == (disk / "out" / SCORES, 6)
        assert_holds(disk / "out" / SCORES, [1, 2])


async def test_a_disk_that_gets_room_in_time_costs_nothing_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streamer.disk.RETRY_S", 0.01)
    with small_disk(tmp_path / "disk", "20m") as disk:
        writer = started(disk / "out")
        await fed(writer, [1])
        fill_disk(disk / "ballast")
        writer.write(block(2, n=300))
        syncing = asyncio.create_task(writer.sync())
        while "the stream waits up to" not in caplog.text:
            await asyncio.sleep(0.01)
        assert not syncing.done()
        (disk / "ballast").unlink()
        await syncing
        await ended(writer)
        assert Manifest(disk / "out" / MANIFEST).segments()[0].ids == [[3, 305]]
        assert len(read_scores(disk / "out" / SCORES)["event"]) == 303


async def test_a_process_that_is_started_again_on_a_full_disk_waits_for_room_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("streamer.disk.RETRY_S", 0.01)
    with small_disk(tmp_path / "disk", "20m") as disk:
        before = started(disk / "out")
        await fed(before, [1])
        before.close()
        fill_disk(disk / "ballast")
        with pytest.raises(UsageError, match=r"the disk is full|No space left on device"):
            started(disk / "out", "second", resume=True)
        again = started(disk / "out")
        assert kept(again) == [3, 4, 5]
        again.write(block(2, n=300))
        syncing = asyncio.create_task(again.sync())
        while "the stream waits up to" not in caplog.text:
            await asyncio.sleep(0.01)
        (disk / "ballast").unlink()
        await syncing
        await ended(again)
        assert Manifest(disk / "out" / MANIFEST).segments()[0].ids == [[3, 305]]


async def test_what_helps_a_process_that_is_started_again_is_no_other_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    before = started(tmp_path)
    await fed(before, [1])
    before.close()
    monkeypatch.setattr("stages.writer.OpenManifest", refuse)
    with pytest.raises(StreamerError, match=r"cannot be written \(Read-only file system\); make it writable$"):
        started(tmp_path)
    with pytest.raises(UsageError, match=r"\(Read-only file system\); choose another --output$"):
        started(tmp_path, "second", resume=True)


async def test_a_journal_that_cannot_be_dropped_is_not_entered_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    writer = started(tmp_path, segment_events=3)
    await fed(writer, [1, 2])
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", refuse)
        await converted(writer)
    await ended(writer)
    assert [segment.ids for segment in Manifest(tmp_path / MANIFEST).segments()] == [[[3, 5]], [[6, 8]]]


@pytest.mark.parametrize("kind", ["ttree", "parquet"])
async def test_a_disk_that_is_full_at_the_very_end_leaves_the_journal(tmp_path: Path, kind: str) -> None:
    with small_disk(tmp_path / "disk", "20m") as disk:
        writer = started(disk / "out", disk_patience=0, format=kind)
        await fed(writer, [1, 2])
        fill_disk(disk / "ballast")
        with pytest.raises(
            StreamerError, match=r"cannot be written .*; what was committed is safe; .*save it: streamer finish"
        ):
            await writer.finish()
        await writer.abandon()
        writer.close()
        (disk / "ballast").unlink()
        path, n = await asyncio.to_thread(finish, disk / "out")
        assert (path.name, n) == (f"scores{SUFFIX[writer.config.writer.format]}", 6)
        assert_holds(path, [1, 2])


def test_scores_of_a_stream_longer_than_one_step_are_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stages.menu.output.WRITE_EVENTS", 7)
    ids = list(range(1, 21))
    assert write_scores(tmp_path / SCORES, iter([block(i) for i in ids]), config(tmp_path), {}) == 60
    assert_holds(tmp_path / SCORES, ids)


def test_the_log_is_quiet_when_all_is_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    started(tmp_path).close()
    assert not [r for r in caplog.records if r.levelno >= logging.WARNING]
