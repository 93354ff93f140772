"""The table and the picture of `streamer bench feed`."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from stages.bench.feed import PROFILES, STEP_S, Fed, Result, Times
from streamer.arrivals import ORBIT_HZ, SLOTS, filling_of
from streamer.report import duration

DUE, LEFT, ASKED = "#457b9d", "#f4a261", "#343a40"
BINS = 48


WIDTH = 140
"""Of the table where it is not shown in a terminal."""


def show(result: Result) -> None:
    """Print what was measured on standard output."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in (
        "feed",
        "asked",
        "events",
        "due",
        "left",
        "gaps",
        "KS due",
        "KS left",
        "late p50",
        "p99",
        "most",
        "a block",
    ):
        table.add_column(title, justify="left" if title == "feed" else "right", no_wrap=True)
    for one in result.streams:
        random = one.profile != "fixed"
        tests = (f"{d:.3f} (p {p:.2f})" if random else "-" for d, p in (one.ks, one.ks_left))
        table.add_row(
            one.profile,
            f"{one.asked_hz:,g}/s",
            f"{one.events:,}",
            f"{one.hz:,.1f}/s",
            f"{one.left_hz:,.1f}/s",
            f"{duration(one.gap_s)} +- {duration(round(one.gap_spread_s, 9))}",
            *tests,
            *(duration(seconds) for seconds in one.late_s.values()),
            f"{one.events_per_block:.1f}",
        )
    console = Console()
    if not console.is_terminal:
        console.width = WIDTH
    console.print(table)
    for one in result.streams:
        if one.profile == "bunches":
            console.print(f"bunches {one.asked_hz:,g}/s: {one.in_slots:.1%} of the events are due when bunches meet")


def plot(result: Result, path: Path, filling: str) -> None:
    """Draw gaps, rates and the orbit, as asked, due and left, into a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rates = result.plan.rates
    style = {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}
    with plt.rc_context(style):
        figure, axes = plt.subplots(
            len(PROFILES) + 1, len(rates), figsize=(1 + 4 * len(rates), 12), layout="constrained", squeeze=False
        )
        for place, (one, times) in enumerate(zip(result.streams, result.times, strict=True)):
            row, column = divmod(place, len(rates))
            _stream(axes[row, column], one, times)
            if one.profile == "bunches":
                _orbit(axes[-1, column], times, filling)
        figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside upper right", ncols=3, frameon=False)
        about = result.about
        figure.suptitle(f"When events leave the reader, {about['cores']} cores of {about['cpu']}", x=0.01, ha="left")
        figure.savefig(path, dpi=120)
        plt.close(figure)


def _stream(axes: Any, one: Fed, times: Times) -> None:
    axes.set_title(f"{one.profile}, {one.asked_hz:,g} events/s", loc="left", fontweight="bold")
    if one.profile == "bursts":
        phase = np.linspace(0, 2 * STEP_S, BINS + 1)
        n_rounds = times.due[-1] / (2 * STEP_S)
        for some, colour, label in ((times.due, DUE, "due"), (times.left, LEFT, "left")):
            counts, _ = np.histogram(some % (2 * STEP_S), phase)
            axes.stairs(counts / n_rounds / np.diff(phase), phase, color=colour, label=label)
        axes.plot(phase, np.where(phase < STEP_S, 0.5, 1.5) * one.asked_hz, color=ASKED, lw=0.8, ls="--", label="asked")
        axes.set(xlabel="time in the table of rates [s]", ylabel="events/s", ylim=(0, None))
        return
    scale = 1e3 / one.asked_hz  # the mean gap [ms]
    edges = np.linspace(0, (2 if one.profile == "fixed" else 6) * scale, BINS + 1)
    for some, colour, label in ((times.due, DUE, "due"), (np.sort(times.left), LEFT, "left")):
        counts, _ = np.histogram(np.diff(some) * 1e3, edges)
        axes.stairs(np.maximum(counts, 0.5), edges, color=colour, label=label)
    if one.profile != "fixed":
        share = np.exp(-edges[:-1] / scale) - np.exp(-edges[1:] / scale)
        axes.plot((edges[:-1] + edges[1:]) / 2, one.events * share, color=ASKED, lw=0.8, ls="--", label="asked")
    axes.set(yscale="log", xlabel="gap [ms]", ylabel="events", ylim=(0.5, None))


def _orbit(axes: Any, times: Times, filling: str) -> None:
    """Where in the orbit events are due, by bins of eleven slots."""
    edges = np.arange(0, SLOTS + 11, 11)
    filled, _ = np.histogram(filling_of(filling), edges)
    due, _ = np.histogram(np.round(times.due * ORBIT_HZ % 1 * SLOTS), edges)
    axes.stairs(filled * due.sum() / filled.sum(), edges, color=ASKED, lw=0.8, ls="--")
    axes.stairs(due, edges, color=DUE)
    axes.set(xlabel="slot of the orbit (25 ns)", ylabel="events due")
    axes.set_title("bunches: trains, gaps and the abort gap", loc="left", fontweight="bold")
