"""Electromagnetic showers in the lead tungstate crystals of the ECAL barrel.

The shape is the parametrisation of G. Grindhammer and S. Peters (hep-ex/0001020, appendix A, homogeneous
media), as the CMS fast simulation uses it: a gamma distribution along the axis whose shape fluctuates from
shower to shower, and around the axis a core and a tail that widen with depth. The energy is laid down as
spots; their finite number (appendix A.3) makes the lateral profile fluctuate as well. A photon first flies
9/7 X0 on average, and then showers as a pair.

Crystals are cells of one degree in eta and phi that point 3 degrees past the vertex in both, 23 cm long
(JINST 3 (2008) S08004, section 4). Left out: the gaps between crystals and between modules, and the light
that leaks from the rear into the diodes.
"""

import math
from typing import Any

from stages.detector.grid import EB_CELL_ETA
from stages.kernels import njit
from stages.simulation.dice import exponential, normal, uniform
from stages.simulation.transport import (
    CHARGE,
    COT,
    ECAL_RADIUS_CM,
    ENERGY,
    MIN_ENERGY_GEV,
    PHI,
    X,
    Y,
    Z,
    sample_pair,
)

N_EB_ROWS, N_EB_COLUMNS = 170, 360
X0_CM = 0.89
MOLIERE_CM = 2.19 * 1.096
"""2.19 cm, times what the CMS fast simulation widens barrel showers by to match Geant4 (`RadiusFactorEB`)."""
CRITICAL_GEV = 8.74e-3
Z_EFFECTIVE = 68.36
LENGTH_X0 = 23.0 / X0_CM
POINTING = math.tan(math.radians(3.0))

# The functions of depth that depend on Z alone.
_ALPHA_SLOPE = 0.458 + 2.26 / Z_EFFECTIVE
_CORE_SLOPE = 0.1162 - 0.000381 * Z_EFFECTIVE
_TAIL_SCALE = 0.659 - 0.00309 * Z_EFFECTIVE
_WEIGHT_PEAK = 2.632 - 0.00094 * Z_EFFECTIVE
_WEIGHT_PLACE = 0.401 + 0.00187 * Z_EFFECTIVE
_SPOTS = 93.0 * math.log(Z_EFFECTIVE)
_SPOT_DEPTH = 0.698 + 0.00212 * Z_EFFECTIVE
_SPOT_ALPHA = 0.639 + 0.00334 * Z_EFFECTIVE


@njit(cache=True, nogil=True)
def gamma_cdf(shape: Any, x: Any) -> Any:
    """Regularised lower incomplete gamma function P(shape, x), by DLMF 8.7.1 (series) or 8.9.2 (fraction)."""
    if x <= 0.0:
        return 0.0
    front = math.exp(shape * math.log(x) - x - math.lgamma(shape))
    if x < shape + 1.0:
        term = 1.0 / shape
        total = term
        for k in range(1, 200):
            term *= x / (shape + k)
            total += term
            if term < 1e-10 * total:
                break
        return front * total
    tiny = 1e-300
    b = x + 1.0 - shape
    c = 1.0 / tiny
    d = 1.0 / b
    value = d
    for k in range(1, 200):
        a = -k * (k - shape)
        b += 2.0
        d = 1.0 / (a * d + b)
        c = b + a / c
        value *= c * d
        if abs(c * d - 1.0) < 1e-10:
            break
    return 1.0 - front * value


@njit(cache=True, nogil=True)
def _shower(stream: Any, energy: Any, start: Any, entry: Any, cells: Any, touched: Any, n_touched: Any) -> Any:
    """Shower of an electron of `energy` [GeV] from `start` X0 inside; returns the new number of touched cells."""
    log_e = math.log(energy)
    log_y = math.log(energy / CRITICAL_GEV)
    mean_alpha = 0.81 + _ALPHA_SLOPE * log_y
    correlation = 0.705 - 0.023 * log_y
    plus, minus = math.sqrt(0.5 * (1.0 + correlation)), math.sqrt(0.5 * (1.0 - correlation))
    alpha, depth = 0.0, 0.0
    while alpha <= 1.1:  # low energies fluctuate beyond what has a maximum
        one, two = normal(stream), normal(stream)
        alpha = mean_alpha * math.exp((plus * one - minus * two) / (-0.58 + 0.86 * log_y))
        depth = (log_y - 0.812) * math.exp((plus * one + minus * two) / (-1.4 + 1.26 * log_y))
    beta = (alpha - 1.0) / depth
    centre_of_gravity = alpha / beta * (mean_alpha - 1.0) / mean_alpha

    spot_alpha = max(alpha * _SPOT_ALPHA, 1.1)
    spot_beta = (spot_alpha - 1.0) / (depth * _SPOT_DEPTH)
    n_spots = _SPOTS * energy**0.876

    eta_cell, phi_cell, cosh_eta, slope_eta, slope_phi = entry
    past_energy = past_spots = 0.0
    begin = 0.0
    while begin < LENGTH_X0 - start:
        end = min(begin + 1.0, LENGTH_X0 - start)
        until_energy, until_spots = gamma_cdf(alpha, beta * end), gamma_cdf(spot_alpha, spot_beta * end)
        deposit = energy * (until_energy - past_energy)
        n = max(1, int(n_spots * (until_spots - past_spots) + 0.5))
        middle = 0.5 * (begin + end)
        past_energy, past_spots, begin = until_energy, until_spots, end
        if deposit < 1e-6:
            continue

        tau = middle / centre_of_gravity
        place = (_WEIGHT_PLACE - tau) / (1.313 - 0.0686 * log_e)
        core_weight = min(1.0, _WEIGHT_PEAK * math.exp(place - math.exp(place)))
        core = MOLIERE_CM * (0.0251 + 0.00319 * log_e + _CORE_SLOPE * tau)
        tail = math.exp(-2.59 * (tau - 0.645)) + math.exp((0.3585 + 0.0421 * log_e) * (tau - 0.645))
        tail *= MOLIERE_CM * _TAIL_SCALE

        inside = (start + middle) * X0_CM
        scale = cosh_eta / (ECAL_RADIUS_CM * cosh_eta + inside)  # angle per cm across the axis
        eta_axis = eta_cell + slope_eta * inside * scale / EB_CELL_ETA
        phi_axis = phi_cell + math.degrees(slope_phi * inside * scale)
        eta_scale, phi_scale = scale / EB_CELL_ETA, math.degrees(scale)
        for _ in range(n):
            radius = core if uniform(stream) < core_weight else tail
            while True:  # a point in the unit disk: its squared radius is uniform, and its direction is free
                a, b = 2.0 * uniform(stream) - 1.0, 2.0 * uniform(stream) - 1.0
                square = a * a + b * b
                if square < 1.0:
                    break
            radius /= math.sqrt(1.0 - square)  # r = R sqrt(u / (1 - u)) for f(r) = 2 r R^2 / (r^2 + R^2)^2
            row = math.floor(eta_axis + eta_scale * radius * a)
            if 0 <= row < N_EB_ROWS:
                column = math.floor(phi_axis + phi_scale * radius * b) % N_EB_COLUMNS
                cell = row * N_EB_COLUMNS + column
                if cells[cell] == 0.0:
                    touched[n_touched] = cell
                    n_touched += 1
                cells[cell] += deposit / n
    return n_touched


@njit(cache=True, nogil=True)
def deposit_particle(stream: Any, particle: Any, cells: Any, touched: Any, n_touched: Any) -> Any:
    """Add the energy of one particle at the ECAL's face to the crystals.

    Parameters
    ----------
    stream : uint64[1]
    particle : float64[N_FIELDS]
        From `transport`.
    cells : float64[170 * 360]
        Energy in each barrel crystal [GeV], by row (from eta = -1.48 up) and column (iphi - 1).
    touched, n_touched : int64[170 * 360], int
        The cells that hold energy, in the order in which they got it.

    Returns
    -------
    int
        The new number of touched cells.
    """
    phi = math.atan2(particle[Y], particle[X])
    sinh_eta = particle[Z] / ECAL_RADIUS_CM
    cosh_eta = math.sqrt(1.0 + sinh_eta * sinh_eta)
    eta_cell = math.asinh(sinh_eta) / EB_CELL_ETA
    turn = particle[PHI] - phi
    along = math.cos(turn) + particle[COT] * sinh_eta
    # The tilt of the crystals: in phi its sign is that of the side, in eta it builds up over the first rings.
    side = 1.0 if eta_cell >= 0.0 else -1.0
    ramp = min(1.0, 0.05 + 0.2 * abs(eta_cell))
    slope_phi = math.sin(turn) * cosh_eta / along - side * POINTING
    slope_eta = (particle[COT] - math.cos(turn) * sinh_eta) / along + side * ramp * POINTING
    entry = (eta_cell + 0.5 * N_EB_ROWS, math.degrees(phi) + 10.0, cosh_eta, slope_eta, slope_phi)

    energy = particle[ENERGY]
    if particle[CHARGE] != 0.0:
        return _shower(stream, energy, 0.0, entry, cells, touched, n_touched)
    start = exponential(stream) * 9.0 / 7.0
    share = energy * sample_pair(stream)
    if min(share, energy - share) < MIN_ENERGY_GEV:
        return _shower(stream, energy, start, entry, cells, touched, n_touched)
    n_touched = _shower(stream, share, start, entry, cells, touched, n_touched)
    return _shower(stream, energy - share, start, entry, cells, touched, n_touched)
