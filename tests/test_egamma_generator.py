"""The simulated electrons and photons: their physics, and that nothing but physics tells them apart."""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from stages.detector.ecal import eb_pixels
from stages.detector.grid import EB_CELL_ETA, column_of_phi, row_of_eta
from stages.detector.layout import EB_FIRST_ROW, N_COLUMNS
from stages.simulation import egamma
from stages.simulation.dice import normal, start, uniform
from stages.simulation.egamma import generate
from stages.simulation.material import MAX_LAYERS, cross_layers, material_budget
from stages.simulation.shower import deposit_particle, gamma_cdf
from stages.simulation.transport import (
    CHARGE,
    COT,
    ECAL_RADIUS_CM,
    ENERGY,
    LAYER,
    MAX_PARTICLES,
    N_FIELDS,
    PHI,
    X,
    Y,
    Z,
    transport,
)

Floats = npt.NDArray[np.float64]
Sample = dict[str, npt.NDArray[Any]]

N_EVENTS = 4000
DTYPES = {
    "run": "uint32",
    "luminosityBlock": "uint32",
    "event": "uint64",
    "nEBRecHit": "int32",
    "EBRecHit_detid": "uint32",
    "EBRecHit_energy": "float32",
    "EBRecHit_time": "float32",
    "nPhoton": "int32",
    "Photon_pt": "float32",
    "Photon_eta": "float32",
    "Photon_phi": "float32",
    "Photon_genLabel": "int8",
}


@pytest.fixture(scope="module")
def sample() -> Sample:
    return generate(N_EVENTS, seed=20180417)


@pytest.fixture(scope="module")
def windows(sample: Sample) -> Floats:
    """Energies around the most energetic crystal: [event, 11 rows, 35 columns], it is at 5, 17."""
    rows, columns = rows_and_columns(sample)
    events = events_of_hits(sample)
    energy = sample["EBRecHit_energy"]
    order = np.lexsort((-energy, events))
    seeds = order[np.searchsorted(events, np.arange(N_EVENTS))]
    dy = rows - rows[seeds][events] + 5
    dx = (columns - columns[seeds][events] + 180) % 360 - 180 + 17
    near = (dy >= 0) & (dy < 11) & (dx >= 0) & (dx < 35)
    images = np.zeros((N_EVENTS, 11, 35))
    images[events[near], dy[near], dx[near]] = energy[near]
    return images


def rows_and_columns(sample: Sample) -> tuple[Any, Any]:
    """Row in the barrel (0..169) and column of each hit, as signed integers."""
    rows, columns = np.divmod(eb_pixels(sample["EBRecHit_detid"]).astype(np.int64), N_COLUMNS)
    return rows - EB_FIRST_ROW, columns


def events_of_hits(sample: Sample) -> Any:
    return np.repeat(np.arange(sample["event"].size), sample["nEBRecHit"])


def electrons(sample: Sample) -> Any:
    return sample["Photon_genLabel"] == 1


def r9(windows: Floats) -> Floats:
    """3 x 3 crystals over 5 x 35, near 1 for what did not split."""
    return np.asarray(windows[:, 4:7, 16:19].sum((1, 2)) / windows[:, 3:8].sum((1, 2)))


def widths(windows: Floats) -> tuple[Floats, Floats]:
    """Energy-weighted spread in eta and phi, in crystals, over 11 x 11."""
    square = windows[:, :, 12:23]
    place = np.arange(11)
    spreads = []
    for profile in (square.sum(2), square.sum(1)):
        mean = profile @ place / profile.sum(1)
        spreads.append(np.sqrt(profile @ place**2 / profile.sum(1) - mean**2))
    return spreads[0], spreads[1]


def ks_distance(values: Any, others: Any) -> float:
    """Largest distance of two empirical distributions, in units in which 1.95 has a chance of 1 in 1000."""
    grid = np.concatenate([values, others])
    first = np.searchsorted(np.sort(values), grid, side="right") / len(values)
    second = np.searchsorted(np.sort(others), grid, side="right") / len(others)
    return float(abs(first - second).max() * math.sqrt(len(values) * len(others) / len(grid)))


def stream(seed: int, event: int = 1) -> Any:
    state = np.zeros(1, np.uint64)
    start(state, np.uint64(seed), np.uint64(event))
    return state


def shoot(charge: float, eta: float, event: int, layers: tuple[list[float], list[float]] = ([], [])) -> Floats:
    """One particle of pT = 50 GeV at phi = 0 through layers of given radii [cm] and X0: what arrives at the ECAL."""
    stack, arrivals = np.zeros((MAX_PARTICLES, N_FIELDS)), np.zeros((MAX_PARTICLES, N_FIELDS))
    stack[0, [CHARGE, ENERGY, COT, LAYER]] = charge, 50 * math.cosh(eta), math.sinh(eta), -1
    radii, thicknesses = np.array(layers[0], float), np.array(layers[1], float)
    n = transport(stream(11, event), radii, thicknesses, radii.size, ECAL_RADIUS_CM, stack, arrivals)
    return arrivals[:n]


def deposit(charge: float, energy: float, eta: float, phi: float, event: int) -> Floats:
    """Shower of one particle that points away from the vertex: energies [170, 360]."""
    particle = np.zeros(N_FIELDS)
    particle[[CHARGE, ENERGY, PHI, COT]] = charge, energy, phi, math.sinh(eta)
    particle[[X, Y, Z]] = 129 * math.cos(phi), 129 * math.sin(phi), 129 * math.sinh(eta)
    cells = np.zeros(170 * 360)
    deposit_particle(stream(12, event), particle, cells, np.empty(170 * 360, np.int64), 0)
    return cells.reshape(170, 360)


# The sample as data


def test_columns(sample: Sample) -> None:
    assert {name: str(column.dtype) for name, column in sample.items()} == DTYPES
    n_hits = int(sample["nEBRecHit"].sum())
    for name, column in sample.items():
        assert column.shape == ((n_hits,) if name.startswith("EBRecHit") else (N_EVENTS,))
    assert np.array_equal(sample["event"], np.arange(1, N_EVENTS + 1))
    assert np.array_equal(np.unique(sample["luminosityBlock"]), [1, 2, 3, 4, 5])
    assert (sample["run"] == 1).all()
    assert (sample["nPhoton"] == 1).all()


def test_hits_are_crystals_once_each(sample: Sample) -> None:
    pixels = eb_pixels(sample["EBRecHit_detid"])
    assert pixels.min() >= 0
    assert np.unique(events_of_hits(sample) * 100_800 + pixels).size == pixels.size
    assert (sample["EBRecHit_energy"] > 0.0799).all()
    assert np.isfinite(sample["EBRecHit_time"]).all()


def test_number_of_hits(sample: Sample) -> None:
    counts = sample["nEBRecHit"]
    assert 25 < counts.mean() < 60
    assert counts.min() >= 9
    assert np.percentile(counts, 99) < 100


def test_the_same_to_the_bit_in_pieces() -> None:
    whole = generate(60, 5)
    pieces = [generate(25, 5), generate(35, 5, first_event=26)]
    for name, column in whole.items():
        assert np.array_equal(column, np.concatenate([piece[name] for piece in pieces])), name
    other = generate(60, 6)
    assert not np.array_equal(whole["Photon_eta"], other["Photon_eta"])


def test_a_full_buffer_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = generate(40, 5)
    monkeypatch.setattr(egamma, "_BUFFER", 170 * 360 + 100)
    for name, column in generate(40, 5).items():
        assert np.array_equal(column, whole[name]), name


def test_no_events() -> None:
    assert all(column.size == 0 for column in generate(0, 1).values())


@pytest.mark.parametrize("arguments", [(-1, 1), (1, -1), (1, 2**64), (1, 1, 0)])
def test_impossible_requests(arguments: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        generate(*arguments)


# What the classes share


def test_half_are_electrons(sample: Sample) -> None:
    assert abs(electrons(sample).mean() - 0.5) < 4 * 0.5 / math.sqrt(N_EVENTS)


def test_flat_in_eta_and_phi(sample: Sample) -> None:
    flat = (np.arange(200_000) + 0.5) / 200_000
    assert ks_distance(sample["Photon_eta"], 2.8 * flat - 1.4) < 1.95
    assert ks_distance(sample["Photon_phi"], 2 * math.pi * flat - math.pi) < 1.95
    assert (abs(sample["Photon_phi"]) <= np.float32(math.pi)).all()


def test_one_spectrum_and_one_direction_for_both(sample: Sample) -> None:
    is_electron = electrons(sample)
    for name in ("Photon_eta", "Photon_phi"):
        assert ks_distance(sample[name][is_electron], sample[name][~is_electron]) < 1.95
    energies = np.bincount(events_of_hits(sample), sample["EBRecHit_energy"])
    ratio = energies / (50 * np.cosh(sample["Photon_eta"]))
    assert abs(ratio[is_electron].mean() - ratio[~is_electron].mean()) < 0.01


def test_the_energy_is_contained(sample: Sample) -> None:
    energies = np.bincount(events_of_hits(sample), sample["EBRecHit_energy"])
    ratio = energies / (50 * np.cosh(sample["Photon_eta"]))
    assert 0.95 < ratio.mean() < 0.995
    assert np.percentile(ratio, 1) > 0.85
    assert 46.5 < sample["Photon_pt"].mean() < 49.5
    assert 0.3 < sample["Photon_pt"].std() < 2.0


def test_the_seed_is_at_the_reported_direction(sample: Sample) -> None:
    rows, columns = rows_and_columns(sample)
    events, energy = events_of_hits(sample), sample["EBRecHit_energy"].astype(float)
    row = row_of_eta(sample["Photon_eta"].astype(float))[events] - EB_FIRST_ROW
    column = column_of_phi(sample["Photon_phi"].astype(float))[events]
    near = (abs(rows - row) <= 5) & (abs((columns - column + 180) % 360 - 180) <= 5)
    best, best_near = np.zeros(N_EVENTS), np.zeros(N_EVENTS)
    np.maximum.at(best, events, energy)
    np.maximum.at(best_near, events[near], energy[near])
    assert (best_near > 0).all()
    assert (best_near == best).mean() > 0.998


# What tells them apart


def test_photons_are_more_compact(sample: Sample, windows: Floats) -> None:
    compact = r9(windows) > 0.94  # the share of photons that CMS finds unconverted in the barrel is about two thirds
    is_electron = electrons(sample)
    assert 0.55 < compact[~is_electron].mean() < 0.75
    assert 0.32 < compact[is_electron].mean() < 0.52


def test_more_material_more_conversions(sample: Sample, windows: Floats) -> None:
    compact, eta = r9(windows) > 0.94, abs(sample["Photon_eta"])
    for chosen in (electrons(sample), ~electrons(sample)):
        assert compact[chosen & (eta < 0.5)].mean() > compact[chosen & (eta > 1.0)].mean() + 0.15


def test_the_field_spreads_in_phi(sample: Sample, windows: Floats) -> None:
    eta_width, phi_width = widths(windows)
    is_electron, compact = electrons(sample), r9(windows) > 0.95
    split, whole = ~is_electron & ~compact, ~is_electron & compact
    assert phi_width[is_electron].mean() > 1.4 * eta_width[is_electron].mean()
    assert phi_width[split].mean() > 1.4 * eta_width[split].mean()
    assert phi_width[whole].mean() == pytest.approx(eta_width[whole].mean(), rel=0.1)


def test_both_charges_in_equal_parts() -> None:
    stack, arrivals = np.zeros((MAX_PARTICLES, N_FIELDS)), np.zeros((MAX_PARTICLES, N_FIELDS))
    cells, touched = np.zeros(170 * 360), np.empty(170 * 360, np.int64)
    charges = []
    for event in range(1500):
        is_electron, _ = egamma._fire(stream(4, event), stack, arrivals, np.zeros((2, MAX_LAYERS)), cells, touched)
        if is_electron:
            charges.append(stack[0, CHARGE])
    assert set(charges) == {-1.0, 1.0}
    assert abs(np.mean(charges)) < 4 / math.sqrt(len(charges))


# The parts


def test_material_budget() -> None:
    assert material_budget(0.0) == pytest.approx(0.42, abs=0.05)
    assert material_budget(1.4) == pytest.approx(1.8, abs=0.2)
    for eta in np.arange(0.05, 1.45, 0.05):
        assert 0.35 < material_budget(eta) < 2.1
        assert material_budget(eta) == pytest.approx(material_budget(-eta))


def test_layers_come_from_the_inside_out() -> None:
    radii, thicknesses = np.zeros(MAX_LAYERS), np.zeros(MAX_LAYERS)
    for eta in np.linspace(-1.45, 1.45, 59):
        for z in (-15.0, 0.0, 15.0):
            n = cross_layers(eta, z, radii, thicknesses)
            assert 15 < n < MAX_LAYERS // 2 + 1
            assert (np.diff(radii[:n]) > 0).all()
            assert radii[0] > 0
            assert radii[n - 1] < 129
            assert thicknesses[:n].min() > 0


def test_a_slanted_line_crosses_more() -> None:
    radii, thicknesses = np.zeros(MAX_LAYERS), np.zeros(MAX_LAYERS)
    n = cross_layers(1.3, 2.0, radii, thicknesses)
    layers = dict(zip(radii[:n], thicknesses[:n], strict=True))
    assert layers[34.104] == pytest.approx(0.0769 * math.cosh(1.3))  # a cylinder
    disk = (159.0 - 2.0) / math.sinh(1.3)
    assert layers[radii[:n][abs(radii[:n] - disk).argmin()]] == pytest.approx(0.050 * math.cosh(1.3) / math.sinh(1.3))


def test_charged_particles_bend_and_photons_do_not() -> None:
    turn = math.asin(129 / 2 / (50 / (0.00299792458 * 3.8)))
    for charge in (-1.0, 0.0, 1.0):
        (arrived,) = shoot(charge, 0.7, 1, ([4.0, 60.0, 110.0], [1e-9] * 3))
        assert math.atan2(arrived[Y], arrived[X]) == pytest.approx(-charge * turn, abs=1e-5)
        assert arrived[PHI] == pytest.approx(-2 * charge * turn, abs=1e-5)
        assert math.hypot(arrived[X], arrived[Y]) == pytest.approx(129)
        assert arrived[Z] == pytest.approx(129 * math.sinh(0.7), rel=1e-4)
        assert arrived[ENERGY] == pytest.approx(50 * math.cosh(0.7))


def test_conversions() -> None:
    n, x0 = 3000, 0.5
    arrivals = [shoot(0.0, 0.0, event, ([60.0], [x0])) for event in range(n)]
    expected = math.exp(-7 / 9 * x0)
    intact = np.mean([len(arrived) == 1 and arrived[0, CHARGE] == 0 for arrived in arrivals])
    assert abs(intact - expected) < 4 * math.sqrt(expected * (1 - expected) / n)
    pairs = [arrived for arrived in arrivals if len(arrived) > 1]
    assert all(arrived[:, CHARGE].sum() == 0 for arrived in pairs if arrived[:, ENERGY].sum() > 49.999999)
    assert np.mean([arrived[:, ENERGY].sum() for arrived in pairs]) > 49.5  # little is lost in the field


def test_radiation() -> None:
    n, x0 = 4000, 0.4
    arrivals = [shoot(-1.0, 0.0, event, ([60.0], [x0])) for event in range(n)]
    kept = np.array([arrived[-1, ENERGY] / 50 if arrived[-1, CHARGE] else 0.0 for arrived in arrivals])
    assert abs(kept.mean() - math.exp(-x0)) < 4 * kept.std() / math.sqrt(n) + 0.002  # 0.002 X0 below the cut
    alone = np.mean([len(arrived) == 1 for arrived in arrivals])
    lowest = 0.1 / 50
    photons = 4 / 3 * (lowest - 1 - math.log(lowest)) + (1 - lowest**2) / 2
    assert alone == pytest.approx(math.exp(-x0 * photons), abs=0.02)


def test_shower_containment() -> None:
    """About 94 % in 3 x 3 and 97 % in 5 x 5 crystals, the CMS figures (JINST 3 (2008) S08004), at a central impact."""
    shares = []
    for event in range(400):
        eta = (20.2 + 0.2 * uniform(stream(1, event))) * EB_CELL_ETA  # central at the depth of the shower
        image = deposit(-1.0, 120.0, eta, math.radians(30.7), event) / 120
        row, column = np.unravel_index(image.argmax(), image.shape)
        around = image[row - 2 : row + 3, column - 2 : column + 3]
        shares.append((around[2, 2], around[1:4, 1:4].sum(), around.sum(), image.sum()))
    one, nine, twenty_five, everything = np.mean(shares, axis=0)
    assert one == pytest.approx(0.77, abs=0.05)
    assert nine == pytest.approx(0.94, abs=0.015)
    assert twenty_five == pytest.approx(0.97, abs=0.01)
    assert 0.98 < everything < 1.0
    assert 0.002 < np.std(shares, axis=0)[2] < 0.012


def test_showers_are_symmetric_between_the_halves_of_the_barrel() -> None:
    plus, minus = np.zeros((170, 360)), np.zeros((170, 360))
    for event in range(300):
        plus += deposit(-1.0, 50.0, 0.5, 0.0, event)
        minus += deposit(-1.0, 50.0, -0.5, 0.0, event + 1000)
    # The tilt of the crystals has the opposite sign in phi: a half turn about phi = 0 maps one onto the other.
    turned = np.roll(minus[::-1, ::-1], -340, axis=1)
    middle = plus.sum(0).argmax()
    assert turned.sum(0)[middle - 2 : middle + 3] == pytest.approx(plus.sum(0)[middle - 2 : middle + 3], rel=0.1)
    assert turned.sum(1).argmax() == plus.sum(1).argmax()


def test_photons_shower_deeper() -> None:
    leaks = [
        np.mean([1 - deposit(charge, 100.0, 0.3, 1.0, event).sum() / 100 for event in range(300)])
        for charge in (0.0, -1.0)
    ]
    assert 0 < leaks[1] < leaks[0] < 0.03


def test_gamma_cdf() -> None:
    for x in (0.1, 1.0, 3.0, 10.0):
        assert gamma_cdf(1.0, x) == pytest.approx(1 - math.exp(-x), abs=1e-9)
        assert gamma_cdf(0.5, x) == pytest.approx(math.erf(math.sqrt(x)), abs=1e-9)
        assert gamma_cdf(3.0, x) == pytest.approx(1 - math.exp(-x) * (1 + x + x * x / 2), abs=1e-9)
    assert gamma_cdf(3.0, 0.0) == 0


def test_dice() -> None:
    state = stream(3)
    numbers = np.array([uniform(state) for _ in range(20_000)])
    assert 0 < numbers.min() < numbers.max() < 1
    assert ks_distance(numbers, (np.arange(100_000) + 0.5) / 100_000) < 1.95
    normals = np.array([normal(state) for _ in range(20_000)])
    assert abs(normals.mean()) < 4 / math.sqrt(20_000)
    assert normals.std() == pytest.approx(1, abs=0.02)
    firsts = [uniform(stream(seed, event)) for seed in range(50) for event in range(50)]
    assert len(set(firsts)) == 2500
    assert abs(np.corrcoef(firsts[:-1], firsts[1:])[0, 1]) < 4 / math.sqrt(2500)
