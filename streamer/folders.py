"""This user's own folders: a private one for sockets, and one for what libraries keep where there is no home."""

import contextlib
import errno
import os
from pathlib import Path


def runtime_dir() -> Path:
    """`$XDG_RUNTIME_DIR/streamer`, or a private folder in /tmp: short, because socket paths must be."""
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "streamer" if base else Path(f"/tmp/streamer-{os.getuid()}")


def make_private(path: Path) -> None:
    """Make a folder that only we can enter; in /tmp somebody else may have been quicker to take its name."""
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    if path.stat().st_uid != os.getuid():
        raise PermissionError(errno.EPERM, "it belongs to somebody else", str(path))


def give_caches_a_place() -> None:
    """Without a home that can be written, as in containers, compiled kernels and fonts are kept in `runtime_dir`.

    Numba refuses to compile what it cannot keep, and without $HOME makes a folder `~` where it stands.
    """
    place = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if place.is_absolute() and _can_be_made(place):
        return
    with contextlib.suppress(OSError):  # then nothing works there, and whoever needs the folder says so
        make_private(runtime_dir())
        os.environ["XDG_CACHE_HOME"] = str(runtime_dir() / "cache")
        os.environ.setdefault("MPLCONFIGDIR", str(runtime_dir() / "cache" / "matplotlib"))


def _can_be_made(path: Path) -> bool:
    there = next(one for one in (path, *path.parents) if one.exists())
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)
