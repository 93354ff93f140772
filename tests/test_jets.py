"""Jets: anti-kT against a plain one, momentum, seams, what is left out, and a quiet FastJet."""

import json
import re
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import pytest

from stages import jets
from streamer.errors import UsageError

Array = npt.NDArray[Any]
Event = list[tuple[float, float, float]]  # pt, eta, phi

needs_fastjet = pytest.mark.skipif(find_spec("fastjet") is None, reason="fastjet is not installed")

NOTHING = 1e-6
"""A pt_min [GeV] that every jet passes."""


def columns(events: list[Event]) -> tuple[Array, Array, Array, Array]:
    """n_particles, pt, eta, phi."""
    rows = np.array([row for event in events for row in event], np.float32).reshape(-1, 3)
    n_particles = np.array([len(event) for event in events], np.int32)
    return n_particles, rows[:, 0].copy(), rows[:, 1].copy(), rows[:, 2].copy()


def clustered(
    events: list[Event], radius: float = jets.R_AK4, pt_min: float = NOTHING
) -> tuple[list[list[list[float]]], int]:
    """The jets of each event as [pt, eta, phi], and the number of particles left out."""
    found, n_left_out = jets.cluster(*columns(events), radius=radius, pt_min=pt_min)
    assert {name: column.dtype for name, column in found.items()} == {
        "counts": np.int32, "pt": np.float32, "eta": np.float32, "phi": np.float32
    }  # fmt: skip
    assert found["counts"].shape == (len(events),)
    rows = np.stack([found["pt"], found["eta"], found["phi"]], axis=1).astype(np.float64)
    return [event.tolist() for event in np.split(rows, np.cumsum(found["counts"])[:-1])], n_left_out


def random_events(seed: int, n_events: int, n_most: int) -> list[Event]:
    """Soft particles everywhere and a few narrow sprays, one of them across phi = pi; every seventh event is empty."""
    rng = np.random.default_rng(seed)
    events: list[Event] = []
    for k in range(n_events):
        n = 0 if k % 7 == 3 else int(rng.integers(1, n_most))
        pt, eta, phi = rng.exponential(1, n) + 0.1, rng.uniform(-3.5, 3.5, n), rng.uniform(-np.pi, np.pi, n)
        for axis, members in enumerate(np.array_split(np.arange(n), 5)[:3]):
            centre = np.pi if axis == 0 else rng.uniform(-np.pi, np.pi)
            pt[members] = rng.exponential(20, members.size)
            eta[members] = rng.uniform(-2, 2) + rng.normal(0, 0.3, members.size)
            phi[members] = (centre + rng.normal(0, 0.3, members.size) + np.pi) % (2 * np.pi) - np.pi
        events.append(list(zip(pt.tolist(), eta.tolist(), phi.tolist(), strict=True)))
    return events


def plain_anti_kt(event: Event, radius: float, pt_min: float) -> Array:
    """The definition, step by step: jets as rows of pt, eta, phi by falling pt."""
    rows = np.array(event, np.float32).astype(np.float64).reshape(-1, 3)
    pt, eta, phi = rows.T
    pseudojets = [*np.stack([pt * np.cos(phi), pt * np.sin(phi), pt * np.sinh(eta), pt * np.cosh(eta)], axis=1)]
    found = []
    while pseudojets:
        px, py, pz, energy = np.array(pseudojets).T
        inverse = 1 / (px**2 + py**2)
        rapidity, phi = np.log((energy + pz) / (energy - pz)) / 2, np.arctan2(py, px)
        apart = np.abs(phi[:, None] - phi)
        apart = np.minimum(apart, 2 * np.pi - apart)
        distance = np.minimum(inverse[:, None], inverse) / radius**2
        distance *= (rapidity[:, None] - rapidity) ** 2 + apart**2
        np.fill_diagonal(distance, inverse)  # to the beam
        i, j = np.unravel_index(distance.argmin(), distance.shape)
        first = pseudojets.pop(max(i, j))
        if i == j:
            found.append(first)
        else:
            pseudojets.append(pseudojets.pop(min(i, j)) + first)
    px, py, pz, _ = np.array(found).reshape(-1, 4).T
    pt = np.hypot(px, py)
    all_jets = np.stack([pt, np.arctanh(pz / np.hypot(pt, pz)), np.arctan2(py, px)], axis=1)
    return all_jets[np.argsort(-pt)][np.sort(-pt) <= -pt_min]


# --- The algorithm ---


@needs_fastjet
@pytest.mark.parametrize("radius", [jets.R_AK4, jets.R_AK8])
def test_jets_are_those_of_the_definition(radius: float) -> None:
    events = random_events(seed=int(10 * radius), n_events=2 * jets.SLICE + 5, n_most=60)
    found, n_left_out = clustered(events, radius, pt_min=2.0)
    assert n_left_out == 0
    for event, mine in zip(events, found, strict=True):
        true = plain_anti_kt(event, radius, pt_min=2.0)
        assert len(mine) == len(true)
        away = np.abs(np.array(mine).reshape(-1, 3) - true)
        away[:, 2] = np.minimum(away[:, 2], 2 * np.pi - away[:, 2])
        assert (away <= 1e-5 + np.array([1e-6, 0, 0]) * true).all()
    assert sum(map(len, found)) > 300


@needs_fastjet
@pytest.mark.parametrize("radius", [jets.R_AK4, jets.R_AK8])
def test_momentum_is_conserved(radius: float) -> None:
    events = random_events(seed=5, n_events=70, n_most=200)

    def momentum(rows: Any) -> Array:
        pt, eta, phi = np.array(rows).reshape(-1, 3).T
        return np.array([np.sum(pt * np.cos(phi)), np.sum(pt * np.sin(phi)), np.sum(pt * np.sinh(eta))])

    for event, mine in zip(events, clustered(events, radius)[0], strict=True):
        scale = 1 + sum(pt * np.cosh(eta) for pt, eta, _ in event)
        np.testing.assert_allclose(momentum(mine), momentum(event), atol=1e-6 * scale)


@needs_fastjet
def test_particles_apart_are_jets_themselves() -> None:
    event = [(40.0, 1.0, 0.5), (30.0, -2.0, 3.0), (20.0, 1.0, 0.95), (10.0, 0.5, -3.0)]
    np.testing.assert_allclose(clustered([event])[0], [event], rtol=1e-6)


@needs_fastjet
def test_momenta_add_across_the_seam() -> None:
    ((jet,),), _ = clustered([[(30.0, 0.0, np.pi - 0.1), (10.0, 0.0, 0.1 - np.pi)]])
    x, y = 40 * np.cos(0.1), 20 * np.sin(0.1)
    np.testing.assert_allclose(jet, [np.hypot(x, y), 0, np.pi - np.arctan(y / x)], rtol=1e-6, atol=1e-7)


@needs_fastjet
@pytest.mark.parametrize("phi", [np.pi, -np.pi, 3 * np.pi, 7.0, -10.0])
def test_any_phi_comes_back_between_minus_pi_and_pi(phi: float) -> None:
    (((_, _, found),),), _ = clustered([[(30.0, 0.0, phi)]])
    assert -np.float32(np.pi) <= found < np.float32(np.pi)
    assert np.cos(found - phi) == pytest.approx(1)


@needs_fastjet
def test_phi_is_never_pi_itself() -> None:
    (((_, _, found),),), _ = clustered([[(30.0, 0.0, 3.0), (30.0, 0.0, -3.0)]])
    assert found == -np.float32(np.pi)


@needs_fastjet
@pytest.mark.parametrize(("pt_min", "kept"), [(9.9, 2), (10.0, 2), (10.1, 1), (50.1, 0)])
def test_jets_below_pt_min_are_dropped(pt_min: float, kept: int) -> None:
    found, _ = clustered([[(10.0, 1.0, 0.0), (50.0, -1.0, 0.0)]], pt_min=pt_min)
    assert [jet[0] for jet in found[0]] == [50.0, 10.0][:kept]


@needs_fastjet
def test_jets_come_by_falling_pt_in_each_event() -> None:
    found, _ = clustered(random_events(seed=2, n_events=100, n_most=100))
    assert max(map(len, found)) > 20
    for event in found:
        assert (np.diff([pt for pt, _, _ in event]) <= 0).all()


@needs_fastjet
@pytest.mark.parametrize("bad", [0.0, -0.4, np.nan, np.inf])
def test_impossible_settings_are_refused(bad: float) -> None:
    for radius, pt_min in ((bad, 35.0), (0.4, bad)):
        with pytest.raises(ValueError, match="no jets with radius"):
            jets.cluster(*columns([[]]), radius=radius, pt_min=pt_min)


# --- What is missing or broken ---


@needs_fastjet
@pytest.mark.parametrize("n_events", [0, 1, jets.SLICE, 2 * jets.SLICE + 1])
def test_empty_events_have_no_jets(n_events: int) -> None:
    found, n_left_out = jets.cluster(*columns([[]] * n_events), radius=0.4, pt_min=1.0)
    assert found["counts"].tolist() == [0] * n_events
    assert found["counts"].dtype == np.int32
    assert [found[name].size for name in ("pt", "eta", "phi")] == [0, 0, 0]
    assert n_left_out == 0


@needs_fastjet
def test_empty_events_stand_between_others() -> None:
    one = [(20.0, 0.5, 0.25)]
    for events in ([[], one, [], [], one], [one, []], [[]] * jets.SLICE + [one], [one, *[[]] * jets.SLICE]):
        assert clustered(events)[0] == [[pytest.approx(row) for row in event] for event in events]


BROKEN = [
    (np.nan, 0.0, 0.0),
    (np.inf, 0.0, 0.0),
    (-np.inf, 0.0, 0.0),
    (5.0, np.nan, 0.0),
    (5.0, np.inf, 0.0),
    (5.0, -np.inf, 0.0),
    (5.0, 800.0, 0.0),
    (5.0, -jets.ETA_LIMIT, 0.0),
    (5.0, 0.0, np.nan),
    (5.0, 0.0, -np.inf),
    (0.0, 0.0, 0.0),
    (-5.0, 0.0, 0.0),
]


@needs_fastjet
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("bad", BROKEN)
def test_a_broken_particle_is_left_out_and_counted(bad: tuple[float, float, float]) -> None:
    good = [(20.0, 0.1, 0.1), (7.0, -2.0, 1.0)]
    found, n_left_out = clustered([[bad], [good[0], bad, good[1]], [good[1], bad]])
    assert n_left_out == 3
    assert found[0] == []
    assert [found[1:], 0] == [*clustered([good, [good[1]]])]


@needs_fastjet
@pytest.mark.filterwarnings("error")
def test_extreme_particles_do_no_harm() -> None:
    eta = float(np.nextafter(np.float32(jets.ETA_LIMIT), np.float32(0)))
    event = [(1e30, eta, 1.0), (1e29, -eta, 2.0), (1e-40, 0.0, 3.0), (5.0, 0.0, 0.0)]
    found, n_left_out = clustered([event, [(5.0, 0.0, 0.0)] * 300], pt_min=1e-42)
    assert n_left_out == 0
    np.testing.assert_allclose(found[0], [event[k] for k in (0, 1, 3, 2)], rtol=1e-4)
    np.testing.assert_allclose(found[1], [[1500.0, 0.0, 0.0]], rtol=1e-6)


def test_without_fastjet_the_line_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastjet", None)
    with pytest.raises(UsageError, match=r"pip install 'e2e-streamer\[jets\]'") as raised:
        jets.cluster(*columns([[]]), radius=0.4, pt_min=1.0)
    assert "\n" not in str(raised.value)


# --- In a process that goes on ---


@needs_fastjet
def test_nothing_is_printed() -> None:
    script = """
import numpy as np
from stages import jets
pt = np.full(3, 20, np.float32)
found, _ = jets.cluster(np.array([0, 3], np.int32), pt, pt * 0, pt * 0, radius=0.4, pt_min=1.0)
assert found["counts"].tolist() == [0, 1]
"""
    done = subprocess.run([sys.executable, "-W", "always", "-c", script], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"FastJet" not in done.stderr


@needs_fastjet
def test_the_slices_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    events = random_events(seed=9, n_events=50, n_most=80)
    whole = clustered(events)
    assert whole == clustered(events)
    monkeypatch.setattr(jets, "SLICE", 7)
    assert whole == clustered(events)
    assert whole[0] == [clustered([event])[0][0] for event in events]


@needs_fastjet
def test_the_input_is_only_read() -> None:
    given = columns(random_events(seed=3, n_events=10, n_most=50))
    before = [column.copy() for column in given]
    for column in given:
        column.flags.writeable = False
    jets.cluster(*given, radius=0.8, pt_min=1.0)
    for column, copy in zip(given, before, strict=True):
        np.testing.assert_array_equal(column, copy)


@needs_fastjet
def test_many_calls_leave_no_memory_behind() -> None:
    given = columns(random_events(seed=4, n_events=20, n_most=150))

    def call(times: int) -> int:
        for _ in range(times):
            jets.cluster(*given, radius=0.4, pt_min=5.0)
        return int(psutil.Process().memory_info().rss)

    before = call(20)
    assert call(300) - before < 30e6  # a kept history is some 300 MB


@needs_fastjet
def test_threads_do_not_disturb_each_other() -> None:
    blocks = [random_events(seed, n_events=20, n_most=100) for seed in range(8)]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(clustered, blocks * 3)) == [clustered(block) for block in blocks] * 3


# --- Towers ---


def test_towers_are_massless_particles() -> None:
    eta, phi = np.array([0.0, 2.5, -1.0], np.float32), np.array([0.1, -3.0, 2.0], np.float32)
    em, had = np.array([3.0, 10.0, 0.0], np.float32), np.array([4.0, -1.0, 0.5], np.float32)
    pt, same_eta, same_phi = jets.particles_of_towers(eta, phi, em, had)
    np.testing.assert_allclose(pt, (em + had) * 2 / (np.exp(eta) + np.exp(-eta)), rtol=1e-6)
    np.testing.assert_array_equal(same_eta, eta)
    np.testing.assert_array_equal(same_phi, phi)
    assert pt.dtype == same_eta.dtype == same_phi.dtype == np.float32


@needs_fastjet
def test_a_tower_without_energy_is_no_particle() -> None:
    zeros = np.zeros(4, np.float32)
    em, had = np.array([1.0, 0.0, 2.0, -1.0], np.float32), np.array([2.0, 0.0, -3.0, 2.0], np.float32)
    towers = jets.particles_of_towers(zeros, np.arange(4, dtype=np.float32), em, had)
    found, n_left_out = jets.cluster(np.array([4], np.int32), *towers, radius=0.4, pt_min=NOTHING)
    assert n_left_out == 2
    np.testing.assert_allclose(found["pt"], [3.0, 1.0])
    np.testing.assert_allclose(found["phi"], [0.0, 3.0], atol=1e-6)


# --- Real events ---


def real_tables(path: Path, wanted: dict[str, tuple[str, ...]]) -> list[dict[str, Array]]:
    """Some fields of some tables of each event of a file."""
    events = []
    with zipfile.ZipFile(path) as archive:
        for name in (name for name in archive.namelist() if re.fullmatch(r"Events/Run_\d+/Event_\d+", name)):
            text = archive.read(name).decode().translate(str.maketrans("()'", '[]"'))
            event = json.loads(re.sub(r"\bnan\b", "NaN", re.sub(r"\binf\b", "Infinity", text)))
            tables = {}
            for table, fields in wanted.items():
                names = [field for field, _ in event["Types"][table]]
                places = [names.index(field) for field in fields]
                rows = [[row[k] for k in places] for row in event["Collections"][table]]
                tables[table] = np.array(rows).reshape(-1, len(fields))
            events.append(tables)
    return events


@needs_fastjet
def test_jets_of_real_tracks_and_towers_are_where_cms_found_them(real_events: list[Path]) -> None:
    fields = {"Tracks_V3": "pt", "HBRecHits_V2": "energy", "PFJets_V1": "et"}
    events = real_tables(real_events[0], {table: (first, "eta", "phi") for table, first in fields.items()})
    particles: list[Event] = []
    for event in events:
        energy, eta, phi = event["HBRecHits_V2"].T
        towers = np.stack(jets.particles_of_towers(eta, phi, energy * 0, energy), axis=1)
        particles.append([(pt, eta, phi) for pt, eta, phi in np.concatenate([event["Tracks_V3"], towers]).tolist()])
    found, _ = clustered(particles, pt_min=5.0)
    near = []
    for event, mine in zip(events, found, strict=True):
        for et, eta, phi in event["PFJets_V1"].tolist():
            if et > 50 and abs(eta) < 1.2:
                near.append(min((np.hypot(e - eta, np.sin((p - phi) / 2) * 2) for _, e, p in mine), default=9.0))
    assert len(near) > 40
    assert np.mean(np.array(near) < 0.2) > 0.9
