"""What a run leaves of its ledger: JSON, the lumi mask, and a picture."""

import json
from collections import Counter
from pathlib import Path

import pytest
from physics_helpers import call, sum_model

from stages.books import Books
from stages.config import packaged
from stages.ledger_files import lumi_mask

MENU = """[paths]
E2E_Photon20_v1 = "Photon: pt > 20"
E2E_Photon90_v1 = { expression = "Photon: pt > 90", prescale = 2 }
"""


def test_only_complete_lumisections_are_in_the_mask() -> None:
    fed = Counter({(1, 1): 10, (1, 2): 10, (1, 3): 10, (1, 5): 10, (2, 1): 10, (2, 2): 10, (2, 3): 10, (2, 4): 10})
    books = Books(
        fed=fed,
        kept=fed - Counter({(1, 3): 1, (2, 2): 2}),
        dropped=Counter({(2, 2): 2}),
        errors=Counter({(2, 3): 1}),
        shed=Counter({(2, 4): 3}),
    )
    assert lumi_mask(books) == {"1": [[1, 2], [5, 5]], "2": [[1, 1]]}


def test_a_run_leaves_them(tmp_path: Path) -> None:
    out, menu = tmp_path / "out", tmp_path / "menu.toml"
    menu.write_text(MENU)
    model = sum_model(tmp_path / "sum.onnx")
    code, _, err = call(
        *("run", packaged("samples/egamma.root"), "--output", out, "--loop", "--feed", "poisson 1000"),
        *("--for", "3 s", "--tagger", f"eg={model}", "--menu", menu),
    )
    assert code == 0, err
    code, told, _ = call("ledger", out, "--json", "--picture", tmp_path / "run.svg")
    assert code == 0
    assert json.loads((out / "ledger.json").read_text()) == json.loads(told)
    mask = json.loads((out / "lumi_mask.json").read_text())
    lumis = json.loads(told)["lumisections"]
    assert sum(last - first + 1 for ranges in mask.values() for first, last in ranges) == len(lumis)
    drawn = (tmp_path / "run.svg").read_text()
    for text in ("rate", "latency", "dead time", "what became of events", "paths", "E2E_Photon90_v1"):
        assert f"<!-- {text}" in drawn
    code, _, err = call("ledger", out, "--picture", tmp_path / "none" / "run.png")
    assert code == 2
    assert "cannot be written" in err


@pytest.mark.parametrize("history", [None, "not JSON", "[]"])
def test_a_picture_needs_no_history(tmp_path: Path, history: str | None) -> None:
    from stages.ledger_plot import draw

    (tmp_path / "books").mkdir()
    if history is not None:
        (tmp_path / "books" / "history.json").write_text(history)
    draw(tmp_path, Books(fed=Counter({(1, 1): 10}), kept=Counter({(1, 1): 10})), tmp_path / "run.png")
    assert (tmp_path / "run.png").stat().st_size > 1000
