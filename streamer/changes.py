"""Other settings while a run goes on: prepared beside the work, and put into force between two blocks.

The supervisor lets a process of its own try what is expensive or dangerous about a change (`streamer.rehearsing`), and
then asks the replicas of the stage, one after the other, to get ready. When all are, it tells all to make the change;
when one refuses, all forget it, and everything stays as it was. What must not be worked on in between, as it may depend
on the change, waits (`streamer.stage.Unit.must_wait`): so all replicas of a sink make it at the same place of the
stream.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from streamer.background import in_own_thread
from streamer.block import Block
from streamer.config import CoreConfig
from streamer.errors import StreamerError, one_line
from streamer.fedbook import lumis_of
from streamer.stage import Unit

log = logging.getLogger(__name__)


@dataclass
class _Change:
    """The configuration then, and what puts it into force."""

    number: int
    config: CoreConfig
    apply: Callable[[], None]
    at_lumisection: bool = False
    lumi: list[list[int]] | None = None  # of the first block since it was to be made


class Changes:
    """Those of one process.

    Attributes
    ----------
    last_made : int
        The number of the last one that was made.
    coming : CoreConfig or None
        The configuration when all is made that is decided; None: nothing waits to be made.
    """

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._prepared: dict[int, _Change] = {}
        self.last_made = self._last_dropped = 0
        self._next: deque[_Change] = deque()  # to be made, in this order
        self._decided = asyncio.Event()

    @property
    def coming(self) -> CoreConfig | None:
        return self._next[-1].config if self._next else None

    async def prepare(self, number: int, now: CoreConfig, wanted: CoreConfig, rehearsed: Mapping[str, Any]) -> str:
        """Get ready for a change, of which a rehearsal has found so much; returns why not, or nothing.

        Parameters
        ----------
        now : CoreConfig
            What is in force before it: the one that is `coming`, if any.
        """
        try:
            change = _Change(number, wanted, await in_own_thread(self._unit.prepare, now, wanted, rehearsed))
            if number <= self._last_dropped:  # nobody would decide about it any more
                return "it was ready too late"
            self._unit.promise(wanted)
            self._prepared[number] = change
        except StreamerError as error:
            return str(error)
        except Exception as error:
            log.debug("traceback", exc_info=True)
            return one_line(error)
        return ""

    def drop(self, number: int) -> None:
        """Forget what was prepared, or still is; numbers rise."""
        self._last_dropped = max(self._last_dropped, number)
        if self._prepared.pop(number, None) is not None:
            self._decided.set()

    def make(self, number: int, *, at_lumisection: bool) -> None:
        """Make the change before the next block, or before the first one that begins with another lumisection."""
        if (change := self._prepared.pop(number, None)) is not None:
            change.at_lumisection = at_lumisection
            self._next.append(change)
            self._decided.set()

    async def settled(self, block: Block) -> None:
        """Wait until it is known whether a change is made that this block must wait for."""
        while self._prepared and self._unit.must_wait(block):
            self._decided.clear()
            await self._decided.wait()

    def before(self, block: Block) -> CoreConfig | None:
        """Make the changes that are to be made before this block; returns the configuration since then."""
        config = None
        while self._next and self._is_time(self._next[0], block):
            change = self._next[0]
            change.apply()
            self._next.popleft()
            config, self.last_made = change.config, change.number
            log.info("a change is made before event %d", block.id, extra={"event": block.id})
        return config

    @staticmethod
    def _is_time(change: _Change, block: Block) -> bool:
        if not change.at_lumisection:
            return True
        lumi = [part[:2] for part in lumis_of(block, slice(0, 1))]
        if change.lumi is None:
            change.lumi = lumi
        return lumi != change.lumi
