"""Processes that are copies of one that has imported everything: like those that are started anew, only sooner."""

import asyncio
import contextlib
import ctypes
import errno
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from physics_helpers import assert_end, wait_until

from streamer.background import NICE
from streamer.forkserver import Forked, ForkServer, Running
from streamer.testing import until

MODULES = ["streamer.runner"]


@pytest.fixture(autouse=True)
def _no_orphans() -> Iterator[None]:
    """Do not stay the parent of other tests' orphans."""
    yield
    ctypes.CDLL("libc.so.6").prctl(36, 0, 0, 0, 0)


@contextlib.asynccontextmanager
async def opened() -> AsyncIterator[ForkServer]:
    server = ForkServer("streamer", MODULES, 1 << 20)
    await server.open()
    try:
        yield server
    finally:
        await server.close()


async def ended(process: Running) -> tuple[int, bytes, bytes]:
    assert process.stdout is not None
    assert process.stderr is not None
    said = await asyncio.gather(process.stdout.read(), process.stderr.read())
    return await process.wait(), *said


@pytest.mark.parametrize("arguments", [["--version"], ["check", "missing.toml"], ["stage", "cook"], ["bake"]])
def test_a_copy_says_and_ends_as_one_that_is_started_anew(arguments: list[str]) -> None:
    async def both() -> None:
        async with opened() as server:
            copy = await server.start(arguments)
            assert isinstance(copy, Forked)
            anew = await ForkServer("streamer", MODULES, 1 << 20).start(arguments)
            assert not isinstance(anew, Forked)
            first, second = await ended(copy), await ended(anew)
            assert first == second
            assert first[1] or first[2]

    asyncio.run(both())


@pytest.mark.parametrize("gives_way", [False, True])
def test_a_copy_gives_way_before_it_does_anything(gives_way: bool, tmp_path: Path) -> None:
    """It stays at its first file, which is a pipe that nobody writes to."""
    waiting = tmp_path / "run.toml"
    os.mkfifo(waiting)
    arguments = ["check", str(waiting)]

    async def live() -> None:
        async with opened() as server:
            copy = await server.start(arguments, gives_way=gives_way)
            assert isinstance(copy, Forked)
            wait_until(lambda: psutil.Process(copy.pid).cmdline() == ["streamer", *arguments], "its title")
            assert os.getpriority(os.PRIO_PROCESS, copy.pid) == (NICE if gives_way else 0)
            assert os.sched_getscheduler(copy.pid) == (os.SCHED_IDLE if gives_way else os.SCHED_OTHER)
            group = Path(f"/proc/{copy.pid}/autogroup")
            assert not group.exists() or group.read_text().split()[-1] == (str(NICE) if gives_way else "0")
            assert server._process is not None
            assert os.getsid(copy.pid) not in {os.getsid(0), os.getsid(server._process.pid)}
            assert copy.returncode is None
            os.kill(copy.pid, signal.SIGKILL)
            assert await copy.wait() == -signal.SIGKILL

    asyncio.run(live())


def test_a_copy_is_ours_and_outlives_the_server(tmp_path: Path) -> None:
    (tmp_path / "run.toml").touch()
    arguments = ["draw", "--config", str(tmp_path / "run.toml")]  # is there until its standard input ends

    async def live() -> None:
        async with opened() as server:
            first, second = await server.start(arguments), await server.start(arguments)
            assert [type(one) for one in (first, second)] == [Forked, Forked]
            assert psutil.Process(first.pid).ppid() == os.getpid() == psutil.Process(second.pid).ppid()
            assert os.getsid(first.pid) == first.pid, "it may have its session give way later"
            for one in (first, second):
                wait_until(lambda one=one: psutil.Process(one.pid).cmdline() == ["streamer", *arguments], "its title")
            assert server._process is not None
            server._process.kill()
            third = await server.start(arguments)
            assert not isinstance(third, Forked)
            for one in (first, third):
                assert one.returncode is None
                assert one.stdin is not None
                one.stdin.close()
            os.kill(second.pid, signal.SIGSEGV)
            assert [await one.wait() for one in (first, second, third)] == [0, -signal.SIGSEGV, 0]

    asyncio.run(live())


async def while_it_is_asked_for(asked: asyncio.Task[Running]) -> None:
    await asyncio.sleep(0)  # it asks
    asked.cancel()


async def twice(asked: asyncio.Task[Running]) -> None:
    for _ in range(2):
        await asyncio.sleep(0)  # it asks, and then it is told
        asked.cancel()
    await asyncio.sleep(0)
    assert not asked.done(), "the answer is still to come"


async def when_it_has_just_come(asked: asyncio.Task[Running]) -> None:
    only = ThreadPoolExecutor(1)
    asyncio.get_running_loop().set_default_executor(only)
    await asyncio.sleep(0)  # it asks
    only.submit(int).result()  # has its turn when the answer is there, and the loop has not seen that
    asked.cancel()


@pytest.mark.parametrize("change_ones_mind", [while_it_is_asked_for, twice, when_it_has_just_come])
def test_one_that_is_no_longer_wanted_does_not_stay_and_is_not_taken_for_the_next(
    tmp_path: Path, change_ones_mind: Callable[[asyncio.Task[Running]], Awaitable[None]]
) -> None:
    (tmp_path / "run.toml").touch()

    async def ask() -> None:
        async with opened() as server:
            before, n_files = psutil.Process().children(), psutil.Process().num_fds()
            asked = asyncio.create_task(server.start(["draw", "--config", str(tmp_path / "run.toml")]))
            await change_ones_mind(asked)
            with pytest.raises(asyncio.CancelledError):
                await asked
            code, said, _ = await ended(await server.start(["--version"]))
            assert (code, said.split()[0]) == (0, b"streamer")
            await until(lambda: psutil.Process().children() == before)
            await until(lambda: psutil.Process().num_fds() == n_files)

    asyncio.run(ask())


def test_one_that_is_no_longer_wanted_is_ended_where_files_are_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.toml").touch()

    def no_more(pid: int) -> int:
        os.kill(pid, signal.SIGSTOP)  # does not find out itself that nobody wants it
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def ask() -> None:
        async with opened() as server:
            before = psutil.Process().children()
            asked = asyncio.create_task(server.start(["draw", "--config", str(tmp_path / "run.toml")]))
            await until(server._turn.locked)
            with monkeypatch.context() as patch:
                patch.setattr(os, "pidfd_open", no_more)
                asked.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked
            (copy,) = set(psutil.Process().children()) - set(before)
            try:
                await until(lambda: os.waitpid(copy.pid, os.WNOHANG)[0])
            except TimeoutError:
                copy.kill()
                raise

    asyncio.run(ask())


def test_nobody_is_left_when_whoever_asked_is_killed(tmp_path: Path) -> None:
    (tmp_path / "run.toml").touch()
    arguments = ["draw", "--config", str(tmp_path / "run.toml")]
    told, tell = os.pipe()
    if not (asking := os.fork()):

        async def ask() -> None:
            server = ForkServer("streamer", MODULES, 1 << 20)
            await server.open()
            copies = [await server.start(arguments) for _ in range(2)]
            os.kill(copies[0].pid, signal.SIGSTOP)
            os.write(tell, b"ready")
            await asyncio.sleep(60)

        asyncio.run(ask())
        os._exit(1)
    assert os.read(told, 16) == b"ready"
    family = psutil.Process(asking).children()
    assert len(family) == 3
    os.kill(asking, signal.SIGKILL)
    os.waitpid(asking, 0)
    assert_end(family)
