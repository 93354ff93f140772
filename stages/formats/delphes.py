"""Trees of the fast simulation Delphes (arXiv:1307.6346), version 3.

Tracks, calorimeter towers or energy-flow objects, photons, jets and vertices, with lengths in mm there and in cm here.
Impact parameters there are relative to the origin; they are moved to the first vertex where there is one. There are no
pixel and strip hits. A tower goes to the pixel that its direction falls in, also where it is larger than that. Energy
flow objects leave the charged energy out of the calorimeters: they are taken only where a file has no towers. Jets are
those that the card makes, whatever their radius.
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
    return 0.0 if array is None else ak.fill_none(ak.firsts(array), 0)


def _joined(*names: str) -> Recipe:
    return Recipe(names, lambda *arrays: ak.concatenate(arrays, axis=1))


def _d0(phi: Any, d0: Any, x: Any, y: Any, vertex_x: Any, vertex_y: Any) -> Any:
    """By the point of closest approach where there is one: some cards store the parameter with another sign."""
    if x is not None and y is not None:
        by_point = x * np.sin(phi) - y * np.cos(phi)
        d0 = ak.where(np.isfinite(by_point), by_point, d0)
    return _CM * (d0 - (_first(vertex_x) * np.sin(phi) - _first(vertex_y) * np.cos(phi)))


def _dz(phi: Any, eta: Any, dz: Any, z: Any, vertex_x: Any, vertex_y: Any, vertex_z: Any) -> Any:
    if z is not None:
        dz = ak.where(np.isfinite(z), z, dz)
    along = _first(vertex_x) * np.cos(phi) + _first(vertex_y) * np.sin(phi)
    with np.errstate(over="ignore", invalid="ignore"):  # eta is 999.9 along the beam, which is outside the frame
        return _CM * (dz - _first(vertex_z) + along * np.sinh(eta))


def _tracks(branch: str) -> dict[str, tuple[Recipe, ...]]:
    phi, eta, x, y, z = (f"{branch}.{name}" for name in ("Phi", "Eta", "Xd", "Yd", "Zd"))
    transverse, all_axes = ("Vertex.X", "Vertex.Y"), ("Vertex.X", "Vertex.Y", "Vertex.Z")
    return {
        "Track_pt": (same(f"{branch}.PT"),),
        "Track_eta": (same(eta),),
        "Track_phi": (same(phi),),
        "Track_charge": (same(f"{branch}.Charge"),),
        "Track_d0": tuple(Recipe((phi, f"{branch}.{name}"), _d0, (x, y, *transverse)) for name in ("D0", "Dxy")),
        "Track_dz": tuple(Recipe((phi, eta, f"{branch}.{name}"), _dz, (z, *all_axes)) for name in ("DZ", "Zd")),
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
    any_radius = True
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
