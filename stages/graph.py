"""Surgery on a network's graph when it is loaded: normalisation, and the dense image made from non-empty pixels.

What is put in front of the network runs where the network runs. Of a sparse batch only pixels with content cross the
bus, 8 bytes each; a dense crop of 128 x 128 pixels in eight channels has half a megabyte.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from stages.config import Normalise, TaggerSpec
from stages.detector.layout import TOWER
from stages.filling import Grid
from streamer.block import Array
from streamer.errors import StreamerError

ENTRIES = ("streamer_index", "streamer_value", "streamer_items")
"""The inputs of a network that was made sparse: see `stages.forms.Entries`."""
LEAST_OPSET = 16
"""The first in which pixels can be added up (ScatterElements)."""


class SurgeryError(StreamerError):
    """The graph cannot be changed as asked."""


def pixels_of_an_item(grid: Grid) -> tuple[Array, int]:
    """Where each channel begins among the pixels and towers of an item, and how many an item has.

    Channels of pixels come first, so that those and the towers are two tensors that only need a cut.
    """
    areas = grid.areas
    order = np.argsort(grid.towers, kind="stable")
    ends = np.cumsum(areas[order])
    bases = np.empty_like(areas)
    bases[order] = ends - areas[order]
    return bases, int(ends[-1])


def rebuilt(path: Path, inputs: Sequence[str], spec: TaggerSpec, grid: Grid, *, sparse: bool) -> bytes:
    """The network with the front that its tagger wants.

    Parameters
    ----------
    inputs : sequence of str
        Those of the network that take what is seen: the image, or points and mask.
    sparse : bool
        The image is made from `ENTRIES`; else the inputs keep their names.

    Raises
    ------
    SurgeryError
        With why.
    """
    import onnx

    try:
        model = onnx.load(path)
    except Exception as error:  # it is ONNX Runtime that says what is wrong with a file
        raise SurgeryError(f"onnx cannot read it ({type(error).__name__})") from None
    if sparse:
        model = _new_enough(model)
    front = _Front(model)
    given = next(one for one in model.graph.input if one.name == inputs[0])
    elem_type = given.type.tensor_type.elem_type
    points = len(inputs) == 2
    made = front.image(grid, front.entries()) if sparse else front.instead_of(given)
    if spec.normalise:
        made = front.normalised(made, spec, points=points)
    front.end(made, inputs[0], elem_type)
    data = as_file(model)
    if data is None:
        raise SurgeryError("it is larger than the 2 GB that a changed network may have")
    return data


def as_file(model: Any) -> bytes | None:
    """A network with all its weights; None above 2 GB, which no such file may have."""
    from google.protobuf.message import EncodeError

    try:
        return model.SerializeToString()  # type: ignore[no-any-return]
    except (EncodeError, ValueError):  # by its version
        return None


def _new_enough(model: Any) -> Any:
    import onnx

    opset = next((one.version for one in model.opset_import if one.domain in ("", "ai.onnx")), 0)
    if opset >= LEAST_OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, LEAST_OPSET)
    except Exception as error:  # the converter raises many kinds
        why = " ".join(str(error).split())[:100]
        raise SurgeryError(f"its opset {opset} is below {LEAST_OPSET} and cannot be converted ({why})") from None


class _Front:
    """Nodes that come before those of the network."""

    def __init__(self, model: Any) -> None:
        self._graph, self._nodes = model.graph, []  # type: tuple[Any, list[Any]]
        model.ir_version = max(model.ir_version, 4)  # since then a constant need not be an input

    def node(self, kind: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        name = f"streamer_{len(self._nodes)}_{kind}"
        self._nodes.append(helper.make_node(kind, inputs, [name], name=name, **attributes))
        return name

    def constant(self, value: Any, dtype: Any) -> str:
        from onnx import numpy_helper

        name = f"streamer_constant_{len(self._graph.initializer)}"
        self._graph.initializer.append(numpy_helper.from_array(np.asarray(value, dtype), name))
        return name

    def entries(self) -> tuple[str, str, str]:
        from onnx import TensorProto, helper

        kinds = (TensorProto.INT32, ["entries"]), (TensorProto.FLOAT, ["entries"]), (TensorProto.INT64, [1])
        for name, (kind, shape) in zip(ENTRIES, kinds, strict=True):
            self._graph.input.append(helper.make_tensor_value_info(name, kind, shape))
        return ENTRIES

    def instead_of(self, given: Any) -> str:
        """The same input as float32 and with our name; the network's own name is then free for what we make."""
        import onnx

        taken = onnx.ValueInfoProto()
        taken.CopyFrom(given)
        taken.name = f"streamer_{given.name}"
        taken.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
        self._graph.input.append(taken)
        return str(taken.name)

    def image(self, grid: Grid, entries: tuple[str, str, str]) -> str:
        """Add up the entries: float32[n, n_channels, rows, columns]."""
        index, value, n = entries
        _, per_item = pixels_of_an_item(grid)
        size = self.node("Mul", n, self.constant([per_item], np.int64))
        flat = self.node("ConstantOfShape", size)  # float32 zeros
        flat = self.node("ScatterElements", flat, self.node("Cast", index, to=7), value, axis=0, reduction="add")
        items = self.node("Reshape", flat, self.constant([-1, per_item], np.int64))
        n_towers = int(grid.towers.sum())
        n_pixels = grid.towers.size - n_towers
        cut = n_pixels * grid.rows * grid.columns
        parts = []
        if n_pixels:
            part = self._cut(items, 0, cut) if n_towers else items
            parts.append(self._shaped(part, n_pixels, grid.rows, grid.columns))
        if n_towers:
            part = self._cut(items, cut, per_item) if n_pixels else items
            parts.append(self._towers(part, n_towers, grid))
        image = self.node("Concat", *parts, axis=1) if len(parts) == 2 else parts[0]
        order = np.argsort(np.argsort(grid.towers, kind="stable"))
        if (order != np.arange(order.size)).any():
            image = self.node("Gather", image, self.constant(order, np.int64), axis=1)
        return image

    def _towers(self, part: str, n_towers: int, grid: Grid) -> str:
        """Each pixel of a tower has 1/25 of what it holds."""
        if grid.step == 1:  # a tower may begin at any pixel: a pixel holds the mean of those that it lies in
            side = grid.tower_columns
            towers = self._shaped(part, n_towers, side, side)
            return self.node("AveragePool", towers, kernel_shape=[TOWER, TOWER], strides=[1, 1])
        rows, columns = grid.rows // TOWER, grid.columns // TOWER
        apart = self.node("Reshape", part, self.constant([-1, n_towers, rows, 1, columns, 1], np.int64))
        spread = self.node("Expand", apart, self.constant([1, 1, 1, TOWER, 1, TOWER], np.int64))
        whole = self._shaped(spread, n_towers, grid.rows, grid.columns)
        return self.node("Div", whole, self.constant(TOWER * TOWER, np.float32))

    def _cut(self, items: str, first: int, last: int) -> str:
        ends = (self.constant([end], np.int64) for end in (first, last, 1))
        return self.node("Slice", items, *ends)

    def _shaped(self, part: str, *shape: int) -> str:
        return self.node("Reshape", part, self.constant([-1, *shape], np.int64))

    def normalised(self, made: str, spec: TaggerSpec, *, points: bool) -> str:
        """As `normalised` does; of points only what the channels hold."""
        each = [spec.normalise.get(channel, Normalise()) for channel in spec.channels]
        if points:  # row and column stay
            each = [Normalise(), Normalise(), *each]
        shape = (1, 1, -1) if points else (1, -1, 1, 1)

        def vector(values: Any, dtype: Any = np.float32) -> str:
            return self.constant(np.array(values, dtype).reshape(shape), dtype)

        made = self.node("Mul", made, vector([one.scale for one in each]))
        kinds = {one.transform for one in each}
        if "log" in kinds:
            size = self.node("Log", self.node("Add", self.node("Abs", made), self.constant(1, np.float32)))
            logs = self.node("Mul", self.node("Sign", made), size)
            made = self.node("Where", vector([one.transform == "log" for one in each], np.bool_), logs, made)
        if "asinh" in kinds:
            chosen = vector([one.transform == "asinh" for one in each], np.bool_)
            made = self.node("Where", chosen, self.node("Asinh", made), made)
        if any(one.clip for one in each):
            most = np.array([one.clip or np.inf for one in each], np.float32)
            made = self.node("Max", self.node("Min", made, vector(most)), vector(-most))
        return made

    def end(self, made: str, name: str, elem_type: int) -> None:
        """What was made is the network's input."""
        from onnx import helper

        self._nodes.append(helper.make_node("Cast", [made], [name], name="streamer_end", to=elem_type))
        kept = [one for one in self._graph.input if one.name != name]
        nodes = [*self._nodes, *self._graph.node]
        del self._graph.input[:], self._graph.node[:]
        self._graph.input.extend(kept)
        self._graph.node.extend(nodes)


def normalised(images: Array, spec: TaggerSpec) -> Array:
    """What the network sees of images, channel by channel: scale, transform, clip.

    Parameters
    ----------
    images : float32, shape (n, n_channels, rows, columns)
    """
    out = images.copy()
    for k, channel in enumerate(spec.channels):
        how = spec.normalise.get(channel, Normalise())
        one = out[:, k] * np.float32(how.scale)
        if how.transform == "log":
            one = np.sign(one) * np.log1p(np.abs(one))
        elif how.transform == "asinh":
            one = np.arcsinh(one)
        out[:, k] = np.clip(one, -how.clip, how.clip) if how.clip else one
    return out
