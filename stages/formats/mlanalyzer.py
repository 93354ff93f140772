"""Dense ntuples of the CMS MLAnalyzer family, as the end-to-end studies train on: whole-detector images as vectors.

`ECAL_energy` and the tracker's images have 280 x 360 entries, row by row from EE- to EE+, with the columns of our frame;
`HBHE_energy` has 56 x 72. The family's forks differ in which images they write and in how the tracker is projected, which
is the end of a branch's name; the first known one is taken. Images of significances (`...D0Sig...`) are not ours.
"""

from collections.abc import Sequence
from itertools import product
from typing import Any, ClassVar

import awkward as ak
import numpy as np

from stages.config import CHANNELS, InputConfig
from stages.detector.grid import N_PIXELS
from stages.detector.hcal import N_TOWERS
from stages.formats.base import Found
from stages.formats.tree import Recipe, TreeFile, same, told
from stages.records import InputColumn

_TRACKS_AT = ("_atECALfixIP", "_atECALfixIPfromPV", "_atECAL", "")
_HITS_FROM = ("_atPV", "")
_N_LAYERS = {"TIB": 4, "TOB": 6, "TID": 3, "TEC": 9}


def _images() -> dict[str, tuple[tuple[str, ...], ...]]:
    """For each channel the sets of branches whose sum it is; the first that is there is taken."""
    out: dict[str, tuple[tuple[str, ...], ...]] = {"ECAL": (("ECAL_energy",),), "HCAL": (("HBHE_energy",),)}
    for channel, name in (("TrackPt", "tracksPt"), ("TrackD0", "tracksD0"), ("TrackDz", "tracksDz")):
        out[channel] = tuple((f"ECAL_{name}{at}",) for at in _TRACKS_AT)
    for layer in range(1, 5):
        out[f"BPIX{layer}"] = tuple((f"BPIX_layer{layer}_ECAL{seen}",) for seen in _HITS_FROM)
    for channel, n_layers in _N_LAYERS.items():
        # Some forks write the first layers alone.
        out[channel] = tuple(
            tuple(f"{channel}_layer{layer}_ECAL{seen}" for layer in range(1, n + 1))
            for n, seen in product(range(n_layers, 0, -1), _HITS_FROM)
        )
    return out


IMAGES = _images()


class MLAnalyzerFile(TreeFile):
    """A tree `fevt/RHTree`."""

    kind = "CMS MLAnalyzer"
    inconsistent = "an image vector is not 280 x 360 long (HBHE_energy: 56 x 72)"
    recipes: ClassVar[dict[str, tuple[Recipe, ...]]] = {
        "run": (same("runId"),),
        "luminosityBlock": (same("lumiId"),),
        "event": (same("eventId"),),
    }

    def __init__(self, found: Found) -> None:
        super().__init__(found)
        own = set(self._own)
        sets = {channel: next((names for names in ways if own.issuperset(names)), ()) for channel, ways in IMAGES.items()}
        self._images = {channel: names for channel, names in sets.items() if names}
        self.images = tuple(channel for channel in CHANNELS if channel in self._images)
        if self.images:
            vectors = told([name for names in self._images.values() for name in names])
            self.names |= {f"ImagePixel_{name}": vectors for name in ("channel", "index", "value")}

    @classmethod
    def tree_name(cls, config: InputConfig) -> str:
        return "fevt/RHTree"

    def own_of(self, columns: Sequence[InputColumn]) -> list[str]:
        own = super().own_of([column for column in columns if column.collection != "ImagePixel"])
        if len(own) < len(columns):
            own += [name for channel in self._wanted() for name in self._images[channel]]
        return list(dict.fromkeys(own))

    def make(self, columns: Sequence[InputColumn], arrays: dict[str, Any]) -> dict[str, Any]:
        made = super().make([column for column in columns if column.collection != "ImagePixel"], arrays)
        if len(made) < len(columns):
            made |= self._sparse({name: arrays[name] for channel in self._wanted() for name in self._images[channel]})
        return made

    def _wanted(self) -> list[str]:
        return [channel for channel in self.images if channel in self.wanted_images]

    def _sparse(self, vectors: dict[str, Any]) -> dict[str, Any]:
        """The non-empty pixels of the wanted images; an event with a vector of another length is made inconsistent."""
        n_events = len(next(iter(vectors.values()))) if vectors else 0
        good = np.ones(n_events, bool)
        for name, array in vectors.items():
            good &= ak.to_numpy(ak.num(array)) == (N_TOWERS if name == "HBHE_energy" else N_PIXELS)
        whole = np.flatnonzero(good)
        parts = []
        for channel in self._wanted():
            dense = sum(ak.to_numpy(ak.flatten(vectors[name][good])).astype(np.float32) for name in self._images[channel])
            event, index = np.nonzero(np.reshape(dense, (whole.size, -1)))
            value = np.reshape(dense, (whole.size, -1))[event, index]
            parts.append((whole[event], np.full(event.size, CHANNELS.index(channel), np.uint8), index, value))
        events, channels, index, value = (np.concatenate([part[k] for part in parts]) for k in range(4))
        order = np.argsort(events, kind="stable")
        counts = np.bincount(events, minlength=n_events)
        spoilt = np.concatenate([channels[order], np.zeros(np.count_nonzero(~good), np.uint8)])
        places = np.argsort(np.concatenate([events[order], np.flatnonzero(~good)]), kind="stable")
        return {
            "ImagePixel_channel": ak.unflatten(spoilt[places], counts + ~good),
            "ImagePixel_index": ak.unflatten(index[order].astype(np.int32), counts),
            "ImagePixel_value": ak.unflatten(value[order], counts),
        }
