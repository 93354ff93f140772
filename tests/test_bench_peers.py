"""The tagger beside other servers: that all are asked the same and answer the same, and that none outlives it."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import pytest
from physics_helpers import assert_end, call

from stages import PIPELINE
from stages.bench import peers as bench_peers
from stages.bench.peers import MISSING, Measured, Plan, Result
from stages.bench.peers_client import Http, drive, poisson
from stages.bench.peers_plot import plot, show
from stages.bench.peers_ways import Load, Material, asked
from stages.config import Config, packaged
from stages.network import Network
from streamer.errors import StreamerError, UsageError

SECONDS = 0.3
needs_mosec = pytest.mark.skipif(find_spec("mosec") is None, reason="needs the extra 'peers'")
KINDS = ["zmq", pytest.param("mosec", marks=needs_mosec)]


@pytest.fixture(scope="module")
def config() -> Config:
    wanted = {
        "input.files": [packaged("samples/egamma.root")],
        "tagger.threads": 1,
        "tagger.policy": "adaptive",
        "tagger.provider": "cpu",
    }
    loaded = PIPELINE.load_config(None, wanted)
    assert isinstance(loaded, Config)
    return loaded


@pytest.fixture(scope="module")
def material(config: Config) -> Material:
    return Material("eg", config, Network("eg", config, whole=True))


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short path: sockets are made in it."""
    with TemporaryDirectory(prefix="streamer-peers-") as name:
        yield Path(name) / "server"


@pytest.mark.long
def test_server_and_tagger_are_measured_in_turn(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = set(psutil.Process().children())
    monkeypatch.setattr(bench_peers, "_mosec", lambda: Measured("mosec", missing=MISSING))
    result = bench_peers.bench_peers("eg", config, Plan(seconds=SECONDS, rounds=1), tmp_path / "out")
    told = json.loads((tmp_path / "out/peers.json").read_text())
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["peers.json"], "nothing else is left"
    assert told["about"]["largest_difference"] <= 1e-5
    assert list(told["ways"]) == ["bare", "zmq", "mosec", "streamer"]
    assert result.ways["bare"].full[0].crops_per_s > 0
    for name in ("zmq", "streamer"):
        way = result.ways[name]
        for (load,) in (way.full, way.thin, way.half):
            assert load.crops_per_s > 0
            assert load.cpu_s_per_crop > 0
        for (load,) in (way.thin, way.half):
            assert load.offered > 0
            assert 0 < load.latency_s["0.5"] <= load.latency_s["0.99"]
    show(result)
    assert "mosec is missing; pip install 'e2e-streamer[peers]'" in capsys.readouterr().out
    assert set(psutil.Process().children()) <= before


@pytest.mark.parametrize("kind", KINDS)
def test_a_server_answers_every_crop_and_ends(kind: str, config: Config, material: Material, folder: Path) -> None:
    before = set(psutil.Process().children())
    with suppress(KeyboardInterrupt), asked(kind, config, material, SECONDS, folder) as way:
        load = way(1000.0, True)
        family = psutil.Process().children(recursive=True)
        raise KeyboardInterrupt
    assert np.isfinite(load.latency_s["0.99"]), "all were answered"
    assert 0 < load.client_busy < 1
    assert material.largest <= 1e-5
    assert family
    assert_end([one for one in family if one not in before])


@pytest.mark.parametrize("wrong", [1e-4, np.nan])
def test_a_way_with_other_scores_is_told(wrong: float, material: Material) -> None:
    scores = material.dense_scores.copy()
    material.check("zmq", scores, material.dense_scores)
    scores[3] += wrong
    with pytest.raises(StreamerError, match=r"zmq: scores differ by up to (0\.0001|1e-04|nan) from the bare network's"):
        material.check("zmq", scores, material.dense_scores)


def test_a_server_that_cannot_start_is_told_in_one_line(config: Config, material: Material, folder: Path) -> None:
    spec = config.taggers["eg"].model_copy(update={"model": Path("/nowhere/eg.onnx")})
    broken = config.model_copy(update={"taggers": {"eg": spec}})
    before = set(psutil.Process().children())
    with pytest.raises(StreamerError) as caught, asked("zmq", broken, material, SECONDS, folder):
        pytest.fail("it was not seen")
    assert "the server zmq ended with code 1" in str(caught.value)
    assert "/nowhere/eg.onnx" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert set(psutil.Process().children()) <= before


def test_a_whole_frame_is_no_crop(config: Config) -> None:
    spec = config.taggers["eg"].model_copy(update={"objects": "Event", "crop": 0})
    with pytest.raises(UsageError, match="the tagger eg sees whole frames; choose one"):
        Material("eg", config.model_copy(update={"taggers": {"eg": spec}}), Network("eg", config, whole=True))


def test_dense_crops_hold_what_the_sparse_ones_do(material: Material) -> None:
    assert material.dense.shape[1:] == (1, 32, 32)
    assert (material.dense.sum(axis=(1, 2, 3)) > 0).all()
    assert material.per_event == pytest.approx(1.0, abs=0.5)
    assert np.isin(material.dense_scores, material.scores).all()


class Echo:
    """A link whose server answers at the second look."""

    def __init__(self) -> None:
        self.open: list[tuple[int, bytes]] = []
        self.most = self.looks = 0

    def fileno(self) -> int:
        return 0

    def ask(self, number: int, body: bytes) -> None:
        self.open.append((number, body))
        self.most = max(self.most, len(self.open))

    def answers(self) -> Iterator[tuple[int, bytes]]:
        self.looks += 1
        if self.looks % 2 == 0:
            answered, self.open = self.open, []
            yield from answered


def test_the_client_keeps_to_what_is_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("select.select", lambda *args: ([], [], []))
    bodies = [np.float32(k).tobytes() for k in range(5)]
    link = Echo()
    due, at, scores = drive(link, bodies, poisson(2000, 0.1, seed=1), 0.1, most=3)
    assert due.tolist() == list(poisson(2000, 0.1, seed=1)), "also those that had to wait are asked"
    assert due.size == pytest.approx(200, rel=0.3)
    assert (at >= due).all()
    assert scores.tolist() == [k % 5 for k in range(due.size)]
    assert link.most <= 3


class Doubling(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        number = np.frombuffer(body, np.float32)[0]
        self.send_response(200 if number >= 0 else 429)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(np.float32(2 * number).tobytes()[:3])
        self.wfile.write(np.float32(2 * number).tobytes()[3:])

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def http() -> Iterator[Callable[[int], Http]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Doubling)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    links: list[Http] = []

    def connect(n: int) -> Http:
        links.append(Http(f"127.0.0.1:{server.server_port}", n))
        return links[-1]

    yield connect
    for link in links:
        link.close()
    server.shutdown()
    thread.join()
    server.server_close()


def test_http_connections_are_kept_and_answers_put_together(http: Callable[[int], Http]) -> None:
    bodies = [np.float32(k).tobytes() for k in range(7)]
    _, at, scores = drive(http(4), bodies, iter([0.0] * 50), 5.0, most=4)
    assert np.isfinite(at).all()
    assert scores.tolist() == [2.0 * (k % 7) for k in range(50)]


def test_an_http_error_is_one(http: Callable[[int], Http]) -> None:
    with pytest.raises(ConnectionError, match=r"the server answered HTTP/1\.1 429"):
        drive(http(1), [np.float32(-1).tobytes()], iter([0.0]), 5.0, most=1)


def test_what_cannot_be_is_told_in_one_line(tmp_path: Path) -> None:
    code, _, told = call("bench", "peers", "--tagger", "egg")
    assert code == UsageError.exit_code
    assert "--tagger 'egg': write name=value, such as eg=MODEL.onnx" in told
    code, _, told = call("bench", "peers", "/nowhere.root", "-o", tmp_path / "bench")
    assert code == UsageError.exit_code
    assert [line for line in told.splitlines() if line.startswith("streamer: ")] == told.splitlines()[-1:]
    assert "/nowhere.root: cannot be read" in told


def test_it_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = Load(0.0, 8000.0, 125e-6, {}, 0.95)
    thin = replace(full, offered=500.0, latency_s={"0.5": 6.5e-4, "0.99": 2e-3})
    late = replace(thin, latency_s={"0.5": 1.0, "0.99": np.inf})
    ways = {
        "bare": Measured("bare network, batch 16", [replace(full, crops_per_s=10_000.0)]),
        "zmq": Measured("hand-written, ZeroMQ", [full], [thin], [thin]),
        "mosec": Measured("mosec", missing=MISSING),
        "streamer": Measured("streamer's tagger", [full], [thin], [late]),
    }  # fmt: skip
    about = {
        "cores": 2, "cpu": "a CPU", "threads": 1, "load_before": 0.1, "input": ["egamma.root"], "tagger": "eg",
        "network": "eg.onnx", "max_batch": 64, "largest_difference": 1e-7,
    }  # fmt: skip
    result = Result(about, Plan(), ways)
    show(result)
    said = capsys.readouterr().out
    for text in ("a CPU", "8,000", "0.80", "125 ms", "95%", "650 us", "2 ms", "could do more", MISSING):
        assert text in said, text
    plot(result, tmp_path / "peers.png")
    assert (tmp_path / "peers.png").stat().st_size > 20_000
