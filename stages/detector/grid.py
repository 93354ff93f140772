"""The 280 x 360 (eta x phi) grid of the detector frame.

In the barrel a pixel is an ECAL crystal. In the endcaps there are five rows to an HCAL tower, and the same
columns. A *pixel* number is `row * N_COLUMNS + column`; -1 stands for "not in the frame". The grid is that of
the CMS end-to-end framework, its towers are those of the CMS hadron calorimeter.

The four functions are NumPy ufuncs: they take scalars and arrays, and work in kernels. Numba compiles them when they
are first called; with their types given it would at every import, which takes half a second.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.detector.layout import N_COLUMNS, N_ROWS
from stages.kernels import vectorize

EB_CELL_ETA = 0.01745
"""Width in eta of a barrel crystal, which is one degree, as it is in phi."""

HE_TOWER_EDGES = (1.479, 1.566, 1.653, 1.740, 1.830, 1.930, 2.043, 2.172, 2.322, 2.500, 2.650, 3.000)
"""Edges in |eta| of the 11 towers that an endcap covers."""


def _eta_edges() -> npt.NDArray[np.float64]:
    barrel = EB_CELL_ETA * np.arange(-84, 85)  # the last crystals end where the endcaps begin
    endcap = np.interp(np.arange(56) / 5, np.arange(12), HE_TOWER_EDGES)
    edges = np.concatenate([-endcap[::-1], barrel, endcap])
    edges.flags.writeable = False
    return edges


ETA_EDGES = _eta_edges()
"""float64[281]: row r covers ETA_EDGES[r] <= eta < ETA_EDGES[r + 1], the last row its upper edge as well."""


@vectorize(cache=True)
def row_of_eta(eta: Any) -> Any:
    """Row that a direction falls in, or -1 outside |eta| <= 3 (and for nan)."""
    eta = np.float64(eta)
    if not ETA_EDGES[0] <= eta <= ETA_EDGES[-1]:
        return np.int32(-1)
    return np.int32(min(np.searchsorted(ETA_EDGES, eta, side="right") - 1, N_ROWS - 1))


@vectorize(cache=True)
def column_of_phi(phi: Any) -> Any:
    """Column of an azimuth in radians, whole turns aside, or -1 if it is not finite.

    Columns are one degree wide and count from -10 degrees, as the crystals of the barrel do.
    """
    phi = np.float64(phi)
    if not math.isfinite(phi):
        return np.int32(-1)
    return np.int32((math.floor(math.degrees(phi) % 360.0) + 10) % 360)


@vectorize(cache=True)
def eta_of_row(row: Any) -> Any:
    """Eta at the middle of a row, or nan outside the frame."""
    if not 0 <= row < N_ROWS:
        return np.nan
    return (ETA_EDGES[row] + ETA_EDGES[row + 1]) / 2


@vectorize(cache=True)
def phi_of_column(column: Any) -> Any:
    """Azimuth in radians, in [-pi, pi), at the middle of a column, or nan outside the frame."""
    if not 0 <= column < N_COLUMNS:
        return np.nan
    return math.radians((column + 170.5) % 360.0 - 180.0)
