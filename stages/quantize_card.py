"""The model card of a network that was made int8 or float16."""

from dataclasses import dataclass
from pathlib import Path

from stages.config import TaggerSpec
from stages.simulation.sample import command_of
from stages.training.card import TITLES, data_lines, origin, processor
from streamer import __version__

NOTES = {
    "int8": "Its ranges are those of the crops that it was calibrated with; where events are much busier, calibrate "
    "it anew. It is for processors: a GPU gains nothing by it.",
    "float16": "It is for GPUs: most processors work it out in float32.",
}


@dataclass(frozen=True)
class Quantized:
    """What came out; pairs are before and after.

    Attributes
    ----------
    kind : str
        `int8` or `float16`.
    source, model, card : Path
    n_calibration, n_test : int
        Crops.
    auc, auc_error : tuple of float
    change, change_error : float
        Of the AUC; most of the two errors is common.
    apart : float
        Mean distance of a crop's two scores.
    milliseconds : tuple of float
        For a crop, on one thread.
    n_bytes : tuple of int
    sha256 : tuple of str
    """

    kind: str
    source: Path
    model: Path
    card: Path
    n_calibration: int
    n_test: int
    auc: tuple[float, float]
    auc_error: tuple[float, float]
    change: float
    change_error: float
    apart: float
    milliseconds: tuple[float, float]
    n_bytes: tuple[int, int]
    sha256: tuple[str, str]


def card_text(
    done: Quantized, tagger: str, spec: TaggerSpec, calibrate: list[Path], tests: list[Path], command: str, batch: int
) -> str:
    """The card, in Markdown.

    Parameters
    ----------
    command : str
        How to get this result again.
    batch : int
        Crops in a batch when times were taken.
    """
    title, _ = TITLES.get(tagger, (f"Tagger {tagger}", ""))
    crops = f"{done.n_calibration:,} / {done.n_test:,}" if done.kind == "int8" else f"none / {done.n_test:,}"
    rows = [
        ("AUC before", f"{done.auc[0]:.4f} ± {done.auc_error[0]:.4f}"),
        (f"AUC as {done.kind}", f"{done.auc[1]:.4f} ± {done.auc_error[1]:.4f}"),
        ("Change of the AUC, on the same crops", f"{done.change:+.4f} ± {done.change_error:.4f}"),
        ("A crop's two scores apart, on average", f"{done.apart:.4f}"),
        ("Crops: calibration / test", crops),
        (f"Time per crop, batch {batch}, before", f"{done.milliseconds[0]:.3f} ms"),
        (f"Time per crop, batch {batch}, as {done.kind}", f"{done.milliseconds[1]:.3f} ms"),
        ("... in ONNX Runtime", f"medians, side by side, 1 thread; {processor()}"),
        ("Input", f"{', '.join(spec.channels)}; {spec.crop} x {spec.crop} pixels"),
        ("Made from", f"`{done.source.name}`, {done.n_bytes[0]:,} bytes"),
        ("... SHA-256", f"`{done.sha256[0]}`"),
        ("File", f"`{done.model.name}`, {done.n_bytes[1]:,} bytes"),
        ("SHA-256", f"`{done.sha256[1]}`"),
    ]
    lines = [f"# {title}, {done.kind}", "", "| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)]
    what = "calibration" if tests else "calibration and test" if done.kind == "int8" else "test"
    lines += ["", "## Data", "", *data_lines(calibrate, what), *data_lines(tests, "test")]
    made = [known for path in dict.fromkeys([*calibrate, *tests]) if (known := origin(command_of, path))]
    lines += ["", "## How to make it again", "", f"With version {__version__}:", "", "```", *made, command, "```"]
    return "\n".join([*lines, "", "## Notes", "", NOTES[done.kind]]) + "\n"
