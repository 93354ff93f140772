"""Single electrons and photons in the CMS ECAL barrel: the sample of the E/Gamma tagger.

Every event is one electron (either charge) or one photon of pT = 50 GeV, uniform in phi and in |eta| < 1.4,
from a vertex that is smeared along the beam by 3.5 cm. Nothing but physics tells them apart: `transport`
takes the particle through the tracker `material`, `shower` turns what arrives into crystal energies, and the
`readout` makes hits of them. Crystals with nothing but noise are left out.

Times have the resolution 35 ns / (E / noise) + 0.15 ns in quadrature (JINST 5 (2010) T03011).

The reported photon is the energy of 5 x 35 crystals (eta x phi) around the most energetic one, about the reach
of the superclusters of CMS in the barrel (JINST 10 (2015) P08010), at its energy-weighted position as seen from
the centre of CMS, without corrections. There is no pile-up.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.detector.ecal import eb_detid
from stages.detector.grid import EB_CELL_ETA
from stages.kernels import njit
from stages.simulation.dice import normal, start, uniform
from stages.simulation.material import MAX_LAYERS, cross_layers
from stages.simulation.readout import N_EB_CELLS, N_TOWERS, NOISE_GEV, read_out_barrel
from stages.simulation.shower import N_EB_COLUMNS, N_EB_ROWS, deposit_particle
from stages.simulation.transport import (
    CHARGE,
    COT,
    ECAL_RADIUS_CM,
    ENERGY,
    LAYER,
    MAX_PARTICLES,
    N_FIELDS,
    PHI,
    Z,
    transport,
)

PT_GEV = 50.0
MAX_ETA = 1.4
VERTEX_SIGMA_CM = 3.5
EVENTS_PER_LUMISECTION = 1000

_BUFFER = 4 * N_EB_CELLS  # hits; one event has at most N_EB_CELLS


@njit(cache=True, nogil=True)
def _fire(stream: Any, stack: Any, arrivals: Any, layers: Any, cells: Any, touched: Any) -> Any:
    """One particle from the vertex into `cells`; returns (1 for an electron, number of touched cells)."""
    is_electron = uniform(stream) < 0.5
    positive = uniform(stream) < 0.5
    eta = MAX_ETA * (2.0 * uniform(stream) - 1.0)
    first = stack[0]
    first[:] = 0.0
    first[CHARGE] = (1.0 if positive else -1.0) if is_electron else 0.0
    first[ENERGY] = PT_GEV * math.cosh(eta)
    first[PHI] = math.pi * (2.0 * uniform(stream) - 1.0)
    first[COT] = math.sinh(eta)
    first[Z] = VERTEX_SIGMA_CM * normal(stream)
    first[LAYER] = -1.0
    n_layers = cross_layers(eta, first[Z], layers[0], layers[1])
    n_touched = 0
    for k in range(transport(stream, layers[0], layers[1], n_layers, ECAL_RADIUS_CM, stack, arrivals)):
        n_touched = deposit_particle(stream, arrivals[k], cells, touched, n_touched)
    return is_electron, n_touched


@njit(cache=True, nogil=True)
def _cluster(hits: Any, readings: Any) -> Any:
    """Energy [GeV] around the most energetic hit, and its mean eta and phi [rad]; zeros if there are no hits."""
    if hits.size == 0:
        return 0.0, 0.0, 0.0
    seed = hits[0]
    for cell in hits:
        if readings[cell] > readings[seed]:
            seed = cell
    seed_row, seed_column = divmod(seed, N_EB_COLUMNS)
    energy = rows = columns = 0.0
    for cell in hits:
        row = cell // N_EB_COLUMNS - seed_row
        column = (cell % N_EB_COLUMNS - seed_column + N_EB_COLUMNS // 2) % N_EB_COLUMNS - N_EB_COLUMNS // 2
        if abs(row) <= 2 and abs(column) <= 17:
            energy += readings[cell]
            rows += row * readings[cell]
            columns += column * readings[cell]
    eta = (seed_row + rows / energy + 0.5 - 0.5 * N_EB_ROWS) * EB_CELL_ETA
    phi = (seed_column + columns / energy - 9.5 + 180.0) % 360.0 - 180.0
    return energy, eta, math.radians(phi)


@njit(cache=True, nogil=True)
def _simulate(
    seed: Any, first: Any, photons: Any, labels: Any, counts: Any, cells: Any, energies: Any, times: Any
) -> Any:
    """Events from `first` (uint64) on, until all are done or the buffer is full; returns (events, hits) done."""
    stream = np.empty(1, np.uint64)
    stack = np.empty((MAX_PARTICLES, N_FIELDS))
    arrivals = np.empty((MAX_PARTICLES, N_FIELDS))
    layers = np.empty((2, MAX_LAYERS))
    deposits = np.zeros(N_EB_CELLS)
    readings = np.empty(N_EB_CELLS)
    touched = np.empty(N_EB_CELLS, np.int64)
    hits = np.empty(N_EB_CELLS, np.int64)
    towers = np.empty((2, N_TOWERS))
    used = 0
    for event in range(labels.size):
        if used + N_EB_CELLS > cells.size:
            return event, used
        start(stream, seed, first + np.uint64(event))
        is_electron, n_touched = _fire(stream, stack, arrivals, layers, deposits, touched)
        n = read_out_barrel(stream, deposits, touched[:n_touched], towers, readings, hits)
        energy, eta, phi = _cluster(hits[:n], readings)
        photons[0, event], photons[1, event], photons[2, event] = energy / math.cosh(eta), eta, phi
        labels[event] = is_electron
        counts[event] = n
        for k in range(n):
            cells[used + k] = hits[k]
            energies[used + k] = readings[hits[k]]
            width = math.hypot(35.0 * NOISE_GEV / readings[hits[k]], 0.15)
            times[used + k] = width * normal(stream)
        used += n
        for cell in touched[:n_touched]:
            deposits[cell] = 0.0
    return labels.size, used


def generate(n_events: int, seed: int, first_event: int = 1) -> dict[str, npt.NDArray[Any]]:
    """Simulate events as flat columns, named and laid out as in NanoAOD.

    An event depends on `seed` and its number alone: in pieces (`first_event`) or at once, the arrays are the
    same to the bit.

    Parameters
    ----------
    n_events : int
    seed : int
        0 .. 2^64 - 1.
    first_event : int
        Number of the first event, from 1.

    Returns
    -------
    dict of arrays
        Per event (n_events): run (uint32, 1), luminosityBlock (uint32), event (uint64), nEBRecHit (int32),
        nPhoton (int32, 1). Per hit, those of an event after another: EBRecHit_detid (uint32), EBRecHit_energy
        (float32, GeV), EBRecHit_time (float32, ns). Per photon: Photon_pt (float32, GeV), Photon_eta,
        Photon_phi (float32, rad, in [-pi, pi)), Photon_genLabel (int8, 1 for an electron, 0 for a photon).
    """
    if n_events < 0 or first_event < 1 or not 0 <= seed < 2**64:
        raise ValueError("n_events must be at least 0, first_event at least 1 and the seed a 64-bit number")
    photons = np.empty((3, n_events))  # pt, eta, phi
    labels = np.empty(n_events, np.int8)
    counts = np.empty(n_events, np.int32)
    cells, energies, times = (
        np.empty(_BUFFER, np.int32),
        np.empty(_BUFFER, np.float32),
        np.empty(_BUFFER, np.float32),
    )
    parts: list[tuple[npt.NDArray[Any], ...]] = [(cells[:0], energies[:0], times[:0])]
    done = 0
    while done < n_events:
        n, used = _simulate(
            np.uint64(seed),
            np.uint64(first_event + done),
            photons[:, done:],
            labels[done:],
            counts[done:],
            cells,
            energies,
            times,
        )
        parts.append((cells[:used].copy(), energies[:used].copy(), times[:used].copy()))
        done += n
    cells, energies, times = (np.concatenate(column) for column in zip(*parts, strict=True))

    rows, columns = np.divmod(cells, N_EB_COLUMNS)
    ieta = np.where(rows >= N_EB_ROWS // 2, rows - N_EB_ROWS // 2 + 1, rows - N_EB_ROWS // 2)
    event = np.arange(first_event, first_event + n_events, dtype=np.uint64)
    phi = photons[2].astype(np.float32)
    phi[phi >= np.float32(np.pi)] = -np.float32(np.pi)  # rounding to float32 may reach the open end
    return {
        "run": np.ones(n_events, np.uint32),
        "luminosityBlock": (1 + event // EVENTS_PER_LUMISECTION).astype(np.uint32),
        "event": event,
        "nEBRecHit": counts,
        "EBRecHit_detid": eb_detid(ieta, columns + 1),
        "EBRecHit_energy": energies,
        "EBRecHit_time": times,
        "nPhoton": np.ones(n_events, np.int32),
        "Photon_pt": photons[0].astype(np.float32),
        "Photon_eta": photons[1].astype(np.float32),
        "Photon_phi": phi,
        "Photon_genLabel": labels,
    }
