"""Events in a TTree or an RNTuple, whatever its columns are called: what the kinds of ROOT files share.

A kind says which tree it looks for and, for each of our columns, what it is made of (`Recipe`). Damage costs only the
baskets or clusters that it is in.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, TypeVar

import awkward as ak
import numpy as np

from stages.config import InputConfig
from stages.formats.base import EventFile, Found, Report, Step, one_line
from stages.formats.remote import Patience, is_lost, open_root
from stages.records import InputColumn
from streamer.block import Columns
from streamer.errors import StreamerError, UsageError, nearest

T = TypeVar("T")


@dataclass(frozen=True)
class Recipe:
    """How one of our columns is made of those of a file.

    Parameters
    ----------
    own : tuple of str
        The columns that are read.
    make : callable
        Takes their awkward arrays in that order, and gives ours.
    also : tuple of str
        Columns that are read where they are there; `make` is handed them behind the others, None where not.
    """

    own: tuple[str, ...]
    make: Callable[..., Any] = lambda array: array
    also: tuple[str, ...] = ()

    def settled(self, there: Set[str]) -> "Recipe":
        """The same for a file with these columns."""
        more = [name for name in self.also if name in there]

        def make(*arrays: Any) -> Any:
            given = dict(zip(more, arrays[len(self.own) :], strict=True))
            return self.make(*arrays[: len(self.own)], *(given.get(name) for name in self.also))

        return Recipe((*self.own, *more), make)


def same(own: str, times: float = 1.0) -> Recipe:
    """A column of the file as it is, or in another unit."""
    return Recipe((own,), (lambda array: array * times) if times != 1.0 else lambda array: array)


def told(own: Sequence[str]) -> str:
    """A file's columns that one of ours is made of, in short."""
    return own[0] + (f" and {len(own) - 1} more" if len(own) > 1 else "")


def _of(arrays: dict[str, Any], own: str) -> Any:
    """A column of the file; members of records, as an RNTuple may have (`Jet.pt`), come together as records."""
    if own in arrays:
        return arrays[own]
    record, _, member = own.partition(".")
    return arrays[record][member]


class TreeFile(EventFile):
    """A file with one tree of events."""

    recipes: ClassVar[dict[str, tuple[Recipe, ...]]] = {}
    """Our columns to the ways to make them; the first is taken whose columns the file has."""
    inconsistent: ClassVar[str] = "columns of one collection differ in length"
    """What is wrong with an event whose columns do not fit together."""

    def __init__(self, found: Found) -> None:
        super().__init__(found)
        self._url, self._patience = found.url, Patience(found.url, found.config.timeout)
        self._trouble = found.trouble
        self._file = found.root
        self._tree = self._open(self.tree_name(found.config))
        try:
            self.n_events = int(self._tree.num_entries)
            # A split branch stands below its object: `Track/Track.PT` is known as `Track.PT`.
            keys = self._tree.keys()
            self._own = list(dict.fromkeys(str(name).rpartition("/")[2] for name in keys))
        except Exception as error:
            trouble = self._trouble(error)
            raise UsageError(
                f"{self.path}: '{self._tree.name}' cannot be read ({trouble}); if it was cut off, copy it again"
            ) from None
        own = set(self._own)
        self.made: dict[str, Recipe] = {}
        for name, recipes in self.ways(found.config).items():
            recipe = next((recipe for recipe in recipes if own.issuperset(recipe.own)), None)
            if recipe is not None:
                self.made[name] = recipe.settled(own)
                self.names[name] = told(recipe.own)

    @classmethod
    def tree_name(cls, config: InputConfig) -> str:
        """Where the events are in the file."""
        return config.tree

    def ways(self, config: InputConfig) -> dict[str, tuple[Recipe, ...]]:
        """The recipes, where the configuration has a say in them."""
        return self.recipes

    @classmethod
    def matches(cls, found: Found) -> bool:
        if found.root is None:
            return False
        *folder, name = cls.tree_name(found.config).split("/")
        place = found.root
        for part in folder:
            if part not in place.keys(recursive=False, cycle=False):
                return False
            try:
                place = place[part]
            except Exception as error:
                raise UsageError(f"{found.path}: '{part}' cannot be read ({found.trouble(error)})") from None
        return name in place.keys(recursive=False, cycle=False)

    def _open(self, name: str) -> Any:
        names = self._file.keys(recursive=False, cycle=False)
        if name.partition("/")[0] not in names:
            trees = ", ".join(names) or "nothing"
            raise UsageError(
                f"{self.path}: no tree '{name}' in the file (it has {trees}){nearest(name, names)}; set input.tree"
            )
        try:
            tree = self._file[name]
            tree.num_entries  # noqa: B018 - raises where it is no tree
        except Exception as error:
            trouble = self._trouble(error)
            raise UsageError(
                f"{self.path}: '{name}' cannot be read ({trouble}); if it was cut off, copy it again"
            ) from None
        return tree

    def _again(self, error: Exception, entry: int) -> bool:
        """Whether it was the connection that failed; the file is then open again.

        Raises
        ------
        StreamerError
            The server stayed away, or has another file now.
        """
        if not (self._url and is_lost(error)):
            return False
        while True:
            self._patience.wait(error, entry)
            with contextlib.suppress(Exception):
                self._file.close()
            try:
                file = open_root(self._url, self.config.timeout)
                tree = file[self.tree_name(self.config)]
            except Exception as failure:
                error = failure
                continue
            if file.file.uuid != self._file.file.uuid:
                raise StreamerError(f"{self.path}: another file now than at entry {entry}; start again")
            self._file, self._tree = file, tree
            return True

    def _reached(self, entry: int, do: Callable[[], T]) -> T:
        """What `do` gives, if need be with a new connection."""
        while True:
            try:
                out = do()
            except Exception as error:
                if not self._again(error, entry):
                    raise
            else:
                self._patience.reached()
                return out

    @property
    def tree(self) -> Any:
        """The open tree."""
        return self._tree

    def whole(self, names: Sequence[str], first: int, last: int) -> dict[str, Any]:
        """Columns under the file's own names, of the entries `first` to `last`, as they are."""
        arrays = self._reached(first, lambda: self._tree.arrays(names, entry_start=first, entry_stop=last, how=dict))
        return {name.rpartition("/")[2]: array for name, array in arrays.items()}

    @property
    def layout(self) -> str:
        """`TTree` or `RNTuple`."""
        return "RNTuple" if "RNTuple" in type(self._tree).__name__ else "TTree"

    def own_names(self) -> list[str]:
        return list(self._own)

    def own_of(self, columns: Sequence[InputColumn]) -> list[str]:
        """The file's columns that ours are made of."""
        return list(dict.fromkeys(own for column in columns for own in self.made[column.name].own))

    def make(self, columns: Sequence[InputColumn], arrays: dict[str, Any]) -> dict[str, Any]:
        """Our columns as awkward arrays, of the file's."""
        recipes = {column.name: self.made[column.name] for column in columns}
        return {name: recipe.make(*(_of(arrays, own) for own in recipe.own)) for name, recipe in recipes.items()}

    def close(self) -> None:
        self._file.close()

    def check(self, columns: Sequence[InputColumn]) -> None:
        lines, unreadable = [], []
        for column in columns:
            if column.name in self.names and self.n_events:
                own = self.names[column.name]
                try:
                    array = self._sample(column)
                except StreamerError:
                    raise
                except Exception as error:
                    unreadable.append((own, one_line(error)))
                    continue
                try:
                    self._convert(column, array)
                except Exception as error:
                    lines.append(f"{self.path}: column '{own}' is not {_wanted(column)} ({one_line(error)})")
        if unreadable:
            names = ", ".join(name for name, _ in unreadable[:3])
            names += f" and {len(unreadable) - 3} more" if len(unreadable) > 3 else ""
            why = unreadable[0][1]
            lines.append(f"{self.path}: cannot be read: {names} ({why}); it may be cut short or damaged: copy it again")
        if lines:
            raise UsageError("\n".join(lines))

    def _sample(self, column: InputColumn) -> Any:
        """One entry of a column: the first, or another where that one is damaged."""

        def one(entry: int) -> Any:
            return self._reached(entry, lambda: self._arrays([column], entry, entry + 1))[column.name]

        for entry in (0, self.n_events // 2):
            try:
                return one(entry)
            except StreamerError:
                raise
            except Exception:
                continue  # damaged there; if the last one is too, its error is told
        return one(self.n_events - 1)

    def read(self, columns: Sequence[InputColumn], report: Report, first: int = 0) -> Iterator[Step]:
        present = [column for column in columns if column.name in self.names]
        start, size = first, self.config.step_events
        while start < self.n_events:
            n = min(size, self.n_events - start)
            try:
                for arrays in self._steps(present, start, size):
                    n = min(size, self.n_events - start)
                    self._patience.reached()
                    yield self._step(present, arrays, start, n, report)
                    start += n
            except Exception as error:  # uproot raises whatever the broken bytes lead to
                if self._again(error, start):
                    continue
                n = min(size, self.n_events - start)
                yield from self._pieces(present, start, n, report)
                start += n

    def _pieces(self, columns: Sequence[InputColumn], start: int, n: int, report: Report) -> Iterator[Step]:
        """What can be read of a step that is damaged; a bad basket or cluster costs its own entries."""
        known = self._reached(start, lambda: self._limits(columns))
        limits = {start, start + n, *(limit for limit in known if start < limit < start + n)}
        for first, last in itertools.pairwise(sorted(limits)):
            try:
                arrays = self._reached(first, partial(self._arrays, columns, first, last))
                step = self._step(columns, arrays, first, last - first, report)
            except StreamerError:
                raise
            except Exception as error:
                report(first, last - first, one_line(error))
            else:
                yield step

    def _limits(self, columns: Sequence[InputColumn]) -> set[int]:
        """Entries with which a basket (TTree) or a cluster (RNTuple) begins."""
        if self.layout == "RNTuple":
            return {cluster.num_first_entry for cluster in self._tree.cluster_summaries}
        return {int(limit) for own in self.own_of(columns) for limit in self._tree[own].entry_offsets}

    def _steps(self, columns: Sequence[InputColumn], start: int, size: int) -> Iterator[dict[str, Any]]:
        for arrays in self._tree.iterate(self.own_of(columns), step_size=size, entry_start=start, how=dict):
            yield self.make(columns, arrays)

    def _arrays(self, columns: Sequence[InputColumn], start: int, stop: int) -> dict[str, Any]:
        own = self.own_of(columns)
        return self.make(columns, self._tree.arrays(own, entry_start=start, entry_stop=stop, how=dict))

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
            report(start + int(entry), 1, self.inconsistent)
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
