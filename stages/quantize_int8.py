"""A network in 8 bits, for processors that multiply bytes."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper
from onnx.inliner import inline_local_functions
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from stages.quantize_graph import body, opset_of, prepared, quiet, serialized
from stages.training.dataset import Crops
from stages.training.scoring import session

BATCH = 32
QUANTIZED = ("Conv", "MatMul", "Gemm", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat")
"""Convolutions and products, and what between them can stay in 8 bits."""

BLOCK = 32
"""Neighbouring pixels that the scaling takes together: so many that most are empty, and that few are looked at."""

DOMAIN = "streamer"
SCALED = """<domain: "%s", opset_import: ["" : %d]>
%s (crops, gain, scale, zero) => (y)
{
    one = Constant <value_ints = [1]> ()
    all = Constant <value_ints = [-1]> ()
    rows = Constant <value_ints = [-1, %d]> ()
    n_in_image = Constant <value_ints = [%d]> ()
    n_channels = Constant <value_ints = [%d]> ()
    blocks = Reshape (crops, rows)
    most = ReduceMax <keepdims = 0> (blocks, one)
    least = ReduceMin <keepdims = 0> (blocks, one)
    above = Abs (most)
    below = Abs (least)
    content = Add (above, below)
    found = NonZero (content)
    place = Reshape (found, all)
    image = Div (place, n_in_image)
    channel = Mod (image, n_channels)
    gains = Reshape (gain, all)
    own = Gather (gains, channel)
    each = Unsqueeze (own, one)
    value = Gather (blocks, place)
    product = Mul (value, each)
    made = Asinh (product)
    byte = QuantizeLinear (made, scale, zero)
    size = Shape (blocks)
    empty = Expand (zero, size)
    where = Unsqueeze (place, one)
    filled = ScatterND (empty, where, byte)
    shape = Shape (crops)
    y = Reshape (filled, shape)
}"""
"""QuantizeLinear(Asinh(crops * gain)), worked out where a block has content; elsewhere it is the zero point."""


class _Batches(CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, crops: Crops) -> None:
        self._rest = ({name: batch} for batch in _dense(crops))

    def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
        return next(self._rest, None)


def _dense(crops: Crops) -> Any:
    for first in range(0, len(crops), BATCH):
        yield crops.dense(np.arange(first, min(first + BATCH, len(crops))))


def int8(data: bytes, crops: Crops) -> bytes:
    """A network whose body is in 8 bits, with the ranges that these crops have.

    Each filter has its own scale, and 7 bits: the sum of two products of 8 bits would not fit into what processors
    without VNNI add them in, and the scores would be others there. The ranges of the activations are all that was
    seen: detector images have long tails, and what is cut off there is the signal.

    Parameters
    ----------
    crops : Crops
        Some hundred.

    Raises
    ------
    UsageError
        It cannot be made.
    """
    model = prepared(data)
    names = [node.name for node in body(model)]
    with tempfile.TemporaryDirectory() as folder, quiet():
        given, out = Path(folder) / "float32.onnx", Path(folder) / "int8.onnx"
        onnx.save(model, given)
        quantize_static(
            given,
            out,
            _Batches(model.graph.input[0].name, crops),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED),
            nodes_to_quantize=names,
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        made = onnx.load(out)
    _correct(made, model, crops)
    return serialized(_sparse(made, crops))


def _correct(made: Any, model: Any, crops: Crops) -> None:
    """Shift the biases so that each filter's mean is that of the float32 network, layer by layer.

    Nearly all pixels are empty, and behind the first convolution an empty pixel is one number for each filter: its
    rounding is the same everywhere and would add up. (M. Nagel et al., arXiv:1906.04721, section 4.2)
    """
    wanted = {node.name: node.output[0] for node in model.graph.node if node.op_type == "Conv"}
    maker = {name: node for node in made.graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in made.graph.initializer}
    todo = [node for node in made.graph.node if node.name in wanted and len(node.input) == 3]
    todo = [node for node in todo if node.input[2] in maker]
    if not todo:
        return
    means = _means(model, [wanted[node.name] for node in todo], crops)
    for node, mean in zip(todo, means, strict=True):
        (now,) = _means(made, [node.output[0]], crops)
        bias, scale = (weights[name] for name in maker[node.input[2]].input[:2])
        steps = np.round((now - mean) / numpy_helper.to_array(scale))
        shifted = (numpy_helper.to_array(bias) - steps).astype(np.int32)
        bias.CopyFrom(numpy_helper.from_array(shifted, bias.name))


def _means(model: Any, names: list[str], crops: Crops) -> list[npt.NDArray[np.float64]]:
    """Means over crops and pixels of what nodes put out: float64[n_filters] each."""
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    network = session(watched.SerializeToString())
    sums: Any = [0.0] * len(names)
    for batch in _dense(crops):
        seen = network.run(names, {model.graph.input[0].name: batch})
        sums = [own + images.mean((2, 3), np.float64).sum(0) for own, images in zip(sums, seen, strict=True)]
    return [own / len(crops) for own in sums]


def _sparse(model: Any, crops: Crops) -> Any:
    """The same network, whose scaling leaves out what is empty: on whole crops of jets it is half of the work.

    Scalings of another form than asinh(gain * crops), with a gain for each channel, stay as they are.
    """
    if opset_of(model) < 18:  # where ReduceMax took its axes in another way
        return model
    graph = model.graph
    maker = {name: node for node in graph.node for name in node.output}
    weights = {tensor.name: tensor for tensor in graph.initializer}
    block = math.gcd(crops.size**2, BLOCK)
    for asinh in [node for node in graph.node if node.op_type == "Asinh"]:
        users = [node for node in graph.node if asinh.output[0] in node.input]
        product = maker.get(asinh.input[0])
        if product is None or product.op_type != "Mul" or [node.op_type for node in users] != ["QuantizeLinear"]:
            continue
        gain = next((name for name in product.input if name in weights), "")
        if not gain or graph.input[0].name not in product.input:
            continue
        n_gains, shape = int(np.prod(weights[gain].dims)), tuple(weights[gain].dims)
        if shape[-3:] != (n_gains, 1, 1) or n_gains not in (1, crops.shape[0]):
            continue
        name = f"Scaled_{asinh.name}"
        sizes = block, crops.size**2 // block, n_gains
        model.functions.append(onnx.parser.parse_function(SCALED % (DOMAIN, opset_of(model), name, *sizes)))
        (quantize,) = users
        given = [graph.input[0].name, gain, *quantize.input[1:3]]
        place = list(graph.node).index(quantize)
        graph.node.insert(place, onnx.helper.make_node(name, given, [quantize.output[0]], domain=DOMAIN))
        graph.node.remove(quantize)
        graph.node.remove(asinh)
        if not any(product.output[0] in node.input for node in graph.node):
            graph.node.remove(product)
    if not model.functions:
        return model
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    model = inline_local_functions(model)
    del model.graph.value_info[:]
    return model
