"""What the truth says of the scores: the AUC of each tagger on labelled input, and its ROC picture.

It is read back from the files of scores, so that it tells of what was written.
"""

import contextlib
import itertools
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from stages.performance import auc, background_rejection, roc_png
from stages.records import LABELS, SOURCE_INPUT
from stages.stored import Stored, opened, scores_of
from streamer import logs
from streamer.block import Array

Int64s = npt.NDArray[np.int64]

READ_EVENTS = 100_000
"""Events that are read at a time."""
MOST = 1_000_000
"""A tagger's figures are of so many signal and as many background objects at most: some 500 MB, and seconds."""
EFFICIENCY = 0.5
"""The signal efficiency at which the background rejection is told."""

_OTHER, _BACKGROUND, _SIGNAL = range(3)
_FILE_BITS = 40  # in an event's key its file stands above so many bits of its entry


@dataclass
class Scored:
    """The objects of one tagger whose truth is known and that it gave a score, each once.

    Attributes
    ----------
    tagger, objects : str
    label, score : str
        The columns of them.
    signal : int
        The label of its signal; that of its background is 0.
    n : int64, shape (3,)
        Objects with another label, background and signal; at most `MOST` each.
    labelled : bool
        There are labels, if only of objects without a score.
    """

    tagger: str
    objects: str
    label: str
    score: str
    signal: int
    n: Int64s = field(default_factory=lambda: np.zeros(3, np.int64))
    labelled: bool = False
    _scores: tuple[list[Array], ...] = field(default_factory=lambda: ([], [], []))
    _seen: Int64s = field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, keys: Int64s | None, counts: Array, labels: Array, scores: Array) -> bool:
        """Take in some events; returns whether that added anything.

        Parameters
        ----------
        keys : int64, shape (n_events,), optional
            Who the events are, where they can come again; they count when they come with a score for the first time.
        counts : int, shape (n_events,)
            Objects of each event.
        labels : int8, shape (counts.sum(),)
        scores : float32, shape (counts.sum(),)
            -1 for none.
        """
        kind = np.where(labels == self.signal, _SIGNAL, np.where(labels == 0, _BACKGROUND, _OTHER))
        good = (labels >= 0) & (scores != -1) & (self.n < MOST)[kind]
        if keys is not None and good.any():
            event = np.repeat(np.arange(counts.size), counts)
            having = np.unique(event[good])
            found, first = np.unique(keys[having], return_index=True)
            places = np.searchsorted(self._seen, found)
            new = np.append(self._seen, -1)[places] != found  # no key is negative
            self._seen = np.insert(self._seen, places[new], found[new])
            good &= np.isin(event, having[first[new]])
        for of, kept in enumerate(self._scores):
            some = scores[good & (kind == of)][: MOST - self.n[of]]
            self.n[of] += some.size
            if of != _OTHER:
                kept.append(some)
        return bool(good.any())

    @property
    def full(self) -> bool:
        """Whether it needs no more."""
        return bool((self.n[_BACKGROUND:] >= MOST).all())

    @property
    def truth(self) -> npt.NDArray[np.int8]:
        """int8, shape (n_background + n_signal,): 0 and 1."""
        return np.repeat(np.array([0, 1], np.int8), self.n[_BACKGROUND:])

    @property
    def scores(self) -> npt.NDArray[np.float32]:
        """float32, shape (n_background + n_signal,): in the order of `truth`."""
        return np.concatenate([np.zeros(0, np.float32), *self._scores[_BACKGROUND], *self._scores[_SIGNAL]])

    def why_not(self) -> str:
        """Why there is no AUC; empty where there is one, and where nothing is labelled."""
        others, background, signal = (int(n) for n in self.n)
        n = others + background + signal
        if (background and signal) or not self.labelled:
            return ""
        if not n:
            return f"none of the labelled {self.objects} has a score"
        if others:
            return f"of {n:,} labelled {self.objects}, {signal:,} are signal and {background:,} background"
        return f"all {n:,} labelled {self.objects} are {'signal' if signal else 'background'}"


def read(paths: Sequence[Path]) -> tuple[list[Scored], int]:
    """What a run's files of scores hold of truth and scores.

    An event that was fed again and again counts once for each tagger, in the first pass that gave it a score. Reading
    of a file ends with it, with a whole pass that adds nothing, or where every tagger has enough.

    Returns
    -------
    taggers : list of Scored
        Those whose objects can have labels.
    n_passes : int
        Over the input; of a mix, over the input that was fed most often of those in the last files.
    """
    taggers: list[Scored] = []
    with opened(paths[0]) as file:
        for name, spec in json.loads(file.text("streamer_taggers")).items():
            if (objects := spec["objects"]) in LABELS:
                taggers.append(Scored(name, objects, LABELS[objects], f"{objects}_{spec['score']}", spec["signal"]))
    writers = _by_writer(paths)
    n_passes = max(map(_passes, writers))
    for path in itertools.chain(*writers):  # a run of months has more files than a process may open
        if all(tagger.full for tagger in taggers):
            break
        with opened(path) as file:
            if file.n_events:
                _read(file, taggers, several=n_passes > 1 or _is_mix(file))
    return taggers, n_passes


def _by_writer(paths: Sequence[Path]) -> list[list[Path]]:
    """The files of each writer, in the order in which it made them: `scores.root`, `scores_1.root`, ..."""
    found: dict[str, list[tuple[int, Path]]] = {}
    for path in paths:
        stem, _, number = path.stem.partition("_")
        found.setdefault(stem, []).append((int(number or 0), path))
    return [[path for _, path in sorted(files)] for files in found.values()]


def _passes(paths: Sequence[Path]) -> int:
    """Passes over the input, as the last of a writer's files tells that has events."""
    for path in reversed(paths):
        with opened(path) as file:
            if file.n_events:
                return 1 + _last_pass(file)
    return 0


def _is_mix(file: Stored) -> bool:
    """Whether several inputs take turns, each with passes of its own."""
    return SOURCE_INPUT.name in file.names


def _last_pass(file: Stored) -> int:
    """The highest number of a pass."""
    firsts = range(0, file.n_events, READ_EVENTS) if _is_mix(file) else [file.n_events - 1]
    return max(int(np.max(_columns(file, {"replay"}, first)["replay"])) for first in firsts)


def _read(file: Stored, taggers: list[Scored], *, several: bool) -> None:
    """Add what one file holds; `several` passes over the input are told apart."""
    last = None  # the pass that added something last
    mixed = _is_mix(file)
    for first in range(0, file.n_events, READ_EVENTS):
        wanted = [tagger for tagger in taggers if not tagger.full]
        who = _columns(file, {"replay", "sourceFile", "sourceEntry"} if several else set(), first)
        if who and last is None:
            last = int(who["replay"][0])
        if not wanted or (last is not None and not mixed and who["replay"][0] > last + 1):
            break
        labels = _columns(file, {tagger.label for tagger in wanted}, first)
        wanted = [tagger for tagger in wanted if ak.any(labels[tagger.label] >= 0)]
        scores = _columns(file, {tagger.score for tagger in wanted}, first)
        keys = None
        if who:
            keys = (np.asarray(who["sourceFile"], np.int64) << _FILE_BITS) + np.asarray(who["sourceEntry"])
        for tagger in wanted:
            tagger.labelled = True
            counts = np.asarray(ak.num(labels[tagger.label]))
            flat = (np.asarray(ak.flatten(array)) for array in (labels[tagger.label], scores[tagger.score]))
            if tagger.add(keys, counts, *flat) and who:
                last = int(who["replay"][-1])


def _columns(file: Stored, names: set[str], first: int) -> dict[str, Any]:
    """Awkward arrays of some events from entry `first` on."""
    if not names:
        return {}
    return file.arrays(sorted(names), first, min(first + READ_EVENTS, file.n_events))


def tell(folder: Path) -> None:
    """Print how good each tagger was by the labels in a run's files of scores, and draw the ROC curves beside them.

    Nothing is said where nothing is labelled. What goes wrong is one line: the scores are good without.
    """
    paths = scores_of(folder)
    if not paths:
        return
    try:
        taggers, n_passes = read(paths)
    except Exception as error:  # whatever a disk or a reader of ROOT files can come up with
        _complain(f"{folder}: the scores cannot be read back for the AUC", error)
        return
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("tagger", "AUC", f"rejection at {EFFICIENCY:.0%}", "signal", "background", "picture"):
        left = title in ("tagger", "picture")
        table.add_column(title, justify="left" if left else "right", no_wrap=not title.startswith("rejection"))
    lines = []
    for tagger in taggers:
        picture = folder / f"roc_{tagger.tagger}.png"
        with contextlib.suppress(OSError):
            picture.unlink(missing_ok=True)  # it would be taken for this run's
        if all(tagger.n[_BACKGROUND:]):
            table.add_row(tagger.tagger, *_figures(tagger), _draw(tagger, picture))
            if MOST in tagger.n[_BACKGROUND:]:
                lines.append(f"{tagger.tagger}: by the first {MOST:,} of each kind at most")
        elif why := tagger.why_not():
            lines.append(f"{tagger.tagger}: no AUC, {why}")
    console = Console()
    if table.row_count:
        console.print(table)
        if n_passes > 1:
            lines.append("each event of the input counts once, however often it was fed")
    for line in lines:
        console.print(line, soft_wrap=True, highlight=False)


def _figures(tagger: Scored) -> tuple[str, ...]:
    truth, scores = tagger.truth, tagger.scores
    area, error = auc(truth, scores)
    rejection, its_error = background_rejection(truth, scores, EFFICIENCY)
    told = f"{rejection:,.1f} +- {its_error:,.1f}" if np.isfinite(rejection) else "no background left"
    return f"{area:.4f} +- {error:.4f}", told, f"{tagger.n[_SIGNAL]:,}", f"{tagger.n[_BACKGROUND]:,}"


def _draw(tagger: Scored, picture: Path) -> str:
    """The picture's name, or `none` where it cannot be made."""
    part = picture.with_name(picture.name + ".part")
    try:
        roc_png(tagger.truth, tagger.scores, part, f"{tagger.tagger} tagger, this run")
        part.replace(picture)
    except Exception as error:  # a full disk, a setting of matplotlib's
        _complain(f"{picture}: cannot be written", error)
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        return "none"
    return picture.name


def _complain(what: str, error: Exception) -> None:
    why = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(f"{error!r}".split())[:160]
    logs.say(f"{what} ({why}); the scores are complete", logging.WARNING)
