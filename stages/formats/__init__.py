"""Kinds of event files. One file a kind, one class each; `FORMATS` is the list that is tried."""

from pathlib import Path

from stages.config import InputConfig
from stages.formats.base import EventFile
from stages.formats.ig import IgFile
from stages.formats.root import RootFile
from streamer.errors import UsageError

FORMATS: tuple[type[EventFile], ...] = (RootFile, IgFile)


def open_events(path: Path, config: InputConfig) -> EventFile:
    """Open an event file of any kind.

    Raises
    ------
    UsageError
        With what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); check its name and permissions") from None
    if not head:
        raise UsageError(f"{path}: the file is empty (0 bytes); copy it again")
    for kind in FORMATS:
        if kind.matches(head):
            return kind(path, config)
    known = ", ".join(kind.kind for kind in FORMATS)
    raise UsageError(f"{path}: not an event file (it begins with {head[:4]!r}); known kinds are {known}")
