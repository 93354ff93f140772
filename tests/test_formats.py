"""Event files: every kind gives the same columns, and what is broken costs only itself and is told in one line."""

import json
import os
import zipfile
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
from physics_helpers import Event, columns_of, event, ig_text, write_hits, write_ig

from stages.config import Config, InputConfig
from stages.conversion import convert_files, schema_of
from stages.formats import ig, open_events
from stages.formats.root import write_events
from stages.inputs import expand
from stages.reader import Reader
from stages.records import INPUT, INPUT_BY_NAME, needed
from stages.sources import choose
from streamer.block import CORE_COLUMNS
from streamer.errors import UsageError

HAD = ("", "EBRecHit", "EERecHit", "Photon")
NEEDED = [c for c in needed(Config()) if c.collection in HAD and c.name != "Photon_superClusterIdx"]
NAMES = [column.name for column in NEEDED]


def some_events(n: int = 12, seed: int = 5) -> list[Event]:
    """Events whose numbers are exact in float32, with and without hits and photons."""
    rng = np.random.default_rng(seed)

    def hits(base: int) -> list[tuple[int, float, float]]:
        return [(base + int(rng.integers(1, 1 << 16)), int(rng.integers(-8, 800)) / 16, int(rng.integers(-9, 9)) / 4)
                for _ in range(rng.integers(0, 9))]  # fmt: skip

    def photons() -> list[tuple[float, float, float]]:
        return [(int(rng.integers(0, 900)) / 8, int(rng.integers(-20, 20)) / 16, int(rng.integers(-25, 25)) / 8)
                for _ in range(rng.integers(0, 4))]  # fmt: skip

    made = [event(i, EBRecHit=hits(0x32000000), EERecHit=hits(0x34000000), Photon=photons()) for i in range(n)]
    for e in made:
        e["Photon"] = [(*photon, 0, k % 3 - 1) for k, photon in enumerate(e["Photon"])]
    return made


EVENTS = some_events()


class Read:
    """Everything that a file gives."""

    def __init__(self, path: Path, wanted: Any = None, **config: Any) -> None:
        self.reports: list[tuple[int, int, str]] = []
        file = open_events(path, InputConfig.model_validate(config))
        wanted = wanted or choose(file, Config.model_validate({"input": config})).columns
        file.check(wanted)
        steps = list(file.read(wanted, lambda *report: self.reports.append(report)))
        file.close()
        self.names = file.names
        self.sizes = [len(step.entries) for step in steps]
        self.entries = [int(entry) for step in steps for entry in step.entries]
        known = steps[0].columns if steps else ()
        self.columns = {name: np.concatenate([step.columns[name] for step in steps]) for name in known}

    @property
    def lost(self) -> list[int]:
        return sorted(entry for first, n, _ in self.reports for entry in range(first, first + n))


def assert_same(found: Any, events: list[Event], names: list[str] = NAMES) -> None:
    wanted = columns_of(events)
    for name in [*names, "nEBRecHit", "nEERecHit", "nPhoton"]:
        if name in wanted and name in found:
            np.testing.assert_array_equal(found[name], wanted[name], err_msg=name)
            assert found[name].dtype == wanted[name].dtype, name


def refusal(path: Path, **config: Any) -> str:
    with pytest.raises(UsageError) as error:
        Read(path, **config)
    return str(error.value)


def make(kind: str, path: Path, events: list[Event]) -> Path:
    if kind == "ig":
        return write_ig(path.with_suffix(".ig"), [ig_text(e) for e in events])
    return write_hits(path.with_suffix(".root"), events, rntuple=kind == "rntuple")


KINDS = ["ttree", "rntuple", "ig"]


# ---- all is well


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [1, 5, 1000])
def test_every_kind_gives_the_same_columns(tmp_path: Path, kind: str, step: int) -> None:
    path = make(kind, tmp_path / "events", EVENTS)
    got = Read(path, step_events=step)
    assert got.entries == list(range(12))
    assert max(got.sizes) == min(step, 12)
    assert not got.reports
    without = {"Photon_seedDetId", "Photon_genLabel"} if kind == "ig" else set()
    assert set(NAMES) - set(got.columns) == without
    assert_same(got.columns, EVENTS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_converted_file_is_the_same_again(tmp_path: Path, kind: str) -> None:
    sources = [make(kind, tmp_path / "a", EVENTS[:5]), make(kind, tmp_path / "b", EVENTS[5:])]
    for rntuple in (False, True):
        out = tmp_path / f"out{rntuple}.root"
        assert convert_files([str(p) for p in sources], out, rntuple=rntuple) == 12
        assert_same(Read(out).columns, EVENTS)
    assert sorted(p.name for p in tmp_path.glob("*.part")) == []


def test_vertices_jets_and_tracks_of_an_ig_file_have_our_units_and_reference(tmp_path: Path) -> None:
    document = {
        "Types": {
            "Event_V2": [["run", "int"], ["event", "int"], ["ls", "int"]],
            "Tracks_V3": [["pos", "v3d"], ["pt", "double"], ["phi", "double"], ["eta", "double"], ["charge", "int"]],
            "Vertices_V1": [["isValid", "int"], ["pos", "v3d"]],
            "HBRecHits_V2": [["energy", "d"], ["time", "d"], ["detid", "i"]],
            "HERecHits_V2": [["time", "d"], ["energy", "d"], ["detid", "i"]],
        },
        "Collections": {
            "Event_V2": [[7, 8, 9]],
            "Tracks_V3": [[[0.02, 0.01, 0.5], 3.0, 0.0, 0.0, -1]],
            "Vertices_V1": [[1, [0.01, 0.03, 0.1]], [1, [9, 9, 9]]],
            "HBRecHits_V2": [[1.5, 2.0, 11]],
            "HERecHits_V2": [[3.0, 2.5, 12]],
        },
    }
    wanted = [c for c in INPUT if c.collection in ("Track", "PV", "HBHERecHit", "")]
    got = Read(write_ig(tmp_path / "x.ig", [json.dumps(document)]), wanted).columns
    assert [got[name].item() for name in ("run", "luminosityBlock", "event")] == [7, 9, 8]
    np.testing.assert_allclose([got[f"PV_{axis}"].item() for axis in "xyz"], [1, 3, 10])
    # relative to the vertex the point is (1, -2, 40) cm, and the track flies along x
    np.testing.assert_allclose([got["Track_d0"].item(), got["Track_dz"].item()], [2, 40], rtol=1e-6)
    assert got["Track_charge"].item() == -1
    assert got["HBHERecHit_detid"].tolist() == [11, 12]
    assert got["HBHERecHit_energy"].tolist() == [1.5, 2.5]
    assert got["HBHERecHit_time"].tolist() == [2.0, 3.0]


# ---- columns under other names, missing, of another kind


def write_tree(path: Path, tree: str = "Events", rntuple: bool = False, **branches: Any) -> Path:
    with uproot.recreate(path) as file:
        (file.mkrntuple if rntuple else file.mktree)(tree, branches)
    return path


def branches_of(events: list[Event], **renamed: str) -> dict[str, Any]:
    """Branches one by one, each with a length of its own."""
    columns = columns_of(events)
    out = {}
    for name in NAMES:
        collection = INPUT_BY_NAME[name].collection
        values = ak.unflatten(columns[name], columns[f"n{collection}"]) if collection else columns[name]
        out[renamed.get(name, name)] = values
    return out


def test_columns_of_other_names_are_mapped(tmp_path: Path) -> None:
    mapping = {"EBRecHit_energy": "ecalBarrel_E", "run": "runNumber", "Photon_pt": "gamma_et"}
    path = write_tree(tmp_path / "x.root", "tree", **branches_of(EVENTS, **mapping))
    got = Read(path, tree="tree", columns=mapping)
    assert got.names["run"] == "runNumber"
    assert_same(got.columns, EVENTS)


def test_a_missing_column_is_told_with_the_nearest_and_the_mapping(tmp_path: Path) -> None:
    path = write_tree(tmp_path / "x.root", **branches_of(EVENTS, EBRecHit_energy="ebrechit_energies", run="xyz"))
    lines = refusal(path).splitlines()
    assert lines == [
        f"{path}: no column 'run' (run number); map it with [input.columns] run = \"...\"",
        f"{path}: no column 'EBRecHit_energy' (energy of the ECAL barrel rechit) for ECAL of tagger eg; "
        "if 'ebrechit_energies' is it, set [input.columns] EBRecHit_energy = \"ebrechit_energies\", "
        "or set taggers.eg.allow_empty = true",
    ]
    lines = refusal(path, columns={"EBRecHit_energy": "ebrechit_energy", "run": "xyz"}).splitlines()
    assert len(lines) == 1
    assert "no column 'ebrechit_energy'" in lines[0]
    assert 'set [input.columns] EBRecHit_energy = "ebrechit_energies"' in lines[0]


def test_optional_columns_may_be_missing(tmp_path: Path) -> None:
    optional = [column.name for column in NEEDED if column.optional]
    assert optional == ["Photon_seedDetId", "Photon_genLabel"]
    path = write_hits(tmp_path / "x.root", EVENTS, without=optional)
    got = Read(path)
    assert set(NAMES) - set(got.columns) == set(optional)
    assert_same(got.columns, EVENTS)
    reader = Reader(Config.model_validate({"input": {"files": [str(path)]}}))
    reader.setup()
    (step,) = reader.read()
    assert set(step) == {c.name for c in reader.outputs.columns} - {c.name for c in CORE_COLUMNS} | {"sequence"}
    assert not step["Photon_seedDetId"].any()
    assert step["Photon_seedDetId"].size == step["Photon_pt"].size
    assert step["Photon_genLabel"].tolist() == [-1] * step["Photon_pt"].size, "which means that nothing is known"
    reader.close()


def test_a_mapping_of_no_column_of_ours_is_told(tmp_path: Path) -> None:
    path = write_hits(tmp_path / "x.root", EVENTS)
    reader = Reader(Config.model_validate({"input": {"files": [str(path)], "columns": {"EBRecHit_enrgy": "x"}}}))
    with pytest.raises(UsageError) as error:
        reader.setup()
    assert str(error.value) == (
        "input.columns: there is no column 'EBRecHit_enrgy' of ours to map; did you mean 'EBRecHit_energy'?"
    )


@pytest.mark.parametrize("rntuple", [False, True])
@pytest.mark.parametrize("first_is_empty", [False, True])
def test_a_column_of_another_kind_is_told_before_the_start(tmp_path: Path, rntuple: bool, first_is_empty: bool) -> None:
    events = [event(), *EVENTS] if first_is_empty else [event(EBRecHit=[(1, 1)], Photon=[(1, 1, 1)]), *EVENTS]
    branches = branches_of(events)
    n = len(events)
    branches["EBRecHit_detid"] = ak.values_astype(branches["EBRecHit_detid"], np.float32)
    branches["Photon_pt"] = np.ones(n, np.float32)
    branches["run"] = ak.Array([[1, 2]] * n)
    branches["event"] = np.arange(n) / 2
    path = write_tree(tmp_path / "x.root", rntuple=rntuple, **branches)
    found = sorted(line.partition(" (")[0] for line in refusal(path).splitlines())
    assert found == [
        f"{path}: column 'EBRecHit_detid' is not a list of unsigned integer values an event",
        f"{path}: column 'Photon_pt' is not a list of floating point values an event",
        f"{path}: column 'event' is not one unsigned integer value an event",
        f"{path}: column 'run' is not one unsigned integer value an event",
    ]


def test_other_widths_and_signs_of_numbers_are_taken(tmp_path: Path) -> None:
    branches = branches_of(EVENTS)
    for name in ("EBRecHit_energy", "Photon_eta"):
        branches[name] = ak.values_astype(branches[name], np.float64)
    branches["EBRecHit_detid"] = ak.values_astype(branches["EBRecHit_detid"], np.int32)
    branches["EERecHit_detid"] = ak.values_astype(branches["EERecHit_detid"], np.int64)
    branches["run"] = branches["run"].astype(np.int32)
    branches["event"] = branches["event"].astype(np.int64)
    branches["luminosityBlock"] = branches["luminosityBlock"].astype(np.uint16)
    assert_same(Read(write_tree(tmp_path / "x.root", **branches)).columns, EVENTS)


def test_a_tree_of_another_name_is_told_with_those_that_are_there(tmp_path: Path) -> None:
    path = write_tree(tmp_path / "x.root", "events", **branches_of(EVENTS))
    line = refusal(path)
    assert line == f"{path}: no tree 'Events' in the file (it has events); did you mean 'events'?; set input.tree"
    assert_same(Read(path, tree="events").columns, EVENTS)


def test_something_that_is_no_tree_is_told(tmp_path: Path) -> None:
    path = tmp_path / "x.root"
    with uproot.recreate(path) as file:
        file["Events"] = "just a text"
    line = refusal(path)
    assert line.startswith(f"{path}: 'Events' cannot be read")
    assert "\n" not in line


# ---- bad events among good ones


@pytest.mark.parametrize("rntuple", [False, True])
@pytest.mark.parametrize("step", [3, 1000])
def test_an_event_whose_collection_has_columns_of_different_length_is_left_out_alone(
    tmp_path: Path, rntuple: bool, step: int
) -> None:
    events = [event(i, EBRecHit=[(i, i / 2, 0)] * (i + 1), Photon=[(i, 0, 0)] * (i % 3)) for i in range(9)]
    branches = branches_of(events)
    energies = branches["EBRecHit_energy"].to_list()
    energies[4] = energies[4][:-1]
    pts = branches["Photon_pt"].to_list()
    pts[6] = [1.0, 2.0]
    branches |= {"EBRecHit_energy": ak.Array(energies), "Photon_pt": ak.Array(pts)}
    got = Read(write_tree(tmp_path / "x.root", rntuple=rntuple, **branches), step_events=step)
    assert got.entries == [0, 1, 2, 3, 5, 7, 8]
    assert got.reports == [(i, 1, "columns of one collection differ in length") for i in (4, 6)]
    assert_same(got.columns, [events[i] for i in got.entries])


def test_collections_of_records_are_read_as_columns_are(tmp_path: Path) -> None:
    events = some_events(5, seed=3)
    branches = branches_of(events)
    records = {
        name: ak.zip({key.partition("_")[2]: array for key, array in branches.items() if key.startswith(f"{name}_")})
        for name in {key.partition("_")[0] for key in branches if "_" in key}
    }
    plain = {key: array for key, array in branches.items() if "_" not in key and f"{key[1:]}" not in records}
    got = Read(write_tree(tmp_path / "x.root", rntuple=True, **plain, **records), step_events=2)
    assert got.reports == []
    assert_same(got.columns, events)


def attempt(path: Path) -> "Read | str":
    """What a file gives, or why it is refused."""
    try:
        return Read(path, step_events=25)
    except UsageError as error:
        return str(error)


N_LONG, N_BASKET = 60, 10


def long_file(path: Path, *, rntuple: bool) -> list[Event]:
    """A file of six baskets (or clusters) a column."""
    events = some_events(N_LONG, seed=6)
    schema = schema_of([c for c in INPUT if c.name in NAMES])
    steps = [columns_of(events[i : i + N_BASKET]) for i in range(0, N_LONG, N_BASKET)]
    steps = [{name: step[name] for name in schema.by_name} for step in steps]
    write_events(path, schema, steps, rntuple=rntuple)
    return events


def smash(path: Path, *places: int, n: int = 9) -> None:
    """Overwrite bytes."""
    with path.open("r+b") as file:
        for place in places:
            file.seek(place)
            file.write(b"\xff" * n)


@pytest.mark.parametrize("step", [7, 25, 1000])
def test_a_damaged_basket_costs_its_own_entries(tmp_path: Path, step: int) -> None:
    path = tmp_path / "x.root"
    events = long_file(path, rntuple=False)
    with uproot.open(path) as file:
        energies, etas = file["Events"]["EBRecHit_energy"], file["Events"]["Photon_eta"]
        assert energies.entry_offsets == list(range(0, N_LONG + 1, N_BASKET))
        places = [
            int(branch.member("fBasketSeek")[basket]) + branch.basket_key(basket).fKeylen
            for branch, basket in ((energies, 2), (etas, 5))
        ]
    smash(path, *places)
    got = Read(path, step_events=step)
    good = [*range(20), *range(30, 50)]
    assert got.entries == good
    assert got.lost == [*range(20, 30), *range(50, 60)]
    assert_same(got.columns, [events[i] for i in good])
    assert all("\n" not in why for *_, why in got.reports)


def test_a_damaged_cluster_costs_its_own_entries(tmp_path: Path) -> None:
    path = tmp_path / "x.root"
    events = long_file(path, rntuple=True)
    whole = path.read_bytes()
    # A page of the energies of one cluster, found by what damage to it does: one cluster is lost, and nothing else.
    seen = set()
    for place in range(400, len(whole) - 400, 800):
        path.write_bytes(whole)
        smash(path, place, n=40)
        got = attempt(path)
        if isinstance(got, str):
            assert "\n" not in got
            continue
        assert sorted(got.entries + got.lost) == list(range(N_LONG)), "every entry is read or reported"
        if got.lost:
            seen.add(got.lost[0] // N_BASKET)
            assert_same(got.columns, [events[i] for i in got.entries], ["run", "luminosityBlock"])
    assert len(seen) > 2


def test_a_damaged_first_basket_is_no_reason_to_refuse_the_file(tmp_path: Path) -> None:
    path = tmp_path / "x.root"
    events = long_file(path, rntuple=False)
    with uproot.open(path) as file:
        branch = file["Events"]["EERecHit_detid"]
        place = int(branch.member("fBasketSeek")[0]) + branch.basket_key(0).fKeylen
    smash(path, place)
    got = Read(path)
    assert got.lost == list(range(10))
    assert_same(got.columns, events[10:])


@pytest.mark.parametrize("rntuple", [False, True])
def test_random_damage_is_refused_or_reported_and_never_more(tmp_path: Path, rntuple: bool) -> None:
    path = tmp_path / "x.root"
    long_file(path, rntuple=rntuple)
    whole, rng = path.read_bytes(), np.random.default_rng(7)
    outcomes = {"refused": 0, "reported": 0}
    for _ in range(25):
        data = bytearray(whole)
        n = int(rng.integers(1, 200))
        place = int(rng.integers(0, len(data) - n))
        data[place : place + n] = rng.bytes(n)
        path.write_bytes(data)
        got = attempt(path)
        if isinstance(got, str):
            outcomes["refused"] += 1
            assert all(line.startswith(f"{path}: ") for line in got.splitlines())
        else:
            outcomes["reported"] += bool(got.lost)
            assert sorted(got.entries + got.lost) == list(range(N_LONG))
    assert outcomes["refused"]


# ---- the habits and faults of .ig


@pytest.mark.parametrize("quote", ["'", '"'])
@pytest.mark.parametrize("brackets", ["[]", "()"])
def test_quotes_and_tuples_of_ig(tmp_path: Path, quote: str, brackets: str) -> None:
    got = Read(write_ig(tmp_path / "x.ig", [ig_text(e, quote, brackets) for e in EVENTS]))
    assert_same(got.columns, EVENTS)


def test_texts_of_ig_stay_as_they_are() -> None:
    text = """{'a (b)': "nan (inf) 'x'", "c": 'say "nan"', 'd': (nan, -inf, inf, 1e3), "e": [(1, 2), (3.5, -4)]}"""
    found = ig.parse(text)
    nan, *rest = found.pop("d")
    assert np.isnan(nan)
    assert rest == [-np.inf, np.inf, 1000.0]
    assert found == {"a (b)": "nan (inf) 'x'", "c": 'say "nan"', "e": [[1, 2], [3.5, -4]]}


def test_nan_and_inf_of_ig_travel_on(tmp_path: Path) -> None:
    energies = [1.0, float("nan"), float("inf"), -float("inf")]
    e = event(EBRecHit=[(i, energy) for i, energy in enumerate(energies)])
    got = Read(write_ig(tmp_path / "x.ig", [ig_text(e)])).columns
    np.testing.assert_array_equal(got["EBRecHit_energy"], energies)


GOOD = ig_text(EVENTS[0])
HEADER = '"Event_V2": [[1, 2, 3, "t"]]'

BAD_TEXTS = {
    "empty": "",
    "no text": "\x00\x01\x02",
    "torn": GOOD[: len(GOOD) // 2],
    "a list": "[1, 2]",
    "a number": "17",
    "no types": '{"Collections": {}}',
    "no event": '{"Types": {}, "Collections": {}}',
    "collections that are a list": '{"Types": {}, "Collections": [1]}',
    "types that are a list": '{"Types": [], "Collections": {"Event_V2": [[1, 2, 3, 4]]}}',
    "a field that is missing": GOOD.replace('"detid"', '"detit"'),
    "a short row": GOOD.replace('"EBRecHits_V2": [[', '"EBRecHits_V2": [[1.0], [', 2),
    "a text as energy": GOOD.replace('"Photons_V1": [[', '"Photons_V1": [["a", "b", "c", "d", "e"], ['),
    "a run that is no number": GOOD.replace('"Event_V2": [[1, ', '"Event_V2": [["one", '),
    "a run below zero": GOOD.replace('"Event_V2": [[1, ', '"Event_V2": [[-1, '),
    "a run of nan": GOOD.replace('"Event_V2": [[1, ', '"Event_V2": [[nan, '),
    "an event number without end": GOOD.replace('"Event_V2": [[1, ', f'"Event_V2": [[{"9" * 40}, '),
    "a list for a run": GOOD.replace('"Event_V2": [[1, ', '"Event_V2": [[[1, 2], '),
    "deep": "[" * 100_000,
    "lists for energies": GOOD.replace('"Photons_V1": [[', '"Photons_V1": [[1, [1, 2], [1, 2], [1, 2], 1], ['),
}


def test_a_bad_event_in_an_archive_is_left_out_alone(tmp_path: Path) -> None:
    spoilt = {name: text for name, text in BAD_TEXTS.items() if text != GOOD}
    assert len(spoilt) == len(BAD_TEXTS), "each text is bad in its own way"
    texts = [GOOD]
    for text in spoilt.values():
        texts += [text, GOOD]
    got = Read(write_ig(tmp_path / "x.ig", texts), step_events=7)
    assert got.entries == list(range(0, len(texts), 2))
    assert got.lost == list(range(1, len(texts), 2))
    for (entry, n, why), name in zip(got.reports, spoilt, strict=True):
        assert n == 1, name
        assert why.startswith(f"Events/Run_1/Event_{entry}: "), name
        assert "\n" not in why, name
        assert len(why) < 250, name
    assert_same(got.columns, [EVENTS[0]] * len(got.entries))


def test_a_huge_event_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.ig"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Events/Run_1/Event_1", b" " * (ig.MAX_EVENT_BYTES + 1))
        archive.writestr("Events/Run_1/Event_2", GOOD)
    assert path.stat().st_size < ig.MAX_EVENT_BYTES / 100, "a zip bomb"
    unzipped = []
    true_read = zipfile.ZipFile.read

    def watched(archive: Any, info: Any, *rest: Any) -> bytes:
        unzipped.append(info.filename)
        return true_read(archive, info, *rest)

    monkeypatch.setattr(zipfile.ZipFile, "read", watched)
    got = Read(path)
    assert got.reports == [
        (0, 1, f"Events/Run_1/Event_1: ValueError: {ig.MAX_EVENT_BYTES + 1} bytes in one event; "
               f"at most {ig.MAX_EVENT_BYTES} are read")
    ]  # fmt: skip
    assert got.entries == [1]
    assert unzipped == ["Events/Run_1/Event_2"]


def test_a_damaged_member_of_an_archive_is_left_out_alone(tmp_path: Path) -> None:
    path = write_ig(tmp_path / "x.ig", [GOOD] * 3)
    with zipfile.ZipFile(path) as archive:
        place = archive.getinfo("Events/Run_1/Event_1").header_offset
    smash(path, place + 80)
    got = Read(path)
    assert (got.entries, got.lost) == ([0, 2], [1])


def test_archives_that_are_none_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.ig"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert refusal(path) == f"{path}: a zip archive without Events/Run_*/Event_* files; not an .ig file"
    whole = write_ig(path, [GOOD] * 3).read_bytes()
    path.write_bytes(whole[:-30])
    assert refusal(path).startswith(f"{path}: not a readable .ig archive (File is not a zip file)")


# ---- files that are no event files


def truncated_root(path: Path) -> None:
    whole = write_hits(path, EVENTS).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])


def stub(path: Path) -> None:
    path.write_bytes(write_hits(path, EVENTS).read_bytes()[:40])


@pytest.mark.parametrize(
    ("make_it", "said"),
    [
        (lambda p: p.write_bytes(b""), "the file is empty (0 bytes); copy it again"),
        (lambda p: p.write_bytes(b"hello world, this is text"), "not an event file (it begins with b'hell')"),
        (lambda p: p.write_bytes(b"r"), "not an event file"),
        (Path.mkdir, "cannot be read (Is a directory)"),
        (lambda p: None, "cannot be read (No such file or directory); check its name"),
        (truncated_root, "may be cut short or damaged: copy it again"),
        (stub, "it may be cut short: copy it again"),
        (lambda p: p.write_bytes(b"root" + bytes(500)), "no tree 'Events' in the file (it has nothing)"),
        (lambda p: p.write_bytes(b"root" + os.urandom(500)), "not a readable ROOT file"),
        (lambda p: p.write_bytes(b"PK" + os.urandom(500)), "may be cut short: copy it again"),
        (lambda p: p.symlink_to(p), "cannot be read (Too many levels of symbolic links)"),
    ],
)
def test_what_is_no_event_file_is_told_in_one_line(tmp_path: Path, make_it: Any, said: str) -> None:
    path = tmp_path / "x.root"
    make_it(path)
    line = refusal(path)
    assert line.startswith(f"{path}: ")
    assert said in line
    assert "\n" not in line
    assert len(line.replace(str(path), "")) < 250


def test_all_problems_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.root").write_bytes(b"")
    write_tree(tmp_path / "b.root", "other", **branches_of(EVENTS))
    write_hits(tmp_path / "c.root", EVENTS)
    write_hits(tmp_path / "d.root", EVENTS, without=["Photon_pt", "EBRecHit_detid"])
    names = [str(tmp_path / f"{x}.root") for x in "abcde"]
    reader = Reader(Config.model_validate({"input": {"files": names}}))
    with pytest.raises(UsageError) as error:
        reader.setup()
    assert [line.partition(":")[0][-6:] for line in str(error.value).splitlines()] == [
        *("a.root", "b.root", "d.root", "d.root", "e.root")
    ]


# ---- which files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("b.root", "a.ig", "c.txt", "sub/d.root", "[x].root"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (["b.root"], ["b.root"]),
        (["b.root", "a.ig"], ["b.root", "a.ig"]),
        (["."], ["[x].root", "a.ig", "b.root"]),
        (["*.root"], ["[x].root", "b.root"]),
        (["?.*"], ["a.ig", "b.root", "c.txt"]),
        (["**/*.root"], ["[x].root", "b.root", "sub/d.root"]),
        (["[x].root"], ["[x].root"]),
        (["[ab].*"], ["a.ig", "b.root"]),
        (["sub", "b.root", "sub/d.root", "./b.root", "*.root"], ["sub/d.root", "b.root", "[x].root"]),
        (["c.txt"], ["c.txt"]),
        (["missing.root"], ["missing.root"]),
    ],
)
def test_which_files_are_meant(folder: Path, given: list[str], wanted: list[str]) -> None:
    assert [str(path) for path in expand(given)] == wanted
    absolute = [str(folder / text) for text in given]
    assert expand(absolute) == [folder / name for name in wanted]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "no input; name event files, globs or folders"),
        (["empty"], "empty: no .root or .ig files in this folder"),
        (["b.root", "*.hdf5"], "*.hdf5: matches no file"),
        (["nowhere/*.root"], "nowhere/*.root: matches no file"),
    ],
)
def test_what_stands_for_no_file_is_told(folder: Path, given: list[str], said: str) -> None:
    with pytest.raises(UsageError) as error:
        expand(given)
    assert str(error.value).startswith(said)


def test_the_home_folder_is_known(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(folder))
    assert expand(["~/b.root"]) == [folder / "b.root"]
    assert expand(["~/*.ig"]) == [folder / "a.ig"]
