"""What processes tell their supervisor: it takes what is right, and survives any line."""

import asyncio
import json
import logging
import shlex
from asyncio.subprocess import PIPE
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.child import Child
from streamer.config import CoreConfig
from streamer.news import News, read
from streamer.pipeline import Pipeline
from streamer.supervisor import Progress, Supervisor
from streamer.testing import Made, until

REPORT: dict[str, Any] = {"metrics": {"streamer_events_total/ok": 7.0}, "cpu_s": 1.5, "moving_cpu_s": 1, "rss_bytes": 1}
ODD: tuple[dict[str, Any], ...] = (
    {"report": 5},
    {"report": None, "failures": 3},
    {"report": []},
    {"report": {"metrics": 5}},
    {"report": REPORT | {"metrics": {"streamer_events_total/ok": "7"}}},
    {"report": REPORT | {"metrics": {"streamer_events_total/ok": 10**400}}},
    {"report": REPORT | {"cpu_s": None}},
    {"report": REPORT | {"latency_s": [1]}},
    {"prepared": [1], "refused": ""},
    {"prepared": 1},
    {"prepared": 1, "refused": {}},
    {"changed": "x"},
    {"metrics": 5},
    {"metrics": "http://127.0.0.1:99999999/metrics"},
    {"metrics": "http://[/metrics"},
    {"error": ["x"]},
    {"failures": 1},
    {"failures": [{}]},
    {"failures": [1]},
    {"glimpse": [1]},
    {"state": "elsewhere"},
    {"state": ["running"]},
    {"state": None},
)
NOT_OURS = (
    b"",
    b"[]",
    b"5",
    b'"state"',
    b"no json",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"state": ' + b"9" * 9000 + b"}",
    b"{}",
)

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(st.dictionaries(st.sampled_from([*News.model_fields, "more"]), anything), st.binary())
def test_no_line_is_too_odd(said: dict[str, Any], noise: bytes) -> None:
    read(noise)
    told = read(json.dumps({"state": "running", **said}).encode())
    assert told is None or isinstance(told, News)


async def test_a_supervisor_survives_what_its_processes_say(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [json.dumps({"state": "running", "pid": 1, **odd}).encode() for odd in ODD]
    lines = [*NOT_OURS, *lines, json.dumps({"state": "draining", "metrics": "http://127.0.0.1:9/metrics"}).encode()]
    last = {
        "report": REPORT
        | {"complete": True, "output": "out", "more": [1], "metrics": {**REPORT["metrics"], "x": float("nan")}}
    }
    lines.append(json.dumps({"state": "stopped", "changed": 3, "failures": [{"again": "a", "b": 1}], **last}).encode())
    (tmp_path / "said").write_bytes(b"\n".join(lines) + b"\n")
    supervisor = Supervisor(Pipeline("toy", CoreConfig, (Made("source", ""), Made("sink", "")), "", ""), CoreConfig())
    talking = await asyncio.create_subprocess_shell(f"cat {shlex.quote(str(tmp_path / 'said'))}", stdout=PIPE)
    child = Child("source", 0, talking)
    supervisor.children.append(child)
    with caplog.at_level(logging.WARNING):
        await asyncio.wait_for(supervisor._hear(child), 60)
    await talking.wait()
    child.log.tidy(all_=True)
    assert (child.state, child.metrics_url, child.changed, child.error) == (
        "stopped",
        "http://127.0.0.1:9/metrics",
        3,
        "",
    )
    assert child.report == {**REPORT, "complete": True, "output": "out", "more": [1]}
    assert child.values == {"streamer_events_total/ok": 7.0}
    assert supervisor._progress().fed == 7
    assert supervisor._everything()["failures"] == [{"again": "a", "b": 1}]
    assert "no json" in caplog.text, "what is not understood is passed on"


ODD_PAGES = (
    b"SSH-2.0-OpenSSH_9.2\r\n",
    b"",
    b"HTTP/1.1 200 OK\r\n\r\n\xff\xfe",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nno number\r\n",
    b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    b"HTTP/1.1 200 OK\r\n\r\nstreamer_x 1 2 3 x\n",
    b"HTTP/1.1 200 OK\r\n\r\nstreamer_+eNNa{,\t=m}\n",
)


@pytest.mark.parametrize("page", ODD_PAGES)
async def test_a_process_whose_metrics_are_odd_does_not_answer(page: bytes) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(page)
        await writer.drain()
        writer.close()

    pipeline = Pipeline("toy", CoreConfig, (Made("source", ""), Made("sink", "")), "", "")
    supervisor, process = Supervisor(pipeline, CoreConfig()), await asyncio.create_subprocess_exec("true")
    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        address = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/metrics"
        child = Child("source", 0, process, state="running", metrics_url=address, values={"streamer_x": 7.0})
        child.looked -= 1
        await supervisor._look_at(child)
    await process.wait()
    assert child.silent_s >= 1
    assert child.values == {"streamer_x": 7.0}


async def test_what_goes_wrong_while_processes_are_watched_is_told_and_they_are_watched_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[Progress] = []

    def show(progress: Progress) -> None:
        seen.append(progress)
        if len(seen) < 4:
            raise ZeroDivisionError("no line" if len(seen) < 3 else "no other")

    monkeypatch.setattr("streamer.supervisor.POLL_S", 0.001)
    pipeline = Pipeline("toy", CoreConfig, (Made("source", ""), Made("sink", "")), "", "")
    watching = asyncio.create_task(Supervisor(pipeline, CoreConfig(), show)._poll())
    await until(lambda: watching.done() or len(seen) > 5)
    assert not watching.done()
    watching.cancel()
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert told == [
        f"the processes could not be looked at as they should (ZeroDivisionError: {why}); it is tried again"
        for why in ("no line", "no other")
    ]
