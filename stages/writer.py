"""Writer: scores to a journal, which is what commits stand on; journals become ROOT files.

In the output folder lie

    scores.root, scores_1.root, ...       finished files, as ROOT itself would number them
    books/writer-0.manifest               what is in which of them
    books/writer-0.000002.journal         results that are not in one yet
    errors/                               events that failed (`stages.error_stream`)

and with several writers `scores-1.root` and so on beside them. A file appears under its name when it is complete, and
its journal goes when the manifest has it.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stages import PIPELINE, records
from stages.config import Config
from stages.error_stream import ErrorStream
from stages.formats.root import WRITE_EVENTS, write_events
from stages.inputs import shown
from stages.manifest import Manifest, OpenManifest, Tally
from streamer import __version__
from streamer.block import Block, Schema
from streamer.disk import DiskError, patiently, remedy
from streamer.errors import StreamerError, UsageError
from streamer.journal import Journal, steps
from streamer.ledger import Stripes
from streamer.stage import Sink

log = logging.getLogger(__name__)

SCORES = "scores.root"
MIN_FREE_BYTES = 1 << 20


class Results:
    """One writer's files.

    Attributes
    ----------
    manifest : OpenManifest or None
        Open for writing, once somebody has opened it.
    networks : dict of str to str
        SHA-256 of each tagger's network when the run began.
    """

    def __init__(self, config: Config, replica: int, n_replicas: int) -> None:
        self.config, self.folder, self.books = config, config.writer.dir, config.books
        self.stripes = Stripes(n_replicas, config.feed.block_events)
        self.schema = records.scores(config)
        self.manifest: OpenManifest | None = None
        self.networks: dict[str, str] = {}
        self.errors = ErrorStream(config, PIPELINE.names, replica)
        self._stem = f"scores-{replica}" if replica else "scores"
        self._name = f"writer-{replica}"

    @property
    def manifest_path(self) -> Path:
        return self.books / f"{self._name}.manifest"

    def scores_path(self, segment: int) -> Path:
        return self.folder / (f"{self._stem}_{segment}.root" if segment else f"{self._stem}.root")

    def journal_path(self, segment: int) -> Path:
        return self.books / f"{self._name}.{segment:06d}.journal"

    def journals(self) -> dict[int, Path]:
        """The journals that are there and hold something, by their segments, in order."""
        return {int(path.suffixes[-2][1:]): path for path in self._all_journals() if path.stat().st_size}

    def _all_journals(self) -> list[Path]:
        return sorted(self.books.glob(f"{self._name}.??????.journal"))

    def all_scores(self) -> list[Path]:
        """Files of scores that are there."""
        found = [self.scores_path(0), *self.folder.glob(f"{self._stem}_[0-9]*.root")]
        return [path for path in found if path.exists()]

    def stale(self) -> list[Path]:
        """Files of scores that the manifest does not know."""
        assert self.manifest is not None
        known = {segment.file for segment in self.manifest.segments}
        return [path for path in self.all_scores() if path.name not in known]

    def unfinished(self) -> dict[int, Path]:
        """Journals that are no files yet; those that are, and were not dropped, go, and so do empty ones."""
        assert self.manifest is not None
        left = self.journals()
        for path in {*self._all_journals()} - {*left.values()}:
            path.unlink()
        for segment in [segment for segment in left if segment < len(self.manifest.segments)]:
            left.pop(segment).unlink()
        return left

    def convert(self, closing: Journal, segment: int) -> None:
        """Make a journal's ROOT file, enter it in the manifest, and drop the journal.

        Raises
        ------
        OSError
            The disk is full; the journal stays, and it can be tried again.
        """
        assert self.manifest is not None
        path, tally = self.scores_path(segment), Tally(self.stripes)
        write_scores(path, tally.count(closing.blocks()), self.config, self.networks)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self.errors.rewrite(segment, closing.blocks() if tally.errors else [])
        self.manifest.add(tally.segment(path, digest))
        drop(closing)

    def convert_left(self, left: Journal, segment: int) -> None:
        """Like `convert`, for a journal that nobody needs when that fails."""
        try:
            self.convert(left, segment)
        except BaseException:
            left.close()
            raise


def drop(journal: Journal) -> None:
    """Let go of a journal that is no longer needed. One that the disk keeps goes the next time (`unfinished`)."""
    journal.close()
    with contextlib.suppress(OSError):
        journal.path.unlink()


class Writer(Sink):
    """Writes one entry for every event fed, in the order in which they were fed."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.inputs = records.scores(config)
        self.commit_interval = config.writer.commit_interval
        self.commit_events = config.writer.commit_events
        self._results: Results | None = None
        self._journal: Journal | None = None
        self._conversion: asyncio.Task[None] | None = None
        self._again = False  # whether a process of this run was here before
        self._stale: list[Path] = []  # files of an earlier run, which go when there are new results

    def setup(self) -> None:
        """Prepare the folder, and go on where an earlier process of this run broke off, or with `writer.resume` a run.

        Raises
        ------
        UsageError
            The folder cannot be written, is full, or holds another run's results.
        DiskError
            It cannot be written any more.
        """
        folder = self.config.writer.dir
        results = self._results = Results(self.config, self.replica, self.n_replicas)
        self._again = self._was_here()
        if not self._again:  # else nothing is needed of a disk that may be full now
            prepare_folder(folder)
        try:
            results.books.mkdir(exist_ok=True)
            results.manifest = OpenManifest(results.manifest_path)
        except BlockingIOError:
            raise UsageError(f"{folder}: another run is writing there; choose another --output") from None
        except OSError as error:
            raise self._unwritable(folder, error) from None
        results.networks = _hashes(self.config)
        about = self._about()
        try:
            if results.manifest.about and (self.config.writer.resume or results.manifest.run == self.run_id):
                self._go_on(results, results.manifest, about)
            else:
                self._begin(results, results.manifest, about)
        except OSError as error:
            raise self._unwritable(results.manifest_path, error) from None

    def _was_here(self) -> bool:
        """Whether a process of this run has begun in this place before."""
        with contextlib.suppress(UsageError):
            return self.results.manifest_path.exists() and Manifest(self.results.manifest_path).run == self.run_id
        return False

    def _unwritable(self, path: Path, error: OSError) -> StreamerError:
        told = f"{path}: cannot be written ({error.strerror or error})"
        return DiskError(f"{told}; {remedy(error)}") if self._again else UsageError(f"{told}; choose another --output")

    @property
    def results(self) -> Results:
        assert self._results is not None
        return self._results

    @property
    def manifest(self) -> OpenManifest:
        assert self.results.manifest is not None
        return self.results.manifest

    def _about(self) -> dict[str, Any]:
        """What the manifest and each journal say of the run."""
        read = self.config.input.model_copy(update={"files": _sources(self.config)})
        config = self.config.model_copy(update={"input": read}).model_dump(mode="json")
        return {
            "run": self.run_id,
            "config": config,
            "config_sha256": hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest(),
            "networks": self.results.networks,
            "version": __version__,
        }

    def _begin(self, results: Results, manifest: OpenManifest, about: dict[str, Any]) -> None:
        mine = [results]
        if not self.replica:  # also of writers that this run does not have
            others = (int(path.stem.rpartition("-")[2]) for path in results.books.glob("writer-*.manifest"))
            mine += [Results(self.config, k, self.n_replicas) for k in sorted(others) if k >= self.n_replicas]
        for one in mine:
            self._refuse(one, manifest if one is results else Manifest(one.manifest_path))
        self._stale = [path for one in mine for path in one.all_scores()]
        if not self.replica:
            results.errors.drop()
        for one in mine:
            for path in one.books.glob(f"{one.manifest_path.stem}.*.journal"):
                path.unlink()
            if one is not results:
                one.manifest_path.unlink(missing_ok=True)
        manifest.begin(about)
        self._open(0)

    def _refuse(self, results: Results, manifest: Manifest) -> None:
        """Nothing that is there is lost unless that was asked for."""
        folder = self.config.writer.dir
        if self.config.writer.overwrite:
            return
        if results.journals() and not manifest.complete:
            raise UsageError(
                f"{folder}: a run broke off here; go on with: streamer run --resume {folder}, or save its "
                f"results with: streamer finish {folder}  (or drop them with --overwrite)"
            )
        for path in results.all_scores():
            raise UsageError(f"{path}: exists; choose another --output, or --overwrite")

    def _go_on(self, results: Results, manifest: OpenManifest, about: dict[str, Any]) -> None:
        """Take up what is there."""
        folder, before = self.config.writer.dir, manifest.about
        for key in ("taggers", "framer", "input"):
            if before["config"][key] != about["config"][key]:
                raise UsageError(f"{folder}: the run there was begun with other settings of [{key}]")
        if before["networks"] != about["networks"]:
            raise UsageError(f"{folder}: the run there was begun with other networks")
        old = before["config"]["replicas"].get("writer", 1), before["config"]["feed"]["block_events"]
        if old != (self.n_replicas, self.config.feed.block_events) and (old[0], self.n_replicas) != (1, 1):
            raise UsageError(
                f"{folder}: the run there has replicas.writer = {old[0]} and feed.block_events = {old[1]}; "
                "go on with the same"
            )
        if manifest.run != self.run_id:
            manifest.go_on(self.run_id)
        left = results.unfinished()
        self._stale = results.stale()
        self._open(max(left, default=len(manifest.segments)))
        for segment, path in left.items():
            if segment != self._segment:
                try:
                    results.convert_left(Journal(path, {}, self.inputs, log.error), segment)
                except OSError as error:
                    raise self._unwritable(path, error) from None

    def _open(self, segment: int) -> None:
        """Begin a journal, or go on with the one that is there."""
        path = self.results.journal_path(segment)
        try:
            self._journal = Journal(path, self._about(), self.inputs, log.error)
        except OSError as error:
            raise self._unwritable(path, error) from None
        self._segment, self._opened_at = segment, time.monotonic()
        if self._journal.n_events:  # what was told of it may have been cut off
            with contextlib.suppress(OSError):  # a full disk; it is told again when the file of scores is made
                self.results.errors.rewrite(segment, self._journal.blocks())

    def kept(self) -> Iterator[tuple[int, int]]:
        assert self._journal is not None
        for segment in self.manifest.segments:
            yield from ((first, last) for first, last in segment.ids)
        to_local = self.results.stripes.to_local
        for number, n in zip(self._journal.ids, self._journal.sizes, strict=True):
            yield to_local(number), to_local(number + n - 1)

    def about(self) -> dict[str, Any]:
        path = self.results.scores_path(0)
        return {"output": str(path)} if path.exists() else {}

    def write(self, block: Block) -> None:
        assert self._journal is not None
        self._journal.add(block)
        self.results.errors.add(block, self._segment)

    async def sync(self) -> None:
        """Bring everything to disk. A disk that takes nothing is tried again for `writer.disk_patience`.

        Raises
        ------
        StreamerError
            Nothing of it may be acknowledged.
        """
        journal, segment = self._journal, self._segment
        assert journal is not None
        closing = self._begin_next(journal)  # before the sync: what comes during it must not be left in this one
        await self._patiently(journal.sync, journal.path)
        self._drop_stale(journal)
        self.results.errors.flush()
        if closing:
            self._conversion = asyncio.create_task(self._convert(journal, segment))

    async def _patiently(self, work: Callable[[], object], path: Path) -> None:
        """Do what the disk may refuse, until it takes it."""
        settings = self.config.writer
        then = f"go on with: streamer run --resume {settings.dir}, or save it: streamer finish {settings.dir}"
        await patiently(
            work,
            settings.disk_patience,
            path,
            "results cannot be written",
            lambda helps: f"what was committed is safe; {helps} and {then}",
        )

    def _drop_stale(self, journal: Journal) -> None:
        if self._stale and journal.n_events:
            for path in self._stale:
                with contextlib.suppress(OSError):  # it is tried again at the end
                    path.unlink()
            self._stale = []

    def _begin_next(self, journal: Journal) -> bool:
        """Begin the next journal when this one is long or old; whether this one is to be finished."""
        if self._conversion is not None and self._conversion.done():
            self._conversion.result()
            self._conversion = None
        settings = self.config.writer
        old = time.monotonic() - self._opened_at >= settings.segment_interval
        if self._conversion is None and journal.n_events and (old or journal.n_events >= settings.segment_events):
            try:
                self._open(self._segment + 1)
            except StreamerError as error:  # a full disk; the old one does for now
                log.error("%s", error)
                return False
            return True
        return False

    async def _convert(self, journal: Journal, segment: int) -> None:
        work = lambda: asyncio.to_thread(self.results.convert, journal, segment)  # noqa: E731
        await self._patiently(work, self.results.scores_path(segment))

    async def finish(self) -> None:
        await self.sync()
        if self._conversion is not None:
            await self._conversion
        journal = self._journal
        assert journal is not None
        if journal.n_events or not self.manifest.segments:
            await self._convert(journal, self._segment)
        else:
            drop(journal)
        self._journal = None
        await asyncio.to_thread(self.results.errors.finish)
        await self._patiently(self._end, self.manifest.path)

    def _end(self) -> None:
        for path in self.results.stale():
            path.unlink()
        self.manifest.end()

    async def abandon(self) -> None:
        if self._conversion is not None:
            await self._conversion
        folder, left = self.config.writer.dir, self.results.journals()
        if left:
            log.warning(
                "results are safe in %s; go on with: streamer run --resume %s, or save them with: streamer finish %s",
                *(", ".join(map(str, left.values())), folder, folder),
            )

    def close(self) -> None:
        """Let go of the files; those that hold nothing go."""
        if self._journal is not None:
            with contextlib.suppress(OSError):
                if not self._journal.n_events or not self._journal.path.stat().st_size:
                    self._journal.path.unlink()
            self._journal.close()
        if self._results is not None:
            self._results.errors.close()
        if self._results is not None and self._results.manifest is not None:
            manifest = self._results.manifest
            with contextlib.suppress(OSError):
                if not manifest.segments and not self._results.journals():
                    manifest.path.unlink()
            manifest.close()


def prepare_folder(folder: Path) -> None:
    """Make the output folder and see that it can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".streamer-{os.getpid()}"
        try:
            probe.write_bytes(b"x")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be written ({error.strerror}); choose another --output") from None
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_BYTES:
        raise UsageError(
            f"{folder}: the disk is full ({free >> 20} MB free, at least {MIN_FREE_BYTES >> 20} MB are needed); "
            "make room or choose another --output"
        )


def write_scores(path: Path, blocks: Any, config: Config, networks: dict[str, str]) -> int:
    """Write the output tree from scored blocks; returns the number of events.

    Parameters
    ----------
    networks : dict of str to str
        SHA-256 of each tagger's network when the run began.
    """
    schema = records.output(config)
    taggers = {
        name: {**spec.model_dump(mode="json"), "sha256": networks.get(name, "")}
        for name, spec in config.taggers.items()
    }
    metadata = {
        "streamer_sources": json.dumps(_sources(config)),
        "streamer_taggers": json.dumps(taggers),
        "streamer_version": __version__,
    }
    return write_events(
        path,
        schema,
        steps(blocks, schema, WRITE_EVENTS),
        rntuple=config.writer.format == "rntuple",
        title="scores of the end-to-end taggers",
        metadata=metadata,
    )


def _hashes(config: Config) -> dict[str, str]:
    """SHA-256 of the networks; a file that cannot be read is the tagger's to complain about."""
    out = {}
    for name, spec in config.taggers.items():
        with contextlib.suppress(OSError):
            out[name] = hashlib.sha256(spec.model.read_bytes()).hexdigest()
    return out


def _sources(config: Config) -> tuple[str, ...]:
    """The input files, as they may be stored."""
    return tuple(str(shown(file)) for file in config.input.files)


def resumed(folder: Path) -> dict[str, Any]:
    """The settings with which a run goes on that broke off or was stopped.

    Raises
    ------
    UsageError
        There is none.
    """
    path = folder / "books" / "writer-0.manifest"
    config: dict[str, Any] = Manifest(path).about.get("config", {})
    if not config:
        raise UsageError(f"{folder}: no run was begun there (there is no {path})")
    return config | {"writer": config["writer"] | {"dir": str(folder), "resume": True, "overwrite": False}}


def finish_run(config: Config) -> None:
    """Finish what the writers of a run whose events are all on disk did not."""
    for path in sorted(config.books.glob("writer-*.manifest")):
        if not Manifest(path).complete:
            _finish(config.writer.dir, path)


def finish(folder: Path) -> tuple[Path, int]:
    """Turn the journals of a run that broke off into ROOT files; returns the path of the first and the events in all.

    Raises
    ------
    UsageError
        There is nothing to finish.
    StreamerError
        The disk is full.
    """
    paths = sorted((folder / "books").glob("writer-*.manifest"))
    if not any(path.stat().st_size for path in paths):
        raise UsageError(f"{folder}: no run broke off there; there is nothing to finish")
    left = [path for path in paths if not Manifest(path).complete]
    if not left:
        raise UsageError(f"{folder}: the run there has ended in order; there is nothing to finish")
    for path in left:
        _finish(folder, path)
    return folder / SCORES, sum(segment.events for path in paths for segment in Manifest(path).segments)


def _finish(folder: Path, path: Path) -> None:
    """Finish what one writer left."""
    try:
        manifest = OpenManifest(path)
    except BlockingIOError:
        raise UsageError(f"{folder}: a run is writing there; let that end first") from None
    try:
        config = Config.model_validate(manifest.about["config"])
        networks = manifest.about["networks"]
    except (KeyError, ValidationError):
        raise UsageError(f"{path}: not a manifest of this version of streamer") from None
    config = config.model_copy(update={"writer": config.writer.model_copy(update={"dir": folder})})
    results = Results(config, int(path.stem.rpartition("-")[2]), config.n_replicas("writer"))
    results.manifest, results.networks = manifest, networks
    try:
        left = results.unfinished() or ({} if manifest.segments else {0: results.journal_path(0)})
        for segment, journal in left.items():
            results.convert_left(_recovered(journal, results.schema), segment)
        results.errors.finish()
        manifest.end()
    except OSError as error:
        told = f"{folder}: cannot be written ({error.strerror or error})"
        raise StreamerError(f"{told}; {remedy(error)}, then: streamer finish {folder}") from None
    finally:
        manifest.close()


def _recovered(path: Path, schema: Schema) -> Journal:
    """A journal that was left behind; of a damaged one a copy is kept."""
    problems: list[str] = []
    size = path.stat().st_size if path.exists() else 0
    left = Journal(path, {}, schema, problems.append) if size else None
    if problems:
        shutil.copyfile(path, kept := path.with_suffix(".damaged"))
        for line in problems:
            log.error(line)
        log.error("the damaged journal is kept as %s", kept)
    return left or Journal(path, {}, schema, log.error)
