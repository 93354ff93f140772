"""Dense ntuples of the CMS MLAnalyzer family, as the end-to-end studies train on: whole-detector images as vectors.

`ECAL_energy` and the tracker's images have 280 x 360 entries, which are the pixels of our frame, and `HBHE_energy` the
56 x 72 towers. Forks of the family differ:

- in the projection of tracks and hits, which is the end of a branch's name: the first known one is taken that has all
  three images of tracks. Only the one called `_PV` leaves tracks with |dz| >= 0.1 cm out of d0 and dz; it has d0 with
  the other sign;
- in whether d0 and dz are means over a pixel's tracks: then they are multiplied by the image that counts tracks;
- in the number of the pixel barrel's first layer, which is 2 where there is a layer 5.

Images of significances (`...D0Sig...`) are not ours. Jets are those that the ntuple's task has selected; where a task
left out eta or phi, they are those of the jet's seed tower.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import awkward as ak
import numpy as np

from stages.config import CHANNELS, InputConfig
from stages.detector.layout import EB_FIRST_ROW, N_COLUMNS, N_PIXELS, N_TOWER_COLUMNS, N_TOWERS, TOWER
from stages.formats.base import Found
from stages.formats.tree import Recipe, TreeFile, same, told
from stages.records import InputColumn
from streamer.block import Array

STEP_BYTES = 64 << 20
"""The vectors of so many events are held at a time."""

_STRIP_LAYERS = {"TIB": 4, "TOB": 6, "TID": 3, "TEC": 9}


@dataclass(frozen=True)
class Vectors:
    """The vectors whose sum a channel is.

    Attributes
    ----------
    names : tuple of str
    length : int
        Of each vector.
    first : int
        Pixel or tower of a vector's first entry.
    sign : int
    times : str
        A vector that it is multiplied by, or empty.
    """

    names: tuple[str, ...]
    length: int = N_PIXELS
    first: int = 0
    sign: int = 1
    times: str = ""

    @property
    def own(self) -> tuple[str, ...]:
        """All that is read."""
        return (*self.names, self.times) if self.times else self.names


def _tracks(own: frozenset[str]) -> dict[str, Vectors]:
    """The images of tracks, all of one projection."""
    for end in ("_atECALfixIP", "_atECALfixIPfromPV", "_atECAL", ""):
        names = {f"Track{what}": f"ECAL_tracks{what}{end}" for what in ("Pt", "D0", "Dz")}
        if own.issuperset(names.values()):
            averaged = any(name.startswith("ECAL_tracksD0Sig") or name.endswith("_atECALfixIP") for name in own)
            times = f"ECAL_tracks{end}" if averaged and f"ECAL_tracks{end}" in own else ""
            return {channel: Vectors((name,), times="" if channel == "TrackPt" else times)
                    for channel, name in names.items()}  # fmt: skip
    out = {}
    if own.issuperset({"ECAL_tracksd0_PV", "ECAL_tracksz0_PV"}):
        out = {"TrackD0": Vectors(("ECAL_tracksd0_PV",), sign=-1), "TrackDz": Vectors(("ECAL_tracksz0_PV",))}
    pt = next((f"ECAL_tracksPt{end}" for end in ("", "_atECALfixIP", "_atECAL") if f"ECAL_tracksPt{end}" in own), "")
    return out | ({"TrackPt": Vectors((pt,))} if pt else {})


def _hits(own: frozenset[str]) -> dict[str, Vectors]:
    out: dict[str, tuple[str, ...]] = {}
    seen = "_atPV" if "BPIX_layer1_ECAL_atPV" in own or "TIB_layer1_ECAL_atPV" in own else ""
    shift = 1 if f"BPIX_layer5_ECAL{seen}" in own else 0
    for layer in range(1, 5):
        out[f"BPIX{layer}"] = (f"BPIX_layer{layer + shift}_ECAL{seen}",)
    for channel, n_layers in _STRIP_LAYERS.items():
        layers = (f"{channel}_layer{layer}_ECAL{seen}" for layer in range(1, n_layers + 1))
        out[channel] = tuple(name for name in layers if name in own)
    return {channel: Vectors(names) for channel, names in out.items() if names and own.issuperset(names)}


def vectors_of(own: frozenset[str]) -> dict[str, Vectors]:
    """What the channels are made of in a file with these branches."""
    out = {**_tracks(own), **_hits(own)}
    for channel, ways in {
        "ECAL": (Vectors(("ECAL_energy",)), Vectors(("EB_energy",), 170 * N_COLUMNS, EB_FIRST_ROW * N_COLUMNS)),
        "HCAL": (
            Vectors(("HBHE_energy",), N_TOWERS),
            Vectors(("HBHE_energy_EB",), 34 * N_TOWER_COLUMNS, EB_FIRST_ROW // TOWER * N_TOWER_COLUMNS),
        ),
    }.items():
        way = next((way for way in ways if own.issuperset(way.own)), None)
        if way:
            out[channel] = way
    return {channel: out[channel] for channel in CHANNELS if channel in out}


def _of_seed(member: str) -> Recipe:
    """Eta or phi at the middle of a jet's seed tower."""

    def make(seed: Any) -> Any:
        from stages.detector.grid import eta_of_row, phi_of_column  # which takes a second to import

        of = eta_of_row if member == "ieta" else phi_of_column
        towers = ak.to_numpy(ak.flatten(seed)).round().astype(np.int64)
        return ak.unflatten(of(TOWER * towers + TOWER // 2).astype(np.float32), ak.num(seed))

    return Recipe((f"jetSeed_{member}",), make)


class MLAnalyzerFile(TreeFile):
    """A tree `fevt/RHTree`."""

    kind = "CMS MLAnalyzer"
    any_radius = True
    inconsistent = "vectors of other lengths than those of the images, or jets with and without a seed"
    recipes: ClassVar[dict[str, tuple[Recipe, ...]]] = {
        "run": (same("runId"),),
        "luminosityBlock": (same("lumiId"),),
        "event": (Recipe(("eventId",), lambda number: ak.values_astype(number, np.uint64)),),
        "Jet_pt": (same("jetPt"), same("jet_Pt")),
        "Jet_eta": (same("jetEta"), same("jet_Eta"), _of_seed("ieta")),
        "Jet_phi": (same("jetPhi"), Recipe(("jet_Px", "jet_Py"), lambda x, y: np.arctan2(y, x)), _of_seed("iphi")),
        "Photon_pt": (same("pho_pT"),),
        "Photon_eta": (same("pho_eta"),),
        "Photon_phi": (same("pho_phi"),),
        **{f"PV_{axis}": (same(f"Vtx_{axis}"),) for axis in "xyz"},
    }

    def __init__(self, found: Found) -> None:
        super().__init__(found)
        self._vectors = vectors_of(frozenset(self._own))
        self.images = tuple(self._vectors)
        if self.images:
            vectors = told([name for vectors in self._vectors.values() for name in vectors.own])
            self.names |= {f"ImagePixel_{name}": vectors for name in ("channel", "index", "value")}
        event_bytes = sum(4 * vectors.length * len(vectors.own) for vectors in self._vectors.values())
        most = max(1, STEP_BYTES // max(event_bytes, 1))
        self.config = self.config.model_copy(update={"step_events": min(self.config.step_events, most)})

    @classmethod
    def tree_name(cls, config: InputConfig) -> str:
        return "fevt/RHTree"

    def own_of(self, columns: Sequence[InputColumn]) -> list[str]:
        own = super().own_of([column for column in columns if column.collection != "ImagePixel"])
        if any(column.collection == "ImagePixel" for column in columns):
            own += [name for vectors in self._wanted().values() for name in vectors.own]
        return list(dict.fromkeys(own))

    def make(self, columns: Sequence[InputColumn], arrays: dict[str, Any]) -> dict[str, Any]:
        made = super().make([column for column in columns if column.collection != "ImagePixel"], arrays)
        return made | self._sparse(arrays) if len(made) < len(columns) else made

    def _wanted(self) -> dict[str, Vectors]:
        return {channel: vectors for channel, vectors in self._vectors.items() if channel in self.wanted_images}

    def _sparse(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """The non-empty pixels of the wanted images; an event with a vector of another length is made inconsistent."""
        wanted = self._wanted()
        good = np.logical_and.reduce(
            [ak.to_numpy(ak.num(arrays[name])) == vectors.length for vectors in wanted.values() for name in vectors.own]
        )
        entries = np.flatnonzero(good)
        events, channels, index, value = [], [], [], []
        for channel, vectors in wanted.items():
            image = sum(_dense(arrays[name][good]) for name in vectors.names) * np.float32(vectors.sign)
            if vectors.times:
                image = image * _dense(arrays[vectors.times][good])
            event, place = np.nonzero(image.reshape(entries.size, vectors.length))
            events.append(entries[event])
            channels.append(np.full(event.size, CHANNELS.index(channel), np.uint8))
            index.append((place + vectors.first).astype(np.int32))
            value.append(image.reshape(entries.size, vectors.length)[event, place])
        order = np.argsort(np.concatenate(events), kind="stable")
        counts = np.bincount(np.concatenate(events), minlength=good.size)
        # One entry too many in one of the three columns gives a bad event away.
        with_bad = np.insert(np.concatenate(channels)[order], np.cumsum(counts)[~good], 0)
        return {
            "ImagePixel_channel": ak.unflatten(with_bad, counts + ~good),
            "ImagePixel_index": ak.unflatten(np.concatenate(index)[order], counts),
            "ImagePixel_value": ak.unflatten(np.concatenate(value)[order], counts),
        }


def _dense(vectors: Any) -> Array:
    """The vectors of some events one after the other, float32."""
    return np.asarray(ak.to_numpy(ak.flatten(vectors)), np.float32)
