"""What a writer leaves: its journals, its files of scores and its manifest, by their names in the output folder.

    scores.root, scores_1.root, ...       finished files, as ROOT itself would number them; or scores.parquet, ...
    books/writer-0.manifest               what is in which of them
    books/writer-0.000002.journal         results that are not in one yet
    errors/                               events that failed (`stages.error_stream`)

With several writers `scores-1.root` and so on are beside them. A file appears under its name when it is complete, and
its journal goes when the manifest has it.
"""

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stages import PIPELINE, records
from stages.config import Config
from stages.error_stream import ErrorStream
from stages.inputs import shown
from stages.manifest import OpenManifest, Segment, Tally
from stages.menu.output import StreamFiles, is_complete, menu_metadata, output_steps
from stages.stored import SUFFIX, scores_of, sha256_of, write
from streamer import __version__
from streamer.journal import Journal, Written
from streamer.ledger import Stripes

SCORES = "scores.root"


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
        self.replica = replica
        self.stripes = Stripes(n_replicas, config.feed.block_events)
        self.schema = records.journal(config)
        self.streams = StreamFiles(config, replica)
        self.manifest: OpenManifest | None = None
        self.networks: dict[str, str] = {}
        self.errors = ErrorStream(config, PIPELINE.names, replica)
        self._stem = f"scores-{replica}" if replica else "scores"
        self._name = f"writer-{replica}"

    @property
    def manifest_path(self) -> Path:
        return self.books / f"{self._name}.manifest"

    def scores_path(self, segment: int) -> Path:
        return self.folder / f"{self._stem}{f'_{segment}' if segment else ''}{SUFFIX[self.config.writer.format]}"

    def journal_path(self, segment: int) -> Path:
        return self.books / f"{self._name}.{segment:06d}.journal"

    def journals(self) -> dict[int, Path]:
        """The journals that are there and hold something, by their segments, in order."""
        return {int(path.suffixes[-2][1:]): path for path in self._all_journals() if path.stat().st_size}

    def _all_journals(self) -> list[Path]:
        return sorted(self.books.glob(f"{self._name}.??????.journal"))

    def all_scores(self) -> list[Path]:
        """Files of scores, of any form, and of streams that are there."""
        return scores_of(self.folder, self.replica) + self.streams.all()

    def stale(self) -> list[Path]:
        """Such files that the manifest does not know, without those of complete events: the end replaces them."""
        assert self.manifest is not None
        return [path for path in self.all_scores() if not (self.manifest.knows(path) or is_complete(path))]

    def unfinished(self) -> dict[int, Path]:
        """Journals that are no files yet; those that are, and were not dropped, go, and so do empty ones."""
        assert self.manifest is not None
        left = self.journals()
        for path in {*self._all_journals()} - {*left.values()}:
            path.unlink()
        for segment in [segment for segment in left if segment < len(self.manifest.files)]:
            left.pop(segment).unlink()
        return left

    def convert(self, closing: Journal, segment: int) -> None:
        """Make a journal's files, enter it in the manifest, and drop the journal.

        Raises
        ------
        OSError
            The disk is full; the journal stays, and it can be tried again.
        """
        assert self.manifest is not None
        self.enter(closing, segment, self.make(closing.written(), segment, self.manifest.went_on))

    def make(self, written: Written, segment: int, went_on: Sequence[int]) -> Segment:
        """Make a journal's files; `went_on` as in the manifest.

        Raises
        ------
        OSError
            The disk is full.
        """
        path = self.scores_path(segment)
        tally = Tally(self.stripes, self.config.feed.deadline, len(self.config.menu.paths), went_on)
        write_scores(path, tally.count(written.blocks()), self.config, self.networks)
        streams = self.streams.write(written, segment, metadata_of(self.config, self.networks))
        return tally.segment(path, sha256_of(path), streams)

    def enter(self, closing: Journal, segment: int, made: Segment) -> None:
        """Enter a journal's files in the manifest, and drop the journal.

        Raises
        ------
        OSError
            As `convert`.
        """
        assert self.manifest is not None
        self.errors.rewrite(segment, closing.blocks() if made.errors else [])
        self.manifest.add(made)
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


def write_scores(path: Path, blocks: Any, config: Config, networks: dict[str, str]) -> int:
    """Write the output tree from scored blocks; returns the number of events.

    Parameters
    ----------
    networks : dict of str to str
        SHA-256 of each tagger's network when the run began.
    """
    title, form = "scores of the end-to-end taggers", config.writer.format
    schema, metadata = records.output(config), metadata_of(config, networks)
    return write(path, form, schema, output_steps(blocks, config), title, metadata)


def metadata_of(config: Config, networks: dict[str, str]) -> dict[str, str]:
    """What stands beside the tree."""
    taggers = {
        name: {**spec.model_dump(mode="json"), "sha256": networks.get(name, "")}
        for name, spec in config.taggers.items()
    }
    return {
        "streamer_sources": json.dumps(stored_sources(config)),
        "streamer_taggers": json.dumps(taggers),
        "streamer_version": __version__,
        **menu_metadata(config),
    }


def stored_sources(config: Config) -> tuple[str, ...]:
    """The input files, as they may be stored."""
    return tuple(str(shown(file)) for file in config.input.files)
