"""The manifest: what is in which file, counted from the blocks; a line is there as a whole or not at all."""

import errno
import json
import multiprocessing
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from physics_helpers import fill_disk, small_disk

from stages.manifest import FORMAT, Manifest, OpenManifest, Segment, Tally
from streamer.block import SHED, Block
from streamer.errors import UsageError
from streamer.ledger import Stripes

PAGE = os.sysconf("SC_PAGESIZE")
ABOUT = {"run": "first", "config": {"a": 1}}


def segment(k: int) -> Segment:
    """The k-th file, of ten events."""
    return Segment(f"scores_{k}.root", 10, k, [[10 * k, 10 * k + 9]], [[1, k, 10, k]], 1000 + k, "ab" * 32)


def begun(path: Path, n: int = 0) -> OpenManifest:
    """A new manifest with `n` files."""
    made = OpenManifest(path)
    made.begin(ABOUT)
    for k in range(n):
        made.add(segment(k))
    return made


def block(first: int, lumis: list[tuple[int, int]], bad: tuple[int, ...] = ()) -> Block:
    """A block from the event `first` on: the run and lumisection of each, and the places of those with an error."""
    runs, sections = np.array(lumis, np.uint32).T
    error = np.zeros(len(lumis), np.uint8)
    error[list(bad)] = 2
    due = np.zeros(len(lumis), np.int64)
    return Block(first, len(lumis), {"run": runs, "luminosityBlock": sections, "error": error, "fedTime": due})


def test_what_is_not_there_is_empty(tmp_path: Path) -> None:
    none = Manifest(tmp_path / "m")
    assert (none.about, none.run, none.segments(), none.complete) == ({}, "", [], False)
    assert not (tmp_path / "m").exists()


def test_what_was_entered_can_be_read_meanwhile_and_later(tmp_path: Path) -> None:
    made = begun(tmp_path / "m", 2)
    for _ in range(2):
        found = Manifest(tmp_path / "m")
        assert found.about == {"format": FORMAT, **ABOUT}
        assert found.segments() == made.segments() == [segment(0), segment(1)]
        assert (found.run, found.complete) == ("first", False)
        made.close()
        made = OpenManifest(tmp_path / "m")
    made.close()


def test_it_is_one_json_object_a_line(tmp_path: Path) -> None:
    made = begun(tmp_path / "m", 1)
    made.go_on("second", 17)
    made.end()
    made.close()
    lines = [json.loads(line) for line in (tmp_path / "m").read_text().splitlines()]
    assert [next(iter(line)) for line in lines] == ["format", "file", "run", "complete"]


def test_another_run_goes_on_behind_the_first(tmp_path: Path) -> None:
    begun(tmp_path / "m", 1).close()
    made = OpenManifest(tmp_path / "m")
    made.go_on("second", 17)
    made.add(segment(1))
    made.close()
    found = Manifest(tmp_path / "m")
    assert (found.run, found.went_on) == ("second", [17])
    assert found.about["run"] == "first", "the first line stays"
    assert found.segments() == [segment(0), segment(1)]


def test_it_is_complete_until_another_run_goes_on(tmp_path: Path) -> None:
    made = begun(tmp_path / "m", 1)
    assert not made.complete
    made.end()
    assert made.complete
    assert Manifest(tmp_path / "m").complete
    made.go_on("second", 17)
    assert not made.complete
    assert not Manifest(tmp_path / "m").complete
    made.end()
    assert Manifest(tmp_path / "m").complete
    made.close()


def test_to_begin_forgets_everything(tmp_path: Path) -> None:
    made = begun(tmp_path / "m", 3)
    made.end()
    made.begin({"run": "new"})
    made.add(segment(7))
    made.close()
    found = Manifest(tmp_path / "m")
    assert (found.about, found.run, found.complete) == ({"format": FORMAT, "run": "new"}, "new", False)
    assert found.segments() == made.segments() == [segment(7)]


def test_a_torn_last_line_is_no_part_of_it_wherever_it_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "m"
    begun(path, 1).close()
    before = path.stat().st_size
    made = OpenManifest(path)
    made.add(segment(1))
    made.close()
    whole = path.read_bytes()
    for size in range(before, len(whole)):
        path.write_bytes(whole[:size])
        assert Manifest(path).segments() == [segment(0)], f"{size} of {len(whole)} bytes"
        assert path.stat().st_size == size, "only looked at"
        again = OpenManifest(path)
        again.add(segment(2))
        again.close()
        assert Manifest(path).segments() == [segment(0), segment(2)], f"{size} of {len(whole)} bytes"
        path.write_bytes(whole[:size])
        again = OpenManifest(path)
        again.end()  # a shorter line than what was torn
        again.close()
        assert path.read_bytes() == whole[:before] + b'{"complete": true}\n'


def test_a_torn_first_line_is_no_manifest_yet(tmp_path: Path) -> None:
    path = tmp_path / "m"
    begun(path).close()
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        made = OpenManifest(path)
        assert made.about == {}
        made.begin(ABOUT)
        made.close()
        assert path.read_bytes() == whole


def test_zeros_at_the_end_are_nothing(tmp_path: Path) -> None:
    begun(tmp_path / "m", 1).close()
    with (tmp_path / "m").open("ab") as file:
        file.write(bytes(4096))
    made = OpenManifest(tmp_path / "m")
    made.add(segment(1))
    made.close()
    assert Manifest(tmp_path / "m").segments() == [segment(0), segment(1)]


@pytest.mark.parametrize(
    "text",
    [
        "not a manifest\n",
        "\n",
        "[1, 2]\n",
        "{}\n",
        '{"format": "streamer manifest 0", "run": ""}\n',
        json.dumps({"format": FORMAT, "run": "r"}) + '\n{"file": "scores.root", "colour": "red"}\n',
        json.dumps({"format": FORMAT, "run": "r"}) + '\n{"file": "scores.\n{"complete": true}\n',
        "\0" * 20 + "\n",
    ],
)
def test_what_is_no_manifest_is_told_and_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "m"
    path.write_text(text)
    for kind in (Manifest, OpenManifest):
        with pytest.raises(UsageError, match="not a manifest of this version") as error:
            kind(path)
        assert "\n" not in str(error.value)
    assert path.read_text() == text


def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot be read \(Is a directory\)"):
        Manifest(tmp_path)


def test_a_folder_that_is_not_there_is_the_callers_to_tell(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        OpenManifest(tmp_path / "no/m")


def write_elsewhere(path: Path, said: Any) -> None:
    """Hold a manifest until told to let go."""
    made = OpenManifest(path)
    said.send("open")
    said.recv()
    made.close()


def test_nobody_else_can_write_it_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "m"
    begun(path, 1).close()
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    child = spawn.Process(target=write_elsewhere, args=(path, there))
    child.start()
    assert here.recv() == "open"
    try:
        with pytest.raises(BlockingIOError):
            OpenManifest(path)
        assert Manifest(path).segments() == [segment(0)], "it can be looked at"
    finally:
        here.send("enough")
        child.join()
    OpenManifest(path).close()


def test_no_lock_is_left_by_one_that_cannot_be_opened(tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_text("no\n")
    with pytest.raises(UsageError):
        OpenManifest(path)
    path.write_text("")
    OpenManifest(path).close()


def test_a_line_that_does_not_come_to_disk_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    made = begun(tmp_path / "m", 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output error"):
                made.add(segment(1))
            assert made.segments() == Manifest(tmp_path / "m").segments() == [segment(0)]
    made.add(segment(1))
    assert made.segments() == Manifest(tmp_path / "m").segments() == [segment(0), segment(1)]
    made.close()


def test_a_full_disk_takes_a_line_as_a_whole_or_not(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        made = begun(disk / "m", 1)
        fill_disk(disk / "ballast")
        n = 1
        while len(json.dumps(asdict(segment(n)))) + 1 <= -(disk / "m").stat().st_size % PAGE:
            made.add(segment(n))
            n += 1
        with pytest.raises(OSError, match="No space left on device"):
            made.add(segment(n))
        assert made.segments() == Manifest(disk / "m").segments() == [segment(k) for k in range(n)]
        (disk / "ballast").unlink()
        made.add(segment(n))
        assert Manifest(disk / "m").segments() == [segment(k) for k in range(n + 1)]
        made.close()


def test_a_line_is_on_disk_when_it_was_entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = begun(tmp_path / "m")
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    for enter in (lambda: made.add(segment(0)), lambda: made.go_on("second", 17), made.end):
        enter()
        assert synced.pop() == made.path.stat().st_size
    made.close()


# --- What is counted ---


def test_events_and_errors_are_counted_by_lumisection(tmp_path: Path) -> None:
    tally = Tally(Stripes())
    blocks = [
        block(8, [(1, 5)] * 2 + [(1, 6)] * 2, bad=(0, 3)),
        block(0, [(2, 1)] * 3 + [(1, 5)], bad=(3,)),
        block(4, [(1, 6), (1, 5), (1, 6), (3, 1)]),
        block(20, [(1, 6)], bad=(0,)),
    ]
    assert list(tally.count(blocks)) == blocks, "they pass"
    (tmp_path / "scores.root").write_bytes(b"12345")
    assert tally.segment(tmp_path / "scores.root", "cafe") == Segment(
        file="scores.root",
        events=13,
        errors=4,
        ids=[[0, 11], [20, 20]],
        lumis=[[1, 5, 4, 2], [1, 6, 5, 2], [2, 1, 3, 0], [3, 1, 1, 0]],
        bytes=5,
        sha256="cafe",
    )


def test_what_was_counted_can_be_entered_and_read_back(tmp_path: Path) -> None:
    tally = Tally(Stripes())
    list(tally.count([block(3, [(1, 2), (4_000_000_000, 3)], bad=(1,))]))
    (tmp_path / "scores.root").write_bytes(b"")
    counted = tally.segment(tmp_path / "scores.root", "")
    made = begun(tmp_path / "m")
    made.add(counted)
    made.close()
    assert Manifest(tmp_path / "m").segments() == [counted]


def test_what_was_shed_or_late_is_counted_apart(tmp_path: Path) -> None:
    tally = Tally(Stripes(), 0.1)
    for made in (block(0, [(1, 2)] * 4 + [(1, 3)], bad=(1,)), block(5, [(1, 3)] * 2)):
        made.columns["error"][-1] = SHED + 4 if made.id else SHED + 2
        made.columns["fedTime"] = np.arange(made.n_events) * 10**7
        made.stamps["writer"] = 115_000_000  # the first two of each are late
        list(tally.count([made]))
    (tmp_path / "scores.root").write_bytes(b"")
    counted = tally.segment(tmp_path / "scores.root", "")
    assert (counted.events, counted.errors) == (7, 1)
    assert counted.lumis == [[1, 2, 4, 1], [1, 3, 3, 0]]
    assert counted.shed == [[1, 3, "framer", 1], [1, 3, "tagger", 1]]
    assert counted.late == [[1, 2, 1], [1, 3, 1]], "neither what failed nor what was shed"


def test_one_of_several_writers_counts_its_own_events(tmp_path: Path) -> None:
    tally = Tally(Stripes(2, 4))  # the events 4 to 7, 12 to 15 ... are this writer's
    list(tally.count([block(12, [(1, 1)] * 3), block(4, [(1, 1)] * 4)]))
    (tmp_path / "scores-1.root").write_bytes(b"")
    assert tally.segment(tmp_path / "scores-1.root", "").ids == [[0, 6]]


def test_no_events_make_an_empty_line(tmp_path: Path) -> None:
    (tmp_path / "scores.root").write_bytes(b"")
    empty = Tally(Stripes()).segment(tmp_path / "scores.root", "")
    assert (empty.events, empty.errors, empty.ids, empty.lumis) == (0, 0, [], [])
