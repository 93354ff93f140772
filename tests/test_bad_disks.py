"""Disks that are full, turn read-only or die while a run writes there: real disks, real processes, real kills.

A tmpfs cannot be made read-only while a process writes there ("busy"). So that is tried with an ext4 in a file, which
turns read-only when it finds itself damaged, and whose device dies when that file becomes immutable: fsync fails then.
(A device whose storage is full would be of no use: Linux's loop driver takes a half-written request for a whole one.)
"""

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from physics_helpers import Process, Processes, assert_end, call, fill_disk, small_disk, sum_model, wait_until
from recovery_helpers import assert_whole, numbers_on_disk, write_numbered

from stages import records
from stages.config import Config
from stages.manifest import OpenManifest
from streamer.journal import recover
from streamer.recordlog import Log

N_EVENTS = 10_000


def tool(*command: object) -> str:
    """Run a program; skips the test where it is missing or may not do that."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no disk can be made here: {error} {getattr(error, 'stderr', '')}")
    return done.stdout.strip()


class Ext4:
    """An ext4 of 5 MB in a file, at `path`."""

    def __init__(self, folder: Path) -> None:
        self.path, self._image = folder / "disk", folder / "image"

    def __enter__(self) -> "Ext4":
        self.path.mkdir()
        with self._image.open("wb") as file:
            file.truncate(5 << 20)
        tool("mkfs.ext4", "-q", "-b", "1024", self._image)
        self._mount()
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", self.path], check=False)
        subprocess.run(["chattr", "-i", self._image], check=False)

    def _mount(self) -> None:
        tool("mount", "-o", "loop,errors=remount-ro", self._image, self.path)

    def turn_read_only(self) -> None:
        device = Path(tool("findmnt", "-n", "-o", "SOURCE", self.path)).name
        trigger = Path("/sys/fs/ext4") / device / "trigger_fs_error"
        if not trigger.exists():
            pytest.skip("an ext4 cannot be made to find itself damaged here")
        trigger.write_text("made by a test")

    def die(self) -> None:
        """Nothing that is written comes to disk any more."""
        tool("chattr", "+i", self._image)

    def revive(self) -> None:
        tool("chattr", "-i", self._image)

    def repair(self) -> None:
        """What is there now was on the disk: nothing is kept of what the kernel remembers."""
        self.revive()
        # The last threads of a process that was killed hold its files for a moment.
        wait_until(lambda: not subprocess.run(["umount", self.path], capture_output=True).returncode, "its last user")
        self._mount()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_numbered(tmp_path_factory.mktemp("bad-disks"))


@pytest.fixture
def streamer(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as made:
        yield made


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs that a file `ballast` fills up."""
    with small_disk(tmp_path / "disk", "5m") as disk:
        yield disk


@pytest.fixture
def ext4(tmp_path: Path) -> Iterator[Ext4]:
    with Ext4(tmp_path) as made:
        yield made


@pytest.fixture
def start(streamer: Processes, inputs: list[Path], tmp_path: Path) -> Any:
    """Starts a run that is slow enough to break its disk in the middle."""
    model = sum_model(tmp_path / "sum.onnx")

    def begun(out: Path, *settings: str, patience: float = 60) -> Process:
        # Small blocks have many lines in the books, also when a feed that has waited catches up.
        more = ["feed.block_events=8", f"writer.disk_patience={patience}", *settings]
        return streamer("run", *inputs, "--output", out, "--tagger", f"eg={model}", "--loop", "--events", N_EVENTS,
                        "--rate", 2000, *(word for setting in more for word in ("--set", setting)))  # fmt: skip

    return begun


@pytest.fixture
def resume(streamer: Processes) -> Any:
    """Goes on with a run: slowly again, or to its end as fast as it can."""

    def begun(out: Path, rate: int = 0) -> Process:
        size = 8 if rate else 256
        feed = f"fixed {rate}" if rate else "max"
        return streamer("run", "--resume", out, "--feed", feed, "--set", "writer.disk_patience=60",
                        "--set", f"feed.block_events={size}")  # fmt: skip

    return begun


def wait_for_log(process: Process, text: str, times: int = 1) -> None:
    def told() -> bool:
        assert process.popen.poll() is None, process.err
        return process.err.count(text) >= times

    wait_until(told, f"{text!r} {times} times in the log")


def kill_all(process: Process) -> None:
    """Kill -9 for all of a run."""
    family = process.children()
    for one in (psutil.Process(process.popen.pid), *family):
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.wait()
    assert_end(family)


def n_acknowledged(process: Process) -> int:
    """Blocks of which the reader was told that they are on disk, once there are any."""

    def told() -> int:
        found = process.metrics("reader-0")
        return int(found["streamer_blocks_total"] - found["streamer_blocks_in_flight"]) if found else 0

    return int(wait_until(told, "a commit"))


def n_on_disk(out: Path) -> int:
    """Blocks that a fresh reading of the journals finds whole."""
    schema = records.scores(Config())
    damage: list[str] = []
    return sum(1 for path in (out / "books").glob("*.journal") for _ in recover(path, schema, damage.append))


def finish(out: Path) -> None:
    """Make files of what is there: each event once, none left out."""
    assert call("finish", out)[0] == 0
    numbers = numbers_on_disk(out)
    assert numbers == [*range(len(numbers))]


def complaint(process: Process, code: int = 1) -> str:
    """The one line of a run that has stopped."""
    process.check(code)
    (line,) = process.complaints
    assert "Traceback" not in process.err
    return line


def killed_in_fsync(path: Path, ext4: Ext4) -> None:
    """Double a file by what the kernel takes for written after a failed fsync, and that is not on the disk."""
    with path.open("r+b", buffering=0) as file:
        data = file.read()
        file.write(data)
        ext4.die()
        with pytest.raises(OSError, match="Input/output error"):
            os.fsync(file)
        ext4.revive()
        os.fsync(file)
    assert path.read_bytes() == 2 * data


async def test_what_only_the_page_cache_has_counts_for_nothing(ext4: Ext4) -> None:
    path = ext4.path / "log"
    log = Log(path, {"format": "toy log"}, b"MARK", pytest.fail)
    log.add(b"MARK" + bytes(2000))
    await log.sync()
    log.close()
    killed_in_fsync(path, ext4)
    log = Log(path, {"format": "toy log"}, b"MARK", pytest.fail)
    assert len(log.places) == 1
    log.close()

    path = ext4.path / "manifest"
    manifest = OpenManifest(path)
    manifest.begin({"run": "first", "config": "x" * 2000})
    manifest.close()
    killed_in_fsync(path, ext4)
    manifest = OpenManifest(path)
    assert (manifest.size, manifest.path.stat().st_size) == (path.stat().st_size, manifest.size)
    manifest.close()


def test_on_a_full_disk_the_feed_waits_and_goes_on_when_there_is_room(full: Path, start: Any, resume: Any) -> None:
    out, ballast = full / "out", full / "ballast"
    run = start(out)
    run.wait_for_events(500)
    for time in (1, 2):
        fill_disk(ballast)
        wait_for_log(run, "writer-0.000000.journal: results cannot be written (No space left on device)", time)
        wait_for_log(run, "reader-0.fed: the book of fed events cannot be written (No space left on device)", time)
        fed = run.metrics("reader-0")["streamer_events_total/ok"]
        assert n_acknowledged(run) <= n_on_disk(out)
        assert run.metrics("reader-0")["streamer_events_total/ok"] == fed < N_EVENTS
        if time == 1:
            ballast.unlink()
            wait_for_log(run, "the disk takes it again; the stream goes on", 2)
            run.wait_for_events(int(fed) + 500)
    kill_all(run)
    ballast.unlink()
    resume(out).check()
    assert_whole(out, N_EVENTS, 1)


def test_a_disk_that_turns_read_only_or_dies_costs_nothing_that_was_acknowledged(
    ext4: Ext4, start: Any, resume: Any
) -> None:
    out = ext4.path / "out"
    run = start(out, patience=0.5)
    run.wait_for_events(500)
    n = n_acknowledged(run)
    ext4.turn_read_only()
    line = complaint(run)
    assert "cannot be written (Read-only file system)" in line
    assert f": {out}/books/" in line
    assert "make it writable" in line
    assert f"streamer run --resume {out}" in line
    ext4.repair()
    assert n <= n_on_disk(out)

    run = resume(out, rate=2000)
    run.wait_for_events(500)
    ext4.die()
    # The first write to fail gets an input/output error, whoever's it is; later ones may find the disk read-only.
    wait_for_log(run, "writer-0.000000.journal: results cannot be written (")
    n = n_acknowledged(run)
    kill_all(run)
    ext4.repair()
    assert n <= n_on_disk(out)
    resume(out).check()
    assert_whole(out, N_EVENTS)


@pytest.mark.long
def test_a_full_disk_under_the_files_or_the_readers_book_alone(full: Path, start: Any, tmp_path: Path) -> None:
    out, ballast = full / "out", full / "ballast"
    out.mkdir()
    (tmp_path / "books").mkdir()
    (out / "books").symlink_to(tmp_path / "books")
    with small_disk(tmp_path / "other", "64k") as other:
        (tmp_path / "books/reader-0.fed").symlink_to(other / "book")
        run = start(out, "writer.segment_events=1000", patience=3)
        run.wait_for_events(500)
        fill_disk(ballast)
        wait_for_log(run, f"{out}/scores.root: results cannot be written (No space left on device)")
        run.wait_for_events(1500)
        assert n_acknowledged(run) <= n_on_disk(out)
        assert sorted(path.name for path in out.iterdir()) == ["books"], "a part of a file takes no room"
        ballast.unlink()
        wait_for_log(run, "the stream goes on")
        wait_until((out / "scores.root").exists, "the file")

        waits = f"{out}/books/reader-0.fed: the book of fed events cannot be written (No space left on device)"
        for time in (1, 2):
            fill_disk(other / "ballast")
            wait_for_log(run, waits, time)
            if time == 1:
                (other / "ballast").unlink()
                wait_for_log(run, "the stream goes on", 2)
        line = complaint(run)
        assert line.startswith(f"reader-0: {waits}; make room; ")
        assert line.endswith(f"go on with: streamer run --resume {out}")
        finish(out)
