"""HCAL cells on the detector frame: from a detid to a tower of 5 x 5 pixels.

A raw detid holds the detector (top 4 bits, 4 is the HCAL), the subdetector (3 bits, 1 is the barrel HB, 2 the
endcaps HE), the layout (bit 24) and the place of the cell (the CMS `HcalDetId` layouts)::

    old  zeros, depth (5 bits), positive side (bit 13), |ieta| (6 bits), iphi (7 bits)
    new  depth (4 bits), positive side (bit 19), |ieta| (9 bits), iphi (10 bits)

HB has |ieta| 1..16, HE 16..29; iphi is 1..72. Beyond |ieta| 20 a cell is two towers wide in phi, and only the
odd iphi exist. The cells of |ieta| 29 share the last tower with those of 28, of which they cover a part.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from stages.detector.grid import HE_TOWER_EDGES, column_of_phi
from stages.detector.layout import N_TOWER_COLUMNS, N_TOWER_ROWS, N_TOWERS
from stages.kernels import njit, vectorize

Uint32s = npt.NDArray[np.uint32]

TOWER_EDGES = np.array([*(0.087 * k for k in range(17)), *HE_TOWER_EDGES])
"""|eta| at the edges of the towers |ieta| 1 to 28."""

_HCAL = 0x40000000
_NEW_LAYOUT = 0x01000000
_MAX_DEPTH = 7


@njit(cache=True, nogil=True)
def hcal_tower(detid: Any) -> Any:
    """Tower (int32) of an HB or HE detid (uint32), or -1 if there is no such cell.

    A cell two towers wide is given as `N_TOWERS` + its first tower. Half of its energy belongs to that tower,
    half to the next one, which is in the same row.
    """
    cell: Any = np.int64(detid)
    if cell & _NEW_LAYOUT:
        iphi, ieta, plus = cell & 0x3FF, (cell >> 10) & 0x1FF, cell & 0x80000
    else:
        iphi, ieta, plus = cell & 0x7F, (cell >> 7) & 0x3F, cell & 0x2000
        if (cell >> 19) & 0x1F:
            return np.int32(-1)
    barrel, endcap = cell >> 25 == 0x21, cell >> 25 == 0x22
    if not ((barrel and 1 <= ieta <= 16) or (endcap and 16 <= ieta <= 29)) or not 1 <= iphi <= 72:
        return np.int32(-1)
    wide = ieta > 20
    if wide and iphi % 2 == 0:
        return np.int32(-1)
    ieta = min(ieta, 28)
    row = 27 + ieta if plus else 28 - ieta
    tower = row * N_TOWER_COLUMNS + (iphi + 1) % N_TOWER_COLUMNS
    return np.int32(N_TOWERS + tower if wide else tower)


@njit(cache=True, nogil=True)
def hcal_towers(detids: Any) -> Any:
    """`hcal_tower` of each detid: uint32[n] -> int32[n]."""
    towers = np.empty(detids.size, np.int32)
    for k in range(detids.size):
        towers[k] = hcal_tower(detids[k])
    return towers


def hcal_detid(ieta: npt.ArrayLike, iphi: npt.ArrayLike, depth: npt.ArrayLike, *, new_layout: bool = True) -> Uint32s:
    """Detids of HCAL cells: HB up to |ieta| 16, HE beyond; ValueError where there is no such cell."""
    eta, phi, layer = np.asarray(ieta, np.int64), np.asarray(iphi, np.int64), np.asarray(depth, np.int64)
    size = np.abs(eta)
    if np.any((size < 1) | (size > 29) | (phi < 1) | (phi > 72) | (layer < 1) | (layer > _MAX_DEPTH)):
        raise ValueError(
            f"no such HCAL cell: ieta runs over -29..-1 and 1..29, iphi over 1..72, depth over 1..{_MAX_DEPTH}"
        )
    if np.any((size > 20) & (phi % 2 == 0)):
        raise ValueError("no such HCAL cell: beyond |ieta| 20 iphi is odd")
    detid = _HCAL + (np.where(size <= 16, 1, 2) << 25)
    if new_layout:
        detid = detid + _NEW_LAYOUT + (layer << 20) + 0x80000 * (eta > 0) + (size << 10) + phi
    else:
        detid = detid + (layer << 14) + 0x2000 * (eta > 0) + (size << 7) + phi
    return np.asarray(detid, np.uint32)


@vectorize(cache=True)
def tower_of_direction(eta: Any, phi: Any) -> Any:
    """Tower that a direction falls in (phi in radians), or -1 outside |eta| <= 3. A ufunc, as those of `grid`.

    By the towers' own edges, which in the barrel are up to 0.004 in eta away from those of five crystals.
    """
    eta, column = np.float64(eta), column_of_phi(np.float64(phi))
    if not abs(eta) <= TOWER_EDGES[-1] or column < 0:
        return np.int32(-1)
    ring = min(np.searchsorted(TOWER_EDGES, abs(eta), side="right"), TOWER_EDGES.size - 1) - 1
    half = N_TOWER_ROWS // 2
    row = half + ring if eta >= 0 else half - 1 - ring
    return np.int32(row * N_TOWER_COLUMNS + column // 5)
