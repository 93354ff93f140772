"""What became of each input of a mix: how many of its events were fed, and how its objects scored.

It is read back from the files of scores, so that it tells of what was written. An event that was fed again counts
again: the shares are those of the feed.
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
from rich.console import Console
from rich.table import Table

from stages.began import began_with
from stages.inputs import shown
from stages.manifest import Manifest
from stages.records import SOURCE_INPUT
from stages.stored import opened, scores_of
from streamer import logs
from streamer.block import Array

READ_EVENTS = 100_000
MOST = 1_000_000
"""Quantiles are of so many objects of an input at most, the first ones."""
QUANTILES = (0.1, 0.5, 0.9)


@dataclass
class Scores:
    """The scores of one tagger for the objects of one input.

    Attributes
    ----------
    n, total : int, float
        How many objects have a score, and the sum of these.
    """

    n: int = 0
    total: float = 0.0
    _kept: list[Array] = field(default_factory=list)
    _n_kept: int = 0

    def add(self, scores: Array) -> None:
        """Take in scores; -1 is none."""
        good = scores[scores != -1]
        self.n += good.size
        self.total += float(good.sum(dtype=np.float64))
        some = good[: MOST - self._n_kept]
        if some.size:
            self._kept.append(some)
            self._n_kept += some.size

    def figures(self) -> tuple[float, ...]:
        """Mean and quantiles; NaN where there is no score."""
        if not self.n:
            return (np.nan,) * (1 + len(QUANTILES))
        return self.total / self.n, *np.quantile(np.concatenate(self._kept), QUANTILES).tolist()


@dataclass
class OfInput:
    """What became of one input.

    Attributes
    ----------
    share : float
        Of the events, as it was asked for.
    n_events, n_errors : int
        Events on disk, and those of them that could not be processed.
    accepted : Counter
        Events that a path of the menu accepted, by its column.
    scores : dict of str to Scores
        By tagger.
    """

    name: str
    share: float
    n_events: int = 0
    n_errors: int = 0
    accepted: Counter[str] = field(default_factory=Counter)
    scores: dict[str, Scores] = field(default_factory=dict)


def read(paths: Sequence[Path], names: Sequence[str], weights: Sequence[float]) -> list[OfInput]:
    """What a run's files of scores say of its inputs.

    Parameters
    ----------
    names, weights : sequence
        Of the inputs, as they were mixed.
    """
    inputs = [OfInput(name, weight / sum(weights)) for name, weight in zip(names, weights, strict=True)]
    for path in paths:
        with opened(path) as file:
            taggers = json.loads(file.text("streamer_taggers"))
            columns = {name: f"{spec['objects']}_{spec['score']}" for name, spec in taggers.items()}
            wanted = [SOURCE_INPUT.name, "error", *columns.values(), *paths_of(file.names)]
            for first in range(0, file.n_events, READ_EVENTS):
                _add(inputs, columns, file.arrays(wanted, first, min(first + READ_EVENTS, file.n_events)))
    return inputs


def paths_of(names: Sequence[str]) -> list[str]:
    """The columns of the decisions of a menu's paths; none where there was no menu."""
    return [name for name in names if name.startswith("HLT_") and not name.endswith("_prescale")]


def _add(inputs: Sequence[OfInput], columns: dict[str, str], arrays: Any) -> None:
    whose = np.asarray(arrays[SOURCE_INPUT.name])
    for place, one in enumerate(inputs):
        own = whose == place
        one.n_events += int(own.sum())
        one.n_errors += int(np.count_nonzero(np.asarray(arrays["error"])[own]))
        for path in [name for name in arrays if name.startswith("HLT_")]:
            one.accepted[path] += int(np.count_nonzero(np.asarray(arrays[path])[own]))
        for tagger, column in columns.items():
            one.scores.setdefault(tagger, Scores()).add(np.asarray(ak.flatten(arrays[column][own], axis=None)))


def tell(folder: Path) -> None:
    """Print what became of each input of a run that was a mix; nothing where it was none.

    What goes wrong is one line: the scores are good without.
    """
    paths = scores_of(folder)
    try:
        config = began_with(Manifest(folder / "books" / "writer-0.manifest"))
        given = config.input
        if not given.weights or not paths:
            return
        inputs = read(paths, [str(shown(name)) for name in given.files], given.weights)
    except Exception as error:  # whatever a disk or a reader of ROOT files can come up with
        why = " ".join(f"{error!r}".split())[:160]
        logs.say(f"{folder}: the scores cannot be read back for the table of the mix ({why})", logging.WARNING)
        return
    console = Console()
    console.print(_of_inputs(inputs))
    console.print(_of_scores(inputs))
    if any(one.accepted for one in inputs):
        console.print(_of_paths(inputs, config.feed.hertz))


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in titles:
        left = title in ("input", "tagger", "path")
        table.add_column(title, justify="left" if left else "right", no_wrap=not left, overflow="fold")
    return table


def _of_inputs(inputs: Sequence[OfInput]) -> Table:
    n = max(1, sum(one.n_events for one in inputs))
    table = _table("input", "asked", "events", "share", "errors")
    for one in inputs:
        shares = f"{one.share:.2%}", f"{one.n_events:,}", f"{one.n_events / n:.2%}"
        table.add_row(Path(one.name).name, *shares, f"{one.n_errors:,}")
    return table


def _of_scores(inputs: Sequence[OfInput]) -> Table:
    table = _table("tagger", "input", "scored", "mean", *map("{:.0%}".format, QUANTILES))
    for tagger in dict.fromkeys(tagger for one in inputs for tagger in one.scores):
        for k, one in enumerate(inputs):
            scores = one.scores[tagger]
            figures = ("-" if np.isnan(value) else f"{value:.3f}" for value in scores.figures())
            table.add_row("" if k else tagger, Path(one.name).name, f"{scores.n:,}", *figures)
    return table


def _of_paths(inputs: Sequence[OfInput], hertz: float) -> Table:
    """Which share of each input each path accepts; of a live feed also how many a second."""
    n = max(1, sum(one.n_events for one in inputs))
    table = _table("path", "input", "accepted", "efficiency", *(["rate"] if hertz else []))
    for path in dict.fromkeys(path for one in inputs for path in one.accepted):
        for k, one in enumerate(inputs):
            n_accepted = one.accepted[path]
            share, error = efficiency(n_accepted, one.n_events)
            rate = [f"{hertz * n_accepted / n:,.3g} +- {hertz * np.sqrt(n_accepted) / n:,.2g} Hz"] if hertz else []
            told = f"{share:.3%} +- {error:.3%}" if one.n_events else "-"
            table.add_row("" if k else path, Path(one.name).name, f"{n_accepted:,}", told, *rate)
    return table


def efficiency(n_accepted: int, n_events: int) -> tuple[float, float]:
    """A share and its binomial error; of none or all, the error is that of one event more or less."""
    if not n_events:
        return float("nan"), float("nan")
    share = n_accepted / n_events
    likely = min(max(n_accepted, 1), max(n_events - 1, 1)) / n_events
    return share, float(np.sqrt(likely * (1 - min(likely, 1.0)) / n_events))
