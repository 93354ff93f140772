"""Writer: scores to a journal, which is what commits stand on; journals become files (`stages.results`)."""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages import records
from stages.began import of_results
from stages.config import Config, digest
from stages.glimpse import glimpse
from stages.manifest import Manifest, OpenManifest
from stages.menu.config import same_menu
from stages.quality import ScoreQuality
from stages.results import Results, drop, stored_sources
from stages.segment import LEAST_EVENTS, made_beside
from stages.stored import require
from stages.swapped import forget, swapped
from streamer import __version__
from streamer.block import Block
from streamer.disk import DiskError, patiently, remedy
from streamer.errors import StreamerError, UsageError
from streamer.journal import Journal
from streamer.stage import Sink

if TYPE_CHECKING:
    from stages.menu.crops import CropKeeper
    from stages.menu.trigger import Trigger  # with compiled kernels, which only a menu needs

log = logging.getLogger(__name__)

MIN_FREE_BYTES = 1 << 20


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
        self._files = ThreadPoolExecutor(1, "files")  # always the same one: malloc keeps memory apart for each thread
        self._trigger: Trigger | None = None
        self._quality: ScoreQuality | None = None
        self._promised = 0  # from this lumisection on the prescale column may be another
        self._crops: CropKeeper | None = None
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
        for form in (self.config.writer.format, *(s.format for s in self.config.menu.streams.values() if s.format)):
            require(form)
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
        results.networks = {name: digest(spec.model) for name, spec in self.config.taggers.items()}
        about = self._about()
        try:
            if results.manifest.about and (self.config.writer.resume or results.manifest.run == self.run_id):
                self._go_on(results, results.manifest, about)
            else:
                self._begin(results, results.manifest, about)
            if self.config.menu.paths:
                self._begin_menu(results.manifest)
            self._quality = ScoreQuality(self.config, self.registry)
        except OSError as error:
            raise self._unwritable(results.manifest_path, error) from None

    def _begin_menu(self, manifest: OpenManifest) -> None:
        from stages.menu.metrics import MenuMetrics
        from stages.menu.switching import begun_trigger

        assert self._journal is not None
        self._trigger = begun_trigger(self.config, manifest, self._journal)
        MenuMetrics(self._trigger, self.registry)
        if records.crop_streams(self.config):
            from stages.menu.crops import CropKeeper

            self._crops = CropKeeper(self.config)

    def prepare(self, now: Config, wanted: Config, rehearsed: Mapping[str, Any]) -> Callable[[], None]:
        """Get ready for another prescale column.

        Raises
        ------
        UsageError
            There is no such column, it comes too late, or something else is to be changed.
        """
        if self._trigger is None:
            raise UsageError("this run has no menu (run --menu FILE), and so no prescale columns")
        from stages.menu.switching import prepared

        change = prepared(self._trigger, now, wanted, self.n_replicas)

        def make() -> None:
            change(self.manifest)
            self.config = self.config.model_copy(update={"menu": wanted.menu})

        return make

    def promise(self, config: Config) -> None:
        """See that the lumisection has not begun from which on another prescale column is asked for.

        Raises
        ------
        UsageError
            It has.
        """
        from stages.menu.switching import promise

        assert self._trigger is not None
        self._promised = promise(self._trigger, config)

    def must_wait(self, block: Block) -> bool:
        """Whether an event begins a lumisection that may get another prescale column."""
        if not self._promised:
            return False
        from stages.menu.flags import sections

        assert self._trigger is not None
        schedule = self._trigger.schedule
        return any(schedule.begins(section, self._promised) for section, _ in sections(block))

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
        read = self.config.input.model_copy(update={"files": stored_sources(self.config)})
        page = self.config.monitor.model_copy(update={"token": ""})  # results are for many eyes
        config = self.config.model_copy(update={"input": read, "monitor": page}).model_dump(mode="json")
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
            forget(results.books)
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
        if manifest.run != self.run_id:
            self._check_same(manifest.about, about)
            manifest.go_on(self.run_id, time.time_ns())
        left = results.unfinished()
        self._open(max(left, default=len(manifest.files)))
        for segment, path in left.items():
            if segment != self._segment:
                try:
                    results.convert_left(Journal(path, {}, results.schema, log.error), segment)
                except OSError as error:
                    raise self._unwritable(path, error) from None
        self._stale = results.stale()  # not before: a file that was half-way when its writer died is made anew

    def _check_same(self, before: dict[str, Any], about: dict[str, Any]) -> None:
        """Another run goes on with the settings of the first. (Within a run the networks may have been changed.)"""
        folder, helps = self.config.writer.dir, "go on with the same, or choose another --output (writer.dir)"
        try:
            began, now = (of_results(one["config"]).without_places() for one in (before, about))
        except UsageError as error:
            raise UsageError(f"{folder}: {error}; choose another --output (writer.dir)") from None
        for key in type(now).model_fields:
            if getattr(began, key) != getattr(now, key):
                raise UsageError(f"{folder}: the run there was begun with other settings of [{key}]; {helps}")
        if before["config"]["feed"].get("lumisection", "") != self.config.feed.lumisection:
            raise UsageError(f"{folder}: the run there was begun with another feed.lumisection")
        if not same_menu(before["config"].get("menu", {}), about["config"]["menu"]):
            raise UsageError(f"{folder}: the run there was begun with another menu; {helps}")
        last = before["networks"] | {name: one["sha256"] for name, one in swapped(self.results.books).items()}
        others = [str(self.config.taggers[name].model) for name, one in about["networks"].items() if one != last[name]]
        if others:
            raise UsageError(f"{folder}: the run there had other networks than {', '.join(others)}; {helps}")
        old = before["config"]["replicas"].get("writer", 1), before["config"]["feed"]["block_events"]
        if old != (self.n_replicas, self.config.feed.block_events) and (old[0], self.n_replicas) != (1, 1):
            raise UsageError(
                f"{folder}: the run there has replicas.writer = {old[0]} and feed.block_events = {old[1]}; "
                "go on with the same"
            )

    def _open(self, segment: int) -> None:
        """Begin a journal, or go on with the one that is there."""
        path = self.results.journal_path(segment)
        try:
            self._journal = Journal(path, self._about(), self.results.schema, log.error)
        except OSError as error:
            raise self._unwritable(path, error) from None
        self._segment, self._opened_at = segment, time.monotonic()
        if self._journal.n_events:  # what was told of it may have been cut off
            with contextlib.suppress(OSError):  # a full disk; it is told again when the file of scores is made
                self.results.errors.rewrite(segment, self._journal.blocks())

    def kept(self) -> Iterator[tuple[int, int]]:
        assert self._journal is not None
        yield from self.manifest.ids
        to_local = self.results.stripes.to_local
        for number, n in zip(self._journal.ids, self._journal.sizes, strict=True):
            yield to_local(number), to_local(number + n - 1)

    def about(self) -> dict[str, Any]:
        path = self.results.scores_path(0)
        return {"output": str(path)} if path.exists() else {}

    def write(self, block: Block) -> None:
        assert self._journal is not None
        assert self._quality is not None
        if self._trigger is not None:
            block = self._trigger.decide(block)
        if self._crops is not None:
            block = self._crops(block)
        self._journal.add(block)
        self.results.errors.add(block, self._segment)
        self._quality.add(block.columns)

    def glimpse(self, block: Block) -> dict[str, Any] | None:
        return glimpse(block, self.config)

    def failures(self) -> list[dict[str, Any]]:
        return self.results.errors.take_shown()

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
                    if not self.manifest.knows(path):
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
        slow = journal.n_events >= 2 * self.config.writer.segment_events  # the one before was not ready sooner
        beside = journal is not self._journal and journal.n_events >= LEAST_EVENTS and not slow
        work = partial(self._finished_beside if beside else self._finished, journal, segment)
        await self._patiently(work, self.results.scores_path(segment))

    async def _finished(self, journal: Journal, segment: int) -> None:
        await asyncio.get_running_loop().run_in_executor(self._files, self.results.convert, journal, segment)

    async def _finished_beside(self, journal: Journal, segment: int) -> None:
        """The same while the stream goes on."""
        try:
            made = await made_beside(self.results, journal, segment)
        except RuntimeError as error:  # out of memory, or of processes
            log.warning("%s; it is made by the writer itself", error)
            await self._finished(journal, segment)
        else:
            await asyncio.get_running_loop().run_in_executor(self._files, self.results.enter, journal, segment, made)

    async def finish(self) -> None:
        await self.sync()
        if self._conversion is not None:
            await self._conversion
        journal = self._journal
        assert journal is not None
        if journal.n_events or not self.manifest.files:
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
        if left and (len(left) > 1 or self._journal is None or self._journal.n_events):
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
        self._files.shutdown(wait=False)
        if self._results is not None:
            self._results.errors.close()
        if self._results is not None and self._results.manifest is not None:
            manifest = self._results.manifest
            with contextlib.suppress(OSError):
                if not manifest.files and not self._results.journals():
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
