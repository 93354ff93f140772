"""Files of other programs, written small, with the branch names and types that those programs publish.

Delphes fills one split `TClonesArray` for each collection: the branches `Track.PT`, `Track.Eta`, ... below a branch
`Track`, and `Track_size` beside it. uproot writes the same names at the top of the tree, with the same counter. A
reader that takes the last part of `Track/Track.PT` sees no difference. Fixed-size members (`Tower.Edges[4]`,
`Jet.Tau[5]`) and references (`Tower.Particles`) are left out, for uproot cannot write them.

MLAnalyzer fills `std::vector<float>` branches. uproot writes arrays with a counter (`nECAL_energy`) in their place,
which read back as the same arrays.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import awkward as ak
import numpy as np
import numpy.typing as npt
import uproot

from stages.detector import grid, layout

Array = npt.NDArray[Any]
Event = Mapping[str, Any]
"""Our columns to their values: one number for run, luminosityBlock and event, a list for every other. What is
missing is 0 or empty. Units and signs are ours (GeV, cm, rad)."""

FIELD = 3.8
"""In tesla, of the CMS card."""
RADIUS, HALF_LENGTH = 1.29, 3.0
"""In metres, of the volume that the CMS card propagates tracks in."""

STRIP_LAYERS = {"TIB": 4, "TOB": 6, "TID": 3, "TEC": 9}
MM = 10.0
"""Millimetres to a centimetre."""


# ---- Delphes


def write_delphes(
    path: Path,
    events: Sequence[Event],
    *,
    tracks: bool = True,
    towers: Literal["Tower", "EFlow"] | None = "Tower",
    fat_jets: bool = True,
    vertices: bool = True,
    impact: Literal["D0", "Dxy"] = "D0",
    d0_sign: int = 1,
    points: bool = True,
) -> Path:
    """Write a Delphes file, tree `Delphes`.

    Parameters
    ----------
    path : Path
        The file.
    events : sequence of dict
        Lists under Track_pt, eta, phi, charge, d0, dz; Tower_eta, phi, emEnergy, hadEnergy; Photon_, Jet_ and
        FatJet_pt, eta, phi; PV_x, y, z; and the number `event`. Delphes knows neither runs nor lumisections.
    tracks : bool
        With the collection `Track`.
    towers : {"Tower", "EFlow"} or None
        `Tower` holds all energy, an entry for that in the ECAL and another for that in the HCAL, as the cards with
        two `SimpleCalorimeter` give it (those of the ECAL first). "EFlow" puts the energies in `EFlowPhoton` and
        `EFlowNeutralHadron` instead, and the tracks in `EFlowTrack`, as the cards do that leave `Tower` out.
    fat_jets, vertices : bool
        With `FatJet` and `Vertex`, which not all cards write. Without `Vertex` the impact parameters are still those
        of tracks from the PV of the event.
    impact : {"D0", "Dxy"}
        Name of the impact parameter. The oldest versions call it Dxy, and have no DZ.
    d0_sign : {1, -1}
        -1 as the module `TrackCovariance` defines D0. The points Xd, Yd, Zd do not change.
    points : bool
        False fills Xd, Yd, Zd with nan, as `TrackSmearing` can.

    Returns
    -------
    Path
        The file.
    """
    n = len(events)
    number = np.array([event.get("event", 0) for event in events], "i8")
    collections = {
        "Event": _records(np.ones(n, np.int64), Number=number, ReadTime=np.full(n, 1e-3, "f4"),
                          ProcTime=np.full(n, 1e-2, "f4")),
        "Photon": _photons(events),
        "Jet": _jets(events, "Jet"),
        "MissingET": _records(np.ones(n, np.int64), MET=np.zeros(n, "f4"), Eta=np.zeros(n, "f4"),
                              Phi=np.zeros(n, "f4")),
    }  # fmt: skip
    track = _tracks(events, impact, d0_sign, points)
    if tracks:
        collections["Track"] = track
    if towers == "Tower":
        collections["Tower"] = ak.concatenate([_towers(events, "em"), _towers(events, "had")], axis=1)
    elif towers == "EFlow":
        collections["EFlowTrack"] = track
        collections["EFlowPhoton"] = _towers(events, "em")
        collections["EFlowNeutralHadron"] = _towers(events, "had")
    if fat_jets:
        collections["FatJet"] = _jets(events, "FatJet")
    if vertices:
        counts, pv = _flat(events, "PV", ("x", "y", "z"))
        collections["Vertex"] = _records(
            counts, T=np.zeros(len(pv["x"]), "f4"), X=_f4(pv["x"] * MM), Y=_f4(pv["y"] * MM), Z=_f4(pv["z"] * MM)
        )
    _write(path, "Delphes", "Analysis tree", collections)
    return path


def _tracks(events: Sequence[Event], impact: str, d0_sign: int, points: bool) -> Any:
    counts, t = _flat(events, "Track", ("pt", "eta", "phi", "charge", "d0", "dz"))
    pt, eta, phi, charge = t["pt"], t["eta"], t["phi"], t["charge"]
    pv = np.array([[(event.get(f"PV_{axis}") or [0.0])[0] for axis in "xyz"] for event in events]).reshape(-1, 3)
    x, y, z = MM * np.repeat(pv, counts, axis=0).T
    # From the vertex to the axis of the beam, which Delphes measures from.
    d0 = MM * t["d0"] + x * np.sin(phi) - y * np.cos(phi)
    dz = MM * t["dz"] + z - (x * np.cos(phi) + y * np.sin(phi)) * np.sinh(eta)
    outer_eta, outer_phi = outer(pt, eta, phi, charge)
    known = 1.0 if points else np.nan
    parameters = {"Dxy": _f4(d0)} if impact == "Dxy" else {"D0": _f4(d0_sign * d0), "DZ": _f4(dz)}
    return _records(
        counts, PID=_i4(211 * charge), Charge=_i4(charge), P=_f4(pt * np.cosh(eta)), PT=_f4(pt), Eta=_f4(eta),
        Phi=_f4(phi), CtgTheta=_f4(np.sinh(eta)), EtaOuter=_f4(outer_eta), PhiOuter=_f4(outer_phi), T=_f4(0 * pt),
        X=_f4(d0 * np.sin(phi)), Y=_f4(-d0 * np.cos(phi)), Z=_f4(dz), Xd=_f4(known * d0 * np.sin(phi)),
        Yd=_f4(-known * d0 * np.cos(phi)), Zd=_f4(known * dz), **parameters,
    )  # fmt: skip


def outer(
    pt: Array, eta: Array, phi: Array, charge: Array, field: float = FIELD, radius: float = RADIUS,
    half_length: float = HALF_LENGTH,
) -> tuple[Array, Array]:  # fmt: skip
    """Direction, seen from the origin, of the place where a track from the origin leaves the tracker.

    Parameters
    ----------
    pt, eta, phi, charge : numpy.ndarray
        Of the tracks, in GeV, rad and e.
    field, radius, half_length : float
        In tesla and metres.

    Returns
    -------
    eta, phi : numpy.ndarray
        Phi is in [-pi, pi).
    """
    bend = 0.299792458 * field * np.abs(charge) / (2 * pt)  # half the curvature, per metre
    with np.errstate(divide="ignore", invalid="ignore"):
        side = np.where(bend > 0, np.arcsin(np.minimum(bend * radius, 1.0)) / bend, radius)
        end = half_length / np.abs(np.sinh(eta))
        length = np.where((bend * radius < 1) & (side < end), side, end)  # in the plane; a looper reaches an end
        chord = np.where(bend > 0, np.sin(bend * length) / bend, length)  # negative where it points backwards
    turned = phi - np.sign(charge) * bend * length + np.where(chord < 0, math.pi, 0.0)
    return np.arcsinh(length * np.sinh(eta) / np.abs(chord)), (turned + math.pi) % (2 * math.pi) - math.pi


def _towers(events: Sequence[Event], part: Literal["em", "had"]) -> Any:
    """The towers with energy in one calorimeter, which is all that they hold."""
    counts, t = _flat(events, "Tower", ("eta", "phi", "emEnergy", "hadEnergy"))
    energy = t[f"{part}Energy"]
    kept = energy > 0
    counts = np.array([k.sum() for k in np.split(kept, np.cumsum(counts)[:-1])], np.int64) if len(counts) else counts
    eta, phi, energy = t["eta"][kept], t["phi"][kept], energy[kept]
    em, had = (energy, 0 * energy) if part == "em" else (0 * energy, energy)
    return _records(
        counts, ET=_f4(energy / np.cosh(eta)), Eta=_f4(eta), Phi=_f4(phi), E=_f4(energy), T=_f4(0 * energy),
        NTimeHits=_i4(0 * energy), Eem=_f4(em), Ehad=_f4(had), Etrk=_f4(0 * energy),
    )  # fmt: skip


def _photons(events: Sequence[Event]) -> Any:
    counts, p = _flat(events, "Photon", ("pt", "eta", "phi"))
    return _records(
        counts, PT=_f4(p["pt"]), Eta=_f4(p["eta"]), Phi=_f4(p["phi"]), E=_f4(p["pt"] * np.cosh(p["eta"])),
        T=_f4(0 * p["pt"]), EhadOverEem=_f4(0 * p["pt"]),
    )  # fmt: skip


def _jets(events: Sequence[Event], collection: str) -> Any:
    counts, j = _flat(events, collection, ("pt", "eta", "phi"))
    return _records(
        counts, PT=_f4(j["pt"]), Eta=_f4(j["eta"]), Phi=_f4(j["phi"]), T=_f4(0 * j["pt"]), Mass=_f4(0.1 * j["pt"]),
        BTag=np.zeros(len(j["pt"]), "u4"), Charge=_i4(0 * j["pt"]),
    )  # fmt: skip


# ---- MLAnalyzer


def write_mlanalyzer(
    path: Path,
    events: Sequence[Event],
    *,
    projection: Literal["", "_atECAL", "_atECALfixIP", "_PV"] = "_atECALfixIP",
    hits: Literal["", "_atPV"] = "_atPV",
    jets: Literal["dijet", "tau", "top", "seed"] | None = "dijet",
    photons: bool = False,
    averaged: bool = True,
    shifted_layers: bool = False,
    event_dtype: Literal["u4", "u8", "f4"] = "u8",
) -> Path:
    """Write an ntuple of the MLAnalyzer family, tree `fevt/RHTree`.

    Parameters
    ----------
    path : Path
        The file.
    events : sequence of dict
        run, luminosityBlock, event; Jet_pt, eta, phi; Photon_pt, eta, phi; PV_x, y, z; and `images`, a dict of
        channels to what they hold by our definition: (280, 360), or (56, 72) for HCAL. A strip channel may be
        (layers, 280, 360), otherwise everything is in its first layer. Beside the channels there may be `Tracks`,
        the number of tracks of each pixel (else 1 wherever TrackPt is not 0). All events have the same channels.
    projection : str
        How the file projects tracks, which ends the names of their images. "_PV" stands for the fork that writes
        `ECAL_tracksPt`, `ECAL_tracksd0_PV` (of the other sign) and `ECAL_tracksz0_PV`.
    hits : {"", "_atPV"}
        How it projects the hits of the tracker.
    jets : {"dijet", "tau", "top", "seed"} or None
        The task whose names of the jets' branches it has. All but None have the seed: row and column in the towers,
        here those of the jet's axis. Jets outside the barrel are left out, as they are there.
    photons : bool
        With the photons (those in the barrel) and the branches of their seeds.
    averaged : bool
        The images of d0 and dz hold the mean of a pixel's tracks, as most forks write them, instead of the sum.
        Never so with "_PV".
    shifted_layers : bool
        Layer n of the pixel barrel is stored as n + 1, as one fork does.
    event_dtype : {"u4", "u8", "f4"}
        Type of the event number.

    Returns
    -------
    Path
        The file.
    """
    branches: dict[str, Any] = {
        "eventId": np.array([event.get("event", 0) for event in events], event_dtype),
        "runId": np.array([event.get("run", 0) for event in events], "u4"),
        "lumiId": np.array([event.get("luminosityBlock", 0) for event in events], "u4"),
    }
    dense = [_images(event["images"], projection, hits, averaged, shifted_layers) for event in events]
    for name in dense[0] if dense else ():
        branches[name] = ak.from_regular(np.stack([images[name].ravel() for images in dense]).astype("f4"))
    counts, pv = _flat(events, "PV", ("x", "y", "z"))
    branches["nVtx"] = counts.astype("i4")
    branches.update({f"Vtx_{axis}": ak.unflatten(_f4(pv[axis]), counts) for axis in "xyz"})
    if jets:
        branches.update(_jet_branches(events, jets))
    if photons:
        branches.update(_photon_branches(events))
    _write(path, "fevt/RHTree", "RecHit tree", branches)
    return path


def _images(
    own: Mapping[str, Array], projection: str, hits: str, averaged: bool, shifted_layers: bool
) -> dict[str, Array]:
    out: dict[str, Array] = {}
    if "ECAL" in own:
        out["ECAL_energy"] = own["ECAL"]
        out["EB_energy"] = own["ECAL"][layout.EB_FIRST_ROW : layout.EB_LAST_ROW + 1]
    if "HCAL" in own:
        out["HBHE_energy"] = own["HCAL"]
        out["HBHE_energy_EB"] = own["HCAL"][11:45]
    if "TrackPt" in own:
        count = own.get("Tracks", own["TrackPt"] != 0)
        d0, dz = own["TrackD0"], own["TrackDz"]
        if projection == "_PV":
            out |= {"ECAL_tracksPt": own["TrackPt"], "ECAL_tracksd0_PV": -d0, "ECAL_tracksz0_PV": dz}
        else:
            share = np.maximum(count, 1) if averaged else 1
            images = {"": count, "Pt": own["TrackPt"], "D0": d0 / share, "Dz": dz / share}
            if averaged:  # the forks that average have them
                images |= {"D0Sig": 100 * d0 / share, "DzSig": 100 * dz / share}
            out |= {f"ECAL_tracks{what}{projection}": image for what, image in images.items()}
    empty = np.zeros((layout.N_ROWS, layout.N_COLUMNS))
    if "BPIX1" in own:
        layers = [own.get(f"BPIX{n}", empty) for n in (1, 2, 3, 4)]
        for n, image in enumerate([empty, *layers] if shifted_layers else layers, 1):
            out[f"BPIX_layer{n}_ECAL{hits}"] = image
    for name, n_layers in STRIP_LAYERS.items():
        if name in own:
            given = own[name].reshape(-1, layout.N_ROWS, layout.N_COLUMNS)
            for n in range(n_layers):
                out[f"{name}_layer{n + 1}_ECAL{hits}"] = given[n] if n < len(given) else empty
    return out


def _jet_branches(events: Sequence[Event], style: str) -> dict[str, Any]:
    counts, j = _flat(events, "Jet", ("pt", "eta", "phi"))
    row = grid.row_of_eta(j["eta"]) // 5
    column = grid.column_of_phi(j["phi"]) // 5
    inside = ak.unflatten((row >= 12) & (row <= 43), counts)
    pt, eta, phi = j["pt"], j["eta"], j["phi"]
    mass = 0.1 * pt
    energy = np.sqrt((pt * np.cosh(eta)) ** 2 + mass**2)
    values = {
        "dijet": {"jetPt": pt, "jetM": mass, "jetEta": eta, "jetPhi": phi},
        "tau": {"jet_Pt": pt, "jet_Eta": eta, "jet_Energy": energy, "jet_M": mass, "jet_Px": pt * np.cos(phi),
                "jet_Py": pt * np.sin(phi), "jet_Pz": pt * np.sinh(eta)},
        "top": {"jet_Pt": pt, "jet_Eta": eta, "jet_Energy": energy, "jet_M": mass},
        "seed": {},
    }[style]  # fmt: skip
    values |= {"jetSeed_iphi": column, "jetSeed_ieta": row}
    return {name: ak.unflatten(_f4(value), counts)[inside] for name, value in values.items()}


def _photon_branches(events: Sequence[Event]) -> dict[str, Any]:
    counts, p = _flat(events, "Photon", ("pt", "eta", "phi"))
    row = grid.row_of_eta(p["eta"])
    inside = ak.unflatten((row >= layout.EB_FIRST_ROW) & (row <= layout.EB_LAST_ROW), counts)
    values = {
        "pho_pT": p["pt"], "pho_E": p["pt"] * np.cosh(p["eta"]), "pho_eta": p["eta"], "pho_phi": p["phi"],
        "SC_iphi": grid.column_of_phi(p["phi"]), "SC_ieta": row - layout.EB_FIRST_ROW,
    }  # fmt: skip
    return {name: ak.unflatten(_f4(value), counts)[inside] for name, value in values.items()}


# ---- both


def _flat(events: Sequence[Event], collection: str, names: Sequence[str]) -> tuple[Array, dict[str, Array]]:
    """Rows an event, and columns of all events one after the other; a column that an event lacks is 0."""
    counts = np.zeros(len(events), np.int64)
    columns: dict[str, list[Any]] = {name: [] for name in names}
    for i, event in enumerate(events):
        given = {name: event[f"{collection}_{name}"] for name in names if f"{collection}_{name}" in event}
        lengths = {len(values) for values in given.values()}
        if len(lengths) > 1:
            raise ValueError(f"event {i}: the columns of {collection} differ in length")
        counts[i] = next(iter(lengths), 0)
        for name in names:
            columns[name].extend(given.get(name, [0] * counts[i]))
    return counts, {name: np.array(values, np.float64) for name, values in columns.items()}


def _f4(values: Any) -> Array:
    return np.asarray(values, np.float32)


def _i4(values: Any) -> Array:
    return np.asarray(values, np.int32)


def _records(counts: Array, **members: Array) -> Any:
    return ak.unflatten(ak.Array(members), counts)


def _write(path: Path, name: str, title: str, branches: Mapping[str, Any]) -> None:
    arrays = {branch: ak.Array(values) for branch, values in branches.items()}
    records = name == "Delphes"
    with uproot.recreate(path) as file:
        tree = file.mktree(
            name,
            {branch: array.type.content for branch, array in arrays.items()},
            title=title,
            field_name=lambda outer, inner: f"{outer}.{inner}" if outer else inner,
            counter_name=lambda branch: f"{branch}_size" if records else f"n{branch}",
        )
        tree.extend(arrays)
