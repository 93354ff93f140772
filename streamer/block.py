"""Blocks of events: their columns, the schema each hop declares, and how a block looks on the wire.

A block is some consecutive events travelling in one message. It holds flat numpy columns. A column has one
entry per event, or one per member of a *collection* (photons, rechits, pixels); how many members each event
has stands in the collection's count column, as in NanoAOD: `nPhoton` counts, `Photon_pt` holds them one
after the other. Collections nest: `nCropPixel` may count per photon.

On the wire a block is one ZeroMQ multipart message::

    frame 0      MAGIC + msgpack map {kind: "block", run, id, attempt, alone, n, stamps,
                 columns: [[name, dtype, shape], ...]}
    frame 1..k   the raw bytes of the columns, C-contiguous, little-endian, in the order of the table

A small block is one frame, for with more the moving of them costs more than the work on them
(docs/decisions/006-small-blocks.md). What its columns are is not said again with each block: both ends know their
schema, and `schema` is its digest::

    frame 0      MAGIC + msgpack map {kind: "block", run, id, attempt, alone, n, stamps,
                 schema, rows: [entries of each column], data}

`data` holds the columns behind one another: those that count in the order of the schema, then, from a multiple of 8
bytes on, the others, those with larger items first, so that all are aligned. `rows` is in that order.

`decode` trusts nothing: it checks frame count, sizes, dtypes, shapes and counts before an array is touched, and
raises `WireError` with one of `WIRE_REASONS`. No pickle anywhere.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import prod
from operator import attrgetter, mul
from typing import Any

import msgpack
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Columns = dict[str, Array]

MAGIC = b"E2S1"
MAX_EVENTS = 1 << 20
MAX_COLUMNS = 256
MAX_HEADER_BYTES = 1 << 16
PACKED_BYTES = 1 << 15
"""A block whose columns have no more bytes travels in one frame."""

WIRE_REASONS = ("magic", "header", "token", "frames", "dtype", "size", "counts", "schema", "uncredited")
"""Why a message can be refused; the label values of `streamer_messages_refused_total`."""

_CODES = "|b1", "|i1", "|u1", "<i2", "<u2", "<i4", "<u4", "<i8", "<u8", "<f4", "<f8"
_DTYPES = {code: np.dtype(code) for code in _CODES}

_ALIGNMENT = 8
_FEW = 64
_NBYTES = attrgetter("nbytes")


class WireError(ValueError):
    """A message that is refused. `reason` is one of `WIRE_REASONS`."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason


@dataclass(frozen=True)
class Column:
    """One declared column.

    Parameters
    ----------
    name : str
    dtype : str
        Numpy code without byte order (`f4`); little-endian on the wire.
    per : str
        What one entry belongs to: `event`, or the name of a collection.
    shape : tuple of int
        Axes behind the first one.
    unit, doc : str
        For people.
    counts : str
        Set on a count column: the collection whose members it counts.
    """

    name: str
    dtype: str
    per: str = "event"
    shape: tuple[int, ...] = ()
    unit: str = ""
    doc: str = ""
    counts: str = ""

    @cached_property
    def wire_dtype(self) -> np.dtype[Any]:
        return np.dtype(np.dtype(self.dtype).newbyteorder("<").str)  # NumPy's own, which is found equal at a glance


def count_column(collection: str, per: str = "event", shape: tuple[int, ...] = (), doc: str = "") -> Column:
    """The column `n<collection>` that says how many members each entry of `per` has."""
    doc = doc or f"number of {collection} entries"
    return Column(f"n{collection}", "i4", per, shape, "", doc, counts=collection)


# What the core itself needs to know of every event, on every hop.
FED_TIME = Column("fedTime", "i8", unit="ns", doc="when the event was due to leave the reader (Unix time)")
LUMISECTION = Column("feedLumisection", "u4", doc="lumisection, counted by the feed (feed.lumisection), from 1")
"""Where a hop has this column, lumisections are those of the feed, and not those that the input tells."""
SHED = 128
"""What the column `error` is from here on says that an event was shed for its deadline, and has not failed."""

ERROR = Column(
    "error",
    "u1",
    doc="0, or 1 + the place in the chain of the stage that could not process it; "
    f"{SHED} more where that stage shed it for its deadline",
)
WHY = (
    count_column("ErrorText", doc="bytes of why it could not be processed; none where it could"),
    Column("ErrorText_byte", "u1", "ErrorText", doc="UTF-8: a line that tells the reason, then the traceback"),
)
CORE_COLUMNS = (FED_TIME, ERROR, *WHY)

MAX_WHY_BYTES = 8192
"""A longer reason is cut in its middle."""


class Schema:
    """The columns of one hop, in order; a count column stands before the columns of its collection."""

    def __init__(self, columns: Iterable[Column]) -> None:
        self.columns = tuple(columns)
        self.by_name = {column.name: column for column in self.columns}
        known = {"event"}
        for column in self.columns:
            if column.per not in known:
                raise ValueError(f"column {column.name}: collection {column.per} has no count column before it")
            if column.counts:
                known.add(column.counts)
        if len(self.by_name) != len(self.columns):
            raise ValueError("a column name stands twice in the schema")
        self.digest = self._digest()
        self._lay_out()

    def _digest(self) -> str:
        """What two ends must agree on, as a short text."""
        told = [(c.name, c.wire_dtype.str, c.per, c.shape, c.counts) for c in self.columns]
        return hashlib.sha256(repr(told).encode()).hexdigest()[:16]

    def _lay_out(self) -> None:
        """How the columns lie in a small block, worked out once."""
        counting = [c for c in self.columns if c.counts]
        others = sorted((c for c in self.columns if not c.counts), key=lambda c: -c.wire_dtype.itemsize)
        laid = [*counting, *others]
        self._told = [(c.name, c.per, c.counts) for c in self.columns]
        self._names = [c.name for c in laid]
        self._dtypes = [c.wire_dtype for c in laid]
        self._sizes = [c.wire_dtype.itemsize * prod(c.shape) for c in laid]
        self._pers = [c.per for c in laid]
        self._axes = [(place, c.shape) for place, c in enumerate(laid) if c.shape]
        self._counting = [(c.name, c.wire_dtype, c.per, c.shape, c.counts) for c in counting]
        self._others = [(c.name, c.wire_dtype, c.shape) for c in others]
        self._nothing = self.empty()

    def check(self, columns: Mapping[str, Array], n_events: int) -> None:
        """Raise `WireError` unless `columns` is exactly what this schema declares for `n_events` events."""
        if columns.keys() != self.by_name.keys():
            extra = sorted(columns.keys() ^ self.by_name.keys())
            raise WireError("schema", f"columns missing or unknown: {', '.join(extra[:5])}")
        lengths = {"event": n_events}
        for column in self.columns:
            array = columns[column.name]
            if array.dtype != column.wire_dtype:
                raise WireError("dtype", f"{column.name} is {array.dtype}, not {column.wire_dtype}")
            wanted = (lengths[column.per], *column.shape)
            if array.shape != wanted:
                raise WireError("counts", f"{column.name} has shape {array.shape}, not {wanted}")
            if column.counts:
                least, total = _least_and_total(array)
                if least < 0:
                    raise WireError("counts", f"{column.name} has a negative count")
                lengths[column.counts] = total

    def pack(self, columns: Mapping[str, Array]) -> tuple[list[int], bytes] | None:
        """The columns of a small block as `rows` and `data`; None where they are more than `PACKED_BYTES`, or not what
        this schema declares."""
        try:
            arrays: list[Any] = [columns[name] for name in self._names]
        except KeyError:
            return None
        if len(columns) != len(arrays) or [array.dtype for array in arrays] != self._dtypes:
            return None
        if any(arrays[place].shape[1:] != axes for place, axes in self._axes):
            return None
        rows = list(map(len, arrays))
        if sum(map(mul, rows, self._sizes)) > PACKED_BYTES:
            return None
        try:
            counts = b"".join(arrays[: len(self._counting)])
            others = b"".join(arrays[len(self._counting) :])
        except TypeError:  # one is not contiguous
            return self.pack({name: np.ascontiguousarray(array) for name, array in columns.items()})
        return rows, b"".join((counts, bytes(-len(counts) % _ALIGNMENT), others))

    def unpack(self, rows: Any, data: Any, n_events: int) -> Columns:
        """The columns of a small block, read-only and checked, from what `pack` has made of them.

        Raises
        ------
        WireError
            They are not what this schema declares.
        """
        if not isinstance(data, bytes) or type(rows) is not list:
            raise WireError("header", "no data, or not told how many rows each column has")
        lengths, place, out = {"event": n_events}, 0, self._nothing.copy()
        try:
            for name, dtype, per, axes, counts in self._counting:
                array = out[name] = np.ndarray((lengths[per], *axes), dtype, data, place)
                place += array.nbytes
                least, lengths[counts] = _least_and_total(array)
                if least < 0:
                    raise WireError("counts", f"{name} has a negative count")
            wanted = [lengths[per] for per in self._pers]
            if rows != wanted:
                raise WireError("counts", f"columns have {str(rows)[:200]} rows, not {str(wanted)[:200]}")
            place += -place % _ALIGNMENT
            for (name, dtype, axes), n_rows in zip(self._others, wanted[len(self._counting) :], strict=True):
                if n_rows:
                    array = out[name] = np.ndarray((n_rows, *axes) if axes else n_rows, dtype, data, place)
                    place += array.nbytes
        except (TypeError, ValueError) as error:
            if isinstance(error, WireError):
                raise
            raise WireError("size", f"{name} does not fit into the {len(data)} bytes that came") from None
        if place != len(data):
            raise WireError("size", f"the columns have {place} bytes, and {len(data)} came")
        return out

    def ends(self, columns: Mapping[str, Array]) -> dict[str, Array]:
        """Where the members of each collection begin, for `slice`: of each entry it belongs to, and their number."""
        return {c.counts: offsets(members(columns[c.name])) for c in self.columns if c.counts}

    def slice(
        self, columns: Mapping[str, Array], start: int, stop: int, ends: Mapping[str, Array] | None = None
    ) -> Columns:
        """The events `start` to `stop` of `columns`, as views.

        Parameters
        ----------
        ends : mapping, optional
            `ends` of these columns, for whoever takes many slices of them.
        """
        spans = {"event": slice(start, stop)}
        out: Columns = {}
        for name, per, counts in self._told:
            span, array = spans[per], columns[name]
            out[name] = array[span]
            if counts and ends is not None:
                of = ends[counts]
                spans[counts] = slice(of.item(span.start), of.item(span.stop))
            elif counts:
                before = int(array[: span.start].sum(dtype=np.int64))
                spans[counts] = slice(before, before + int(out[name].sum(dtype=np.int64)))
        return out

    def concat(self, parts: Sequence[Mapping[str, Array]]) -> Columns:
        """The events of several column sets behind one another."""
        if len(parts) == 1:
            return dict(parts[0])
        return {name: np.concatenate([part[name] for part in parts]) for name in self.by_name}

    def empty(self, n_events: int = 0) -> Columns:
        """Events that are all zero, with empty collections."""
        return {
            c.name: readonly(np.zeros((n_events if c.per == "event" else 0, *c.shape), c.wire_dtype))
            for c in self.columns
        }

    def emptied(self, columns: Mapping[str, Array], n: int | None = None) -> Columns:
        """The same events, of which the first `n` (by default all) have empty collections, but for why they failed.

        What is left of an event that cannot be processed; the members of the others are views.
        """
        begins, out = {"event": len(columns[ERROR.name]) if n is None else n}, {}
        for column in self.columns:
            array, begin = columns[column.name], begins[column.per]
            if column.counts:
                begins[column.counts] = 0 if column in WHY else int(array[:begin].sum(dtype=np.int64))
            if column.per != "event":
                array = array[begin:]
            elif column.counts and column not in WHY:
                array = array.copy()
                array[:begin] = 0
                array = readonly(array)
            out[column.name] = array
        return out

    def bare(self, columns: Mapping[str, Array]) -> Columns | None:
        """Events of another hop, without their collections, as this schema declares them; None where it has more to
        say of an event."""
        out: Columns = {}
        for column in self.columns:
            shape = (len(columns[ERROR.name]) if column.per == "event" else 0, *column.shape)
            if column in CORE_COLUMNS or (column.per == "event" and not column.counts):
                if column.name not in columns:
                    return None
                out[column.name] = columns[column.name]
            else:
                out[column.name] = readonly(np.zeros(shape, column.wire_dtype))
        return out


def _least_and_total(counts: Array) -> tuple[int, int]:
    if counts.size < _FEW:  # NumPy takes longer to begin
        few = counts.ravel().tolist()
        return min(few, default=0), sum(few)
    return int(counts.min()), int(counts.sum(dtype=np.int64))


@dataclass
class Block:
    """Some consecutive events on their way from reader to writer.

    Attributes
    ----------
    id : int
        The sequence number of its first event; the others follow without a gap. With `attempt` it names one try.
    n_events : int
    columns : dict of str to numpy.ndarray
        As the schema of the hop declares; read-only when they came from the wire.
    stamps : dict of str to int
        When each stage was done with the block, Unix time in ns.
    alone : bool
        A process has died of one of its events, perhaps: it shares no batch with others.
    """

    id: int
    n_events: int
    columns: Columns
    attempt: int = 1
    stamps: dict[str, int] = field(default_factory=dict)
    alone: bool = False

    @property
    def n_bytes(self) -> int:
        """Size of the columns."""
        return sum(map(_NBYTES, self.columns.values()))

    def with_columns(self, columns: Columns) -> "Block":
        """The same events with other columns."""
        return Block(self.id, self.n_events, columns, self.attempt, self.stamps, self.alone)

    def part(self, schema: Schema, start: int, stop: int) -> "Block":
        """The events `start` to `stop`, as a block of its own."""
        if (start, stop) == (0, self.n_events):
            return self
        columns = schema.slice(self.columns, start, stop)
        return replace(self, id=self.id + start, n_events=stop - start, columns=columns)


def core_columns(fed_time: Array) -> Columns:
    """The core's own columns of events to which nothing has happened yet.

    Parameters
    ----------
    fed_time : int64, shape (n_events,)
        Unix time in ns.
    """
    n = fed_time.size
    none = np.zeros(n, np.int32), np.zeros(0, np.uint8)
    return {"fedTime": fed_time, "error": np.zeros(n, np.uint8), "nErrorText": none[0], "ErrorText_byte": none[1]}


def with_failures(columns: Columns, why: Mapping[int, str], mark: int) -> Columns:
    """The same columns, with events marked as failed. One that has failed, or was shed before, stays as it is.

    Parameters
    ----------
    why : mapping of int to str
        Events of the block to a line with the reason, and perhaps more lines.
    mark : int
        The value of `error`.
    """
    fresh = {event: _clipped(text) for event, text in why.items() if not columns["error"][event]}
    if not fresh:
        return columns
    error, counts, texts = columns["error"].copy(), columns["nErrorText"].copy(), columns["ErrorText_byte"]
    spans = offsets(counts)
    parts, begin = [], 0
    for event in sorted(fresh):
        text = np.frombuffer(fresh[event], np.uint8)
        parts += [texts[begin : spans[event]], text]
        begin = int(spans[event])
        error[event], counts[event] = mark, text.size
    parts.append(texts[begin:])
    return {**columns, "error": error, "nErrorText": counts, "ErrorText_byte": np.concatenate(parts)}


def has_failed(error: Array) -> Array:
    """Of values of the column `error`, which are of events that have failed; the others are fine, or were shed."""
    failed: Array = (error > 0) & (error < SHED)
    return failed


def failures(columns: Columns) -> dict[int, str]:
    """The events that have failed, and why."""
    spans = offsets(columns["nErrorText"])
    texts = columns["ErrorText_byte"]
    return {
        int(event): texts[spans[event] : spans[event + 1]].tobytes().decode(errors="replace")
        for event in np.flatnonzero(has_failed(columns["error"]))
    }


def _clipped(text: str) -> bytes:
    data = text.encode(errors="replace")
    if len(data) <= MAX_WHY_BYTES:
        return data
    half = MAX_WHY_BYTES // 2 - 4
    return data[:half] + b"\n...\n" + data[-half:]


def members(counts: Array) -> npt.NDArray[np.int64]:
    """How many members each entry has in all: shape (n_entries,), whatever axes a count column has behind the first."""
    out: npt.NDArray[np.int64] = counts.sum(tuple(range(1, counts.ndim)), dtype=np.int64)
    return out


def offsets(counts: Array) -> npt.NDArray[np.int64]:
    """Where each entry's members begin and end: shape (counts.size + 1,), the last one is the total."""
    out = np.zeros(counts.size + 1, np.int64)
    np.cumsum(counts.reshape(-1), out=out[1:])
    return out


def readonly(array: Array) -> Array:
    """A view that cannot be written. Compiled kernels see one type of array, wherever it comes from."""
    view = array.view()
    view.flags.writeable = False
    return view


def to_wire(block: Block, run: str, schema: Schema | None = None) -> list[Any]:
    """The frames of a block: one where it is small and as its schema declares, else those that copy nothing."""
    packed = None if schema is None else schema.pack(block.columns)
    if schema is None or packed is None:
        return encode(block, run)
    return [_header(block, run, schema=schema.digest, rows=packed[0], data=packed[1])]


def encode(block: Block, run: str) -> list[Any]:
    """A frame for the header and one for each column, which share the columns' memory where these are contiguous."""
    table = []
    frames: list[Any] = [b""]
    for name, column in block.columns.items():
        array = np.ascontiguousarray(column)
        if array.dtype.str not in _DTYPES:
            raise TypeError(f"column {name} has dtype {array.dtype.str}, which does not travel")
        table.append((name, array.dtype.str, array.shape))
        frames.append(array.reshape(-1).view(np.uint8).data)
    frames[0] = _header(block, run, columns=table)
    return frames


def _header(block: Block, run: str, **fields: Any) -> bytes:
    header = {
        "kind": "block",
        "run": run,
        "id": block.id,
        "attempt": block.attempt,
        "alone": block.alone,
        "n": block.n_events,
        "stamps": block.stamps,
        **fields,
    }
    return MAGIC + bytes(msgpack.packb(header))


def read_header(frame: memoryview | bytes, max_bytes: int = MAX_HEADER_BYTES) -> dict[str, Any]:
    """The msgpack map of a message's first frame.

    Raises
    ------
    WireError
        With reason `magic` or `header`.
    """
    data = memoryview(frame)
    if bytes(data[: len(MAGIC)]) != MAGIC:
        raise WireError("magic", "the message does not begin with our magic bytes")
    if len(data) > max_bytes:
        raise WireError("header", f"header of {len(data)} bytes; at most {max_bytes} are read")
    try:
        header = msgpack.unpackb(
            data[len(MAGIC) :],
            max_str_len=4096,
            max_bin_len=PACKED_BYTES + _ALIGNMENT,
            max_array_len=16384,
            max_map_len=64,
            max_ext_len=0,
        )
    except Exception as error:  # msgpack raises many kinds; all mean the same here
        raise WireError("header", f"not msgpack ({type(error).__name__})") from None
    if not isinstance(header, dict) or not isinstance(header.get("kind"), str):
        raise WireError("header", "not a map with a kind")
    return header


def decode(frames: Sequence[Any], run: str, schema: Schema | None = None) -> Block:
    """A block from the frames of a message (buffers), as views where alignment allows.

    Raises
    ------
    WireError
        When anything is not as the header, the run or the schema says.
    """
    if not frames:
        raise WireError("frames", "a message without frames")
    return decode_block(read_header(frames[0]), frames[1:], run, schema)


def decode_block(header: dict[str, Any], data: Sequence[Any], run: str, schema: Schema | None = None) -> Block:
    """Like `decode`, from a header that was read already and the data frames."""
    if header["kind"] != "block":
        raise WireError("header", f"a {header['kind'][:20]!r} where a block is due")
    if header.get("run") != run:
        raise WireError("token", "not a block of this run")
    block_id, attempt, n_events = (_natural(header, key) for key in ("id", "attempt", "n"))
    if not 1 <= n_events <= MAX_EVENTS:
        raise WireError("size", f"{n_events} events in a block; 1 to {MAX_EVENTS} are allowed")
    stamps, alone = header.get("stamps"), header.get("alone")
    if not isinstance(stamps, dict) or not isinstance(alone, bool):
        raise WireError("header", "no stamps, or not told whether it is alone")
    if not all(isinstance(k, str) and type(v) is int for k, v in stamps.items()):
        raise WireError("header", "a stamp that is not a time")
    if "schema" in header:
        columns = _small(header, data, schema, n_events)
    else:
        columns = _large(header, data)
        if schema is not None:
            schema.check(columns, n_events)
    return Block(block_id, n_events, columns, attempt, stamps, alone)


def _small(header: dict[str, Any], data: Sequence[Any], schema: Schema | None, n_events: int) -> Columns:
    """The columns of a block in one frame."""
    if data:
        raise WireError("frames", f"{len(data)} frames behind one that is all")
    if schema is None or header["schema"] != schema.digest:
        raise WireError("schema", "columns that are not those of this hop")
    return schema.unpack(header.get("rows"), header.get("data"), n_events)


def _large(header: dict[str, Any], data: Sequence[Any]) -> Columns:
    """The columns of a block that says itself what they are."""
    table = header.get("columns")
    if not isinstance(table, list):
        raise WireError("header", "no column table")
    if len(table) > MAX_COLUMNS or len(table) != len(data):
        raise WireError("frames", f"{len(table)} columns announced, {len(data)} frames came")
    columns = _columns([_entry(entry) for entry in table], data)
    if len(columns) != len(table):
        raise WireError("header", "a column name stands twice")
    return columns


def announced_events(header: dict[str, Any], run: str) -> int:
    """How many events a block of this run says it holds, even if it is refused; 0 where it does not say."""
    n_events = header.get("n")
    known = header.get("run") == run and type(n_events) is int and 0 <= n_events <= MAX_EVENTS
    return n_events if known else 0  # type: ignore[return-value]


def _natural(header: dict[str, Any], key: str) -> int:
    value = header.get(key)
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise WireError("header", f"{key} is not a natural number")
    return value


_Entry = tuple[str, np.dtype[Any], list[int]]


def _entry(entry: Any) -> _Entry:
    """A line of the column table, checked."""
    if not isinstance(entry, list) or len(entry) != 3:
        raise WireError("header", "a column entry that is not (name, dtype, shape)")
    name, dtype, shape = entry
    if not isinstance(name, str) or not isinstance(shape, list) or not 1 <= len(shape) <= 3:
        raise WireError("header", "a column entry that is not (name, dtype, shape)")
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise WireError("dtype", f"column {name[:40]!r} has a dtype that does not travel")
    if not all(type(length) is int and 0 <= length < 1 << 31 for length in shape):
        raise WireError("size", f"column {name[:40]!r} has an impossible shape")
    return name, _DTYPES[dtype], shape


def _columns(entries: Sequence[_Entry], data: Sequence[Any]) -> Columns:
    """Columns from a frame each."""
    out: Columns = {}
    for (name, kind, shape), frame in zip(entries, data, strict=True):
        size = memoryview(frame).nbytes
        if prod(shape) * kind.itemsize != size:
            raise WireError("size", f"column {name[:40]!r} announces {shape} {kind} and brings {size} bytes")
        array = np.frombuffer(frame, kind) if size else np.zeros(0, kind)
        if not array.flags.aligned:  # a short frame lies anywhere in ZeroMQ's receive buffer
            array = array.copy()
        out[name] = readonly(array.reshape(shape))
    return out
