"""Frames from hits: what is placed where, what adds, what is left out and counted."""

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from physics_helpers import Event, columns_of, event, hits_block
from prometheus_client import generate_latest

from stages.channels import Entries
from stages.config import Config
from stages.detector.ecal import eb_detid, ee_crystals, ee_detid, ee_index, ee_pixel_table
from stages.framer import Framer, Merger
from streamer.errors import UsageError


@pytest.fixture(scope="module")
def framer() -> Framer:
    made = Framer(Config())
    made.setup()
    return made


def frames(framer: Framer, events: list[Event]) -> list[dict[int, float]]:
    """Each event's non-empty pixels."""
    framer.take_tally()
    block = framer.process(hits_block(framer.config, columns_of(events), len(events)))
    framer.outputs.check(block.columns, len(events))
    ends = np.cumsum(block.columns["nPixel"][:, 0])
    index, value = (np.split(block.columns[f"Pixel_{name}"], ends[:-1]) for name in ("index", "value"))
    return [dict(zip(i.tolist(), v.tolist(), strict=True)) for i, v in zip(index, value, strict=True)]


def eb(ieta: int, iphi: int, energy: float) -> tuple[int, float]:
    return int(eb_detid(ieta, iphi)), energy


def pixel(row: int, column: int) -> int:
    return row * 360 + column


@pytest.mark.parametrize(
    ("ieta", "iphi", "row", "column"),
    [(-85, 1, 55, 0), (-1, 1, 139, 0), (1, 1, 140, 0), (85, 360, 224, 359), (1, 190, 140, 189)],
)
def test_a_barrel_crystal_is_a_pixel(framer: Framer, ieta: int, iphi: int, row: int, column: int) -> None:
    assert frames(framer, [event(EBRecHit=[eb(ieta, iphi, 2.5)])]) == [{pixel(row, column): 2.5}]


def test_an_endcap_hit_goes_to_the_row_and_column_of_its_crystal(framer: Framer) -> None:
    # (ix, iy) = (50.5 + 40, 50.5): phi just above 0, |eta| 1.7
    hits = [(int(ee_detid(91, 51, side)), 1.0) for side in (-1, 1)]
    ((minus, _), (plus, _)) = sorted(frames(framer, [event(EERecHit=hits)])[0].items())
    assert minus % 360 == plus % 360 == 10
    assert minus // 360 == 279 - plus // 360
    assert 1.6 < np.arcsinh(3170 / np.hypot(40 * 28.6, 14)) < 1.8
    assert 225 + 7 < plus // 360 < 225 + 17  # the towers from 1.566 to 1.830


def test_what_shares_a_pixel_adds_and_events_stay_apart(framer: Framer) -> None:
    ix, iy = np.nonzero(ee_crystals())
    detids = ee_detid(ix + 1, iy + 1, 1)
    table = ee_pixel_table()
    pixels = np.array([table[ee_index(detid)] for detid in detids])
    values, counts = np.unique(pixels, return_counts=True)
    shared = int(values[counts > 1][0])
    one, other = (int(d) for d in detids[pixels == shared][:2])
    events = [
        event(EERecHit=[(one, 1.0), (other, 2.0)]),
        event(EERecHit=[(other, 4.0)]),
        event(),
        event(EERecHit=[(one, 8.0)], EBRecHit=[eb(1, 1, 0.5), eb(1, 1, 0.25)]),
    ]
    assert frames(framer, events) == [{shared: 3.0}, {shared: 4.0}, {}, {shared: 8.0, pixel(140, 0): 0.75}]


def test_zero_and_negative_energies_are_no_part_of_the_image_and_nothing_to_count(framer: Framer) -> None:
    found = frames(framer, [event(EBRecHit=[eb(1, 1, 0.0), eb(1, 2, -3.0), eb(1, 3, -0.0), eb(1, 4, 1e-30)])])
    assert [list(f) for f in found] == [[pixel(140, 3)]]
    assert framer.take_tally() == {}


def test_what_is_no_number_and_what_is_no_crystal_is_dropped_and_counted(framer: Framer) -> None:
    nan, inf = float("nan"), float("inf")
    bad_eb = [0, 0xFFFFFFFF, int(ee_detid(50, 20, 1)), 0x32000000 + (86 << 9) + 1, int(eb_detid(1, 360)) + 1]
    bad_ee = [0, int(eb_detid(1, 1)), int(ee_detid(1, 1, 1)), int(ee_detid(50, 50, -1)), 0x34000000 + (101 << 7) + 1]
    events = [
        event(EBRecHit=[eb(1, 1, nan), eb(1, 2, inf), eb(1, 3, -inf), eb(1, 4, 7.0)]),
        event(EBRecHit=[(d, 1.0) for d in bad_eb], EERecHit=[(d, 1.0) for d in bad_ee]),
        event(EERecHit=[(int(ee_detid(91, 51, 1)), nan)], EBRecHit=[eb(2, 4, 1.0)]),
    ]
    assert frames(framer, events) == [{pixel(140, 3): 7.0}, {}, {pixel(141, 3): 1.0}]
    assert framer.take_tally() == {
        ("hits_dropped", "nan_energy"): 4,
        ("hits_dropped", "bad_detid"): len(bad_eb) + len(bad_ee),
    }


def test_what_only_warms_up_is_counted_nowhere() -> None:
    made = Framer(Config.model_validate({"taggers": {"eg": {}, "top": {}}}))
    made.setup()
    assert made.take_tally() == {}
    assert 'streamer_channel_occupancy_ratio_count{channel="ECAL"} 0.0' in generate_latest(made.registry).decode()


def test_the_input_is_not_touched(framer: Framer) -> None:
    block = hits_block(framer.config, columns_of([event(EBRecHit=[eb(1, 1, 1.0), eb(1, 1, 2.0)])]), 1)
    before = {name: column.copy() for name, column in block.columns.items()}
    framer.process(block)
    for name, column in before.items():
        np.testing.assert_array_equal(block.columns[name], column)


def test_identity_and_photons_travel_on(framer: Framer) -> None:
    photons = [(20.0, 1.0, 0.5, 77, 1), (30.0, -1.0, -0.5, 0, 0)]
    events = [event(3), event(4, Photon=photons)]
    columns = framer.process(hits_block(framer.config, columns_of(events), 2)).columns
    assert columns["event"].tolist() == [3, 4]
    assert columns["nPhoton"].tolist() == [0, 2]
    assert columns["Photon_seedDetId"].tolist() == [77, 0]


def test_channels_are_ordered_by_event_and_channel() -> None:
    def entries(counts: list[int], index: list[int]) -> list[Entries]:
        return [Entries(np.array(counts, np.int32), np.array(index, np.int32), np.array(index, np.float32) / 10)]

    channels = [entries([1, 0, 2], [10, 30, 31]), entries([2, 1, 0], [11, 12, 20]), []]
    frame = Merger(("TrackPt", "TrackD0", "BPIX1")).merge(3, channels)
    assert frame.counts.tolist() == [[1, 2, 0], [0, 1, 0], [2, 0, 0]]
    assert frame.index.tolist() == [10, 11, 12, 20, 30, 31]
    np.testing.assert_allclose(frame.value, frame.index / 10, rtol=1e-6)


def garbage(path: Path) -> None:
    path.write_bytes(b"hello")


def truncated(path: Path) -> None:
    path.write_bytes(gzip.compress(b'{"Collections": {}}' * 50)[:30])


def incomplete(path: Path) -> None:
    path.write_bytes(gzip.compress(b'{"Collections": {"EE": []}}'))


@pytest.mark.parametrize("spoil", [Path.mkdir, garbage, truncated, incomplete, lambda path: None])
def test_a_geometry_that_is_none_is_told_in_one_line(tmp_path: Path, spoil: Any) -> None:
    path = tmp_path / "ee.json.gz"
    spoil(path)
    with pytest.raises(UsageError) as error:
        Framer(Config.model_validate({"framer": {"ee_geometry": path}})).setup()
    text = str(error.value)
    assert text.startswith("framer.ee_geometry: ")
    assert str(path) in text
    assert "\n" not in text
