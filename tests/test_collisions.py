"""Collisions by PYTHIA, their truth, and the files that `streamer generate` makes of them."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import uproot
from typer.testing import CliRunner

from stages.config import Config, InputConfig
from stages.detector.hcal import hcal_tower
from stages.formats import open_events
from stages.network_commands import add_networks
from stages.simulation.labels import label_background, label_partons, label_taus, label_tops
from stages.simulation.processes import PROCESSES
from stages.simulation.response import DEPOSIT, PX, PY, PZ, X0, Q
from stages.simulation.sample import command_of, generate_file, settings_of
from stages.sources import choose, look
from streamer.errors import UsageError

pythia8mc = pytest.importorskip("pythia8mc", reason="needs the extra 'generate'")
pytest.importorskip("fastjet", reason="needs the extra 'generate'")

from stages.simulation.collisions import Generator  # noqa: E402
from stages.simulation.events import Simulator  # noqa: E402


def equal(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def branches(path: Path) -> dict[str, Any]:
    with uproot.open(path) as file:
        arrays = file["Events"].arrays(library="np")
    return {name: np.concatenate(a) if a.dtype == object else a for name, a in arrays.items()}


@pytest.fixture(scope="module")
def made() -> dict[str, Any]:
    """A few collisions of every source."""
    settings = {s.truth + s.name: s.settings for process in PROCESSES.values() for s in process.sources}
    return {name: Generator(own).make(40, 7) for name, own in settings.items()}


class TestTruth:
    def test_charge_is_that_of_two_protons(self, made: dict[str, Any]) -> None:
        """Wrong charges, and particles that were forgotten, would show."""
        for collisions in made.values():
            assert [rows[:, Q].sum() for rows in collisions.particles] == [2] * 40

    def test_energy_is_that_of_two_beams(self, made: dict[str, Any]) -> None:
        """But for neutrinos, which the detector does not see."""
        for collisions in (made["partonsQCD"], made["tausH to tau tau"]):
            energy = np.array([rows[:, DEPOSIT].sum() for rows in collisions.particles])
            momentum = np.array([rows[:, [PX, PY, PZ]].sum(axis=0) for rows in collisions.particles])
            assert np.median(energy) == pytest.approx(13_000, rel=0.02)
            assert np.median(abs(momentum), axis=0).max() < 100

    def test_two_partons_two_tops_two_taus(self, made: dict[str, Any]) -> None:
        assert {len(rows) for rows in made["partonsQCD"].partons} == {2}
        assert {len(rows) for rows in made["topsttbar"].tops} == {2}
        taus = np.array([len(rows) for rows in made["tausH to tau tau"].taus])
        assert set(taus) <= {0, 1, 2}
        assert taus.mean() / 2 == pytest.approx(0.648, abs=0.12)  # hadronic branching fraction

    def test_the_quarks_of_a_top_make_its_mass(self) -> None:
        """Directions do not show it, the particles around them do: three separate jets add up."""
        collisions = Generator(PROCESSES["top"].sources[0].settings).make(60, 3)
        masses = []
        for rows, tops in zip(collisions.particles, collisions.tops, strict=True):
            pt = np.hypot(rows[:, PX], rows[:, PY])
            eta, phi = np.arcsinh(rows[:, PZ] / np.maximum(pt, 1e-9)), np.arctan2(rows[:, PY], rows[:, PX])
            for top in tops:
                near = np.zeros(len(rows), bool)
                for k in range(3):
                    d_phi = (phi - top[2 * k + 1] + np.pi) % (2 * np.pi) - np.pi
                    near |= np.hypot(eta - top[2 * k], d_phi) < 0.4
                momentum = rows[near][:, [PX, PY, PZ]]
                energy = np.sqrt((momentum**2).sum(axis=1) + 0.02).sum()
                masses.append(np.sqrt(max(energy**2 - (momentum.sum(axis=0) ** 2).sum(), 0)))
        assert np.median(masses) == pytest.approx(172, abs=15)

    def test_visible_taus_are_where_their_particles_are(self, made: dict[str, Any]) -> None:
        found = 0
        for rows, taus in zip(made["tausH to tau tau"].particles, made["tausH to tau tau"].taus, strict=True):
            pt = np.hypot(rows[:, PX], rows[:, PY])
            eta, phi = np.arcsinh(rows[:, PZ] / np.maximum(pt, 1e-9)), np.arctan2(rows[:, PY], rows[:, PX])
            for tau_pt, tau_eta, tau_phi in taus:
                if tau_pt < 20:
                    continue
                near = np.hypot(eta - tau_eta, (phi - tau_phi + np.pi) % (2 * np.pi) - np.pi) < 0.2
                assert pt[near].sum() == pytest.approx(tau_pt, rel=0.35)
                charge = rows[near & (pt > 0.05 * tau_pt), Q].sum()
                found += abs(charge) == 1
        assert found > 15

    def test_heavy_flavour_decays_away_from_the_vertex(self, made: dict[str, Any]) -> None:
        far = [np.hypot(*rows[:, X0 : X0 + 2].T) for rows in made["topsttbar"].particles]
        between = np.mean([((r > 0.01) & (r < 2)).sum() for r in far])
        assert between > 5  # of two bottom hadrons

    def test_a_seed_gives_the_same_events_whatever_came_before(self) -> None:
        generator = Generator(PROCESSES["qg"].sources[0].settings)
        first = generator.make(10, 5)
        generator.make(7, 6)
        again, other = generator.make(10, 5), generator.make(10, 6)
        assert all(np.array_equal(a, b) for a, b in zip(first.particles, again.particles, strict=True))
        assert not np.array_equal(first.particles[0], other.particles[0])

    def test_a_setting_that_pythia_does_not_know(self) -> None:
        with pytest.raises(UsageError, match="does not know the setting 'No:such = 1'"):
            Generator(("No:such = 1",))


class TestLabels:
    eta, phi = np.array([0.0, 1.0, -2.0]), np.array([3.1, 0.0, 1.0])

    def test_quarks_gluons_and_what_is_neither(self) -> None:
        partons = np.array([[-2, 0.0, -3.1], [21, 1.1, 0.1]])  # the first one across phi = pi
        assert list(label_partons(self.eta, self.phi, partons)) == [1, 0, -1]
        partons[0, 0] = 5
        assert list(label_partons(self.eta, self.phi, partons)) == [-1, 0, -1]
        assert list(label_background(self.eta, self.phi, partons)) == [0, 0, -1]

    def test_a_top_needs_all_three_quarks_in_the_jet(self) -> None:
        top = np.array([[0.5, 3.0, -0.3, -3.0, 0.1, 2.9]])
        assert list(label_tops(self.eta, self.phi, top)) == [1, -1, -1]
        top[0, 0] = 0.9
        assert list(label_tops(self.eta, self.phi, top)) == [-1, -1, -1]

    def test_taus_above_20_gev(self) -> None:
        taus = np.array([[30.0, 1.1, 0.1], [15.0, -2.0, 1.0]])
        assert list(label_taus(self.eta, self.phi, taus)) == [-1, 2, -1]

    def test_no_jets_and_no_truth(self) -> None:
        none, nobody = np.zeros(0), np.zeros((0, 3))
        for label in (label_partons, label_background, label_taus):
            assert label(none, none, np.ones((1, 3))).size == 0
            assert list(label(self.eta, self.phi, nobody)) == [-1, -1, -1]
        assert list(label_tops(self.eta, self.phi, np.zeros((0, 6)))) == [-1, -1, -1]


class TestSimulator:
    @pytest.mark.parametrize("process", list(PROCESSES))
    def test_both_classes_are_there(self, process: str) -> None:
        columns = Simulator(process, 3).make(0, 16)
        objects = PROCESSES[process].objects
        labels = set(columns[f"{objects}_genLabel"].tolist())
        assert labels >= {0, 2 if process == "tau" else 1}
        for other in {"Jet", "FatJet", "Photon"} - {objects}:
            assert set(columns[f"{other}_genLabel"].tolist()) <= {-1}

    def test_every_chunk_is_the_same_in_any_order(self) -> None:
        one, other = Simulator("top", 9), Simulator("top", 9)
        second = one.make(100, 4)
        other.make(0, 2)
        assert equal(second, other.make(100, 4))
        assert not equal(second, Simulator("top", 10).make(100, 4))

    def test_the_detector_can_have_seen_it(self) -> None:
        columns = Simulator("qg", 4).make(0, 8)
        assert columns["nPixelHit"].min() > 50
        radius = np.hypot(columns["PixelHit_x"], columns["PixelHit_y"])
        for layer, wanted in enumerate((2.9, 6.8, 10.9, 16.0), 1):
            assert np.abs(radius[columns["PixelHit_layer"] == layer] - wanted).max() < 0.05
        assert (abs(columns["Track_eta"]) < 2.52).all()
        assert (columns["Track_pt"] > 0.2).all()
        assert all(hcal_tower(detid) >= 0 for detid in columns["HBHERecHit_detid"])
        for name, array in columns.items():
            assert np.isfinite(array).all(), name
            if name.endswith("_phi"):
                assert ((array >= -np.float32(np.pi)) & (array < np.float32(np.pi))).all()

    @pytest.mark.long
    def test_pile_up_adds_vertices_and_hits_and_leaves_the_truth(self) -> None:
        bare, busy = Simulator("qg", 4).make(0, 10), Simulator("qg", 4, 20.0).make(0, 10)
        assert (bare["nPV"] == 1).all()
        assert busy["nPV"].mean() == pytest.approx(21, abs=6)
        assert busy["nEBRecHit"].sum() > 1.5 * bare["nEBRecHit"].sum()
        assert busy["nTrack"].sum() > 3 * bare["nTrack"].sum()
        near = abs(busy["Track_dz"]) < 0.1
        assert near.sum() < 2 * (abs(bare["Track_dz"]) < 0.1).sum()
        hard = [columns["Jet_genLabel"] >= 0 for columns in (bare, busy)]
        assert abs(int(hard[0].sum()) - int(hard[1].sum())) <= 3


class TestFile:
    @pytest.mark.long
    def test_the_same_seed_gives_the_same_file_whatever_the_number_of_jobs(self, tmp_path: Path) -> None:
        paths = [tmp_path / f"{jobs}.root" for jobs in (1, 2)]
        steps: list[int] = []
        for jobs, path in enumerate(paths, 1):
            generate_file(130, path, 5, steps.append, process="tau", jobs=jobs)
        assert sum(steps) == 260
        one, other = map(branches, paths)
        assert equal(one, other)
        assert len(one["event"]) == 130
        about = settings_of(paths[1])
        assert (about["sample"], about["seed"], about["events"], about["pileup"]) == ("tau", 5, 130, 0.0)
        assert "PhaseSpace:pTHatMin = 30" in about["pythia"]["QCD"]
        assert about["packages"]["pythia8mc"]
        assert command_of(paths[0]) == "streamer generate tau -n 130 -o 1.root --seed 5"
        # What a shorter file has is the beginning of a longer one.
        generate_file(40, tmp_path / "short.root", 5, process="tau")
        short = branches(tmp_path / "short.root")
        assert all(np.array_equal(short[name], one[name][: len(short[name])]) for name in one)

    def test_single_particles_by_threads_are_the_same(self, tmp_path: Path) -> None:
        for jobs in (1, 3):
            generate_file(4500, tmp_path / f"{jobs}.root", 5, jobs=jobs)
        assert equal(branches(tmp_path / "1.root"), branches(tmp_path / "3.root"))

    def test_a_file_is_replaced_only_when_asked_for(self, tmp_path: Path) -> None:
        path = tmp_path / "one.root"
        generate_file(10, path, 5)
        with pytest.raises(UsageError, match="exists; choose another name, or --overwrite"):
            generate_file(20, path, 6)
        assert settings_of(path)["events"] == 10
        generate_file(20, path, 6, overwrite=True)
        assert settings_of(path)["events"] == 20

    def test_every_tagger_can_be_fed(self, tmp_path: Path) -> None:
        for process in ("egamma", "top"):
            path = tmp_path / f"{process}.root"
            generate_file(20, path, 5, process=process)
            file = open_events(path, InputConfig())
            config = Config()
            for objects, channels in (("Jet", ("TrackPt", "ECAL", "HCAL")), ("Photon", ("ECAL",)),
                                      ("FatJet", ("TrackD0", "BPIX1", "TEC", "TID"))):  # fmt: skip
                choose(file, config.model_copy(update={"taggers": {"any": look(objects, channels)}}))


class TestRefusals:
    @pytest.mark.parametrize(
        ("options", "why"),
        [
            ({"process": "top", "pileup": 1000.0}, "--pileup 1000: 0 to 200"),
            ({"process": "top", "pileup": float("nan")}, "--pileup nan"),
            ({"process": "egamma", "pileup": 5.0}, "single particles have no pile-up"),
        ],
    )
    def test_settings_out_of_range(self, tmp_path: Path, options: dict[str, Any], why: str) -> None:
        with pytest.raises(UsageError, match=why):
            generate_file(10, tmp_path / "out.root", 1, **options)
        assert list(tmp_path.iterdir()) == []

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "streamer", "generate", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=100, **options)

    @pytest.mark.parametrize("arguments", [("-n", "0"), ("--jobs", "0"), ("--seed", "-1"), ("--pileup", "201")])
    def test_on_the_command_line(self, tmp_path: Path, arguments: tuple[str, str]) -> None:
        app = typer.Typer()
        add_networks(app)
        done = CliRunner().invoke(app, ["generate", "top", "-o", str(tmp_path / "out.root"), *arguments])
        assert done.exit_code == 2
        assert arguments[0] in done.output
        assert "Invalid value" in done.output
        assert list(tmp_path.iterdir()) == []

    def test_a_folder_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "no").write_text("")
        done = self.run("egamma", "-n", "10", "-o", str(tmp_path / "no" / "out.root"))
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "cannot be written; name a file in a folder that is there" in done.stderr

    def test_a_disk_that_fills_up_leaves_nothing_behind(self, tmp_path: Path) -> None:
        def small() -> None:  # writing beyond fails as on a full disk, with another number
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

        done = self.run("egamma", "-n", "4000", "-o", str(tmp_path / "out.root"), preexec_fn=small,
                        env={**os.environ, "NUMBA_CACHE_DIR": ""})  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.count("\n") == 1
        assert "out.root: cannot be written (File too large); nothing is kept of it" in done.stderr
        assert list(tmp_path.iterdir()) == []

    def test_ctrl_c_leaves_nothing_behind(self, tmp_path: Path) -> None:
        command = [sys.executable, "-m", "streamer", "generate", "tau", "-n", "100000", "--jobs", "2"]
        with subprocess.Popen(
            [*command, "-o", str(tmp_path / "out.root")],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        ) as process:
            deadline = time.monotonic() + 60
            while not list(tmp_path.iterdir()) and time.monotonic() < deadline:
                time.sleep(0.05)
            for _ in range(2):
                os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the generating processes as well
            _, said = process.communicate(timeout=60)
        assert process.returncode == 130
        assert said.strip() == f"streamer: stopped; nothing is kept of {tmp_path / 'out.root'}"
        assert list(tmp_path.iterdir()) == []

    def test_a_missing_package_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "pythia8mc", None)
        with pytest.raises(UsageError, match=r"pip install 'e2e-streamer\[generate\]'"):
            generate_file(10, tmp_path / "out.root", 1, process="top")
        assert list(tmp_path.iterdir()) == []
