"""Servers on loopback that serve the files of a folder: HTTP with range requests, and the real XRootD server."""

import contextlib
import functools
import importlib.util
import os
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

LOOPBACK = "127.0.0.1"
START_S = 30.0

NO_XROOTD = (
    "there is no XRootD server (apt-get install xrootd-server)"
    if shutil.which("xrootd") is None
    else "there is no XRootD client (pip install xrootd)"
    if importlib.util.find_spec("XRootD") is None
    else ""
)
"""Why `root://` cannot be tried here; empty where it can."""


# --- HTTP ---


@dataclass
class HttpServer:
    """A running HTTP server.

    Attributes
    ----------
    port : int
        On 127.0.0.1.
    requests : list of str
        Every request so far: method, path and ranges, such as `GET /a.root bytes=0-402`.
    fail_after : int or None
        Requests that are answered; of later ones a part of the body comes before the connection ends. May be set at
        any time.
    cut : int or None
        Bytes of that part; half of the body where it is not said. May be set at any time.
    """

    port: int
    ranges: bool
    multirange: bool
    fail_after: int | None
    cut: int | None = None
    requests: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def url(self, name: str) -> str:
        """Where a file of the folder is."""
        return f"http://{LOOPBACK}:{self.port}/{name}"

    def count(self, request: str) -> bool:
        """Note a request; whether it is to be answered in full."""
        with self.lock:
            self.requests.append(request)
            return self.fail_after is None or len(self.requests) <= self.fail_after


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # uproot opens a connection for each range that it cannot ask for together
    state: HttpServer

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients may hang up."""


class _Handler(SimpleHTTPRequestHandler):
    """Plain files; one range gives a 206, several give a 206 in parts, as RFC 9110 has it."""

    protocol_version = "HTTP/1.1"

    @property
    def state(self) -> HttpServer:
        assert isinstance(self.server, _Server)
        return self.server.state

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def _answer(self) -> None:
        wanted = self.headers.get("Range", "")
        whole = self.state.count(f"{self.command} {self.path} {wanted}".rstrip())
        path = Path(self.translate_path(self.path))
        if not path.is_file():
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        content = path.read_bytes()
        spans = _spans(wanted, len(content)) if self.state.ranges else []
        if spans and len(spans) > 1 and not self.state.multirange:
            spans = []
        if spans is None:
            self._send(HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE, b"", whole, f"bytes */{len(content)}")
        elif not spans:
            self._send(HTTPStatus.OK, content, whole)
        elif len(spans) == 1:
            first, last = spans[0]
            place = f"bytes {first}-{last}/{len(content)}"
            self._send(HTTPStatus.PARTIAL_CONTENT, content[first : last + 1], whole, place)
        else:
            parts = [
                f"\r\n--part\r\nContent-Type: application/octet-stream\r\n"
                f"Content-Range: bytes {first}-{last}/{len(content)}\r\n\r\n".encode()
                + content[first : last + 1]
                for first, last in spans
            ]
            body = b"".join([*parts, b"\r\n--part--\r\n"])
            self._send(HTTPStatus.PARTIAL_CONTENT, body, whole, kind="multipart/byteranges; boundary=part")

    def _send(
        self, status: HTTPStatus, body: bytes, whole: bool, place: str = "", kind: str = "application/octet-stream"
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        if self.state.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if place:
            self.send_header("Content-Range", place)
        self.end_headers()
        if self.command != "HEAD":
            cut = len(body) // 2 if self.state.cut is None else self.state.cut
            self.wfile.write(body if whole else body[:cut])
        self.close_connection = self.close_connection or not whole

    def log_message(self, format: str, *args: Any) -> None:
        """Not in the middle of the tests' output."""


def _spans(header: str, size: int) -> list[tuple[int, int]] | None:
    """The (first, last) bytes that a Range header asks for; none for the whole file, None for what is not in it."""
    if not re.fullmatch(r"bytes=[\d\s,-]+", header):
        return []
    spans = []
    for first, last in re.findall(r"(\d*)-(\d*)", header):
        start = int(first) if first else max(0, size - int(last))
        stop = min(int(last), size - 1) if first and last else size - 1
        if start <= stop:
            spans.append((start, stop))
    return spans or None


@contextlib.contextmanager
def http_server(
    folder: Path, *, ranges: bool = True, multirange: bool = True, fail_after: int | None = None, port: int = 0
) -> Iterator[HttpServer]:
    """Serve the files of a folder over HTTP/1.1.

    Parameters
    ----------
    ranges : bool
        False for a server that always sends the whole file.
    multirange : bool
        False for one that sends the whole file when it is asked for several ranges at once, as object stores do.
    fail_after : int, optional
        Requests after which the connection breaks off in the middle of each answer.
    port : int
        0 for any that is free; another to come back under an earlier address.
    """
    with _Server((LOOPBACK, port), functools.partial(_Handler, directory=str(folder))) as server:
        state = server.state = HttpServer(server.server_port, ranges, multirange, fail_after)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()


# --- XRootD ---

CONFIG = """\
all.export / r/o
oss.localroot {files}
all.adminpath {admin}
all.pidpath {admin}
"""

HANDSHAKE = bytes.fromhex("00000000 00000000 00000000 00000004 000007dc")
HANDSHAKE_ANSWER_BYTES = 16


@dataclass
class XrootdServer:
    """A running XRootD server.

    Attributes
    ----------
    port : int
        On 127.0.0.1.
    files : pathlib.Path
        What it serves, a copy of the folder.
    process : subprocess.Popen
        The server; it may be killed.
    """

    port: int
    files: Path
    process: subprocess.Popen[bytes]

    def url(self, name: str) -> str:
        """Where a file of the folder is; the second slash is part of its absolute path."""
        return f"root://{LOOPBACK}:{self.port}//{name}"


@contextlib.contextmanager
def xrootd_server(folder: Path, *, port: int = 0) -> Iterator[XrootdServer]:
    """Serve the files of a folder with the `xrootd` binary; see `NO_XROOTD` first.

    The server has no setting for the address to listen on. It takes a listening socket the way systemd hands one
    over, so it gets one on loopback. It refuses to run as root, and then runs as `nobody`, who cannot look into the
    folders of tests: hence the copy.

    Raises
    ------
    RuntimeError
        With its log, if it does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="xrootd-") as base, socket.create_server((LOOPBACK, port)) as listener:
        home = Path(base)
        files = shutil.copytree(folder, home / "files")
        admin = home / "admin"
        admin.mkdir()
        (home / "xrootd.cfg").write_text(CONFIG.format(files=files, admin=admin))
        as_user = []
        if os.getuid() == 0:
            as_user = ["-R", "nobody"]  # not Popen's own way, which forks: that hangs where an XRootD client is loaded
            shutil.chown(admin, "nobody")
            for path in [home, files, *files.rglob("*")]:
                path.chmod(0o755)
        port = listener.getsockname()[1]
        # sd_listen_fds(3): the socket is descriptor 3, and LISTEN_PID names who it is for.
        script = 'export LISTEN_PID=$$ LISTEN_FDS=1; exec "$@" 3<&0 </dev/null'
        command = ["sh", "-c", script, "sh", "xrootd", "-c", str(home / "xrootd.cfg"), "-p", str(port), *as_user]
        log = home / "log"
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdin=listener.fileno(), stdout=out, stderr=out, cwd=admin)
        listener.close()  # from here on the server alone holds it: when it ends, connections to it do
        try:
            if not _answers(port):
                raise RuntimeError(f"xrootd does not answer:\n{log.read_text()}")
            yield XrootdServer(port, files, process)
        finally:
            process.kill()
            process.wait()


def _answers(port: int) -> bool:
    """Whether an XRootD server takes up its protocol; waits until it has started or ended."""
    try:
        with socket.create_connection((LOOPBACK, port), timeout=START_S) as connection:
            connection.sendall(HANDSHAKE)
            return len(connection.recv(HANDSHAKE_ANSWER_BYTES, socket.MSG_WAITALL)) == HANDSHAKE_ANSWER_BYTES
    except OSError:
        return False
