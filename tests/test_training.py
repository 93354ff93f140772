"""The packaged network is what its card says."""

import hashlib
import re
from pathlib import Path

import numpy as np

from stages.config import Config, packaged
from stages.performance import auc
from stages.simulation.sample import generate_file
from stages.training.dataset import load_crops

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
    crops = load_crops([sample], Config())
    assert len(crops) > 5900
    session = InferenceSession(MODEL, providers=["CPUExecutionProvider"])
    places = np.array_split(np.arange(len(crops)), 10)
    parts = [session.run(None, {session.get_inputs()[0].name: crops.dense(part)})[0] for part in places]
    measured, fresh_error = auc(crops.labels, np.concatenate(parts)[:, 0])
    assert measured >= 0.75
    assert abs(measured - stated) < 4 * np.hypot(error, fresh_error)


def test_package_stays_small() -> None:
    assert MODEL.stat().st_size <= 2_000_000
    assert Path(packaged("samples/egamma.root")).stat().st_size <= 3_000_000
