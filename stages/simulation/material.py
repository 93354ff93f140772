"""Material of the CMS tracker as thin layers, and the layers that a straight line crosses.

The layers are those of the CMS fast simulation for the tracker of 2017-2018: cylinders and disks whose
thickness in radiation lengths X0, at normal incidence, changes along z or r (CMSSW, `TrackerMaterial_cfi.py` in
`FastSimulation/SimplifiedGeometryPropagator`; S. Abdullin et al., J. Phys. Conf. Ser. 331 (2011) 032049). Radii
and z of the sensitive layers are those of the detector papers (JINST 3 (2008) S08004; the pixel detector since
2017: CMS-TDR-011). Their sum agrees with the published budget: 0.4 X0 at eta = 0, rising to 1.8 X0 at
|eta| = 1.4 (JINST 9 (2014) P10009).
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.kernels import njit
from stages.simulation.layers import TEC_Z_CM

MAX_LAYERS = 64
"""Room for the layers on one line; no line meets more than 40."""

_STRIPS = (0.0, 35.0, 66.0)
_RODS = (0.0, 18.0, 30.0, 36.0, 46.0, 55.0, 108.7)
_ROD_X0 = (0.021, 0.060, 0.030, 0.060, 0.030, 0.060)
_THIN_ROD_X0 = (0.0154, 0.044, 0.022, 0.044, 0.022, 0.044)

# Radius [cm]; edges in |z| [cm]; thickness [X0] between them.
_CYLINDERS: tuple[tuple[float, tuple[float, ...], tuple[float, ...]], ...] = (
    (2.25, (0.0, 28.3), (0.0024,)),  # beam pipe
    (2.9, (0.0, 28.4), (0.0217,)),  # pixel barrel 1..4
    (6.8, (0.0, 28.4), (0.0217,)),
    (10.9, (0.0, 28.4), (0.0217,)),
    (16.0, (0.0, 28.4), (0.0217,)),
    (17.6, (0.0, 27.5, 32.0, 65.0), (0.0135, 0.095, 0.050)),  # pixel services
    (25.767, _STRIPS, (0.053, 0.0769)),  # inner barrel 1..4
    (34.104, _STRIPS, (0.053, 0.0769)),
    (41.974, _STRIPS, (0.035, 0.0508)),
    (49.907, _STRIPS, (0.040, 0.058)),
    (55.1, (0.0, 27.5, 30.5, 72.0, 108.2), (0.009, 0.036, 0.009, 0.0495)),  # wall
    (60.937, _RODS, _ROD_X0),  # outer barrel 1..6
    (69.322, _RODS, _ROD_X0),
    (78.081, _RODS, _THIN_ROD_X0),
    (86.876, _RODS, _THIN_ROD_X0),
    (96.569, _RODS, _THIN_ROD_X0),
    (108.063, _RODS, _THIN_ROD_X0),
    (120.0, (0.0, 120.0, 299.9), (0.042, 0.1596)),  # cables and thermal screen
)

# |z| [cm]; edges in r [cm]; thickness [X0] between them.
_DISKS: tuple[tuple[float, tuple[float, ...], tuple[float, ...]], ...] = (
    (28.7, (7.1, 8.2, 10.0, 11.0, 11.9, 16.5), (0.108, 0.0, 0.112, 0.020, 0.040)),  # pixel services
    (28.8, (3.8, 16.5), (0.012,)),
    (29.1, (4.8, 16.6), (0.058,)),  # pixel disks 1..3
    (39.6, (4.8, 16.6), (0.058,)),
    (51.6, (4.8, 16.6), (0.058,)),
    (65.1, (6.5, 10.0, 11.0, 16.0, 17.61), (0.150, 0.325, 0.250, 0.175)),  # pixel cables
    (74.0, (22.5, 53.9), (0.130,)),  # inner barrel services
    (77.5, (22.2, 34.0, 42.0, 53.9), (0.040, 0.080, 0.040)),  # inner disks 1..3
    (90.0, (22.2, 34.0, 42.0, 53.9), (0.040, 0.080, 0.040)),
    (102.5, (22.2, 34.0, 42.0, 53.9), (0.055, 0.110, 0.055)),
    (108.0, (22.0, 24.0, 47.5, 54.9), (0.111, 0.074, 0.185)),  # inner disk services
    (
        115.0,
        (55.0, 60.0, 62.0, 78.0, 92.0, 111.0),
        (0.005, 0.009, 0.014, 0.016, 0.009),
    ),  # outer barrel services
    *((z, (21.87, 24.0, 34.0, 39.0, 111.4), (0.100, 0.040, 0.080, 0.050)) for z in TEC_Z_CM[:3]),  # end cap disks
    *((z, (29.62, 32.0, 40.0, 41.0, 46.0, 111.4), (0.115, 0.030, 0.050, 0.070, 0.050)) for z in TEC_Z_CM[3:6]),
    *((z, (29.71, 32.0, 60.0, 111.4), (0.150, 0.030, 0.050)) for z in TEC_Z_CM[6:]),
    (300.0, (16.24, 22.0, 28.5, 31.5, 36.0, 120.0), (1.47, 0.924, 0.693, 0.294, 0.336)),  # end cap services
)


def _segments(layers: Any) -> npt.NDArray[np.float64]:
    """One row (place, low edge, high edge, thickness) per piece of constant thickness."""
    rows = [
        (place, low, high, x0)
        for place, edges, thicknesses in layers
        for low, high, x0 in zip(edges[:-1], edges[1:], thicknesses, strict=True)
    ]
    return np.array(rows, np.float64)


_CYLINDER_SEGMENTS = _segments(_CYLINDERS)
_DISK_SEGMENTS = _segments(_DISKS)


@njit(cache=True, nogil=True)
def cross_layers(eta: Any, z_vertex: Any, radii: Any, thicknesses: Any) -> Any:
    """Layers that a straight line from (r = 0, z_vertex [cm]) towards eta crosses, from the inside out.

    Fills `radii` [cm] and `thicknesses` [X0 along the line] (float64[MAX_LAYERS] each) and returns how many.
    """
    slope = math.sinh(eta)  # dz/dr
    n = 0
    for k in range(_CYLINDER_SEGMENTS.shape[0]):
        place, low, high, x0 = _CYLINDER_SEGMENTS[k]
        if low <= abs(z_vertex + place * slope) < high and x0 > 0.0:
            radii[n] = place
            thicknesses[n] = x0 * math.cosh(eta)
            n += 1
    if slope != 0.0:
        for k in range(_DISK_SEGMENTS.shape[0]):
            place, low, high, x0 = _DISK_SEGMENTS[k]
            r = (math.copysign(place, slope) - z_vertex) / slope
            if low <= r < high and x0 > 0.0:
                radii[n] = r
                thicknesses[n] = x0 * math.cosh(eta) / abs(slope)
                n += 1
    for k in range(1, n):  # insertion sort by radius: the cylinders are in order already
        r, x0, j = radii[k], thicknesses[k], k
        while j > 0 and radii[j - 1] > r:
            radii[j], thicknesses[j] = radii[j - 1], thicknesses[j - 1]
            j -= 1
        radii[j], thicknesses[j] = r, x0
    return n


def material_budget(eta: float, z_vertex: float = 0.0) -> float:
    """Thickness of the whole tracker along a line, in X0; z_vertex in cm."""
    radii, thicknesses = np.empty(MAX_LAYERS), np.empty(MAX_LAYERS)
    n = cross_layers(float(eta), float(z_vertex), radii, thicknesses)
    return float(thicknesses[:n].sum())
