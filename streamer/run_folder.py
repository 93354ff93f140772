"""A run's private folder: its sockets, its configuration and its secret are there as long as its supervisor lives."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from streamer.errors import UsageError
from streamer.folders import make_private, runtime_dir

LOCK = "supervisor"
"""A file there, locked while the supervisor lives."""
FRESH_S = 60.0
"""A folder that is younger is left alone."""


@contextlib.contextmanager
def run_folder() -> Iterator[Path]:
    """A new one; those of runs whose supervisor was killed are removed.

    Raises
    ------
    UsageError
        It cannot be made.
    """
    base = runtime_dir()
    try:
        make_private(base)
        sweep(base)
        path = Path(tempfile.mkdtemp(prefix="run-", dir=base))
    except OSError as error:
        raise UsageError(
            f"{base}: no folder for the run's sockets ({error.strerror}); set XDG_RUNTIME_DIR to a folder of yours"
        ) from None
    lock = os.open(path / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)


def sweep(base: Path) -> None:
    """Remove the folders of runs whose supervisor was killed."""
    for path in base.glob("run-*"):
        with contextlib.suppress(OSError):  # somebody holds it, or it is just being made or removed
            if time.time() - path.stat().st_mtime < FRESH_S:
                continue
            lock = os.open(path / LOCK, os.O_RDWR | os.O_CLOEXEC)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(path, ignore_errors=True)
            finally:
                os.close(lock)
