"""Skims: complete events, byte for byte, each once, out of the right files. Real runs and files."""

import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot
from foreign_files import write_delphes, write_mlanalyzer
from physics_helpers import Processes, call, event, ig_text, sum_model, write_hits, write_ig
from uproot.containers import AsVector
from uproot.interpretation.objects import AsObjects

from stages.config import InputConfig, packaged
from stages.copying import Copy, Layout, _add, layout_of
from stages.formats import open_events
from stages.formats.tree import TreeFile
from stages.skim import accepted, any_of, of_streams
from streamer.errors import StreamerError, UsageError


@pytest.fixture
def streamer(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as made:
        yield made


def columns_of(path: Path, tree: str = "Events") -> dict[str, ak.Array]:
    with uproot.open({str(path): None}) as file:
        found: dict[str, ak.Array] = file[tree].arrays(file[tree].keys(recursive=False), how=dict)
    return found


def raw(array: ak.Array) -> tuple[Any, ...]:
    """Type and bytes of all values, and how many of them each event has."""
    counts = []
    while array.ndim > 1 and "var" in str(array.type):
        counts.append(ak.to_numpy(ak.num(array)).tolist())
        array = ak.flatten(array)
    values = ak.to_numpy(array)
    return str(values.dtype), values.tobytes(), counts


def assert_same(skimmed: Path, sources: Sequence[tuple[Path, Any]]) -> None:
    """The skim has these entries of the sources, in this order, and nothing else."""
    found = columns_of(skimmed)
    wanted = [columns_of(path) for path, _ in sources]
    assert set(found) == set(wanted[0])
    for name in wanted[0]:
        parts = [columns[name][entries] for columns, (_, entries) in zip(wanted, sources, strict=True)]
        assert raw(found[name]) == raw(ak.concatenate(parts)), name


def photons(run: int, n: int) -> list[dict[str, Any]]:
    """Every third event has no photon."""
    some = [[(20.0 + k, 0.34, 0.005)] * (k % 3) for k in range(n)]
    return [event(k, Photon=rows) | {"run": run} for k, rows in enumerate(some)]


def test_accepted_events_are_copied_complete_and_once(streamer: Processes, tmp_path: Path) -> None:
    first, other = (write_hits(tmp_path / f"{name}.root", photons(run, 90)) for run, name in ((1, "a"), (2, "b")))
    tuples = write_hits(tmp_path / "c.root", photons(3, 60), rntuple=True)
    archive = write_ig(tmp_path / "d.ig", [ig_text(e) for e in photons(4, 30)], run=4)
    rich = Path(packaged("samples/tau.root"))
    out, model = tmp_path / "out", sum_model(tmp_path / "sum.onnx")
    inputs = [first, other, tuples, archive, rich]
    mix = [word for path in inputs for word in ("--mix", f"{path}=1")]
    streamer(
        *("run", *mix, "--shuffle", "--loop", "--events", 2000, "-o", out),
        *("--tagger", f"eg={model}", "--set", "writer.segment_events=700", "--set", "writer.commit_interval=0.01"),
    ).check()
    assert len(list(out.glob("scores*.root"))) > 1
    code, told, err = call("skim", out, "--select", "nPhoton", "-o", tmp_path / "skim.root")
    assert (code, err) == (0, "")
    with_photons = np.flatnonzero(np.arange(90) % 3)
    n_rich = int(ak.sum(columns_of(rich)["nPhoton"] > 0))
    expected = [(120, "skim.root"), (40, "skim_1.root"), (20, "skim_2.ig"), (n_rich, "skim_3.root")]
    assert told.splitlines() == [f"{n} events in {tmp_path / name}" for n, name in expected]
    assert_same(tmp_path / "skim.root", [(first, with_photons), (other, with_photons)])
    assert_same(tmp_path / "skim_1.root", [(tuples, with_photons[with_photons < 60])])
    assert_same(tmp_path / "skim_3.root", [(rich, np.flatnonzero(columns_of(rich)["nPhoton"] > 0))])
    with zipfile.ZipFile(archive) as had, zipfile.ZipFile(tmp_path / "skim_2.ig") as has:
        names = [f"Events/Run_4/Event_{k}" for k in range(30) if k % 3]
        assert has.namelist() == names
        assert all(has.read(name) == had.read(name) for name in names)
    with uproot.open({str(tmp_path / "skim_1.root"): None}) as file:
        assert "RNTuple" in type(file["Events"]).__name__

    listed = tmp_path / "events.txt"
    listed.write_text("# picked\n2:2:7\n 1:2:5\n\n1:2:4 # and one that is not there\n9:9:9\n")
    code, told, err = call("skim", out, "--events", listed, "-o", tmp_path / "listed.root", "--without", "Photon_*")
    assert (code, told) == (0, f"3 events in {tmp_path / 'listed.root'}\n")
    assert "1 of the 4 listed events were not fed" in err
    found = columns_of(tmp_path / "listed.root")
    assert ak.zip((found["run"], found["event"])).tolist() == [(1, 4), (1, 5), (2, 7)]
    assert "EBRecHit_energy" in found
    assert not [name for name in found if name.startswith("Photon_")]

    moved = tmp_path / "moved"
    moved.mkdir()
    other.rename(moved / "b.root")
    told_of(out, "nPhoton", "b.root: cannot be read (No such file or directory)", tmp_path)
    somewhere_else = [first, moved / "b.root", tuples, archive, rich]
    code, told, err = call("skim", out, *somewhere_else, "--select", "nPhoton", "-o", tmp_path / "again.root")
    assert (code, err) == (0, "")
    assert_same(tmp_path / "again.root", [(first, with_photons), (moved / "b.root", with_photons)])
    write_hits(other, photons(2, 89))
    told_of(out, "nPhoton", "b.root: has 89 events, and had 90 when it was fed", tmp_path)
    write_hits(other, photons(7, 90))
    told_of(
        out, "nPhoton", "b.root: entry 1 is not run 2 lumisection 2 event 1 any more; it is not the file that", tmp_path
    )
    told_of(out, "nPhotons", "there is no column 'nPhotons'; did you mean 'nPhoton'?", tmp_path)
    told_of(out, "Photon_pt", "'Photon_pt' is a list an event; name a column of one value an event", tmp_path)
    told_of(out, "error", "no event is accepted; nothing is written", tmp_path)
    told_of(tmp_path, "nPhoton", "no run was begun there", tmp_path)


def told_of(out: Path, column: str, said: str, folder: Path) -> None:
    """A skim is refused in one line, and leaves nothing."""
    code, _, err = call("skim", out, "--select", column, "-o", folder / "refused.root")
    assert code == 2
    assert said in err
    assert len(err.splitlines()) == 1
    assert not list(folder.glob("refused*"))


def opened(path: Path, tree: str = "Events") -> TreeFile:
    file = open_events(path, InputConfig(tree=tree))
    assert isinstance(file, TreeFile)
    return file


def test_columns_of_all_types_stay_as_they_are(tmp_path: Path) -> None:
    path, n = tmp_path / "in.root", 50
    dice = np.random.default_rng(1)
    counts = dice.integers(0, 4, n)
    jagged = ak.unflatten(dice.random(counts.sum()).astype("f4"), counts)
    rows = ak.zip({"px": jagged, "ok": ak.values_astype(jagged * 2, "bool"), "id": ak.values_astype(jagged * 9, "i2")})
    arrays = {
        "run": np.arange(n, dtype="u4"),
        "fixed": dice.random((n, 3)),
        "flag": dice.random(n) > 0.5,
        "odd": dice.standard_normal(n) * np.inf,
        "small": np.arange(n, dtype="i1"),
        "name": ak.Array([f"event {k}" for k in range(n)]),
        "nlone": np.arange(n, dtype="i8"),  # no counter, in spite of its name
        "mu": rows,
    }
    arrays["odd"][::2] = np.nan
    types = {name: "string" if name == "name" else array.dtype if isinstance(array, np.ndarray) else array.type.content
             for name, array in arrays.items()}  # fmt: skip
    types["fixed"] = np.dtype(("f8", (3,)))
    with uproot.recreate(path) as file:
        tree = file.mktree("Events", types, counter_name=lambda _: "howMany")
        for first in (0, 20):
            tree.extend({name: array[first : first + 20 if first == 0 else n] for name, array in arrays.items()})
    file = opened(path)
    entries = np.array([0, 3, 4, 18, 19, 20, 49])
    with Copy(tmp_path / "out.root", layout_of(file)) as copy:
        copy.add(file, entries)
        copy.add(file, entries[:2])
    assert copy.n_events == 9
    assert_same(tmp_path / "out.root", [(path, entries), (path, entries[:2])])
    with uproot.open(tmp_path / "out.root") as made:
        assert made["Events"]["mu_px"].count_branch.name == "howMany"


def test_a_column_that_cannot_be_read_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    path = write_hits(tmp_path / "in.root", photons(1, 30))
    with uproot.open(path) as file:
        branch = file["Events"]["Photon_eta"]
        place, size = int(branch.member("fBasketSeek")[0]), int(branch.member("fBasketBytes")[0])
    data = bytearray(path.read_bytes())
    data[place + 40 : place + size] = bytes(size - 40)
    path.write_bytes(data)
    file = opened(path)
    with (
        pytest.raises(StreamerError, match=r"in.root: entries 0 to 29 cannot be read: .*--without") as error,
        Copy(tmp_path / "out.root", layout_of(file)) as copy,
    ):
        copy.add(file, np.array([3, 5]))
    assert len(str(error.value).splitlines()) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["in.root"]
    with Copy(tmp_path / "out.root", layout_of(file, ["Photon_eta"])) as copy:
        copy.add(file, np.array([3, 5]))
    assert columns_of(tmp_path / "out.root")["event"].tolist() == [3, 5]


def test_counters_and_vectors_that_cannot_be_shared_get_counters_of_their_own() -> None:
    jagged = uproot.AsJagged(uproot.AsDtype(">f4"))
    counter = SimpleNamespace(name="nX", interpretation=uproot.AsDtype(">u1"))
    vector = uproot.AsJagged(uproot.AsDtype(">f4"), header_bytes=10)
    layout, taken = Layout("Events", "TTree", ()), ["nX", "X_a", "v", "nv"]
    assert _add(layout, SimpleNamespace(name="nX", interpretation=counter.interpretation, count_branch=None), taken)
    assert _add(layout, SimpleNamespace(name="X_a", interpretation=jagged, count_branch=counter), taken)
    assert _add(layout, SimpleNamespace(name="v", interpretation=vector, count_branch=None), taken)
    assert list(layout.plain) == ["nX"]
    assert {counter: list(kinds) for counter, kinds in layout.lists.items()} == {"nX_a": ["X_a"], "nv_": ["v"]}
    nested = AsObjects(AsVector(True, AsVector(False, np.dtype(">f4"))))
    assert not _add(layout, SimpleNamespace(name="vv", interpretation=nested, count_branch=None), taken)


def test_what_was_accepted_in_any_pass_is_accepted(tmp_path: Path) -> None:
    path = tmp_path / "scores.root"
    columns = {
        "sourceFile": np.array([0, 1, 0, 0, 1], "i4"),
        "sourceEntry": np.array([5, 5, 2, 5, 5]),
        **{name: np.full(5, 7, "u4") for name in ("run", "luminosityBlock")},
        "event": np.array([50, 51, 20, 50, 51], "u8"),
        "HLT_A": np.array([False, False, True, True, False]),
        "HLT_B": np.array([False, True, False, True, False]),
        "Stream_physics": np.array([False, False, False, False, True]),
    }
    with uproot.recreate(path) as file:
        file.mktree("Events", {name: array.dtype for name, array in columns.items()}).extend(columns)
    found = accepted([path], any_of(["HLT_A"]))
    assert {number: one.entries.tolist() for number, one in found.items()} == {0: [2, 5]}
    assert found[0].numbers.tolist() == [[7, 7], [7, 7], [20, 50]]
    assert list(accepted([path], of_streams(["physics"]))) == [1]
    with pytest.raises(UsageError, match="there is no column 'Stream_physic'; did you mean 'Stream_physics'"):
        accepted([path], of_streams(["physic"]))
    found = accepted([path], any_of(["HLT_A", "HLT_B"]))
    assert {number: one.entries.tolist() for number, one in found.items()} == {0: [2, 5], 1: [5]}


@pytest.mark.parametrize(("write", "tree"), [(write_delphes, "Delphes"), (write_mlanalyzer, "fevt/RHTree")])
def test_trees_of_other_kinds_are_copied_as_they_are(tmp_path: Path, write: Any, tree: str) -> None:
    tower = {"Tower_eta": [0.1], "Tower_phi": [0.1], "Tower_emEnergy": [9.0]}
    image = np.random.default_rng(1).random((280, 360)).astype("f4")
    events = [tower | {"images": {"ECAL": k * image}} for k in range(3)]
    path = write(tmp_path / "in.root", events)
    file = open_events(path, InputConfig())
    assert isinstance(file, TreeFile)
    with Copy(tmp_path / "out.root", layout_of(file)) as copy:
        copy.add(file, np.array([0, 2]))
    found, wanted = columns_of(tmp_path / "out.root", tree), columns_of(path, tree)
    assert list(found) == list(wanted)
    for name, array in wanted.items():
        assert raw(found[name]) == raw(array[[0, 2]]), name
    assert type(open_events(tmp_path / "out.root", InputConfig())) is type(file)
