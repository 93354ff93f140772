"""The model card: what a reader must know about an ONNX file, in Markdown beside it."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages.training.metrics import auc, background_rejection


def write_card(
    path: Path | str,
    *,
    onnx_path: Path | str,
    title: str,
    task: str,
    data: str,
    commands: Sequence[str],
    seed: int,
    n_train: int,
    n_validation: int,
    labels: npt.ArrayLike,
    scores: npt.ArrayLike,
    n_parameters: int,
    n_macs: int,
    notes: str = "",
) -> Path:
    """Write a card; the figures of merit are computed here from labels and scores.

    Parameters
    ----------
    path, onnx_path : path
        The card, and the model it belongs to, which is hashed.
    title, task, data, notes : str
        Sentences: what the model is, what it tells apart, where its events come from, what it is not good
        for.
    commands : sequence of str
        Exactly what was run, in order.
    seed, n_train, n_validation
        As in training.
    labels, scores : [n]
        Of events that neither training nor validation has seen, the scores by the exported file.
    n_parameters, n_macs : int
    """
    path, onnx_path = Path(path), Path(onnx_path)
    blob = onnx_path.read_bytes()
    area, area_error = auc(labels, scores)
    rejection, rejection_error = background_rejection(labels, scores, 0.5)
    n_test = np.size(labels)
    rows = [
        ("AUC on unseen events", f"{area:.4f} ± {area_error:.4f}"),
        ("Background rejection at 50 % signal efficiency", f"{rejection:.2f} ± {rejection_error:.2f}"),
        ("Events: training / validation / test", f"{n_train:,} / {n_validation:,} / {n_test:,}"),
        ("Seed", str(seed)),
        ("Parameters", f"{n_parameters:,}"),
        ("Multiply-accumulates per crop", f"{n_macs:,}"),
        ("File", f"`{onnx_path.name}`, {len(blob):,} bytes"),
        ("SHA-256", f"`{hashlib.sha256(blob).hexdigest()}`"),
    ]
    lines = [f"# {title}", "", task, "", "| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows]
    lines += ["", "## Data", "", data, "", "## How to make it again", "", "```", *commands, "```"]
    if notes:
        lines += ["", "## Notes", "", notes]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path
