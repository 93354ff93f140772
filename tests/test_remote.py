"""Input from servers: the same events as from disk, none lost and none twice, and one line for all that goes wrong."""

import contextlib
import importlib.util
import itertools
import json
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot
from physics_helpers import Processes, call, columns_of, conv_model, event, read_scores, wait_until
from remote_servers import LOOPBACK, NO_XROOTD, http_server, xrootd_server

from stages.config import Config, InputConfig
from stages.conversion import schema_of
from stages.formats import open_events, remote
from stages.formats.root import write_events
from stages.inputs import shown, without_secrets
from stages.reader import Reader
from stages.records import INPUT
from stages.sources import choose
from streamer.errors import StreamerError, UsageError

N_EVENTS, N_BASKETS = 60, 6
N_IN_BASKET = N_EVENTS // N_BASKETS
SECRET = "hunter2"

needs_xrootd = pytest.mark.skipif(bool(NO_XROOTD), reason=NO_XROOTD)


def write(path: Path, rntuple: bool) -> Path:
    """An event file of several baskets or clusters."""
    rng = np.random.default_rng(3)

    def made(number: int) -> dict[str, Any]:
        hits = [(0x32000000 + int(rng.integers(1, 1 << 16)), int(rng.integers(0, 800)) / 16) for _ in range(number % 7)]
        return event(number, EBRecHit=hits, Photon=[(20.0 + number, 0.25, 0.5)] * (number % 3))

    steps = [columns_of([made(number) for number in part]) for part in np.split(np.arange(N_EVENTS), N_BASKETS)]
    write_events(path, schema_of([c for c in INPUT if c.name in steps[0]]), steps, rntuple=rntuple)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    write(folder / "ttree.root", rntuple=False)
    write(folder / "rntuple.root", rntuple=True)
    (folder / "empty.root").write_bytes(b"")
    (folder / "text.root").write_bytes(b"no events at all" * 100)
    (folder / "sub").mkdir()
    return folder


def config(*files: object, **settings: Any) -> Config:
    wanted = {"files": [str(file) for file in files], "step_events": N_IN_BASKET, "timeout": 5.0, **settings}
    return Config.model_validate({"input": wanted})


def read(*files: object, **settings: Any) -> dict[str, Any]:
    """All columns that the reader gives, and what it counted as unreadable."""
    reader = Reader(config(*files, **settings))
    reader.setup()
    steps = list(reader.read())
    unreadable = sum(reader.take_tally().values())
    reader.close()
    return {name: np.concatenate([step[name] for step in steps]) for name in steps[0]} | {"unreadable": unreadable}


def assert_same(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def refusal(*files: object, **settings: Any) -> str:
    """The one line with which the reader does not start."""
    with pytest.raises(UsageError) as error:
        Reader(config(*files, **settings)).setup()
    (line,) = str(error.value).splitlines()
    return line


class Pauses:
    """In the place of the pauses between attempts: the first fail again, then the server is brought back."""

    def __init__(self, back: Callable[[], object], after: int = 2) -> None:
        self.back, self.after, self.n = back, after, 0

    def __call__(self, seconds: float) -> None:
        assert seconds > 0
        self.n += 1
        if self.n == self.after:
            self.back()
        assert self.n <= self.after, "it does not come back"


class Events:
    """An open file; `rest` checks and reads it."""

    def __init__(self, url: str, timeout: float = 60.0) -> None:
        self.file = open_events(url, InputConfig(step_events=N_IN_BASKET, timeout=timeout))
        self.columns = choose(self.file, Config()).columns
        self.damage: list[Any] = []
        self.read = self.file.read(self.columns, lambda *told: self.damage.append(told))

    def rest(self, check: bool = True) -> list[int]:
        """The entries that come."""
        if check:
            self.file.check(self.columns)
        return [int(entry) for step in self.read for entry in step.entries]


# ---- the same as from disk


@pytest.mark.parametrize("kind", ["ttree", "rntuple"])
@pytest.mark.parametrize("multirange", [True, False])
def test_http_gives_the_same_as_the_file(folder: Path, kind: str, multirange: bool) -> None:
    local = read(folder / f"{kind}.root")
    assert local["sourceEntry"].tolist() == list(range(N_EVENTS))
    with http_server(folder, multirange=multirange) as server:
        assert_same(read(server.url(f"{kind}.root")), local)
        several = [request for request in server.requests if "," in request]
    assert several or kind == "rntuple"  # uproot asks for the pages of an RNTuple one by one


def test_http_takes_one_request_a_step(folder: Path) -> None:
    with http_server(folder) as server:
        events = Events(server.url("ttree.root"))
        events.file.check(events.columns)  # single baskets, each of which uproot alone would take for a refusal
        before = len(server.requests)
        assert events.rest(check=False) == list(range(N_EVENTS))
        assert len(server.requests) - before == N_BASKETS


@needs_xrootd
@pytest.mark.parametrize("kind", ["ttree", "rntuple"])
def test_xrootd_gives_the_same_as_the_file(folder: Path, kind: str) -> None:
    with xrootd_server(folder) as server:
        assert_same(read(server.url(f"{kind}.root")), read(folder / f"{kind}.root"))
        assert_same(read(server.url(f"{kind}.root").replace("root:", "xroot:", 1)), read(folder / f"{kind}.root"))


def test_damage_costs_only_itself_as_on_disk(folder: Path, tmp_path: Path) -> None:
    path = shutil.copy(folder / "ttree.root", tmp_path / "damaged.root")
    with uproot.open(path) as file:
        place = int(file["Events"]["EBRecHit_energy"].member("fBasketSeek")[2])
    with path.open("r+b") as file:
        file.seek(place)
        file.write(bytes(80))
    local = read(path)
    assert local["unreadable"] == N_IN_BASKET
    with http_server(tmp_path) as server:
        assert_same(read(server.url("damaged.root")), local)


# ---- a server that goes away


@pytest.mark.parametrize(
    ("kind", "multirange", "every"),  # which requests are tried: there are many where each is for one range
    [("ttree", True, 2), ("ttree", False, 19), ("rntuple", True, 41)],
)
def test_http_lost_at_any_request_costs_no_event(
    folder: Path, kind: str, multirange: bool, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with http_server(folder, multirange=multirange) as server:
        for n_answered in itertools.count(0, every):
            server.fail_after = None
            pauses = Pauses(lambda: setattr(server, "fail_after", None))
            monkeypatch.setattr(remote.time, "sleep", pauses)
            events = Events(server.url(f"{kind}.root"))
            server.fail_after = len(server.requests) + n_answered
            assert events.rest() == list(range(N_EVENTS))
            assert not events.damage
            events.file.close()
            if not pauses.n:
                break  # there are no more requests than that
    assert n_answered > N_BASKETS


def kill(server: Any) -> None:
    server.process.kill()
    server.process.wait()


@needs_xrootd
@pytest.mark.parametrize("kind", ["ttree", "rntuple"])
@pytest.mark.parametrize("n_before", [0, 1, 3])
def test_xrootd_killed_and_back_costs_no_event(
    folder: Path, kind: str, n_before: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(xrootd_server(folder))
        pauses = Pauses(lambda: stack.enter_context(xrootd_server(folder, port=server.port)))
        monkeypatch.setattr(remote.time, "sleep", pauses)
        events = Events(server.url(f"{kind}.root"))
        before = [int(entry) for _ in range(n_before) for entry in next(events.read).entries]
        kill(server)
        assert before + events.rest(check=not n_before) == list(range(N_EVENTS))
        assert pauses.n == 2
        assert not events.damage
        events.file.close()
    lost, back = (record.getMessage() for record in caplog.records)
    address = server.url(f"{kind}.root")
    assert lost.startswith(f"{address}: lost at entry {n_before * N_IN_BASKET} (")
    assert back.startswith(f"{address}: back after ")


@contextlib.contextmanager
def served(folder: Path, scheme: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """A URL, and what ends its server."""
    with contextlib.ExitStack() as stack:
        if scheme == "http":
            yield stack.enter_context(http_server(folder)).url("ttree.root"), stack.close
        else:
            server = stack.enter_context(xrootd_server(folder))
            yield server.url("ttree.root"), lambda: kill(server)


@pytest.mark.parametrize("scheme", ["http", pytest.param("root", marks=needs_xrootd)])
def test_a_server_that_stays_away_is_no_damage(folder: Path, scheme: str) -> None:
    with served(folder, scheme) as (url, end):
        reader = Reader(config(url, timeout=0.2))
        reader.setup()
        checked, steps = Events(url, timeout=0.2), reader.read()
        assert next(steps)["sourceEntry"].tolist() == list(range(N_IN_BASKET))
        end()
        with pytest.raises(StreamerError) as error:
            next(steps)
        with pytest.raises(StreamerError) as unchecked:
            checked.file.check(checked.columns)
        assert not reader.take_tally()
        reader.close()
        checked.file.close()
    server = url.split("/")[2]
    wanted = f"(no server at {server}; is it running, and is the port right?); start again when the server is well"
    assert str(error.value) == f"{url}: lost at entry {N_IN_BASKET} {wanted}"
    assert str(unchecked.value) == f"{url}: lost at entry 0 {wanted}"
    assert error.value.exit_code == unchecked.value.exit_code == 1


def test_a_file_that_is_replaced_meanwhile_is_not_read_on(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = shutil.copy(folder / "ttree.root", tmp_path / "a.root")
    with http_server(tmp_path) as server:
        monkeypatch.setattr(remote.time, "sleep", Pauses(lambda: setattr(server, "fail_after", None), after=1))
        events = Events(server.url("a.root"))
        next(events.read)
        write(path, rntuple=False)
        server.fail_after, server.cut = len(server.requests), 0  # else a part of the new file would come
        with pytest.raises(StreamerError, match=f"another file now than at entry {N_IN_BASKET}; start again"):
            next(events.read)


# ---- one line for what is wrong at the start


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("none.root", "the server has no such file; check the URL"),
        ("empty.root", "the file is empty or truncated; copy it to the server again"),
        ("text.root", "not a ROOT file, and no other kind is read from a server; copy it here"),
        ("a b.root", "blanks and characters beyond ASCII must be written as %20 and the like"),
        ("rntuple.root?x={secret}", "no tree 'Other' in the file (it has Events); set input.tree"),
    ],
)
def test_http_refusals(folder: Path, name: str, said: str) -> None:
    with http_server(folder) as server:
        tree = "Other" if "?" in name else "Events"
        line = refusal(server.url(name.format(secret=SECRET)), tree=tree)
        assert line == f"{server.url(name.split('?')[0])}{'?...' if '?' in name else ''}: {said}"


def test_http_server_without_ranges_is_refused(folder: Path) -> None:
    with http_server(folder, ranges=False) as server:
        assert refusal(server.url("ttree.root")).endswith(
            "ttree.root: the server sends whole files only (no range requests); copy the file here and read the copy"
        )


def test_http_that_is_no_http_or_gone_or_silent_or_unknown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with http_server(folder) as server:
        at = f"{LOOPBACK}:{server.port}"
        https = f"https://{at}/ttree.root"
        assert refusal(https) == f"{https}: {at} does not speak TLS; is it http://?"
    url = server.url("ttree.root")
    assert refusal(url) == f"{url}: no server at {at}; is it running, and is the port right?"
    with socket.create_server((LOOPBACK, 0)) as silent:
        at = f"{LOOPBACK}:{silent.getsockname()[1]}"
        assert refusal(f"http://{at}/a.root", timeout=0.2) == (
            f"http://{at}/a.root: no answer from {at} within 0.2 s; check the port and the network, or raise "
            "input.timeout"
        )

    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    assert refusal("http://nowhere/a.root") == "http://nowhere/a.root: there is no host 'nowhere'; check the URL"


@needs_xrootd
def test_xrootd_refusals(folder: Path) -> None:
    with xrootd_server(folder) as server:
        at = f"{LOOPBACK}:{server.port}"
        cases = {
            server.url("none.root"): "the server has no such file; check the URL",
            server.url("sub"): "the server refuses it: Unable to open /sub; is a directory",
            server.url("empty.root"): "the file is empty or truncated; copy it to the server again",
            server.url("text.root"): "not a ROOT file, and no other kind is read from a server; copy it here",
            f"root://{at}/ttree.root": f"the path needs a slash of its own; write root://{at}//...",
        }
        assert {url: refusal(url) for url in cases} == {url: f"{url}: {said}" for url, said in cases.items()}
    url = server.url("ttree.root")
    assert refusal(url, timeout=1) == f"{url}: no server at {at}; is it running, and is the port right?"


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://host/a.root", "ftp:// cannot be read; http://, https:// and root:// can"),
        ("http:///a.root", "no host in the URL; write http://host/path"),
        ("http://host:x/a.root", "not a URL; write http://host/path or http://host:port/path"),
    ],
)
def test_what_is_no_url_is_refused(url: str, said: str) -> None:
    assert refusal(url) == f"{url}: {said}"


def test_xrootd_without_its_extra_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "XRootD" else found(name))
    assert refusal("root://host//a.root") == (
        "root://host//a.root: reading root:// needs XRootD: pip install 'e2e-streamer[xrootd]'"
    )


def test_problems_of_several_urls_are_told_together(folder: Path) -> None:
    with http_server(folder) as server:
        one, other = (f"{server.url(name)}?x={SECRET}" for name in ("a.root", "b.root"))
        line = refusal(one, other)
    assert line == f"{shown(one)} and 1 more: the server has no such file; check the URL"


# ---- secrets


@pytest.mark.parametrize(
    ("url", "wanted"),
    [
        ("http://host/a.root", "http://host/a.root"),
        ("https://me:hunter2@host:8443/a.root", "https://host:8443/a.root"),
        ("https://hunter2@host/a@b.root", "https://host/a@b.root"),
        ("root://host:1094//store/a.root?authz=hunter2&x=1", "root://host:1094//store/a.root?..."),
        ("http://[::1]:80/a.root#hunter2", "http://[::1]:80/a.root?..."),
        ("root://proxy//root://me:hunter2@host//a.root", "root://proxy//root://host//a.root"),
        ("http://me:hun/ter2@host/a.root", "http://..."),
        ("http://me:hun?ter2@host/a.root", "http://..."),
    ],
)
def test_secrets_are_not_shown(url: str, wanted: str) -> None:
    assert shown(url) == shown(wanted) == wanted
    assert without_secrets(f"no '{url}' in {url}") == f"no '{wanted}' in {wanted}"


def test_files_keep_their_names() -> None:
    assert shown(Path("a?b#c@d")) == Path("a?b#c@d")
    assert shown("a?b#c@d") == "a?b#c@d"


# ---- whole runs


@pytest.fixture
def streamer(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as made:
        yield made


def secret(url: str) -> str:
    return url.replace("://", f"://me:{SECRET}@", 1) + f"?authz={SECRET}"


def test_a_run_over_http_gives_the_same_scores_and_tells_no_secret(
    folder: Path, tmp_path: Path, streamer: Processes
) -> None:
    model = conv_model(tmp_path / "conv.onnx")
    with http_server(folder) as server:
        url = server.url("ttree.root")
        made = {
            name: streamer("run", source, "--output", tmp_path / name, "--tagger", f"eg={model}")
            for name, source in (("local", folder / "ttree.root"), ("http", secret(url)))
        }
        for process in made.values():
            process.check()
        code, out, err = call("inspect", secret(url))
        assert (code, err) == (0, "")
    scores = {name: read_scores(tmp_path / name / "scores.root") for name in made}
    assert len(scores["local"]["sourceEntry"]) == N_EVENTS
    assert scores["http"] == scores["local"]
    with uproot.open(tmp_path / "http" / "scores.root") as file:
        assert json.loads(file["streamer_sources"]) == [f"{url}?..."]
    assert f"{url}?..." in out
    assert SECRET not in out + made["http"].out + made["http"].err


def test_a_run_goes_on_when_its_server_is_back_and_fails_when_it_stays_away(
    folder: Path, tmp_path: Path, streamer: Processes
) -> None:
    out = tmp_path / "out"
    with http_server(folder) as server:
        url = server.url("ttree.root")
        process = streamer(
            *("run", secret(url), "--output", out, "--loop", "--set", "writer.commit_interval=0.01"),
            *("--set", f"input.step_events={N_IN_BASKET}", "--set", "input.timeout=5", "--set", "input.keep_mb=0"),
        )
        process.wait_for_events()
        server.fail_after = 0
        wait_until(lambda: "trying again for 5 s" in process.err, "the loss")
        server.fail_after = None
        wait_until(lambda: "reading on" in process.err, "the return")
    process.check(1)
    (line,) = process.complaints
    assert line.startswith(f"reader-0: {url}?...: no server at ")
    assert line.endswith(f"what was committed is safe, go on with: streamer run --resume {out}")
    assert SECRET not in process.out + process.err
    for book in (out / "books").iterdir():
        assert SECRET.encode() not in book.read_bytes()
    assert call("finish", out)[0] == 0
    got = read_scores(out / "scores.root")
    places = list(zip(got["replay"], got["sourceEntry"], strict=True))
    assert places == [divmod(i, N_EVENTS) for i in range(len(places))]
    assert places
