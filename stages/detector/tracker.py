"""Tracks and tracker hits on the detector frame: from a direction or a point to a pixel.

The kernels give the pixel, -1 for what is outside the frame, and -2 for a direction that is no number. They find
the same pixels as `grid.row_of_eta` and `grid.column_of_phi`, without their binary search and without inverse
functions: a table of fine bins gives the row or the column, or the one below, and one comparison with its upper
edge decides.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.detector.grid import ETA_EDGES, column_of_phi
from stages.detector.layout import N_COLUMNS, N_ROWS
from stages.kernels import njit

Floats = npt.NDArray[np.float64]
Int16s = npt.NDArray[np.int16]

OUTSIDE = -1
NOT_FINITE = -2

N_BPIX_LAYERS = 4
TIB, TID, TOB, TEC = 3, 4, 5, 6
"""Subdetector numbers of the strip tracker."""
N_STRIP_LAYERS = {TIB: 4, TID: 3, TOB: 6, TEC: 9}

FIELD_T = 3.8
"""Along +z."""
ECAL_RADIUS_CM = 129.0
ECAL_Z_CM = 317.0
"""Where the ECAL begins: the barrel, and the endcaps at either side."""


def _row_guess(edges: Floats, n_bins: int) -> Int16s:
    """Row at the lower end of each of `n_bins` equal bins, which are narrower than the rows."""
    bins = edges[0] + np.arange(n_bins + 1) * ((edges[-1] - edges[0]) / n_bins)
    below = np.searchsorted(edges, bins - 1e-9, side="right") - 1  # below: a kernel's bin may be an ulp off
    return np.asarray(np.clip(below, 0, N_ROWS - 1), np.int16)


def _upper(edges: Floats) -> Floats:
    """Upper edge of each row; the last row takes all that is left."""
    return np.append(edges[1:-1], np.inf)


_ETA_LOW, _ETA_HIGH = float(ETA_EDGES[0]), float(ETA_EDGES[-1])
_N_ETA_BINS = 512
_ETA_BINS = _N_ETA_BINS / (_ETA_HIGH - _ETA_LOW)
_ETA_GUESS = _row_guess(ETA_EDGES, _N_ETA_BINS)
_ETA_UPPER = _upper(ETA_EDGES)

# The same rows by z / r = sinh(eta).
_SLOPE_EDGES = np.sinh(ETA_EDGES)
_SLOPE_LOW, _SLOPE_HIGH = float(_SLOPE_EDGES[0]), float(_SLOPE_EDGES[-1])
_N_SLOPE_BINS = 2048
_SLOPE_BINS = _N_SLOPE_BINS / (_SLOPE_HIGH - _SLOPE_LOW)
_SLOPE_GUESS = _row_guess(_SLOPE_EDGES, _N_SLOPE_BINS)
_SLOPE_UPPER = _upper(_SLOPE_EDGES)

_TURN_BINS = 256
"""Bins to a quarter of a turn; see `_turn_guess`."""


def _turn_guess() -> Int16s:
    """Whole degrees from -180 at the lower end of each bin in the diamond angle.

    The diamond angle `sign(y) * (1 - x / (|x| + |y|))` grows with phi from -2 to 2, a unit of it being two radians
    at most: a bin is 0.45 degrees or less.
    """
    turn = np.clip(np.arange(4 * _TURN_BINS + 1) / _TURN_BINS - 2 - 1e-9, -2, 2)
    x = 1 - np.abs(turn)
    phi = np.arctan2(np.copysign(1 - np.abs(x), turn), x)
    return np.asarray(np.floor(np.degrees(phi)) + 180, np.int16)


_TURN_GUESS = _turn_guess()
# Direction of each upper edge, rounded so that the axes and the diagonals have their exact direction.
_COS_UPPER = np.round(np.cos(np.radians(np.arange(-179, 182))), 14)
_SIN_UPPER = np.round(np.sin(np.radians(np.arange(-179, 182))), 14)


@njit(cache=True, nogil=True)
def direction_pixels(eta: Any, phi: Any) -> Any:
    """Pixels of directions: eta, phi [rad] as float32[n] -> int32[n].

    A pixel is -1 where |eta| > 3 and -2 where eta or phi is not finite.
    """
    pixels = np.empty(eta.size, np.int32)
    for k in range(eta.size):
        e, degrees = np.float64(eta[k]), math.degrees(np.float64(phi[k]))
        if not (math.isfinite(e) and math.isfinite(degrees)):
            pixels[k] = NOT_FINITE
        elif not _ETA_LOW <= e <= _ETA_HIGH:
            pixels[k] = OUTSIDE
        else:
            row = np.int64(_ETA_GUESS[np.int64((e - _ETA_LOW) * _ETA_BINS)])
            row += e >= _ETA_UPPER[row]
            if abs(degrees) < 360.0:  # no remainder to take
                if degrees < 0.0:
                    degrees += 360.0
                column = np.int64(degrees) + 10
                if column >= N_COLUMNS:
                    column -= N_COLUMNS
            else:
                column = column_of_phi(np.float64(phi[k]))
            pixels[k] = row * N_COLUMNS + column
    return pixels


@njit(cache=True, nogil=True, error_model="numpy")
def position_pixels(x: Any, y: Any, z: Any, offsets: Any, vertex: Any) -> Any:
    """Pixels of the directions from a point to hits.

    Parameters
    ----------
    x, y, z : float32[n]
        The hits, in the order of their events [any length].
    offsets : int64[n_events + 1]
        Event k has hits offsets[k] .. offsets[k + 1] - 1; the last one is n.
    vertex : float64[n_events, 3]
        The point of each event, in the same unit.

    Returns
    -------
    int32[n]
        -1 where |eta| > 3 or the hit is straight along z from the point, -2 where a number is not finite.
    """
    pixels = np.empty(x.size, np.int32)
    for event in range(offsets.size - 1):
        x0, y0, z0 = vertex[event, 0], vertex[event, 1], vertex[event, 2]
        for k in range(offsets[event], offsets[event + 1]):
            dx, dy, dz = x[k] - x0, y[k] - y0, z[k] - z0
            r2 = dx * dx + dy * dy
            if not math.isfinite(r2 + abs(dz)):
                pixels[k] = NOT_FINITE
                continue
            slope = dz / math.sqrt(r2)
            if not _SLOPE_LOW <= slope <= _SLOPE_HIGH:  # nor for 0 / 0
                pixels[k] = OUTSIDE
                continue
            row = np.int64(_SLOPE_GUESS[np.int64((slope - _SLOPE_LOW) * _SLOPE_BINS)])
            row += slope >= _SLOPE_UPPER[row]
            turn = math.copysign(1.0 - dx / (abs(dx) + abs(dy)), dy)
            degree = np.int64(_TURN_GUESS[np.int64((turn + 2.0) * _TURN_BINS)])
            degree += _COS_UPPER[degree] * dy >= _SIN_UPPER[degree] * dx
            column = degree + 190
            if column >= N_COLUMNS:
                column -= N_COLUMNS
            pixels[k] = row * N_COLUMNS + column
    return pixels


@njit(cache=True, nogil=True, error_model="numpy")
def propagate(pt: Any, eta: Any, phi: Any, charge: Any, d0: Any, dz: Any, offsets: Any, vertex: Any) -> Any:
    """Where tracks meet the ECAL, on a helix in the field of 3.8 T from their point of closest approach.

    The path starts at the event's vertex + d0 (sin phi, -cos phi) and vertex z + dz. It ends at r = 129 cm or
    |z| = 317 cm, whichever comes first; a track that curls up before that radius goes on to the endcap.

    Parameters
    ----------
    pt, eta, phi : float32[n]
        Momentum at the point of closest approach [GeV, -, rad], tracks in the order of their events.
    charge : int or float, [n]
        In units of e; a positive track turns to smaller phi, a neutral one goes straight.
    d0, dz : float32[n]
        Transverse and longitudinal impact parameters [cm] relative to the vertex.
    offsets : int64[n_events + 1]
        Event k has tracks offsets[k] .. offsets[k + 1] - 1; the last one is n.
    vertex : float64[n_events, 3]
        x, y, z [cm].

    Returns
    -------
    eta, phi : float32[n]
        Of the end of the path, seen from the origin, phi in -pi..pi. Nan where the path meets neither surface,
        does not start inside of them, or a number is not finite.
    """
    eta_out = np.full(pt.size, np.nan, np.float32)
    phi_out = np.full(pt.size, np.nan, np.float32)
    for event in range(offsets.size - 1):
        x0, y0, z0 = vertex[event, 0], vertex[event, 1], vertex[event, 2]
        for t in range(offsets[event], offsets[event + 1]):
            momentum, slope = np.float64(pt[t]), math.sinh(np.float64(eta[t]))
            sin, cos = math.sin(np.float64(phi[t])), math.cos(np.float64(phi[t]))
            x, y, z = x0 + d0[t] * sin, y0 - d0[t] * cos, z0 + dz[t]
            inside = ECAL_RADIUS_CM**2 - x * x - y * y
            if not (momentum > 0.0 and inside > 0.0 and abs(z) < ECAL_Z_CM and math.isfinite(momentum + slope)):
                continue

            # On a path of transverse length s the track turns by curvature * s. The circle gives a quadratic
            # equation for w = tan(curvature * s / 2) / curvature, which is s / 2 on a straight line.
            curvature = -0.01 * 0.3 * FIELD_T * charge[t] / momentum  # [1 / cm]
            along, across = x * cos + y * sin, y * cos - x * sin
            bend = 4.0 * (1.0 + curvature * across) - curvature * curvature * inside
            discriminant = 4.0 * along * along + bend * inside
            length = np.inf
            if discriminant >= 0.0:
                # The root that comes first on the path. Negative: after more than half of the circle.
                w = inside / (2.0 * along + math.sqrt(discriminant))
                if curvature == 0.0:
                    length = 2.0 * w
                else:
                    half_turn = math.atan(abs(curvature) * w)
                    length = 2.0 * (half_turn if half_turn >= 0.0 else half_turn + math.pi) / abs(curvature)
            if slope != 0.0:
                length = min(length, (math.copysign(ECAL_Z_CM, slope) - z) / slope)
            if not length < np.inf:
                continue

            half_turn = 0.5 * curvature * length
            chord = length if curvature == 0.0 else 2.0 * math.sin(half_turn) / curvature
            forward, left = chord * math.cos(half_turn), chord * math.sin(half_turn)
            x += forward * cos - left * sin
            y += forward * sin + left * cos
            z += slope * length
            eta_out[t] = math.asinh(z / math.sqrt(x * x + y * y))
            phi_out[t] = math.atan2(y, x)
    return eta_out, phi_out
