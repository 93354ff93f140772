"""Training from event files to a network with its card and its picture, at the command line."""

import hashlib
import re
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from jet_sample import write_jets
from physics_helpers import Processes, call, wait_until

from stages.simulation.sample import generate_file
from stages.training.settings import Settings
from streamer.errors import StreamerError, UsageError

pytest.importorskip("torch", reason="training needs the extra 'train'")
pytest.importorskip("onnxscript", reason="training needs the extra 'train'")

from stages.training.session import Trained, train_tagger


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sample") / "sample.root"
    generate_file(1500, path, seed=1)
    return path


@pytest.fixture(scope="module")
def jets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jets(tmp_path_factory.mktemp("jets") / "jets.root", 300, 1)


def run(path: Path, out: Path, name: str = "eg", tests: list[Path] | None = None, **given: Any) -> Trained:
    """A short training."""
    settings = Settings(name, **{"arch": "points", "epochs": 1, "threads": 1, **given})
    return train_tagger(settings, [path], tests or [], out, command="streamer train ...")


def test_training_makes_a_model_with_card_and_picture(sample: Path, tmp_path: Path) -> None:
    out = tmp_path / "my.onnx"
    code, printed, told = call(
        *("train", "eg", "--input", sample, "--output", out, "--arch", "points"),
        *("--epochs", 2, "--threads", 1, "--batch", 32, "--learning-rate", 0.001),
    )
    assert code == 0, told
    assert re.search(r"epoch 2/2: loss 0\.\d+, validation AUC", told)
    assert "min left at most" in told
    area, error = map(float, re.search(r"AUC ([\d.]+) \+- ([\d.]+)", printed).groups())  # type: ignore[union-attr]
    assert 0.4 < area < 1
    card = (tmp_path / "my.md").read_text()
    assert f"{area:.4f} ± {error:.4f}" in card
    assert hashlib.sha256(out.read_bytes()).hexdigest() in card
    assert "streamer generate egamma -n 1500 -o sample.root --seed 1\n" in card
    again = "--arch points --seed 1 --epochs 2 --threads 1 --batch 32 --learning-rate 0.001"
    assert f"streamer train eg --input sample.root --output my.onnx {again}\n" in card
    assert "1,500 events, single electrons and photons in the ECAL barrel, seed 1" in card
    assert "AUC by pt alone" in card
    for figure in (r"batch 1 \| [\d.]+ ms", r"batch 32 \| [\d.]+ ms", r"median, 1 thread; .+, \d+ cores?"):
        assert re.search(figure, card)
    assert (tmp_path / "my.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my.md", "my.onnx", "my.png", "my.points.onnx"]


@pytest.mark.long
def test_shuffled_labels_cannot_be_learned(sample: Path, tmp_path: Path) -> None:
    done = run(sample, tmp_path / "no.onnx", epochs=3, shuffle_labels=True)
    assert abs(done.auc - 0.5) < 3.5 * done.auc_error
    assert done.auc_error < 0.04
    assert "A check, not a tagger" in done.card.read_text()


@pytest.mark.long
def test_one_channel_alone_can_be_trained_on(jets: Path, tmp_path: Path) -> None:
    done = run(jets, tmp_path / "one.onnx", "qg", channels=("HCAL",), tests=[write_jets(tmp_path / "t.root", 60, 2)])
    card = done.card.read_text()
    assert "| Input | HCAL; 128 x 128 pixels |" in card
    assert "`t.root` (test): of unknown origin" in card
    assert "AUC by pt alone, the higher the more signal | 0.5000" in card


@pytest.mark.long
def test_ctrl_c_keeps_the_best_so_far(jets: Path, tmp_path: Path) -> None:
    out = tmp_path / "kept.onnx"
    with Processes(tmp_path) as processes:
        process = processes("train", "top", "-i", jets, "-o", out, "--arch", "points", "--epochs", 5000)
        wait_until(lambda: "epoch 2/5000" in process.err or process.popen.poll() is not None, "two epochs")
        process.signal(signal.SIGINT)
        process.check(130)
        assert re.search(r"stopped by hand after \d+ epochs; the best so far is kept", process.complaints[-1])
    assert re.search(r"stopped by hand after \d+ of 5000; the best was \d+", out.with_suffix(".md").read_text())
    assert hashlib.sha256(out.read_bytes()).hexdigest() in out.with_suffix(".md").read_text()


def test_ctrl_c_before_there_is_anything_leaves_nothing(jets: Path, tmp_path: Path, monkeypatch: Any) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stages.training.session.load_crops", stop)
    code, _, told = call("train", "qg", "-i", jets, "-o", tmp_path / "no.onnx")
    assert code == 130
    assert told.splitlines()[-1] == "streamer: stopped before there was a network to keep; nothing is written"
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_no_half_files(sample: Path, tmp_path: Path) -> None:
    out = tmp_path / "big.onnx"
    out.write_text("an earlier network")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(StreamerError, match=r"big\.onnx: cannot be written \(File too large\); make room"):
            run(sample, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.name for path in tmp_path.iterdir()] == ["big.onnx"]
    assert out.read_text() == "an earlier network"


def test_inputs_that_cannot_be_trained_on_are_one_line(sample: Path, jets: Path, tmp_path: Path) -> None:
    out = tmp_path / "no.onnx"
    one_class = write_jets(tmp_path / "one.root", 30, 1, (1,))
    cases: list[tuple[str, dict[str, Any]]] = [
        ("sample.root: no Jet with Jet_genLabel 1 or 0", {"path": sample, "name": "qg"}),
        ("sample.root: is given twice", {"path": sample, "tests": [sample]}),
        ("training: .* and 0 of the background", {"path": one_class, "name": "qg"}),
        ("test: .* and 0 of the background", {"path": jets, "name": "qg", "tests": [one_class]}),
        ("do not fill one batch of 5000", {"path": sample, "batch": 5000}),
        ("--channels: eg has no channel 'HCAL'.*; it has ECAL", {"path": sample, "channels": ("HCAL",)}),
        ("there is no folder .*/missing; make it first", {"path": sample, "out": tmp_path / "missing/no.onnx"}),
        ("name a file that ends in .onnx", {"path": sample, "out": tmp_path / "no.root"}),
        ("gone.root: cannot be read", {"path": tmp_path / "gone.root"}),
    ]
    for message, given in cases:
        with pytest.raises(UsageError, match=message) as error:
            run(**{"out": out, **given})
        assert len(str(error.value).splitlines()) == 1
    assert not out.exists()


def test_missing_torch_is_told(sample: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UsageError, match=r"pip install 'e2e-streamer\[train\]'"):
        run(sample, tmp_path / "no.onnx")
