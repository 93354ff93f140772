"""Crystals of the ECAL endcaps by the place where a shower hits them."""

from typing import Any

import numpy as np

from stages.detector.ecal import ee_centres, ee_crystals
from stages.detector.tracker import ECAL_Z_CM
from stages.kernels import njit

_BIN_CM = 0.5
_HALF_WIDTH_CM = 175.0
_N_BINS = int(2 * _HALF_WIDTH_CM / _BIN_CM)

EE_CRYSTALS = ee_crystals().ravel()
"""bool[10,000] over (ix - 1) * 100 + iy - 1: where there is a crystal."""
_CENTRES = ee_centres().reshape(-1, 3)
EE_COSH_ETA = np.linalg.norm(_CENTRES, axis=1) / np.hypot(_CENTRES[:, 0], _CENTRES[:, 1])
"""float64[10,000]: cosh(eta) of their centres."""


@njit(cache=True)
def _nearest(x: Any, y: Any, exists: Any) -> Any:
    """The crystal closest to the middle of each bin, -1 where none is within 2.2 cm: int32[_N_BINS, _N_BINS]."""
    table = np.full((_N_BINS, _N_BINS), -1, np.int32)
    best = np.full((_N_BINS, _N_BINS), 2.2**2)
    reach = 5
    for crystal in range(x.size):
        if not exists[crystal]:
            continue
        i0, j0 = int((x[crystal] + _HALF_WIDTH_CM) / _BIN_CM), int((y[crystal] + _HALF_WIDTH_CM) / _BIN_CM)
        for i in range(max(0, i0 - reach), min(_N_BINS, i0 + reach + 1)):
            for j in range(max(0, j0 - reach), min(_N_BINS, j0 + reach + 1)):
                dx = (i + 0.5) * _BIN_CM - _HALF_WIDTH_CM - x[crystal]
                dy = (j + 0.5) * _BIN_CM - _HALF_WIDTH_CM - y[crystal]
                if dx * dx + dy * dy < best[i, j]:
                    best[i, j] = dx * dx + dy * dy
                    table[i, j] = crystal
    return table


_SCALE = 10 * ECAL_Z_CM / _CENTRES[:, 2]  # as seen from the middle of CMS, in the plane where the endcap begins
EE_TABLE = _nearest(0.1 * _CENTRES[:, 0] * _SCALE, 0.1 * _CENTRES[:, 1] * _SCALE, EE_CRYSTALS)
"""For `ee_cell`. Kernels are handed it, as a global array would be compiled into each of them."""


@njit(cache=True, nogil=True)
def ee_cell(table: Any, x: Any, y: Any, z: Any) -> Any:
    """`ee_index` of the crystal at x, y [cm] in the plane |z| = 317 cm, or -1.

    `table` is `EE_TABLE`; of z only the sign counts.
    """
    i, j = int((x + _HALF_WIDTH_CM) / _BIN_CM), int((y + _HALF_WIDTH_CM) / _BIN_CM)
    if not (0 <= i < _N_BINS and 0 <= j < _N_BINS):
        return -1
    crystal = table[i, j]
    if crystal < 0:
        return -1
    return crystal + (10_000 if z > 0.0 else 0)
