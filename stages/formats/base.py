"""What a kind of event file must offer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from stages.config import InputConfig
from stages.records import InputColumn
from streamer.block import Columns
from streamer.errors import UsageError, nearest

Report = Callable[[int, int, str], None]
"""Told (first entry, number of entries, why) for events that cannot be read."""


@dataclass(frozen=True)
class Step:
    """Some events of a file.

    Attributes
    ----------
    entries : numpy.ndarray of int64, shape (n_events,)
        Where they stand in the file.
    columns : dict of str to numpy.ndarray
        The wanted columns and the count columns of their collections.
    """

    entries: npt.NDArray[np.int64]
    columns: Columns


class EventFile(ABC):
    """An open event file.

    Attributes
    ----------
    kind : str
        For people.
    names : dict of str to str
        Our names of the columns it can give to its own names of them.
    """

    kind: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, path: Path, config: InputConfig) -> None:
        self.path, self.config = path, config
        self.names: dict[str, str] = {}
        self.n_events = 0

    @classmethod
    @abstractmethod
    def matches(cls, head: bytes) -> bool:
        """Whether a file that begins so is of this kind."""

    @abstractmethod
    def own_names(self) -> list[str]:
        """All columns in the file, under the file's own names."""

    @abstractmethod
    def read(self, columns: Sequence[InputColumn], report: Report) -> Iterator[Step]:
        """The events in steps of at most `input.step_events`; what cannot be read is reported and left out."""

    def close(self) -> None:  # noqa: B027 - not every kind holds something open
        """Let go of the file."""

    def check(self, columns: Sequence[InputColumn]) -> None:
        """Raise `UsageError`, one line a column, unless the file has all that are not optional."""
        lines = []
        own = set(self.own_names())
        own -= {f"n{name}" for name in own} | set(self.names.values())  # a counter or what is taken is no suggestion
        for column in columns:
            if column.name in self.names or column.optional:
                continue
            wanted = self.config.columns.get(column.name, column.name)
            near = nearest(wanted, sorted(own))
            mapped = near.removeprefix("; did you mean '").removesuffix("'?")
            fix = f'; if \'{mapped}\' is it, set [input.columns] {column.name} = "{mapped}"' if near else (
                f"; map it with [input.columns] {column.name} = \"...\"")  # fmt: skip
            lines.append(f"{self.path}: no column '{wanted}' ({column.doc}){fix}")
        if lines:
            raise UsageError("\n".join(lines))
