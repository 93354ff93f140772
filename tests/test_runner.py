"""The folder that the processes of a run share."""

import os
import stat
from pathlib import Path

import pytest

from streamer.errors import UsageError
from streamer.runner import Run


def test_who_comes_second_joins_the_run(tmp_path: Path) -> None:
    first, second = Run.open(tmp_path / "run"), Run.open(tmp_path / "run")
    assert first == second
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "run" / "token").stat().st_mode) == 0o600
    assert Run.open(tmp_path / "other").token != first.token


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    os.chown(folder, 12345, 12345)
    with pytest.raises(UsageError, match="belongs to somebody else"):
        Run.open(folder)


def test_a_file_in_the_way_is_told(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(UsageError, match="XDG_RUNTIME_DIR"):
        Run.open(tmp_path / "run")
