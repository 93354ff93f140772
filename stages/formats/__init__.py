"""Kinds of event files. One file a kind, one class each; `kinds` is the list that is tried.

Another package adds a kind of its own with an entry point in the group `streamer.formats`.
"""

from functools import cache
from importlib.metadata import entry_points
from pathlib import Path

from stages.config import InputConfig
from stages.formats.base import EventFile, Found, one_line
from stages.formats.delphes import DelphesFile
from stages.formats.ig import IgFile
from stages.formats.mlanalyzer import MLAnalyzerFile
from stages.formats.root import RootFile
from streamer.errors import UsageError

GROUP = "streamer.formats"


@cache
def kinds() -> tuple[type[EventFile], ...]:
    """The kinds in the order in which they are tried; those of other packages first."""
    others = []
    for point in entry_points(group=GROUP):
        try:
            others.append(point.load())
        except Exception as error:  # somebody else's code
            told = f"{GROUP}: '{point.name}' ({point.value}) cannot be imported ({one_line(error)})"
            raise UsageError(f"{told}; mend or uninstall the package that brings it") from None
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
            try:
                return kind(found)
            except UsageError:
                raise
            except Exception as error:  # whatever a broken file leads to
                raise UsageError(f"{found.path}: not a readable {kind.kind} file ({one_line(error)})") from None
    if found.head[:4] == b"PAR1":
        raise UsageError(f"{found.path}: a Parquet file, as runs write scores; hits are not read from such files")
    known = ", ".join(kind.kind for kind in kinds())
    raise UsageError(f"{found.path}: not an event file (it begins with {found.head[:4]!r}); known kinds are {known}")
