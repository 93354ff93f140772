"""Our own layout: a TTree or RNTuple `Events` with NanoAOD-style columns, read and written with uproot."""

from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import uproot

from stages.config import CHANNELS, InputConfig
from stages.formats.base import Found
from stages.formats.tree import Recipe, TreeFile, same
from stages.records import READABLE
from streamer.arrivals import ORBIT_HZ, SLOTS
from streamer.block import Columns, Schema
from streamer.disk import appearing

ORBIT_NS = 1e9 / ORBIT_HZ

WRITE_EVENTS = 10_000
"""Events per extend: uproot writes small ones slowly."""


class RootFile(TreeFile):
    """A tree with our columns, or with others that `input.columns` translates."""

    kind = "ROOT"
    mappable = True

    def __init__(self, found: Found) -> None:
        super().__init__(found)
        if "ImagePixel_channel" in self.names:
            self.images = CHANNELS

    @classmethod
    def matches(cls, found: Found) -> bool:
        """Any ROOT file that no other kind knows; one without our tree is told so."""
        return found.root is not None

    def ways(self, config: InputConfig) -> dict[str, tuple[Recipe, ...]]:
        # RNTuple lists sub-fields with dots where a TTree has underscores.
        own = {column.name: config.columns.get(column.name, column.name) for column in READABLE}
        ways: dict[str, tuple[Recipe, ...]] = {
            ours: (same(name), same(name.replace("_", ".", 1))) for ours, name in own.items()
        }
        stamp = Recipe((own["time"],), partial(stamps, config.time_unit))
        return ways | {"time": (stamp, Recipe(("orbitNumber", "bunchCrossing"), since_begin_of_run))}


_NS = {"s": 1e9, "ms": 1e6, "us": 1e3, "ns": 1}


def stamps(unit: str, times: Any) -> Any:
    """Time stamps in ns; 0 for those that are no number, or out of its range."""
    values = ak.to_numpy(times)
    if unit == "auto":
        unit = "s" if values.dtype.kind == "f" else "ns"
    if unit == "edm":  # edm::Timestamp
        packed = values.astype(np.uint64)
        seconds, micros = packed >> np.uint64(32), packed & np.uint64(0xFFFFFFFF)
        return ak.Array(seconds.astype(np.int64) * 1_000_000_000 + micros.astype(np.int64) * 1000)
    far = np.iinfo(np.int64).max / _NS[unit]
    values = np.where((values > 0) & (values < far), values, values.dtype.type(0))
    if values.dtype.kind == "f":
        return ak.Array(np.round(values.astype(np.float64) * _NS[unit]).astype(np.int64))
    return ak.Array(values.astype(np.int64) * int(_NS[unit]))


def since_begin_of_run(orbit: Any, crossing: Any) -> Any:
    """Time in ns by the LHC's own count, as NanoAOD has it since its version 12."""
    return ak.values_astype(ak.values_astype(orbit, np.float64) * ORBIT_NS + crossing * (ORBIT_NS / SLOTS), np.int64)


def write_events(
    path: Path,
    schema: Schema,
    steps: Iterable[Columns],
    *,
    rntuple: bool = False,
    tree: str = "Events",
    title: str = "",
    metadata: dict[str, str] | None = None,
) -> int:
    """Write events to a ROOT file that appears under its name only when it is complete; returns their number.

    Parameters
    ----------
    schema : Schema
        The columns; only collections directly under the event.
    steps : iterable of columns
        Large steps are written fast, small ones slowly; see `WRITE_EVENTS`.
    metadata : dict of str to str
        Written beside the tree as named strings.
    """
    with appearing(path) as part:
        return _write(part, schema, steps, rntuple, tree, title, metadata or {})


def _write(
    path: Path,
    schema: Schema,
    steps: Iterable[Columns],
    rntuple: bool,
    tree: str,
    title: str,
    metadata: dict[str, str],
) -> int:
    n = 0
    with uproot.recreate(path, compression=uproot.ZSTD(3)) as file:  # read back several times faster than zlib
        types = {name: array.type.content if hasattr(array, "type") else array.dtype
                 for name, array in _branches(schema, schema.empty(), rntuple).items()}  # fmt: skip
        if rntuple:
            target = file.mkrntuple(tree, _branches(schema, schema.empty(), rntuple), description=title)
        else:
            target = file.mktree(tree, types, title=title)
        for columns in steps:
            n_step = len(columns[schema.columns[0].name])
            if n_step:
                target.extend(_branches(schema, columns, rntuple))
                n += n_step
        for name, text in metadata.items():
            file[name] = text
    return n


def _branches(schema: Schema, columns: Columns, rntuple: bool) -> dict[str, Any]:
    """What uproot is handed: a TTree takes a collection as a record and names its branches `C_x` and `nC` itself."""
    out: dict[str, Any] = {}
    for column in schema.columns:
        values = np.ascontiguousarray(columns[column.name])
        if column.counts:
            members = [c for c in schema.columns if c.per == column.counts]
            jagged = {c.name: ak.unflatten(np.ascontiguousarray(columns[c.name]), values) for c in members}
            if rntuple:
                out |= {column.name: values, **jagged}
            else:
                out[column.counts] = ak.zip({name.partition("_")[2]: array for name, array in jagged.items()})
        elif column.per == "event":
            out[column.name] = values
    return out
