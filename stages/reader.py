"""Reader: events from files, in steps, with only the columns that the taggers need."""

import itertools
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np

from stages import records
from stages.config import Config
from stages.formats import open_events
from stages.formats.base import EventFile
from stages.inputs import expand
from stages.records import INPUT_BY_NAME
from streamer.block import Columns
from streamer.errors import UsageError, nearest
from streamer.stage import Source

log = logging.getLogger(__name__)


class Reader(Source):
    """Reads the input files one after the other, with `feed.loop` again and again."""

    tallies = {"unreadable_events": ("entry", "file")}  # noqa: RUF012

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.outputs = records.hits(config)
        self._wanted = records.needed(config)
        self._files: list[EventFile] = []

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
        for path in expand(self.config.input.files):
            try:
                file = open_events(path, self.config.input)
                self._files.append(file)
                file.check(self._wanted)
            except UsageError as error:
                problems.append(str(error))
        if problems:
            raise UsageError("\n".join(problems))

    def close(self) -> None:
        for file in self._files:
            file.close()

    def about(self) -> dict[str, Any]:
        return {"files": len(self._files), "events_per_pass": sum(file.n_events for file in self._files)}

    def read(self) -> Iterator[Columns]:
        passes = itertools.count() if self.config.feed.loop else range(1)
        for replay in passes:
            n_pass = 0
            for number, file in enumerate(self._files):
                for step in file.read(self._wanted, self._reporter(file)):
                    n = len(step.entries)
                    if n:
                        n_pass += n
                        yield self._complete(step.columns, number, step.entries, replay)
            if not n_pass:
                return

    def _reporter(self, file: EventFile) -> Any:
        def report(first: int, n: int, why: str) -> None:
            which = f"entry {first}" if n == 1 else f"entries {first} to {first + n - 1}"
            log.error("%s: %s cannot be read and will be left out: %s", file.path, which, why)
            self.count("unreadable_events", "entry", n)

        return report

    def _complete(self, columns: Columns, number: int, entries: Any, replay: int) -> Columns:
        """Add where the events came from, and what optional columns mean where there are none."""
        n = len(entries)
        out = dict(columns)
        out["sourceFile"] = np.full(n, number, np.int32)
        out["sourceEntry"] = entries.astype(np.int64)
        out["replay"] = np.full(n, replay, np.uint32)
        for column in self._wanted:
            if column.collection and f"n{column.collection}" not in out:
                out[f"n{column.collection}"] = np.zeros(n, np.int32)
            if column.name not in out:
                members = out[f"n{column.collection}"].sum() if column.collection else n
                out[column.name] = np.zeros(int(members), column.wire.wire_dtype)
        return out
