"""What `streamer view` sees of an event: the same frame, seeds, crops and scores as the stream."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_detector as reference
from physics_helpers import call, cms_open_data, event, write_hits
from test_detector import Wanted, events_of, fail

from stages.config import Config, InputConfig
from stages.formats import open_events
from stages.records import INPUT
from stages.view import see
from streamer.errors import UsageError

ENTRY = 13


@pytest.fixture(scope="module")
def real() -> Path:
    return cms_open_data() / "BJetPlusX_Run2012C_0.ig"


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    folder = tmp_path_factory.mktemp("view")
    given: dict[str, Any] = {"eg": {}, **{name: {"model": folder / f"{name}.onnx"} for name in ("qg", "top", "all")}}
    given["all"] |= {"objects": "Event", "channels": ["ECAL"]}
    made = Config.model_validate({"taggers": given})
    for name, spec in made.taggers.items():
        if name != "eg":
            reference.linear_model(spec.model, *spec.shape, seed=len(name))
    return made


def test_it_sees_what_the_reference_sees(real: Path, config: Config) -> None:
    seen, notes = see(real, ENTRY, config)
    (step, *_) = open_events(real, InputConfig(step_events=1)).read(INPUT, fail, first=ENTRY)
    one = events_of(step.columns)[0]
    wanted = Wanted(one, {})
    assert list(seen.images) == ["TrackPt", "TrackD0", "TrackDz", "ECAL", "HCAL"]
    for channel, image in seen.images.items():
        np.testing.assert_allclose(image, wanted.image(channel), rtol=1e-5, atol=1e-6, err_msg=channel)
    assert f"run {one['run']}" in seen.title
    assert f"event {one['event']}" in seen.title
    jets = [thing for thing in seen.objects if thing.kind == "Jet"]
    assert [round(jet.pt, 3) for jet in jets] == [round(pt, 3) for pt in one["Jet_pt"]]
    spec = config.taggers["qg"]
    weights = reference.linear_model(spec.model, *spec.shape, seed=2)
    n_scored = 0
    for jet in jets:
        seed = None
        wants = reference.selected(jet.pt, jet.eta, spec.pt_min, spec.eta_max)
        if wants:
            seed = reference.jet_seed(wanted.image("HCALTowers").astype(np.float32), jet.eta, jet.phi)
        assert jet.seed == seed
        assert jet.crops == ((128,) if seed else ())
        assert set(jet.scores) == ({"qgScore"} if wants else set())
        assert seed or jet.scores.get("qgScore", -1) == -1
        if seed:
            score = reference.linear_score(weights, reference.crop(wanted.stack(spec.channels), seed, 128))
            assert jet.scores["qgScore"] == pytest.approx(score, abs=1e-4)
            n_scored += 1
    assert n_scored > 2
    assert set(seen.event_scores) == {"allScore"}
    (line,) = notes
    assert line.startswith("not scored by top: ")
    assert "no BPIX1, BPIX2, BPIX3" in line


def test_channels_can_be_chosen_and_those_that_are_not_there_are_told(real: Path, config: Config) -> None:
    seen, notes = see(real, 0, Config(), ("HCAL", "TOB", "ECAL"))
    assert list(seen.images) == ["HCAL", "TOB", "ECAL"]
    assert not seen.images["TOB"].any()
    assert notes == [f"{real}: nothing to see of TOB"]
    with pytest.raises(UsageError, match="no channel 'ECLA'; did you mean 'ECAL'"):
        see(real, 0, Config(), ("ECLA",))


def test_an_event_that_is_not_there_is_told(tmp_path: Path) -> None:
    path = write_hits(tmp_path / "x.root", [event(1), event(2, Photon=[(20, 0, 0)])])
    with pytest.raises(UsageError, match=r"no event 2; it has 2, counted from 0"):
        see(path, 2, Config())
    seen, _ = see(path, 1, Config())
    assert [thing.kind for thing in seen.objects] == ["Photon"]


def test_the_command_draws(real: Path, tmp_path: Path) -> None:
    out = tmp_path / "event.png"
    code, said, err = call("view", real, "--event", ENTRY, "--channels", "ECAL,HCAL", "-o", out)
    assert (code, said.strip(), err) == (0, str(out), "")
    assert out.read_bytes().startswith(b"\x89PNG")
    code, _, err = call("view", real, "-e", 99, "-o", out)
    assert code == 2
    assert err.strip() == f"streamer: {real}: no event 99; it has 25, counted from 0"
