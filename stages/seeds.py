"""Seeds: which objects the taggers want, and the pixel of the frame that each one's crop is around."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from stages.config import TaggerSpec
from stages.detector.ecal import eb_pixel
from stages.detector.grid import column_of_phi, row_of_eta
from stages.detector.hcal import tower_of_direction
from stages.detector.layout import EB_FIRST_ROW, EB_LAST_ROW, N_COLUMNS, N_TOWER_COLUMNS, N_TOWER_ROWS, TOWER
from stages.kernels import argument, ends, njit, vectorize
from stages.records import SEEDED
from streamer.block import Array, Columns

Int32s = npt.NDArray[np.int32]
Int16s = npt.NDArray[np.int16]
Float32s = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]

PHOTON_REACH = 5
"""A photon's seed is searched within so many rows and columns of its direction."""
JET_REACH = 3
"""A jet's seed is searched within so many towers of its axis."""
MAX_JET_SEED_IETA = 16
"""Jets with a seed tower beyond have no seed: their image would leave the detector."""


def selected(columns: Columns, spec: TaggerSpec) -> Bools:
    """Whether a tagger wants each of its objects: pt and |eta|, compared as float32, in which objects come."""
    cut = np.float32(spec.pt_min), np.float32(spec.eta_max)
    return np.asarray(_passes(columns[f"{spec.objects}_pt"], columns[f"{spec.objects}_eta"], *cut), np.bool_)


@vectorize(cache=True)
def _passes(pt: Any, eta: Any, pt_min: Any, eta_max: Any) -> Any:
    return pt > pt_min and abs(eta) < eta_max


class Seeds(NamedTuple):
    """Where the crops of some objects lie in the frame.

    Attributes
    ----------
    rows, columns : int16, shape (n_objects,)
        Of the seed pixel of each object that some tagger wants, -1 where there is none.
    pixels : int32, shape (n_cuts, n_objects)
        `row * 360 + column` for those that each cut selects, else -1.
    """

    rows: Int16s
    columns: Int16s
    pixels: Int32s


def photon_seeds(columns: Columns, ecal: int, cuts: Float32s) -> Seeds:
    """The seeds of photons.

    A seed is the barrel crystal that the input names, else the most energetic barrel pixel within 5 rows and 5 columns
    of the photon's direction (of equals, the first in the frame).

    Parameters
    ----------
    columns : dict
        With the photons and the frame.
    ecal : int
        Place of the ECAL among the frame's channels.
    cuts : float32, shape (n_cuts, 2)
        Above which pt [GeV] and below which |eta| a photon is wanted, in events that a menu's seeds want.
    """
    photons, seed_detid = _objects("Photon", columns), argument(columns["Photon_seedDetId"])
    made = _blank(cuts, seed_detid.size)
    _photon_seeds(*photons, seed_detid, cuts, *frame_columns(columns), ecal, *made)
    return made


def jet_seeds(columns: Columns, objects: str, hcal: int, cuts: Float32s) -> Seeds:
    """The seeds of jets.

    A seed is the middle of the most energetic HCAL tower among the 7 x 7 around the tower that the jet's axis points to
    (of equals, the first in the frame). Jets that point outside the HCAL have none, and neither have those with the
    seed at |ieta| > 16.

    Parameters
    ----------
    columns : dict
        With the jets and the frame.
    objects : str
        `Jet` or `FatJet`.
    hcal : int
        Place of the HCAL among the frame's channels.
    cuts : float32, shape (n_cuts, 2)
        Above which pt [GeV] and below which |eta| a jet is wanted, in events that a menu's seeds want.
    """
    made = _blank(cuts, columns[f"{objects}_pt"].size)
    _jet_seeds(*_objects(objects, columns), cuts, *frame_columns(columns), hcal, *made)
    return made


def _blank(cuts: Float32s, n_objects: int) -> Seeds:
    return Seeds(
        np.empty(n_objects, np.int16), np.empty(n_objects, np.int16), np.empty((len(cuts), n_objects), np.int32)
    )


def _objects(objects: str, columns: Columns) -> tuple[Array | None, ...]:
    """What both kernels take first: which events are wanted at all (None: each), and the objects."""
    names = f"n{objects}", f"{objects}_pt", f"{objects}_eta", f"{objects}_phi"
    seeded = argument(columns[SEEDED.name]) if SEEDED.name in columns else None
    return (seeded, *[argument(columns[name]) for name in names])


def frame_columns(columns: Columns) -> list[Array]:
    """The frame as kernels take it: `nPixel`, `Pixel_index`, `Pixel_value`."""
    return [argument(columns[name]) for name in ("nPixel", "Pixel_index", "Pixel_value")]


@njit(cache=True, nogil=True)
def _photon_seeds(
    seeded: Any, n_photons: Any, pt: Any, eta: Any, phi: Any, seed_detid: Any, cuts: Any,
    n_pixels: Any, index: Any, value: Any, ecal: int, rows: Any, columns: Any, seeds: Any,
) -> None:  # fmt: skip
    photons, pixels = ends(n_photons), ends(n_pixels)
    for event in range(n_photons.size):
        channel = event * n_pixels.shape[1] + ecal
        first, last = pixels[channel], pixels[channel + 1]
        for photon in range(photons[event], photons[event + 1]):
            seed = np.int32(-1)
            if (seeded is None or seeded[event]) and _is_wanted(pt[photon], eta[photon], cuts):
                seed = eb_pixel(seed_detid[photon])
                if seed < 0:
                    seed = _brightest_crystal(eta[photon], phi[photon], index, value, first, last)
            _keep(seed, photon, pt, eta, cuts, rows, columns, seeds)


@njit(cache=True, nogil=True)
def _brightest_crystal(eta: Any, phi: Any, index: Any, value: Any, first: int, last: int) -> Any:
    row, column = row_of_eta(eta), column_of_phi(phi)
    best, most = np.int32(-1), np.float32(0.0)
    if row < 0 or column < 0:  # also for a direction that is no number
        return best
    low = max(row - PHOTON_REACH, EB_FIRST_ROW) * N_COLUMNS
    high = (min(row + PHOTON_REACH, EB_LAST_ROW) + 1) * N_COLUMNS
    for entry in range(first, last):
        pixel = index[entry]
        if not low <= pixel < high:
            continue
        away = abs(pixel % N_COLUMNS - column)
        if min(away, N_COLUMNS - away) <= PHOTON_REACH and (
            value[entry] > most or (value[entry] == most and pixel < best)
        ):
            best, most = pixel, value[entry]
    return best


@njit(cache=True, nogil=True)
def _jet_seeds(
    seeded: Any, n_jets: Any, pt: Any, eta: Any, phi: Any, cuts: Any,
    n_pixels: Any, index: Any, value: Any, hcal: int, rows: Any, columns: Any, seeds: Any,
) -> None:  # fmt: skip
    jets, pixels = ends(n_jets), ends(n_pixels)
    for event in range(n_jets.size):
        channel = event * n_pixels.shape[1] + hcal
        first, last = pixels[channel], pixels[channel + 1]
        for jet in range(jets[event], jets[event + 1]):
            seed = np.int32(-1)
            if (seeded is None or seeded[event]) and _is_wanted(pt[jet], eta[jet], cuts):
                tower = _brightest_tower(eta[jet], phi[jet], index, value, first, last)
                if tower >= 0:
                    seed = _middle_of_tower(tower)
            _keep(seed, jet, pt, eta, cuts, rows, columns, seeds)


@njit(cache=True, nogil=True)
def _brightest_tower(eta: Any, phi: Any, index: Any, value: Any, first: int, last: int) -> Any:
    axis = tower_of_direction(eta, phi)
    best, most = np.int32(-1), np.float32(0.0)
    if axis < 0:  # also for a direction that is no number
        return best
    row, column = axis // N_TOWER_COLUMNS, axis % N_TOWER_COLUMNS
    for entry in range(first, last):
        tower = index[entry]
        if abs(tower // N_TOWER_COLUMNS - row) > JET_REACH:
            continue
        away = abs(tower % N_TOWER_COLUMNS - column)
        if min(away, N_TOWER_COLUMNS - away) <= JET_REACH and (
            value[entry] > most or (value[entry] == most and tower < best)
        ):
            best, most = tower, value[entry]
    return best


@njit(cache=True, nogil=True)
def _middle_of_tower(tower: Any) -> Any:
    """The pixel in the middle of a tower, -1 beyond the |ieta| that a jet's seed may have."""
    row, half = tower // N_TOWER_COLUMNS, N_TOWER_ROWS // 2
    ieta = row - half + 1 if row >= half else half - row
    if ieta > MAX_JET_SEED_IETA:
        return np.int32(-1)
    middle = TOWER // 2
    return np.int32((TOWER * row + middle) * N_COLUMNS + TOWER * (tower % N_TOWER_COLUMNS) + middle)


@njit(cache=True, nogil=True)
def _is_wanted(pt: Any, eta: Any, cuts: Any) -> bool:
    wanted = False
    for cut in range(len(cuts)):
        wanted |= _passes(pt, eta, cuts[cut, 0], cuts[cut, 1])
    return wanted


@njit(cache=True, nogil=True)
def _keep(seed: Any, place: int, pt: Any, eta: Any, cuts: Any, rows: Any, columns: Any, seeds: Any) -> None:
    """Write down the seed of an object."""
    rows[place] = seed // N_COLUMNS if seed >= 0 else -1
    columns[place] = seed % N_COLUMNS if seed >= 0 else -1
    for cut in range(len(cuts)):
        seeds[cut, place] = seed if _passes(pt[place], eta[place], cuts[cut, 0], cuts[cut, 1]) else -1
