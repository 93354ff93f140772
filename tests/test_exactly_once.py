"""Every event exactly once: the true books, on a network and on disks that are made up and do what they like.

Blocks and commits are lost, come twice and overtake each other; readers and writers die at any moment, with whatever
was not on disk; a reader that is started again cuts other blocks. Then all goes well until the input is at its end.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from streamer.block import Block, Column, Schema
from streamer.keeping import Keeping, sink_has
from streamer.ledger import Intervals, Kept, Stripes, Window

SCHEMA = Schema([Column("event", "i8")])
"""Each event holds its own number."""
MAX_SINKS = 3
LONG_S = 1e4


def numbers(intervals: Iterable[tuple[int, int]]) -> set[int]:
    return {i for first, last in intervals for i in range(first, last + 1)}


def events(blocks: Iterable[Block]) -> list[int]:
    return [event for block in blocks for event in block.columns["event"].tolist()]


@dataclass
class File:
    """Blocks in the order in which they were written; the first `n_safe` are on disk."""

    blocks: list[Block] = field(default_factory=list)
    n_safe: int = 0

    @property
    def safe(self) -> list[Block]:
        return self.blocks[: self.n_safe]


class Sink:
    """A sink: its books, and files of which the last is being written."""

    def __init__(self, place: int, stripes: Stripes) -> None:
        self.place, self.stripes = place, stripes
        self.files = [File()]
        self.life = 0
        self.begin()

    def begin(self) -> None:
        """Begin a life with what is on disk."""
        local = self.stripes.to_local
        found = [(local(block.id), local(block.id + block.n_events - 1)) for file in self.files for block in file.safe]
        self.keeping = Keeping(self.stripes, SCHEMA, found)
        self.life += 1
        self.syncing: list[int] | None = None  # how much of each file a sync that is under way brings to disk

    def crash(self, n_lucky: int) -> None:
        """Lose what is not on disk, but for some blocks that came there unasked, and begin anew."""
        for file in self.files:
            del file.blocks[file.n_safe + n_lucky :]
            file.n_safe = len(file.blocks)
        self.begin()

    def take(self, block: Block) -> None:
        self.files[-1].blocks += self.keeping.take(block)

    def begin_sync(self, rotate: bool) -> None:
        """Begin a sync, and with `rotate` another file for what comes during it."""
        self.keeping.begin_sync()
        self.due = set(self.written)
        self.syncing = [len(file.blocks) for file in self.files]
        if rotate and self.files[-1].blocks:
            self.files.append(File())

    def end_sync(self) -> Intervals:
        """Returns what is committed. Files that are written no more are finished, with what is on disk of them."""
        assert self.syncing is not None
        for file, n in zip(self.files, self.syncing, strict=False):
            file.n_safe = n
        for file in self.files[:-1]:
            del file.blocks[file.n_safe :]
        self.syncing = None
        done = self.keeping.end_sync()
        assert self.due <= self.on_disk
        return list(done)

    def fail_sync(self, retry: bool) -> None:
        """The disk has not taken it; it is tried again at once, with what has come since, or later."""
        assert self.syncing is not None
        self.syncing = [len(file.blocks) for file in self.files[: len(self.syncing)]] if retry else None

    @property
    def busy(self) -> bool:
        return self.syncing is not None or any(file.n_safe < len(file.blocks) for file in self.files)

    @property
    def written(self) -> list[int]:
        return events(block for file in self.files for block in file.blocks)

    @property
    def on_disk(self) -> set[int]:
        """The events that are on disk by the books ..."""
        return {self.stripes.to_global(number, self.place) for number in numbers(self.keeping.on_disk)}

    @property
    def safe(self) -> set[int]:
        """... and in truth."""
        return set(events(block for file in self.files for block in file.safe))


class Reader:
    """A source's books, and how far it has come.

    Parameters
    ----------
    input : list of (int, int)
        The numbers of the events that can be read.
    block_events : int
    """

    def __init__(self, life: int, input: Intervals, block_events: int, stripes: Stripes, window: Window) -> None:
        self.life, self.input, self.block_events = life, input, block_events
        self.stripes, self.window, self.kept = stripes, window, Kept(stripes)
        self.heard: dict[int, int] = {}  # the life in which each sink has told what it has
        self.next = 0
        self.fed: set[int] = set()

    def hear(self, sink: int, life: int, intervals: Intervals, now: float) -> None:
        """A sink tells what it has."""
        before = self.heard.get(sink)
        if before != life:
            self.heard[sink] = life
            sink_has(self.window, self.kept, sink, intervals, before is not None, now)

    @property
    def begun(self) -> bool:
        """Whether every sink has told what it has."""
        return len(self.heard) == self.stripes.n

    def left(self) -> tuple[int, int]:
        """The next events that are not on disk, up to a gap; `last < first` when there are none."""
        pieces = (piece for first, last in self.input for piece in self.kept.missing(max(first, self.next), last))
        return next(pieces, (0, -1))

    def feed(self, now: float) -> Block | None:
        """The next block, when there is one and room for it."""
        first, last = self.left()
        n = min(self.block_events, last - first + 1, self.stripes.room(first))
        if not self.begun or n < 1 or self.window.full(n):
            return None
        block = Block(first, n, {"event": np.arange(first, first + n)})
        self.window.add(block, now)
        self.next = first + n
        self.fed |= set(range(first, first + n))
        return block


@dataclass
class Commit:
    intervals: Intervals


@dataclass
class Have:
    """What a sink tells of its own events to a reader's life."""

    to: int
    sink: int
    life: int
    intervals: Intervals


places = st.integers(0, MAX_SINKS - 1)
"""A sink, modulo how many there are."""
picks = st.integers(-1, 8)
"""A message that is under way, modulo how many there are; -1 is the newest."""
fates = st.sampled_from(["arrives", "arrives", "arrives", "comes again", "is lost"])
sizes = st.integers(1, 6)


class ExactlyOnce(RuleBasedStateMachine):
    """A reader, its sinks, the messages between them, and a clock.

    Few rules, because Hypothesis leaves some out in each example, and without one of these a stream does not get on.
    """

    @initialize(
        n_sinks=st.integers(1, MAX_SINKS),
        width=sizes,
        runs=st.lists(st.tuples(st.integers(4, 16), st.integers(1, 3)), min_size=1, max_size=3),
        max_events=st.integers(1, 16),
        redeliver_after=st.sampled_from([0.5, 4.0, 1000.0]),
        block_events=sizes,
    )
    def begin(
        self,
        n_sinks: int,
        width: int,
        runs: list[tuple[int, int]],
        max_events: int,
        redeliver_after: float,
        block_events: int,
    ) -> None:
        """The input is runs of events that can be read and of some that cannot."""
        self.input: Intervals = []
        first = 0
        for n_good, n_bad in runs:
            self.input.append((first, first + n_good - 1))
            first += n_good + n_bad
        self.stripes = Stripes(n_sinks, width)
        self.max_events, self.redeliver_after = max_events, redeliver_after
        self.now = 0.0
        self.messages: list[Block | Commit | Have] = []
        self.acknowledged: set[int] = set()
        self.sinks = [Sink(place, self.stripes) for place in range(n_sinks)]
        self.lives = count()
        self.begin_reader(block_events, at_once=True)

    def begin_reader(self, block_events: int, at_once: bool) -> None:
        """It feeds nothing before every sink has told what it has; they tell at once, or some time."""
        window = Window(self.max_events, self.redeliver_after)
        self.reader = Reader(next(self.lives), self.input, block_events, self.stripes, window)
        for sink in self.sinks if at_once else ():
            self.tell(sink)
            self.arrive(self.messages.pop())

    def tell(self, sink: Sink) -> None:
        self.acknowledged |= sink.on_disk
        self.messages.append(Have(self.reader.life, sink.place, sink.life, list(sink.keeping.on_disk)))

    def send(self, block: Block) -> None:
        self.messages.append(replace(block))  # the one in the window counts its attempts

    def arrive(self, message: Block | Commit | Have) -> None:
        if isinstance(message, Block):
            self.sinks[self.stripes.owner(message.id)].take(message)
        elif isinstance(message, Commit):
            self.reader.window.commit(message.intervals, self.now)
        elif message.to == self.reader.life:
            self.reader.hear(message.sink, message.life, message.intervals, self.now)

    @precondition(lambda self: self.reader.left()[1] >= 0 and self.reader.begun and not self.reader.window.full(1))
    @rule(n_blocks=st.integers(1, 4))
    def feed(self, n_blocks: int) -> None:
        for _ in range(n_blocks):
            if block := self.reader.feed(self.now):
                self.send(block)

    @precondition(lambda self: self.messages)
    @rule(mail=st.lists(st.tuples(picks, fates), min_size=1, max_size=6))
    def deliver(self, mail: list[tuple[int, str]]) -> None:
        """Messages arrive, and may come another time; or are lost."""
        for pick, fate in mail:
            if self.messages:
                pick %= len(self.messages)
                message = self.messages[pick] if fate == "comes again" else self.messages.pop(pick)
                if fate != "is lost":
                    self.arrive(message)

    @precondition(lambda self: any(sink.busy for sink in self.sinks))
    @rule(place=places, rotate=st.booleans(), end=st.sampled_from(["well", "well", "well", "to retry", "badly"]))
    def sync(self, place: int, rotate: bool, end: str) -> None:
        """A sync begins, or the one that is under way ends."""
        sink = self.sinks[place % len(self.sinks)]
        if sink.syncing is None:
            sink.begin_sync(rotate)
        elif end == "well":
            done = sink.end_sync()
            self.acknowledged |= numbers(done)
            self.messages.append(Commit(done))
        else:
            sink.fail_sync(retry=end == "to retry")

    @rule(seconds=st.sampled_from([0.1, 1.0, 10.0, LONG_S]))
    def wait(self, seconds: float) -> None:
        """Blocks become overdue and are sent again, and sinks that were not heard tell what they have."""
        self.now += seconds
        for block in self.reader.window.overdue(self.now):
            self.send(block)
        for sink in self.sinks:
            if self.reader.heard.get(sink.place) != sink.life:
                self.tell(sink)

    @precondition(lambda self: self.reader.fed)
    @rule(
        what=st.sampled_from(["reader", "reader", "sink", "sink", "machine"]),
        place=places,
        n_lucky=st.integers(0, 2),
        block_events=sizes,
        at_once=st.booleans(),
    )
    def crash(self, what: str, place: int, n_lucky: int, block_events: int, at_once: bool) -> None:
        """A process dies, or the power is cut, and what died begins anew."""
        if what == "sink":
            self.sinks[place % len(self.sinks)].crash(n_lucky)
        if what == "machine":
            self.messages.clear()
            for sink in self.sinks:
                sink.crash(n_lucky)
        if what != "sink":
            self.begin_reader(block_events, at_once)

    @invariant()
    def no_book_promises_what_is_not_so(self) -> None:
        on_disk = set[int]()
        for sink in self.sinks:
            written, safe = sink.written, sink.safe
            assert len(written) == len(set(written)), "an event was written twice"
            assert all(self.stripes.owner(number) == sink.place for number in written)
            assert sink.on_disk <= safe
            on_disk |= safe
        assert self.acknowledged <= on_disk
        window = self.reader.window
        assert len(self.reader.fed - on_disk) <= window.events, "the window has forgotten what is not on disk"
        assert window.events <= max(self.max_events, self.reader.block_events)

    def teardown(self) -> None:
        """From here on nothing is lost any more."""
        everything = numbers(self.input)
        for _ in range(len(everything) + 2):
            self.go_well()
            if self.reader.left()[1] < 0 and not len(self.reader.window):
                break
        assert len(self.reader.window) == self.reader.window.events == 0
        assert sorted(number for sink in self.sinks for number in sink.written) == sorted(everything)
        assert set().union(*(sink.safe for sink in self.sinks)) == everything

    def go_well(self) -> None:
        self.wait(LONG_S)
        self.deliver_all()
        while block := self.reader.feed(self.now):
            self.send(block)
        self.deliver_all()
        for place, sink in enumerate(self.sinks):
            for _ in range(2 if sink.syncing is None else 3):
                self.sync(place, False, "well")
        self.deliver_all()

    def deliver_all(self) -> None:
        while self.messages:
            self.arrive(self.messages.pop(0))


TestExactlyOnce = ExactlyOnce.TestCase
TestExactlyOnce.settings = settings(
    max_examples=200, stateful_step_count=80, phases=[Phase.generate, Phase.shrink], report_multiple_bugs=False
)
