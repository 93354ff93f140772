"""The packaged networks, their cards and samples: does the stream compute what training promised?"""

import hashlib
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import uproot

from stages.config import TAGGERS, Config, packaged
from stages.model import Model
from stages.performance import auc
from stages.quality import OBJECTS, OCCUPANCY
from stages.simulation.sample import command_of, generate_file, settings_of
from streamer.reference import FILE, NOTABLE, compared, read

PROCESS = {"eg": "egamma", "qg": "qg", "top": "top", "tau": "tau"}
FIGURE = {"eg": 0.80, "qg": 0.75, "top": 0.93, "tau": 0.93}
"""AUC that each packaged network must have on events that training never saw."""
N_FRESH = {"eg": 2000, "qg": 250, "top": 150, "tau": 250}
FRESH_SEED = 20261125
MOST_BYTES = 4_000_000


def card(tagger: str) -> str:
    return Path(packaged(f"models/{tagger}.md")).read_text(encoding="utf-8")


def promised(tagger: str) -> tuple[float, float]:
    found = re.search(r"AUC on unseen events \| ([\d.]+) ± ([\d.]+)", card(tagger))
    assert found, f"no AUC in the card of {tagger}"
    return float(found[1]), float(found[2])


@pytest.mark.parametrize("tagger", list(TAGGERS))
def test_the_card_is_of_this_network_and_it_is_good_enough(tagger: str) -> None:
    model = Path(packaged(f"models/{tagger}.onnx"))
    assert hashlib.sha256(model.read_bytes()).hexdigest() in card(tagger)
    area, error = promised(tagger)
    assert area >= FIGURE[tagger]
    assert 0 < error < 0.01
    for promise in (
        "Multiply-accumulates",
        "batch 1",
        "batch 32",
        "Parameters",
        "rejection",
        "streamer train " + tagger,
    ):
        assert promise in card(tagger)


@pytest.mark.parametrize("tagger", list(TAGGERS))
def test_the_network_fits_its_tagger(tagger: str) -> None:
    spec = Config.model_validate({"taggers": {tagger: {}}}).taggers[tagger]
    model = Model(tagger, spec.model, spec, "cpu", 1)
    scores = model.scores(np.zeros((3, *spec.shape), np.float32))
    assert ((scores >= 0) & (scores <= 1)).all()


@pytest.mark.parametrize("tagger", list(TAGGERS))
def test_a_network_tells_nothing_of_the_machine_that_made_it(tagger: str) -> None:
    model = Path(packaged(f"models/{tagger}.onnx")).read_bytes()
    for trace in (b'File "', b"site-packages", b"/tmp", b"/home"):
        assert trace not in model


def test_networks_and_samples_are_small() -> None:
    for folder, suffix in (("models", "onnx"), ("samples", "root")):
        files = list(Path(packaged(folder)).glob(f"*.{suffix}"))
        assert len(files) == 4
        assert sum(file.stat().st_size for file in files) <= MOST_BYTES


@pytest.mark.parametrize("tagger", list(TAGGERS))
def test_samples_say_how_they_were_made_and_training_never_saw_them(tagger: str) -> None:
    path = Path(packaged(f"samples/{PROCESS[tagger]}.root"))
    assert command_of(path).startswith(f"streamer generate {PROCESS[tagger]} ")
    seeds = re.findall(rf"streamer generate {PROCESS[tagger]} .*--seed (\d+)", card(tagger))
    assert len(seeds) == 2
    assert str(settings_of(path)["seed"]) not in seeds
    assert str(FRESH_SEED) not in seeds


@pytest.mark.long
@pytest.mark.timeout(300)
def test_the_stream_gets_the_auc_of_the_cards_on_fresh_events(tmp_path: Path) -> None:
    """A new seed, the whole chain of processes, and the packaged networks."""
    pytest.importorskip("pythia8mc", reason="needs the extra 'generate'")
    pytest.importorskip("fastjet", reason="needs the extra 'generate'")
    paths = [tmp_path / f"{tagger}.root" for tagger in TAGGERS]
    for tagger, path in zip(TAGGERS, paths, strict=True):
        generate_file(N_FRESH[tagger], path, FRESH_SEED, process=PROCESS[tagger], strips=False)
    chosen = [part for tagger in TAGGERS for part in ("--tagger", tagger)]
    done = subprocess.run(
        [sys.executable, "-m", "streamer", "run", *map(str, paths), "--output", str(tmp_path / "out"), *chosen],
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr
    with uproot.open(tmp_path / "out" / "scores.root") as file:
        columns = file["Events"].arrays(library="np")
    for number, (tagger, table) in enumerate(TAGGERS.items()):
        own = columns["sourceFile"] == number
        objects, signal = table["objects"], table.get("signal", 1)
        labels = np.concatenate(columns[f"{objects}_genLabel"][own])
        scores = np.concatenate(columns[f"{objects}_{tagger}Score"][own])
        good = (scores != -1) & np.isin(labels, (0, signal))
        area, error = auc(labels[good] == signal, scores[good])
        expected, of_card = promised(tagger)
        assert area == pytest.approx(expected, abs=3 * np.hypot(error, of_card)), tagger
        assert error < 0.04
        assert (tmp_path / "out" / f"roc_{tagger}.png").stat().st_size > 5000
        assert re.search(rf"^{tagger} +0\.\d{{4}} \+- ", done.stdout, re.MULTILINE)


@pytest.mark.timeout(300)
def test_the_demo_tells_of_all_four(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "streamer", "demo", "--events", "2775", "--output", str(tmp_path / "out")],
        capture_output=True,
        text=True,
        timeout=250,
    )
    assert done.returncode == 0, done.stderr
    assert "2,775 fed = 2,775 scored + 0 errors" in done.stdout
    measured = read(tmp_path / "out" / FILE)
    reference = read(Path(packaged("samples/demo.json")))
    assert {one.entries for (name, _), one in measured.found.items() if name in (OCCUPANCY, OBJECTS)} == {2775}
    assert max(dict(compared(measured, reference, 200)).values()) < NOTABLE
    assert re.search(r"^drift +at most 0\.\d\d \(.+\); the data were as the reference$", done.stdout, re.MULTILINE)
    for tagger in TAGGERS:
        found = re.search(rf"^{tagger} +(0\.\d+) \+- (0\.\d+)", done.stdout, re.MULTILINE)
        assert found, done.stdout
        assert float(found[1]) > FIGURE[tagger] - 3 * float(found[2])
