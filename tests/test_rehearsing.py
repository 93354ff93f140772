"""Changes that are rehearsed in a process of their own: what is told, and that it leaves nothing. Real processes."""

import asyncio
import contextlib
import ctypes
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from rehearsing_program import PIPELINE, ToyConfig

from streamer.background import AUTOGROUP
from streamer.config import to_toml
from streamer.errors import UsageError
from streamer.forkserver import ForkServer
from streamer.rehearsing import Rehearsal
from streamer.runner import Run
from streamer.supervisor import MAX_LINE
from streamer.testing import until

STAYS = "; everything stays as it was"
OTHERS: set[int] = set()


@pytest.fixture(autouse=True)
def _no_orphans() -> Iterator[None]:
    """Do not stay the parent of other tests' orphans."""
    yield
    ctypes.CDLL("libc.so.6").prctl(36, 0, 0, 0, 0)


@pytest.fixture(autouse=True)
def _of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Orphans of other tests may have become ours."""
    monkeypatch.setattr(f"{__name__}.OTHERS", {child.pid for child in psutil.Process().children()})


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Path(__file__).parent
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (here, here.parent))))


@pytest.fixture
def folder(run: Run) -> Path:
    (run.dir / "config.toml").write_text(to_toml(ToyConfig()))
    return run.dir


@contextlib.asynccontextmanager
async def opened(*, forked: bool) -> AsyncIterator[ForkServer]:
    server = ForkServer(PIPELINE.program, PIPELINE.modules, MAX_LINE)
    if forked:
        await server.open()
    try:
        yield server
    finally:
        await server.close()


def children() -> list[psutil.Process]:
    """What rehearses, or is dead and was not waited for."""
    found = []
    for child in [child for child in psutil.Process().children() if child.pid not in OTHERS]:
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.status() == psutil.STATUS_ZOMBIE or "rehearse" in " ".join(child.cmdline()):
                found.append(child)
    return found


async def refused(server: ForkServer, folder: Path, how: str, stage: str = "cook", patience: float = 60.0) -> str:
    """Why; the process is gone then."""
    before = os.listdir("/proc/self/fd")
    with pytest.raises(UsageError) as error:
        await Rehearsal(server, patience).of(stage, {"how": how}, folder)
    assert not children()
    # Those of a server that was closed just before may go meanwhile, too.
    await until(lambda: len(os.listdir("/proc/self/fd")) <= len(before))
    return str(error.value)


@pytest.mark.parametrize("forked", [True, False])
def test_a_rehearsal_tells_what_it_found_and_gives_way(folder: Path, forked: bool) -> None:
    async def rehearse() -> dict[str, Any]:
        async with opened(forked=forked) as server:
            found = await Rehearsal(server, 60).of("cook", {"how": "very well"}, folder)
            assert not children()
            return found

    found = asyncio.run(rehearse())
    nice = [19, 19] if AUTOGROUP.exists() else [19]
    assert found == {"was": "well", "is": "very well", "nice": nice, "victim": 1000}, "in one process with what printed"
    assert os.getpriority(os.PRIO_PROCESS, 0) < 19


def test_one_that_dies_says_rubbish_or_refuses_is_told_and_leaves_nothing(folder: Path) -> None:
    async def all_of_them() -> None:
        async with opened(forked=True) as server:
            assert await refused(server, folder, "crashes") == f"cook: the rehearsal died of SIGSEGV{STAYS}"
            assert await refused(server, folder, "exits") == f"cook: the rehearsal ended with code 3{STAYS}"
            assert await refused(server, folder, "refuses") == "one line\nand another"
            assert await refused(server, folder, "raises") == "cook: ValueError: not foreseen"
            assert (
                await refused(server, folder, "odd") == "cook: TypeError: Object of type set is not JSON serializable"
            )
            rubbish = f"cook: the rehearsal gave no answer that makes sense{STAYS}"
            assert await refused(server, folder, "leaves") == rubbish
        async with opened(forked=False) as server:
            for stage in ("rubbish", "list", "half", "flood"):
                assert await refused(server, folder, "", stage) == rubbish.replace("cook", stage)

    asyncio.run(all_of_them())


def test_one_that_hangs_is_ended(folder: Path) -> None:
    async def hang() -> None:
        async with opened(forked=True) as server:
            assert await refused(server, folder, "hangs", patience=2.0) == (
                f"cook: the rehearsal was not done after 2 s{STAYS}"
            )

    asyncio.run(hang())


def test_a_run_that_stops_ends_what_is_rehearsed_and_rehearses_no_more(folder: Path) -> None:
    async def stop() -> None:
        async with opened(forked=True) as server:
            rehearsal = Rehearsal(server, 60)
            hanging = asyncio.create_task(rehearsal.of("cook", {"how": "hangs"}, folder))
            await until(children)
            rehearsal.break_off()
            for asked in (hanging, rehearsal.of("cook", {"how": "well"}, folder)):
                with pytest.raises(UsageError, match="the run is stopping"):
                    await asked
                assert not children()
            other = asyncio.create_task(Rehearsal(server, 60).of("cook", {"how": "hangs"}, folder))
            await until(children)
            other.cancel()
            with pytest.raises(asyncio.CancelledError):
                await other
            await until(lambda: not children())

    asyncio.run(stop())
