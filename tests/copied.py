"""Commands in processes of their own that need not import anything: copies of one process that has.

A run of six processes takes 6 s of processor time on a slow core, of which 4 are the imports of the command and of its
fork server, the same in each of hundreds of runs. So `physics_helpers.Process` asks a process beside pytest, which has
imported what commands import and has no threads, and which forks for each of them; a run's fork server is such a copy,
too. From there on all is as after `exec`: session, standard streams, environment, working folder, exit code. With
`--long`, and where a test sets variables that count while importing, commands are started from the interpreter.
"""

import asyncio
import atexit
import contextlib
import faulthandler
import gc
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

from setproctitle import setproctitle

from streamer.forkserver import Forked, _reader, _writer

MAX_BYTES = 1 << 17
OWN = frozenset({"XDG_RUNTIME_DIR", "PYTEST_CURRENT_TEST", "PYTHONFAULTHANDLER"})
"""Variables that are read when a command runs, and not before; or that `become` heeds, in the interpreter's place."""
anew = not hasattr(os, "pidfd_open")
"""Whether all commands are to be started from the interpreter."""


# ---- the end of the tests


class Copy:
    """A command's process, with what the tests use of `subprocess.Popen`."""

    def __init__(self, origin: "Origin", pid: int, pidfd: int) -> None:
        self._origin, self.pid, self._pidfd = origin, pid, pidfd
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            ended = select.poll()
            ended.register(self._pidfd, select.POLLIN)
            if not ended.poll(None if timeout is None else 1000 * timeout):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
            self.returncode = self._origin.code(self.pid)
            os.close(self._pidfd)
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)


class Origin:
    """The process that commands are copies of."""

    def __init__(self, environment: dict[str, str]) -> None:
        self.environment = environment
        self._turn = threading.Lock()
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment, pass_fds=[theirs.fileno()],
                start_new_session=True,
            )  # fmt: skip
        atexit.register(self.close)

    def start(self, arguments: list[str], environment: dict[str, str], streams: list[int]) -> Copy:
        """The command `python -m streamer ARGUMENTS`."""
        asked = {"arguments": arguments, "folder": str(Path.cwd()), "environment": environment}
        with self._turn:
            socket.send_fds(self._socket, [json.dumps(asked).encode()], streams)
            said, (pidfd,), _, _ = socket.recv_fds(self._socket, MAX_BYTES, 1)
        return Copy(self, int(said), pidfd)

    def code(self, pid: int) -> int:
        """The exit code of a command that has ended."""
        with self._turn:
            self._socket.send(json.dumps({"ended": pid}).encode())
            return int(self._socket.recv(MAX_BYTES))

    def close(self) -> None:
        self._socket.close()
        self._process.wait()


_origin: Origin | None = None


def started(arguments: list[str], environment: dict[str, str], streams: list[int]) -> Copy | None:
    """A command as a copy, or None where it must be started from the interpreter."""
    global _origin
    given = {name: value for name, value in environment.items() if name not in OWN}
    if anew:
        return None
    if _origin is None:
        _origin = Origin(given)
    return _origin.start(arguments, environment, streams) if given == _origin.environment else None


# ---- the process that is copied


def load() -> None:
    """Import what commands do, before and after they know what they are to do."""
    import typer

    from stages.config import Config
    from stages.cropper import Cropper
    from stages.framer import Framer
    from streamer.pipeline import installed_pipeline, resolve

    pipeline = installed_pipeline()
    resolve(pipeline.add_commands)(typer.Typer())
    for name in (*pipeline.modules, *LATER):
        import_module(name)
    for kind in (Framer, Cropper):
        kind(Config()).setup()  # which loads their kernels


LATER = ("streamer.cli", "streamer.supervisor", "streamer.report", "streamer.monitor.server", "stages.finishing",
         "stages.truth", "stages.mix_table", "stages.ledger_files", "matplotlib.backends.backend_agg")  # fmt: skip


def serve(requests: socket.socket) -> None:
    """Fork for each request until the tests are over."""
    load()
    gc.collect()
    gc.freeze()  # pages that the garbage collector does not write to stay shared
    running: dict[int, int] = {}  # processes and what tells of their end
    codes: dict[int, int] = {}
    while True:
        waiting = select.poll()
        for fd in (requests.fileno(), *running.values()):
            waiting.register(fd, select.POLLIN)
        ready = {fd for fd, _ in waiting.poll()}
        for pid in [pid for pid, fd in running.items() if fd in ready]:  # buried at once, whether or not a test asks
            codes[pid] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            os.close(running.pop(pid))
        if requests.fileno() not in ready:
            continue
        said, fds, _, _ = socket.recv_fds(requests, MAX_BYTES, 3)
        if not said:
            return
        asked = json.loads(said)
        if "ended" in asked:
            requests.send(str(codes.pop(asked["ended"])).encode())
            continue
        if not (pid := os.fork()):
            requests.close()
            for fd in running.values():
                os.close(fd)
            become(asked, fds)
        running[pid] = os.pidfd_open(pid)
        socket.send_fds(requests, [str(pid).encode()], [running[pid]])
        for fd in fds:
            os.close(fd)


def become(asked: dict[str, Any], streams: list[int]) -> NoReturn:
    """The command as the interpreter would start it."""
    os.setsid()
    for stream, fd in enumerate(streams):
        os.dup2(fd, stream)
        os.close(fd)
    os.chdir(asked["folder"])
    sys.path[0] = asked["folder"]
    os.environ.clear()
    os.environ.update(asked["environment"])
    if os.environ.get("PYTHONFAULTHANDLER"):
        faulthandler.enable()
    arguments = asked["arguments"]
    if arguments and arguments[0] in ("run", "demo"):
        give_fork_server()
    command(arguments)


def command(arguments: list[str]) -> NoReturn:
    """`python -m streamer ARGUMENTS` to the end of the process."""
    setproctitle(" ".join([sys.executable, "-m", "streamer", *arguments]))
    sys.argv = ["streamer", *arguments]
    code = 0
    try:
        runpy.run_module("streamer", run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
    os._exit(code)


class Server(Forked):
    """The process of a fork server, with what is used of `asyncio.subprocess.Process`."""

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


def give_fork_server() -> None:
    """Have a copy at hand for when the command starts its fork server: later there may be threads."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if not (pid := os.fork()):
        ours.close()
        os.setsid()
        said, fds, _, _ = socket.recv_fds(theirs, MAX_BYTES, 4)
        theirs.close()
        if not said:
            os._exit(0)
        arguments, wanted = json.loads(said)
        for stream, fd in enumerate(fds[:3]):
            os.dup2(fd, stream)
            os.close(fd)
        os.dup2(fds[3], wanted)
        if fds[3] != wanted:
            os.close(fds[3])
        command(arguments)
    theirs.close()
    start = asyncio.create_subprocess_exec

    async def copied(*words: str, **options: Any) -> Any:
        if words[3] != "forkserver" or ours.fileno() < 0:
            return await start(*words, **options)
        (wanted,) = options["pass_fds"]
        stdin, stderr = os.pipe(), os.pipe()
        with ours, open(os.devnull, "wb") as nothing:
            told = json.dumps([words[3:], wanted]).encode()
            socket.send_fds(ours, [told], [stdin[0], nothing.fileno(), stderr[1], wanted])
        os.close(stdin[0])
        os.close(stderr[1])
        process = Server(pid)
        process.stdin, process.stderr = await _writer(stdin[1]), await _reader(stderr[0], MAX_BYTES)
        return process

    asyncio.create_subprocess_exec = copied  # type: ignore[assignment]


if __name__ == "__main__":
    sys.path[0] = str(Path.cwd())
    setproctitle("what the tests start is copied from here")  # which wants to begin before the environment changes
    with socket.socket(fileno=int(sys.argv[1])) as asking:
        serve(asking)
