"""The live page of a real run, over real HTTP and in a real browser."""

import http.client
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import urlopen

import pytest
from physics_helpers import Process, Processes, event, single_hits, sum_model, wait_until, write_hits

import streamer.monitor
from stages.detector.ecal import eb_detid
from streamer.config import MonitorConfig
from streamer.errors import UsageError
from streamer.monitor.server import page_token

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
TOKEN = "open-sesame"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("page")


@pytest.fixture(scope="module")
def processes(folder: Path) -> Iterator[Processes]:
    with Processes(folder) as made:
        yield made


@pytest.fixture(scope="module")
def process(processes: Processes, folder: Path) -> Process:
    """A run that goes on, with its page."""
    hit = int(eb_detid(20, 11))
    events = [event(i, EBRecHit=[(hit, float(i + 1))], Photon=[(34.0, 0.34, 0.005)]) for i in range(100)]
    network = sum_model(folder / "sum.onnx", limit=75.5)  # the last 25 events fail
    single_hits(network, 100, scored=75).write(folder / "good.json")
    made = processes(
        *("run", write_hits(folder / "events.root", events), "--output", folder / "out", "--loop", "--rate", 200),
        *("--replicas", "tagger=1"),
        *("--tagger", f"eg={network}", "--monitor", "--reference", folder / "good.json"),
    )
    wait_until(lambda: address(made) != "", "the page's address")
    made.wait_for_events(200)
    return made


def address(process: Process) -> str:
    found = re.search(r"live page: (\S+)", process.err)
    return found[1] if found else ""


def got(process: Process, path: str) -> Any:
    with urlopen(address(process) + path, timeout=10) as answer:
        return json.load(answer)


def asked(process: Process, method: str, path: str, **headers: str) -> tuple[int, dict[str, str]]:
    link = http.client.HTTPConnection(urlsplit(address(process)).netloc, timeout=10)
    link.request(method, path, headers=headers)
    answer = link.getresponse()
    answer.read()
    return answer.status, {key.lower(): value for key, value in answer.getheaders()}


def test_it_tells_what_the_run_does(process: Process) -> None:
    wait_until(lambda: (got(process, "state").get("rates") or {}).get("done", 0) > 120, "the rate")
    state = got(process, "state")
    assert state["state"] == "running"
    assert [stage["name"] for stage in state["stages"]] == ["reader", "framer", "cropper", "tagger", "writer"]
    assert {one["state"] for stage in state["stages"] for one in stage["replicas"]} == {"running"}
    totals = state["totals"]
    assert totals["fed"] >= totals["scored"] > 0
    assert 0 < state["latency"]["0.5"] <= state["latency"]["0.99"]
    assert state["batches"]["eg"]["items"] > 100
    assert sum(state["batches"]["eg"]["closed"].values()) == pytest.approx(state["batches"]["eg"]["n"], rel=0.01)
    history = got(process, "history")
    assert len(history["rows"][-1]) == len(history["series"]) + 1
    with urlopen(address(process) + "healthz", timeout=10) as answer:
        assert json.load(answer) == {"state": "running"}


def test_news_come_once_a_second(process: Process) -> None:
    with urlopen(address(process) + "events", timeout=10) as stream:
        told = []
        while len(told) < 3:
            line = stream.readline().decode()
            if line.startswith("data: {"):
                told.append(json.loads(line.removeprefix("data: ")))
    assert told[-1]["at"] - told[-2]["at"] > 0.1, "later on a busy machine, and never much sooner"
    assert told[-1]["totals"]["fed"] > told[-2]["totals"]["fed"]


def test_prometheus_finds_every_process(process: Process) -> None:
    found = got(process, "targets")
    stages = ["supervisor", "reader", "framer", "cropper", "tagger", "writer"]
    assert [one["labels"]["stage"] for one in found] == stages
    for one in found:
        with urlopen(f"http://{one['targets'][0]}/metrics", timeout=10) as page:
            text = page.read().decode()
        if one["labels"]["stage"] == "supervisor":
            assert 'streamer_processes{stage="tagger",state="running"} 1.0' in text
            assert re.search(r'streamer_run_events_total{outcome="fed"} [1-9]', text)
            assert re.search(r"streamer_disk_free_bytes [1-9]", text)
        else:
            assert f'streamer_state{{stage="{one["labels"]["stage"]}"' in text


def test_the_data_are_held_against_the_reference(process: Process, processes: Processes, folder: Path) -> None:
    wait_until(lambda: got(process, "state")["quality"][0]["drift"] is not None, "enough entries")
    found = {(one["quantity"], one["value"]): one for one in got(process, "state")["quality"]}
    assert list(found) == [("occupancy", "ECAL"), ("energy", "ECAL"), ("objects", "Photon"), ("score", "eg")]
    assert max(one["drift"] for one in found.values()) < 0.05
    assert found["objects", "Photon"]["mean"] == 1.0
    assert found["score", "eg"]["mean"] == pytest.approx(38, rel=0.1)
    assert ["good", "as the reference"] in got(process, "state")["verdict"]
    with urlopen(address(process) + "metrics", timeout=10) as page:
        assert re.search(r'streamer_drift\{quantity="score",value="eg"\} 0\.0', page.read().decode())
    good, kept = folder / "good.json", folder / "kept.json"
    told = processes("reference", folder / "out", "--against", good, "-o", kept).check()
    assert "score" in told.out, "while the run goes on"
    assert kept.exists()


def test_events_that_failed_are_shown_with_their_command(process: Process, folder: Path) -> None:
    wait_until(lambda: {one["event"] for one in got(process, "state")["failures"]} >= {99}, "the last event's failure")
    state = got(process, "state")
    assert state["totals"]["error"] >= 25
    assert len(state["failures"]) == len({one["event"] for one in state["failures"]}) == 20, "each once, of 25"
    one = next(one for one in state["failures"] if one["event"] == 99)
    assert (one["sourceEntry"], one["stage"], one["reason"]) == (99, "tagger", "the score of the eg tagger is nan")
    assert one["again"].startswith(f"streamer run {folder / 'out' / 'errors' / '0-99.root'} --config ")
    lines = (folder / "out" / "errors" / "errors.jsonl").read_text().splitlines()
    assert {one["again"] for one in state["failures"]} <= {json.loads(line)["again"] for line in lines}


def test_it_is_read_only_and_keeps_others_out(process: Process) -> None:
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert asked(process, method, "/state")[0] == 405
    assert asked(process, "GET", "/state", Host="evil.example")[0] == 400  # a page elsewhere that calls itself us
    assert asked(process, "GET", "/../supervisor.py")[0] == 404
    assert asked(process, "GET", "/display/999999999")[0] == 404
    status, headers = asked(process, "GET", "/")
    assert status == 200
    assert "default-src 'self'" in headers["content-security-policy"]
    assert "access-control-allow-origin" not in headers


def test_a_port_that_is_taken_is_told_before_anything_starts(folder: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, Processes(folder) as streamer:
        port = other.getsockname()[1]
        refused = streamer(
            *("run", folder / "events.root", "--output", folder / "other"),
            *("--set", f"monitor.port={port}", "--monitor"),
        )
        assert refused.wait() == 2
        assert f"the page cannot be served on 127.0.0.1:{port}" in refused.err
        assert "monitor.port to a free port" in refused.err


BEYOND = "2130706433"
"""127.0.0.1 in a form that is not taken for loopback."""


def test_beyond_loopback_a_token_is_asked_for_and_every_process_is_reached(folder: Path) -> None:
    secret = folder / "token"
    secret.write_text(f"{TOKEN}\n")
    with Processes(folder) as streamer:
        made = streamer(
            *("run", folder / "events.root", "--output", folder / "guarded", "--loop", "--rate", 100, "--monitor"),
            *("--replicas", "tagger=1"),
            *("--set", f"monitor.token_file={secret}", "--set", f"monitor.host='{BEYOND}'"),
        )
        wait_until(lambda: address(made) != "", "the page's address")
        assert TOKEN not in made.err
        assert f"?token=... (what {secret} holds)" in made.err
        link = urlsplit(address(made)).netloc

        def asked_for(path: str, **headers: str) -> tuple[int, str, bytes]:
            connection = http.client.HTTPConnection(link, timeout=10)
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.getheader("set-cookie") or "", answer.read()

        assert asked_for("/healthz")[0] in (200, 503)
        for path in ("/state", "/targets", "/metrics", "/metrics/reader-0", "/state?token=wrong"):
            assert asked_for(path)[0] == 403
        bearer = {"Authorization": f"Bearer {TOKEN}"}  # as Prometheus sends it
        assert asked_for("/state", **bearer)[0] == 200
        code, cookie, _ = asked_for(f"/?token={TOKEN}")
        assert code == 200
        assert "HttpOnly" in cookie
        assert asked_for("/state", Cookie=cookie.partition(";")[0])[0] == 200

        def targets() -> Any:
            found = json.loads(asked_for("/targets", **bearer, Host="stream:9599")[2])
            return found if len(found) == 6 else None

        found = wait_until(targets, "six processes")
        assert {one["targets"][0] for one in found} == {"stream:9599"}, "by the name that it is asked for by"
        for one in found:
            path, stage = one["labels"]["__metrics_path__"], one["labels"]["stage"]
            assert asked_for(path, **bearer)[0] == 200
            wanted = "streamer_disk_free_bytes" if stage == "supervisor" else f'streamer_state{{stage="{stage}"'
            wait_until(lambda path=path, wanted=wanted: wanted in asked_for(path, **bearer)[2].decode(), stage)
        for name in ("tagger-7", "supervisor-0", "..%2f..%2fetc"):
            assert asked_for(f"/metrics/{name}", **bearer)[0] == 404
        made.signal(signal.SIGTERM)
        made.wait()


def test_a_token_is_given_made_up_or_read(tmp_path: Path) -> None:
    assert page_token(MonitorConfig()) == ""
    assert page_token(MonitorConfig(token=TOKEN)) == TOKEN
    assert len(page_token(MonitorConfig(host="10.0.0.1"))) > 30
    (tmp_path / "empty").touch()
    for name, why in (("none", "cannot be read"), ("empty", "is empty")):
        with pytest.raises(UsageError, match=rf"monitor.token_file: {tmp_path / name} {why}"):
            page_token(MonitorConfig(token_file=tmp_path / name))
    with pytest.raises(ValueError, match="two tokens"):
        MonitorConfig(token=TOKEN, token_file=tmp_path / "none")


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra 'test'")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip("needs a browser: apt-get install chromium")
    with playwright.sync_playwright() as driver:
        made = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield made
        made.close()


def test_in_a_browser(process: Process, browser: Any) -> None:
    said: list[str] = []
    page = browser.new_page(viewport={"width": 1600, "height": 900})
    page.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(address(process))
    page.wait_for_selector(".stage >> nth=4")
    assert page.inner_text("#state") == "running"
    assert "taking data" in page.inner_text("#verdict")

    def fed() -> int:
        return int(page.inner_text("#ledger tr:first-child td").replace(",", ""))

    before = fed()
    wait_until(lambda: fed() > before, "numbers that move")
    score = page.wait_for_selector("#quantities figure[data-quantity=score][data-value=eg] .good")
    assert float(score.inner_text()) < 0.05
    assert page.query_selector_all("#quantities figure path").__len__() == 8, "each distribution and its reference"
    command = page.query_selector("#failures li:first-child code")
    assert re.match(r"streamer run \S+/errors/0-\d\d\.root --config ", command.inner_text())
    charts = page.query_selector_all(".chart canvas")
    assert len(charts) == 2
    pixels = "c => { const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; return d.some(v => v); }"
    assert all(chart.evaluate(pixels) for chart in charts), "something is drawn"

    page.click("#events button >> nth=0")
    page.wait_for_selector("#crops canvas", timeout=150_000)
    assert page.inner_text("#display-title").startswith("run ")
    assert "ECAL [GeV], 1 pixels" in page.inner_text("#display-channels")
    assert page.query_selector("#frame").evaluate(pixels)
    assert "eg " in page.inner_text("#objects")
    page.keyboard.press("Escape")

    process.stage("tagger-0").send_signal(signal.SIGKILL)
    page.wait_for_selector(".stage.down[data-stage=tagger]", timeout=60_000)
    assert "down: tagger-0" in page.inner_text("#verdict")
    page.wait_for_selector(".stage:not(.down)[data-stage=tagger] .dot.running", timeout=60_000)
    assert "tagger-0" in page.inner_text("#said"), "what happened can be read"

    for width, scheme in ((390, "dark"), (1600, "light")):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 900})
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= width, "nothing sticks out"
    assert said == []
    page.close()


def test_the_packaged_assets_need_no_other_host() -> None:
    assets = Path(streamer.monitor.__file__).parent / "assets"
    for path in assets.glob("*.*"):
        if path.suffix in (".html", ".css", ".js") and path.stem != "uplot":
            assert not re.findall(r"(?:https?:)?//[a-z]", path.read_text().replace("http://www.w3.org", "")), path.name


@pytest.fixture
def terminal(folder: Path) -> Iterator[Callable[..., str]]:
    """A terminal in which commands can be typed, and whose screen can be read."""
    if shutil.which("tmux") is None:
        pytest.skip("needs tmux: apt-get install tmux")
    where = folder / "tmux"

    def tmux(*words: object) -> str:
        done = subprocess.run(["tmux", "-S", where, *map(str, words)], capture_output=True, text=True, timeout=20)
        return done.stdout

    yield tmux
    tmux("kill-server")


def test_in_a_terminal(process: Process, processes: Processes, folder: Path, terminal: Callable[..., str]) -> None:
    command = f"XDG_RUNTIME_DIR={processes.runtime} {sys.executable} -m streamer top {folder / 'out'}; echo ended"
    terminal("-f", "/dev/null", "new-session", "-d", "-x", 130, "-y", 40)
    terminal("send-keys", command, "Enter")

    def screen() -> str:
        return terminal("capture-pane", "-p")

    wait_until(lambda: "taking data" in screen(), "the screen")
    wait_until(lambda: "credits" in screen(), "all columns")
    shown = screen()
    assert [line.split()[0] for line in shown.splitlines() if "●" in line] == [
        "reader", "framer", "cropper", "tagger", "writer"
    ]  # fmt: skip
    assert re.search(r"[\d,]+ fed = [\d,]+ scored \+ [1-9][\d,]* error", shown)
    assert re.search(r"drift +score eg 0\.0", shown)
    terminal("resize-window", "-x", 70, "-y", 30)
    wait_until(lambda: "credits" not in screen(), "fewer columns")
    assert max(map(len, screen().splitlines())) <= 70
    terminal("send-keys", "C-c")
    wait_until(lambda: "\nended" in screen(), "the end")
    assert "Traceback" not in screen()


def test_it_drains_at_a_word(process: Process) -> None:
    process.signal(signal.SIGTERM)
    process.check()
