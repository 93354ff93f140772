"""What people see of `streamer bench tagger`: the tables and the figure."""

from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from stages.bench.tagger import POLICIES, Answered, OfTagger, Result
from streamer.report import duration

COLOURS = {"fixed": "#457b9d", "adaptive": "#e76f51"}


def show(result: Result) -> None:
    """Print a measurement on standard output."""
    console, about, plan = Console(), result.about, result.plan
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold")
    head.add_row("measured", f"streams of {plan.seconds:g} s, the first tenth dropped; {plan.rounds} rounds")
    head.add_row(
        "machine",
        f"{about['cores']} cores, {about['cpu']}, {about['threads'] or 'default'} inference threads, "
        f"load {about['load_before']:.1f} before",
    )
    head.add_row("events", ", ".join(about["input"]))
    console.print(head)

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("full speed", "bare", "at", "stage", "stage / bare", "spread", "CPU/1000"):
        table.add_column(title, justify="left" if title == "full speed" else "right")
    for name, one in result.taggers.items():
        rates = [stream.items_per_s for stream in one.stage]
        ratios = [rate / bare for rate, bare in zip(rates, one.bare, strict=True)]
        table.add_row(
            name,
            f"{np.median(one.bare):,.0f}/s",
            f"{one.best}",
            f"[bold]{np.median(rates):,.0f}/s[/]",
            f"[bold]{one.ratio:.2f}[/]",
            f"{np.std(ratios):.2f}",
            duration(1000 * float(np.median([stream.cpu_s_per_item for stream in one.stage]))),
        )
    console.print(table)

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("Poisson", "policy", "offered", "answered", "batch", "p50", "p99", "p99.9"):
        table.add_column(title, justify="left" if title in ("Poisson", "policy") else "right")
    for name, one in result.taggers.items():
        for stream in (*one.thin, *one.loads):
            table.add_row(name, *_row(stream, thin=stream in one.thin))
    console.print(table)

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("input", "form", "objects/s", "at", "bytes each", "scores differ from the CPU's by"):
        table.add_column(title, justify="left" if title in ("input", "form") else "right")
    for name, one in result.taggers.items():
        for form in one.forms:
            at = max(form.seconds, key=lambda n: n / form.seconds[n])
            rate, size = f"{at / form.seconds[at]:,.0f}", f"{form.bytes_per_item:,.0f}"
            table.add_row(name, form.form, rate, f"{at}", size, f"{form.difference:.1g}")
    console.print(table)

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in (
        f"in {plan.deadline * 1e3:g} ms, rehearsed",
        "arrivals",
        "adaptive",
        "best fixed",
        "best with timeout",
    ):
        table.add_column(title, justify="left" if title.endswith(("rehearsed", "arrivals")) else "right")
    for name, one in result.taggers.items():
        for case in one.rehearsed:
            texts = (f"{share:.1%}" for share in (case.adaptive, case.fixed, case.timeout))
            table.add_row(name, case.scenario, *texts)
    console.print(table)

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in (f"in {plan.deadline * 1e3:g} ms, real", "policy", "offered", "in time", "batch"):
        table.add_column(title, justify="left" if title.endswith(("real", "policy")) else "right")
    for name, one in result.taggers.items():
        for stream in one.deadlines:
            share, batch = f"[bold]{stream.in_time:.1%}[/]", f"{stream.mean_batch:.1f}"
            table.add_row(name, stream.policy, f"{stream.offered:,.0f}/s", share, batch)
    console.print(table)


def _row(stream: Answered, *, thin: bool) -> tuple[str, ...]:
    latencies = (duration(stream.latency_s[q]) for q in ("0.5", "0.99", "0.999"))
    title = f"{stream.offered:,.0f}/s{', one a block' if thin else ''}"
    return stream.policy, title, f"{stream.events_per_s:,.0f}/s", f"{stream.mean_batch:.1f}", *latencies


def plot(result: Result, path: Path) -> None:
    """Draw what is answered a second, and how late, against what is offered, into a PNG."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    about, names = result.about, list(result.taggers)
    style = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left"}
    with plt.rc_context({**style, "axes.titleweight": "bold", "axes.titlesize": 11}):
        figure, axes = plt.subplots(
            2, len(names), figsize=(1.5 + 3.3 * len(names), 6), layout="constrained", squeeze=False, sharex="col"
        )
        for column, name in enumerate(names):
            _answered(axes[0, column], name, result.taggers[name])
            _late(axes[1, column], result.taggers[name])
        axes[0, 0].set_ylabel("answered [events/s]")
        axes[1, 0].set_ylabel("latency [ms]: p50 dotted, p99 full")
        figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False)
        figure.suptitle(
            f"Tagger between two hops, Poisson arrivals, {about['cores']} cores of {about['cpu']}", x=0.01, ha="left"
        )
        figure.savefig(path, dpi=150)
        plt.close(figure)


def _of(one: OfTagger, policy: str) -> list[Answered]:
    return sorted((s for s in (*one.thin, *one.loads) if s.policy == policy), key=lambda s: s.offered)


def _answered(axes: Any, name: str, one: OfTagger) -> None:
    most = max(stream.offered for stream in one.loads)
    axes.plot([0, most], [0, most], color="#ced4da", lw=1)
    for policy in POLICIES:
        streams = _of(one, policy)
        axes.plot([s.offered for s in streams], [s.events_per_s for s in streams], "o-", color=COLOURS[policy], ms=4)
    axes.set_title(name)
    axes.yaxis.set_major_formatter("{x:,.0f}")


def _late(axes: Any, one: OfTagger) -> None:
    for policy in POLICIES:
        streams = _of(one, policy)
        for q, line in (("0.5", ":"), ("0.99", "-")):
            label = policy if q == "0.99" else None
            milliseconds = [1e3 * s.latency_s[q] for s in streams]
            axes.plot([s.offered for s in streams], milliseconds, f"o{line}", color=COLOURS[policy], ms=4, label=label)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.set_xlabel("offered [events/s]")
