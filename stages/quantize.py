"""A network in int8 or float16, held against the one it was made from: what it loses, and what it gains."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.config import TAGGERS, Config, TaggerSpec, packaged
from stages.model import Model
from stages.performance import auc, auc_change
from stages.quantize_card import Quantized, card_text
from stages.training.dataset import Crops, load_crops
from stages.training.scoring import milliseconds, score_onnx
from stages.training.session import check_inputs, parts
from streamer.errors import StreamerError, UsageError, nearest, one_line

TEST = 4 / 5
"""Of a file's events, where no other is given for the test."""
LEAST_CALIBRATION, MOST_CALIBRATION = 50, 256
"""Crops that the ranges of int8 are taken from."""
LEAST_TEST = 100
"""Crops of the signal, and of the background: with fewer a loss would not show."""
MOST_LOSS = 0.005
"""Of the AUC."""
BATCH, TURNS = 32, 5
"""Times are medians of so many turns, before and after side by side, in batches of this size."""


def find(model: str, tagger: str | None, config: Config) -> tuple[Path, str]:
    """The network's file and its tagger; the packaged networks are known by their names.

    Raises
    ------
    UsageError
        There is no such network or tagger.
    """
    path, known = Path(model), [*TAGGERS, *(name for name in config.taggers if name not in TAGGERS)]
    if model in TAGGERS and not path.is_file():
        path, tagger = Path(packaged(f"models/{model}.onnx")), tagger or model
    if not path.is_file():
        raise UsageError(f"{model}: no such file{nearest(model, TAGGERS)}; packaged are {', '.join(TAGGERS)}")
    if tagger is None:
        raise UsageError(f"{model}: say what it looks at: --tagger {', '.join(known[:-1])} or {known[-1]}")
    if tagger not in known:
        raise UsageError(
            f"--tagger {tagger}: no such tagger{nearest(tagger, known)}; there are {', '.join(known)}, and those of a "
            "--config"
        )
    return path, tagger


def quantize_network(
    kind: str,
    source: Path,
    tagger: str,
    config: Config,
    calibrate: Sequence[Path],
    tests: Sequence[Path],
    out: Path,
    *,
    command: str,
    overwrite: bool = False,
    on_read: Callable[[int], None] | None = None,
) -> Quantized:
    """Make a network int8 or float16, with a card beside it.

    Parameters
    ----------
    kind : str
        `int8` or `float16`.
    config : Config
        Says how files are read, and which taggers there are beside the built-in ones.
    calibrate : sequence of Path
        Event files with truth labels. A fifth of their events gives int8 its ranges, and the others are the test.
    tests : sequence of Path
        Events for the test; where there are some, all of `calibrate` is for the ranges.
    command : str
        For the card: how to get this result again.
    on_read : callable, optional
        Told how many events each step read.

    Raises
    ------
    UsageError
        onnx is not there, the network or an input cannot be used, or the output cannot be written.
    StreamerError
        The AUC falls by more than 0.005. Nothing is left then.
    """
    _check_output(out, source, overwrite)
    check_inputs([*calibrate, *tests])
    own = config.taggers[tagger].model_dump() if tagger in config.taggers else {}
    config = Config.model_validate({**config.model_dump(), "taggers": {tagger: {**own, "model": source}}})
    (spec,) = config.taggers.values()
    if not spec.crop:
        raise UsageError(f"--tagger {tagger}: sees whole events, and no file has the truth of those")
    _check_model(source, tagger, spec)
    before = source.read_bytes()
    calibration = load_crops(calibrate, config, on_read)
    test = load_crops(tests, config, on_read) if tests else calibration
    if kind == "int8":
        if not tests:
            calibration, test = calibration.split(TEST)
        drawn = np.random.default_rng(0).permutation(len(calibration))[:MOST_CALIBRATION]
        calibration = calibration.take(np.sort(drawn))
    _check_crops(kind, calibration, test)
    after = _reduced(kind, source, before, calibration)
    done = _held_against(kind, source, out, (before, after), len(calibration), test)
    with parts(done.model, done.card) as (model_part, card_part):
        model_part.write_bytes(after)
        _check_model(model_part, tagger, spec)
        text = card_text(done, tagger, spec, list(calibrate), list(tests), command, BATCH)
        card_part.write_text(text, encoding="utf-8")
    return done


def _check_output(out: Path, source: Path, overwrite: bool) -> None:
    """Whether the results could be written, before the work."""
    if out.suffix != ".onnx" or out.resolve() == source.resolve():
        raise UsageError(f"--output {out}: name another file that ends in .onnx")
    for path in (out, out.with_suffix(".md")):
        if not path.parent.is_dir() or path.is_dir() or not os.access(path.parent, os.W_OK):
            raise UsageError(f"{path}: cannot be written; name a file in a folder that is there, by --output")
        if path.exists() and not overwrite:
            raise UsageError(f"{path}: exists; choose another name by --output, or --overwrite")


def _check_model(path: Path, tagger: str, spec: TaggerSpec) -> None:
    if n := Model(tagger, path, spec, "cpu", 1).fixed_batch:
        raise UsageError(f"{path}: takes batches of {n} alone; export it with a batch dimension that is free")


def _check_crops(kind: str, calibration: Crops, test: Crops) -> None:
    if kind == "int8" and len(calibration) < LEAST_CALIBRATION:
        raise UsageError(
            f"{len(calibration):,} crops to calibrate with, and {LEAST_CALIBRATION} are needed; give more events by "
            "--calibrate"
        )
    n_signal = int(test.labels.sum())
    n_least = min(n_signal, len(test) - n_signal)
    if n_least < LEAST_TEST:
        raise UsageError(
            f"{n_signal:,} crops of the signal and {len(test) - n_signal:,} of the background for the test, and "
            f"{LEAST_TEST} of each are needed; give more events, or a file by --test"
        )


def _reduced(kind: str, source: Path, data: bytes, calibration: Crops) -> bytes:
    from stages.quantize_graph import float16
    from stages.quantize_int8 import int8

    try:
        return int8(data, calibration) if kind == "int8" else float16(data)
    except UsageError as error:
        raise UsageError(f"{source}: {error}") from None
    except Exception as error:  # the converters raise whatever a graph leads them to
        raise UsageError(f"{source}: cannot be made {kind} ({one_line(error)})") from None


def _held_against(
    kind: str, source: Path, out: Path, networks: tuple[bytes, bytes], n_calibration: int, test: Crops
) -> Quantized:
    """What the second network loses and gains, if it does not lose too much."""
    scores = [score_onnx(network, test) for network in networks]
    for path, made in zip((source, f"{source} as {kind}"), scores, strict=True):
        if n := int((~np.isfinite(made)).sum()):
            raise UsageError(f"{path}: {n:,} of {len(test):,} scores are no number")
    areas = [auc(test.labels, made) for made in scores]
    change, error = auc_change(test.labels, *scores)
    if change < -MOST_LOSS:
        raise StreamerError(
            f"{source}: as {kind} its AUC falls by {-change:.4f} +- {error:.4f} to {areas[1][0]:.4f}, "
            f"by more than {MOST_LOSS:g}; nothing is written" + ("; try --to float16" if kind == "int8" else "")
        )
    turns = [[milliseconds(network, test, BATCH, 0.2) for network in networks] for _ in range(TURNS)]
    before, after = np.median(turns, axis=0).tolist()
    pairs: Any = {
        "auc": tuple(area for area, _ in areas),
        "auc_error": tuple(error for _, error in areas),
        "n_bytes": tuple(len(network) for network in networks),
        "sha256": tuple(hashlib.sha256(network).hexdigest() for network in networks),
    }
    return Quantized(
        kind=kind,
        source=source,
        model=out,
        card=out.with_suffix(".md"),
        n_calibration=n_calibration if kind == "int8" else 0,
        n_test=len(test),
        change=change,
        change_error=error,
        apart=float(np.abs(scores[1] - scores[0]).mean()),
        milliseconds=(before, after),
        **pairs,
    )
