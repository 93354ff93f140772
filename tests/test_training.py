"""The packaged network is what its card says, and a network can be trained."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from stages.config import Config, packaged
from stages.conversion import schema_of
from stages.formats.root import write_events
from stages.records import INPUT
from stages.simulation.sample import generate_file
from stages.training.dataset import load_crops
from stages.training.metrics import auc
from streamer.errors import UsageError

CARD = Path(packaged("models/eg.md"))
MODEL = Path(packaged("models/eg.onnx"))
FRESH_SEED = 4711


def test_card_names_the_file_that_is_shipped() -> None:
    assert hashlib.sha256(MODEL.read_bytes()).hexdigest() in CARD.read_text()


def test_shipped_network_reaches_its_auc_on_fresh_events(tmp_path: Path) -> None:
    from onnxruntime import InferenceSession

    stated, error = map(float, re.search(r"([\d.]+) ± ([\d.]+)", CARD.read_text()).groups())  # type: ignore[union-attr]
    assert f"--seed {FRESH_SEED}" not in CARD.read_text(), "these events must be new to the network"
    sample = tmp_path / "fresh.root"
    generate_file(6000, sample, seed=FRESH_SEED)
    crops, labels = load_crops([sample], Config())
    assert len(crops) > 5900
    session = InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    parts = [session.run(None, {session.get_inputs()[0].name: part})[0] for part in np.array_split(crops, 10)]
    measured, fresh_error = auc(labels, np.concatenate(parts)[:, 0])
    assert measured >= 0.75
    assert abs(measured - stated) < 4 * np.hypot(error, fresh_error)


def test_package_stays_small() -> None:
    assert MODEL.stat().st_size <= 2_000_000
    assert Path(packaged("samples/egamma.root")).stat().st_size <= 3_000_000


def test_a_sample_without_truth_is_refused(tmp_path: Path) -> None:
    schema = schema_of([column for column in INPUT if column.name != "Photon_genLabel"])
    write_events(tmp_path / "data.root", schema, [schema.empty(3)])
    with pytest.raises(UsageError, match="Photon_genLabel"):
        load_crops([tmp_path / "data.root"], Config())


def test_training_makes_a_model_with_card_and_picture(tmp_path: Path) -> None:
    pytest.importorskip("torch", reason="training needs the extra 'train'")
    pytest.importorskip("onnxscript", reason="training needs the extra 'train'")
    from stages.training.session import train_egamma

    sample, out = tmp_path / "sample.root", tmp_path / "my.onnx"
    generate_file(1500, sample, seed=1)
    lines: list[str] = []
    done = train_egamma([sample], [], out, seed=1, epochs=2, threads=1, command="streamer train eg", tell=lines.append)
    assert any(line.startswith("epoch 2") for line in lines)
    assert hashlib.sha256(out.read_bytes()).hexdigest() in done.card.read_text()
    assert "streamer generate egamma -n 1500 -o sample.root --seed 1" in done.card.read_text()
    assert done.roc.read_bytes().startswith(b"\x89PNG")
    assert 0.4 < done.auc < 1
    assert list(tmp_path.glob("*.data")) == [], "the weights must be in the ONNX file"
