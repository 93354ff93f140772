"""Framer: hits become the sparse detector frame, one entry a non-empty pixel (HCAL: tower) of a channel."""

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
from stages.kernels import njit
from stages.quality import ChannelQuality
from streamer.block import Block, Columns, offsets, readonly
from streamer.errors import UsageError
from streamer.stage import Stage

Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]

ENERGIES = ("ECAL", "HCAL")
"""Channels in which a hit with energy <= 0 is not part of the image."""


@dataclass(frozen=True)
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
    """Adds up what shares a pixel. Holds the scratch memory of the kernel: not for two threads at a time."""

    def __init__(self) -> None:
        self._slot = np.full(N_PIXELS, -1, np.int32)
        self._sums = np.empty(N_PIXELS)

    def merge(self, n_events: int, names: Sequence[str], channels: Sequence[Sequence[Entries]]) -> Frame:
        """The frame of the channels `names` from their entries, in that order."""
        every = [entries for channel in channels for entries in channel]
        pixel, value = _joined([e.pixel for e in every], np.int32), _joined([e.value for e in every], np.float32)
        spans = np.zeros((len(every), n_events + 1), np.int64)  # axes: source, event
        begin = 0
        for span, entries in zip(spans, every, strict=True):
            np.add(entries.offsets, begin, out=span)
            begin += entries.pixel.size
        reasons = ["", *DROPPED]
        codes = [[reasons.index(r) for r in (e.nan, e.outside, e.invalid)] for e in every]
        n_out = sum(e.pixel.size * (2 if name == "HCAL" else 1)
                    for name, channel in zip(names, channels, strict=True) for e in channel)  # fmt: skip
        counts, totals = np.empty((n_events, len(names)), np.int32), np.empty((n_events, len(names)))
        index, out, dropped = np.empty(n_out, np.int32), np.empty(n_out, np.float32), np.zeros(len(reasons), np.int64)
        total = _merge(
            np.cumsum([0, *map(len, channels)]),
            spans,
            readonly(pixel),
            readonly(value),
            np.array(codes, np.int64).reshape(-1, 3),
            np.array([name in ENERGIES for name in names]),
            np.array([N_TOWERS if name == "HCAL" else N_PIXELS for name in names]),
            self._slot,
            self._sums,
            counts,
            index,
            out,
            totals,
            dropped,
        )
        reasons_of = dict(zip(DROPPED, dropped[1:].tolist(), strict=True))
        return Frame(counts, index[:total], out[:total], totals, reasons_of)


def _joined(arrays: list[Any], dtype: Any) -> Any:
    return arrays[0] if len(arrays) == 1 else np.concatenate([np.zeros(0, dtype), *arrays])


@njit(cache=True, nogil=True)
def _merge(
    sources: Any, spans: Any, pixels: Any, values: Any, codes: Any, positive: Any, n_cells: Any,
    slot: Any, sums: Any, counts: Any, index: Any, out: Any, totals: Any, dropped: Any,
) -> int:  # fmt: skip
    # slot: where a pixel of this event and channel stands in the output, from the channel's first; -1 everywhere
    # between calls. sums: what is added up there, in double precision, as 20,000 hits may share a pixel.
    n_events, n_channels = counts.shape
    used = 0
    for event in range(n_events):
        for channel in range(n_channels):
            n_here = 0
            cells = n_cells[channel]
            only_positive = positive[channel]
            for source in range(sources[channel], sources[channel + 1]):
                for hit in range(spans[source, event], spans[source, event + 1]):
                    pixel = pixels[hit]
                    if pixel == SKIPPED:
                        continue
                    value = np.float64(values[hit])
                    if not np.isfinite(value):
                        dropped[codes[source, 0]] += 1
                    elif pixel == OUTSIDE:
                        dropped[codes[source, 1]] += 1
                    elif pixel == INVALID:
                        dropped[codes[source, 2]] += 1
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
    return used


def photon_seed_detids(columns: Columns) -> npt.NDArray[np.uint32]:
    """The seed crystals of the photons: the input's, else the most energetic EB crystal of the supercluster.

    Returns
    -------
    uint32, shape (n_photons,)
        Raw detids; 0 where the input links no supercluster with barrel hits.
    """
    seeds, supercluster = columns["Photon_seedDetId"], columns["Photon_superClusterIdx"]
    if not ((seeds == 0) & (supercluster >= 0)).any():
        return seeds
    seeds = seeds.copy()
    _supercluster_seeds(
        offsets(columns["nPhoton"]),
        readonly(supercluster),
        offsets(columns["nSuperClusterCrystal"]),
        readonly(columns["SuperClusterCrystal_superClusterIdx"]),
        readonly(columns["SuperClusterCrystal_detid"]),
        offsets(columns["nEBRecHit"]),
        readonly(columns["EBRecHit_detid"]),
        readonly(columns["EBRecHit_energy"]),
        seeds,
    )
    return seeds


@njit(cache=True, nogil=True)
def _supercluster_seeds(
    photon_offsets: Any, supercluster: Any, crystal_offsets: Any, crystal_of: Any, crystal_detid: Any,
    hit_offsets: Any, hit_detid: Any, hit_energy: Any, seeds: Any,
) -> None:  # fmt: skip
    for event in range(photon_offsets.size - 1):
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
        self._merger = Merger()
        columns = self.inputs.empty(1)
        if "Photon" in self.config.objects:  # with a photon, whose supercluster is looked for
            photon = {c.name: np.zeros(1, c.wire_dtype) for c in self.inputs.columns if c.per == "Photon"}
            columns |= {**photon, "nPhoton": np.ones(1, np.int32)}
        self.process(Block(0, 1, columns))
        self._quality = ChannelQuality(self.config, self.registry)  # behind what has only warmed up

    def process(self, block: Block) -> Block:
        columns = dict(block.columns)
        made = Channels(self.config, columns, self._ee_table)
        names = self.config.channels
        frame = self._merger.merge(block.n_events, names, [made.entries(name) for name in names])
        for dropped in (made.dropped, frame.dropped):
            for reason, n in dropped.items():
                self.count("hits_dropped", reason, n)
        columns |= {"nPixel": frame.counts, "Pixel_index": frame.index, "Pixel_value": frame.value}
        if "Photon" in self.config.objects:
            columns["Photon_seedDetId"] = photon_seed_detids(columns)
        if self._quality is not None:
            self._quality.add(columns, frame.counts, frame.totals)
        return block.with_columns({name: columns[name] for name in self.outputs.by_name})
