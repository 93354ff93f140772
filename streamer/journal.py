"""Journal: results as they come, safe on disk before they are acknowledged.

A `Log` whose records are the frames of a block (`streamer.block.encode`) as a msgpack list.
"""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from streamer.block import MAGIC, Block, Columns, Schema, decode, encode
from streamer.errors import StreamerError
from streamer.recordlog import Damaged, Log, read_about, read_record, scan

_RUN = "journal"
FORMAT = "streamer journal 3"


@dataclass(frozen=True)
class Written:
    """Blocks of a journal that are on disk: the first event of each, and its place in the file."""

    path: Path
    ids: Sequence[int]
    places: Sequence[int]
    schema: Schema

    def blocks(self) -> Iterator[Block]:
        """In the order of the events.

        Raises
        ------
        StreamerError
            One cannot be read back.
        """
        return _blocks(self.path, self.ids, self.places, self.schema)


class Journal:
    """A journal that is being written, by one process: a new one, or the one that its predecessor left.

    Parameters
    ----------
    about : dict
        What `about` gives back later.
    damaged : callable
        Told of blocks that are not whole; they are left out.

    Attributes
    ----------
    ids, sizes, places : array of int
        The first event of each block, how many it has, and where it stands in the file.

    Raises
    ------
    OSError
        The file cannot be made, or (`BlockingIOError`) another process writes it.
    """

    def __init__(self, path: Path, about: dict[str, Any], schema: Schema, damaged: Damaged) -> None:
        self.path, self.schema = path, schema
        self._log = Log(path, {"format": FORMAT, **about}, MAGIC, damaged)
        self.ids, self.sizes, self.places = _whole(path, self._log.places, schema, damaged)
        self._names, self._dtypes = list(schema.by_name), [c.wire_dtype for c in schema.columns]
        self._codes = [dtype.str for dtype in self._dtypes]
        self.n_events = sum(self.sizes)

    def add(self, block: Block) -> None:
        """Take a block; it is on disk after the next `sync`."""
        self.places.append(self._log.add(msgpack.packb(self._frames(block))))
        self.ids.append(block.id)
        self.sizes.append(block.n_events)
        self.n_events += block.n_events

    def _frames(self, block: Block) -> list[bytes]:
        """As `encode` has them, with less work where the columns are those of the schema, as nearly always."""
        columns = block.columns
        if list(columns) != self._names or [array.dtype for array in columns.values()] != self._dtypes:
            return [bytes(frame) for frame in encode(block, _RUN)]
        table = [(name, code, array.shape) for (name, array), code in zip(columns.items(), self._codes, strict=True)]
        header = {
            "kind": "block",
            "run": _RUN,
            "id": block.id,
            "attempt": block.attempt,
            "alone": block.alone,
            "n": block.n_events,
            "stamps": block.stamps,
            "columns": table,
        }
        return [MAGIC + bytes(msgpack.packb(header)), *[array.tobytes() for array in columns.values()]]

    async def sync(self) -> None:
        """Write and fsync what was added.

        Raises
        ------
        OSError
            The disk does not take it; nothing of it may be acknowledged, and it can be tried again.
        """
        await self._log.sync()

    def close(self) -> None:
        """Let go of it, without what was added since the last `sync`."""
        self._log.close()

    def blocks(self) -> Iterator[Block]:
        """What was written, in the order of the events."""
        return self.written().blocks()

    def written(self) -> Written:
        """Where its blocks are."""
        return Written(self.path, self.ids, self.places, self.schema)


def about(path: Path) -> dict[str, Any]:
    """What a journal says about itself.

    Raises
    ------
    UsageError
        It is not a journal.
    """
    return read_about(path, FORMAT)


def recover(path: Path, schema: Schema, damaged: Damaged) -> Iterator[Block]:
    """The blocks of a journal that was left behind, in the order of their events; what is not whole is left out.

    But for a torn last record, which is what a run leaves that breaks off, that is told to `damaged`.
    """
    places, _ = scan(path, MAGIC, damaged)
    ids, _, places = _whole(path, places, schema, damaged)
    return _blocks(path, ids, places, schema)


def _whole(
    path: Path, places: Sequence[int], schema: Schema, damaged: Damaged
) -> tuple["array[int]", "array[int]", "array[int]"]:
    """The first event, the size and the place of each block that is whole."""
    ids, sizes, good = array("q"), array("q"), array("q")
    with path.open("rb") as file:
        for place in places:
            try:
                block = decode(msgpack.unpackb(read_record(file, place) or b""), _RUN, schema)
            except (ValueError, TypeError, LookupError, msgpack.UnpackException):
                damaged(f"{path}: the block at byte {place} is damaged and left out")
                continue
            ids.append(block.id)
            sizes.append(block.n_events)
            good.append(place)
    return ids, sizes, good


def _blocks(path: Path, ids: Sequence[int], places: Sequence[int], schema: Schema) -> Iterator[Block]:
    """The blocks at these places of a journal, in the order of their ids."""
    with path.open("rb") as file:
        for i in np.argsort(np.array(ids), kind="stable"):
            payload = read_record(file, places[i])
            if payload is None:
                raise StreamerError(f"{path}: block {ids[i]} cannot be read back; is the disk failing?")
            yield decode(msgpack.unpackb(payload), _RUN, schema)


def steps(blocks: Iterator[Block], schema: Schema, n_events: int) -> Iterator[Columns]:
    """The columns of blocks, joined to steps of about `n_events`."""
    waiting: list[Columns] = []
    n = 0
    for block in blocks:
        waiting.append({name: block.columns[name] for name in schema.by_name})
        n += block.n_events
        if n >= n_events:
            yield schema.concat(waiting)
            waiting, n = [], 0
    if waiting:
        yield schema.concat(waiting)
