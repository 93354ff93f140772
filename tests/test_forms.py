"""Images, non-empty pixels and points: the same objects, whatever form they reach a network in."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from physics_helpers import Chain, cms_open_data, columns_of, conv_model, event, infer_all, save_graph

from stages import filling, kernels
from stages.bench.crops import crops
from stages.config import CHANNELS, TAGGERS, Config, packaged
from stages.detector.ecal import eb_detid
from stages.filling import grid_of
from stages.forms import Entries, Images, Points, Sparse, typical
from stages.graph import normalised
from stages.network import Network
from streamer.block import decode, to_wire
from streamer.errors import UsageError

KERNELS = {
    "image": filling.fill_crops,
    "sparse": filling.fill_entries,
    "ends": kernels.ends,
    "scores": filling.scores_of_objects,
}

LOOKS: dict[str, dict[str, Any]] = {
    "ECAL": {"channels": ("ECAL",), "crop": 32},
    "towers alone": {"channels": ("HCAL",), "crop": 16},
    "towers in the middle": {"channels": ("TrackPt", "HCAL", "ECAL"), "crop": 16},
    "towers first": {"channels": ("HCAL", "ECAL"), "crop": 8},
    "whole": {"objects": "Event", "channels": ("ECAL", "HCAL", "TrackPt")},
}
SOME = ["eg", "top", *(pytest.param(name, marks=pytest.mark.long) for name in ("qg", "tau"))]
NORMALISE = {
    "ECAL": {"scale": 0.5, "transform": "log", "clip": 1.0},
    "HCAL": {"scale": 3.0, "transform": "asinh"},
    "TrackPt": {"clip": 0.5},
}


def config(look: dict[str, Any], model: Path, **tagger: Any) -> Config:
    given = {"provider": "cpu", "max_batch": 8, **tagger}
    return Config.model_validate({"taggers": {"eg": {"model": model, **look}}, "tagger": given})


def weighing(path: Path, shape: tuple[int, ...], **options: Any) -> Path:
    """A network whose score is a random weight for each pixel."""
    weights = np.random.default_rng(0).standard_normal((int(np.prod(shape)), 1)).astype(np.float32) / 100
    dtype = options.pop("dtype", TensorProto.FLOAT)
    nodes = [
        helper.make_node("Flatten", ["crops"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["floats", "w"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["score"], to=dtype),
    ]
    return save_graph(path, nodes, ("batch", *shape), weights={"w": weights}, dtype=dtype, **options)


def scored(network: Network, seen: Sparse, n: int) -> Any:
    """Scores of objects that come in two parts."""
    network.form.fill(seen, 0, 3, 0)
    network.form.fill(seen, 3, n, 3)
    return network.run(n)


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("normalise", [{}, NORMALISE], ids=["plain", "normalised"])
def test_the_device_makes_the_same_image(tmp_path: Path, look: dict[str, Any], normalise: dict[str, Any]) -> None:
    chosen = {channel: how for channel, how in normalise.items() if channel in look["channels"]}
    made = config({**look, "normalise": chosen}, tmp_path / "m.onnx")
    spec = made.taggers["eg"]
    weighing(spec.model, spec.shape)
    grid = grid_of(spec, made.channels)
    seen = typical(grid, 8, np.dtype("i4"))
    assert len({*seen[1].tolist()}) < len(seen[1]), "some pixels are there twice, and add up"
    image = Images(spec, grid, 8)
    image.fill(seen, 0, 8, 0)
    weights = np.random.default_rng(0).standard_normal(int(np.prod(spec.shape))).astype(np.float32) / 100
    wanted = normalised(image.arrays(8)[0], spec).reshape(8, -1) @ weights
    assert np.ptp(wanted) > 0.01
    for form in ("image", "sparse"):
        one = made.model_copy(update={"taggers": {"eg": spec.model_copy(update={"input": form})}})
        network = Network("eg", one)
        network.warm_up()
        np.testing.assert_allclose(scored(network, seen, 8), wanted, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(scored(network, seen, 5), wanted[:5], rtol=1e-4, atol=1e-4)
        network.form.fill(seen, 7, 8, 0)
        np.testing.assert_allclose(network.run(1), wanted[7:], rtol=1e-4, atol=1e-4)


def test_padded_entries_add_nothing() -> None:
    spec = config(LOOKS["towers first"], Path("none.onnx")).taggers["eg"]
    grid = grid_of(spec, ("ECAL", "HCAL"))
    seen = typical(grid, 4, np.dtype("u2"))
    padded, exact = (Entries(grid, exact=exact) for exact in (False, True))
    for form in (padded, exact):
        form.fill(seen, 0, 4, 0)
        form.fill(seen, 0, 1, 0)  # less than before
    index, value, n = padded.arrays(1)
    true_index, true_value, _ = exact.arrays(1)
    assert (index.size, n.tolist()) == (1024, [1])
    np.testing.assert_array_equal(index[: true_index.size], true_index)
    np.testing.assert_array_equal(value[: true_value.size], true_value)
    assert not value[true_value.size :].any()


@pytest.mark.parametrize("tagger", list(TAGGERS))
def test_packaged_networks_score_generated_events_alike(tagger: str) -> None:
    sample = packaged(f"samples/{'egamma' if tagger == 'eg' else tagger}.root")
    difference, n = of_forms(tagger, sample)
    assert n >= 90
    assert difference <= 1e-5


@pytest.mark.parametrize(
    "tagger", ["eg", "top", *(pytest.param(name, marks=pytest.mark.long) for name in ("qg", "tau"))]
)
def test_packaged_networks_score_real_events_alike(tagger: str) -> None:
    files = sorted(cms_open_data().glob("*.ig"))
    difference, n = of_forms(tagger, *map(str, files[:1]))
    assert n >= 5
    assert difference <= 1e-5


def of_forms(tagger: str, *files: str) -> tuple[float, int]:
    """The greatest difference between scores of image and sparse input, and of how many objects."""
    scores = []
    for form in ("image", "sparse"):
        given = {"input": form, "allow_empty": True}
        made = Config.model_validate(
            {
                "input": {"files": files, "fat_jets": "Jet" if files[0].endswith(".ig") else "auto"},
                "taggers": {tagger: given},
                "tagger": {"provider": "cpu", "policy": "fixed", "max_batch": 64},
            }
        )
        network = Network(tagger, made)
        network.warm_up()
        columns = crops(made)
        n = min(int(columns[f"n{network.crop}"].sum()), 200)
        parts = []
        for first in range(0, n, network.max_batch):
            last = min(first + network.max_batch, n)
            network.form.fill(network.sparse(columns), first, last, 0)
            parts.append(network.run(last - first))
        scores.append(np.concatenate(parts))
    return float(np.abs(scores[0] - scores[1]).max()), n


@pytest.mark.parametrize("form", ["image", "sparse"])
def test_a_warm_network_compiles_nothing_more(tmp_path: Path, form: str) -> None:
    made = config({"input": form}, conv_model(tmp_path / "m.onnx"))
    hit = int(eb_detid(20, 11))
    chain = Chain(made)
    known = {name: len(kernel.signatures) for name, kernel in KERNELS.items()}
    events = [event(i, EBRecHit=[(hit, float(i + 1))], Photon=[(34.0, 0.34, 0.005)]) for i in range(3)]
    block = chain.crops(columns_of(events), 3)
    frames = to_wire(block, "run", chain.tagger.inputs)
    infer_all(chain.tagger, decode([bytes(frame) for frame in frames], "run", chain.tagger.inputs))
    assert {name: len(kernel.signatures) for name, kernel in KERNELS.items()} == known


@pytest.mark.parametrize("form", ["image", "sparse"])
def test_sizes_are_warmed_up_as_on_a_device_that_compiles_each(tmp_path: Path, form: str) -> None:
    made = config({"input": form}, conv_model(tmp_path / "m.onnx"))
    network = Network("eg", made)
    network.exact = False
    network.warm_up()
    assert network.costs is not None
    assert network.costs.sizes[0] == 1 < network.costs.sizes[-1] == network.max_batch
    other = Network("eg", made, found=network.finding)
    other.exact = False
    other.get_ready(network.finding)
    assert other.costs is not None
    assert other.costs.sizes == network.costs.sizes


# ---- points


def test_points_are_the_pixels_with_content() -> None:
    look = {"channels": ("ECAL", "HCAL", "TrackPt"), "crop": 8}
    spec = config(look, Path("none.onnx")).taggers["eg"]
    grid = grid_of(spec, CHANNELS)
    # one object: ECAL at the seed (3, 3) twice and at (0, 7); a tower whose middle is (3, 3), and one whose middle is
    # outside; a track at the seed
    tower, outside = (1 + 4) * 12 + 1 + 4, 0
    counts = np.array([3, 2, 1])
    ends = np.concatenate([[0], np.cumsum(counts)])
    index = np.array([3 * 8 + 3, 7, 3 * 8 + 3, tower, outside, 3 * 8 + 3], np.uint16)
    value = np.array([1.0, 2.0, 4.0, 25.0, 50.0, 8.0], np.float32)
    points = Points(grid, 2, 4)
    points.fill((ends, index, value), 0, 1, 1)
    clouds, mask = points.arrays(2)
    np.testing.assert_array_equal(mask, [[0, 0, 0, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(clouds[1, :2], [[0, 0, 5, 25, 8], [-3, 4, 2, 0, 0]])
    assert not clouds[1, 2:].any()
    assert points.left_out == 0


def test_of_more_points_than_fit_the_brightest_are_taken() -> None:
    spec = config({"channels": ("ECAL",), "crop": 8}, Path("none.onnx")).taggers["eg"]
    grid = grid_of(spec, ("ECAL",))
    value = np.array([1, -9, 3, 7, 5], np.float32)
    points = Points(grid, 1, 3)
    for _ in range(2):  # nothing stays behind
        points.fill((np.array([0, 5]), np.arange(5, dtype=np.uint16), value), 0, 1, 0)
        clouds, mask = points.arrays(1)
        np.testing.assert_array_equal(clouds[0, :, 2], [-9, 7, 5])
        assert mask.all()
    assert points.left_out == 4


def cloud_model(path: Path, n_points: int | str = 16, n_channels: int = 1, *, swapped: bool = False) -> Path:
    """The score is the energy times the row, of all points."""
    nodes = [
        helper.make_node("Slice", ["points", "zero", "one", "two"], ["rows"]),
        helper.make_node("Slice", ["points", "two", "three", "two"], ["energies"]),
        helper.make_node("Mul", ["rows", "energies"], ["each"]),
        helper.make_node("Squeeze", ["each", "two"], ["flat"]),
        helper.make_node("Mul", ["flat", "mask"], ["masked"]),
        helper.make_node("ReduceSum", ["masked", "one"], ["score"], keepdims=0),
    ]
    weights = {name: np.array([k], np.int64) for k, name in enumerate(("zero", "one", "two", "three"))}
    graph = helper.make_graph(
        nodes,
        "cloud",
        [
            helper.make_tensor_value_info("points", TensorProto.FLOAT, ["batch", n_points, 2 + n_channels]),
            helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["batch", n_points]),
        ][:: -1 if swapped else 1],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["batch"])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("swapped", [False, True])
@pytest.mark.parametrize("normalise", [{}, {"ECAL": {"scale": 2.0, "transform": "asinh"}}])
def test_a_network_of_points_is_given_points(tmp_path: Path, swapped: bool, normalise: dict[str, Any]) -> None:
    model = cloud_model(tmp_path / "m.onnx", "n", swapped=swapped)
    made = config({"input": "points", "points": 32, "normalise": normalise}, model)
    network = Network("eg", made)
    network.warm_up()
    seen = typical(grid_of(made.taggers["eg"], ("ECAL",)), 8, np.dtype("u2"))
    image = Images(made.taggers["eg"], grid_of(made.taggers["eg"], ("ECAL",)), 8)
    image.fill(seen, 0, 8, 0)
    dense = normalised(image.arrays(8)[0], made.taggers["eg"])[:, 0]
    wanted = (dense * (np.arange(32) - 15)[:, None]).sum((1, 2))
    np.testing.assert_allclose(scored(network, seen, 8), wanted, rtol=1e-4, atol=1e-3)


def test_a_network_tells_how_many_points_it_takes(tmp_path: Path) -> None:
    network = Network("eg", config({"input": "points"}, cloud_model(tmp_path / "m.onnx", 16)))
    assert [array.shape for array in network.form.arrays(2)] == [(2, 16, 3), (2, 16)]


def test_what_is_made_up_to_warm_up_with_is_not_counted(tmp_path: Path) -> None:
    made = config({"input": "points"}, cloud_model(tmp_path / "m.onnx", 16))
    network = Network("eg", made)
    network.warm_up()
    assert network.take_left_out() == 0
    ready = Network("eg", made, found=network.finding)
    ready.get_ready(network.finding)
    assert ready.take_left_out() == 0
    scored(ready, typical(grid_of(made.taggers["eg"], ("ECAL",)), 8, np.dtype("u2")), 8)
    assert ready.take_left_out() > 0, "of 32 pixels, where 16 have a place"


# ---- what cannot be


def refused(look: dict[str, Any], model: Path, **tagger: Any) -> str:
    with pytest.raises(UsageError) as error:
        Network("eg", config(look, model, **tagger)).warm_up()
    assert "\n" not in str(error.value)
    return str(error.value)


def test_forms_that_a_network_does_not_take_are_told(tmp_path: Path) -> None:
    image, cloud = conv_model(tmp_path / "image.onnx"), cloud_model(tmp_path / "cloud.onnx")
    assert "points with 1 channels are ('batch', 'points', 3)" in refused({"input": "points"}, image)
    assert "has 2 inputs (points, mask)" in refused({}, cloud)
    assert "points with 2 channels" in refused({"input": "points", "channels": ("ECAL", "HCAL")}, cloud)


def test_old_networks_are_converted_for_sparse_input_where_that_can_be(tmp_path: Path) -> None:
    model = onnx.load(conv_model(tmp_path / "m.onnx"))
    model.opset_import[0].version = 13
    onnx.save(model, tmp_path / "m.onnx")
    Network("eg", config({"input": "sparse"}, tmp_path / "m.onnx")).warm_up()


def test_a_network_that_cannot_be_converted_stays_with_images(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("GlobalMaxPool", ["crops"], ["max"]),
        helper.make_node("Flatten", ["max"], ["flat"]),
        helper.make_node("Gelu", ["flat"], ["score"], domain="com.microsoft"),  # the converter does not know these
    ]
    path = save_graph(tmp_path / "m.onnx", nodes)
    model = onnx.load(path)
    model.opset_import[0].version = 12
    onnx.save(model, path)
    Network("eg", config({}, path)).warm_up()
    line = refused({"input": "sparse"}, path)
    assert "its graph cannot be changed: its opset 12 is below 16 and cannot be converted" in line
    assert line.endswith("set taggers.eg.input = 'image'")
    auto = Network("eg", config({"input": "auto"}, path))
    auto.warm_up()
    assert auto.form.name == "image"


def test_auto_takes_what_is_faster_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    made = config({"input": "auto"}, conv_model(tmp_path / "m.onnx"))
    network = Network("eg", made)
    network.warm_up()
    (line,) = [record.getMessage() for record in caplog.records if "input = " in record.getMessage()]
    assert f"input = '{network.form.name}' (8 objects: image " in line
    assert ", sparse " in line


def test_half_precision_networks_are_run(tmp_path: Path) -> None:
    whole = weighing(tmp_path / "m.onnx", (1, 32, 32))
    half = weighing(tmp_path / "half.onnx", (1, 32, 32), dtype=TensorProto.FLOAT16)
    seen = typical(grid_of(config({}, whole).taggers["eg"], ("ECAL",)), 8, np.dtype("u2"))
    wanted = scored(Network("eg", config({}, whole)), seen, 8)
    for form in ("image", "sparse"):
        network = Network("eg", config({"input": form}, half))
        network.warm_up()
        found = scored(network, seen, 8)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, wanted, rtol=1e-2, atol=1e-2)
