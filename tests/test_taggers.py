"""Four taggers and a whole-event one in one stream of real processes: every score is the plain reference's.

The networks are linear: the score is a sum over the crop with a weight for each pixel and channel, so that one wrong
pixel, or two channels exchanged, show.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_detector as reference
from physics_helpers import Processes, cms_open_data, read_scores
from test_detector import ee_cell, events_of, fail

from stages.config import CHANNELS, Config, InputConfig
from stages.conversion import convert_files
from stages.formats import open_events
from stages.records import INPUT
from streamer.config import to_toml

TOLERANCE = 1e-5
EVENT_CHANNELS = ("HCAL", "TrackPt", "ECAL", "TrackDz")
TAGGERS: dict[str, dict[str, Any]] = {
    "eg": {},
    "qg": {},
    "top": {"allow_empty": True},
    "tau": {"allow_empty": True, "pt_min": 50.0},
    "anomaly": {"objects": "Event", "channels": EVENT_CHANNELS},
}


class Models:
    """A linear network for each tagger, and the configuration that runs them."""

    def __init__(self, folder: Path) -> None:
        self.weights: dict[str, Any] = {}
        given = {name: {"model": folder / f"{name}.onnx", **more} for name, more in TAGGERS.items()}
        self.config = Config.model_validate(
            {"taggers": given, "input": {"fat_jets": "Jet"}, "feed": {"block_events": 9}}
        )
        for seed, (name, spec) in enumerate(self.config.taggers.items()):
            self.weights[name] = reference.linear_model(spec.model, *spec.shape, seed)
        self.path = folder / "taggers.toml"
        self.path.write_text(to_toml(self.config))

    def expected(self, event: reference.Event) -> dict[str, Any]:
        """Scores by output column, and the seeds."""
        images, _ = reference.frame(event, ee_cell=ee_cell)
        out: dict[str, Any] = {}
        for objects in self.config.objects:
            own = list(zip(*(event[f"{objects}_{name}"] for name in ("pt", "eta", "phi")), strict=True))
            seeds: list[tuple[int, int] | None] = [None] * len(own)
            for name, spec in self.config.taggers.items():
                if spec.objects != objects:
                    continue
                stack = np.stack([images[channel] for channel in spec.channels])
                scores = [-1.0] * len(own)
                for k, (pt, eta, phi) in enumerate(own):
                    if not reference.selected(pt, eta, spec.pt_min, spec.eta_max):
                        continue
                    if objects == "Photon":
                        seed = reference.photon_seed(images["ECAL"].astype(np.float32), eta, phi)
                    else:
                        seed = reference.jet_seed(images["HCALTowers"].astype(np.float32), eta, phi)
                    if seed is not None:
                        seeds[k] = seed
                        crop = reference.crop(stack, seed, spec.crop)
                        scores[k] = reference.linear_score(self.weights[name], crop)
                out[f"{objects}_{spec.score}"] = scores
            out[f"{objects}_seedRow"] = [-1 if seed is None else seed[0] for seed in seeds]
            out[f"{objects}_seedCol"] = [-1 if seed is None else seed[1] for seed in seeds]
        stack = np.stack([images[channel] for channel in EVENT_CHANNELS])
        out["Event_anomalyScore"] = reference.linear_score(self.weights["anomaly"], stack)
        return out


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("taggers")


@pytest.fixture(scope="module")
def models(folder: Path) -> Models:
    return Models(folder)


@pytest.fixture(scope="module")
def real_files() -> list[Path]:
    return sorted(cms_open_data().glob("*.ig"))


@pytest.fixture(scope="module")
def real(real_files: list[Path]) -> list[reference.Event]:
    events = []
    for path in real_files:
        for step in open_events(path, InputConfig()).read(INPUT, fail):
            events += events_of(step.columns)
    for event in events:
        event |= {f"FatJet_{name}": event[f"Jet_{name}"] for name in ("pt", "eta", "phi")}
    return events


@pytest.fixture(scope="module")
def streamed(folder: Path, models: Models, real_files: list[Path]) -> dict[str, Any]:
    """The same events as .ig through five processes, as RNTuple through more."""
    path = folder / "rntuple.root"
    convert_files([str(file) for file in real_files], path, rntuple=True)
    sources: dict[str, list[object]] = {"ig": [*real_files], "rntuple": [path]}
    found = {}
    with Processes(folder) as streamer:
        for kind, files in sources.items():
            more = ["--replicas", "framer=2,cropper=2,tagger=2"] if kind == "rntuple" else []
            streamer("run", *files, "-c", models.path, "--output", folder / kind, *more).check()
            found[kind] = read_scores(folder / kind / "scores.root")
    return found


def test_every_score_is_that_of_the_reference(
    streamed: dict[str, Any], models: Models, real: list[reference.Event]
) -> None:
    got = streamed["ig"]
    assert list(zip(got["run"], got["event"], strict=True)) == [(e["run"], e["event"]) for e in real]
    n_scored = dict.fromkeys(TAGGERS, 0)
    for number, event in enumerate(real):
        for name, wanted in models.expected(event).items():
            np.testing.assert_allclose(
                got[name][number], wanted, rtol=TOLERANCE, atol=TOLERANCE, err_msg=f"{name} of event {number}"
            )
            tagger = name.partition("_")[2].removesuffix("Score")
            if tagger in n_scored:
                n_scored[tagger] += int(np.count_nonzero(np.asarray(wanted) != -1))
    assert n_scored["anomaly"] == 100
    assert all(n > 60 for n in n_scored.values()), n_scored
    assert n_scored["tau"] < n_scored["top"], "each with its own selection"
    assert any(-1 in scores for scores in got["Jet_qgScore"]), "jets without a seed keep their place"


def test_the_networks_tell_pixels_and_channels_apart(models: Models, real: list[reference.Event]) -> None:
    """Else the comparison above would prove little."""
    spec, weights = models.config.taggers["qg"], models.weights["qg"]
    images, _ = reference.frame(real[0], ee_cell=ee_cell)
    stack = np.stack([images[channel] for channel in spec.channels])
    crop = reference.crop(stack, (140, 180), 128)
    right = reference.linear_score(weights, crop)
    for wrong in (np.roll(crop, 1, 1), np.roll(crop, 1, 2), crop[::-1]):
        assert abs(reference.linear_score(weights, wrong) - right) > 100 * TOLERANCE


def test_another_kind_of_file_and_more_replicas_give_the_same(streamed: dict[str, Any]) -> None:
    """Column for column; blocks of other replicas come in their order again."""
    wanted, found = streamed["ig"], streamed["rntuple"]
    assert found.keys() == wanted.keys()
    for name, column in wanted.items():
        if not name.startswith("source"):  # one file there, four here
            assert list(map(_plain, found[name])) == list(map(_plain, column)), name


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def test_the_output_has_the_columns_of_all_taggers(streamed: dict[str, Any]) -> None:
    names = {f"{o}_{c}" for o in ("Photon", "Jet", "FatJet") for c in ("pt", "eta", "phi", "seedRow", "seedCol")}
    names |= {"nPhoton", "nJet", "nFatJet", "Photon_egScore", "Jet_qgScore", "FatJet_topScore", "FatJet_tauScore"}
    assert names | {"Event_anomalyScore"} <= streamed["ig"].keys()


def test_all_channels_can_be_asked_for() -> None:
    assert Config.model_validate(
        {"taggers": {"all": {"objects": "Event", "channels": CHANNELS, "model": "m.onnx"}}}
    ).channels == CHANNELS  # fmt: skip
