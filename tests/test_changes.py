"""Other settings while a run goes on: what a replica has promised holds until all have agreed, or do not."""

import asyncio
import json
from asyncio.subprocess import PIPE
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from streamer.block import Block
from streamer.changes import Changes
from streamer.child import Child
from streamer.config import CoreConfig
from streamer.errors import StreamerError, UsageError
from streamer.pipeline import Pipeline
from streamer.stage import Unit
from streamer.supervisor import Supervisor
from streamer.testing import Made, toy_block


class Promising(Unit):
    """Promises that no event from a number on is taken."""

    def __init__(self, first: int) -> None:
        super().__init__()
        self.first, self.taken, self.promised, self.n_made = first, 0, False, 0

    def prepare(self, now: Any, wanted: Any, rehearsed: Mapping[str, Any]) -> Callable[[], None]:
        def make() -> None:
            self.n_made += 1

        return make

    def promise(self, config: Any) -> None:
        if self.taken >= self.first:
            raise UsageError("too late")
        self.promised = True

    def must_wait(self, block: Block) -> bool:
        return self.promised and block.id >= self.first


def waiting(changes: Changes, first: int) -> asyncio.Task[None]:
    return asyncio.create_task(changes.settled(toy_block(first, 1)))


async def test_what_depends_on_a_change_waits_until_that_is_decided() -> None:
    unit = Promising(10)
    changes = Changes(unit)
    await asyncio.wait_for(changes.settled(toy_block(12, 1)), 5)  # nothing was asked for
    assert await changes.prepare(1, CoreConfig(), CoreConfig(), {}) == ""
    await asyncio.wait_for(changes.settled(toy_block(9, 1)), 5)
    late = waiting(changes, 10)
    await asyncio.sleep(0)
    assert not late.done()
    changes.make(1, at_lumisection=False)
    await asyncio.wait_for(late, 5)
    assert unit.n_made == 0
    assert changes.before(toy_block(10, 1)) is not None, "the block that has waited is worked on behind the change"
    assert unit.n_made == 1
    await asyncio.wait_for(changes.settled(toy_block(10, 1)), 5)


async def test_a_change_that_is_forgotten_lets_everything_go_on() -> None:
    unit = Promising(10)
    changes = Changes(unit)
    assert await changes.prepare(1, CoreConfig(), CoreConfig(), {}) == ""
    late = waiting(changes, 11)
    await asyncio.sleep(0)
    changes.drop(7)
    await asyncio.sleep(0)
    assert not late.done(), "another one"
    changes.drop(1)
    await asyncio.wait_for(late, 5)
    assert unit.n_made == 0
    assert changes.before(toy_block(11, 1)) is None


async def test_what_is_ready_after_it_was_forgotten_holds_nothing_up() -> None:
    unit = Promising(10)
    changes = Changes(unit)
    late = asyncio.create_task(changes.prepare(1, CoreConfig(), CoreConfig(), {}))
    changes.drop(1)
    assert await late == "it was ready too late"
    await asyncio.wait_for(changes.settled(toy_block(12, 1)), 5)
    assert not unit.promised


async def test_a_change_that_cannot_be_kept_is_forgotten_by_all(tmp_path: Path) -> None:
    pipeline = Pipeline("toy", CoreConfig, (Made("source", ""), Made("sink", "")), "", "")
    supervisor = Supervisor(pipeline, CoreConfig())
    replica = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
    assert replica.stdout is not None
    child = Child("source", 0, replica, state="running")
    supervisor.children.append(child)
    supervisor._dir = tmp_path / "full"  # where nothing can be written
    try:
        changing = asyncio.create_task(supervisor.change("source", {"feed.rate": 5.0}))
        assert json.loads(await replica.stdout.readline())["prepare"] == 1
        supervisor._said_ready(child, 1, "")
        with pytest.raises(StreamerError, match=r"source: not changed, everything stays as it was \(FileNotFound"):
            await asyncio.wait_for(changing, 20)
        assert json.loads(await replica.stdout.readline()) == {"drop": 1}
        assert supervisor.config.feed.rate == 0.0
    finally:
        replica.kill()
        await replica.wait()


async def test_what_cannot_be_promised_is_refused() -> None:
    unit = Promising(10)
    unit.taken = 10
    changes = Changes(unit)
    assert await changes.prepare(1, CoreConfig(), CoreConfig(), {}) == "too late"
    await asyncio.wait_for(changes.settled(toy_block(12, 1)), 5)


async def test_changes_for_which_no_block_has_come_are_all_made() -> None:
    unit = Promising(10)
    changes = Changes(unit)
    for number in (1, 2):
        assert await changes.prepare(number, CoreConfig(), CoreConfig(), {}) == ""
        changes.make(number, at_lumisection=number == 2)
    assert changes.before(toy_block(9, 1)) is not None
    assert changes.last_made == 1
    assert unit.n_made == 1, "the other one at the next lumisection"
