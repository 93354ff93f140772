"""The detector's response to one collision: stable particles in, hits, tracks and measured particles out.

Charged particles go through `tracking`, electrons and photons through the tracker material by `transport`, and what
reaches the ECAL into the `calorimeter`. What is measured of a particle, the jets are clustered from: the track of a
charged particle that has one, the energy in the ECAL of an electron or photon (2.8 % / sqrt(E) + 12 % / E + 0.55 %),
and what the calorimeters see of the rest, without an energy threshold. Charged particles of pile-up are left out of
the jets, as CMS does.

Photons are groups of electrons and photons within 0.1 of the most energetic of them, which has at least 5 GeV. They
have more than 10 GeV, and less than 15 % of that in the HCAL tower behind.
"""

import math
from typing import Any

import numpy as np

from stages.detector.hcal import tower_of_direction
from stages.detector.tracker import ECAL_RADIUS_CM, ECAL_Z_CM
from stages.kernels import njit
from stages.simulation.calorimeter import (
    MAX_ETA,
    deposit_em,
    deposit_hadron,
    deposit_muon,
    enters_barrel,
)
from stages.simulation.dice import normal
from stages.simulation.endcap import EE_TABLE
from stages.simulation.helix import along, curvature_of, path_to_radius
from stages.simulation.material import MAX_LAYERS, cross_layers
from stages.simulation.readout import (
    N_EB_CELLS,
    N_ECAL_CELLS,
    N_EE_TOWERS,
    N_TOWERS,
    add_noise,
    read_out_barrel,
    read_out_endcaps,
    read_out_hcal,
)
from stages.simulation.tracking import MAX_HITS, find_track, leave_hits, meet_nucleus
from stages.simulation.transport import (
    CHARGE,
    COT,
    ENERGY,
    LAYER,
    LEFT,
    MAX_PARTICLES,
    MIN_ENERGY_GEV,
    N_FIELDS,
    PHI,
    X,
    Y,
    Z,
    transport,
)

PHOTON, ELECTRON, MUON, CHARGED_HADRON, NEUTRAL_HADRON = range(5)
# Columns of a stable particle, float64[n, N_COLUMNS]: what it is, its charge, momentum and what it can deposit [GeV],
# where it begins [cm], and whether it is of pile-up.
KIND, Q, PX, PY, PZ, DEPOSIT, X0, Y0, Z0, PILEUP = range(10)
N_COLUMNS = 10

MIN_PT_GEV = 0.1
"""Charged particles below curl up in the tracker and are left out."""
MIN_PHOTON_PT_GEV, PHOTON_SEED_PT_GEV, PHOTON_RADIUS, MAX_H_OVER_E = 10.0, 5.0, 0.1, 0.15

# Room for twice of what 200 minimum bias events leave.
_MOST_PIXEL_HITS, _MOST_STRIP_HITS, _MOST_TRACKS, _MOST_CANDIDATES, _MOST_PHOTONS = 40_000, 160_000, 10_000, 40_000, 100


class Detector:
    """Scratch memory of the response, and what it holds after each event. Not for two threads at a time.

    Attributes
    ----------
    pixels, strips : float64[:, 5]
        Hits: x, y, z [cm], subdetector, layer.
    tracks : float64[:, 6]
        pt [GeV], eta, phi, charge, d0, dz [cm].
    candidates, photons : float64[:, 3]
        Measured particles, and photons: pt [GeV], eta, phi.
    cells, readings : int64[:], float64[:]
        The ECAL's hits as cells, see `readout.N_ECAL_CELLS`; energy [GeV] by cell.
    towers, energies : int64[:], float64[:]
        The HCAL's hits.
    n : int64[7]
        How many there are: pixel hits, strip hits, tracks, candidates, photons, ECAL and HCAL hits.
    """

    def __init__(self) -> None:
        self.pixels, self.strips = np.empty((_MOST_PIXEL_HITS, 5)), np.empty((_MOST_STRIP_HITS, 5))
        self.tracks, self.candidates = np.empty((_MOST_TRACKS, 6)), np.empty((_MOST_CANDIDATES, 3))
        self.photons = np.empty((_MOST_PHOTONS, 3))
        self.cells, self.readings = np.empty(2 * N_ECAL_CELLS, np.int64), np.empty(N_ECAL_CELLS)
        self.towers, self.energies = np.empty(56 * 72, np.int64), np.empty(56 * 72)
        self.n = np.zeros(7, np.int64)
        self._ecal, self._hcal = np.zeros(N_ECAL_CELLS), np.zeros(56 * 72)
        self._touched = np.empty((2, N_EB_CELLS), np.int64)
        self._stack, self._arrivals = np.empty((MAX_PARTICLES, N_FIELDS)), np.empty((MAX_PARTICLES, N_FIELDS))
        self._electromagnetic = np.empty((_MOST_CANDIDATES, 3))

    def see(self, stream: Any, particles: Any, vertex: Any) -> None:
        """Simulate one collision.

        Parameters
        ----------
        stream : uint64[1]
            Random numbers, see `dice`.
        particles : float64[n, N_COLUMNS]
        vertex : float64[3]
            The reconstructed primary vertex [cm].
        """
        _see(
            *(stream, particles, vertex, EE_TABLE, self._ecal, self._hcal, self._touched, self._stack, self._arrivals),
            *(self._electromagnetic, self.pixels, self.strips, self.tracks, self.candidates, self.photons),
            *(self.cells, self.readings, self.towers, self.energies, self.n),
        )


@njit(cache=True, nogil=True)
def _direction(phi: Any, cot: Any, out: Any) -> None:
    sine = 1.0 / math.sqrt(1.0 + cot * cot)
    out[0], out[1], out[2] = math.cos(phi) * sine, math.sin(phi) * sine, cot * sine


@njit(cache=True, nogil=True)
def _to_ecal(x: Any, y: Any, z: Any, phi: Any, curvature: Any, cot: Any, at: Any, flight: Any) -> Any:
    """Where a particle enters the ECAL, into `at` [cm] and `flight` (float64[3] each); False if it does not."""
    s = path_to_radius(x, y, phi, curvature, ECAL_RADIUS_CM)
    if not (s < math.inf and enters_barrel(z + cot * s)):
        if cot == 0.0:
            return False
        s = (math.copysign(ECAL_Z_CM, cot) - z) / cot
        if s < 0.0 or abs(curvature) * s > 2.0 * math.pi:  # it curls up in the tracker
            return False
    at[0], at[1] = along(x, y, phi, curvature, s)
    at[2] = z + cot * s
    _direction(phi + curvature * s, cot, flight)
    r = math.hypot(at[0], at[1])
    return r > 1.0 and abs(at[2]) < r * math.sinh(MAX_ETA)


@njit(cache=True, nogil=True)
def _follow(
    stream: Any, first: Any, layers: Any, stack: Any, arrivals: Any, at: Any, flight: Any, table: Any, ecal: Any,
    touched: Any, n_touched: Any, hcal: Any,
) -> None:  # fmt: skip
    """An electron or photon through the material into the calorimeter; `first` is a row of `transport`'s columns."""
    r, cot = math.hypot(first[X], first[Y]), first[COT]
    z_beam = first[Z] - r * cot
    if r > 125.0 or abs(first[Z]) > 310.0:
        return
    end = ECAL_RADIUS_CM
    if not enters_barrel(z_beam + cot * ECAL_RADIUS_CM):
        end = (math.copysign(ECAL_Z_CM, cot) - z_beam) / cot
        if end < 17.0:  # beyond |eta| = 3
            return
    n_layers = cross_layers(math.asinh(cot), z_beam, layers[0], layers[1])
    while n_layers > 0 and layers[0, n_layers - 1] >= end:
        n_layers -= 1
    passed = 0
    while passed < n_layers and layers[0, passed] <= r:
        passed += 1
    stack[0] = first
    stack[0, LAYER], stack[0, LEFT] = passed - 1.0, 0.0
    if r >= end:
        return
    for k in range(transport(stream, layers[0], layers[1], n_layers, end, stack, arrivals)):
        there = arrivals[k]
        at[0], at[1], at[2] = there[X], there[Y], there[Z]
        _direction(there[PHI], there[COT], flight)
        if abs(at[2]) < math.hypot(at[0], at[1]) * math.sinh(MAX_ETA):
            is_photon = there[CHARGE] == 0.0
            deposit_em(stream, there[ENERGY], is_photon, at, flight, table, ecal, touched, n_touched, hcal)


@njit(cache=True, nogil=True)
def _copy(source: Any, n_source: Any, target: Any, n: Any) -> Any:
    n_copied = min(n_source, len(target) - n)
    for k in range(n_copied):
        for column in range(source.shape[1]):  # by rows, it takes Numba two seconds more to compile
            target[n + k, column] = source[k, column]
    return n + n_copied


@njit(cache=True, nogil=True)
def _group_photons(seen: Any, n_seen: Any, hcal: Any, photons: Any) -> Any:
    """Photons out of what is measured of electrons and photons; returns how many."""
    order = np.argsort(-seen[:n_seen, 0])
    used = np.zeros(n_seen, np.bool_)
    n = 0
    for i in order:
        if seen[i, 0] < PHOTON_SEED_PT_GEV or n == len(photons):
            break
        if used[i]:
            continue
        pt = eta = phi = 0.0
        for j in range(n_seen):
            d_eta = seen[j, 1] - seen[i, 1]
            if used[j] or abs(d_eta) > PHOTON_RADIUS:
                continue
            d_phi = (seen[j, 2] - seen[i, 2] + math.pi) % (2.0 * math.pi) - math.pi
            if d_eta * d_eta + d_phi * d_phi < PHOTON_RADIUS**2:
                used[j] = True
                pt += seen[j, 0]
                eta += seen[j, 0] * d_eta
                phi += seen[j, 0] * d_phi
        if pt < MIN_PHOTON_PT_GEV:
            continue
        eta, phi = seen[i, 1] + eta / pt, seen[i, 2] + phi / pt
        tower = tower_of_direction(eta, phi)
        if tower >= 0 and hcal[tower] < MAX_H_OVER_E * pt * math.cosh(eta):
            photons[n, 0], photons[n, 1], photons[n, 2] = pt, eta, phi
            n += 1
    return n


@njit(cache=True, nogil=True)
def _see(
    stream: Any, particles: Any, vertex: Any, table: Any, ecal: Any, hcal: Any, touched: Any, stack: Any, arrivals: Any,
    electromagnetic: Any, pixels: Any, strips: Any, tracks: Any, candidates: Any, photons: Any, cells: Any,
    readings: Any, towers: Any, energies: Any, n: Any,
) -> None:  # fmt: skip
    layers = np.empty((2, MAX_LAYERS))
    own_pixels, own_strips = np.empty((MAX_HITS, 5)), np.empty((MAX_HITS, 5))
    n_hits, n_touched = np.zeros(2, np.int64), np.zeros(2, np.int64)
    at, flight, track, first = np.empty(3), np.empty(3), np.empty(5), np.zeros(N_FIELDS)
    n[:] = 0
    n_electromagnetic = 0
    for k in range(len(particles)):
        kind, charge = int(particles[k, KIND]), particles[k, Q]
        px, py, pz, energy = particles[k, PX], particles[k, PY], particles[k, PZ], particles[k, DEPOSIT]
        x, y, z = particles[k, X0], particles[k, Y0], particles[k, Z0]
        pt = math.hypot(px, py)
        if (pt < MIN_PT_GEV and charge != 0.0) or pt < 1e-3:
            continue
        phi, cot = math.atan2(py, px), pz / pt
        eta = math.asinh(cot)
        if abs(eta) > 5.0:
            continue
        curvature = curvature_of(charge, pt)
        found = False
        if charge != 0.0:
            end = math.inf
            if kind == CHARGED_HADRON:
                r = math.hypot(x, y)
                end = meet_nucleus(stream, eta, z - r * cot, r, layers)
            leave_hits(stream, x, y, z, phi, curvature, cot, end, own_pixels, own_strips, n_hits)
            n[0] = _copy(own_pixels, n_hits[0], pixels, n[0])
            n[1] = _copy(own_strips, n_hits[1], strips, n[1])
            found = find_track(stream, x, y, z, phi, pt, charge, cot, n_hits[0] + n_hits[1], vertex, track)
            if found and n[2] < len(tracks):
                row = tracks[n[2]]
                row[0], row[1], row[2], row[3], row[4], row[5] = (
                    track[0],
                    track[1],
                    track[2],
                    charge,
                    track[3],
                    track[4],
                )
                n[2] += 1

        measured = 0.0
        if kind <= ELECTRON:
            if energy < MIN_ENERGY_GEV:
                continue
            first[CHARGE], first[ENERGY], first[X], first[Y], first[Z] = charge, energy, x, y, z
            first[PHI], first[COT] = phi, cot
            _follow(stream, first, layers, stack, arrivals, at, flight, table, ecal, touched, n_touched, hcal)
            if abs(eta) < MAX_ETA:
                spread = math.sqrt(0.028**2 / energy + (0.12 / energy) ** 2 + 0.0055**2)
                measured = energy * max(0.0, 1.0 + spread * normal(stream))
        elif energy > 0.01 and _to_ecal(x, y, z, phi, curvature, cot, at, flight):
            if kind == MUON:
                deposit_muon(stream, energy, at, flight, table, ecal, touched, n_touched, hcal)
            else:
                measured = deposit_hadron(stream, energy, at, flight, table, ecal, touched, n_touched, hcal)

        if found:
            if particles[k, PILEUP] == 0.0 and n[3] < len(candidates):
                candidates[n[3]] = track[:3]
                n[3] += 1
        elif measured > 0.0 and n[3] < len(candidates):
            row = candidates[n[3]]
            row[0], row[1], row[2] = measured / math.cosh(eta), eta, phi
            n[3] += 1
        if kind <= ELECTRON and measured > math.cosh(eta) and n_electromagnetic < len(electromagnetic):
            row = electromagnetic[n_electromagnetic]
            row[0], row[1], row[2] = measured / math.cosh(eta), eta, phi
            n_electromagnetic += 1

    n[4] = _group_photons(electromagnetic, n_electromagnetic, hcal, photons)
    eb_towers, ee_towers = np.empty((2, N_TOWERS)), np.empty((2, N_EE_TOWERS))
    in_barrel, in_endcaps = touched[0, : n_touched[0]], touched[1, : n_touched[1]]
    n_barrel = read_out_barrel(stream, ecal, in_barrel, eb_towers, readings, cells)
    n_all = read_out_endcaps(stream, ecal, in_endcaps, ee_towers, readings, cells, n_barrel)
    n_all = add_noise(stream, ecal, readings, cells, n_all)
    n[5] = n_all
    n[6] = read_out_hcal(stream, hcal, towers, energies)
    for part in range(2):
        for k in range(n_touched[part]):
            ecal[touched[part, k]] = 0.0
    for k in range(n_all):
        ecal[cells[k]] = 0.0
    hcal[:] = 0.0
