"""What people see of a run: the live line while it goes, the table at its end."""

import logging
import math
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.logging import RichHandler
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from streamer import logs
from streamer.config import LogConfig
from streamer.ledger import Ledger
from streamer.metrics import OUTCOMES
from streamer.supervisor import Outcome, Progress

PLAIN_EVERY_S = 5.0
IN_JOURNAL_EVERY_S = 600.0
"""Whoever looks at a service asks for its state; its journal is to last."""


@dataclass(frozen=True)
class StageSummary:
    """One row of the table; times per event in seconds.

    `busy_s` is the time in the stage's own code, `cpu_s` the processor time of
    its processes since they were running.
    """

    name: str
    replicas: int
    events: int
    busy_s: float
    cpu_s: float
    wait_s: float
    rss_bytes: int
    utilisation: float


@dataclass(frozen=True)
class QueueSummary:
    """One queue of the batching stage: items in a batch on average, and batches by why they were closed."""

    mean: float
    closed: Mapping[str, int]


@dataclass(frozen=True)
class Summary:
    """A finished run in numbers; latencies in seconds."""

    ledger: Ledger
    wall_s: float
    throughput: float
    latency_s: Mapping[str, float]
    commit_latency_s: Mapping[str, float]
    batches: Mapping[str, QueueSummary]
    dropped: Mapping[str, int]
    stages: tuple[StageSummary, ...]
    output: str
    provider: str
    problems: tuple[str, ...] = ()
    not_taken: Mapping[str, int] = field(default_factory=dict)
    dead_s: float = 0.0
    shed: Mapping[str, int] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def summarise(names: list[str], reports: Mapping[str, Mapping[str, Any]]) -> Summary:
    """Read the final reports of all processes.

    Parameters
    ----------
    names : list of str
        The stages, in chain order.
    reports : mapping
        Process names (`framer-0`) to reports.
    """
    per_stage = {name: [r for who, r in reports.items() if who.rpartition("-")[0] == name and r] for name in names}

    def total(name: str, key: str) -> float:
        return sum(float(report["metrics"].get(key, 0.0)) for report in per_stage[name])

    def events(name: str) -> int:
        return int(sum(total(name, f"streamer_events_total/{outcome}") for outcome in OUTCOMES))

    last = next(iter(per_stage[names[-1]]), {})
    fed = events(names[0])
    not_taken = _by_label(
        [(k, v) for r in per_stage[names[0]] for k, v in r["metrics"].items()], "streamer_events_dropped_total"
    )
    dead_s = sum(total(names[0], f"streamer_dead_seconds_total/{reason}") for reason in not_taken)
    wall = (last.get("last_done_ns", 0) - last.get("first_fed_ns", 0)) * 1e-9
    stages = []
    for name in names:
        n, waits = events(name), total(name, "streamer_queue_wait_seconds_count")
        replicas = len(per_stage[name])
        busy = total(name, "streamer_busy_seconds_total")
        stages.append(
            StageSummary(
                name=name,
                replicas=replicas,
                events=n,
                busy_s=busy / n if n else math.nan,
                cpu_s=sum(r["cpu_s"] for r in per_stage[name]) / n if n else math.nan,
                wait_s=total(name, "streamer_queue_wait_seconds_sum") / waits if waits else math.nan,
                rss_bytes=max((int(r["rss_bytes"]) for r in per_stage[name]), default=0),
                utilisation=busy / (wall * replicas) if wall > 0 and replicas else math.nan,
            )
        )
    everything = [report for group in per_stage.values() for report in group]
    metrics = [(key, value) for report in everything for key, value in report["metrics"].items()]
    nan = dict.fromkeys(("0.5", "0.95", "0.99"), math.nan)
    return Summary(
        ledger=Ledger(
            fed=fed + sum(not_taken.values()),
            scored=int(total(names[-1], "streamer_events_total/ok")),
            errors=int(total(names[-1], "streamer_events_total/error")),
            dropped=sum(not_taken.values()),
            shed=int(total(names[-1], "streamer_events_total/shed")),
            late=int(total(names[-1], "streamer_events_late_total")),
        ),
        shed={name: int(total(name, "streamer_events_total/shed")) for name in names[:-1]},
        not_taken=not_taken,
        dead_s=dead_s / max(1, len(per_stage[names[0]])),
        wall_s=wall,
        throughput=events(names[-1]) / wall if wall > 0 else math.nan,
        latency_s=last.get("latency_s", nan),
        commit_latency_s=last.get("commit_latency_s", nan),
        batches=_batches(metrics),
        dropped=_by_label(metrics, "streamer_hits_dropped_total")
        | {f"unreadable {k}": n for k, n in _by_label(metrics, "streamer_unreadable_events_total").items()},
        stages=tuple(stages),
        output=str(last.get("output", "")),
        provider=next((str(r["provider"]) for r in everything if "provider" in r), ""),
    )


def _by_label(metrics: list[tuple[str, float]], name: str) -> dict[str, int]:
    out: dict[str, int] = {}
    for key, value in metrics:
        head, slash, label = key.partition("/")
        if head == name and slash:
            out[label] = out.get(label, 0) + int(value)
    return out


def _batches(metrics: list[tuple[str, float]]) -> dict[str, QueueSummary]:
    n_batches = _by_label(metrics, "streamer_batch_size_count")
    items = _by_label(metrics, "streamer_batch_size_sum")
    closed = _by_label(metrics, "streamer_batch_closed_total")
    return {
        queue: QueueSummary(
            items[queue] / n if n else math.nan,
            {key.partition(",")[2]: count for key, count in closed.items() if key.startswith(f"{queue},")},
        )
        for queue, n in n_batches.items()
    }


class LiveLine:
    """One line that tells how the stream does; on a terminal it is redrawn, else a line is told now and then. Sets the
    log up to go with it."""

    def __init__(self, title: str, log: LogConfig) -> None:
        self.title, self._log = title, log
        self.console = Console(stderr=True)
        self._live = Live(console=self.console, refresh_per_second=8, transient=True)
        self._spinner = Spinner("dots", text=f"{title}: starting the processes")
        self._told = time.monotonic()
        self._redrawn = self.console.is_terminal and log.format == "pretty"
        self._every_s = IN_JOURNAL_EVERY_S if logs.to_journal() else PLAIN_EVERY_S

    def __enter__(self) -> "LiveLine":
        if self._redrawn:
            handler = RichHandler(console=self.console, show_path=False, show_time=False, markup=False)
            handler.setFormatter(logs.Pretty(level=False))
            logs.set_up(self._log, handler)
            self._live.start()
            self._live.update(self._spinner)
        else:
            logs.set_up(self._log, time=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._redrawn:
            self._live.stop()

    def update(self, progress: Progress) -> None:
        """Show the latest figures."""
        line = progress_line(progress)
        if self._redrawn:
            self._spinner.update(text=Text.assemble((f"{self.title}  ", "bold"), line))
        elif time.monotonic() - self._told >= self._every_s:
            self._told = time.monotonic()
            logs.say(line, logging.INFO, f"{self.title}: ")


def progress_line(progress: Progress) -> str:
    """`12,345 events   8,200/s   latency 24 ms   batch 61.2`."""
    if not progress.done:
        return {"starting": "starting the processes", "ready": "waiting for the chain"}.get(
            progress.state, progress.state
        )
    parts = [
        f"{progress.done:,} events",
        f"{progress.rate:,.0f}/s",
        f"latency {duration(progress.latency_s)}",
    ]
    if not math.isnan(progress.batch):
        parts.append(f"batch {progress.batch:.1f}")
    parts += [f"{n:,} {what}" for n, what in ((progress.errors, "errors"), (progress.shed, "shed")) if n]
    return "   ".join(parts)


def duration(seconds: float) -> str:
    """A time with three digits and a fitting unit."""
    if math.isnan(seconds):
        return "-"
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size or unit == "us":
            return f"{seconds / size:.3g} {unit}"
    raise AssertionError("unreachable")


def show(summary: Summary, outcome: Outcome) -> None:
    """Print the table of a finished run on standard output."""
    console = Console()
    books = summary.ledger
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold")
    less = "".join(f" + {n:,} {what}" for n, what in ((books.shed, "shed"), (books.dropped, "dropped")) if n)
    head.add_row("events", f"{books.fed:,} fed = {books.scored:,} scored + {books.errors:,} errors{less}")
    if books.shed or books.late:
        where = ", ".join(f"{n:,} {stage}" for stage, n in summary.shed.items() if n)
        shed = f"; shed: {where}" if books.shed else ""
        head.add_row("in time", f"{books.in_time / books.fed:.1%} ({books.late:,} were scored too late{shed})")
    if books.dropped:
        why = ", ".join(f"{n:,} {reason}" for reason, n in summary.not_taken.items() if n)
        live = max(0.0, 1 - summary.dead_s / summary.wall_s) if summary.wall_s > 0 else math.nan
        head.add_row("live time", f"{live:.1%} (dropped: {why})")
    head.add_row("throughput", f"{summary.throughput:,.0f} events/s over {duration(summary.wall_s)}")
    latency = [duration(summary.latency_s[q]) for q in ("0.5", "0.95", "0.99")]
    head.add_row("latency", "p50 {}   p95 {}   p99 {}".format(*latency))
    for queue, batch in summary.batches.items():
        closed = ", ".join(f"{n:,} {reason}" for reason, n in batch.closed.items() if n)
        told = "none" if math.isnan(batch.mean) else f"{batch.mean:.1f} on average ({closed})"
        head.add_row(f"batches {queue}", told)
    head.add_row("inference", f"provider {summary.provider}")
    left_out = ", ".join(f"{n:,} {reason}" for reason, n in summary.dropped.items() if n)
    if left_out:
        head.add_row("left out", left_out)
    console.print(head)
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("stage", "processes", "events", "time/event", "CPU/event", "busy", "queue wait", "memory"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for stage in summary.stages:
        table.add_row(
            stage.name,
            str(stage.replicas),
            f"{stage.events:,}",
            duration(stage.busy_s),
            duration(stage.cpu_s),
            "-" if math.isnan(stage.utilisation) else f"{stage.utilisation:.0%}",
            duration(stage.wait_s),
            f"{stage.rss_bytes >> 20} MB",
        )
    console.print(table)
    for line in summary.problems:
        console.print(f"[bold red]the books do not close:[/] {line}", highlight=False, soft_wrap=True)
    if outcome.exit_code == 0:
        console.print(f"[bold]scores[/]  {summary.output}", soft_wrap=True)
