"""A run as a picture: rates, latency and dead time over time, and what each path accepted by lumisection."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from stages.ledger_files import HISTORY, NAMES, lines_of
from streamer.errors import StreamerError, UsageError
from streamer.monitor.watch import SERIES

MOST_PATHS = 10
"""Of so many paths, those with the highest rates, a line is drawn."""
COLOURS = {"fed": "#8d99a8", "done": "#2463a8", "p50": "#2a9d8f", "p95": "#e9b84d", "p99": "#d1495b"}
OUTCOMES = {"scored": "#2a9d8f", "errors": "#d1495b", "shed": "#e9b84d", "dropped": "#e76f51", "in_flight": "#8d99a8"}


def draw(folder: Path, books: Any, path: Path) -> None:
    """Draw the run in an output folder into a PNG, PDF or SVG.

    Raises
    ------
    UsageError
        The file cannot be written.
    StreamerError
        There is nothing to draw.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    history, lines = _history(folder), lines_of(books)
    if not lines:
        raise StreamerError(f"{folder}: no event was fed; there is nothing to draw")
    panels = (3 if history.size else 0) + 1 + (books.menu is not None)
    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    with plt.rc_context({**style, "axes.titleweight": "bold", "axes.titlesize": 11}):
        figure, axes = plt.subplots(panels, figsize=(9, 2.4 * panels + 0.6), layout="constrained", squeeze=False)
        rest = list(axes[:, 0])
        if history.size:
            _over_time(rest[:3], history)
            rest = rest[3:]
        _by_lumisection(rest[0], lines)
        if books.menu is not None:
            _paths(rest[1], books.menu)
        total = books.ledger
        figure.suptitle(
            f"{folder.resolve().name}: {total.fed:,} events fed, {total.scored:,} scored", x=0.01, ha="left"
        )
        try:
            figure.savefig(path, dpi=150)
        except (OSError, ValueError) as error:
            raise UsageError(f"{path}: cannot be written ({error}); choose another --picture") from None
        finally:
            plt.close(figure)


def _history(folder: Path) -> Any:
    """float, shape (n, 1 + n_series); nothing of a run that goes on or broke off."""
    try:
        rows = json.loads((folder / "books" / HISTORY).read_text())
        return np.array(rows, np.float64).reshape(len(rows), 1 + len(SERIES))
    except (OSError, ValueError):
        return np.zeros((0, 1 + len(SERIES)))


def _over_time(axes: list[Any], history: Any) -> None:
    at = history[:, 0] - history[0, 0]
    of = {name: history[:, 1 + k] for k, name in enumerate(SERIES)}
    for name in ("fed", "done"):
        axes[0].plot(at, of[name], color=COLOURS[name], label={"fed": "fed", "done": "written"}[name])
    for name in ("p50", "p95", "p99"):
        axes[1].plot(at, of[name] * 1e3, color=COLOURS[name], label=name)
    axes[2].fill_between(at, of["dead"] * 100, color="#e76f51", alpha=0.6, lw=0)
    axes[0].set(ylabel="events/s", title="rate")
    axes[1].set(ylabel="ms", yscale="log", title="latency")
    axes[2].set(ylabel="%", ylim=(0, 100), title="dead time", xlabel="time [s]")
    for one in axes[:2]:
        one.legend(frameon=False, ncols=3, loc="lower right", bbox_to_anchor=(1, 0.98), borderaxespad=0)
    for one in axes:
        one.set_xlim(0, max(1.0, at[-1]))


def _by_lumisection(axes: Any, lines: list[tuple[int, ...]]) -> None:
    below = np.zeros(len(lines))
    places = np.arange(len(lines))
    for name, colour in OUTCOMES.items():
        counts = np.array([line[NAMES.index(name)] for line in lines], float)
        if counts.any():
            axes.bar(places, counts, bottom=below, color=colour, width=0.9, label=name.replace("_", " "))
        below += counts
    _label(axes, [line[:2] for line in lines])
    axes.set(ylabel="events", title="what became of events")
    axes.legend(frameon=False, ncols=5, loc="lower right", bbox_to_anchor=(1, 0.98), borderaxespad=0)


def _paths(axes: Any, menu: Any) -> None:
    lumis = sorted(menu.lumis)
    seconds = np.array([menu.lumis[lumi].seconds for lumi in lumis])
    accepted = np.array([menu.lumis[lumi].paths[2] for lumi in lumis], float).reshape(len(lumis), len(menu.paths))
    with np.errstate(divide="ignore", invalid="ignore"):
        rates, errors = accepted / seconds[:, None], np.sqrt(accepted) / seconds[:, None]
    places = np.arange(len(lumis))
    for k in np.argsort(-accepted.sum(0), kind="stable")[:MOST_PATHS]:
        axes.errorbar(places, rates[:, k], errors[:, k], fmt="o-", ms=3, lw=1, label=menu.paths[k])
    _label(axes, lumis)
    axes.set(
        ylabel="accepted [Hz]", title="paths" if len(menu.paths) <= MOST_PATHS else f"the {MOST_PATHS} largest paths"
    )
    axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _label(axes: Any, lumis: list[tuple[int, ...]]) -> None:
    step = max(1, len(lumis) // 12)
    axes.set_xticks(range(0, len(lumis), step), [f"{run}:{lumi}" for run, lumi in lumis[::step]])
    axes.set_xlabel("run:lumisection")
