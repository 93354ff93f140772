"""Accepted events, complete: out of the files that a run was fed from, into files of the same kind.

An event is copied once, however often it was fed; what was accepted in any pass is accepted. Copies are in the order of
the input files and of the entries in them. Files of other columns than the first get an output of their own.
"""

import contextlib
import logging
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
from rich.console import Console
from rich.progress import track

from stages.began import began_with
from stages.config import InputConfig
from stages.copying import Copy, Layout, layout_of
from stages.formats import open_events
from stages.formats.base import EventFile
from stages.formats.ig import IgFile
from stages.formats.tree import TreeFile
from stages.inputs import shown
from stages.manifest import Manifest
from stages.order import Int64s
from stages.records import INPUT_BY_NAME
from stages.stored import opened
from streamer import fedbook
from streamer.disk import appearing
from streamer.errors import UsageError, nearest
from streamer.recordlog import read_about

log = logging.getLogger(__name__)

READ_EVENTS = 100_000
NUMBERS = ("run", "luminosityBlock", "event")


class NothingAcceptedError(UsageError):
    """There is nothing to copy."""


class MovedError(UsageError):
    """A finished file of results is not there."""


Select = Callable[[Any], "np.ndarray[Any, np.dtype[np.bool_]]"]
"""Which events of some results are accepted: handed their columns by name as numpy arrays, gives a bool for each."""


@dataclass(frozen=True)
class Selection:
    """What is accepted, by columns of the results.

    Attributes
    ----------
    columns : tuple of str
        Those that `select` looks at.
    n_listed : int
        So many events were named; 0 where none were.
    """

    columns: tuple[str, ...]
    select: Select
    n_listed: int = 0


@dataclass(frozen=True)
class Accepted:
    """The accepted events of one source file, each once.

    Attributes
    ----------
    entries : int64, shape (n,)
        Rising.
    numbers : uint64, shape (3, n)
        Run, lumisection and event.
    """

    entries: Int64s
    numbers: Any


def any_of(columns: Sequence[str]) -> Selection:
    """Events for which one of these columns is not 0, such as a trigger's decisions."""

    def select(results: Any) -> Any:
        return np.any([results[name] != 0 for name in columns], axis=0)

    return Selection(tuple(columns), select)


def of_streams(names: Sequence[str]) -> Selection:
    """Events that are in one of these streams of a menu, which the results have a column for."""
    return any_of([f"Stream_{name}" for name in names])


def listed(path: Path) -> Selection:
    """Events that stand in a file, a line for each: `run:lumisection:event`.

    Raises
    ------
    UsageError
        It cannot be read.
    """
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from None
    for number, line in enumerate(lines, 1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        try:
            run, lumi, event = map(int, text.split(":"))
            np.array([run, lumi, event], np.uint64)
        except (ValueError, OverflowError):
            raise UsageError(f"{path}: line {number}: write run:lumisection:event, not '{text}'") from None
        found.append((run, lumi, event))
    wanted = np.unique(_keys(np.array(found, np.uint64).reshape(-1, 3).T))

    def select(results: Any) -> Any:
        return np.isin(_keys([results[name] for name in NUMBERS]), wanted)

    return Selection(NUMBERS, select, wanted.size)


def _keys(numbers: Iterable[Any]) -> Any:
    """Run, lumisection and event as one value an event, which can be compared."""
    rows = np.stack([np.asarray(number, np.uint64) for number in numbers], axis=1)
    return np.ascontiguousarray(rows).view(f"V{8 * len(NUMBERS)}")[:, 0]


def results_of(folder: Path) -> list[Path]:
    """The finished files of results of a run that has ended.

    Raises
    ------
    UsageError
        It has not.
    MovedError
        A file is not there.
    """
    manifests = [Manifest(path) for path in sorted((folder / "books").glob("writer-*.manifest"))]
    if not manifests:
        raise UsageError(f"{folder}: no run was begun there (there is no {folder / 'books'}/writer-0.manifest)")
    if not all(manifest.complete for manifest in manifests):
        raise UsageError(f"{folder}: the run there has not ended; let it end, or make files: streamer finish {folder}")
    paths = [folder / segment.file for manifest in manifests for segment in manifest.segments()]
    for path in paths:
        if not path.exists():
            raise MovedError(f"{path}: is not there; bring it back, its decisions are needed")
    return paths


def accepted(results: Iterable[Path], selection: Selection) -> dict[int, Accepted]:
    """The accepted events, by the place of their source file among the inputs.

    Raises
    ------
    UsageError
        The results have no such column.
    """
    names = list(dict.fromkeys(["sourceFile", "sourceEntry", *NUMBERS, *selection.columns]))
    found: dict[int, list[Any]] = {}
    for path in results:
        with opened(path) as file:
            for name in selection.columns:
                if name not in file.names:
                    raise UsageError(f"{path}: there is no column '{name}'{nearest(name, file.names)}")
            for first in range(0, file.n_events, READ_EVENTS):
                arrays = file.arrays(names, first, min(first + READ_EVENTS, file.n_events))
                lists = [name for name in selection.columns if arrays[name].ndim > 1]
                if lists:
                    raise UsageError(f"{path}: '{lists[0]}' is a list an event; name a column of one value an event")
                columns = {name: ak.to_numpy(array) for name, array in arrays.items()}
                good = selection.select(columns)
                rows = np.stack([columns[name][good].astype(np.uint64) for name in ("sourceEntry", *NUMBERS)])
                files = columns["sourceFile"][good]
                for number in np.unique(files).tolist():
                    found.setdefault(number, []).append(rows[:, files == number])
    out = {}
    for number in sorted(found):
        rows = np.concatenate(found[number], axis=1)
        entries, places = np.unique(rows[0], return_index=True)
        out[number] = Accepted(entries.astype(np.int64), rows[1:, places])
    return out


def sources_of(folder: Path, inputs: Sequence[Path | str] = ()) -> tuple[InputConfig, list[tuple[Path | str, int]]]:
    """How a run read its input, and its files with their number of events.

    Parameters
    ----------
    inputs : sequence of Path or str
        Where they are now, all of them in the order in which they were fed; none: where they were.

    Raises
    ------
    UsageError
        There are more or fewer.
    """
    config = began_with(Manifest(folder / "books" / "writer-0.manifest")).input
    fed = read_about(folder / "books" / "reader-0.fed", fedbook.FORMAT)["source"]
    if inputs and len(inputs) != len(fed):
        raise UsageError(f"{folder}: its run had {len(fed)} input files, and {len(inputs)} are named")
    return config, [(path, n) for path, (_, n) in zip(inputs or [name for name, _ in fed], fed, strict=True)]


def skim(folder: Path, selection: Selection, output: Path, inputs: Sequence[Path | str] = (),
         without: Sequence[str] = ()) -> list[tuple[Path, int]]:  # fmt: skip
    """Copy the accepted events of a run; returns the files and how many events are in each.

    Raises
    ------
    UsageError
        There is something to mend first; nothing is left then.
    """
    wanted = accepted(results_of(folder), selection)
    config, sources = sources_of(folder, inputs)
    if not wanted:
        raise NothingAcceptedError(f"{folder}: no event is accepted; nothing is written")
    if selection.n_listed:
        n_found = np.unique(np.concatenate([_keys(events.numbers) for events in wanted.values()])).size
        if n_found < selection.n_listed:
            log.warning("%d of the %d listed events were not fed", selection.n_listed - n_found, selection.n_listed)
    with contextlib.ExitStack() as stack:
        files = {}
        for number in wanted:
            files[number] = _opened(*sources[number], config)
            stack.callback(files[number].close)
        outputs: dict[Layout | None, list[int]] = {}
        for number, file in files.items():
            outputs.setdefault(layout_of(file, without) if isinstance(file, TreeFile) else None, []).append(number)
        for number, file in files.items():
            _check_same(file, wanted[number])
        made, told = [], Console(stderr=True)
        for k, (layout, numbers) in enumerate(outputs.items()):
            suffix = output.suffix if layout is not None else ".ig"
            path = output.with_name(f"{output.stem}{f'_{k}' if k else ''}{suffix}")
            if layout is None:
                _copy_archives(path, [(files[n], wanted[n].entries) for n in numbers])
            else:
                with Copy(path, layout) as copy:
                    for n in track(numbers, "copying", console=told, transient=True, disable=not told.is_terminal):
                        copy.add(files[n], wanted[n].entries)  # type: ignore[arg-type]
            made.append((path, sum(wanted[n].entries.size for n in numbers)))
    return made


def check_copyable(file: EventFile, without: Sequence[str], how: str) -> None:
    """See that events of a file can be copied.

    Parameters
    ----------
    how : str
        What leaves a column out, for those who are told that one cannot be.

    Raises
    ------
    UsageError
        They cannot.
    """
    if isinstance(file, TreeFile):
        layout_of(file, without, how)
    elif not isinstance(file, IgFile):
        raise UsageError(f"{shown(file.path)}: events of a {file.kind} file cannot be copied")


def _opened(path: Path | str, n_events: int, config: InputConfig) -> EventFile:
    file = open_events(path, config)
    if not isinstance(file, TreeFile | IgFile):
        raise UsageError(f"{shown(path)}: events of a {file.kind} file cannot be copied")
    if file.n_events != n_events:
        raise UsageError(f"{shown(path)}: has {file.n_events} events, and had {n_events} when it was fed")
    return file


def _check_same(file: EventFile, events: Accepted) -> None:
    """See that the entries are still those events."""
    at = 0
    for step in file.read([INPUT_BY_NAME[name] for name in NUMBERS], lambda *_: None, int(events.entries[0])):
        end = int(np.searchsorted(events.entries, step.entries[-1], side="right"))
        entries = events.entries[at:end]
        places = np.searchsorted(step.entries, entries)
        now = np.stack([step.columns[name][places].astype(np.uint64) for name in NUMBERS])
        same = (step.entries[places] == entries) & (now == events.numbers[:, at:end]).all(0)
        if not same.all():
            entry, was = entries[~same][0], events.numbers[:, at:end][:, ~same][:, 0]
            told = "run {} lumisection {} event {}".format(*was)
            raise UsageError(f"{file.path}: entry {entry} is not {told} any more; it is not the file that was fed")
        at = end
        if at == events.entries.size:
            return
    raise UsageError(f"{file.path}: entry {events.entries[at]} cannot be read any more")


def _copy_archives(path: Path, files: Sequence[tuple[EventFile, Int64s]]) -> None:
    """Copy events of event-display archives into another."""
    with appearing(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
        for file, entries in files:
            assert isinstance(file, IgFile)
            for name, data in file.members(entries):
                archive.writestr(name, data)
