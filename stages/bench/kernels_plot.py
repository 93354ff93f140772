"""What people see of a measurement by `streamer bench kernels`: the tables, and the figure."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from stages.bench.plot import COLOURS

TITLES = {"frames": "detector frames", "crops": "seeds and crops", "tensor": "dense tensor", "all": "all"}
_SHADES = {
    "frames": COLOURS["detector frames"],
    "crops": COLOURS["object frames"],
    "tensor": COLOURS["tagger"],
    "all": "#1d3557",
}


def show(result: dict[str, Any]) -> None:
    """Print a measurement, as in `kernels.json`, on standard output."""
    console = Console()
    about = result["about"]
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold")
    head.add_row("measured", f"us/event of one thread, median (fastest) of {result['plan']['repeats']} repeats")
    head.add_row("machine", f"{about['cores']} cores, {about['cpu']}, load {about['load_before']:.1f} before")
    head.add_row("tagger", f"{about['tagger']}: {_shape(about)}, {about['jets']} jets an event")
    for name, compared in result["compared"].items():
        head.add_row(name, _events(compared["contents"], about.get(name)))
    difference = max(compared["max_difference"] for compared in result["compared"].values())
    head.add_row("tensors", f"both ways agree, largest difference {difference:.1g}")
    console.print(head)

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("", "sparse", "dense", "dense / sparse"):
        table.add_column(title, justify="right" if title else "left")
    for name, compared in result["compared"].items():
        table.add_row(f"[bold]{name}[/]")
        for step, title in TITLES.items():
            figures = (f"{w['median_us'][step]:,.1f} ({w['min_us'][step]:,.1f})"
                       for w in (compared["sparse"], compared["dense"]))  # fmt: skip
            style = "bold" if step == "all" else ""
            table.add_row(f"  {title}", *figures, f"{compared['ratios'][step]:,.1f}", style=style)
    console.print()
    console.print(table)
    _show_growth(console, result["hits"], "hits", "ns", 1000)
    _show_growth(console, result["jets"], "jets", "us", 1)


def _shape(about: dict[str, Any]) -> str:
    return f"{len(about['channels'])} channels, crops of {about['crop']} x {about['crop']}"


def _events(contents: dict[str, float], taken: dict[str, Any] | None) -> str:
    text = (
        f"{contents['hits']:,.0f} hits and {contents['frame_pixels']:,.0f} pixels an event, "
        f"{contents['crop_pixels']:,.0f} pixels a crop"
    )
    if not taken:
        return text
    first, *others = taken["files"]
    more = f" and {len(others)} more" if others else ""
    return (
        f"{text}; {taken['events_read']:,} events read from {first}{more}, of which {taken['events_with_jets']:,} have "
        f"jets with a seed, {taken['jets']:.1f} on average"
    )


def _show_growth(console: Console, growth: dict[str, Any], what: str, unit: str, scale: float) -> None:
    """A row a step, a column a size, and the straight line."""
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column(f"sparse, by {what}")
    for title in (*(f"{n:,}" for n in growth["at"]), "fixed", f"{unit}/{what[:-1]}"):
        table.add_column(title, justify="right")
    for step, title in TITLES.items():
        figures = (f"{way['median_us'][step]:,.1f}" for way in growth["ways"])
        line = f"{growth['fixed_us'][step]:.1f}", f"{scale * growth['each_us'][step]:.1f}"
        table.add_row(f"  {title}", *figures, *line, style="bold" if step == "all" else "")
    console.print()
    console.print(table)


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw both ways side by side, and how the cost grows with hits and with jets, into a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    about, plan = result["about"], result["plan"]
    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    with plt.rc_context({**style, "axes.titleweight": "bold", "axes.titlesize": 11}):
        figure = plt.figure(figsize=(13, 4.8), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(1.25, 1, 1))
        _bars(left, result["compared"])
        _growth(middle, result["hits"], "ns", 1000)
        middle.set_xscale("log")
        middle.set_yscale("log")
        middle.set_ylim(top=4 * middle.get_ylim()[1])  # for the legend
        middle.set(title="Growth with hits", xlabel=f"hits an event ({about['jets']} jets)", ylabel="us per event")
        _growth(right, result["jets"], "us", 1)
        right.set(title="Growth with jets", xlabel=f"jets an event ({plan['hits_of_jets']:,} hits)")
        right.set_ylim(bottom=0)
        for axes in (middle, right):
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.yaxis.set_major_formatter("{x:,.0f}")
            axes.grid(color="#e9ecef", linewidth=0.8)
            axes.set_axisbelow(True)
        figure.suptitle(
            f"{about['tagger']} tagger, {_shape(about)}: processor time of one thread on {about['cpu']}, "
            f"median of {plan['repeats']} repeats",
            fontsize=10,
        )
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _bars(axes: Any, compared: dict[str, Any]) -> None:
    """A bar for each way on each set of events, by step."""
    names: list[str] = []
    ticks: list[float] = []
    place = 0.0
    longest = max(part["dense"]["median_us"]["all"] for part in compared.values())
    for name, part in compared.items():
        for way in ("sparse", "dense"):
            begin, us = 0.0, part[way]["median_us"]
            for step, title in list(TITLES.items())[:-1]:
                axes.barh(place, us[step], 0.7, left=begin, color=_SHADES[step], label=None if ticks else title)
                if us[step] > 0.08 * longest:
                    axes.text(begin + us[step] / 2, place, f"{us[step]:,.0f}", ha="center", va="center", fontsize=9,
                              color="white")  # fmt: skip
                begin += us[step]
            parts = " + ".join(f"{us[step]:,.0f}" for step in list(TITLES)[:-1])  # too narrow for figures in the bar
            note = f"{part['ratios']['all']:,.1f} x as long" if way == "dense" else parts
            axes.annotate(f"{us['all']:,.0f}", (begin, place), (4, 0), textcoords="offset points", fontsize=9,
                          va="bottom", fontweight="bold")  # fmt: skip
            axes.annotate(note, (begin, place), (4, -2), textcoords="offset points", fontsize=8, va="top")
            ticks.append(place)
            names.append(f"{name},\n{way}")
            place += 1
        place += 0.4
    axes.set_yticks(ticks, names)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 1.28 * longest)
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set(title="Sparse against dense", xlabel="us per event")
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.14), ncols=3, frameon=False, handlelength=1,
                columnspacing=1.2)  # fmt: skip


def _growth(axes: Any, growth: dict[str, Any], unit: str, scale: float) -> None:
    """Points of each step, and its straight line."""
    at = np.array(growth["at"])
    x = np.geomspace(at.min(), at.max(), 100) if at.min() > 0 else np.linspace(at.min(), at.max(), 100)
    for step, title in TITLES.items():
        each, colour = growth["each_us"][step], _SHADES[step]
        axes.plot(x, growth["fixed_us"][step] + each * x, color=colour, linewidth=1.2, alpha=0.6)
        axes.plot(at, [way["median_us"][step] for way in growth["ways"]], "o", markersize=4.5, color=colour,
                  label=f"{title}, {scale * each:,.1f} {unit} each")  # fmt: skip
    axes.legend(loc="upper left", frameon=False, fontsize=9, handlelength=1)
