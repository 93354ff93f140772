"""The servers that the tests of remote input read from, tried with plain uproot and plain requests."""

import http.client
from email.parser import BytesParser
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import psutil
import pytest
import uproot
from remote_servers import LOOPBACK, NO_XROOTD, HttpServer, http_server, xrootd_server
from uproot.source.http import HTTPSource
from uproot.source.xrootd import XRootDSource

N_EVENTS, N_BASKETS, N_BRANCHES = 200, 4, 3
TIMEOUT_S = 10

needs_xrootd = pytest.mark.skipif(bool(NO_XROOTD), reason=NO_XROOTD)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a ROOT file of several baskets, and a file of ten known bytes."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "ten.bin").write_bytes(b"0123456789")
    with uproot.recreate(folder / "events.root") as file:
        tree = file.mktree("Events", {"run": "int32", "energy": "var * float32"})
        for part in np.split(np.arange(N_EVENTS, dtype=np.int32), N_BASKETS):
            energies = ak.unflatten(np.repeat(part, 3).astype(np.float32), np.full(len(part), 3))
            tree.extend({"run": part, "energy": energies})
    return folder


def tree_at(url: str, source: Any) -> Any:
    """The tree, its baskets not yet read. A dict, because uproot would look for a `:` in a plain address."""
    return uproot.open({url: None}, handler=source, timeout=TIMEOUT_S, array_cache=None)["Events"]


def check(arrays: Any) -> None:
    np.testing.assert_array_equal(arrays["run"], np.arange(N_EVENTS))
    assert ak.all(arrays["energy"] == arrays["run"])
    assert ak.all(ak.num(arrays["energy"]) == 3)


def ask(server: HttpServer, method: str = "GET", name: str = "ten.bin", ranges: str = "") -> Any:
    """An answer, read, with its `content`."""
    connection = http.client.HTTPConnection(LOOPBACK, server.port, timeout=TIMEOUT_S)
    connection.request(method, f"/{name}", headers={"Range": ranges} if ranges else {})
    answer: Any = connection.getresponse()
    answer.content = answer.read()
    connection.close()
    return answer


# --- HTTP ---


def test_http_reads_with_several_ranges_in_a_request(folder: Path) -> None:
    with http_server(folder) as server:
        tree = tree_at(server.url("events.root"), HTTPSource)
        n_open = len(server.requests)
        check(tree.arrays())
    (last,) = server.requests[n_open:]
    assert last.count("-") == N_BRANCHES * N_BASKETS


def test_http_reads_range_by_range_where_several_are_refused(folder: Path) -> None:
    with http_server(folder, multirange=False) as server:
        tree = tree_at(server.url("events.root"), HTTPSource)
        n_open = len(server.requests)
        check(tree.arrays())
    refused, *singles = server.requests[n_open:]
    assert "," in refused
    assert len(singles) == N_BRANCHES * N_BASKETS
    assert not any("," in request for request in singles)


def test_http_without_ranges_is_an_error_and_no_wrong_data(folder: Path) -> None:
    with (
        http_server(folder, ranges=False) as server,
        pytest.raises(http.client.HTTPException, match="200, rather than 206"),
    ):
        tree_at(server.url("events.root"), HTTPSource)


@pytest.mark.parametrize("multirange", [True, False])
def test_http_breaks_off_in_mid_read_and_comes_back(folder: Path, multirange: bool) -> None:
    with http_server(folder, multirange=multirange) as server:
        tree = tree_at(server.url("events.root"), HTTPSource)
        server.fail_after = len(server.requests) + (not multirange)
        with pytest.raises(http.client.HTTPException, match=r"wrong chunk length|IncompleteRead"):
            tree.arrays()
        server.fail_after = None
        check(tree.arrays())


def test_http_breaks_off_at_once(folder: Path) -> None:
    with http_server(folder, fail_after=0) as server, pytest.raises(http.client.IncompleteRead):
        tree_at(server.url("events.root"), HTTPSource)


def test_http_server_that_has_ended_refuses_and_another_takes_its_address(folder: Path) -> None:
    with http_server(folder) as server:
        tree = tree_at(server.url("events.root"), HTTPSource)
    with pytest.raises(ConnectionRefusedError):
        tree.arrays()
    with http_server(folder, port=server.port):
        check(tree.arrays())


def test_http_has_only_the_files_of_the_folder(folder: Path) -> None:
    (folder.parent / "secret").write_bytes(b"x")
    (folder / "sub").mkdir()
    with http_server(folder) as server:
        with pytest.raises(FileNotFoundError):
            tree_at(server.url("missing.root"), HTTPSource)
        assert [ask(server, name=name).status for name in ("../secret", "sub", "", "ten.bin")] == [404, 404, 404, 200]


@pytest.mark.parametrize(
    ("ranges", "content", "place"),
    [
        ("bytes=2-4", b"234", "bytes 2-4/10"),
        ("bytes=7-", b"789", "bytes 7-9/10"),
        ("bytes=-3", b"789", "bytes 7-9/10"),
        ("bytes=8-99", b"89", "bytes 8-9/10"),
        ("bytes=3-3, 20-30", b"3", "bytes 3-3/10"),
    ],
)
def test_http_one_range(folder: Path, ranges: str, content: bytes, place: str) -> None:
    with http_server(folder) as server:
        answer = ask(server, ranges=ranges)
    assert (answer.status, answer.content, answer.headers["Content-Range"]) == (206, content, place)
    assert server.requests == [f"GET /ten.bin {ranges}"]


def test_http_several_ranges_come_in_parts(folder: Path) -> None:
    with http_server(folder) as server:
        answer = ask(server, ranges="bytes=0-1,4-4, -2")
    head = f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode()
    parts: Any = BytesParser().parsebytes(head + answer.content).get_payload()
    assert answer.status == 206
    assert [(part["Content-Range"], part.get_payload(decode=True)) for part in parts] == [
        ("bytes 0-1/10", b"01"),
        ("bytes 4-4/10", b"4"),
        ("bytes 8-9/10", b"89"),
    ]


@pytest.mark.parametrize("ranges", ["bytes=10-", "bytes=5-3", "bytes=-0"])
def test_http_range_beyond_the_file(folder: Path, ranges: str) -> None:
    with http_server(folder) as server:
        answer = ask(server, ranges=ranges)
    assert (answer.status, answer.content, answer.headers["Content-Range"]) == (416, b"", "bytes */10")


def test_http_head_and_whole_file(folder: Path) -> None:
    with http_server(folder) as server:
        head, whole, odd = ask(server, "HEAD"), ask(server), ask(server, ranges="lines=1-2")
    assert (head.status, head.content, head.headers["Content-Length"]) == (200, b"", "10")
    assert (whole.status, whole.content) == (odd.status, odd.content) == (200, b"0123456789")
    assert server.requests == ["HEAD /ten.bin", "GET /ten.bin", "GET /ten.bin lines=1-2"]


# --- XRootD ---


@pytest.fixture
def impatient_client() -> None:
    """An XRootD client that gives up soon; by itself it would try for minutes."""
    client = pytest.importorskip("XRootD.client")
    for name, value in {"TimeoutResolution": 1, "ConnectionRetry": 1, "StreamErrorWindow": 0}.items():
        client.EnvPutInt(name, value)


@needs_xrootd
def test_xrootd_reads_with_a_vector_of_ranges(folder: Path) -> None:
    with xrootd_server(folder) as server:
        tree = tree_at(server.url("events.root"), XRootDSource)
        before = tree.file.source.num_requests
        check(tree.arrays())
        assert tree.file.source.num_requests == before + 1
        tree.file.close()


@needs_xrootd
def test_xrootd_listens_on_loopback_only_and_ends(folder: Path) -> None:
    with xrootd_server(folder) as server:
        process = psutil.Process(server.process.pid)
        listening = [c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        assert listening == [(LOOPBACK, server.port)]
        assert process.name() == "xrootd"
    assert server.process.returncode is not None
    assert not server.files.exists()


@needs_xrootd
@pytest.mark.usefixtures("impatient_client")
def test_xrootd_missing_file_and_address_with_one_slash(folder: Path) -> None:
    with xrootd_server(folder) as server:
        with pytest.raises(FileNotFoundError, match="no such file"):
            tree_at(server.url("missing.root"), XRootDSource)
        with pytest.raises(FileNotFoundError, match="Opening relative path"):
            tree_at(server.url("events.root").replace("//events", "/events"), XRootDSource)


@needs_xrootd
@pytest.mark.usefixtures("impatient_client")
def test_xrootd_killed_in_mid_read_and_back_under_its_address(folder: Path) -> None:
    with xrootd_server(folder) as server:
        tree = tree_at(server.url("events.root"), XRootDSource)
        server.process.kill()
        server.process.wait()
        with pytest.raises(OSError, match="XRootD error"):
            tree.arrays()
    with xrootd_server(folder, port=server.port):
        with pytest.raises(ValueError, match="closed file"):  # uproot closed it with the error
            tree.arrays()
        again = tree_at(server.url("events.root"), XRootDSource)
        check(again.arrays())
        again.file.close()


@needs_xrootd
def test_xrootd_that_does_not_start_tells_its_log(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("remote_servers.CONFIG", "all.export relative\nall.adminpath {admin}\noss.localroot {files}\n")
    with pytest.raises(RuntimeError, match="initialization failed"), xrootd_server(folder):
        pass
