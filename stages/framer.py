"""Framer: hits become the sparse detector frame, one entry a non-empty pixel (HCAL: tower) of a channel."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from stages import records
from stages.channels import DROPPED, INVALID, OUTSIDE, SKIPPED, Channels, Entries
from stages.config import Config
from stages.detector.ecal import eb_pixel, ee_pixel_table, load_ee_geometry
from stages.detector.layout import N_PIXELS, N_TOWER_COLUMNS, N_TOWERS
from stages.kernels import argument, ends, njit
from stages.quality import ChannelQuality
from streamer.block import Block, Columns
from streamer.errors import UsageError
from streamer.stage import Stage

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]

ENERGIES = ("ECAL", "HCAL")
"""Channels in which a hit with energy <= 0 is not part of the image."""


@dataclass(slots=True)
class Frame:
    """The channels of some events.

    Attributes
    ----------
    counts : int32, shape (n_events, n_channels)
        Non-empty pixels of each event and channel.
    index : int32, shape (counts.sum(),)
        `row * 360 + column`; in HCAL `row * 72 + column` of a tower.
    value : float32, shape (counts.sum(),)
    totals : float64, shape (n_events, n_channels)
        Sums of the values.
    dropped : dict of str to int
        Hits left out, by reason.
    """

    counts: Int32s
    index: Int32s
    value: Float32s
    totals: npt.NDArray[np.float64]
    dropped: dict[str, int]


class Merger:
    """Adds up what shares a pixel. Holds the scratch memory of the kernel: not for two threads at a time.

    Parameters
    ----------
    names : sequence of str
        The channels of the frames.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._positive = np.array([name in ENERGIES for name in names])
        self._n_cells = np.array([N_TOWERS if name == "HCAL" else N_PIXELS for name in names])
        self._most_pixels = 2 if "HCAL" in names else 1  # of a hit
        self._slot = np.full(N_PIXELS, -1, np.int32)
        self._sums = np.empty(N_PIXELS)

    def merge(self, n_events: int, channels: Sequence[Sequence[Entries]]) -> Frame:
        """The frame of some events from the entries of each channel."""
        every = [entries for channel in channels for entries in channel]
        n_hits = _joined([e.counts for e in every], np.int32)  # axis: source and event
        pixel, value = _joined([e.pixel for e in every], np.int32), _joined([e.value for e in every], np.float32)
        shape, n_out = (n_events, len(channels)), self._most_pixels * pixel.size
        counts, totals = np.empty(shape, np.int32), np.empty(shape)
        index, out = np.empty(n_out, np.int32), np.empty(n_out, np.float32)
        dropped = np.zeros((len(every), 3), np.int64)
        total, n_dropped = _merge(
            np.array([len(channel) for channel in channels]),
            argument(n_hits),
            pixel,
            argument(value),
            self._positive,
            self._n_cells,
            self._slot,
            self._sums,
            counts,
            index,
            out,
            totals,
            dropped,
        )
        reasons = _reasons(every, dropped.tolist()) if n_dropped else {}
        return Frame(counts, index[:total], out[:total], totals, reasons)


def _reasons(every: Sequence[Entries], dropped: Sequence[Sequence[int]]) -> dict[str, int]:
    found: Counter[str] = Counter()
    for entries, numbers in zip(every, dropped, strict=True):
        for reason, n in zip((entries.nan, entries.outside, entries.invalid), numbers, strict=True):
            if n and reason:
                found[reason] += n
    return found


def _joined(arrays: list[Any], dtype: Any) -> Any:
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.zeros(0, dtype), *arrays])


@njit(cache=True, nogil=True)
def _merge(
    n_sources: Any, n_hits: Any, pixels: Any, values: Any, positive: Any, n_cells: Any,
    slot: Any, sums: Any, counts: Any, index: Any, out: Any, totals: Any, dropped: Any,
) -> tuple[int, int]:  # fmt: skip
    # slot: where a pixel of this event and channel stands in the output, from the channel's first; -1 everywhere
    # between calls. sums: what is added up there, in double precision, as 20,000 hits may share a pixel.
    # dropped: of each source, for values that are not finite, for pixels OUTSIDE and for those that are INVALID.
    n_events, n_channels = counts.shape
    hits_of = ends(n_hits)
    used = n_dropped = 0
    for event in range(n_events):
        source = -1
        for channel in range(n_channels):
            n_here = 0
            cells = n_cells[channel]
            only_positive = positive[channel]
            for _ in range(n_sources[channel]):
                source += 1
                place_of = source * n_events + event
                for hit in range(hits_of[place_of], hits_of[place_of + 1]):
                    pixel = pixels[hit]
                    if pixel == SKIPPED:
                        continue
                    value = np.float64(values[hit])
                    if not np.isfinite(value):
                        dropped[source, 0] += 1
                        n_dropped += 1
                    elif pixel == OUTSIDE:
                        dropped[source, 1] += 1
                        n_dropped += 1
                    elif pixel == INVALID:
                        dropped[source, 2] += 1
                        n_dropped += 1
                    elif value > 0 or not only_positive:
                        halves = 1
                        if pixel >= cells:
                            halves = 2
                            pixel -= cells
                            value *= 0.5
                        for half in range(halves):
                            if half == 1:
                                last = pixel % N_TOWER_COLUMNS == N_TOWER_COLUMNS - 1
                                pixel += 1 - N_TOWER_COLUMNS if last else 1
                            place = slot[pixel]
                            if place < 0:
                                slot[pixel] = n_here
                                sums[n_here] = value
                                index[used + n_here] = pixel
                                n_here += 1
                            else:
                                sums[place] += value
            total = 0.0
            for place in range(n_here):
                out[used + place] = sums[place]
                total += sums[place]
                slot[index[used + place]] = -1
            counts[event, channel], totals[event, channel] = n_here, total
            used += n_here
    return used, n_dropped


def photon_seed_detids(columns: Columns) -> npt.NDArray[np.uint32]:
    """The seed crystals of the photons: the input's, else the most energetic EB crystal of the supercluster.

    Returns
    -------
    uint32, shape (n_photons,)
        Raw detids; 0 where the input links no supercluster with barrel hits.
    """
    seeds = columns["Photon_seedDetId"]
    if not columns["SuperClusterCrystal_detid"].size:
        return seeds
    names = (
        *("nPhoton", "Photon_superClusterIdx"),
        *("nSuperClusterCrystal", "SuperClusterCrystal_superClusterIdx", "SuperClusterCrystal_detid"),
        *("nEBRecHit", "EBRecHit_detid", "EBRecHit_energy"),
    )
    seeds = seeds.copy()
    _supercluster_seeds(*[argument(columns[name]) for name in names], seeds)
    return seeds


@njit(cache=True, nogil=True)
def _supercluster_seeds(
    n_photons: Any, supercluster: Any, n_crystals: Any, crystal_of: Any, crystal_detid: Any,
    n_hits: Any, hit_detid: Any, hit_energy: Any, seeds: Any,
) -> None:  # fmt: skip
    photon_offsets, crystal_offsets, hit_offsets = ends(n_photons), ends(n_crystals), ends(n_hits)
    for event in range(n_photons.size):
        for photon in range(photon_offsets[event], photon_offsets[event + 1]):
            if seeds[photon] != 0 or supercluster[photon] < 0:
                continue
            most = np.float32(0.0)
            for crystal in range(crystal_offsets[event], crystal_offsets[event + 1]):
                detid = crystal_detid[crystal]
                if crystal_of[crystal] != supercluster[photon] or eb_pixel(detid) < 0:
                    continue
                for hit in range(hit_offsets[event], hit_offsets[event + 1]):
                    if hit_detid[hit] == detid and hit_energy[hit] > most:
                        most = hit_energy[hit]
                        seeds[photon] = detid


class Framer(Stage):
    """Makes the channels that the configured taggers see."""

    tallies = {"hits_dropped": DROPPED}  # noqa: RUF012

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.inputs, self.outputs = records.hits(config), records.frames(config)
        self._channels = config.channels
        self._quality: ChannelQuality | None = None

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
        self._merger = Merger(self._channels)
        one = {c.name: np.full((1, *c.shape), 1 if c.counts else 0, c.wire_dtype) for c in self.inputs.columns}
        self.process(Block(0, 1, one))  # with a hit of each kind
        self.take_tally()
        self._quality = ChannelQuality(self.config, self.registry)  # behind what has only warmed up

    def process(self, block: Block) -> Block:
        columns = dict(block.columns)
        made = Channels(self.config, columns, self._ee_table)
        frame = self._merger.merge(block.n_events, [made.entries(channel) for channel in self._channels])
        for dropped in (made.dropped, frame.dropped):
            for reason, n in dropped.items():
                self.count("hits_dropped", reason, n)
        columns["nPixel"], columns["Pixel_index"], columns["Pixel_value"] = frame.counts, frame.index, frame.value
        if "Photon_seedDetId" in columns:
            columns["Photon_seedDetId"] = photon_seed_detids(columns)
        if self._quality is not None:
            self._quality.add(columns, frame.counts, frame.totals)
        return block.with_columns({name: columns[name] for name in self.outputs.by_name})
