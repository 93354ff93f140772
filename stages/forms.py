"""How a crop or a frame reaches a network: as a dense image, as its non-empty pixels, or as a cloud of points.

Each form holds the batch that the items of many blocks are written into, and hands it out as the network's inputs.
"""

from typing import Any, ClassVar, Protocol

import numpy as np

from stages.config import TaggerSpec
from stages.filling import Grid, fill_crops, fill_entries, fill_frames, fill_points
from stages.graph import pixels_of_an_item
from stages.scaling import Scaling, fill_scaled
from streamer.block import Array, readonly

Sparse = tuple[Array, Array, Array]
"""Of a block's items: where the pixels of each channel begin (int64), their index, their value."""


class Form(Protocol):
    """The batch of one network."""

    name: ClassVar[str]

    def fill(self, sparse: Sparse, first: int, last: int, place: int) -> None:
        """Write the items `first` to `last` of a block into the batch, from `place` on; 0 begins another batch."""

    def arrays(self, n: int) -> tuple[Array, ...]:
        """The network's inputs for a batch of `n` items."""

    def n_bytes(self, n: int) -> int:
        """Their size: what is handed to the device."""


class Images:
    """A dense tensor: float32, shape (n, n_channels, rows, columns).

    Parameters
    ----------
    scaling : Scaling or None
        What the network does not do itself; its `n_out` is then the number of channels.
    """

    name: ClassVar[str] = "image"

    def __init__(self, spec: TaggerSpec, grid: Grid, max_batch: int, scaling: Scaling | None = None) -> None:
        self._spec, self._grid, self._scaling = spec, grid, scaling
        self._n_channels = scaling.source.size if scaling else len(spec.channels)
        area = grid.rows * grid.columns
        self._batch = np.zeros((max_batch, self._n_channels, area), np.float32)
        self._item_bytes: int = self._batch[0].nbytes
        self._scratch = np.zeros(area, np.uint8), np.zeros(area, np.int32)

    def fill(self, sparse: Sparse, first: int, last: int, place: int) -> None:
        grid = self._grid
        if self._scaling:
            fill_scaled(
                *sparse, first, last, self._spec.crop, grid.n_channels, grid.picked, grid.towers,
                grid.rows, grid.columns, grid.tower_columns, grid.step, grid.over,
                *self._scaling, *self._scratch, self._batch, place,
            )  # fmt: skip
        elif self._spec.crop:
            fill_crops(*sparse, first, last, grid.towers, self._spec.crop, self._batch, place)
        else:
            fill_frames(*sparse, first, last, grid.n_channels, grid.picked, grid.towers, self._batch, place)

    def arrays(self, n: int) -> tuple[Array, ...]:
        return (self._batch[:n].reshape(n, self._n_channels, self._grid.rows, self._grid.columns),)

    def n_bytes(self, n: int) -> int:
        return n * self._item_bytes


class Entries:
    """The non-empty pixels, from which the network makes the dense tensor where it runs (`stages.graph`).

    index int32 and value float32, both of shape (n_entries,), and the number of items, int64 of shape (1,).

    Parameters
    ----------
    exact : bool
        Hand out as many as there are; else padded to a power of two, so that few shapes are seen.
    """

    name: ClassVar[str] = "sparse"

    def __init__(self, grid: Grid, *, exact: bool) -> None:
        self._grid, self._exact = grid, exact
        self._bases, self._per_item = pixels_of_an_item(grid)
        self._index, self._value = np.zeros(1024, np.int32), np.zeros(1024, np.float32)
        self._n = 0

    def fill(self, sparse: Sparse, first: int, last: int, place: int) -> None:
        grid = self._grid
        n = self._n if place else 0
        self._hold(n + int(sparse[0][last * grid.n_channels] - sparse[0][first * grid.n_channels]))
        self._n = fill_entries(
            *sparse, first, last, grid.n_channels, grid.picked, grid.areas, self._bases, self._per_item, place,
            self._index, self._value, n,
        )  # fmt: skip

    def _hold(self, n: int) -> None:
        """Bounded by the pixels of the blocks that have credit, of which a batch is a part."""
        if n > self._index.size:
            size = 1 << (n - 1).bit_length()
            self._index = np.concatenate([self._index, np.zeros(size - self._index.size, np.int32)])
            self._value = np.concatenate([self._value, np.zeros(size - self._value.size, np.float32)])

    def arrays(self, n: int) -> tuple[Array, ...]:
        size = self._n
        if not self._exact:
            size = max(1024, 1 << max(self._n - 1, 0).bit_length())
            self._index[self._n : size] = 0  # nothing is added to the first pixel
            self._value[self._n : size] = 0
        return self._index[:size], self._value[:size], np.array([n])

    def n_bytes(self, n: int) -> int:
        return _bytes_of(self.arrays(n))


class Points:
    """A padded cloud of points and its mask, for networks of graphs and sets.

    points float32, shape (n, n_points, 2 + n_channels): row and column from the seed pixel, then what each channel
    holds there; mask float32, shape (n, n_points). See `stages.filling.fill_points`.

    Attributes
    ----------
    left_out : int
        Pixels that there was no place for.
    """

    name: ClassVar[str] = "points"

    def __init__(self, grid: Grid, max_batch: int, n_points: int) -> None:
        self._grid, self.left_out = grid, 0
        n_channels, area = grid.picked.size, grid.rows * grid.columns
        self._scratch = np.full(area, -1, np.int32), np.zeros((area, n_channels), np.float32), np.zeros(area, np.int32)
        self._points = np.zeros((max_batch, n_points, 2 + n_channels), np.float32)
        self._mask = np.zeros((max_batch, n_points), np.float32)

    def fill(self, sparse: Sparse, first: int, last: int, place: int) -> None:
        g = self._grid
        self.left_out += fill_points(
            *sparse, first, last, g.n_channels, g.picked, g.towers, g.rows, g.columns, g.tower_columns, g.step, g.over,
            g.seed, *self._scratch, self._points, self._mask, place,
        )  # fmt: skip

    def arrays(self, n: int) -> tuple[Array, ...]:
        return self._points[:n], self._mask[:n]

    def n_bytes(self, n: int) -> int:
        return _bytes_of(self.arrays(n))


def typical(grid: Grid, n_items: int, index_dtype: Any) -> Sparse:
    """Items to warm up with: in each channel as many pixels as there are rows, anywhere.

    (Of 32 x 32 pixels generated electrons have 35, and of 128 x 128 jets about 75 in each channel.)
    """
    dice = np.random.default_rng(0)
    counts = np.zeros((n_items, grid.n_channels), np.int64)
    counts[:, grid.picked] = grid.rows
    areas = np.zeros(grid.n_channels, np.int64)
    areas[grid.picked] = grid.areas
    ends = np.concatenate([[0], np.cumsum(counts.reshape(-1))])
    areas_of_each = np.repeat(np.tile(areas, n_items), counts.reshape(-1))
    index = (dice.random(ends[-1]) * areas_of_each).astype(index_dtype)
    value = dice.exponential(1.0, ends[-1]).astype(np.float32)
    return ends, readonly(index), readonly(value)  # of the very types that blocks bring: kernels compile for these


def _bytes_of(arrays: tuple[Array, ...]) -> int:
    return sum(array.nbytes for array in arrays)
