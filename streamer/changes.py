"""Other settings while a run goes on: prepared beside the work, and put into force between two blocks.

The supervisor asks all replicas of a stage to get ready. When all are, it tells all to make the change; when one
refuses, all forget it, and everything stays as it was.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass

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

    config: CoreConfig
    apply: Callable[[], None]
    at_lumisection: bool = False
    lumi: list[list[int]] | None = None  # of the first block since it was to be made


class Changes:
    """Those of one process."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._prepared: dict[int, _Change] = {}
        self._next: _Change | None = None

    async def prepare(self, number: int, config: CoreConfig) -> str:
        """Get ready for a change; returns why not, or nothing."""
        try:
            self._prepared[number] = _Change(config, await in_own_thread(self._unit.prepare, config))
        except StreamerError as error:
            return str(error)
        except Exception as error:
            log.debug("traceback", exc_info=True)
            return one_line(error)
        return ""

    def drop(self, number: int) -> None:
        """Forget what was prepared."""
        self._prepared.pop(number, None)

    def make(self, number: int, *, at_lumisection: bool) -> None:
        """Make the change before the next block, or before the first one that begins with another lumisection."""
        if (change := self._prepared.pop(number, None)) is not None:
            change.at_lumisection = at_lumisection
            self._next = change

    def before(self, block: Block) -> CoreConfig | None:
        """Make the change that is to be made before this block; returns the configuration since then."""
        change = self._next
        if change is None:
            return None
        if change.at_lumisection:
            lumi = [part[:2] for part in lumis_of(block, slice(0, 1))]
            if change.lumi is None:
                change.lumi = lumi
            if lumi == change.lumi:
                return None
        change.apply()
        self._next = None
        log.info("other settings from event %d on", block.id)
        return change.config
