"""What is done to each pixel alone before a network looks at any other, worked out where there is content.

ONNX Runtime scales an image pixel by pixel, and of a crop of 128 x 128 pixels in eight channels 99 in 100 are empty: on
a CPU that is half of a jet network's time. So a scaling that leaves zero at zero is cut off the graph and done by a
kernel.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stages.config import Normalise, TaggerSpec
from stages.detector.layout import TOWER
from stages.filling import fill_crops, fill_frames
from stages.graph import as_file
from stages.kernels import njit
from streamer.block import Array

NONE, LOG, ASINH = 0, 1, 2
TRANSFORMS = {"none": NONE, "log": LOG, "asinh": ASINH}


class Scaling(NamedTuple):
    """Steps from the channels that a tagger sees to those that its cut network takes.

    Attributes
    ----------
    source : int64, shape (n_out,)
        The channel that each is made from; the first ones are made from themselves.
    factor, clip : float32, shape (n_steps, n_out)
        See `stages.config.Normalise`.
    transform : int64, shape (n_steps, n_out)
        `NONE`, `LOG` or `ASINH`.
    """

    source: Array
    factor: Array
    transform: Array
    clip: Array

    def then(self, source: Sequence[int], factor: Array, transform: Array, clip: Array) -> "Scaling":
        """With one step more, whose channels are made from ours."""
        picked = np.asarray(source, np.int64)
        return Scaling(
            self.source[picked],
            np.concatenate([self.factor[:, picked], factor[None].astype(np.float32)]),
            np.concatenate([self.transform[:, picked], transform[None]]),
            np.concatenate([self.clip[:, picked], clip[None].astype(np.float32)]),
        )


def scaling_of(spec: TaggerSpec) -> Scaling:
    """What `taggers.NAME.normalise` asks for; no step where it asks for nothing."""
    n = len(spec.channels)
    nothing = np.zeros((0, n), np.float32)
    start = Scaling(np.arange(n), nothing, nothing.astype(np.int64), nothing)
    if not spec.normalise:
        return start
    each = [spec.normalise.get(channel, Normalise()) for channel in spec.channels]
    factor, clip = (np.array([getattr(one, key) for one in each]) for key in ("scale", "clip"))
    return start.then(range(n), factor, np.array([TRANSFORMS[one.transform] for one in each]), clip)


@njit(cache=True, nogil=True)
def scale(
    pixel_offsets: Any, index: Any, item: int, n_channels: int, picked: Any, towers: Any,
    rows: int, columns: int, tower_columns: int, step: int, over: int,
    source: Any, factor: Any, transform: Any, clip: Any, seen: Any, at: Any, image: Any,
) -> None:  # fmt: skip
    """Scale the dense image of an item of a block where it has content.

    Parameters
    ----------
    pixel_offsets, index
        Of the block's items; they tell where content is.
    n_channels ... over
        As `stages.filling.Grid` has them.
    source, factor, transform, clip
        As `Scaling` has them.
    seen : uint8, shape (rows * columns,)
        All 0, and so again at the end.
    at : int32, shape (rows * columns,)
        Overwritten.
    image : float32, shape (n_out, rows * columns)
        Those channels are filled that others are made from.
    """
    for k in range(source.size - 1, -1, -1):  # what is made of a channel comes before that itself changes
        given, made = image[source[k]], image[k]
        entry = item * n_channels + picked[source[k]]
        side = TOWER if towers[source[k]] else 1
        n = 0
        for pixel in range(pixel_offsets[entry], pixel_offsets[entry + 1]):
            number: Any = np.int64(index[pixel])
            if number < 0:
                continue
            if side == 1:
                row, column = number // columns, number % columns
            else:
                row, column = number // tower_columns * step - over, number % tower_columns * step - over
            for i in range(max(row, 0), min(row + side, rows)):
                for j in range(max(column, 0), min(column + side, columns)):
                    where: Any = i * columns + j
                    if seen[where] == 0:
                        seen[where], at[n] = 1, where
                        n += 1
        if source[k] != k:
            made[:] = 0
        before, after = np.float32(0), np.float32(0)
        for j in range(n):
            value = given[at[j]]
            if value != before:  # the pixels of a tower hold the same
                before = value
                for one in range(factor.shape[0]):
                    value *= factor[one, k]
                    if transform[one, k] == ASINH:
                        value = np.arcsinh(value)
                    elif transform[one, k] == LOG:
                        size = np.log1p(abs(value))
                        value = size if value > 0 else -size
                    if clip[one, k] > 0:
                        value = min(max(value, -clip[one, k]), clip[one, k])
                after = value
            made[at[j]] = after
            seen[at[j]] = 0


@njit(cache=True, nogil=True)
def fill_scaled(
    pixel_offsets: Any, index: Any, value: Any, first: int, last: int, crop: int,
    n_channels: int, picked: Any, towers: Any,
    rows: int, columns: int, tower_columns: int, step: int, over: int,
    source: Any, factor: Any, transform: Any, clip: Any, seen: Any, at: Any, batch: Any, place: int,
) -> None:  # fmt: skip
    """Write the items `first` to `last` of a block into a dense batch (`stages.filling`), and scale each while it is
    still in the cache."""
    for item in range(first, last):
        row = place + item - first
        if crop:
            fill_crops(pixel_offsets, index, value, item, item + 1, towers, crop, batch, row)
        else:
            fill_frames(pixel_offsets, index, value, item, item + 1, n_channels, picked, towers, batch, row)
        scale(
            pixel_offsets, index, item, n_channels, picked, towers, rows, columns, tower_columns, step, over,
            source, factor, transform, clip, seen, at, batch[row],
        )  # fmt: skip


def cut(path: Path, name: str, n_channels: int) -> tuple[bytes, str, list[int], Array] | None:
    """A network without the `Mul` by a constant and `Asinh` that its graph begins with, or None if it does not.

    There may be several beside each other, with gains of their own, whose images are put together channel by channel.

    Returns
    -------
    bytes
        The network that is left.
    str
        Its input.
    list of int
        The channel that each of its channels is made from.
    float32, shape (n_out,)
        The gain of each.
    """
    import onnx
    from onnx import numpy_helper

    try:
        model = onnx.load(path)
    except Exception:  # that it is a model is checked elsewhere; without onnx's help it is run as it is
        return None
    graph = model.graph
    given = next(one for one in graph.input if one.name == name)
    if given.type.tensor_type.elem_type != onnx.TensorProto.FLOAT:
        return None
    constants = {one.name: one for one in graph.initializer}
    kept_names = {one.name for one in graph.output}

    def users(tensor: str) -> list[Any]:
        return [node for node in graph.node if tensor in node.input]

    def only_user(tensor: str, kind: str) -> Any:
        found = users(tensor)
        alone = len(found) == 1 and found[0].op_type == kind and list(found[0].input).count(tensor) == 1
        return found[0] if alone and tensor not in kept_names else None

    removed, gains = [], {}
    for product in users(name):
        asinh = only_user(product.output[0], "Asinh") if product.op_type == "Mul" else None
        gain = next((constants[one] for one in product.input if one in constants), None)
        if asinh is None or gain is None or asinh.output[0] in kept_names:
            return None
        values = numpy_helper.to_array(gain)
        if values.size not in (1, n_channels) or (values.size > 1 and values.shape[-3:] != (n_channels, 1, 1)):
            return None
        removed += [product, asinh]
        gains[asinh.output[0]] = np.broadcast_to(values.reshape(-1), n_channels)
    if not gains:
        return None
    ends, end = list(gains), next(iter(gains))
    if len(ends) > 1:
        together = only_user(end, "Concat")
        if together is None or sorted(together.input) != sorted(ends) or together.attribute[0].i not in (1, -3):
            return None
        if any(only_user(one, "Concat") is None for one in ends):
            return None
        removed.append(together)
        ends, end = list(together.input), together.output[0]
    for node in removed:
        graph.node.remove(node)
    shape = given.type.tensor_type.shape.dim
    given.name = end
    shape[1].dim_value = n_channels * len(ends)
    for one in [one for one in graph.value_info if one.name in (end, *ends)]:
        graph.value_info.remove(one)
    left = as_file(model)
    if left is None:
        return None
    return left, end, list(range(n_channels)) * len(ends), np.concatenate([gains[one] for one in ends])
