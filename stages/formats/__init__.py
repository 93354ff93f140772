"""Kinds of event files. One file a kind, one class each; `kinds` is the list that is tried.

Another package adds a kind of its own with an entry point in the group `streamer.formats`.
"""

from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from stages.config import InputConfig
from stages.formats.base import EventFile, Found
from stages.formats.delphes import DelphesFile
from stages.formats.ig import IgFile
from stages.formats.mlanalyzer import MLAnalyzerFile
from stages.formats.root import RootFile
from streamer.errors import UsageError

GROUP = "streamer.formats"


@cache
def kinds() -> tuple[type[EventFile], ...]:
    """The kinds in the order in which they are tried; those of other packages first."""
    others = tuple(point.load() for point in entry_points(group=GROUP))
    return (*others, DelphesFile, MLAnalyzerFile, RootFile, IgFile)


def open_events(path: Path | str, config: InputConfig) -> EventFile:
    """Open an event file of any kind.

    Raises
    ------
    UsageError
        With what is wrong with it.
    """
    found = Found(path, config)
    for kind in kinds():
        if kind.matches(found):
            return kind(found)
    known = ", ".join(kind.kind for kind in kinds())
    raise UsageError(f"{found.path}: not an event file (it begins with {found.head[:4]!r}); known kinds are {known}")
