"""`streamer bench tagger`: how much of what its networks can do the tagger makes of them, and how late its answers are.

What is measured
----------------
bare
    `session.run` on a batch that is ready, in one process, again and again; at the batch size that does the most.
stage
    The tagger's own process between two real hops: sparse crops come in blocks from memory, scores go to a process that
    notes when they came. Same network, same threads; what the tagger cuts off it (`stages.scaling`) is its own gain.

Both take turns, `rounds` times, and each ratio is taken within its round; figures are medians. The first tenth of a
stream does not count.

Latency is measured with events at random distances (a Poisson process), at `thin` events a second in blocks of one
event, and at shares of what the stage has just done in this run. It counts from when an event was due, which knows
nothing of how the chain does, to when its answer is at the end of the hop behind the tagger.

The network's input is given as a dense image and as its non-empty pixels (`stages.bench.forms`): the time of a batch,
the bytes that go to the device, and how far scores are from those of the image on the CPU. On a GPU this is the
check of CUDA against the CPU.

Deadlines: the policies are rehearsed with the costs that were just measured (`stages.bench.policies`), and then met
with the real thing, at `shares` of its full speed: what share of the events is answered within `deadline`, by the
fixed policy as it was best in rehearsal, and by the adaptive one, which is told `deadline` less `way` for the hops.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stages.bench.crops import ANSWERS, CROPS
from stages.bench.forms import OfForm, forms
from stages.bench.pipeline import begin
from stages.bench.plot import Told
from stages.bench.policies import Rehearsed, policies
from stages.bench.ways import run_through
from stages.config import Config, TaggerConfig
from stages.inputs import shown
from stages.network import Network

QUANTILES = ("0.5", "0.9", "0.99", "0.999")
POLICIES = ("fixed", "adaptive")
WITHOUT_EFFECT = {"fixed": {"deadline": 0.0}, "adaptive": {"max_wait": TaggerConfig().max_wait}}
"""By policy, the settings that mean nothing there, as they are by default."""
LEAST_EVENTS = 400


@dataclass(frozen=True)
class Plan:
    """How long each stream is [s], how often bare and stage take turns, and at which rates latency is looked at.

    Attributes
    ----------
    loads, shares : tuple of float
        Rates at which latency is looked at, and deadlines; 1 is the stage's full speed.
    deadline, way : float
        Seconds.
    items : int
        So many are played through the policies.
    """

    seconds: float = 4.0
    rounds: int = 3
    thin: float = 500.0
    loads: tuple[float, ...] = (0.25, 0.5, 0.7, 0.8, 0.9)
    shares: tuple[float, ...] = (0.8, 1.5)
    deadline: float = 0.02
    way: float = 0.006
    items: int = 3000


@dataclass(frozen=True)
class Answered:
    """One stream: what was offered and answered, events and network inputs ("items") a second, and latencies [s].

    `in_time` is the share of the events that was answered within the plan's deadline.
    """

    policy: str
    offered: float
    events_per_s: float
    items_per_s: float
    cpu_s_per_item: float
    mean_batch: float
    closed: dict[str, int]
    latency_s: dict[str, float]
    in_time: float


@dataclass(frozen=True)
class OfTagger:
    """One tagger: `bare` seconds by batch size, each round's items a second, and what came of rates and deadlines."""

    network: str
    bare_s: dict[int, float]
    bare: list[float]
    stage: list[Answered]
    thin: list[Answered] = field(default_factory=list)
    loads: list[Answered] = field(default_factory=list)
    forms: list[OfForm] = field(default_factory=list)
    rehearsed: list[Rehearsed] = field(default_factory=list)
    deadlines: list[Answered] = field(default_factory=list)

    @property
    def best(self) -> int:
        """The batch size that does the most."""
        return best_size(self.bare_s)

    @property
    def ratio(self) -> float:
        """Stage / bare, median of the rounds."""
        return float(np.median([one.items_per_s / bare for one, bare in zip(self.stage, self.bare, strict=True)]))


@dataclass(frozen=True)
class Result:
    """What `tagger.json` holds."""

    about: dict[str, Any]
    plan: Plan
    taggers: dict[str, OfTagger]


def bench_tagger(configs: dict[str, Config], plan: Plan, output: Path) -> Result:
    """Measure, and leave `tagger.json` in the folder `output`.

    Parameters
    ----------
    configs : dict of str to Config
        For each tagger, a configuration with it alone and with its events.

    Raises
    ------
    StreamerError
        A stream fails.
    KeyboardInterrupt
        The measurement was stopped. Nothing is left then.
    """
    about = begin(output)
    n_streams = plan.rounds + 2 + len(POLICIES) * (1 + len(plan.loads) + len(plan.shares))
    with TemporaryDirectory(prefix=".bench-", dir=output) as folder, Told(len(configs) * n_streams) as told:
        taggers = {name: _measure(name, config, plan, Path(folder), told) for name, config in configs.items()}
    one = next(iter(configs.values())).tagger
    result = Result(
        about={
            **about,
            "threads": one.threads,
            "provider": one.provider,
            "input": sorted({str(shown(file)) for config in configs.values() for file in config.input.files}),
        },
        plan=plan,
        taggers=taggers,
    )
    (output / "tagger.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    return result


def _measure(name: str, config: Config, plan: Plan, folder: Path, told: Told) -> OfTagger:
    config = answering_into(folder, config)
    network, whole = Network(name, config), Network(name, config, whole=True)
    costs, bare_s = seconds_by_size(network), seconds_by_size(whole)
    best, fastest = best_size(costs), best_size(bare_s)
    bare: list[float] = []
    stage: list[Answered] = []
    expected = best / costs[best]
    for k in range(plan.rounds):
        told.step(f"{name}, round {k + 1} of {plan.rounds}: full speed")
        bare.append(bare_rate(whole, fastest, plan.seconds))
        stage.append(stream(name, config, told, events=plan.seconds * expected, deadline=plan.deadline))
        expected = stage[-1].events_per_s
    full = float(np.median([one.events_per_s for one in stage]))
    found = OfTagger(str(shown(network.spec.model)), bare_s, bare, stage)
    once = partial(stream, name, config, told, deadline=plan.deadline)
    for share in (0.0, *plan.loads):
        for policy in POLICIES:
            rate = min(share * full if share else plan.thin, full)
            told.step(f"{name}, {policy}: {rate:,.0f} events/s")
            into = found.loads if share else found.thin
            n = plan.seconds * rate
            settings: dict[str, Any] = {"policy": policy}
            into.append(once(events=n, rate=rate, tagger=settings, block_events=0 if share else 1))
    told.step(f"{name}: forms of input")
    found.forms.extend(forms(name, config))
    told.step(f"{name}: rehearsing deadlines of {plan.deadline * 1e3:g} ms")
    found.rehearsed.extend(policies(costs, plan.deadline, plan.items))
    for share in plan.shares:
        rate = share * full
        most, wait = _best_fixed(found.rehearsed, share)
        for settings in (
            {"policy": "fixed", "max_batch": most, "max_wait": wait},
            {"policy": "adaptive", "deadline": plan.deadline - plan.way},
        ):
            told.step(f"{name}, {settings['policy']} against deadlines: {rate:,.0f} events/s")
            found.deadlines.append(once(events=plan.seconds * rate, rate=rate, tagger=settings))
    return found


def _best_fixed(rehearsed: list[Rehearsed], share: float) -> tuple[int, float]:
    """What was best in the rehearsal with the load that is nearest to this one."""
    return min((one for one in rehearsed if one.load), key=lambda one: abs(one.load - share)).fixed_at


def answering_into(folder: Path, config: Config) -> Config:
    """The configuration of streams whose answers are noted in this folder."""
    writer = config.writer.model_copy(update={"dir": folder.resolve() / "scores", "overwrite": True})
    writer.dir.mkdir(exist_ok=True)
    return config.model_copy(update={"writer": writer})


def seconds_by_size(network: Network) -> dict[int, float]:
    """What batches cost, from sizes that are each twice the one before."""
    sizes = sorted({1 << k for k in range(network.max_batch.bit_length())} | {network.max_batch})
    return {n: network.seconds(n) for n in sizes}


def best_size(costs: Mapping[int, float]) -> int:
    """The batch size that does the most."""
    return max(costs, key=lambda n: n / costs[n])


def bare_rate(network: Network, n: int, seconds: float) -> float:
    """Items a second of the network on batches of `n` that are ready."""
    done, begin = 0, time.perf_counter()
    while (took := time.perf_counter() - begin) < seconds / 2:
        network.run(n)
        done += n
    return done / took


def stream(
    name: str,
    config: Config,
    told: Told,
    *,
    events: float,
    deadline: float,
    rate: float = 0.0,
    tagger: Mapping[str, Any] | None = None,
    block_events: int = 0,
) -> Answered:
    """One stream of crops through the tagger's process.

    Parameters
    ----------
    tagger : mapping of str to object
        Settings that are changed.
    block_events : int
        Events of a block; 0: as configured.
    """
    n_events = max(LEAST_EVENTS, int(events))
    feed = {"loop": True, "events": n_events, "rate": rate, "arrivals": "poisson" if rate else "even"}
    if block_events:
        feed["block_events"] = block_events
    settings = config.tagger.model_copy(update=tagger)
    changed = {
        "tagger": settings.model_copy(update=WITHOUT_EFFECT[settings.policy]),
        "taggers": {name: config.taggers[name].model_copy(update={"priority": 0})},  # it is alone
        "feed": config.feed.model_copy(update=feed),
    }
    config = config.model_copy(update=changed)
    outcome, summary = run_through(CROPS, config, told.running)
    due, at, good = np.load(config.writer.dir / ANSWERS)
    items = outcome.reports["reader-0"]["items_per_event"][name]
    counted = slice(n_events // 10, None)
    latency = np.where(good[counted] != 0, at[counted] - due[counted], np.inf) * 1e-9
    per_s = (n_events - n_events // 10) / (float(at.max() - at[n_events // 10]) * 1e-9)
    batches = summary.batches[name]
    return Answered(
        policy=config.tagger.policy,
        offered=rate,
        events_per_s=per_s,
        items_per_s=items * per_s,
        cpu_s_per_item=outcome.reports["tagger-0"]["cpu_s"] / (items * n_events),
        mean_batch=batches.mean,
        closed=dict(batches.closed),
        latency_s={q: float(np.quantile(latency, float(q), method="higher")) for q in QUANTILES},
        in_time=float(np.mean(latency <= deadline)),
    )
