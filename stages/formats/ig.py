"""CMS event-display files (.ig): a zip archive with one text file an event, JSON but for three habits.

The habits: strings in single quotes, tuples in round brackets, bare `nan` and `inf`. Lengths are in metres there and
in cm here. Photons are not linked to superclusters, so there is no `Photon_seedDetId`; jets are those that the file has
(anti-kT with R = 0.7 in the 2012 files).
"""

import json
import re
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from stages.formats.base import EventFile, Found, Report, Step
from stages.records import INPUT, LABELS, TIME, InputColumn
from streamer.block import Columns
from streamer.errors import UsageError

MAX_EVENT_BYTES = 64 << 20

_STRING = re.compile(r"""("(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')""")
_ENTRY = re.compile(r"Events/Run_(\d+)/Event_(\d+)")
_COLLECTIONS = {
    "EBRecHit": ("EBRecHits_V2",),
    "EERecHit": ("EERecHits_V2",),
    "HBHERecHit": ("HBRecHits_V2", "HERecHits_V2"),
}
_GIVEN = (*_COLLECTIONS, "Track", "Photon", "Jet", "PV")
_LACKING = ("Photon_seedDetId", "Photon_superClusterIdx", *LABELS.values())
_CM = 100.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class IgFile(EventFile):
    """A zip of events."""

    kind = "CMS event display (.ig)"
    any_radius = True

    def __init__(self, found: Found) -> None:
        super().__init__(found)
        path = self.path
        try:
            self._zip = zipfile.ZipFile(path)
            self._entries = [info for info in self._zip.infolist() if _ENTRY.fullmatch(info.filename)]
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise UsageError(
                f"{path}: not a readable .ig archive ({error}); it may be cut short: copy it again"
            ) from None
        if not self._entries:
            raise UsageError(f"{path}: a zip archive without Events/Run_*/Event_* files; not an .ig file")
        self.n_events = len(self._entries)
        self.names = {c.name: c.name for c in INPUT if (c.collection in _GIVEN and c.name not in _LACKING)
                      or not c.collection} | {TIME.name: "Event_V2 time"}  # fmt: skip

    @classmethod
    def matches(cls, found: Found) -> bool:
        return found.head[:2] == b"PK"

    def close(self) -> None:
        self._zip.close()

    def read(self, columns: Sequence[InputColumn], report: Report, first: int = 0) -> Iterator[Step]:
        wanted = [column for column in columns if column.name in self.names]
        for start in range(first, self.n_events, self.config.step_events):
            entries, events = [], []
            for entry in range(start, min(start + self.config.step_events, self.n_events)):
                try:
                    events.append(_in_our_types(wanted, self._event(entry)))
                    entries.append(entry)
                except Exception as error:  # whatever a broken archive or text leads to
                    name = self._entries[entry].filename
                    report(entry, 1, f"{name}: {type(error).__name__}: {' '.join(str(error).split())[:120]}")
            if events:
                yield Step(np.array(entries, np.int64), _columns(wanted, events))

    def members(self, entries: Iterable[int]) -> Iterator[tuple[str, bytes]]:
        """The names and texts of events as they are in the archive."""
        for entry in entries:
            info = self._entries[entry]
            yield info.filename, self._zip.read(info)

    def _event(self, entry: int) -> dict[str, Any]:
        info = self._entries[entry]
        if info.file_size > MAX_EVENT_BYTES:
            raise ValueError(f"{info.file_size} bytes in one event; at most {MAX_EVENT_BYTES} are read")
        document = parse(self._zip.read(info).decode())
        return event_columns(document)


def parse(text: str) -> dict[str, Any]:
    """The document of one event file."""
    pieces = _STRING.split(text)
    for i, piece in enumerate(pieces):
        if i % 2 == 0:
            piece = piece.replace("(", "[").replace(")", "]")
            pieces[i] = piece.replace("nan", "NaN").replace("inf", "Infinity")
        elif piece[0] == "'":
            pieces[i] = json.dumps(piece[1:-1])
    document = json.loads("".join(pieces))
    if not isinstance(document, dict):
        raise ValueError("not a document with Types and Collections")
    return document


def event_columns(document: dict[str, Any]) -> dict[str, Any]:
    """Our columns of one event: scalars, and one array per collection member."""
    table = _Table(document)
    header = table.rows("Event_V2")
    if not header:
        raise ValueError("no Event_V2")
    out: dict[str, Any] = {
        "run": header[0][table.place("Event_V2", "run")],
        "luminosityBlock": header[0][table.place("Event_V2", "ls")],
        "event": header[0][table.place("Event_V2", "event")],
        TIME.name: time_ns(table.text("Event_V2", "time")),
    }
    for collection, sources in _COLLECTIONS.items():
        for field, dtype in (("detid", np.int64), ("energy", np.float32), ("time", np.float32)):
            parts = [table.field(source, field, dtype) for source in sources]
            out[f"{collection}_{field}"] = np.concatenate(parts)
    for collection, source, pt in (
        ("Photon", "Photons_V1", "et"),
        ("Jet", "PFJets_V1", "et"),
        ("Track", "Tracks_V3", "pt"),
    ):
        for ours, theirs in (("pt", pt), ("eta", "eta"), ("phi", "phi")):
            out[f"{collection}_{ours}"] = table.field(source, theirs, np.float32)
    vertices = table.vectors("Vertices_V1", "pos") * _CM
    out |= {f"PV_{axis}": vertices[:1, i] for i, axis in enumerate("xyz")}
    out |= _track_parameters(table, vertices[0] if len(vertices) else np.zeros(3))
    return out


def time_ns(text: str) -> int:
    """`2012-Jul-04 12:00:45.665530 GMT` as Unix time in ns; 0 where it is none."""
    try:
        when = datetime.strptime(text, "%Y-%b-%d %H:%M:%S.%f GMT").replace(tzinfo=UTC)
    except ValueError:
        return 0
    return (when - _EPOCH) // timedelta(microseconds=1) * 1000


def _track_parameters(table: "_Table", vertex: Any) -> dict[str, Any]:
    """Charge and impact parameters relative to the primary vertex, or to the origin where there is none."""
    x, y, z = (table.vectors("Tracks_V3", "pos") * _CM - vertex).T  # axes: xyz, track
    phi = table.field("Tracks_V3", "phi", np.float64)
    cotangent = np.sinh(table.field("Tracks_V3", "eta", np.float64))
    return {
        "Track_charge": table.field("Tracks_V3", "charge", np.int8),
        "Track_d0": x * np.sin(phi) - y * np.cos(phi),
        "Track_dz": z - (x * np.cos(phi) + y * np.sin(phi)) * cotangent,
        "Track_highPurity": np.ones(len(phi), np.uint8),
    }


class _Table:
    """Fields of collections by name."""

    def __init__(self, document: dict[str, Any]) -> None:
        self._types, self._collections = document["Types"], document["Collections"]

    def rows(self, collection: str) -> list[Any]:
        return self._collections.get(collection) or []

    def place(self, collection: str, field: str) -> int:
        return [name for name, _ in self._types[collection]].index(field)

    def text(self, collection: str, field: str) -> str:
        """Of the first row; empty where there is no such field."""
        names = [name for name, _ in self._types[collection]]
        return str(self.rows(collection)[0][names.index(field)]) if field in names else ""

    def field(self, collection: str, field: str, dtype: Any) -> Any:
        rows = self.rows(collection)
        if not rows:
            return np.zeros(0, dtype)
        place = self.place(collection, field)
        return np.array([row[place] for row in rows], dtype)

    def vectors(self, collection: str, field: str) -> Any:
        return self.field(collection, field, np.float64).reshape(-1, 3)


def _in_our_types(wanted: Sequence[InputColumn], event: dict[str, Any]) -> dict[str, Any]:
    """The wanted columns of one event; raises where a value is of another kind or a collection's columns differ."""
    out: dict[str, Any] = {}
    lengths: dict[str, int] = {}
    for column in wanted:
        array = np.array(event[column.name])
        shape = (lengths.setdefault(column.collection, array.size),) if column.collection else ()
        if array.shape != shape:
            raise ValueError(f"{column.name} has shape {array.shape}")
        if not column.collection:  # from the number itself, which is checked for its range
            array = np.array(event[column.name], column.wire.wire_dtype)
        out[column.name] = array.astype(column.wire.wire_dtype, copy=False)
    return out


def _columns(wanted: Sequence[InputColumn], events: list[dict[str, Any]]) -> Columns:
    out: Columns = {}
    for column in wanted:
        parts = [event[column.name] for event in events]
        if column.collection:
            out.setdefault(f"n{column.collection}", np.array([len(part) for part in parts], np.int32))
            out[column.name] = np.concatenate(parts)
        else:
            out[column.name] = np.array(parts)
    return out
