"""Helices in the solenoid's 3.8 T, by the length of their path in the transverse plane.

A path starts at (x, y, z) with azimuth phi; after a transverse length s [cm] it is at::

    x + (sin(phi + k s) - sin(phi)) / k,   y - (cos(phi + k s) - cos(phi)) / k,   z + s cot(theta)

with the curvature k = -0.3 B q / pT (0.00299792458 per cm, T and GeV). A neutral particle has k = 0.
"""

import math
from typing import Any

from stages.detector.tracker import FIELD_T
from stages.kernels import njit


@njit(cache=True, nogil=True)
def curvature_of(charge: Any, pt: Any) -> Any:
    """Curvature [1 / cm]; positive charges turn to smaller phi. pt in GeV."""
    return -0.00299792458 * FIELD_T * charge / pt


@njit(cache=True, nogil=True)
def along(x: Any, y: Any, phi: Any, curvature: Any, s: Any) -> Any:
    """x, y [cm] after a transverse path s [cm]."""
    half = 0.5 * curvature * s
    chord = s if curvature == 0.0 else 2.0 * math.sin(half) / curvature
    return x + chord * math.cos(phi + half), y + chord * math.sin(phi + half)


@njit(cache=True, nogil=True)
def path_to_radius(x: Any, y: Any, phi: Any, curvature: Any, radius: Any) -> Any:
    """Transverse path [cm] from a point inside to the cylinder of this radius [cm]; inf if it turns back before."""
    inside = radius * radius - x * x - y * y
    if inside <= 0.0:
        return math.inf
    forward, across = x * math.cos(phi) + y * math.sin(phi), y * math.cos(phi) - x * math.sin(phi)
    bend = 4.0 * (1.0 + curvature * across) - curvature * curvature * inside
    discriminant = 4.0 * forward * forward + bend * inside
    if discriminant < 0.0:
        return math.inf
    w = inside / (2.0 * forward + math.sqrt(discriminant))  # tan(k s / 2) / k
    if curvature == 0.0:
        return 2.0 * w
    half_turn = math.atan(abs(curvature) * w)
    return 2.0 * (half_turn if half_turn >= 0.0 else half_turn + math.pi) / abs(curvature)


@njit(cache=True, nogil=True)
def closest_approach(x: Any, y: Any, phi: Any, curvature: Any, x0: Any, y0: Any) -> Any:
    """Where a helix comes closest to a line along the beam at x0, y0 [cm].

    Returns
    -------
    phi, d0, s : float
        Azimuth of flight there; d0 = (x - x0) sin(phi) - (y - y0) cos(phi) [cm]; the transverse path from the start
        of the helix to that point [cm], negative where the helix starts behind it.
    """
    dx, dy = x - x0, y - y0
    if curvature == 0.0:
        return phi, dx * math.sin(phi) - dy * math.cos(phi), -(dx * math.cos(phi) + dy * math.sin(phi))
    # The centre lies at distance 1 / |k| to the left of the flight for k > 0.
    centre_x, centre_y = dx - math.sin(phi) / curvature, dy + math.cos(phi) / curvature
    sign = 1.0 if curvature > 0.0 else -1.0
    there = math.atan2(-sign * centre_x, sign * centre_y)
    d0 = -sign * (math.hypot(centre_x, centre_y) - 1.0 / abs(curvature))
    turn = (there - phi + math.pi) % (2.0 * math.pi) - math.pi
    return there, d0, turn / curvature
