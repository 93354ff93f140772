"""What people see of `streamer knee`: the table and the figure."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from stages.bench.knee import ASKED_HZ, QUANTILES, Result
from streamer.knee import Probe
from streamer.report import duration

COLOURS = {"0.5": "#457b9d", "0.9": "#e9c46a", "0.99": "#e76f51"}


def show(result: Result) -> None:
    """Print a measurement on standard output."""
    console, about, plan, knee = Console(), result.about, result.plan, result.knee
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("of the knee", "offered", "in time", *(f"p{float(q) * 100:.0f}" for q in QUANTILES), "lost"):
        table.add_column(title, justify="right")
    for share, one in zip(plan.shares, result.shares, strict=True):
        table.add_row(f"{share:.0%}", *_row(one))
    table.add_section()
    for one in knee.confirmed:
        table.add_row("[bold]100%[/]", *_row(one))
    console.print(table)
    tail = Table.grid(padding=(0, 2))
    tail.add_column(style="bold")
    tail.add_row("machine", f"{about['cores']} cores, {about['cpu']}, load {about['load_before']:.1f} before")
    tail.add_row("events", f"{', '.join(about['input'])}, taggers {', '.join(about['taggers'])}")
    tail.add_row("full speed", f"{result.full:,.0f} events/s, with no deadline")
    tail.add_row("knee", f"[bold]{knee.rate:,.0f} events/s[/] with p99 within {duration(plan.deadline)}")
    tail.add_row("farm", f"{result.machines} machines like this one for {ASKED_HZ / 1e3:g} kHz")
    console.print(tail)


def _row(one: Probe) -> tuple[str, ...]:
    late = (duration(one.latency_s[q]) for q in QUANTILES)
    return f"{one.offered:,.0f}/s", f"{one.in_time:,.0f}/s", *late, f"{one.lost:,}"


def plot(result: Result, path: Path) -> None:
    """Draw latency against rate into a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    probes = sorted((*result.knee.probes, *result.shares), key=lambda one: one.offered)
    about, plan = result.about, result.plan
    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    with plt.rc_context({**style, "axes.titleweight": "bold", "axes.titlesize": 11}):
        figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
        for q in QUANTILES:
            late = [one.latency_s[q] * 1e3 for one in probes]
            axes.plot([one.offered for one in probes], late, "o", color=COLOURS[q], ms=4, alpha=0.7)
            axes.plot([], [], "o", color=COLOURS[q], label=f"p{float(q) * 100:.0f}")
        axes.axhline(plan.deadline * 1e3, color="#6c757d", lw=1, ls="--")
        axes.text(1, plan.deadline * 1e3, "deadline ", color="#6c757d", ha="right", va="bottom",
                  transform=axes.get_yaxis_transform())  # fmt: skip
        axes.axvline(result.knee.rate, color="#2a9d8f", lw=1.5)
        axes.text(result.knee.rate, 1, f" knee {result.knee.rate:,.0f}/s", color="#2a9d8f", va="top",
                  transform=axes.get_xaxis_transform())  # fmt: skip
        axes.set(yscale="log", xlabel="offered [events/s], Poisson", ylabel="latency [ms]")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        axes.legend(frameon=False)
        axes.set_title(f"{', '.join(about['taggers'])}: {about['cores']} cores of {about['cpu']}")
        figure.savefig(path, dpi=150)
        plt.close(figure)
