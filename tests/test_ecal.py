"""ECAL detids on the detector frame, held against the published geometry and the rechits of real events."""

import gzip
import json
import re
import zipfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numba import njit

from stages.detector import ecal, grid

DATA = Path(__file__).parents[2] / "shared" / "cms-open-data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the published CMS events and geometry are not at {DATA}")

Array = npt.NDArray[Any]
TOWERS = [1.479, 1.566, 1.653, 1.740, 1.830, 1.930, 2.043, 2.172, 2.322, 2.500, 2.650, 3.000]


# --- The grid ---


def test_edges_are_those_of_the_barrel_cells_and_of_five_rows_a_tower() -> None:
    edges = grid.ETA_EDGES
    assert edges.shape == (grid.N_ROWS + 1,)
    assert np.all(np.diff(edges) > 0)
    np.testing.assert_allclose(edges, -edges[::-1])
    np.testing.assert_allclose(edges[225::5], TOWERS)
    np.testing.assert_allclose(edges[226:231] - edges[225:230], (1.566 - 1.479) / 5)
    np.testing.assert_allclose(edges[140:225], 0.01745 * np.arange(85), atol=1e-12)


def test_middle_of_each_row_and_column_is_in_it() -> None:
    rows, columns = np.arange(grid.N_ROWS), np.arange(grid.N_COLUMNS)
    np.testing.assert_array_equal(grid.row_of_eta(grid.eta_of_row(rows)), rows)
    np.testing.assert_array_equal(grid.column_of_phi(grid.phi_of_column(columns)), columns)
    assert np.isnan(grid.eta_of_row(np.array([-1, grid.N_ROWS]))).all()
    assert np.isnan(grid.phi_of_column(np.array([-1, grid.N_COLUMNS]))).all()


@pytest.mark.parametrize(
    ("eta", "row"),
    [(0.0, 140), (-0.001, 139), (1.478, 224), (1.4791, 225), (2.9999, 279), (3.0, 279), (-3.0, 0)]
    + [(eta, -1) for eta in (np.nextafter(3.0, 4.0), np.nextafter(-3.0, -4.0), np.nan, np.inf, -np.inf)],
)
def test_row_of_eta(eta: float, row: int) -> None:
    assert grid.row_of_eta(eta) == row


@pytest.mark.parametrize(
    ("degrees", "column"),
    [
        *[(0.5, 10), (-0.5, 9), (-9.5, 0), (-10.5, 359), (179.5, 189), (180.0, 190), (-180.0, 190)],
        *[(-179.5, 190), (350.5, 0), (-369.5, 0), (np.nan, -1), (np.inf, -1), (-np.inf, -1)],
    ],
)
def test_column_of_phi_wraps(degrees: float, column: int) -> None:
    with np.errstate(invalid="ignore"):  # NumPy warns of an infinity, as it does in its own functions
        assert grid.column_of_phi(np.radians(degrees)) == column


# --- The barrel ---


def all_barrel() -> tuple[Array, Array]:
    ieta = np.concatenate([np.arange(-85, 0), np.arange(1, 86)])
    return np.repeat(ieta, 360), np.tile(np.arange(1, 361), 170)


def test_barrel_fills_its_rows_in_order_of_ieta_and_iphi() -> None:
    pixels = ecal.eb_pixels(ecal.eb_detid(*all_barrel()))
    assert pixels.dtype == np.int32
    np.testing.assert_array_equal(pixels, np.arange(55 * 360, 225 * 360))


def test_barrel_builder_writes_the_published_bits() -> None:
    ieta, iphi = all_barrel()
    detids = ecal.eb_detid(ieta, iphi)
    assert detids.dtype == np.uint32
    np.testing.assert_array_equal(detids & 0x1FF, iphi)
    np.testing.assert_array_equal(np.where(detids & 0x10000, 1, -1) * ((detids >> 9) & 0x7F), ieta)
    assert ecal.eb_detid(-1, 1) == 838861313  # a crystal of the published geometry


def test_barrel_centres_are_in_their_pixels() -> None:
    detids = ecal.eb_detid(*all_barrel())
    eta, phi = ecal.eb_centre(detids)
    pixels = grid.row_of_eta(eta) * grid.N_COLUMNS + grid.column_of_phi(phi)
    np.testing.assert_array_equal(pixels, ecal.eb_pixels(detids))
    assert np.isnan(ecal.eb_centre(0)).all()


@pytest.mark.parametrize(
    "detid",
    [
        pytest.param(0, id="zero"),
        pytest.param(0xFFFFFFFF, id="ones"),
        pytest.param(0x32000000 | 1, id="ieta-0"),
        pytest.param(0x32000000 | 86 << 9 | 1, id="ieta-86"),
        pytest.param(0x32000000 | 1 << 9, id="iphi-0"),
        pytest.param(0x32000000 | 1 << 9 | 361, id="iphi-361"),
        pytest.param(0x34000000 | 1 << 9 | 1, id="endcap"),
        pytest.param(0x42000000 | 1 << 9 | 1, id="hcal"),
        pytest.param(0x32000000 | 1 << 20 | 1 << 9 | 1, id="spare-bit"),
    ],
)
def test_impossible_barrel_detid(detid: int) -> None:
    assert ecal.eb_pixel(np.uint32(detid)) == -1
    assert ecal.eb_pixels(np.array([detid], np.uint32)) == -1


@pytest.mark.parametrize(("ieta", "iphi"), [(0, 1), (86, 1), (-86, 1), (1, 0), (1, 361)])
def test_barrel_builder_refuses(ieta: int, iphi: int) -> None:
    with pytest.raises(ValueError, match="no such barrel crystal"):
        ecal.eb_detid([1, ieta], [1, iphi])


# --- The endcaps ---


def all_endcap() -> tuple[Array, Array, Array]:
    """ix, iy, zside of the 14,648 crystals in the order of `ee_index`."""
    ix, iy = np.nonzero(ecal.ee_crystals())
    return np.tile(ix + 1, 2), np.tile(iy + 1, 2), np.repeat([-1, 1], ix.size)


def test_endcaps_hold_7324_crystals_each_in_four_equal_quadrants() -> None:
    crystals = ecal.ee_crystals()
    assert crystals.sum() == 7324
    assert (crystals == crystals[::-1]).all()
    assert (crystals == crystals[:, ::-1]).all()
    assert (crystals == crystals.T).all()
    table = ecal.ee_pixel_table().reshape(2, 100, 100)
    assert table.dtype == np.int32
    np.testing.assert_array_equal(table >= 0, [crystals, crystals])
    assert np.count_nonzero(table >= 0) == ecal.N_EE_CRYSTALS == 14_648


@pytest.mark.parametrize(
    ("ix", "iy", "published"),
    [
        (1, 41, (-1481.28, -279.36, 3179.16)),
        (100, 60, (1481.28, 279.36, 3179.16)),
        (83, 21, (966.80, -872.28, 3191.20)),
    ],
)
def test_endcap_centres_are_within_a_tenth_of_a_millimetre_of_published_ones(
    ix: int, iy: int, published: tuple[float, float, float]
) -> None:
    assert np.linalg.norm(ecal.ee_centres()[ix - 1, iy - 1] - published) < 0.1


def test_endcaps_mirror_each_other_on_their_own_rows() -> None:
    minus, plus = ecal.ee_pixel_table().reshape(2, -1)
    minus, plus = minus[minus >= 0], plus[plus >= 0]
    np.testing.assert_array_equal(minus // 360 + plus // 360, 279)
    np.testing.assert_array_equal(minus % 360, plus % 360)
    assert (plus // 360).min() == 225
    assert (plus // 360).max() == 279


def test_endcap_builder_writes_the_published_bits_and_the_index_reads_them() -> None:
    ix, iy, zside = all_endcap()
    detids = ecal.ee_detid(ix, iy, zside)
    assert detids.dtype == np.uint32
    np.testing.assert_array_equal(detids & 0x7F, iy)
    np.testing.assert_array_equal((detids >> 7) & 0x7F, ix)
    np.testing.assert_array_equal((detids & 0x4000) > 0, zside > 0)
    index = np.array([ecal.ee_index(detid) for detid in detids])
    np.testing.assert_array_equal(np.unravel_index(index, (2, 100, 100)), [zside > 0, ix - 1, iy - 1])
    assert ecal.ee_detid(1, 41, 1) == 872431785  # a crystal of the published geometry
    table = ecal.ee_pixel_table()
    np.testing.assert_array_equal(ecal.ee_pixels(detids, table), table[table >= 0])


@pytest.mark.parametrize(
    "detid",
    [
        pytest.param(0, id="zero"),
        pytest.param(0xFFFFFFFF, id="ones"),
        pytest.param(0x34000000 | 50, id="ix-0"),
        pytest.param(0x34000000 | 101 << 7 | 50, id="ix-101"),
        pytest.param(0x34000000 | 50 << 7, id="iy-0"),
        pytest.param(0x34000000 | 50 << 7 | 101, id="iy-101"),
        pytest.param(0x32000000 | 20 << 7 | 50, id="barrel"),
        pytest.param(0x44000000 | 20 << 7 | 50, id="hcal"),
        pytest.param(0x34000000 | 1 << 15 | 20 << 7 | 50, id="spare-bit"),
    ],
)
def test_impossible_endcap_detid(detid: int) -> None:
    assert ecal.ee_index(np.uint32(detid)) == -1
    assert ecal.ee_pixels(np.array([detid], np.uint32), np.zeros(ecal.N_EE_INDICES, np.int32)) == -1


def test_a_place_without_a_crystal_has_no_pixel() -> None:
    detids = ecal.ee_detid([1, 50, 100], [1, 50, 100], [1, -1, 1])
    np.testing.assert_array_equal(ecal.ee_pixels(detids, ecal.ee_pixel_table()), -1)


@pytest.mark.parametrize(("ix", "iy", "zside"), [(0, 1, 1), (101, 1, 1), (1, 0, 1), (1, 101, 1), (1, 1, 0), (1, 1, 2)])
def test_endcap_builder_refuses(ix: int, iy: int, zside: int) -> None:
    with pytest.raises(ValueError, match="no such endcap place"):
        ecal.ee_detid([1, ix], [1, iy], [1, zside])


def test_all_of_it_works_inside_a_kernel() -> None:
    def kernel(detids: Any, table: Any, eta: Any, phi: Any) -> Any:
        return (
            eb_pixel(detids[0]),
            table[ee_index(detids[1])],
            row_of_eta(eta) * 360 + column_of_phi(phi),
            row_of_eta(eta_of_row(17)) + column_of_phi(phi_of_column(4)),
        )

    eb_pixel, ee_index, row_of_eta, column_of_phi = (
        ecal.eb_pixel,
        ecal.ee_index,
        grid.row_of_eta,
        grid.column_of_phi,
    )
    eta_of_row, phi_of_column = grid.eta_of_row, grid.phi_of_column
    detids = np.array([ecal.eb_detid(-1, 1), ecal.ee_detid(1, 41, 1)], np.uint32)
    table = np.arange(ecal.N_EE_INDICES, dtype=np.int32)
    assert njit(kernel)(detids, table, 0.01, 0.01) == (139 * 360, 10_040, 140 * 360 + 10, 21)


# --- A user's geometry ---


def built_in_rows() -> list[list[Any]]:
    """The built-in geometry as the rows of a geometry file [m]; the back face is 220 mm behind."""
    ix, iy, zside = all_endcap()
    front = ecal.ee_centres()[ix - 1, iy - 1] * 1e-3
    front[:, 2] *= zside
    back = front * (1 + 0.22 / np.linalg.norm(front, axis=1))[:, None]
    square = np.array([[1, 1, 0], [1, -1, 0], [-1, -1, 0], [-1, 1, 0]]) * 0.0143
    corners = np.concatenate([front[:, None] + square, back[:, None] + square], axis=1)
    detids = ecal.ee_detid(ix, iy, zside).tolist()
    return [[detid, *points] for detid, points in zip(detids, corners.tolist(), strict=True)]


def write_geometry(path: Path, content: Any) -> Path:
    with gzip.open(path, "wt", compresslevel=1) as file:
        json.dump(content, file)
    return path


@pytest.fixture
def geometry_file(tmp_path: Path) -> Callable[[list[Any]], Path]:
    return lambda rows: write_geometry(tmp_path / "ee.json.gz", {"Collections": {"Both": rows}})


def test_a_geometry_file_replaces_the_built_in_one(geometry_file: Callable[[list[Any]], Path]) -> None:
    rows = built_in_rows()
    np.testing.assert_array_equal(ecal.load_ee_geometry(geometry_file(rows)), ecal.ee_pixel_table())
    rows[0], rows[-1] = [rows[0][0], *rows[1][1:]], [rows[-1][0], *rows[-2][1:]]
    table, before = ecal.load_ee_geometry(geometry_file(rows)), ecal.ee_pixel_table()
    crystals = np.flatnonzero(before >= 0)
    before[crystals[[0, -1]]] = before[crystals[[1, -2]]]
    np.testing.assert_array_equal(table, before)


def test_a_crystal_off_the_edges_stays_in_the_endcap(geometry_file: Callable[[list[Any]], Path]) -> None:
    rows = built_in_rows()
    for k, (eta, phi) in {0: (-1.45, 0.5), 1: (-3.05, 0.5), -1: (1.45, 0.5), -2: (3.05, 0.5)}.items():
        rows[k][1:] = [[np.cos(phi), np.sin(phi), np.sinh(eta)]] * 8
    table = ecal.load_ee_geometry(geometry_file(rows))
    pixels = table[table >= 0]
    assert (pixels[[0, 1, -1, -2]] // 360).tolist() == [54, 0, 225, 279]
    assert (pixels[[0, 1, -1, -2]] % 360).tolist() == [38] * 4


GOOD = [872431785, *[[-1.5, -0.3, 3.2]] * 8]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], r"holds 0 of 14648 EE crystals"),
        ([GOOD], r"holds 1 of 14648 EE crystals"),
        ([GOOD, GOOD], r"Both\[1\]: detid 872431785 comes a second time"),
        ([GOOD, [838861313, *GOOD[1:]]], r"Both\[1\]: no EE crystal has the detid 838861313"),
        ([[0x34000000 | 1 << 7 | 1, *GOOD[1:]]], r"Both\[0\]: no EE crystal has the detid"),
        ([[10**30, *GOOD[1:]]], r"Both\[0\]: no EE crystal has the detid"),
        ([["872431785", *GOOD[1:]]], r"Both\[0\]: a row must be"),
        ([[8.5, *GOOD[1:]]], r"Both\[0\]: a row must be"),
        ([GOOD[:8]], r"Both\[0\]: a row must be"),
        ([[]], r"Both\[0\]: a row must be"),
        ([7], r"Both\[0\]: a row must be"),
        ([[*GOOD[:8], [1.0, 2.0]]], r"Both\[0\]: a row must be"),
        ([[*GOOD[:8], "xyz"]], r"Both\[0\]: a row must be"),
        ([[*GOOD[:8], [1.0, 2.0, 10**400]]], r"Both\[0\]: a row must be"),
        ([[*GOOD[:8], [1.0, 2.0, float("nan")]]], r"Both\[0\]: a row must be .* finite"),
        ([[GOOD[0], *[[-1.5, -0.3, -3.2]] * 8]], r"Both\[0\]: the front face .* is not in its endcap"),
        ([[GOOD[0], *[[0.0, 0.0, 3.2]] * 8]], r"Both\[0\]: the front face .* is not in its endcap"),
        ([[GOOD[0], *[[3.0, 0.0, 0.1]] * 8]], r"Both\[0\]: the front face .* is not in its endcap"),
        (7, r"an EE geometry must hold"),
    ],
)
def test_a_bad_geometry_row_is_named(rows: Any, message: str, geometry_file: Callable[[Any], Path]) -> None:
    path = geometry_file(rows)
    with pytest.raises(ValueError, match=message) as raised:
        ecal.load_ee_geometry(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("content", [[], {}, {"Collections": []}, None, "text"])
def test_a_geometry_without_collections_is_refused(content: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="an EE geometry must hold"):
        ecal.load_ee_geometry(write_geometry(tmp_path / "ee.json.gz", content))


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(None, id="missing"),
        pytest.param(b"", id="empty"),
        pytest.param(b'{"Collections": {}}', id="not-gzipped"),
        pytest.param(gzip.compress(b'{"Collections": {}}')[:-9], id="truncated"),
        pytest.param(gzip.compress(b'{"Collections": {')[:14] + b"\xff" * 20, id="corrupt"),
        pytest.param(gzip.compress(b'{"Collections": {'), id="not-json"),
        pytest.param(gzip.compress(b"\xff\xfe\xfa"), id="not-text"),
        pytest.param(gzip.compress(b"[" * 200_000), id="nested"),
    ],
)
def test_an_unreadable_geometry_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "ee.json.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="must be a gzipped JSON file"):
        ecal.load_ee_geometry(path)


# --- The published geometry and real events ---


def read_geometry(name: str) -> tuple[Array, Array]:
    """Detids and front-face centres [m] of a published geometry file."""
    with gzip.open(DATA / "geometry" / name) as file:
        rows = [row for rows in json.load(file)["Collections"].values() for row in rows]
    return np.array([row[0] for row in rows], np.uint32), np.array([row[1:5] for row in rows]).mean(axis=1)


def eta_phi(points: Array) -> tuple[Array, Array]:
    x, y, z = points.T
    return np.arcsinh(z / np.hypot(x, y)), np.arctan2(y, x)


def barrel_pixels(eta: Array, phi: Array) -> Array:
    """True pixels from where the crystals are: their rings, which lie apart in eta, are the rows in order."""
    order = np.argsort(eta)
    ring = np.empty(eta.size, np.int64)
    ring[order] = np.concatenate([[0], np.cumsum(np.diff(eta[order]) > 0.01)])
    assert ring.max() == 169
    return np.asarray((55 + ring) * 360 + (np.floor(np.degrees(phi)).astype(int) + 10) % 360)


def endcap_pixels(eta: Array, phi: Array) -> Array:
    """True pixels by the description: five bins a tower in |eta|, degrees in phi counted from -10."""
    edges = np.concatenate([np.linspace(a, b, 6)[:5] for a, b in pairwise(TOWERS)] + [[3.0]])
    row = 225 + np.digitize(np.abs(eta), edges) - 1
    column = (np.floor(np.degrees(phi)).astype(int) + 10) % 360
    return np.asarray(np.where(eta > 0, row, 279 - row) * 360 + column)


@pytest.fixture(scope="module")
def rechits() -> dict[str, Array]:
    """EB and EE rechits of the real events: eta, phi, detid."""
    hits: dict[str, list[list[float]]] = {"EB": [], "EE": []}
    for path in sorted(DATA.glob("*.ig")):
        with zipfile.ZipFile(path) as archive:
            for name in (name for name in archive.namelist() if re.fullmatch(r"Events/Run_\d+/Event_\d+", name)):
                text = archive.read(name).decode().translate(str.maketrans("()'", '[]"'))
                event = json.loads(re.sub(r"\bnan\b", "NaN", re.sub(r"\binf\b", "Infinity", text)))
                for part, found in hits.items():
                    table = f"{part}RecHits_V2"
                    fields = [field for field, _ in event["Types"][table]]
                    wanted = [fields.index(field) for field in ("eta", "phi", "detid")]
                    found += [[row[k] for k in wanted] for row in event["Collections"][table]]
    return {part: np.array(rows) for part, rows in hits.items()}


@needs_data
def test_every_published_barrel_crystal_has_its_true_pixel() -> None:
    detids, centres = read_geometry("eb-reduced.json.gz")
    assert detids.size == 9360
    np.testing.assert_array_equal(ecal.eb_pixels(detids), barrel_pixels(*eta_phi(centres)))
    eta, phi = ecal.eb_centre(detids)
    true_eta, true_phi = eta_phi(centres)
    assert np.abs(eta - true_eta).max() < 0.011
    assert np.abs((phi - true_phi + np.pi) % (2 * np.pi) - np.pi).max() < 0.0026


@needs_data
def test_every_barrel_hit_of_the_real_events_has_its_true_pixel(rechits: dict[str, Array]) -> None:
    eta, phi, detids = rechits["EB"].T
    assert detids.size > 36_000
    np.testing.assert_array_equal(ecal.eb_pixels(detids.astype(np.uint32)), barrel_pixels(eta, phi))


@needs_data
def test_built_in_endcap_is_the_published_one_to_a_tenth_of_a_millimetre() -> None:
    detids, centres = read_geometry("ee.json.gz")
    side, x, y = np.unravel_index([ecal.ee_index(detid) for detid in detids], (2, 100, 100))
    assert ecal.ee_crystals()[x, y].all()
    mine = ecal.ee_centres()[x, y] * np.stack([np.ones(side.size), np.ones(side.size), 2 * side - 1], axis=-1)
    assert np.linalg.norm(mine - 1000 * centres, axis=1).max() < 0.1


@needs_data
def test_built_in_endcap_pixels_are_right_or_next_to_it() -> None:
    detids, centres = read_geometry("ee.json.gz")
    assert np.unique(detids).size == ecal.N_EE_CRYSTALS
    true = endcap_pixels(*eta_phi(centres))
    mine = ecal.ee_pixels(detids, ecal.ee_pixel_table())
    assert (mine >= 0).all()
    assert np.mean(mine == true) > 0.998
    assert np.abs(mine // 360 - true // 360).max() <= 1
    assert np.abs((mine - true + 180) % 360 - 180).max() <= 1  # columns


@needs_data
def test_with_the_published_file_every_endcap_crystal_and_hit_has_its_true_pixel(
    rechits: dict[str, Array],
) -> None:
    table = ecal.load_ee_geometry(DATA / "geometry" / "ee.json.gz")
    detids, centres = read_geometry("ee.json.gz")
    np.testing.assert_array_equal(ecal.ee_pixels(detids, table), endcap_pixels(*eta_phi(centres)))
    eta, phi, hit_detids = rechits["EE"].T
    assert hit_detids.size > 22_000
    np.testing.assert_array_equal(ecal.ee_pixels(hit_detids.astype(np.uint32), table), endcap_pixels(eta, phi))


@needs_data
def test_the_front_face_is_the_centre_that_rechits_carry(rechits: dict[str, Array]) -> None:
    detids, centres = read_geometry("ee.json.gz")
    order = np.argsort(detids)
    eta, phi, hit_detids = rechits["EE"].T
    true_eta, true_phi = eta_phi(centres[order[np.searchsorted(detids[order], hit_detids)]])
    assert np.abs(true_eta - eta).max() < 1e-5
    assert np.abs((true_phi - phi + np.pi) % (2 * np.pi) - np.pi).max() < 1e-5
