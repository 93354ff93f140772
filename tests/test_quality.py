"""What is measured of the data: bins, and which events count."""

import numpy as np
import pytest
from physics_helpers import columns_of, event, hits_block
from prometheus_client import CollectorRegistry, generate_latest

from stages import records
from stages.config import Config
from stages.detector.ecal import eb_detid
from stages.framer import Framer
from stages.quality import ENERGY, OBJECTS, OCCUPANCY, SCORE, ScoreQuality, quantities
from streamer.block import SHED
from streamer.quality import MOST_WAITING, Histograms, Quantity

EDGES = (0.0, 1.0, 2.0, 5.0)
TOY = Quantity("toy_ratio", "toy", "some numbers", "of", {"a": "", "b": ""}, EDGES)


def found_in(page: str, name: str) -> dict[str, float]:
    """The samples of a metric, by their labels."""
    lines = (line.rpartition(" ") for line in page.splitlines() if line.startswith(name))
    return {key.removeprefix(name): float(value) for key, _, value in lines}


def test_values_are_counted_as_prometheus_does() -> None:
    made = Histograms(TOY, CollectorRegistry(), lambda *values: values)
    values = np.random.default_rng(0).exponential(2.0, (2, 3 * MOST_WAITING))
    for part in np.array_split(values, 100, axis=1):
        made.add(part.shape[1], *part)
    assert len(made._waiting) <= 100
    assert made._n_waiting < MOST_WAITING
    counts, sums = made.now()
    for place in range(2):
        below = [int((values[place] <= edge).sum()) for edge in (*EDGES, np.inf)]
        assert counts[place].cumsum().tolist() == below
    np.testing.assert_allclose(sums, values.sum(1))


def test_an_edge_belongs_to_the_bin_below_and_what_is_no_number_to_none() -> None:
    registry = CollectorRegistry()
    made = Histograms(TOY, registry, lambda *values: values)
    made.add(6, np.array([0.0, 1.0, 1.5, 9.0, np.nan, np.inf]), np.array([], np.float32))
    page = generate_latest(registry).decode()
    of_a = {'{le="0.0",of="a"}': 1, '{le="1.0",of="a"}': 2, '{le="2.0",of="a"}': 3, '{le="5.0",of="a"}': 3}
    assert {key: n for key, n in found_in(page, "toy_ratio_bucket").items() if '"a"' in key} == {
        **of_a,
        '{le="+Inf",of="a"}': 4,
    }
    assert found_in(page, "toy_ratio_sum") == {'{of="a"}': 11.5, '{of="b"}': 0.0}


def test_keys_are_those_of_a_scraped_page() -> None:
    assert TOY.keys("a")[0] == "toy_ratio_bucket/0.0,a"
    assert Quantity("x", "x", "", "channel", {"ECAL": ""}, EDGES).keys("ECAL")[-1] == "x_bucket/ECAL,+Inf"


def test_what_is_measured_follows_the_taggers() -> None:
    known = quantities(Config.model_validate({"taggers": {"eg": {}, "qg": {}}}), {"eg": "12ab"})
    assert list(known[OCCUPANCY].of) == ["TrackPt", "TrackD0", "TrackDz", "ECAL", "HCAL"]
    assert list(known[ENERGY].of) == ["TrackPt", "ECAL", "HCAL"]
    assert list(known[OBJECTS].of) == ["Photon", "Jet"]
    assert known[SCORE].of == {"eg": "12ab", "qg": ""}
    whole = Config.model_validate({"taggers": {"all": {"objects": "Event", "channels": ["TIB"], "model": "x.onnx"}}})
    assert list(quantities(whole)) == [OCCUPANCY, SCORE], "neither objects nor energies"


def test_channels_are_measured_where_events_were_worked_on() -> None:
    framer = Framer(Config())
    framer.setup()
    a, b = int(eb_detid(20, 11)), int(eb_detid(21, 11))
    hits = [[(a, 3.0), (b, 4.5)], [(a, 2.0), (a, 1.0)], [], [(a, 50.0)], [(a, 60.0)]]
    block = hits_block(framer.config, columns_of([event(i, EBRecHit=one) for i, one in enumerate(hits)]), len(hits))
    block.columns["error"][3:] = 1, SHED + 1
    framer.process(block)
    page = generate_latest(framer.registry).decode()
    occupancy = found_in(page, OCCUPANCY)
    assert occupancy['_bucket{channel="ECAL",le="0.0"}'] == 1
    assert occupancy['_bucket{channel="ECAL",le="1e-05"}'] == 2, "one pixel"
    assert occupancy['_bucket{channel="ECAL",le="2.5e-05"}'] == occupancy['_count{channel="ECAL"}'] == 3
    energy = found_in(page, ENERGY)
    assert energy['_sum{channel="ECAL"}'] == pytest.approx(10.5)
    assert energy['_bucket{channel="ECAL",le="4.0"}'] == 2


def test_events_that_no_path_wants_do_not_count() -> None:
    paths = {"A": {"expression": "Photon: egScore > 0.5", "seed": "Photon: pt > 20"}}
    framer = Framer(Config.model_validate({"menu": {"paths": paths}}))
    framer.setup()
    block = hits_block(framer.config, columns_of([event(i) for i in range(4)]), 4)
    block.columns[records.SEEDED.name][:] = 0, 1, 0, 1
    framer.process(block)
    assert found_in(generate_latest(framer.registry).decode(), OCCUPANCY)['_count{channel="ECAL"}'] == 2


def test_objects_and_scores_are_measured_without_those_that_have_none() -> None:
    config, registry = Config(), CollectorRegistry()
    made = ScoreQuality(config, registry)
    columns = records.scores(config).empty(3) | {
        "nPhoton": np.array([2, 0, 1], np.int32),
        "Photon_egScore": np.array([0.25, -1.0, 0.99], np.float32),
        "error": np.array([0, 4, 0], np.uint8),
    }
    made.add(columns)
    page = generate_latest(registry).decode()
    assert found_in(page, OBJECTS + "_sum") == {'{objects="Photon"}': 3.0}
    assert found_in(page, OBJECTS + "_count") == {'{objects="Photon"}': 2.0}, "without the one that failed"
    score = found_in(page, SCORE)
    assert score['_count{tagger="eg"}'] == 2
    assert score['_bucket{le="0.25",tagger="eg"}'] == 1
    assert score['_bucket{le="0.95",tagger="eg"}'] == 1
    assert score['_bucket{le="1.0",tagger="eg"}'] == 2
    others = records.scores(config).empty(1) | {"Photon_egScore": np.array([-4.5, 80.0], np.float32)}
    made.add(others | {"nPhoton": np.array([2], np.int32)})
    score = found_in(generate_latest(registry).decode(), SCORE)
    assert score['_bucket{le="0.0",tagger="eg"}'] == 1
    assert (score['_bucket{le="63.0",tagger="eg"}'], score['_bucket{le="100.0",tagger="eg"}']) == (3, 4)
