"""What is told of the inputs of a mix: from files of scores whose numbers are known."""

import json
import re
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np
import pytest
import uproot

from stages import mix_table
from stages.config import Config
from stages.manifest import OpenManifest
from stages.mix_table import Scores, efficiency, read, tell


def written(path: Path, n: int, **more: Any) -> Path:
    """Two photons an event, of which one has a score; every tenth event is signal, and every 40th failed."""
    number = np.arange(n)
    scores = np.stack([number / n, np.full(n, -1.0)], axis=1).astype(np.float32)
    columns = {"sourceInput": (number % 10 > 0).astype("i4"), "error": (number % 40 == 1).astype("u1"), **more}
    jagged = ak.from_regular(ak.Array(scores))
    types = {name: array.dtype for name, array in columns.items()} | {"Photon": "var * {egScore: float32}"}
    with uproot.recreate(path) as file:
        file.mktree("Events", types).extend(columns | {"Photon": ak.zip({"egScore": jagged})})
        file["streamer_taggers"] = json.dumps({"eg": {"objects": "Photon", "score": "egScore"}})
    return path


def begin(folder: Path, **feed: Any) -> None:
    given = {"files": ["data/signal.root", "data/background.root"], "weights": [1, 9]}
    config = Config.model_validate({"input": given, "feed": feed}).model_dump(mode="json")
    (folder / "books").mkdir()
    manifest = OpenManifest(folder / "books" / "writer-0.manifest")
    manifest.begin({"run": "a", "config": config})
    manifest.close()


def test_inputs_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mix_table, "READ_EVENTS", 130)
    paths = [written(tmp_path / f"{k}.root", 1000) for k in range(2)]
    signal, background = read(paths, ["a", "b"], [1, 9])
    assert (signal.name, signal.share, signal.n_events, signal.n_errors) == ("a", 0.1, 200, 0)
    assert (background.share, background.n_events, background.n_errors) == (0.9, 1800, 50)
    assert signal.scores["eg"].n == 200
    assert signal.scores["eg"].figures() == pytest.approx((0.495, 0.09, 0.495, 0.9), abs=0.01)
    assert background.scores["eg"].n == 1800
    assert not signal.accepted


def test_quantiles_are_of_so_many_scores_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mix_table, "MOST", 10)
    scores = Scores()
    for value in (0.25, 0.5, 1.0):
        scores.add(np.full(4, value, np.float32))
    assert scores.n == 12
    mean, low, middle, high = scores.figures()
    assert (mean, low, middle, high) == pytest.approx((7 / 12, 0.25, 0.5, 1.0))
    assert np.isnan(Scores().figures()).all()


def test_paths_have_an_efficiency_for_each_input(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "150")
    number = np.arange(1000)
    paths = {"HLT_Tight": number % 20 == 0, "HLT_Tight_prescale": np.ones(1000, "u4"), "HLT_Never": number < 0}
    written(tmp_path / "scores.root", 1000, **paths)
    begin(tmp_path, rate=2000, arrivals="poisson")
    tell(tmp_path)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1][:5] == ["signal.root", "10.00%", "100", "10.00%", "0"]
    assert lines[2][:5] == ["background.root", "90.00%", "900", "90.00%", "25"]
    assert lines[3] == ["tagger", "input", "scored", "mean", "10%", "50%", "90%"]
    assert lines[4][:3] == ["eg", "signal.root", "100"]
    assert lines[5] == ["background.root", "900", "0.500", "0.101", "0.500", "0.899"]
    assert lines[6] == ["path", "input", "accepted", "efficiency", "rate"]
    assert lines[7] == ["HLT_Tight", "signal.root", "50", "50.000%", "+-", "5.000%", "100", "+-", "14", "Hz"]
    assert lines[8] == ["background.root", "0", "0.000%", "+-", "0.111%", "0", "+-", "0", "Hz"]
    assert [line[0] for line in lines[9:]] == ["HLT_Never", "background.root"]


def test_nothing_is_told_where_there_is_no_mix_and_one_line_where_it_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(tmp_path)
    tell(tmp_path)
    assert capsys.readouterr() == ("", "")
    (tmp_path / "scores.root").write_bytes(b"root, but no more")
    tell(tmp_path)
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == 1
    assert "the scores cannot be read back for the table of the mix" in err


def test_what_was_joined_beside_them_does_not_count_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    begin(tmp_path)
    for name in ("scores.root", "scores_1.root", "scores_all.root"):
        written(tmp_path / name, 500)
    tell(tmp_path)
    assert re.search(r"background.root +90.00% +900 ", capsys.readouterr().out)


def test_efficiencies_have_binomial_errors() -> None:
    assert efficiency(25, 100) == pytest.approx((0.25, np.sqrt(0.25 * 0.75 / 100)))
    assert efficiency(0, 100) == pytest.approx((0.0, np.sqrt(0.01 * 0.99 / 100)))
    assert efficiency(100, 100) == pytest.approx((1.0, np.sqrt(0.01 * 0.99 / 100)))
    assert np.isnan(efficiency(0, 0)).all()
