"""The files that imitate other programs, read back by uproot alone: names, types, and what the values mean."""

import itertools
from pathlib import Path
from typing import Any

import awkward as ak
import foreign_files
import numpy as np
import pytest
import uproot
from foreign_files import Event, write_delphes, write_mlanalyzer

PT, ETA, PHI = [20.0, 1.5, 3.0], [0.5, -2.0, 1.2], [1.0, -2.5, 3.1]
FULL: Event = {
    "event": 7_000_000_001, "Track_pt": PT, "Track_eta": ETA, "Track_phi": PHI, "Track_charge": [1, -1, -1],
    "Track_d0": [0.02, -0.3, 0.0], "Track_dz": [0.05, -4.0, 0.0], "Tower_eta": [0.1, 2.0, -1.0],
    "Tower_phi": [0.2, 3.0, -1.0], "Tower_emEnergy": [5.0, 0.0, 2.0], "Tower_hadEnergy": [0.0, 9.0, 3.0],
    "Photon_pt": [30.0, 12.0], "Photon_eta": [0.3, 2.1], "Photon_phi": [-3.0, 0.0], "Jet_pt": [90.0, 50.0],
    "Jet_eta": [0.4, -2.0], "Jet_phi": [-0.4, 2.0], "FatJet_pt": [300.0], "FatJet_eta": [0.4], "FatJet_phi": [-0.4],
    "PV_x": [0.1, 0.0], "PV_y": [-0.05, 0.0], "PV_z": [3.0, -2.0],
}  # fmt: skip
EMPTY: Event = {"event": 2}

FLOAT, INT = "AsJagged(AsDtype('>f4'))", "AsJagged(AsDtype('>i4'))"
DELPHES_TYPES = {
    "Event.Number": "AsJagged(AsDtype('>i8'))", "Event_size": "AsDtype('>i4')", "Track_size": "AsDtype('>i4')",
    "Track.PID": INT, "Track.Charge": INT, "Tower.NTimeHits": INT, "Jet.BTag": "AsJagged(AsDtype('>u4'))",
    **dict.fromkeys([f"Track.{m}" for m in ("PT", "Eta", "Phi", "EtaOuter", "PhiOuter", "D0", "DZ")], FLOAT),
    **dict.fromkeys([f"Track.{m}" for m in ("X", "Y", "Z", "Xd", "Yd", "Zd")], FLOAT),
    **dict.fromkeys([f"Tower.{m}" for m in ("ET", "Eta", "Phi", "E", "Eem", "Ehad", "T")], FLOAT),
    **dict.fromkeys([f"{c}.{m}" for c in ("Photon", "Jet", "FatJet") for m in ("PT", "Eta", "Phi")], FLOAT),
    **dict.fromkeys(["Vertex.X", "Vertex.Y", "Vertex.Z", "MissingET.MET"], FLOAT),
}  # fmt: skip


def _read(path: Path, tree: str) -> dict[str, Any]:
    with uproot.open(path) as file:
        return dict(file[tree].arrays(how=dict))


# --- Delphes ---


def test_delphes_has_the_published_names_and_types(tmp_path: Path) -> None:
    path = write_delphes(tmp_path / "delphes.root", [FULL, EMPTY])
    with uproot.open(path) as file:
        tree = file["Delphes"]
        assert tree.title == "Analysis tree"
        found = {name: str(tree[name].interpretation) for name in tree.keys()}  # noqa: SIM118 - not a mapping
        assert {name: found[name] for name in DELPHES_TYPES} == DELPHES_TYPES
        assert tree["Track_size"].array().tolist() == [3, 0]
        assert tree["Event.Number"].array().tolist() == [[7_000_000_001], [2]]


def test_delphes_without_objects_keeps_its_types(tmp_path: Path) -> None:
    path = write_delphes(tmp_path / "delphes.root", [EMPTY, EMPTY])
    with uproot.open(path) as file:
        for name, kind in DELPHES_TYPES.items():
            assert str(file["Delphes"][name].interpretation) == kind
        assert ak.to_list(file["Delphes/Tower.Eem"].array()) == [[], []]


@pytest.mark.parametrize(("sign", "points"), list(itertools.product([1, -1], [True, False])))
def test_delphes_measures_impact_from_the_axis_in_millimetres(tmp_path: Path, sign: int, points: bool) -> None:
    t = _read(write_delphes(tmp_path / "delphes.root", [FULL], d0_sign=sign, points=points), "Delphes")
    phi, eta, d0, dz = (ak.to_numpy(t[f"Track.{name}"][0]).astype(float) for name in ("Phi", "Eta", "D0", "DZ"))
    x, y, z = (float(t[f"Vertex.{axis}"][0][0]) for axis in "XYZ")
    assert (x, y, z) == pytest.approx((1.0, -0.5, 30.0))
    # The straight line through the point nearest to the axis, seen from the vertex.
    point = np.stack([sign * d0 * np.sin(phi) - x, -sign * d0 * np.cos(phi) - y, dz - z])
    along = np.stack([np.cos(phi), np.sin(phi), np.sinh(eta)])
    nearest = point - (point[:2] * along[:2]).sum(0) * along
    np.testing.assert_allclose(nearest[0] * np.sin(phi) - nearest[1] * np.cos(phi), [0.2, -3.0, 0.0], atol=1e-4)
    np.testing.assert_allclose(nearest[2], [0.5, -40.0, 0.0], atol=1e-4)
    xd, yd = (ak.to_numpy(t[f"Track.{name}"][0]) for name in ("Xd", "Yd"))
    np.testing.assert_allclose(xd * np.sin(phi) - yd * np.cos(phi), sign * d0 if points else np.nan, atol=1e-5)


def test_delphes_of_the_first_versions_calls_it_dxy(tmp_path: Path) -> None:
    now = _read(write_delphes(tmp_path / "new.root", [FULL]), "Delphes")
    old = _read(write_delphes(tmp_path / "old.root", [FULL], impact="Dxy"), "Delphes")
    assert old["Track.Dxy"].tolist() == now["Track.D0"].tolist()
    assert not {"Track.D0", "Track.DZ"} & set(old)


def test_delphes_splits_energy_between_the_calorimeters(tmp_path: Path) -> None:
    t = _read(write_delphes(tmp_path / "towers.root", [EMPTY, FULL, EMPTY]), "Delphes")
    assert t["Tower_size"].tolist() == [0, 4, 0]
    assert t["Tower.Eem"].tolist()[1] == [5.0, 2.0, 0.0, 0.0]
    assert t["Tower.Ehad"].tolist()[1] == [0.0, 0.0, 9.0, 3.0]
    across = [5 / np.cosh(0.1), 2 / np.cosh(1), 9 / np.cosh(2), 3 / np.cosh(1)]
    assert t["Tower.ET"][1].tolist() == pytest.approx(across)
    flow = _read(write_delphes(tmp_path / "flow.root", [EMPTY, FULL], towers="EFlow", tracks=False), "Delphes")
    assert flow["EFlowPhoton.Eem"].tolist() == [[], [5.0, 2.0]]
    assert flow["EFlowNeutralHadron.Ehad"].tolist() == [[], [9.0, 3.0]]
    assert flow["EFlowTrack.PT"].tolist() == [[], PT]
    assert not {"Tower_size", "Track_size"} & set(flow)


def test_tracks_bend_the_way_of_their_charge_and_loopers_leave_through_an_end() -> None:
    pt, eta = np.array([1e6, 2.0, 2.0, 0.3, 5.0]), np.array([0.5, 0.5, 0.5, 0.5, 2.5])
    charge = np.array([1.0, 1.0, -1.0, 1.0, 0.0])
    found, phi = foreign_files.outer(pt, eta, np.zeros(5), charge)
    np.testing.assert_allclose(found[[0, 4]], [0.5, 2.5], atol=1e-5)
    np.testing.assert_allclose([phi[0], phi[4]], 0, atol=1e-5)
    # On a circle of radius pt / (0.3 B) the chord to the side is 1.29 m.
    assert phi[1] == pytest.approx(-np.arcsin(1.29 * 0.299792458 * 3.8 / (2 * 2.0)))
    assert phi[2] == -phi[1]
    # A whole circle is less than 1.29 m across: it goes round until z is 3 m.
    radius = 0.3 / (0.299792458 * 3.8)
    angle = 3 / np.sinh(0.5) / radius
    x, y = radius * np.sin(angle), radius * (np.cos(angle) - 1)
    assert phi[3] == pytest.approx(np.arctan2(y, x))
    assert found[3] == pytest.approx(np.arcsinh(3 / np.hypot(x, y)))


# --- MLAnalyzer ---


def _event() -> dict[str, Any]:
    rng = np.random.default_rng(5)
    images: dict[str, Any] = {"HCAL": rng.random((56, 72)).astype("f4")}
    for name in ("ECAL", "TrackPt", "TrackD0", "TrackDz", "BPIX1", "BPIX2", "BPIX3", "BPIX4"):
        images[name] = np.zeros((280, 360), "f4")
        images[name].ravel()[rng.integers(0, 100_800, 50)] = rng.random(50)
    images["Tracks"] = np.full((280, 360), 4)
    images["TIB"] = np.zeros((280, 360))
    images["TOB"] = rng.poisson(1e-4, (6, 280, 360))
    return {**FULL, "run": 5, "luminosityBlock": 6, "images": images}


def test_mlanalyzer_has_the_published_names_types_and_lengths(tmp_path: Path) -> None:
    path = write_mlanalyzer(tmp_path / "ml.root", [_event(), _event()], photons=True)
    with uproot.open(path) as file:
        tree = file["fevt/RHTree"]
        assert tree.title == "RecHit tree"
        kinds = {str(tree[n].interpretation) for n in ("ECAL_energy", "HBHE_energy", "jetPt", "SC_iphi", "Vtx_z")}
        assert kinds == {FLOAT}
        assert [str(tree[n].interpretation) for n in ("runId", "lumiId", "eventId")] == [
            "AsDtype('>u4')", "AsDtype('>u4')", "AsDtype('>u8')"
        ]  # fmt: skip
        lengths = {"ECAL_energy": 100_800, "HBHE_energy": 4032, "EB_energy": 61_200, "HBHE_energy_EB": 2448,
                   "ECAL_tracksPt_atECALfixIP": 100_800, "TOB_layer6_ECAL_atPV": 100_800}  # fmt: skip
        assert {n: ak.num(tree[n].array()).tolist() for n in lengths} == {n: [k, k] for n, k in lengths.items()}


def test_mlanalyzer_images_are_rows_of_the_frame(tmp_path: Path) -> None:
    event = _event()
    t = _read(write_mlanalyzer(tmp_path / "ml.root", [event], averaged=True), "fevt/RHTree")
    own = event["images"]
    for name, channel in (("ECAL_energy", "ECAL"), ("HBHE_energy", "HCAL"), ("BPIX_layer3_ECAL_atPV", "BPIX3")):
        assert np.array_equal(ak.to_numpy(t[name][0]), own[channel].ravel())
    assert np.array_equal(ak.to_numpy(t["EB_energy"][0]), own["ECAL"][55:225].ravel())
    count = ak.to_numpy(t["ECAL_tracks_atECALfixIP"][0])
    for theirs, channel in (("D0", "TrackD0"), ("Dz", "TrackDz")):
        mean = ak.to_numpy(t[f"ECAL_tracks{theirs}_atECALfixIP"][0])
        np.testing.assert_allclose(mean * count, own[channel].ravel(), rtol=1e-6)
        assert mean.sum() == pytest.approx(own[channel].sum() / 4, rel=1e-5)
    tob = sum(ak.to_numpy(t[f"TOB_layer{n}_ECAL_atPV"][0]) for n in range(1, 7))
    assert np.array_equal(tob, own["TOB"].sum(0).ravel())


def test_mlanalyzer_forks(tmp_path: Path) -> None:
    event = _event()
    own = event["images"]
    pv = _read(write_mlanalyzer(tmp_path / "pv.root", [event], projection="_PV", hits=""), "fevt/RHTree")
    assert np.array_equal(ak.to_numpy(pv["ECAL_tracksd0_PV"][0]), -own["TrackD0"].ravel())
    assert np.array_equal(ak.to_numpy(pv["ECAL_tracksz0_PV"][0]), own["TrackDz"].ravel())
    shifted = _read(write_mlanalyzer(tmp_path / "s.root", [event], shifted_layers=True, averaged=False), "fevt/RHTree")
    assert not ak.any(shifted["BPIX_layer1_ECAL_atPV"])
    assert np.array_equal(ak.to_numpy(shifted["BPIX_layer5_ECAL_atPV"][0]), own["BPIX4"].ravel())
    assert np.array_equal(ak.to_numpy(shifted["ECAL_tracksDz_atECALfixIP"][0]), own["TrackDz"].ravel())


@pytest.mark.parametrize("style", ["dijet", "tau", "top", "seed"])
def test_mlanalyzer_seeds_are_the_towers_of_the_barrel_jets(tmp_path: Path, style: Any) -> None:
    events = [{"images": {}, **EMPTY}, {**FULL, "images": {}}]
    t = _read(write_mlanalyzer(tmp_path / "ml.root", events, jets=style, photons=True), "fevt/RHTree")
    # eta 0.4 is in the fifth tower from the middle (0.087 each); phi -0.4 is -22.9 degrees, towers start at -10.
    assert t["jetSeed_ieta"].tolist() == [[], [32.0]]
    assert t["jetSeed_iphi"].tolist() == [[], [69.0]]
    name = {"dijet": "jetPt", "tau": "jet_Pt", "top": "jet_Pt", "seed": None}[style]
    assert name is None or t[name].tolist() == [[], [90.0]]
    if style == "tau":
        assert np.arctan2(t["jet_Py"][1], t["jet_Px"][1]).tolist() == pytest.approx([-0.4])
    assert t["pho_pT"].tolist() == [[], [30.0]]
    assert t["SC_ieta"].tolist() == [[], [85 + 17]]
    assert t["nVtx"].tolist() == [0, 2]
    assert t["Vtx_z"].tolist() == [[], [3.0, -2.0]]


def test_columns_of_one_collection_must_agree(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="event 0: the columns of Jet differ in length"):
        write_delphes(tmp_path / "delphes.root", [{"Jet_pt": [1.0], "Jet_eta": []}])
