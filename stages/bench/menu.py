"""`streamer bench menu`: what a menu costs.

The same events stream through the same processes, in turn with a menu and without; a ratio is taken within its round.
As that is less than such a measurement can tell on most machines, the menu's own work is measured apart, too, in one
thread, on the events that a stream has scored: decisions for blocks of several sizes, and what the decisions add to a
file of scores. What this is of the processor time that an event costs in the stream is the menu's share.
"""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import awkward as ak
import numpy as np
import uproot
from rich.console import Console
from rich.table import Table

from stages import PIPELINE, records
from stages.bench.pipeline import begin, feeding, sustained
from stages.bench.plot import Told
from stages.bench.ways import marks, run_through
from stages.config import Config
from stages.inputs import shown
from stages.manifest import Tally
from stages.menu.config import DEFAULT
from stages.menu.menu import menu_of
from stages.menu.schedule import Schedule
from stages.menu.trigger import Trigger
from stages.results import SCORES, write_scores
from streamer.block import Block, Columns, Schema
from streamer.ledger import Stripes
from streamer.report import Summary, duration

CLAIM = 0.02
"""A menu costs at most this share of the throughput."""
SIZES = (4, 16, 64, 256)
"""Events of a block."""
FILE_EVENTS = 100_000
"""Of a file of scores; what is spent once a file is taken to be shared by as many events as a full one has."""


@dataclass(frozen=True)
class Plan:
    """How many paths the menu has, how many events each stream, and how often both take turns."""

    paths: int = 200
    events: int = 40_000
    rounds: int = 3


@dataclass(frozen=True)
class Result:
    """What `menu.json` holds: rates in events/s, times in seconds an event; `ratios` are with / without by round."""

    about: dict[str, Any]
    plan: Plan
    rates: dict[str, list[float]]
    ratios: list[float]
    cpu_s: dict[str, float]
    decide_s: dict[int, float]
    file_s: float
    share: float
    claim: float


def many_paths(config: Config, n: int) -> dict[str, Any]:
    """A menu of `n` paths for the configured taggers, no two alike: objects and scores, pairs, seeds, other paths."""
    paths: dict[str, Any] = {}
    specs = [spec for spec in config.taggers.values() if spec.objects != "Event"]
    for k in range(n):
        spec, name = specs[k % len(specs)], f"E2E_Path{k:03d}_v1"
        pt, score = 15 + k % 61, 0.8 + (k % 19) / 100
        if k % 10 == 9:
            paths[name] = f"E2E_Path{k - 1:03d}_v1 or (E2E_Path{k - 2:03d}_v1 and not E2E_Path{k - 3:03d}_v1)"
            continue
        some = "2 " if k % 5 == 4 else ""
        paths[name] = {
            "expression": f"{some}{spec.objects}: pt > {pt} and abs(eta) < {1 + k / n:.4f} and {spec.score} > {score}",
            "seed": f"{some}{spec.objects}: pt > {pt}" if k % 2 else "",
            "prescale": 1 + (k % 20 == 0) * k,
        }
    return paths


def bench_menu(config: Config, plan: Plan, output: Path) -> Result:
    """Measure, and leave `menu.json` in the folder `output`."""
    about = begin(output)
    menu = config.menu.model_validate({"paths": many_paths(config, plan.paths)})
    streams: dict[str, list[tuple[float, Summary]]] = {"with": [], "without": []}
    with TemporaryDirectory(prefix=".bench-", dir=output) as folder, Told(2 * plan.rounds) as told:
        writer = config.writer.model_copy(update={"dir": Path(folder).resolve() / "scores", "overwrite": True})
        plain = feeding(config.model_copy(update={"writer": writer}), plan.events)
        ways = {"with": plain.model_copy(update={"menu": menu}), "without": plain}
        for k in range(plan.rounds):
            for way in (*ways,) if k % 2 else (*reversed(ways),):
                told.step(f"round {k + 1} of {plan.rounds}: {way} a menu")
                outcome, summary = run_through(PIPELINE, ways[way], told.running)
                streams[way].append((sustained(*marks(outcome, summary)), summary))
        decide_s, file_s = _own_work(ways, Path(folder))
    rates = {way: [rate for rate, _ in found] for way, found in streams.items()}
    cpu_s = {way: float(np.median([sum(s.cpu_s for s in one.stages) for _, one in found]))
             for way, found in streams.items()}  # fmt: skip
    result = Result(
        about={**about, "input": [str(shown(file)) for file in config.input.files], "taggers": list(config.taggers)},
        plan=plan,
        rates=rates,
        ratios=[one / other for one, other in zip(rates["with"], rates["without"], strict=True)],
        cpu_s=cpu_s,
        decide_s=decide_s,
        file_s=file_s,
        share=(decide_s[SIZES[-1]] + file_s) / cpu_s["without"],
        claim=CLAIM,
    )
    (output / "menu.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    return result


def _own_work(ways: dict[str, Config], folder: Path) -> tuple[dict[int, float], float]:
    """Seconds an event: for decisions by size of the block, and for what they add to a file of scores."""
    menu = menu_of(ways["with"])
    assert menu is not None
    trigger = Trigger(menu, Schedule(DEFAULT, 1 << 20))
    schema = records.scores(ways["with"])
    events = _scored(ways["with"].writer.dir / SCORES, schema)
    decide_s = {}
    for size in SIZES:
        blocks = _blocks(schema, events, size, 200)
        trigger.decide(blocks[0])
        decide_s[size] = _seconds(lambda blocks=blocks: [trigger.decide(block) for block in blocks]) / (size * 200)  # type: ignore[misc]
    plain = _blocks(schema, events, SIZES[-1], FILE_EVENTS // SIZES[-1])
    decided = [trigger.decide(block) for block in plain]
    half = len(plain) // 2

    def write(way: str, blocks: list[Block]) -> float:
        tally = Tally(Stripes(), n_paths=len(ways[way].menu.paths))
        return _seconds(lambda: write_scores(folder / "one.root", tally.count(blocks), ways[way], {}))

    more = [write("with", decided[:n]) - write("without", plain[:n]) for n in (half, 2 * half)]
    file_s = max(0.0, more[1] - more[0]) / (half * SIZES[-1])
    once_s = max(0.0, more[0] - file_s * half * SIZES[-1])  # to lay out so many columns
    return decide_s, file_s + once_s / ways["with"].writer.segment_events


def _scored(path: Path, schema: Schema) -> tuple[Columns, int]:
    """What a stream has written, as blocks have it, and how many events that are."""
    with uproot.open(path) as file:
        tree = file["Events"]
        n = tree.num_entries
        columns = dict(schema.empty(n))
        for column in schema.columns:
            if column.name in tree:
                found = tree[column.name].array()
                flat = ak.to_numpy(found if column.per == "event" else ak.flatten(found))
                columns[column.name] = flat.astype(column.wire_dtype)
    return columns, n


def _blocks(schema: Schema, events: tuple[Columns, int], size: int, n: int) -> list[Block]:
    """Blocks of a size, from the beginning again when the events are over."""
    columns, n_events = events
    ends = schema.ends(columns)
    starts = [k * size % max(1, n_events - size) for k in range(n)]
    return [Block(start, size, schema.slice(columns, start, start + size, ends)) for start in starts]


def _seconds(work: Callable[[], object]) -> float:
    """Processor time of the fastest of three."""
    found = []
    for _ in range(3):
        begin = time.process_time()
        work()
        found.append(time.process_time() - begin)
    return min(found)


def show(result: Result) -> None:
    """Print a measurement on standard output."""
    console, about, plan = Console(), result.about, result.plan
    head = Table.grid(padding=(0, 2))
    head.add_column(style="bold")
    head.add_row("measured", f"{plan.paths} paths; {plan.events:,} events a stream, {plan.rounds} rounds")
    head.add_row("machine", f"{about['cores']} cores, {about['cpu']}, load {about['load_before']:.1f} before")
    head.add_row("events", f"{', '.join(about['input'])}, taggers {', '.join(about['taggers'])}")
    for way in ("with", "without"):
        rates = result.rates[way]
        told = f"{np.median(rates):,.0f} events/s, spread {np.std(rates):,.0f}; {duration(result.cpu_s[way])} an event"
        head.add_row(f"{way} menu", told)
    head.add_row("with / without", " ".join(f"{ratio:.3f}" for ratio in sorted(result.ratios)))
    sizes = ", ".join(f"{duration(s)} in blocks of {size}" for size, s in result.decide_s.items())
    head.add_row("decisions", f"{sizes} (an event)")
    head.add_row("columns in the file", f"{duration(result.file_s)} an event")
    held = "yes" if result.share <= result.claim else "[bold red]no[/]"
    head.add_row("the menu costs", f"[bold]{result.share:.1%}[/] of an event; at most {result.claim:.0%}: {held}")
    console.print(head)
