"""The command line from end to end: real processes, real files, real signals."""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
import pytest
import reference_chain as reference
import uproot
import zmq
from physics_helpers import (
    Event,
    Process,
    Processes,
    assert_end,
    call,
    command_of,
    conv_model,
    event,
    fed_and_done,
    fill_disk,
    free_ports,
    ig_text,
    read_scores,
    small_disk,
    sum_model,
    wait_until,
    write_hits,
    write_ig,
)

from stages import PIPELINE
from stages.config import TaggerConfig, n_taggers
from stages.detector.ecal import eb_detid
from streamer.block import MAGIC

N_EVENTS = 60
NAN_HITS, BAD_DETIDS = 3, 2
"""Hits in the events that are no numbers, and that stand for no crystal."""


def make_events() -> list[Event]:
    """Events with 0 to 3 photons, numbers that float32 and .ig hold exactly, and a few hits that are nonsense."""
    rng = np.random.default_rng(11)
    events = []
    for number in range(N_EVENTS):
        hits: list[tuple[int, float]] = []
        photons = []
        for _ in range(number % 4):
            ieta, iphi = int(rng.integers(1, 80)) * int(rng.choice([-1, 1])), int(rng.integers(1, 361))
            for _ in range(12):
                eta = ieta + int(rng.integers(-6, 7)) or 1
                phi = (iphi - 1 + int(rng.integers(-6, 7))) % 360 + 1
                if abs(eta) <= 85:
                    hits.append((int(eb_detid(eta, phi)), int(rng.integers(-4, 640)) / 64))
            eta = round((abs(ieta) - 0.5) * 0.01745 * np.sign(ieta) * 256) / 256
            phi = round(np.radians((iphi - 10.5 + 180) % 360 - 180) * 256) / 256
            photons.append((int(rng.integers(40, 800)) / 8, eta, phi))
        events.append(event(number, EBRecHit=hits, Photon=photons))
    events[5]["EBRecHit"] += [(int(eb_detid(1, 1)), float("nan")), (int(eb_detid(2, 1)), float("inf"))]
    events[7]["EBRecHit"] += [(int(eb_detid(1, 1)), -float("inf")), (1, 5.0)]
    events[9]["EBRecHit"] += [(0xFFFFFFFF, 5.0)]
    return events


EVENTS = make_events()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pipeline")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return conv_model(folder / "conv.onnx")


@pytest.fixture(scope="module")
def hits(folder: Path) -> Path:
    return write_hits(folder / "hits.root", EVENTS)


@pytest.fixture
def streamer(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as made:
        yield made


def plain_scores(model: Path) -> tuple[list[list[float]], list[list[tuple[int, int]]]]:
    """What the plain loop makes of the events."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    events = [
        reference.Event(eb=[(int(d), e) for d, e, *_ in made["EBRecHit"]], photons=[(*p, 0) for p in made["Photon"]])
        for made in EVENTS
    ]
    return reference.run(events, session)


def one_line(process: Process) -> str:
    """The only thing that the user is told to be wrong."""
    (line,) = process.complaints
    assert "Traceback" not in process.err
    return line


def identities(scores: dict[str, list[Any]]) -> list[tuple[int, int, int]]:
    return list(zip(scores["replay"], scores["sourceFile"], scores["sourceEntry"], strict=True))


def assert_first_events(scores: dict[str, list[Any]], n: int) -> None:
    """The first `n` events of the looped input, each once and in order."""
    assert identities(scores) == [(i // N_EVENTS, 0, i % N_EVENTS) for i in range(n)]


# ---- the same events in three kinds of files, over two transports, with one and with two of each


@pytest.fixture(scope="module")
def three_ways(folder: Path, model: Path, hits: Path) -> Iterator[dict[str, tuple[Process, dict[str, list[Any]]]]]:
    broken = write_ig(folder / "broken.ig", ["{}", ig_text(EVENTS[0])[:-40]])  # two events that nobody can read
    inputs = {
        "ttree": hits,
        "rntuple": write_hits(folder / "hits-rntuple.root", EVENTS, rntuple=True),
        "ig": write_ig(folder / "hits.ig", [ig_text(e) for e in EVENTS]),
    }
    options = {
        "ttree": ["--set", "tagger.max_batch=5"],
        "rntuple": [
            *("--set", "hop.transport=tcp", "--set", f"hop.base_port={free_ports(7)}"),
            *("--set", "writer.format=rntuple", "--set", "feed.block_events=1"),
        ],
        "ig": ["--replicas", "framer=2,cropper=2,tagger=2", "--set", "feed.block_events=4"],
    }
    with Processes(folder) as streamer:
        made = {
            kind: streamer(
                *("run", path, "--output", folder / kind, "--tagger", f"eg={model}", *options[kind]),
                *([broken] if kind == "ttree" else []),
            )
            for kind, path in inputs.items()
        }
        for process in made.values():
            process.check()
        yield {kind: (process, read_scores(folder / kind / "scores.root")) for kind, process in made.items()}


KINDS = ["ttree", "rntuple", "ig"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_event_comes_once_and_in_order(three_ways: Any, kind: str) -> None:
    _, got = three_ways[kind]
    assert_first_events(got, N_EVENTS)
    assert got["event"] == [e["event"] for e in EVENTS]
    assert not any(got["error"])


@pytest.mark.parametrize("kind", KINDS)
def test_scores_and_seeds_are_those_of_the_plain_loop(three_ways: Any, model: Path, kind: str) -> None:
    _, got = three_ways[kind]
    scores, seeds = plain_scores(model)
    assert [len(photons) for photons in got["Photon_egScore"]] == [len(e["Photon"]) for e in EVENTS]
    np.testing.assert_allclose(np.concatenate(got["Photon_egScore"]), np.concatenate(scores), rtol=0, atol=1e-5)
    rows, columns = np.concatenate(got["Photon_seedRow"]), np.concatenate(got["Photon_seedCol"])
    assert list(zip(rows, columns, strict=True)) == [seed for event_ in seeds for seed in event_]
    assert (rows >= 0).sum() > 40


def test_the_kind_of_file_and_the_number_of_replicas_change_nothing(three_ways: Any) -> None:
    (_, first), *others = three_ways.values()
    for _, other in others:
        np.testing.assert_allclose(
            np.concatenate(other["Photon_egScore"]), np.concatenate(first["Photon_egScore"]), rtol=0, atol=1e-6
        )
        same = set(first) - {"Photon_egScore"}
        assert {name: other[name] for name in same} == {name: first[name] for name in same}


def test_an_event_without_photons_keeps_its_entry(three_ways: Any) -> None:
    _, got = three_ways["ttree"]
    assert [i for i, photons in enumerate(got["Photon_pt"]) if not photons] == list(range(0, N_EVENTS, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_the_table_keeps_the_books_and_tells_what_was_left_out(three_ways: Any, kind: str) -> None:
    process, _ = three_ways[kind]
    assert fed_and_done(process.out) == (N_EVENTS, N_EVENTS, 0)
    unreadable = ", 2 unreadable entry" if kind == "ttree" else ""
    assert re.search(rf"left out\s+{NAN_HITS} nan_energy, {BAD_DETIDS} bad_detid{unreadable}\s*\n", process.out)
    reported = [line for line in process.err.splitlines() if "cannot be read and will be left out" in line]
    assert [f"broken.ig: entry {k}" in line for k, line in enumerate(reported)] == [True] * (2 if unreadable else 0)
    assert "provider CPU" in process.out
    assert "scores" in process.out.splitlines()[-1]
    replicas = {line.split()[0]: line.split()[1] for line in process.out.splitlines() if " MB" in line}
    asked = {"framer": 2, "cropper": 2, "tagger": 2} if kind == "ig" else {"tagger": n_taggers(TaggerConfig())}
    assert replicas == {name: str(asked.get(name, 1)) for name in PIPELINE.names}


def test_the_output_is_of_the_kind_that_was_asked_for(three_ways: Any, folder: Path) -> None:
    for kind in KINDS:
        with uproot.open(folder / kind / "scores.root") as file:
            assert ("RNTuple" in type(file["Events"]).__name__) == (kind == "rntuple")
            sources = [Path(name).name for name in json.loads(str(file["streamer_sources"]))]
            assert (
                sources
                == {
                    "ttree": ["hits.root", "broken.ig"],
                    "rntuple": ["hits-rntuple.root"],
                    "ig": ["hits.ig"],
                }[kind]
            )


# ---- the feed


@pytest.fixture(scope="module")
def fed(folder: Path, hits: Path) -> Iterator[dict[str, Process]]:
    """A loop that ends, with a network that gives no number for crops of more than 60 GeV; and no events at all."""
    empty = write_hits(folder / "empty.root", [])
    model = sum_model(folder / "limit.onnx", limit=60.0)
    with Processes(folder) as streamer:
        common = ["--tagger", f"eg={model}", "--loop", "--output"]
        made = {
            "loop": streamer("run", hits, *common, folder / "loop", "--events", 150, "--rate", 500),
            "nothing": streamer("run", empty, *common, folder / "nothing"),
        }
        yield {name: process.check() for name, process in made.items()}


def test_a_loop_stops_after_the_events_that_were_asked_for(fed: dict[str, Process], folder: Path) -> None:
    assert_first_events(read_scores(folder / "loop/scores.root"), 150)
    seconds = re.search(r"events/s over ([\d.]+) (ms|s)", fed["loop"].out)
    assert seconds
    took = float(seconds[1]) * {"ms": 1e-3, "s": 1}[seconds[2]]
    assert took > 0.5 * 149 / 500, "the feed kept to its rate; the first may be late"


def test_an_event_without_a_score_is_marked_and_counted_and_goes_on(fed: dict[str, Process], folder: Path) -> None:
    got = read_scores(folder / "loop/scores.root")
    wanted_errors, wanted_scores = [], []
    for made in EVENTS:
        plain = reference.Event(eb=[(int(d), e) for d, e, *_ in made["EBRecHit"]])
        image, _ = reference.frame_of(plain)
        seeds = [reference.seed_of(image, (*photon, 0)) for photon in made["Photon"]]
        sums = [float(reference.crop_of(image, seed).sum()) if seed else -1.0 for seed in seeds]
        wanted_errors.append(4 if any(s > 60 for s in sums) else 0)
        wanted_scores.append([s if s <= 60 else -1.0 for s in sums])
    assert 5 < sum(map(bool, wanted_errors)) < 55
    assert got["error"] == [wanted_errors[i % N_EVENTS] for i in range(150)]
    for i in range(150):
        np.testing.assert_allclose(got["Photon_egScore"][i], wanted_scores[i % N_EVENTS], rtol=1e-5, atol=1e-4)
    n_errors = sum(map(bool, got["error"]))
    assert fed_and_done(fed["loop"].out) == (150, 150 - n_errors, n_errors)


def test_no_events_give_a_valid_empty_file(fed: dict[str, Process], folder: Path) -> None:
    assert fed_and_done(fed["nothing"].out) == (0, 0, 0)
    scores = read_scores(folder / "nothing/scores.root")
    assert scores["event"] == scores["Photon_egScore"] == []


# ---- stopping


def junk(at: str) -> None:
    """What strangers may send to a socket of the pipeline."""
    import msgpack

    def told(**header: Any) -> bytes:
        return MAGIC + bytes(msgpack.packb(header))

    messages: list[list[bytes]] = [
        [b""],
        [b"GET / HTTP/1.1\r\n\r\n"],
        [MAGIC],
        [MAGIC + b"\xc1\xff\x00"],
        [b"x"] * 300,
        [told(kind="credit", run="guess", life="a", of="b", received=0, spare=1 << 40)],
        [told(kind="commit", run="guess", ids=[[0, 1 << 40]], way=0)],
        [told(kind="bye", run="guess", life="a"), b"more"],
        [told(kind=5)],
        [bytes(4000)] * 5,
        [bytes(1 << 20)],  # too large: cuts the connection
        [told(kind="leave", run="guess", life="a")],
    ]
    context = zmq.Context()
    try:
        for kind in (zmq.DEALER, zmq.REQ, zmq.PUSH, zmq.SUB):
            with context.socket(kind) as stranger:
                stranger.setsockopt(zmq.SNDTIMEO, 2000)
                stranger.linger = 2000
                stranger.connect(at)
                if kind == zmq.SUB:
                    stranger.subscribe(b"")
                for frames in messages if kind == zmq.DEALER else messages[1:2] if kind == zmq.REQ else []:
                    stranger.send_multipart(frames)
    finally:
        context.term()
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as raw:
        raw.settimeout(2)
        raw.connect(at.removeprefix("ipc://"))
        raw.sendall(b"\xff" * 5000)


def test_strangers_at_the_sockets_change_nothing_and_ctrl_c_drains(
    streamer: Processes, model: Path, hits: Path, tmp_path: Path
) -> None:
    process = streamer(
        *("run", hits, "--output", tmp_path / "out", "--tagger", f"eg={model}", "--loop", "--rate", 1000),
    )
    process.wait_for_events(200)
    family = process.children()
    run_dir = streamer.run_dir()
    assert run_dir.stat().st_mode & 0o077 == 0, "a private folder"
    sockets = ["reader-0", "framer-0", "cropper-0", "tagger-0", "commit"]
    for name in sockets:
        junk(f"ipc://{run_dir / name}")

    reasons = {"magic", "header", "token", "frames"}

    def refused(stage: str) -> set[str]:
        found = {
            key.split("/")[1] for key, n in process.metrics(stage).items() if "messages_refused_total" in key and n
        }
        return found if found >= reasons else set()

    for name in ("reader-0", "framer-0", "cropper-0", "tagger-0"):
        wait_until(lambda stage=name: refused(stage), f"{name} to have refused them all")
    seen = process.metrics("writer-0")["streamer_events_total/ok"]
    process.wait_for_events(int(seen) + 500)
    dropped = process.metrics("framer-0")
    assert dropped["streamer_hits_dropped_total/nan_energy"] >= NAN_HITS
    assert dropped["streamer_hits_dropped_total/bad_detid"] >= BAD_DETIDS

    process.signal(signal.SIGINT)
    process.check()
    fed, scored, errors = fed_and_done(process.out)
    assert fed == scored > 700
    assert errors == 0
    assert process.complaints == []
    assert_first_events(read_scores(tmp_path / "out/scores.root"), fed)
    assert_end(family)
    assert not run_dir.exists()


def test_sigterm_in_the_middle_drains(streamer: Processes, model: Path, hits: Path, tmp_path: Path) -> None:
    process = streamer(
        *("run", hits, "--output", tmp_path / "out", "--tagger", f"eg={model}", "--loop", "--rate", 2000),
        *("--replicas", "tagger=2"),
    )
    process.wait_for_events(300)
    process.signal(signal.SIGTERM)
    process.check()
    fed, scored, errors = fed_and_done(process.out)
    assert (scored, errors) == (fed, 0)
    assert fed >= 300
    assert_first_events(read_scores(tmp_path / "out/scores.root"), fed)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "books",
        "ledger.json",
        "lumi_mask.json",
        "quality.json",
        "scores.root",
    ]


def test_a_stop_before_the_first_event_is_heard(streamer: Processes, model: Path, hits: Path, tmp_path: Path) -> None:
    process = streamer("run", hits, "--output", tmp_path / "out", "--tagger", f"eg={model}", "--loop")
    wait_until(lambda: any("forkserver" in command_of(child) for child in process.children()), "a first process")
    process.signal(signal.SIGTERM)
    process.check()
    fed, scored, _ = fed_and_done(process.out)
    assert fed == scored == len(read_scores(tmp_path / "out/scores.root")["event"])
    assert process.complaints == []


# ---- dying


COMMITTED = "streamer_commit_latency_seconds_count"


@dataclass
class Broken:
    """A run that something happened to: its processes, and what it left."""

    process: Process
    family: list[psutil.Process]
    n_seen: int
    left: list[str]
    found: dict[str, list[Any]]


@pytest.fixture(scope="module")
def broken(folder: Path, model: Path, hits: Path) -> Iterator[dict[str, Broken]]:
    """Three runs at once: a stage is killed, the supervisor is killed, the disk fills up."""
    outs = {"stage": folder / "stage-killed", "supervisor": folder / "supervisor-killed"}
    with Processes(folder) as streamer, contextlib.ExitStack() as stack:
        with contextlib.suppress(pytest.skip.Exception):
            outs["disk"] = stack.enter_context(small_disk(folder / "disk", "40m")) / "out"
        runs = {
            name: streamer(
                "run",
                hits,
                "--output",
                out,
                "--tagger",
                f"eg={model}",
                "--loop",
                "--rate",
                500,
                "--set",
                "writer.disk_patience=1",
                "--replicas",
                "tagger=1",  # then what is on disk has no gaps
            )
            for name, out in outs.items()
        }
        families = {}
        for name, process in runs.items():
            process.wait_for_events(100)
            families[name] = process.children()
            code, _, err = call("finish", outs[name])
            assert code == 2
            assert "a run is writing there; let that end first" in err
        n_seen = {name: int(process.metrics("writer-0")[COMMITTED])
                  for name, process in runs.items()}  # fmt: skip
        runs["stage"].stage("cropper-0").kill()
        runs["supervisor"].popen.kill()
        if "disk" in outs:
            fill_disk(outs["disk"].parent / "ballast")
        runs["stage"].wait_for_events(int(runs["stage"].metrics("writer-0")[COMMITTED]) + 500)
        runs["stage"].popen.terminate()
        results = {}
        for name, process in runs.items():
            process.wait()
            assert_end(families[name])
            left = sorted(path.name for path in outs[name].iterdir())
            if name == "disk":
                (outs["disk"].parent / "ballast").unlink()
            if "scores.root" not in left:
                code, said, err = call("finish", outs[name])
                assert (code, err) == (0, ""), name
                assert f" events in {outs[name] / 'scores.root'}" in said
            found = read_scores(outs[name] / "scores.root")
            results[name] = Broken(process, families[name], n_seen[name], left, found)
        yield results


@pytest.mark.parametrize("name", ["stage", "supervisor", "disk"])
def test_what_was_committed_is_saved_whatever_happens(broken: dict[str, Broken], name: str) -> None:
    if name not in broken:
        pytest.skip("a small disk cannot be mounted here")
    run = broken[name]
    assert len(run.family) >= 6  # the stages, and what they are copies of
    assert len(run.found["event"]) >= run.n_seen >= 100
    assert_first_events(run.found, len(run.found["event"]))


def test_a_stage_that_is_killed_is_started_again(broken: dict[str, Broken], folder: Path) -> None:
    process = broken["stage"].process.check()
    assert "cropper-0 died of SIGKILL; it is started again in 0.1 s" in process.err
    assert broken["stage"].left == ["books", "ledger.json", "lumi_mask.json", "quality.json", "scores.root"]
    code, said, _ = call("ledger", folder / "stage-killed")
    assert code == 0
    assert "the books close" in said


def test_a_supervisor_that_is_killed_takes_its_processes_along(broken: dict[str, Broken]) -> None:
    assert broken["supervisor"].left == ["books"]


def test_a_disk_that_fills_up_ends_the_run(broken: dict[str, Broken], folder: Path) -> None:
    if "disk" not in broken:
        pytest.skip("a small disk cannot be mounted here")
    out = folder / "disk/out"
    line = one_line(broken["disk"].process.check(1))
    assert re.match(rf"(writer-0: {out}/books/writer-0.000000.journal|reader-0: {out}/books/reader-0.fed): ", line)
    assert "cannot be written (No space left on device)" in line
    assert "make room" in line
    assert f"go on with: streamer run --resume {out}" in line
    assert broken["disk"].left == ["books"]


# ---- without a supervisor


def test_five_processes_started_by_hand_are_the_same_pipeline(
    streamer: Processes, model: Path, hits: Path, tmp_path: Path
) -> None:
    code, text, _ = call(
        "config", *("--set", f"input.files=['{hits}']", "--set", f"writer.dir={tmp_path / 'out'}"),
        *("--set", f"taggers.eg.model={model}", "--set", "replicas.cropper=2"),
    )  # fmt: skip
    assert code == 0
    (tmp_path / "pipeline.toml").write_text(text)
    # The chain finds itself in whatever order its processes come.
    order = [("writer", 0), ("cropper", 1), ("reader", 0), ("tagger", 0), ("framer", 0), ("cropper", 0)]
    run_dir = streamer.runtime / "by-hand"
    made = [
        streamer("stage", name, "--replica", k, "--config", tmp_path / "pipeline.toml", "--run-dir", run_dir)
        for name, k in order
    ]
    for process in made:
        process.check()
        states = [json.loads(line)["state"] for line in process.out.splitlines()]
        assert states[0] == "starting"
        assert states[-1] == "stopped"
        assert {"ready", "running"} <= set(states)
        assert "Traceback" not in process.err
    got = read_scores(tmp_path / "out/scores.root")
    assert_first_events(got, N_EVENTS)
    np.testing.assert_allclose(
        np.concatenate(got["Photon_egScore"]), np.concatenate(plain_scores(model)[0]), rtol=0, atol=1e-5
    )


# ---- what the user can fix before the start


def test_what_goes_wrong_at_the_start_is_one_line_and_exit_code_2(
    streamer: Processes, model: Path, hits: Path, tmp_path: Path
) -> None:
    in_the_way = tmp_path / "file"
    in_the_way.write_text("not a folder")
    long_path = streamer.runtime / ("x" * 100)
    (tmp_path / "bad.root").write_bytes(b"root" + bytes(100))
    with socket.socket() as taken, contextlib.ExitStack() as stack:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        common = ["--set", f"taggers.eg.model={model}", "--set", f"input.files=['{hits}']"]

        def stage(name: str, *settings: str, run_dir: Path = streamer.runtime / "r") -> Process:
            sets = [part for setting in settings for part in ("--set", setting)]
            return streamer("stage", name, "--run-dir", run_dir, *common, *sets)

        def run(source: Path, out: Path, *settings: str) -> Process:
            sets = [part for setting in settings for part in ("--set", setting)]
            return streamer("run", source, "--output", out, *common[:2], *sets)

        full = tmp_path / "full"
        try:
            disk = stack.enter_context(small_disk(full, "512k"))
        except pytest.skip.Exception:
            disk = None
        cases = {
            "metrics port": (stage("framer", f"metrics.base_port={port - 1}"),
                             f"metrics cannot be served on 127.0.0.1:{port} (Address already in use); set metrics.b"),
            "hop port": (stage("cropper", "hop.transport=tcp", f"hop.base_port={port - 2 * 64}"),
                         f"tcp://127.0.0.1:{port} cannot be bound (Address already in use); set hop.base_port"),
            "long path": (stage("tagger", run_dir=long_path), f"{long_path}: too long a path for sockets"),
            "no run folder": (stage("tagger", run_dir=in_the_way / "x"), f"{in_the_way / 'x'}: no folder for the run"),
            "no model": (stage("tagger", f"taggers.eg.model={tmp_path / 'none.onnx'}"),
                         f"tagger eg: {tmp_path / 'none.onnx'}: cannot be read (No such file or directory)"),
            "bad geometry": (stage("framer", f"framer.ee_geometry={in_the_way}"), f"framer.ee_geometry: {in_the_way}"),
            "file in the way": (run(hits, in_the_way / "o"), f"{in_the_way / 'o'}: cannot be written (Not a dir"),
            "bad input": (run(tmp_path / "bad.root", tmp_path / "o1"), f"{tmp_path / 'bad.root'}: no tree 'Events'"),
        }  # fmt: skip
        if disk is not None:
            cases["full disk"] = (stage("writer", f"writer.dir={disk / 'out'}"), f"{disk / 'out'}: the disk is full (")
        for name, (process, said) in cases.items():
            process.check(2)
            assert "Traceback" not in process.err, name
            lines = re.findall(r"^(?:streamer:|[-\d]+ [:.\d]+Z ERROR \[\w+-0\]) (.*)", process.err, re.MULTILINE)
            assert len(lines) == 1, (name, process.err)
            assert lines[0].startswith(said), name
            told = [json.loads(line) for line in process.out.splitlines() if line.startswith("{")]
            assert not told or (told[-1]["state"], told[-1]["exit"]) == ("failed", 2), name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run"], "no input; name event files, globs or folders, or run: streamer demo"),
        (["run", "{hits}", "--replicas", "framer"], "--replicas 'framer': write name=value, such as framer=2,tagger=1"),
        (["run", "{hits}", "--replicas", "framer=two"], "--replicas 'framer=two': write name=value"),
        (["run", "{hits}", "--replicas", "frame=2"], "no stage 'frame' in reader > framer >"),
        (["run", "{hits}", "--replicas", "framer=0"], "configuration: 'replicas.framer': "),
        (["run", "{hits}", "--tagger", "my"], "--tagger 'my': write name=value, such as eg=MODEL.onnx"),
        (["run", "{hits}", "--events", "-1"], "configuration: 'feed.events': "),
        (["run", "{hits}", "--rate", "inf"], "configuration: 'feed.rate': "),
        (["run", "{hits}", "--set", "tagger.max_batch"], "--set 'tagger.max_batch': write key=value"),
        (["run", "{hits}", "--set", "feed=3"], "configuration: 'feed': "),
        (["run", "{hits}", "--set", "feed.rate.x=3"], "configuration: 'feed.rate': "),
        (["run", "{hits}", "--set", "feed.max_wait='5 parsecs'"], "configuration: unknown key 'feed.max_wait'"),
        (["run", "{hits}", "--set", "tagger.max_wait='5 parsecs'"], "configuration: 'tagger.max_wait': "),
        (["run", "{nothing}/*.root"], "{nothing}/*.root: matches no file"),
        (["check", "{nothing}.toml"], "{nothing}.toml: cannot be read (No such file or directory)"),
        (["check", "{hits}"], "{hits}: not valid TOML: "),
        (["config", "--set", "writer.format=csv"], "configuration: 'writer.format': "),
        (["inspect", "{nothing}"], "{nothing}: cannot be read (No such file or directory)"),
        (["inspect", "{hits}", "--set", "input.tree=events"], "{hits}: no tree 'events' in the file (it has Events)"),
        (["convert", "{hits}"], "name at least one input and then the file to make"),
        (["convert", "{nothing}", "{nothing}.root"], "{nothing}: cannot be read (No such file or directory)"),
        (["convert", "{hits}", "{hits}"], "{hits}: exists; choose another name, or --overwrite"),
        (["convert", "{hits}", "{hits}/x.root"], "{hits}/x.root: cannot be written ("),
        (["run", "--resume", "{nothing}"], "{nothing}: no run was begun there"),
        (
            ["run", "--resume", "{nothing}", "-o", "x"],
            "--resume goes on with the run's own configuration; leave --output",
        ),
        (
            ["run", "{hits}", "--go-on", "--overwrite"],
            "--go-on goes on where there is a run; leave --resume and --over",
        ),
        (["ledger", "{nothing}"], "{nothing}: no run was begun there"),
        (["finish", "{nothing}"], "{nothing}: no run broke off there; there is nothing to finish"),
        (["stage", "tager"], "no stage 'tager' in reader > framer > cropper > tagger > writer; did you mean 'tagger'?"),
        (["stage", "tagger", "--replica", "3"], "--replica 3: the configuration has replicas.tagger = 1"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line_and_exit_code_2(
    hits: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    names = {"hits": hits, "nothing": tmp_path / "nothing"}
    before = hits.read_bytes()
    code, out, err = call(*(text.format(**names) for text in arguments))
    assert code == 2
    assert err.startswith("streamer: " + said.format(**names))
    assert err.count("\n") == 1
    assert out.strip() == ""
    assert hits.read_bytes() == before


def test_a_folder_for_sockets_that_cannot_be_made_is_told(hits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(hits))
    code, _, err = call("run", hits)
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith(f"streamer: {hits}/streamer: no folder for the run's sockets (Not a directory); set XDG_RUNT")


def test_all_problems_of_a_configuration_are_told_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(
        """
        [feed]
        evnts = 3
        rate = -1
        [tagger]
        provider = "gpu"
        [taggers.eg]
        crop = 31
        channels = ["EKAL"]
        [wrter]
        dir = "x"
        """
    )
    for command in (["check", path], ["config", "--config", path], ["run", "--config", path]):
        code, _, err = call(*command)
        assert code == 2
        lines = [line.removeprefix(f"streamer: {path}: ") for line in err.splitlines()]
        assert len(lines) == 6
        assert "unknown key 'feed.evnts'; did you mean 'events'?" in lines
        assert "unknown key 'wrter'; did you mean 'writer'?" in lines
        assert any(line.startswith("'feed.rate': ") for line in lines)
        assert any(line.startswith("'tagger.provider': ") for line in lines)
        assert any(line.startswith("'taggers.eg.crop': ") for line in lines)
        assert any("no channel 'EKAL'; did you mean 'ECAL'?" in line for line in lines)


def test_check_looks_at_files_and_models_too(hits: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    wrong = sum_model(tmp_path / "wrong.onnx", ("batch", 3, 32, 32))
    path = tmp_path / "pipeline.toml"

    def written(source: Path, network: Path, out: Path) -> Path:
        path.write_text(f'[input]\nfiles = ["{source}"]\n[taggers.eg]\nmodel = "{network}"\n[writer]\ndir = "{out}"\n')
        return path

    code, out, err = call("check", written(hits, model, tmp_path / "deep/out"))
    assert not (tmp_path / "deep").exists(), "it only looks"
    assert (code, out) == (0, f"{path} is fine\n")
    assert "streamer: " not in err
    code, _, err = call("check", written(tmp_path / "none.root", wrong, tmp_path / "file/out"))
    assert code == 2
    lines = err.splitlines()
    assert all(line.startswith(f"streamer: {path}: ") for line in lines)
    assert [key in line for key, line in zip(("none.root", "('batch', 3, 32, 32)", "file/out"), lines, strict=True)]


def test_the_printed_configuration_is_read_back_to_the_same(tmp_path: Path) -> None:
    sets = [
        *(
            "feed.rate=12.5",
            "tagger.policy=fixed",
            "tagger.max_wait='5 ms'",
            "replicas.framer=2",
            "taggers.eg.pt_min=20",
        ),
        *("input.columns.run='Run \"number\"'", "writer.format=rntuple", "input.files=['a.root', 'b c.root']"),
    ]
    code, text, err = call("config", *(part for s in sets for part in ("--set", s)))
    assert (code, err) == (0, "")
    path = tmp_path / "printed.toml"
    path.write_text(text)
    assert call("config", "--config", path) == (0, text, "")
    for wanted in ("rate = 12.5", "max_wait = 0.005", '"framer" = 2', "pt_min = 20.0", 'format = "rntuple"'):
        assert wanted in text
    assert text.count("# ") > 20, "commented"


def test_inspect_tells_what_is_in_a_file(hits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, err = call("inspect", hits)
    assert (code, err) == (0, "")
    assert f"{hits}  ROOT TTree, {N_EVENTS} events" in out
    assert re.search(r"tagger eg \(Photon, ECAL\): can be fed", out)
    assert re.search(r"EBRecHit_energy\s+yes\s+yes\s+GeV", out)
    assert re.search(r"Photon_genLabel\s+yes\s+optional", out)
    assert re.search(r"Jet_pt\s+no", out)
    part = write_hits(tmp_path / "part.root", EVENTS[:3], rntuple=True, without=["EBRecHit_energy"])
    code, out, _ = call("inspect", part)
    assert code == 0
    assert "ROOT RNTuple, 3 events" in out
    assert "no column 'EBRecHit_energy' (energy of the ECAL barrel rechit) for ECAL of tagger eg" in out


def test_convert_makes_one_file_and_replaces_none(hits: Path, tmp_path: Path) -> None:
    archive = write_ig(tmp_path / "x.ig", [ig_text(e) for e in EVENTS[:7]])
    out = tmp_path / "all.root"
    code, said, _ = call("convert", hits, archive, out, "--rntuple")
    assert code == 0
    assert f"{N_EVENTS + 7} events in {out}" in said
    with uproot.open(out) as file:
        assert file["Events"].num_entries == N_EVENTS + 7
    before = out.read_bytes()
    code, _, err = call("convert", archive, out)
    assert (code, err) == (2, f"streamer: {out}: exists; choose another name, or --overwrite\n")
    assert out.read_bytes() == before
    assert call("convert", archive, out, "--overwrite")[0] == 0
    with uproot.open(out) as file:
        assert file["Events"].num_entries == 7
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.root", "x.ig"]


def test_the_installed_command_is_the_module(tmp_path: Path) -> None:
    command = shutil.which("streamer", path=sysconfig.get_path("scripts"))
    if command is None:
        pytest.skip("the package is not installed")
    done = subprocess.run([command, "--version"], capture_output=True, text=True, timeout=60, check=True)
    assert re.fullmatch(r"streamer \d+\.\d+\.\d+\S*\n", done.stdout)
