"""Hits on their way into the detector frame: for every channel, which pixel each hit falls in and what it adds there.

Whole blocks at a time. What is left out has a negative pixel: `SKIPPED` was never meant to be in the channel,
`OUTSIDE` and `INVALID` are counted where the collection gives them a reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stages.config import CHANNELS, Config
from stages.detector.ecal import eb_pixels, ee_pixels
from stages.detector.hcal import hcal_towers, tower_of_direction
from stages.detector.layout import N_PIXELS, N_TOWERS
from stages.detector.tracker import (
    N_BPIX_LAYERS,
    N_STRIP_LAYERS,
    TEC,
    TIB,
    TID,
    TOB,
    direction_pixels,
    position_pixels,
    propagate,
)
from stages.kernels import argument, ends, njit
from stages.records import PIXELS, STRIPS, TRACKS
from streamer.block import Columns, offsets

OUTSIDE, INVALID, SKIPPED = -1, -2, -3

DROPPED = ("nan_energy", "bad_detid", "nan_track", "nan_position", "bad_layer", "bad_pixel")
"""Why a hit can be left out; the label values of `streamer_hits_dropped_total`."""

MAX_DZ_CM = 0.1
"""Tracks further from the primary vertex are not part of the impact parameter channels."""

_STRIPS = {"TIB": TIB, "TOB": TOB, "TID": TID, "TEC": TEC}

Int32s = npt.NDArray[np.int32]


@dataclass(slots=True)
class Entries:
    """What some hits add to a channel.

    Attributes
    ----------
    counts : int32, shape (n_events,)
        Hits of each event.
    pixel : int32, shape (counts.sum(),)
        `row * 360 + column`; in HCAL the tower's `row * 72 + column`, and `N_TOWERS` more for a cell whose energy
        belongs to it and to the next column by halves.
    value : float32, shape (counts.sum(),)
    nan, outside, invalid : str
        The reason of `DROPPED` for values that are not finite and for those pixels; empty: silently left out.
    """

    counts: Int32s
    pixel: Int32s
    value: npt.NDArray[np.float32]
    nan: str = ""
    outside: str = ""
    invalid: str = ""


class _TrackerHits(NamedTuple):
    """Hits of the pixel barrel or of the strips.

    Attributes
    ----------
    pixels : int32
    parts : uint8
        The layer of the pixel barrel, or the subdetector of the strips; 0 where there is no such layer.
    ones : float32
        What each adds.
    """

    pixels: Int32s
    parts: npt.NDArray[np.uint8]
    ones: npt.NDArray[np.float32]


class Channels:
    """Makes the entries of the configured channels of one block; what they share is made once.

    `entries` is for all; the other methods make those of one kind of hits.

    Parameters
    ----------
    columns : dict
        As `records.hits` declares them.
    ee_table : int32
        See `stages.detector.ecal.ee_pixel_table`.
    """

    def __init__(self, config: Config, columns: Columns, ee_table: Int32s) -> None:
        self._config, self._columns, self._ee_table = config, columns, ee_table
        self.dropped: dict[str, int] = {}

    def entries(self, channel: str) -> list[Entries]:
        """Where a channel's content comes from: of those of its collections that hold anything."""
        return [make(self, channel) for column, make in _SOURCES[channel] if self._columns[column].size]

    def _column(self, name: str) -> Any:
        return argument(self._columns[name])

    def _rechits(self, collection: str, pixels: Int32s) -> Entries:
        counts, energy = self._columns[f"n{collection}"], self._columns[f"{collection}_energy"]
        return Entries(counts, pixels, energy, nan="nan_energy", outside="bad_detid")

    def barrel(self, channel: str) -> Entries:
        return self._rechits("EBRecHit", eb_pixels(self._column("EBRecHit_detid")))

    def endcap(self, channel: str) -> Entries:
        return self._rechits("EERecHit", ee_pixels(self._column("EERecHit_detid"), argument(self._ee_table)))

    def hcal(self, channel: str) -> Entries:
        return self._rechits("HBHERecHit", hcal_towers(self._column("HBHERecHit_detid")))

    def towers(self, channel: str) -> Entries:
        eta, phi = self._column("Tower_eta"), self._column("Tower_phi")
        pixels, energy = direction_pixels(eta, phi), "Tower_emEnergy"
        if channel == "HCAL":
            pixels, energy = _towers(pixels, eta, phi), "Tower_hadEnergy"
        value = self._columns[energy]
        return Entries(self._columns["nTower"], pixels, value, nan="nan_energy", invalid="nan_position")

    def image(self, channel: str) -> Entries:
        """The pixels of a ready-made image."""
        most = N_TOWERS if channel == "HCAL" else N_PIXELS
        place = CHANNELS.index(channel)
        pixels = _image(self._column("ImagePixel_index"), self._column("ImagePixel_channel"), place, most)
        self.dropped["bad_pixel"] = self._n_beyond_channels
        value = self._columns["ImagePixel_value"]
        return Entries(self._columns["nImagePixel"], pixels, value, nan="nan_energy", invalid="bad_pixel")

    @cached_property
    def _n_beyond_channels(self) -> int:
        return int(np.count_nonzero(self._columns["ImagePixel_channel"] >= len(CHANNELS)))

    def tracks(self, channel: str) -> Entries:
        pixels = self._track_pixels if channel == "TrackPt" else self._near_pixels
        value = self._columns[{"TrackPt": "Track_pt", "TrackD0": "Track_d0", "TrackDz": "Track_dz"}[channel]]
        return Entries(self._columns["nTrack"], pixels, value, nan="nan_track", invalid="nan_track")

    @cached_property
    def _near_pixels(self) -> Int32s:
        """Of the tracks, without those that are far from the primary vertex."""
        made: Int32s = _near(self._track_pixels, self._column("Track_dz"))
        return made

    @cached_property
    def _track_pixels(self) -> Int32s:
        eta, phi = self._column("Track_eta"), self._column("Track_phi")
        pixels = direction_pixels(eta, phi)
        if self._config.framer.tracks_at == "ecal":
            pt, charge, d0, dz = (self._column(f"Track_{name}") for name in ("pt", "charge", "d0", "dz"))
            vertices, counts = self._vertices, self._column("nTrack")
            at = propagate(pt, eta, phi, charge, d0, dz, ends(counts), vertices)
            finite = np.isfinite(pt) & np.isfinite(d0) & np.isfinite(dz)
            finite &= np.repeat(np.isfinite(vertices).all(axis=1), counts)
            there = np.maximum(direction_pixels(*at), np.int32(OUTSIDE))  # curls up, or meets it beyond the frame
            pixels = np.where(finite, np.where(pixels >= 0, there, pixels), np.int32(INVALID))
        made: Int32s = _of_good(pixels, self._column("Track_highPurity"))
        return made

    def layer(self, channel: str) -> Entries:
        """The hits of one layer of the pixel barrel."""
        return self._part("PixelHit", self._pixel_hits, int(channel[-1]))

    def strips(self, channel: str) -> Entries:
        """The hits of one subdetector of the strips."""
        return self._part("StripHit", self._strip_hits, _STRIPS[channel])

    def _part(self, collection: str, hits: _TrackerHits, part: int) -> Entries:
        return Entries(self._columns[f"n{collection}"], _of_part(hits.pixels, hits.parts, part), hits.ones)

    @cached_property
    def _pixel_hits(self) -> _TrackerHits:
        return self._tracker_hits("PixelHit", "PixelHit_layer", _PIXEL_LAYERS)

    @cached_property
    def _strip_hits(self) -> _TrackerHits:
        return self._tracker_hits("StripHit", "StripHit_subdet", _STRIP_LAYERS)

    def _tracker_hits(self, collection: str, parts: str, n_layers: Any) -> _TrackerHits:
        xyz = [self._column(f"{collection}_{axis}") for axis in "xyz"]
        pixels = position_pixels(*xyz, ends(self._column(f"n{collection}")), self._seen_from)
        layers = self._column(f"{collection}_layer")
        known, n_nowhere, n_bad = _known(pixels, self._column(parts), layers, n_layers)
        for reason, n in (("nan_position", n_nowhere), ("bad_layer", n_bad)):
            self.dropped[reason] = self.dropped.get(reason, 0) + n
        return _TrackerHits(pixels, known, np.ones(pixels.size, np.float32))

    @cached_property
    def _seen_from(self) -> npt.NDArray[np.float64]:
        if self._config.framer.hits_from == "vertex":
            return self._vertices
        return np.zeros((self._columns["event"].size, 3))

    @cached_property
    def _vertices(self) -> npt.NDArray[np.float64]:
        return primary_vertices(self._columns)


_TOWERS, _IMAGE = ("Tower_eta", Channels.towers), ("ImagePixel_index", Channels.image)
_SOURCES: dict[str, tuple[tuple[str, Callable[[Channels, str], Entries]], ...]] = {
    **dict.fromkeys(TRACKS, (("Track_eta", Channels.tracks), _IMAGE)),
    **dict.fromkeys(PIXELS, (("PixelHit_layer", Channels.layer), _IMAGE)),
    "ECAL": (("EBRecHit_detid", Channels.barrel), ("EERecHit_detid", Channels.endcap), _TOWERS, _IMAGE),
    "HCAL": (("HBHERecHit_detid", Channels.hcal), _TOWERS, _IMAGE),
    **dict.fromkeys(STRIPS, (("StripHit_layer", Channels.strips), _IMAGE)),
}
"""What a channel can be made from: a column that tells whether there is any, and what makes the entries."""


def _layers(of: dict[int, int]) -> Any:
    made = np.zeros(256, np.uint8)
    made[list(of)] = list(of.values())
    return made


_PIXEL_LAYERS = _layers(dict.fromkeys(range(1, N_BPIX_LAYERS + 1), N_BPIX_LAYERS))
_STRIP_LAYERS = _layers(N_STRIP_LAYERS)
"""The last layer of each part, 0 where there is no such part."""


@njit(cache=True, nogil=True)
def _known(pixels: Any, parts: Any, layers: Any, n_layers: Any) -> Any:
    """The part that each hit is in, 0 where it has no such layer; how many have no position, and how many others no
    such layer."""
    known = np.zeros(parts.size, np.uint8)
    n_nowhere = n_bad = 0
    for hit in range(parts.size):
        n_nowhere += pixels[hit] == INVALID
        if 1 <= layers[hit] <= n_layers[parts[hit]]:
            known[hit] = parts[hit]
        else:
            n_bad += pixels[hit] != INVALID
    return known, n_nowhere, n_bad


@njit(cache=True, nogil=True)
def _of_part(pixels: Any, parts: Any, part: int) -> Any:
    out = np.empty(pixels.size, np.int32)
    for hit in range(pixels.size):
        out[hit] = pixels[hit] if parts[hit] == part else SKIPPED
    return out


@njit(cache=True, nogil=True)
def _of_good(pixels: Any, good: Any) -> Any:
    out = np.empty(pixels.size, np.int32)
    for track in range(pixels.size):
        out[track] = pixels[track] if good[track] != 0 else SKIPPED
    return out


@njit(cache=True, nogil=True)
def _near(pixels: Any, dz: Any) -> Any:
    most = np.float32(MAX_DZ_CM)
    out = np.empty(pixels.size, np.int32)
    for track in range(pixels.size):
        out[track] = pixels[track] if abs(dz[track]) < most or pixels[track] < 0 else OUTSIDE
    return out


@njit(cache=True, nogil=True)
def _towers(pixels: Any, eta: Any, phi: Any) -> Any:
    out = np.empty(pixels.size, np.int32)
    for tower in range(pixels.size):
        out[tower] = tower_of_direction(eta[tower], phi[tower]) if pixels[tower] >= 0 else pixels[tower]
    return out


@njit(cache=True, nogil=True)
def _image(index: Any, channels: Any, channel: int, most: int) -> Any:
    out = np.empty(index.size, np.int32)
    for entry in range(index.size):
        if channels[entry] != channel:
            out[entry] = SKIPPED
        else:
            out[entry] = index[entry] if 0 <= index[entry] < most else INVALID
    return out


def primary_vertices(columns: Columns) -> npt.NDArray[np.float64]:
    """The first vertex of each event [cm], the origin where there is none: float64, shape (n_events, 3)."""
    counts = columns["nPV"]
    out = np.zeros((counts.size, 3))
    found = counts > 0
    first = offsets(counts)[:-1][found]
    for axis, name in enumerate(("PV_x", "PV_y", "PV_z")):
        out[found, axis] = columns[name][first]
    return out
