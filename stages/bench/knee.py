"""`streamer knee`: how many events a second this machine takes when each is to be answered within a deadline.

Each probe is a pipeline of its own, as `streamer run` starts it, fed at random distances (Poisson) at some rate.
Latency counts from when an event was due, which knows nothing of how the chain does, to when the writer has its scores.
The first second of a stream, or the first fifth of it, does not count.

The search is `streamer.knee`'s. Then a probe at each of `shares` of the knee tells what latency is below it, and what
becomes of a load above it, where the feed drops and the stages shed what comes too late.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stages import PIPELINE
from stages.bench.pipeline import begin, sustained
from stages.bench.plot import Told
from stages.bench.ways import marks, run_through
from stages.config import Config
from stages.inputs import shown
from streamer.errors import StreamerError, UsageError
from streamer.knee import Knee, Probe, find
from streamer.report import duration

QUANTILES = ("0.5", "0.9", "0.99")
ASKED_HZ = 100e3
"""The rate of a first-level trigger, which farms are sized for."""
FULL_EVENTS = 20_000
"""Events of the stream that tells where to begin, at most."""
MOST_PROBES = 40


@dataclass(frozen=True)
class Plan:
    """The deadline and how long each stream is [s], and how the knee is looked for (`streamer.knee.find`)."""

    deadline: float = 0.1
    seconds: float = 6.0
    repeats: int = 3
    resolution: float = 0.05
    shares: tuple[float, ...] = (0.25, 0.5, 0.8, 1.5)


@dataclass(frozen=True)
class Result:
    """What `knee.json` holds.

    `full` is what the chain did when fed as fast as it takes events, `shares` has a probe for each of the plan's, and
    `machines` is how many like this one take 100 kHz.
    """

    about: dict[str, Any]
    plan: Plan
    full: float
    knee: Knee
    shares: list[Probe]

    @property
    def machines(self) -> int:
        return math.ceil(ASKED_HZ / self.knee.rate)


def measure(config: Config, plan: Plan, output: Path) -> Result:
    """Measure, and leave `knee.json` in the folder `output`.

    Raises
    ------
    StreamerError
        A stream fails.
    UsageError
        No rate keeps the deadline; with what the thinnest stream took.
    KeyboardInterrupt
        The measurement was stopped. Nothing is left then.
    """
    about = {**begin(output), "taggers": list(config.taggers)}
    about["input"] = sorted({str(shown(file)) for file in config.input.files})
    with TemporaryDirectory(prefix=".knee-", dir=output) as folder, Told(MOST_PROBES) as told:
        writer = config.writer.model_copy(update={"dir": Path(folder).resolve() / "scores", "overwrite": True})
        config = config.model_copy(update={"writer": writer})
        told.step("as fast as the chain takes events")
        full = _full(config, plan, told)

        def probe(rate: float, *, live: bool = False) -> Probe:
            told.step(f"{rate:,.0f} events/s")
            return stream(config, plan, rate, told, live=live)

        def tell(one: Probe, good: bool) -> None:
            told.console.print(line(one, good))

        lowest = max(1.0, full / 1000)
        knee = find(
            probe, plan.deadline, 0.7 * full, resolution=plan.resolution, repeats=plan.repeats, lowest=lowest, told=tell
        )
        if not knee.rate:
            least = knee.probes[-1]
            raise UsageError(
                f"no rate keeps p99 within {duration(plan.deadline)}: at {least.offered:,.0f} events/s it is "
                f"{duration(least.latency_s['0.99'])}; set a longer --deadline"
            )
        shares = []
        for share in plan.shares:
            shares.append(probe(share * knee.rate, live=share > 1))
            tell(shares[-1], shares[-1].holds(plan.deadline))
    result = Result(about, plan, full, knee, shares)
    (output / "knee.json").write_text(json.dumps({**asdict(result), "machines": result.machines}, indent=2) + "\n")
    return result


def line(one: Probe, good: bool) -> str:
    """A probe in a line."""
    late = "   ".join(f"p{float(q) * 100:.0f} {duration(one.latency_s[q])}" for q in QUANTILES)
    mark = "[green]holds[/]" if good else "[red]too late[/]" if not one.lost else f"[red]{one.lost:,} lost[/]"
    return f"{one.offered:>10,.0f} events/s   {late}   {mark}"


def _full(config: Config, plan: Plan, told: Told) -> float:
    """Events a second that the chain takes when it is not spared."""
    feed = {"loop": True, "events": FULL_EVENTS, "rate": 0.0, "profile": (), "pileup": 0.0, "arrivals": "even"}
    feed |= {"overflow": "wait", "deadline": 0.0}
    config = config.model_copy(update={"feed": config.feed.model_copy(update=feed)})
    return sustained(*marks(*run_through(PIPELINE, config, told.running)))


def stream(config: Config, plan: Plan, rate: float, told: Told, *, live: bool = False) -> Probe:
    """A stream through the whole pipeline at a rate [Hz]; a live one sheds and drops what comes too late."""
    n = max(200, int(plan.seconds * rate))
    feed = {"loop": True, "events": n, "rate": rate, "profile": (), "pileup": 0.0, "arrivals": "poisson"}
    feed |= {"overflow": "drop", "deadline": plan.deadline} if live else {"overflow": "wait", "deadline": 0.0}
    config = config.model_copy(update={"feed": config.feed.model_copy(update=feed)})
    outcome, summary = run_through(PIPELINE, config, told.running)
    blocks = [np.array(report["done"]) for name, report in outcome.reports.items() if name.startswith("writer")]
    lost = summary.ledger.dropped + summary.ledger.shed
    return of_blocks(np.concatenate(blocks), rate, plan.deadline, lost)


def of_blocks(blocks: Any, rate: float, deadline: float, lost: int) -> Probe:
    """What the blocks that were written tell (`streamer.writing.Done`).

    The events of a block are due evenly, and those without an answer are its first ones: they are shed for that.
    """
    n, n_bad, first, last, at = blocks.T
    begin = first.min() + max(1_000_000_000, int(0.2 * (last.max() - first.min())))
    counted = first >= begin
    if not counted.any():
        raise StreamerError(f"a stream at {rate:,.0f} events/s is over before it is measured; set more --seconds")
    n, n_bad, first, last, at = (axis[counted] for axis in (n, n_bad, first, last, at))
    each = np.repeat(np.arange(n.size), n)
    place = np.arange(n.sum()) - np.repeat(np.cumsum(n) - n, n)
    due = first[each] + (last - first)[each] * place / np.maximum(n - 1, 1)[each]
    latency = ((at[each] - due) * 1e-9)[place >= n_bad[each]]
    took = (last.max() - first.min()) * 1e-9
    keeps_up = min(1.0, np.ptp(last) / max(1, np.ptp(at))) if n.size > 1 else 1.0
    return Probe(
        offered=rate,
        answered=latency.size / took if lost else float(rate * keeps_up),
        in_time=float(np.count_nonzero(latency <= deadline)) / took,
        lost=lost,
        latency_s={q: float(np.quantile(latency, float(q), method="higher")) for q in QUANTILES},
    )
