"""The one corpus of messages that must be refused: each with its name, its frames and the reason that is due.

`BLOCKS` is thrown at the decoder and at an inlet, `TO_OUTLET`, `TO_INLET` and `TO_READER` at those sockets, beside all
blocks. The blocks claim to follow `streamer.testing.TOY`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgpack
import numpy as np

from streamer.block import MAGIC, MAX_EVENTS, MAX_HEADER_BYTES, encode, to_wire
from streamer.testing import TOY, toy_block

RUN = "the run's token"


class Hostile(NamedTuple):
    """A message, and the reason for which it must be refused."""

    name: str
    frames: list[bytes]
    reason: str

    @property
    def fits_router(self) -> bool:
        """Whether a socket for control messages reads it; it cuts off whoever sends larger frames."""
        return all(len(frame) <= 4096 for frame in self.frames)


def message(header: object) -> bytes:
    """A first frame."""
    return MAGIC + bytes(msgpack.packb(header))


def good() -> list[bytes]:
    """The frames of a block that is as it should be."""
    return [bytes(frame) for frame in encode(toy_block(n_events=5), RUN)]


def good_small() -> list[bytes]:
    """The same block as small blocks travel."""
    return to_wire(toy_block(n_events=5), RUN, TOY)


def header_of(frames: list[bytes]) -> dict[str, Any]:
    header: dict[str, Any] = msgpack.unpackb(frames[0][len(MAGIC) :])
    return header


def _place(name: str) -> int:
    return list(TOY.by_name).index(name)


def _header(change: Callable[[dict[str, Any]], object]) -> list[bytes]:
    """A block whose header was changed."""
    frames = good()
    header = header_of(frames)
    change(header)
    return [message(header), *frames[1:]]


def _field(key: str, value: object) -> list[bytes]:
    return _header(lambda header: header.update({key: value}))


def _entry(name: str, entry: object) -> list[bytes]:
    """A block whose table says something else about a column."""
    return _header(lambda header: header["columns"].__setitem__(_place(name), entry))


def _data(name: str, array: Any) -> list[bytes]:
    """A block with another array in a column, table and frame in agreement."""
    frames = _entry(name, [name, array.dtype.str, list(array.shape)])
    frames[1 + _place(name)] = array.tobytes()
    return frames


def _counts(name: str, change: Callable[[Any], object]) -> list[bytes]:
    array = toy_block(n_events=5).columns[name].copy()
    change(array)
    return _data(name, array)


def _small(key: str, value: object) -> list[bytes]:
    """A small block that says something else in a field."""
    return [message({k: v for k, v in {**header_of(good_small()), key: value}.items() if v is not ...})]


def _small_data(change: Callable[[bytes], bytes]) -> list[bytes]:
    return _small("data", change(header_of(good_small())["data"]))


def _small_counts(name: str, counts: object) -> list[bytes]:
    """A small block with other counts in a column."""
    data = bytearray(header_of(good_small())["data"])
    array = TOY.unpack(header_of(good_small())["rows"], bytes(data), 5)[name]
    begin = data.find(array.tobytes())
    data[begin : begin + array.nbytes] = np.broadcast_to(np.array(counts, array.dtype), array.shape).tobytes()
    return _small("data", bytes(data))


def _small_rows(change: Callable[[list[int]], object]) -> list[bytes]:
    rows = header_of(good_small())["rows"]
    change(rows)
    return _small("rows", rows)


def _without(key: str) -> list[bytes]:
    return _header(lambda header: header.pop(key))


def _more_columns(n: int) -> list[bytes]:
    extra = [[f"more{i}", "<f4", [0]] for i in range(n)]
    return [*_header(lambda header: header["columns"].extend(extra)), *[b""] * n]


def _no_column() -> list[bytes]:
    frames = _header(lambda header: header["columns"].pop())
    return frames[:-1]


def _twice() -> list[bytes]:
    """The last column stands twice in the table, in place of the one before it."""
    frames = _header(lambda header: header["columns"].__setitem__(-2, header["columns"][-1]))
    frames[-2] = frames[-1]
    return frames


ENERGY, N_HIT, N_CELL = "Hit_energy", "nHit", "nCell"
_N = 4  # hits in a good block

BLOCKS = [
    # the first frame
    Hostile("empty frame", [b""], "magic"),
    Hostile("nothing but empty frames", [b""] * 7, "magic"),
    Hostile("wrong magic", [b"E2S2" + good()[0][4:], *good()[1:]], "magic"),
    Hostile("half a magic", [MAGIC[:2]], "magic"),
    Hostile("an HTTP request", [b"GET /metrics HTTP/1.1\r\n\r\n"], "magic"),
    Hostile("nothing behind the magic", [MAGIC], "header"),
    Hostile("truncated header", [good()[0][:-5], *good()[1:]], "header"),
    Hostile("bytes behind the header", [good()[0] + b"\x00", *good()[1:]], "header"),
    Hostile("header too long", [good()[0] + b"\x00" * MAX_HEADER_BYTES, *good()[1:]], "header"),
    Hostile("not a map", [message([1, 2, 3])], "header"),
    Hostile("a map without a kind", _without("kind"), "header"),
    Hostile("a kind that is a number", _field("kind", 5), "header"),
    Hostile("a kind that does not exist", _field("kind", "blocks")[:1], "header"),
    Hostile("keys that are numbers", [message({1: 2})], "header"),
    Hostile("deep msgpack", [MAGIC + b"\x91" * 3000 + b"\xc0"], "header"),
    Hostile("an array of 2**32 - 1 that is not there", [MAGIC + b"\xdd\xff\xff\xff\xff"], "header"),
    Hostile("a map of 2**32 - 1 that is not there", [MAGIC + b"\xdf\xff\xff\xff\xff"], "header"),
    Hostile("a string of 4 GB that is not there", [MAGIC + b"\xdb\xff\xff\xff\xff"], "header"),
    Hostile("an extension type", [MAGIC + b"\xd4\x01\x00"], "header"),
    Hostile("a string that is no UTF-8", [MAGIC + b"\x81\xa4kind\xa2\xff\xfe"], "header"),
    Hostile("a name of 5000 bytes", _entry(ENERGY, ["x" * 5000, "<f4", [_N]]), "header"),
    # who and what
    Hostile("wrong token", _field("run", "another run"), "token"),
    Hostile("no token", _without("run"), "token"),
    Hostile("a token that is bytes", _field("run", RUN.encode()), "token"),
    Hostile("no id", _without("id"), "header"),
    Hostile("an id that is a bool", _field("id", True), "header"),
    Hostile("a negative id", _field("id", -1), "header"),
    Hostile("an id of 2**63", _field("id", 1 << 63), "header"),
    Hostile("an attempt that is text", _field("attempt", "1"), "header"),
    Hostile("a float n", _field("n", 5.0), "header"),
    Hostile("n that is NaN", _field("n", float("nan")), "header"),
    Hostile("no n", _without("n"), "header"),
    Hostile("zero events", _field("n", 0), "size"),
    Hostile("one event too many for any block", _field("n", MAX_EVENTS + 1), "size"),
    Hostile("2**40 events", _field("n", 1 << 40), "size"),
    Hostile("more events than the columns hold", _field("n", 6), "counts"),
    Hostile("fewer events than the columns hold", _field("n", 4), "counts"),
    Hostile("no stamps", _without("stamps"), "header"),
    Hostile("stamps that are a list", _field("stamps", []), "header"),
    Hostile("a stamp that is text", _field("stamps", {"reader": "now"}), "header"),
    Hostile("a stamp that is a float", _field("stamps", {"reader": 1.5}), "header"),
    # the table
    Hostile("no table", _without("columns"), "header"),
    Hostile("a table that is a map", _field("columns", {}), "header"),
    Hostile("an empty table", _field("columns", []), "frames"),
    Hostile("an empty table and no frames", _field("columns", [])[:1], "schema"),
    Hostile("missing frames", good()[:-1], "frames"),
    Hostile("only the header", good()[:1], "frames"),
    Hostile("extra frames", [*good(), b"more"], "frames"),
    Hostile("too many columns", _more_columns(300), "frames"),
    Hostile("an unknown column", _more_columns(1), "schema"),
    Hostile("a missing column", _no_column(), "schema"),
    Hostile("a column under another name", _entry(ENERGY, ["Hit_enrgy", "<f4", [_N]]), "schema"),
    Hostile("a column that stands twice", _twice(), "header"),
    Hostile("an entry that is a number", _entry(ENERGY, 7), "header"),
    Hostile("an entry without a shape", _entry(ENERGY, [ENERGY, "<f4"]), "header"),
    Hostile("an entry without axes", _entry(ENERGY, [ENERGY, "<f4", []]), "header"),
    Hostile("an entry with too many axes", _entry(ENERGY, [ENERGY, "<f4", [_N, 1, 1, 1]]), "header"),
    Hostile("a name that is bytes", _entry(ENERGY, [ENERGY.encode(), "<f4", [_N]]), "header"),
    # dtypes
    Hostile("object dtype", _entry(ENERGY, [ENERGY, "|O", [_N]]), "dtype"),
    Hostile("a record dtype", _entry(ENERGY, [ENERGY, "f4,f4", [_N]]), "dtype"),
    Hostile("a text dtype", _entry(ENERGY, [ENERGY, "<U1", [_N]]), "dtype"),
    Hostile("a dtype of the other byte order", _entry(ENERGY, [ENERGY, ">f4", [_N]]), "dtype"),
    Hostile("a dtype that is a list", _entry(ENERGY, [ENERGY, ["<f4"], [_N]]), "dtype"),
    Hostile("the wrong dtype of the right size", _data(ENERGY, np.zeros(_N, np.int32)), "dtype"),
    Hostile("the wrong dtype", _data(ENERGY, np.zeros(_N, np.float64)), "dtype"),
    Hostile("counts that are floats", _data(N_HIT, np.array([0, 1, 2, 0, 1], np.float32)), "dtype"),
    # sizes
    Hostile("a lying size, too large", _entry(ENERGY, [ENERGY, "<f4", [_N + 1]]), "size"),
    Hostile("a lying size, too small", _entry(ENERGY, [ENERGY, "<f4", [_N - 1]]), "size"),
    Hostile("a size that is negative", _entry(ENERGY, [ENERGY, "<f4", [-1]]), "size"),
    Hostile("a size that is a float", _entry(ENERGY, [ENERGY, "<f4", [float(_N)]]), "size"),
    Hostile("a size that is a bool", _entry(ENERGY, [ENERGY, "<f4", [True]]), "size"),
    Hostile("a size of 2**60", _entry(ENERGY, [ENERGY, "<f4", [1 << 60]]), "size"),
    Hostile("sizes whose product overflows", _entry(ENERGY, [ENERGY, "<f4", [1 << 30, 1 << 30, 1 << 30]]), "size"),
    Hostile("an empty frame for a full column", [*good()[:5], b"", *good()[6:]], "size"),
    # counts
    Hostile("a negative count", _counts(N_HIT, lambda counts: counts.__setitem__(slice(0, 2), [-1, 2])), "counts"),
    Hostile("a huge count", _counts(N_HIT, lambda counts: counts.__setitem__(1, 2**31 - 1)), "counts"),
    Hostile("huge counts", _counts(N_HIT, lambda counts: counts.fill(2**31 - 1)), "counts"),
    Hostile("counts that do not add up", _counts(N_HIT, lambda counts: counts.__setitem__(0, 1)), "counts"),
    Hostile("nested counts that do not add up", _counts(N_CELL, lambda counts: counts.__setitem__(0, 9)), "counts"),
    Hostile("a negative nested count", _counts(N_CELL, lambda counts: counts.__setitem__((0, 0), -1)), "counts"),
    Hostile("nested counts of another shape", _data(N_CELL, np.ones((_N, 3), np.int32)), "counts"),
    Hostile("nested counts without their axis", _data(N_CELL, np.ones(2 * _N, np.int32)), "counts"),
    Hostile("a column with an axis too many", _data(ENERGY, np.zeros((_N, 1), np.float32)), "counts"),
    Hostile("one frame for all that the table tells of", good()[:2], "frames"),
    # a small block, which is one frame
    Hostile("a small block with a frame more", [*good_small(), b""], "frames"),
    Hostile("a small block with the wrong token", _small("run", "another run"), "token"),
    Hostile("a small block of another schema", _small("schema", "0" * 16), "schema"),
    Hostile("a small block whose schema is a number", _small("schema", 7), "schema"),
    Hostile("a small block without rows", _small("rows", ...), "header"),
    Hostile("a small block without data", _small("data", ...), "header"),
    Hostile("a small block whose data are text", _small("data", "text"), "header"),
    Hostile("a small block whose rows are a number", _small("rows", 5), "header"),
    Hostile("a small block with data for a large one", _small("data", bytes(1 << 16)), "header"),
    Hostile("a small block without events", _small("n", 0), "size"),
    Hostile("a small block of fewer events", _small("n", 4), "counts"),
    Hostile("a small block of more events", _small("n", 6), "counts"),
    Hostile("a small block of a million events", _small("n", MAX_EVENTS), "size"),
    Hostile("a small block that is empty", _small_data(lambda data: b""), "size"),
    Hostile("a small block that is short", _small_data(lambda data: data[:-1]), "size"),
    Hostile("a small block that is long", _small_data(lambda data: data + bytes(8)), "size"),
    Hostile(
        "a small block with a row too many", _small_rows(lambda rows: rows.__setitem__(-1, rows[-1] + 1)), "counts"
    ),
    Hostile("a small block with a row too few", _small_rows(lambda rows: rows.__setitem__(-1, rows[-1] - 1)), "counts"),
    Hostile("a small block with a column less", _small_rows(lambda rows: rows.pop()), "counts"),
    Hostile("a small block with huge counts", _small_counts(N_HIT, 2**31 - 1), "size"),
    Hostile("a small block with negative counts", _small_counts(N_CELL, -1), "counts"),
    Hostile("a small block with other counts", _small_counts(N_HIT, [1, 1, 1, 1, 1]), "counts"),
]

_CREDIT = {"kind": "credit", "run": RUN, "life": "l", "of": "o", "name": "n", "received": 0, "spare": 10,
           "ways": {}}  # fmt: skip
_END = {"kind": "end", "run": RUN, "life": "l", "final": True}
_COMMIT = {"kind": "commit", "run": RUN, "life": "l", "of": "o", "ids": [[1, 2]], "way": 0, "answered": 1.0}
_DIED = {"kind": "died", "run": RUN, "life": "1", "name": "tagger-0", "how": "died", "ids": [[1, 2]]}
_WELCOME = {"kind": "welcome", "run": RUN, "life": "l"}


def _control(good: dict[str, Any], **change: object) -> list[bytes]:
    return [message({key: value for key, value in {**good, **change}.items() if value is not ...})]


TO_OUTLET = [
    Hostile("a credit with the wrong token", _control(_CREDIT, run="guess"), "token"),
    Hostile("a credit without a token", _control(_CREDIT, run=...), "token"),
    Hostile("a credit with an extra frame", [*_control(_CREDIT), b""], "frames"),
    Hostile("a credit without a life", _control(_CREDIT, life=...), "header"),
    Hostile("a life that is a number", _control(_CREDIT, life=1), "header"),
    Hostile("a credit that is for nobody", _control(_CREDIT, of=None), "header"),
    Hostile("a leave with the wrong token", [message({"kind": "leave", "run": "guess", "life": "l"})], "token"),
    Hostile("a bye with the wrong token", [message({"kind": "bye", "run": "guess", "life": "l"})], "token"),
    Hostile("an end to an outlet", _control(_END), "header"),
    Hostile("a commit to an outlet", _control(_COMMIT), "header"),
]


def false_credits(life: str) -> list[Hostile]:
    """Credits of somebody who knows the token and the outlet's life, and still may not say just anything."""
    known = {**_CREDIT, "of": life}
    return [
        Hostile("a float spare", _control(known, spare=10.0), "header"),
        Hostile("a spare that is NaN", _control(known, spare=float("nan")), "header"),
        Hostile("a negative spare", _control(known, spare=-1), "header"),
        Hostile("a spare that is a bool", _control(known, spare=True), "header"),
        Hostile("a spare of 2**63", _control(known, spare=1 << 63), "header"),
        Hostile("no spare", _control(known, spare=...), "header"),
        Hostile("a negative received", _control(known, received=-1), "header"),
        Hostile("a name that is a list", _control(known, name=[]), "header"),
        Hostile("no ways", _control(known, ways=...), "header"),
        Hostile("ways that are a list", _control(known, ways=[[1, 1]]), "header"),
        Hostile("a way of a number", _control(known, ways={5: [1, 1]}), "header"),
        Hostile("a way that is one number", _control(known, ways={"framer": 5}), "header"),
        Hostile("a way of three numbers", _control(known, ways={"framer": [1, 1, 1]}), "header"),
        Hostile("a way that is negative", _control(known, ways={"framer": [-1, 1]}), "header"),
        Hostile("a way that is NaN", _control(known, ways={"framer": [float("nan"), 1]}), "header"),
    ]


TO_INLET = [
    Hostile("an end with the wrong token", _control(_END, run="guess"), "token"),
    Hostile("an end without final", _control(_END, final=...), "header"),
    Hostile("a final that is a number", _control(_END, final=1), "header"),
    Hostile("an end with an extra frame", [*_control(_END), b"more"], "frames"),
    Hostile("a welcome with the wrong token", _control(_END, kind="welcome", run="guess"), "token"),
    Hostile("a welcome without a life", _control(_END, kind="welcome", life=...), "header"),
    Hostile("a welcome with an extra frame", [*_control(_END, kind="welcome"), b""], "frames"),
    Hostile("a credit to an inlet", _control(_CREDIT), "header"),
    Hostile("a control message of 5000 bytes", _control(_END, more="x" * 4000, pad="x" * 1000), "header"),
]

TO_READER = [
    Hostile("a commit with the wrong token", _control(_COMMIT, run="guess"), "token"),
    Hostile("a commit without a token", _control(_COMMIT, run=...), "token"),
    Hostile("a commit with an extra frame", [*_control(_COMMIT), b""], "frames"),
    Hostile("a commit without ids", _control(_COMMIT, ids=...), "header"),
    Hostile("ids that are a map", _control(_COMMIT, ids={}), "header"),
    Hostile("ids that are not pairs", _control(_COMMIT, ids=[1, 2, 3]), "header"),
    Hostile("an interval of three", _control(_COMMIT, ids=[[1, 2, 3]]), "header"),
    Hostile("a negative id to commit", _control(_COMMIT, ids=[[-5, 2]]), "header"),
    Hostile("a float id to commit", _control(_COMMIT, ids=[[1.0, 2]]), "header"),
    Hostile("a bool id to commit", _control(_COMMIT, ids=[[True, 2]]), "header"),
    Hostile("good and bad ids together", _control(_COMMIT, ids=[[1, 2], ["3", 4]]), "header"),
    Hostile("an interval upside down", _control(_COMMIT, ids=[[2, 1]]), "header"),
    Hostile("an interval up to 2**62", _control(_COMMIT, ids=[[1, 1 << 62]]), "header"),
    Hostile("a commit without a way", _control(_COMMIT, way=...), "header"),
    Hostile("a way back in time", _control(_COMMIT, way=-1), "header"),
    Hostile("a way of 2**62", _control(_COMMIT, way=1 << 62), "header"),
    Hostile("a way that is no whole number", _control(_COMMIT, way=0.5), "header"),
    Hostile("a commit without a share", _control(_COMMIT, answered=...), "header"),
    Hostile("a share that is a whole number", _control(_COMMIT, answered=1), "header"),
    Hostile("a share of more than all", _control(_COMMIT, answered=1.5), "header"),
    Hostile("a negative share", _control(_COMMIT, answered=-0.5), "header"),
    Hostile("a share that is NaN", _control(_COMMIT, answered=float("nan")), "header"),
    Hostile("a commit without a life", _control(_COMMIT, life=...), "header"),
    Hostile("a commit that is for nobody", _control(_COMMIT, of=None), "header"),
    Hostile("a credit to a reader", _control(_CREDIT), "header"),
    Hostile("a welcome to a reader", _control(_WELCOME), "header"),
    Hostile("a death with the wrong token", _control(_DIED, run="guess"), "token"),
    Hostile("a death without a name", _control(_DIED, name=...), "header"),
    Hostile("a death that is not told how", _control(_DIED, how=5), "header"),
    Hostile("a death without a life", _control(_DIED, life=...), "header"),
    Hostile("a death at work upside down", _control(_DIED, ids=[[5, 1]]), "header"),
]


def false_haves(life: str) -> list[Hostile]:
    """What somebody says to have who knows the token and the reader's life, and still may not say just anything."""
    known = {**_COMMIT, "kind": "have", "of": life, "name": "writer-0", "part": 0, "parts": 1}
    return [
        Hostile("a have without a name", _control(known, name=...), "header"),
        Hostile("a have of a stranger", _control(known, name="writer-7"), "header"),
        Hostile("a part beyond the last", _control(known, part=1), "header"),
        Hostile("a part of none", _control(known, parts=0), "header"),
        Hostile("a million parts", _control(known, parts=1_000_000), "header"),
        Hostile("a negative part", _control(known, part=-1), "header"),
        Hostile("a have upside down", _control(known, ids=[[5, 1]]), "header"),
    ]


TO_WRITER = [
    Hostile("a welcome to a writer with the wrong token", _control(_WELCOME, run="guess"), "token"),
    Hostile("a welcome to a writer without a life", _control(_WELCOME, life=...), "header"),
    Hostile("a welcome to a writer with an extra frame", [*_control(_WELCOME), b""], "frames"),
    Hostile("a commit to a writer", _control(_COMMIT), "header"),
]
