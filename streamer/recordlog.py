"""An append-only file of records that survives whatever ends its writer.

Each record is `<length u32> <crc32 u32> <payload>`; the first payload is a msgpack map that says what the file is. A
torn last record, which is what a crash leaves, is not part of the file and is cut off when it is opened again. While
a process writes a log it holds a lock on it.
"""

import asyncio
import fcntl
import os
import struct
import time
import zlib
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import aiofiles.os
import msgpack

from streamer.disk import Tail, settle, sync_folder
from streamer.errors import UsageError

LOCK_PATIENCE_S = 1.0
"""A lock that is taken is tried for so long: its holder may be just dying, or only ask whether it is `in_use`."""

_PREFIX = struct.Struct("<II")

Damaged = Callable[[str], None]
"""Told, in one line, of what is not whole and not just the torn end."""


class Log:
    """A log that is being written.

    Parameters
    ----------
    path : Path
        Made when it is not there; else its torn end is cut off, and new records stand behind the old ones.
    about : dict
        What `read_about` gives back, its `format` first; used when the file is made.
    mark : bytes
        Stands in every record: a tail with more than one of them is damage, and no torn record.
    damaged : callable

    Attributes
    ----------
    places : array of int
        Where each record begins that was there before, but for the first.

    Raises
    ------
    OSError
        The file cannot be made, or (`BlockingIOError`) another process writes it.
    UsageError
        The file is of another kind; it is left as it is.
    """

    def __init__(self, path: Path, about: dict[str, Any], mark: bytes, damaged: Damaged) -> None:
        self.path = path
        self._fresh: list[bytes] = []  # not written yet
        self._loose: list[bytes] = []  # written, and perhaps not on disk yet
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            lock(self._fd)
            settle(self._fd)
            self.places, self._end = scan(path, mark, damaged)
            try:
                read_about(path, about["format"])
            except UsageError:
                if self.places or not _hardly_begun(path, about):
                    raise
                self._end = 0
            os.ftruncate(self._fd, self._end)
            if not self._end:  # a file's fsync does not promise that its name, and its folder's, are on disk
                for folder in path.absolute().parents[:2]:
                    sync_folder(folder)
        except BaseException:
            os.close(self._fd)
            raise
        self._tail, self._flushed = Tail(self._fd, self._end), self._end
        self._put = aiofiles.os.wrap(self._tail.put)
        self._flushing = asyncio.Lock()
        if not self._end:
            self.add(msgpack.packb(about))

    def add(self, payload: bytes) -> int:
        """Take a record, which is on disk after the next `sync`; returns where it begins."""
        place = self._end
        self._fresh.append(_PREFIX.pack(len(payload), zlib.crc32(payload)) + payload)
        self._end += len(self._fresh[-1])
        return place

    def take_back(self, n: int) -> None:
        """Forget the last `n` records that were added; they must not have been written."""
        for _ in range(n):
            self._end -= len(self._fresh.pop())

    async def sync(self) -> None:
        """Write and fsync what was added.

        When the disk does not take it, the file is cut back to what was safe, pages that failed included, so that the
        same records can be tried again.

        Raises
        ------
        OSError
            Nothing of what was added may be acknowledged.
        """
        n = len(self._fresh)
        if n:
            await self._put(b"".join(self._fresh), sync=True)
            del self._fresh[:n]
            self._flushed = self._tail.size

    def write(self) -> None:
        """Hand what was added to the operating system at once: it outlives this process, if not the machine.

        Raises
        ------
        OSError
            Nothing of what was added counts; it can be tried again.
        """
        if self._fresh:
            self._tail.put(b"".join(self._fresh), sync=False)
            self._loose += self._fresh
            self._fresh = []

    async def flush(self) -> None:
        """Bring what was written to disk.

        Raises
        ------
        OSError
            What was written since the last time is no longer there; the next `write` writes it again.
        """
        async with self._flushing:
            n, end = len(self._loose), self._tail.size
            try:
                await asyncio.to_thread(os.fsync, self._fd)
            except OSError:
                self._fresh, self._loose = self._loose + self._fresh, []
                self._tail.cut_back(self._flushed)
                raise
            del self._loose[:n]
            self._flushed = end

    def close(self) -> None:
        os.close(self._fd)


def scan(path: Path, mark: bytes, damaged: Damaged) -> tuple["array[int]", int]:
    """Where the records behind the first begin, and where the last whole one ends."""
    places, place, size = array("q"), 0, path.stat().st_size
    with path.open("rb") as file:
        while place + _PREFIX.size <= size:
            file.seek(place)
            length = _PREFIX.unpack(file.read(_PREFIX.size))[0]
            end = place + _PREFIX.size + length
            if not length or end > size:
                # Within a torn record there is no second one.
                if file.read().count(mark) > 1:
                    damaged(f"{path}: damaged at byte {place}; {size - place} bytes from there on are left out")
                break
            if place:
                places.append(place)
            place = end
    return places, place


def read_record(file: BinaryIO, place: int) -> bytes | None:
    """The payload of the record at `place`; None where none is whole."""
    file.seek(place)
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        return None
    length, checksum = _PREFIX.unpack(prefix)
    payload: bytes = file.read(length)
    return payload if len(payload) == length and zlib.crc32(payload) == checksum else None


def read_about(path: Path, kind: str) -> dict[str, Any]:
    """What a log says about itself; its `format` must be `kind`.

    Raises
    ------
    UsageError
        It is not such a file.
    """
    try:
        with path.open("rb") as file:
            first = read_record(file, 0)
        about = msgpack.unpackb(first) if first is not None else {}
    except (OSError, ValueError, msgpack.UnpackException) as error:
        raise UsageError(f"{path}: not a readable {kind} ({error})") from None
    if not isinstance(about, dict) or about.get("format") != kind:
        raise UsageError(f"{path}: not a {kind} of this version of streamer")
    return about


def _hardly_begun(path: Path, about: dict[str, Any]) -> bool:
    """Whether a file without records is what a crash leaves of its first one: its beginning, nothing, or zeros."""
    with path.open("rb") as file:
        found: bytes = file.read(_PREFIX.size + 64)[_PREFIX.size :].rstrip(b"\0")
    head: bytes = msgpack.packb(about)[: len(msgpack.packb({"format": about["format"]}))]
    return found[: len(head)] == head[: len(found)]


def lock(descriptor: int) -> None:
    """Be the one process that writes a file, until it is closed.

    Raises
    ------
    BlockingIOError
        Another process is.
    """
    deadline = time.monotonic() + LOCK_PATIENCE_S
    while True:
        try:
            return fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
        time.sleep(0.01)


def in_use(path: Path) -> bool:
    """Whether a running process writes this log."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
