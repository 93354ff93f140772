"""`streamer bench`: how fast the pipeline is, beside the seed's way and the limit, on the same events in one run.

Three ways to score the same file
---------------------------------
seed
    What the CMS reference does, in one process of Python: event by event with awkward, a dense frame of 280 x 360
    float32 an event, a dense crop cut from it, one call of the network for each crop, with one inference thread.
    It is a fair one: the file is read in large steps, the session is kept, and the detids are decoded by our
    compiled kernels. It writes nothing. Only for a tagger of photons in the ECAL, as the paper measures it.
limit
    Our own kernels in one process, without any transport and without writing: read, frame, crop, batches over
    whole steps. Measured with one and with two inference threads; the faster one is the limit.
pipeline
    The real one: `Supervisor` with a process for each stage, sockets between them, results committed to disk.

Protocol
--------
As in section 5 of the paper (1000 events, the first 300 dropped, ten repeats). Its repeats are jobs; here they are
windows cut from one stream, because a pipeline takes seconds to start and is never started for 1000 events. Window
r begins at event `r * (total - events) / (repeats - 1)`, so that the first one holds the start of the stream and
the last one its end. The time between events `drop` and `events` of each window counts. When an event was done is
known per event (seed), per step (limit) and per block (pipeline, by the writer's report); between those it is
interpolated. The throughput is all counted events over all counted time, its spread the standard deviation of the
windows. All ways take turns, `rounds` times, so that other load on the machine hits all alike; figures are medians
of the rounds, and so are the ratios, each taken within its round. *Sustained* is the rate of the pipeline's whole
stream without its first tenth.

Modules
-------
Time per event is processor time, as wall-clock time on a busy machine also counts the turns of others.

=================  ====================================  =========================================================
module             one process                           pipeline
=================  ====================================  =========================================================
event setup        seed: an event's arrays out of the    what the processes' loops and ZeroMQ's threads took: all
                   step; limit: making blocks            that moves and books blocks
detector frames    dense or sparse frame                 the framer, without that
object frames      seeds and crops                       the cropper, without that
tagger             batch and network                     the tagger, without that (on a GPU: the time it was busy)
input/output       reading                               the reader, without that, and the writer's journal, fsync
                                                         and ROOT file
=================  ====================================  =========================================================

The file
--------
The input's first 4000 events are copied into a temporary TTree; a smaller input is repeated until there are as
many. An event that stands a second time in a compressed basket costs next to nothing to read. So a basket never
goes beyond one pass over the input, and holds at most 1000 events. Small inputs have small baskets then, which are
somewhat slower to read (20 instead of 15 us an event with baskets of 100), for all ways alike; only an input of less
than 100 events is repeated within its baskets.
"""

import json
import logging
import os
import platform
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from stages.bench.plot import Told, plot
from stages.bench.ways import MODULES, Stream, copy_events, limit, pipeline, seed_way
from stages.config import Config, digest
from stages.inputs import shown
from stages.writer import prepare_folder
from streamer import __version__
from streamer.errors import StreamerError, UsageError
from streamer.report import Summary
from streamer.runner import keep_freed_memory

PACED_SHARE = 0.5
"""Latency is also measured with a live feed of this share of the sustained rate,"""
PACED_S = 4.0
"""for about so long [s]."""
TOLERANCE = 1e-5
"""Largest relative difference between the scores of two ways (absolute below 1)."""
GPU_TOLERANCE = 1e-3
"""GPUs multiply with fewer digits, and add in an order that depends on the batch."""

WAYS = {
    "seed": "seed's way",
    "limit_1": "limit, 1 thread",
    "limit_2": "limit, 2 threads",
    "pipeline": "pipeline",
}


@dataclass(frozen=True)
class Plan:
    """What is measured; numbers of events, but for `repeats` and `rounds`."""

    events: int = 1000
    drop: int = 300
    repeats: int = 10
    sustained: int = 40_000
    rounds: int = 3

    def __post_init__(self) -> None:
        if not 0 <= self.drop < self.events:
            raise UsageError(f"--drop {self.drop}: drop fewer than the {self.events} --events of a repeat")

    def n_events(self, way: str) -> int:
        """Events of one stream. The seed's way is too slow for more than it needs."""
        windows = self.repeats * self.events
        return windows if way == "seed" else max(windows, self.sustained)

    def seconds(self, stream: Stream) -> npt.NDArray[np.float64]:
        """What the counted events of each window took [s]."""
        first, last = int(stream.done[0]), int(stream.done[-1]) - self.events
        if last < first:
            raise UsageError(f"--events {self.events}: more than the writer tells of; set a larger feed.block_events")
        starts = np.linspace(first, last, self.repeats)
        begin, end = (np.interp(starts + n, stream.done, stream.at_s) for n in (self.drop, self.events))
        return np.asarray(end - begin)


@dataclass(frozen=True)
class Way:
    """One way in numbers: events per second, and processor time per event by module [s].

    `rounds` has the throughput of each round, `windows` the rates of its windows. `throughput` is the median of the
    rounds, `spread` that of the standard deviations of their windows.
    """

    title: str
    throughput: float
    spread: float
    rounds: list[float]
    windows: list[list[float]]
    modules_s: dict[str, float]

    @property
    def cpu_s(self) -> float:
        """Processor time per event [s]."""
        return sum(self.modules_s.values())


@dataclass(frozen=True)
class Result:
    """What `bench.json` holds. `limit` names the faster of the two limits; latencies in seconds."""

    about: dict[str, Any]
    plan: Plan
    ways: dict[str, Way]
    limit: str
    ratios: dict[str, float]
    sustained: dict[str, Any]
    latency_s: dict[str, Any]
    max_score_difference: float


def bench(config: Config, plan: Plan, output: Path) -> Result:
    """Measure, and leave `bench.json` and `bench.png` in the folder `output`.

    Raises
    ------
    StreamerError
        The ways do not give the same scores, or one fails.
    KeyboardInterrupt
        The measurement was stopped. Nothing is left then.
    """
    specs = list(config.taggers.values())
    if len(specs) != 1 or not specs[0].crop:
        raise UsageError("streamer bench measures one tagger of crops, as eg or top; configure just that")
    begin(output)
    keep_freed_memory()  # as the pipeline's processes do
    with (
        TemporaryDirectory(prefix=".bench-", dir=output) as folder,
        Told(len(ways_of(config)) * plan.rounds + 2) as told,
    ):
        told.step("copying the events")
        files = [str(shown(file)) for file in config.input.files]
        path = Path(folder).resolve() / "events.root"
        n_input, n_copied = copy_events(config, path)
        config = _reading(config, path, Path(folder).resolve())
        load = os.getloadavg()[0]
        result = _measure(config, plan, min(n_copied, plan.n_events("seed")), told)
    result.about.update(load_before=load, input=files, events_read=n_input, events_in_file=n_copied)
    data = asdict(result)
    (output / "bench.json").write_text(json.dumps(data, indent=2) + "\n")
    plot(data, output / "bench.png")
    return result


def _reading(config: Config, path: Path, folder: Path) -> Config:
    """The configuration that reads the copy in a loop, each time anew, and writes into `folder`."""
    given = {"files": (str(path),), "tree": "Events", "columns": {}, "keep_mb": 0}
    return config.model_copy(
        update={
            "input": config.input.model_copy(update=given),
            "writer": config.writer.model_copy(update={"dir": folder / "scores", "overwrite": True}),
        }
    )


def feeding(config: Config, events: int, rate: float = 0.0) -> Config:
    """The configuration of a stream of so many events."""
    feed = config.feed.model_copy(update={"loop": True, "events": events, "rate": rate})
    return config.model_copy(update={"feed": feed})


def _measure(config: Config, plan: Plan, n_scores: int, told: Told) -> Result:
    told.step("compiling the kernels")
    titles = ways_of(config)
    if "seed" in titles:
        seed_way(config, 10, 10)
    limit(config, 1, 10, 10)
    n = plan.n_events
    streaming = feeding(config, n("pipeline"))
    streams: dict[str, list[Stream]] = {way: [] for way in titles}
    summaries: list[Summary] = []
    for k in range(plan.rounds):
        for way in titles:
            told.step(f"round {k + 1} of {plan.rounds}: {titles[way]}")
            if way == "seed":
                streams[way].append(seed_way(config, n(way), n_scores))
            elif way == "pipeline":
                stream, summary = pipeline(streaming, n_scores, told.running)
                streams[way].append(stream)
                summaries.append(summary)
            else:
                streams[way].append(limit(config, int(way[-1]), n(way), n_scores))
    difference = _largest_difference(streams, TOLERANCE if summaries[0].provider == "CPU" else GPU_TOLERANCE)
    ways = {way: _way(title, plan, streams[way]) for way, title in titles.items()}
    best = max(("limit_1", "limit_2"), key=lambda way: ways[way].throughput)
    lasting = [sustained(stream.done, stream.at_s) for stream in streams["pipeline"]]

    rate = PACED_SHARE * float(np.median(lasting))
    told.step(f"latency at {rate:,.0f} events/s")
    paced = feeding(config, max(plan.events, int(min(plan.sustained, PACED_S * rate))), rate)
    latency_s = {
        "saturated": {q: float(np.median([s.latency_s[q] for s in summaries])) for q in summaries[0].latency_s},
        "paced": dict(pipeline(paced, 0, told.running)[1].latency_s),
        "paced_rate": rate,
    }
    return Result(
        about=_about(config, summaries[0]),
        plan=plan,
        ways=ways,
        limit=best,
        ratios={
            f"pipeline/{other}": _ratio(ways["pipeline"], ways[other]) for other in ("seed", best) if other in ways
        },
        sustained={"throughput": float(np.median(lasting)), "rounds": lasting},
        latency_s=latency_s,
        max_score_difference=difference,
    )


def ways_of(config: Config) -> dict[str, str]:
    """Those that can be taken with this tagger, and what they are called."""
    (spec,) = config.taggers.values()
    paper = spec.objects == "Photon" and spec.channels == ("ECAL",)
    return {way: title for way, title in WAYS.items() if way != "seed" or paper}


def _way(title: str, plan: Plan, streams: list[Stream]) -> Way:
    counted = plan.events - plan.drop
    seconds = [plan.seconds(stream) for stream in streams]
    rounds = [counted * plan.repeats / float(s.sum()) for s in seconds]
    windows = [(counted / s).tolist() for s in seconds]
    spread = float(np.median([np.std(rates) for rates in windows]))
    modules = {module: float(np.median([s.modules_s[module] for s in streams])) for module in MODULES}
    return Way(title, float(np.median(rounds)), spread, rounds, windows, modules)


def _ratio(one: Way, other: Way) -> float:
    return float(np.median([a / b for a, b in zip(one.rounds, other.rounds, strict=True)]))


def sustained(done: npt.NDArray[np.int64], at_s: npt.NDArray[np.float64]) -> float:
    """Events per second of a stream without its first tenth, by its marks."""
    first = max(int(done[0]), int(done[-1]) // 10)
    begin = float(np.interp(first, done, at_s))
    return (int(done[-1]) - first) / (float(at_s[-1]) - begin)


def _largest_difference(streams: dict[str, list[Stream]], tolerance: float) -> float:
    """Between the scores of all ways and those of the pipeline; relative for scores above 1.

    Raises
    ------
    StreamerError
        It is larger than `tolerance`.
    """
    wanted = streams["pipeline"][0].scores
    largest = 0.0
    for way, runs in streams.items():
        for run in runs:
            if run.scores.shape != wanted.shape:
                raise StreamerError(f"{WAYS[way]}: {run.scores.size} scores, but the pipeline has {wanted.size}")
            difference = np.abs(run.scores - wanted) / np.maximum(1, np.abs(wanted))
            if not (difference <= tolerance).all():
                raise StreamerError(f"{WAYS[way]}: scores differ by up to {difference.max():.2g} from the pipeline's")
            largest = max(largest, float(difference.max(initial=0)))
    return largest


def _about(config: Config, summary: Summary) -> dict[str, Any]:
    ((name, spec),) = config.taggers.items()
    packages = ("awkward", "numba", "numpy", "pyzmq", "uproot")
    return {
        **machine(),
        "versions": {
            "streamer": __version__,
            "python": platform.python_version(),
            "onnxruntime": ort.__version__,
            **{package: version(package) for package in packages},
        },
        "tagger": name,
        "model": str(spec.model),
        "model_sha256": digest(spec.model),
        "provider": summary.provider,
        "processes": sum(stage.replicas for stage in summary.stages),
    }


def begin(output: Path) -> dict[str, Any]:
    """Make the output folder, let nothing but warnings be logged, and tell of the machine.

    Raises
    ------
    UsageError
        The folder cannot be written.
    """
    prepare_folder(output)
    if logging.getLogger().level > logging.DEBUG:
        logging.getLogger().setLevel(logging.WARNING)
    return machine()


def machine() -> dict[str, Any]:
    """When and where something is measured."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load_before": os.getloadavg()[0],
        "version": __version__,
    }


def cpu_model() -> str:
    """What the processor calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
