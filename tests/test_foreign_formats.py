"""Events of other programs through the whole chain: the same columns, images and scores as from our own files.

Delphes trees, MLAnalyzer ntuples, and a kind that is not ours and comes in by an entry point.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import foreign_files
import numpy as np
import pytest
import reference_detector as reference
from foreign_files import write_delphes, write_mlanalyzer
from physics_helpers import Chain, Processes, call, cms_open_data, hits_block, per_event, read_scores
from test_detector import columns_of, ee_cell, events_of, fail

from stages.config import CHANNELS, Config, InputConfig
from stages.conversion import schema_of
from stages.formats import mlanalyzer, open_events
from stages.formats.mlanalyzer import vectors_of
from stages.formats.root import write_events
from stages.framer import Framer
from stages.reader import Reader
from stages.records import INPUT, INPUT_BY_NAME
from streamer.block import Columns
from streamer.config import to_toml
from streamer.errors import UsageError

Event = dict[str, Any]


def config(taggers: dict[str, Any], files: Sequence[Path] = (), **sections: Any) -> Config:
    """Taggers whose networks are not looked at, unless they have some."""
    named = {name: {"model": "none", **tagger} for name, tagger in taggers.items()}
    given = {"files": [str(path) for path in files], **sections.pop("input", {})}
    return Config.model_validate({"taggers": named, "input": given, **sections})


def read(config: Config) -> tuple[Columns, dict[tuple[str, str], int]]:
    """All events as the reader sends them, and what it counts."""
    reader = Reader(config)
    reader.setup()
    steps = list(reader.read())
    reader.close()
    n = sum(len(step["event"]) for step in steps)
    columns = {name: np.concatenate([step[name] for step in steps]) for name in steps[0]}
    reader.outputs.check(hits_block(config, columns, n).columns, n)
    return columns, reader.take_tally()


def images_of(config: Config, columns: Columns) -> list[dict[str, Any]]:
    """Each event's images, dense, as the framer makes them; of HCAL the towers."""
    framer = Framer(config)
    framer.setup()
    n = len(columns["event"])
    framed = framer.process(hits_block(config, columns, n)).columns
    ends = np.cumsum(framed["nPixel"].ravel())[:-1]
    index, value = (np.split(framed[f"Pixel_{name}"], ends) for name in ("index", "value"))
    out = []
    for event in range(n):
        images = {}
        for place, channel in enumerate(config.channels, event * len(config.channels)):
            images[channel] = np.zeros((56, 72) if channel == "HCAL" else (280, 360))
            images[channel].ravel()[index[place]] = value[place]
        out.append(images)
    return out


def assert_images(found: dict[str, Any], wanted: dict[str, Any], told: str = "") -> None:
    for channel, image in found.items():
        expected = wanted["HCALTowers" if channel == "HCAL" else channel]
        np.testing.assert_allclose(image, expected, rtol=1e-5, atol=2e-6, err_msg=f"{told} {channel}")


class Scores:
    """What the reference makes of events, with a linear network for each tagger."""

    def __init__(self, folder: Path, taggers: dict[str, Any], **sections: Any) -> None:
        given = {name: {**tagger, "model": folder / f"{name}.onnx"} for name, tagger in taggers.items()}
        self.config = config(given, **sections)
        self.weights = {
            name: reference.linear_model(spec.model, *spec.shape, seed)
            for seed, (name, spec) in enumerate(self.config.taggers.items())
        }
        self.n_scored = dict.fromkeys(taggers, 0)

    def check(self, got: dict[str, Any], events: Sequence[Event], first: int = 0) -> None:
        """The scores of some events, from entry `first` of the output on."""
        for number, event in enumerate(events, first):
            images = event.get("frame") or reference.frame(event, ee_cell=ee_cell)[0]
            for name, spec in self.config.taggers.items():
                stack = np.stack([images[channel] for channel in spec.channels])
                crops = [stack] if spec.objects == "Event" else self._crops(spec, event, images, stack)
                found = np.atleast_1d(got[f"{spec.objects}_{spec.score}"][number]).tolist()
                assert len(found) == len(crops), f"{name} of entry {number}"
                for score, crop in zip(found, crops, strict=True):
                    wanted, about = -1.0, 0.0
                    if crop is not None:
                        self.n_scored[name] += 1
                        terms = self.weights[name] * crop
                        wanted, about = terms.sum(), np.abs(terms).sum()
                    assert abs(score - wanted) <= 1e-5 + 2e-6 * about, f"{name} of entry {number}"

    def _crops(self, spec: Any, event: Event, images: Any, stack: Any) -> list[Any]:
        out: list[Any] = []
        objects = zip(*(event[f"{spec.objects}_{name}"] for name in ("pt", "eta", "phi")), strict=True)
        for pt, eta, phi in objects:
            seed = None
            if reference.selected(pt, eta, spec.pt_min, spec.eta_max):
                seed = reference.jet_seed(images["HCALTowers"].astype(np.float32), eta, phi)
            out.append(None if seed is None else reference.crop(stack, seed, spec.crop))
        return out


WHOLE = {"objects": "Event", "channels": ("HCAL", "TrackPt", "ECAL", "TrackDz")}


# ---- Delphes


def simulated_events(n: int, seed: int = 11) -> list[Event]:
    """Events that Delphes could have made: tracks, towers, photons, jets and vertices away from all edges."""
    rng = np.random.default_rng(seed)

    def directions(k: int, around: tuple[float, float] | None = None) -> tuple[list[float], list[float]]:
        found: list[tuple[float, float]] = []
        while len(found) < k:
            eta, phi = around or (rng.uniform(-3.4, 3.4), rng.uniform(-3.1, 3.1))
            eta, phi = (reference.f32(x + (rng.normal(0, 0.2) if around else 0)) for x in (eta, phi))
            if abs(phi) < np.pi and reference.clear_of_edges(eta, phi):
                found.append((eta, phi))
        return [eta for eta, _ in found], [phi for _, phi in found]

    def numbers(low: float, high: float, k: int) -> list[float]:
        return [reference.f32(round(x * 64) / 64) for x in rng.uniform(low, high, k)]

    events = []
    for number in range(n):
        event: Event = {"run": 1, "luminosityBlock": 1, "event": 10_000_000_000 + number}
        for collection, members in reference.COLLECTIONS.items():
            event |= {f"{collection}_{member}": [] for member in members}
        if number % 6 == 5:
            events.append(event)
            continue
        axis = (float(rng.uniform(-1.2, 1.2)), float(rng.uniform(-2.5, 2.5)))
        for name, k in (("Track", 25), ("Tower", 40), ("Jet", 3), ("FatJet", 2), ("Photon", 2)):
            here, there = directions(k // 2, axis), directions(k - k // 2, axis if "Jet" in name else None)
            event[f"{name}_eta"], event[f"{name}_phi"] = (a + b for a, b in zip(here, there, strict=True))
            event[f"{name}_pt"] = numbers(1, 30, k) if name == "Track" else numbers(30, 200, k)
        del event["Tower_pt"]
        event |= {f"Tower_{part}Energy": numbers(0.1, 60, 40) for part in ("em", "had")}
        event["Tower_hadEnergy"][::3] = [0.0] * 14
        event["Tower_emEnergy"][1::3] = [0.0] * 13
        event["Track_charge"] = rng.choice([-1, 1], 25).tolist()
        event["Track_highPurity"] = [1] * 25
        event["Track_d0"] = [reference.f32(x) for x in rng.normal(0, 0.02, 25)]
        dz = rng.choice([-1, 1], 25) * rng.choice([rng.uniform(0, 0.09), rng.uniform(0.11, 3)], 25)
        event["Track_dz"] = [reference.f32(x) for x in dz]
        if number % 3:
            for name, width in (("x", 0.05), ("y", 0.05), ("z", 4.0)):
                event[f"PV_{name}"] = [reference.f32(x) for x in rng.normal(0, width, 2)]
        event["Photon_seedDetId"] = [0, 0]
        events.append(event)
    return events


SIMULATED = simulated_events(18)
VARIANTS: list[dict[str, Any]] = [
    {},
    {"towers": "EFlow"},
    {"towers": "EFlow", "tracks": False},
    {"impact": "Dxy"},
    {"d0_sign": -1},
    {"points": False},
]
ALL_OF_DELPHES = {
    "whole": {"objects": "Event", "channels": ("TrackPt", "TrackD0", "TrackDz", "ECAL", "HCAL")},
    **{objects: {"objects": objects, "channels": ("HCAL",)} for objects in ("Jet", "FatJet", "Photon")},
}


def variant_name(variant: dict[str, Any]) -> str:
    return "-".join(f"{key}={value}" for key, value in variant.items()) or "plain"


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_name)
def test_delphes_gives_our_columns_in_our_units(tmp_path: Path, variant: dict[str, Any]) -> None:
    path = write_delphes(tmp_path / "delphes.root", SIMULATED, **variant)
    made = config(ALL_OF_DELPHES, [path], input={"step_events": 7}, framer={"tracks_at": "ecal"})
    got, tally = read(made)
    assert not tally
    assert got["event"].tolist() == [event["event"] for event in SIMULATED]
    assert set(got["run"]) == set(got["luminosityBlock"]) == {1}
    for collection in ("Track", "Photon", "Jet", "FatJet", "PV"):
        for member in reference.COLLECTIONS[collection]:
            name = f"{collection}_{member}"
            found = per_event(got, name, collection)
            for event, values in zip(SIMULATED, found, strict=True):
                np.testing.assert_allclose(values, event[name], rtol=1e-6, atol=2e-6, err_msg=name)
            assert sum(map(len, found)) > 15
    for part in ("em", "had"):  # those of the one, then those of the other calorimeter
        towers = [per_event(got, f"Tower_{name}", "Tower") for name in ("eta", "phi", f"{part}Energy")]
        for event, *found in zip(SIMULATED, *towers, strict=True):
            wanted = zip(*(event[f"Tower_{name}"] for name in ("eta", "phi", f"{part}Energy")), strict=True)
            rows = [row for row in zip(*found, strict=True) if row[2] > 0]
            assert rows == [row for row in wanted if row[2] > 0]
    assert (got["Track_highPurity"] == 1).all()


def test_delphes_without_vertices_measures_from_the_origin(tmp_path: Path) -> None:
    path = write_delphes(tmp_path / "delphes.root", SIMULATED, vertices=False)
    got, _ = read(config(ALL_OF_DELPHES, [path]))
    moved = 0.0
    for event, d0, dz in zip(SIMULATED, *(per_event(got, f"Track_{n}", "Track") for n in ("d0", "dz")), strict=True):
        x, y, z = (event[f"PV_{axis}"][0] if event["PV_x"] else 0.0 for axis in "xyz")
        eta, phi = np.array(event["Track_eta"]), np.array(event["Track_phi"])
        across = x * np.sin(phi) - y * np.cos(phi)
        along = z - (x * np.cos(phi) + y * np.sin(phi)) * np.sinh(eta)
        np.testing.assert_allclose(d0, np.array(event["Track_d0"]) + across, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(dz, np.array(event["Track_dz"]) + along, rtol=1e-5, atol=1e-5)
        moved = max(moved, *np.abs(across), 0)
    assert moved > 0.05


@pytest.mark.parametrize("variant", VARIANTS, ids=variant_name)
def test_frames_of_delphes_events_are_the_reference_images(tmp_path: Path, variant: dict[str, Any]) -> None:
    path = write_delphes(tmp_path / "delphes.root", SIMULATED[:6], **variant)
    made = config(ALL_OF_DELPHES, [path])
    filled = dict.fromkeys(made.channels, 0)
    for number, images in enumerate(images_of(made, read(made)[0])):
        assert_images(images, reference.frame(SIMULATED[number], ee_cell=ee_cell)[0], f"event {number}")
        for channel, image in images.items():
            filled[channel] += int(np.count_nonzero(image))
    assert all(n > 50 for n in filled.values()), filled


def test_a_track_along_the_beam_of_delphes_is_outside(tmp_path: Path) -> None:
    """Eta is +-999.9 there."""
    event = {**SIMULATED[1], "Track_eta": [999.9, -999.9, *SIMULATED[1]["Track_eta"][2:]]}
    with np.errstate(all="ignore"):
        path = write_delphes(tmp_path / "delphes.root", [event])
    made = config({"whole": WHOLE}, [path])
    (images,) = images_of(made, read(made)[0])
    wanted = {name: values[2:] for name, values in event.items() if name.startswith("Track_")}
    assert_images(images, reference.frame({**event, **wanted}, ee_cell=ee_cell)[0])


def test_delphes_without_tracks_is_refused_at_the_start(tmp_path: Path) -> None:
    path = write_delphes(tmp_path / "delphes.root", SIMULATED[:2], tracks=False)
    scores = Scores(tmp_path, {"qg": {"objects": "Jet"}}, files=[path])
    (tmp_path / "check.toml").write_text(to_toml(scores.config))
    said = (
        f"{path}: no TrackPt, TrackD0, TrackDz, as there is no Track in this Delphes file; tagger qg would see nothing "
        "there: set taggers.qg.allow_empty = true to go on so, or take another kind of file"
    )
    code, _, err = call("check", tmp_path / "check.toml", "--set", f"writer.dir={tmp_path / 'out'}")
    assert code == 2
    assert [line for line in err.splitlines() if line.startswith(("streamer: ", "ERROR "))] == [
        f"streamer: {tmp_path / 'check.toml'}: {said}"
    ]


def test_delphes_without_tracks_and_fat_jets_goes_on_where_that_is_allowed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("fastjet", reason="jets are clustered with fastjet, which is not installed")
    path = write_delphes(tmp_path / "delphes.root", SIMULATED, tracks=False, fat_jets=False)
    scores = Scores(tmp_path, {"top": {"objects": "FatJet", "allow_empty": True}}, files=[path])
    with caplog.at_level(logging.WARNING):
        columns, tally = read(scores.config)
    assert not tally
    assert caplog.messages == [
        f"{path}: no TrackPt, TrackD0, TrackDz, as there is no Track in this Delphes file; empty for tagger top",
        f"{path}: no BPIX1, BPIX2, BPIX3, as there is no PixelHit in this Delphes file; empty for tagger top",
        f"{path}: FatJet are anti-kT jets with R = 0.8, clustered from Tower",
    ]
    found = Chain(scores.config).scores(columns, len(SIMULATED)).columns
    got = {name: per_event(found, name, "FatJet") for name in ("FatJet_pt", "FatJet_eta", "FatJet_phi")}
    events = []
    for number, event in enumerate(SIMULATED):
        jets = {name: values[number] for name, values in got.items()}
        events.append({**event, **jets, **{name: [] for name in event if name.startswith("Track_")}})
    scores.check({"FatJet_topScore": per_event(found, "FatJet_topScore", "FatJet")}, events)
    assert scores.n_scored["top"] > 15
    for event in events:  # no energy is lost or counted twice
        towers = [np.array(event[f"Tower_{name}"]) for name in ("emEnergy", "hadEnergy", "eta")]
        pt = (towers[0] + towers[1]) / np.cosh(towers[2])
        most = max(event["FatJet_pt"], default=0)
        assert pt.max(initial=0) * 0.999 <= most <= pt.sum() * 1.0001


# ---- MLAnalyzer


@pytest.fixture(scope="module")
def real() -> list[Event]:
    """The real events with the images of them that an ntuple would have, and the jets that it would keep."""
    events: list[Event] = []
    for path in sorted(cms_open_data().glob("*.ig")):
        for step in open_events(path, InputConfig()).read(INPUT, fail):
            events += events_of(step.columns)
    return [as_ntuple(event) for event in events]


def as_ntuple(event: Event) -> Event:
    """With its images, and with no other jets than those in the barrel."""
    images, _ = reference.frame(event, ee_cell=ee_cell)
    tracks = {name: event[name] for name in event if name.startswith("Track_")}
    ones = {**tracks, "Track_pt": [1.0] * len(tracks["Track_pt"])}
    out = {channel: images[channel] for channel in CHANNELS} | {"HCAL": images["HCALTowers"]}
    out["Tracks"] = reference.frame(ones, ee_cell=ee_cell)[0]["TrackPt"]
    own = zip(*(event[f"Jet_{name}"] for name in ("pt", "eta", "phi")), strict=True)
    kept = [k for k, jet in enumerate(own) if np.isfinite(jet).all() and in_the_barrel(*jet[1:])]
    jets = {f"Jet_{name}": [event[f"Jet_{name}"][k] for k in kept] for name in ("pt", "eta", "phi")}
    return {**event, **jets, "images": out, "frame": images}


def in_the_barrel(eta: float, phi: float) -> bool:
    tower = reference.tower_of(eta, phi)
    return tower is not None and 12 <= tower[0] <= 43 and abs(eta) < 1.39  # the writer goes by rows of the frame


def only(event: Event, *channels: str) -> Event:
    return {**event, "images": {name: event["images"][name] for name in (*channels, "Tracks")}}


MEASURED = ("TrackPt", "TrackD0", "TrackDz", "ECAL", "HCAL")


def test_scores_of_an_ntuple_are_those_of_the_events_that_it_was_made_of(tmp_path: Path, real: list[Event]) -> None:
    path = write_mlanalyzer(tmp_path / "ntuple.root", [only(event, *MEASURED) for event in real])
    scores = Scores(tmp_path, {"qg": {"objects": "Jet"}, "whole": WHOLE}, files=[path])
    got, tally = read(scores.config)
    assert not tally
    assert not any(name.startswith(("Track", "EB", "HBHE")) and got[name].any() for name in got)
    found = Chain(scores.config).scores(got, len(real)).columns
    jets: dict[str, Any] = {
        "Jet_qgScore": per_event(found, "Jet_qgScore", "Jet"),
        "Event_wholeScore": found["Event_wholeScore"],
    }
    scores.check(jets, real)
    assert scores.n_scored["whole"] == 100
    assert scores.n_scored["qg"] > 60
    assert [-1 in event for event in jets["Jet_qgScore"]].count(True) > 10, "soft jets"


@pytest.fixture(scope="module")
def awkward() -> list[Event]:
    """Made-up events with all 13 channels."""
    events = reference.random_events(np.random.default_rng(5), 9)
    made = [as_ntuple(event) for event in events[1:7]]
    for event in made:  # in which layer of its subdetector a hit is makes no difference
        parts = np.random.default_rng(1).multinomial(event["images"]["TOB"].astype(int).ravel(), [1 / 6] * 6)
        event["images"]["TOB"] = parts.T.reshape(6, 280, 360)
    return made


def wanted_images(event: Event) -> dict[str, Any]:
    own = event["images"]
    return {**own, "HCALTowers": own["HCAL"], "TOB": own["TOB"].sum(axis=0)}


@pytest.mark.parametrize(
    "variant",
    [
        {},
        {"projection": "", "averaged": False},
        {"projection": "", "averaged": True},
        {"projection": "_atECAL", "averaged": False, "hits": ""},
        {"projection": "_atECAL", "averaged": True},
        {"projection": "_PV"},
        {"shifted_layers": True},
        {"shifted_layers": True, "hits": ""},
    ],
    ids=variant_name,
)
def test_images_of_all_forks_are_the_same(tmp_path: Path, awkward: list[Event], variant: dict[str, Any]) -> None:
    path = write_mlanalyzer(tmp_path / "ntuple.root", awkward[:3], **variant)
    made = config({"whole": {"objects": "Event", "channels": CHANNELS}}, [path])
    got, tally = read(made)
    assert not tally
    filled = dict.fromkeys(CHANNELS, 0)
    for number, images in enumerate(images_of(made, got)):
        assert_images(images, wanted_images(awkward[number]), f"event {number}")
        for channel, image in images.items():
            filled[channel] += int(np.count_nonzero(image))
    assert all(filled.values()), filled


@pytest.mark.parametrize("style", ["dijet", "tau", "top"])
def test_jets_of_all_tasks(tmp_path: Path, awkward: list[Event], style: Any) -> None:
    events = [only(event, "HCAL") for event in awkward]
    path = write_mlanalyzer(tmp_path / "ntuple.root", events, jets=style)
    got, tally = read(config({"jets": {"objects": "Jet", "channels": ("HCAL",)}}, [path]))
    assert not tally
    assert sum(got["nJet"]) > 5
    for name, atol in (("pt", 0), ("eta", 0), ("phi", 0.0437 if style == "top" else 1e-6)):  # half a tower
        for event, values in zip(events, per_event(got, f"Jet_{name}", "Jet"), strict=True):
            np.testing.assert_allclose(values, event[f"Jet_{name}"], rtol=1e-6, atol=atol, err_msg=name)


def test_photons_of_an_ntuple(tmp_path: Path, awkward: list[Event]) -> None:
    events = [only(event, "ECAL") for event in awkward]
    path = write_mlanalyzer(tmp_path / "ntuple.root", events, jets=None, photons=True)
    got, _ = read(config({"eg": {}}, [path]))
    rows = [[reference.row_of(eta) for eta in event["Photon_eta"]] for event in events]
    wanted = [
        [pt for pt, row in zip(event["Photon_pt"], rows, strict=True) if row is not None and 55 <= row <= 224]
        for event, rows in zip(events, rows, strict=True)
    ]
    found = per_event(got, "Photon_pt")
    assert list(map(len, found)) == list(map(len, wanted))
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(wanted), rtol=1e-6)
    assert len(got["Photon_pt"]) > 6
    with pytest.raises(UsageError, match=r"no column 'Jet_pt' .* for tagger jets in this CMS MLAnalyzer file"):
        read(config({"jets": {"objects": "Jet", "channels": ("ECAL",), "allow_empty": True}}, [path]))


@pytest.mark.parametrize(("dtype", "number"), [("u4", 4_000_000_000), ("u8", 10_000_000_000), ("f4", 16_777_215)])
def test_event_numbers_of_all_types(tmp_path: Path, awkward: list[Event], dtype: Any, number: int) -> None:
    events = [{**only(event, "HCAL"), "event": number - k} for k, event in enumerate(awkward[:3])]
    events = [{**event, "run": 300_000, "luminosityBlock": 77} for event in events]
    path = write_mlanalyzer(tmp_path / "ntuple.root", events, event_dtype=dtype)
    got, _ = read(config({"whole": {"objects": "Event", "channels": ("HCAL",)}}, [path]))
    assert got["event"].tolist() == [number, number - 1, number - 2]
    assert (set(got["run"]), set(got["luminosityBlock"])) == ({300_000}, {77})


def ntuple(path: Path, **vectors: list[list[float]]) -> Path:
    n = len(next(iter(vectors.values())))
    numbers = {name: np.arange(n, dtype="u4") for name in ("runId", "lumiId", "eventId")}
    foreign_files._write(path, "fevt/RHTree", "RecHit tree", {**numbers, **vectors})
    return path


def energies(n: int, value: float) -> list[float]:
    return [0.0] * (n - 1) + [value]


def test_a_vector_of_another_length_costs_its_event_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ecal = [energies(100_800, 1.0), energies(61_200, 2.0), energies(100_800, 3.0), [], energies(100_800, 5.0)]
    hcal = [energies(4032, k + 1.0) for k in range(4)] + [energies(4031, 5.0)]
    path = ntuple(tmp_path / "ntuple.root", ECAL_energy=ecal, HBHE_energy=hcal)
    made = config({"whole": {"objects": "Event", "channels": ("ECAL", "HCAL")}}, [path])
    with caplog.at_level(logging.ERROR):
        got, tally = read(made)
    assert got["sourceEntry"].tolist() == got["event"].tolist() == [0, 2]
    assert got["ImagePixel_value"].tolist() == [1.0, 1.0, 3.0, 3.0]
    assert tally == {("unreadable_events", "entry"): 3}
    assert caplog.messages == [
        f"{path}: entry {k} cannot be read and will be left out: vectors of other lengths than those of the images, "
        "or jets with and without a seed" for k in (1, 3, 4)
    ]  # fmt: skip


def test_jets_and_seeds_of_different_number_cost_their_event_alone(tmp_path: Path) -> None:
    """Their order may differ as well where some have no seed, so that none is given another's phi."""
    images = {"HBHE_energy": [energies(4032, 1.0)] * 3}
    jets = {"jet_Pt": [[50.0, 40.0], [30.0], []], "jet_Eta": [[0.1, 0.2], [0.3], []]}
    path = ntuple(tmp_path / "ntuple.root", **images, **jets, jetSeed_iphi=[[3.0], [2.0], []])
    got, tally = read(config({"jets": {"objects": "Jet", "channels": ("HCAL",)}}, [path]))
    assert got["event"].tolist() == [1, 2]
    assert got["Jet_phi"].tolist() == pytest.approx([np.radians(5 * 2 + 2.5 - 10)])
    assert tally == {("unreadable_events", "entry"): 1}


def test_images_that_no_tagger_needs_are_not_read(tmp_path: Path) -> None:
    """Here they could not be: the vectors are too short."""
    path = ntuple(tmp_path / "ntuple.root", ECAL_energy=[energies(100_800, 1.0)] * 2, HBHE_energy=[[1.0], []])
    got, tally = read(config({"whole": {"objects": "Event", "channels": ("ECAL",)}}, [path]))
    assert not tally
    assert got["ImagePixel_value"].tolist() == [1.0, 1.0]
    file = open_events(path, InputConfig())
    file.wanted_images = ("HCAL",)
    assert file.own_of([INPUT_BY_NAME["event"], INPUT_BY_NAME["ImagePixel_index"]]) == [  # type: ignore[attr-defined]
        "eventId", "HBHE_energy"
    ]  # fmt: skip
    file.close()


def test_an_ntuple_of_the_barrel_alone(tmp_path: Path) -> None:
    path = ntuple(tmp_path / "n.root", EB_energy=[energies(61_200, 2.0)], HBHE_energy_EB=[energies(2448, 3.0)])
    made = config({"whole": {"objects": "Event", "channels": ("ECAL", "HCAL")}}, [path])
    (images,) = images_of(made, read(made)[0])
    assert np.argwhere(images["ECAL"]).tolist() == [[224, 359]]
    assert np.argwhere(images["HCAL"]).tolist() == [[44, 71]]


def test_an_ntuple_without_images(tmp_path: Path) -> None:
    path = ntuple(tmp_path / "ntuple.root", jetPt=[[50.0], []], jetEta=[[1.0], []], jetPhi=[[2.0], []])
    tagger = {"objects": "Jet", "channels": ("ECAL", "HCAL")}
    with pytest.raises(UsageError) as error:
        read(config({"jets": tagger}, [path]))
    lines = str(error.value).splitlines()
    assert len(lines) == 2
    assert all(" in this CMS MLAnalyzer file; tagger jets would see nothing there: " in line for line in lines)
    got, _ = read(config({"jets": {**tagger, "allow_empty": True}}, [path]))
    assert got["Jet_pt"].tolist() == [50.0]
    assert got["nImagePixel"].tolist() == [0, 0]


def test_a_step_is_bounded_by_the_bytes_of_its_vectors(
    tmp_path: Path, awkward: list[Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_mlanalyzer(tmp_path / "ntuple.root", awkward)
    file = open_events(path, InputConfig())
    vectors = vectors_of(frozenset(file.own_names())).values()
    event_bytes = sum(4 * of_channel.length * len(of_channel.own) for of_channel in vectors)
    assert event_bytes > 32 * 400_000
    assert file.config.step_events == mlanalyzer.STEP_BYTES // event_bytes
    file.close()

    def sizes(bytes_: int, step_events: int) -> list[int]:
        monkeypatch.setattr(mlanalyzer, "STEP_BYTES", bytes_)
        file = open_events(path, InputConfig(step_events=step_events))
        found = [len(step.entries) for step in file.read([INPUT_BY_NAME["ImagePixel_value"]], fail)]
        file.close()
        return found

    assert sizes(4 * event_bytes, 1000) == [4, 2]
    assert sizes(4 * event_bytes, 5) == [4, 2]
    assert sizes(100 * event_bytes, 3) == [3, 3]
    assert sizes(1, 1000) == [1] * 6, "one event at least"


# ---- a kind that is not ours

JSON_LINES = '''"""Events as JSON lines: an object an event, of our column names to a number or a list."""

import json
from pathlib import Path

import numpy as np

from stages.formats.base import EventFile, Step
from stages.records import INPUT


class JsonLinesFile(EventFile):
    """A text file."""

    kind = "JSON lines"

    def __init__(self, found):
        super().__init__(found)
        self._lines = Path(found.path).read_text().splitlines()
        self.n_events = len(self._lines)
        known = json.loads(self._lines[0])
        self.names = {column.name: column.name for column in INPUT if column.name in known}

    @classmethod
    def matches(cls, found):
        return found.head[:1] == b"{"

    def read(self, columns, report, first=0):
        for start in range(first, self.n_events, self.config.step_events):
            good = {}
            for entry in range(start, min(start + self.config.step_events, self.n_events)):
                try:
                    good[entry] = json.loads(self._lines[entry])
                except ValueError as error:
                    report(entry, 1, str(error))
            if good:
                yield Step(np.array(list(good), np.int64), columns_of(columns, list(good.values())))


def columns_of(columns, events):
    out = {}
    for column in columns:
        values = [event[column.name] for event in events]
        if column.collection:
            out[f"n{column.collection}"] = np.array([len(part) for part in values], np.int32)
            values = [value for part in values for value in part]
        out[column.name] = np.array(values, column.wire.wire_dtype)
    return out
'''


def install(folder: Path) -> Path:
    """As a package would be; the folder is one for PYTHONPATH."""
    (folder / "json_lines.py").write_text(JSON_LINES)
    about = folder / "json_lines-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: json-lines\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[streamer.formats]\njson = json_lines:JsonLinesFile\n")
    return folder


def write_json_lines(path: Path, events: Sequence[Event]) -> Path:
    """The events, and a broken line behind the second one."""
    names = {column.name for column in INPUT if any(event.get(column.name) for event in events)}
    lines = [json.dumps({name: value for name, value in event.items() if name in names}) for event in events]
    path.write_text("\n".join([*lines[:2], '{"event": 7, "run', *lines[2:]]))
    return path


def test_a_kind_of_file_takes_less_than_60_lines() -> None:
    assert JSON_LINES.count("\n") < 60


# ---- real processes


class Runs:
    """Five kinds of files in one run."""

    def __init__(self, folder: Path, streamer: Processes) -> None:
        given = reference.random_events(np.random.default_rng(7), 16)
        random = [{**event, **{name: [] for name in event if "Tower_" in name}} for event in given]  # there are hits
        self.events: dict[str, list[Event]] = {
            "tree": random,
            "ntuple": [as_ntuple(event) for event in random],
            "delphes": SIMULATED,
            "json": SIMULATED[::-1],
        }
        columns = columns_of(given)
        wanted = [column for column in INPUT if column.name in columns]
        write_events(folder / "tree.root", schema_of(wanted), [columns])
        self.files = {
            "tree": folder / "tree.root",
            "ntuple": write_mlanalyzer(folder / "ntuple.root", [only(e, *MEASURED) for e in self.events["ntuple"]]),
            "delphes": write_delphes(folder / "delphes.root", SIMULATED),
            "json": write_json_lines(folder / "events.jsonl", self.events["json"]),
        }
        for path in sorted((Path(__file__).parents[2] / "shared/cms-open-data").glob("*.ig"))[:1]:
            self.files["ig"] = path
            self.events["ig"] = []
            for step in open_events(path, InputConfig()).read(INPUT, fail):
                self.events["ig"] += events_of(step.columns)
        self.mixed = Scores(folder, {"qg": {"objects": "Jet"}, "whole": WHOLE}, feed={"block_events": 7})
        (folder / "mixed.toml").write_text(to_toml(self.mixed.config))
        files = self.files.values()
        self.processes = {
            "mixed": streamer("run", *files, "-c", folder / "mixed.toml", "-o", folder / "mixed"),
            "inspect": streamer("inspect", self.files["json"], "-c", folder / "mixed.toml"),
        }
        for process in self.processes.values():
            process.check()
        self.scores = read_scores(folder / "mixed/scores.root")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "site").mkdir()
    with pytest.MonkeyPatch.context() as patch, Processes(folder) as streamer:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(install(folder / "site")), os.environ.get("PYTHONPATH", "")]))
        yield Runs(folder, streamer)


def test_five_kinds_of_files_in_one_run_give_the_scores_of_the_reference(runs: Runs) -> None:
    got = runs.scores
    first = 0
    for place, (kind, events) in enumerate(runs.events.items()):
        last = first + len(events)
        assert set(got["sourceFile"][first:last]) == {place}, kind
        assert got["event"][first:last] == [event["event"] for event in events]
        runs.mixed.n_scored = dict.fromkeys(runs.mixed.n_scored, 0)
        runs.mixed.check(got, events, first)
        assert runs.mixed.n_scored["whole"] == len(events)
        assert runs.mixed.n_scored["qg"] > 8, kind
        first = last
    assert len(got["event"]) == first
    assert len(runs.events) == 5 or not runs.files.get("ig")


def test_an_entry_of_another_packages_kind_that_cannot_be_read_is_left_out_alone(runs: Runs) -> None:
    process = runs.processes["mixed"]
    lines = [line for line in process.err.splitlines() if " cannot be read and will be left out: " in line]
    assert len(lines) == 1
    assert f"{runs.files['json']}: entry 2 cannot" in lines[0]
    got = runs.scores
    entries = [e for e, file in zip(got["sourceEntry"], got["sourceFile"], strict=True) if file == 3]
    assert entries == [0, 1, *range(3, 19)]


def test_inspect_knows_another_packages_kind(runs: Runs) -> None:
    out = runs.processes["inspect"].out
    assert f"{runs.files['json']}  JSON lines, 19 events" in out
    for name in ("qg (Jet, TrackPt, TrackD0, TrackDz, ECAL, HCAL)", "whole (Event, HCAL, TrackPt, ECAL, TrackDz)"):
        assert f"tagger {name}: can be fed" in out
