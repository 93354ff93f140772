"""A change is rehearsed in a process of its own before any replica gets ready for it.

What is expensive about a change is done there once for all replicas, and what is dangerous harms nobody: a process that
dies, hangs or says what it should not refuses the change, and everything stays as it was. It has a processor when
nobody else wants it.

The process is `streamer rehearse STAGE --run-dir DIR`. It is told `{"settings": {...}}` on standard input, answers
`{"found": {...}}` or `{"refused": "..."}` on standard output, and leaves. (Batchers are rehearsed by
`streamer.rehearsal`.)
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

from streamer import logs
from streamer.background import give_way_as_session
from streamer.child import died
from streamer.config import changed
from streamer.errors import EXIT_OK, EXIT_USAGE, StreamerError, UsageError, one_line
from streamer.forkserver import ForkServer, Running
from streamer.orphan import die_with_parent
from streamer.pipeline import Pipeline, resolve
from streamer.runner import Run

log = logging.getLogger(__name__)

LAST_WORDS_S = 5.0
"""So long a process that is ended may take for that, and for its last words; a driver may hold it, and others its
streams."""


class Rehearsal:
    """Rehearses the changes of a run, one at a time.

    Parameters
    ----------
    forks : ForkServer
        Starts the process.
    patience : float
        A process that takes longer is ended [s].
    """

    def __init__(self, forks: ForkServer, patience: float) -> None:
        self._forks, self._patience = forks, patience
        self._process: Running | None = None
        self._over = False

    async def of(self, stage: str, settings: dict[str, Any], run_dir: Path) -> dict[str, Any]:
        """What the stage's rehearsal found of a change, for its replicas (`streamer.stage.Unit.prepare`).

        Parameters
        ----------
        settings : dict
            Dotted keys to values.
        run_dir : Path
            Where the configuration is that is in force.

        Raises
        ------
        UsageError
            The change is wrong, the process failed, or the run is stopping.
        """
        process = await self._forks.start(["rehearse", stage, "--run-dir", str(run_dir)], gives_way=True)
        try:
            async with asyncio.timeout(self._patience):
                line, code = await self._heard(process, settings)
        except TimeoutError:
            raise UsageError(
                f"{stage}: the rehearsal was not done after {self._patience:g} s; everything stays as it was"
            ) from None
        if self._over:
            raise UsageError("the run is stopping")
        return _found(stage, line, code)

    async def _heard(self, process: Running, settings: dict[str, Any]) -> tuple[bytes, int]:
        """The one line that it says, and its exit code. It is gone when this returns or raises."""
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        passing = asyncio.create_task(self._pass_log(process))
        try:
            if self._over:  # since it was asked for
                return b"", 0
            with contextlib.suppress(ConnectionError):  # it is gone already, which its exit code tells
                process.stdin.write(json.dumps({"settings": settings}).encode() + b"\n")
            try:
                line = await process.stdout.readline()
            except ValueError:  # longer than any answer
                return b"\n", 0
            return line, 0 if line.endswith(b"\n") else await process.wait()
        finally:
            self._end()
            self._process = None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LAST_WORDS_S):
                    await asyncio.gather(process.wait(), passing, process.stdout.read())

    @staticmethod
    async def _pass_log(process: Running) -> None:
        assert process.stderr is not None
        passing = logs.Passing(logs.SUPERVISOR, 0)
        async for line in logs.lines(process.stderr):
            passing.line(line)
        passing.tidy(all_=True)

    def break_off(self) -> None:
        """End what is being rehearsed, and rehearse nothing more: the run is stopping."""
        self._over = True
        self._end()

    def _end(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGKILL)


def _found(stage: str, line: bytes, code: int) -> dict[str, Any]:
    """What an answer tells, if it is one."""
    if code:
        raise UsageError(f"{stage}: the rehearsal {died(code)}; everything stays as it was")
    said = None
    with contextlib.suppress(ValueError, RecursionError):
        said = json.loads(line)
    if isinstance(said, dict) and isinstance(said.get("refused"), str):
        raise UsageError(said["refused"])
    if isinstance(said, dict) and isinstance(said.get("found"), dict):
        found: dict[str, Any] = said["found"]
        return found
    raise UsageError(f"{stage}: the rehearsal gave no answer that makes sense; everything stays as it was")


# ---- the process


def rehearse(pipeline: Pipeline, stage: str, run_dir: Path) -> int:
    """Rehearse the change that standard input tells of; returns the exit code."""
    die_with_parent()
    give_way_as_session()
    with contextlib.suppress(OSError):  # only Linux has it
        Path("/proc/self/oom_score_adj").write_text("1000")  # where memory is short, the stream is not the victim
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # libraries that print are not to be heard
    code = EXIT_OK
    try:
        config = pipeline.load_config(run_dir / "config.toml")
        logs.set_up_stage(config.log, Run.open(run_dir).id, logs.SUPERVISOR, 0, supervised=True)
        wanted = changed(config, json.loads(sys.stdin.readline())["settings"])
        answer = json.dumps({"found": resolve(pipeline.chain[pipeline.place(stage)].rehearse)(config, wanted)})
    except StreamerError as error:
        answer, code = json.dumps({"refused": str(error)}), EXIT_USAGE
    except Exception as error:
        log.debug("traceback", exc_info=True)
        answer, code = json.dumps({"refused": f"{stage}: {one_line(error)}"}), EXIT_USAGE
    print(answer, file=answers, flush=True)
    return code
