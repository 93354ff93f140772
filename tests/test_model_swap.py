"""A network that is replaced while its stream goes on. Real processes, real networks, real files."""

import contextlib
import hashlib
import re
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import uproot
from onnx import TensorProto, helper
from physics_helpers import (
    Process,
    Processes,
    assert_end,
    call,
    event,
    save_graph,
    single_hits,
    sum_model,
    wait_until,
    write_hits,
)

from stages.detector.ecal import eb_detid
from stages.swapped import swapped
from streamer import control
from streamer.block import Block
from streamer.changes import Changes
from streamer.config import CoreConfig
from streamer.errors import UsageError
from streamer.testing import ToyStage, toy_block


@pytest.fixture
def streamer(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as made:
        yield made


def twice_model(path: Path) -> Path:
    """The score is twice the energy in the crop."""
    nodes = [
        helper.make_node("ReduceSum", ["crops", "axes"], ["sum"], keepdims=0),
        helper.make_node("Add", ["sum", "sum"], ["score"]),
    ]
    return save_graph(path, nodes, output=("batch",), weights={"axes": np.array([1, 2, 3], np.int64)})


def endless_model(path: Path) -> Path:
    """Its graph is in order, and its loop does not end."""

    def value(name: str, kind: int) -> Any:
        return helper.make_tensor_value_info(name, kind, [])

    again = [helper.make_node("Identity", ["go"], ["goes"]), helper.make_node("Add", ["x", "x"], ["twice"])]
    real, flag = TensorProto.FLOAT, TensorProto.BOOL
    ins = [value("k", TensorProto.INT64), value("go", flag), value("x", real)]
    body = helper.make_graph(again, "body", ins, [value("goes", flag), value("twice", real)])
    nodes = [
        helper.make_node("ReduceSum", ["crops"], ["all"], keepdims=0),
        helper.make_node("Loop", ["", "true", "all"], ["more"], body=body),
        helper.make_node("ReduceSum", ["crops", "axes"], ["sum"], keepdims=0),
        helper.make_node("Add", ["sum", "more"], ["score"]),
    ]
    weights = {"axes": np.array([1, 2, 3], np.int64), "true": np.array(True)}
    return save_graph(path, nodes, output=("batch",), weights=weights)


def number_of(model: Path) -> int:
    return int(hashlib.sha256(model.read_bytes()).hexdigest()[:16], 16)


def test_networks_are_replaced_at_block_borders_and_bad_ones_refused(streamer: Processes, tmp_path: Path) -> None:
    hit = int(eb_detid(20, 11))
    events = [event(i, EBRecHit=[(hit, float(i + 1))], Photon=[(34.0, 0.34, 0.005)]) for i in range(100)]
    hits = write_hits(tmp_path / "events.root", [{**e, "luminosityBlock": 1 + i // 25} for i, e in enumerate(events)])
    old, new = sum_model(tmp_path / "old.onnx"), twice_model(tmp_path / "new.onnx")
    wrong = sum_model(tmp_path / "wrong.onnx", shape=("batch", 2, 32, 32))
    out = tmp_path / "out"
    process = streamer(
        *("run", hits, "--output", out, "--loop", "--rate", 2000, "--tagger", f"eg={old}"),
        *("--replicas", "tagger=2", "--set", "feed.block_events=16"),
    )
    process.wait_for_events(300)
    running = {"running"}
    wait_until(lambda: {row["state"] for row in status(streamer)} == running, "all processes to run")
    refused = streamer("model", f"eg={wrong}")
    assert refused.wait() == 2
    assert f"tagger eg: {wrong}: input" in refused.err
    for path, why in ((tmp_path / "none.onnx", "cannot be read"), (old, "has these networks already")):
        with pytest.raises(UsageError, match=why):
            change(streamer, {"taggers.eg.model": str(path)})
    with pytest.raises(UsageError, match=r"only networks \(taggers.NAME.model\) can be changed"):
        change(streamer, {"taggers.eg.pt_min": 3.0})
    with pytest.raises(UsageError, match="no tagger 'gg' in this run"):
        change(streamer, {"taggers.gg.model": str(new)})
    with pytest.raises(UsageError, match="none of these settings can be changed"):
        control.ask(streamer.run_dir(), {"do": "change", "stage": "cropper", "settings": {"taggers.eg.pt_min": 3.0}})
    streamer("model", f"eg={new}").check()
    seen = done(streamer)
    wait_until(lambda: done(streamer) > seen + 600, "events with the new network")
    process.stage("tagger-1").send_signal(signal.SIGKILL)  # it comes back with the new network
    process.stage("writer-0").send_signal(signal.SIGKILL)  # and this with the old books
    wait_until(lambda: all(row["state"] == "running" for row in status(streamer)), "all processes to run again")
    seen = done(streamer)
    wait_until(lambda: done(streamer) > seen + 600, "events with the new network after the deaths")
    assert swapped(out / "books") == {"eg": {"model": str(new), "sha256": hashlib.sha256(new.read_bytes()).hexdigest()}}
    streamer("model", f"eg={old}", out, "--at-lumisection").check()
    seen = done(streamer)
    wait_until(lambda: done(streamer) > seen + 600, "events with the old network")
    streamer("stop").check()
    process.check()
    assert call("ledger", out)[0] == 0
    with uproot.open(out / "scores.root") as file:
        rows = file["Events"].arrays(["egModel", "Photon_egScore", "sourceEntry", "replay"], library="np")
    place = rows["replay"] * 100 + rows["sourceEntry"]
    assert sorted(place) == list(range(place.size)), "each event that was fed, once"
    order = np.argsort(place)
    models, scores = rows["egModel"][order], np.array([s[0] for s in rows["Photon_egScore"]])[order]
    assert {*models.tolist()} == {number_of(old), number_of(new)}
    energies = np.tile(np.arange(1, 101), -(-place.size // 100))[: place.size]
    expected = np.where(models == number_of(old), energies, 2 * energies)
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert models[0] == models[-1] == number_of(old)
    assert swapped(out / "books") == {}, "the network that the run began with needs no word"


def test_a_network_that_crashes_or_hangs_does_so_in_its_rehearsal(streamer: Processes, tmp_path: Path) -> None:
    process, old = endless(streamer, tmp_path)
    bad = endless_model(tmp_path / "bad.onnx")
    asked = streamer("model", f"eg={bad}")
    rehearsal = wait_until(lambda: rehearsing(process), "a rehearsal")
    wait_until(lambda: rehearsal.nice() == 19 and rehearsal.cpu_times().user > 1, "its loop")
    with pytest.raises(UsageError, match="another change is just being prepared"):
        change(streamer, {"taggers.eg.model": str(bad)})
    seen = done(streamer)
    wait_until(lambda: done(streamer) > seen + 300, "events meanwhile")
    rehearsal.send_signal(signal.SIGSEGV)
    asked.check(2)
    assert asked.complaints == ["tagger: the rehearsal died of SIGSEGV; everything stays as it was"]
    assert {row["restarts"] for row in status(streamer)} == {0}
    streamer("model", f"eg={twice_model(tmp_path / 'new.onnx')}", "--at-lumisection").check()  # there is only one
    streamer("model", f"eg={old}").check()  # and that takes it back
    late = streamer("model", f"eg={bad}")
    wait_until(lambda: rehearsing(process), "another rehearsal")
    streamer("stop").check()
    late.check(2)
    assert late.complaints == ["the run is stopping"]
    process.check()
    assert not [child for child in process.children() if child.is_running()]
    assert call("ledger", tmp_path / "out")[0] == 0
    with uproot.open(tmp_path / "out" / "scores.root") as file:
        assert {*file["Events"]["egModel"].array(library="np").tolist()} == {number_of(old)}


def test_a_rehearsal_ends_with_its_run(streamer: Processes, tmp_path: Path) -> None:
    process, _ = endless(streamer, tmp_path)
    streamer("model", f"eg={endless_model(tmp_path / 'bad.onnx')}")
    wait_until(lambda: rehearsing(process), "a rehearsal")
    family = process.children()
    process.signal(signal.SIGKILL)
    assert_end(family)


@pytest.mark.long
def test_a_network_that_takes_too_long_is_refused(streamer: Processes, tmp_path: Path) -> None:
    process, _ = endless(streamer, tmp_path, "--set", "supervisor.start_timeout=30")
    refused = streamer("model", f"eg={endless_model(tmp_path / 'bad.onnx')}").check(2)
    assert refused.complaints == ["tagger: the rehearsal was not done after 30 s; everything stays as it was"]
    assert not rehearsing(process)
    new = twice_model(tmp_path / "new.onnx")
    streamer("model", f"eg={new}").check()
    streamer("stop").check()
    process.check()


def endless(streamer: Processes, tmp_path: Path, *more: object) -> tuple[Process, Path]:
    """A run that goes on until it is stopped, and its network."""
    hit = int(eb_detid(20, 11))
    events = [event(i, EBRecHit=[(hit, float(i + 1))], Photon=[(34.0, 0.34, 0.005)]) for i in range(100)]
    hits, old = write_hits(tmp_path / "events.root", events), sum_model(tmp_path / "old.onnx")
    run = ("run", hits, "--output", tmp_path / "out", "--loop", "--rate", 1000, "--tagger", f"eg={old}")
    process = streamer(*run, "--replicas", "tagger=2", *more)
    process.wait_for_events(200)
    wait_until(lambda: {row["state"] for row in status(streamer)} == {"running"}, "all processes to run")
    return process, old


def rehearsing(process: Process) -> psutil.Process | None:
    """The process that rehearses a change."""
    for child in process.children():
        with contextlib.suppress(psutil.Error):
            if "streamer rehearse" in " ".join(child.cmdline()):
                return child
    return None


@pytest.mark.long
def test_a_run_that_goes_on_has_the_network_that_it_had_last(streamer: Processes, tmp_path: Path) -> None:
    hit = int(eb_detid(20, 11))
    events = [event(i, EBRecHit=[(hit, float(i + 1))], Photon=[(34.0, 0.34, 0.005)]) for i in range(100)]
    hits, out = write_hits(tmp_path / "events.root", events), tmp_path / "out"
    old, new = sum_model(tmp_path / "old.onnx"), twice_model(tmp_path / "new.onnx")
    single_hits(old, 100).write(tmp_path / "good.json")
    service = (
        *("run", hits, "--output", out, "--loop", "--rate", 1000, "--tagger", f"eg={old}", "--go-on"),
        *("--reference", tmp_path / "good.json"),
    )
    first = streamer(*service)
    first.wait_for_events(300)
    streamer("model", f"eg={new}").check()
    seen = done(streamer)
    wait_until(lambda: done(streamer) > seen + 300, "events with the new network")
    family = first.children()
    first.signal(signal.SIGKILL)
    assert_end(family)
    moved = new.rename(tmp_path / "elsewhere.onnx")
    lost = streamer(*service)
    lost.check(2)
    assert re.search(rf"{new}: cannot be read|other networks than {new}", lost.err), "whoever is quicker"
    moved.rename(new)
    again = streamer(*service)
    again.wait_for_events(300)
    streamer("stop").check()
    again.check()
    assert call("ledger", out)[0] == 0
    with uproot.open(sorted(out.glob("scores*.root"))[-1]) as file:
        models = file["Events"]["egModel"].array(library="np")
    assert models[-1] == number_of(new)
    sum_model(new, limit=3.0)  # another network under its name
    refused = streamer(*service)
    refused.check(2)
    assert f"{out}: the run there had other networks than {new}; go on with the same" in refused.err


def status(streamer: Processes) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = control.ask(streamer.run_dir(), {"do": "status"})["processes"]
    return rows


def done(streamer: Processes) -> int:
    return int(control.ask(streamer.run_dir(), {"do": "status"})["done"])


def change(streamer: Processes, settings: dict[str, object]) -> None:
    control.ask(streamer.run_dir(), {"do": "change", "stage": "tagger", "settings": settings})


class Changing(ToyStage):
    """Notes the configuration that is in force; one with replicas is refused."""

    rate = 0.0

    def prepare(self, now: CoreConfig, wanted: CoreConfig, rehearsed: Mapping[str, Any]) -> Any:
        if wanted.replicas:
            raise UsageError("no")

        def change() -> None:
            self.rate = wanted.feed.rate

        return change


def config(rate: float) -> CoreConfig:
    return CoreConfig.model_validate({"feed": {"rate": rate}})


def block_of(lumi: int) -> Block:
    block = toy_block(1, 2)
    return block.with_columns({**block.columns, "run": np.full(2, 1), "luminosityBlock": np.full(2, lumi)})


async def test_a_change_is_made_before_the_next_block_or_at_the_next_lumisection() -> None:
    stage = Changing()
    changes = Changes(stage)
    assert await changes.prepare(1, CoreConfig(), config(5.0), {}) == ""
    assert changes.before(block_of(1)) is None, "nobody has said that it is to be made"
    changes.make(1, at_lumisection=False)
    assert changes.before(block_of(1)) == config(5.0)
    assert stage.rate == 5.0
    assert changes.before(block_of(1)) is None
    assert await changes.prepare(2, CoreConfig(), config(6.0), {}) == ""
    changes.make(2, at_lumisection=True)
    assert [changes.before(block_of(lumi)) for lumi in (4, 4, 4)] == [None] * 3
    assert stage.rate == 5.0
    assert changes.coming == config(6.0)
    assert changes.before(block_of(5)) == config(6.0)
    assert changes.coming is None
    assert stage.rate == 6.0


async def test_what_is_refused_or_dropped_changes_nothing() -> None:
    stage = Changing()
    changes = Changes(stage)
    assert await changes.prepare(1, CoreConfig(), CoreConfig(replicas={"a": 2}), {}) == "no"
    assert await changes.prepare(2, CoreConfig(), config(7.0), {}) == ""
    changes.drop(2)
    for number in (1, 2, 3):
        changes.make(number, at_lumisection=False)
    assert changes.before(block_of(1)) is None
    refused = await Changes(ToyStage()).prepare(1, CoreConfig(), config(1.0), {})
    assert refused == "none of these settings can be changed while a run goes on"
