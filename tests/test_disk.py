"""A disk that takes nothing: waited for, told of in one line, and never left with half of something."""

import asyncio
import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from streamer.disk import DiskError, Tail, patiently, remedy

PATH = Path("/out/scores")


def refusing(times: int, number: int = errno.ENOSPC) -> Callable[[], None]:
    """Work that the disk does not take so many times."""
    left = [times]

    def work() -> None:
        if left[0]:
            left[0] -= 1
            raise OSError(number, os.strerror(number))

    return work


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.disk.RETRY_S", 0)


async def test_a_disk_is_waited_for_and_that_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    await patiently(refusing(5), 60, PATH, "it cannot be written")
    assert [record.getMessage() for record in caplog.records] == [
        "/out/scores: it cannot be written (No space left on device); the stream waits up to 60 s for it: make room",
        "/out/scores: the disk takes it again; the stream goes on",
    ]


async def test_a_good_disk_is_not_told_of(caplog: pytest.LogCaptureFixture) -> None:
    await patiently(refusing(0), 60, PATH, "it cannot be written")
    await patiently(lambda: asyncio.sleep(0), 0, PATH, "it cannot be written")
    assert caplog.records == []


async def test_after_the_patience_one_line_says_what_helps() -> None:
    with pytest.raises(DiskError) as error:
        await patiently(refusing(9), 0, PATH, "it cannot be written", lambda helps: f"{helps}, then try again")
    assert str(error.value) == "/out/scores: it cannot be written (No space left on device); make room, then try again"
    assert (error.value.exit_code, error.value.again) == (1, False)


async def test_an_error_that_names_a_file_is_told_with_that() -> None:
    async def work() -> None:
        raise OSError(errno.EROFS, "Read-only file system", "/out/manifest")

    with pytest.raises(DiskError, match=r"^/out/manifest: no good \(Read-only file system\); make it writable$"):
        await patiently(work, 0, PATH, "no good")


@pytest.mark.parametrize(
    ("number", "helps"),
    [
        (errno.ENOSPC, "make room"),
        (errno.EDQUOT, "make room"),
        (errno.EROFS, "make it writable"),
        (errno.EIO, "see to the disk"),
    ],
)
def test_what_helps_depends_on_what_is_wrong(number: int, helps: str) -> None:
    assert remedy(OSError(number, "")) == helps


def test_a_tail_that_cannot_be_cut_off_at_once_is_cut_off_by_the_next_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    path = tmp_path / "file"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT)
    tail = Tail(descriptor, 0)
    tail.put(b"safe", sync=True)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        patch.setattr(os, "ftruncate", refuse)
        for _ in range(2):
            with pytest.raises(OSError, match="Read-only file system"):
                tail.put(b"a long piece that is half there", sync=True)
        assert tail.size == 4
    tail.put(b"new", sync=True)
    assert (path.read_bytes(), tail.size) == (b"safenew", 7)
    os.close(descriptor)
