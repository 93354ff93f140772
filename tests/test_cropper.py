"""Seeds and crops: who is selected, which pixel is the seed, what the square around it holds."""

from typing import Any

import numpy as np
import pytest
from physics_helpers import hits_block

from stages.config import Config
from stages.cropper import Cropper, crops
from stages.detector.ecal import eb_detid, ee_detid
from streamer.block import Block

Pixels = dict[tuple[int, int], float]
Photon = tuple[float, float, float, int]


def direction(row: int, column: int) -> tuple[float, float]:
    """Eta and phi of the middle of a barrel pixel."""
    return (row - 139.5) * 0.01745, float(np.radians((column - 9.5 + 180) % 360 - 180))


def photon(row: int, column: int, pt: float = 50.0, detid: int = 0) -> Photon:
    return (pt, *direction(row, column), detid)


def framed(cropper: Cropper, events: list[tuple[Pixels, list[Photon]]]) -> Block:
    """A block as the framer sends it."""
    columns: dict[str, Any] = {
        "nPixel": np.array([[len(pixels)] for pixels, _ in events], np.int32),
        "Pixel_index": np.array([r * 360 + c for pixels, _ in events for r, c in pixels], np.int32),
        "Pixel_value": np.array([v for pixels, _ in events for v in pixels.values()], np.float32),
        "nPhoton": np.array([len(photons) for _, photons in events], np.int32),
    }
    rows = [p for _, photons in events for p in photons]
    for place, name in enumerate(("pt", "eta", "phi")):
        columns[f"Photon_{name}"] = np.array([p[place] for p in rows], np.float32)
    columns["Photon_seedDetId"] = np.array([p[3] for p in rows], np.uint32)
    hits = hits_block(
        cropper.config, {k: v for k, v in columns.items() if "Photon" in k} | no_hits(events), len(events)
    )
    known = {**hits.columns, **columns}
    block = Block(1, len(events), {name: known[name] for name in cropper.inputs.by_name})
    cropper.inputs.check(block.columns, len(events))
    return block


def no_hits(events: list[Any]) -> dict[str, Any]:
    return {f"n{name}": np.zeros(len(events), np.int32) for name in ("EBRecHit", "EERecHit")}


def make(**spec: Any) -> Cropper:
    cropper = Cropper(Config.model_validate({"taggers": {"eg": spec}}))
    cropper.setup()
    return cropper


@pytest.fixture(scope="module")
def cropper() -> Cropper:
    return make()


def run(cropper: Cropper, events: list[tuple[Pixels, list[Photon]]]) -> dict[str, Any]:
    columns = cropper.process(framed(cropper, events)).columns
    cropper.outputs.check(columns, len(events))
    return columns


def seeds(columns: dict[str, Any]) -> list[tuple[int, int]]:
    return list(zip(columns["Photon_seedRow"].tolist(), columns["Photon_seedCol"].tolist(), strict=True))


def images(columns: dict[str, Any], size: int = 32) -> list[Pixels]:
    """Each crop's pixels as (row, column) in the crop."""
    ends = np.cumsum(columns["nEgPixel"][:, 0])[:-1]
    index, value = (np.split(columns[f"EgPixel_{name}"], ends) for name in ("index", "value"))
    return [
        {divmod(int(i), size): float(v) for i, v in zip(*pair, strict=True)} for pair in zip(index, value, strict=True)
    ]


NONE = (-1, -1)


def test_the_seed_is_the_most_energetic_pixel_near_the_direction(cropper: Cropper) -> None:
    pixels = {(100, 50): 3.0, (105, 55): 7.0, (106, 50): 90.0, (100, 56): 90.0, (95, 45): 5.0}
    assert seeds(run(cropper, [(pixels, [photon(100, 50)])])) == [(105, 55)]


def test_of_equals_the_first_in_the_frame_is_the_seed_in_whatever_order_they_come(cropper: Cropper) -> None:
    equal = [(101, 359), (100, 2), (100, 358), (102, 0)]
    for turn in range(4):
        pixels = dict.fromkeys(equal[turn:] + equal[:turn], 4.0)
        assert seeds(run(cropper, [(pixels, [photon(101, 0)])])) == [(100, 2)]


def test_the_search_wraps_in_phi_and_stays_in_the_barrel(cropper: Cropper) -> None:
    pixels = {(222, 358): 1.0, (226, 2): 50.0, (224, 4): 2.0, (55, 0): 3.0, (54, 0): 60.0}
    events = [(pixels, [photon(221, 1), photon(221, 357), photon(57, 359)])]
    assert seeds(run(cropper, events)) == [(224, 4), (222, 358), (55, 0)]


def test_selection_is_strict_in_pt_and_eta_and_keeps_the_place_of_who_is_not_selected(cropper: Cropper) -> None:
    edge = np.float32(1.44)
    below, above = np.nextafter(edge, np.float32(0)), np.nextafter(edge, np.float32(2))
    pixels = {(222, 9): 5.0, (57, 9): 5.0}
    photons = [
        (50.0, float(edge), 0.0, 0),
        (50.0, float(below), 0.0, 0),
        (50.0, float(-above), 0.0, 0),
        (50.0, float(-below), 0.0, 0),
        (10.0, float(below), 0.0, 0),
        (float(np.nextafter(np.float32(10), np.float32(11))), float(below), 0.0, 0),
    ]
    columns = run(cropper, [({}, []), (pixels, photons), (pixels, photons[:2])])
    assert seeds(columns) == [NONE, (222, 9), NONE, (57, 9), NONE, (222, 9), NONE, (222, 9)]
    assert columns["nEgCrop"].tolist() == [0, 3, 1]
    assert columns["EgCrop_object"].tolist() == [1, 3, 5, 1]


def test_selection_is_configuration() -> None:
    cropper = make(pt_min=20.0, eta_max=0.5)
    pixels = {(141, 20): 1.0, (180, 20): 1.0}
    photons = [photon(141, 20, pt=20.0), photon(141, 20, pt=21.0), photon(180, 20, pt=99.0)]
    assert seeds(run(cropper, [(pixels, photons)])) == [NONE, (141, 20), NONE]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_photon_that_is_no_number_hurts_nobody(cropper: Cropper, bad: float, place: int) -> None:
    good, spoilt = photon(100, 100), list(photon(100, 100))
    spoilt[place] = bad
    columns = run(cropper, [({(100, 100): 2.0}, [good, tuple(spoilt), good])])  # type: ignore[list-item]
    wanted = (100, 100) if place == 0 and bad > 0 else NONE
    assert seeds(columns) == [(100, 100), wanted, (100, 100)]


def test_the_crystal_that_the_input_names_is_the_seed(cropper: Cropper) -> None:
    named = int(eb_detid(30, 40))
    no_crystal = [0, int(ee_detid(50, 20, 1)), 0xFFFFFFFF, int(eb_detid(1, 360)) + 1]
    photons = [photon(100, 100, detid=named), *(photon(100, 100, detid=d) for d in no_crystal)]
    photons.append(photon(100, 100, pt=5.0, detid=named))
    columns = run(cropper, [({(100, 101): 2.0}, photons)])
    assert seeds(columns) == [(169, 39), *[(100, 101)] * 4, NONE]
    assert images(columns)[0] == {}, "a crop without a pixel is still a crop"


def test_a_photon_without_a_hit_nearby_or_in_the_endcap_has_no_seed(cropper: Cropper) -> None:
    wide = make(eta_max=3.0)
    assert seeds(run(cropper, [({(100, 100): 2.0}, [photon(100, 110)]), ({}, [photon(100, 100)])])) == [NONE, NONE]
    assert seeds(run(wide, [({(250, 9): 9.0}, [(50.0, 2.0, 0.0, 0), (50.0, -2.9, 0.0, 0)])])) == [NONE, NONE]


def test_the_seed_stands_at_15_15(cropper: Cropper) -> None:
    pixels = {(100, 100): 9.0, (85, 85): 1.0, (116, 116): 2.0, (84, 100): 3.0, (100, 117): 4.0, (100, 84): 5.0}
    (image,) = images(run(cropper, [(pixels, [photon(100, 100)])]))
    assert image == {(15, 15): 9.0, (0, 0): 1.0, (31, 31): 2.0}


@pytest.mark.parametrize("column", [0, 3, 344, 359])
def test_a_crop_wraps_in_phi(cropper: Cropper, column: int) -> None:
    pixels = {(100, (column + step) % 360): 10.0 - abs(step) for step in (-16, -15, -7, 0, 8, 16, 17)}
    (image,) = images(run(cropper, [(pixels, [photon(100, column)])]))
    assert image == {(15, 15 + step): 10.0 - abs(step) for step in (-15, -7, 0, 8, 16)}


def test_beyond_the_frame_in_eta_there_is_nothing() -> None:
    cropper = make(crop=256)
    pixels = {(60, 100): 9.0, (0, 100): 1.0, (188, 100): 2.0, (189, 100): 3.0, (279, 100): 4.0, (60, 233): 5.0}
    events = [(pixels, [photon(60, 100)]), ({(219, 5): 9.0, (279, 5): 1.0, (0, 5): 2.0}, [photon(219, 5)])]
    first, second = images(run(cropper, events), 256)
    assert first == {(127, 127): 9.0, (67, 127): 1.0, (255, 127): 2.0}
    assert second == {(127, 127): 9.0, (187, 127): 1.0}


def test_crops_take_the_channels_they_want_in_their_order() -> None:
    # axes: event, channel; pixels ordered by event and channel
    columns = {
        "nPixel": np.array([[1, 2], [0, 0], [2, 1]], np.int32),
        "Pixel_index": np.array([0, 1, 2, 10, 11, 12], np.int32) + 100 * 360 + 100,
        "Pixel_value": np.array([1, 2, 3, 4, 5, 6], np.float32),
    }
    seed = np.array([100 * 360 + 100, -1, 100 * 360 + 100], np.int32)
    n_objects = np.array([1, 0, 2], np.int32)
    for picked, counts, values in (
        ((0, 1), [[1, 2], [2, 1]], [1, 2, 3, 4, 5, 6]),
        ((1, 0), [[2, 1], [1, 2]], [2, 3, 1, 6, 4, 5]),
        ((1,), [[2], [1]], [2, 3, 6]),
        ((1, 1, 1), [[2, 2, 2], [1, 1, 1]], [2, 3, 2, 3, 2, 3, 6, 6, 6]),
        ((0, 0, 1), [[1, 1, 2], [2, 2, 1]], [1, 1, 2, 3, 4, 5, 4, 5, 6]),
    ):
        towers = np.zeros(len(picked), np.bool_)
        n_crops, objects, n_pixels, index, value = crops(columns, n_objects, seed, np.array(picked), towers, 32)
        assert n_crops.tolist() == [1, 0, 1]
        assert objects.tolist() == [0, 1]
        assert n_pixels.tolist() == counts
        assert value.tolist() == values
        known = {v: 15 * 32 + 15 + i for v, i in zip([1, 2, 3, 4, 5, 6], [0, 1, 2, 10, 11, 12], strict=True)}
        assert index.tolist() == [known[v] for v in value.tolist()]


def test_nothing_in_nothing_out(cropper: Cropper) -> None:
    columns = run(cropper, [({}, []), ({(100, 100): 1.0}, [])])
    assert columns["nEgCrop"].tolist() == [0, 0]
    assert columns["EgPixel_index"].size == 0
