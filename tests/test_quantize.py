"""Networks in int8 and float16: what they lose, what they still say, and what is refused."""

import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from physics_helpers import PACKAGED_MODEL, call, conv_model, event, sum_model, write_hits

from stages import quantize_int8
from stages.config import Config, packaged
from stages.detector.ecal import eb_detid
from stages.network import Model
from stages.performance import auc, auc_change
from stages.quantize_graph import body, float16, prepared
from stages.quantize_int8 import int8
from stages.training.dataset import Crops, load_crops
from stages.training.scoring import score_onnx

SAMPLE = Path(packaged("samples/egamma.root"))
FIGURES = r"AUC ([\d.]+) \+- [\d.]+ before, ([\d.]+) \+- [\d.]+ as"


def crops_of(tagger: str, sample: str) -> Crops:
    return load_crops([packaged(f"samples/{sample}.root")], Config.model_validate({"taggers": {tagger: {}}}))


@pytest.fixture(scope="module")
def photons() -> Crops:
    return crops_of("eg", "egamma")


@pytest.fixture(scope="module")
def jets() -> Crops:
    return crops_of("qg", "qg")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("stages.quantize.TURNS", 1)
    return tmp_path


@pytest.mark.parametrize(("kind", "apart", "share"), [("int8", 0.02, 0.35), ("float16", 0.001, 0.6)])
def test_a_packaged_network_is_made_smaller_and_stays_good(
    kind: str, apart: float, share: float, here: Path, photons: Crops
) -> None:
    code, printed, told = call("quantize", "eg", "--calibrate", SAMPLE, "--to", kind)
    assert code == 0, told
    out, card = here / f"eg.{kind}.onnx", (here / f"eg.{kind}.md").read_text()
    assert sorted(here.iterdir()) == [out.with_suffix(".md"), out]
    before, after = map(float, re.search(FIGURES, printed).groups())  # type: ignore[union-attr]
    assert after == pytest.approx(before, abs=0.005)
    data = out.read_bytes()
    for figure in (f"{before:.4f} ± ", f"{after:.4f} ± ", hashlib.sha256(data).hexdigest(), f"{len(data):,} bytes"):
        assert figure in card
    assert hashlib.sha256(PACKAGED_MODEL.read_bytes()).hexdigest() in card
    assert f"streamer quantize eg --calibrate egamma.root --to {kind} --output {out.name}\n" in card
    assert len(data) < share * PACKAGED_MODEL.stat().st_size
    spec = Config().taggers["eg"]
    model, source = (Model("eg", path, spec, "cpu", 1) for path in (out, spec.model))
    assert not model.fixed_batch
    for n in (1, 33):
        crops = photons.dense(np.arange(n))
        assert np.abs(model.scores(crops) - source.scores(crops)).mean() < apart
    code, _, told = call("quantize", "eg", "--calibrate", SAMPLE, "--to", kind)
    assert code == 2
    assert told == f"streamer: eg.{kind}.onnx: exists; choose another name by --output, or --overwrite\n"


def test_another_tagger_and_a_test_file_of_its_own(here: Path) -> None:
    Path("my.toml").write_text('[taggers.mine]\nobjects = "Photon"\nmodel = "mine.onnx"\n')
    shutil.copy(PACKAGED_MODEL, "mine.onnx")
    shutil.copy(SAMPLE, "test.root")
    given = ("--tagger", "mine", "--config", "my.toml", "--calibrate", SAMPLE, "--test", "test.root")
    Path("out.onnx").write_text("an earlier network")
    code, printed, told = call("quantize", "mine.onnx", *given, "-o", "out.onnx", "--overwrite")
    assert code == 0, told
    assert "calibrated with 256 crops, tested on 2,500 others\n" in printed
    assert Path("out.md").read_text().startswith("# Tagger mine, int8\n")


def test_what_reaches_the_scores_is_in_float32(photons: Crops) -> None:
    model = prepared(PACKAGED_MODEL.read_bytes())
    kinds = [node.op_type for node in body(model)]
    assert (kinds[0], kinds[-1]) == ("Conv", "ReduceMean")
    assert not {"Mul", "Asinh", "Gemm", "Sigmoid"} & set(kinds)
    monster = photons.take([0, 1])
    monster.value[:] *= 1e5  # more than a float16 can hold
    for made in (float16(PACKAGED_MODEL.read_bytes()), int8(PACKAGED_MODEL.read_bytes(), photons.take(range(64)))):
        assert np.isfinite(score_onnx(made, monster)).all()


def test_means_stay_where_they_were(photons: Crops, monkeypatch: pytest.MonkeyPatch) -> None:
    data, calibration = PACKAGED_MODEL.read_bytes(), photons.take(range(1, 512, 2))
    wanted = score_onnx(data, photons).mean()
    shift = score_onnx(int8(data, calibration), photons).mean() - wanted
    monkeypatch.setattr(quantize_int8, "_correct", lambda *_: None)
    uncorrected = score_onnx(int8(data, calibration), photons).mean() - wanted
    assert abs(shift) < 0.003
    assert abs(shift) < abs(uncorrected)


def test_leaving_out_what_is_empty_changes_no_score(jets: Crops, monkeypatch: pytest.MonkeyPatch) -> None:
    data, calibration = Path(packaged("models/qg.onnx")).read_bytes(), jets.take(range(16))
    monkeypatch.setattr(quantize_int8, "_correct", lambda *_: None)
    sparse = int8(data, calibration)
    monkeypatch.setattr(quantize_int8, "_sparse", lambda model, _: model)
    dense = int8(data, calibration)
    kinds = [[node.op_type for node in onnx.load_from_string(made).graph.node] for made in (sparse, dense)]
    assert ["NonZero" in own for own in kinds] == [True, False]
    np.testing.assert_array_equal(score_onnx(sparse, jets), score_onnx(dense, jets))


def test_a_network_tells_nothing_of_the_machine_that_made_it(jets: Crops) -> None:
    data = Path(packaged("models/qg.onnx")).read_bytes()
    for made in (int8(data, jets.take(range(16))), float16(data)):
        onnx.checker.check_model(onnx.load_from_string(made), full_check=True)
        for trace in (b'File "', b"site-packages", b"/tmp", b"/home"):
            assert trace not in made


def loud(path: Path) -> Path:
    """The packaged network with one filter that is 10,000 times as loud, and that the next layer takes for as much
    less: the same scores, but its loudness is all that 8 bits can hold."""
    model = onnx.load(PACKAGED_MODEL)
    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    first, second = [node for node in model.graph.node if node.op_type == "Conv"][:2]
    for name, place, factor in (
        (first.input[1], np.s_[0], 1e4),
        (first.input[2], np.s_[0], 1e4),
        (second.input[1], np.s_[:, 0], 1e-4),
    ):
        values = numpy_helper.to_array(weights[name]).copy()
        values[place] *= factor
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    onnx.save(model, path)
    return path


def test_a_network_that_loses_is_not_written(here: Path) -> None:
    path = loud(here / "loud.onnx")
    code, printed, told = call("quantize", path, "--tagger", "eg", "--calibrate", SAMPLE)
    assert (code, printed) == (1, "")
    found = re.search(r"loud\.onnx: as int8 its AUC falls by (0\.\d+) \+- 0\.\d+ to 0\.\d+, by more than 0\.005", told)
    assert found, told
    assert float(found[1]) > 0.005
    assert "nothing is written; try --to float16" in told.splitlines()[-1]
    assert list(here.iterdir()) == [path]


def test_what_cannot_be_used_is_one_line(here: Path) -> None:
    text, other, plain = here / "text.onnx", here / "other.onnx", sum_model(here / "sum.onnx")
    text.write_text("no network")
    conv_model(other, ("batch", 2, 32, 32))
    fixed = conv_model(here / "fixed.onnx", (8, 1, 32, 32))
    done = here / "done.onnx"
    done.write_bytes(float16(PACKAGED_MODEL.read_bytes()))
    (here / "whole.toml").write_text('[taggers.whole]\nobjects = "Event"\nmodel = "whole.onnx"\n')
    unknown = write_hits(here / "unknown.root", [event(1)], without=("Photon_genLabel",))
    hit = (int(eb_detid(1, 11)), 30.0)
    few = [event(k, EBRecHit=[hit], Photon=[(30.0, 0.01, 0.005, 0, k % 2)]) for k in range(60)]
    few_file = write_hits(here / "few.root", few)
    eg: tuple[Any, ...] = ("--tagger", "eg")
    cases: list[tuple[str, tuple[Any, ...]]] = [
        ("toop: no such file; did you mean 'top'?; packaged are eg, qg, top, tau", ("toop",)),
        ("gone.onnx: no such file; packaged are", ("gone.onnx",)),
        ("sum.onnx: say what it looks at: --tagger eg, qg, top or tau", (plain,)),
        ("--tagger egg: no such tagger; did you mean 'eg'?; there are eg, qg, top, tau", (plain, "--tagger", "egg")),
        ("whole: sees whole events", (plain, "--tagger", "whole", "--config", here / "whole.toml")),
        ("text.onnx: not a model that ONNX Runtime loads", (text, *eg)),
        ("other.onnx: input 'crops' is ('batch', 2, 32, 32), but channels ECAL and crop 32 make", (other, *eg)),
        ("fixed.onnx: takes batches of 8 alone", (fixed, *eg)),
        ("done.onnx: is int8 or float16 already; start from the float32 network", (done, *eg)),
        ("sum.onnx: has fewer than two convolutions or matrix products", (plain, *eg)),
        ("egamma.root: is given twice", ("eg", "--test", SAMPLE)),
        ("unknown.root: no column Photon_genLabel", ("eg", "--test", unknown)),
        ("30 crops of the signal and 30 of the background for the test, and 100 of each", ("eg", "--test", few_file)),
        ("nowhere/out.onnx: cannot be written", ("eg", "--output", here / "nowhere/out.onnx")),
        ("out.root: name another file that ends in .onnx", ("eg", "--output", here / "out.root")),
        ("other.onnx: name another file that ends in .onnx", (other, *eg, "--output", other, "--overwrite")),
    ]
    before = sorted(here.iterdir())
    for message, given in cases:
        code, printed, told = call("quantize", *given, "--calibrate", SAMPLE)
        assert (code, printed) == (2, ""), told
        assert message in told
        assert len(told.splitlines()) == 1, told
    code, _, told = call("quantize", "eg", "--calibrate", few_file)
    why = "12 crops to calibrate with, and 50 are needed; give more events by --calibrate"
    assert (code, told) == (2, f"streamer: {why}\n")
    code, _, told = call("quantize", "eg", "--calibrate", few_file, "--test", SAMPLE)  # all of one hit: too narrow
    assert code == 1
    assert "as int8 its AUC falls by" in told
    assert sorted(here.iterdir()) == before


def test_the_error_of_a_change_is_that_of_repeated_samples() -> None:
    rng = np.random.default_rng(1)
    changes, errors = [], []
    for _ in range(300):
        labels = np.arange(400) % 2
        before = labels + rng.standard_normal(400)
        after = np.round(before + 0.3 * rng.standard_normal(400), 1)
        change, error = auc_change(labels, before, after)
        assert change == pytest.approx(auc(labels, after)[0] - auc(labels, before)[0])
        changes.append(change)
        errors.append(error)
    assert np.mean(errors) == pytest.approx(np.std(changes), rel=0.15)
    assert auc_change(labels, before, before) == (0, 0)
