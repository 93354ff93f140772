"""Cropper: objects are selected, find their seed pixel, and get their sparse crops out of the frame."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stages import records
from stages.config import SEED_CHANNEL, Config, TaggerSpec
from stages.detector.layout import N_COLUMNS, N_TOWER_COLUMNS, TOWER
from stages.kernels import argument, ends, njit
from stages.records import crop_index_dtype
from stages.seeds import Seeds, frame_columns, jet_seeds, photon_seeds
from streamer.block import Array, Block, Columns
from streamer.stage import Stage

Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


def crops(
    columns: Columns, n_objects: Array, seeds: Int32s, picked: Array, towers: Bools, size: int
) -> tuple[Array, Array, Array, Array, Array]:
    """Square crops around the seeds, as their non-empty pixels. Phi wraps around; beyond the frame in eta is nothing.

    Parameters
    ----------
    columns : dict
        With the frame: `nPixel` (n_events, n_channels), `Pixel_index`, `Pixel_value`.
    n_objects : int32, shape (n_events,)
    seeds : int32, shape (n_objects.sum(),)
        Seed pixels; -1 for an object that gets no crop.
    picked : int64, shape (n_picked,)
        The frame's channels that the crop has, in its order.
    towers : bool, shape (n_picked,)
        Which of them hold towers, each 5 x 5 pixels, in place of pixels. They stay one entry.
    size : int
        Even; the seed is at index size / 2 - 1 in both directions.

    Returns
    -------
    n_crops : int32, shape (n_events,)
    objects : int32, shape (n_crops.sum(),)
        Place of the cropped object in its event.
    n_pixels : int32, shape (n_crops.sum(), n_picked)
    index : uint16 or uint32, shape (n_pixels.sum(),)
        Where each pixel or tower is in the crop, see `records.crops`.
    value : float32, shape (n_pixels.sum(),)
    """
    n_frame, frame_index, frame_value = frame_columns(columns)
    n_objects, n_crops = argument(n_objects), np.empty(n_objects.size, np.int32)
    total, most = _count(n_objects, seeds, n_frame, picked, n_crops)
    objects, n_pixels = np.empty(total, np.int32), np.empty((total, picked.size), np.int32)
    index = np.empty(most + 1, crop_index_dtype(size))  # one more, for what is written and not kept
    value = np.empty(most + 1, np.float32)
    used = _crops(
        n_objects, n_crops, seeds, n_frame, frame_index, frame_value, picked, towers, size,
        objects, n_pixels, index, value,
    )  # fmt: skip
    return n_crops, objects, n_pixels, index[:used], value[:used]


@njit(cache=True, nogil=True)
def _count(n_objects: Any, seeds: Any, n_pixels: Any, picked: Any, n_crops: Any) -> tuple[int, int]:
    """Count the crops of each event; the sum, and how many pixels they can have in all."""
    total = most = entry = 0
    for event in range(n_objects.size):
        n_here = 0
        for _ in range(n_objects[event]):
            n_here += seeds[entry] >= 0
            entry += 1
        n_crops[event] = n_here
        total += n_here
        for place in range(picked.size):
            most += n_here * n_pixels[event, picked[place]]
    return total, most


@njit(cache=True, nogil=True)
def _crops(
    n_objects: Any, n_crops: Any, seeds: Any, n_frame: Any, index: Any, value: Any, picked: Any, towers: Any, size: int,
    objects: Any, n_pixels: Any, crop_index: Any, crop_value: Any,
) -> int:  # fmt: skip
    n_channels, object_offsets, pixel_offsets = n_frame.shape[1], ends(n_objects), ends(n_frame)
    used = crop = 0
    over = TOWER - 1  # a tower may begin so many pixels outside
    rows, columns = np.empty(index.size, np.int32), np.empty(index.size, np.int32)  # of each entry's first pixel
    for event in range(n_crops.size):
        if n_crops[event] == 0:
            continue
        for place in range(picked.size):
            channel = event * n_channels + picked[place]
            wide, times = (N_TOWER_COLUMNS, TOWER) if towers[place] else (N_COLUMNS, 1)
            for pixel in range(pixel_offsets[channel], pixel_offsets[channel + 1]):
                row = index[pixel] // wide
                rows[pixel] = row * times
                columns[pixel] = (index[pixel] - row * wide) * times
        for entry in range(object_offsets[event], object_offsets[event + 1]):
            if seeds[entry] < 0:
                continue
            top = seeds[entry] // N_COLUMNS - (size // 2 - 1)
            left = seeds[entry] % N_COLUMNS - (size // 2 - 1)
            for place in range(picked.size):
                channel = event * n_channels + picked[place]
                outside = over if towers[place] else 0
                side = size + outside
                before = used
                for pixel in range(pixel_offsets[channel], pixel_offsets[channel + 1]):
                    row = rows[pixel] - top + outside
                    column = columns[pixel] - left + outside
                    column += N_COLUMNS * (int(column < 0) - int(column >= N_COLUMNS))
                    # Written in any case and kept if inside: a branch would be guessed wrong too often.
                    crop_index[used] = row * side + column
                    crop_value[used] = value[pixel]
                    used += int(row >= 0) & int(row < side) & int(column < side)
                n_pixels[crop, place] = used - before
            objects[crop] = entry - object_offsets[event]
            crop += 1
    return used


class _Crop(NamedTuple):
    """What is cropped for a tagger, and for those that see the same."""

    names: tuple[str, ...]  # of the columns, as `crops` returns them
    picked: Array
    towers: Bools
    size: int


class _Plan:
    """What is made of one collection of objects."""

    def __init__(self, config: Config, objects: str) -> None:
        shared = {name: config.taggers[name] for name in dict.fromkeys(config.crops.values())}
        specs = {name: spec for name, spec in shared.items() if spec.objects == objects}
        self.objects, self.seed_channel = objects, config.channels.index(SEED_CHANNEL[objects])
        self.cuts = np.array([(spec.pt_min, spec.eta_max) for spec in specs.values()], np.float32)
        self.crops = [_crop(config, name, spec) for name, spec in specs.items()]

    def seeds(self, columns: Columns) -> Seeds:
        if self.objects == "Photon":
            return photon_seeds(columns, self.seed_channel, self.cuts)
        return jet_seeds(columns, self.objects, self.seed_channel, self.cuts)


def _crop(config: Config, name: str, spec: TaggerSpec) -> _Crop:
    crop, pixel = records.crop_names(name)
    return _Crop(
        (f"n{crop}", f"{crop}_object", f"n{pixel}", f"{pixel}_index", f"{pixel}_value"),
        np.array([config.channels.index(channel) for channel in spec.channels]),
        np.array([channel == "HCAL" for channel in spec.channels]),
        spec.crop,
    )


class Cropper(Stage):
    """Seeds and crops for every configured tagger."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.inputs, self.outputs = records.frames(config), records.crops(config)
        self._plans = [_Plan(config, objects) for objects in config.objects]

    def setup(self) -> None:
        """Compile the kernels."""
        self.process(Block(0, 1, self.inputs.empty(1)))

    def process(self, block: Block) -> Block:
        columns = dict(block.columns)
        for plan in self._plans:
            objects, seeds = plan.objects, plan.seeds(columns)
            columns[f"{objects}_seedRow"], columns[f"{objects}_seedCol"] = seeds.rows, seeds.columns
            for crop, pixels in zip(plan.crops, seeds.pixels, strict=True):
                made = crops(columns, columns[f"n{objects}"], pixels, crop.picked, crop.towers, crop.size)
                columns |= zip(crop.names, made, strict=True)
        return block.with_columns({name: columns[name] for name in self.outputs.by_name})
