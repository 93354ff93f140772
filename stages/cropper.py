"""Cropper: objects are selected, find their seed pixel, and get their sparse crops out of the frame."""

from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from stages import records
from stages.config import CHANNELS, Config, TaggerSpec
from stages.detector.ecal import eb_pixel
from stages.detector.grid import EB_FIRST_ROW, EB_LAST_ROW, N_COLUMNS, column_of_phi, row_of_eta
from streamer.block import Array, Block, Columns, offsets, readonly
from streamer.stage import Stage

SEED_REACH = 5
"""A photon's seed is searched within so many rows and columns of its direction."""


def photon_seeds(columns: Columns, channels: tuple[str, ...], pt_min: float, eta_max: float) -> npt.NDArray[np.int32]:
    """The seed pixel of each photon, -1 where there is none.

    Photons with pt > `pt_min` [GeV] and |eta| < `eta_max` have a seed: the crystal that the input names, else the
    most energetic barrel pixel within 5 rows and 5 columns of the photon's direction (of equals, the first in
    the frame).

    Returns
    -------
    int32, shape (n_photons,)
        `row * 360 + column` in the frame.
    """
    seeds = np.full(columns["Photon_pt"].size, -1, np.int32)
    pixel_offsets = offsets(columns["nPixel"])
    _photon_seeds(
        offsets(columns["nPhoton"]),
        readonly(columns["Photon_pt"]),
        readonly(columns["Photon_eta"]),
        readonly(columns["Photon_phi"]),
        readonly(columns["Photon_seedDetId"]),
        pixel_offsets,
        len(channels),
        channels.index("ECAL"),
        readonly(columns["Pixel_index"]),
        readonly(columns["Pixel_value"]),
        np.float32(pt_min),
        np.float32(eta_max),
        seeds,
    )
    return seeds


@njit(cache=True, nogil=True)
def _photon_seeds(
    photon_offsets: Any, pt: Any, eta: Any, phi: Any, seed_detid: Any,
    pixel_offsets: Any, n_channels: int, ecal: int, index: Any, value: Any,
    pt_min: Any, eta_max: Any, seeds: Any,
) -> None:  # fmt: skip
    for event in range(photon_offsets.size - 1):
        first = pixel_offsets[event * n_channels + ecal]
        last = pixel_offsets[event * n_channels + ecal + 1]
        for photon in range(photon_offsets[event], photon_offsets[event + 1]):
            if not (pt[photon] > pt_min and abs(eta[photon]) < eta_max):
                continue
            best = eb_pixel(seed_detid[photon])
            row, column = row_of_eta(eta[photon]), column_of_phi(phi[photon])
            if best < 0 and row >= 0 and column >= 0:
                most = np.float32(0.0)
                low = max(row - SEED_REACH, EB_FIRST_ROW) * N_COLUMNS
                high = (min(row + SEED_REACH, EB_LAST_ROW) + 1) * N_COLUMNS
                for entry in range(first, last):
                    pixel = index[entry]
                    if not low <= pixel < high:
                        continue
                    away = abs(pixel % N_COLUMNS - column)
                    if min(away, N_COLUMNS - away) <= SEED_REACH and (
                        value[entry] > most or (value[entry] == most and pixel < best)
                    ):
                        best, most = pixel, value[entry]
            seeds[photon] = best


def crops(
    columns: Columns, n_objects: Array, seeds: npt.NDArray[np.int32], picked: tuple[int, ...], size: int
) -> tuple[Array, Array, Array, Array, Array]:
    """Square crops around the seeds, as their non-empty pixels. Phi wraps around; beyond the frame in eta is nothing.

    Parameters
    ----------
    columns : dict
        With the frame: `nPixel` (n_events, n_channels), `Pixel_index`, `Pixel_value`.
    n_objects : int32, shape (n_events,)
    seeds : int32, shape (n_objects.sum(),)
        Seed pixels; -1 for an object that gets no crop.
    picked : tuple of int
        The frame's channels that the crop has, in its order.
    size : int
        Even; the seed is at index size / 2 - 1 in both directions.

    Returns
    -------
    n_crops : int32, shape (n_events,)
    objects : int32, shape (n_crops.sum(),)
        Place of the cropped object in its event.
    n_pixels : int32, shape (n_crops.sum(), len(picked))
    index : uint16, shape (n_pixels.sum(),)
        `row * size + column` in the crop.
    value : float32, shape (n_pixels.sum(),)
    """
    frame_counts = columns["nPixel"]
    has_seed = np.repeat(frame_counts[:, list(picked)].sum(axis=1), n_objects)[seeds >= 0]
    most = int(has_seed.sum())
    n_seeds = has_seed.size
    out = (
        np.zeros(n_objects.size, np.int32),
        np.empty(n_seeds, np.int32),
        np.zeros((n_seeds, len(picked)), np.int32),
        np.empty(most, np.uint16),
        np.empty(most, np.float32),
    )
    total = _crops(
        offsets(n_objects),
        seeds,
        offsets(frame_counts),
        frame_counts.shape[1],
        readonly(columns["Pixel_index"]),
        readonly(columns["Pixel_value"]),
        np.array(picked, np.int64),
        size,
        *out,
    )
    return (*out[:3], out[3][:total], out[4][:total])


@njit(cache=True, nogil=True)
def _crops(
    object_offsets: Any, seeds: Any, pixel_offsets: Any, n_channels: int, index: Any, value: Any,
    picked: Any, size: int, n_crops: Any, objects: Any, n_pixels: Any, crop_index: Any, crop_value: Any,
) -> int:  # fmt: skip
    used = crop = 0
    for event in range(n_crops.size):
        for entry in range(object_offsets[event], object_offsets[event + 1]):
            if seeds[entry] < 0:
                continue
            top = seeds[entry] // N_COLUMNS - (size // 2 - 1)
            left = seeds[entry] % N_COLUMNS - (size // 2 - 1)
            for place in range(picked.size):
                channel = event * n_channels + picked[place]
                before = used
                for pixel in range(pixel_offsets[channel], pixel_offsets[channel + 1]):
                    down = index[pixel] - top * N_COLUMNS
                    if not 0 <= down < size * N_COLUMNS:
                        continue
                    column = (down % N_COLUMNS - left) % N_COLUMNS
                    if column < size:
                        crop_index[used] = down // N_COLUMNS * size + column
                        crop_value[used] = value[pixel]
                        used += 1
                n_pixels[crop, place] = used - before
            objects[crop] = entry - object_offsets[event]
            n_crops[event] += 1
            crop += 1
    return used


class Cropper(Stage):
    """Seeds and crops for every configured tagger."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.inputs, self.outputs = records.frames(config), records.crops(config)

    def setup(self) -> None:
        """Compile the kernels."""
        self.process(Block(0, 1, self.inputs.empty(1)))

    def process(self, block: Block) -> Block:
        columns = dict(block.columns)
        for name, spec in self.config.taggers.items():
            columns |= self._tagger(name, spec, columns)
        return block.with_columns({name: columns[name] for name in self.outputs.by_name})

    def _tagger(self, name: str, spec: TaggerSpec, columns: Columns) -> Columns:
        channels = self.config.channels
        seeds = photon_seeds(columns, channels, spec.pt_min, spec.eta_max)
        picked = tuple(channels.index(channel) for channel in spec.channels)
        n_crops, objects, n_pixels, index, value = crops(columns, columns[f"n{spec.objects}"], seeds, picked, spec.crop)
        crop, pixel = records.crop_names(name)
        return {
            f"{spec.objects}_seedRow": np.where(seeds >= 0, seeds // N_COLUMNS, -1).astype(np.int16),
            f"{spec.objects}_seedCol": np.where(seeds >= 0, seeds % N_COLUMNS, -1).astype(np.int16),
            f"n{crop}": n_crops,
            f"{crop}_object": objects,
            f"n{pixel}": n_pixels,
            f"{pixel}_index": index,
            f"{pixel}_value": value,
        }


assert "ECAL" in CHANNELS  # the seeds of photons are looked for there
