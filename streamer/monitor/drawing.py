"""Event displays: made by a process that is there only while somebody looks, and gives way to the stream."""

import asyncio
import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from streamer.background import give_way_as_session
from streamer.errors import StreamerError, one_line
from streamer.pipeline import Pipeline, resolve

PATIENCE_S = 120.0
"""A drawing may take so long: it gives way to the stream, which may leave it little of a busy machine."""
IDLE_S = 60.0
MOST_BYTES = 32 << 20


class Drawer:
    """Asks the process that draws; starts it when it is needed, and ends it when nobody has looked for a while.

    Parameters
    ----------
    program : str
        The module that `python -m` runs.
    config : Path
        The run's configuration.
    """

    def __init__(self, program: str, config: Path) -> None:
        self._program, self._config = program, config
        self._process: asyncio.subprocess.Process | None = None
        self._turn = asyncio.Lock()
        self._used = 0.0

    async def draw(self, one: dict[str, Any]) -> dict[str, Any]:
        """What is to be seen of an event.

        Raises
        ------
        StreamerError
            It cannot be drawn.
        """
        async with self._turn:
            self._used = time.monotonic()
            process = await self._started()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                async with asyncio.timeout(PATIENCE_S):
                    process.stdin.write(json.dumps(one).encode() + b"\n")
                    told = json.loads(await process.stdout.readline())
            except (OSError, ValueError, TimeoutError):
                self._end()
                raise StreamerError("the event could not be drawn") from None
        if not isinstance(told, dict) or "error" in told:
            raise StreamerError(str(told.get("error", told)))
        return told

    async def _started(self) -> asyncio.subprocess.Process:
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._program, "draw", "--config", str(self._config)),
                stdin=asyncio.subprocess.PIPE,  # its end tells the process to go
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                start_new_session=True,
                limit=MOST_BYTES,
            )
        return self._process

    def tidy(self) -> None:
        """End the process when it was idle for long; to be called now and then."""
        if self._process is not None and not self._turn.locked() and time.monotonic() - self._used > IDLE_S:
            self._end()

    def _end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        self._process = None

    async def close(self) -> None:
        process = self._process
        self._end()
        if process is not None:
            await process.wait()


def draw_for_ever(pipeline: Pipeline, config: Path) -> None:
    """Answer on standard output, line by line, what is asked for on standard input."""
    give_way_as_session()
    effective, function = pipeline.load_config(config), resolve(pipeline.draw)
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries that print are not to be heard
    for line in sys.stdin:
        try:
            told = function(effective, json.loads(line))
        except Exception as error:
            told = {"error": one_line(error)}
        print(json.dumps(told), file=answers, flush=True)
