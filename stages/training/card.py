"""What a training leaves: the network, its model card in Markdown, and its ROC picture."""

import contextlib
import hashlib
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.config import UNITS, TaggerSpec
from stages.performance import auc, background_rejection, roc_png
from stages.simulation.sample import command_of, settings_of
from stages.training.dataset import Crops
from stages.training.settings import Settings
from streamer import __version__

TITLES = {
    "eg": ("E/Gamma tagger", "electrons (score near 1) from photons (near 0)"),
    "qg": ("Quark/gluon tagger", "jets of light quarks (score near 1) from jets of gluons (near 0)"),
    "top": ("Top tagger", "jets of hadronic top quarks (score near 1) from other jets (near 0)"),
    "tau": ("Tau tagger", "jets of hadronic tau leptons (score near 1) from other jets (near 0)"),
}


@dataclass(frozen=True)
class Result:
    """All that a card tells of.

    Attributes
    ----------
    command : str
        How to get this result again.
    test : Crops
        Of events that neither training nor validation has seen.
    scores : float32, shape (len(test),)
        Theirs, by the exported network.
    model : stages.training.train.TrainedModel
    about : str
        What kind of network it is.
    n_parameters, n_macs : int
    milliseconds : dict of int to float
        What a crop takes in batches of so many.
    onnx : bytes
    """

    settings: Settings
    spec: TaggerSpec
    inputs: list[Path]
    tests: list[Path]
    command: str
    n_train: int
    n_validation: int
    test: Crops
    scores: npt.NDArray[np.float32]
    model: Any
    about: str
    n_parameters: int
    n_macs: int
    milliseconds: dict[int, float]
    onnx: bytes


def write_results(result: Result, onnx: Path, card: Path, roc: Path, name: str) -> None:
    """Write the network, its card and its ROC picture.

    Parameters
    ----------
    name : str
        What the network will be called.

    Raises
    ------
    OSError
        They cannot be written.
    """
    title, _ = TITLES[result.settings.tagger]
    onnx.write_bytes(result.onnx)
    card.write_text(card_text(result, name), encoding="utf-8")
    roc_png(result.test.labels, result.scores, roc, f"{title}, events it never saw")


def card_text(result: Result, name: str) -> str:
    """The card; its figures of merit are computed here from labels and scores."""
    title, tells = TITLES[result.settings.tagger]
    spec, settings = result.spec, result.settings
    labels = result.test.labels
    area, area_error = auc(labels, result.scores)
    pt_area, pt_error = auc(labels, result.test.pt)
    rejection, rejection_error = background_rejection(labels, result.scores, 0.5)
    seconds = float(np.median([epoch.seconds for epoch in result.model.epochs]))
    threads = f"{settings.threads} thread{'s' if settings.threads > 1 else ''}"
    rows = [
        ("AUC on unseen events", f"{area:.4f} ± {area_error:.4f}"),
        ("Background rejection at 50 % signal efficiency", f"{rejection:.2f} ± {rejection_error:.2f}"),
        ("AUC by pt alone, the higher the more signal", f"{pt_area:.4f} ± {pt_error:.4f}"),
        ("Crops: training / validation / test", f"{result.n_train:,} / {result.n_validation:,} / {len(labels):,}"),
        ("Network", f"{result.about} (`{settings.arch}`)"),
        ("Input", f"{', '.join(spec.channels)}; {spec.crop} x {spec.crop} pixels"),
        ("Parameters", f"{result.n_parameters:,}"),
        ("Multiply-accumulates per crop", f"{result.n_macs:,}"),
        *((f"Time per crop, batch {n}", f"{ms:.2f} ms") for n, ms in result.milliseconds.items()),
        ("... in ONNX Runtime", f"median, 1 thread; {processor()}"),
        ("Epochs", f"{_epochs(result)}; the best was {result.model.best.number}"),
        ("Time per epoch", f"{seconds:.0f} s on {result.model.device or f'{threads}; {processor()}'}"),
        ("Seed", str(settings.seed)),
        ("File", f"`{name}`, {len(result.onnx):,} bytes"),
        ("SHA-256", f"`{hashlib.sha256(result.onnx).hexdigest()}`"),
    ]
    lines = [f"# {title}", "", f"Tells {tells} by one crop of raw values in {_units(spec)}.", ""]
    if settings.shuffle_labels:
        lines += ["**A check, not a tagger:** its labels were dealt out anew, so the AUC must be 0.5.", ""]
    lines += ["| | |", "|---|---|", *(f"| {key} | {value} |" for key, value in rows)]
    lines += [
        "",
        "## Data",
        "",
        *data_lines(result.inputs, "training and validation"),
        *data_lines(result.tests, "test"),
    ]
    if not result.tests:
        lines.append("- The test events are the last fifth of each file's.")
    files = [*result.inputs, *result.tests]
    commands = [command for path in dict.fromkeys(files) if (command := origin(command_of, path))]
    lines += ["", "## How to make it again", "", f"With version {__version__}:", "", "```", *commands, result.command]
    lines += ["```", "", "## Notes", "", _note(files)]
    return "\n".join(lines) + "\n"


def _epochs(result: Result) -> str:
    done, asked = len(result.model.epochs), result.settings.epochs
    if result.model.stopped:
        return f"stopped by hand after {done} of {asked}"
    return f"{done} of at most {asked}"


def _units(spec: TaggerSpec) -> str:
    return ", ".join(dict.fromkeys(UNITS[channel] for channel in spec.channels))


def origin(ask: Any, path: Path) -> Any:
    """What a file says of how it was generated, nothing where it is not a file of ours."""
    with contextlib.suppress(Exception):  # uproot raises whatever a foreign file leads to
        return ask(path)
    return None


def data_lines(paths: list[Path], what: str) -> list[str]:
    """What is known of event files, a line each."""
    lines = []
    for path in paths:
        about = origin(settings_of, path)
        known = "of unknown origin"
        if about:
            known = f"{about['events']:,} events, {about['process']}, seed {about['seed']}"
            known += f", {about['pileup']:g} pile-up collisions on average" if about.get("pileup") else ""
            packages = {key: version for key, version in about.get("packages", {}).items() if version}
            known += "".join(f"; {key} {version}" for key, version in packages.items())
        lines.append(f"- `{path.name}` ({what}): {known}.")
    return lines


def _note(paths: list[Path]) -> str:
    abouts = [origin(settings_of, path) for path in paths]
    if not all(abouts):
        return "Its figures hold for events like those it was tested on."
    if all("pt_gev" in about for about in abouts):
        return (
            f"It has seen particles of {abouts[0]['pt_gev']:g} GeV in the barrel alone, from a fast simulation and "
            "without pile-up; on other data its scores are numbers, not measurements."
        )
    return (
        "It has seen generated collisions and a fast simulation of the detector alone; on other data its scores are "
        "numbers, not measurements."
    )


def processor() -> str:
    """Name and number of cores of what this runs on."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    n = len(os.sched_getaffinity(0))
    return f"{name}, {n} core{'s' if n > 1 else ''}"
