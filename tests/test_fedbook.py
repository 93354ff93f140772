"""The book of what was fed: what it says was fed is there as a whole, whatever the disk refuses meanwhile."""

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from physics_helpers import fill_disk, small_disk

from streamer.block import Block
from streamer.errors import StreamerError, UsageError
from streamer.fedbook import FedBook, read
from streamer.testing import toy_block

SOURCE = [["a.root", 100]]


def book(path: Path, run: str = "first", source: list[Any] | None = None, *, goes_on: bool = False) -> FedBook:
    return FedBook(path, run, source or SOURCE, goes_on=goes_on)


def block(first: int, n: int = 4) -> Block:
    return toy_block(first, n)


def found(path: Path) -> list[tuple[int, int]]:
    return list(read(path).ids)


def test_each_event_is_booked_once(tmp_path: Path) -> None:
    made = book(tmp_path / "b.fed")
    for first in (0, 4, 0, 2, 100):
        made.add(block(first))
        assert found(tmp_path / "b.fed") == list(made.fed.ids)
    assert found(tmp_path / "b.fed") == [(0, 7), (100, 103)]
    made.close()
    again = book(tmp_path / "b.fed")
    again.add_found([(6, 9)])
    again.close()
    assert found(tmp_path / "b.fed") == [(0, 9), (100, 103)]


async def test_lumisections_count_an_event_once_also_if_it_is_dropped_after_it_was_fed(tmp_path: Path) -> None:
    counted = block(0, 4)
    counted = counted.with_columns({**counted.columns, "feedLumisection": np.full(4, 5, np.uint32)})
    made = book(tmp_path / "b.fed")
    made.add(counted)
    made.drop(counted, "credit")
    await made.flush()
    made.close()
    for fed in (made.fed, read(tmp_path / "b.fed")):
        assert fed.ids.size == fed.lumis.total() == fed.lumis[1, 5] == 4
        assert fed.dropped.size == fed.dropped_lumis.total() == fed.reasons.total() == 4


async def test_the_book_knows_how_much_time_the_feed_has_had(tmp_path: Path) -> None:
    made = book(tmp_path / "b.fed")
    made.add(block(0))
    for passed in (5 * 10**9, 6 * 10**9, 6 * 10**9):
        made.passed = passed
        await made.flush()
    assert made.lumis_before() == []
    made.close()
    again = book(tmp_path / "b.fed")
    assert again.passed == again.fed.passed == 6 * 10**9
    assert list(again.fed.ids) == [(0, 3)]
    await again.flush()
    again.close()


def test_a_block_that_a_full_disk_does_not_take_is_not_booked(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        path = disk / "b.fed"
        made = book(path)
        fill_disk(disk / "ballast")
        first = 0
        with contextlib.suppress(OSError):
            while True:
                made.add(block(first))
                first += 4
        with pytest.raises(OSError, match="No space left on device"):
            made.add(block(first))
        assert found(path) == list(made.fed.ids) == [(0, first - 1)]
        with pytest.raises(OSError, match="No space left on device"):
            made.add_found([(0, first + 90)])
        (disk / "ballast").unlink()
        made.add(block(first + 4))
        assert found(path) == list(made.fed.ids) == [(0, first - 1), (first + 4, first + 7)]
        made.close()


async def test_what_a_flush_refused_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = tmp_path / "b.fed"
    made = book(path)
    made.add(block(0))
    await made.flush()
    safe = path.read_bytes()
    made.add(block(4))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output error"):
                await made.flush()
            assert path.read_bytes() == safe
    made.add(block(8))
    assert found(path) == [(0, 11)]
    await made.flush()
    made.close()
    assert path.read_bytes().startswith(safe)
    assert found(path) == [(0, 11)]


def test_a_full_disk_takes_no_book_and_that_can_be_tried_again(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "64k") as disk:
        fill_disk(disk / "ballast")
        for _ in range(2):
            with pytest.raises(OSError, match="No space left on device"):
                book(disk / "b.fed")
        (disk / "ballast").unlink()
        book(disk / "b.fed").close()
        assert found(disk / "b.fed") == []


def test_another_run_begins_anew_or_goes_on_with_the_same_input(tmp_path: Path) -> None:
    path = tmp_path / "b.fed"
    made = book(path)
    made.add(block(0))
    with pytest.raises(StreamerError, match="another process writes this book"):
        book(path)
    made.close()
    with pytest.raises(UsageError, match=r"the input has changed since the run began: a.root \(100 events\) is now"):
        book(path, "second", [["a.root", 99]], goes_on=True)
    made = book(path, "second", goes_on=True)
    assert list(made.fed.ids) == [(0, 3)]
    made.close()
    made = book(path, "third", [["a.root", 99]])
    assert list(made.fed.ids) == found(path) == []
    made.close()
