"""Events that are shown while a run goes on: which one, and what is to be seen of it."""

from pathlib import Path

import numpy as np
import pytest
from physics_helpers import Chain, columns_of, event, sum_model, write_hits

from stages.config import Config
from stages.detector.ecal import eb_detid, eb_pixels
from stages.glimpse import draw, glimpse
from streamer.block import Block
from streamer.errors import StreamerError

HIT = int(eb_detid(20, 11))
ENERGIES = [5.0, 40.0, 7.0]


def events() -> list[dict[str, object]]:
    return [event(i, EBRecHit=[(HIT, energy)], Photon=[(34.0, 0.34, 0.005)]) for i, energy in enumerate(ENERGIES)]


def config(tmp_path: Path) -> Config:
    model = sum_model(tmp_path / "sum.onnx")
    files = [str(write_hits(tmp_path / "events.root", events()))]
    return Config.model_validate({"input": {"files": files}, "taggers": {"eg": {"model": model}}})


def test_the_event_with_the_largest_score_is_shown(tmp_path: Path) -> None:
    made = config(tmp_path)
    block = Block(7, 3, Chain(made).scores(columns_of(events()), 3).columns)
    one = glimpse(block, made)
    assert one is not None
    assert one["number"] == 8
    assert one["event"] == block.columns["event"][1]
    assert one["objects"] == [{"kind": "Photon", "pt": 34.0, "scores": {"egScore": 40.0}}]


def test_without_a_score_nothing_is(tmp_path: Path) -> None:
    made = config(tmp_path)
    block = Block(0, 1, Chain(made).scores(columns_of([event(1)]), 1).columns)
    assert glimpse(block, made) is None


def test_its_pixels_are_those_of_the_source(tmp_path: Path) -> None:
    made = config(tmp_path)
    seen = draw(made, {"sourceFile": 0, "sourceEntry": 1})
    (channel,) = seen["channels"]
    assert (channel["name"], channel["unit"]) == ("ECAL", "GeV")
    assert channel["index"] == eb_pixels(np.array([HIT], np.uint32)).tolist()
    assert channel["value"] == [40.0]
    (photon,) = seen["objects"]
    assert (photon["kind"], photon["crop"]) == ("Photon", 32)
    assert photon["seed"] == divmod(channel["index"][0], 360)


def test_a_source_that_has_gone_is_told(tmp_path: Path) -> None:
    made = config(tmp_path)
    (tmp_path / "events.root").unlink()
    with pytest.raises(StreamerError, match=r"events\.root"):
        draw(made, {"sourceFile": 0, "sourceEntry": 1})
