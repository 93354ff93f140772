"""What the networks saw of accepted events, for the streams that keep it (`content = "crops"`)."""

from typing import Any

import numpy as np

from stages import records
from stages.config import CHANNELS, Config
from streamer.block import Array, Block, Columns, offsets
from streamer.gather import keep_members


class CropKeeper:
    """Lets the writer keep crops of no other events than those of the streams that want them."""

    def __init__(self, config: Config) -> None:
        paths = np.zeros(len(config.menu.paths), np.uint8)
        paths[config.menu.places_of(records.crop_streams(config))] = 1
        self._bits = np.packbits(paths, bitorder="little")
        self._schema = records.journal(config)
        self._gone = {column.name for column in self._schema.columns} - {
            column.name for column in (*records.scored(config), *records.decisions(config))
        }

    def __call__(self, block: Block) -> Block:
        """A block that was decided, without what nobody keeps."""
        kept = np.any(block.columns["pathAccepted"] & self._bits, axis=1)
        return block.with_columns(keep_members(self._schema, block.columns, self._gone, kept))


def flat(columns: Columns, config: Config) -> Columns:
    """What was seen as a stream's file holds it (`records.kept_crops`): pixels directly under their event."""
    out = dict(columns)
    for name in dict.fromkeys(config.crops.values()):
        (crop, pixel), spec = records.crop_names(name), config.taggers[name]
        n_crops, n_pixels = columns[f"n{crop}"], columns[f"n{pixel}"]  # axes of the second: crop, channel
        begins, of_crop = offsets(n_crops), n_pixels.sum(1, dtype=np.int64)
        places = np.arange(begins[-1]) - np.repeat(begins[:-1], n_crops)
        out |= {
            records.idx_column(crop, spec.objects): columns[f"{crop}_object"],
            f"n{pixel}": np.diff(offsets(of_crop)[begins]).astype(np.int32),
            f"{pixel}_cropIdx": np.repeat(places, of_crop).astype(np.int32),
            f"{pixel}_channel": _channels(spec.channels, n_pixels),
        }
    if records.sees_frames(config):
        n_pixels = columns["nPixel"]  # axes: event, channel
        out |= {
            "nPixel": n_pixels.sum(1, dtype=np.int32),
            "Pixel_channel": _channels(config.channels, n_pixels),
        }
    return out


def _channels(names: tuple[str, ...], n_pixels: Array) -> Any:
    """The channel of each pixel.

    Parameters
    ----------
    n_pixels : int32, shape (n_items, n_channels)
    """
    numbers = np.array([CHANNELS.index(name) for name in names], np.uint8)
    return np.repeat(np.tile(numbers, len(n_pixels)), n_pixels.reshape(-1))
