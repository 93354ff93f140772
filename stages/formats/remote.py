"""ROOT files on a server, `http(s)://` or `root://`, through uproot's own sources.

A connection that is lost is no damage: the file is opened again and read on; if the server stays away, the run ends.
"""

import importlib.util
import logging
import math
import queue
import re
import ssl
import time
from http.client import HTTPException
from typing import Any
from urllib.parse import urlsplit

import uproot
from uproot.source.chunk import Chunk
from uproot.source.http import HTTPSource
from uproot.source.xrootd import XRootDSource

from stages.inputs import shown, without_secrets
from streamer.errors import StreamerError, UsageError

log = logging.getLogger(__name__)

HTTP = {"http": 80, "https": 443}
XROOTD = {"root": 1094, "roots": 1094, "xroot": 1094, "xroots": 1094}
PORTS = HTTP | XROOTD
"""What can be read from, and the usual ports."""

HEADER_BYTES = 4096
"""A request names the ranges that fit into this: servers take headers of 8 kB, and Apache 200 ranges."""
FALLBACK_WORKERS = 4
"""Threads of a file whose server gives one range a request."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.1, 2.0
"""Pauses before a server is tried again; each is twice the one before."""


class HttpSource(HTTPSource):  # type: ignore[misc]
    """uproot's own takes the answer to a single range for a refusal of several, and never asks for several again."""

    def chunks(self, ranges: list[tuple[int, int]], notifications: "queue.Queue[Chunk]") -> list[Chunk]:
        if len(ranges) > 1:
            return list(super().chunks(ranges, notifications))
        chunks = [self.chunk(start, stop) for start, stop in ranges]
        for chunk in chunks:
            chunk.wait()
            notifications.put(chunk)
        return chunks


def open_root(url: str, timeout: float) -> Any:
    """Open a ROOT file.

    Raises
    ------
    UsageError
        The URL is none, or its kind cannot be read here.
    Exception
        Whatever uproot raises for the rest; see `why`.
    """
    options = _options(url, timeout)
    # The caches go by the file's own id, and would hand out what was read through another, lost connection.
    options |= {"object_cache": None, "array_cache": None}
    return uproot.open({url: None}, **options)  # a mapping, or uproot would look for an object's name behind a colon


def _options(url: str, timeout: float) -> dict[str, Any]:
    scheme, name = url.partition("://")[0].lower(), shown(url)
    if scheme not in PORTS:
        raise UsageError(f"{name}: {scheme}:// cannot be read; http://, https:// and root:// can")
    try:
        host, _ = urlsplit(url).hostname, urlsplit(url).port
    except ValueError:
        raise UsageError(f"{name}: not a URL; write {scheme}://host/path or {scheme}://host:port/path") from None
    if not host:
        raise UsageError(f"{name}: no host in the URL; write {scheme}://host/path")
    if scheme in HTTP:
        if not url.isascii() or re.search(r"[\s\0-\x1f\x7f]", url):
            raise UsageError(f"{name}: blanks and characters beyond ASCII must be written as %20 and the like")
        return {
            "handler": HttpSource,
            "timeout": timeout,
            "http_max_header_bytes": HEADER_BYTES,
            "num_fallback_workers": FALLBACK_WORKERS,
        }
    if importlib.util.find_spec("XRootD") is None:
        raise UsageError(f"{name}: reading {scheme}:// needs XRootD: pip install 'e2e-streamer[xrootd]'")
    _give_up_soon(timeout)
    return {"handler": XRootDSource, "timeout": _whole_seconds(timeout)}


def _whole_seconds(timeout: float) -> int:
    """XRootD takes only those, and 0 means half an hour."""
    return max(1, math.ceil(timeout))


def _give_up_soon(timeout: float) -> None:
    """The client would try to connect for ten minutes, and then not at all for half an hour. The user's XRD_* win."""
    from XRootD import client

    settings = {
        "ConnectionWindow": _whole_seconds(timeout),
        "ConnectionRetry": 1,
        "StreamErrorWindow": 0,
        "TimeoutResolution": 1,
    }
    for name, value in settings.items():
        client.EnvPutInt(name, value)


def is_lost(error: BaseException) -> bool:
    """Whether it is the connection that failed, and not what is in the file."""
    text = str(error)
    if isinstance(error, HTTPException):
        return "status 416" not in text  # a place behind the end of the file
    if "closed file" in text:  # uproot closes an XRootD file with its first error
        return True
    return isinstance(error, OSError) and "expected Chunk of length" not in text


class Patience:
    """How long a server that went away is waited for: the timeout, from the first failure on.

    Parameters
    ----------
    url : str
    timeout : float
        In seconds. The server is tried again at least once.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = url, timeout
        self._since: float | None = None
        self._pause = FIRST_PAUSE_S

    def wait(self, error: BaseException, entry: int) -> None:
        """Take a failure to read from `entry` on, and pause.

        Raises
        ------
        StreamerError
            It has been enough.
        """
        now = time.monotonic()
        what = f"{shown(self.url)}: lost at entry {entry} ({why(self.url, error, self.timeout)})"
        if self._since is None:
            self._since, self._pause = now, FIRST_PAUSE_S
            log.warning("%s; trying again for %g s", what, self.timeout)
        elif now - self._since >= self.timeout:
            raise StreamerError(f"{what}; start again when the server is well")
        time.sleep(self._pause)
        self._pause = min(2 * self._pause, LAST_PAUSE_S)

    def reached(self) -> None:
        """Take a success."""
        if self._since is not None:
            log.warning("%s: back after %.1f s; reading on", shown(self.url), time.monotonic() - self._since)
            self._since = None


def why(url: str, error: BaseException, timeout: float) -> str:
    """What went wrong with a URL, and what to do, in one short line."""
    text = " ".join(str(error).replace(url, "").split())
    parts = urlsplit(url)
    server = f"{parts.hostname}:{parts.port or PORTS.get(parts.scheme)}"
    status = re.search(r"(?:status|response was) (\d{3})", text)
    said = re.search(r"\[\d{4}\] (.*?)\s*(?:\)|in file|'|$)", text)
    if "returned 404" in text or "[3011]" in text:
        return "the server has no such file; check the URL"
    if "relative path" in text:
        return f"the path needs a slash of its own; write {parts.scheme}://{parts.netloc.rpartition('@')[2]}//..."
    if "Invalid address" in text or type(error).__name__ == "gaierror":
        return f"there is no host '{parts.hostname}'; check the URL"
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"the certificate of {server} is not trusted ({error.verify_message}); "
            "name its authority's file in SSL_CERT_FILE"
        )
    if isinstance(error, ssl.SSLError):
        return f"{server} does not speak TLS; is it http://?"
    if isinstance(error, ConnectionRefusedError) or "Connection error" in text:
        return f"no server at {server}; is it running, and is the port right?"
    if isinstance(error, TimeoutError) or "Socket timeout" in text:
        return f"no answer from {server} within {timeout:g} s; check the port and the network, or raise input.timeout"
    if status and status[1] == "200":
        return "the server sends whole files only (no range requests); copy the file here and read the copy"
    if status and status[1] in ("401", "403"):
        return f"the server does not let you read it (status {status[1]})"
    if (status and status[1] == "416") or "expected Chunk of length" in text:
        return "the file is empty or truncated; copy it to the server again"
    if status and status[1] != "206":
        return f"{server} answered with status {status[1]}; try again later"
    if said and isinstance(error, OSError):
        return f"the server refuses it: {without_secrets(said[1])[:160]}"
    if isinstance(error, RecursionError):
        return "the server redirects in a circle; check the URL"
    if "unrecognized URL scheme" in text:
        return "the server redirects to a place without a host, which cannot be followed; curl -sIL shows the right URL"
    if isinstance(error, ConnectionError | HTTPException) or "closed file" in text:
        return (
            f"{server} broke off the connection ({type(error).__name__}); is it http or https, and is the server well?"
        )
    if isinstance(error, OSError):
        return f"{server} cannot be read from ({type(error).__name__}: {without_secrets(text)[:160]})"
    if "not a ROOT file" in text:
        return "not a ROOT file, and no other kind is read from a server; copy it here"
    why = f"{type(error).__name__}: {without_secrets(text)[:160]}"
    return f"not a readable ROOT file ({why}); it may be cut short: copy it again"
