"""Folders of users who have a home, and of those who have none."""

import os
from pathlib import Path

import pytest
from physics_helpers import Processes

from streamer.folders import give_caches_a_place


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_who_has_a_home_keeps_caches_there(home: Path) -> None:
    give_caches_a_place()
    assert "XDG_CACHE_HOME" not in os.environ
    assert not home.exists()


@pytest.mark.parametrize("name", ["HOME", "XDG_CACHE_HOME"])
def test_who_has_none_keeps_them_in_a_private_folder(name: str, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home.touch()  # no folder
    monkeypatch.setenv(name, str(home / "beneath"))
    give_caches_a_place()
    place = home.parent / "run" / "streamer"
    assert os.environ["XDG_CACHE_HOME"] == str(place / "cache")
    assert os.environ["MPLCONFIGDIR"] == str(place / "cache" / "matplotlib")
    assert place.stat().st_mode & 0o777 == 0o700


READ_ONLY = 'mount --bind "$0" "$0" && mount --bind "$1" "$1" && mount -o remount,bind,ro / && shift && exec "$@"'
"""Runs a command where nothing but two folders can be written, as in a container."""


@pytest.mark.long
@pytest.mark.skipif(os.getuid() != 0, reason="needs root, who can mount")
def test_on_a_read_only_disk_without_a_home_it_streams(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nonexistent")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    with Processes(tmp_path) as streamer:
        done = streamer(
            *("demo", "--events", 500, "--no-monitor", "--output", tmp_path / "out"),
            prefix=["unshare", "-m", "sh", "-c", READ_ONLY, str(tmp_path), str(streamer.runtime)],
        ).check()
        assert "500 fed = 500 scored" in done.out
        assert "matplotlib" not in done.err.lower()
        assert list((streamer.runtime / "streamer" / "cache" / "numba").iterdir())
