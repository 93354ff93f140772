"""What lies under deploy/, with a real Prometheus that scrapes a real run."""

import json
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from physics_helpers import Process, Processes, event, single_hits, sum_model, wait_until, write_hits

from stages import PIPELINE
from stages.detector.ecal import eb_detid

DEPLOY = Path(__file__).parents[1] / "deploy"
RULES, BOARDS = DEPLOY / "prometheus", sorted((DEPLOY / "grafana" / "dashboards").glob("*.json"))
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing (Debian package prometheus)"
)

MAY_BE_EMPTY = {
    "StreamerNoData", "StreamerNotKeepingUp", "StreamerLedgerDoesNotClose", "StreamerDeadTime", "StreamerSlow",
    "StreamerStageDown", "StreamerUnreachable", "StreamerErrors", "StreamerSmallBatches", "StreamerDiskFilling",
    "StreamerScoreDrift", "StreamerChannelDrift",
}  # fmt: skip
"""Alerts of which a healthy run is to give nothing; the others are made to fire here."""


@promtool
@pytest.mark.parametrize(
    "command", [("check", "config", "prometheus.yml"), ("test", "rules", "alerts_test.yml")], ids=["check", "test"]
)
def test_promtool_is_content(command: tuple[str, ...]) -> None:
    done = subprocess.run(["promtool", *command], cwd=RULES, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.skipif(shutil.which("amtool") is None, reason="amtool is missing (Debian package prometheus-alertmanager)")
def test_amtool_is_content() -> None:
    command = ["amtool", "check-config", str(DEPLOY / "alertmanager/alertmanager.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr


@promtool
def test_promtool_is_content_with_what_the_containers_have(tmp_path: Path) -> None:
    shutil.copytree(RULES, tmp_path / "rules")
    (tmp_path / "token").write_text("open-sesame")
    text = (DEPLOY / "compose/prometheus.yml").read_text().replace("/run/secrets/token", str(tmp_path / "token"))
    (tmp_path / "prometheus.yml").write_text(text)
    done = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


MOST_EXPOSED = 20
"""Tenths of `systemd-analyze security`, which calls 2.0 OK."""


@pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is missing (Debian package systemd)"
)
@pytest.mark.parametrize(
    "command",
    [("verify", "--man=no"), ("security", "--offline=true", f"--threshold={MOST_EXPOSED}", "--no-pager")],
    ids=["verify", "security"],
)
def test_systemd_is_content(command: tuple[str, ...], tmp_path: Path) -> None:
    unit = tmp_path / "streamer@.service"
    unit.write_text((DEPLOY / "systemd" / unit.name).read_text().replace("/opt/streamer/bin/streamer", "/bin/true"))
    done = subprocess.run(["systemd-analyze", *command, str(unit)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert command[0] != "verify" or not done.stdout + done.stderr


def composed(name: str) -> dict[str, Any]:
    """A compose file as it is read, with the defaults of its variables."""
    compose_spec = pytest.importorskip("compose_spec", reason="needs the extra 'test'")
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", (DEPLOY / name).read_text())
    read = compose_spec.PyOptions(apply_merge=True).from_yaml(text)
    read.validate()
    found: dict[str, Any] = read.to_dict()
    return found


def test_the_containers_are_reached_from_this_machine_alone_and_find_their_files() -> None:
    services = composed("compose.yaml")["services"]
    assert services.keys() == {"stream", "prometheus", "alertmanager", "grafana"}
    for name, service in services.items():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert re.fullmatch(r".+:v?[\d.]+|streamer:local", service["image"]), "pinned"
        assert service["read_only"]
        assert service["cap_drop"] == ["ALL"]
        assert name == "stream" or service["healthcheck"]
        for volume in service["volumes"]:
            source, inside, *_ = volume.split(":")
            assert not source.startswith(".") or (DEPLOY / source).exists(), source
            assert inside.startswith("/")
    assert composed("compose/gpu.yaml")["services"]["stream"]["build"]["args"] == {"EXTRAS": "cuda"}


def instructions() -> list[tuple[str, str]]:
    """Words of the Dockerfile, and what follows them."""
    text = (DEPLOY / "Dockerfile").read_text().replace("\\\n", " ")
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in text.splitlines()) if word.isupper()]


def health_check() -> list[str]:
    (rest,) = [rest for word, rest in instructions() if word == "HEALTHCHECK"]
    command: list[str] = json.loads(rest.partition("CMD")[2])
    return command


def test_the_image_is_made_of_what_is_here_and_fits_its_configuration() -> None:
    allowed = [line[1:] for line in (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines() if line[0] == "!"]
    copied = [one for word, rest in instructions() if word == "COPY" for one in shlex.split(rest)[:-1]]
    sources = [one for one in copied if not one.startswith(("--from", "/opt/"))]
    assert sorted(sources) == sorted(allowed)
    assert all((DEPLOY.parent / one).exists() for one in sources)
    config = PIPELINE.load_config(DEPLOY / "compose/stream.toml", {})
    assert f"127.0.0.1:{config.monitor.port}/healthz" in health_check()[-1]
    assert ("EXPOSE", str(config.monitor.port)) in instructions()
    assert ("USER", "streamer") in instructions()


def test_every_alert_has_a_runbook_and_both_kinds_of_cases() -> None:
    rules, cases = (RULES / "alerts.yml").read_text(), (RULES / "alerts_test.yml").read_text()
    names = re.findall(r"alert: (\w+)", rules)
    assert len(names) == len(re.findall(r"runbook: ", rules)) == len(re.findall(r"summary: ", rules))
    for name in names:
        assert re.search(rf"alertname: {name}\n\s+exp_alerts:\n", cases), f"{name} fires"
        assert re.search(rf"alertname: {name}, exp_alerts: \[\]", cases), f"{name} does not fire"


def test_the_packaged_configuration_is_valid() -> None:
    config = PIPELINE.load_config(DEPLOY / "pipeline.toml", {})
    assert config.monitor.port == int(re.findall(r"127.0.0.1:(\d+)/targets", (RULES / "prometheus.yml").read_text())[0])


def test_dashboards_are_told_apart_and_have_their_variables() -> None:
    boards = [json.loads(path.read_text()) for path in BOARDS]
    assert len({board["uid"] for board in boards}) == len(boards) >= 3
    for board in boards:
        known = {one["name"] for one in board["templating"]["list"]}
        used = set(re.findall(r"\$(\w+)", json.dumps([panel["targets"] for panel in board["panels"]])))
        assert used <= known
        assert {"source", "run"} <= known
        places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
        assert len(set(places)) == len(places)


@dataclass
class Watched:
    """A run, and the Prometheus that watches it."""

    process: Process
    at: str
    alertmanager: str

    def asked(self, path: str) -> Any:
        with urlopen(self.at + path, timeout=10) as answer:
            told = json.load(answer)
        assert told["status"] == "success"
        return told["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.asked(f"/api/v1/query?query={quote(expression)}")["result"]
        return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is missing (Debian package prometheus)")
    folder = tmp_path_factory.mktemp("deploy")
    ours, theirs, manager = free_port(), free_port(), free_port()
    for path in RULES.glob("*.yml"):
        text = path.read_text().replace(":9599/", f":{ours}/").replace(":9093", f":{manager}").replace(": 5s", ": 1s")
        (folder / path.name).write_text(text.replace("[1m]", "[10s]"))
    hit = int(eb_detid(20, 11))
    events = [event(i, EBRecHit=[(hit, float(i + 1))], Photon=[(34.0, 0.34, 0.005)]) for i in range(100)]
    menu = folder / "menu.toml"
    menu.write_text('[paths]\nE2E_Photon_v1 = { expression = "Photon: pt > 20 and egScore > 50", prescale = 2 }\n')
    network = sum_model(folder / "sum.onnx")
    single_hits(network, 100).write(folder / "good.json")
    with Processes(folder) as streamer:
        process = streamer(
            *("run", write_hits(folder / "events.root", events), "--output", folder / "out", "--loop", "--rate", 300),
            *("--replicas", "tagger=1"),
            *("--tagger", f"eg={network}", "--monitor", "--set", f"monitor.port={ours}", "--menu", menu),
            *("--reference", folder / "good.json"),
        )
        server = subprocess.Popen(
            ["prometheus", "--config.file=prometheus.yml", f"--web.listen-address=127.0.0.1:{theirs}",
             f"--storage.tsdb.path={folder / 'data'}", "--log.level=error"],
            cwd=folder, stdout=subprocess.DEVNULL, stderr=(folder / "prometheus.log").open("w"),
        )  # fmt: skip
        servers = [server]
        alertmanager = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
        if alertmanager is not None:
            servers.append(subprocess.Popen(
                [alertmanager, f"--config.file={DEPLOY / 'alertmanager/alertmanager.yml'}",
                 f"--web.listen-address=127.0.0.1:{manager}", "--cluster.listen-address=",
                 f"--storage.path={folder / 'alerts'}"],
                stdout=subprocess.DEVNULL, stderr=(folder / "alertmanager.log").open("w"),
            ))  # fmt: skip
        try:
            made = Watched(process, f"http://127.0.0.1:{theirs}", f"http://127.0.0.1:{manager}" if alertmanager else "")
            process.wait_for_events(200)

            def all_up() -> bool:
                try:
                    return len([one for one in made.query("up") if one["value"][1] == "1"]) == 6
                except OSError:
                    return False

            wait_until(all_up, "six targets")
            wait_until(lambda: made.query("streamer:written:rate1m > 0") != [], "the recording rules")
            wait_until(lambda: made.query("streamer_drift") != [], "enough entries to compare")
            time.sleep(5)  # rates want some scrapes
            yield made
        finally:
            for server in servers:
                server.terminate()
                server.wait(timeout=20)
        process.signal(signal.SIGTERM)
        process.check()


def test_targets_are_told_apart(watched: Watched) -> None:
    labels = [one["labels"] for one in watched.asked("/api/v1/targets")["activeTargets"]]
    assert {one["stage"] for one in labels} == {"supervisor", *PIPELINE.names}
    assert all(one["replica"] == "0" and one["run"].startswith("run-") for one in labels)


@pytest.mark.parametrize("board", BOARDS, ids=lambda path: path.stem)
def test_every_panel_has_data(watched: Watched, board: Path) -> None:
    for panel in json.loads(board.read_text())["panels"]:
        for target in panel["targets"]:
            expression = re.sub(r"\$(run|stage|replica|queue|path|tagger|channel)\b", ".*", target["expr"]).replace(
                "[1m]", "[10s]"
            )
            assert "$" not in expression
            assert watched.query(expression), f"{panel['title']}: {expression}"


def test_every_variable_has_values(watched: Watched) -> None:
    for board in BOARDS:
        for variable in json.loads(board.read_text())["templating"]["list"]:
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"]["query"])
                assert found is not None
                series = watched.query(re.sub(r"\$\w+", ".*", found[1]))
                assert any(one["metric"].get(found[2]) for one in series), variable["name"]


def test_the_image_knows_a_healthy_run(watched: Watched) -> None:
    page = re.search(r"live page: http://(127.0.0.1:\d+)/", watched.process.err)
    assert page is not None
    program, option, code = health_check()
    assert program == "python"
    for place, exit_code in ((page[1], 0), (f"127.0.0.1:{free_port()}", 1)):
        command = [sys.executable, option, code.replace("127.0.0.1:9599", place)]
        assert subprocess.run(command, capture_output=True, timeout=20).returncode == exit_code


def test_a_healthy_run_alerts_nobody_and_a_death_does(watched: Watched) -> None:
    rules = [rule for group in watched.asked("/api/v1/rules")["groups"] for rule in group["rules"]]
    assert all(rule["health"] == "ok" for rule in rules), [rule.get("lastError") for rule in rules]
    alerts = {rule["name"]: rule for rule in rules if rule["type"] == "alerting"}
    assert alerts.keys() == MAY_BE_EMPTY | {"StreamerRestarts"}
    assert watched.query('ALERTS{alertstate="firing"}') == []
    watched.process.stage("tagger-0").send_signal(signal.SIGKILL)

    def firing() -> set[str]:
        return {one["metric"]["alertname"] for one in watched.query('ALERTS{alertstate="firing"}')}

    wait_until(lambda: "StreamerRestarts" in firing(), "the alert")
    (told,) = [
        one for one in watched.asked("/api/v1/alerts")["alerts"] if one["labels"]["alertname"] == "StreamerRestarts"
    ]
    assert told["labels"]["stage"] == "tagger"
    assert "a tagger has died and was started again" in told["annotations"]["summary"]
    assert "streamer errors" in told["annotations"]["runbook"]
    if watched.alertmanager:

        def passed_on() -> Any:
            with urlopen(f"{watched.alertmanager}/api/v2/alerts", timeout=10) as answer:
                return [one for one in json.load(answer) if one["labels"]["alertname"] == "StreamerRestarts"]

        (arrived,) = wait_until(passed_on, "the alert at Alertmanager")
        assert [one["name"] for one in arrived["receivers"]] == ["shift"]
