"""The plain-loop reference itself: cases worked out by hand, the published geometry, and real hits and tracks."""

import gzip
import json
import re
import zipfile
from collections import Counter
from itertools import pairwise
from math import asin, asinh, atan2, cos, hypot, inf, nan, pi, radians, sin, sinh
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import reference_detector as reference
from reference_chain import column_of
from reference_detector import eb_id, ee_id, hcal_id

DATA = Path(__file__).parents[2] / "shared" / "cms-open-data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the published CMS events and geometry are not at {DATA}")


def made(**collections: list[tuple[Any, ...]]) -> reference.Event:
    """An event from rows."""
    event: reference.Event = {}
    for name, rows in collections.items():
        for place, member in enumerate(reference.COLLECTIONS[name]):
            event[f"{name}_{member}"] = [row[place] for row in rows]
    return event


def ee_cell(detid: int) -> tuple[float, float] | None:
    """A flat endcap without lens or tilt; none of its cells is too far in or out."""
    x, y = (detid >> 7 & 0x7F) - 50.5, (detid & 0x7F) - 50.5
    if not 11.5 < hypot(x, y) < 50:
        return None
    return asinh(317 / (2.8 * hypot(x, y))) * (1 if detid & 0x4000 else -1), atan2(y, x)


def frame(event: reference.Event, **options: str) -> tuple[dict[str, dict[Any, float]], dict[str, int]]:
    """What is not zero in each image, and what was dropped for a reason."""
    images, dropped = reference.frame(event, ee_cell=ee_cell, **options)
    found = {
        name: {(int(y), int(x)): float(image[y, x]) for y, x in zip(*image.nonzero(), strict=True)}
        for name, image in images.items()
        if image.any()
    }
    return found, {reason: n for reason, n in dropped.items() if n}


# ---- places


@pytest.mark.parametrize(
    ("eta", "row", "tower"),
    [
        *[
            (0.0, 140, 28),
            (-0.001, 139, 27),
            (0.01746, 141, 28),
            (0.0871, 144, 29),
            (1.395, 219, 44),
            (1.4789, 224, 44),
        ],
        *[(1.4791, 225, 45), (-1.4791, 54, 10), (2.66, 275, 55), (2.99, 279, 55), (3.0, 279, 55), (-3.0, 0, 0)],
    ],
)
def test_rows_and_towers_of_directions(eta: float, row: int, tower: int) -> None:
    assert reference.pixel_of(eta, 0.001) == (row, 10)
    assert reference.tower_of(eta, 0.001) == (tower, 2)


@pytest.mark.parametrize("eta", [3.0001, -3.0001, inf, -inf, nan])
def test_beyond_three_there_is_nothing(eta: float) -> None:
    assert reference.pixel_of(eta, 0.0) is None
    assert reference.tower_of(eta, 0.0) is None


# ---- calorimeters


def test_ecal_hits_add_up_in_their_pixels() -> None:
    event = made(
        EBRecHit=[
            (eb_id(1, 1), 2.0),
            (eb_id(-85, 360), 3.0),
            (eb_id(1, 1), 0.5),
            (eb_id(2, 2), -1.0),
            (eb_id(2, 2), 0.0),
        ],
        EERecHit=[(ee_id(100, 50, 1), 4.0), (ee_id(100, 50, 1), 1.0), (ee_id(100, 50, -1), 8.0)],
    )
    # ix 100, iy 50 is at eta asinh(317 / 138.6) = 1.5651, the last bin of the first tower, and at -0.58 degrees
    assert frame(event) == ({"ECAL": {(140, 0): 2.5, (55, 359): 3.0, (229, 9): 5.0, (50, 9): 8.0}}, {})


@pytest.mark.parametrize("run2", [False, True])
def test_hcal_cells_in_their_towers(run2: bool) -> None:
    cells = [(1, 1, 1), (1, 1, 2), (-1, 72, 1), (16, 70, 3), (-20, 36, 1), (21, 71, 1), (-29, 35, 2), (28, 1, 1)]
    hits = [(hcal_id(ieta, iphi, depth, run2=run2), float(2**k)) for k, (ieta, iphi, depth) in enumerate(cells)]
    hits += [(hcal_id(16, 70, subdetector=2, run2=run2), 0.5), (hcal_id(29, 1, run2=run2), 256.0)]
    images, dropped = frame(made(HBHERecHit=hits))
    towers = {(28, 2): 3.0, (27, 1): 4.0, (43, 71): 8.5, (8, 37): 16.0}
    towers |= {(48, 0): 16.0, (48, 1): 16.0, (0, 36): 32.0, (0, 37): 32.0, (55, 2): 192.0, (55, 3): 192.0}
    assert images["HCALTowers"] == towers
    assert len(images["HCAL"]) == 25 * len(towers)
    for (row, column), energy in towers.items():
        for y, x in ((0, 0), (4, 4), (2, 3)):
            assert images["HCAL"][5 * row + y, 5 * column + x] == energy / 25
    assert dropped == {}


def test_towers_give_each_energy_to_its_calorimeter() -> None:
    event = made(Tower=[(0.01, 0.0, 2.0, 25.0), (2.7, 3.14, 4.0, -1.0), (3.2, 0.0, 1.0, 1.0), (3.2, 0.0, 1.0, nan)])
    images, dropped = frame(event)
    assert images["ECAL"] == {(140, 10): 2.0, (225 + 50, 189): 4.0}
    assert images["HCALTowers"] == {(28, 2): 25.0}
    assert set(images["HCAL"].values()) == {1.0}
    assert dropped == {"nan_energy": 1}


HB, HE = hcal_id(3, 3), hcal_id(20, 3)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (made(EBRecHit=[(eb_id(1, 1), nan)]), "nan_energy"),
        (made(EERecHit=[(ee_id(50, 20, 1), inf)]), "nan_energy"),
        (made(HBHERecHit=[(HB, -inf)]), "nan_energy"),
        (made(HBHERecHit=[(0, nan)]), "nan_energy"),
        (made(Tower=[(0.1, 0.1, nan, 0.0)]), "nan_energy"),
        (made(Tower=[(0.1, 0.1, 0.0, inf)]), "nan_energy"),
        *[(made(EBRecHit=[(detid, 3.0)]), "bad_detid") for detid in (*reference.BAD_EB, HB)],
        *[(made(EERecHit=[(detid, 3.0)]), "bad_detid") for detid in (*reference.BAD_EE, eb_id(1, 1), HE)],
        *[(made(HBHERecHit=[(detid, 3.0)]), "bad_detid") for detid in (0, 0xFFFFFFFF, eb_id(3, 3))],
        *[
            (made(HBHERecHit=[(hcal_id(ieta, iphi, subdetector=part, run2=run2), 3.0)]), "bad_detid")
            for run2 in (False, True)
            for ieta, iphi, part in [
                *[(0, 3, 1), (17, 3, 1), (15, 3, 2), (30, 3, 2), (-30, 3, 2), (3, 3, 3), (29, 3, 4)],
                *[(3, 0, 1), (3, 73, 1), (21, 4, 2), (-29, 72, 2)],
            ]
        ],
        (made(HBHERecHit=[(0, -3.0)]), "bad_detid"),
        *[(made(PixelHit=[(9.0, 9.0, 9.0, layer)]), "bad_layer") for layer in (0, 5, -1)],
        *[(made(StripHit=[(9.0, 9.0, 9.0, *layer)]), "bad_layer") for layer in reference.BAD_LAYERS["StripHit"]],
        (made(PixelHit=[(9.0, nan, 9.0, 1)]), "nan_position"),
        (made(PixelHit=[(9.0, 9.0, inf, 7)]), "nan_position"),
        (made(StripHit=[(-inf, 9.0, 9.0, 3, 1)]), "nan_position"),
    ],
)
def test_a_hit_is_dropped_for_its_reason(event: reference.Event, reason: str) -> None:
    assert frame(event) == ({}, {reason: 1})


# ---- tracker


def test_hits_are_counted_where_they_are_seen() -> None:
    hits = [(3.0, 0.01, 0.01, 1), (3.0, 0.01, 0.01, 1), (3.0, 0.01, 0.01, 4), (0.0, 0.0, 5.0, 2), (1.0, 0.0, 20.0, 3)]
    strips = [(50.0, 0.01, 0.01, 3, 4), (50.0, 0.01, 0.01, 4, 3), (50.0, 0.01, 0.01, 5, 6), (50.0, 0.01, 0.01, 6, 9)]
    seen, dropped = frame(made(PixelHit=hits, StripHit=strips, PV=[(2.0, 0.0, -1.0), (7.0, 7.0, 7.0)]))
    here = (140, 10)
    assert seen == {
        "BPIX1": {here: 2},
        "BPIX4": {here: 1},
        **{name: {here: 1} for name in ("TIB", "TID", "TOB", "TEC")},
    }
    assert dropped == {}
    seen, dropped = frame(
        made(PixelHit=[(3.0, 0.01, -0.99, 1), (2.0, 0.0, 5.0, 2)], PV=[(2.0, 0.0, -1.0)]), hits_from="vertex"
    )
    assert (seen, dropped) == ({"BPIX1": {here: 1}}, {})
    nowhere = made(PixelHit=[(3.0, 0.01, 0.01, 1)])
    assert frame(nowhere, hits_from="vertex") == frame(nowhere)


def test_tracks_in_their_direction() -> None:
    tracks: list[tuple[Any, ...]] = [
        *[
            (2.0, 0.01, 0.01, 1, 0.25, 0.0625, 1),
            (4.0, 0.01, 0.01, -1, -0.5, 0.5, 1),
            (1.0, 0.01, 0.01, 1, 1.0, -0.03125, 1),
        ],
        *[(8.0, 0.01, 0.01, 1, 1.0, 0.0, 0), (1.0, 3.0, 0.01, 1, 1.0, 0.1, 1), (1.0, -3.01, 0.01, 1, 1.0, 0.0, 1)],
    ]
    images, dropped = frame(made(Track=tracks))
    assert images == {
        "TrackPt": {(140, 10): 7.0, (279, 10): 1.0},
        "TrackD0": {(140, 10): 1.25},
        "TrackDz": {(140, 10): 0.03125},
    }
    assert dropped == {}


@pytest.mark.parametrize(
    ("track", "n_direction", "n_ecal"),
    [
        ((nan, 0.1, 0.1, 1, 0.01, 0.01, 1), 1, 3),
        ((1.0, nan, 0.1, 1, 0.01, 0.01, 1), 3, 3),
        ((1.0, 0.1, inf, 1, 0.01, 0.5, 1), 3, 3),
        ((1.0, 0.1, 0.1, 1, -inf, 0.01, 1), 1, 3),
        ((1.0, 0.1, 0.1, 1, 0.01, nan, 1), 1, 3),
        ((nan, nan, nan, 1, nan, nan, 1), 3, 3),
        ((nan, nan, nan, 1, nan, nan, 0), 0, 0),
    ],
)
def test_a_track_is_dropped_from_each_channel_it_spoils(track: tuple[Any, ...], n_direction: int, n_ecal: int) -> None:
    for where, n in (("direction", n_direction), ("ecal", n_ecal)):
        images, dropped = frame(made(Track=[track]), tracks_at=where)
        assert dropped == ({"nan_track": n} if n else {})
        assert len(images) <= 3 - n


def test_tracks_are_good_where_the_input_does_not_say() -> None:
    event = made(Track=[(2.0, 0.01, 0.01, 1, 0.25, 0.0625, 0)])
    assert frame(event) == ({}, {})
    del event["Track_highPurity"]
    assert frame(event)[0]["TrackPt"] == {(140, 10): 2.0}


@pytest.mark.parametrize("charge", [1, -1])
@pytest.mark.parametrize(
    ("pt", "eta"), [(0.8, 0.3), (1.5, -0.9), (40.0, 1.2), (0.3, 0.4), (0.5, -2.0), (3.0, 1.7), (20.0, 2.9)]
)
def test_a_helix_from_the_origin_ends_where_the_formula_says(pt: float, eta: float, charge: int) -> None:
    radius, phi = pt / (0.3 * 3.8), 2.5
    to_endcap = 3.17 / abs(sinh(eta))
    to_barrel = 2 * radius * asin(1.29 / (2 * radius)) if 2 * radius > 1.29 else inf
    way = min(to_endcap, to_barrel)
    far = 2 * radius * abs(sin(way / (2 * radius)))
    turned = way / (2 * radius) % (2 * pi)
    found = reference.ecal_position(pt, eta, phi, charge, 0.0, 0.0)
    assert found is not None
    assert found[0] == pytest.approx(asinh(way * sinh(eta) / far), abs=1e-9)
    expected = phi - charge * turned + (pi if sin(turned) < 0 else 0)
    assert cos(found[1] - expected) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize(
    ("phi", "x", "y"),
    [(pi / 2, 0.3, 1.254631), (0.0, 1.254631, -0.3), (pi, -1.286118, 0.1), (-pi / 2, -0.1, -1.286118)],
)
def test_a_helix_starts_beside_the_vertex(phi: float, x: float, y: float) -> None:
    """A straight track, 20 cm beside the vertex (10, -10, 30) cm: d0 > 0 is to the right of the way."""
    found = reference.ecal_position(1e6, 0.0, phi, 1, 20.0, 5.0, (10.0, -10.0, 30.0))
    assert found == pytest.approx((asinh(0.35 / 1.29), atan2(y, x)), abs=1e-5)


def test_neutral_and_unending_tracks() -> None:
    assert reference.ecal_position(0.3, 0.5, 1.0, 0, 0.0, 0.0) == pytest.approx((0.5, 1.0))
    assert reference.ecal_position(0.3, 0.0, 1.0, 1, 0.0, 0.0) is None
    assert reference.ecal_position(0.7, 0.0, 1.0, 1, 0.0, 0.0) is None  # 2 R = 1.23 m
    assert reference.ecal_position(0.74, 0.0, 1.0, 1, 0.0, 0.0) is not None
    images, dropped = frame(made(Track=[(0.3, 0.0, 1.0, 1, 0.0, 0.0, 1)]), tracks_at="ecal")
    assert (images, dropped) == ({}, {})


# ---- seeds and crops


@pytest.mark.parametrize(
    ("energies", "seed"),
    [
        ({(140, 4): 1.0, (135, 5): 2.0, (145, 359): 3.0}, (145, 359)),
        ({(140, 359): 3.0, (140, 4): 3.0, (141, 0): 3.0}, (140, 4)),
        ({(134, 0): 3.0, (146, 0): 3.0, (140, 6): 3.0, (140, 354): 3.0}, None),
        ({(140, 0): -1.0}, None),
    ],
)
def test_seed_of_a_photon_at_the_seam(energies: dict[Any, float], seed: Any) -> None:
    image = np.zeros((280, 360))
    for pixel, energy in energies.items():
        image[pixel] = energy
    assert reference.photon_seed(image, 0.01, radians(-9.5)) == seed
    assert reference.photon_seed(image, 0.01, radians(-9.5), eb_id(-3, 7)) == (137, 6)
    assert reference.photon_seed(image, nan, nan, eb_id(-3, 7)) == (137, 6)
    assert reference.photon_seed(image, 0.01, radians(-9.5), ee_id(50, 20, 1)) == seed
    assert reference.photon_seed(image, nan, 0.0) is None


def test_a_photon_seed_is_in_the_barrel() -> None:
    image = np.zeros((280, 360))
    image[225, 10], image[224, 10], image[54, 10] = 9.0, 1.0, 9.0
    assert reference.photon_seed(image, 1.43, 0.01) == (224, 10)
    assert reference.photon_seed(image, -1.43, 0.01) is None


@pytest.mark.parametrize(
    ("energies", "seed"),
    [
        ({(28, 71): 3.0, (31, 5): 4.0, (32, 2): 9.0, (28, 6): 9.0}, (157, 27)),
        ({(30, 71): 3.0, (30, 0): 3.0, (29, 5): 3.0}, (147, 27)),
        ({(30, 71): 3.0, (30, 0): 3.0}, (152, 2)),
        ({(28, 70): 9.0, (24, 2): 9.0}, None),
        ({(28, 2): -3.0, (28, 3): 0.0}, None),
    ],
)
def test_seed_of_a_jet_at_the_seam(energies: dict[Any, float], seed: Any) -> None:
    """The jet points to the tower (28, 2)."""
    towers = np.zeros((56, 72))
    for tower, energy in energies.items():
        towers[tower] = energy
    assert reference.jet_seed(towers, 0.03, 0.01) == seed


def test_a_jet_whose_largest_tower_is_not_in_the_barrel_has_no_seed() -> None:
    towers = np.zeros((56, 72))
    towers[43, 2], towers[12, 2] = 1.0, 1.0
    assert reference.jet_seed(towers, 1.45, 0.01) == (217, 12)
    assert reference.jet_seed(towers, -1.45, 0.01) == (62, 12)
    towers[44, 2], towers[11, 2] = 2.0, 2.0
    assert reference.jet_seed(towers, 1.45, 0.01) is None
    assert reference.jet_seed(towers, -1.45, 0.01) is None
    towers[55, 2] = 5.0
    assert reference.jet_seed(towers, 2.99, 0.01) is None
    for eta, phi in ((3.01, 0.0), (-3.01, 0.0), (nan, 0.0), (inf, 0.0), (0.5, nan), (0.5, inf)):
        assert reference.jet_seed(np.ones((56, 72)), eta, phi) is None


def test_what_is_selected() -> None:
    at, below, above = reference.around(2.4)
    assert [reference.selected(50.0, eta, 35.0, 2.4) for eta in (at, -at, below, -below, above)] == [
        *(False, False, True, True, False)
    ]
    assert not reference.selected(35.0, 0.0, 35.0, 2.4)
    assert reference.selected(reference.around(35.0)[2], 0.0, 35.0, 2.4)
    assert not reference.selected(nan, 0.0, 35.0, 2.4)
    assert not reference.selected(50.0, nan, 35.0, 2.4)


def test_a_crop_wraps_in_phi_and_ends_in_eta() -> None:
    image = np.arange(1.0, 280 * 360 + 1).reshape(280, 360)
    cut = reference.crop(image, (62, 2), 128)
    assert cut[63, 63] == image[62, 2]
    assert cut[63, 60] == image[62, 359]
    assert not cut[0].any()  # row -1
    np.testing.assert_array_equal(cut[1], image[0, np.arange(-61, 67) % 360])
    np.testing.assert_array_equal(cut[127], image[126, np.arange(-61, 67) % 360])
    cut = reference.crop(np.stack([image, -image]), (217, 200), 128)
    assert cut.shape == (2, 128, 128)
    assert not cut[:, 126:].any()
    np.testing.assert_array_equal(cut[:, 125], [image[279, 137:265], -image[279, 137:265]])
    with pytest.raises(ValueError, match="must be even"):
        reference.crop(image, (62, 2), 125)


# ---- the linear network


@pytest.mark.parametrize("shape", [(1, 32, 32), (8, 128, 128), (13, 280, 360)])
def test_the_network_is_the_weighted_sum(shape: tuple[int, int, int], tmp_path: Path) -> None:
    weights = reference.linear_model(tmp_path / "linear.onnx", *shape, seed=3)
    assert weights.shape == shape
    assert np.unique(weights).size == weights.size
    assert (tmp_path / "linear.onnx").stat().st_size < 5000
    onnx.checker.check_model(onnx.load(tmp_path / "linear.onnx"))
    rng = np.random.default_rng(0)
    session = ort.InferenceSession(tmp_path / "linear.onnx", providers=["CPUExecutionProvider"])
    for n in (1, 3):
        crops = (rng.exponential(3.0, (n, *shape)) * (rng.random((n, *shape)) < 100 / weights.size)).astype(np.float32)
        (scores,) = session.run(None, {"crops": crops})
        assert scores.shape == (n, 1)
        assert scores.dtype == np.float32
        expected = [reference.linear_score(weights, cut.astype(np.float64)) for cut in crops]
        np.testing.assert_allclose(scores[:, 0], expected, rtol=0, atol=2e-6)
        assert 0.01 < np.abs(expected).max() < 10


# ---- made-up events


@pytest.fixture(scope="module")
def events() -> list[reference.Event]:
    return reference.random_events(np.random.default_rng(5), 100)


def test_random_events_are_float32_and_come_again(events: list[reference.Event]) -> None:
    for event in events:
        for name, values in event.items():
            for value in values if isinstance(values, list) else [values]:
                assert type(value) in (int, float), (name, value)
                assert isinstance(value, int) or value != value or float(np.float32(value)) == value, (name, value)
    np.testing.assert_equal(reference.random_events(np.random.default_rng(5), 100), events)


def test_random_events_hold_what_they_are_for(events: list[reference.Event]) -> None:
    """Else a comparison on them would prove little."""
    found = Counter[str]()
    for event in events:
        found["empty"] += not any(values for name, values in event.items() if isinstance(values, list))
        found["no vertex"] += not event["PV_x"] and bool(event["Jet_pt"])
        found["many hits"] += max(Counter(d & 0x1FF for d in event["EBRecHit_detid"]).values(), default=0) >= 20_000
        images, dropped = reference.frame(event, ee_cell=ee_cell)
        vertex_images, _ = reference.frame(event, ee_cell=ee_cell, hits_from="vertex")
        found.update(dropped)
        found.update(name for name, image in images.items() if image.any())
        found["another pixel from the vertex"] += (images["BPIX1"] != vertex_images["BPIX1"]).any()
        for detid, energy in reference.rows_of(event, "HBHERecHit"):
            if energy > 0 and (places := reference.hcal_towers(detid)):
                ring = detid >> 10 & 0x1FF if detid & 0x1000000 else detid >> 7 & 0x3F
                found["run 2" if detid & 0x1000000 else "run 1"] += 1
                found[f"ring {ring}"] += 1
                found["split at the seam"] += len(places) == 2 and places[0][1] == 0
        for pt, eta, phi, charge, d0, dz, _ in reference.rows_of(event, "Track"):
            found["eta 3"] += abs(eta) == 3.0
            found["dz at its limit"] += abs(dz) == reference.around(0.1)[0]
            found["dz just inside"] += abs(dz) == reference.around(0.1)[1]
            if np.isfinite([pt, eta, phi, d0, dz]).all() and charge and pt < 0.7:
                found["looper"] += reference.ecal_position(pt, eta, phi, charge, d0, dz) is not None
                found["endless"] += eta == 0
        count_seeds(found, event, images)
    wanted = [
        *reference.REASONS,
        *reference.CHANNELS,
        *(f"ring {ring}" for ring in range(1, 30)),
        *("empty", "no vertex", "many hits", "another pixel from the vertex", "run 1", "run 2", "split at the seam"),
        *("eta 3", "dz at its limit", "dz just inside", "looper", "endless"),
        *("photon seed", "photon tie", "photon without a seed", "photon crop over the seam"),
        *("jet seed", "jet tie", "jet without a seed", "jet crop over the seam", "jet crop over the end"),
        *("jet at the end", "jet outside", "jet without a direction"),
    ]
    assert [what for what in wanted if not found[what]] == []


def count_seeds(found: Counter[str], event: reference.Event, images: dict[str, reference.Image]) -> None:
    for pt, eta, phi, detid in reference.rows_of(event, "Photon"):
        if reference.selected(pt, eta, 10.0, 1.44):
            seed = reference.photon_seed(images["ECAL"], eta, phi, detid)
            found["photon seed" if seed else "photon without a seed"] += 1
            if seed:
                found["photon tie"] += int(np.count_nonzero(images["ECAL"] == images["ECAL"][seed]) > 1)
                found["photon crop over the seam"] += not 15 <= seed[1] <= 343
    towers = images["HCALTowers"]
    for pt, eta, phi in reference.rows_of(event, "Jet"):
        found["jet without a direction"] += not np.isfinite([eta, phi]).all()
        found["jet outside"] += abs(eta) > 3
        place = reference.tower_of(eta, phi) if np.isfinite([eta, phi]).all() else None
        found["jet at the end"] += place is not None and place[0] in (0, 55)
        if reference.selected(pt, eta, 35.0, 2.4):
            seed = reference.jet_seed(towers, eta, phi)
            found["jet seed" if seed else "jet without a seed"] += 1
            if seed:
                found["jet tie"] += int(np.count_nonzero(towers == towers[seed[0] // 5, seed[1] // 5]) > 1)
                found["jet crop over the seam"] += not 63 <= seed[1] <= 295
                found["jet crop over the end"] += not 63 <= seed[0] <= 215


# ---- the published geometry and real events


def published(name: str) -> list[tuple[int, Any]]:
    """Detid and corners [m] of each cell."""
    with gzip.open(DATA / "geometry" / name) as file:
        rows = [row for rows in json.load(file)["Collections"].values() for row in rows]
    return [(row[0], np.array(row[1:])) for row in rows]


@needs_data
def test_every_published_hcal_cell_is_in_the_towers_it_covers() -> None:
    """Towers by the corners. A two-tower cell's centre lies between its towers, so its halves are looked at.

    Two things do not follow from the corners: the third depth of |ieta| 28 covers both 28 and 29, which one tower
    holds anyway; and the rows of a barrel tower's pixels are ECAL rows, which are up to 0.004 off its edges in eta.
    """
    cells = published("hb.json.gz") + published("hehf.json.gz")
    seen: Counter[tuple[int, int]] = Counter()
    for detid, corners in cells:
        towers = reference.hcal_towers(detid)
        if detid >> 25 & 7 == 4:
            assert towers == []  # HF
            continue
        x, y, z = corners.T
        eta, side = np.abs(np.arcsinh(z / np.hypot(x, y))), np.sign(z.sum())
        towers_by_eta = {
            reference.tower_of(side * (eta.min() + (eta.max() - eta.min()) * t), 0.0) for t in (0.01, 0.99)
        }
        assert {row for row, _ in towers} == {place[0] for place in towers_by_eta if place}
        middle = atan2(y.sum(), x.sum())
        phi = (np.arctan2(y, x) - middle + pi) % (2 * pi) - pi
        columns = [column_of(middle + t * phi.max()) // 5 for t in (-0.99, -0.01, 0.01, 0.99)]
        assert [column for _, column in towers] == list(dict.fromkeys(columns))
        assert phi.max() == pytest.approx(radians(2.5 * len(towers)), abs=1e-4)
        low, high = reference.TOWER_EDGES[ring_of(detid) - 1], reference.TOWER_EDGES[ring_of(detid)]
        assert low - 1e-4 < eta.min()
        assert eta.max() < high + 1e-4
        seen.update(towers)
        run2 = hcal_id(
            (1 if side > 0 else -1) * (detid >> 7 & 0x3F), detid & 0x7F, subdetector=detid >> 25 & 7, run2=True
        )
        assert reference.hcal_towers(run2) == towers
    assert len(seen) == 56 * 72


def ring_of(detid: int) -> int:
    return min(detid >> 7 & 0x3F, 28)


@needs_data
def test_the_tower_edges_are_the_published_ones() -> None:
    first: dict[int, float] = {}
    for detid, corners in published("hb.json.gz") + published("hehf.json.gz"):
        x, y, z = corners.T
        if detid >> 25 & 7 != 4:
            eta = float(np.abs(np.arcsinh(z / np.hypot(x, y))).min())
            first[ring_of(detid)] = min(first.get(ring_of(detid), inf), eta)
    edges = [first[ring] for ring in range(1, 29)]
    np.testing.assert_allclose(edges, reference.TOWER_EDGES[:28], atol=1e-4)
    assert all(low < high for low, high in pairwise(reference.TOWER_EDGES))


@pytest.fixture(scope="module")
def real() -> list[dict[str, Any]]:
    """The events of one trigger as they are in the archive."""
    found = []
    with zipfile.ZipFile(DATA / "BJetPlusX_Run2012C_0.ig") as archive:
        for name in archive.namelist():
            if re.fullmatch(r"Events/Run_\d+/Event_\d+", name):
                text = archive.read(name).decode().translate(str.maketrans("()'", '[]"'))
                found.append(json.loads(re.sub(r"\bnan\b", "NaN", re.sub(r"\binf\b", "Infinity", text))))
    return found


@needs_data
def test_real_hcal_hits_are_in_the_towers_they_point_to(real: list[dict[str, Any]]) -> None:
    n_hits = 0
    for event in real:
        for table in ("HBRecHits_V2", "HERecHits_V2"):
            fields = [field for field, _ in event["Types"][table]]
            for row in event["Collections"][table]:
                detid, eta, phi = (row[fields.index(field)] for field in ("detid", "eta", "phi"))
                towers = reference.hcal_towers(detid)
                if len(towers) == 1:
                    assert reference.tower_of(eta, phi) == towers[0]
                    n_hits += 1
    assert n_hits > 1000


@needs_data
def test_real_tracks_bend_as_the_helix_does(real: list[dict[str, Any]]) -> None:
    """From where a track starts to the outermost point that CMS measured; the other charge ends elsewhere."""
    off: dict[int, list[float]] = {1: [], -1: []}
    for event in real:
        tracks, extras = event["Collections"]["Tracks_V3"], event["Collections"]["Extras_V1"]
        for (_, i), (_, j) in event["Associations"]["TrackExtras_V1"]:
            (x, y, z), _, pt, phi, eta, charge = tracks[i][:6]
            outer = extras[j][2]
            if pt < 1 or hypot(*outer[:2]) < 0.5:
                continue
            start, radius = (100 * x, 100 * y, 100 * z), hypot(*outer[:2])
            for sign, found in off.items():
                end = reference.ecal_position(
                    pt, eta, phi, sign * charge, 0.0, 0.0, start, barrel_m=radius, endcap_m=inf
                )
                if end is not None:
                    found.append(abs((end[1] - atan2(outer[1], outer[0]) + pi) % (2 * pi) - pi))
    assert len(off[1]) > 1000
    assert np.median(off[1]) < 0.005
    assert np.mean(np.array(off[1]) < radians(1)) > 0.95
    assert np.mean(np.array(off[-1]) < radians(1)) < 0.01
