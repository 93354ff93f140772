"""ROOT files: a TTree or RNTuple `Events` with NanoAOD-style columns, read and written with uproot."""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import awkward as ak
import numpy as np
import uproot

from stages.config import InputConfig
from stages.formats.base import EventFile, Report, Step
from stages.records import INPUT, InputColumn
from streamer.block import Columns, Schema
from streamer.errors import UsageError, nearest

WRITE_EVENTS = 10_000
"""Events per extend: uproot writes small ones slowly."""


class RootFile(EventFile):
    """A TTree or an RNTuple."""

    kind = "ROOT"
    suffixes: ClassVar[tuple[str, ...]] = (".root",)

    def __init__(self, path: Path, config: InputConfig) -> None:
        super().__init__(path, config)
        try:
            self._file = uproot.open(path)
            names = self._file.keys(recursive=False, cycle=False)
        except Exception as error:  # uproot raises whatever the broken bytes lead to
            raise UsageError(f"{path}: not a readable ROOT file ({_line(error)}); it may be truncated") from None
        if config.tree not in names:
            trees = ", ".join(names) or "nothing"
            raise UsageError(
                f"{path}: no tree '{config.tree}' in the file (it has {trees})"
                f"{nearest(config.tree, names)}; set input.tree"
            )
        try:
            self._tree = self._file[config.tree]
            self.n_events = int(self._tree.num_entries)
            # RNTuple lists sub-fields with dots where a TTree has underscores.
            self._own = {str(name): str(name) for name in self._tree.keys()}  # noqa: SIM118 - not a mapping
        except Exception as error:
            raise UsageError(f"{path}: '{config.tree}' cannot be read ({_line(error)})") from None
        for column in INPUT:
            own = config.columns.get(column.name, column.name)
            for name in (own, own.replace("_", ".", 1)):
                if name in self._own:
                    self.names[column.name] = name
                    break

    @property
    def layout(self) -> str:
        """`TTree` or `RNTuple`."""
        return "RNTuple" if "RNTuple" in type(self._tree).__name__ else "TTree"

    @classmethod
    def matches(cls, head: bytes) -> bool:
        return head[:4] == b"root"

    def own_names(self) -> list[str]:
        return list(self._own)

    def close(self) -> None:
        self._file.close()

    def check(self, columns: Sequence[InputColumn]) -> None:
        super().check(columns)
        lines, unreadable = [], []
        for column in columns:
            if column.name in self.names and self.n_events:
                own = self.names[column.name]
                try:
                    array = self._sample(column)
                except Exception as error:
                    unreadable.append((own, _line(error)))
                    continue
                try:
                    self._convert(column, array)
                except Exception as error:
                    lines.append(f"{self.path}: column '{own}' is not {_wanted(column)} ({_line(error)})")
        if unreadable:
            names = ", ".join(name for name, _ in unreadable)
            why = unreadable[0][1]
            lines.append(f"{self.path}: cannot be read: {names} ({why}); the file may be truncated or damaged")
        if lines:
            raise UsageError("\n".join(lines))

    def _sample(self, column: InputColumn) -> Any:
        """One entry of a column: the first, or another where that one is damaged."""
        for entry in (0, self.n_events // 2):
            with contextlib.suppress(Exception):
                return self._arrays([column], entry, entry + 1)[column.name]
        return self._arrays([column], self.n_events - 1, self.n_events)[column.name]

    def read(self, columns: Sequence[InputColumn], report: Report) -> Iterator[Step]:
        present = [column for column in columns if column.name in self.names]
        start, size = 0, self.config.step_events
        while start < self.n_events:
            n = min(size, self.n_events - start)
            try:
                for arrays in self._steps(present, start, size):
                    n = min(size, self.n_events - start)
                    yield self._step(present, arrays, start, n, report)
                    start += n
            except Exception:  # uproot raises whatever the broken bytes lead to
                n = min(size, self.n_events - start)
                yield from self._pieces(present, start, n, report)
                start += n

    def _pieces(self, columns: Sequence[InputColumn], start: int, n: int, report: Report) -> Iterator[Step]:
        """What can be read of a step that is damaged; a bad basket or cluster costs its own entries."""
        limits = {start, start + n, *(limit for limit in self._limits(columns) if start < limit < start + n)}
        for first, last in itertools.pairwise(sorted(limits)):
            try:
                step = self._step(columns, self._arrays(columns, first, last), first, last - first, report)
            except Exception as error:
                report(first, last - first, _line(error))
            else:
                yield step

    def _limits(self, columns: Sequence[InputColumn]) -> set[int]:
        """Entries with which a basket (TTree) or a cluster (RNTuple) begins."""
        if self.layout == "RNTuple":
            return {cluster.num_first_entry for cluster in self._tree.cluster_summaries}
        return {int(limit) for column in columns for limit in self._tree[self.names[column.name]].entry_offsets}

    def _steps(self, columns: Sequence[InputColumn], start: int, size: int) -> Iterator[dict[str, Any]]:
        own = [self.names[column.name] for column in columns]
        for arrays in self._tree.iterate(own, step_size=size, entry_start=start, how=dict):
            yield {column.name: arrays[name] for column, name in zip(columns, own, strict=True)}

    def _arrays(self, columns: Sequence[InputColumn], start: int, stop: int) -> dict[str, Any]:
        own = [self.names[column.name] for column in columns]
        arrays = self._tree.arrays(own, entry_start=start, entry_stop=stop, how=dict)
        return {column.name: arrays[name] for column, name in zip(columns, own, strict=True)}

    def _step(self, columns: Sequence[InputColumn], arrays: dict[str, Any], start: int, n: int, report: Report) -> Step:
        out: Columns = {}
        for column in columns:
            counts, values = self._convert(column, arrays[column.name])
            if len(values if counts is None else counts) != n:
                raise ValueError(f"{column.name} has not {n} entries")
            if counts is not None:
                known = out.setdefault(f"n{column.collection}", counts)
                if not np.array_equal(known, counts):
                    return self._consistent(columns, arrays, start, n, report)
            out[column.name] = values
        return Step(np.arange(start, start + n), out)

    def _consistent(
        self, columns: Sequence[InputColumn], arrays: dict[str, Any], start: int, n: int, report: Report
    ) -> Step:
        """The events whose collections have columns of one length."""
        good = np.ones(n, bool)
        first: dict[str, Any] = {}
        for column in columns:
            if column.collection:
                counts = np.asarray(ak.num(arrays[column.name]))
                good &= counts == first.setdefault(column.collection, counts)
        left = self._step(columns, {k: a[good] for k, a in arrays.items()}, 0, int(good.sum()), report)
        for entry in np.flatnonzero(~good):
            report(start + int(entry), 1, "columns of one collection differ in length")
        return Step(start + np.flatnonzero(good), left.columns)

    def _convert(self, column: InputColumn, array: Any) -> tuple[Any, Any]:
        """Counts (or None) and flat values of an awkward array, in our dtype."""
        if array.ndim != (2 if column.collection else 1):
            raise TypeError(f"it has {array.ndim - 1} axes in an event")
        if not column.collection:
            return None, _values(column, ak.to_numpy(array))
        counts = ak.to_numpy(ak.num(array)).astype(np.int32)
        if not counts.any() and "unknown" in str(array.type):
            return counts, np.zeros(0, column.wire.wire_dtype)
        return counts, _values(column, ak.to_numpy(ak.flatten(array)))


def _values(column: InputColumn, content: Any) -> Any:
    """Values in the dtype of our column; TypeError where they are of another kind."""
    if content.dtype.kind == "i" and column.dtype[0] == "u":
        content = content.view(content.dtype.str.replace("i", "u"))  # detids in signed files
    if content.dtype.kind == "b":
        content = content.view(np.uint8)
    return content.astype(column.wire.wire_dtype, casting=_casting(column, content), copy=False)


def _casting(column: InputColumn, content: Any) -> Any:
    """Integers of any width fit where they are small; floats must not become integers."""
    both_integers = column.dtype[0] in "iu" and content.dtype.kind in "iu"
    return "unsafe" if both_integers else "same_kind"


def _wanted(column: InputColumn) -> str:
    kind = {"f": "floating point", "i": "integer", "u": "unsigned integer"}[column.dtype[0]]
    return f"a list of {kind} values an event" if column.collection else f"one {kind} value an event"


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__


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
    part = path.with_name(path.name + ".part")
    n = 0
    with uproot.recreate(part, compression=uproot.ZSTD(3)) as file:  # read back several times faster than zlib
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
        for name, text in (metadata or {}).items():
            file[name] = text
    _fsync(part)
    part.replace(path)
    _fsync(path.parent)
    return n


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
