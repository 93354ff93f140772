"""Traces: the way of some events through the chain, for OpenTelemetry.

Nothing of a trace travels with a block. Which events are traced follows from their sequence numbers, and so do the ids
of their traces and spans; every process finds the same and sends its own part. A trace is of one event in one run::

    event                    due to leave the reader ... on disk; sent by the writer
      reader                 fill (until the block was full), wait (for room)
      framer, cropper        wait (since the stage before was done), work
      tagger                 wait (until the first batch began), work (until the last one was done)
      writer                 wait, work, sync (until it was on disk)

An event that is sent again has another span at each stage that it passes again. A batch holds events of many traces: it
is a trace of its own, whose span is linked with the tagger's spans of the traced events in it, and they with it.

What is here is cheap and in the way of the stream; `streamer.spans` makes spans of it elsewhere.
"""

import random
import time
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from streamer import logs
from streamer.batcher import Batch
from streamer.block import ERROR, FED_TIME, SHED, Block, failures, has_failed
from streamer.deadline import taken
from streamer.errors import UsageError
from streamer.fedbook import lumis_of
from streamer.stage import BatchStage

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from streamer.config import CoreConfig
    from streamer.runner import Run

ROOT = "event"
_MASK = (1 << 64) - 1
_MIX = 0x9E3779B97F4A7C15, 0xD6E8FEB86659FD93  # odd: each step can be undone, so no two events share an id
_HALF = 32
_PAGE, _MOST_PAGES = 4096, 64


class Sampling:
    """Which events are traced.

    The upper half of a trace's id is that of the run, the lower one a permutation of the event's number. An event is
    traced where the lower half is below the share's part of all numbers, as samplers of OpenTelemetry decide, too.

    Parameters
    ----------
    run : str
        The run's id, 16 hexadecimal digits.
    share : float
        0 to 1.
    """

    def __init__(self, run: str, share: float) -> None:
        self._run, self._bound = int(run, 16) << 64, round(share * (1 << 64))
        self._page = lru_cache(_MOST_PAGES)(self._drawn)

    def trace_id(self, event: int) -> int:
        """128 bits."""
        return self._run | _mixed(event)

    def of(self, first: int, n: int) -> list[int]:
        """Those of `n` events from `first` on that are traced."""
        end = first + n
        found = self._page(first // _PAGE)
        found = found[bisect_left(found, first) : bisect_left(found, end)]
        for page in range(first // _PAGE + 1, (end - 1) // _PAGE + 1):
            more = self._page(page)
            found = found + more[: bisect_left(more, end)]
        return found

    def _drawn(self, page: int) -> list[int]:
        """Those of `_PAGE` events: a block has few of them, and NumPy takes longest to begin."""
        first = page * _PAGE
        if self._bound > _MASK:
            return list(range(first, first + _PAGE))
        low = np.arange(first, first + _PAGE, dtype=np.uint64)
        for factor in _MIX:
            low *= np.uint64(factor)
            low ^= low >> np.uint64(_HALF)
        return (first + np.flatnonzero(low < np.uint64(self._bound))).tolist()


def _mixed(event: int) -> int:
    for factor in _MIX:
        event = event * factor & _MASK
        event ^= event >> _HALF
    return event


def span_id(trace_id: int, name: str, attempt: int = 1) -> int:
    """The id of a span (64 bits), which other processes find, too."""
    return int.from_bytes(blake2b(f"{trace_id:x} {name} {attempt}".encode(), digest_size=8).digest()) or 1


class Part(NamedTuple):
    """A part of the time at a stage [Unix ns]."""

    name: str
    begin: int
    end: int


class Link(NamedTuple):
    """A span elsewhere."""

    trace_id: int
    span_id: int


@dataclass(slots=True)
class Told:
    """A span to be sent, with its parts as spans in it; times in Unix ns.

    Attributes
    ----------
    parent : int
        The id of the span around it; 0: none.
    error : str
        Why it failed, if so.
    """

    name: str
    trace_id: int
    span_id: int
    parent: int
    begin: int
    end: int
    parts: tuple[Part, ...] = ()
    links: tuple[Link, ...] = ()
    error: str = ""
    about: dict[str, Any] = field(default_factory=dict)


class Sends(Protocol):
    """Takes spans, or drops and counts them; never waits."""

    def put(self, told: Told) -> None: ...

    def close(self) -> None: ...


class Tracer:
    """What one process notes of the events that are traced.

    Parameters
    ----------
    stage : str
    mark : int
        The stage's value of the column `error`.
    """

    def __init__(self, sampling: Sampling, stage: str, mark: int, sends: Sends) -> None:
        self._sampling, self._stage, self._mark, self._sends = sampling, stage, mark, sends
        self._batches: dict[int, list[tuple[Part, Link]]] = {}  # of events that are in the tagger

    def close(self) -> None:
        """Send what is left; does not wait for long."""
        self._sends.close()

    def fed(self, block: Block) -> None:
        """A block has left the reader."""
        sent, due = block.stamps[self._stage], block.columns[FED_TIME.name]
        for event in self._of(block):
            first, last = int(due[event - block.id]), int(due[-1])
            if block.attempt > 1:
                self._tell(block, event, begin=(now := time.time_ns()), end=now)
            else:
                self._tell(block, event, first, sent, (Part("fill", first, last), Part("wait", last, sent)))

    def dropped(self, block: Block, reason: str) -> None:
        """A block was not fed: the chain could not take it."""
        due, now = block.columns[FED_TIME.name], time.time_ns()
        for event in self._of(block):
            about = {"streamer.outcome": "dropped", "streamer.dropped": reason}
            self._tell_event(block, event, int(due[event - block.id]), now, f"dropped: {reason}", about)

    def passed(self, block: Block, seconds: float) -> None:
        """A block has left a stage, which has worked on it so long."""
        for event in self._of(block):
            since, done = self._sent(block), block.stamps[self._stage]
            begun = max(since, done - int(seconds * 1e9))
            self._tell(block, event, since, done, (Part("wait", since, begun), Part("work", begun, done)))

    def batch(self, stage: BatchStage, queue: str, name: str, batch: "Batch[Any]", seconds: float) -> None:
        """A batch was worked on so long, just now. Its keys have the attribute `block`."""
        events = [event for part in batch.parts for event in self._in_batch(stage, queue, part)]
        if not events:
            return
        end = time.time_ns()
        worked = Part("work", end - int(seconds * 1e9), end)
        me = Link(random.getrandbits(128) or 1, random.getrandbits(64) or 1)
        traces = [(self._sampling.trace_id(event), attempt) for event, attempt in events]
        links = tuple(Link(trace, span_id(trace, self._stage, attempt)) for trace, attempt in traces)
        about = {
            "streamer.queue": name,
            "streamer.batch.size": batch.size,
            "streamer.batch.padded_size": stage.padded(queue, batch.size),
            "streamer.batch.closed": batch.reason,
        }
        self._sends.put(Told(f"batch {name}", *me, 0, worked.begin, worked.end, (), links, "", about))
        for event, _ in events:
            self._batches.setdefault(event, []).append((worked, me))

    def _in_batch(self, stage: BatchStage, queue: str, part: Any) -> list[tuple[int, int]]:
        """Traced events that have items in a part of a batch, and at which attempt."""
        block: Block = part.key.block
        traced = self._of(block)
        if not traced:
            return []
        places = stage.events(queue, block)
        if places is not None:
            there = set(places[part.start : part.stop].tolist())
            traced = [event for event in traced if event - block.id in there]
        return [(event, block.attempt) for event in traced]

    def batched(self, block: Block) -> None:
        """A block has left a stage that works in batches."""
        for event in self._of(block):
            since, done = self._sent(block), block.stamps[self._stage]
            batches = self._batches.pop(event, [])
            begun = max(since, min((part.begin for part, _ in batches), default=done))
            ended = max(begun, max((part.end for part, _ in batches), default=done))
            parts = Part("wait", since, begun), *((Part("work", begun, ended),) if batches else ())
            self._tell(block, event, since, done, parts, tuple(link for _, link in batches))

    def written(self, block: Block, seconds: float) -> list[tuple[Told, Told]]:
        """A block was written just now, in so many seconds; returns what is to be `committed`."""
        now, since, due = time.time_ns(), self._sent(block), block.columns[FED_TIME.name]
        begun = max(since, now - int(seconds * 1e9))
        found = []
        for event in self._of(block):
            code = int(block.columns[ERROR.name][event - block.id])
            why = failures(block.columns)[event - block.id].partition("\n")[0] if has_failed(np.array(code)) else ""
            about = {"streamer.outcome": "ok" if not code else "shed" if code >= SHED else "error"}
            parts = Part("wait", since, begun), Part("work", begun, now)
            stage = self._told(block, event, since, now, parts)
            found.append((stage, self._event(block, event, int(due[event - block.id]), now, why, about)))
        return found

    def committed(self, written: "Sequence[tuple[Told, Told]]") -> None:
        """What was written is on disk."""
        now = time.time_ns()
        for stage, event in written:
            stage.parts = *stage.parts, Part("sync", stage.end, now)
            stage.end = event.end = now
            self._sends.put(stage)
            self._sends.put(event)

    # ---- spans

    def _of(self, block: Block) -> list[int]:
        return self._sampling.of(block.id, block.n_events)

    def _sent(self, block: Block) -> int:
        """When the stage before was done with a block."""
        ours = "arrived", self._stage, taken(self._stage)
        return max((at for name, at in block.stamps.items() if name not in ours), default=0)

    def _told(
        self,
        block: Block,
        event: int,
        begin: int,
        end: int,
        parts: tuple[Part, ...] = (),
        links: tuple[Link, ...] = (),
    ) -> Told:
        trace = self._sampling.trace_id(event)
        code = int(block.columns[ERROR.name][event - block.id])
        error = "it could not be processed here" if code == self._mark else ""
        about: dict[str, Any] = {"streamer.event.sequence": event}  # more is in the span around it
        if block.attempt > 1:
            about["streamer.attempt"] = block.attempt
        if code == SHED + self._mark:
            about["streamer.outcome"] = "shed"
        me = span_id(trace, self._stage, block.attempt)
        return Told(self._stage, trace, me, span_id(trace, ROOT), begin, end, parts, links, error, about)

    def _tell(self, *args: Any, **options: Any) -> None:
        self._sends.put(self._told(*args, **options))

    def _event(self, block: Block, event: int, due: int, end: int, error: str, about: dict[str, Any]) -> Told:
        place, trace = event - block.id, self._sampling.trace_id(event)
        lumis = lumis_of(block, slice(place, place + 1))
        run, lumi = lumis[0][:2] if lumis else (None, None)
        number = block.columns.get("event")
        known = {
            "streamer.event.run": run,
            "streamer.event.lumisection": lumi,
            "streamer.event.number": None if number is None else int(number[place]),
        }
        where = {
            "streamer.event.sequence": event,
            "streamer.block": block.id,
            "streamer.block.events": block.n_events,
            "streamer.attempt": block.attempt,
        }
        about = {**where, **{key: value for key, value in known.items() if value is not None}, **about}
        return Told(ROOT, trace, span_id(trace, ROOT), 0, due, end, (), (), error, about)

    def _tell_event(self, *args: Any) -> None:
        self._sends.put(self._event(*args))


def require(config: "CoreConfig") -> None:
    """See that what traces need is there, where some are wanted.

    Raises
    ------
    UsageError
        OpenTelemetry is not installed.
    """
    if config.trace.share:
        try:
            found = find_spec("opentelemetry.exporter.otlp.proto.http"), find_spec("opentelemetry.sdk")
        except ModuleNotFoundError:
            found = None, None
        if None in found:
            raise UsageError(
                f"trace.share = {config.trace.share:g}: OpenTelemetry is not installed; "
                "pip install 'e2e-streamer[trace]'"
            )


def tracer_of(
    config: "CoreConfig", run: "Run", stage: str, replica: int, mark: int, registry: "CollectorRegistry"
) -> Tracer | None:
    """The tracer of a process; None where nothing is to be traced.

    Raises
    ------
    UsageError
        OpenTelemetry is not installed.
    """
    if not config.trace.share:
        return None
    require(config)
    from streamer.spans import Exporting  # which loads OpenTelemetry

    sends = Exporting(config.trace.endpoint, run.id, stage, replica, registry)
    sampling = Sampling(run.id, config.trace.share)
    logs.name_traces(sampling)
    return Tracer(sampling, stage, mark, sends)
