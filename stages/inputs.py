"""Which files a list of files, globs, folders and URLs means. Imports nothing heavy."""

from collections.abc import Iterable
from pathlib import Path

from streamer.errors import UsageError

SUFFIXES = (".root", ".ig")
"""What is taken from a folder."""


def is_remote(path: Path | str) -> bool:
    """Whether it is a URL."""
    return isinstance(path, str) and "://" in path


def expand(inputs: Iterable[str]) -> list[Path | str]:
    """The files (URLs as texts), in order, each once.

    Raises
    ------
    UsageError
        For whatever stands for no file.
    """
    found: list[Path | str] = []
    for text in inputs:
        if is_remote(text):
            found.append(text)
            continue
        path = Path(text).expanduser()
        if path.is_dir():
            matches = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
            if not matches:
                raise UsageError(f"{text}: no {' or '.join(SUFFIXES)} files in this folder")
        elif any(mark in text for mark in "*?[") and not path.exists():
            matches = sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
            if not matches:
                raise UsageError(f"{text}: matches no file")
        else:
            matches = [path]
        found += matches
    unique = list(dict.fromkeys(found))
    if not unique:
        raise UsageError("no input; name event files, globs or folders, or run: streamer demo")
    return unique
