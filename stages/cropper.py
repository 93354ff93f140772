"""Cropper: objects are selected, find their seed pixel, and get their sparse crops out of the frame."""

from typing import Any

import numpy as np
import numpy.typing as npt

from stages import records
from stages.config import SEED_CHANNEL, Config, TaggerSpec
from stages.detector.ecal import eb_pixel
from stages.detector.grid import column_of_phi, row_of_eta
from stages.detector.hcal import tower_of_direction
from stages.detector.layout import EB_FIRST_ROW, EB_LAST_ROW, N_COLUMNS, N_TOWER_COLUMNS, N_TOWER_ROWS, TOWER
from stages.kernels import njit
from stages.records import SEEDED, crop_index_dtype
from streamer.block import Array, Block, Columns, offsets, readonly
from streamer.stage import Stage

Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

PHOTON_REACH = 5
"""A photon's seed is searched within so many rows and columns of its direction."""
JET_REACH = 3
"""A jet's seed is searched within so many towers of its axis."""
MAX_JET_SEED_IETA = 16
"""Jets with a seed tower beyond have no seed: their image would leave the detector."""


def selected(columns: Columns, spec: TaggerSpec) -> Bools:
    """Whether a tagger wants each of its objects: pt and |eta|, compared as float32, in which objects come."""
    pt, eta = columns[f"{spec.objects}_pt"], columns[f"{spec.objects}_eta"]
    return (pt > np.float32(spec.pt_min)) & (np.abs(eta) < np.float32(spec.eta_max))


def _wanted(columns: Columns, spec: TaggerSpec) -> Bools:
    """Those objects that are selected, of events that a menu's seeds want."""
    wanted = selected(columns, spec)
    if SEEDED.name in columns:
        wanted &= np.repeat(columns[SEEDED.name] != 0, columns[f"n{spec.objects}"])
    return wanted


def photon_seeds(columns: Columns, channels: tuple[str, ...], wanted: Bools) -> Int32s:
    """The seed pixel of each wanted photon, -1 where there is none.

    It is the barrel crystal that the input names, else the most energetic barrel pixel within 5 rows and 5 columns of
    the photon's direction (of equals, the first in the frame).

    Parameters
    ----------
    columns : dict
        With the photons and the frame.
    channels : tuple of str
        Of the frame.
    wanted : bool, shape (n_photons,)

    Returns
    -------
    int32, shape (n_photons,)
        `row * 360 + column` in the frame.
    """
    seeds = np.full(wanted.size, -1, np.int32)
    with np.errstate(invalid="ignore"):  # a photon with a direction that is no number has no pixel
        rows, photon_columns = row_of_eta(columns["Photon_eta"]), column_of_phi(columns["Photon_phi"])
    _photon_seeds(
        offsets(columns["nPhoton"]),
        wanted,
        rows,
        photon_columns,
        readonly(columns["Photon_seedDetId"]),
        offsets(columns["nPixel"]),
        len(channels),
        channels.index("ECAL"),
        readonly(columns["Pixel_index"]),
        readonly(columns["Pixel_value"]),
        seeds,
    )
    return seeds


@njit(cache=True, nogil=True)
def _photon_seeds(
    photon_offsets: Any, wanted: Any, rows: Any, photon_columns: Any, seed_detid: Any,
    pixel_offsets: Any, n_channels: int, ecal: int, index: Any, value: Any, seeds: Any,
) -> None:  # fmt: skip
    for event in range(photon_offsets.size - 1):
        first = pixel_offsets[event * n_channels + ecal]
        last = pixel_offsets[event * n_channels + ecal + 1]
        for photon in range(photon_offsets[event], photon_offsets[event + 1]):
            if not wanted[photon]:
                continue
            best = eb_pixel(seed_detid[photon])
            row, column = rows[photon], photon_columns[photon]
            if best < 0 and row >= 0 and column >= 0:
                most = np.float32(0.0)
                low = max(row - PHOTON_REACH, EB_FIRST_ROW) * N_COLUMNS
                high = (min(row + PHOTON_REACH, EB_LAST_ROW) + 1) * N_COLUMNS
                for entry in range(first, last):
                    pixel = index[entry]
                    if not low <= pixel < high:
                        continue
                    away = abs(pixel % N_COLUMNS - column)
                    if min(away, N_COLUMNS - away) <= PHOTON_REACH and (
                        value[entry] > most or (value[entry] == most and pixel < best)
                    ):
                        best, most = pixel, value[entry]
            seeds[photon] = best


def jet_seeds(columns: Columns, objects: str, channels: tuple[str, ...], wanted: Bools) -> Int32s:
    """The seed pixel of each wanted jet, -1 where there is none.

    It is the middle of the most energetic HCAL tower among the 7 x 7 around the tower that the jet's axis points to
    (of equals, the first in the frame). Jets that point outside the HCAL have none, and neither have those with the
    seed at |ieta| > 16.

    Parameters
    ----------
    columns : dict
        With the jets and the frame.
    objects : str
        `Jet` or `FatJet`.
    channels : tuple of str
        Of the frame.
    wanted : bool, shape (n_jets,)

    Returns
    -------
    int32, shape (n_jets,)
        `row * 360 + column` in the frame.
    """
    seeds = np.full(wanted.size, -1, np.int32)
    with np.errstate(invalid="ignore"):  # a jet with a direction that is no number has no tower
        axes = tower_of_direction(columns[f"{objects}_eta"], columns[f"{objects}_phi"])
    _jet_seeds(
        offsets(columns[f"n{objects}"]),
        wanted,
        axes,
        offsets(columns["nPixel"]),
        len(channels),
        channels.index("HCAL"),
        readonly(columns["Pixel_index"]),
        readonly(columns["Pixel_value"]),
        seeds,
    )
    return seeds


@njit(cache=True, nogil=True)
def _jet_seeds(
    jet_offsets: Any, wanted: Any, axes: Any, pixel_offsets: Any, n_channels: int, hcal: int,
    index: Any, value: Any, seeds: Any,
) -> None:  # fmt: skip
    for event in range(jet_offsets.size - 1):
        first = pixel_offsets[event * n_channels + hcal]
        last = pixel_offsets[event * n_channels + hcal + 1]
        for jet in range(jet_offsets[event], jet_offsets[event + 1]):
            if not wanted[jet] or axes[jet] < 0:
                continue
            row, column = axes[jet] // N_TOWER_COLUMNS, axes[jet] % N_TOWER_COLUMNS
            best, most = -1, np.float32(0.0)
            for entry in range(first, last):
                tower = index[entry]
                if abs(tower // N_TOWER_COLUMNS - row) > JET_REACH:
                    continue
                away = abs(tower % N_TOWER_COLUMNS - column)
                if min(away, N_TOWER_COLUMNS - away) <= JET_REACH and (
                    value[entry] > most or (value[entry] == most and tower < best)
                ):
                    best, most = tower, value[entry]
            if best < 0:
                continue
            row = best // N_TOWER_COLUMNS
            half = N_TOWER_ROWS // 2
            ieta = row - half + 1 if row >= half else half - row
            if ieta <= MAX_JET_SEED_IETA:
                middle = TOWER // 2
                seeds[jet] = (TOWER * row + middle) * N_COLUMNS + TOWER * (best % N_TOWER_COLUMNS) + middle


def crops(
    columns: Columns, n_objects: Array, seeds: Int32s, picked: tuple[int, ...], towers: tuple[bool, ...], size: int
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
    towers : tuple of bool
        Which of them hold towers, each 5 x 5 pixels, in place of pixels. They stay one entry.
    size : int
        Even; the seed is at index size / 2 - 1 in both directions.

    Returns
    -------
    n_crops : int32, shape (n_events,)
    objects : int32, shape (n_crops.sum(),)
        Place of the cropped object in its event.
    n_pixels : int32, shape (n_crops.sum(), len(picked))
    index : uint16 or uint32, shape (n_pixels.sum(),)
        Where each pixel or tower is in the crop, see `records.crops`.
    value : float32, shape (n_pixels.sum(),)
    """
    frame_counts = columns["nPixel"]
    most = int(np.repeat(frame_counts[:, list(picked)].sum(axis=1), n_objects)[seeds >= 0].sum())
    n_seeds = np.count_nonzero(seeds >= 0)
    out = (
        np.empty(n_objects.size, np.int32),
        np.empty(n_seeds, np.int32),
        np.zeros((n_seeds, len(picked)), np.int32),
        np.empty(most + 1, crop_index_dtype(size)),  # one more, for what is written and not kept
        np.empty(most + 1, np.float32),
    )
    total = _crops(
        offsets(n_objects),
        seeds,
        offsets(frame_counts),
        frame_counts.shape[1],
        readonly(columns["Pixel_index"]),
        readonly(columns["Pixel_value"]),
        np.array(picked, np.int64),
        np.array(towers, np.bool_),
        size,
        *out,
    )
    return (*out[:3], out[3][:total], out[4][:total])


@njit(cache=True, nogil=True)
def _crops(
    object_offsets: Any, seeds: Any, pixel_offsets: Any, n_channels: int, index: Any, value: Any, picked: Any,
    towers: Any, size: int, n_crops: Any, objects: Any, n_pixels: Any, crop_index: Any, crop_value: Any,
) -> int:  # fmt: skip
    used = crop = 0
    over = TOWER - 1  # a tower may begin so many pixels outside
    rows, columns = np.empty(index.size, np.int32), np.empty(index.size, np.int32)  # of each entry's first pixel
    for event in range(n_crops.size):
        n_crops[event] = 0
        for entry in range(object_offsets[event], object_offsets[event + 1]):
            n_crops[event] += seeds[entry] >= 0
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
        seeds = {objects: self._seeds(objects, columns) for objects in self.config.objects}
        for objects, pixels in seeds.items():
            columns[f"{objects}_seedRow"] = np.where(pixels >= 0, pixels // N_COLUMNS, -1).astype(np.int16)
            columns[f"{objects}_seedCol"] = np.where(pixels >= 0, pixels % N_COLUMNS, -1).astype(np.int16)
        for name in dict.fromkeys(self.config.crops.values()):
            columns |= self._crops(name, columns, seeds)
        return block.with_columns({name: columns[name] for name in self.outputs.by_name})

    def _seeds(self, objects: str, columns: Columns) -> Int32s:
        """Seeds of the objects that any tagger wants."""
        specs = [spec for spec in self.config.taggers.values() if spec.objects == objects]
        wanted = np.logical_or.reduce([_wanted(columns, spec) for spec in specs])
        if SEED_CHANNEL[objects] == "ECAL":
            return photon_seeds(columns, self.config.channels, wanted)
        return jet_seeds(columns, objects, self.config.channels, wanted)

    def _crops(self, name: str, columns: Columns, seeds: dict[str, Int32s]) -> Columns:
        spec = self.config.taggers[name]
        own = np.where(_wanted(columns, spec), seeds[spec.objects], np.int32(-1))
        picked = tuple(self.config.channels.index(channel) for channel in spec.channels)
        towers = tuple(channel == "HCAL" for channel in spec.channels)
        made = crops(columns, columns[f"n{spec.objects}"], own, picked, towers, spec.crop)
        crop, pixel = records.crop_names(name)
        names = (f"n{crop}", f"{crop}_object", f"n{pixel}", f"{pixel}_index", f"{pixel}_value")
        return dict(zip(names, made, strict=True))
