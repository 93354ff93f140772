"""One training from event files to an ONNX file with its card and its ROC picture."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.config import Config
from stages.simulation.sample import settings_of
from stages.training.dataset import load_crops
from streamer.errors import UsageError

NEEDS = "training needs torch: pip install 'e2e-streamer[train]'"


@dataclass(frozen=True)
class Trained:
    """What came out; the AUC is that of events that were not used in training."""

    model: Path
    card: Path
    roc: Path
    auc: float
    auc_error: float


def train_egamma(
    inputs: list[Path],
    tests: list[Path],
    out: Path,
    *,
    seed: int,
    epochs: int,
    threads: int,
    command: str,
    tell: Callable[[str], None],
) -> Trained:
    """Train the E/Gamma network.

    Parameters
    ----------
    tests : list of Path
        Events for the figures on the card; where there are none, the last fifth of the inputs.
    command : str
        For the card: how to get this result again.
    tell : callable
        Given a line on progress now and then.

    Raises
    ------
    UsageError
        torch is not there, or an input cannot be used.
    """
    try:
        from stages.training import egamma
    except ImportError as error:
        raise UsageError(f"{NEEDS} ({error})") from None
    from stages.training.card import write_card
    from stages.training.metrics import auc, roc_png

    config = Config()
    tell("reading crops")
    crops, labels = load_crops(inputs, config)
    if tests:
        test_crops, test_labels = load_crops(tests, config)
    else:
        cut = len(crops) * 4 // 5
        crops, test_crops, labels, test_labels = crops[:cut], crops[cut:], labels[:cut], labels[cut:]
    cut = len(crops) * 9 // 10
    if not cut or not len(test_crops) or len(set(labels.tolist())) < 2:
        raise UsageError(f"{len(crops):,} crops are too few to train on, or all have one label; generate more events")

    def on_epoch(epoch: Any) -> None:
        tell(f"epoch {epoch.number}: loss {epoch.loss:.4f}, validation AUC {epoch.auc:.4f}")

    tell(f"training on {cut:,} crops, {len(crops) - cut:,} for validation")
    try:
        model = egamma.train(
            crops[:cut],
            labels[:cut],
            validation=(crops[cut:], labels[cut:]),
            seed=seed,
            epochs=epochs,
            threads=threads,
            on_epoch=on_epoch,
        )
    except ValueError as error:
        raise UsageError(f"training: {error}") from None
    egamma.export_onnx(model, out)
    scores = egamma.score_onnx(out, test_crops)
    card, roc = out.with_suffix(".md"), out.with_suffix(".png")
    write_card(
        card,
        onnx_path=out,
        title="E/Gamma tagger",
        task="Tells electrons (score near 1) from photons (near 0) by one 32 x 32 crop of ECAL energies in GeV.",
        data=_data(inputs, tests),
        commands=[*_generated(inputs + tests), command],
        seed=seed,
        n_train=cut,
        n_validation=len(crops) - cut,
        labels=test_labels,
        scores=scores,
        n_parameters=model.n_parameters,
        n_macs=model.n_macs,
        notes="It has seen particles of 50 GeV in the barrel alone, from a fast simulation and without pile-up; "
        "on other data its scores are numbers, not measurements.",
    )
    roc_png(test_labels, scores, roc, "E/Gamma tagger, events it never saw")
    area, area_error = auc(test_labels, scores)
    return Trained(out, card, roc, area, area_error)


def _generated(paths: list[Path]) -> list[str]:
    """The commands that made those of the files that were generated."""
    return [
        f"streamer generate egamma -n {about['events']} -o {path.name} --seed {about['seed']}"
        for path in paths
        if (about := settings_of(path))
    ]


def _data(inputs: list[Path], tests: list[Path]) -> str:
    lines = []
    for what, paths in (("training and validation", inputs), ("test", tests)):
        for path in paths:
            about = settings_of(path)
            known = f"{about['events']:,} {about['process']}, seed {about['seed']}" if about else "of unknown origin"
            lines.append(f"`{path.name}` ({what}): {known}.")
    return " ".join(lines)
