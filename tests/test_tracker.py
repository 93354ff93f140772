"""Pixels of directions and points, held against the grid's functions, and helices against a stepper."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from stages.detector import tracker
from stages.detector.grid import ETA_EDGES, column_of_phi, row_of_eta
from streamer.block import offsets

Array = npt.NDArray[Any]

LIMIT = float(np.finfo(np.float32).max)


def with_neighbours(values: Array) -> Array:
    """The values as float32, and the next float32 below and above each."""
    singles = np.asarray(values, np.float32)
    low, high = np.float32(-np.inf), np.float32(np.inf)
    return np.concatenate([np.nextafter(singles, low), singles, np.nextafter(singles, high)])


def grid_pixels(eta: Array, phi: Array) -> Array:
    """Pixels by the functions of the grid, in float64."""
    with np.errstate(invalid="ignore"):  # a signalling nan
        eta, phi = eta.astype(np.float64), phi.astype(np.float64)
    finite = np.isfinite(eta) & np.isfinite(phi)
    row, column = row_of_eta(np.where(finite, eta, 0.0)), column_of_phi(np.where(finite, phi, 0.0))
    return np.where(finite, np.where(row < 0, -1, row * 360 + column), -2)


# --- Directions ---


def test_directions_at_random_have_the_pixels_of_the_grid() -> None:
    rng = np.random.default_rng(1)
    eta = rng.uniform(-3.05, 3.05, 3_000_000).astype(np.float32)
    phi = rng.uniform(-np.pi, np.pi, eta.size).astype(np.float32)
    pixels = tracker.direction_pixels(eta, phi)
    assert pixels.dtype == np.int32
    np.testing.assert_array_equal(pixels, grid_pixels(eta, phi))


def test_directions_of_any_bits_have_the_pixels_of_the_grid() -> None:
    bits = np.random.default_rng(2).integers(0, 2**32, (2, 500_000), np.uint32)
    eta, phi = bits.view(np.float32)
    expected = grid_pixels(eta, phi)
    assert {-2, -1} < set(expected.tolist())
    np.testing.assert_array_equal(tracker.direction_pixels(eta, phi), expected)


def test_directions_at_every_edge_have_the_pixels_of_the_grid() -> None:
    eta = with_neighbours(ETA_EDGES)
    phi = with_neighbours(np.radians(np.arange(-725, 726)))
    for etas, phis in ((eta, np.full_like(eta, 0.3)), (np.full_like(phi, 0.3), phi)):
        np.testing.assert_array_equal(tracker.direction_pixels(etas, phis), grid_pixels(etas, phis))


@pytest.mark.parametrize(
    ("eta", "phi", "pixel"),
    [
        (0.0, 0.0, 140 * 360 + 10),
        (-0.0, -0.0, 140 * 360 + 10),
        (0.0, -1e-30, 140 * 360 + 10),  # a turn less this is a turn, in float64
        (3.0, np.pi, 279 * 360 + 190),
        (-3.0, -np.pi, 189),  # float32 pi is more than pi
        (0.0, 1000.0, 140 * 360 + 65),  # 159 turns and 55.78 degrees
        (3.0000002, 0.0, -1),
        (-LIMIT, 0.0, -1),
        *[(bad, 0.0, -2) for bad in (np.nan, np.inf, -np.inf)],
        *[(0.0, bad, -2) for bad in (np.nan, np.inf, -np.inf)],
        (9.0, np.nan, -2),
    ],
)
def test_direction_pixel(eta: float, phi: float, pixel: int) -> None:
    assert tracker.direction_pixels(np.array([eta], np.float32), np.array([phi], np.float32)) == pixel


def test_no_directions() -> None:
    assert tracker.direction_pixels(np.empty(0, np.float32), np.empty(0, np.float32)).shape == (0,)


# --- Points ---

ORIGIN = np.zeros((1, 3))


def pixels_from_origin(x: Any, y: Any, z: Any) -> Array:
    x, y, z = (np.asarray(v, np.float32).reshape(-1) for v in np.broadcast_arrays(x, y, z))
    pixels: Array = tracker.position_pixels(x, y, z, np.array([0, x.size]), ORIGIN)
    return pixels


def check_positions(x: Array, y: Array, z: Array, counts: Array, vertex: Array) -> int:
    """Compare with arcsinh and arctan2, but for points within 1e-9 of an edge, of which the number is returned."""
    pixels = tracker.position_pixels(x, y, z, offsets(counts), vertex)
    assert pixels.dtype == np.int32
    dx, dy, dz = np.stack([x, y, z]).astype(np.float64) - np.repeat(vertex, counts, axis=0).T
    eta, phi = np.arcsinh(dz / np.hypot(dx, dy)), np.arctan2(dy, dx)
    degrees = np.degrees(phi)
    at_eta_edge = np.abs(eta[:, None] - ETA_EDGES[np.searchsorted(ETA_EDGES, eta)[:, None].clip(1, 280) - [1, 0]])
    near = (at_eta_edge.min(axis=1) < 1e-9) | (np.abs(degrees - np.rint(degrees)) < np.degrees(1e-9))
    np.testing.assert_array_equal(pixels[~near], grid_pixels(eta, phi)[~near])
    return int(np.count_nonzero(near))


def test_points_in_the_tracker_have_the_pixels_of_their_direction_from_the_vertex() -> None:
    rng = np.random.default_rng(3)
    counts = rng.integers(0, 2000, 1000)
    n = int(counts.sum())
    r, phi = rng.uniform(2, 110, n), rng.uniform(-np.pi, np.pi, n)
    x, y = (r * np.cos(phi)).astype(np.float32), (r * np.sin(phi)).astype(np.float32)
    z = rng.uniform(-280, 280, n).astype(np.float32)
    vertex = rng.normal(0, [0.1, 0.1, 5], (1000, 3))
    assert n > 900_000
    assert check_positions(x, y, z, counts, vertex) < 10


def test_points_close_to_every_edge_are_on_its_right_side() -> None:
    vertex = np.array([[0.1, -0.2, 3.0]])
    rng = np.random.default_rng(4)

    def check(eta: Array, phi: Array) -> None:
        r = rng.uniform(50, 100, eta.size)
        points = np.stack([r * np.cos(phi), r * np.sin(phi), r * np.sinh(eta)], axis=1) + vertex
        x, y, z = points.astype(np.float32).T.copy()
        n_near = check_positions(x, y, z, np.array([eta.size]), vertex)
        assert n_near < 0.1 * eta.size

    shift = rng.choice([-1, 1], (281, 50)) * 10 ** rng.uniform(-8, -3, (281, 50))
    check((ETA_EDGES[:, None] + shift).reshape(-1), rng.uniform(-np.pi, np.pi, shift.size))
    shift = rng.choice([-1, 1], (360, 50)) * 10 ** rng.uniform(-8, -3, (360, 50))
    check(rng.uniform(-2.9, 2.9, shift.size), (np.radians(np.arange(-180, 180))[:, None] + shift).reshape(-1))


def test_points_on_the_axes_and_the_diagonals_have_the_column_that_begins_there() -> None:
    x = np.array([1, 1, 0, -1, -1, -1, 0, 1, 1, -1], np.float32)
    y = np.array([0, 1, 1, 1, 0, -1, -1, -1, -0.0, -0.0], np.float32)
    degrees = np.array([0, 45, 90, 135, 180, 225, 270, 315, 0, 180])
    for scale in (1e-30, 0.1, 7.0, 1e30):
        np.testing.assert_array_equal(pixels_from_origin(scale * x, scale * y, 0.0), 140 * 360 + (degrees + 10) % 360)


def test_points_that_have_no_pixel() -> None:
    bad = np.array([np.nan, np.inf, -np.inf])
    np.testing.assert_array_equal(pixels_from_origin(bad, 1.0, 1.0), -2)
    np.testing.assert_array_equal(pixels_from_origin(1.0, bad, 1.0), -2)
    np.testing.assert_array_equal(pixels_from_origin(1.0, 1.0, bad), -2)
    np.testing.assert_array_equal(pixels_from_origin(0.0, 0.0, [0.0, 5.0, -5.0, np.nan]), [-1, -1, -1, -2])
    slope = np.sinh(3.0)
    np.testing.assert_array_equal(pixels_from_origin(1.0, 0.0, [slope + 1e-5, -slope - 1e-5]), -1)
    np.testing.assert_array_equal(pixels_from_origin(1.0, 0.0, [slope - 1e-5, 1e-5 - slope]), [279 * 360 + 10, 10])
    assert pixels_from_origin(LIMIT, -LIMIT, LIMIT) > 0


def test_each_event_has_its_own_vertex() -> None:
    x, zero = np.array([1, -1, 1, 1, 0, 1], np.float32), np.zeros(6, np.float32)
    vertex = np.array([[0, 0, 0], [9, 9, 9], [2, 0, 0], [np.nan, 0, 0], [0, 0, -1]])
    pixels = tracker.position_pixels(x, zero, zero, offsets(np.array([2, 0, 1, 1, 2])), vertex)
    assert pixels.tolist()[:4] == [140 * 360 + 10, 140 * 360 + 190, 140 * 360 + 190, -2]
    assert pixels[4] == -1
    assert pixels[5] == row_of_eta(np.arcsinh(1.0)) * 360 + 10


# --- Propagation ---


def propagate(
    pt: Any, eta: Any, phi: Any, charge: Any, d0: Any = 0.0, dz: Any = 0.0, vertex: Any = (0.0, 0.0, 0.0)
) -> tuple[Array, Array]:
    """Propagate the tracks of one event; the arguments broadcast."""
    columns = [np.ravel(v).astype(np.float32) for v in np.broadcast_arrays(pt, eta, phi, charge, d0, dz)]
    columns[3] = columns[3].astype(np.int8)
    ends: tuple[Array, Array] = tracker.propagate(
        *columns, np.array([0, columns[0].size]), np.array([vertex], np.float64)
    )
    return ends


def phi_distance(a: Any, b: Any) -> Array:
    return np.asarray(np.abs((np.asarray(a, np.float64) - b + np.pi) % (2 * np.pi) - np.pi))


def step_to_ecal(tracks: Array, vertex: Array) -> tuple[Array, Array]:
    """Integrate the Lorentz force in steps of 5 mm to the first of r = 129 cm and |z| = 317 cm.

    The rows of `tracks`, float64[6, n], are pt, eta, phi, charge, d0 and dz.
    """
    pt, eta, phi, charge, d0, dz = tracks
    place = np.stack([d0 * np.sin(phi), -d0 * np.cos(phi), dz], axis=1) + vertex
    direction = np.stack([np.cos(phi), np.sin(phi), np.sinh(eta)], axis=1) / np.cosh(eta)[:, None]
    force = (0.3 * 0.01 * charge / (pt * np.cosh(eta)))[:, None]  # of q v x B on the direction, a cm and a tesla
    field = np.array([0.0, 0.0, 3.8])
    state = np.concatenate([place, direction], axis=1)

    def slope(state: Array, force: Array) -> Array:
        return np.concatenate([state[:, 3:], force * np.cross(state[:, 3:], field)], axis=1)

    def step(state: Array, force: Array, size: Array) -> Array:
        h = size[:, None]
        k1 = slope(state, force)
        k2 = slope(state + h / 2 * k1, force)
        k3 = slope(state + h / 2 * k2, force)
        k4 = slope(state + h * k3, force)
        return np.asarray(state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4))

    def inside(state: Array) -> Array:
        return np.asarray((np.hypot(state[:, 0], state[:, 1]) < 129) & (np.abs(state[:, 2]) < 317))

    active = np.arange(pt.size)
    while active.size:
        after = step(state[active], force[active], np.full(active.size, 0.5))
        stays = inside(after)
        state[active[stays]] = after[stays]
        active = active[stays]
    low, high = np.zeros(pt.size), np.full(pt.size, 0.5)
    for _ in range(40):
        middle = (low + high) / 2
        stays = inside(step(state, force, middle))
        low, high = np.where(stays, middle, low), np.where(stays, high, middle)
    x, y, z = step(state, force, high)[:, :3].T
    return np.arcsinh(z / np.hypot(x, y)), np.arctan2(y, x)


@pytest.mark.parametrize("vertex", [(0.3, -0.2, 7.0), (60.0, -40.0, 7.0)])
def test_helix_is_that_of_the_lorentz_force(vertex: tuple[float, float, float]) -> None:
    rng = np.random.default_rng(6)
    n = 600
    pt = rng.choice([0.2, 0.4, 0.6, 0.85, 1.5, 5.0, 50.0], n).astype(np.float32)  # those below 0.73 are loopers
    eta = (rng.choice([-1, 1], n) * rng.uniform(0.4, 2.9, n)).astype(np.float32)
    phi = rng.uniform(-np.pi, np.pi, n).astype(np.float32)
    charge = rng.choice([-1, 0, 1], n)
    d0, dz = rng.uniform(-2, 2, (2, n)).astype(np.float32)
    true_eta, true_phi = step_to_ecal(np.stack([pt, eta, phi, charge, d0, dz]).astype(np.float64), np.array(vertex))
    barrel = np.abs(true_eta) < np.arcsinh(317 / 129) - 1e-3
    assert 50 < np.count_nonzero(barrel) < n - 50
    assert np.count_nonzero(~barrel & (pt < 0.7) & (charge != 0) & (np.abs(eta) < 1.2)) > 20  # loopers to the endcap
    end_eta, end_phi = propagate(pt, eta, phi, charge, d0, dz, vertex)
    assert end_eta.dtype == end_phi.dtype == np.float32
    assert np.abs(end_eta - true_eta).max() < 2e-5
    assert phi_distance(end_phi, true_phi).max() < 2e-5


def test_positive_tracks_turn_to_smaller_phi() -> None:
    # At r = 1.29 m a track from the origin has turned by arcsin(r / 2R), here with R = 2.5 m / 1.14.
    _, phi = propagate(2.5, 0.5, 1.0, [1, -1, 0])
    bend = np.arcsin(1.29 / 2 / (2.5 / (0.3 * 3.8)))
    np.testing.assert_allclose(phi, [1.0 - bend, 1.0 + bend, 1.0], atol=1e-6)


def test_barrel_end_of_a_track_from_the_origin() -> None:
    eta, _ = propagate(2.5, 0.5, 1.0, 1)
    radius = 2.5 / (0.3 * 3.8)
    arc = 2 * radius * np.arcsin(1.29 / 2 / radius)
    np.testing.assert_allclose(eta, np.arcsinh(arc * np.sinh(0.5) / 1.29), atol=1e-6)


def test_straight_tracks_keep_their_direction() -> None:
    rng = np.random.default_rng(7)
    eta, phi = rng.uniform(-2.9, 2.9, 500).astype(np.float32), rng.uniform(-np.pi, np.pi, 500).astype(np.float32)
    for pt, charge in ((1e7, 1), (1e30, -1), (LIMIT, 1), (0.1, 0), (1e-30, 0)):
        end_eta, end_phi = propagate(pt, eta, phi, charge)
        np.testing.assert_allclose(end_eta, eta, atol=1e-6)
        assert phi_distance(end_phi, phi).max() < 1e-6


def test_neutral_from_a_displaced_vertex_ends_on_the_surface() -> None:
    # Along +x from (1, 2, 10) to r = 129, and along z / r = sinh(2) to z = 317.
    eta, phi = propagate(1.0, [0.0, 2.0], 0.0, 0, vertex=(1.0, 2.0, 10.0))
    x = np.array([np.sqrt(129.0**2 - 4.0), 1.0 + 307 / np.sinh(2.0)])
    np.testing.assert_allclose(eta, np.arcsinh(np.array([10.0, 317.0]) / np.hypot(x, 2.0)), rtol=1e-6)
    np.testing.assert_allclose(phi, np.arctan2(2.0, x), rtol=1e-6)


def test_impact_parameters_shift_the_start() -> None:
    # At phi = 0 a positive d0 is to the right, at -y.
    eta, phi = propagate(1.0, 0.0, 0.0, 0, d0=[3.0, -3.0, 0.0], dz=[0.0, 0.0, 40.0])
    np.testing.assert_allclose(phi, [-np.arcsin(3 / 129), np.arcsin(3 / 129), 0.0], atol=1e-7)
    np.testing.assert_allclose(eta, [0.0, 0.0, np.arcsinh(40 / 129)], atol=1e-6)


def test_mirrors_and_turns() -> None:
    rng = np.random.default_rng(8)
    n = 2000
    pt, eta, phi = 0.2 + rng.exponential(1, n), rng.uniform(-2.5, 2.5, n), rng.uniform(-1.5, 1.5, n)
    charge, d0, dz = rng.choice([-1, 1], n), rng.normal(0, 0.5, n), rng.normal(0, 5, n)
    end_eta, end_phi = propagate(pt, eta, phi, charge, d0, dz)
    assert np.isfinite(end_eta).all()
    mirrored = propagate(pt, -eta, phi, charge, d0, -dz)  # z -> -z
    np.testing.assert_array_equal(mirrored, [-end_eta, end_phi])
    mirrored = propagate(pt, eta, -phi, -charge, -d0, dz)  # y -> -y
    np.testing.assert_array_equal(mirrored, [end_eta, -end_phi])
    turned = propagate(pt, eta, phi + 1.0, charge, d0, dz)
    np.testing.assert_allclose(turned[0], end_eta, atol=1e-5)
    assert phi_distance(turned[1], end_phi + 1.0).max() < 1e-4  # float32 phi, after turns of a looper


@pytest.mark.parametrize(
    "track",
    [
        pytest.param((0.5, 0.0, 0.0, 1), id="looper-without-pz"),
        pytest.param((0.0, 1.0, 0.0, 1), id="pt-0"),
        pytest.param((-1.0, 1.0, 0.0, 1), id="pt-negative"),
        pytest.param((np.nan, 1.0, 0.0, 1), id="pt-nan"),
        pytest.param((np.inf, 1.0, 0.0, 1), id="pt-inf"),
        pytest.param((2.0, np.nan, 0.0, 1), id="eta-nan"),
        pytest.param((2.0, -np.inf, 0.0, 1), id="eta-inf"),
        pytest.param((2.0, 1.0, np.inf, 1), id="phi-inf"),
        pytest.param((2.0, 1.0, 0.0, 1, np.nan), id="d0-nan"),
        pytest.param((2.0, 1.0, 0.0, 1, 0.0, np.inf), id="dz-inf"),
        pytest.param((2.0, 1.0, 0.0, 1, 0.0, 0.0, (np.nan, 0.0, 0.0)), id="vertex-nan"),
        pytest.param((2.0, 1.0, 0.0, 1, 129.5), id="starts-beyond-the-barrel"),
        pytest.param((2.0, 1.0, 0.0, 1, 0.0, -317.0), id="starts-at-the-endcap"),
    ],
)
def test_a_track_that_has_no_end(track: tuple[Any, ...]) -> None:
    assert np.isnan(propagate(*track)).all()


def test_a_track_that_just_reaches_the_barrel() -> None:
    # Its circle through the origin is as wide as the barrel, or a little less so.
    pt = 0.3 * 3.8 * 1.29 / 2
    eta, phi = propagate([pt * 1.00001, pt * 0.99999], 0.0, 0.5, 1)
    np.testing.assert_allclose(eta, [0.0, np.nan])
    np.testing.assert_allclose(phi, [0.5 - np.pi / 2, np.nan], atol=0.01)


def test_each_event_has_its_own_start() -> None:
    tracks = [np.full(3, value, np.float32) for value in (1.0, 0.0, 0.0, 0.0, 0.0, 0.0)]
    vertex = np.array([[0.0, 0.0, 0.0], [9.0, 9.0, 9.0], [0.0, 5.0, 20.0]])
    eta, phi = tracker.propagate(*tracks, offsets(np.array([1, 0, 2])), vertex)
    np.testing.assert_allclose(eta, np.arcsinh(np.array([0.0, 20.0, 20.0]) / 129), atol=1e-6)
    np.testing.assert_allclose(phi, np.arcsin(np.array([0.0, 5.0, 5.0]) / 129), atol=1e-6)


def test_constants_are_those_of_the_tracker() -> None:
    assert (tracker.TIB, tracker.TID, tracker.TOB, tracker.TEC) == (3, 4, 5, 6)
    assert tracker.N_STRIP_LAYERS == {tracker.TIB: 4, tracker.TID: 3, tracker.TOB: 6, tracker.TEC: 9}
    assert tracker.N_BPIX_LAYERS == 4
