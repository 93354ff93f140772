"""What people see of `streamer bench peers`: the table and the figure."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from stages.bench.peers import Measured, Result, median
from stages.bench.peers_ways import Load
from streamer.report import duration

OWN, OTHERS = "#1d3557", "#8d99ae"
SHADES = {"0.99": 0.45, "0.5": 1.0}
CLIENT_FULL = 0.9
"""Where the client's thread worked more than this share of its time, it may be what kept the server back."""


def show(result: Result) -> None:
    """Print a measurement on standard output."""
    console, about, plan = Console(), result.about, result.plan
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold")
    head.add_row("measured", f"streams of {plan.seconds:g} s, the first tenth dropped; median of {plan.rounds} rounds")
    head.add_row(
        "machine",
        f"{about['cores']} cores, {about['cpu']}, inference threads: {about['threads'] or 'default'}, "
        f"load {about['load_before']:.1f} before",
    )
    head.add_row("tagger", f"{about['tagger']}, {about['network']}, batches up to {about['max_batch']}")
    head.add_row("events", ", ".join(about["input"]))
    head.add_row("scores", f"all agree, largest difference {about['largest_difference']:.1g}")
    console.print(head)

    measured = [way for way in result.ways.values() if way.full]
    bare = median(result.ways["bare"].full, lambda load: load.crops_per_s)
    table = _table("full speed", "crops/s", "of bare", "CPU/1000", "client busy")
    for way in measured:
        rate, busy = median(way.full, lambda load: load.crops_per_s), median(way.full, lambda load: load.client_busy)
        cpu = duration(1000 * median(way.full, lambda load: load.cpu_s_per_crop))
        table.add_row(way.title, f"[bold]{rate:,.0f}[/]", f"{rate / bare:.2f}", cpu, f"{busy:.0%}" if busy else "-")
    console.print(table)

    table = _table("latency", f"{plan.thin:,.0f}/s: p50", "p99", "half speed: p50", "p99")
    for way in measured:
        if way.thin:
            loads = (way.thin, way.half)
            table.add_row(way.title, *(duration(late(load, q)) for load in loads for q in ("0.5", "0.99")))
    console.print(table)

    if any(load.client_busy > CLIENT_FULL for way in measured for load in way.full):
        console.print("a client was busy all the time: its server could do more", style="yellow")
    for way in result.ways.values():
        if way.missing:
            console.print(f"{way.title} is {way.missing}", style="yellow", markup=False, highlight=False)


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for place, title in enumerate(titles):
        table.add_column(title, justify="right" if place else "left")
    return table


def late(loads: list[Load], q: str) -> float:
    """A quantile of the latency [s], median of the rounds."""
    return median(loads, lambda load: load.latency_s[q])


def plot(result: Result, path: Path) -> None:
    """Draw crops a second, and latencies on a logarithmic axis, into a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    about, ways = result.about, {name: way for name, way in result.ways.items() if way.full}
    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    with plt.rc_context({**style, "axes.titleweight": "bold", "axes.titlesize": 11}):
        figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.6), layout="constrained")
        _throughputs(left, ways)
        served = {name: way for name, way in ways.items() if way.thin}
        limits = _limits(served)
        _latencies(middle, served, "thin", f"Latency at {result.plan.thin:,.0f} crops/s", limits)
        _latencies(right, served, "half", "Latency at half of its full speed", limits)
        figure.suptitle(
            f"{about['tagger']} tagger, inference threads: {about['threads'] or 'default'}, "
            f"{about['cores']} cores of {about['cpu']}, median of {result.plan.rounds} rounds",
            x=0.01,
            ha="left",
            fontsize=10,
        )
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _throughputs(axes: Any, ways: dict[str, Measured]) -> None:
    for place, (name, way) in enumerate(ways.items()):
        rate = median(way.full, lambda load: load.crops_per_s)
        axes.barh(place, rate, 0.6, color=_colour(name))
        axes.annotate(f"{rate:,.0f}", (rate, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(ways)), [way.title for way in ways.values()])
    axes.invert_yaxis()
    axes.margins(x=0.2)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("crops per second")
    axes.set_title("Full speed")


def _limits(ways: dict[str, Measured]) -> tuple[float, float]:
    """Of the axes of latencies [ms]: a decade below the smallest, and room for the numbers."""
    seconds = [late(loads, q) for way in ways.values() for loads in (way.thin, way.half) for q in ("0.5", "0.99")]
    finite = [one for one in seconds if np.isfinite(one)] or [1e-3]
    return 10.0 ** np.floor(np.log10(1e3 * min(finite))), 20 * 1e3 * max(finite)


def _latencies(axes: Any, ways: dict[str, Measured], load: str, title: str, limits: tuple[float, float]) -> None:
    for place, (name, way) in enumerate(ways.items()):
        for q, alpha in SHADES.items():  # the longer one first, so that the shorter one lies over it
            milliseconds = min(1e3 * late(getattr(way, load), q), limits[1])
            axes.barh(place, milliseconds, 0.6, color=_colour(name), alpha=alpha)
        text = " / ".join(duration(late(getattr(way, load), q)) for q in ("0.5", "0.99"))
        worst = min(1e3 * late(getattr(way, load), "0.99"), limits[1])
        axes.annotate(text, (worst, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_xscale("log")
    axes.set_yticks(range(len(ways)), list(ways))
    axes.invert_yaxis()
    axes.set_xlim(*limits)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.set_xlabel("milliseconds: p50 dark, p99 light")
    axes.set_title(title)


def _colour(way: str) -> str:
    return OWN if way == "streamer" else OTHERS
