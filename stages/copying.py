"""Whole entries of event files, copied with all their columns into trees of the same layout.

Values stay as they are, byte for byte. A TTree's counters stay where they are int32; uproot writes no others, so that a
collection that is counted by another type, or that is a `std::vector`, gets a counter of its own beside it.
"""

import contextlib
import fnmatch
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import awkward as ak
import numpy as np
import uproot

from stages.formats.base import one_line
from stages.formats.tree import TreeFile
from stages.order import Int64s
from streamer.disk import sync_folder
from streamer.errors import StreamerError, UsageError

WINDOW_BYTES = 64 << 20
"""So much of a file is held at a time."""
WINDOW_ENTRIES = 10_000
WRITE_BYTES = 32 << 20
"""Events are written when they are so much, or all: few large baskets are read back fast."""


@dataclass(frozen=True)
class Layout:
    """The columns of a tree, as they are copied.

    Attributes
    ----------
    tree, kind : str
        Its name; `TTree` or `RNTuple`.
    columns : tuple of (name, type)
        As the source says.
    plain : dict of str to dtype or "string"
        Of a TTree: its columns with one value, or one array of always the same shape, an event.
    lists : dict of str to dict of str to dtype
        By counter, those that have as many values as this says.
    """

    tree: str
    kind: str
    columns: tuple[tuple[str, str], ...]
    plain: dict[str, Any] = field(compare=False, default_factory=dict)
    lists: dict[str, dict[str, Any]] = field(compare=False, default_factory=dict)

    @property
    def names(self) -> list[str]:
        return [name for name, _ in self.columns]

    def types(self) -> dict[str, Any]:
        """What uproot is handed for a TTree, in the order of the source; what one counter counts is a record."""
        owner = {name: counter for counter, kinds in self.lists.items() for name in (counter, *kinds)}
        out: dict[str, Any] = {}
        for name in self.names:
            if name not in owner:
                out[name] = self.plain[name]
                continue
            kinds = self.lists[owner[name]]
            members = [ak.types.NumpyType(np.dtype(kind).name) for kind in kinds.values()]
            out[_record(owner[name])] = ak.types.ListType(ak.types.RecordType(members, list(kinds)))
        return out


def _record(counter: str) -> str:
    return f"counted by {counter}"


def layout_of(file: TreeFile, without: Sequence[str] = (), how: str = "--without NAME") -> Layout:
    """What is copied of a file.

    Parameters
    ----------
    without : sequence of str
        Names or patterns (`L1_*`) of columns that are left out.
    how : str
        What leaves one out, for those who are told that one cannot be written.

    Raises
    ------
    UsageError
        There are columns that cannot be written.
    """
    tree, name = file.tree, file.tree_name(file.config)

    def wanted(column: str) -> bool:
        return not any(fnmatch.fnmatchcase(column, pattern) for pattern in without)

    if file.layout == "RNTuple":
        fields = [one for one in tree.keys(recursive=False) if wanted(one)]
        return Layout(name, "RNTuple", tuple((one, str(tree[one].typename)) for one in fields))
    leaves = [b for b in tree.itervalues(recursive=True) if not b.branches and wanted(b.name)]
    layout = Layout(name, "TTree", tuple((b.name, str(b.typename)) for b in leaves))
    unknown = [f"{b.name} ({b.typename})" for b in leaves if not _add(layout, b, layout.names)]
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise UsageError(
            f"{file.path}: columns of types that cannot be written to a TTree: {', '.join(unknown[:3])}{more}; leave "
            f"them out with {how}, which may be a pattern"
        )
    for counter in layout.lists:
        layout.plain.pop(counter, None)  # it is written with what it counts
    return layout


def _add(layout: Layout, branch: Any, taken: Sequence[str]) -> bool:
    """Enter a branch of a TTree; returns whether it can be written."""
    how = branch.interpretation
    if isinstance(how, uproot.interpretation.strings.AsStrings):
        layout.plain[branch.name] = "string"
        return True
    if isinstance(how, uproot.AsDtype) and how.to_dtype.names is None:
        layout.plain[branch.name] = how.to_dtype.newbyteorder("=")
        return True
    if not (isinstance(how, uproot.AsJagged) and isinstance(how.content, uproot.AsDtype)):
        return False
    kind = how.content.to_dtype
    if kind.names is not None or kind.subdtype is not None:
        return False
    by = branch.count_branch
    counter = by.name if by is not None else f"n{branch.name}"
    if by is None or by.interpretation != uproot.AsDtype(">i4"):  # it has one of its own here
        counter = f"n{branch.name}"
        while counter in taken:
            counter += "_"
    layout.lists.setdefault(counter, {})[branch.name] = kind.newbyteorder("=")
    return True


class Copy:
    """A file that whole entries are copied into. It appears under its name when it is complete."""

    def __init__(self, path: Path, layout: Layout) -> None:
        self.path, self.layout, self.n_events = path, layout, 0
        self._part = path.with_name(path.name + ".part")
        self._target: Any = None
        self._held: list[dict[str, Any]] = []

    def __enter__(self) -> "Copy":
        self._file = uproot.recreate(self._part, compression=uproot.ZSTD(3))
        return self

    def add(self, file: TreeFile, entries: Int64s) -> None:
        """Copy entries (int64, rising) of a file of this layout.

        Raises
        ------
        StreamerError
            Some cannot be read.
        """
        for first, last in windows(file, entries):
            picked = entries[np.searchsorted(entries, first) : np.searchsorted(entries, last)] - first
            try:
                arrays = file.whole(self.layout.names, first, last)
            except StreamerError:
                raise
            except Exception as error:  # uproot raises whatever the broken bytes lead to
                told = f"{file.path}: entries {first} to {last - 1} cannot be read: {one_line(error)}"
                raise StreamerError(f"{told}; leave out the column that is broken (--without), or mend it") from None
            self._held.append({name: array[picked] for name, array in arrays.items()})
            self.n_events += picked.size
            if sum(array.nbytes for part in self._held for array in part.values()) >= WRITE_BYTES:
                self._flush()

    def _flush(self) -> None:
        if not self._held:
            return
        parts, self._held = self._held, []
        names = self.layout.names
        arrays = {name: ak.to_packed(ak.concatenate([part[name] for part in parts])) for name in names}
        if self._target is None:
            self._target = self._made({name: array[:0] for name, array in arrays.items()})
        if self.layout.kind == "TTree":
            arrays = self._as_records(arrays)
        self._target.extend(arrays)

    def _made(self, empty: dict[str, Any]) -> Any:
        layout = self.layout
        folder, _, name = layout.tree.rpartition("/")
        target = self._file.mkdir(folder) if folder else self._file
        if layout.kind == "RNTuple":
            return target.mkrntuple(name, empty)
        records = {_record(counter): counter for counter in layout.lists}
        return target.mktree(
            name,
            layout.types(),
            counter_name=lambda record: records[record],
            field_name=lambda record, column: column if record in records else record,
        )

    def _as_records(self, arrays: dict[str, Any]) -> dict[str, Any]:
        plain = {
            name: arrays[name] if kind == "string" else ak.to_numpy(arrays[name])
            for name, kind in self.layout.plain.items()
        }
        lists = self.layout.lists.items()
        return plain | {_record(by): ak.zip({name: arrays[name] for name in kinds}) for by, kinds in lists}

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
            self._file.close()
        except BaseException:
            self._drop()
            raise
        if kind is not None:
            self._drop()
            return
        with self._part.open("rb") as file:
            os.fsync(file.fileno())
        self._part.replace(self.path)
        sync_folder(self.path.parent)

    def _drop(self) -> None:
        with contextlib.suppress(OSError):
            self._part.unlink()


def windows(file: TreeFile, entries: Int64s) -> Iterator[tuple[int, int]]:
    """Ranges of entries to be read at once, those without a wanted one left out."""
    n_bytes = getattr(file.tree, "uncompressed_bytes", 0) / max(1, file.n_events)
    size = int(np.clip(WINDOW_BYTES / max(n_bytes, 1.0), 1, WINDOW_ENTRIES))
    for window in np.unique(entries // size).tolist():
        yield window * size, min((window + 1) * size, file.n_events)
