"""What is wrong in an input costs no more than itself: through real files, reader, framer and cropper."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_detector as reference
from foreign_files import write_delphes
from test_detector import columns_of, ee_cell
from test_foreign_formats import assert_images, config, images_of, read

from stages.config import CHANNELS, Config
from stages.conversion import schema_of
from stages.cropper import Cropper
from stages.formats.root import write_events
from stages.framer import Framer
from stages.records import INPUT
from streamer.block import Block, Columns, core_columns

Event = dict[str, Any]
NAN, INF = float("nan"), float("inf")
CELL = reference.eb_id(10, 100)
TOWER = reference.hcal_id(5, 42)


def event(number: int = 1, **columns: list[Any]) -> Event:
    return {"run": 1, "luminosityBlock": 1, "event": number, **columns}


def rows(collection: str, *hits: tuple[Any, ...]) -> dict[str, list[Any]]:
    """Rows of a collection as its columns."""
    members = reference.COLLECTIONS[collection]
    return {f"{collection}_{name}": [hit[k] for hit in hits] for k, name in enumerate(members)}


def write(path: Path, *events: Event) -> Path:
    columns = columns_of(events)
    write_events(path, schema_of([column for column in INPUT if column.name in columns]), [columns])
    return path


def framed(config: Config, columns: Columns) -> tuple[Block, dict[str, int]]:
    """The events behind the cropper, and what the framer left out."""
    framer, cropper = Framer(config), Cropper(config)
    framer.setup()
    cropper.setup()
    framer.take_tally()
    schema, n = framer.inputs, len(columns["event"])
    given = {**core_columns(np.zeros(n, np.int64)), **columns}
    full = {name: given[name] for name in schema.by_name if name in given}
    full |= {c.name: np.zeros(n, c.wire_dtype) for c in schema.columns if c.name not in full}
    block = cropper.process(framer.process(Block(1, n, full)))
    cropper.outputs.check(block.columns, n)
    return block, {reason: number for (_, reason), number in framer.take_tally().items()}


def whole(*channels: str, **framer: str) -> dict[str, Any]:
    return {"taggers": {"whole": {"objects": "Event", "channels": channels}}, "framer": framer}


def test_jets_that_point_out_of_the_hcal_have_no_seed_and_keep_their_place(tmp_path: Path) -> None:
    jets = [(50.0, 3.5, 1.0), (50.0, -4.9, 1.0), (50.0, 0.4, 3.3), (50.0, NAN, 1.0), (50.0, 0.4, NAN), (50.0, 5.1, 0.0)]
    here = float(np.radians(42 * 5 - 2.5 - 360))
    jets[2] = (50.0, 0.4, here)
    path = write(
        tmp_path / "jets.root",
        event(1, **rows("HBHERecHit", (TOWER, 20.0)), **rows("Jet", *jets)),
        event(2, **rows("HBHERecHit", (reference.hcal_id(28, 43), 99.0)), **rows("Jet", (50.0, 3.5, here))),
    )
    made = config({"far": {"objects": "Jet", "channels": ("HCAL",), "crop": 2, "eta_max": 5}}, [path])
    columns, tally = read(made)
    block, dropped = framed(made, columns)
    row, column = 5 * (28 + 4) + 2, 5 * 43 + 2
    assert not tally
    assert not any(dropped.values())
    assert block.columns["nJet"].tolist() == [6, 1]
    assert block.columns["Jet_seedRow"].tolist() == [-1, -1, row, -1, -1, -1, -1]
    assert block.columns["Jet_seedCol"].tolist() == [-1, -1, column, -1, -1, -1, -1]
    assert (block.columns["nFarCrop"].tolist(), block.columns["FarCrop_object"].tolist()) == ([1, 0], [2])


@pytest.mark.parametrize("tracks_at", ["direction", "ecal"])
def test_tracks_that_are_no_numbers_are_counted_and_the_others_stay(tmp_path: Path, tracks_at: str) -> None:
    good = (5.0, 0.505, 1.003, 1, 0.02, 0.03, 1)
    bad = [(*good[:k], number, *good[k + 1 :]) for k in (0, 1, 2, 4, 5) for number in (NAN, INF, -INF)]
    events = [event(1, **rows("Track", good, *bad, good)), event(2, **rows("Track", good))]
    path = write(tmp_path / "tracks.root", *events)
    given = whole("TrackPt", "TrackD0", "TrackDz", tracks_at=tracks_at)
    made = config(given["taggers"], [path], framer=given["framer"])
    columns, tally = read(made)
    assert not tally
    assert columns["nTrack"].tolist() == [17, 1], "they are no reason to leave an event out"
    _, dropped = framed(made, columns)
    wanted = [reference.frame(event, ee_cell=ee_cell, tracks_at=tracks_at) for event in events]
    assert dropped == {"nan_track": wanted[0][1]["nan_track"]}
    assert dropped["nan_track"] >= 3 * 5
    for images, (expected, _) in zip(images_of(made, columns), wanted, strict=True):
        assert all(image.any() for image in images.values())
        assert_images(images, expected)


def test_hits_of_layers_that_do_not_exist_are_counted(tmp_path: Path) -> None:
    place = (10.0, 10.0, 10.0)
    pixels = [(*place, layer) for layer in (0, 1, 4, 5, 200)]
    strips = [(*place, *layer) for layer in ((3, 4), (3, 5), (4, 3), (4, 4), (5, 7), (6, 9), (6, 10), (0, 1), (9, 1))]
    strips += [(*place, 3, 0), (*place, 255, 255)]
    path = write(tmp_path / "hits.root", event(1, **rows("PixelHit", *pixels), **rows("StripHit", *strips)))
    given = whole("BPIX1", "BPIX2", "BPIX3", "BPIX4", "TIB", "TOB", "TID", "TEC")
    made = config(given["taggers"], [path])
    columns, _ = read(made)
    _, dropped = framed(made, columns)
    assert dropped == {"bad_layer": 3 + 8}
    (images,) = images_of(made, columns)
    sums = {name: image.sum() for name, image in images.items()}
    assert sums == {"BPIX1": 1, "BPIX2": 0, "BPIX3": 0, "BPIX4": 1, "TIB": 1, "TOB": 0, "TID": 1, "TEC": 1}


def test_towers_beyond_the_frame_are_left_out_silently(tmp_path: Path) -> None:
    """The forward calorimeter is no part of the image; |ieta| 29 ends at eta 3."""
    etas = [2.99, 3.0, float(np.nextafter(np.float32(3), np.float32(4))), 3.2, 4.9, -2.99, -3.0, -3.05, -5.0]
    towers = [(eta, 0.505, 10.0, 20.0) for eta in etas] + [(NAN, 0.5, 1.0, 1.0), (0.5, INF, 1.0, 0.0)]
    tree = write(tmp_path / "towers.root", event(1, **rows("Tower", *towers)))
    delphes = write_delphes(tmp_path / "delphes.root", [event(1, **rows("Tower", *towers[:9]))])
    for path, n_bad in ((tree, 4), (delphes, 0)):
        made = config(whole("ECAL", "HCAL")["taggers"], [path])
        columns, tally = read(made)
        assert not tally
        _, dropped = framed(made, columns)
        (images,) = images_of(made, columns)
        assert {reason: n for reason, n in dropped.items() if n} == ({"nan_position": n_bad} if n_bad else {})
        assert sorted(images["ECAL"][images["ECAL"] != 0]) == [20.0, 20.0]
        assert {row for row, _ in np.argwhere(images["ECAL"])} == {0, 279}
        assert sorted(images["HCAL"][images["HCAL"] != 0]) == [40.0, 40.0]
        assert {row for row, _ in np.argwhere(images["HCAL"])} == {0, 55}


def test_20000_hits_of_one_cell_add_up_exactly(tmp_path: Path) -> None:
    """In double precision; float32 sums would be off in the fifth digit."""
    n = 20_000
    energies = np.random.default_rng(1).exponential(3, n).astype(np.float32)
    hits = rows("EBRecHit", *((CELL, float(e)) for e in energies)) | rows("EERecHit")
    hits |= rows("HBHERecHit", *((TOWER, float(e)) for e in energies))
    hits |= rows("PixelHit", *[(1.0, 2.0, 3.0, 1)] * n) | rows("Track", *[(0.1, 0.505, 1.003, 1, 1e-3, 0.01, 1)] * n)
    hits |= rows("Photon", (50.0, 0.16, float(np.radians(89.5)), 0))
    path = write(tmp_path / "cell.root", event(1), event(2, **hits), event(3))  # the others have nothing
    made = config({"eg": {}, **whole("ECAL", "HCAL", "BPIX1", "TrackPt", "TrackD0")["taggers"]}, [path])
    columns, tally = read(made)
    assert not tally
    images = images_of(made, columns)
    assert not any(image.any() for number in (0, 2) for image in images[number].values())
    total = float(energies.astype(np.float64).sum())
    wanted = {"ECAL": total, "HCAL": total, "BPIX1": n, "TrackPt": 0.1 * n, "TrackD0": 1e-3 * n}
    for channel, value in wanted.items():
        image = images[1][channel]
        assert np.count_nonzero(image) == 1
        assert image.sum() == pytest.approx(value, rel=1e-7)
    block, dropped = framed(made, columns)
    assert not any(dropped.values())
    assert block.columns["Photon_seedRow"].tolist() == [55 + 85 + 9]
    assert block.columns["Photon_seedCol"].tolist() == [99]
    assert block.columns["EgPixel_value"].tolist() == [np.float32(total)]


def test_pixels_of_ready_made_images_that_do_not_exist_are_counted(tmp_path: Path) -> None:
    ecal, hcal, tob = (CHANNELS.index(name) for name in ("ECAL", "HCAL", "TOB"))
    pixels = [
        (ecal, 0, 1.0), (ecal, 280 * 360 - 1, 2.0), (hcal, 56 * 72 - 1, 3.0),
        (ecal, -1, 9.0), (ecal, 280 * 360, 9.0), (ecal, 2**31 - 1, 9.0), (hcal, 56 * 72, 9.0), (hcal, -5, 9.0),
        (13, 0, 9.0), (13, -1, 9.0), (255, 0, NAN),
        (tob, 5, 1.0), (tob, -1, 1.0),  # which no tagger sees
        (ecal, 7, NAN), (hcal, 7, INF), (ecal, 8, 0.0), (ecal, 9, -1.0),
    ]  # fmt: skip
    names = ("channel", "index", "value")
    columns = {f"ImagePixel_{name}": [pixel[k] for pixel in pixels] for k, name in enumerate(names)}
    path = write(tmp_path / "images.root", event(1, **columns), event(2, **{name: [] for name in columns}))
    made = config(whole("ECAL", "HCAL")["taggers"], [path])
    got, tally = read(made)
    assert not tally
    _, dropped = framed(made, got)
    assert {reason: n for reason, n in dropped.items() if n} == {"bad_pixel": 5 + 3, "nan_energy": 2}
    images = images_of(made, got)
    assert [tuple(place) for place in np.argwhere(images[0]["ECAL"])] == [(0, 0), (279, 359)]
    assert images[0]["ECAL"].sum() == 3.0
    assert images[0]["HCAL"].sum() == images[0]["HCAL"][55, 71] == 3.0
    assert not any(image.any() for image in images[1].values())


@pytest.mark.parametrize("objects", ["Photon", "Jet", "Event"])
def test_two_taggers_cannot_write_the_same_score(objects: str) -> None:
    given = {name: {"objects": objects, "score": "same"} for name in ("one", "two")}
    told = f"one and two both write {objects}_same; set another taggers.two.score"
    with pytest.raises(ValueError, match=told):
        config(given)
    given["two"]["objects"] = "FatJet"
    assert config(given).objects[-1] == "FatJet"
