"""`streamer bench kernels`: what frames, crops and dense tensors cost an event, and how that grows.

One process, one thread, no transport, no network: the framer's, the cropper's and the tagger's own code, on blocks of
events as the `top` tagger sees them (8 channels, crops of 128 x 128). Beside it, in the same run and on the same
events, the same work with dense images.

=================  ======================================  =======================================================
step               sparse                                  dense
=================  ======================================  =======================================================
detector frames    `Framer.process`                        8 x 280 x 360 float32 an event, HCAL towers spread over
                                                           5 x 5 pixels each
seeds and crops    `Cropper.process`                       the largest of 7 x 7 towers; 8 x 128 x 128 a jet cut out
dense tensor       `fill_crops`, in batches of 64          the crops copied into a batch of 64
=================  ======================================  =======================================================

The dense way is numpy, event by event, and a fair one: its pixels come from our compiled lookups for a whole block at
once, its frames and its batch are allocated once, and crops are cut as slices, not pixel by pixel. Before anything
is timed, the tensors of both are compared; where they differ by more than 1e-5, there is no result.

For orientation only: for the public C++ framework (RecoE2E, images as vectors of vectors) 1.9 ms were measured for the
8 frames and 6.2 ms for 5 crops of 125 x 125 and their tensor, on a 2-core AMD EPYC: another machine on another day.
Only ratios within one run are a measurement.

Events
------
Blocks of 256 events with exactly 5 jets each.

input
    Events of the given files. Their jets are the leading ones that have a seed; where an event has fewer, they are
    repeated (the result says how many there are on average), and events without any are left out. Fewer than 256
    events stand there several times. Channels that the files do not give are empty.
generated
    Random hits in the amounts that real events of 2012 have (400 EB, 270 EE and 50 HCAL hits, 130 tracks) with three
    pixel hits a track; a fifth of them around the jets. Always the same ones.

Growth
------
Generated events with 100 to 20,000 hits, shared among the channels in the same proportions, and 5 jets; and with 0
to 20 jets at 1000 hits. A straight line is fitted to each step: over hits in relative distance, as the times span two
orders of magnitude, over jets in absolute distance.

Times are processor time of the thread, as wall-clock time on a busy machine also counts the turns of others. All that
is measured takes turns, `repeats` times, so that other load hits all alike. Figures are medians of the repeats, with
the fastest beside them; ratios are taken within a repeat.
"""

import json
import logging
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.bench.kernels_plot import plot
from stages.bench.kernels_ways import (
    BATCH,
    N_HITS,
    N_JETS,
    STEPS,
    Dense,
    Sparse,
    block_of,
    generated_events,
    input_events,
    largest_difference,
)
from stages.bench.pipeline import machine
from stages.bench.plot import Told
from stages.config import Config
from stages.writer import prepare_folder
from streamer import __version__
from streamer.block import Block
from streamer.errors import UsageError
from streamer.runner import keep_freed_memory

MOST_HITS = 400_000
"""Hits of a generated block at most; those of larger events have fewer."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Parameters
    ----------
    repeats : int
        How often all take turns.
    events : int
        Of a block.
    hits, jets : tuple of int
        Those of the generated events whose cost is compared.
    hits_of_jets : int
        Hits of the events with these numbers of jets.
    """

    repeats: int = 10
    events: int = 256
    hits: tuple[int, ...] = (100, 300, 1000, 3000, 10_000, 20_000)
    jets: tuple[int, ...] = (0, 1, 2, 5, 10, 20)
    hits_of_jets: int = 1000


@dataclass(frozen=True)
class Way:
    """Time per event by step, and in `all` [us]: the median of the repeats, the fastest, and every repeat."""

    median_us: dict[str, float]
    min_us: dict[str, float]
    repeats_us: dict[str, list[float]]


@dataclass(frozen=True)
class Compared:
    """Both ways on the same events. `ratios` says how many times longer the dense way takes."""

    contents: dict[str, float]
    sparse: Way
    dense: Way
    ratios: dict[str, float]
    max_difference: float


@dataclass(frozen=True)
class Growth:
    """The cost of events `at` so many hits or jets; the lines are `fixed_us` + `each_us` for each of them."""

    at: list[int]
    ways: list[Way]
    fixed_us: dict[str, float]
    each_us: dict[str, float]


@dataclass(frozen=True)
class Result:
    """What `kernels.json` holds. `compared` has `generated`, and `input` where there is one."""

    about: dict[str, Any]
    plan: Plan
    compared: dict[str, Compared]
    hits: Growth
    jets: Growth


def kernels(config: Config, plan: Plan, output: Path) -> Result:
    """Measure, and leave `kernels.json` and `kernels.png` in the folder `output`.

    Parameters
    ----------
    config : Config
        With one tagger, of `FatJet`s; its network is not needed. Without `input.files` there are only generated events.

    Raises
    ------
    UsageError
        The input cannot be read or has no jets, or the tagger is another.
    StreamerError
        The two ways do not give the same tensors.
    """
    if [spec.objects for spec in config.taggers.values()] != ["FatJet"]:
        raise UsageError('streamer bench kernels measures one tagger of objects = "FatJet", as top is')
    prepare_folder(output)
    keep_freed_memory()  # as the pipeline's processes do
    if logging.getLogger().level > logging.DEBUG:
        logging.getLogger().setLevel(logging.WARNING)
    with Told(plan.repeats + 3) as told:
        about = _about(config)
        told.step("compiling the kernels")
        sparse, dense = Sparse(config), Dense(config)
        told.step("making events")
        blocks: dict[str, Block] = {}
        if config.input.files:
            columns, taken = input_events(config, plan.events)
            blocks["input"], about["input"] = block_of(columns), asdict(taken)
        blocks["generated"] = block_of(generated_events(config, plan.events)[0])
        of_hits = [_generated(config, plan, n_hits, N_JETS) for n_hits in plan.hits]
        of_jets = [_generated(config, plan, plan.hits_of_jets, n_jets) for n_jets in plan.jets]
        told.step("comparing the tensors")
        differences = {name: largest_difference(sparse, dense, block) for name, block in blocks.items()}

        turns: list[tuple[Callable[[Block], Floats], Block]] = []
        for block in blocks.values():
            turns += [(sparse, block), (dense, block)]
        turns += [(sparse, block) for _, block in (*of_hits, *of_jets)]
        for way, block in turns:  # the first time is always slower
            way(block)
        times = np.empty((plan.repeats, len(turns), len(STEPS)))
        for repeat in range(plan.repeats):
            told.step(f"round {repeat + 1} of {plan.repeats}")
            for turn, (way, block) in enumerate(turns):
                times[repeat, turn] = way(block) / block.n_events * 1e6
    ways = [_way(times[:, turn]) for turn in range(len(turns))]
    compared = {}
    for name, block in blocks.items():
        ours, theirs = ways.pop(0), ways.pop(0)
        contents = sparse.contents(block)
        compared[name] = Compared(contents, ours, theirs, _ratios(ours, theirs), differences[name])
    result = Result(
        about,
        plan,
        compared,
        hits=_growth([n for n, _ in of_hits], ways[: len(of_hits)], relative=True),
        jets=_growth(list(plan.jets), ways[len(of_hits) :], relative=False),
    )
    data = asdict(result)
    (output / "kernels.json").write_text(json.dumps(data, indent=2) + "\n")
    plot(data, output / "kernels.png")
    return result


def _generated(config: Config, plan: Plan, n_hits: int, n_jets: int) -> tuple[int, Block]:
    """Hits of an event, and a block of such events."""
    n_events = max(1, min(plan.events, MOST_HITS // n_hits))
    columns, exactly = generated_events(config, n_events, n_hits, n_jets)
    return exactly, block_of(columns)


def _way(times: Floats) -> Way:
    """From microseconds an event, shape (n_repeats, n_steps)."""
    by_step = dict(zip(STEPS, times.T, strict=True)) | {"all": times.sum(axis=1)}
    return Way(
        {step: float(np.median(us)) for step, us in by_step.items()},
        {step: float(us.min()) for step, us in by_step.items()},
        {step: us.tolist() for step, us in by_step.items()},
    )


def _ratios(ours: Way, theirs: Way) -> dict[str, float]:
    return {
        step: float(np.median(np.divide(theirs.repeats_us[step], ours.repeats_us[step]))) for step in ours.repeats_us
    }


def _growth(at: list[int], ways: list[Way], *, relative: bool) -> Growth:
    fixed, each = {}, {}
    for step in (*STEPS, "all"):
        us = np.array([way.median_us[step] for way in ways])
        each[step], fixed[step] = map(float, np.polyfit(at, us, 1, w=1 / us if relative else None))
    return Growth(at, ways, fixed, each)


def _about(config: Config) -> dict[str, Any]:
    ((name, spec),) = config.taggers.items()
    return {
        **machine(),
        "versions": {
            "streamer": __version__,
            "python": platform.python_version(),
            **{package: version(package) for package in ("numba", "numpy")},
        },
        "tagger": name,
        "channels": list(spec.channels),
        "crop": spec.crop,
        "batch": BATCH,
        "jets": N_JETS,
        "generated_hits": N_HITS,
    }
