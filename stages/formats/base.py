"""What a kind of event file must offer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import uproot

from stages.config import CHANNELS, InputConfig
from stages.formats.remote import is_lost, open_root, why
from stages.inputs import is_remote, shown, without_secrets
from stages.records import InputColumn
from streamer.block import Columns
from streamer.errors import UsageError

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


class Found:
    """A file of a kind that is not known yet: its beginning, and what a ROOT file holds.

    Attributes
    ----------
    path : Path or str
        For people; secrets of a URL are left out.
    url : str
        Where it is on a server; empty for a local file.
    """

    def __init__(self, path: Path | str, config: InputConfig) -> None:
        self.path, self.config = shown(path) if is_remote(path) else Path(path), config
        self.url = str(path) if is_remote(path) else ""
        self.head = b"root" if self.url else _head(Path(path))

    @cached_property
    def root(self) -> Any:
        """The open ROOT file, or None where it is another kind.

        Raises
        ------
        UsageError
            It begins as one and cannot be read.
        """
        if self.head[:4] != b"root":
            return None
        try:
            # A mapping, or uproot would look for an object's name behind a colon.
            file = open_root(self.url, self.config.timeout) if self.url else uproot.open({str(self.path): None})
            file.keys(recursive=False)
        except UsageError:
            raise
        except Exception as error:  # uproot raises whatever the broken bytes, or the network, lead to
            what = f"not a readable ROOT file ({one_line(error)}); it may be cut short: copy it again"
            if self.url:
                what = why(self.url, error, self.config.timeout)
            raise UsageError(f"{self.path}: {what}") from None
        return file

    def trouble(self, error: Exception) -> str:
        """Why a part of it cannot be read, in short."""
        lost = self.url and is_lost(error)
        return why(self.url, error, self.config.timeout) if lost else one_line(error)


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); check its name and permissions") from None
    if not head:
        raise UsageError(f"{path}: the file is empty (0 bytes); copy it again")
    return head


class EventFile(ABC):
    """An open event file.

    Attributes
    ----------
    path : Path or str
        For people; secrets of a URL are left out.
    kind : str
        For people.
    mappable : bool
        Whether `input.columns` can say what its columns are called.
    any_radius : bool
        Whether its jets may have another radius than ours.
    names : dict of str to str
        Our names of the columns it can give to its own names of them.
    images : tuple of str
        The channels of which it has ready-made images, as `ImagePixel`.
    wanted_images : tuple of str
        Those of them that are asked for.
    """

    kind: ClassVar[str]
    mappable: ClassVar[bool] = False
    any_radius: ClassVar[bool] = False

    def __init__(self, found: Found) -> None:
        self.path, self.config = found.path, found.config
        self.names: dict[str, str] = {}
        self.images: tuple[str, ...] = ()
        self.wanted_images: tuple[str, ...] = CHANNELS
        self.n_events = 0

    @classmethod
    @abstractmethod
    def matches(cls, found: Found) -> bool:
        """Whether this is a file of this kind."""

    def own_names(self) -> list[str]:
        """All columns in the file, under the file's own names."""
        return list(self.names.values())

    @abstractmethod
    def read(self, columns: Sequence[InputColumn], report: Report, first: int = 0) -> Iterator[Step]:
        """The events from entry `first` on, in steps of at most `input.step_events`.

        What cannot be read is reported and left out. Columns that the file cannot give are no part of the steps.
        """

    def check(self, columns: Sequence[InputColumn]) -> None:  # noqa: B027 - not every kind can tell
        """Raise `UsageError`, one line a column, for columns that are there and cannot be read."""

    def close(self) -> None:  # noqa: B027 - not every kind holds something open
        """Let go of the file."""


def one_line(error: BaseException) -> str:
    """What an error says, in one short line."""
    text = without_secrets(" ".join(str(error).split()))
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
