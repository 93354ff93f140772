"""The source's book: which events were fed, by lumisection, kept apart from what the sinks keep, so that the two can be
held against each other.

A `Log`. Each record is a msgpack list `[first, last, [[run, lumisection, n_events], ...]]` of events that were fed for
the first time, written before they are sent; one with a fourth entry is of events that the chain could not take, and
tells why. A record `[ns]` says how much of its time the feed has had, where that is limited; it is written each second.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import numpy as np

from streamer.block import LUMISECTION, Array, Block
from streamer.errors import StreamerError, UsageError
from streamer.ledger import IdSet
from streamer.recordlog import Log, read_about, read_record, scan

FORMAT = "streamer book of fed events 1"

Lumi = tuple[int, int]
"""Run and lumisection."""
FEED_RUN = 1
"""The run of lumisections that the feed counts: events of one may be of many runs of the input."""


class Fed:
    """What was fed.

    Attributes
    ----------
    ids : IdSet
        Sequence numbers, also of what was dropped.
    lumis : Counter
        Events by run and lumisection; likewise.
    dropped : IdSet
        Of these, what the chain could not take.
    dropped_lumis : Counter
        By run and lumisection.
    reasons : Counter
        Events that were dropped, by reason.
    passed : int
        How much of its time the feed has had [ns]; 0 where that is not limited.
    """

    def __init__(self) -> None:
        self.ids = IdSet()
        self.lumis: Counter[Lumi] = Counter()
        self.dropped = IdSet()
        self.dropped_lumis: Counter[Lumi] = Counter()
        self.reasons: Counter[str] = Counter()
        self.passed = 0

    def take(self, record: Any) -> None:
        """Add a record of a book."""
        if len(record) == 1:
            (self.passed,) = record
            return
        first, last, lumis, *reason = record
        is_new = self.ids.add(first, last) > 0  # else it was dropped after it had been fed, as once could be
        for run, lumi, n in lumis:
            self.lumis[run, lumi] += n * is_new
        if reason:
            self.reasons[reason[0]] += self.dropped.add(first, last)
            for run, lumi, n in lumis:
                self.dropped_lumis[run, lumi] += n


def read(path: Path) -> Fed:
    """A book as it stands.

    Raises
    ------
    UsageError
        It is none.
    """
    fed = Fed()
    for record in _records(path):
        fed.take(record)
    return fed


def _records(path: Path) -> Iterator[Any]:
    if not path.stat().st_size:  # just made
        return
    read_about(path, FORMAT)
    places, _ = scan(path, b"", lambda line: None)
    with path.open("rb") as file:
        for place in places:
            payload = read_record(file, place)
            if payload is not None:  # else torn
                yield msgpack.unpackb(payload)


class FedBook:
    """The book of one source replica, open for writing.

    Parameters
    ----------
    run_id : str
    source : list
        What tells whether the input is still the same (`Source.identity`).
    goes_on : bool
        Whether there are results on disk that the book must go with; else an older run's book is begun anew.

    Raises
    ------
    UsageError
        The input has changed since the run began.
    StreamerError
        Another process writes the book.
    OSError
        The disk does not take the book; it can be tried again.
    """

    def __init__(self, path: Path, run_id: str, source: list[Any], *, goes_on: bool) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"format": FORMAT, "run": run_id, "source": source}
        self._log = self._opened(about)
        try:
            before = read_about(path, FORMAT)
            anew = before["run"] != run_id and not goes_on
            if not anew and before["source"] != source:
                raise UsageError(_changed(path, before["source"], source))
            if anew:
                path.unlink()
            self.fed = Fed() if anew else read(path)
            self._dropping: list[list[Any]] = []
            self.passed = self.fed.passed
        except BaseException:
            self._log.close()
            raise
        if anew:
            self._log.close()
            self._log = self._opened(about)

    def _opened(self, about: dict[str, Any]) -> Log:
        try:
            opened = Log(self.path, about, b"", lambda line: None)
        except BlockingIOError:
            raise StreamerError(f"{self.path}: another process writes this book of fed events") from None
        try:
            opened.write()
        except OSError:
            opened.close()
            raise
        return opened

    def add(self, block: Block) -> None:
        """Book a block that is about to be sent; events that were fed before are not counted again.

        Raises
        ------
        OSError
            The disk does not take it, and it is not booked; it can be tried again.
        """
        missing = self.fed.ids.missing(block.id, block.id + block.n_events - 1)
        self._book([[a, b, lumis_of(block, slice(a - block.id, b - block.id + 1))] for a, b in missing])

    def drop(self, block: Block, reason: str) -> None:
        """Note events that are not sent; they are booked with the next `flush`.

        Those that a crash takes with it before that are fed when the run goes on.
        """
        last: list[Any] = self._dropping[-1] if self._dropping else [0, -1, [], ""]
        lumis = lumis_of(block)
        if last[1] + 1 == block.id and last[3] == reason:
            last[1] += block.n_events
            for one in lumis:
                if last[2] and last[2][-1][:2] == one[:2]:
                    last[2][-1][2] += one[2]
                else:
                    last[2].append(one)
        else:
            self._dropping.append([block.id, block.id + block.n_events - 1, lumis, reason])

    def lumis_before(self) -> list[tuple[int, int, int]]:
        """`(first, last, lumisection)` of the events that were fed in each lumisection of the feed, and not dropped.

        What lies between is of it, too, whether it was booked or not: lumisections never fall.
        """
        found: dict[int, tuple[int, int]] = {}
        for first, _, lumis, *dropped in (record for record in _records(self.path) if len(record) > 1):
            for _, lumi, n in lumis if not dropped else ():
                last = first + n - 1
                begin, end = found.get(lumi, (first, last))
                found[lumi] = min(begin, first), max(end, last)
                first += n
        return [(first, last, lumi) for lumi, (first, last) in found.items()]

    def add_found(self, intervals: Iterable[tuple[int, int]]) -> None:
        """Book events that are on disk, and so were fed, although a power cut took the last lines of the books.

        What stands in the book of another replica is left to it.

        Raises
        ------
        OSError
            As `add`.
        """
        others = [read(path).ids for path in self.path.parent.glob(f"*{self.path.suffix}") if path != self.path]
        records = []
        for found in intervals:
            lacking = self.fed.ids.missing(*found)
            for ids in others:
                lacking = [piece for first, last in lacking for piece in ids.missing(first, last)]
            records += [[first, last, []] for first, last in lacking]
        self._book(records)

    def _book(self, records: list[list[Any]]) -> None:
        for record in records:
            self._log.add(msgpack.packb(record))
        try:
            self._log.write()
        except OSError:
            self._log.take_back(len(records))
            raise
        for record in records:
            self.fed.take(record)

    async def flush(self) -> None:
        """Bring it to disk, with how much of its time the feed has had by now (`passed` [ns], to be set).

        Raises
        ------
        OSError
            The disk does not take it; it can be tried again.
        """
        self._book(self._dropping if self.passed == self.fed.passed else [*self._dropping, [self.passed]])
        self._dropping = []
        await self._log.flush()

    def close(self) -> None:
        self._log.close()


def lumis_of(block: Block, some: slice | Array = slice(None)) -> list[list[int]]:
    """`[run, lumisection, n_events]` of some of a block's events, where it knows them; in rising order.

    Lumisections that the feed counts are all of one run.
    """
    if LUMISECTION.name in block.columns:
        lumis = block.columns[LUMISECTION.name][some]
        runs = np.full_like(lumis, FEED_RUN)
    elif "run" in block.columns and "luminosityBlock" in block.columns:
        runs, lumis = block.columns["run"][some], block.columns["luminosityBlock"][some]
    else:
        return []
    if not lumis.size:
        return []
    run, lumi = runs.item(0), lumis.item(0)
    if lumis.size == 1 or ((lumis == lumi).all() and (runs == run).all()):
        return [[run, lumi, lumis.size]]
    values, counts = np.unique(np.stack([runs, lumis]), axis=1, return_counts=True)
    return [[int(run), int(lumi), int(n)] for run, lumi, n in zip(*values, counts, strict=True)]


def _changed(path: Path, before: list[Any], now: list[Any]) -> str:
    what = f"{len(before)} files are now {len(now)}"
    for old, new in zip(before, now, strict=False):
        if old != new:
            what = f"{old[0]} ({old[1]} events) is now {new[0]} ({new[1]} events)"
            break
    return f"{path}: the input has changed since the run began: {what}"
