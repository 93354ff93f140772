"""The file and the ways to score it that `streamer bench` compares; see `stages.bench.pipeline` for what they mean."""

import asyncio
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import numpy.typing as npt
import uproot

from stages import PIPELINE, records
from stages.config import Config, TaggerSpec
from stages.conversion import schema_of
from stages.cropper import Cropper
from stages.detector.ecal import eb_pixel, eb_pixels, ee_pixel_table, ee_pixels, load_ee_geometry
from stages.detector.grid import column_of_phi, row_of_eta
from stages.detector.layout import EB_FIRST_ROW, EB_LAST_ROW, N_COLUMNS, N_ROWS
from stages.formats import open_events
from stages.formats.root import write_events
from stages.framer import Framer
from stages.inputs import expand
from stages.model import Model
from stages.reader import Reader
from stages.results import SCORES
from stages.seeds import PHOTON_REACH
from stages.sources import choose
from stages.tagger import Tagger
from streamer.batcher import Part
from streamer.block import Array, Block, Columns, Schema, core_columns, readonly
from streamer.errors import StreamerError, UsageError
from streamer.pipeline import Pipeline
from streamer.report import Summary, summarise
from streamer.supervisor import Outcome, Progress, Supervisor

MODULES = ("event setup", "detector frames", "object frames", "tagger", "input/output")
"""The paper's Figure 4."""

COPY_EVENTS = 4000
BASKET_EVENTS = 1000
LEAST_BASKET_EVENTS = 100

Float32s = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Stream:
    """One way, timed over a stream of events.

    Attributes
    ----------
    done : int64, shape (n,)
        Events done at each mark; the first mark is the start.
    at_s : float64, shape (n,)
        When that was [s], from any zero.
    modules_s : dict of str to float
        Processor time per event of each of `MODULES` [s].
    scores : float32
        Of the objects of the first events, one after the other.
    """

    done: npt.NDArray[np.int64]
    at_s: npt.NDArray[np.float64]
    modules_s: dict[str, float]
    scores: Float32s


class _Stopwatch:
    """Marks of events done, and the processor time of this process by module."""

    def __init__(self) -> None:
        self.n = 0
        self._marks = [(0, time.perf_counter())]
        self._cpu_s = dict.fromkeys(MODULES, 0.0)
        self._lap_at = time.process_time()

    def lap(self, module: str) -> None:
        """What was done since the last lap belongs to `module`."""
        now = time.process_time()
        self._cpu_s[module] += now - self._lap_at
        self._lap_at = now

    def mark(self, n_events: int) -> None:
        """So many more events are done."""
        self.n += n_events
        self._marks.append((self.n, time.perf_counter()))

    def stream(self, scores: list[Float32s]) -> Stream:
        done, at_s = zip(*self._marks, strict=True)
        modules_s = {module: seconds / self.n for module, seconds in self._cpu_s.items()}
        return Stream(np.array(done), np.array(at_s), modules_s, np.concatenate(scores))


# ---- the file


def copy_events(config: Config, path: Path) -> tuple[int, int]:
    """Copy what the taggers need of the first events into one TTree.

    Returns
    -------
    n_input, n_copied : int
        Events taken from the input, and events in the file, where they may stand several times.
    """
    step_events = config.input.model_copy(update={"step_events": BASKET_EVENTS})
    files = [open_events(file, step_events) for file in expand(config.input.files)]
    choices = [choose(file, config).columns for file in files]
    columns = [column for column in choices[0] if all(column in others for others in choices)]
    for file, choice in zip(files, choices, strict=True):
        if not {"EBRecHit_detid", "EERecHit_detid"} <= {column.name for column in choice}:
            raise UsageError(
                f"{file.path}: no ECAL rechits, which the seed's way is made for; see: streamer bench kernels"
            )
    schema = schema_of(columns)
    steps: list[Columns] = []
    n_input = 0
    for file in files:
        for step in file.read(columns, lambda *_: None):
            if n_input < COPY_EVENTS and len(step.entries):
                steps.append(schema.slice(step.columns, 0, min(len(step.entries), COPY_EVENTS - n_input)))
                n_input += len(steps[-1]["event"])
            if n_input >= COPY_EVENTS:
                break
        file.close()
    if not n_input:
        raise UsageError(f"{', '.join(str(file.path) for file in files)}: no events to measure with")
    return n_input, write_events(path, schema, _passes(schema, steps))


def _passes(schema: Schema, steps: list[Columns]) -> Iterator[Columns]:
    """Baskets: the steps again and again until there are enough events; small ones of a pass are joined."""
    baskets: list[Columns] = []
    for step in steps:
        if baskets and len(baskets[-1]["event"]) + len(step["event"]) <= BASKET_EVENTS:
            baskets[-1] = schema.concat([baskets[-1], step])
        else:
            baskets.append(step)
    if len(baskets) == 1:
        n_pass = len(baskets[0]["event"])
        baskets = [schema.concat(baskets * -(-LEAST_BASKET_EVENTS // n_pass))]
    n = 0
    for basket in cycle(baskets):
        if n >= COPY_EVENTS:
            return
        yield basket
        n += len(basket["event"])


# ---- the seed's way


def seed_way(config: Config, n_events: int, n_scores: int) -> Stream:
    """Score `n_events` event by event, with dense frames and one call of the network for each crop.

    Parameters
    ----------
    n_scores : int
        The scores of so many events are kept.
    """
    ((name, spec),) = config.taggers.items()
    model = Model(name, spec.model, spec, config.tagger.provider, threads=1)
    path = config.framer.ee_geometry
    ee_table = readonly(load_ee_geometry(path) if path else ee_pixel_table())
    scores = []
    with uproot.open(config.input.files[0]) as file:
        tree = file[config.input.tree]
        own = ("EBRecHit_", "EERecHit_", "Photon_")
        names = [c.name for c in records.needed(config) if c.name in tree and c.name.startswith(own)]
        watch = _Stopwatch()
        for event in _awkward_events(tree, names, config.input.step_events, watch):
            frame = _dense_frame(event, ee_table)
            watch.lap("detector frames")
            event_scores = np.full(len(event["Photon_pt"]), -1, np.float32)
            for photon in range(len(event_scores)):
                seed = _seed(frame, event, photon, spec)
                if seed is not None:
                    crop = _dense_crop(frame, *seed, spec.crop)
                    watch.lap("object frames")
                    event_scores[photon] = model.scores(crop[np.newaxis, np.newaxis])[0]
                    watch.lap("tagger")
            watch.lap("object frames")
            if watch.n < n_scores:
                scores.append(event_scores)
            watch.mark(1)
            if watch.n == n_events:
                break
    return watch.stream(scores)


def _awkward_events(tree: Any, names: list[str], step_events: int, watch: _Stopwatch) -> Iterator[dict[str, Array]]:
    """The collections of one event after the other, as numpy arrays; again and again."""
    members = [name for name in names if "_" in name]
    while True:
        for step in tree.iterate(names, step_size=step_events, how=dict):
            watch.lap("input/output")
            for arrays in zip(*(step[name] for name in members), strict=True):
                event = {name: array.to_numpy() for name, array in zip(members, arrays, strict=True)}
                watch.lap("event setup")
                yield event


def _dense_frame(event: dict[str, Array], ee_table: Array) -> Float32s:
    """The ECAL channel [GeV], shape (280, 360)."""
    frame = np.zeros(N_ROWS * N_COLUMNS, np.float32)
    for pixels, energy in (
        (eb_pixels(readonly(event["EBRecHit_detid"])), event["EBRecHit_energy"]),
        (ee_pixels(readonly(event["EERecHit_detid"]), ee_table), event["EERecHit_energy"]),
    ):
        good = (pixels >= 0) & (energy > 0) & np.isfinite(energy)
        np.add.at(frame, pixels[good], energy[good])
    return frame.reshape(N_ROWS, N_COLUMNS)


def _seed(frame: Float32s, event: dict[str, Array], photon: int, spec: TaggerSpec) -> tuple[int, int] | None:
    """Row and column of a photon's seed pixel."""
    eta = event["Photon_eta"][photon]
    if not (event["Photon_pt"][photon] > np.float32(spec.pt_min) and abs(eta) < np.float32(spec.eta_max)):
        return None
    if "Photon_seedDetId" in event and (pixel := eb_pixel(event["Photon_seedDetId"][photon])) >= 0:
        return divmod(int(pixel), N_COLUMNS)
    row, column = int(row_of_eta(eta)), int(column_of_phi(event["Photon_phi"][photon]))
    if row < 0 or column < 0:
        return None
    top = max(row - PHOTON_REACH, EB_FIRST_ROW)
    rows = frame[top : min(row + PHOTON_REACH, EB_LAST_ROW) + 1]
    columns = np.arange(column - PHOTON_REACH, column + PHOTON_REACH + 1) % N_COLUMNS
    near = rows[:, columns]
    down, right = divmod(int(near.argmax()), columns.size)
    return (top + down, int(columns[right])) if near[down, right] > 0 else None


def _dense_crop(frame: Float32s, row: int, column: int, size: int) -> Float32s:
    """The square with the seed at index size / 2 - 1, shape (size, size); phi wraps, beyond eta are zeros."""
    crop = np.zeros((size, size), np.float32)
    top, left = row - (size // 2 - 1), column - (size // 2 - 1)
    first, last = max(top, 0), min(top + size, N_ROWS)
    crop[first - top : last - top] = frame[first:last, np.arange(left, left + size) % N_COLUMNS]
    return crop


# ---- the limit


def limit(config: Config, threads: int, n_events: int, n_scores: int) -> Stream:
    """Score `n_events` or a few more with our kernels, without transport and with so many inference threads."""
    tagger_config = config.tagger.model_copy(update={"threads": threads})
    feed = config.feed.model_copy(update={"loop": True})
    config = config.model_copy(update={"tagger": tagger_config, "feed": feed})
    reader, framer, cropper, tagger = Reader(config), Framer(config), Cropper(config), Tagger(config)
    for unit in (reader, framer, cropper, tagger):
        unit.setup()
    ((name, spec),) = config.taggers.items()
    score = records.score_column(name, spec).name
    scores = []
    watch = _Stopwatch()
    for columns in reader.read():
        watch.lap("input/output")
        block = _block(columns)
        watch.lap("event setup")
        block = framer.process(block)
        watch.lap("detector frames")
        block = cropper.process(block)
        watch.lap("object frames")
        block = _score(tagger, block)
        watch.lap("tagger")
        if watch.n < n_scores:
            here = tagger.outputs.slice(block.columns, 0, min(block.n_events, n_scores - watch.n))
            scores.append(here[score])
        watch.mark(block.n_events)
        if watch.n >= n_events:
            break
    reader.close()
    return watch.stream(scores)


def _block(columns: Columns) -> Block:
    n = len(columns["event"])
    return Block(0, n, {**columns, **core_columns(np.zeros(n, np.int64))})


def _score(tagger: Tagger, block: Block) -> Block:
    """Batches over the whole block; only the last one is not full."""
    results = {}
    for queue, n in tagger.items(block).items():
        most = tagger.queues[queue]
        parts = [[Part(block, first, min(first + most, n))] for first in range(0, n, most)]
        results[queue] = np.concatenate([tagger.failed(0), *(tagger.infer(queue, part) for part in parts)])
    return tagger.finish(block, results, {})


# ---- the pipeline


def run_through(chain: Pipeline, config: Config, told: Callable[[Progress], None]) -> tuple[Outcome, Summary]:
    """Run a pipeline until `config.feed.events` events are through.

    Raises
    ------
    StreamerError
        It failed.
    KeyboardInterrupt
        It was stopped.
    """
    outcome = asyncio.run(Supervisor(chain, config, told).run())
    if outcome.error:
        raise (UsageError if outcome.exit_code == UsageError.exit_code else StreamerError)(outcome.error)
    summary = summarise(chain.names, outcome.reports)
    if summary.ledger.fed < config.feed.events:
        raise KeyboardInterrupt
    return outcome, summary


def pipeline(config: Config, n_scores: int, told: Callable[[Progress], None]) -> tuple[Stream, Summary]:
    """Score `config.feed.events` events with the real pipeline.

    Raises
    ------
    StreamerError
        It failed.
    KeyboardInterrupt
        It was stopped.
    """
    outcome, summary = run_through(PIPELINE, config, told)
    done, at_s = marks(outcome, summary)
    return Stream(done, at_s, _modules(outcome, summary), _written_scores(config, n_scores)), summary


def marks(outcome: Outcome, summary: Summary) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Events done, and when [s, from any zero], by the report of the one writer."""
    report = outcome.reports["writer-0"]
    n, *_, at_ns = np.array(report["done"]).T
    before = summary.ledger.fed - int(n.sum())  # only the last blocks are told of one by one
    done, at_s = before + np.cumsum(n), at_ns * 1e-9
    if not before:
        done, at_s = np.append(0, done), np.append(report["first_fed_ns"] * 1e-9, at_s)
    return done, at_s


def _modules(outcome: Outcome, summary: Summary) -> dict[str, float]:
    modules = dict(zip(PIPELINE.names, ("input/output", *MODULES[1:4], "input/output"), strict=True))
    cpu_s = dict.fromkeys(MODULES, 0.0)
    for who, report in outcome.reports.items():
        stage = who.rpartition("-")[0]
        moving_s = report["moving_cpu_s"]
        own_s = report["cpu_s"] - moving_s
        if report.get("provider", "CPU") != "CPU":
            own_s = max(own_s, report["metrics"]["streamer_busy_seconds_total"])
        cpu_s["event setup"] += moving_s
        cpu_s[modules[stage]] += max(0.0, own_s)
    return {module: seconds / summary.ledger.fed for module, seconds in cpu_s.items()}


def _written_scores(config: Config, n_scores: int) -> Float32s:
    (spec,) = config.taggers.values()
    name = f"{spec.objects}_{spec.score}"
    with uproot.open(config.writer.dir / SCORES) as file:
        scores = file["Events"].arrays([name], entry_stop=n_scores)[name]
    return np.asarray(ak.to_numpy(ak.flatten(scores)))
