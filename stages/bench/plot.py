"""What people see of a measurement by `streamer bench`: how it goes on, the table, and the figure."""

import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Table

from streamer.report import duration, progress_line
from streamer.supervisor import Progress as Running

COLOURS = {
    "event setup": "#8c8c8c",
    "detector frames": "#d98cb3",
    "object frames": "#2a9d8f",
    "tagger": "#f4a261",
    "input/output": "#457b9d",
}
"""As in the paper's Figure 4: grey, pink, teal, orange, blue."""


class Told:
    """A bar with what is measured now; where there is no terminal, a line for each step.

    It is redrawn only between measurements, and while the processes of the pipeline work: a thread that redraws it
    would take time from what is measured in this one.
    """

    def __init__(self, n_steps: int) -> None:
        self.console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("streamer bench"),
            BarColumn(bar_width=20),
            TextColumn("{task.description}"),
            console=self.console,
            auto_refresh=False,
            transient=True,
        )
        self._task = self._bar.add_task("", total=n_steps)
        self._n, self._text = 0, ""

    def __enter__(self) -> "Told":
        if self.console.is_terminal:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._bar.stop()

    def step(self, text: str) -> None:
        """The next step begins."""
        self._text = text
        self._show(text)
        self._n += 1
        if not self.console.is_terminal:
            print(f"streamer bench: {text}", file=sys.stderr, flush=True)

    def running(self, progress: Running) -> None:
        """How the pipeline does."""
        self._show(f"{self._text}: {progress_line(progress)}")

    def _show(self, text: str) -> None:
        if self.console.is_terminal:
            self._bar.update(self._task, completed=self._n, description=text)
            self._bar.refresh()


def show(result: dict[str, Any]) -> None:
    """Print a measurement, as in `bench.json`, on standard output."""
    console = Console()
    about, plan, ways = result["about"], result["plan"], result["ways"]
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold")
    head.add_row("measured", f"{plan['repeats']} x {plan['events']:,} events, the first {plan['drop']:,} dropped; "
                             f"median of {plan['rounds']} rounds")  # fmt: skip
    head.add_row("machine", f"{about['cores']} cores, {about['cpu']}, provider {about['provider']}, "
                            f"load {about['load_before']:.1f} before")  # fmt: skip
    head.add_row("events", f"{about['events_read']:,} from {', '.join(about['input'])}")
    head.add_row("scores", f"all ways agree, largest difference {result['max_score_difference']:.1g}")
    console.print(head)

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("")
    for way in ways:
        table.add_column(ways[way]["title"], justify="right")
    table.add_row("events/s", *(f"[bold]{ways[way]['throughput']:,.0f}[/]" for way in ways))
    table.add_row("spread", *(f"{ways[way]['spread']:,.0f}" for way in ways))
    table.add_row("CPU/event", *(duration(cpu_s(ways[way])) for way in ways))
    for module in COLOURS:
        table.add_row(f"  {module}", *(duration(ways[way]["modules_s"][module]) for way in ways), style="dim")
    console.print(table)

    tail = Table.grid(padding=(0, 2))
    tail.add_column(style="bold")
    for name, ratio in result["ratios"].items():
        one, _, other = name.partition("/")
        tail.add_row(f"{one} / {ways[other]['title']}", f"[bold]{ratio:.2f}[/]")
    tail.add_row("sustained", f"{result['sustained']['throughput']:,.0f} events/s over {plan['sustained']:,} events")
    latency = result["latency_s"]
    for at, quantiles in (("full speed", latency["saturated"]), (f"{latency['paced_rate']:,.0f}/s", latency["paced"])):
        text = "   ".join(f"p{float(q) * 100:.0f} {duration(seconds)}" for q, seconds in quantiles.items())
        tail.add_row(f"latency at {at}", text)
    console.print(tail)


def cpu_s(way: dict[str, Any]) -> float:
    """Processor time per event of a way [s]."""
    return float(sum(way["modules_s"].values()))


def plot(result: dict[str, Any], path: Path) -> None:
    """Draw throughputs as in the paper's Figure 2 and time per event as in its Figure 4, into a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    ways, about, plan = result["ways"], result["about"], result["plan"]
    shown = [way for way in ("seed", "pipeline", result["limit"]) if way in ways]
    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    with plt.rc_context({**style, "axes.titleweight": "bold", "axes.titlesize": 11}):
        figure = plt.figure(figsize=(11, 5), layout="constrained")
        left, right = figure.subfigures(1, 2, width_ratios=(1, 1.5))
        _throughputs(left.subplots(), result, shown)
        upper, *lower = right.subplots(len(shown) - 1, 1, height_ratios=(3, 2)[: len(shown) - 1], squeeze=False)[:, 0]
        _breakdown(upper, ways, shown, "Time per event by module")
        for axes in lower:
            _breakdown(axes, ways, shown[1:], "The last two, enlarged")
        [upper, *lower][-1].set_xlabel("processor time per event [us]")
        right.legend(*upper.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False,
                     handlelength=1, columnspacing=1.4)  # fmt: skip
        figure.suptitle(
            f"{about['tagger']} tagger on {about['cores']} cores of {about['cpu']} (provider {about['provider']}): "
            f"{plan['repeats']} x {plan['events']:,} events, the first {plan['drop']:,} dropped, "
            f"{plan['rounds']} rounds",
            fontsize=10,
        )
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _throughputs(axes: Any, result: dict[str, Any], shown: list[str]) -> None:
    for way, colour in zip(shown, ("#adb5bd", "#1d3557", "#dee2e6")[-len(shown) :], strict=True):
        numbers = result["ways"][way]
        rate, spread = numbers["throughput"], numbers["spread"]
        title = numbers["title"].replace(", ", ",\n")
        axes.bar(title, rate, 0.6, yerr=spread, capsize=4, color=colour, ecolor="#495057")
        text = f"{rate:,.0f}"
        if ratio := result["ratios"].get(f"pipeline/{way}"):
            text += f"\n(pipeline: {ratio:.2g} x)"
        axes.annotate(text, (title, rate + spread), (0, 4), textcoords="offset points", ha="center", fontsize=9)
    axes.set_ylabel("events per second")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.margins(y=0.12)
    axes.set_title("Throughput")


def _breakdown(axes: Any, ways: dict[str, Any], shown: list[str], title: str) -> None:
    longest = max(cpu_s(ways[way]) for way in shown) * 1e6
    for place, way in enumerate(shown):
        begin = 0.0
        for module, colour in COLOURS.items():
            width = ways[way]["modules_s"][module] * 1e6
            axes.barh(place, width, 0.6, left=begin, color=colour, label=None if place else module)
            if width > 0.045 * longest:
                text = f"{width:.0f}" if width >= 10 else f"{width:.1f}"
                axes.text(begin + width / 2, place, text, ha="center", va="center", fontsize=9, color="white")
            begin += width
        axes.annotate(f"{begin:.0f} us", (begin, place), (4, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(shown)), [ways[way]["title"].replace(", ", ",\n") for way in shown])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.12 * longest)
    axes.set_title(title)
