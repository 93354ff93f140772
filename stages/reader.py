"""Reader: events from files, in steps, with only the columns that the taggers need."""

import itertools
import logging
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from stages import jets, records
from stages.config import Config
from stages.cursor import Cursor
from stages.formats import open_events
from stages.formats.base import EventFile, Report, Step
from stages.inputs import shown
from stages.kept import Kept
from stages.mix import arranged
from stages.order import Int64s, Piece
from stages.records import INPUT_BY_NAME, SEEDED, SOURCE_INPUT
from stages.sources import RADII, Choice, choose
from stages.timestamps import Watch
from streamer.block import CORE_COLUMNS, LUMISECTION, Array, Columns, Schema
from streamer.errors import UsageError, nearest
from streamer.gather import gather
from streamer.recorded import ODDITIES
from streamer.stage import Missing, Source, everything

if TYPE_CHECKING:
    from stages.menu.program import Program  # with compiled kernels, which only a menu needs

log = logging.getLogger(__name__)

JET_PT_MIN = 10.0
"""Softer jets are not clustered [GeV]."""


class Reader(Source):
    """Reads the input files one after the other, or in random order, or mixed; with `feed.loop` again and again."""

    tallies = {  # noqa: RUF012
        "unreadable_events": ("entry", "file"),
        "odd_time_stamps": ODDITIES,
        "unseeded_events": ("no_seed",),
    }

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.outputs = records.hits(config)
        self._files: list[tuple[EventFile, Choice]] = []
        own = {column.name for column in (*CORE_COLUMNS, LUMISECTION)}  # the feed's
        self._watch = Watch(config.feed, self.count)
        self._schema = Schema(column for column in self.outputs.columns if column.name not in own)
        self._seeds: Program | None = None
        self._kept = Kept(config.input.keep_mb << 20 if config.feed.loop else 0)
        self.limits = {"input_kept_bytes": self._kept.most}

    def setup(self) -> None:
        """Open every file and check it; all problems are told at once.

        Raises
        ------
        UsageError
            With one line per problem.
        """
        problems = [
            f"input.columns: there is no column '{name}' of ours to map{nearest(name, INPUT_BY_NAME)}"
            for name in self.config.input.columns
            if name not in INPUT_BY_NAME
        ]
        told: dict[str, list[str]] = {}
        for path in self.config.input.expanded():
            try:
                file = open_events(path, self.config.input)
                choice = choose(file, self.config)
                self._files.append((file, choice))
                file.wanted_images = choice.images
                self._check_copyable(file)
                file.check(choice.columns)
            except UsageError as error:
                name = str(shown(path))
                for line in str(error).splitlines():
                    told.setdefault(line.removeprefix(f"{name}: "), []).append(name)
        problems += [f"{_first(paths)}: {line}" for line, paths in told.items()]
        if any(made_from != "Jet" for _, choice in self._files for made_from in choice.jets.values()):
            try:
                jets.require_fastjet()
            except UsageError as error:
                problems.append(str(error))
        if self.config.input.in_order and self.n_replicas > len(self._files) and not problems:
            n_files = len(self._files)
            problems.append(f"replicas.reader = {self.n_replicas}: there are not so many input files ({n_files})")
        if problems:
            raise UsageError("\n".join(problems))
        if SEEDED.name in self.outputs.by_name:
            from stages.menu.menu import menu_of

            menu = menu_of(self.config)
            assert menu is not None
            self._seeds = menu.seeds
            self._seeds(self.outputs.empty(1), 1)  # its kernel is compiled
        if not self.config.input.in_order:
            self._lines, self._order = arranged(self.config, [file.n_events for file, _ in self._files])
        self._firsts = list(itertools.accumulate((file.n_events for file, _ in self._files), initial=0))
        self._tell()

    def _check_copyable(self, file: EventFile) -> None:
        """See that complete events can be copied at the end, where a stream of the menu keeps them."""
        for name, stream in self.config.menu.streams.items():
            if stream.keeps_source:
                from stages.skim import check_copyable

                check_copyable(file, stream.without, f"menu.streams.{name}.without = [NAME]")

    def _tell(self) -> None:
        """Name what is empty or stands in, once for all files alike."""
        told: dict[str, list[str]] = {}
        for file, choice in self._files:
            for note in choice.notes:
                told.setdefault(note, []).append(str(file.path))
        for note, paths in told.items():
            log.warning("%s: %s", _first(paths), note)

    def close(self) -> None:
        self._watch.close()
        for file, _ in self._files:
            file.close()

    def about(self) -> dict[str, Any]:
        return {"files": len(self._files), "events_per_pass": sum(file.n_events for file, _ in self._files)}

    def identity(self) -> list[Any]:
        return [[str(shown(file.path)), file.n_events] for file, _ in self._files]

    def read(self, missing: Missing = everything) -> Iterator[Columns]:
        """The events of this replica's share; an event's number is its place in all of the input, as it is fed."""
        yield from self._one_by_one(missing) if self.config.input.in_order else self._arranged(missing)

    def _one_by_one(self, missing: Missing) -> Iterator[Columns]:
        """One file after the other."""
        watch = self._watch
        for replay in itertools.count() if self.config.feed.loop else range(1):
            n_pass = 0
            for number in range(self.replica, len(self._files), self.n_replicas):
                file, _ = self._files[number]
                begin = replay * self._firsts[-1] + self._firsts[number]
                wanted = missing(begin, begin + file.n_events - 1)
                n_pass += file.n_events if not wanted else 0
                first = wanted[0][0] - begin if wanted else file.n_events
                watch.begin(file.path)
                for step in self._steps(number, self._reporter(file), first):
                    n = len(step.entries)
                    if n:
                        n_pass += n
                        times = watch.times(step)
                        columns = self._complete(step.columns, number, step.entries, replay)
                        yield columns | times | {"sequence": begin + step.entries}
            if not n_pass:
                return

    def _arranged(self, missing: Missing) -> Iterator[Columns]:
        """Page by page, as the files are shuffled or mixed."""
        schema = self._schema
        cursors = [Cursor(line, schema, partial(self._piece, k)) for k, line in enumerate(self._lines)]
        n_barren = 0  # events in a row of which not one could be read
        for page in self._order.pages(self.replica, self.n_replicas):
            if not missing(page.begin, page.begin + page.lines.size - 1):
                continue
            places, parts = [], []
            for k, cursor in enumerate(cursors):
                of_line = np.flatnonzero(page.lines == k)
                if of_line.size:
                    there, columns = cursor.take(int(page.firsts[k]), of_line.size)
                    places.append(of_line[there])
                    parts.append(columns)
            found = np.concatenate(places)
            n_barren = 0 if found.size else n_barren + page.lines.size
            if n_barren > self._order.sizes.sum():
                return
            if found.size:
                order = np.argsort(found)
                yield gather(schema, schema.concat(parts), order) | {"sequence": page.begin + found[order]}

    def _piece(self, line: int, piece: Piece, replay: int) -> Iterator[tuple[Int64s, Columns]]:
        """The readable entries of a piece, as events of an input of the mix."""
        file, _ = self._files[piece.file]
        for step in self._steps(piece.file, self._reporter(file, piece.last), piece.first):
            n = int(np.searchsorted(step.entries, piece.last))
            if n:
                columns = self._complete(step.columns, piece.file, step.entries, replay)
                if self.config.input.weights:
                    columns[SOURCE_INPUT.name] = np.full(step.entries.size, line, np.int32)
                yield step.entries[:n], columns if n == step.entries.size else self._schema.slice(columns, 0, n)
            if n < step.entries.size or step.entries[-1] == piece.last - 1:
                return

    def _steps(self, number: int, report: Report, first: int) -> Iterator[Step]:
        """The events of a file from entry `first` on, with the jets that are made of them."""
        file, choice = self._files[number]

        def read(first: int) -> Iterator[Step]:
            for step in file.read(choice.columns, report, first):
                yield Step(step.entries, with_jets(step, choice)) if len(step.entries) else step

        return self._kept.read(number, first, file.n_events, read)

    def _reporter(self, file: EventFile, last: int = 1 << 62) -> Report:
        """For entries before `last`."""

        def report(first: int, n: int, why: str) -> None:
            n = min(n, last - first)
            if n <= 0:
                return
            which = f"entry {first}" if n == 1 else f"entries {first} to {first + n - 1}"
            log.error("%s: %s cannot be read and will be left out: %s", file.path, which, why)
            self.count("unreadable_events", "entry", n)

        return report

    def _complete(self, columns: Columns, number: int, entries: Array, replay: int) -> Columns:
        """Add where the events came from, and what columns mean that are not there."""
        n = len(entries)
        columns = records.complete(self.config, columns, n)
        if self._seeds is not None:
            columns = self._seeded(columns, self._seeds(columns, n).max(0) > 0)
        return columns | {
            "sourceFile": np.full(n, number, np.int32),
            "sourceEntry": entries.astype(np.int64),
            "replay": np.full(n, replay, np.uint32),
        }

    def _seeded(self, columns: Columns, wanted: Array) -> Columns:
        """Nothing but the objects of the events that no path's seed wants.

        Parameters
        ----------
        wanted : bool, shape (n_events,)
        """
        self.count("unseeded_events", "no_seed", int(np.count_nonzero(~wanted)))
        out = dict(columns)
        for name in {f"n{column.per}" for column in self.outputs.columns if column.name in columns} & columns.keys():
            if name[1:] not in self.config.objects:
                out[name] = np.where(wanted, columns[name], 0).astype(np.int32)
        for column in self.outputs.columns:
            if column.name in columns and column.per != "event" and column.per not in self.config.objects:
                out[column.name] = columns[column.name][np.repeat(wanted, columns[f"n{column.per}"])]
        return out | {SEEDED.name: wanted.astype(np.uint8)}


def _first(paths: list[str]) -> str:
    """Files of which the same is to be said."""
    return paths[0] + (f" and {len(paths) - 1} more" if len(paths) > 1 else "")


def with_jets(step: Step, choice: Choice) -> Columns:
    """The columns of a step, with the jets that are clustered or stand in, and without what is only for them."""
    columns = dict(step.columns)
    for objects, made_from in choice.jets.items():
        if made_from == "Jet":
            made = {name: step.columns[f"Jet_{name}"] for name in ("pt", "eta", "phi")}
            made["counts"] = step.columns["nJet"]
        else:
            made = _clustered(step.columns, made_from, RADII[objects])
        columns |= {f"n{objects}": made["counts"], **{f"{objects}_{name}": made[name] for name in ("pt", "eta", "phi")}}
    return {name: array for name, array in columns.items() if name not in choice.only_jets}


def _clustered(columns: Columns, made_from: str, radius: float) -> Columns:
    if made_from == "Tower":
        pt, eta, phi = jets.particles_of_towers(
            *(columns[f"Tower_{name}"] for name in ("eta", "phi", "emEnergy", "hadEnergy"))
        )
    else:
        pt, eta, phi = (columns[f"PFCand_{name}"] for name in ("pt", "eta", "phi"))
    made, _ = jets.cluster(columns[f"n{made_from}"], pt, eta, phi, radius=radius, pt_min=JET_PT_MIN)
    return made
