"""Framer: hits become the sparse detector frame, one entry a non-empty pixel of a channel."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from numba import njit

from stages import records
from stages.config import Config
from stages.detector.ecal import eb_pixels, ee_pixel_table, ee_pixels, load_ee_geometry
from stages.detector.grid import N_COLUMNS, N_ROWS
from streamer.block import Block, Columns, offsets, readonly
from streamer.errors import UsageError
from streamer.stage import Stage

N_PIXELS = N_ROWS * N_COLUMNS

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]

DROPPED = ("nan_energy", "bad_detid")


@dataclass(frozen=True)
class Sparse:
    """One channel of some events.

    Attributes
    ----------
    counts : int32, shape (n_events,)
        Non-empty pixels of each event.
    index : int32, shape (counts.sum(),)
        `row * 360 + column`.
    value : float32, shape (counts.sum(),)
    dropped : dict of str to int
        Hits left out, by reason.
    """

    counts: Int32s
    index: Int32s
    value: Float32s
    dropped: dict[str, int]


def frame_ecal(columns: Columns, ee_table: Int32s) -> Sparse:
    """The ECAL channel [GeV]: barrel crystals and projected endcap crystals; what shares a pixel adds.

    Hits with energy <= 0 are not part of the image. A hit with a non-finite energy or an impossible detid is
    dropped and counted.
    """
    eb, ee = readonly(columns["EBRecHit_detid"]), readonly(columns["EERecHit_detid"])
    counts, dropped = np.empty(columns["nEBRecHit"].size, np.int32), np.zeros(len(DROPPED), np.int64)
    index, value = np.empty(eb.size + ee.size, np.int32), np.empty(eb.size + ee.size, np.float32)
    total = _merge(
        offsets(columns["nEBRecHit"]),
        eb_pixels(eb),
        readonly(columns["EBRecHit_energy"]),
        offsets(columns["nEERecHit"]),
        ee_pixels(ee, readonly(ee_table)),
        readonly(columns["EERecHit_energy"]),
        counts,
        index,
        value,
        dropped,
    )
    return Sparse(counts, index[:total], value[:total], dict(zip(DROPPED, dropped.tolist(), strict=True)))


@njit(cache=True, nogil=True)
def _merge(
    eb_offsets: Any, eb_pixel: Any, eb_energy: Any,
    ee_offsets: Any, ee_pixel: Any, ee_energy: Any,
    counts: Any, index: Any, value: Any, dropped: Any,
) -> int:  # fmt: skip
    slot = np.full(N_PIXELS, -1, np.int32)  # where a pixel of this event stands in the output
    used = 0
    for event in range(counts.size):
        first = used
        for part in range(2):
            # A helper function for one hit would be shorter and ten times slower: Numba counts its references.
            offsets, pixels, energies = eb_offsets, eb_pixel, eb_energy
            if part == 1:
                offsets, pixels, energies = ee_offsets, ee_pixel, ee_energy
            for hit in range(offsets[event], offsets[event + 1]):
                pixel, energy = pixels[hit], energies[hit]
                if not np.isfinite(energy):
                    dropped[0] += 1
                elif pixel < 0:
                    dropped[1] += 1
                elif energy > 0:
                    entry = slot[pixel]
                    if entry >= 0:
                        value[entry] += energy
                    else:
                        slot[pixel] = used
                        index[used] = pixel
                        value[used] = energy
                        used += 1
        counts[event] = used - first
        for entry in range(first, used):
            slot[index[entry]] = -1
    return used


def interleave(channels: list[Sparse]) -> tuple[Int32s, Int32s, Float32s]:
    """Counts (n_events, n_channels), index and value of several channels, ordered by event and channel."""
    if len(channels) == 1:
        only = channels[0]
        return only.counts[:, np.newaxis], only.index, only.value
    counts = np.stack([c.counts for c in channels], axis=1)  # axes: event, channel
    # The channels stand behind one another; a stable sort by event keeps their order within each event.
    events = np.concatenate([np.repeat(np.arange(c.counts.size), c.counts) for c in channels])
    order = np.argsort(events, kind="stable")
    return (
        counts,
        np.concatenate([c.index for c in channels])[order],
        np.concatenate([c.value for c in channels])[order],
    )


class Framer(Stage):
    """Makes the channels that the configured taggers see."""

    tallies = {"hits_dropped": DROPPED}  # noqa: RUF012

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.inputs, self.outputs = records.hits(config), records.frames(config)

    def setup(self) -> None:
        """Load the endcap geometry and compile the kernels.

        Raises
        ------
        UsageError
            The geometry file is not one.
        """
        path = self.config.framer.ee_geometry
        try:
            self._ee_table = load_ee_geometry(path) if path else ee_pixel_table()
        except (OSError, ValueError) as error:
            raise UsageError(f"framer.ee_geometry: {error}") from None
        self.process(Block(0, 1, self.inputs.empty(1)))

    def process(self, block: Block) -> Block:
        columns = block.columns
        makers = {"ECAL": lambda: frame_ecal(columns, self._ee_table)}
        channels = [makers[name]() for name in self.config.channels]
        for channel in channels:
            for reason, n in channel.dropped.items():
                self.count("hits_dropped", reason, n)
        counts, index, value = interleave(channels)
        made = {"nPixel": counts, "Pixel_index": index, "Pixel_value": value}
        return block.with_columns({name: made.get(name, columns.get(name)) for name in self.outputs.by_name})  # type: ignore[misc]
