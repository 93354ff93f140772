"""How good a tagger is: the ROC curve, its area with an uncertainty, and the background rejection."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def _split(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Scores of the signal (label 1) and of the background (0)."""
    truth, values = np.asarray(labels).ravel(), np.asarray(scores, np.float64).ravel()
    if truth.shape != values.shape:
        raise ValueError(f"{truth.size} labels for {values.size} scores")
    if not np.isin(truth, (0, 1)).all() or not np.isfinite(values).all():
        raise ValueError("labels must be 0 or 1 and scores finite")
    signal, background = values[truth == 1], values[truth == 0]
    if not signal.size or not background.size:
        raise ValueError("both classes are needed")
    return signal, background


def auc(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[float, float]:
    """Area under the ROC curve, and its standard error.

    The area is the chance that a signal scores above a background, ties counting half (Mann and Whitney). The
    error is that of J. A. Hanley and B. J. McNeil, Radiology 143 (1982) 29.
    """
    signal, background = _split(labels, scores)
    ordered = np.sort(background)
    below = np.searchsorted(ordered, signal, side="left")
    not_above = np.searchsorted(ordered, signal, side="right")
    area = float((below + not_above).mean() / 2 / background.size)
    one_signal = area / (2 - area)  # two signals above one background
    one_background = 2 * area**2 / (1 + area)  # one signal above two backgrounds
    variance = area * (1 - area)
    variance += (signal.size - 1) * (one_signal - area**2) + (background.size - 1) * (one_background - area**2)
    return area, float(np.sqrt(max(variance, 0.0) / (signal.size * background.size)))


def auc_change(labels: npt.ArrayLike, before: npt.ArrayLike, after: npt.ArrayLike) -> tuple[float, float]:
    """By how much the area under the ROC curve changes from one score to another, and the standard error of that.

    Both score the same objects, so that most of their errors is common and cancels (E. R. DeLong et al., Biometrics 44
    (1988) 837).
    """
    first, second = _placements(*_split(labels, before)), _placements(*_split(labels, after))
    changes = [after - before for before, after in zip(first, second, strict=True)]
    variance = sum(float(own.var(ddof=1)) / own.size if own.size > 1 else np.inf for own in changes)
    return float(changes[0].mean()), float(np.sqrt(variance))


def _placements(signal: Floats, background: Floats) -> tuple[Floats, Floats]:
    """The share of backgrounds below each signal, and that of signals above each background; ties count half."""

    def below(values: Floats, others: Floats) -> Floats:
        ordered = np.sort(others)
        sides = [np.searchsorted(ordered, values, side="left"), np.searchsorted(ordered, values, side="right")]
        return (sides[0] + sides[1]) / (2 * others.size)

    return below(signal, background), 1 - below(background, signal)


def roc_curve(labels: npt.ArrayLike, scores: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Background and signal efficiency, float64[k + 1] each, from (0, 0) to (1, 1) over the k distinct scores."""
    signal, background = _split(labels, scores)
    cuts = np.unique(np.concatenate([signal, background]))
    efficiencies = [
        1 - np.searchsorted(np.sort(values), cuts, side="left")[::-1] / values.size for values in (background, signal)
    ]
    return np.concatenate([[0.0], efficiencies[0]]), np.concatenate([[0.0], efficiencies[1]])


def background_rejection(
    labels: npt.ArrayLike, scores: npt.ArrayLike, signal_efficiency: float = 0.5
) -> tuple[float, float]:
    """1 / background efficiency at this signal efficiency, and its binomial error; inf if no background is left."""
    if not 0 < signal_efficiency <= 1:
        raise ValueError("the signal efficiency must be in (0, 1]")
    _, background = _split(labels, scores)
    false_positive, true_positive = roc_curve(labels, scores)
    k = int(np.searchsorted(true_positive, signal_efficiency))  # the first point that reaches it
    efficiency = float(np.interp(signal_efficiency, true_positive[k - 1 : k + 1], false_positive[k - 1 : k + 1]))
    if efficiency == 0:
        return np.inf, np.inf
    return 1 / efficiency, float(np.sqrt((1 - efficiency) / (efficiency * background.size)) / efficiency)


def roc_png(labels: npt.ArrayLike, scores: npt.ArrayLike, path: Path | str, title: str = "") -> None:
    """Draw the ROC curve into a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    false_positive, true_positive = roc_curve(labels, scores)
    area, error = auc(labels, scores)
    figure = Figure(figsize=(5.0, 5.0), layout="constrained")
    FigureCanvasAgg(figure)
    axes: Any = figure.add_subplot()
    axes.plot(false_positive, true_positive, label=f"AUC {area:.4f} ± {error:.4f}")
    axes.plot([0, 1], [0, 1], linestyle=":", color="grey")
    axes.set(xlabel="Background efficiency", ylabel="Signal efficiency", xlim=(0, 1), ylim=(0, 1), title=title)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120, format="png")
