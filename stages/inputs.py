"""Which files a list of files, globs, folders and URLs means. Imports nothing heavy."""

import re
from collections.abc import Iterable
from pathlib import Path

from streamer.errors import UsageError

SUFFIXES = (".root", ".ig")
"""What is taken from a folder."""

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>]+")
_HOST = re.compile(r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\])?(?::\d*)?")


def is_remote(path: Path | str) -> bool:
    """Whether it is a URL."""
    return isinstance(path, str) and "://" in path


def shown(path: Path | str) -> Path | str:
    """A name for people and for files: a URL without the password and the token that it may carry."""
    if not isinstance(path, str) or not is_remote(path):
        return path
    scheme, _, rest = path.partition("://")
    rest, *query = re.split("[?#]", rest, maxsplit=1)
    authority, slash, place = rest.partition("/")
    host = authority.rpartition("@")[2]
    if "@" in path and not _HOST.fullmatch(host):
        return f"{scheme}://..."  # a password with a mark that ends it, such as `/`
    # A proxy's path may be a URL again.
    return f"{scheme}://{host}{slash}{without_secrets(place)}{'?...' if query else ''}"


def without_secrets(text: str) -> str:
    """A text, such as an error's, with each URL in it as `shown`."""
    return _URL.sub(lambda url: str(shown(url[0])), text)


def several(inputs: Iterable[str]) -> list[list[str]]:
    """The files that each input stands for, none where it is a file or a URL itself.

    Raises
    ------
    UsageError
        For what stands for no file.
    """
    found = [(text, [str(path) for path in expand([text])]) for text in inputs]
    return [[] if files == [text] else files for text, files in found]


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
