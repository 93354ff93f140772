"""Electrons and photons from the vertex through the tracker to the face of the ECAL.

In every layer a photon may become a pair and a charged particle may radiate, both with the spectra at
complete screening of the Review of Particle Physics (Passage of particles through matter; Y.-S. Tsai, Rev.
Mod. Phys. 46 (1974) 815), x in X0::

    bremsstrahlung   dN / dx dy = (4/3 - 4/3 y + y^2) / y         y = k / E
    pair production  dN / dx dz = 1 - 4/3 z (1 - z)               z = E+ / k, that is 7/9 per X0

A charged particle is scattered by each layer (Highland's formula, same source) and turns in the solenoid's
3.8 T between them; a photon goes straight. Secondaries below 0.1 GeV are left with their parent if radiated
and dropped if charged: such a particle curls up in the field and never reaches the ECAL. In the barrel so
does any below pT = 0.73 GeV. Left out: ionisation (30 MeV in 1 X0), the opening angles (m / E), and the fall of the
pair cross-section below 1 GeV.
"""

import math
from typing import Any

from stages.kernels import njit
from stages.simulation.dice import exponential, normal, uniform

ECAL_RADIUS_CM = 129.0
"""Radius of the front face of the barrel crystals (JINST 3 (2008) S08004, section 4)."""
FIELD_T = 3.8
MIN_ENERGY_GEV = 0.1
MAX_PARTICLES = 256
"""Room for the particles of one event; where it is used up, particles no longer split."""

# Columns of a particle, in a float64[MAX_PARTICLES, N_FIELDS].
CHARGE, ENERGY, X, Y, Z, PHI, COT, LAYER, LEFT = range(9)
N_FIELDS = 9
"""Charge (0 for a photon); energy [GeV]; position [cm]; azimuth of flight; cot theta; layer, and X0 of it left."""


@njit(cache=True, nogil=True)
def _photon_yield(lowest: Any) -> Any:
    """Photons of y > lowest per X0: the integral of the bremsstrahlung spectrum."""
    return 4.0 / 3.0 * (lowest - 1.0 - math.log(lowest)) + 0.5 * (1.0 - lowest * lowest)


@njit(cache=True, nogil=True)
def sample_bremsstrahlung(stream: Any, lowest: Any) -> Any:
    """Fraction y in (lowest, 1) of its energy that a charged particle radiates."""
    while True:
        y = lowest ** uniform(stream)
        if uniform(stream) < 1.0 - y + 0.75 * y * y:
            return y


@njit(cache=True, nogil=True)
def sample_pair(stream: Any) -> Any:
    """Fraction z in (0, 1) of the photon's energy that one of the pair takes."""
    while True:
        z = uniform(stream)
        if uniform(stream) < 1.0 - 4.0 / 3.0 * z * (1.0 - z):
            return z


@njit(cache=True, nogil=True)
def advance(particle: Any, radius: Any) -> Any:
    """Move a particle outwards to a cylinder [cm] on its helix or line; False if it does not get there."""
    phi = particle[PHI]
    if particle[CHARGE] == 0.0:
        along = particle[X] * math.cos(phi) + particle[Y] * math.sin(phi)
        gap = radius * radius - particle[X] * particle[X] - particle[Y] * particle[Y]
        arc = math.sqrt(along * along + gap) - along
        particle[X] += arc * math.cos(phi)
        particle[Y] += arc * math.sin(phi)
        particle[Z] += arc * particle[COT]
        return True
    pt = particle[ENERGY] / math.sqrt(1.0 + particle[COT] * particle[COT])
    turn = pt / (0.00299792458 * FIELD_T)  # radius of the helix, cm
    sign = -particle[CHARGE]  # of the change of azimuth: a positive charge turns clockwise
    centre_x = particle[X] - sign * turn * math.sin(phi)
    centre_y = particle[Y] + sign * turn * math.cos(phi)
    distance = math.hypot(centre_x, centre_y)
    if radius > distance + turn:
        return False
    cosine = (radius * radius - distance * distance - turn * turn) / (2.0 * distance * turn)
    opening = math.acos(min(1.0, max(-1.0, cosine)))
    begin = math.atan2(particle[Y] - centre_y, particle[X] - centre_x)
    middle = math.atan2(centre_y, centre_x)
    angle = min(
        (sign * (middle + opening - begin)) % (2.0 * math.pi),
        (sign * (middle - opening - begin)) % (2.0 * math.pi),
    )
    particle[X] = centre_x + turn * math.cos(begin + sign * angle)
    particle[Y] = centre_y + turn * math.sin(begin + sign * angle)
    particle[Z] += turn * angle * particle[COT]
    particle[PHI] = phi + sign * angle
    return True


@njit(cache=True, nogil=True)
def _split(stream: Any, particle: Any, other: Any) -> Any:
    """Whether a particle converts or radiates in the rest of its layer; then it shares its energy with `other`."""
    if particle[CHARGE] == 0.0:
        rate = 7.0 / 9.0
    elif particle[ENERGY] > MIN_ENERGY_GEV:
        rate = _photon_yield(MIN_ENERGY_GEV / particle[ENERGY])
    else:
        return False
    step = exponential(stream) / rate
    if step >= particle[LEFT]:
        return False
    particle[LEFT] -= step
    other[:] = particle
    if particle[CHARGE] == 0.0:
        other[ENERGY] *= sample_pair(stream)
        particle[CHARGE], other[CHARGE] = 1.0, -1.0
    else:
        other[ENERGY] *= sample_bremsstrahlung(stream, MIN_ENERGY_GEV / particle[ENERGY])
        other[CHARGE] = 0.0
    particle[ENERGY] -= other[ENERGY]
    return True


@njit(cache=True, nogil=True)
def _scatter(stream: Any, particle: Any, x0: Any) -> None:
    """Multiple scattering of a charged particle in a layer of x0 radiation lengths."""
    if particle[CHARGE] == 0.0 or x0 <= 0.0:
        return
    width = 0.0136 / particle[ENERGY] * math.sqrt(x0) * (1.0 + 0.038 * math.log(x0))
    wide = 1.0 + particle[COT] * particle[COT]  # 1 / sin^2 theta
    particle[PHI] += width * normal(stream) * math.sqrt(wide)
    particle[COT] += width * normal(stream) * wide


@njit(cache=True, nogil=True)
def transport(
    stream: Any, radii: Any, thicknesses: Any, n_layers: Any, end_radius: Any, stack: Any, arrivals: Any
) -> Any:
    """Follow the particle in `stack[0]`, and all that comes of it, to the ECAL.

    Parameters
    ----------
    stream : uint64[1]
    radii, thicknesses, n_layers
        The layers of `cross_layers`: all that comes of a particle keeps close enough to its line to share them.
    end_radius : float
        Where the ECAL begins on this line [cm].
    stack, arrivals : float64[MAX_PARTICLES, N_FIELDS]
        The particle to follow, with the LAYER that it left last (-1 for none) and LEFT = 0, and room; the particles at
        `end_radius`.

    Returns
    -------
    int
        How many arrived.
    """
    top, n_arrived = 0, 0
    while top >= 0:
        particle = stack[top]
        if particle[ENERGY] < MIN_ENERGY_GEV:
            top -= 1
            continue
        if particle[LEFT] > 0.0 and top + 1 < MAX_PARTICLES and _split(stream, particle, stack[top + 1]):
            top += 1  # the new one first; the other stays on the stack with what is left of its layer
            continue
        _scatter(stream, particle, particle[LEFT])
        layer = int(particle[LAYER]) + 1
        if not advance(particle, radii[layer] if layer < n_layers else end_radius):
            top -= 1
        elif layer < n_layers:
            particle[LAYER], particle[LEFT] = layer, thicknesses[layer]
        else:
            if n_arrived < MAX_PARTICLES:
                arrivals[n_arrived] = particle
                n_arrived += 1
            top -= 1
    return n_arrived
