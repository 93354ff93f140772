"""The graph of a network that is to be reduced: what of it stays in float32, and float16 for the rest."""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
from onnx.utils import Extractor
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from streamer.errors import UsageError

PRODUCTS = ("Conv", "MatMul", "Gemm")
LEAST_OPSET = 13
"""The first one that knows a scale for each filter."""


@contextmanager
def quiet() -> Iterator[None]:
    """ONNX Runtime's converters give advice on the way."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def prepared(data: bytes) -> Any:
    """A float32 network, its constants folded and each batch normalisation in its convolution, with shapes and names.

    Raises
    ------
    UsageError
        It is quantized already, or of an opset that is too old.
    """
    model = onnx.load_from_string(data)
    if _is_reduced(model):
        raise UsageError("is int8 or float16 already; start from the float32 network")
    opset = opset_of(model)
    if opset < LEAST_OPSET:
        raise UsageError(f"has opset {opset}; export it again with {LEAST_OPSET} or later")
    with tempfile.TemporaryDirectory() as folder, quiet():
        given, out = Path(folder) / "given.onnx", Path(folder) / "prepared.onnx"
        given.write_bytes(data)
        quant_pre_process(given, out, skip_symbolic_shape=True)
        model = onnx.load(out)
    for k, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{k}"
    return model


def serialized(model: Any) -> bytes:
    """A network as a file, which names only the kinds of operators that it has."""
    used = {node.domain for node in model.graph.node} | {""}
    own = [opset for opset in model.opset_import if opset.domain in used]
    del model.opset_import[:]
    model.opset_import.extend(own)
    made: bytes = model.SerializeToString()
    return made


def opset_of(model: Any) -> int:
    """The version of the standard operators."""
    return next(int(own.version) for own in model.opset_import if not own.domain)


def _is_reduced(model: Any) -> bool:
    small = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    kinds = {node.op_type for node in model.graph.node}
    return any(kind.endswith(("QuantizeLinear", "Integer")) or kind.startswith("QLinear") for kind in kinds) or any(
        weights.data_type in small for weights in model.graph.initializer
    )


def body(model: Any) -> list[Any]:
    """The nodes to reduce: from the first convolution or matrix product to the one before the last.

    What stands before scales the raw values, whose range neither 8 bits nor a float16 can hold. The last product and
    the sigmoid behind it cost nothing, and their rounding would be that of the score.

    Raises
    ------
    UsageError
        There are fewer than two products.
    """
    nodes = list(model.graph.node)
    products = [k for k, node in enumerate(nodes) if node.op_type in PRODUCTS]
    if len(products) < 2:
        raise UsageError("has fewer than two convolutions or matrix products; there is nothing to gain")
    made: set[str] = set()
    out = []
    for node in nodes[: products[-1]]:
        if node.op_type in PRODUCTS or made.intersection(node.input):
            made.update(node.output)
            out.append(node)
    return out


def float16(data: bytes) -> bytes:
    """A network whose body is in float16; its input, their scaling and its output stay float32.

    Raises
    ------
    UsageError
        It cannot be made.
    """
    model = prepared(data)
    own = body(model)
    names = {node.name for node in own}
    made = {name for node in own for name in node.output}
    weights = {tensor.name for tensor in model.graph.initializer}
    into = dict.fromkeys(name for node in own for name in node.input if name and name not in made | weights)
    rest = [node for node in model.graph.node if node.name not in names]
    ends = {name for node in rest for name in node.input} | {value.name for value in model.graph.output}
    with quiet():
        part = Extractor(model).extract_model(list(into), [name for name in made if name in ends])
        part = convert_float_to_float16(part, keep_io_types=True)
    renamed = {tensor.name: f"{tensor.name}_16" for tensor in part.graph.initializer}
    for tensor in part.graph.initializer:
        tensor.name = renamed[tensor.name]
    for node in part.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    used = {name for node in rest for name in node.input}
    kept = [tensor for tensor in model.graph.initializer if tensor.name in used]
    graph = onnx.helper.make_graph(
        [*rest, *part.graph.node],
        model.graph.name,
        model.graph.input,
        model.graph.output,
        [*kept, *part.graph.initializer],
    )
    for k, node in enumerate(graph.node):
        node.name = f"{node.op_type}_{k}"
    model.graph.CopyFrom(graph)
    whole = OnnxModel(model)
    whole.topological_sort()
    return serialized(whole.model)
