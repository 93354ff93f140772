"""HCAL detids on the detector frame, held against the published geometry and the rechits of real events."""

import gzip
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from numba import njit

from stages.detector import grid, hcal, layout

DATA = Path(__file__).parents[2] / "shared" / "cms-open-data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"the published CMS events and geometry are not at {DATA}")

Array = npt.NDArray[Any]


def all_cells() -> tuple[Array, Array]:
    """ieta, iphi of every place that has a cell."""
    ieta, iphi = np.meshgrid(np.delete(np.arange(-29, 30), 29), np.arange(1, 73), indexing="ij")
    exists = (np.abs(ieta) <= 20) | (iphi % 2 == 1)
    return ieta[exists], iphi[exists]


def old(subdetector: int, ieta: int, iphi: int) -> int:
    return 0x40000000 | subdetector << 25 | 1 << 14 | 0x2000 * (ieta > 0) | abs(ieta) << 7 | iphi


def new(subdetector: int, ieta: int, iphi: int) -> int:
    return 0x41000000 | subdetector << 25 | 1 << 20 | 0x80000 * (ieta > 0) | abs(ieta) << 10 | iphi


@pytest.mark.parametrize("new_layout", [False, True])
def test_every_cell_has_the_tower_of_its_place(new_layout: bool) -> None:
    ieta, iphi = all_cells()
    towers = hcal.hcal_towers(hcal.hcal_detid(ieta, iphi, 1, new_layout=new_layout))
    assert towers.dtype == np.int32
    folded = np.clip(ieta, -28, 28)
    expected = (28 + np.where(folded > 0, folded - 1, folded)) * 72 + (iphi + 1) % 72
    np.testing.assert_array_equal(towers, expected + np.where(np.abs(ieta) > 20, 4032, 0))


def test_cells_cover_every_tower_of_the_frame_and_stay_in_their_row() -> None:
    ieta, iphi = all_cells()
    towers = hcal.hcal_towers(hcal.hcal_detid(ieta, iphi, 1))
    wide = towers[towers >= layout.N_TOWERS] - layout.N_TOWERS
    narrow = towers[towers < layout.N_TOWERS]
    assert (wide // 72 == (wide + 1) // 72).all()
    n_cells = np.bincount(np.concatenate([narrow, wide, wide + 1]), minlength=layout.N_TOWERS).reshape(56, 72)
    assert (n_cells[1:55] == 1).all()
    assert (n_cells[[0, 55]] == 2).all()  # |ieta| 28 and 29


@pytest.mark.parametrize("new_layout", [False, True])
def test_depths_of_a_cell_share_its_tower(new_layout: bool) -> None:
    detids = hcal.hcal_detid(-18, 40, np.arange(1, 8), new_layout=new_layout)
    assert np.unique(detids).size == 7
    np.testing.assert_array_equal(hcal.hcal_towers(detids), (28 - 18) * 72 + 41)


def test_builder_writes_the_published_bits() -> None:
    # Cells of the published geometry.
    assert hcal.hcal_detid(1, 1, 1, new_layout=False) == 1107320961
    assert hcal.hcal_detid(-1, 1, 1, new_layout=False) == 1107312769
    assert hcal.hcal_detid(17, 1, 1, new_layout=False) == 1140877441
    # Run 2 layout: iphi from bit 0, |ieta| from bit 10, side at bit 19, depth from bit 20.
    detid = int(hcal.hcal_detid(-27, 71, 6))
    assert (detid & 0x3FF, detid >> 10 & 0x1FF, detid >> 19 & 1, detid >> 20 & 0xF) == (71, 27, 0, 6)
    assert detid >> 24 == 0x45
    assert hcal.hcal_detid([1, 2], [1, 2], 1).dtype == np.uint32


@pytest.mark.parametrize("make", [old, new])
@pytest.mark.parametrize(
    ("subdetector", "ieta", "iphi"),
    [
        pytest.param(1, 0, 1, id="ieta-0"),
        pytest.param(2, 30, 1, id="ieta-30"),
        pytest.param(2, -30, 1, id="ieta-minus-30"),
        pytest.param(1, 17, 1, id="HB-17"),
        pytest.param(2, 15, 1, id="HE-15"),
        pytest.param(1, 1, 0, id="iphi-0"),
        pytest.param(1, 1, 73, id="iphi-73"),
        pytest.param(2, 21, 2, id="even-iphi-at-21"),
        pytest.param(2, -29, 72, id="even-iphi-at-29"),
        pytest.param(0, 1, 1, id="no-subdetector"),
        pytest.param(3, 1, 1, id="HO"),
        pytest.param(4, 29, 1, id="HF"),
    ],
)
def test_impossible_cell(make: Any, subdetector: int, ieta: int, iphi: int) -> None:
    detid = make(subdetector, ieta, iphi)
    assert hcal.hcal_tower(np.uint32(detid)) == -1
    assert hcal.hcal_towers(np.array([detid], np.uint32)) == -1


@pytest.mark.parametrize("make", [old, new])
def test_both_subdetectors_have_ieta_16(make: Any) -> None:
    detids = np.array([make(1, 16, 5), make(2, 16, 5)], np.uint32)
    np.testing.assert_array_equal(hcal.hcal_towers(detids), 43 * 72 + 6)


@pytest.mark.parametrize(
    "detid",
    [
        pytest.param(0, id="zero"),
        pytest.param(0xFFFFFFFF, id="ones"),
        pytest.param(old(1, 3, 5) - 0x10000000, id="ecal"),
        pytest.param(new(1, 3, 5) + 0x10000000, id="detector-5"),
        pytest.param(old(1, 3, 5) | 1 << 20, id="spare-bit"),
    ],
)
def test_no_hcal_detid(detid: int) -> None:
    assert hcal.hcal_tower(np.uint32(detid)) == -1


@pytest.mark.parametrize(
    ("ieta", "iphi", "depth"), [(0, 1, 1), (30, 1, 1), (-30, 1, 1), (1, 0, 1), (1, 73, 1), (1, 1, 0), (1, 1, 8)]
)
def test_builder_refuses(ieta: int, iphi: int, depth: int) -> None:
    with pytest.raises(ValueError, match="no such HCAL cell: ieta runs over"):
        hcal.hcal_detid([1, ieta], [1, iphi], [1, depth])


def test_builder_refuses_even_iphi_of_wide_cells() -> None:
    assert hcal.hcal_towers(hcal.hcal_detid([20], [2], [1])) == 47 * 72 + 3
    with pytest.raises(ValueError, match=r"beyond \|ieta\| 20 iphi is odd"):
        hcal.hcal_detid([20, -21], [2, 2], 1)


# --- Directions ---


def test_tower_of_direction_is_that_of_its_edges() -> None:
    rng = np.random.default_rng(5)
    edges = np.concatenate([-hcal.TOWER_EDGES[::-1], hcal.TOWER_EDGES[1:]])
    assert edges.size == layout.N_TOWER_ROWS + 1
    eta = np.concatenate([rng.uniform(-3.1, 3.1, 20_000), (edges[1:] + edges[:-1]) / 2])
    phi = rng.uniform(-7, 7, eta.size)
    row = np.where(abs(eta) > 3, -1, np.searchsorted(edges, eta, side="right") - 1)
    towers = hcal.tower_of_direction(eta, phi)
    assert towers.dtype == np.int32
    assert 0 < np.count_nonzero(row < 0) < 2000
    np.testing.assert_array_equal(towers, np.where(row < 0, -1, row * 72 + grid.column_of_phi(phi) // 5))
    pixels = np.where(row < 0, -1, grid.row_of_eta(eta) // 5)
    assert 0.98 < np.mean(pixels == row) < 1, "in the barrel a tower is a little narrower than five crystals"


def test_an_edge_belongs_to_the_tower_further_out() -> None:
    for ring, edge in enumerate(hcal.TOWER_EDGES[:-1]):
        assert hcal.tower_of_direction(edge, 0.0) // 72 == 28 + ring
        if ring:
            assert hcal.tower_of_direction(-edge, 0.0) // 72 == 27 - ring


def test_directions_at_the_border_and_beyond() -> None:
    assert hcal.tower_of_direction(3.0, 0.0) == 55 * 72 + 2
    assert hcal.tower_of_direction(-3.0, 0.0) == 2
    assert hcal.tower_of_direction(3.001, 0.0) == -1
    with np.errstate(invalid="ignore"):
        assert hcal.tower_of_direction(np.nan, 0.0) == -1
        assert hcal.tower_of_direction(0.0, np.inf) == -1


def test_it_works_inside_a_kernel() -> None:
    def kernel(detid: Any, eta: Any, phi: Any) -> Any:
        return hcal_tower(detid), tower_of_direction(eta, phi)

    hcal_tower, tower_of_direction = hcal.hcal_tower, hcal.tower_of_direction
    detid = np.uint32(hcal.hcal_detid(-3, 72, 1))
    assert njit(kernel)(detid, -0.2, np.radians(-1)) == (25 * 72 + 1, 25 * 72 + 1)


# --- The published detector ---


def in_tower(towers: Array, eta: Array, phi: Array) -> Array:
    """Whether points are in the eta and phi ranges of the towers, of either one of a wide cell."""
    wide = towers >= layout.N_TOWERS
    first = towers - np.where(wide, layout.N_TOWERS, 0)
    there = hcal.tower_of_direction(eta, phi)
    return np.asarray((there == first) | (wide & (there == first + 1)))


@needs_data
@pytest.mark.parametrize(
    ("file", "collections", "n_cells"),
    [("hb", ["HcalBarrel3D_V1"], 2592), ("hehf", ["HcalEndcapPlus3D_V1", "HcalEndcapMinus3D_V1"], 2592)],
)
def test_every_published_cell_is_in_its_tower(file: str, collections: list[str], n_cells: int) -> None:
    with gzip.open(DATA / "geometry" / f"{file}.json.gz") as archive:
        content = json.load(archive)["Collections"]
    rows = [row for name in collections for row in content[name]]
    detids = np.array([row[0] for row in rows], np.uint32)
    corners = np.array([row[1:] for row in rows], np.float64)
    assert detids.size == n_cells
    towers = hcal.hcal_towers(detids)
    assert (towers >= 0).all()
    x, y, z = corners[:, :4].mean(axis=1).T
    assert in_tower(towers, np.arcsinh(z / np.hypot(x, y)), np.arctan2(y, x)).all()

    # A wide cell spans both of its towers, ten degrees; the others span five.
    azimuth = np.arctan2(corners[..., 1], corners[..., 0])
    away = (azimuth - azimuth[:, :1] + np.pi) % (2 * np.pi) - np.pi
    width = np.degrees(away.max(axis=1) - away.min(axis=1))
    np.testing.assert_allclose(width, np.where(towers >= layout.N_TOWERS, 10, 5), atol=0.02)


@needs_data
def test_forward_cells_are_no_towers() -> None:
    with gzip.open(DATA / "geometry" / "hehf.json.gz") as archive:
        rows = json.load(archive)["Collections"]["HcalForwardPlus3D_V1"]
    assert len(rows) == 864
    np.testing.assert_array_equal(hcal.hcal_towers(np.array([row[0] for row in rows], np.uint32)), -1)


@needs_data
def test_every_hit_of_the_real_events_is_in_its_tower() -> None:
    hits: list[list[float]] = []
    for path in sorted(DATA.glob("*.ig")):
        with zipfile.ZipFile(path) as archive:
            for name in (name for name in archive.namelist() if re.fullmatch(r"Events/Run_\d+/Event_\d+", name)):
                text = archive.read(name).decode().translate(str.maketrans("()'", '[]"'))
                event = json.loads(text.replace("nan", "NaN").replace("inf", "Infinity"))
                for table in ("HBRecHits_V2", "HERecHits_V2"):
                    fields = [field for field, _ in event["Types"].get(table, [])]
                    if fields:
                        wanted = [fields.index(field) for field in ("eta", "phi", "detid")]
                        hits += [[row[k] for k in wanted] for row in event["Collections"][table]]
    eta, phi, detids = np.array(hits).T
    assert detids.size > 4000
    towers = hcal.hcal_towers(detids.astype(np.uint32))
    assert (towers >= 0).all()
    assert (towers >= layout.N_TOWERS).any()
    assert in_tower(towers, eta, phi).all()
