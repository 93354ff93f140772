"""What a stage is: a class that is handed arrays and returns arrays.

A stage sees no socket, signal or clock, and few metrics; the runner owns those. There are four roles:

=============  ==========================================  =====================================
role           methods                                     example
=============  ==========================================  =====================================
`Source`       read() -> steps of events                   reader
`Stage`        process(block) -> block                     framer, cropper
`BatchStage`   items, infer(parts) -> results, finish      tagger: batches span blocks
`Sink`         write(block), sync(), finish()              writer: says what is safely on disk
=============  ==========================================  =====================================

All have `setup()` (may raise `UsageError`; "ready" means it has succeeded) and `close()`.
"""

import threading
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar

from prometheus_client import CollectorRegistry

from streamer.batcher import Part
from streamer.block import Array, Block, Columns, Schema
from streamer.costs import Costs
from streamer.errors import UsageError

NO_COLUMNS = Schema(())

LATE = "too late: its deadline passed, or would have, before it was scored"
"""Why an item has no result that was given up for its deadline; its event is shed, and has not failed."""


class Unit:
    """What all roles share.

    Attributes
    ----------
    inputs, outputs : Schema
        The columns of the hop before and behind this stage.
    tallies : dict
        Own counters: name to the reasons that can be counted. Each becomes a metric.
    limits : mapping of str to float
        Bounds of what it holds, known after `setup`; published as `streamer_limit`. Asked of sources.
    mark : int
        The value of the column `error` for an event that this stage cannot process; `streamer.block.SHED` more for one
        that it sheds.
    replica, n_replicas : int
        Which process of this stage it is, and how many there are.
    run_id : str
        Names the run; a process that is started again finds the same.
    registry : CollectorRegistry
        For metrics of its own that are no tallies; to be made in `setup`.

    The last five are set by the runner.
    """

    mark = 0
    replica, n_replicas = 0, 1
    run_id = ""

    inputs: Schema = NO_COLUMNS
    outputs: Schema = NO_COLUMNS
    tallies: ClassVar[dict[str, tuple[str, ...]]] = {}
    limits: Mapping[str, float] = {}

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._tally: Counter[tuple[str, str]] = Counter()
        self._tally_lock = threading.Lock()  # a source counts in its reading thread

    def setup(self) -> None:
        """Open, load and warm up whatever is needed. Runs in the worker thread."""

    def close(self) -> None:
        """Let go of what `setup` took."""

    def prepare(self, now: Any, wanted: Any, rehearsed: Mapping[str, Any]) -> Callable[[], None]:
        """Get ready for another configuration while the stage works; returns what puts it into force, between blocks.

        Runs in a thread of its own; what it returns is called in the loop.

        Parameters
        ----------
        now : Config
            What is in force before it. Changes that are decided wait for their place in the stream, so it may be ahead
            of what the stage has.
        rehearsed : mapping
            What the stage's rehearsal found (`streamer.pipeline.StageSpec`); empty where there was none.

        Raises
        ------
        UsageError
            It is wrong, or cannot be changed while a run goes on.
        """
        raise UsageError("none of these settings can be changed while a run goes on")

    def promise(self, config: Any) -> None:
        """Called in the loop when `prepare` is done: until it is made or forgotten, the change must stay possible.

        Raises
        ------
        UsageError
            It comes too late.
        """

    def must_wait(self, block: Block) -> bool:
        """Whether work on a block must wait until it is known if all replicas make the change that was promised."""
        return False

    def about(self) -> dict[str, Any]:
        """Facts for the start-up log and the final report, such as the provider in use."""
        return {}

    def count(self, name: str, reason: str, n: int) -> None:
        """Add to one of the declared `tallies`."""
        if n:
            with self._tally_lock:
                self._tally[name, reason] += n

    def take_tally(self) -> dict[tuple[str, str], int]:
        """What was counted since the last call."""
        if not self._tally:  # nearly always
            return {}
        with self._tally_lock:
            tally, self._tally = self._tally, Counter()
        return tally


Missing = Callable[[int, int], list[tuple[int, int]]]


def everything(first: int, last: int) -> list[tuple[int, int]]:
    """What is missing where nothing is on disk."""
    return [(first, last)] if first <= last else []


class Source(Unit, ABC):
    """The first stage."""

    @abstractmethod
    def read(self, missing: Missing = everything) -> Iterator[Columns]:
        """Steps of events with all columns of `outputs` but the core's own, and with the column `sequence`.

        Runs in a thread that reads ahead. `sequence` (int64, rising) is the number of each event, from 0: its place in
        the whole input, such that a later run finds the same number for the same event. An event that cannot be read
        is reported, counted and left out, and so is its number. Of several replicas each gives a share of the events.
        With `feed.arrivals = "recorded"` there is also `recorded` (int64, not falling): when each was recorded [ns].

        Parameters
        ----------
        missing : callable
            Which of the events `first` to `last` are not on disk yet; the others need not be given.
        """

    def identity(self) -> list[Any]:
        """What tells whether the input is still the same: `[name, n_events]` of each of its parts."""
        return []


class Stage(Unit, ABC):
    """A stage in the middle."""

    @abstractmethod
    def process(self, block: Block) -> Block:
        """The same events with the columns of `outputs`. Runs in the worker thread, or in the loop when it is quick;
        never twice at a time.

        When it raises, the runner tries the block's events one by one and marks those that fail.
        """


class BatchStage(Unit, ABC):
    """A stage whose work is done in batches of items that span blocks.

    Attributes
    ----------
    queues : dict of str to int
        What is batched apart (one network's items each), and the most items in a batch; known after `setup`. A change
        (`prepare`) may replace them; metrics call a queue by what stands before a `#`.
    max_wait : float
        A batch is closed when its oldest item has waited so long [s].
    costs : mapping of str to Costs
        What the batches of a queue cost, known after `setup`; they are then formed as soon as the device is free, and
        under deadlines (`streamer.batcher.DeadlineBatcher`). Queues without have `max_wait`.
    priorities : mapping of str to int
        Of queues with costs, where not all items can be in time; 0 where nothing is said, higher ones first.
    at_once : bool
        Whether quick batches may be worked on by the thread that brings the items, too.
    way_s : float
        How long events usually take from here to the last stage [s]; set by the runner where there is a deadline.
    """

    queues: dict[str, int]
    max_wait: float
    costs: Mapping[str, Costs] = {}
    priorities: Mapping[str, int] = {}
    at_once = True
    way_s = 0.0

    def deadlines(self, queue: str, block: Block) -> Array | None:
        """When each item is worth nothing any more [ns since 1970], not falling; None: never."""
        return None

    def events(self, queue: str, block: Block) -> Array | None:
        """The event of each item, by its place in the block; None: that is not known."""
        return None

    def forget(self, queue: str) -> None:
        """The last item of a queue that was replaced is done.

        Not called for one that was added and replaced again before `items` was asked.
        """

    def padded(self, queue: str, n: int) -> int:
        """The size that a batch of `n` items is run at."""
        return n

    def transferred(self, queue: str, n: int) -> tuple[int, int]:
        """Bytes that a batch of `n` items moves to the device, and from it, padding included."""
        return 0, 0

    @abstractmethod
    def items(self, block: Block) -> dict[str, int]:
        """How many items the block brings to each queue."""

    @abstractmethod
    def infer(self, queue: str, parts: list[Part[Block]]) -> Array:
        """One result per item: same length, same order. Never runs twice at a time; `finish` may run meanwhile.

        Parameters
        ----------
        queue : str
        parts : list of Part
            Ranges of items, each of one block; at most as many as a batch of the queue takes.
        """

    @abstractmethod
    def finish(self, block: Block, results: dict[str, Array], why: Mapping[str, Mapping[int, str]]) -> Block:
        """The block with its results, one per item of each queue.

        Parameters
        ----------
        results : dict of str to array
        why : mapping
            By queue, the items whose inference raised, and what it said; their events are to be marked
            (`streamer.block.with_failures`). `LATE` is said of those that were given up for their deadlines; their
            events are shed (`streamer.deadline.with_shed`).
        """

    @abstractmethod
    def failed(self, n_items: int) -> Array:
        """Results that `finish` takes for items whose inference raised."""


class Sink(Unit, ABC):
    """The last stage."""

    commit_interval: float
    commit_events: int

    def kept(self) -> Iterable[tuple[int, int]]:
        """What is on disk from an earlier life, as intervals of this sink's own events; known after `setup`."""
        return ()

    @abstractmethod
    def write(self, block: Block) -> None:
        """Take a block. It need not be on disk before `sync` returns."""

    def glimpse(self, block: Block) -> dict[str, Any] | None:
        """One event of a block for people to look at, as plain data with its sequence `number`."""
        return None

    def failures(self) -> list[dict[str, Any]]:
        """The last events that failed since the last call, for people to look at: plain data, with the command that
        tries one `again`."""
        return []

    @abstractmethod
    async def sync(self) -> None:
        """Bring everything that was written to disk."""

    @abstractmethod
    async def finish(self) -> None:
        """The stream is over and complete: close the output."""

    @abstractmethod
    async def abandon(self) -> None:
        """The stream broke off: keep what is committed for later."""
