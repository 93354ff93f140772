"""A run that goes on, asked from another terminal: status, stop, scale. Real processes, real sockets."""

import asyncio
import json
import re
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from physics_helpers import Process, Processes, call, event, sum_model, wait_until, write_hits
from prometheus_client import CollectorRegistry, Gauge, start_http_server

from stages.detector.ecal import eb_detid
from streamer import control
from streamer.errors import StreamerError, UsageError
from streamer.lifecycle import STATES, LifeCycle
from streamer.runner import Run


@pytest.fixture
def streamer(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as made:
        yield made


def begun(streamer: Processes, tmp_path: Path, *more: object) -> Process:
    """A run that goes on until it is stopped."""
    hit = int(eb_detid(20, 11))
    events = [event(i, EBRecHit=[(hit, float(i + 1))], Photon=[(34.0, 0.34, 0.005)]) for i in range(100)]
    inputs = [] if "--resume" in more else [write_hits(tmp_path / "events.root", events), "--loop", "--rate", 2000]
    if "--resume" not in more:
        inputs += ["--output", tmp_path / "out", "--tagger", f"eg={sum_model(tmp_path / 'sum.onnx')}"]
    process = streamer("run", *inputs, *more)
    process.wait_for_events(200)
    wait_until(lambda: {row["state"] for row in rows(streamer).values()} == {"running"}, "all processes to run")
    return process


def rows(streamer: Processes) -> dict[str, Any]:
    """What the one run says of its processes."""
    return {row["name"]: row for row in control.ask(streamer.run_dir(), {"do": "status"})["processes"]}


def test_a_stage_hangs_grows_and_shrinks_while_events_flow(streamer: Processes, tmp_path: Path) -> None:
    process = begun(streamer, tmp_path, "--set", "supervisor.stall_timeout=2")
    streamer("scale", "tagger=3").check()
    wait_until(lambda: rows(streamer)["tagger-2"]["events"] > 100, "events at the third tagger")
    streamer("scale", "tagger=1", tmp_path / "out").check()
    names = ["reader-0", "framer-0", "cropper-0", "tagger-0", "writer-0"]
    wait_until(lambda: list(rows(streamer)) == names, "the end of two taggers")
    process.stage("writer-0").send_signal(signal.SIGKILL)  # it comes back to one tagger, not to three
    wait_until(lambda: rows(streamer)["writer-0"]["restarts"] == 1, "another writer")
    wait_until(lambda: rows(streamer)["writer-0"]["events"] > 100, "events at it")
    process.stage("framer-0").suspend()
    wait_until(lambda: "framer-0 did not answer for" in process.err, "the death of the framer")
    wait_until(lambda: rows(streamer)["framer-0"]["state"] == "running", "another framer")
    for stage, n, why in (
        ("writer", 2, "writers cannot be scaled"),
        ("tagger", 0, "1 to 64"),
        ("taggr", 2, "no stage"),
    ):
        with pytest.raises(UsageError, match=why):
            control.ask(streamer.run_dir(), {"do": "scale", "stage": stage, "replicas": n})
    told = streamer("status")
    told.check()
    assert re.search(r"tagger-0 +running +\d+ +\d+ s +0", told.out), told.out
    streamer("stop").check()
    process.check()
    code, said, _ = call("ledger", tmp_path / "out", "--json")
    books = json.loads(said)
    assert (code, books["closes"], books["total"]["in_flight"]) == (0, True, 0)
    assert "overdue" not in process.err.partition("tagger: 1 replicas")[0]  # to scale loses nothing
    alone = streamer("status")
    assert alone.wait() == 2
    assert "no run goes on" in alone.err


@pytest.mark.long
def test_a_run_that_is_stopped_now_goes_on_later(streamer: Processes, tmp_path: Path) -> None:
    process = begun(streamer, tmp_path, "--replicas", "framer=2")
    elsewhere = streamer("stop", tmp_path / "other")
    assert elsewhere.wait() == 2
    assert f"{tmp_path / 'other'}: no run goes on there" in elsewhere.err
    streamer("stop", tmp_path / "out", "--now").check()
    assert process.wait() == 130
    again = begun(streamer, tmp_path, "--resume", tmp_path / "out")
    streamer("stop", "--drain").check()
    again.check()
    assert call("ledger", tmp_path / "out")[0] == 0


async def test_nonsense_at_the_control_socket_is_refused(run: Run) -> None:
    async def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request.get("do") == "fail":
            raise StreamerError("it failed")
        if request.get("do") == "fill":
            raise OSError(28, "No space left on device")
        return {"got": request}

    def said(line: bytes) -> Any:
        with socket.socket(socket.AF_UNIX) as link:
            link.settimeout(20)
            link.connect(str(run.dir / control.SOCKET))
            link.sendall(line)
            return json.loads(link.makefile().readline())

    async with control.listening(run.dir, answer):
        for line in (
            b"[]\n",
            b"no json\n",
            b"\xff\xfe\n",
            b"[" * 100_000 + b"\n",
            b'{"do":' + b" " * (control.MAX_LINE + 1) + b"\n",
        ):
            refusal = await asyncio.to_thread(said, line)
            assert refusal["exit"] == 2
            assert "request" in refusal["error"]
        assert await asyncio.to_thread(control.ask, run.dir, {"do": "x"}) == {"got": {"do": "x"}}
        with pytest.raises(StreamerError, match="it failed"):
            await asyncio.to_thread(control.ask, run.dir, {"do": "fail"})
        with pytest.raises(StreamerError, match="No space left"):
            await asyncio.to_thread(control.ask, run.dir, {"do": "fill"})
    with pytest.raises(OSError, match=r"refused|No such file"):
        control.ask(run.dir, {"do": "x"})


def test_a_run_that_ends_before_it_answers_has_done_nothing(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dying, ThreadPoolExecutor(1) as pool:
        dying.bind(str(tmp_path / control.SOCKET))
        dying.listen()
        asked = pool.submit(control.ask, tmp_path, {"do": "change"})
        link, _ = dying.accept()
        link.recv(4096)
        link.close()
        with pytest.raises(StreamerError, match="ended before it had answered"):
            asked.result(20)


@pytest.fixture
def quiet_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a run that is known here; nobody waits long for its answers."""
    runtime = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))  # short, because socket paths must be
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    monkeypatch.setattr(control.ask, "__defaults__", (0.5,))
    folder = runtime / "streamer" / "run-1"
    folder.mkdir(parents=True, mode=0o700)
    yield folder
    shutil.rmtree(runtime)


def test_a_run_that_hangs_is_told(quiet_run: Path) -> None:
    with socket.socket(socket.AF_UNIX) as hanging:
        hanging.bind(str(quiet_run / control.SOCKET))
        hanging.listen()
        code, _, err = call("status")
    assert (code, err) == (2, f"streamer: no run goes on that answers; of these the processes hang: {quiet_run}\n")


@pytest.mark.parametrize("over", [False, True])
def test_a_run_that_does_not_answer_any_more_is_told(quiet_run: Path, tmp_path: Path, over: bool) -> None:
    path = quiet_run / control.SOCKET
    with socket.socket(socket.AF_UNIX) as server, ThreadPoolExecutor(1) as pool:
        server.bind(str(path))
        server.listen()

        def answer_once() -> None:
            link, _ = server.accept()
            with link, link.makefile("rb") as asked:
                asked.readline()
                if over:
                    path.unlink()
                link.sendall(json.dumps({"output": str(tmp_path)}).encode() + b"\n")

        answering = pool.submit(answer_once)
        code, _, err = call("stop")
        answering.result(20)
    why = f"{path}: No such file or directory" if over else f"the run of {quiet_run} has not answered for 0.5 s"
    assert code == 1
    assert why in err
    assert err.startswith("streamer: ")
    assert err.count("\n") == 1


def test_a_change_is_waited_for(quiet_run: Path, tmp_path: Path) -> None:
    answers = iter([{"output": str(tmp_path), "processes": [{"name": "writer-0", "metrics": ""}]}, {}])

    async def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "change":
            assert request["settings"] == {"menu.prescale_column": "quiet", "menu.prescale_from": 0}
            await asyncio.sleep(2)  # four times as long as anything else is waited for
        return next(answers)

    async def asked() -> tuple[int, str, str]:
        async with control.listening(quiet_run, answer):
            return await asyncio.to_thread(call, "prescale", "quiet")

    code, out, err = asyncio.run(asked())
    assert (code, err) == (0, "")
    assert out == "prescale column 'quiet' from the next lumisection on; one that has begun keeps its own\n"


def test_several_writers_are_asked_for_a_lumisection_that_none_has_seen(quiet_run: Path, tmp_path: Path) -> None:
    pages = []
    for begun in (7, 9):
        registry = CollectorRegistry()
        gauge = Gauge("streamer_lumisection", "begun", registry=registry)
        gauge.set(begun)
        pages.append((gauge, *start_http_server(0, "127.0.0.1", registry)))
    rows = [
        {"name": f"writer-{k}", "metrics": f"http://127.0.0.1:{page[1].server_port}"} for k, page in enumerate(pages)
    ]
    asked: list[int] = []

    async def answer(request: dict[str, Any]) -> dict[str, Any]:
        if request["do"] == "status":
            return {"output": str(tmp_path), "processes": [{"name": "tagger-0", "metrics": ""}, *rows]}
        asked.append(request["settings"]["menu.prescale_from"])
        if request["settings"]["menu.prescale_column"] != "quiet":
            raise UsageError("there is no such column")
        if len(asked) == 1:
            pages[0][0].set(12)
            raise UsageError("lumisection 12 has begun already")
        return {}

    async def called(column: str) -> tuple[int, str, str]:
        async with control.listening(quiet_run, answer):
            return await asyncio.to_thread(call, "prescale", column)

    try:
        code, out, err = asyncio.run(called("quiet"))
        assert (code, err, asked) == (0, "", [11, 20])
        assert out == "prescale column 'quiet' from lumisection 20 on; one that has begun keeps its own\n"
        assert asyncio.run(called("quite")) == (2, "", "streamer: there is no such column\n")
        assert asked == [11, 20, 14], "for another reason it is not asked again"
    finally:
        for _, server, thread in pages:
            server.shutdown()
            server.server_close()
            thread.join()


def test_states_follow_each_other_as_they_may() -> None:
    for path in (STATES[:5], ("starting", "failed"), ("starting", "ready", "failed"), ("starting", "starting")):
        life = LifeCycle()
        for state in path:
            life.enter(state)
    for before, after in (("starting", "running"), ("ready", "draining"), ("running", "ready"), ("stopped", "failed")):
        life = LifeCycle()
        life.state = before
        with pytest.raises(ValueError, match=f"{before} cannot become {after}"):
            life.enter(after)
