"""Showers in all of the calorimeter: barrel and endcaps of the ECAL, and the HCAL behind them.

Electromagnetic showers have the shape of `shower` (Grindhammer and Peters), but are laid down in ten slices of equal
energy, whose depths come from the Wilson-Hilferty approximation to the quantiles of a gamma distribution, and with a
quarter of the spots. What is deeper than the crystals goes to the HCAL.

Hadronic showers are those of Grindhammer, Rudowicz and Peters (NIM A 290 (1990) 469) with the numbers of the CMS fast
simulation (`HDShowerParametrization.h`): from the first interaction on, one gamma distribution in radiation lengths
and one in interaction lengths, and a radius that grows with depth. Before it the particle ionises like a muon. The sum
fluctuates as that of the CMS barrel calorimeters in the test beam, 84.7 % / sqrt(E) + 7.4 % in quadrature (Eur. Phys.
J. C 60 (2009) 359). Its mean is that of a calorimeter with e/h = 1.4 that is right at 50 GeV (R. Wigmans,
Calorimetry, Oxford 2000), and of its hadronic part the crystals see half.

Left out: the gaps between modules and between barrel and endcaps, the preshower, the outer and the forward HCAL.
"""

import math
from statistics import NormalDist
from typing import Any

import numpy as np

from stages.detector.grid import EB_CELL_ETA
from stages.detector.hcal import TOWER_EDGES, tower_of_direction
from stages.detector.tracker import ECAL_RADIUS_CM, ECAL_Z_CM
from stages.kernels import njit
from stages.simulation.dice import exponential, normal, uniform
from stages.simulation.endcap import ee_cell
from stages.simulation.readout import N_EB_CELLS
from stages.simulation.shower import CRITICAL_GEV, MOLIERE_CM, N_EB_COLUMNS, N_EB_ROWS, POINTING, X0_CM, Z_EFFECTIVE
from stages.simulation.transport import MIN_ENERGY_GEV, sample_pair

MAX_EB_ETA = 1.479
MAX_ETA = 3.0
ECAL_LENGTH_CM = 23.0
ECAL_LAMBDA_CM = 20.3
HCAL_X0_CM, HCAL_LAMBDA_CM = 1.5, 19.0
HCAL_RADIUS_CM, HCAL_Z_CM = 181.0, 400.0
HB_DEPTH_LAMBDA, HE_DEPTH_LAMBDA = 5.8, 10.0
"""Across the layers."""
MIP_ECAL_GEV, MIP_HCAL_GEV = 0.25, 2.0
E_OVER_H = 1.4
STOCHASTIC, CONSTANT = 0.847, 0.074

N_SLICES = 10
_QUANTILES = np.array([NormalDist().inv_cdf((k + 0.5) / N_SLICES) for k in range(N_SLICES)])
_SPOTS = 100.0
_SPOTS_PER_GEV, _MOST_SPOTS = 5.0, 400
_MOST_RADIUS_CM = 60.0


@njit(cache=True, nogil=True)
def _gamma_quantile(shape: Any, z: Any) -> Any:
    """Quantile of a gamma distribution (scale 1) where that of a normal one is z."""
    return shape * max(0.02, 1.0 - 1.0 / (9.0 * shape) + z / (3.0 * math.sqrt(shape))) ** 3


@njit(cache=True, nogil=True)
def _add(cell: Any, energy: Any, ecal: Any, touched: Any, n: Any) -> None:
    """Energy to a crystal; n is int64[2], the cells touched in the barrel and in the endcaps."""
    part = 0 if cell < N_EB_CELLS else 1
    if ecal[cell] == 0.0:
        touched[part, n[part]] = cell
        n[part] += 1
    ecal[cell] += energy


@njit(cache=True, nogil=True)
def _ecal_spot(
    eta: Any, phi: Any, x: Any, y: Any, z: Any, energy: Any, table: Any, ecal: Any, touched: Any, n: Any
) -> None:
    """A spot at eta, phi; in the endcaps (|eta| beyond the barrel) at x, y in the plane where they begin."""
    if abs(eta) < MAX_EB_ETA:
        row = math.floor(eta / EB_CELL_ETA) + N_EB_ROWS // 2
        if 0 <= row < N_EB_ROWS:
            column = (math.floor(math.degrees(phi)) + 10) % N_EB_COLUMNS
            _add(row * N_EB_COLUMNS + column, energy, ecal, touched, n)
    else:
        index = ee_cell(table, x, y, z)
        if index >= 0:
            _add(N_EB_CELLS + index, energy, ecal, touched, n)


@njit(cache=True, nogil=True)
def _em_shower(
    stream: Any, energy: Any, start: Any, at: Any, along: Any, table: Any, ecal: Any, touched: Any, n: Any, hcal: Any
) -> None:
    """Shower of an electron of `energy` [GeV] from `start` X0 inside, along a line through the point `at` [cm]."""
    log_e = math.log(energy)
    log_y = math.log(energy / CRITICAL_GEV)
    mean_alpha = 0.81 + (0.458 + 2.26 / Z_EFFECTIVE) * log_y
    correlation = 0.705 - 0.023 * log_y
    plus, minus = math.sqrt(0.5 * (1.0 + correlation)), math.sqrt(0.5 * (1.0 - correlation))
    alpha, depth = 0.0, 0.0
    while alpha <= 1.1:
        one, two = normal(stream), normal(stream)
        alpha = mean_alpha * math.exp((plus * one - minus * two) / (-0.58 + 0.86 * log_y))
        depth = (log_y - 0.812) * math.exp((plus * one + minus * two) / (-1.4 + 1.26 * log_y))
    beta = (alpha - 1.0) / depth
    centre_of_gravity = alpha / beta * (mean_alpha - 1.0) / mean_alpha
    n_spots = max(2, int(_SPOTS * energy**0.876 / N_SLICES))
    share = energy / (N_SLICES * n_spots)
    barrel = abs(math.asinh(at[2] / math.hypot(at[0], at[1]))) < MAX_EB_ETA

    for k in range(N_SLICES):
        t = _gamma_quantile(alpha, _QUANTILES[k]) / beta
        inside = (start + t) * X0_CM
        x, y, z = at[0] + inside * along[0], at[1] + inside * along[1], at[2] + inside * along[2]
        r = math.hypot(x, y)
        eta, phi = math.asinh(z / r), math.atan2(y, x)
        if inside > ECAL_LENGTH_CM:
            tower = tower_of_direction(eta, phi)
            if tower >= 0:
                hcal[tower] += energy / N_SLICES
            continue
        if barrel:  # the tilt of the crystals, see `shower`
            side = 1.0 if eta >= 0.0 else -1.0
            ramp = min(1.0, 0.05 + 0.2 * abs(eta) / EB_CELL_ETA)
            eta += side * ramp * POINTING * inside / r
            phi -= side * POINTING * inside / r
        else:  # back along the crystals to the face
            x, y = x * ECAL_Z_CM / abs(z), y * ECAL_Z_CM / abs(z)

        tau = t / centre_of_gravity
        place = (0.401 + 0.00187 * Z_EFFECTIVE - tau) / (1.313 - 0.0686 * log_e)
        core_weight = min(1.0, (2.632 - 0.00094 * Z_EFFECTIVE) * math.exp(place - math.exp(place)))
        core = MOLIERE_CM * (0.0251 + 0.00319 * log_e + (0.1162 - 0.000381 * Z_EFFECTIVE) * tau)
        tail = math.exp(-2.59 * (tau - 0.645)) + math.exp((0.3585 + 0.0421 * log_e) * (tau - 0.645))
        tail *= MOLIERE_CM * (0.659 - 0.00309 * Z_EFFECTIVE)
        for _ in range(n_spots):
            radius = core if uniform(stream) < core_weight else tail
            u = uniform(stream)
            radius *= math.sqrt(u / (1.0 - u))
            angle = 2.0 * math.pi * uniform(stream)
            a, b = radius * math.cos(angle), radius * math.sin(angle)
            if barrel:
                _ecal_spot(eta + a / r, phi + b / r, x, y, z, share, table, ecal, touched, n)
            else:
                _ecal_spot(eta, phi, x + a, y + b, z, share, table, ecal, touched, n)


@njit(cache=True, nogil=True)
def deposit_em(
    stream: Any,
    energy: Any,
    is_photon: Any,
    at: Any,
    along: Any,
    table: Any,
    ecal: Any,
    touched: Any,
    n: Any,
    hcal: Any,
) -> None:
    """Lay down the energy of an electron or photon that arrives at the ECAL.

    Parameters
    ----------
    stream : uint64[1]
    energy : float
        In GeV.
    is_photon : bool
        A photon first flies 9/7 X0 on average, and then showers as a pair.
    at, along : float64[3]
        The point [cm] where it enters, and the unit vector of its flight.
    table : int32[:, :]
        `EE_TABLE`.
    ecal : float64[N_ECAL_CELLS]
        Energy in each crystal [GeV].
    touched, n : int64[2, N_EB_CELLS], int64[2]
        The crystals that hold energy, and how many, of the barrel and of the endcaps.
    hcal : float64[56 * 72]
        Energy in each tower [GeV].
    """
    if not is_photon:
        _em_shower(stream, energy, 0.0, at, along, table, ecal, touched, n, hcal)
        return
    start = exponential(stream) * 9.0 / 7.0
    part = energy * sample_pair(stream)
    if min(part, energy - part) < MIN_ENERGY_GEV:
        _em_shower(stream, energy, start, at, along, table, ecal, touched, n, hcal)
    else:
        _em_shower(stream, part, start, at, along, table, ecal, touched, n, hcal)
        _em_shower(stream, energy - part, start, at, along, table, ecal, touched, n, hcal)


@njit(cache=True, nogil=True)
def _to_hcal(at: Any, along: Any) -> Any:
    """Path [cm] from the face of the ECAL to that of the HCAL."""
    barrel = abs(math.asinh(at[2] / math.hypot(at[0], at[1]))) < TOWER_EDGES[16]
    if barrel:
        across = along[0] * along[0] + along[1] * along[1]
        forward = at[0] * along[0] + at[1] * along[1]
        gap = HCAL_RADIUS_CM**2 - at[0] ** 2 - at[1] ** 2
        return max(ECAL_LENGTH_CM, (math.sqrt(forward * forward + across * gap) - forward) / max(across, 1e-9))
    return max(ECAL_LENGTH_CM, (HCAL_Z_CM - abs(at[2])) / max(abs(along[2]), 0.1))


@njit(cache=True, nogil=True)
def deposit_hadron(
    stream: Any, energy: Any, at: Any, along: Any, table: Any, ecal: Any, touched: Any, n: Any, hcal: Any
) -> Any:
    """Lay down what is seen of a hadron that arrives at the ECAL; returns its sum [GeV].

    Parameters as for `deposit_em`; `energy` is what it can deposit, for a nucleon the kinetic energy.
    """
    to_hcal = _to_hcal(at, along)
    barrel = abs(math.asinh(at[2] / math.hypot(at[0], at[1]))) < MAX_EB_ETA
    sine = math.hypot(along[0], along[1])
    hcal_depth = (HB_DEPTH_LAMBDA / max(sine, 0.1) if barrel else HE_DEPTH_LAMBDA) * HCAL_LAMBDA_CM
    ecal_depth = ECAL_LENGTH_CM / ECAL_LAMBDA_CM
    first = exponential(stream)
    seen = 0.0
    mip = min(MIP_ECAL_GEV * max(0.3, 1.0 + 0.2 * normal(stream)), 0.9 * energy) * min(1.0, first / ecal_depth)
    eta, phi = math.asinh(at[2] / math.hypot(at[0], at[1])), math.atan2(at[1], at[0])
    _ecal_spot(eta, phi, at[0], at[1], at[2], mip, table, ecal, touched, n)
    seen += mip
    energy -= mip

    effective = min(max(energy, 2.0), 500.0)
    log_e = math.log(effective)
    log_d = math.log((0.35 + 0.09 * log_e) * effective)
    if effective < 10.0:
        alpha_em, beta_em = 1.08 + 0.24 * log_d, 0.478 - 0.135 * log_d
        alpha_had, beta_had = 1.17 + 0.21 * log_d, 2.10 - 0.72 * log_d
        em_part = 0.751 - 0.177 * log_d
    else:
        alpha_em, beta_em = 1.30 + 0.255 * log_d, 0.289 - 0.010 * log_d
        alpha_had, beta_had = 0.38 + 0.23 * log_d, 0.83 - 0.049 * log_d
        em_part = 0.509 - 0.021 * log_d
    growth = 0.0124 + 0.359 - 0.0511 * log_e

    # As much as a calorimeter with this e/h sees of a hadron, in units of what it sees at 50 GeV.
    mean = (1.0 - (1.0 - 1.0 / E_OVER_H) * max(energy, 1.0) ** -0.18) / (1.0 - (1.0 - 1.0 / E_OVER_H) * 50.0**-0.18)
    spread = math.log(1.0 + STOCHASTIC**2 / max(energy, 0.5) + CONSTANT**2)
    visible = energy * mean * math.exp(math.sqrt(spread) * normal(stream) - 0.5 * spread)
    n_spots = min(_MOST_SPOTS, 8 + int(_SPOTS_PER_GEV * energy))
    share = visible / n_spots
    for _ in range(n_spots):
        is_em = uniform(stream) < em_part
        deep = _gamma_quantile(alpha_em, normal(stream)) / beta_em if is_em else 0.0  # X0
        if not is_em:
            deep = _gamma_quantile(alpha_had, normal(stream)) / beta_had  # lambda
        ecal_unit, hcal_unit = (X0_CM, HCAL_X0_CM) if is_em else (ECAL_LAMBDA_CM, HCAL_LAMBDA_CM)
        left = ECAL_LENGTH_CM - first * ECAL_LAMBDA_CM  # of the crystals, cm
        in_hcal = True
        if left > 0.0:
            path = first * ECAL_LAMBDA_CM + deep * ecal_unit
            depth = deep * ecal_unit / ECAL_LAMBDA_CM  # lambda from the interaction
            in_hcal = path > ECAL_LENGTH_CM
            if in_hcal:
                inside = (deep - left / ecal_unit) * hcal_unit
                depth = left / ECAL_LAMBDA_CM + inside / HCAL_LAMBDA_CM
        else:
            depth = deep * hcal_unit / HCAL_LAMBDA_CM
            inside = (first - ecal_depth) * HCAL_LAMBDA_CM + deep * hcal_unit
        if in_hcal:
            if inside > hcal_depth:
                continue  # it leaks out at the rear
            path = to_hcal + inside
        unit = HCAL_LAMBDA_CM if in_hcal else ECAL_LAMBDA_CM
        u = uniform(stream)
        radius = min(_MOST_RADIUS_CM, growth * depth * unit * math.sqrt(u / (1.0 - u)))
        angle = 2.0 * math.pi * uniform(stream)
        a, b = radius * math.cos(angle), radius * math.sin(angle)
        x, y, z = at[0] + path * along[0], at[1] + path * along[1], at[2] + path * along[2]
        r = math.hypot(x, y)
        eta, phi = math.asinh(z / r) + a / r, math.atan2(y, x) + b / r
        if in_hcal:
            tower = tower_of_direction(eta, phi)
            if tower >= 0:
                hcal[tower] += share
                seen += share
        else:
            energy_here = share if is_em else 0.5 * share
            if not barrel:
                x, y = (x + a) * ECAL_Z_CM / abs(z), (y + b) * ECAL_Z_CM / abs(z)
            _ecal_spot(eta, phi, x, y, z, energy_here, table, ecal, touched, n)
            seen += energy_here
    return seen


@njit(cache=True, nogil=True)
def deposit_muon(
    stream: Any, energy: Any, at: Any, along: Any, table: Any, ecal: Any, touched: Any, n: Any, hcal: Any
) -> None:
    """Lay down what a muon loses by ionisation; parameters as for `deposit_em`."""
    r = math.hypot(at[0], at[1])
    eta, phi = math.asinh(at[2] / r), math.atan2(at[1], at[0])
    lost = min(energy, MIP_ECAL_GEV * max(0.3, 1.0 + 0.2 * normal(stream)))
    _ecal_spot(eta, phi, at[0], at[1], at[2], lost, table, ecal, touched, n)
    path = _to_hcal(at, along)
    x, y, z = at[0] + path * along[0], at[1] + path * along[1], at[2] + path * along[2]
    tower = tower_of_direction(math.asinh(z / math.hypot(x, y)), math.atan2(y, x))
    if tower >= 0:
        hcal[tower] += min(energy - lost, MIP_HCAL_GEV * max(0.3, 1.0 + 0.25 * normal(stream)))


@njit(cache=True, nogil=True)
def enters_barrel(z: Any) -> Any:
    """Whether a particle at the radius of the barrel's face, at this z [cm], enters it."""
    return abs(z) < ECAL_RADIUS_CM * math.sinh(MAX_EB_ETA)
