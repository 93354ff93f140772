"""The black box of a process: what a successor finds."""

from pathlib import Path

import pytest

from streamer.blackbox import MOST, BlackBox, Death
from streamer.testing import toy_block


def test_nothing_is_found_where_nobody_died(tmp_path: Path) -> None:
    box = BlackBox(tmp_path / "box")
    assert box.before is None
    with box.working([toy_block(8, 4)]):
        assert box.since is not None
    assert box.since is None
    assert BlackBox(tmp_path / "box").before is None


def test_what_was_worked_on_is_found_as_intervals(tmp_path: Path) -> None:
    box = BlackBox(tmp_path / "box")
    with box.working([toy_block(8, 4), toy_block(12, 4), toy_block(40, 1)]):
        found = BlackBox(tmp_path / "box").before
    assert isinstance(found, Death)
    assert found.working == [(8, 15), (40, 40)]


def test_it_is_found_until_the_successor_is_at_work_itself(tmp_path: Path) -> None:
    first, path = BlackBox(tmp_path / "box"), tmp_path / "box"
    with pytest.raises(ValueError, match="the end"), first.working([toy_block(8, 4)]):
        raise ValueError("the end")
    second = BlackBox(path)
    assert second.before == BlackBox(path).before != None  # noqa: E711
    with second.working([toy_block(12, 4)]):
        pass
    assert BlackBox(path).before is None


def test_more_than_fits_is_cut(tmp_path: Path) -> None:
    box = BlackBox(tmp_path / "box")
    with box.working([toy_block(2 * k, 1) for k in range(MOST + 20)]):
        found = BlackBox(tmp_path / "box").before
    assert found is not None
    assert found.working == [(2 * k, 2 * k) for k in range(MOST)]


@pytest.mark.parametrize("left", [b"", b"\xff" * 4096, b"x" * 10])
def test_a_file_of_something_else_is_nothing(tmp_path: Path, left: bytes) -> None:
    (tmp_path / "box").write_bytes(left)
    assert BlackBox(tmp_path / "box").before is None
