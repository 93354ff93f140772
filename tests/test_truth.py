"""Truth labels go with their objects into scores.root, and the end of a run tells each tagger's AUC by them."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot
from physics_helpers import Event, Process, Processes, call, event, fill_disk, read_scores, small_disk, write_hits
from pydantic import ValidationError

from stages import records, truth
from stages.config import Config, packaged
from stages.detector.ecal import eb_detid
from stages.results import SCORES, write_scores
from stages.stored import SUFFIX
from stages.truth import read, tell
from stages.writer import Writer
from streamer.block import Block, Columns

SAMPLE = Path(packaged("samples/egamma.root"))
TAGGERS = {
    "eg": {"objects": "Photon"},
    "top": {"objects": "FatJet", "model": "none"},
    "tau": {"objects": "FatJet", "model": "none"},
    "all": {"objects": "Event", "model": "none"},
}

Rows = Sequence[tuple[int, float]]
"""(label, score) of each object of an event."""


def counted_auc(signal: Any, background: Any) -> float:
    """Pair by pair, in how many the signal is above; half where they are equal."""
    more = sum(float((value > background).sum() + 0.5 * (value == background).sum()) for value in np.asarray(signal))
    return more / (len(signal) * len(background))


# ---- the stream


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("truth")


@pytest.fixture(scope="module")
def streamed(folder: Path) -> Iterator[dict[str, Process]]:
    """The packaged electrons and photons once, and one and a half times as an RNTuple by two of each stage."""
    twice = ("--replicas", "framer=2,cropper=2,tagger=2", "--set", "writer.format=rntuple")
    with Processes(folder) as streamer:
        made = {
            "once": streamer("run", SAMPLE, "--output", folder / "once"),
            "loop": streamer("run", SAMPLE, "--output", folder / "loop", "--loop", "--events", 3_750, *twice),
        }
        yield {name: process.check() for name, process in made.items()}


def told(process: Process) -> tuple[float, float, float, int, int]:
    """AUC and error, rejection, signal and background."""
    number = r"([\d.,]+)"
    row = rf"eg\s+{number} \+- {number}\s+{number} \+- [\d.]+\s+{number}\s+{number}\s+roc_eg.png"
    found = re.search(row, process.out)
    assert found, process.out
    area, error, rejection, *n = (text.replace(",", "") for text in found.groups())
    return float(area), float(error), float(rejection), int(n[0]), int(n[1])


def test_the_auc_is_that_of_the_labels_in_the_input(streamed: dict[str, Process], folder: Path) -> None:
    with uproot.open(SAMPLE) as file:
        labels = np.array([row[0] for row in file["Events"]["Photon_genLabel"].array().tolist()])
    scores = np.array([row[0] for row in read_scores(folder / "once/scores.root")["Photon_egScore"]])
    signal, background = scores[(scores >= 0) & (labels == 1)], scores[(scores >= 0) & (labels == 0)]
    area, error, rejection, *n = told(streamed["once"])
    assert n == [signal.size, background.size]
    assert sum(n) > 2400
    assert area == pytest.approx(counted_auc(signal, background), abs=6e-5)
    assert 0.75 < area < 0.85, "as its card says"
    assert 0.003 < error < 0.01
    cut = np.median(signal)
    assert rejection == pytest.approx(background.size / (background >= cut).sum(), rel=0.03)


def test_events_that_come_again_count_once(streamed: dict[str, Process], folder: Path) -> None:
    assert len(read_scores(folder / "loop/scores.root")["event"]) == 3_750
    assert told(streamed["loop"]) == told(streamed["once"])
    once = "each event of the input counts once, however often it was fed"
    assert once in streamed["loop"].out
    assert once not in streamed["once"].out


def test_there_is_a_picture(streamed: dict[str, Process], folder: Path) -> None:
    for name, process in streamed.items():
        assert process.complaints == []
        assert sorted(path.name for path in (folder / name).iterdir()) == [
            "books",
            "ledger.json",
            "lumi_mask.json",
            "quality.json",
            "roc_eg.png",
            "scores.root",
        ]
        assert (folder / name / "roc_eg.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("name", ["once", "loop"])
def test_labels_come_out_with_their_objects(streamed: dict[str, Process], folder: Path, name: str) -> None:
    with uproot.open(SAMPLE) as file:
        there = {key: file["Events"][key].array().tolist() for key in ("event", "Photon_genLabel", "Photon_pt")}
    got = read_scores(folder / name / "scores.root")
    for key, wanted in there.items():
        assert got[key] == [wanted[k % len(wanted)] for k in range(len(got["event"]))]


def some_events(labels: Sequence[Sequence[int]]) -> list[Event]:
    """Events with a photon for each label, each with its energy in one crystal."""
    return [
        event(
            number,
            EBRecHit=[(int(eb_detid(20, 11 + 60 * k)), 10.0 + number + k) for k in range(len(row))],
            Photon=[(30.0, 0.34, 0.005 + k * np.pi / 3, 0, label) for k, label in enumerate(row)],
        )
        for number, row in enumerate(labels)
    ]


def test_labels_of_all_sorts_keep_their_places(tmp_path: Path, tiny_model: Path) -> None:
    labels = [[1, 0, -1], [], [5], [0, 0], [-1, 127, 1, 0]]
    many = write_hits(tmp_path / "many.root", some_events(labels), rntuple=True)
    none = write_hits(tmp_path / "none.root", some_events([[0], [1]]), without=["Photon_genLabel"])
    model = ("--tagger", f"eg={tiny_model}", "--output")
    with Processes(tmp_path) as streamer:
        made = {
            "many": streamer("run", many, *model, tmp_path / "many", "--set", "feed.block_events=1"),
            "none": streamer("run", none, *model, tmp_path / "none"),
        }
        for process in made.values():
            process.check()
    assert read_scores(tmp_path / "many/scores.root")["Photon_genLabel"] == labels
    # Signal: 10 of event 0 and 16 of event 4; background: 11, 13, 14 and 17.
    assert told(made["many"])[:1] == (pytest.approx((0 + 3) / 8, abs=1e-4),)
    assert told(made["many"])[3:] == (2, 4)
    assert read_scores(tmp_path / "none/scores.root")["Photon_genLabel"] == [[-1], [-1]]
    assert made["none"].out.splitlines()[-1].startswith("scores ")
    assert sorted(path.name for path in (tmp_path / "none").iterdir()) == [
        "books",
        "ledger.json",
        "lumi_mask.json",
        "quality.json",
        "scores.root",
    ]


def test_no_score_is_called_as_the_label() -> None:
    with pytest.raises(ValidationError, match="'score' cannot be 'genLabel', which is a column of Jet already"):
        Config.model_validate({"taggers": {"mine": {"objects": "Jet", "model": "none", "score": "genLabel"}}})


# ---- what is read of scores.root


def block(photons: Sequence[Rows], fat_jets: Sequence[Rows] | None = None, replay: int = 0, file: int = 0) -> Block:
    """Scored events; the second tagger of the large jets turns the score of the first around."""
    config, n = Config.model_validate({"taggers": TAGGERS}), len(photons)
    schema = records.scores(config)
    columns: Columns = schema.empty(n)
    columns["sourceFile"] = np.full(n, file, np.int32)
    columns["sourceEntry"] = np.arange(n, dtype=np.int64)
    columns["replay"] = np.full(n, replay, np.uint32)
    for objects, rows in (("Photon", photons), ("FatJet", fat_jets or [[]] * n)):
        flat = [pair for row in rows for pair in row]
        columns[f"n{objects}"] = np.array([len(row) for row in rows], np.int32)
        for name, column in schema.by_name.items():
            if column.per == objects:
                columns[name] = np.zeros(len(flat), column.wire_dtype)
        columns[f"{objects}_genLabel"] = np.array([label for label, _ in flat], np.int8)
        scores = np.array([score for _, score in flat], np.float32)
        if objects == "Photon":
            columns["Photon_egScore"] = scores
        else:
            columns |= {"FatJet_topScore": scores, "FatJet_tauScore": np.where(scores < 0, scores, 1 - scores)}
    schema.check(columns, n)
    return Block(1, n, columns)


def written(folder: Path, *blocks: Block, kind: str = "ttree", more: dict[str, Any] | None = None) -> Path:
    config = Config.model_validate({"taggers": TAGGERS, "writer": {"dir": folder, "format": kind}, **(more or {})})
    path = (folder / SCORES).with_suffix(SUFFIX[config.writer.format])
    write_scores(path, iter(blocks), config, {})
    return path


def test_all_files_of_a_run_count(tmp_path: Path) -> None:
    second = written(tmp_path, block([[(1, 0.5)], [(0, 0.25)]], file=1)).rename(tmp_path / "scores_1.root")
    first = written(tmp_path, block([[(1, 0.75)], [(0, 0.25)]]))
    (alone, *_), _ = read([first])
    (both, *_), _ = read([first, second])
    assert (alone.n.tolist(), both.n.tolist()) == ([0, 1, 1], [0, 2, 2])


def by_name(path: Path) -> dict[str, truth.Scored]:
    return {found.tagger: found for found in read([path])[0]}


def pairs(found: truth.Scored) -> list[tuple[int, float]]:
    return list(zip(found.truth.tolist(), np.round(found.scores, 6).tolist(), strict=True))


@pytest.mark.parametrize("kind", ["ttree", "rntuple", "parquet"])
@pytest.mark.parametrize("step", [1, 2, 1000])
def test_what_has_a_label_and_a_score_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, step: int
) -> None:
    monkeypatch.setattr(truth, "READ_EVENTS", step)
    photons = [[(1, 0.5), (0, -1.0)], [], [(-1, 0.25), (0, 0.125)], [(1, 0.0)], [(3, 0.5)]]
    jets = [[(2, 0.25)], [(1, 0.75), (0, 0.5)], [(0, -1.0), (-1, 0.5)], [(0, 0.625)], []]
    found = by_name(written(tmp_path, block(photons, jets), kind=kind))
    assert found.keys() == {"eg", "top", "tau"}, "whole events have no label"
    assert pairs(found["eg"]) == [(0, 0.125), (1, 0.5), (1, 0.0)]
    assert pairs(found["top"]) == [(0, 0.5), (0, 0.625), (1, 0.75)]
    assert pairs(found["tau"]) == [(0, 0.5), (0, 0.375), (1, 0.75)]
    assert [found[name].n[0] for name in ("eg", "top", "tau")] == [1, 1, 1]


@pytest.mark.parametrize("step", [1, 2, 3, 1000])
def test_an_event_counts_in_the_first_pass_that_scores_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    monkeypatch.setattr(truth, "READ_EVENTS", step)
    first = [[(1, 0.5), (0, 0.25)], [(0, -1.0)], [(1, -1.0), (0, 0.125)], []]
    second = [[(1, 0.75), (0, 0.75)], [(0, 0.375)], [(1, 0.75), (0, 0.75)], []]
    path = written(tmp_path, *(block(rows, replay=k) for k, rows in enumerate([first, second, second])))
    (found, *_), n_passes = read([path])
    assert n_passes == 3
    assert sorted(pairs(found)) == [(0, 0.125), (0, 0.25), (0, 0.375), (1, 0.5)]


def test_events_of_two_files_are_not_taken_for_each_other(tmp_path: Path) -> None:
    blocks = [block([[(1, 0.5)], [(0, 0.25)]], replay=replay, file=file) for replay in (0, 1) for file in (0, 1)]
    assert by_name(written(tmp_path, *blocks))["eg"].n.tolist() == [0, 2, 2]


def test_reading_ends_with_a_pass_that_adds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(truth, "READ_EVENTS", 2)
    seen: list[int] = []
    columns = truth._columns
    monkeypatch.setattr(truth, "_columns", lambda *args: seen.append(args[2]) or columns(*args))  # type: ignore[func-returns-value]
    rows: list[Rows] = [[(1, 0.5)], [(0, 0.25)]]
    read([written(tmp_path, *(block(rows, replay=replay) for replay in range(50)))])
    assert set(seen) == {99, 0, 2, 4}, "who is in the last pass, two passes, and the beginning of the third"


@pytest.mark.parametrize(
    ("files", "passes"),
    [
        ({"": [(0, 0), (1, 0)], "_1": [(1, 1), (0, 0)], "_2": [(1, 1), (1, 2)], "_10": [(0, 1), (1, 3)]}, 4),
        ({"": [(0, 0), (1, 0)], "_1": [(1, 1), (1, 2)], "_2": [(1, 3), (1, 4)], "_10": [(0, 0), (0, 0)]}, 1),
    ],
)
def test_the_passes_of_a_mix_are_looked_for_in_the_last_file_and_each_event_counts_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, list[tuple[int, int]]], passes: int
) -> None:
    """Files with (input, pass) of their blocks; one input may be so seldom that it is not in the last file."""
    monkeypatch.setattr(truth, "READ_EVENTS", 3)
    mix = {"input": {"files": ["a", "b"], "weights": [1, 1]}}
    for name, fed in files.items():
        blocks = [block([[(1, 0.5)], [(0, 0.25)]], replay=replay, file=file) for file, replay in fed]
        blocks = [one.with_columns({**one.columns, "sourceInput": one.columns["sourceFile"]}) for one in blocks]
        written(tmp_path, *blocks, more=mix).rename(tmp_path / f"part{name}.root")
    parts = [path.rename(path.with_name(path.name.replace("part", "scores"))) for path in tmp_path.glob("part*.root")]
    asked: list[set[str]] = []
    columns = truth._columns
    monkeypatch.setattr(truth, "_columns", lambda *args: asked.append(args[1]) or columns(*args))  # type: ignore[func-returns-value]
    (found, *_), n_passes = read(parts)
    assert (n_passes, found.n.tolist()) == (passes, [0, 2, 2])
    assert asked.count({"replay"}) == 2, "four events, three at a time"


def test_so_many_objects_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(truth, "READ_EVENTS", 10)
    monkeypatch.setattr(truth, "MOST", 25)
    rows: list[Rows] = [[(0, 0.25)]] * 97 + [[(1, 0.5)]] * 20 + [[(1, 0.75), (0, 0.5)]] * 30
    for replays in ([0], [0, 1]):
        path = written(tmp_path, *(block(rows, replay=replay) for replay in replays))
        found = by_name(path)["eg"]
        assert pairs(found) == [(0, 0.25)] * 25 + [(1, 0.5)] * 20 + [(1, 0.75)] * 5
        tell(path.parent)
        assert "eg: by the first 25 of each kind at most" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("photons", "said"),
    [
        ([[(-1, 0.5)], [(-1, 0.25), (-1, -1.0)], []], ""),
        ([], ""),
        ([[(0, 0.5), (0, 0.25)], [(1, -1.0)]], "eg: no AUC, all 2 labelled Photon are background"),
        ([[(1, 0.5)], [(-1, 0.5)]], "eg: no AUC, all 1 labelled Photon are signal"),
        ([[(1, -1.0)], [(0, -1.0)]], "eg: no AUC, none of the labelled Photon has a score"),
        ([[(3, 0.5), (1, 0.5)], [(2, 0.5)]], "eg: no AUC, of 3 labelled Photon, 1 are signal and 0 background"),
    ],
)
def test_without_two_kinds_there_is_one_line_and_without_labels_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], photons: list[Rows], said: str
) -> None:
    (tmp_path / "roc_eg.png").write_bytes(b"of an earlier run")
    tell(written(tmp_path, block(photons)).parent)
    out, err = capsys.readouterr()
    assert (out.strip(), err) == (said, "")
    assert [path.name for path in tmp_path.iterdir()] == [SCORES]


def test_a_perfect_tagger_leaves_no_background(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tell(written(tmp_path, block([[(1, 0.75), (0, 0.25)]] * 4)).parent)
    assert re.search(r"eg\s+1.0000 \+- 0.0000\s+no background left\s+4\s+4\s+roc_eg.png", capsys.readouterr().out)


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, block([[(1, 0.75), (0, 0.25)]]))
    (tmp_path / "roc_eg.png").mkdir()
    tell(path.parent)
    out, err = capsys.readouterr()
    assert re.search(r"eg\s+1.0000 .* none", out)
    assert err == f"streamer: {tmp_path / 'roc_eg.png'}: cannot be written (Is a directory); the scores are complete\n"
    assert sorted(left.name for left in tmp_path.iterdir()) == ["roc_eg.png", SCORES]


def test_a_full_disk_costs_the_picture_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with small_disk(tmp_path / "disk", "1m") as disk:
        path = written(disk, block([[(1, 0.75), (0, 0.25)]]))
        fill_disk(disk / "ballast")
        tell(path.parent)
        out, err = capsys.readouterr()
        assert re.search(r"eg\s+1.0000 .* none", out)
        assert "roc_eg.png: cannot be written (No space left on device); the scores are complete" in err
        assert err.count("\n") == 1
        assert sorted(left.name for left in disk.iterdir()) == ["ballast", SCORES]


def test_scores_that_cannot_be_read_back_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / SCORES).write_bytes(b"root" + bytes(50))
    tell(tmp_path)
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"streamer: {tmp_path}: the scores cannot be read back for the AUC (")


def test_only_a_runs_own_files_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[Rows] = [[(1, 0.75)], [(0, 0.25)]]
    for name in (
        "scores_1.root",
        "scores-1.root",
        "scores-1_12.root",
        "scores_all.root",
        "scores-2_.root",
        "scores2.root",
    ):
        written(tmp_path, block(rows)).rename(tmp_path / name)
    written(tmp_path, block(rows))
    tell(tmp_path)
    out, err = capsys.readouterr()
    assert err == ""
    assert re.search(r"eg\s+1.0000.* 4 +4 +roc_eg.png", out)


async def test_a_run_that_is_finished_later_has_its_auc_too(tmp_path: Path) -> None:
    config = Config.model_validate({"taggers": TAGGERS, "writer": {"dir": tmp_path}})
    writer = Writer(config)
    writer.setup()
    writer.write(block([[(1, 0.75), (0, 0.25)]]))
    await writer.sync()
    writer.close()
    assert not (tmp_path / SCORES).exists()
    code, out, err = call("finish", tmp_path)
    assert (code, err) == (0, "")
    assert re.search(r"eg\s+1.0000", out)
    assert (tmp_path / "roc_eg.png").exists()
