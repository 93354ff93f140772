"""A run's control socket: asked from another terminal how it does, to stop, or for more replicas.

A UNIX socket in the run's private folder. A request is a line of JSON, and so is the answer, which has `error` where it
was refused: `{"do": "status"}`, `{"do": "watch", "history": true}`, `{"do": "stop", "now": false}`,
`{"do": "scale", "stage": "tagger", "replicas": 3}`,
`{"do": "change", "stage": "tagger", "settings": {"taggers.eg.model": "new.onnx"}, "at_lumisection": false}`.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

from streamer.errors import EXIT_FAILED, StreamerError, UsageError, one_line

log = logging.getLogger(__name__)

SOCKET = "control"
MAX_LINE = 1 << 20
TIMEOUT_S = 10.0
CHANGE_TIMEOUT_S = 1200.0
"""A change is waited for so long: it is rehearsed, all replicas get ready for it, and a network may take minutes to
compile."""

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class NoAnswerError(StreamerError):
    """A run is there and does not answer in time."""


@contextlib.asynccontextmanager
async def listening(folder: Path, answer: Answer) -> AsyncIterator[None]:
    """Answer requests while this is entered."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, TimeoutError):
            said = await _answered(reader, answer)
            async with asyncio.timeout(TIMEOUT_S):
                writer.write(json.dumps(said).encode() + b"\n")
                await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(serve, folder / SOCKET, limit=MAX_LINE)
    try:
        yield
    finally:
        server.close()


async def _answered(reader: asyncio.StreamReader, answer: Answer) -> dict[str, Any]:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            line = await reader.readline()
        request = json.loads(line)
    except (ValueError, RecursionError) as error:  # not JSON, or a line without end
        return {"error": f"not a request: {error}", "exit": UsageError.exit_code}
    try:
        if not isinstance(request, dict):
            raise UsageError("a request is a JSON object")
        return await answer(request)
    except StreamerError as error:
        return {"error": str(error), "exit": error.exit_code}
    except Exception as error:
        log.debug("traceback", exc_info=True)
        return {"error": one_line(error), "exit": EXIT_FAILED}


def ask(folder: Path, request: dict[str, Any], patience: float = TIMEOUT_S) -> dict[str, Any]:
    """What the run of a folder answers.

    Parameters
    ----------
    patience : float
        Seconds.

    Raises
    ------
    OSError
        Nobody answers.
    StreamerError
        It refuses, or ends before it has answered.
    NoAnswerError
        It has not answered in time.
    """
    with socket.socket(socket.AF_UNIX) as link:
        link.settimeout(patience)
        try:
            link.connect(os.fspath(folder / SOCKET))
            link.sendall(json.dumps(request).encode() + b"\n")
            with link.makefile("rb") as answers:
                line = answers.readline(MAX_LINE)
        except (TimeoutError, BlockingIOError):  # the latter where not even one more can wait
            raise NoAnswerError(
                f"the run of {folder} has not answered for {patience:g} s; it may still do what it was asked for"
            ) from None
        except OSError as error:
            error.filename = str(folder / SOCKET)
            raise
    if not line:
        raise StreamerError(f"the run ended before it had answered; see what it said last ({folder})")
    said = json.loads(line)
    if not isinstance(said, dict) or "error" in said:
        kind = UsageError if said.get("exit") == UsageError.exit_code else StreamerError
        raise kind(str(said.get("error", said)))
    return said


def runs(base: Path) -> tuple[dict[Path, dict[str, Any]], list[Path]]:
    """The runs that go on with their status, and those that do not answer."""
    found, silent = {}, []
    for folder in sorted(base.glob("run-*")):
        try:
            found[folder] = ask(folder, {"do": "status"})
        except NoAnswerError:
            silent.append(folder)
        except (OSError, ValueError, StreamerError):  # it is over
            continue
    return found, silent
