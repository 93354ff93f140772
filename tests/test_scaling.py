"""What is cut off a network's graph, and done where there is content: the scores stay what they were."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from google.protobuf.message import EncodeError
from onnx import TensorProto, helper
from physics_helpers import save_graph

from stages.config import TAGGERS, Config
from stages.forms import Sparse, typical
from stages.model import Model
from stages.network import Network
from stages.scaling import cut
from streamer.block import Array
from streamer.errors import UsageError

LOOKS: dict[str, dict[str, Any]] = {
    "one": {"channels": ("ECAL",), "crop": 32},
    "towers in the middle": {"channels": ("TrackPt", "HCAL", "ECAL"), "crop": 16},
    "whole": {"objects": "Event", "channels": ("ECAL", "HCAL")},
}
NORMALISE = {
    "ECAL": {"scale": 0.5, "transform": "log", "clip": 1.0},
    "HCAL": {"scale": -3.0, "transform": "asinh"},
    "TrackPt": {"clip": 0.5},
}


def gains(n_channels: int, seed: int) -> Array:
    return np.random.default_rng(seed).uniform(0.2, 5.0, (1, n_channels, 1, 1)).astype(np.float32)


def model(path: Path, shape: tuple[int, ...], branches: int = 1, **gain: Array) -> Path:
    """A network that scales, in several ways beside each other, and then weighs each pixel."""
    n_channels = shape[0]
    weights: dict[str, Array] = {f"gain{k}": gain.get(f"gain{k}", gains(n_channels, k)) for k in range(branches)}
    nodes = []
    for k in range(branches):
        nodes += [
            helper.make_node("Mul", ["crops", f"gain{k}"], [f"scaled{k}"]),
            helper.make_node("Asinh", [f"scaled{k}"], [f"made{k}"]),
        ]
    end = "made0"
    if branches > 1:
        nodes.append(helper.make_node("Concat", [f"made{k}" for k in reversed(range(branches))], ["made"], axis=1))
        end = "made"
    size = branches * int(np.prod(shape))
    weights["w"] = (np.random.default_rng(9).standard_normal((size, 1)) / 100).astype(np.float32)
    nodes += [helper.make_node("Flatten", [end], ["flat"]), helper.make_node("MatMul", ["flat", "w"], ["score"])]
    return save_graph(path, nodes, ("batch", *shape), weights=weights)


def config(look: dict[str, Any], path: Path) -> Config:
    tagger = {"provider": "cpu", "max_batch": 8, "policy": "fixed"}
    return Config.model_validate({"taggers": {"eg": {"model": path, **look}}, "tagger": tagger})


def scores(network: Network, n: int) -> Array:
    """Of a large batch, and then of a smaller one in the same place."""
    seen = typical(network._grid, n, network._index_dtype)
    network.form.fill(seen, 0, 3, 0)
    network.form.fill(seen, 3, n, 3)
    large = network.run(n)
    network.form.fill(seen, n - 2, n, 0)
    return np.concatenate([large, network.run(2)])


@pytest.mark.parametrize("look", LOOKS.values(), ids=LOOKS)
@pytest.mark.parametrize("normalise", [{}, NORMALISE], ids=["plain", "normalised"])
@pytest.mark.parametrize("branches", [1, 2])
def test_scores_are_those_of_the_whole_network(
    tmp_path: Path, look: dict[str, Any], normalise: dict[str, Any], branches: int
) -> None:
    chosen = {channel: how for channel, how in normalise.items() if channel in look["channels"]}
    n_channels, size = len(look["channels"]), look.get("crop")
    shape = (n_channels, size, size) if size else (n_channels, 280, 360)
    made = config({**look, "normalise": chosen}, model(tmp_path / "m.onnx", shape, branches))
    network, whole = Network("eg", made), Network("eg", made, whole=True)
    assert network.model.session.get_inputs()[0].shape[1] == branches * n_channels
    assert len(network.form.arrays(1)[0][0]) == branches * n_channels
    network.warm_up()  # where it is checked
    np.testing.assert_allclose(scores(network, 8), scores(whole, 8), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("faster", ["image", "sparse"])
@pytest.mark.parametrize("policy", ["adaptive", "fixed"])
def test_the_form_that_is_faster_has_batches_that_fit_its_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, faster: str
) -> None:
    def seconds(network: Network, n: int, seen: Sparse | None = None, *_: Any, **__: Any) -> float:
        assert seen is not None
        network.form.fill(seen, 0, 1, 0)
        assert len(seen[0]) > n * network._grid.n_channels, "so many have been filled in"
        assert len(network.form.arrays(n)[0]) == n or network.form.name == "sparse"
        return n * (1e-3 if network.form.name == faster else 2e-3)

    monkeypatch.setattr(Network, "seconds", seconds)
    path = model(tmp_path / "m.onnx", (1, 32, 32), branches=2)  # its images are twice as large as what it sees
    tagger = {"provider": "cpu", "max_batch": 1000, "batch_mb": 1, "policy": policy}
    made = Config.model_validate({"taggers": {"eg": {"model": path, "input": "auto"}}, "tagger": tagger})
    network = Network("eg", made)
    network.warm_up()
    assert network.form.name == faster
    assert network.max_batch == {"image": 128, "sparse": 256}[faster]
    assert (network._scaling is None) == (faster == "sparse")
    ready = Network("eg", made, found=network.finding)
    ready.get_ready(network.finding)
    assert ready.max_batch == network.max_batch
    assert len(scores(ready, ready.max_batch)) == ready.max_batch + 2


def test_normalise_alone_leaves_the_graph_as_it_is(tmp_path: Path) -> None:
    node = [helper.make_node("Flatten", ["crops"], ["a"]), helper.make_node("MatMul", ["a", "w"], ["score"])]
    weights = {"w": np.random.default_rng(0).standard_normal((2 * 256, 1)).astype(np.float32)}
    path = save_graph(tmp_path / "m.onnx", node, ("batch", 2, 16, 16), weights=weights)
    normalise = {channel: NORMALISE[channel] for channel in ("ECAL", "HCAL")}
    made = config({"channels": ("ECAL", "HCAL"), "crop": 16, "normalise": normalise}, path)
    network = Network("eg", made)
    assert network.model.session.get_inputs()[0].name == "crops"
    np.testing.assert_allclose(scores(network, 8), scores(Network("eg", made, whole=True), 8), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tagger", TAGGERS)
def test_the_packaged_networks_are_cut(tagger: str) -> None:
    made = Config.model_validate({"taggers": {tagger: {}}, "tagger": {"provider": "cpu", "max_batch": 4}})
    network, whole = Network(tagger, made), Network(tagger, made, whole=True)
    kinds = {node.op_type for node in graph_of(network.spec.model, len(network.spec.channels))}
    assert "Asinh" not in kinds
    assert "Conv" in kinds
    np.testing.assert_allclose(scores(network, 4), scores(whole, 4), rtol=1e-6, atol=1e-7)


def graph_of(path: Path, n_channels: int) -> Any:
    import onnx

    found = cut(path, "crops", n_channels)
    assert found is not None
    return onnx.load_from_string(found[0]).graph.node


def node(kind: str, given: list[str], made: str, **how: Any) -> Any:
    return helper.make_node(kind, given, [made], **how)


SCALED = [node("Mul", ["crops", "gain"], "a"), node("Asinh", ["a"], "b")]
LEFT_ALONE = {
    "no scaling": [node("Relu", ["crops"], "b")],
    "another way around it": [*SCALED[:1], node("Asinh", ["a"], "c"), node("Add", ["c", "crops"], "b")],
    "its product is used again": [*SCALED[:1], node("Asinh", ["a"], "c"), node("Add", ["c", "a"], "b")],
    "not a constant": [node("Mul", ["crops", "crops"], "a"), SCALED[1]],
    "by column": [node("Mul", ["crops", "by_column"], "a"), SCALED[1]],
    "zero is not zero": [node("Add", ["crops", "gain"], "a"), SCALED[1]],
    "side by side": [
        *SCALED, node("Mul", ["crops", "gain"], "c"), node("Asinh", ["c"], "d"),
        node("Concat", ["b", "d"], "e", axis=3), node("Slice", ["e", "from", "to", "axis"], "b2"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("nodes", LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_what_is_not_a_scaling_of_pixels_is_left_alone(tmp_path: Path, nodes: list[Any]) -> None:
    weights = {
        "gain": gains(2, 0),
        "by_column": np.ones((1, 1, 1, 8), np.float32) * 2,
        "from": np.array([0]), "to": np.array([8]), "axis": np.array([3]),
        "w": np.ones((128, 1), np.float32),
    }  # fmt: skip
    end = nodes[-1].output[0]
    nodes = [*nodes, node("Flatten", [end], "flat"), node("MatMul", ["flat", "w"], "score")]
    path = save_graph(tmp_path / "m.onnx", nodes, ("batch", 2, 8, 8), weights=weights)
    assert cut(path, "crops", 2) is None
    made = config({"channels": ("ECAL", "TrackPt"), "crop": 8}, path)
    np.testing.assert_array_equal(scores(Network("eg", made), 8), scores(Network("eg", made, whole=True), 8))


def test_a_network_in_float16_is_left_alone(tmp_path: Path) -> None:
    weights = {"gain": gains(1, 0).astype(np.float16)}
    nodes = [*SCALED, node("GlobalAveragePool", ["b"], "c"), node("Flatten", ["c"], "score")]
    path = save_graph(tmp_path / "m.onnx", nodes, dtype=TensorProto.FLOAT16, weights=weights)
    assert cut(path, "crops", 1) is None


def test_an_output_within_the_scaling_keeps_it(tmp_path: Path) -> None:
    nodes = [*SCALED, node("GlobalAveragePool", ["b"], "c"), node("Flatten", ["c"], "score")]
    path = save_graph(tmp_path / "m.onnx", nodes, weights={"gain": gains(1, 0)}, extra_outputs=["a"])
    assert cut(path, "crops", 1) is None


class TooLarge:
    """A network that does not fit into one message, as protobuf says it: the one or the other, by its version."""

    def __init__(self, network: Any, error: Exception) -> None:
        self.__dict__.update(_network=network, _error=error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._network, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._network, name, value)

    def SerializeToString(self) -> bytes:  # noqa: N802
        raise self._error


@pytest.mark.parametrize("error", [EncodeError("Failed to serialize proto"), ValueError("exceeds maximum")])
def test_a_network_above_2_gb_is_run_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    path = model(tmp_path / "m.onnx", (1, 32, 32))
    assert cut(path, "crops", 1) is not None
    load = onnx.load
    monkeypatch.setattr(onnx, "load", lambda path: TooLarge(load(path), error))
    assert cut(path, "crops", 1) is None
    made = config({}, path)
    np.testing.assert_array_equal(scores(Network("eg", made), 8), scores(Network("eg", made, whole=True), 8))
    with pytest.raises(UsageError, match="larger than the 2 GB that a changed network may have"):
        Network("eg", config({"input": "sparse"}, path))


def test_the_file_s_own_network_stays_whole_for_dense_batches(tmp_path: Path) -> None:
    path = model(tmp_path / "m.onnx", (1, 32, 32))
    spec = config({}, path).taggers["eg"]
    images = np.zeros((2, 1, 32, 32), np.float32)
    images[1, 0, 3, 4] = 2.0
    gain, weight = gains(1, 0).item(), np.random.default_rng(9).standard_normal((1024, 1))[3 * 32 + 4, 0] / 100
    made = Model("eg", path, spec, "cpu", 1).scores(images)
    np.testing.assert_allclose(made, [0, np.arcsinh(2 * gain) * weight], rtol=1e-5)
