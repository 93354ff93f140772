"""The journal: results as they come, safe on disk before they are acknowledged.

A file of records, each `<length u32> <crc32 u32> <payload>`; the first payload is a msgpack map that says what the
journal is, every other one the frames of a block (`streamer.block.encode`) as a msgpack list. A torn last record is
not part of the journal. While a process writes a journal it holds a lock on it.
"""

import asyncio
import fcntl
import os
import struct
import zlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiofiles
import msgpack
import numpy as np

from streamer.block import MAGIC, Block, Columns, Schema, decode, encode
from streamer.errors import StreamerError, UsageError

_PREFIX = struct.Struct("<II")
_RUN = "journal"
FORMAT = "streamer journal 1"


def _record(payload: bytes) -> bytes:
    return _PREFIX.pack(len(payload), zlib.crc32(payload)) + payload


class Journal:
    """A journal that is being written.

    Parameters
    ----------
    path : Path
        Must not exist.
    about : dict
        What `read_about` gives back.

    Raises
    ------
    UsageError
        The file cannot be made, or another process writes it.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self.n_events = 0
        self._ids, self._places = array("q"), array("q")  # of each block, and where its record begins
        self._fresh = [_record(msgpack.packb({"format": FORMAT, **about}))]
        self._end = len(self._fresh[0])
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"{path}: cannot be written ({error.strerror}); choose another --output") from None

    def add(self, block: Block) -> None:
        """Take a block; it is on disk after the next `sync`."""
        payload = msgpack.packb([bytes(frame) for frame in encode(block, _RUN)])
        record = _record(payload)
        self._ids.append(block.id)
        self._places.append(self._end)
        self._fresh.append(record)
        self._end += len(record)
        self.n_events += block.n_events

    async def sync(self) -> None:
        """Write and fsync what was added.

        Raises
        ------
        StreamerError
            When the disk does not take it; nothing of it may be acknowledged then.
        """
        fresh, self._fresh = self._fresh, []
        if not fresh:
            return
        try:
            async with aiofiles.open(self.path, "ab") as file:
                await file.write(b"".join(fresh))
                await file.flush()
                await asyncio.to_thread(os.fsync, file.fileno())
        except OSError as error:
            raise StreamerError(
                f"{self.path}: results cannot be written ({error.strerror}); what was committed before is safe; "
                f"make room and run: streamer finish {self.path.parent}"
            ) from None

    def close(self) -> None:
        os.close(self._fd)

    def blocks(self, schema: Schema) -> Iterator[Block]:
        """What was written, in the order of the block ids."""
        return _blocks(self.path, self._ids, self._places, schema)


def read_about(path: Path) -> dict[str, Any]:
    """What a journal says about itself.

    Raises
    ------
    UsageError
        It is not a journal.
    """
    try:
        with path.open("rb") as file:
            first = _read(file, 0)
        about = msgpack.unpackb(first) if first is not None else {}
    except (OSError, ValueError, msgpack.UnpackException) as error:
        raise UsageError(f"{path}: not a readable journal ({error})") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise UsageError(f"{path}: not a journal of this version of streamer")
    return about


def recover(path: Path, schema: Schema, damaged: Callable[[str], None]) -> Iterator[Block]:
    """The blocks of a journal that was left behind, in the order of their ids.

    A torn last record is what a run leaves that breaks off, and is left out. Anything else that is not whole is left
    out too and told to `damaged`.
    """
    ids, places = array("q"), array("q")
    size = path.stat().st_size
    with path.open("rb") as file:
        place = 0
        while place + _PREFIX.size <= size:
            file.seek(place)
            length = _PREFIX.unpack(file.read(_PREFIX.size))[0]
            end = place + _PREFIX.size + length
            if not length or end > size:
                # Within a torn record there is no second block.
                if file.read().count(MAGIC) > 1:
                    damaged(f"{path}: damaged at byte {place}; {size - place} bytes from there on are left out")
                break
            if place:
                try:
                    ids.append(decode(msgpack.unpackb(_read(file, place) or b""), _RUN, schema).id)
                    places.append(place)
                except (ValueError, TypeError, LookupError, msgpack.UnpackException):
                    damaged(f"{path}: the block at byte {place} ({length} bytes) is damaged and left out")
            place = end
    return _blocks(path, ids, places, schema)


def in_use(path: Path) -> bool:
    """Whether a running process writes this journal."""
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


def _blocks(path: Path, ids: "array[int]", places: "array[int]", schema: Schema) -> Iterator[Block]:
    """The blocks at these places of a journal, in the order of their ids."""
    with path.open("rb") as file:
        for i in np.argsort(np.array(ids)):
            payload = _read(file, places[i])
            if payload is None:
                raise StreamerError(f"{path}: block {ids[i]} cannot be read back; is the disk failing?")
            yield decode(msgpack.unpackb(payload), _RUN, schema)


def _read(file: Any, place: int) -> bytes | None:
    """The payload of the record at `place`; None where none is whole."""
    file.seek(place)
    prefix = file.read(_PREFIX.size)
    if len(prefix) < _PREFIX.size:
        return None
    length, checksum = _PREFIX.unpack(prefix)
    payload: bytes = file.read(length)
    return payload if len(payload) == length and zlib.crc32(payload) == checksum else None


def steps(blocks: Iterator[Block], schema: Schema, n_events: int) -> Iterator[Columns]:
    """The columns of blocks, joined to steps of about `n_events`."""
    waiting: list[Columns] = []
    n = 0
    for block in blocks:
        waiting.append({name: block.columns[name] for name in schema.by_name})
        n += block.n_events
        if n >= n_events:
            yield _join(waiting)
            waiting, n = [], 0
    if waiting:
        yield _join(waiting)


def _join(parts: list[Columns]) -> Columns:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
