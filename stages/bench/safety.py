"""`streamer bench safety`: what it costs that no event is lost.

The same events stream through the same processes, in turn with all safety and without any:

===========  ==================================================  ============================================
             with                                                without
===========  ==================================================  ============================================
reader       books what it feeds                                 keeps no book
writer       journal, fsync, then the commit                     forgets a block and commits it at once
===========  ==================================================  ============================================

Everything else is alike: processes, sockets, credits, the window, sequence numbers, redelivery. What is measured is the
rate at which the writer takes events, without the first tenth of the stream; as the reader waits for commits when
its window is full, the disk's share is in it. The ROOT file is made behind the end of the stream, and does not count.

Both take turns, `rounds` times, and each round begins with the other one, so that other load on the machine hits both
alike. A ratio is taken within its round; its spread is the standard deviation of the rounds. Processor time is the
median of the rounds, for the stages that have something to do with it and for all.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from stages import PIPELINE
from stages.bench.pipeline import begin, feeding, sustained
from stages.bench.plot import Told
from stages.bench.unsafe import UNSAFE
from stages.bench.ways import marks, run_through
from stages.config import Config
from stages.inputs import shown
from streamer.errors import StreamerError
from streamer.report import Summary, duration

CLAIM = 0.1
"""Safety costs at most this share of the throughput."""

WAYS = {"with": PIPELINE, "without": UNSAFE}


@dataclass(frozen=True)
class Plan:
    """How many events each stream has, and how often both take turns."""

    events: int = 40_000
    rounds: int = 5


@dataclass(frozen=True)
class Way:
    """One way: events per second in each round, processor time per event [s] by stage, latencies [s]."""

    rounds: list[float]
    cpu_s: dict[str, float]
    latency_s: dict[str, float]
    commit_latency_s: dict[str, float]

    @property
    def throughput(self) -> float:
        """Median of the rounds."""
        return float(np.median(self.rounds))


@dataclass(frozen=True)
class Result:
    """What `safety.json` holds: `ratios` are with / without in each round, `cost` is 1 - their median."""

    about: dict[str, Any]
    plan: Plan
    ways: dict[str, Way]
    ratios: list[float]
    cost: float
    spread: float
    claim: float


def safety(config: Config, plan: Plan, output: Path) -> Result:
    """Measure, and leave `safety.json` in the folder `output`, on whose disk the results are written meanwhile.

    Raises
    ------
    StreamerError
        A stream fails.
    KeyboardInterrupt
        The measurement was stopped. Nothing is left then.
    """
    about = begin(output)
    streams: dict[str, list[tuple[float, Summary]]] = {way: [] for way in WAYS}
    with TemporaryDirectory(prefix=".bench-", dir=output) as folder, Told(2 * plan.rounds) as told:
        writer = config.writer.model_copy(update={"dir": Path(folder).resolve() / "scores", "overwrite": True})
        config = feeding(config.model_copy(update={"writer": writer}), plan.events)
        for k in range(plan.rounds):
            for way in (*WAYS,) if k % 2 else (*reversed(WAYS),):
                told.step(f"round {k + 1} of {plan.rounds}: {way}")
                streams[way].append(_stream(way, config, told))
    ways = {way: _way(streams[way]) for way in WAYS}
    ratios = [one / other for one, other in zip(ways["with"].rounds, ways["without"].rounds, strict=True)]
    result = Result(
        about={
            **about,
            "input": [str(shown(file)) for file in config.input.files],
            "taggers": list(config.taggers),
            "disk": str(output.resolve()),
        },
        plan=plan,
        ways=ways,
        ratios=ratios,
        cost=1 - float(np.median(ratios)),
        spread=float(np.std(ratios)),
        claim=CLAIM,
    )
    (output / "safety.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    return result


def _stream(way: str, config: Config, told: Told) -> tuple[float, Summary]:
    """Events per second of one stream, and what it reports."""
    pipeline = WAYS[way]
    outcome, summary = run_through(pipeline, config, told.running)
    if summary.ledger.scored + summary.ledger.errors != summary.ledger.fed:
        raise StreamerError(f"{way}: of {summary.ledger.fed} events, {summary.ledger.scored} came out")
    return sustained(*marks(outcome, summary)), summary


def _way(streams: list[tuple[float, Summary]]) -> Way:
    def median(values: list[float]) -> float:
        return float(np.median(values))

    summaries = [summary for _, summary in streams]
    cpu_s = {
        stages[0].name: median([stage.cpu_s for stage in stages])
        for stages in zip(*(summary.stages for summary in summaries), strict=True)
    }
    quantiles = list(summaries[0].latency_s)
    return Way(
        rounds=[rate for rate, _ in streams],
        cpu_s=cpu_s,
        latency_s={q: median([summary.latency_s[q] for summary in summaries]) for q in quantiles},
        commit_latency_s={q: median([summary.commit_latency_s[q] for summary in summaries]) for q in quantiles},
    )


def show(result: Result) -> None:
    """Print a measurement on standard output."""
    console, about, plan = Console(), result.about, result.plan
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold")
    head.add_row("measured", f"{plan.events:,} events a stream, the first tenth dropped; {plan.rounds} rounds")
    head.add_row("machine", f"{about['cores']} cores, {about['cpu']}, load {about['load_before']:.1f} before")
    head.add_row("events", f"{', '.join(about['input'])}, taggers {', '.join(about['taggers'])}")
    head.add_row("disk", about["disk"])
    console.print(head)

    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("")
    for title in ("with safety", "without"):
        table.add_column(title, justify="right")
    ways = result.ways.values()
    table.add_row("events/s", *(f"[bold]{way.throughput:,.0f}[/]" for way in ways))
    table.add_row("spread", *(f"{np.std(way.rounds):,.0f}" for way in ways))
    table.add_row("CPU/event", *(duration(sum(way.cpu_s.values())) for way in ways))
    for stage in (PIPELINE.names[0], PIPELINE.names[-1]):
        table.add_row(f"  {stage}", *(duration(way.cpu_s[stage]) for way in ways), style="dim")
    for title, name in (("latency", "latency_s"), ("to the commit", "commit_latency_s")):
        for q in ("0.5", "0.99"):
            text = (duration(getattr(way, name)[q]) for way in ways)
            table.add_row(f"{title} p{float(q) * 100:.0f}", *text)
    console.print(table)

    held = "yes" if result.cost <= result.claim else "[bold red]no[/]"
    tail = Table.grid(padding=(0, 2))
    tail.add_column(style="bold")
    tail.add_row("with / without", f"[bold]{1 - result.cost:.3f}[/], spread {result.spread:.3f}")
    tail.add_row("  by round", " ".join(f"{ratio:.2f}" for ratio in sorted(result.ratios)))
    one, other = (sum(way.cpu_s.values()) for way in ways)
    tail.add_row("CPU with / without", f"{one / other:.3f}")
    tail.add_row("safety costs", f"[bold]{result.cost:.1%}[/] of the throughput; at most {result.claim:.0%}: {held}")
    console.print(tail)
