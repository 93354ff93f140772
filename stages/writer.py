"""Writer: scores to a journal, which is what commits stand on, and at the end to one ROOT file."""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from stages import journal, records
from stages.config import Config
from stages.formats.root import WRITE_EVENTS, write_events
from stages.inputs import shown
from streamer import __version__
from streamer.block import Block
from streamer.errors import StreamerError, UsageError
from streamer.stage import Sink

log = logging.getLogger(__name__)

MIN_FREE_BYTES = 16 << 20
JOURNAL = "scores.journal"
SCORES = "scores.root"


class Writer(Sink):
    """Writes `scores.root`: one entry for every event fed, in the order in which they were fed."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.inputs = records.scores(config)
        self.commit_interval = config.writer.commit_interval
        self.commit_events = config.writer.commit_events
        self.path = config.writer.dir / SCORES
        self._journal: journal.Journal | None = None

    def setup(self) -> None:
        """Prepare the folder and begin the journal.

        Raises
        ------
        UsageError
            The folder cannot be written, is full, or holds another run's results.
        """
        folder = self.config.writer.dir
        left = folder / JOURNAL
        prepare_folder(folder)
        if journal.in_use(left):
            raise UsageError(f"{folder}: another run is writing there; choose another --output")
        if self.config.writer.overwrite:  # an earlier scores.root stays until there is a new one
            left.unlink(missing_ok=True)
        elif left.exists():
            raise UsageError(
                f"{left}: a run broke off here; save its results with: streamer finish {folder}  "
                "(or drop them with --overwrite)"
            )
        elif self.path.exists():
            raise UsageError(f"{self.path}: exists; choose another --output, or --overwrite")
        read = self.config.input.model_copy(update={"files": _sources(self.config)})
        config = self.config.model_copy(update={"input": read})
        self._networks = _hashes(config)
        about = {"config": config.model_dump(mode="json"), "networks": self._networks, "version": __version__}
        self._journal = journal.Journal(left, about)

    def about(self) -> dict[str, Any]:
        return {"output": str(self.path)} if self.path.exists() else {}

    def write(self, block: Block) -> None:
        assert self._journal is not None
        self._journal.add(block)

    async def sync(self) -> None:
        assert self._journal is not None
        await self._journal.sync()

    async def finish(self) -> None:
        assert self._journal is not None
        await self._journal.sync()
        blocks = self._journal.blocks(self.inputs)
        try:
            await asyncio.to_thread(write_scores, self.path, blocks, self.config, self._networks)
        except OSError as error:
            raise StreamerError(
                f"{self.path}: cannot be written ({error.strerror or error}); all results are safe in "
                f"{self._journal.path}; make room and run: streamer finish {self.path.parent}"
            ) from None
        self._journal.path.unlink()

    async def abandon(self) -> None:
        assert self._journal is not None
        if self._journal.n_events:
            folder = self.path.parent
            log.warning(
                "%d results are safe in %s; save them with: streamer finish %s",
                *(self._journal.n_events, self._journal.path, folder),
            )
        else:
            self._journal.path.unlink(missing_ok=True)

    def close(self) -> None:
        if self._journal is not None:
            if not self._journal.n_events:
                self._journal.path.unlink(missing_ok=True)
            self._journal.close()


def prepare_folder(folder: Path) -> None:
    """Make the output folder and see that it can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".streamer-{os.getpid()}"
        probe.write_bytes(b"x")
        probe.unlink()
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
        journal.steps(blocks, schema, WRITE_EVENTS),
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


def finish(folder: Path) -> tuple[Path, int]:
    """Turn the journal of a run that broke off into its ROOT file; returns its path and number of events.

    Raises
    ------
    UsageError
        There is nothing to finish.
    """
    left, path = folder / JOURNAL, folder / SCORES
    if not left.exists():
        raise UsageError(f"{left}: no such file; there is nothing to finish in {folder}")
    if journal.in_use(left):
        raise UsageError(f"{left}: a run is writing it; let that end first")
    if not left.stat().st_size:
        raise UsageError(f"{left}: the run broke off before its first result; start it again with --overwrite")
    try:
        about = journal.read_about(left)
        config, networks = Config.model_validate(about["config"]), about["networks"]
    except (KeyError, ValidationError):
        raise UsageError(f"{left}: not a journal of this version of streamer") from None
    problems: list[str] = []
    try:
        blocks = journal.recover(left, records.scores(config), problems.append)
        n = write_scores(path, blocks, config, networks)
    except OSError as error:
        raise StreamerError(
            f"{path}: cannot be written ({error.strerror or error}); make room, then try again"
        ) from None
    for line in problems:
        log.error(line)
    if problems:
        left.replace(kept := left.with_suffix(".damaged"))
        log.error("the damaged journal is kept as %s", kept)
    else:
        left.unlink()
    return path, n
