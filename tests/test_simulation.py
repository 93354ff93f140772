"""The fast simulation, part by part: helices, tracker, calorimeters and readout."""

import math

import numpy as np
import pytest

from stages.detector.ecal import ee_centres, ee_crystals
from stages.detector.tracker import TIB, TOB, propagate
from stages.simulation import dice
from stages.simulation.calorimeter import deposit_em, deposit_hadron, deposit_muon
from stages.simulation.endcap import EE_TABLE, ee_cell
from stages.simulation.helix import along, closest_approach, curvature_of, path_to_radius
from stages.simulation.layers import BPIX
from stages.simulation.material import MAX_LAYERS, material_budget
from stages.simulation.readout import N_EB_CELLS, N_ECAL_CELLS
from stages.simulation.response import (
    CHARGED_HADRON,
    DEPOSIT,
    ELECTRON,
    KIND,
    MUON,
    N_COLUMNS,
    NEUTRAL_HADRON,
    PHOTON,
    PILEUP,
    PX,
    PY,
    PZ,
    X0,
    Detector,
    Q,
)
from stages.simulation.tracking import MAX_HITS, find_track, leave_hits, meet_nucleus

MASS = {PHOTON: 0.0, ELECTRON: 0.0005, MUON: 0.106, CHARGED_HADRON: 0.14, NEUTRAL_HADRON: 0.5}


def stream_of(seed: int) -> np.ndarray:
    stream = np.zeros(1, np.uint64)
    dice.start(stream, np.uint64(seed), np.uint64(0))
    return stream


def particle(kind: int, pt: float, eta: float, phi: float, charge: int = 0, place=(0.0, 0.0, 0.0)) -> np.ndarray:
    row = np.zeros((1, N_COLUMNS))
    row[0, [KIND, Q, PX, PY, PZ]] = kind, charge, pt * math.cos(phi), pt * math.sin(phi), pt * math.sinh(eta)
    row[0, DEPOSIT] = math.hypot(pt * math.cosh(eta), MASS[kind])
    row[0, X0 : X0 + 3] = place
    return row


@pytest.fixture(scope="module")
def detector() -> Detector:
    return Detector()


class TestHelix:
    def random(self, n: int = 200):
        rng = np.random.default_rng(1)
        for _ in range(n):
            x, y, x0, y0 = rng.normal(0, 1, 4)
            yield x, y, rng.uniform(-3, 3), curvature_of(rng.choice([-1, 1]), rng.uniform(0.3, 20)), x0, y0

    def test_the_path_ends_on_the_cylinder_and_on_the_circle(self) -> None:
        for x, y, phi, curvature, *_ in self.random():
            s = path_to_radius(x, y, phi, curvature, 50.0)
            there = np.array(along(x, y, phi, curvature, s))
            assert np.hypot(*there) == pytest.approx(50.0, abs=1e-6)
            centre = np.array([x - math.sin(phi) / curvature, y + math.cos(phi) / curvature])
            assert np.hypot(*(there - centre)) == pytest.approx(1 / abs(curvature))

    def test_what_curls_up_never_arrives(self) -> None:
        assert path_to_radius(0.0, 0.0, 1.0, curvature_of(1, 0.5), 129.0) == math.inf
        assert path_to_radius(0.0, 0.0, 1.0, curvature_of(1, 0.8), 129.0) < math.inf

    def test_no_point_of_the_helix_is_closer_than_the_closest(self) -> None:
        for x, y, phi, curvature, x0, y0 in self.random():
            there, d0, s = closest_approach(x, y, phi, curvature, x0, y0)
            distance = [math.dist(along(x, y, phi, curvature, s + d), (x0, y0)) for d in (-0.1, 0.0, 0.1)]
            assert distance[1] == min(distance)
            assert abs(d0) == pytest.approx(distance[1])
            px, py = along(x, y, phi, curvature, s)
            assert d0 == pytest.approx((px - x0) * math.sin(there) - (py - y0) * math.cos(there), abs=1e-9)
            assert math.cos(phi + curvature * s - there) == pytest.approx(1.0)

    def test_it_ends_where_the_framer_says_that_tracks_meet_the_ecal(self) -> None:
        for x, y, phi, curvature, *_ in self.random(50):
            pt = 0.00299792458 * 3.8 / abs(curvature)
            if pt < 1.0:
                continue
            there, d0, _ = closest_approach(x, y, phi, curvature, 0.0, 0.0)
            one = [np.array([v], np.float32) for v in (pt, 0.0, there, -np.sign(curvature), d0, 0.0)]
            _, phi_there = propagate(*one, np.array([0, 1]), np.zeros((1, 3)))
            s = path_to_radius(x, y, phi, curvature, 129.0)
            end = along(x, y, phi, curvature, s)
            difference = (phi_there[0] - math.atan2(end[1], end[0]) + math.pi) % (2 * math.pi) - math.pi
            assert abs(difference) < 2e-3  # one counts 0.3 and the other 0.29979


class TestTracker:
    def hits(self, pt: float, eta: float, charge: int = 1, start=(0.0, 0.0), end: float = math.inf, seed: int = 1):
        pixels, strips, n = np.empty((MAX_HITS, 5)), np.empty((MAX_HITS, 5)), np.zeros(2, np.int64)
        curvature = curvature_of(charge, pt)
        leave_hits(stream_of(seed), *start, 0.0, 0.5, curvature, math.sinh(eta), end, pixels, strips, n)
        return pixels[: n[0]], strips[: n[1]]

    def test_a_central_particle_crosses_every_barrel_layer(self) -> None:
        found: dict[tuple[int, int], int] = {}
        for seed in range(400):
            for hits in self.hits(10.0, 0.1, seed=seed):
                for x, y, _, subdetector, layer in hits:
                    key = int(subdetector), int(layer)
                    found[key] = found.get(key, 0) + 1
                    if key == (BPIX, 1):
                        assert math.hypot(x, y) == pytest.approx(2.9, abs=0.02)
        wanted = {*((BPIX, k) for k in range(1, 5)), *((TIB, k) for k in range(1, 5)), *((TOB, k) for k in range(1, 7))}
        assert set(found) == wanted
        assert np.mean(list(found.values())) == pytest.approx(0.985 * 400, abs=3)

    def test_a_forward_particle_crosses_disks_and_wheels_in_order(self) -> None:
        _, strips = self.hits(10.0, 1.9)
        wheels = strips[strips[:, 3] == 6]
        assert len(wheels) >= 7
        assert (np.diff(np.abs(wheels[:, 2])) > 0).all()
        assert (np.hypot(wheels[:, 0], wheels[:, 1]) > 22).all()

    def test_hits_begin_where_the_particle_begins_and_end_where_it_ends(self) -> None:
        pixels, strips = self.hits(10.0, 0.0, start=(5.0, 2.0))
        assert set(pixels[:, 4]) <= {2, 3, 4}
        pixels, strips = self.hits(10.0, 0.0, end=30.0)
        assert len(pixels) >= 3
        assert set(strips[:, 4]) <= {1}

    def test_a_slow_particle_turns_round_inside(self) -> None:
        pixels, strips = self.hits(0.15, 0.0)
        reach = 2 * 0.15 / (0.00299792458 * 3.8)
        assert np.hypot(strips[:, 0], strips[:, 1]).max() < reach
        assert len(strips) <= 1
        assert len(pixels) >= 3

    @pytest.mark.parametrize("charge", [-1, 1])
    def test_impact_parameters_are_measured_with_their_resolution(self, charge: int) -> None:
        stream, track, vertex = stream_of(3), np.empty(5), np.array([0.1, -0.2, 3.0])
        x, y, z, phi, pt, cot = 0.4, 0.1, 3.2, 0.7, 5.0, 0.5
        curvature = curvature_of(charge, pt)
        _, d0, s = closest_approach(x, y, phi, curvature, vertex[0], vertex[1])
        rows = []
        while len(rows) < 2000:
            if find_track(stream, x, y, z, phi, pt, charge, cot, 14, vertex, track):
                rows.append(track.copy())
        rows = np.array(rows)
        width = math.hypot(22e-4, 87e-4 / pt) * (1 + cot**2) ** 0.25
        assert rows[:, 3].mean() == pytest.approx(d0, abs=4 * width / math.sqrt(2000))
        assert rows[:, 3].std() == pytest.approx(width, rel=0.07)
        assert rows[:, 4].mean() == pytest.approx(z + cot * s - vertex[2], abs=5e-4)
        assert rows[:, 0].std() / pt == pytest.approx(0.0125, rel=0.1)

    def test_hadrons_meet_nuclei_as_often_as_the_material_says(self) -> None:
        stream, layers = stream_of(5), np.empty((2, MAX_LAYERS))
        for eta in (0.0, 1.4):
            met = np.array([meet_nucleus(stream, eta, 0.0, 0.0, layers) for _ in range(4000)])
            expected = 1 - math.exp(-material_budget(eta) / 3.4)
            assert np.isfinite(met).mean() == pytest.approx(expected, abs=0.02)

    def test_the_material_reaches_into_the_endcaps(self) -> None:
        assert material_budget(2.0) > 1.0
        assert material_budget(2.4) > 0.7


class TestCalorimeter:
    def deposit(self, kind: str, energy: float, eta: float, n: int = 60):
        """Mean energies in ECAL and HCAL, all sums, and the cells of the last."""
        sums, ecal, hcal = [], np.zeros(N_ECAL_CELLS), np.zeros(56 * 72)
        touched, n_touched = np.empty((2, N_EB_CELLS), np.int64), np.zeros(2, np.int64)
        flight = np.array([1.0, 0.0, math.sinh(eta)]) / math.cosh(eta)
        scale = 129.0 if abs(eta) < 1.479 else 317.0 / abs(math.sinh(eta))
        at = scale * np.array([1.0, 0.0, math.sinh(eta)])
        stream = stream_of(7)
        for _ in range(n):
            ecal[:], hcal[:], n_touched[:] = 0.0, 0.0, 0
            if kind == "photon":
                deposit_em(stream, energy, True, at, flight, EE_TABLE, ecal, touched, n_touched, hcal)
            elif kind == "muon":
                deposit_muon(stream, energy, at, flight, EE_TABLE, ecal, touched, n_touched, hcal)
            else:
                seen = deposit_hadron(stream, energy, at, flight, EE_TABLE, ecal, touched, n_touched, hcal)
                assert seen == pytest.approx(ecal.sum() + hcal.sum(), rel=0.05, abs=0.3)
            assert (ecal[touched[0, : n_touched[0]]] > 0).all()
            sums.append((ecal.sum(), hcal.sum()))
        return np.array(sums), ecal.copy(), hcal.copy()

    @pytest.mark.parametrize("eta", [0.3, -1.2, 1.8, -2.5])
    @pytest.mark.parametrize("energy", [1.0, 30.0])
    def test_a_photon_leaves_its_energy_in_a_few_crystals(self, eta: float, energy: float) -> None:
        sums, ecal, _ = self.deposit("photon", energy, eta)
        assert sums.sum(axis=1).mean() == pytest.approx(energy, rel=0.03)
        assert sums[:, 1].mean() < 0.03 * energy
        assert np.sort(ecal)[-9:].sum() > 0.85 * ecal.sum()
        in_barrel = ecal[:N_EB_CELLS].sum() > 0.5 * ecal.sum()
        assert in_barrel == (abs(eta) < 1.479)

    def test_hadrons_are_seen_as_in_the_test_beam(self) -> None:
        sums, *_ = self.deposit("hadron", 50.0, 0.3, 800)
        total = sums.sum(axis=1)
        assert total.mean() / 50.0 == pytest.approx(0.88, abs=0.08)  # leaks, and the crystals see less of it
        assert total.std() / total.mean() == pytest.approx(math.hypot(0.847 / math.sqrt(50), 0.074), abs=0.06)
        began_behind = (sums[:, 0] < 1.0).mean()
        assert began_behind == pytest.approx(math.exp(-23.0 / 20.3), abs=0.06)
        low, high = (self.deposit("hadron", e, 0.3, 800)[0].sum(axis=1).mean() / e for e in (3.0, 200.0))
        assert low < total.mean() / 50.0 < high + 0.05

    def test_a_muon_ionises(self) -> None:
        sums, *_ = self.deposit("muon", 40.0, 0.5, 300)
        assert sums[:, 0].mean() == pytest.approx(0.25, abs=0.03)
        assert sums[:, 1].mean() == pytest.approx(2.0, abs=0.1)

    def test_endcap_crystals_are_found_at_their_centres(self) -> None:
        centres, exists = ee_centres().reshape(-1, 3), ee_crystals().ravel()
        scaled = centres * (3170.0 / centres[:, 2])[:, None] / 10
        found = [ee_cell(EE_TABLE, *scaled[k]) for k in np.flatnonzero(exists)]
        assert np.mean(np.array(found) - 10_000 == np.flatnonzero(exists)) > 0.99
        assert ee_cell(EE_TABLE, 0.0, 0.0, 317.0) == -1
        assert ee_cell(EE_TABLE, 400.0, 0.0, 317.0) == -1


class TestResponse:
    def see(self, detector: Detector, *rows: np.ndarray, seed: int = 1):
        detector.see(stream_of(seed), np.concatenate([np.zeros((0, N_COLUMNS)), *rows]), np.zeros(3))
        return detector

    def test_an_empty_collision_is_noise_above_threshold(self, detector: Detector) -> None:
        counts = np.array([self.see(detector, seed=k).n[5:7].copy() for k in range(60)])
        assert counts[:, 0].mean() == pytest.approx((61_200 + 14_648) * 0.00135, rel=0.1)
        assert counts[:, 1].mean() < 3
        assert (detector.readings[detector.cells[: detector.n[5]]] > 0.119).all()

    def test_no_cell_is_read_twice_and_nothing_is_left_for_the_next_event(self, detector: Detector) -> None:
        rng = np.random.default_rng(3)
        rows = [particle(CHARGED_HADRON, rng.exponential(3), rng.uniform(-2.5, 2.5), rng.uniform(-3, 3), 1)
                for _ in range(200)]  # fmt: skip
        for seed in range(5):
            self.see(detector, *rows, seed=seed)
            cells = detector.cells[: detector.n[5]]
            assert len(cells) == len(np.unique(cells)) > 300
        assert self.see(detector).n[5] < 200

    def test_a_track_its_hits_and_a_candidate_come_of_a_pion(self, detector: Detector) -> None:
        found = [self.see(detector, particle(CHARGED_HADRON, 20.0, 0.4, 1.0, -1), seed=k).n.copy() for k in range(200)]
        n = np.array(found)
        assert n[:, 2].mean() == pytest.approx(0.94, abs=0.05)
        assert n[:, 3].min() >= 0
        assert n[:, 0].mean() > 3.5
        self.see(detector, particle(CHARGED_HADRON, 20.0, 0.4, 1.0, -1), seed=1)
        pt, eta, phi, charge, *_ = detector.tracks[0]
        assert (pt, eta, phi, charge) == (pytest.approx(20, rel=0.1), pytest.approx(0.4, abs=0.01),
                                          pytest.approx(1.0, abs=0.01), -1)  # fmt: skip

    def test_neutral_particles_leave_no_track(self, detector: Detector) -> None:
        n = self.see(detector, particle(NEUTRAL_HADRON, 20.0, 0.4, 1.0), particle(PHOTON, 20.0, -0.4, 2.0)).n
        assert list(n[:3]) == [0, 0, 0]
        assert n[3] == 2

    def test_charged_pile_up_is_left_out_of_the_jets_only(self, detector: Detector) -> None:
        row = particle(CHARGED_HADRON, 20.0, 0.4, 1.0, 1)
        row[0, PILEUP] = 1.0
        n = self.see(detector, row, seed=1).n
        assert n[2] == 1
        assert n[3] == 0

    def test_photons_are_isolated_from_hadronic_energy(self, detector: Detector) -> None:
        n = self.see(detector, particle(PHOTON, 40.0, 0.4, 1.0)).n
        assert n[4] == 1
        assert detector.photons[0, 0] == pytest.approx(40.0, rel=0.1)
        n = self.see(detector, particle(PHOTON, 40.0, 0.4, 1.0), particle(NEUTRAL_HADRON, 90.0, 0.4, 1.0)).n
        assert n[4] == 0

    def test_what_no_detector_meets_does_no_harm(self, detector: Detector) -> None:
        odd = [
            particle(PHOTON, 1e-6, 0.0, 0.0),
            particle(CHARGED_HADRON, 0.05, 0.0, 0.0, 1),
            particle(CHARGED_HADRON, 1e4, 6.0, 0.0, 1),
            particle(PHOTON, 5.0, 4.0, 0.0),
            particle(ELECTRON, 5.0, 0.0, 0.0, 1, place=(500.0, 0.0, 0.0)),
            particle(CHARGED_HADRON, 5.0, 1.0, 0.0, 1, place=(0.0, 200.0, 900.0)),
            particle(NEUTRAL_HADRON, 5.0, 0.0, 0.0, 0, place=(0.0, 200.0, 0.0)),
            particle(MUON, 5.0, 3.4, 0.0, -1),
        ]
        self.see(detector, *odd)
        assert np.isfinite(detector.readings[detector.cells[: detector.n[5]]]).all()
        assert np.isfinite(detector.energies[: detector.n[6]]).all()
