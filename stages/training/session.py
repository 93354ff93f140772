"""One training from event files to an ONNX file with its card and its ROC picture."""

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stages.training.dataset import Crops, load_crops
from stages.training.settings import Settings
from streamer.errors import StreamerError, UsageError

NEEDS = "training needs torch: pip install 'e2e-streamer[train]'"

POINTS = 4
"""A network of points is given so many times the number that it looks at."""
TEST, VALIDATION = 1 / 5, 1 / 10
"""Of the events for the figures on the card, and of the others for the choice of the best epoch."""


@dataclass(frozen=True)
class Trained:
    """What came out; the AUC is that of events that were not used in training."""

    model: Path
    card: Path
    roc: Path
    points: Path | None
    """The same network for `input = "points"`, where it is one of points."""
    auc: float
    auc_error: float
    epochs: int
    stopped: bool
    """By Ctrl-C, with the best of the epochs that were done."""


def train_tagger(
    settings: Settings,
    inputs: Sequence[Path],
    tests: Sequence[Path],
    out: Path,
    *,
    command: str,
    tell: Callable[[str], None] = lambda line: None,
    on_read: Callable[[int], None] | None = None,
    on_batch: Callable[[int, int], None] | None = None,
) -> Trained:
    """Train a tagger's network.

    Parameters
    ----------
    tests : list of Path
        Events for the figures on the card; where there are none, the last fifth of the events of each input.
    command : str
        For the card: how to get this result again.
    tell : callable
        Given a line on progress now and then.
    on_read : callable, optional
        Told how many events each step read.
    on_batch : callable, optional
        Called behind each batch with its number in the epoch, from 1, and their number.

    Raises
    ------
    UsageError
        torch is not there, an input cannot be used, or the output cannot be written.
    KeyboardInterrupt
        Ctrl-C before the first epoch was done.
    """
    try:
        import onnxscript  # noqa: F401 - for the export, after hours of training

        from stages.training import export, networks, train
    except ImportError as error:
        raise UsageError(f"{NEEDS} ({error})") from None
    from stages.performance import auc
    from stages.training.card import Result, write_results
    from stages.training.scoring import milliseconds, score_onnx

    _check_output(out)
    check_inputs([*inputs, *tests])
    config = settings.config
    (spec,) = config.taggers.values()
    arch = networks.ARCHITECTURES[settings.arch]
    tell("reading crops")
    crops = load_crops(inputs, config, on_read)
    test = load_crops(tests, config, on_read) if tests else None
    if settings.shuffle_labels:
        crops = crops.shuffled(settings.seed)
        test = test and test.shuffled(settings.seed)
    if test is None:
        crops, test = crops.split(TEST)
    training, validation = crops.split(VALIDATION)
    for part, what in ((training, "training"), (validation, "validation"), (test, "test")):
        _check_classes(part, what, spec.signal)
    del crops
    tell(
        f"training on {len(training):,} crops ({_share(training)} signal), {len(validation):,} for validation, "
        f"{len(test):,} for the test"
    )

    def on_epoch(epoch: Any) -> None:
        left = (settings.epochs - epoch.number) * epoch.seconds / 60
        tell(
            f"epoch {epoch.number}/{settings.epochs}: loss {epoch.loss:.4f}, validation AUC {epoch.auc:.4f} +- "
            f"{epoch.auc_error:.4f}, {epoch.seconds:.1f} s" + (f", {left:.1f} min left at most" if left else "")
        )

    model = train.train(
        lambda: arch.make(spec.channels, spec.crop),
        training,
        validation=validation,
        seed=settings.seed,
        epochs=settings.epochs,
        batch_size=settings.batch or arch.batch,
        learning_rate=settings.learning_rate or arch.learning_rate,
        threads=settings.threads,
        on_batch=on_batch,
        on_epoch=on_epoch,
    )
    tell("writing the network and measuring it")
    sample = test.dense(np.arange(min(8, len(test))))
    onnx = export.export_onnx(model.network, sample)
    scores = score_onnx(onnx, test)
    area, area_error = auc(test.labels, scores)
    card, roc = out.with_suffix(".md"), out.with_suffix(".png")
    result = Result(
        settings=settings,
        spec=spec,
        inputs=list(inputs),
        tests=list(tests),
        command=command,
        n_train=len(training),
        n_validation=len(validation),
        test=test,
        scores=scores,
        model=model,
        n_parameters=networks.n_parameters(model.network),
        n_macs=networks.n_macs(model.network, test.shape),
        milliseconds={n: milliseconds(onnx, test, n) for n in (1, 32)},
        onnx=onnx,
        about=arch.about,
    )
    clouds = out.with_suffix(".points.onnx") if settings.arch == "points" else None
    with parts(out, card, roc, *([clouds] if clouds else [])) as (onnx_part, card_part, roc_part, *cloud_part):
        write_results(result, onnx_part, card_part, roc_part, out.name)
        for part in cloud_part:
            points = test.points(np.arange(min(8, len(test))), POINTS * model.network.n_points)
            part.write_bytes(export.export_points(model.network, points))
    return Trained(out, card, roc, clouds, area, area_error, len(model.epochs), model.stopped)


def _check_output(out: Path) -> None:
    """Whether the results could be written, before the long work."""
    folder = out.parent
    if out.suffix != ".onnx":
        raise UsageError(f"--output {out}: name a file that ends in .onnx")
    if not folder.is_dir():
        raise UsageError(f"--output {out}: there is no folder {folder}; make it first")
    for path in (out, out.with_suffix(".md"), out.with_suffix(".png")):
        if path.is_dir() or not os.access(folder, os.W_OK):
            raise UsageError(f"--output {out}: {path} cannot be written; name another file")


def check_inputs(paths: list[Path]) -> None:
    """Whether a file stands there twice: what is trained on must not be tested on."""
    known: set[Path] = set()
    for path in paths:
        if path.resolve() in known:
            raise UsageError(f"{path}: is given twice; no event may be used twice")
        known.add(path.resolve())


def _check_classes(crops: Crops, what: str, signal: int) -> None:
    n_signal = int(crops.labels.sum())
    n_background = len(crops) - n_signal
    if not n_signal or not n_background:
        raise UsageError(
            f"{what}: {n_signal:,} crops of the signal (label {signal}) and {n_background:,} of the background "
            "(label 0); both are needed: give more events, or a file of the other kind"
        )


def _share(crops: Crops) -> str:
    return f"{100 * crops.labels.mean():.0f} %"


@contextlib.contextmanager
def parts(*paths: Path) -> Any:
    """Names to write to; the files get their own names when all are complete, or vanish."""
    begun = [path.with_name(f"{path.stem}.part{path.suffix}") for path in paths]
    try:
        yield begun
        for part, path in zip(begun, paths, strict=True):
            part.replace(path)
    except OSError as error:
        why = error.strerror or str(error)
        raise StreamerError(f"{paths[0]}: cannot be written ({why}); make room, or name another folder") from None
    finally:
        for part in begun:
            part.unlink(missing_ok=True)
