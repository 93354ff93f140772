"""The log: fields that survive the way to the supervisor, the block that a line is about, levels, thinning."""

import asyncio
import io
import json
import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from physics_helpers import call

from streamer import logs
from streamer.block import Block
from streamer.config import CoreConfig, LogConfig, load
from streamer.errors import UsageError
from streamer.monitor.shown import Shown
from streamer.pipeline import Pipeline
from streamer.runner import Run
from streamer.testing import ToyBatchStage, ToyChain, ToySink, ToySource, ToyStage, quick, toy_block
from streamer.thinning import Thinning

log = logging.getLogger("streamer.somewhere")


class Kept(logging.Handler):
    """Keeps records with all their fields."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        logs.stamp(record)
        self.records.append(record)

    def told(self) -> list[dict[str, Any]]:
        return [json.loads(logs.to_json(record)) for record in self.records]


@pytest.fixture(autouse=True)
def _nothing_is_worked_on() -> None:
    """Whatever tests of failing work have left behind."""
    logs.working.set(())


@pytest.fixture
def kept() -> Iterator[Kept]:
    handler = Kept()
    logging.getLogger().addHandler(handler)
    yield handler
    logging.getLogger().removeHandler(handler)
    logs.identify()


@pytest.fixture
def fresh() -> Iterator[None]:
    """The log is set up anew, and put back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    logs.set_up(LogConfig())
    root.handlers[:] = handlers
    root.setLevel(level)
    logs.identify()


def block_of_lumis(lumis: list[int], first: int = 512) -> Block:
    block = toy_block(first, len(lumis))
    block.columns |= {"run": np.full(len(lumis), 355872, np.uint32), "luminosityBlock": np.array(lumis, np.uint32)}
    return block


def across(capsys: pytest.CaptureFixture[str], say: Callable[[], object]) -> bytes:
    """What a process of a stage writes."""
    logs.set_up_stage(LogConfig(), "0123456789abcdef", "tagger", 1, supervised=True)
    capsys.readouterr()
    say()
    return capsys.readouterr().err.encode()


# ---- from a process of a stage to the supervisor


def test_fields_survive_the_way_to_the_supervisor(fresh: None, capsys: pytest.CaptureFixture[str]) -> None:
    def say() -> None:
        token = logs.working.set((block_of_lumis([7, 7, 8]),))
        try:
            raise ValueError("a bad\nhit")
        except ValueError:
            log.exception("%s cannot be used: \x1e\udc80 \x1b[31m", "data\n.root", extra={"event": 514})
        logs.working.reset(token)
        log.info("nothing is worked on")

    wire, kept = across(capsys, say), Kept()
    logging.getLogger().handlers[:] = [kept]
    logs.identify(run="of the supervisor", stage=logs.SUPERVISOR, replica=0)
    passing = logs.Passing("tagger", 1)
    for line in wire.split(b"\n"):
        passing.line(line)
    first, second = kept.told()
    traceback = first.pop("traceback")
    assert traceback.startswith("Traceback")
    assert traceback.endswith("ValueError: a bad\nhit")
    assert abs(kept.records[0].created - kept.records[1].created) < 5
    assert {key: value for key, value in first.items() if key != "time"} == {
        **{"level": "ERROR", "logger": "streamer.somewhere", "message": "data\n.root cannot be used: \x1e? \x1b[31m"},
        **{"run": "0123456789abcdef", "stage": "tagger", "replica": 1},
        **{"block": 512, "event": 514, "run_number": 355872, "lumisection": 8},
    }
    assert {"block", "lumisection", "traceback"}.isdisjoint(second)
    (line, *_) = logs.Pretty().format(kept.records[0]).splitlines()
    assert line == r"ERROR [tagger-1 block 512] data\x0a.root cannot be used: \x1e? \x1b[31m"


def test_what_is_no_record_is_passed_on_as_the_words_of_its_stage(fresh: None, kept: Kept) -> None:
    logging.getLogger().setLevel(logging.INFO)
    record = logging.makeLogRecord({"name": "streamer.hop", "msg": "ours", "levelno": 20, "levelname": "INFO"})
    line = logs.Json(logs.SEPARATOR).format(record).encode()
    passing = logs.Passing("framer", 0)
    logs.identify(run="0123456789abcdef", stage=logs.SUPERVISOR, replica=0)
    hostile = (b"{}", b"[]", b"\xff\xfe", b'{"level": "LOUD", "message": "x"}', b'{"level": [1]}', b"1" * 5000)
    for text in (
        b"segfault at 0",
        b"",
        b"   ",
        b"half a line " + line,
        *(logs.SEPARATOR.encode() + x for x in hostile),
    ):
        passing.line(text)
    told = [(line["logger"], line["level"], line["message"][:12], line.get("stage")) for line in kept.told()]
    foreign = [("stderr", "WARNING", text, "framer") for text in ("segfault at ", "half a line")]
    assert told[:3] == [foreign[0], foreign[1], ("streamer.hop", "INFO", "ours", logs.SUPERVISOR)]
    assert {line["run"] for line in kept.told()} == {"0123456789abcdef"}
    assert [(name, stage) for name, _, _, stage in told[3:]] == [("stderr", "framer")] * len(hostile)


@pytest.mark.parametrize(
    "line",
    [
        b'{"level": "ERROR", "logger": "x", "message": "m", "time": "0001-01-01T00:00:00+14:00"}',
        b'{"level": "ERROR", "logger": "x", "message": "m", "time": "2026-11-29T13:43:08Z", "stage": "framer"}',
        b'{"level": "ERROR", "logger": "x", "message": "m", "time": "2026-11-29T13:43:08Z", "traceback": 5}',
        b'{"level": "ERROR", "logger": "x", "message": "m", "time": "2026-11-29T13:43:08Z", "stage": [[[]]]}',
        b"[" * 100_000,
    ],
)
def test_no_line_of_a_process_does_harm(line: bytes, fresh: None, kept: Kept) -> None:
    shown = Shown(Pipeline("toy", CoreConfig, (), "", ""), CoreConfig())
    with shown.hearing():
        logs.Passing("framer", 0).line(logs.SEPARATOR.encode() + line)
        said = shown.everything("running")["said"]
    assert [one["level"] for one in said] in (["ERROR"], ["WARNING"])
    for record in kept.records:
        assert logs.Pretty(time=True).format(record)
        assert logs.to_json(record)


def test_a_flood_of_foreign_text_is_counted(kept: Kept) -> None:
    passing = logs.Passing("framer", 0)
    for i in range(10_000):
        passing.line(b"\r%d%%" % i)
    assert len(kept.records) == logs.FOREIGN_BURST
    passing.tidy(all_=True)
    assert kept.told()[-1]["left_out"] == 10_000 - logs.FOREIGN_BURST - 1
    assert kept.told()[-1]["message"].startswith("\r9999% (and 9,799 more lines like this")


class Chunks:
    """A stream that gives what it was given."""

    def __init__(self, chunks: list[bytes]) -> None:
        self._chunks = iter(chunks)

    async def read(self, n: int = -1, /) -> bytes:
        return next(self._chunks, b"")


@given(st.lists(st.binary(min_size=1, max_size=20)))
def test_lines_are_found_however_they_are_cut(chunks: list[bytes]) -> None:
    async def read() -> list[bytes]:
        return [line async for line in logs.lines(Chunks(chunks))]

    whole = b"".join(chunks)
    assert asyncio.run(read()) == (whole.removesuffix(b"\n").split(b"\n") if whole else [])


async def test_a_line_without_end_takes_no_memory() -> None:
    endless = Chunks([b"x" * (1 << 16)] * 50 + [b"\nshort"])
    found = [line async for line in logs.lines(endless)]
    assert max(map(len, found)) <= logs.MAX_LINE + (1 << 16)
    assert b"".join(found) == b"x" * (50 << 16) + b"short"


def test_a_long_message_loses_its_middle(kept: Kept) -> None:
    log.error("a%sz", "b" * 1_000_000)
    (line,) = kept.told()
    assert len(line["message"]) < logs.MOST_CHARS + 10
    assert (line["message"][0], line["message"][-1]) == ("a", "z")


# ---- what is worked on


async def test_each_stage_names_the_block_that_it_works_on(run: Run, kept: Kept) -> None:
    def refuse(block: Block) -> Block:
        log.info("framing")
        if ((block.columns["event"] == 5) & (block.columns["error"] == 0)).any():
            raise ValueError("not this one")
        return block

    class Telling(ToySink):
        def write(self, block: Block) -> None:
            log.info("writing %d", block.id)
            super().write(block)

    logging.getLogger("streamer").setLevel(logging.INFO)
    chain = ToyChain(run, ["reader", "framer", "tagger", "writer"], quick())
    chain.config = chain.config.model_copy(update={"feed": chain.config.feed.model_copy(update={"block_events": 4})})
    batches = ToyBatchStage(bad=(8.0,))
    for name, unit in (
        ("writer", Telling()),
        ("tagger", batches),
        ("framer", ToyStage(refuse)),
        ("reader", ToySource(16)),
    ):
        chain.start(name, unit)
    try:
        assert await chain.codes() == [0, 0, 0, 0]
    finally:
        logging.getLogger("streamer").setLevel(logging.NOTSET)
        await chain.close()
    told = kept.told()
    framing = [line for line in told if line["message"] == "framing"]
    assert {line["block"] for line in framing} == {0, 4, 8, 12}
    (refused,) = (line for line in told if "event 5 could not be processed: ValueError" in line["message"])
    assert (refused["block"], refused["event"], refused["logger"]) == (4, 5, "streamer.roles")
    (batch,) = (line for line in told if "a batch of" in line["message"])
    assert 8 in [batch.get("block"), *batch.get("blocks", [])]
    items = [(line["block"], line["message"]) for line in told if line["message"].startswith("hits: item")]
    assert items == [(8, f"hits: item {i} of block 8: ValueError: a bad hit") for i in range(2)]
    assert {line["message"]: line["block"] for line in told if line["message"].startswith("writing")} == {
        f"writing {first}": first for first in (0, 4, 8, 12)
    }
    assert all("block" not in line for line in told if line["logger"] == "streamer.hop")


def test_a_lumisection_is_named_where_there_is_one(kept: Kept) -> None:
    for lumis in ([7, 7], [7, 8]):
        token = logs.working.set((block_of_lumis(lumis),))
        log.warning("of %s", lumis)
        logs.working.reset(token)
    one, two = kept.told()
    assert (one["run_number"], one["lumisection"]) == (355872, 7)
    assert "lumisection" not in two


# ---- thinning


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(0, 30)), max_size=200))
def test_every_line_is_written_or_counted(lines: list[tuple[str, float]]) -> None:
    now, written, told = 0.0, 0, 0
    thinning = Thinning(burst=3, span=10.0, clock=lambda: now)
    for name, wait in lines:
        now += wait
        summaries = thinning.left_out()
        written += len(summaries)
        told += sum(record.left_out for record in summaries)  # type: ignore[attr-defined]
        place = {"pathname": name, "lineno": 1, "msg": "event %d", "args": (1,)}
        written += thinning.takes(logging.makeLogRecord(place))
    rest = thinning.left_out(all_=True)
    assert written + len(rest) + told + sum(record.left_out for record in rest) == len(lines)  # type: ignore[attr-defined]
    assert thinning.left_out(all_=True) == []


def test_a_million_bad_events_are_a_few_lines(fresh: None, capsys: pytest.CaptureFixture[str]) -> None:
    def say() -> None:
        for i in range(5000):
            log.error("event %d could not be processed", i)
        log.error("something else")
        logging.getLogger().handlers[0].close()

    lines = [json.loads(line[1:]) for line in across(capsys, say).splitlines()]
    assert len(lines) == 22
    assert lines[-2]["message"] == "something else"
    assert (lines[-1]["message"].partition(" (")[0], lines[-1]["left_out"]) == (
        "event 4999 could not be processed",
        5000 - 21,
    )


# ---- levels and forms


def test_levels_are_set_for_packages_and_put_back(fresh: None) -> None:
    hop, roles = logging.getLogger("streamer.hop"), logging.getLogger("streamer.roles")
    logs.set_up(LogConfig(level="warning, streamer.hop=DEBUG"))
    assert hop.isEnabledFor(logging.DEBUG)
    assert not roles.isEnabledFor(logging.INFO)
    logs.set_up(LogConfig())
    assert not hop.isEnabledFor(logging.DEBUG)
    assert roles.isEnabledFor(logging.INFO)


@pytest.mark.parametrize(
    ("level", "said"),
    [
        ("LOUD", "'LOUD' is no level; write DEBUG, INFO, WARNING"),
        ("streamer.hop=WARNIN", "'WARNIN' is no level; did you mean 'WARNING'?"),
        ("streamer.hops=DEBUG", "names 'streamer.hops', which is no package or module of streamer; did you mean"),
        ("INFO,uproot=DEBUG", "names 'uproot', which is no package or module of streamer"),
        ("", "'' is no level"),
    ],
)
def test_a_wrong_level_is_one_clear_line(level: str, said: str) -> None:
    with pytest.raises(UsageError) as raised:
        load(CoreConfig, None, {"log.level": level})
    assert "\n" not in str(raised.value)
    assert said in str(raised.value)


def test_the_command_line_takes_levels_of_both_packages_and_json(fresh: None) -> None:
    told = ["--log-level", "stages.menu=DEBUG", "--log-level", "ERROR", "--log-format", "json"]
    code, out, _ = call(*told, "config")
    assert code == 0
    assert 'level = "stages.menu=DEBUG,ERROR"' in out
    assert logging.getLogger("stages.menu").level == logging.DEBUG
    code, _, err = call("--log-format", "json", "inspect", "none.root")
    line = json.loads(err)
    assert (code, line["level"], line["message"].partition(":")[0]) == (2, "ERROR", "none.root")
    code, _, err = call("--log-level", "stage.menu=DEBUG", "config")
    assert (code, err.count("\n")) == (2, 1)
    assert "did you mean 'stages.menu'?" in err


def test_a_supervisor_hears_what_its_level_lets_through(fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.StringIO()
    monkeypatch.setattr("sys.stderr", written)
    logs.set_up(LogConfig(level="WARNING"), time=True)
    passing = logs.Passing("reader", 0)
    for level in ("INFO", "ERROR"):
        about = {"name": "stages.reader", "msg": level, "levelno": getattr(logging, level), "levelname": level}
        passing.line(logs.Json(logs.SEPARATOR).format(logging.makeLogRecord({**about, "created": 0.5})).encode())
    assert written.getvalue() == "1970-01-01 00:00:00.500Z ERROR ERROR\n"


@pytest.mark.parametrize("connected", [True, False])
def test_the_journal_is_told_the_level_of_each_line(connected: bool) -> None:
    program = (
        "import logging; from streamer import logs; from streamer.config import LogConfig\n"
        "logs.set_up(LogConfig(), time=True); logging.warning('it goes on'); logs.say('what is wrong')\n"
        "try: 1 / 0\n"
        "except ZeroDivisionError: logging.exception('it broke')\n"
    )
    read, write = os.pipe()
    found = os.fstat(write)
    stream = f"{found.st_dev}:{found.st_ino + (not connected)}"  # as systemd names what it gave us
    with os.fdopen(read) as lines:
        subprocess.run(
            [sys.executable, "-c", program], stderr=write, env={**os.environ, "JOURNAL_STREAM": stream}, timeout=60
        )
        os.close(write)
        told = lines.read().splitlines()
    if connected:
        assert told[:3] == ["<4>WARNING it goes on", "<3>streamer: what is wrong", "<3>ERROR it broke"]
        assert all(line.startswith("<3>") for line in told[3:]), "each line of the traceback"
    else:
        assert re.fullmatch(r"[\d-]+ [\d:.]+Z WARNING it goes on", told[0])
        assert told[1] == "streamer: what is wrong"
