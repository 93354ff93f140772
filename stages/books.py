"""The books of a run, read from its output folder: what was fed against what is on disk, event by event.

The two sides are written by different processes: the readers book what they feed, the writers what they keep.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import records
from stages.began import began_with
from stages.config import Config
from stages.manifest import Manifest, Tally
from streamer import fedbook
from streamer.errors import UsageError
from streamer.fedbook import Lumi
from streamer.journal import recover
from streamer.ledger import IdSet, Kept, Ledger, Stripes
from streamer.recordlog import in_use

if TYPE_CHECKING:
    from stages.menu.books import MenuBooks


@dataclass
class Books:
    """What became of every event.

    Attributes
    ----------
    fed, dropped, kept, errors : Counter
        Events by run and lumisection; `dropped` are those of `fed` that the chain could not take, `kept` are on disk,
        `errors` those of them that could not be processed.
    shed, late : Counter
        Likewise: those of `kept` that were shed for their deadlines, and those that were scored after them.
    shed_at : Counter
        Shed events, by the stage that shed them.
    reasons : Counter
        Dropped events, by why.
    n_fed, n_dropped, n_kept : int
        Different events.
    n_entries : int
        Events on disk, doubles included.
    n_unfed : int
        Events on disk that nobody fed.
    in_flight : list of (first, last)
        Numbers of events that were fed and are not on disk.
    running : bool
        Whether a process writes there.
    problems : list of str
        What could not be read.
    missing : list of str
        Which finished files are not there, one line each; somebody may have moved them.
    menu : MenuBooks or None
        Where there is a menu, what it made of the events.
    """

    fed: Counter[Lumi] = field(default_factory=Counter)
    dropped: Counter[Lumi] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    kept: Counter[Lumi] = field(default_factory=Counter)
    errors: Counter[Lumi] = field(default_factory=Counter)
    shed: Counter[Lumi] = field(default_factory=Counter)
    shed_at: Counter[str] = field(default_factory=Counter)
    late: Counter[Lumi] = field(default_factory=Counter)
    n_fed: int = 0
    n_dropped: int = 0
    n_kept: int = 0
    n_entries: int = 0
    n_unfed: int = 0
    in_flight: list[tuple[int, int]] = field(default_factory=list)
    running: bool = False
    problems: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    menu: "MenuBooks | None" = None

    @property
    def ledger(self) -> Ledger:
        """The sums."""
        n_errors, n_shed = self.errors.total(), self.shed.total()
        in_flight = sum(last - first + 1 for first, last in self.in_flight)
        n_scored = self.n_entries - n_errors - n_shed
        return Ledger(self.n_fed, n_scored, n_errors, in_flight, self.n_dropped, n_shed, self.late.total())

    def add_shed(self, shed: Iterable[Sequence[Any]], late: Iterable[Sequence[int]]) -> None:
        """Add what `stages.manifest.Segment` says of them."""
        for run, lumi, stage, n in shed:
            self.shed[run, lumi] += n
            self.shed_at[stage] += n
        for run, lumi, n in late:
            self.late[run, lumi] += n

    @property
    def why_not(self) -> list[str]:
        """Why the books do not close, one line each; none where they do."""
        lines = [*self.problems, *self.missing]
        if self.n_entries != self.n_kept:
            lines.append(f"{self.n_entries - self.n_kept:,} events are on disk more than once")
        if self.n_unfed:
            lines.append(f"{self.n_unfed:,} events are on disk that were never fed")
        if self.in_flight and not self.running:
            n = self.ledger.in_flight
            lines.append(f"{n:,} events were fed and are not on disk, the first is number {self.in_flight[0][0]}")
        uneven = [lumi for lumi in self.fed | self.kept if self.fed[lumi] < self.kept[lumi]]
        if uneven and self.fed.total() == self.n_fed:  # else a power cut took a part of the readers' book
            lines.append(f"{len(uneven)} lumisections have more events on disk than were fed")
        if self.menu is not None:
            scored = {lumi: n - self.errors[lumi] - self.shed[lumi] for lumi, n in self.kept.items()}
            lines += self.menu.problems(scored)
        return lines


def read_books(folder: Path, *, moved: bool = False) -> Books:
    """The books of the run in an output folder, also while it goes on.

    Parameters
    ----------
    moved : bool
        Whether finished files may have been moved away.

    Raises
    ------
    UsageError
        There is none.
    """
    manifests = sorted((folder / "books").glob("writer-*.manifest"))
    if not manifests:
        raise UsageError(f"{folder}: no run was begun there (there is no {folder / 'books'}/writer-0.manifest)")
    books = Books(running=any(in_use(path) for path in manifests))
    fed, dropped = IdSet(), IdSet()
    # What is on disk first: who feeds meanwhile only adds to what is under way.
    kept = _kept(manifests, books)
    for path in manifests:
        _compare(folder, Manifest(path), books)
    if moved:
        books.missing = []
    for path in sorted((folder / "books").glob("reader-*.fed")):
        one = fedbook.read(path)
        books.fed += one.lumis
        books.dropped += one.dropped_lumis
        books.reasons += one.reasons
        for first, last in one.ids:
            fed.add(first, last)
        for first, last in one.dropped:
            dropped.add(first, last)
    on_disk = IdSet(interval for sink in range(kept.stripes.n) for interval in kept.of(sink))
    books.n_fed, books.n_dropped, books.n_kept = fed.size, dropped.size, on_disk.size
    books.in_flight = [piece for first, last in _without(fed, on_disk) for piece in dropped.missing(first, last)]
    n_both = dropped.size - sum(last - first + 1 for first, last in _without(dropped, on_disk))
    if n_both:
        books.problems.append(f"{n_both:,} events were dropped and are on disk all the same")
    books.n_unfed = sum(last - first + 1 for first, last in _without(on_disk, fed))
    return books


def _compare(folder: Path, manifest: Manifest, books: Books) -> None:
    """Hold the files that are there against those that were finished."""
    for segment in manifest.segments():
        files = [[segment.file, segment.events, segment.bytes], *(stream[:3] for stream in segment.streams)]
        for name, n_events, n_bytes in files:
            path = folder / name
            if not path.exists():
                books.missing.append(f"{path} is not there, with {n_events:,} events (see --moved)")
            elif path.stat().st_size != n_bytes:
                n_now = path.stat().st_size
                books.problems.append(f"{path} has {n_now:,} bytes, and had {n_bytes:,} when it was finished")


def _without(some: IdSet, others: IdSet) -> Iterator[tuple[int, int]]:
    for first, last in some:
        yield from others.missing(first, last)


def _kept(manifests: list[Path], books: Books) -> Kept:
    kept = Kept(Stripes())
    for path in manifests:
        manifest, sink = Manifest(path), int(path.stem.rpartition("-")[2])
        if not manifest.about:
            continue
        config = began_with(manifest)
        if kept.stripes.n == 1:
            kept = Kept(Stripes(config.n_replicas("writer"), config.feed.block_events))
        segments = manifest.segments()
        if config.menu.paths and books.menu is None:
            from stages.menu.books import MenuBooks

            books.menu = MenuBooks(tuple(config.menu.paths), config.n_replicas("reader"))
        for segment in segments:
            if books.menu is not None:
                books.menu.add_rows(segment.menu, sink)
            books.n_entries += segment.events
            for run, lumi, n, errors in segment.lumis:
                books.kept[run, lumi] += n
                books.errors[run, lumi] += errors
            books.add_shed(segment.shed, segment.late)
            for first, last in segment.ids:
                kept.sets[sink].add(first, last)
        for journal in sorted(path.parent.glob(f"{path.stem}.??????.journal")):
            if int(journal.suffixes[-2][1:]) >= len(segments):
                _add_journal(journal, config, manifest.went_on, kept, sink, books)
    return kept


def _add_journal(path: Path, config: Config, went_on: list[int], kept: Kept, sink: int, books: Books) -> None:
    tally = Tally(kept.stripes, config.feed.deadline, len(config.menu.paths), went_on)
    try:
        for _ in tally.count(recover(path, records.journal(config), books.problems.append)):
            pass
    except FileNotFoundError:  # it has become a file just now, which the next look sees
        return
    books.n_entries += tally.events.total()
    books.kept += tally.events
    books.errors += tally.errors
    books.add_shed(([*key, n] for key, n in tally.shed.items()), ([*lumi, n] for lumi, n in tally.late.items()))
    if books.menu is not None and tally.menu is not None:
        books.menu.add_tally(tally.menu, sink)
    for first, last in tally.ids:
        kept.sets[sink].add(first, last)
