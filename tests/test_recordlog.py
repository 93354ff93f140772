"""The log: what was synced is there, once and whole, however its writer or its disk ended."""

import asyncio
import errno
import fcntl
import multiprocessing
import os
import threading
import zlib
from pathlib import Path
from typing import Any

import msgpack
import pytest
from physics_helpers import fill_disk, small_disk

from streamer.errors import UsageError
from streamer.recordlog import _PREFIX, Log, in_use, read_about, read_record, scan

MARK = b"MARK"
ABOUT = {"format": "toy log", "n": 1}
RECORDS = [MARK + b"one", MARK + b"two" * 50, MARK, MARK + bytes(range(256))]


class Made:
    """A log, and what was told of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.told: list[str] = []
        self.log = Log(path, ABOUT, MARK, self.told.append)
        self.places = list(self.log.places)

    def add(self, *payloads: bytes) -> None:
        self.places += [self.log.add(payload) for payload in payloads]


def payloads(path: Path) -> list[bytes | None]:
    """What a reader finds, None for what is not whole."""
    places, _ = scan(path, MARK, lambda line: None)
    with path.open("rb") as file:
        return [read_record(file, place) for place in places]


async def written(path: Path, records: list[bytes]) -> list[int]:
    """A closed log of these; returns where each begins, and the end."""
    made = Made(path)
    made.add(*records)
    await made.log.sync()
    made.log.close()
    return [*made.places, path.stat().st_size]


def failing_fsync(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """The next calls of fsync fail, after what was written has reached the file."""
    true_fsync, left = os.fsync, [times]

    def fsync(descriptor: int) -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, "Input/output error")
        true_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


async def test_records_come_back(tmp_path: Path) -> None:
    places = await written(tmp_path / "log", RECORDS)
    assert payloads(tmp_path / "log") == RECORDS
    found, end = scan(tmp_path / "log", MARK, print)
    assert [*found, end] == places
    assert read_about(tmp_path / "log", "toy log") == ABOUT


async def test_only_what_was_synced_is_there(tmp_path: Path) -> None:
    made = Made(tmp_path / "log")
    assert made.path.stat().st_size == 0
    made.add(RECORDS[0])
    await made.log.sync()
    made.add(RECORDS[1])
    assert payloads(made.path) == RECORDS[:1]
    await made.log.sync()
    await made.log.sync()
    assert payloads(made.path) == RECORDS[:2]
    made.add(RECORDS[2])
    made.log.close()
    assert payloads(made.path) == RECORDS[:2]


async def test_a_log_goes_on_where_it_ended(tmp_path: Path) -> None:
    places = await written(tmp_path / "log", RECORDS[:2])
    made = Made(tmp_path / "log")
    assert list(made.places) == places[:2]
    made.add(RECORDS[2])
    await made.log.sync()
    assert list(made.places) == places
    assert payloads(made.path) == RECORDS[:3]
    assert read_about(made.path, "toy log") == ABOUT
    made.log.close()
    assert made.told == []


async def test_a_torn_end_is_cut_off_wherever_it_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "log"
    places = await written(path, RECORDS)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        n = sum(end <= size for end in places[1:])
        assert payloads(path) == RECORDS[:n], f"{size} of {len(whole)} bytes"
        made = Made(path)
        assert path.stat().st_size == (places[n] if size >= places[0] else 0)
        made.add(b"new" + MARK)
        await made.log.sync()
        made.log.close()
        assert payloads(path) == [*RECORDS[:n], b"new" + MARK], f"{size} of {len(whole)} bytes"
        assert read_about(path, "toy log") == ABOUT
        assert made.told == []


async def test_zeros_at_the_end_are_nothing(tmp_path: Path) -> None:
    *_, end = await written(tmp_path / "log", RECORDS)
    with (tmp_path / "log").open("ab") as file:
        file.write(bytes(4096))
    made = Made(tmp_path / "log")
    made.log.close()
    assert made.told == []
    assert made.path.stat().st_size == end
    assert payloads(made.path) == RECORDS


async def test_a_length_that_swallows_other_records_is_told(tmp_path: Path) -> None:
    path = tmp_path / "log"
    _, second, *_, end = await written(path, RECORDS)
    data = bytearray(path.read_bytes())
    data[second + 3] ^= 0x40  # the length of the second record becomes huge
    path.write_bytes(data)
    made = Made(path)
    made.log.close()
    assert made.told == [f"{path}: damaged at byte {second}; {end - second} bytes from there on are left out"]
    assert payloads(path) == RECORDS[:1]


async def test_a_flipped_byte_costs_its_record(tmp_path: Path) -> None:
    path = tmp_path / "log"
    first, second, *_ = await written(path, RECORDS)
    data = bytearray(path.read_bytes())
    for place in range(first + 4, second):  # the checksum and the payload
        data[place] ^= 0x10
        path.write_bytes(data)
        assert payloads(path) == [None, *RECORDS[1:]], f"byte {place}"
        data[place] ^= 0x10


def write_elsewhere(path: Path, said: Any) -> None:
    """Hold a log until told to let go."""
    log = Log(path, ABOUT, MARK, print)
    said.send("open")
    said.recv()
    log.close()


def test_nobody_else_can_write_it_meanwhile(tmp_path: Path) -> None:
    path = tmp_path / "log"
    here, there = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(target=write_elsewhere, args=(path, there))
    assert not in_use(path)
    child.start()
    assert here.recv() == "open"
    try:
        assert in_use(path)
        assert in_use(path), "asking does not take it"
        with pytest.raises(BlockingIOError):
            Made(path)
    finally:
        here.send("enough")
        child.join()
    assert not in_use(path)
    Made(path).log.close()


def test_a_lock_that_is_soon_let_go_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.touch()
    asking = os.open(path, os.O_RDONLY)
    fcntl.flock(asking, fcntl.LOCK_SH)
    letting_go = threading.Timer(0.1, os.close, [asking])
    letting_go.start()
    Made(path).log.close()
    letting_go.join()


async def test_a_second_opener_does_no_harm_to_what_is_being_written(tmp_path: Path) -> None:
    made = Made(tmp_path / "log")
    made.add(RECORDS[0])
    await made.log.sync()
    with pytest.raises(BlockingIOError):
        Made(made.path)
    made.add(RECORDS[1])
    await made.log.sync()
    made.log.close()
    assert payloads(made.path) == RECORDS[:2]
    assert not in_use(made.path)


def test_no_lock_is_left_when_it_cannot_be_made(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Made(tmp_path / "no/log")
    assert not in_use(tmp_path / "no/log")


@pytest.mark.parametrize("times", [1, 3])
async def test_what_fsync_refuses_is_cut_back_and_written_once_by_the_next_sync(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    made = Made(tmp_path / "log")
    made.add(RECORDS[0])
    await made.log.sync()
    safe = made.path.read_bytes()
    failing_fsync(monkeypatch, times)
    made.add(*RECORDS[1:3])
    for _ in range(times):
        with pytest.raises(OSError, match="Input/output error"):
            await made.log.sync()
        assert made.path.read_bytes() == safe
    made.add(RECORDS[3])
    await made.log.sync()
    assert payloads(made.path) == RECORDS
    with made.path.open("rb") as file:
        assert [read_record(file, place) for place in made.places] == RECORDS
    made.log.close()


async def test_the_very_first_sync_can_fail_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path / "log")
    made.add(*RECORDS)
    failing_fsync(monkeypatch, 1)
    with pytest.raises(OSError, match="Input/output error"):
        await made.log.sync()
    assert made.path.stat().st_size == 0
    await made.log.sync()
    assert read_about(made.path, "toy log") == ABOUT
    assert payloads(made.path) == RECORDS
    made.log.close()


async def test_a_full_disk_takes_all_of_it_or_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        made = Made(disk / "log")
        made.add(RECORDS[0])
        await made.log.sync()
        safe = made.path.read_bytes()
        fill_disk(disk / "ballast")
        long = MARK + bytes(100_000)
        made.add(long)
        for _ in range(2):
            with pytest.raises(OSError, match="No space left on device"):
                await made.log.sync()
            with pytest.raises(OSError, match="No space left on device"):
                made.log.write()
            assert made.path.read_bytes() == safe
        (disk / "ballast").unlink()
        await made.log.sync()
        assert payloads(made.path) == [RECORDS[0], long]
        made.log.close()


async def test_what_comes_during_a_sync_is_left_for_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path / "log")
    loop, true_fsync = asyncio.get_running_loop(), os.fsync

    def fsync(descriptor: int) -> None:
        asyncio.run_coroutine_threadsafe(asyncio.to_thread(made.add, RECORDS[1]), loop).result()
        true_fsync(descriptor)

    made.add(RECORDS[0])
    monkeypatch.setattr(os, "fsync", fsync)
    await made.log.sync()
    monkeypatch.setattr(os, "fsync", true_fsync)
    assert payloads(made.path) == RECORDS[:1]
    await made.log.sync()
    assert payloads(made.path) == RECORDS[:2]
    made.log.close()


def test_write_needs_no_loop_and_outlives_the_process(tmp_path: Path) -> None:
    made = Made(tmp_path / "log")
    made.add(RECORDS[0])
    made.log.write()
    assert payloads(made.path) == RECORDS[:1]
    made.log.write()
    made.add(*RECORDS[1:])
    made.log.write()
    assert payloads(made.path) == RECORDS
    made.log.close()


async def test_flush_brings_to_disk_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Made(tmp_path / "log")
    made.add(RECORDS[0])
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    made.log.write()
    assert synced == []
    await made.log.flush()
    assert synced == [made.path.stat().st_size]
    made.log.close()


def test_what_a_predecessor_wrote_is_on_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = Made(tmp_path / "log")
    before.add(RECORDS[0])
    before.log.write()
    before.log.close()
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    Made(tmp_path / "log").log.close()
    assert synced == [before.path.stat().st_size]


def test_the_name_of_a_new_log_is_on_disk_before_it_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_ino))
    folder = tmp_path / "books"
    folder.mkdir()
    Made(folder / "log").log.close()
    assert {path.stat().st_ino for path in (folder, tmp_path)} <= set(synced)


def record(payload: bytes) -> bytes:
    """A record as a log holds it."""
    return _PREFIX.pack(len(payload), zlib.crc32(payload)) + payload


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        bytes(100),
        record(msgpack.packb({"format": "something else"})),
        record(msgpack.packb([1, 2])),
        record(b"\xc1\xc1"),
        record(msgpack.packb(ABOUT))[:-1],
        bytes(range(1, 256)),
    ],
)
def test_what_is_no_such_log_is_told(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"not a (readable )?toy log") as error:
        read_about(path, "toy log")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"root" + bytes(range(200)), b"x" * 9, b"\x03\x00\x00\x00\x00\x00\x00\x00{}\n"])
def test_a_foreign_file_is_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    with pytest.raises(UsageError, match="not a toy log"):
        Made(path)
    assert path.read_bytes() == content


@pytest.mark.parametrize("n", range(len(msgpack.packb(ABOUT)) + 8))
async def test_a_log_that_was_hardly_begun_is_begun_again(tmp_path: Path, n: int) -> None:
    path = tmp_path / "log"
    await written(path, [])
    whole = path.read_bytes()
    for left in (whole[:n], whole[:n] + bytes(len(whole) - n)):
        path.write_bytes(left)
        await written(path, RECORDS[:1])
        assert payloads(path) == RECORDS[:1]
        assert read_about(path, "toy log") == ABOUT


def test_what_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory"):
        read_about(tmp_path / "log", "toy log")
