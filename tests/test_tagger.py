"""The tagger: which models are taken, how crops become a batch, and whose score is whose."""

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper
from physics_helpers import Chain, columns_of, conv_model, event, infer_all, per_event, save_graph, sum_model

from stages import model as model_module
from stages.config import Config, TaggerConfig, n_taggers
from stages.detector.ecal import eb_detid
from stages.filling import fill_crops, scores_of_objects
from stages.machine import cores, n_cores, n_gpus
from stages.network import Network, threads_of
from stages.tagger import Tagger
from streamer.batcher import Part
from streamer.block import SHED, failures
from streamer.config import load
from streamer.deadline import without_first
from streamer.errors import UsageError
from streamer.stage import LATE


def config(model: Path, *, spec: dict[str, Any] | None = None, **tagger: Any) -> Config:
    return Config.model_validate({"taggers": {"eg": {"model": model, **(spec or {})}}, "tagger": tagger})


def make(model: Path, **kwargs: Any) -> Tagger:
    tagger = Tagger(config(model, **kwargs))
    tagger.mark = 4
    tagger.setup()
    return tagger


def mean(axes: list[int], source: str = "crops", to: str = "score") -> Any:
    return helper.make_node("ReduceMean", [source], [to], axes=axes, keepdims=0)


# ---- models


def wrong_channels(path: Path) -> None:
    conv_model(path, ("batch", 3, 32, 32))


def wrong_side(path: Path) -> None:
    conv_model(path, ("batch", 1, 16, 16))


def channels_last(path: Path) -> None:
    save_graph(path, [mean([1, 2, 3])], ("batch", 32, 32, 1), output=("batch",))


def three_axes(path: Path) -> None:
    save_graph(path, [mean([1, 2])], ("batch", 32, 32), output=("batch",))


def two_inputs(path: Path) -> None:
    both = [mean([1, 2, 3], to="a"), mean([1, 2, 3], "more0", "b"), helper.make_node("Add", ["a", "b"], ["score"])]
    save_graph(path, both, output=("batch",), extra_inputs=1)


def bytes_(path: Path) -> None:
    casts = [helper.make_node("Cast", ["crops"], ["floats"], to=TensorProto.FLOAT), mean([1, 2, 3], "floats", "mean")]
    casts.append(helper.make_node("Cast", ["mean"], ["score"], to=TensorProto.UINT8))
    save_graph(path, casts, output=("batch",), dtype=TensorProto.UINT8)


def two_outputs(path: Path) -> None:
    save_graph(path, [mean([1, 2, 3]), mean([1, 2, 3], to="other")], output=("batch",), extra_outputs=["other"])


def future_opset(path: Path) -> None:
    model = onnx.load(conv_model(path))
    model.opset_import[0].version = 999
    onnx.save(model, path)


def weights_elsewhere(path: Path) -> None:
    model = onnx.load(conv_model(path))
    onnx.save(model, path, save_as_external_data=True, location="weights.bin", size_threshold=0)
    (path.parent / "weights.bin").unlink()


def enormous_batch(path: Path) -> None:
    save_graph(path, [mean([1, 2, 3])], (1 << 30, 1, 32, 32), output=(1 << 30,))


def fails_on_any_crop(path: Path) -> None:
    wrong = [helper.make_node("Reshape", ["crops", "seven"], ["s"]), mean([1], "s")]
    save_graph(path, wrong, output=("batch",), weights={"seven": np.array([-1, 7], np.int64)})


def many_scores(path: Path) -> None:
    save_graph(path, [mean([1, 2])], output=("batch", 32))


def many_scores_without_saying_so(path: Path) -> None:
    save_graph(path, [mean([1, 2])], ("batch", "c", "h", "w"), output=("batch", "k"))


def text(path: Path) -> None:
    path.write_bytes(b"this is not a network " * 10)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def torn(path: Path) -> None:
    whole = conv_model(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def missing(path: Path) -> None:
    """There is no such file."""


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (wrong_channels, "('batch', 3, 32, 32), but channels ECAL and crop 32 make ('batch', 1, 32, 32)"),
        (wrong_side, "('batch', 1, 16, 16), but channels ECAL and crop 32 make"),
        (channels_last, "change taggers.eg.channels or .crop, or the model"),
        (three_axes, "('batch', 32, 32), but"),
        (two_inputs, "has 2 inputs (crops, more0); set taggers.eg.input_name to the one that takes the object"),
        (bytes_, "input 'crops' is tensor(uint8); tensor(float), tensor(float16), tensor(double) are taken"),
        (two_outputs, "has 2 outputs (score, other); set taggers.eg.output_name to the one that is the score"),
        (future_opset, "not a model that ONNX Runtime loads ([ONNXRuntimeError]"),
        (weights_elsewhere, "its weights are in 'weights.bin', which cannot be read; put it beside the model"),
        (enormous_batch, "a batch of 1073741824 objects takes 4,398.0 GB, and "),
        (fails_on_any_crop, "fails on made-up objects ([ONNXRuntimeError]"),
        (many_scores, "one score an object is needed"),
        (many_scores_without_saying_so, "scores for"),
        (text, "not a model that ONNX Runtime loads"),
        (empty, "not a model that ONNX Runtime loads"),
        (torn, "not a model that ONNX Runtime loads"),
        (missing, "cannot be read (No such file or directory); set taggers.eg.model"),
        (Path.mkdir, "cannot be read (Is a directory); set taggers.eg.model"),
    ],
)
def test_a_model_that_does_not_fit_is_told_in_one_line(
    tmp_path: Path, spoil: Any, said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "model.onnx"
    spoil(path)
    with pytest.raises(UsageError) as error:
        make(path)
    line = str(error.value)
    assert line.startswith(f"tagger eg: {path}: ")
    assert said in line
    assert "\n" not in line
    assert capfd.readouterr() == ("", ""), "nobody else talks"


def test_a_tagger_asks_for_the_crop_and_channels_that_it_is_configured_for(tmp_path: Path) -> None:
    make(conv_model(tmp_path / "m16.onnx", ("batch", 1, 16, 16)), spec={"crop": 16})
    make(conv_model(tmp_path / "m2.onnx", ("batch", 2, 32, 32)), spec={"channels": ("ECAL", "ECAL")})


def test_which_input_and_output_are_meant_can_be_told(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("Add", ["crops", "more0"], ["both"]),
        mean([1, 2, 3], "both", "score"),
        mean([1, 2, 3], "more0", "other"),
    ]
    path = save_graph(tmp_path / "m.onnx", nodes, output=("batch",), extra_inputs=1, extra_outputs=["other"])
    told = {"input_name": "crops", "output_name": "score", "constants": {"more0": 3.0}}
    energies = [[1024.0, 2048.0]]
    for spec, wanted in (
        (told, [4.0, 5.0]),
        ({**told, "input_name": ""}, [4.0, 5.0]),  # what has a constant does not take the crop
        ({**told, "output_name": "other"}, [3.0, 3.0]),
        ({"input_name": "more0", "output_name": "other", "constants": {"crops": 0.0}}, [1.0, 2.0]),
        ({**told, "input": "sparse"}, [4.0, 5.0]),
        ({**told, "normalise": {"ECAL": {"scale": 2.0}}}, [5.0, 7.0]),
    ):
        chain = Chain(config(path, spec=spec))
        columns = chain.scores(columns_of(events_with(energies)), 1).columns
        assert per_event(columns, "Photon_egScore") == [wanted]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"input_name": "crop"}, "has no input 'crop'; did you mean 'crops'?; it has crops"),
        ({"output_name": "scores"}, "has no output 'scores'; did you mean 'score'?; it has score"),
        ({"constants": {"pileup": 30}}, "taggers.eg.constants.pileup is not another input; there is none"),
        ({"constants": {"crops": 30}}, "has 1 inputs (crops); set taggers.eg.input_name"),
    ],
)
def test_names_that_a_network_does_not_have_are_told(tmp_path: Path, spec: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError) as error:
        make(conv_model(tmp_path / "m.onnx"), spec=spec)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_doubles_and_halves_are_taken(tmp_path: Path) -> None:
    for dtype in (TensorProto.DOUBLE, TensorProto.FLOAT16):
        path = save_graph(tmp_path / "m.onnx", [mean([1, 2, 3])], output=("batch",), dtype=dtype)
        columns = Chain(config(path)).scores(columns_of(events_with([[1024.0]])), 1).columns
        assert per_event(columns, "Photon_egScore") == [[1.0]]


def test_weights_in_a_file_of_their_own_are_part_of_the_hash(tmp_path: Path) -> None:
    hashes = []
    for seed in (0, 1):
        model = onnx.load(conv_model(tmp_path / "m.onnx", seed=seed))
        (tmp_path / "m.onnx").unlink()
        (tmp_path / "weights.bin").unlink(missing_ok=True)
        onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
        hashes.append((make(tmp_path / "m.onnx").about()["models"]["eg"]["sha256"], (tmp_path / "m.onnx").read_bytes()))
    assert hashes[0][1] == hashes[1][1]
    assert hashes[0][0] != hashes[1][0]


@pytest.mark.parametrize("read_by", ["hashed", "cut", "rebuilt"])
@pytest.mark.parametrize("of", ["m.onnx", "weights.bin"])
def test_a_file_that_is_written_anew_while_it_is_loaded_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str, read_by: str
) -> None:
    for seed, folder in enumerate((tmp_path, tmp_path / "new")):
        folder.mkdir(exist_ok=True)
        model = onnx.load(conv_model(folder / "plain.onnx", seed=seed))
        onnx.save(model, folder / "m.onnx", save_as_external_data=True, location="weights.bin", size_threshold=0)
    path = tmp_path / "m.onnx"
    read = getattr(model_module, read_by)

    def hasty(*args: Any, **kwargs: Any) -> Any:
        found = read(*args, **kwargs) if read_by == "hashed" else None
        if (tmp_path / "new" / of).exists():
            (tmp_path / "new" / of).replace(tmp_path / of)
        return found if read_by == "hashed" else read(*args, **kwargs)

    monkeypatch.setattr(model_module, read_by, hasty)
    made = config(path, spec={"normalise": {"ECAL": {"scale": 2.0}}})  # for which its graph is changed
    with pytest.raises(UsageError) as error:
        Network("eg", made)
    assert str(error.value) == f"tagger eg: {path}: was written anew while it was loaded; try again"
    Network("eg", made)


def test_forms_are_compared_of_one_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    path = conv_model(tmp_path / "m.onnx")
    auto, sparse = (Network("eg", config(path, spec={"input": form}, policy="fixed")) for form in ("auto", "sparse"))
    before = auto.model.sha256
    conv_model(path, seed=1)
    auto.warm_up()
    assert (auto.form.name, auto.model.sha256) == ("image", before)
    with pytest.raises(UsageError, match="has become another file since it was tried; ask for it again"):
        sparse.warm_up()


# ---- providers


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_provider_asked_for_by_name_must_load(
    tmp_path: Path, provider: str, capfd: pytest.CaptureFixture[str]
) -> None:
    model = conv_model(tmp_path / "m.onnx")
    try:
        tagger = make(model, provider=provider)
    except UsageError as error:
        line = str(error)
        assert line.startswith(f"tagger.provider = '{provider}' does not load on this machine")
        assert "use 'auto' or 'cpu'" in line
        assert "\n" not in line
        assert capfd.readouterr() == ("", ""), "nobody else talks"
    else:
        assert tagger.about()["provider"].lower() == provider


def test_auto_takes_the_cpu_where_there_is_nothing_better_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(model_module, "has_gpu", lambda: False)
    caplog.set_level(logging.INFO)
    tagger = make(conv_model(tmp_path / "m.onnx"), provider="auto")
    assert tagger.about()["provider"] == "CPU"
    assert "on CPU" in caplog.text
    assert not [r for r in caplog.records if r.levelno > logging.INFO]


def test_auto_warns_of_a_gpu_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(model_module, "has_gpu", lambda: True)
    monkeypatch.setattr(ort, "preload_dlls", lambda: None)
    tagger = make(conv_model(tmp_path / "m.onnx"), provider="auto")
    if tagger.about()["provider"] == "CPU":
        (warning,) = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
        assert warning.startswith("there is a GPU, but ONNX Runtime cannot use it")


# ---- batches


def test_fill_writes_dense_crops_over_what_was_there() -> None:
    # two crops of two channels, 4 x 4 pixels; a third crop that is not asked for
    counts = np.array([[1, 2], [0, 1], [1, 0]])
    offsets = np.concatenate([[0], np.cumsum(counts.reshape(-1))]).astype(np.int64)
    index, value = np.array([3, 0, 15, 7, 1], np.uint16), np.array([1, 2, 3, 4, 5], np.float32)
    batch = np.full((4, 2, 16), 9, np.float32)
    fill_crops(offsets, index, value, 0, 2, np.zeros(2, np.bool_), 4, batch, 1)
    wanted = np.zeros((2, 2, 16), np.float32)
    wanted[0, 0, 3], wanted[0, 1, 0], wanted[0, 1, 15], wanted[1, 1, 7] = 1, 2, 3, 4
    np.testing.assert_array_equal(batch[1:3], wanted)
    assert (batch[[0, 3]] == 9).all(), "the rows around stay"
    fill_crops(offsets, index, value, 2, 3, np.zeros(2, np.bool_), 4, batch, 0)
    assert batch[0].sum() == batch[0, 0, 1] == 5


def test_fill_ignores_what_lies_outside_the_crop() -> None:
    offsets, batch = np.array([0, 4], np.int64), np.zeros((2, 1, 16), np.float32)
    index, pixels = np.array([16, 65535, 15, 17], np.uint16), np.zeros(1, np.bool_)
    fill_crops(offsets, index, np.ones(4, np.float32), 0, 1, pixels, 4, batch, 0)
    assert batch[0].sum() == batch[0, 0, 15] == 1
    assert batch[1].sum() == 0


def events_with(energies: list[list[float]]) -> list[dict[str, Any]]:
    """Events whose photons have a hit of so much energy each; 0 for none, which leaves the photon without a seed."""
    out = []
    for k, row in enumerate(energies):
        hits = [(int(eb_detid(-80 + 30 * i, 100)), energy) for i, energy in enumerate(row) if energy]
        photons = [(50.0, (-79.5 + 30 * i) * 0.01745, np.radians(89.5)) for i in range(len(row))]
        out.append(event(k, EBRecHit=hits, Photon=photons))
    return out


ENERGIES = [[1.0, 2.0], [], [3.0, 0.0, 5.0], [0.0], [7.0], [], [8.0, 9.0, 10.0, 11.0]]


@pytest.mark.parametrize("max_batch", [1, 2, 3, 64])
def test_every_score_goes_to_its_photon(tmp_path: Path, max_batch: int) -> None:
    chain = Chain(config(sum_model(tmp_path / "sum.onnx"), max_batch=max_batch))
    columns = chain.scores(columns_of(events_with(ENERGIES)), len(ENERGIES)).columns
    assert per_event(columns, "Photon_egScore") == [[e or -1.0 for e in row] for row in ENERGIES]
    assert not columns["error"].any()


@pytest.mark.parametrize("place", [-1, 3])
def test_no_score_is_written_beside_the_objects(place: int) -> None:
    n_objects, n_crops, objects = (np.array(values, np.int32) for values in ([2, 1], [1, 1], [1, 0]))
    scores, n_bad = scores_of_objects(n_objects, n_crops, objects, np.array([5, np.inf], np.float32))
    assert (scores.tolist(), n_bad) == ([-1, 5, -1], 1)
    with pytest.raises(IndexError):
        scores_of_objects(n_objects, n_crops, np.array([place, 0], np.int32), np.ones(2, np.float32))


def test_batches_span_blocks(tmp_path: Path) -> None:
    chain = Chain(config(sum_model(tmp_path / "sum.onnx"), max_batch=8))
    blocks = [chain.crops(columns_of(events_with([row])), 1) for row in ([1.0, 2.0, 3.0], [4.0], [5.0, 6.0])]
    parts = [Part(blocks[0], 1, 3), Part(blocks[1], 0, 1), Part(blocks[2], 0, 1)]
    assert chain.tagger.infer("eg", parts).tolist() == [2, 3, 4, 5]
    assert chain.tagger.infer("eg", [Part(blocks[2], 1, 2)]).tolist() == [6]


@pytest.mark.parametrize("batch", [1, 4])
def test_a_model_of_a_fixed_batch_size_is_fed_in_that_size(tmp_path: Path, batch: int) -> None:
    chain = Chain(config(sum_model(tmp_path / "fixed.onnx", (batch, 1, 32, 32)), max_batch=64))
    assert chain.tagger.queues == {"eg": batch}
    columns = chain.scores(columns_of(events_with(ENERGIES)), len(ENERGIES)).columns
    assert per_event(columns, "Photon_egScore") == [[e or -1.0 for e in row] for row in ENERGIES]


def test_a_score_that_is_no_number_marks_its_event_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    chain = Chain(config(sum_model(tmp_path / "nan.onnx", limit=6.0), max_batch=4))
    columns = chain.scores(columns_of(events_with([[1.0], [2.0, 8.0], [], [3.0], [9.0]])), 5).columns
    assert columns["error"].tolist() == [0, 4, 0, 0, 4]
    found = per_event(columns, "Photon_egScore")
    np.testing.assert_allclose(np.concatenate(found), [1, 2, -1, 3, -1], rtol=1e-5)
    assert "eg: no score for 2 events of block 1" in caplog.text
    assert failures(columns) == {1: "the score of the eg tagger is nan", 4: "the score of the eg tagger is nan"}


def test_items_that_failed_are_marked_like_that_too(tmp_path: Path) -> None:
    chain = Chain(config(sum_model(tmp_path / "sum.onnx")))
    block = chain.crops(columns_of(events_with([[1.0], [2.0, 3.0]])), 2)
    results = np.concatenate([np.array([1.0], np.float32), chain.tagger.failed(2)])
    done = chain.tagger.finish(block, {"eg": results}, {"eg": {2: "ValueError: no"}})
    assert failures(done.columns) == {1: "ValueError: no"}
    assert done.columns["Photon_egScore"].tolist() == [1, -1, -1]


def test_an_event_of_which_an_item_was_given_up_is_shed_unless_it_failed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    chain = Chain(config(sum_model(tmp_path / "sum.onnx")))
    block = chain.crops(columns_of(events_with([[1.0], [2.0, 3.0], [4.0, 5.0], [6.0]])), 4)
    results = np.array([1, 2, np.nan, np.nan, np.nan, 6], np.float32)
    done = chain.tagger.finish(block, {"eg": results}, {"eg": {2: LATE, 3: LATE, 4: "ValueError: no"}}).columns
    assert done["error"].tolist() == [0, SHED + 4, 4, 0]
    assert failures(done) == {2: "ValueError: no"}
    assert per_event(done, "Photon_egScore") == [[1.0], [2.0, -1.0], [-1.0, -1.0], [6.0]]
    assert caplog.text.count("no score for 1 events") == 1


def test_whole_events_that_were_shed_are_not_scored(tmp_path: Path) -> None:
    model = sum_model(tmp_path / "sum.onnx", ("batch", 1, 280, 360))
    chain = Chain(config(model, spec={"objects": "Event", "channels": ["ECAL"]}, max_batch=4))
    block = chain.crops(columns_of(events_with([[1.0], [2.0], [4.0]])), 3)
    block = block.with_columns(without_first(chain.tagger.inputs, block.columns, 1, 2))
    assert chain.tagger.items(block) == {"eg": 2}
    scores = chain.tagger.infer("eg", [Part(block, 0, 2)])
    done = chain.tagger.finish(block, {"eg": scores}, {"eg": {}}).columns
    assert done["Event_egScore"].tolist() == [-1, 2, 4]
    assert done["error"].tolist() == [SHED + 2, 0, 0]


@pytest.mark.parametrize(
    ("settings", "way_s", "after"),
    [
        ({}, 0.0, None),
        ({"feed.deadline": 0.1, "feed.rate": 5}, 0.02, 0.08),
        ({"feed.deadline": 0.1, "feed.rate": 5, "tagger.deadline": 0.05}, 0.02, 0.05),
        ({"tagger.deadline": 0.05}, 0.0, 0.05),
    ],
)
def test_crops_have_what_the_feeds_deadline_leaves(
    settings: dict[str, Any], way_s: float, after: float | None, tmp_path: Path
) -> None:
    chain = Chain(load(Config, None, {"taggers.eg.model": str(sum_model(tmp_path / "sum.onnx")), **settings}))
    block = chain.crops(columns_of(events_with([[1.0], [2.0, 3.0]])), 2)
    chain.tagger.way_s = way_s
    found = chain.tagger.deadlines("eg", block)
    if after is None:
        assert found is None
    else:
        assert found is not None
        assert (found - block.columns["fedTime"][[0, 1, 1]]).tolist() == pytest.approx([after * 1e9] * 3)


def test_a_deadline_of_the_feed_that_no_inference_meets_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = {"taggers.eg.model": str(sum_model(tmp_path / "sum.onnx")), "feed.deadline": 1e-9, "feed.rate": 5}
    Tagger(load(Config, None, settings)).setup()
    assert "feed.deadline = 1e-06 ms, but one inference of tagger eg: " in caplog.text


def test_what_it_tells_of_itself(tmp_path: Path) -> None:
    import hashlib

    path = conv_model(tmp_path / "m.onnx")
    about = make(path, provider="cpu").about()
    assert about == {
        "provider": "CPU",
        "models": {"eg": {"path": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}},
    }


# ---- batches that adapt


def test_what_batches_cost_is_learned_at_the_start(tmp_path: Path) -> None:
    tagger = make(conv_model(tmp_path / "conv.onnx"), policy="adaptive", max_batch=48)
    costs = tagger.costs["eg"]
    assert (costs.sizes[0], costs.max_batch) == (1, 48)
    assert 0 < costs.of(1) <= costs.of(48) < 1
    assert not make(conv_model(tmp_path / "conv.onnx"), policy="fixed").costs


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"tagger.max_wait": "5 ms"},
            "'tagger': 'max_wait' has no effect with policy = 'adaptive'; leave it out, or set",
        ),
        (
            {"tagger.policy": "fixed", "tagger.deadline": 1},
            "'tagger': 'deadline' has no effect with policy = 'fixed'; leave it out, or set policy = 'adaptive'",
        ),
        ({"taggers.eg.priority": 1}, "'taggers.eg.priority' has no effect without a deadline; leave it out, or set"),
    ],
)
def test_a_setting_without_effect_is_told(settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError) as error:
        load(Config, None, settings)
    assert str(error.value).startswith(f"configuration: {told}")
    assert "\n" not in str(error.value)


def test_queues_have_their_taggers_priorities(tmp_path: Path) -> None:
    tagger = make(sum_model(tmp_path / "sum.onnx"), spec={"priority": 3}, deadline=9.0)
    assert tagger.priorities == {"eg": 3}


@pytest.mark.parametrize(("shape", "size"), [(("batch", 1, 32, 32), 3), ((4, 1, 32, 32), 4)])
def test_a_batch_moves_its_pixels_and_scores_with_what_pads_it(shape: Any, size: int, tmp_path: Path) -> None:
    tagger = make(conv_model(tmp_path / "conv.onnx", shape))
    assert tagger.transferred("eg", 3) == (size * 32 * 32 * 4, size * 4)


def test_a_network_of_one_batch_size_has_one_cost(tmp_path: Path) -> None:
    tagger = make(conv_model(tmp_path / "fixed.onnx", (4, 1, 32, 32)), policy="adaptive")
    assert tagger.costs["eg"].sizes == [4]


def test_a_deadline_that_no_crop_can_meet_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"tagger.deadline = 1e-06 ms, but one inference of .* takes [\d.e-]+ ms here"):
        make(conv_model(tmp_path / "conv.onnx"), policy="adaptive", deadline=1e-9)


def test_the_deadline_of_a_crop_is_that_of_its_event(tmp_path: Path) -> None:
    settings = config(sum_model(tmp_path / "sum.onnx"), policy="adaptive", deadline=2.0)
    chain = Chain(settings)
    hit = [(int(eb_detid(20, 11)), 30.0)]
    photons = [(34.0, 0.34, 0.005)]
    block = chain.crops(columns_of([event(i, EBRecHit=hit, Photon=photons * (i % 3)) for i in range(6)]), 6)
    fed = np.arange(6) * 1000
    block = block.with_columns({**block.columns, "fedTime": fed})
    found = chain.tagger.deadlines("eg", block)
    assert found is not None
    np.testing.assert_array_equal(found - 2_000_000_000, [1000, 2000, 2000, 4000, 5000, 5000])


# ---- cores


def test_inference_uses_the_cores_that_it_is_given(tmp_path: Path) -> None:
    model = conv_model(tmp_path / "m.onnx")
    with ThreadPoolExecutor(1) as setup, ThreadPoolExecutor(1) as engine:
        chain = setup.submit(lambda: Chain(config(model, cpus="0"))).result()
        block = chain.crops(columns_of(events_with(ENERGIES)), len(ENERGIES))
        engine.submit(infer_all, chain.tagger, block).result()
        assert setup.submit(os.sched_getaffinity, 0).result() == {0}, "so have the threads of the session"
        assert engine.submit(os.sched_getaffinity, 0).result() == {0}


def test_threads_are_one_for_each_core_that_is_named(tmp_path: Path) -> None:
    made = config(tmp_path / "none.onnx", cpus="0").tagger
    assert threads_of(config(tmp_path / "none.onnx", cpus="0")) == 1
    assert made.cpus == config(tmp_path / "none.onnx", cpus=0).tagger.cpus == "0"
    assert cores("0-0,0") == {0}
    with pytest.raises(UsageError, match=r"tagger.cpus = '0-4097': there is no core [0-9]+ here; there are 0"):
        cores("0-4097")
    with pytest.raises(ValueError, match="cpus"):
        config(tmp_path / "none.onnx", cpus="2-")


@pytest.mark.parametrize(
    ("named", "n"), [(None, 4), ("2", 1), ("0,3", 2), ("", 0), ("-1", 0), ("1,-1,2", 1), ("GPU-8f2b,GPU-91aa", 2)]
)
def test_gpus_of_others_do_not_count(named: str | None, n: int, monkeypatch: pytest.MonkeyPatch) -> None:
    devices = [Path(f"/dev/nvidia{k}") for k in range(4)]
    monkeypatch.setattr(Path, "glob", lambda self, pattern: devices if str(self) == "/dev" else [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if named is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert n_gpus() == n
    assert n_taggers(TaggerConfig()) == (n or min(n_cores(), 16))
    assert n_taggers(TaggerConfig(provider="cpu")) == min(n_cores(), 16)
    assert n_taggers(TaggerConfig(threads=3)) == (n or 1)
