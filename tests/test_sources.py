"""What channels and objects are made of: one source each, nothing read in vain, a clear line for what is missing."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from foreign_files import write_delphes
from physics_helpers import Chain, sum_model

from stages.config import CHANNELS, Config
from stages.conversion import schema_of
from stages.formats.base import EventFile, Report, Step
from stages.formats.root import write_events
from stages.reader import Reader
from stages.records import INPUT, INPUT_BY_NAME, InputColumn
from stages.sources import Choice, choose
from streamer.block import Columns
from streamer.errors import UsageError

IDS = {"run", "luminosityBlock", "event"}
HITS = {f"{name}_{what}" for name in ("EBRecHit", "EERecHit") for what in ("detid", "energy")}
HCAL_HITS = {"HBHERecHit_detid", "HBHERecHit_energy"}
PLACE = {"Tower_eta", "Tower_phi"}
TOWERS = {*PLACE, "Tower_emEnergy", "Tower_hadEnergy"}
IMAGES = {"ImagePixel_channel", "ImagePixel_index", "ImagePixel_value"}
TRACKS = {f"Track_{name}" for name in ("pt", "eta", "phi", "d0", "dz")}
PV = {"PV_x", "PV_y", "PV_z"}
JETS, FAT_JETS, CANDIDATES, PHOTONS = (
    {f"{name}_{what}" for what in ("pt", "eta", "phi")} for name in ("Jet", "FatJet", "PFCand", "Photon")
)
ALL = {column.name for column in INPUT}


class Fake(EventFile):
    """A file of which nothing is known but its columns."""

    kind = "made-up"

    def __init__(
        self, names: Iterable[str], images: Sequence[str] = (), mappable: bool = False, others: Sequence[str] = ()
    ) -> None:
        self.path, self.others = Path("made-up.root"), others
        self.names = {name: name for name in (*IDS, *names)}
        self.images, self.mappable = tuple(images), mappable  # type: ignore[misc]

    @classmethod
    def matches(cls, found: Any) -> bool:
        return False

    def own_names(self) -> list[str]:
        return [*self.names.values(), *self.others]

    def read(self, columns: Sequence[InputColumn], report: Report, first: int = 0) -> Iterator[Step]:
        yield from ()


def config(*taggers: dict[str, Any], **sections: dict[str, Any]) -> Config:
    """Taggers a, b, ... with the sections of a configuration."""
    named = {name: {"model": "none", **tagger} for name, tagger in zip("abc", taggers, strict=False)}
    return Config.model_validate({"taggers": named, **sections})


def whole(*channels: str, **more: Any) -> dict[str, Any]:
    return {"objects": "Event", "channels": channels, **more}


def columns(choice: Choice) -> set[str]:
    return {column.name for column in choice.columns} - IDS


def refusal(file: EventFile, config: Config) -> list[str]:
    with pytest.raises(UsageError) as error:
        choose(file, config)
    return str(error.value).splitlines()


# ---- one source a channel


@pytest.mark.parametrize(
    ("there", "images", "calorimeters", "ecal"),
    [
        (IMAGES | HITS | TOWERS, ("ECAL",), "auto", IMAGES),
        (IMAGES | HITS | TOWERS, ("ECAL",), "hits", IMAGES),
        (IMAGES | HITS | TOWERS, ("HCAL",), "auto", HITS),
        (IMAGES | HITS | TOWERS, ("HCAL",), "towers", {*PLACE, "Tower_emEnergy"}),
        (HITS | TOWERS, (), "auto", HITS),
        (HITS | TOWERS, (), "hits", HITS),
        (HITS | TOWERS, (), "towers", {*PLACE, "Tower_emEnergy"}),
        (TOWERS, (), "auto", {*PLACE, "Tower_emEnergy"}),
        (HITS - {"EERecHit_energy"} | TOWERS, (), "auto", {*PLACE, "Tower_emEnergy"}),
        (IMAGES - {"ImagePixel_value"} | HITS, ("ECAL",), "auto", HITS),
    ],
)
def test_the_first_source_that_is_complete_is_taken(
    there: set[str], images: tuple[str, ...], calorimeters: str, ecal: set[str]
) -> None:
    choice = choose(Fake(there, images), config(whole("ECAL"), input={"calorimeters": calorimeters}))
    assert columns(choice) == ecal
    assert choice.images == (("ECAL",) if ecal == IMAGES else ())
    incomplete = there & HITS and ecal not in (HITS, IMAGES) and calorimeters == "auto"
    assert choice.notes == (["ECAL is made of Tower, as there is no EERecHit_energy"] if incomplete else [])


def test_a_part_of_a_channel_is_taken_where_it_may_be_empty() -> None:
    barrel = {"EBRecHit_detid", "EBRecHit_energy"}
    choice = choose(Fake(barrel), config(whole("ECAL", allow_empty=True)))
    assert columns(choice) == barrel
    assert choice.notes == ["ECAL is made of EBRecHit alone, as there is no EERecHit"]
    (line,) = refusal(Fake(barrel), config(whole("ECAL")))
    assert "there is no EERecHit in this made-up file" in line


def test_an_origin_that_stands_in_for_the_vertex_is_told() -> None:
    pixels = {f"PixelHit_{name}" for name in ("x", "y", "z", "layer")}
    seen_from = config(whole("BPIX1"), framer={"hits_from": "vertex"})
    assert choose(Fake(pixels), seen_from).notes == ["there are no vertices (PV): the origin is taken for them"]
    assert not choose(Fake(pixels | PV), seen_from).notes
    assert not choose(Fake(pixels), config(whole("BPIX1"))).notes


def test_jets_of_any_radius_are_told() -> None:
    class Varying(Fake):
        any_radius = True

    jets = config({"objects": "Jet", "channels": ("HCAL",)})
    assert choose(Varying(JETS | HCAL_HITS), jets).notes == ["Jet are the file's own, whatever their radius"]
    assert not choose(Fake(JETS | HCAL_HITS), jets).notes


@pytest.mark.parametrize(("calorimeters", "there"), [("hits", TOWERS), ("towers", HITS)])
def test_a_source_that_the_configuration_rules_out_is_not_taken(calorimeters: str, there: set[str]) -> None:
    (line,) = refusal(Fake(there), config(whole("ECAL"), input={"calorimeters": calorimeters}))
    lacks = "EBRecHit and EERecHit" if calorimeters == "hits" else "Tower"
    assert line.startswith(f"made-up.root: no ECAL, as there is no {lacks} in this made-up file; tagger a would see")


def test_ready_made_images_and_hits_of_different_channels_go_together() -> None:
    choice = choose(Fake(IMAGES | HCAL_HITS | TRACKS, ("ECAL", "TrackPt")), config(whole("TrackPt", "ECAL", "HCAL")))
    assert columns(choice) == IMAGES | HCAL_HITS
    assert choice.images == ("TrackPt", "ECAL")


def event_file(path: Path, **given: Sequence[float]) -> Path:
    """A tree of one event with these columns and all others of their collections."""
    collections = {"", *(INPUT_BY_NAME[name].collection for name in given)}
    wanted = [column for column in INPUT if column.collection in collections]
    out: Columns = {}
    for column in wanted:
        n = next((len(v) for k, v in given.items() if INPUT_BY_NAME[k].collection == column.collection), 1)
        out[column.name] = np.array(given.get(column.name, [column.default] * n)).astype(column.wire.wire_dtype)
        if column.collection:
            out[f"n{column.collection}"] = np.array([n], np.int32)
    write_events(path, schema_of(wanted), [out])
    return path


CALORIMETERS: dict[str, Any] = {
    "EBRecHit_detid": [0x32000000 | 0x10000 | 1 << 9 | 1],
    "EBRecHit_energy": [5.0],
    "EERecHit_detid": [],
    "HBHERecHit_detid": [4 << 28 | 1 << 25 | 1 << 14 | 0x2000 | 1 << 7 | 1],
    "HBHERecHit_energy": [3.0],
    "Tower_eta": [0.01, 1.0],
    "Tower_phi": [0.01, 2.0],
    "Tower_emEnergy": [50.0, 20.0],
    "Tower_hadEnergy": [40.0, 10.0],
}
WITH_IMAGES: dict[str, Any] = {
    **CALORIMETERS,
    "ImagePixel_channel": [CHANNELS.index("ECAL"), CHANNELS.index("HCAL")],
    "ImagePixel_index": [140 * 360, 28 * 72],
    "ImagePixel_value": [6.0, 2.0],
}


@pytest.mark.parametrize(
    ("given", "calorimeters", "ecal", "hcal"),
    [
        (CALORIMETERS, "auto", 5.0, 3.0),
        (CALORIMETERS, "towers", 70.0, 50.0),
        (WITH_IMAGES, "auto", 6.0, 2.0),
        ({k: v for k, v in CALORIMETERS.items() if "HBHE" not in k}, "auto", 5.0, 50.0),
    ],
)
def test_no_energy_counts_twice_where_jets_are_clustered_from_towers(
    tmp_path: Path, given: dict[str, Any], calorimeters: str, ecal: float, hcal: float
) -> None:
    """The towers that jets need are read, and must not get into the channels that have another source."""
    pytest.importorskip("fastjet")
    path = event_file(tmp_path / "event.root", **given)
    models = {name: sum_model(tmp_path / f"{name}.onnx", ("batch", 1, 280, 360)) for name in ("ECAL", "HCAL")}
    made = Config.model_validate({
        "input": {"files": [str(path)], "calorimeters": calorimeters},
        "taggers": {
            "jets": {"objects": "Jet", "channels": ["HCAL"], "crop": 2,
                     "model": sum_model(tmp_path / "jets.onnx", ("batch", 1, 2, 2))},
            **{name: whole(name, model=model) for name, model in models.items()},
        },
    })  # fmt: skip
    reader = Reader(made)
    reader.setup()
    (step,) = reader.read()
    reader.close()
    found = Chain(made).scores(step, 1).columns
    assert found["Event_ECALScore"].tolist() == pytest.approx([ecal])
    assert found["Event_HCALScore"].tolist() == pytest.approx([hcal])
    assert found["Jet_pt"][0] == pytest.approx(90 / np.cosh(0.01)), "the jet is made of the towers nevertheless"


# ---- nothing in vain


@pytest.mark.parametrize(
    ("tagger", "sections", "wanted"),
    [
        (whole("TrackPt"), {}, {"Track_pt", "Track_eta", "Track_phi", "Track_highPurity"}),
        (whole("TrackD0"), {}, TRACKS - {"Track_pt"} | {"Track_highPurity"}),
        (whole("TrackDz"), {}, TRACKS - {"Track_pt", "Track_d0"} | {"Track_highPurity"}),
        (whole("TrackPt"), {"framer": {"tracks_at": "ecal"}}, TRACKS | PV | {"Track_charge", "Track_highPurity"}),
        (whole("BPIX2"), {}, {f"PixelHit_{name}" for name in ("x", "y", "z", "layer")}),
        (whole("BPIX2"), {"framer": {"hits_from": "vertex"}}, PV | {f"PixelHit_{n}" for n in ("x", "y", "z", "layer")}),
        (whole("ECAL"), {"framer": {"hits_from": "vertex", "tracks_at": "ecal"}}, HITS),
        (whole("HCAL"), {}, HCAL_HITS),
        ({"objects": "Jet", "channels": ["HCAL"]}, {}, HCAL_HITS | JETS | {"Jet_genLabel"}),
        # The seed is in the HCAL.
        ({"objects": "Jet", "channels": ["ECAL"]}, {}, HITS | HCAL_HITS | JETS | {"Jet_genLabel"}),
        ({"objects": "FatJet", "channels": ["HCAL"]}, {}, HCAL_HITS | FAT_JETS | {"FatJet_genLabel"}),
        ({"objects": "FatJet", "channels": ["HCAL"]}, {"input": {"fat_jets": "Jet"}}, HCAL_HITS | JETS),
        ({"objects": "FatJet", "channels": ["HCAL"]}, {"input": {"fat_jets": "cluster"}}, HCAL_HITS | CANDIDATES),
        ({"objects": "Photon"}, {}, HITS | PHOTONS | {
            *("Photon_seedDetId", "Photon_superClusterIdx", "Photon_genLabel"),
            *("SuperClusterCrystal_superClusterIdx", "SuperClusterCrystal_detid")}),
    ],
)  # fmt: skip
def test_only_what_a_tagger_needs_is_read(tagger: Any, sections: Any, wanted: set[str]) -> None:
    """Of a file that has everything but ready-made images."""
    assert columns(choose(Fake(ALL - IMAGES), config(tagger, **sections))) == wanted


# ---- jets


@pytest.mark.parametrize(
    ("there", "settings", "made_from"),
    [
        (JETS | CANDIDATES | TOWERS, {}, {}),
        (JETS | CANDIDATES | TOWERS, {"jets": "cluster"}, {"Jet": "PFCand"}),
        (CANDIDATES | TOWERS, {}, {"Jet": "PFCand"}),
        (TOWERS, {}, {"Jet": "Tower"}),
        (JETS - {"Jet_phi"} | TOWERS, {}, {"Jet": "Tower"}),
    ],
)
def test_jets_are_the_files_own_or_clustered(there: set[str], settings: Any, made_from: dict[str, str]) -> None:
    choice = choose(
        Fake(HCAL_HITS | there), config({"objects": "Jet", "channels": ["HCAL"]}, input=settings)
    )  # fmt: skip
    assert choice.jets == made_from
    assert choice.notes == [f"Jet are anti-kT jets with R = 0.4, clustered from {name}" for name in made_from.values()]
    assert (
        choice.only_jets
        == {"PFCand": CANDIDATES | {"nPFCand"}, "Tower": TOWERS | {"nTower"}, "": set()}[made_from.get("Jet", "")]
    )


def test_towers_that_are_in_a_channel_stay() -> None:
    tagger = {"objects": "Jet", "channels": ["HCAL"]}
    assert choose(Fake(TOWERS), config(tagger)).only_jets == {"Tower_emEnergy"}
    assert choose(Fake(TOWERS), config({**tagger, "channels": ["ECAL"]})).only_jets == set()


@pytest.mark.parametrize(
    ("there", "how", "made_from", "note"),
    [
        (FAT_JETS | JETS | TOWERS, "auto", {}, None),
        (JETS | TOWERS, "auto", {"FatJet": "Tower"}, "FatJet are anti-kT jets with R = 0.8, clustered from Tower"),
        (FAT_JETS | JETS | TOWERS, "cluster", {"FatJet": "Tower"},
         "FatJet are anti-kT jets with R = 0.8, clustered from Tower"),
        (FAT_JETS | JETS | TOWERS, "Jet", {"FatJet": "Jet"}, "FatJet are the file's Jet, whatever their radius"),
    ],
)  # fmt: skip
def test_fat_jets_are_own_clustered_or_the_stand_in(
    there: set[str], how: str, made_from: dict[str, str], note: str | None
) -> None:
    tagger = {"objects": "FatJet", "channels": ["HCAL"]}
    choice = choose(Fake(HCAL_HITS | there), config(tagger, input={"fat_jets": how}))
    assert choice.jets == made_from
    assert choice.notes == ([note] if note else [])


def test_the_stand_in_is_the_files_jet_also_where_jet_is_clustered(tmp_path: Path) -> None:
    pytest.importorskip("fastjet")
    path = event_file(tmp_path / "event.root", **CALORIMETERS, Jet_pt=[77.0], Jet_eta=[1.5], Jet_phi=[-2.0])
    taggers = {name: {"objects": name, "channels": ["HCAL"], "model": "none"} for name in ("Jet", "FatJet")}
    made = Config.model_validate(
        {"taggers": taggers, "input": {"files": [str(path)], "jets": "cluster", "fat_jets": "Jet"}}
    )
    reader = Reader(made)
    reader.setup()
    (step,) = reader.read()
    reader.close()
    assert step["FatJet_pt"].tolist() == [77.0]
    assert step["Jet_pt"][0] == pytest.approx(90 / np.cosh(0.01))
    assert "FatJet are the file's Jet, whatever their radius" in reader._files[0][1].notes


@pytest.mark.parametrize("there", [set(), JETS | FAT_JETS])
@pytest.mark.parametrize(("objects", "key"), [("Jet", "jets"), ("FatJet", "fat_jets")])
def test_jets_that_cannot_be_clustered_are_told(there: set[str], objects: str, key: str) -> None:
    """And are not silently none, though the file has some of its own."""
    given = config({"objects": objects, "channels": ["HCAL"]}, input={key: "cluster"})
    assert refusal(Fake(HCAL_HITS | there), given) == [
        f"made-up.root: nothing to cluster {objects} from for tagger a, neither PFCand nor Tower; "
        f'without input.{key} = "cluster" the file\'s own are taken'
    ]


@pytest.mark.parametrize("there", [FAT_JETS | TOWERS, FAT_JETS | JETS - {"Jet_eta"}])
def test_a_stand_in_that_is_not_there_is_told(there: set[str]) -> None:
    given = config({"objects": "FatJet", "channels": ["HCAL"]}, input={"fat_jets": "Jet"})
    lines = refusal(Fake(HCAL_HITS | there), given)
    assert len(lines) == len(JETS - there)
    assert all(line.startswith("made-up.root: no column 'Jet_") for line in lines)


# ---- what is not there


def test_a_missing_column_of_a_mappable_file_is_told_with_hints() -> None:
    file = Fake(HITS - {"EERecHit_energy"}, mappable=True, others=["EERecHit_Energy", "nEERecHit"])
    assert refusal(file, config(whole("ECAL"), {"objects": "Photon"})) == [
        "made-up.root: no column 'EERecHit_energy' (energy of the ECAL endcap rechit) for ECAL of taggers a, b; "
        "if 'EERecHit_Energy' is it, set [input.columns] EERecHit_energy = \"EERecHit_Energy\", or set "
        "taggers.a.allow_empty = true and taggers.b.allow_empty = true",
        *(
            f"made-up.root: no column 'Photon_{name}' ({what} of the photon) for tagger b; map it with "
            f'[input.columns] Photon_{name} = "..."'
            for name, what in (("pt", "transverse momentum"), ("eta", "pseudorapidity"), ("phi", "azimuth"))
        ),
    ]


def test_a_counter_is_no_hint() -> None:
    there = [*HITS - {"EERecHit_detid", "EERecHit_energy"}, "nEBRecHit"]
    lines = refusal(Fake((), mappable=True, others=there), config(whole("ECAL")))
    assert len(lines) == 4
    assert not any("'nEBRecHit'" in line for line in lines)


def test_only_the_taggers_that_see_a_channel_are_told_to_allow_it_empty() -> None:
    lines = refusal(Fake(HITS, mappable=True), config(whole("ECAL"), whole("TOB", "ECAL"), whole("TEC")))
    assert len(lines) == 5
    assert all(" for TOB of tagger b and TEC of tagger c; " in line for line in lines)
    told = ", or set taggers.b.allow_empty = true and taggers.c.allow_empty = true"
    assert all(line.endswith(told) for line in lines)


def test_fat_jets_that_are_missing_may_be_jets() -> None:
    given = config({"objects": "FatJet", "channels": ["HCAL"]})
    lines = refusal(Fake(HCAL_HITS | JETS, mappable=True), given)
    assert [line.split("'")[1] for line in lines] == ["FatJet_pt", "FatJet_eta", "FatJet_phi"]
    assert all(line.endswith(', or let Jet stand in with input.fat_jets = "Jet"') for line in lines)
    lines = refusal(Fake(HCAL_HITS, mappable=True), given)
    assert not any("stand in" in line for line in lines)


def test_a_kind_whose_names_are_fixed_says_what_it_cannot_give() -> None:
    lines = refusal(Fake(TOWERS | JETS), config({"objects": "Jet"}, {"objects": "Jet", "score": "twice"}))
    assert lines == [
        "made-up.root: no TrackPt, TrackD0, TrackDz, as there is no Track in this made-up file; taggers a, b would see "
        "nothing there: set taggers.a.allow_empty = true and taggers.b.allow_empty = true to go on so, or take "
        "another kind of file"
    ]


def test_channels_that_different_taggers_lack_are_told_apart() -> None:
    given = config(whole("BPIX1", "ECAL"), whole("BPIX1", "BPIX2", "TEC"), whole("TEC", allow_empty=True))
    lines = refusal(Fake(HITS), given)
    assert [line.partition(", as")[0].removeprefix("made-up.root: ") for line in lines] == [
        "no BPIX1", "no BPIX2", "no TEC"
    ]  # fmt: skip
    assert "taggers a, b would see" in lines[0]
    assert "tagger b would see" in lines[1]
    assert "tagger b would see" in lines[2], "c allows it"


def test_a_collection_that_is_there_in_part_is_told_by_its_column() -> None:
    (line,) = refusal(Fake(TRACKS - {"Track_d0"}), config(whole("TrackPt", "TrackD0")))
    assert line.startswith("made-up.root: no TrackD0, as there is no Track_d0 in this made-up file; ")


@pytest.mark.parametrize("mappable", [True, False])
def test_channels_that_may_be_empty_are_noted(mappable: bool) -> None:
    given = config(whole("BPIX1", "ECAL", allow_empty=True), whole("BPIX1", "TOB", allow_empty=True), whole("ECAL"))
    choice = choose(Fake(HITS, mappable=mappable), given)
    assert choice.notes == [
        "no BPIX1, as there is no PixelHit in this made-up file; empty for taggers a, b",
        "no TOB, as there is no StripHit in this made-up file; empty for tagger b",
    ]
    assert columns(choice) == HITS


def test_events_without_a_number_are_refused_whatever_may_be_empty() -> None:
    file = Fake(HITS, mappable=True)
    del file.names["event"]
    assert refusal(file, config(whole("ECAL", allow_empty=True))) == [
        "made-up.root: no column 'event' (event number); map it with [input.columns] event = \"...\""
    ]


def test_tracks_at_the_ecal_need_their_charge() -> None:
    file = Fake(TRACKS, mappable=True)
    assert columns(choose(file, config(whole("TrackPt")))) == TRACKS - {"Track_d0", "Track_dz"}
    (line,) = refusal(file, config(whole("TrackPt"), framer={"tracks_at": "ecal"}))
    assert line.startswith("made-up.root: no column 'Track_charge' (charge of the track) for TrackPt of tagger a; ")
    assert line.endswith(", or set taggers.a.allow_empty = true")


# ---- what the reader says


def delphes(path: Path, **more: Any) -> Path:
    return write_delphes(path, [{"Tower_eta": [0.1], "Tower_phi": [0.1], "Tower_emEnergy": [9.0]}], **more)


def test_what_is_to_be_said_of_many_files_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = [str(delphes(tmp_path / f"{k}.root", tracks=False)) for k in range(4)]
    files.append(str(delphes(tmp_path / "with-tracks.root")))
    given = config(whole("TrackPt", "ECAL", "TOB", allow_empty=True), input={"files": files})
    reader = Reader(given)
    with caplog.at_level(logging.WARNING):
        reader.setup()
    reader.close()
    assert caplog.messages == [
        f"{files[0]} and 3 more: no TrackPt, as there is no Track in this Delphes file; empty for tagger a",
        f"{files[0]} and 4 more: no TOB, as there is no StripHit in this Delphes file; empty for tagger a",
    ]


def test_what_is_wrong_with_many_files_is_told_once(tmp_path: Path) -> None:
    files = [str(delphes(tmp_path / f"{k}.root", tracks=False)) for k in range(3)]
    (tmp_path / "broken.root").write_bytes(b"root, but no more")
    given = config(whole("TrackPt"), input={"files": [*files, str(tmp_path / "broken.root")]})
    with pytest.raises(UsageError) as error:
        Reader(given).setup()
    first, second = str(error.value).splitlines()
    assert first.startswith(f"{files[0]} and 2 more: no TrackPt, as there is no Track in this Delphes file; tagger a")
    assert second.startswith(f"{tmp_path / 'broken.root'}: not a readable ROOT file (")


def test_clustering_without_fastjet_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "fastjet", None)
    path = str(delphes(tmp_path / "events.root", fat_jets=False))
    tagger = {"objects": "FatJet", "channels": ["HCAL"]}
    with pytest.raises(UsageError, match=r"clustering jets needs fastjet: pip install 'e2e-streamer\[jets\]'"):
        Reader(config(tagger, input={"files": [path]})).setup()
    reader = Reader(config(tagger, input={"files": [path], "fat_jets": "Jet"}))
    reader.setup()
    reader.close()
