"""The stages against the plain loop of `reference_chain`: on the real CMS events, and on made-up awkward ones."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import reference_chain as reference
from physics_helpers import (
    Chain,
    Event,
    Processes,
    cms_open_data,
    columns_of,
    conv_model,
    event,
    hits_block,
    model_for_scores,
    per_event,
    read_scores,
)

from stages.config import Config, InputConfig
from stages.detector.ecal import eb_detid, ee_centres, ee_crystals, ee_detid, ee_index, ee_pixel_table
from stages.formats import open_events
from stages.records import needed

TOLERANCE = 1e-5
N_RANDOM = 200


def session_of(model: Path) -> Any:
    return ort.InferenceSession(model, providers=["CPUExecutionProvider"])


def assert_scores(found: list[list[float]], wanted: list[list[float]]) -> None:
    assert [len(event) for event in found] == [len(event) for event in wanted]
    np.testing.assert_allclose(np.concatenate(found), np.concatenate(wanted), rtol=0, atol=TOLERANCE)


# ---- real events


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("reference")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    return model_for_scores(folder)


@pytest.fixture(scope="module")
def real_files() -> list[Path]:
    return sorted(cms_open_data().glob("*.ig"))


@pytest.fixture(scope="module")
def real_events(real_files: list[Path]) -> list[reference.Event]:
    return [event for path in real_files for event in reference.read_ig(path)]


@pytest.fixture(scope="module")
def expected(real_events: list[reference.Event], model: Path) -> tuple[Any, Any]:
    return reference.run(real_events, session_of(model))


@pytest.mark.long
def test_five_processes_score_the_real_events_as_the_plain_loop_does(
    folder: Path, model: Path, real_files: list[Path], real_events: list[reference.Event], expected: Any
) -> None:
    geometry = cms_open_data() / "geometry/ee.json.gz"
    with Processes(folder) as streamer:
        streamer(
            *("run", *real_files, "--output", folder / "real", "--tagger", f"eg={model}"),
            *("--set", f"framer.ee_geometry={geometry}", "--set", "feed.block_events=7"),
        ).check()
    got = read_scores(folder / "real/scores.root")
    scores, seeds = expected
    assert list(zip(got["run"], got["event"], strict=True)) == [(e.run, e.number) for e in real_events]
    assert [len(photons) for photons in got["Photon_pt"]] == [len(e.photons) for e in real_events]
    found = [
        list(zip(rows, columns, strict=True))
        for rows, columns in zip(got["Photon_seedRow"], got["Photon_seedCol"], strict=True)
    ]
    assert found == seeds
    assert_scores(got["Photon_egScore"], scores)
    n_scored = sum(seed != (-1, -1) for event in seeds for seed in event)
    assert len(real_events) == 100
    assert n_scored > 50, "too few crops to compare anything"
    assert len({round(s, 4) for event in scores for s in event}) > n_scored / 2, "the scores tell crops apart"


def test_the_built_in_endcap_differs_only_where_a_hit_is_in_another_pixel(
    model: Path, real_files: list[Path], real_events: list[reference.Event], expected: Any
) -> None:
    config = Config.model_validate({"taggers": {"eg": {"model": model}}})
    chain = Chain(config)
    scores: list[list[float]] = []
    for path in real_files:
        for step in open_events(path, InputConfig()).read(needed(config), report=fail):
            scores += per_event(chain.scores(step.columns, len(step.entries)).columns, "Photon_egScore")
    built_in = ee_pixel_table()
    n_hits = n_misplaced = 0
    for found, wanted, seeds, real in zip(scores, *expected, real_events, strict=True):
        true = [row * 360 + column for row, column in (reference.endcap_pixel(eta, phi) for eta, phi, _ in real.ee)]
        ours = [int(built_in[ee_index(np.uint32(detid))]) for detid in real.ee_detids]
        misplaced = [pixel for pair in zip(true, ours, strict=True) if pair[0] != pair[1] for pixel in pair]
        n_hits, n_misplaced = n_hits + len(true), n_misplaced + len(misplaced) // 2
        for one, other, seed in zip(found, wanted, seeds, strict=True):
            if abs(one - other) > TOLERANCE:
                assert any(in_crop(pixel, seed) for pixel in misplaced), (real.number, one, other)
    assert n_misplaced < 0.002 * n_hits


def in_crop(pixel: int, seed: tuple[int, int]) -> bool:
    down, right = pixel // 360 - (seed[0] - 15), (pixel % 360 - (seed[1] - 15)) % 360
    return 0 <= down < 32 and right < 32


def fail(first: int, n: int, why: str) -> None:
    raise AssertionError(f"entry {first}: {why}")


# ---- made-up events


def awkward_events(rng: np.random.Generator) -> list[Event]:
    """Events around every edge that the meaning of frame, seed and crop has."""
    shared = shared_endcap_crystals()
    return [_awkward(k, rng, shared) for k in range(N_RANDOM)]


def shared_endcap_crystals() -> list[np.ndarray[Any, Any]]:
    """Groups of endcap detids whose crystals have one pixel, near the barrel."""
    ix, iy = np.nonzero(ee_crystals())
    groups = []
    for side in (-1, 1):
        detids = ee_detid(ix + 1, iy + 1, side)
        pixels = ee_pixel_table()[((side + 1) // 2 * 100 + ix) * 100 + iy]
        order = np.argsort(pixels, kind="stable")
        found = np.split(detids[order], np.flatnonzero(np.diff(pixels[order])) + 1)
        groups += [group for group in found if len(group) > 1]
    return groups


def _awkward(number: int, rng: np.random.Generator, shared: list[Any]) -> Event:
    kind = number % 10
    centre_eta = {0: 85, 1: -85, 2: 1, 3: -1}.get(kind, int(rng.integers(1, 86)) * int(rng.choice([-1, 1])))
    centre_phi = {2: 1, 4: 360, 5: 190, 6: 10}.get(kind, int(rng.integers(1, 361)))
    eb: list[tuple[float, float, float]] = []
    for _ in range(int(rng.integers(5, 80))):
        ieta = centre_eta + int(rng.integers(-20, 21))
        ieta = ieta + (1 if ieta >= 0 > centre_eta else 0) or 1
        iphi = (centre_phi - 1 + int(rng.integers(-20, 21))) % 360 + 1
        if abs(ieta) <= 85:
            eb.append((int(eb_detid(ieta, iphi)), float(rng.exponential(2.0)) - 0.3, 0.0))
    if number % 3 == 0:  # ties: a few crystals have the same, largest energy
        eb = [(detid, 50.0 if i % 4 == 0 else energy, t) for i, (detid, energy, t) in enumerate(eb)]
    eb += [(eb[0][0], 0.0, 0.0), (eb[0][0], -5.0, 0.0)] if eb else []
    if number % 7 == 0:
        eb += [(eb_detid(1, 1).item(), float("nan"), 0.0), (eb_detid(1, 2).item(), float("inf"), 0.0)]
        eb += [(0x32000000, 3.0, 0.0), (0, 3.0, 0.0), (0xFFFFFFFF, 3.0, 0.0), (0x32000000 + (86 << 9) + 1, 3.0, 0.0)]
    if number % 6 == 1:
        eb = []
    ee = [(int(detid), float(rng.exponential(3.0)) - 0.2, 0.0)
          for group in rng.choice(len(shared), 6) for detid in shared[group]]  # fmt: skip
    photons = [] if number % 9 == 5 else [_photon(number, k, centre_eta, centre_phi, rng, eb) for k in range(4)]
    return event(number, EBRecHit=eb, EERecHit=ee, Photon=photons)


def _photon(number: int, k: int, ieta: int, iphi: int, rng: np.random.Generator, eb: list[Any]) -> tuple[float, ...]:
    eta = np.sign(ieta) * (abs(ieta) - 0.5) * 0.01745 + rng.normal(0, 0.05)
    phi = np.radians((iphi - 10.5 + rng.normal(0, 3) + 180) % 360 - 180)
    pt = float(rng.choice([9.999, 10.0, 10.001, 40.0], p=[0.1, 0.1, 0.1, 0.7]))
    if k == 1:  # just below, at and just above the edge of what is selected
        edge = np.float32(1.44)
        eta = np.sign(ieta) * float(
            [np.nextafter(edge, np.float32(0)), edge, np.nextafter(edge, np.float32(2))][number % 3]
        )
    if k == 2 and number % 4 == 0:  # far from every hit
        phi = float(np.radians((iphi + 170 - 10.5 + 180) % 360 - 180))
    if k == 3 and number % 5 == 0:
        phi = float(rng.choice([np.float32(-np.pi), np.float32(np.pi), 0.0, -0.0, np.float32(3 * np.pi)]))
    named = [0, 0, int(eb[0][0]) if eb else 0, int(ee_detid(50, 20, 1)), 0x32000000 + 400][int(rng.integers(0, 5))]
    return pt, float(eta), float(phi), named


def plain(made: Event) -> reference.Event:
    """The same event as the plain loop wants it: float32 values, endcap cells with their own eta and phi."""
    out = reference.Event(eb=[(int(d), float(np.float32(e))) for d, e, _ in made["EBRecHit"]])
    centres = ee_centres()
    for detid, energy, _ in made["EERecHit"]:
        detid = int(detid)
        x, y, z = centres[(detid >> 7 & 0x7F) - 1, (detid & 0x7F) - 1]
        eta = float(np.arcsinh(z / np.hypot(x, y))) * (1 if detid & 0x4000 else -1)
        out.ee.append((eta, float(np.arctan2(y, x)), float(np.float32(energy))))
    out.photons = [(*(float(np.float32(x)) for x in p[:3]), int(p[3])) for p in made["Photon"]]  # type: ignore[misc]
    return out


@pytest.fixture(scope="module")
def made() -> list[Event]:
    return awkward_events(np.random.default_rng(2012))


@pytest.fixture(scope="module")
def chain(folder: Path) -> Chain:
    model = conv_model(folder / "made.onnx")
    return Chain(Config.model_validate({"taggers": {"eg": {"model": model}}, "tagger": {"max_batch": 37}}))


def test_frames_of_awkward_events_are_the_plain_images(chain: Chain, made: list[Event]) -> None:
    block = chain.framer.process(hits_block(chain.config, columns_of(made), len(made)))
    counts, dropped = block.columns["nPixel"][:, 0], chain.framer.take_tally()
    ends = np.cumsum(counts)
    wanted_dropped = {"nan_energy": 0, "bad_detid": 0}
    for number, (event_, end) in enumerate(zip(made, ends, strict=True)):
        part = slice(end - counts[number], end)
        image = np.zeros(280 * 360, np.float32)
        index = block.columns["Pixel_index"][part]
        assert len(set(index.tolist())) == len(index), "a pixel comes twice"
        image[index] = block.columns["Pixel_value"][part]
        wanted, missing = reference.frame_of(plain(event_))
        np.testing.assert_array_equal(image.reshape(280, 360) != 0, wanted != 0, err_msg=f"event {number}")
        np.testing.assert_allclose(image.reshape(280, 360), wanted, rtol=1e-6, err_msg=f"event {number}")
        wanted_dropped = {why: wanted_dropped[why] + n for why, n in missing.items()}
    assert {why: dropped["hits_dropped", why] for why in wanted_dropped} == wanted_dropped
    assert min(wanted_dropped.values()) > 0


def test_scores_and_seeds_of_awkward_events_are_those_of_the_plain_loop(chain: Chain, made: list[Event]) -> None:
    columns = chain.scores(columns_of(made), len(made)).columns
    scores, seeds = reference.run([plain(event_) for event_ in made], session_of(chain.config.taggers["eg"].model))
    found = [
        [(int(row), int(column)) for row, column in zip(*pair, strict=True)]
        for pair in zip(per_event(columns, "Photon_seedRow"), per_event(columns, "Photon_seedCol"), strict=True)
    ]
    assert found == seeds
    assert_scores(per_event(columns, "Photon_egScore"), scores)
    assert not columns["error"].any()


def test_the_awkward_events_are_awkward(made: list[Event]) -> None:
    """The sample holds what it is for; else the comparison above would prove little."""
    events = [plain(event_) for event_ in made]
    images = [reference.frame_of(event_)[0] for event_ in events]
    pairs = [(image, photon) for image, e in zip(images, events, strict=True) for photon in e.photons]
    seeds = [(reference.seed_of(image, photon), image, photon) for image, photon in pairs]
    found = [(seed, image, photon) for seed, image, photon in seeds if seed]

    def crop_columns(seed: tuple[int, int]) -> tuple[int, int]:
        return seed[1] - 15, seed[1] + 16

    assert any(not e.photons for e in events)
    assert any(crop_columns(seed)[0] < 0 for seed, *_ in found)
    assert any(crop_columns(seed)[1] > 359 for seed, *_ in found)
    assert {seed[0] for seed, *_ in found} & {55, 56, 57, 58}
    assert {seed[0] for seed, *_ in found} & {221, 222, 223, 224}
    selected = [photon for seed, _, photon in seeds if seed is None and photon[0] > 10 and abs(photon[1]) < 1.44]
    assert selected, "a selected photon without a seed"
    edge = float(np.float32(1.44))
    near = {np.sign(abs(photon[1]) - edge) for _, photon in pairs if abs(abs(photon[1]) - edge) < 1e-6}
    assert near == {-1.0, 0.0, 1.0}
    ties = [seed for seed, image, photon in found if not photon[3] and np.count_nonzero(image == image[seed]) > 1]
    assert len(ties) > 10
    named = [reference.barrel_pixel(photon[3]) is not None for *_, photon in found if photon[3]]
    assert set(named) == {True, False}, "seeds that the input names, and names that stand for no crystal"
    endcap = np.concatenate([images[0][:0], *[image[225:] for image in images]])
    assert np.count_nonzero(endcap) > 100
