"""Runs that broke off: how they go on, and how what they left becomes files."""

import logging
import shutil
from pathlib import Path
from typing import Any

from stages.began import began_with, of_results
from stages.config import Config
from stages.inputs import shown
from stages.manifest import Manifest, OpenManifest
from stages.results import Results
from stages.swapped import models, swapped
from streamer.block import Schema
from streamer.disk import remedy
from streamer.errors import StreamerError, UsageError
from streamer.journal import Journal

log = logging.getLogger(__name__)


def resumed(folder: Path) -> dict[str, Any]:
    """The settings with which a run goes on that broke off or was stopped.

    Raises
    ------
    UsageError
        There is none.
    """
    path = folder / "books" / "writer-0.manifest"
    manifest = Manifest(path)
    if not manifest.about:
        raise UsageError(f"{folder}: no run was begun there (there is no {path})")
    config = began_with(manifest).model_dump(mode="json")
    if asked := _asked_last(path.parent):
        config["menu"] |= asked
    for name, one in swapped(path.parent).items():
        config["taggers"][name]["model"] = one["model"]
    return config | {"writer": config["writer"] | {"dir": str(folder), "resume": True, "overwrite": False}}


def _asked_last(books: Path) -> dict[str, Any]:
    """The prescale column that was asked for last, which holds on; a writer that was killed may not know of it yet."""
    last = max(map(Manifest, books.glob("writer-*.manifest")), key=lambda one: one.n_asked)
    if not last.prescales:
        return {}
    column, since = last.prescales["asked"]
    return {"prescale_column": column, "prescale_from": since}


def going_on(config: Config) -> tuple[dict[str, Any], str]:
    """The settings with which a run begins in its output folder, or goes on with the one there; and which it does.

    Files that have come to the input since the run began are left for another run.

    Parameters
    ----------
    config : Config
        What is wanted, with all files of the input.

    Raises
    ------
    UsageError
        What is there is no run of this version.
    """
    folder = config.writer.dir
    settings: dict[str, Any] = {"writer.resume": True, "writer.overwrite": False}
    manifest = Manifest(config.books / "writer-0.manifest")
    if not manifest.about:
        return settings, f"{folder}: a new run begins"
    settings |= {f"menu.{key}": value for key, value in _asked_last(config.books).items()}
    settings |= models(config, manifest.about)
    now = {str(shown(file)): file for file in config.input.files}
    try:
        began = of_results(manifest.about["config"]).input
    except UsageError as error:
        raise UsageError(f"{folder}: {error}; choose another --output (writer.dir)") from None
    before, which = began.files, ""
    if began.found and began.found != config.input.found and before == tuple(now):
        settings["input.found"] = began.found
        n_before, n_now = (sum(len(own) or 1 for own in found) for found in (began.found, config.input.found))
        which = f" with the input files that it began with, {n_before} of now {n_now}"
    elif not began.weights and len(before) < len(now) and set(before) <= now.keys():
        settings["input.files"] = [now[name] for name in before]
        which = f" with the input files that it began with, {len(before)} of now {len(now)}"
    return settings, f"{folder}: the run there goes on{which}"


def finish_run(config: Config) -> None:
    """Finish what the writers of a run whose events are all on disk did not."""
    for path in sorted(config.books.glob("writer-*.manifest")):
        if not Manifest(path).complete:
            _finish(config.writer.dir, path)


def finish(folder: Path) -> tuple[Path, int]:
    """Turn the journals of a run that broke off into files; returns the path of the first and the events in all.

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
    segments = [segment for path in paths for segment in Manifest(path).segments()]
    return folder / segments[0].file, sum(segment.events for segment in segments)


def settings_of(folder: Path) -> Config:
    """The configuration of the run in an output folder, without the passwords of its input."""
    config = began_with(Manifest(folder / "books" / "writer-0.manifest"))
    return config.model_copy(update={"writer": config.writer.model_copy(update={"dir": folder})})


def _finish(folder: Path, path: Path) -> None:
    """Finish what one writer left."""
    try:
        manifest = OpenManifest(path)
    except BlockingIOError:
        raise UsageError(f"{folder}: a run is writing there; let that end first") from None
    try:
        config = began_with(manifest)
        config = config.model_copy(update={"writer": config.writer.model_copy(update={"dir": folder})})
        results = Results(config, int(path.stem.rpartition("-")[2]), config.n_replicas("writer"))
        results.manifest, results.networks = manifest, manifest.about.get("networks", {})
        left = results.unfinished() or ({} if manifest.files else {0: results.journal_path(0)})
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
