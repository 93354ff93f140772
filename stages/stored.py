"""Files of scored events, in the forms that a run can be asked for (`writer.format`): written, found and read back."""

import contextlib
import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import awkward as ak
import uproot

from stages.formats.root import write_events
from stages.parquet import ParquetEvents, require_pyarrow, write_parquet
from streamer.block import Columns, Schema

Form = Literal["ttree", "rntuple", "parquet"]

SUFFIX: dict[Form, str] = {"ttree": ".root", "rntuple": ".root", "parquet": ".parquet"}
SUFFIXES = tuple(dict.fromkeys(SUFFIX.values()))


def require(form: Form) -> None:
    """See that files of a form can be written.

    Raises
    ------
    UsageError
        With the extra that is missing.
    """
    if form == "parquet":
        require_pyarrow()


def write(
    path: Path, form: Form, schema: Schema, steps: Iterable[Columns], title: str, metadata: dict[str, str]
) -> int:
    """Write events to a file that appears under its name only when it is complete; returns their number.

    Raises
    ------
    OSError
        The disk is full.
    """
    if form == "parquet":
        return write_parquet(path, schema, steps, title=title, metadata=metadata)
    return write_events(path, schema, steps, rntuple=form == "rntuple", title=title, metadata=metadata)


def sha256_of(path: Path) -> str:
    """Of a finished file, for the manifest."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Stored(Protocol):
    """A file of events that is read.

    Attributes
    ----------
    n_events : int
    names : list of str
        Of its columns.
    """

    n_events: int
    names: list[str]

    def text(self, name: str) -> str:
        """What stands beside the events under this name."""

    def arrays(self, names: Sequence[str], first: int, last: int) -> dict[str, ak.Array]:
        """Some columns of the events `first` to `last`."""

    def close(self) -> None:
        """Let go of it."""


class RootEvents:
    """A TTree or RNTuple, to be read."""

    def __init__(self, path: Path) -> None:
        self._file: Any = uproot.open({str(path): None})  # a mapping, or a colon in the path would mean an object
        self._tree = self._file["Events"]
        self.n_events: int = self._tree.num_entries
        self.names: list[str] = [*self._tree.keys()]

    def text(self, name: str) -> str:
        """What stands beside the tree under this name."""
        return str(self._file[name])

    def arrays(self, names: Sequence[str], first: int, last: int) -> dict[str, ak.Array]:
        """Some columns of the events `first` to `last`."""
        found: dict[str, ak.Array] = self._tree.arrays(list(names), entry_start=first, entry_stop=last, how=dict)
        return found

    def close(self) -> None:
        self._file.close()


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Stored]:
    """Open a file of scored events.

    Raises
    ------
    UsageError
        An extra is missing that could read it.
    """
    stored: Stored = ParquetEvents(path) if path.suffix == SUFFIX["parquet"] else RootEvents(path)
    try:
        yield stored
    finally:
        stored.close()


def scores_of(folder: Path, replica: int | None = None) -> list[Path]:
    """The files of scores in a folder, of any form, of one writer or of all; not what others have made beside them."""
    writer = r"(-\d+)?" if replica is None else f"-{replica}" if replica else ""
    stem = re.compile(rf"scores{writer}(_\d+)?")
    return sorted(path for path in folder.glob("scores*") if path.suffix in SUFFIXES and stem.fullmatch(path.stem))
