"""Charged particles through the tracker: the hits they leave, and the tracks that are found.

A particle flies on its helix until it leaves the tracker, has made half a turn, or meets a nucleus: the material is
that of `material`, and a nuclear interaction length is 3.4 radiation lengths of it, about as the published budgets are
in proportion (0.4 X0 and 0.12 lambda at eta = 0, JINST 9 (2014) P10009). It loses no energy on the way. 98.5 % of the
crossings give a hit, at the point of the crossing smeared by 20 um (pixels) or 0.02 cm (strips). Left out: hits of
secondaries and of converted photons, noise hits, and the strip modules without stereo, which measure one coordinate.

A track is found for pT > 0.3 GeV and |eta| < 2.5 if it began within 30 cm of the beam and left eight hits, with the
efficiency of `_efficiency`. Its resolutions are those of the same paper at |eta| < 1.4, in quadrature: d0 22 um and
87 um GeV / pT; dz 40 um and 145 um GeV / pT; pT 1.2 % and 0.025 % pT / GeV. They widen by cosh(eta)^0.5 or, for dz,
cosh(eta). The directions are good to 0.1 mrad and 1 mrad GeV / pT in phi and to 4e-4 in eta.
"""

import math
from typing import Any

from stages.kernels import njit
from stages.simulation.dice import exponential, normal, uniform
from stages.simulation.helix import along, closest_approach, curvature_of, path_to_radius
from stages.simulation.layers import BPIX, CYLINDERS, DISKS
from stages.simulation.material import cross_layers

HIT_EFFICIENCY = 0.985
PIXEL_SIGMA_CM, STRIP_SIGMA_CM = 0.002, 0.02
X0_PER_LAMBDA = 3.4
MIN_TRACK_PT_GEV, MAX_TRACK_ETA = 0.3, 2.5
MAX_START_CM = 30.0
MIN_HITS = 8
TRACKER_RADIUS_CM, TRACKER_Z_CM = 115.0, 280.0
MAX_HITS = 64
"""Room for the hits of one particle in the pixels, and as much in the strips."""

# Columns of a hit.
HIT_X, HIT_Y, HIT_Z, HIT_SUBDET, HIT_LAYER = range(5)


@njit(cache=True, nogil=True)
def meet_nucleus(stream: Any, eta: Any, z: Any, r: Any, layers: Any) -> Any:
    """Radius [cm] at which a hadron on a straight line meets a nucleus of the tracker, or inf.

    Parameters
    ----------
    stream : uint64[1]
    eta : float
        Of the line.
    z : float
        Where it meets the beam [cm].
    r : float
        Radius at which it begins [cm].
    layers : float64[2, MAX_LAYERS]
        Scratch.
    """
    n = cross_layers(eta, z, layers[0], layers[1])
    left = exponential(stream) * X0_PER_LAMBDA
    for k in range(n):
        if layers[0, k] > r:
            left -= layers[1, k]
            if left < 0.0:
                return layers[0, k]
    return math.inf


@njit(cache=True, nogil=True)
def _keep(stream: Any, x: Any, y: Any, z: Any, subdetector: Any, layer: Any, pixels: Any, strips: Any, n: Any) -> None:
    if uniform(stream) > HIT_EFFICIENCY:
        return
    is_strip = 0 if subdetector == BPIX else 1
    if n[is_strip] >= MAX_HITS:
        return
    sigma = STRIP_SIGMA_CM if is_strip else PIXEL_SIGMA_CM
    hit = strips[n[1]] if is_strip else pixels[n[0]]
    hit[HIT_X] = x + sigma * normal(stream)
    hit[HIT_Y] = y + sigma * normal(stream)
    hit[HIT_Z] = z + sigma * normal(stream)
    hit[HIT_SUBDET], hit[HIT_LAYER] = subdetector, layer
    n[is_strip] += 1


@njit(cache=True, nogil=True)
def leave_hits(
    stream: Any, x: Any, y: Any, z: Any, phi: Any, curvature: Any, cot: Any, end_radius: Any, pixels: Any, strips: Any,
    n: Any,
) -> None:  # fmt: skip
    """Hits of one charged particle.

    Parameters
    ----------
    stream : uint64[1]
    x, y, z, phi, curvature, cot : float
        Its helix: point [cm], azimuth, curvature [1 / cm] and cot(theta) where it begins.
    end_radius : float
        Where it ends before it leaves the tracker [cm], or inf.
    pixels, strips : float64[MAX_HITS, 5]
        Filled with `HIT_X` and following.
    n : int64[2]
        How many there are of each.
    """
    n[:] = 0
    last = math.pi / abs(curvature) if curvature != 0.0 else math.inf  # half a turn
    last = min(last, path_to_radius(x, y, phi, curvature, min(end_radius, TRACKER_RADIUS_CM)))
    if cot != 0.0:
        last = min(last, max(0.0, (math.copysign(TRACKER_Z_CM, cot) - z) / cot))
    for k in range(CYLINDERS.shape[0]):
        radius, half_length, subdetector, layer = CYLINDERS[k]
        s = path_to_radius(x, y, phi, curvature, radius)
        if s > last:
            if x * x + y * y < radius * radius:
                break
            continue  # it begins outside of this layer
        hit_z = z + cot * s
        if abs(hit_z) < half_length:
            hit_x, hit_y = along(x, y, phi, curvature, s)
            _keep(stream, hit_x, hit_y, hit_z, subdetector, layer, pixels, strips, n)
    if abs(z + cot * min(last, 1e4)) < DISKS[0, 0]:
        return
    for k in range(DISKS.shape[0]):
        place, inner, outer, subdetector, layer = DISKS[k]
        s = (math.copysign(place, cot) - z) / cot
        if s > last:
            break
        if s > 0.0:
            hit_x, hit_y = along(x, y, phi, curvature, s)
            if inner < math.hypot(hit_x, hit_y) < outer:
                hit_z = math.copysign(place, cot)
                _keep(stream, hit_x, hit_y, hit_z, subdetector, layer, pixels, strips, n)


@njit(cache=True, nogil=True)
def _efficiency(pt: Any) -> Any:
    """Of a charged particle that left enough hits: 0.80 at 0.3 GeV, 0.97 from 0.9 GeV on."""
    return min(0.97, 0.80 + 0.17 * (pt - 0.3) / 0.6)


@njit(cache=True, nogil=True)
def find_track(
    stream: Any, x: Any, y: Any, z: Any, phi: Any, pt: Any, charge: Any, cot: Any, n_hits: Any, vertex: Any, track: Any
) -> Any:
    """Measure a track: fills `track` with pt [GeV], eta, phi, d0, dz [cm] at the point closest to the vertex.

    Parameters
    ----------
    stream : uint64[1]
    x, y, z, phi, pt, charge, cot : float
        The particle where it begins.
    n_hits : int
        That it left.
    vertex : float64[3]
        The reconstructed primary vertex [cm].
    track : float64[5]

    Returns
    -------
    bool
        Whether it was found.
    """
    eta = math.asinh(cot)
    if n_hits < MIN_HITS or pt < MIN_TRACK_PT_GEV or abs(eta) > MAX_TRACK_ETA or math.hypot(x, y) > MAX_START_CM:
        return False
    if uniform(stream) > _efficiency(pt):
        return False
    curvature = curvature_of(charge, pt)
    phi, d0, s = closest_approach(x, y, phi, curvature, vertex[0], vertex[1])
    wide = math.sqrt(1.0 + cot * cot)
    relative = math.hypot(0.012, 2.5e-4 * pt) * math.sqrt(wide)
    track[0] = pt / max(0.1, 1.0 + relative * normal(stream))
    track[1] = math.asinh(cot + 4e-4 * wide * normal(stream))
    track[2] = phi + math.hypot(1e-4, 1e-3 / pt) * normal(stream)
    track[3] = d0 + math.hypot(22e-4, 87e-4 / pt) * math.sqrt(wide) * normal(stream)
    track[4] = z + cot * s - vertex[2] + math.hypot(40e-4, 145e-4 / pt) * wide * normal(stream)
    return True
