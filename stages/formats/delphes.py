"""Trees of the fast simulation Delphes (arXiv:1307.6346), version 3.

Tracks, calorimeter towers or energy-flow objects, photons, jets and vertices, with lengths in mm there and in cm here.
Impact parameters there are relative to the origin, with our sign; they are moved to the first vertex where there is
one. There are no pixel and strip hits. A tower goes to the pixel in its middle, also where it is larger than that.
"""

from typing import Any, ClassVar

import awkward as ak
import numpy as np

from stages.config import InputConfig
from stages.formats.tree import Recipe, TreeFile, same

_CM = 0.1


def _constant(value: int, dtype: Any) -> Recipe:
    return Recipe(("Event.Number",), lambda number: np.full(len(number), value, dtype))


def _first(array: Any) -> Any:
    """Each event's first entry, 0 where there is none."""
    return ak.fill_none(ak.firsts(array), 0)


def _joined(*names: str) -> Recipe:
    return Recipe(names, lambda *arrays: ak.concatenate(arrays, axis=1))


def _d0_from_vertex(d0: Any, phi: Any, x: Any, y: Any) -> Any:
    return _CM * (d0 - (_first(x) * np.sin(phi) - _first(y) * np.cos(phi)))


def _dz_from_vertex(dz: Any, phi: Any, eta: Any, x: Any, y: Any, z: Any) -> Any:
    along = _first(x) * np.cos(phi) + _first(y) * np.sin(phi)
    return _CM * (dz - _first(z) + along * np.sinh(eta))


def _tracks(branch: str) -> dict[str, tuple[Recipe, ...]]:
    d0, dz, phi, eta = (f"{branch}.{name}" for name in ("D0", "DZ", "Phi", "Eta"))
    return {
        "Track_pt": (same(f"{branch}.PT"),),
        "Track_eta": (same(eta),),
        "Track_phi": (same(phi),),
        "Track_charge": (same(f"{branch}.Charge"),),
        "Track_d0": (Recipe((d0, phi, "Vertex.X", "Vertex.Y"), _d0_from_vertex), same(d0, _CM)),
        "Track_dz": (
            Recipe((dz, phi, eta, "Vertex.X", "Vertex.Y", "Vertex.Z"), _dz_from_vertex),
            same(dz, _CM),
        ),
    }


def _towers() -> dict[str, tuple[Recipe, ...]]:
    """Calorimeter towers, else what the energy flow leaves of them."""
    names = {"eta": "Eta", "phi": "Phi", "emEnergy": "Eem", "hadEnergy": "Ehad"}
    return {
        f"Tower_{ours}": (same(f"Tower.{own}"), _joined(f"EFlowPhoton.{own}", f"EFlowNeutralHadron.{own}"))
        for ours, own in names.items()
    }


def _candidates() -> dict[str, tuple[Recipe, ...]]:
    names = {"pt": ("PT", "ET"), "eta": ("Eta", "Eta"), "phi": ("Phi", "Phi")}
    return {
        f"PFCand_{ours}": (_joined(f"EFlowTrack.{track}", f"EFlowPhoton.{other}", f"EFlowNeutralHadron.{other}"),)
        for ours, (track, other) in names.items()
    }


def _directions(collection: str) -> dict[str, tuple[Recipe, ...]]:
    return {f"{collection}_{ours}": (same(f"{collection}.{own}"),)
            for ours, own in (("pt", "PT"), ("eta", "Eta"), ("phi", "Phi"))}  # fmt: skip


class DelphesFile(TreeFile):
    """A tree `Delphes`."""

    kind = "Delphes"
    recipes: ClassVar[dict[str, tuple[Recipe, ...]]] = {
        "run": (_constant(1, np.uint32),),
        "luminosityBlock": (_constant(1, np.uint32),),
        "event": (Recipe(("Event.Number",), lambda number: ak.values_astype(_first(number), np.uint64)),),
        **{name: (*ways, *_tracks("EFlowTrack")[name]) for name, ways in _tracks("Track").items()},
        **_towers(),
        **_candidates(),
        **_directions("Photon"),
        **_directions("Jet"),
        **_directions("FatJet"),
        **{f"PV_{axis.lower()}": (same(f"Vertex.{axis}", _CM),) for axis in "XYZ"},
    }

    @classmethod
    def tree_name(cls, config: InputConfig) -> str:
        return "Delphes"
