"""What a disk can do to us, and what we do then.

A disk that takes nothing (full, read-only, broken) is tried again for a while, and then the process ends with one line
that names the file, the reason and what helps. What a failed fsync leaves in the page cache can be read, and yet is not
on the disk: the kernel tells of it once and then takes those pages for clean. So a file is cut back to its safe end at
once, and one that a predecessor left counts for what the disk itself has of it.
"""

import asyncio
import contextlib
import errno
import inspect
import logging
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from streamer.errors import StreamerError

log = logging.getLogger(__name__)

RETRY_S = 1.0
"""How often a disk that takes nothing is tried again."""


class DiskError(StreamerError):
    """A disk takes nothing, and has been waited for long enough."""

    again = False


def remedy(error: OSError) -> str:
    """What helps."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "make room"
    return "make it writable" if error.errno == errno.EROFS else "see to the disk"


async def patiently(
    work: Callable[[], object],
    patience: float,
    path: Path,
    what: str,
    advice: Callable[[str], str] = str,
) -> None:
    """Do what the disk may refuse, until it takes it.

    Parameters
    ----------
    work : callable
        What it returns is awaited where that is possible.
    patience : float
        For so long [s].
    path, what : Path, str
        The file, where the error does not name another, and what cannot be done with it.
    advice : callable
        Makes the end of the last line of what helps.

    Raises
    ------
    DiskError
        It has not taken it.
    """
    deadline, waiting = time.monotonic() + patience, False
    while True:
        try:
            done = work()
            if inspect.isawaitable(done):
                await done
            break
        except OSError as error:
            line = f"{error.filename or path}: {what} ({error.strerror or error})"
            if time.monotonic() >= deadline:
                raise DiskError(f"{line}; {advice(remedy(error))}") from None
            if not waiting:
                log.error("%s; the stream waits up to %g s for it: %s", line, patience, remedy(error))
            waiting = True
            await asyncio.sleep(RETRY_S)
    if waiting:
        log.warning("%s: the disk takes it again; the stream goes on", path)


def settle(descriptor: int) -> None:
    """Bring to disk what a predecessor wrote, and forget what did not come there: reads then show the disk.

    Raises
    ------
    OSError
    """
    os.fsync(descriptor)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def sync_folder(path: Path) -> None:
    """Bring the names in a folder to disk.

    Raises
    ------
    OSError
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Where to write a file that appears under its name when it is complete and on disk; of one that fails nothing
    is left.

    Raises
    ------
    OSError
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # the disk may be full of it
            part.unlink()
        raise


class Tail:
    """The end of a file that only grows: what is put there is there as a whole, or can be tried again.

    Attributes
    ----------
    size : int
        Up to where the file counts.
    """

    def __init__(self, descriptor: int, size: int) -> None:
        self.size, self._fd, self._torn = size, descriptor, False

    def put(self, data: bytes, *, sync: bool) -> None:
        """Write `data` behind the end, and with `sync` bring it to disk.

        Raises
        ------
        OSError
            Nothing of it counts.
        """
        try:
            self._cut()
            self._torn, place, left = True, self.size, memoryview(data)
            while left:
                n = os.pwrite(self._fd, left, place)
                place, left = place + n, left[n:]
            if sync:
                os.fsync(self._fd)
        except OSError:
            self.cut_back(self.size)
            raise
        self.size, self._torn = place, False

    def cut_back(self, size: int) -> None:
        """Only what stands before `size` counts; a disk that does not even take that is asked again by `put`."""
        self.size, self._torn = size, True
        with contextlib.suppress(OSError):
            self._cut()

    def _cut(self) -> None:
        if self._torn:
            os.ftruncate(self._fd, self.size)
            self._torn = False
