"""The whole detector against a plain, dense reference: frames, seeds and crops of real and of awkward events."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import reference_detector as reference
from physics_helpers import cms_open_data, hits_block

from stages.config import CHANNELS, Config, InputConfig
from stages.cropper import Cropper
from stages.detector.ecal import ee_centres, ee_crystals
from stages.filling import fill_crops, fill_frames
from stages.formats import open_events
from stages.framer import Framer
from stages.records import INPUT, INPUT_BY_NAME, crop_names
from streamer.block import Block, Columns, offsets, readonly

N_RANDOM = 300
OPTIONS = [
    {"tracks_at": "direction", "hits_from": "origin"},
    {"tracks_at": "ecal", "hits_from": "vertex"},
]
LOOKS = {
    "eg": {"objects": "Photon"},
    "wide": {"objects": "Photon", "crop": 64, "channels": ("HCAL", "ECAL", "TrackDz"), "pt_min": 0, "eta_max": 3},
    "qg": {"objects": "Jet"},
    "tiny": {"objects": "Jet", "crop": 2, "channels": ("TOB", "HCAL"), "pt_min": 20, "eta_max": 5},
    "top": {"objects": "FatJet"},
    "huge": {"objects": "FatJet", "crop": 280, "channels": ("BPIX4", "HCAL", "TEC"), "eta_max": 4},
    "whole": {"objects": "Event", "channels": CHANNELS[::-1]},
}


def config(**framer: Any) -> Config:
    taggers = {name: {"model": "none", **look} for name, look in LOOKS.items()}
    return Config.model_validate({"taggers": taggers, "framer": framer})


def columns_of(events: Sequence[reference.Event]) -> Columns:
    """Flat columns of the reference's events."""
    out: Columns = {}
    for column in INPUT:
        if not column.collection:
            out[column.name] = np.array([event[column.name] for event in events]).astype(column.wire.wire_dtype)
        elif any(column.name in event for event in events):
            lists = [event.get(column.name, []) for event in events]
            out[f"n{column.collection}"] = np.array([len(values) for values in lists], np.int32)
            flat = [value for values in lists for value in values]
            out[column.name] = np.array(flat, np.float64 if column.dtype[0] == "f" else np.int64).astype(
                column.wire.wire_dtype
            )
    return out


def events_of(columns: Columns) -> list[reference.Event]:
    """The reference's events of flat columns."""
    out: list[reference.Event] = [{} for _ in columns["event"]]
    for name, values in columns.items():
        column = INPUT_BY_NAME.get(name)
        if column is None:
            continue
        parts = values
        if column.collection:
            parts = np.split(values, offsets(columns[f"n{column.collection}"])[1:-1])
        for event, part in zip(out, parts, strict=True):
            event[name] = part.tolist()
    return out


CENTRES, CRYSTALS = ee_centres(), ee_crystals()


def ee_cell(detid: int) -> tuple[float, float] | None:
    place = (detid >> 7 & 0x7F) - 1, (detid & 0x7F) - 1
    if not CRYSTALS[place]:
        return None
    x, y, z = CENTRES[place]
    return float(np.arcsinh(z / np.hypot(x, y))) * (1 if detid & 0x4000 else -1), float(np.arctan2(y, x))


@pytest.fixture(scope="module")
def awkward() -> list[reference.Event]:
    return reference.random_events(np.random.default_rng(280360), N_RANDOM)


@pytest.fixture(scope="module")
def real() -> list[reference.Event]:
    wanted = [column for column in INPUT if column.collection not in ("SuperClusterCrystal",)]
    events = []
    for path in sorted(cms_open_data().glob("*.ig")):
        for step in open_events(path, InputConfig()).read(wanted, fail):
            events += events_of(step.columns)
    for event in events:  # the file's jets have R = 0.7 and stand in for both kinds
        event |= {f"FatJet_{name}": event[f"Jet_{name}"] for name in ("pt", "eta", "phi")}
    return events


def fail(first: int, n: int, why: str) -> None:
    raise AssertionError(f"entry {first}: {why}")


class Wanted:
    """What the reference makes of an event, kept as its non-empty pixels."""

    def __init__(self, event: reference.Event, framer: dict[str, Any]) -> None:
        images, self.dropped = reference.frame(event, ee_cell=ee_cell, **framer)
        self._shapes = {name: image.shape for name, image in images.items()}
        self._pixels = {name: np.flatnonzero(image) for name, image in images.items()}
        self._values = {name: image.reshape(-1)[self._pixels[name]] for name, image in images.items()}

    def flat(self, name: str) -> Any:
        """An image in one row."""
        out = np.zeros(np.prod(self._shapes[name]))
        out[self._pixels[name]] = self._values[name]
        return out

    def image(self, name: str) -> Any:
        return self.flat(name).reshape(self._shapes[name])

    def stack(self, channels: Sequence[str]) -> Any:
        return np.stack([self.image(channel) for channel in channels])

    def n_pixels(self, name: str) -> int:
        return len(self._pixels[name])


class Compared:
    """Some events through framer and cropper, beside what the reference makes of them."""

    def __init__(self, events: list[reference.Event], framer: dict[str, str]) -> None:
        self.config = config(**framer)
        self.framer, self.cropper = Framer(self.config), Cropper(self.config)
        self.framer.setup()
        self.cropper.setup()
        block = self.framer.process(hits_block(self.config, columns_of(events), len(events)))
        self.framer.outputs.check(block.columns, len(events))
        self.dropped = {reason: n for (_, reason), n in self.framer.take_tally().items()}
        self.block = self.cropper.process(block)
        self.cropper.outputs.check(self.block.columns, len(events))
        self.events = events
        self.wanted = [Wanted(event, framer) for event in events]

    def frame(self, number: int, channels: tuple[str, ...] = CHANNELS) -> Any:
        """The dense frame of an event, as a whole-event network is handed it."""
        dense = np.zeros((1, len(channels), 280 * 360), np.float32)
        columns = self.block.columns
        fill_frames(
            offsets(columns["nPixel"]),
            readonly(columns["Pixel_index"]),
            readonly(columns["Pixel_value"]),
            number,
            number + 1,
            len(self.config.channels),
            np.array([self.config.channels.index(channel) for channel in channels]),
            np.array([channel == "HCAL" for channel in channels]),
            dense,
            0,
        )
        return dense.reshape(-1, 280, 360)

    def crops(self, name: str) -> list[tuple[int, int, Any]]:
        """Event, object and dense crop of all crops of a tagger."""
        spec, columns = self.config.taggers[name], self.block.columns
        crop, pixel = crop_names(name)
        n = len(columns[f"{crop}_object"])
        dense = np.full((n, len(spec.channels), spec.crop**2), 7, np.float32)
        fill_crops(
            offsets(columns[f"n{pixel}"]),
            readonly(columns[f"{pixel}_index"]),
            readonly(columns[f"{pixel}_value"]),
            0,
            n,
            np.array([channel == "HCAL" for channel in spec.channels]),
            spec.crop,
            dense,
            0,
        )
        events = np.repeat(np.arange(len(columns[f"n{crop}"])), columns[f"n{crop}"])
        images = dense.reshape(n, -1, spec.crop, spec.crop)
        return list(zip(events.tolist(), columns[f"{crop}_object"].tolist(), images, strict=True))


@pytest.fixture(scope="module", params=[0, 1], ids=["plain", "propagated"])
def options(request: pytest.FixtureRequest) -> dict[str, str]:
    return OPTIONS[request.param]


@pytest.fixture(scope="module", params=["real", "awkward"])
def compared(request: pytest.FixtureRequest, options: dict[str, str]) -> Compared:
    return Compared(request.getfixturevalue(request.param), options)


@pytest.fixture(scope="module", params=["real", "awkward"])
def compared_plainly(request: pytest.FixtureRequest) -> Compared:
    """Where tracks and hits are makes no difference to how crops are cut."""
    return Compared(request.getfixturevalue(request.param), OPTIONS[0])


def test_every_channel_of_every_event_is_the_reference_image(compared: Compared) -> None:
    filled = dict.fromkeys(CHANNELS, 0)
    for number, wanted in enumerate(compared.wanted):
        for channel, image in zip(CHANNELS, compared.frame(number), strict=True):
            told = f"{channel} of event {number}"
            image, expected = image.reshape(-1), wanted.flat(channel)
            there = np.flatnonzero((image != 0) | (expected != 0))
            filled[channel] += there.size
            if channel in ("TrackD0", "TrackDz"):  # a sum may be next to nothing, or nothing
                np.testing.assert_allclose(image[there], expected[there], rtol=1e-5, atol=1e-6, err_msg=told)
            elif channel in ("TrackPt", "ECAL", "HCAL"):
                assert (image[there] != 0).all(), told
                assert (expected[there] != 0).all(), told
                np.testing.assert_allclose(image[there], expected[there], rtol=1e-5, err_msg=told)
            else:
                np.testing.assert_array_equal(image[there], expected[there], err_msg=f"{told}: hits are counted")
    hits = ("ECAL", "HCAL", "TrackPt", "TrackD0", "TrackDz")
    assert all(filled[channel] > 1000 for channel in (hits if filled["TOB"] == 0 else CHANNELS)), filled


def test_what_is_left_out_is_counted(compared: Compared) -> None:
    wanted = {reason: sum(event.dropped[reason] for event in compared.wanted) for reason in reference.REASONS}
    assert {reason: compared.dropped.get(reason, 0) for reason in wanted} == wanted
    assert compared.dropped.get("bad_pixel", 0) == 0


def seeds_of(compared: Compared, objects: str) -> list[list[tuple[int, int] | None]]:
    """The reference's seeds of the objects that any tagger wants."""
    specs = [spec for spec in compared.config.taggers.values() if spec.objects == objects]
    out = []
    for event, wanted in zip(compared.events, compared.wanted, strict=True):
        seeds = []
        ecal, towers = (wanted.image(name).astype(np.float32) for name in ("ECAL", "HCALTowers"))
        for k, (pt, eta, phi) in enumerate(zip(*(event[f"{objects}_{m}"] for m in ("pt", "eta", "phi")), strict=True)):
            seed = None
            if any(reference.selected(pt, eta, spec.pt_min, spec.eta_max) for spec in specs):
                if objects == "Photon":
                    detid = event["Photon_seedDetId"][k] if "Photon_seedDetId" in event else 0
                    seed = reference.photon_seed(ecal, eta, phi, detid)
                else:
                    seed = reference.jet_seed(towers, eta, phi)
            seeds.append(seed)
        out.append(seeds)
    return out


@pytest.mark.parametrize("objects", ["Photon", "Jet", "FatJet"])
def test_every_seed_is_that_of_the_reference(compared: Compared, objects: str) -> None:
    columns = compared.block.columns
    ends = offsets(columns[f"n{objects}"])[1:-1]
    rows, cols = (np.split(columns[f"{objects}_{name}"], ends) for name in ("seedRow", "seedCol"))
    found = [[None if r < 0 else (int(r), int(c)) for r, c in zip(*pair, strict=True)]
             for pair in zip(rows, cols, strict=True)]  # fmt: skip
    assert found == seeds_of(compared, objects)
    n_seeds = sum(seed is not None for event in found for seed in event)
    assert n_seeds > 50
    assert n_seeds < sum(map(len, found)), "some have none"


@pytest.mark.parametrize("name", [name for name, look in LOOKS.items() if look["objects"] != "Event"])
def test_every_crop_is_that_of_the_reference(compared_plainly: Compared, name: str) -> None:
    compared = compared_plainly
    spec = compared.config.taggers[name]
    seeds = seeds_of(compared, spec.objects)
    wanted = []
    for number, event in enumerate(compared.events):
        for k, (pt, eta) in enumerate(zip(event[f"{spec.objects}_pt"], event[f"{spec.objects}_eta"], strict=True)):
            if seeds[number][k] and reference.selected(pt, eta, spec.pt_min, spec.eta_max):
                wanted.append((number, k))
    found = compared.crops(name)
    assert [crop[:2] for crop in found] == wanted
    assert len(wanted) > 20
    for number, k, image in found:
        seed = seeds[number][k]
        assert seed is not None
        expected = reference.crop(compared.wanted[number].stack(spec.channels), seed, spec.crop).astype(np.float32)
        there = (image != 0) | (expected != 0)
        np.testing.assert_allclose(
            image[there], expected[there], rtol=1e-5, atol=1e-6, err_msg=f"{name}: {number}, {k}"
        )


def test_channels_come_in_the_order_that_is_asked_for(awkward: list[reference.Event]) -> None:
    compared = Compared(awkward[:20], {})
    order = ("TEC", "HCAL", "TrackPt", "ECAL")
    for number in range(20):
        all_channels, some = compared.frame(number), compared.frame(number, order)
        for channel, image in zip(order, some, strict=True):
            np.testing.assert_array_equal(image, all_channels[CHANNELS.index(channel)])


def test_a_tower_travels_as_one_entry(awkward: list[reference.Event]) -> None:
    compared = Compared(awkward[:50], {})
    columns, channels = compared.block.columns, compared.config.channels
    n_towers = columns["nPixel"][:, channels.index("HCAL")]
    wanted = [event.n_pixels("HCALTowers") for event in compared.wanted]
    assert n_towers.tolist() == wanted
    assert sum(wanted) > 500


def test_superclusters_name_the_seed_crystal() -> None:
    """The most energetic barrel crystal that belongs to the photon's supercluster, though others have more."""
    crystals = [reference.eb_id(10, 100), reference.eb_id(11, 101), reference.eb_id(12, 102)]
    endcap = reference.ee_id(91, 51, 1)
    event = {
        **{"run": 1, "luminosityBlock": 1, "event": 1},
        **{"EBRecHit_detid": crystals, "EBRecHit_energy": [5.0, 9.0, 50.0]},
        **{"EERecHit_detid": [endcap], "EERecHit_energy": [99.0]},
        **{"Photon_pt": [20.0] * 4, "Photon_eta": [0.2] * 4, "Photon_phi": [1.5] * 4},
        **{"Photon_superClusterIdx": [1, 0, -1, 2], "Photon_seedDetId": [0, 0, 0, 0]},
        "SuperClusterCrystal_superClusterIdx": [0, 1, 1, 2, 0],
        "SuperClusterCrystal_detid": [*crystals, endcap, reference.eb_id(1, 1)],
    }
    chain = Compared([event], {})
    seeds = chain.framer.process(hits_block(chain.config, columns_of([event]), 1)).columns["Photon_seedDetId"]
    assert seeds.tolist() == [crystals[2], crystals[0], 0, 0]


def test_the_kernels_leave_no_trace_of_an_event(awkward: list[reference.Event]) -> None:
    """Event by event is the same as all in one block: the scratch memory is clean in between."""
    made = Compared(awkward[:60], {})
    framer = made.framer
    schema = framer.inputs
    block = hits_block(made.config, columns_of(awkward[:60]), 60)
    parts = [framer.process(Block(0, 1, schema.slice(block.columns, i, i + 1))).columns for i in range(60)]
    together = framer.outputs.concat(parts)
    for name in ("nPixel", "Pixel_index", "Pixel_value"):
        np.testing.assert_array_equal(together[name], made.block.columns[name])


def test_the_reference_events_are_awkward(awkward: list[reference.Event]) -> None:
    every = columns_of(awkward)
    most = max(every[f"n{name}"].max() for name in ("StripHit", "PixelHit", "EBRecHit", "HBHERecHit"))
    assert most >= 20_000, "one with 20,000 hits in a column"
    assert np.isnan(every["Track_pt"]).any()
    assert np.isnan(every["Jet_eta"]).any()
    assert (every["HBHERecHit_detid"] & 0x1000000).any()
    assert (every["nPV"] == 0).any()
