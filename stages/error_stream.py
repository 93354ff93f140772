"""The error stream: every event that could not be processed, why, and how to try it again; not what was shed.

In the folder `errors` of the output lie

    errors.jsonl, errors_1.jsonl, ...   a line for each failed event of scores.root, scores_1.root, ...
    0-1234.root                         all that the input file 0 holds of its entry 1234
    pipeline.toml                       the settings with which such an event is tried again

The lines come from the journal, so that they are as safe as the scores: those of a finished file are all there.
"""

import contextlib
import json
import logging
import queue
import shlex
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stages.config import Config, InputConfig
from stages.inputs import shown
from streamer.block import Block, failures, has_failed
from streamer.config import to_toml
from streamer.errors import UsageError, one_line

log = logging.getLogger(__name__)

SETTINGS = "pipeline.toml"
_WAITING = 64
"""Events that wait to become files; what does not fit is done at the end."""
_SHOWN, _MOST_SHOWN = 20, 1000
"""So many events are shown to who looks, and so many characters of what is said of each."""


class ErrorStream:
    """What one writer tells of events that failed.

    Parameters
    ----------
    config : Config
        Of the run.
    stages : list of str
        The chain; an event's `error` is 1 + the place in it.
    replica : int
        Of the writer.
    """

    def __init__(self, config: Config, stages: list[str], replica: int) -> None:
        self.config, self.stages = config, stages
        self.folder = config.writer.dir / "errors"
        self._stem = f"errors-{replica}" if replica else "errors"
        self._pending: dict[int, list[dict[str, Any]]] = {}
        self._shown: deque[dict[str, Any]] = deque(maxlen=_SHOWN)
        self._inputs: list[Path | str] | None = None
        self._wanted: queue.Queue[tuple[int, int] | None] = queue.Queue(_WAITING)
        self._saver: threading.Thread | None = None
        self._starting = threading.Lock()
        self._enough = False  # as many are saved, or cannot be, as the limit is
        self._lost: set[tuple[int, int]] = set()  # what cannot be saved

    def path(self, segment: int) -> Path:
        """The lines of a file of scores."""
        return self.folder / (f"{self._stem}_{segment}.jsonl" if segment else f"{self._stem}.jsonl")

    def add(self, block: Block, segment: int) -> None:
        """Take the failed events of a block; told after the next `flush`."""
        error = block.columns["error"]
        if np.count_nonzero(error) and has_failed(error).any():
            self._pending.setdefault(segment, []).extend(self._lines(block))

    def flush(self) -> None:
        """Tell what was added. A disk that does not take it has it again when the file of scores is made."""
        pending, self._pending = self._pending, {}
        for segment, lines in pending.items():
            try:
                self._prepare()
                with self.path(segment).open("a", encoding="utf-8") as file:
                    file.writelines(json.dumps(line) + "\n" for line in lines)
            except OSError as error:
                log.error("%s: cannot be written (%s)", self.path(segment), error.strerror or error)
            for line in lines:
                self._want(line)
            self._shown.extend(lines)

    def take_shown(self) -> list[dict[str, Any]]:
        """The last events that were told since the last call, without what is too long to be shown."""
        lines = [self._shown.popleft() for _ in range(len(self._shown))]
        names = ("number", "run", "luminosityBlock", "event", "source", "sourceEntry", "stage", "reason", "again")
        return [{name: _short(line[name]) for name in names} for line in lines]

    def rewrite(self, segment: int, blocks: Iterable[Block]) -> None:
        """Tell of all events of a segment anew.

        Raises
        ------
        OSError
            The disk is full.
        """
        self._pending.pop(segment, None)
        path, n = self.path(segment), 0
        part = path.with_name(path.name + ".part")
        try:
            with contextlib.ExitStack() as stack:
                for block in blocks:
                    if not has_failed(block.columns["error"]).any():
                        continue
                    if not n:
                        self._prepare()
                        file = stack.enter_context(part.open("w", encoding="utf-8"))
                    for line in self._lines(block):
                        file.write(json.dumps(line) + "\n")
                        self._want(line)
                        n += 1
            if n:
                part.replace(path)
            else:
                path.unlink(missing_ok=True)
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def finish(self) -> None:
        """Save the events of all lines that are not saved yet; returns when that is done."""
        self.close()
        for line in read_lines(self.folder, self._stem):
            if self._enough:
                return
            self._save(line["sourceFile"], line["sourceEntry"])

    def close(self) -> None:
        """Wait for what is being saved."""
        if self._saver is not None:
            self._wanted.put(None)
            self._saver.join()
            self._saver = None

    def drop(self) -> None:
        """Forget what an earlier run left."""
        for pattern in ("errors*.jsonl", "[0-9]*-[0-9]*.root", SETTINGS):
            for path in self.folder.glob(pattern):
                path.unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()

    def _prepare(self) -> None:
        settings = self.folder / SETTINGS
        if not settings.exists():
            self.folder.mkdir(exist_ok=True)
            settings.write_text(to_toml(_replay(self.config)), encoding="utf-8")

    @property
    def inputs(self) -> list[Path | str]:
        """The input files, in the order of the reader; none where they are not there any more."""
        if self._inputs is None:
            try:
                self._inputs = self.config.input.expanded()
            except UsageError:
                self._inputs = []
        return self._inputs

    def _lines(self, block: Block) -> Iterator[dict[str, Any]]:
        columns = block.columns
        for i, text in failures(columns).items():
            reason, _, traceback = text.partition("\n")
            number, entry = int(columns["sourceFile"][i]), int(columns["sourceEntry"][i])
            file = self.folder / f"{number}-{entry}.root"
            again = ("streamer", "run", file, "--config", self.folder / SETTINGS, "--output", file.with_suffix(""))
            yield {
                "number": block.id + i,
                **{name: int(columns[name][i]) for name in ("run", "luminosityBlock", "event")},
                "source": str(shown(self.inputs[number])) if number < len(self.inputs) else "",
                "sourceFile": number,
                "sourceEntry": entry,
                "replay": int(columns["replay"][i]),
                "stage": self.stages[int(columns["error"][i]) - 1],
                "reason": reason,
                "traceback": traceback,
                "again": shlex.join(map(str, again)),
            }

    def _want(self, line: dict[str, Any]) -> None:
        """Have an event saved by and by."""
        if self._enough:
            return
        with self._starting:  # a file of scores is made in another thread than results are taken in
            if self._saver is None:
                self._saver = threading.Thread(target=self._save_all, name="errors", daemon=True)
                self._saver.start()
        with contextlib.suppress(queue.Full):
            self._wanted.put_nowait((line["sourceFile"], line["sourceEntry"]))

    def _save_all(self) -> None:
        while (wanted := self._wanted.get()) is not None:
            self._save(*wanted)

    def _save(self, number: int, entry: int) -> None:
        path, most = self.folder / f"{number}-{entry}.root", self.config.writer.error_files
        if self._enough or path.exists() or number >= len(self.inputs) or (number, entry) in self._lost:
            return
        if len(self._lost) + sum(1 for _ in self.folder.glob("[0-9]*-[0-9]*.root")) >= most:
            log.warning("%s: %d failed events are kept as files, which is the limit", self.folder, most)
            self._enough = True
            return
        try:
            save_event(self.inputs[number], entry, self.config.input, path)
        except Exception as error:  # whatever reading of the input comes up with; the scores do not suffer from it
            self._lost.add((number, entry))
            log.error("%s: entry %d cannot be saved: %s", shown(self.inputs[number]), entry, one_line(error))


def save_event(source: Path | str, entry: int, config: InputConfig, path: Path) -> None:
    """Write all that we know to read of one entry of an event file to an event file of its own.

    Raises
    ------
    UsageError
        It cannot be read.
    """
    from stages.conversion import schema_of
    from stages.formats import open_events
    from stages.formats.root import write_events
    from stages.records import READABLE

    file = open_events(source, config.model_copy(update={"step_events": 1}))
    try:
        columns = [column for column in READABLE if column.name in file.names]
        schema = schema_of(columns)
        step = next((step for step in file.read(columns, lambda *_: None, entry) if step.entries.size), None)
        if step is None or step.entries[0] != entry:
            raise UsageError("it cannot be read any more")
        write_events(path, schema, [schema.slice(step.columns, 0, 1)])
    finally:
        file.close()


def _short(value: Any) -> Any:
    return value if not isinstance(value, str) or len(value) <= _MOST_SHOWN else value[: _MOST_SHOWN - 1] + "…"


def _replay(config: Config) -> Config:
    """The settings that decide what becomes of an event, without those that are of the run."""
    taggers = {
        name: spec.model_copy(update={"model": spec.model.resolve()}).model_dump(mode="json")
        for name, spec in config.taggers.items()
    }
    kept = config.input.model_dump(include={"calorimeters", "jets", "fat_jets"})
    framer, tagger = (section.model_dump(mode="json") for section in (config.framer, config.tagger))
    framer = {key: value for key, value in framer.items() if value is not None}
    return Config.model_validate({"input": kept, "framer": framer, "taggers": taggers, "tagger": tagger})


def read_lines(folder: Path, stem: str = "errors*") -> Iterator[dict[str, Any]]:
    """The lines in a folder of errors; one that is being written is left out."""
    for path in sorted({*folder.glob(f"{stem}.jsonl"), *folder.glob(f"{stem}_*.jsonl")}):
        with path.open(encoding="utf-8") as file:
            for line in file:
                if line.endswith("\n"):
                    yield json.loads(line)
