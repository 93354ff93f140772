"""The manifest: what a writer has put into which file. One JSON object a line; a torn last line is no part of it."""

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from stages import PIPELINE
from streamer.block import SHED, Block, has_failed
from streamer.deadline import too_late
from streamer.disk import Tail, settle, sync_folder
from streamer.errors import UsageError
from streamer.fedbook import Lumi, lumis_of
from streamer.ledger import IdSet, Stripes
from streamer.recordlog import lock

if TYPE_CHECKING:
    from stages.menu.tally import MenuTally  # with compiled kernels, which only a menu needs

FORMAT = "streamer manifest 1"


@dataclass(frozen=True)
class Segment:
    """A finished file.

    Attributes
    ----------
    file : str
        Its name in the output folder.
    events, errors : int
        How many it has, and how many of them could not be processed.
    ids : list of [first, last]
        The writer's own events in it (`streamer.ledger.Stripes`).
    lumis : list of [run, luminosityBlock, events, errors]
    bytes, sha256 : int, str
        Of the file.
    shed : list of [run, luminosityBlock, stage, events]
        How many were shed for their deadlines, and where.
    late : list of [run, luminosityBlock, events]
        How many were scored, and too late.
    menu : list
        Where there is a menu, what it made of each lumisection (`stages.menu.tally.Row`).
    streams : list of [file, events, bytes, sha256]
        Files of accepted events.
    """

    file: str
    events: int
    errors: int
    ids: list[list[int]]
    lumis: list[list[int]]
    bytes: int
    sha256: str
    shed: list[list[Any]] = field(default_factory=list)
    late: list[list[int]] = field(default_factory=list)
    menu: list[list[Any]] = field(default_factory=list)
    streams: list[list[Any]] = field(default_factory=list)


class Tally:
    """Counts the events that pass on their way into a file.

    Parameters
    ----------
    deadline : float
        After which an event was scored too late [s], from when it was due; 0 for none.
    n_paths : int
        Of the menu; 0 = there is none.
    went_on : sequence of int
        As `Manifest.went_on`: no event was fed in the pause before.
    """

    menu: "MenuTally | None" = None

    def __init__(self, stripes: Stripes, deadline: float = 0.0, n_paths: int = 0, went_on: Sequence[int] = ()) -> None:
        self.stripes, self.ids, self._within = stripes, IdSet(), int(deadline * 1e9)
        if n_paths:
            from stages.menu.tally import MenuTally

            self.menu = MenuTally(n_paths, went_on)
        self.events: Counter[Lumi] = Counter()
        self.errors: Counter[Lumi] = Counter()
        self.shed: Counter[tuple[int, int, str]] = Counter()
        self.late: Counter[Lumi] = Counter()

    def count(self, blocks: Iterable[Block]) -> Iterator[Block]:
        for block in blocks:
            last = self.stripes.to_local(block.id + block.n_events - 1)
            self.ids.add(self.stripes.to_local(block.id), last)
            for run, lumi, n in lumis_of(block):
                self.events[run, lumi] += n
            error = block.columns["error"]
            if error.any():
                for run, lumi, n in lumis_of(block, has_failed(error)):
                    self.errors[run, lumi] += n
                for mark in np.unique(error[error >= SHED]).tolist():
                    for run, lumi, n in lumis_of(block, error == mark):
                        self.shed[run, lumi, PIPELINE.names[mark - SHED - 1]] += n
            if self._within:
                late = too_late(block, block.stamps.get(PIPELINE.names[-1], 0), self._within)
                for run, lumi, n in lumis_of(block, late):
                    self.late[run, lumi] += n
            if self.menu is not None:
                self.menu.add(block)
            yield block

    def segment(self, path: Path, sha256: str, streams: list[list[Any]] | None = None) -> Segment:
        """What was counted, as a line for the manifest."""
        return Segment(
            file=path.name,
            events=self.events.total(),
            errors=self.errors.total(),
            ids=[list(interval) for interval in self.ids],
            lumis=[[*lumi, n, self.errors[lumi]] for lumi, n in sorted(self.events.items())],
            bytes=path.stat().st_size,
            sha256=sha256,
            shed=[[*key, n] for key, n in sorted(self.shed.items())],
            late=[[*lumi, n] for lumi, n in sorted(self.late.items())],
            menu=self.menu.rows() if self.menu is not None else [],
            streams=streams or [],
        )


class Manifest:
    """A manifest as it stands.

    Attributes
    ----------
    about : dict
        Its first line: configuration, networks and what else was so when the run began; empty for none.
    run : str
        The run that wrote last.
    went_on : list of int
        When each run began that went on with another [Unix ns].
    files, streams : set of str
        Names of the finished files, and of those of streams.
    ids : IdSet
        The writer's own events in them.
    complete : bool
        Whether the last run ended in order.
    prescales : dict
        What `stages.menu.schedule.Schedule.state` told when a prescale column was asked for last; empty for never.
    n_asked : int
        How often one was.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._forget()
        try:
            for line, size in self._lines():
                self._take(line)
                self.size += size
        except (ValueError, TypeError, KeyError):
            raise UsageError(f"{path}: not a manifest of this version of streamer") from None

    def _forget(self) -> None:
        self.about: dict[str, Any] = {}
        self.run = ""
        self.went_on: list[int] = []
        self.files: set[str] = set()
        self.streams: set[str] = set()
        self.ids = IdSet()
        self.complete = False
        self.prescales: dict[str, Any] = {}
        self.n_asked = 0
        self.size = 0

    def knows(self, path: Path) -> bool:
        """Whether a file of the output folder is one of them."""
        name = path.relative_to(self.path.parents[1]).as_posix()
        return name in self.files or name in self.streams

    def segments(self) -> list[Segment]:
        """The finished files, read anew: a writer that runs for months does not keep all that is to say of each."""
        return [Segment(**line) for line, _ in self._lines() if "file" in line]

    def _lines(self) -> Iterator[tuple[dict[str, Any], int]]:
        """The whole lines, and how long each is."""
        try:
            with self.path.open("rb") as file:
                for line in file:
                    if not line.endswith(b"\n"):
                        return
                    yield json.loads(line), len(line)
        except FileNotFoundError:
            return
        except OSError as error:
            raise UsageError(f"{self.path}: cannot be read ({error.strerror})") from None

    def _take(self, line: dict[str, Any]) -> None:
        if not self.about:
            if line["format"] != FORMAT:
                raise ValueError
            self.about = line
        if "run" in line:
            self.run, self.complete = line["run"], False
            if "at" in line:
                self.went_on.append(line["at"])
        elif "complete" in line:
            self.complete = True
        elif "prescales" in line:
            self.prescales, self.n_asked = line["prescales"], self.n_asked + 1
        else:
            segment = Segment(**line)
            self.files.add(segment.file)
            self.streams.update(file for file, *_ in segment.streams)
            for first, last in segment.ids:
                self.ids.add(first, last)


class OpenManifest(Manifest):
    """A manifest that is being written; nobody else can write it meanwhile.

    Raises
    ------
    BlockingIOError
        Another process writes it.
    OSError
        It cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            lock(self._fd)
            settle(self._fd)
            super().__init__(path)
            os.ftruncate(self._fd, self.size)
            if not self.size:
                sync_folder(path.parent)
        except BaseException:
            os.close(self._fd)
            raise
        self._tail = Tail(self._fd, self.size)

    def begin(self, about: dict[str, Any]) -> None:
        """Forget everything and begin anew."""
        self._tail.cut_back(0)
        self._forget()
        self._add({"format": FORMAT, **about})

    def go_on(self, run: str, now: int) -> None:
        """Another run goes on here, from this time on [Unix ns]."""
        self._add({"run": run, "at": now})

    def add(self, segment: Segment) -> None:
        """A file is finished; on disk when this returns."""
        self._add({key: value for key, value in asdict(segment).items() if value or key not in ("menu", "streams")})

    def ask(self, prescales: dict[str, Any]) -> None:
        """Another prescale column was asked for; on disk when this returns."""
        self._add({"prescales": prescales})

    def end(self) -> None:
        """The run has ended in order."""
        self._add({"complete": True})

    def _add(self, line: dict[str, Any]) -> None:
        try:
            self._tail.put(json.dumps(line).encode() + b"\n", sync=True)
        except OSError as error:
            error.filename = str(self.path)
            raise
        self.size = self._tail.size
        self._take(line)

    def close(self) -> None:
        os.close(self._fd)
