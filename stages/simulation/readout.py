"""Readout of the calorimeters: from the energy in a cell to a hit.

- Each ECAL crystal is smeared with the terms of the test beam resolution, 2.8 % / sqrt(E) + 12 % / E + 0.3 % in
  quadrature (P. Adzic et al., JINST 2 (2007) P04004). Photostatistics are 2.1 % / sqrt(E), the rest of that term
  being the lateral fluctuation that `shower` makes; the noise is 40 MeV, which is 12 % / E for 3 x 3 crystals.
  The intercalibration is good to 0.5 %, about what was reached in collisions (JINST 8 (2013) P09009). In the endcaps
  the noise is 150 MeV.
- Selective readout (N. Almeida et al., JINST 3 (2008) P02011): around a trigger tower of 5 x 5 crystals with a
  transverse energy above 2 GeV, 3 x 3 towers are read whole. Of these, hits above 80 MeV are kept, in the endcaps
  above 300 MeV, the thresholds of particle flow (JINST 12 (2017) P10003). Elsewhere crystals count from three sigma
  of the noise on, and so do all those of the endcaps that hold nothing but noise.
- A tower of the HCAL is one hit, above 0.7 GeV in the barrel and 0.8 GeV in the endcaps; its noise is 0.2 GeV. The
  sampling fluctuations are those of the showers.
"""

import math
from typing import Any

from stages.detector.ecal import N_EE_INDICES
from stages.detector.grid import EB_CELL_ETA
from stages.detector.layout import N_TOWER_COLUMNS, N_TOWER_ROWS
from stages.kernels import njit
from stages.simulation.dice import exponential, normal, uniform
from stages.simulation.endcap import EE_COSH_ETA, EE_CRYSTALS
from stages.simulation.shower import N_EB_COLUMNS, N_EB_ROWS

NOISE_GEV = 0.040
PHOTOSTATISTICS = 0.021
INTERCALIBRATION = 0.005
TOWER_ET_GEV = 2.0
HIT_GEV = 0.080
FAR_HIT_GEV = 3 * NOISE_GEV
EE_NOISE_GEV = 0.150
EE_HIT_GEV = 0.300
EE_FAR_HIT_GEV = 3 * EE_NOISE_GEV
HCAL_NOISE_GEV = 0.2
HB_HIT_GEV, HE_HIT_GEV = 0.7, 0.8

N_EB_CELLS = N_EB_ROWS * N_EB_COLUMNS
N_ECAL_CELLS = N_EB_CELLS + N_EE_INDICES
"""The cells of the barrel by row and column, then those of the endcaps by `ee_index`."""
TOWER = 5
"""Crystals on a side of a trigger tower."""
N_TOWERS = N_EB_CELLS // TOWER**2
N_EE_TOWERS = N_EE_INDICES // TOWER**2
ABOVE_3_SIGMA = 0.00135
"""Share of a normal distribution."""


@njit(cache=True, nogil=True)
def _tower(cell: Any) -> Any:
    row, column = divmod(cell, N_EB_COLUMNS)
    return row // TOWER * (N_EB_COLUMNS // TOWER) + column // TOWER


@njit(cache=True, nogil=True)
def read_out_barrel(stream: Any, cells: Any, touched: Any, towers: Any, readings: Any, hits: Any) -> Any:
    """Selective readout of the ECAL barrel; returns how many cells it keeps.

    Parameters
    ----------
    stream : uint64[1]
    cells : float64[N_EB_CELLS or more]
        Energy in each crystal [GeV].
    touched : int64[n]
        The crystals that hold energy.
    towers : float64[2, N_TOWERS]
        Scratch.
    readings : float64[as cells]
        Filled with the measured energies [GeV] of the cells kept, among others.
    hits : int64[N_EB_CELLS]
        Filled with the cells kept.
    """
    n_across = N_EB_COLUMNS // TOWER
    towers[:] = 0.0
    for cell in touched:
        eta = (cell // N_EB_COLUMNS + 0.5 - 0.5 * N_EB_ROWS) * EB_CELL_ETA
        towers[0, _tower(cell)] += cells[cell] / math.cosh(eta)
    for tower in range(N_TOWERS):
        if towers[0, tower] > TOWER_ET_GEV:
            row, column = divmod(tower, n_across)
            for r in range(max(0, row - 1), min(N_EB_ROWS // TOWER, row + 2)):
                for c in range(column - 1, column + 2):
                    towers[1, r * n_across + c % n_across] = 1.0
    n = 0
    for tower in range(N_TOWERS):
        if towers[1, tower] > 0.0:
            row, column = divmod(tower, n_across)
            for k in range(TOWER * TOWER):
                cell = (row * TOWER + k // TOWER) * N_EB_COLUMNS + column * TOWER + k % TOWER
                readings[cell] = _measure(stream, cells[cell])
                if readings[cell] > HIT_GEV:
                    hits[n] = cell
                    n += 1
    for cell in touched:
        if towers[1, _tower(cell)] == 0.0:
            readings[cell] = _measure(stream, cells[cell])
            if readings[cell] > FAR_HIT_GEV:
                hits[n] = cell
                n += 1
    return n


@njit(cache=True, nogil=True)
def _measure(stream: Any, energy: Any) -> Any:
    variance = PHOTOSTATISTICS**2 * energy + (INTERCALIBRATION * energy) ** 2 + NOISE_GEV**2
    return energy + math.sqrt(variance) * normal(stream)


@njit(cache=True, nogil=True)
def _ee_tower(index: Any) -> Any:
    row, column = divmod(index, 100)
    return row // TOWER * (100 // TOWER) + column // TOWER


@njit(cache=True, nogil=True)
def read_out_endcaps(stream: Any, cells: Any, touched: Any, towers: Any, readings: Any, hits: Any, n: Any) -> Any:
    """Selective readout of the ECAL endcaps; returns the new number of hits.

    As `read_out_barrel`, with the cells from N_EB_CELLS on and `towers` as float64[2, N_EE_TOWERS]. `hits` has room
    for n and all that are kept. Crystals without energy are left to `add_noise`.
    """
    towers[:] = 0.0
    for cell in touched:
        index = cell - N_EB_CELLS
        towers[0, _ee_tower(index)] += cells[cell] / EE_COSH_ETA[index % 10_000]
    across = 100 // TOWER
    for tower in range(N_EE_TOWERS):
        if towers[0, tower] > TOWER_ET_GEV:
            row, column = divmod(tower, across)  # the second endcap's rows follow those of the first
            low = row // across * across
            for r in range(max(low, row - 1), min(low + across, row + 2)):
                for c in range(max(0, column - 1), min(across, column + 2)):
                    towers[1, r * across + c] = 1.0
    for cell in touched:
        energy = cells[cell]
        variance = PHOTOSTATISTICS**2 * energy + (INTERCALIBRATION * energy) ** 2 + EE_NOISE_GEV**2
        readings[cell] = energy + math.sqrt(variance) * normal(stream)
        if readings[cell] > (EE_HIT_GEV if towers[1, _ee_tower(cell - N_EB_CELLS)] > 0.0 else EE_FAR_HIT_GEV):
            hits[n] = cell
            n += 1
    return n


@njit(cache=True, nogil=True)
def _poisson(stream: Any, mean: Any) -> Any:
    """Poisson, by counting exponential steps; for means up to some hundreds."""
    n, left = -1, mean
    while left >= 0.0:
        left -= exponential(stream)
        n += 1
    return n


@njit(cache=True, nogil=True)
def add_noise(stream: Any, cells: Any, readings: Any, hits: Any, n: Any) -> Any:
    """Crystals that hold nothing but noise above three sigma; returns the new number of hits.

    Parameters as for `read_out_barrel`. `cells` is -1 afterwards for hits without energy.

    The excess over three sigma is taken as exponential, which the tail of a normal distribution nearly is.
    """
    for k in range(n):
        if cells[hits[k]] == 0.0:
            cells[hits[k]] = -1.0
    for part in range(2):
        first, size = (0, N_EB_CELLS) if part == 0 else (N_EB_CELLS, N_EE_INDICES)
        sigma = NOISE_GEV if part == 0 else EE_NOISE_GEV
        for _ in range(_poisson(stream, size * ABOVE_3_SIGMA)):
            cell = first + int(size * uniform(stream))
            if cells[cell] != 0.0 or (part == 1 and not EE_CRYSTALS[(cell - first) % 10_000]):
                continue
            energy = sigma * math.sqrt(9.0 + 2.0 * exponential(stream))
            cells[cell] = -1.0  # at most once
            readings[cell] = energy
            hits[n] = cell
            n += 1
    return n


@njit(cache=True, nogil=True)
def read_out_hcal(stream: Any, hcal: Any, towers: Any, energies: Any) -> Any:
    """Hits of the HCAL: fills their towers and energies [GeV]; returns how many.

    Parameters
    ----------
    hcal : float64[56 * 72]
        Energy in each tower [GeV].
    towers, energies : int64[56 * 72], float64[56 * 72]
        Where a cell is two towers wide (beyond |ieta| 20), its first tower and the energy of both.
    """
    n = 0
    half = N_TOWER_ROWS // 2
    for row in range(N_TOWER_ROWS):
        ieta = row - half + 1 if row >= half else half - row
        wide = ieta > 20
        threshold = HB_HIT_GEV if ieta <= 16 else HE_HIT_GEV
        for column in range(N_TOWER_COLUMNS):
            # iphi = column - 1 wraps around; a wide cell begins at an odd iphi, that is an even column
            if wide and column % 2:
                continue
            tower = row * N_TOWER_COLUMNS + column
            energy = hcal[tower] + HCAL_NOISE_GEV * normal(stream)
            if wide:
                energy += hcal[tower + 1]
            if energy > threshold:
                towers[n], energies[n] = tower, energy
                n += 1
    return n
