"""ECAL cells on the detector frame: from a detid to a pixel.

A raw detid holds the detector (top 4 bits, 3 is the ECAL), the subdetector (3 bits, 1 is the barrel EB, 2 the
endcaps EE), zeros, and the place of the crystal (the CMS `EBDetId` and `EEDetId` layouts)::

    EB   positive side (bit 16), |ieta| (7 bits), iphi (9 bits)      ieta -85..-1 and 1..85, iphi 1..360
    EE   positive side (bit 14), ix (7 bits), iy (7 bits)            ix, iy 1..100

A barrel crystal is a pixel. An endcap crystal belongs to the pixel of its centre, by which the centre of its
front face is meant: it gives the eta and phi that CMS stores with the rechits to 1e-5, whereas the centre of
the whole crystal is 0.01 off in eta.

The endcap geometry here is a fit to the one that CMS publishes, as CMS Open Data, for its event display.
`load_ee_geometry` reads such a file instead, for a detector that differs.
"""

import gzip
import json
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages.detector.grid import EB_CELL_ETA, ETA_EDGES, column_of_phi, phi_of_column
from stages.detector.layout import EB_FIRST_ROW, EB_LAST_ROW, N_COLUMNS, N_ROWS
from stages.kernels import njit

Int32s = npt.NDArray[np.int32]
Uint32s = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float64]

N_EE_INDICES = 2 * 100 * 100
"""Length of an endcap table, side x ix x iy. Only `N_EE_CRYSTALS` of these places hold a crystal."""
N_EE_CRYSTALS = 14_648

_EB = 0x32000000
_EE = 0x34000000


@njit(cache=True, nogil=True)
def eb_pixel(detid: Any) -> Any:
    """Pixel (int32) of a barrel detid (uint32), or -1 if there is no such crystal."""
    ieta = (detid >> 9) & 0x7F
    iphi = detid & 0x1FF
    if detid >> 17 != _EB >> 17 or not 1 <= ieta <= 85 or not 1 <= iphi <= 360:
        return np.int32(-1)
    row = EB_FIRST_ROW + (84 + ieta if detid & 0x10000 else 85 - ieta)
    return np.int32(row * N_COLUMNS + iphi - 1)


@njit(cache=True, nogil=True)
def ee_index(detid: Any) -> Any:
    """Place (int32) of an endcap detid (uint32) in a table of `N_EE_INDICES`, or -1 if it is none.

    The table counts `((side * 100) + ix - 1) * 100 + iy - 1`, with side 0 for EE- and 1 for EE+.
    """
    ix = (detid >> 7) & 0x7F
    iy = detid & 0x7F
    if detid >> 15 != _EE >> 15 or not 1 <= ix <= 100 or not 1 <= iy <= 100:
        return np.int32(-1)
    side = (detid >> 14) & 1
    return np.int32((side * 100 + ix - 1) * 100 + iy - 1)


@njit(cache=True, nogil=True)
def eb_pixels(detids: Any) -> Any:
    """`eb_pixel` of each detid: uint32[n] -> int32[n]."""
    pixels = np.empty(detids.size, np.int32)
    for k in range(detids.size):
        pixels[k] = eb_pixel(detids[k])
    return pixels


@njit(cache=True, nogil=True)
def ee_pixels(detids: Any, table: Any) -> Any:
    """Pixel of each endcap detid, or -1, by a table int32[N_EE_INDICES]: uint32[n] -> int32[n]."""
    pixels = np.empty(detids.size, np.int32)
    for k in range(detids.size):
        index = ee_index(detids[k])
        pixels[k] = table[index] if index >= 0 else -1
    return pixels


def eb_detid(ieta: npt.ArrayLike, iphi: npt.ArrayLike) -> Uint32s:
    """Barrel detids; ValueError where there is no such crystal."""
    eta, phi = np.asarray(ieta, np.int64), np.asarray(iphi, np.int64)
    if np.any((eta == 0) | (np.abs(eta) > 85) | (phi < 1) | (phi > 360)):
        raise ValueError("no such barrel crystal: ieta runs over -85..-1 and 1..85, iphi over 1..360")
    return np.asarray(_EB + 0x10000 * (eta > 0) + (np.abs(eta) << 9) + phi, np.uint32)


def ee_detid(ix: npt.ArrayLike, iy: npt.ArrayLike, zside: npt.ArrayLike) -> Uint32s:
    """Endcap detids, zside being -1 or 1; ValueError outside the 100 x 100 places, crystal or not."""
    x, y, z = np.asarray(ix, np.int64), np.asarray(iy, np.int64), np.asarray(zside, np.int64)
    if np.any((x < 1) | (x > 100) | (y < 1) | (y > 100) | (np.abs(z) != 1)):
        raise ValueError("no such endcap place: ix and iy run over 1..100, zside is -1 or 1")
    return np.asarray(_EE + 0x4000 * (z > 0) + (x << 7) + y, np.uint32)


def eb_centre(detid: npt.ArrayLike) -> tuple[Floats, Floats]:
    """Eta and phi [rad, in -pi..pi] of barrel crystals, within 0.011 and 0.0026; nan where there is none."""
    detids = np.asarray(detid, np.uint32)
    pixels = eb_pixels(detids.ravel()).reshape(detids.shape)
    row, column = np.divmod(pixels, N_COLUMNS)
    eta = np.where(pixels < 0, np.nan, (row - (EB_FIRST_ROW + EB_LAST_ROW) / 2) * EB_CELL_ETA)
    return eta, phi_of_column(np.where(pixels < 0, -1, column))


# A quadrant of an endcap, in crystals from the middle: column i holds _EE_INNER[i] <= j < _EE_OUTER[i].
_EE_INNER = np.repeat([11, 10, 9, 8, 7, 5, 0], [5, 2, 1, 1, 1, 1, 39])
_EE_OUTER = np.repeat([50, 47, 45, 42, 37, 35, 30, 25, 15, 10], [10, 5, 10, 5, 5, 2, 5, 3, 2, 3])


def ee_crystals() -> npt.NDArray[np.bool_]:
    """Where an endcap has crystals: bool[100, 100] over ix - 1, iy - 1. Both endcaps are alike."""
    cell, _ = _from_middle()
    i, j = cell[:, None], cell[None, :]
    return (j >= _EE_INNER[i]) & (j < _EE_OUTER[i])


def ee_centres() -> Floats:
    """Front-face centres of the EE+ crystals, within 0.1 mm; mirror z for EE-.

    The crystals of a supercrystal lie on a flat grid of 5 x 5, which is turned by `beta` about the x axis and
    then by `alpha` about the y axis. The centre and the angles of supercrystal (i, j), counted from the
    middle, are the polynomials below: 22 coefficients, with the pitch, fitted to the published geometry.

    Returns
    -------
    float64[100, 100, 3]
        x, y, z in mm over ix - 1, iy - 1, also where there is no crystal.
    """
    cell, sign = _from_middle()
    sx, sy = sign[:, None], sign[None, :]
    i, j = cell[:, None] // 5, cell[None, :] // 5  # supercrystal, 0..9
    pitch = 29.124
    a, b = pitch * (cell[:, None] % 5 - 2), pitch * (cell[None, :] % 5 - 2)  # place on its grid

    alpha = 0.002451 + 0.033211 * i - 6.36e-5 * i**2
    beta = 0.00233 + 0.031415 * j
    x = 74.463 + 147.235 * i + 0.07615 * i**2 + 0.027058 * i**3 - 0.015 * j + 0.074 * i * j
    y = 73.83 + 147.238 * j + 0.0614 * j**2 + 0.02567 * j**3
    z = 3175.077 + 2.456 * i - 0.0171 * i**2 + 2.303 * j - 0.0081 * j**2 - 0.0084 * i * j
    x = x + a * np.cos(alpha) - b * np.sin(alpha) * np.sin(beta)
    y = y + b * np.cos(beta)
    z = z - a * np.sin(alpha) - b * np.cos(alpha) * np.sin(beta)
    return np.stack(np.broadcast_arrays(sx * x, sy * y, z), axis=-1)


def ee_pixel_table() -> Int32s:
    """Pixel of each endcap crystal by `ee_index`: int32[N_EE_INDICES], -1 where there is no crystal.

    By `ee_centres`, 99.8 % of the crystals are in the pixel of their published centre, the others next to it.
    """
    plus = ee_centres().reshape(-1, 3)
    pixels = _endcap_pixels(np.concatenate([plus * [1, 1, -1], plus]))
    return np.where(np.tile(ee_crystals().ravel(), 2), pixels, np.int32(-1))


def load_ee_geometry(path: Path | str) -> Int32s:
    """Endcap table from a user's geometry file, in place of `ee_pixel_table`.

    Parameters
    ----------
    path : path
        Gzipped JSON as for the CMS event display, `{"Collections": {name: [[detid, 8 corners], ...]}}`. A
        corner is `[x, y, z]` [m], the first four are the front face. It must hold every crystal once.

    Raises
    ------
    ValueError
        One line that says what is wrong, in which row.
    """
    path = Path(path)
    try:
        with gzip.open(path) as file:
            collections = json.load(file)["Collections"]
        rows = [(f"{name}[{k}]", row) for name, rows in collections.items() for k, row in enumerate(rows)]
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: an EE geometry must be a gzipped JSON file: {error}") from None
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f'{path}: an EE geometry must hold {{"Collections": {{name: [rows]}}}}') from None

    exists = np.tile(ee_crystals().ravel(), 2)
    centres = np.full((N_EE_INDICES, 3), np.nan)
    for place, row in rows:
        try:
            index, centre = _read_crystal(row, exists)
            if not np.isnan(centres[index, 0]):
                raise ValueError(f"detid {row[0]} comes a second time")
        except ValueError as error:
            raise ValueError(f"{path}: {place}: {error}") from None
        centres[index] = centre
    n_found = np.count_nonzero(~np.isnan(centres[:, 0]))
    if n_found != N_EE_CRYSTALS:
        raise ValueError(f"{path}: holds {n_found} of {N_EE_CRYSTALS} EE crystals, and must hold them all")
    table = np.full(N_EE_INDICES, -1, np.int32)
    table[exists] = _endcap_pixels(centres[exists])
    return table


def _read_crystal(row: Any, exists: npt.NDArray[np.bool_]) -> tuple[int, Floats]:
    """Index and front-face centre of a row of a geometry file; ValueError if it is no endcap crystal."""
    try:
        detid, *corners = row
        index = int(ee_index.py_func(detid))  # not compiled, so that a number of any size may come
        points = np.array(corners, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise ValueError("a row must be [detid, 8 corners of x, y, z]") from None
    if points.shape != (8, 3) or not np.isfinite(points).all():
        raise ValueError("a row must be [detid, 8 corners of x, y, z], all of them finite")
    if index < 0 or not exists[index]:
        raise ValueError(f"no EE crystal has the detid {detid}")
    centre = points[:4].mean(axis=0)
    rho, z = np.hypot(centre[0], centre[1]), centre[2] if index >= N_EE_INDICES // 2 else -centre[2]
    if not np.sinh(1.4) * rho < z < np.sinh(3.1) * rho:
        raise ValueError(f"the front face of detid {detid} is not in its endcap, 1.4 < |eta| < 3.1")
    return index, centre


def _endcap_pixels(centres: Floats) -> Int32s:
    """Pixels of endcap crystals by their centres, float64[n, 3] -> int32[n].

    An endcap crystal is always in an endcap row: short of |eta| 1.479 in the first, beyond 3.0 in the last.
    (The published centres lie between 1.489 and 2.932.)
    """
    x, y, z = centres.T
    row = np.searchsorted(ETA_EDGES, np.arcsinh(abs(z) / np.hypot(x, y)), side="right") - 1
    row = np.clip(row, EB_LAST_ROW + 1, N_ROWS - 1)
    row = np.where(z > 0, row, N_ROWS - 1 - row)
    return np.asarray(row * N_COLUMNS + column_of_phi(np.arctan2(y, x)), np.int32)


def _from_middle() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For ix (or iy) 1..100: which crystal it is from the middle, 0..49, and on which side, -1 or 1."""
    number = np.arange(1, 101)
    return np.where(number > 50, number - 51, 50 - number), np.where(number > 50, 1, -1)
