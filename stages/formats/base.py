"""What a kind of event file must offer."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import uproot
from uproot.source.http import HTTPSource
from uproot.source.xrootd import XRootDSource

from stages.config import CHANNELS, InputConfig
from stages.inputs import is_remote
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
    """A file of a kind that is not known yet: its beginning, and what a ROOT file holds."""

    def __init__(self, path: Path | str, config: InputConfig) -> None:
        self.path, self.config = path, config
        self.head = b"root" if is_remote(path) else _head(Path(path))

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
        remote = is_remote(self.path)
        try:
            # A mapping, or uproot would look for an object's name behind a colon.
            file = uproot.open({str(self.path): None}, **(_source(str(self.path), self.config) if remote else {}))
            file.keys(recursive=False)
        except UsageError:
            raise
        except Exception as error:  # uproot raises whatever the broken bytes, or the network, lead to
            what, fix = ("cannot be read", "check the address and the server") if remote else (
                "not a readable ROOT file", "it may be truncated")  # fmt: skip
            raise UsageError(f"{self.path}: {what} ({one_line(error)}); {fix}") from None
        return file


def _source(url: str, config: InputConfig) -> dict[str, Any]:
    """How uproot reads from a server: by its own sources, which need nothing more for HTTP."""
    scheme = url.partition("://")[0]
    if scheme in ("http", "https"):
        return {"handler": HTTPSource, "timeout": config.timeout}
    if scheme in ("root", "roots"):
        if find_spec("XRootD") is None:
            raise UsageError(f"{url}: reading {scheme}:// needs XRootD: pip install 'e2e-streamer[xrootd]'")
        return {"handler": XRootDSource, "timeout": config.timeout}
    raise UsageError(f"{url}: {scheme}:// is not known; root://, http:// and https:// are")


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
    kind : str
        For people.
    mappable : bool
        Whether `input.columns` can say what its columns are called.
    names : dict of str to str
        Our names of the columns it can give to its own names of them.
    images : tuple of str
        The channels of which it has ready-made images, as `ImagePixel`.
    wanted_images : tuple of str
        Those of them that are asked for.
    """

    kind: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    mappable: ClassVar[bool] = False

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
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:160]}" if text else type(error).__name__
