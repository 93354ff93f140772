"""Kernels that write the non-empty pixels of crops and frames into what a network is handed, and scores to objects."""

from typing import Any, NamedTuple

import numpy as np

from stages.config import TaggerSpec
from stages.detector.layout import N_COLUMNS, N_PIXELS, N_ROWS, N_TOWER_COLUMNS, N_TOWERS, TOWER
from stages.kernels import njit
from streamer.block import Array


@njit(cache=True, nogil=True)
def scores_of_objects(n_objects: Any, n_crops: Any, objects: Any, results: Any) -> tuple[Any, int]:
    """Put the scores of crops where their objects are.

    Parameters
    ----------
    n_objects, n_crops : int32, shape (n_events,)
    objects : int32, shape (n_crops,)
        Of each crop, the place of its object in its event.
    results : float32, shape (n_crops,)

    Returns
    -------
    scores : float32, shape (n_objects,)
        -1 where there is no crop, or its score is no number.
    n_bad : int
        Scores that are no numbers.

    Raises
    ------
    IndexError
        There is no such object.
    """
    scores = np.full(n_objects.sum(), np.float32(-1))
    first = crop = n_bad = 0
    for event in range(n_objects.size):
        for _ in range(n_crops[event]):
            place = first + objects[crop]
            if not 0 <= place < scores.size:
                raise IndexError("a crop of an object that is not there")
            if np.isfinite(results[crop]):
                scores[place] = results[crop]
            else:
                n_bad += 1
            crop += 1
        first += n_objects[event]
    return scores, n_bad


@njit(cache=True, nogil=True)
def fill_crops(
    pixel_offsets: Any, index: Any, value: Any, first: int, last: int, towers: Any, size: int, batch: Any, place: int
) -> None:
    """Write the crops `first` to `last` of a block into rows `place` and following of a dense batch.

    Parameters
    ----------
    pixel_offsets : int64, shape (n_crops * n_channels + 1,)
    towers : bool, shape (n_channels,)
        The channels whose entries are towers: 5 x 5 pixels with 1/25 of the value each.
    batch : float32, shape (n, n_channels or more, size * size)
        Overwritten, zeros included.
    """
    n_channels, area = towers.size, size * size
    over = TOWER - 1
    for crop in range(first, last):
        for channel in range(n_channels):
            image = batch[place + crop - first, channel]
            image[:] = 0
            entry = crop * n_channels + channel
            for pixel in range(pixel_offsets[entry], pixel_offsets[entry + 1]):
                if not towers[channel]:
                    if index[pixel] < area:
                        image[index[pixel]] += value[pixel]
                    continue
                row, column = index[pixel] // (size + over) - over, index[pixel] % (size + over) - over
                share = value[pixel] / np.float32(TOWER * TOWER)
                for i in range(max(row, 0), min(row + TOWER, size)):
                    for j in range(max(column, 0), min(column + TOWER, size)):
                        image[i * size + j] += share


@njit(cache=True, nogil=True)
def fill_frames(
    pixel_offsets: Any, index: Any, value: Any, first: int, last: int, n_channels: int, picked: Any, towers: Any,
    batch: Any, place: int,
) -> None:  # fmt: skip
    """Write the frames of the events `first` to `last` of a block into rows `place` and following of a dense batch.

    Parameters
    ----------
    pixel_offsets : int64, shape (n_events * n_channels + 1,)
    picked : int64, shape (n_picked,)
        The frame's channels that the network sees, in its order.
    towers : bool, shape (n_picked,)
        Those that hold towers.
    batch : float32, shape (n, n_picked or more, 280 * 360)
        Overwritten, zeros included.
    """
    for event in range(first, last):
        for k in range(picked.size):
            image = batch[place + event - first, k]
            image[:] = 0
            entry = event * n_channels + picked[k]
            for pixel in range(pixel_offsets[entry], pixel_offsets[entry + 1]):
                if not towers[k]:
                    if 0 <= index[pixel] < N_PIXELS:
                        image[index[pixel]] += value[pixel]
                elif 0 <= index[pixel] < N_TOWERS:
                    corner = index[pixel] // N_TOWER_COLUMNS * TOWER * N_COLUMNS
                    corner += index[pixel] % N_TOWER_COLUMNS * TOWER
                    share = value[pixel] / np.float32(TOWER * TOWER)
                    for i in range(TOWER):
                        for j in range(TOWER):
                            image[corner + i * N_COLUMNS + j] += share


class Grid(NamedTuple):
    """Which pixels entries name: those of a frame or a crop, and in the channels of towers, their towers.

    Attributes
    ----------
    n_channels : int
        Of an item in the block; its pixels are ordered by channel.
    picked : int64, shape (n_picked,)
        The channels that the network sees, in its order.
    towers : bool, shape (n_picked,)
        Those that hold towers.
    rows, columns : int
    tower_columns, step, over : int
        Tower t begins at row `t // tower_columns * step - over`, and likewise its column.
    seed : int
        Row and column of the seed pixel; 0 for a frame.
    """

    n_channels: int
    picked: Array
    towers: Array
    rows: int
    columns: int
    tower_columns: int
    step: int
    over: int
    seed: int

    @property
    def n_towers(self) -> int:
        """Towers of a channel that lie in it at least in part."""
        rows = (self.rows + self.over) // self.step
        return rows * self.tower_columns

    @property
    def areas(self) -> Array:
        """What each channel's entries are numbered up to."""
        return np.where(self.towers, self.n_towers, self.rows * self.columns)


def grid_of(spec: TaggerSpec, channels: tuple[str, ...]) -> Grid:
    """The grid of what a tagger sees.

    Parameters
    ----------
    channels : tuple of str
        Those of the frame.
    """
    if spec.objects == "Event":
        towers = np.array([channel == "HCAL" for channel in spec.channels])
        picked = np.array([channels.index(channel) for channel in spec.channels])
        return Grid(len(channels), picked, towers, N_ROWS, N_COLUMNS, N_TOWER_COLUMNS, TOWER, 0, 0)
    return crop_grid(spec.channels, spec.crop)


def crop_grid(channels: tuple[str, ...], size: int) -> Grid:
    """The grid of crops that hold these channels alone."""
    over, n = TOWER - 1, len(channels)
    towers = np.array([channel == "HCAL" for channel in channels])
    return Grid(n, np.arange(n), towers, size, size, size + over, 1, over, size // 2 - 1)


@njit(cache=True, nogil=True)
def fill_entries(
    pixel_offsets: Any, index: Any, value: Any, first: int, last: int, n_channels: int, picked: Any, areas: Any,
    bases: Any, per_item: int, place: int, entry_index: Any, entry_value: Any, n: int,
) -> int:  # fmt: skip
    """Write the pixels and towers of the items `first` to `last` of a block behind the `n` that are there.

    Parameters
    ----------
    pixel_offsets : int64, shape (n_items * n_channels + 1,)
    areas, bases : int64, shape (n_picked,)
        How many pixels or towers a channel has, and where it begins in an item's `per_item`.
    place : int
        Of the first item in the batch.
    entry_index : int32, shape (n_entries,)
        `item * per_item + bases[channel] + pixel`.
    entry_value : float32, shape (n_entries,)

    Returns
    -------
    int
        How many there are now.
    """
    for item in range(first, last):
        base = (place + item - first) * per_item
        for k in range(picked.size):
            entry = item * n_channels + picked[k]
            for pixel in range(pixel_offsets[entry], pixel_offsets[entry + 1]):
                at = np.int64(index[pixel])
                if 0 <= at < areas[k]:
                    entry_index[n] = base + bases[k] + at
                    entry_value[n] = value[pixel]
                    n += 1
    return n


@njit(cache=True, nogil=True)
def fill_points(
    pixel_offsets: Any, index: Any, value: Any, first: int, last: int, n_channels: int, picked: Any, towers: Any,
    rows: int, columns: int, tower_columns: int, step: int, over: int, seed: int,
    slots: Any, held: Any, at: Any, points: Any, mask: Any, place: int,
) -> int:  # fmt: skip
    """Write the items `first` to `last` of a block as points into rows `place` and following of a batch.

    A point is a pixel with content: its row and column from the seed, and what each channel holds there. A tower stands
    in its middle pixel, with its whole energy. Where there are more than fit, the brightest are taken: those with the
    largest sum of magnitudes.

    Parameters
    ----------
    slots : int32, shape (rows * columns,)
        All -1, and so again at the end.
    held : float32, shape (rows * columns, n_picked)
    at : int32, shape (rows * columns,)
        Both are overwritten.
    points : float32, shape (n, n_points, 2 + n_picked)
    mask : float32, shape (n, n_points)
        1 where there is a point; all else is 0.

    Returns
    -------
    int
        Pixels that were left out.
    """
    n_points, middle, left_out = points.shape[1], TOWER // 2, 0
    for item in range(first, last):
        n = 0
        for k in range(picked.size):
            entry = item * n_channels + picked[k]
            for pixel in range(pixel_offsets[entry], pixel_offsets[entry + 1]):
                number = np.int64(index[pixel])
                if towers[k]:
                    row: Any = number // tower_columns * step - over + middle
                    column = number % tower_columns * step - over + middle
                else:
                    row, column = number // columns, number % columns
                if number < 0 or not (0 <= row < rows and 0 <= column < columns):
                    continue
                where = row * columns + column
                if slots[where] < 0:
                    slots[where] = n
                    at[n] = where
                    held[n] = 0
                    n += 1
                held[slots[where], k] += value[pixel]
        for j in range(n):
            slots[at[j]] = -1
        kept = np.arange(n)
        if n > n_points:
            brightness = np.empty(n, np.float32)
            for j in range(n):
                brightness[j] = np.abs(held[j]).sum()
            kept = np.sort(np.argsort(-brightness)[:n_points])
            left_out += n - n_points
        row = place + item - first
        points[row] = 0
        mask[row] = 0
        for j in range(kept.size):
            where = at[kept[j]]
            points[row, j, 0] = where // columns - seed
            points[row, j, 1] = where % columns - seed
            points[row, j, 2:] = held[kept[j]]
            mask[row, j] = 1
    return left_out
