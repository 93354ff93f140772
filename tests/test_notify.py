"""What a service manager is told, at real datagram sockets, and by a real run that is killed and goes on."""

import asyncio
import os
import signal
import socket
from asyncio.subprocess import PIPE
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from physics_helpers import Processes, assert_end, sum_model, wait_until
from recovery_helpers import assert_whole, write_numbered

from streamer.child import Child
from streamer.config import CoreConfig
from streamer.notify import Notifier, Pulse
from streamer.pipeline import Pipeline
from streamer.supervisor import Supervisor
from streamer.testing import Made


class Manager:
    """Listens as systemd does."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self._socket.settimeout(0.5)
        self.lines: list[str] = []

    def hear(self) -> list[str]:
        """What was told since the last time."""
        new: list[str] = []
        self._socket.setblocking(False)
        try:
            while True:
                new += self._socket.recv(4096).decode().split("\n")
        except BlockingIOError:
            self.lines += new
            return new

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Callable[[str], Manager]]:
    made: list[Manager] = []

    def listening(address: str) -> Manager:
        made.append(Manager(address))
        return made[-1]

    yield listening
    for one in made:
        one.close()


@pytest.mark.parametrize("address", ["{folder}/notify", "@streamer-test-{pid}"])
def test_news_are_told_once_and_in_one_line_each(
    address: str, tmp_path: Path, manager: Callable[[str], Manager], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = address.format(folder=tmp_path, pid=os.getpid())
    listening = manager(address)
    monkeypatch.setenv("NOTIFY_SOCKET", address)
    notifier = Notifier.of_environment()
    assert "NOTIFY_SOCKET" not in os.environ, "children have nothing to tell"
    notifier.tell(READY="1", STATUS="taking\ndata")
    assert listening.hear() == ["READY=1", "STATUS=taking data"]
    notifier.tell(READY="1", STATUS="no data")
    notifier.tell(READY="1", STATUS="no data")
    assert listening.hear() == ["STATUS=no data"]
    notifier.beat()
    notifier.beat()
    assert listening.hear() == ["WATCHDOG=1"] * 2


def test_who_does_not_listen_holds_nobody_up(tmp_path: Path, manager: Callable[[str], Manager]) -> None:
    Notifier("").beat()
    Notifier(str(tmp_path / "nobody")).beat()
    deaf = manager(str(tmp_path / "deaf"))
    notifier = Notifier(deaf.address)
    for _ in range(2000):  # more than any queue of datagrams takes
        notifier.beat()
    notifier.tell(READY="1")
    assert 0 < len(deaf.hear()) < 2000
    assert "READY=1" not in deaf.lines
    notifier.tell(READY="1")
    assert deaf.hear() == ["READY=1"], "told once there is room"


def test_a_run_that_writes_nothing_of_what_is_under_way_has_no_pulse() -> None:
    pulse = Pulse(10.0)
    assert pulse.beats(0.0, 5, 3, settled=True)
    assert pulse.beats(10.0, 5, 3, settled=True)
    assert not pulse.beats(10.5, 5, 3, settled=True)
    assert pulse.just_stopped
    assert not pulse.beats(11.0, 5, 3, settled=True)
    assert not pulse.just_stopped
    assert pulse.beats(12.0, 6, 3, settled=True), "it goes on"
    assert not pulse.beats(30.0, 6, 3, settled=True)
    assert pulse.beats(31.0, 6, 0, settled=True), "a feed may rest"
    assert not pulse.beats(50.0, 6, 1, settled=True)
    assert pulse.beats(51.0, 6, 1, settled=False), "a process may take minutes to come back"


async def test_a_hang_is_seen_after_one_of_two_readers_has_ended(
    tmp_path: Path, manager: Callable[[str], Manager], monkeypatch: pytest.MonkeyPatch
) -> None:
    systemd = manager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.address)
    pipeline = Pipeline("toy", CoreConfig, (Made("source", ""), Made("sink", "")), "", "")
    supervisor = Supervisor(pipeline, CoreConfig())
    supervisor._pulse = Pulse(0.0)
    process = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
    try:
        under_way = {"streamer_blocks_in_flight": 3.0}
        children = [Child(*who, process, state="running") for who in (("source", 0), ("source", 1), ("sink", 0))]
        ended, hanging, _ = children
        ended.state, ended.exit_code, ended.report = "stopped", 0, {"complete": True}
        hanging.values = under_way
        supervisor.children += children
        supervisor._shown.look(children)
        for _ in range(3):
            supervisor._tell_manager(supervisor._progress())
        told = systemd.hear()
        assert told.count("WATCHDOG=1") == 1, "the first look begins to wait"
        assert "READY=1" in told
        hanging.values, ended.values = {}, under_way
        supervisor._tell_manager(supervisor._progress())
        assert systemd.hear().count("WATCHDOG=1") == 1, "what has ended holds nothing"
        hanging.exit_code, hanging.values = 1, under_way
        supervisor._tell_manager(supervisor._progress())
        assert systemd.hear().count("WATCHDOG=1") == 1, "it is started again"
    finally:
        process.kill()
        await process.wait()


N_EVENTS = 2500


def test_a_service_is_killed_goes_on_and_ends(
    tmp_path: Path, manager: Callable[[str], Manager], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = tmp_path / "input", tmp_path / "out"
    folder.mkdir()
    write_numbered(folder)
    config = tmp_path / "stream.toml"
    config.write_text(
        f'[input]\nfiles = ["{folder}"]\n[taggers.eg]\nmodel = "{sum_model(tmp_path / "sum.onnx")}"\n'
        f'[feed]\nrate = 800\nloop = true\nevents = {N_EVENTS}\n[writer]\ndir = "{out}"\noverwrite = true\n'
    )
    systemd = manager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.address)
    with Processes(tmp_path) as streamer:
        first = streamer("run", "--config", config, "--go-on")
        wait_until(lambda: "READY=1" in (systemd.hear() and systemd.lines), "the run to be ready")
        assert {"running"} == {child["state"] for child in states(streamer)}
        first.wait_for_events(500)
        wait_until(lambda: "STATUS=taking data; keeping up; nothing lost" in (systemd.hear(), systemd.lines)[1], "data")
        wait_until(lambda: systemd.hear().count("WATCHDOG=1") > 0, "a sign of life")
        family = first.children()
        first.signal(signal.SIGKILL)
        assert_end(family)
        assert f"{out}: a new run begins" in first.err
        assert "STOPPING=1" not in systemd.lines
        systemd.lines.clear()
        (folder / "new.root").write_bytes((folder / "0.root").read_bytes())
        again = streamer("run", "--config", config, "--go-on").check()
        assert f"{out}: the run there goes on with the input files that it began with, 3 of now 4" in again.err
        assert f"{out}: the run is finished; nothing is left" in again.err
        systemd.hear()
        told = [line for line in systemd.lines if line in ("READY=1", "STOPPING=1", "WATCHDOG_USEC=0")]
        assert told == ["READY=1", "WATCHDOG_USEC=0"], "what is made of the results may take its time"
    assert_whole(out, N_EVENTS)


def states(streamer: Processes) -> list[dict[str, str]]:
    from streamer import control

    found: list[dict[str, str]] = control.ask(streamer.run_dir(), {"do": "status"})["processes"]
    return found


@pytest.mark.long
def test_a_service_that_is_stopped_goes_on_and_one_that_is_finished_ends_at_once(
    tmp_path: Path, manager: Callable[[str], Manager], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    inputs = write_numbered(tmp_path)
    service = ("run", *inputs, "--tagger", f"eg={sum_model(tmp_path / 'sum.onnx')}", "--output", out, "--go-on",
               "--rate", 500, "--loop", "--events", N_EVENTS)  # fmt: skip
    systemd = manager(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", systemd.address)
    with Processes(tmp_path) as streamer:
        first = streamer(*service)
        first.wait_for_events(500)
        first.signal(signal.SIGTERM)
        first.check()
        assert f"{out}: the run is stopped; it goes on when it is started again" in first.err
        streamer(*service).check()
        systemd.hear()
        systemd.lines.clear()
        last = streamer(*service).check()
        assert f"{out}: the run is finished; nothing is left" in last.err
        systemd.hear()
        assert [line for line in systemd.lines if line in ("READY=1", "STOPPING=1")] == ["READY=1"]
        changed = streamer(*service, "--set", "framer.tracks_at=ecal")
        changed.check(2)
        assert "begun with other settings of [framer]; go on with the same, or choose another --output" in changed.err
    assert_whole(out, N_EVENTS)
