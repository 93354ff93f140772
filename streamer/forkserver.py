"""Processes that begin with everything imported: one process imports once, and is copied for each that is needed.

Imports and loaded kernels are most of what a process costs before its first event (half a second of processor time
and 100 MB each); copies share them. The supervisor asks a server, which has no threads and so can be forked; it forks
twice, and the supervisor takes the orphan in as its own child (`PR_SET_CHILD_SUBREAPER`, Linux). So nothing depends on
the server once a process is there, and where there is none, processes are started from the interpreter.
"""

import asyncio
import contextlib
import ctypes
import gc
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from importlib import import_module
from typing import Any, Protocol

from setproctitle import setproctitle

from streamer.background import give_way_as_session
from streamer.errors import EXIT_FAILED
from streamer.logs import SUPERVISOR, Passing, lines
from streamer.orphan import die_with_parent

log = logging.getLogger(__name__)

MAX_BYTES = 1 << 16
"""Of a request: the arguments of a process."""
PATIENCE_S = 60.0
"""So long a request may take; the first one waits for the imports."""
ADOPTED_S = 5.0
"""A copy waits so long for its new parent."""


class Running(Protocol):
    """A process, as asyncio has them."""

    stdin: asyncio.StreamWriter | None
    stdout: asyncio.StreamReader | None
    stderr: asyncio.StreamReader | None

    @property
    def pid(self) -> int: ...

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int: ...


class GoneError(Exception):
    """There is no server, or no more."""


# ---- the supervisor's end


class ForkServer:
    """Starts processes `python -m PROGRAM ARGUMENTS`, of which the server has imported `modules`.

    Parameters
    ----------
    limit : int
        Bytes of a line on a process's standard output or error.
    """

    def __init__(self, program: str, modules: list[str], limit: int) -> None:
        self._program, self._modules, self._limit = program, modules, limit
        self._process: asyncio.subprocess.Process | None = None
        self._socket: socket.socket | None = None
        self._passing: asyncio.Task[None] | None = None
        self._turn = asyncio.Lock()

    async def open(self) -> None:
        """Start the server, where the system can do this; returns before it has imported anything."""
        if not adopt_orphans() or not hasattr(os, "pidfd_open"):
            return
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.settimeout(PATIENCE_S)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._program, "forkserver", str(theirs.fileno()), *self._modules),
                "--supervised",
                stdin=asyncio.subprocess.PIPE,  # its end tells the server to go
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is ours alone
            )
        self._socket = ours
        self._passing = asyncio.create_task(self._pass_log(self._process))

    @staticmethod
    async def _pass_log(process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        passing = Passing(SUPERVISOR, 0)
        async for line in lines(process.stderr):
            passing.line(line)
        passing.tidy(all_=True)

    async def start(self, arguments: list[str], *, gives_way: bool = False) -> Running:
        """Start a process; the end of its standard input tells it that we are gone.

        Parameters
        ----------
        gives_way : bool
            To all others (`streamer.background`), from its first step on: its start takes tens of milliseconds. One
            that is started anew gives way when it comes to that itself.
        """
        if self._socket is not None:
            try:
                return await self._fork(arguments, gives_way)
            except (GoneError, OSError):
                log.warning("the process that others are copied from is gone; they are started anew from now on")
                await self.close()
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", self._program, *arguments),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
            limit=self._limit,
        )

    async def _fork(self, arguments: list[str], gives_way: bool) -> "Forked":
        async with self._turn:
            stdin, stdout, stderr = os.pipe(), os.pipe(), os.pipe()
            theirs = [stdin[0], stdout[1], stderr[1]]
            request = {"arguments": arguments, "gives_way": gives_way}
            asking = asyncio.get_running_loop().run_in_executor(None, self._ask, request, theirs)
            try:
                pid = await asyncio.shield(asking)
            except BaseException:
                # Or we are no longer wanted. Nobody else would take the answer off the socket and end the process, so
                # we stay until then, however often that is said.
                while not asking.done():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.wait([asking])
                try:
                    with contextlib.suppress(GoneError, OSError):
                        pid = asking.result()
                        os.kill(pid, signal.SIGKILL)
                        Forked(pid)  # takes it in
                finally:
                    for fd in (stdin[1], stdout[0], stderr[0]):
                        os.close(fd)
                raise
            finally:
                for fd in theirs:
                    os.close(fd)
        ours = stdin[1], stdout[0], stderr[0]
        try:
            return await Forked.of(pid, *ours, self._limit)
        except BaseException:  # out of files, such as: nobody would know of it
            os.kill(pid, signal.SIGKILL)
            for fd in ours:
                with contextlib.suppress(OSError):  # somebody has it already
                    os.close(fd)
            raise

    def _ask(self, request: dict[str, Any], fds: list[int]) -> int:
        if self._socket is None:
            raise GoneError
        socket.send_fds(self._socket, [json.dumps(request).encode()], fds)
        said = self._socket.recv(MAX_BYTES)
        if not said:
            raise GoneError
        return int(said)

    async def close(self) -> None:
        """No more processes; those that were started go on."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()
        if self._passing is not None:
            await self._passing
            self._passing = None


class Forked:
    """A copy of the server, which is our child now."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdin: asyncio.StreamWriter | None = None
        self.stdout: asyncio.StreamReader | None = None
        self.stderr: asyncio.StreamReader | None = None
        self._ended = asyncio.Event()
        self._pidfd = os.pidfd_open(pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    @classmethod
    async def of(cls, pid: int, stdin: int, stdout: int, stderr: int, limit: int) -> "Forked":
        """With our ends of its pipes."""
        process = cls(pid)
        process.stdin = await _writer(stdin)
        process.stdout, process.stderr = await _reader(stdout, limit), await _reader(stderr, limit)
        return process

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        try:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        except ChildProcessError:  # SIGCHLD is ignored here, and how it ended is lost
            self.returncode = EXIT_FAILED
        if self.stdin is not None:
            self.stdin.close()
        self._ended.set()

    async def wait(self) -> int:
        """Its exit code; as a negative number, the signal of which it died."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode


async def _reader(fd: int, limit: int) -> asyncio.StreamReader:
    reader = asyncio.StreamReader(limit)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(fd, "rb", 0)
    )
    return reader


async def _writer(fd: int) -> asyncio.StreamWriter:
    loop = asyncio.get_running_loop()
    transport, protocol = await loop.connect_write_pipe(
        lambda: asyncio.streams.FlowControlMixin(loop), os.fdopen(fd, "wb", 0)
    )
    return asyncio.StreamWriter(transport, protocol, None, loop)


def adopt_orphans() -> bool:
    """Become the parent of what our children leave behind; whether the system can do that."""
    pr_set_child_subreaper = 36
    with contextlib.suppress(OSError, AttributeError):
        return ctypes.CDLL("libc.so.6").prctl(pr_set_child_subreaper, 1, 0, 0, 0) == 0  # type: ignore[no-any-return]
    return False


# ---- the server


def serve(fd: int, modules: list[str], run: Callable[[list[str]], Any]) -> None:
    """Import, then fork for each request until our parent closes the socket. `run` is called in each copy with the
    arguments."""
    supervisor = os.getppid()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # which may have been inherited as ignored
    for module in modules:
        import_module(module)
    gc.collect()
    gc.freeze()  # pages that the garbage collector does not write to stay shared
    with socket.socket(fileno=fd) as requests:
        while True:
            said, fds, _, _ = socket.recv_fds(requests, MAX_BYTES, 3)
            if not said:
                return
            told, tell = os.pipe()
            if not (between := os.fork()):
                request = json.loads(said)
                if request["gives_way"]:  # in a session for the copy, which this one leads only to leave
                    os.setsid()
                    give_way_as_session()
                if pid := os.fork():
                    os.write(tell, str(pid).encode())
                    os._exit(0)
                requests.close()
                os.close(told)
                os.close(tell)
                if not request["gives_way"]:
                    os.setsid()  # it leads it, and may have it give way later
                _become(request["arguments"], fds, supervisor)
                run(request["arguments"])
                os._exit(0)
            os.close(tell)
            os.waitpid(between, 0)  # from now on the copy is the supervisor's child
            requests.send(os.read(told, 32))
            for one in (told, *fds):
                os.close(one)


def _become(arguments: list[str], fds: list[int], supervisor: int) -> None:
    """A process as `exec` would make it: its own standard streams, and it dies with the supervisor."""
    for stream, fd in enumerate(fds):
        os.dup2(fd, stream)
        os.close(fd)
    begin = time.monotonic()
    while os.getppid() != supervisor:
        if time.monotonic() - begin > ADOPTED_S:
            os._exit(1)
        time.sleep(0.001)
    die_with_parent(signal.SIGKILL)
    setproctitle(" ".join(["streamer", *arguments]))
