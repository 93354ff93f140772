"""Hits on their way into the detector frame: for every channel, which pixel each hit falls in and what it adds there.

Whole blocks at a time. What is left out has a negative pixel: `SKIPPED` was never meant to be in the channel,
`OUTSIDE` and `INVALID` are counted where the collection gives them a reason.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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
from streamer.block import Columns, offsets, readonly

OUTSIDE, INVALID, SKIPPED = -1, -2, -3

DROPPED = ("nan_energy", "bad_detid", "nan_track", "nan_position", "bad_layer", "bad_pixel")
"""Why a hit can be left out; the label values of `streamer_hits_dropped_total`."""

MAX_DZ_CM = 0.1
"""Tracks further from the primary vertex are not part of the impact parameter channels."""

_STRIPS = {"TIB": TIB, "TOB": TOB, "TID": TID, "TEC": TEC}

Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True)
class Entries:
    """What some hits add to a channel.

    Attributes
    ----------
    offsets : int64, shape (n_events + 1,)
        Where each event's hits begin.
    pixel : int32, shape (n,)
        `row * 360 + column`; in HCAL the tower's `row * 72 + column`, and `N_TOWERS` more for a cell whose energy
        belongs to it and to the next column by halves.
    value : float32, shape (n,)
    nan, outside, invalid : str
        The reason of `DROPPED` for values that are not finite and for those pixels; empty: silently left out.
    """

    offsets: npt.NDArray[np.int64]
    pixel: Int32s
    value: npt.NDArray[np.float32]
    nan: str = ""
    outside: str = ""
    invalid: str = ""


class Channels:
    """Makes the entries of the configured channels of one block; what they share is made once.

    Parameters
    ----------
    columns : dict
        As `records.hits` declares them.
    ee_table : int32
        See `stages.detector.ecal.ee_pixel_table`.
    """

    def __init__(self, config: Config, columns: Columns, ee_table: Int32s) -> None:
        self._config, self._columns, self._ee_table = config, columns, ee_table
        self._shared: dict[str, Any] = {}
        self.dropped: dict[str, int] = {}

    def entries(self, channel: str) -> list[Entries]:
        """Where a channel's content comes from."""
        if channel == "ECAL":
            made = [self._rechits("EBRecHit"), self._rechits("EERecHit"), self._towers("emEnergy")]
        elif channel == "HCAL":
            made = [self._rechits("HBHERecHit"), self._towers("hadEnergy")]
        elif channel.startswith("Track"):
            made = [self._tracks(channel)]
        elif channel.startswith("BPIX"):
            made = [self._layer("PixelHit", self._bpix_layers(), int(channel[-1]))]
        else:
            made = [self._layer("StripHit", self._strip_subdets(), _STRIPS[channel])]
        return [entries for entries in (*made, self._image(channel)) if entries.pixel.size]

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._shared:
            self._shared[name] = make()
        return self._shared[name]

    def _column(self, name: str) -> Any:
        return readonly(self._columns[name])

    def _offsets(self, collection: str) -> npt.NDArray[np.int64]:
        made: npt.NDArray[np.int64] = self._once(
            f"n{collection}", lambda: offsets(self._columns[f"n{collection}"]).astype(np.int64, copy=False)
        )
        return made

    def _rechits(self, collection: str) -> Entries:
        detid = self._column(f"{collection}_detid")
        pixels = {
            "EBRecHit": eb_pixels,
            "EERecHit": lambda detid: ee_pixels(detid, readonly(self._ee_table)),
            "HBHERecHit": hcal_towers,
        }[collection](detid)
        energy = self._column(f"{collection}_energy")
        return Entries(self._offsets(collection), pixels, energy, nan="nan_energy", outside="bad_detid")

    def _towers(self, energy: str) -> Entries:
        eta, phi = self._column("Tower_eta"), self._column("Tower_phi")
        pixels = direction_pixels(eta, phi)
        if energy == "hadEnergy":
            with np.errstate(invalid="ignore"):
                pixels = np.where(pixels >= 0, tower_of_direction(eta, phi), pixels)
        value = self._column(f"Tower_{energy}")
        return Entries(self._offsets("Tower"), pixels, value, nan="nan_energy", invalid="nan_position")

    def _image(self, channel: str) -> Entries:
        index, channels = self._column("ImagePixel_index"), self._columns["ImagePixel_channel"]
        self._once("channels", lambda: self._drop("bad_pixel", channels >= len(CHANNELS)))
        most = N_TOWERS if channel == "HCAL" else N_PIXELS
        pixels = np.where((index >= 0) & (index < most), index, np.int32(INVALID))
        pixels = np.where(channels == CHANNELS.index(channel), pixels, np.int32(SKIPPED))
        value = self._column("ImagePixel_value")
        return Entries(self._offsets("ImagePixel"), pixels, value, nan="nan_energy", invalid="bad_pixel")

    def _tracks(self, channel: str) -> Entries:
        pixels = self._once("Track", self._track_pixels)
        value = self._column({"TrackPt": "Track_pt", "TrackD0": "Track_d0", "TrackDz": "Track_dz"}[channel])
        if channel != "TrackPt":
            near = np.abs(self._columns["Track_dz"]) < np.float32(MAX_DZ_CM)
            pixels = np.where(near | (pixels < 0), pixels, np.int32(OUTSIDE))
        return Entries(self._offsets("Track"), pixels, value, nan="nan_track", invalid="nan_track")

    def _track_pixels(self) -> Int32s:
        eta, phi = self._column("Track_eta"), self._column("Track_phi")
        pixels = direction_pixels(eta, phi)
        if self._config.framer.tracks_at == "ecal":
            pt, charge, d0, dz = (self._column(f"Track_{name}") for name in ("pt", "charge", "d0", "dz"))
            vertices = self._vertices()
            at = propagate(pt, eta, phi, charge, d0, dz, self._offsets("Track"), vertices)
            finite = np.isfinite(pt) & np.isfinite(d0) & np.isfinite(dz)
            finite &= np.repeat(np.isfinite(vertices).all(axis=1), self._columns["nTrack"])
            there = np.maximum(direction_pixels(*at), np.int32(OUTSIDE))  # curls up, or meets it beyond the frame
            pixels = np.where(finite, np.where(pixels >= 0, there, pixels), np.int32(INVALID))
        return np.where(self._columns["Track_highPurity"] != 0, pixels, np.int32(SKIPPED))

    def _layer(self, collection: str, layers: Any, layer: int) -> Entries:
        """The hits of one layer, or one subdetector."""
        pixels = self._positions(collection)
        pixels = np.where(layers == layer, pixels, np.int32(SKIPPED))
        one = self._once(f"one {collection}", lambda: np.ones(pixels.size, np.float32))
        return Entries(self._offsets(collection), pixels, one)

    def _positions(self, collection: str) -> Int32s:
        def place() -> Int32s:
            xyz = [self._column(f"{collection}_{axis}") for axis in "xyz"]
            pixels: Int32s = position_pixels(*xyz, self._offsets(collection), self._seen_from())
            self._drop("nan_position", pixels == INVALID)
            return pixels

        made: Int32s = self._once(collection, place)
        return made

    def _seen_from(self) -> npt.NDArray[np.float64]:
        if self._config.framer.hits_from == "vertex":
            return self._vertices()
        return np.zeros((self._columns["event"].size, 3))

    def _vertices(self) -> npt.NDArray[np.float64]:
        made: npt.NDArray[np.float64] = self._once("vertices", lambda: primary_vertices(self._columns))
        return made

    def _bpix_layers(self) -> Any:
        def known() -> Any:
            layers = self._columns["PixelHit_layer"]
            return self._known("PixelHit", layers, (layers >= 1) & (layers <= N_BPIX_LAYERS))

        return self._once("layers", known)

    def _strip_subdets(self) -> Any:
        def known() -> Any:
            subdets, layers = self._columns["StripHit_subdet"], self._columns["StripHit_layer"]
            most = np.zeros(256, np.uint8)
            most[list(N_STRIP_LAYERS)] = list(N_STRIP_LAYERS.values())
            return self._known("StripHit", subdets, (layers >= 1) & (layers <= most[subdets]))

        return self._once("subdets", known)

    def _known(self, collection: str, layers: Any, exist: Any) -> Any:
        """The layers, 0 where there is no such layer."""
        self._drop("bad_layer", ~exist & (self._positions(collection) != INVALID))
        return np.where(exist, layers, np.uint8(0))

    def _drop(self, reason: str, which: Any) -> None:
        self.dropped[reason] = self.dropped.get(reason, 0) + int(np.count_nonzero(which))


def primary_vertices(columns: Columns) -> npt.NDArray[np.float64]:
    """The first vertex of each event [cm], the origin where there is none: float64, shape (n_events, 3)."""
    counts = columns["nPV"]
    out = np.zeros((counts.size, 3))
    found = counts > 0
    first = offsets(counts)[:-1][found]
    for axis, name in enumerate(("PV_x", "PV_y", "PV_z")):
        out[found, axis] = columns[name][first]
    return out
