"""Two samples side by side, as `streamer compare` counts and draws them."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import uproot
from PIL import Image

from stages.comparison import ENERGY_EDGES, PARTS, Sample, count, draw, rows
from stages.config import Config, packaged
from stages.simulation.sample import generate_file
from streamer.errors import UsageError

QG, TAU, EGAMMA = (Path(packaged(f"samples/{name}.root")) for name in ("qg", "tau", "egamma"))


@pytest.fixture(scope="module")
def samples() -> tuple[Sample, Sample]:
    return count("qg", [QG], Config(), 1000), count("tau", [TAU], Config(), 50)


def test_it_counts_what_is_in_the_files(samples: tuple[Sample, Sample]) -> None:
    qg, tau = samples
    assert tau.n_events == 50
    with uproot.open(QG) as file:
        energies = file["Events"]["EBRecHit_energy"].array(library="np")
    assert qg.n_events == len(energies)
    high = [(energy > PARTS["EB hits"].least).sum() for energy in energies]
    np.testing.assert_array_equal(qg.multiplicity["EB hits"], high)
    assert qg.spectrum["EB hits"].sum() == pytest.approx(np.mean(high))
    assert qg.spectrum["EB hits"].size == len(ENERGY_EDGES) - 1
    both = qg.multiplicity["HB hits"].sum() + qg.multiplicity["HE hits"].sum()
    with uproot.open(QG) as file:
        assert both == (np.concatenate(file["Events"]["HBHERecHit_energy"].array(library="np")) > 1.0).sum()
    assert "BPIX1" in qg.occupancy
    assert "TIB" not in qg.occupancy


def test_harder_jets_give_more_of_everything(samples: tuple[Sample, Sample]) -> None:
    table = {what: ratio for what, _, _, ratio in rows(*samples)}
    assert table["EB hits above 0.1 GeV"] > 1.2
    assert table["HB hits above 1 GeV"] > 1.2
    assert table["pixels of TrackPt"] > 1.2
    assert all(name.split()[-1] != "TOB" for name in table)  # neither file has strips


def test_one_kind_may_lack_what_the_other_has(samples: tuple[Sample, Sample], tmp_path: Path) -> None:
    bare = count("egamma", [EGAMMA], Config(), 100)
    draw(samples[0], bare, tmp_path / "compare.png")
    assert Image.open(tmp_path / "compare.png").size[0] > 1000


def test_the_command_draws_and_tells(tmp_path: Path) -> None:
    out = tmp_path / "c.svg"
    command = [sys.executable, "-m", "streamer", "compare", str(QG), str(TAU), "--events", "20", "-o", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "pixels of ECAL" in done.stdout
    assert out.read_text().lstrip().startswith("<?xml")


def test_refusals(samples: tuple[Sample, Sample], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing"):
        count("x", [tmp_path / "nothing.root"], Config(), 10)
    bare = tmp_path / "bare.root"
    generate_file(10, bare, 1)
    with pytest.raises(UsageError, match=r"holds other collections than .*; compare files of one kind"):
        count("x", [bare, QG], Config(), 100)
    with pytest.raises(UsageError, match="cannot be written"):
        draw(*samples, tmp_path / "c.xyz")
