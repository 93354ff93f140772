"""`streamer bench peers`: the tagger beside other ways to serve a network in batches.

What is measured
----------------
bare
    `session.run` on a batch that is ready, at the batch size that does the most: the limit.
zmq
    A batching server as one writes it by hand over ZeroMQ (`stages.bench.peers_zmq`).
mosec
    The batching server of that name over HTTP on loopback (`stages.bench.peers_mosec`); needs the extra `peers`.
streamer
    The tagger's process between two real hops, by `stages.bench.tagger.stream`, with the adaptive policy.

Same network, same crops, same threads of an inference, same largest batch; mosec's longest wait is `tagger.max_wait`.
The servers are asked for one dense crop at a time, by a client in a process of its own, with at most four batches
unanswered; the tagger has sparse crops in blocks, as the chain hands them over. All take turns, `rounds` times; figures
are medians. The first tenth of a stream does not count.

Each is measured at full speed; then with requests at random distances (a Poisson process), `thin` a second, with one
event in a block; and at half of its own full speed of this round, with blocks as the feed makes them. Latency counts
from when a request was due, whatever it then had to wait for, to its answer.

Processor time is that of the server's processes, and of the tagger's. Every score that comes back is compared with that
of the network on the same crop.
"""

import json
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from stages.bench.peers_ways import Load, Material, Way, asked, bare, streamed
from stages.bench.pipeline import begin
from stages.bench.plot import Told
from stages.bench.tagger import answering_into, best_size, seconds_by_size
from stages.config import Config
from stages.inputs import shown
from stages.network import Network

PEERS = ("zmq", "mosec")
MISSING = "missing; pip install 'e2e-streamer[peers]'"


@dataclass(frozen=True)
class Plan:
    """How long each stream is [s], how often the ways take turns, and the rate of the thin stream [crops/s]."""

    seconds: float = 4.0
    rounds: int = 3
    thin: float = 500.0


@dataclass(frozen=True)
class Measured:
    """One way: a `Load` for each round, at full speed, on the thin stream, and at half of its own full speed.

    `missing` says what keeps it from being measured.
    """

    title: str
    full: list[Load] = field(default_factory=list)
    thin: list[Load] = field(default_factory=list)
    half: list[Load] = field(default_factory=list)
    missing: str = ""


@dataclass(frozen=True)
class Result:
    """What `peers.json` holds."""

    about: dict[str, Any]
    plan: Plan
    ways: dict[str, Measured]


def median(loads: list[Load], of: Callable[[Load], float]) -> float:
    """Of the rounds."""
    return float(np.median([of(load) for load in loads]))


def bench_peers(name: str, config: Config, plan: Plan, output: Path) -> Result:
    """Measure, and leave `peers.json` in the folder `output`.

    Parameters
    ----------
    name : str
        The tagger.
    config : Config
        With this tagger alone, and with its events.

    Raises
    ------
    StreamerError
        A stream fails, or a way has other scores.
    KeyboardInterrupt
        The measurement was stopped. Nothing is left then.
    """
    about = begin(output)
    # Not in `output`: the path of a socket must be short.
    with TemporaryDirectory(prefix="streamer-peers-") as folder, Told(2 + plan.rounds * 10) as told:
        ways, facts = _measure(name, config, plan, Path(folder), told)
    result = Result(
        about={
            **about,
            "tagger": name,
            "network": str(shown(config.taggers[name].model)),
            "provider": config.tagger.provider,
            "input": sorted({str(shown(file)) for file in config.input.files}),
            **facts,
        },
        plan=plan,
        ways=ways,
    )
    (output / "peers.json").write_text(json.dumps(asdict(result), indent=2) + "\n")
    return result


def _measure(
    name: str, config: Config, plan: Plan, folder: Path, told: Told
) -> tuple[dict[str, Measured], dict[str, Any]]:
    told.step("crops, and what the network says of them")
    config = answering_into(folder, config)
    network = Network(name, config, whole=True)
    tagger = config.tagger.model_copy(update={"max_batch": network.max_batch})
    config = config.model_copy(update={"tagger": tagger})
    material = Material(name, config, network)
    costs = seconds_by_size(network)
    best = best_size(costs)
    found = {
        "bare": Measured(f"bare network, batch {best}"),
        "zmq": Measured("hand-written, ZeroMQ"),
        "mosec": _mosec(),
        "streamer": Measured("streamer's tagger"),
    }
    with ExitStack() as servers:
        told.step("starting the servers")
        ways: dict[str, Way] = {}
        for kind in PEERS:
            if not found[kind].missing:
                ways[kind] = servers.enter_context(asked(kind, config, material, plan.seconds, folder / kind))
        ways["streamer"] = streamed(config, material, plan.seconds, best / costs[best], told)
        for k in range(plan.rounds):
            told.step(f"round {k + 1} of {plan.rounds}: the bare network")
            found["bare"].full.append(bare(network, best, plan.seconds))
            first = k % len(ways)  # another one each time, so that other load on the machine hits all alike
            for kind in [*ways][first:] + [*ways][:first]:
                _round(f"round {k + 1} of {plan.rounds}: {kind}", found[kind], ways[kind], plan, told)
    facts = {"threads": tagger.threads, "max_batch": tagger.max_batch, "max_wait_s": tagger.max_wait}
    return found, {**facts, "largest_difference": material.largest}


def _round(text: str, found: Measured, way: Way, plan: Plan, told: Told) -> None:
    told.step(f"{text} at full speed")
    full = way(0.0, False)
    found.full.append(full)
    for into, rate, alone in (
        (found.thin, min(plan.thin, full.crops_per_s), True),
        (found.half, full.crops_per_s / 2, False),
    ):
        told.step(f"{text} at {rate:,.0f} crops/s")
        into.append(way(rate, alone))


def _mosec() -> Measured:
    try:
        return Measured(f"mosec {version('mosec')}, HTTP")
    except PackageNotFoundError:
        return Measured("mosec", missing=MISSING)
