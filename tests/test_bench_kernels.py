"""`streamer bench kernels`: that its two ways agree and its figures mean what they say. How fast, no test asserts."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from physics_helpers import call

from stages import records
from stages.bench import kernels as bench_kernels
from stages.bench.kernels import Plan, kernels
from stages.bench.kernels_ways import (
    MIX,
    N_JETS,
    STEPS,
    TOLERANCE,
    Dense,
    Sparse,
    block_of,
    generated_events,
    input_events,
    largest_difference,
)
from stages.bench.pipeline import Plan as BenchPlan
from stages.config import Config, packaged
from stages.conversion import schema_of
from stages.detector.hcal import hcal_detid
from stages.formats.root import write_events
from streamer.block import Columns, offsets
from streamer.errors import StreamerError, UsageError

TINY = partial(Plan, events=5, hits=(40, 400), jets=(0, 1, 3), hits_of_jets=60)


def top(files: tuple[str, ...] = (), framer: dict[str, Any] | None = None, **spec: Any) -> Config:
    tagger = {"model": packaged("models/eg.onnx"), "allow_empty": True, "pt_min": 0.0, **spec}
    return Config.model_validate({"input": {"files": files}, "framer": framer or {}, "taggers": {"top": tagger}})


@pytest.fixture
def awkward() -> Columns:
    """Generated events with all that could go wrong between a sparse and a dense image."""
    columns, _ = generated_events(top(), 6, n_hits=6000, n_jets=8)
    rng = np.random.default_rng(5)
    # Many hits share a crystal; energies that do not count; cells that there are not.
    columns["EBRecHit_detid"][::3] = columns["EBRecHit_detid"][0]
    columns["EBRecHit_energy"][5::50] = rng.choice([-1.0, 0.0, np.nan, np.inf], columns["EBRecHit_energy"][5::50].size)
    columns["EERecHit_detid"][::40] = 0
    # Towers in all depths, up to |ieta| 29, where they are two columns wide, also over the seam.
    n = columns["HBHERecHit_detid"].size // 2
    ieta, iphi = rng.integers(17, 30, n) * rng.choice([-1, 1], n), 2 * rng.integers(0, 36, n) + 1
    iphi[::4] = rng.choice([69, 71], iphi[::4].size)
    columns["HBHERecHit_detid"][1 : 2 * n : 2] = hcal_detid(ieta, iphi, 1 + np.arange(n) % 4)
    columns["HBHERecHit_energy"][::9] = 0.25  # towers alike, of which the first is the seed
    # Tracks in one pixel, whose impact parameters cancel; some far from the vertex or without a direction.
    columns["Track_eta"][::4], columns["Track_phi"][::4] = 0.01, -0.1746
    columns["Track_dz"][::7] = rng.choice([0.1, -5.0, np.nan], columns["Track_dz"][::7].size)
    columns["Track_phi"][3::60] = np.nan
    columns["PixelHit_layer"][::11] = 9
    # Jets over the frame's seam at -10 degrees and at pi, at the last towers that may be seeds and beyond, and nowhere.
    jets = columns["FatJet_eta"].size // 8
    columns["FatJet_phi"][:] = np.tile([-0.1745, -0.1746, np.pi, -np.pi, 0.0, 1.0, -2.0, np.nan], jets)
    columns["FatJet_eta"][2::3] = np.resize([1.38, -1.38, 1.6, -1.6, 2.9, 3.5], columns["FatJet_eta"][2::3].size)
    # Two towers alike on both sides of the seam, and the most energetic one just beyond the last that may be a seed.
    own = np.arange(columns["nHBHERecHit"][0])
    columns["HBHERecHit_energy"][own] = 0
    for place, (ieta, iphi, energy) in enumerate([(9, 70, 2.0), (9, 71, 2.0), (16, 40, 2.0), (17, 40, 3.0)]):
        columns["HBHERecHit_detid"][place] = hcal_detid(ieta, iphi, 1)
        columns["HBHERecHit_energy"][place] = energy
    columns["FatJet_eta"][:2], columns["FatJet_phi"][:2] = (0.8, 1.35), (np.radians(-10.1), np.radians(197))
    return columns


@pytest.mark.parametrize("crop", [128, 30, 200])
def test_sparse_and_dense_give_the_same_tensors(awkward: Columns, crop: int) -> None:
    config, block = top(crop=crop), block_of(awkward)
    sparse = Sparse(config)
    assert largest_difference(sparse, Dense(config), block) <= TOLERANCE

    cropped = sparse.cropped(block)
    assert cropped.columns["FatJet_seedCol"][:2].tolist() == [2, -1]
    seeds = cropped.columns["FatJet_seedCol"][cropped.columns["FatJet_seedRow"] >= 0]
    assert 8 <= sparse.n_crops(cropped) == seeds.size < awkward["FatJet_eta"].size
    assert ((seeds < crop // 2 - 1) | (seeds > 360 - crop // 2)).any(), "none wraps around"
    channels = sparse.fill(cropped, 0, min(64, seeds.size)).any(axis=(0, 2, 3))
    assert channels.all(), "a channel is empty"


def test_more_than_a_batch_agrees() -> None:
    config = top(channels=["HCAL", "BPIX2", "TrackPt", "ECAL"], crop=16)
    block = block_of(generated_events(config, 30)[0])
    sparse = Sparse(config)
    assert sparse.n_crops(sparse.cropped(block)) == 30 * N_JETS > 2 * 64
    assert largest_difference(sparse, Dense(config), block) <= TOLERANCE


def test_ways_that_do_not_agree_are_no_measurement(awkward: Columns) -> None:
    block = block_of(awkward)
    with pytest.raises(StreamerError, match="differ by up to"):
        largest_difference(Sparse(top(channels=["ECAL", "HCAL"])), Dense(top(channels=["TrackPt", "HCAL"])), block)
    with pytest.raises(StreamerError, match="0 crops with sparse frames, but"):
        largest_difference(Sparse(top(pt_min=1e6)), Dense(top()), block)


@pytest.mark.parametrize(("n_hits", "n_jets"), [(100, 5), (1240, 5), (1000, 0), (1000, 20), (20, 3)])
def test_generated_events_hold_what_they_should(n_hits: int, n_jets: int) -> None:
    config = top()
    columns, exactly = generated_events(config, 7, n_hits, n_jets)
    records.hits(config).check(columns, 7)
    assert abs(exactly - n_hits) <= 4
    for collection, share in MIX.items():
        counts = columns[f"n{collection}"]
        assert np.abs(counts - n_hits * share / 1240).max() <= 3
    assert sum(int(columns[f"n{collection}"][0]) for collection in MIX) == exactly
    assert columns["nFatJet"].tolist() == [n_jets] * 7
    assert np.abs(columns["FatJet_eta"]).max(initial=0) < 1.3

    sparse, block = Sparse(config), block_of(columns)
    assert sparse.n_crops(sparse.cropped(block)) == 7 * n_jets, "each jet has a seed"
    framer = sparse._framer
    framer.take_tally()
    framer.process(block)
    assert not framer.take_tally(), "every hit has a pixel"
    again, _ = generated_events(config, 7, n_hits, n_jets)
    assert all(np.array_equal(columns[name], again[name]) for name in columns)


def jets_file(path: Path, events: list[list[tuple[float, int, int]]]) -> Path:
    """Jets given as pt and their tower; a jet of odd pt has no tower with energy near."""
    detids: list[Any] = []
    jets = [jet for event in events for jet in event]
    for event in events:
        cells = [hcal_detid(ieta, iphi, 1) for pt, ieta, iphi in event if pt % 2 == 0]
        detids.append(np.array(cells, np.uint32))
    n_hits = [cells.size for cells in detids]
    detid = np.concatenate(detids)
    pt, ieta, iphi = np.array(jets, np.float32).reshape(-1, 3).T
    columns: Columns = {
        "run": np.ones(len(events), np.uint32),
        "luminosityBlock": np.ones(len(events), np.uint32),
        "event": np.arange(len(events), dtype=np.uint64),
        "nHBHERecHit": np.array(n_hits, np.int32),
        "HBHERecHit_detid": detid,
        "HBHERecHit_energy": np.ones(detid.size, np.float32),
        "nFatJet": np.array([len(event) for event in events], np.int32),
        "FatJet_pt": pt,
        "FatJet_eta": 0.087 * (ieta - np.sign(ieta) / 2),
        "FatJet_phi": np.radians(5 * (iphi - 0.5)).astype(np.float32),
    }
    wanted = [column for column in records.INPUT if column.name in columns]
    schema = schema_of(wanted)
    typed = {name: columns[name].astype(column.wire_dtype) for name, column in schema.by_name.items()}
    write_events(path, schema, [typed])
    return path


def test_input_events_have_five_jets_with_seeds(tmp_path: Path) -> None:
    spots = [(8, 1), (-8, 13), (8, 25), (-8, 37), (8, 49), (-8, 61), (1, 7)]
    events = [
        [(40.0, *spots[0]), (99.0, *spots[1]), (60.0, *spots[2])],  # the leading one has no seed
        [(81.0, *spots[0])],
        [(2.0 * (k + 1), *spot) for k, spot in enumerate(spots)],
        [],
    ]
    config = top((str(jets_file(tmp_path / "jets.root", events)),))
    columns, taken = input_events(config, 5)
    records.hits(config).check(columns, 5)
    assert columns["FatJet_pt"].reshape(5, N_JETS).tolist() == [
        [60, 40, 60, 40, 60],
        [14, 12, 10, 8, 6],
        [60, 40, 60, 40, 60],
        [14, 12, 10, 8, 6],
        [60, 40, 60, 40, 60],
    ]
    assert (taken.events_read, taken.events_with_jets, taken.jets) == (4, 2, 3.5)
    sparse, block = Sparse(config), block_of(columns)
    assert sparse.n_crops(sparse.cropped(block)) == 5 * N_JETS
    assert sparse.contents(block) == {"hits": 4.0, "frame_pixels": 4.0, "crops": 5.0, "crop_pixels": 1.16}

    bare = top((str(jets_file(tmp_path / "bare.root", events[1::2])),))
    with pytest.raises(UsageError, match=r"bare\.root: no jet with a seed in 2 events"):
        input_events(bare, 5)


def test_real_events_let_their_jets_stand_in(real_events: list[Path]) -> None:
    config = top((str(real_events[-1]),))
    columns, taken = input_events(config, 30)
    assert taken.events_read == 25
    assert 20 <= taken.events_with_jets <= 25
    pt = columns["FatJet_pt"].reshape(30, N_JETS)
    assert (pt[:, 0] == pt.max(axis=1)).all()
    first = columns["event"][: taken.events_with_jets]
    assert np.unique(first).size == first.size
    assert columns["event"].tolist() == np.resize(first, 30).tolist()
    block = block_of(columns)
    assert largest_difference(Sparse(config), Dense(config), block) <= TOLERANCE
    ends = offsets(columns["nEBRecHit"])
    assert ends[-1] > 30 * 100


def test_kernels_measures_and_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_kernels, "Plan", TINY)
    monkeypatch.setattr(bench_kernels, "keep_freed_memory", lambda: None)  # it would stay so for the other tests
    path = jets_file(tmp_path / "jets.root", [[(40.0, 8, 1), (60.0, -8, 13)]])
    output = tmp_path / "bench"
    code, out, err = call("bench", "kernels", path, "-o", output, "--repeats", 3, "--set", "taggers.top.crop=64")
    assert code == 0, err
    assert "round 3 of 3" in err
    assert sorted(file.name for file in output.iterdir()) == ["kernels.json", "kernels.png"]
    picture = (output / "kernels.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert len(picture) > 10_000
    for told in ("seeds and crops", "dense / sparse", "ns/hit", "us/jet", "kernels.json"):
        assert told in out

    result = json.loads((output / "kernels.json").read_text())
    assert result["plan"] == json.loads(json.dumps(vars(TINY(repeats=3))))
    assert result["about"]["crop"] == 64
    assert result["about"]["input"] == {"files": [str(path)], "events_read": 1, "events_with_jets": 1, "jets": 2.0}
    assert list(result["compared"]) == ["input", "generated"]
    for compared in result["compared"].values():
        assert compared["contents"]["crops"] == N_JETS
        assert compared["max_difference"] <= TOLERANCE
        sparse, dense = (compared[way]["repeats_us"] for way in ("sparse", "dense"))
        for step in (*STEPS, "all"):
            ratio = np.median(np.divide(dense[step], sparse[step]))
            assert compared["ratios"][step] == pytest.approx(ratio)
    assert (result["hits"]["at"], result["jets"]["at"]) == ([40, 400], [0, 1, 3])
    ways = [compared[way] for compared in result["compared"].values() for way in ("sparse", "dense")]
    ways += result["hits"]["ways"] + result["jets"]["ways"]
    assert len(ways) == 4 + 2 + 3
    for way in ways:
        repeats = way["repeats_us"]
        assert np.array([repeats[step] for step in (*STEPS, "all")]).shape == (4, 3)
        np.testing.assert_allclose(sum(np.array(repeats[step]) for step in STEPS), repeats["all"])
        for step in (*STEPS, "all"):
            assert 0 < way["min_us"][step] == min(repeats[step]) <= way["median_us"][step] == np.median(repeats[step])
    hits = result["hits"]
    for step in (*STEPS, "all"):  # two points, one line
        line = [hits["fixed_us"][step] + hits["each_us"][step] * n for n in hits["at"]]
        np.testing.assert_allclose(line, [way["median_us"][step] for way in hits["ways"]], rtol=1e-6)


def test_only_a_tagger_of_fat_jets_is_measured(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="FatJet"):
        kernels(Config(), Plan(), tmp_path)


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the two measurements are asked for."""
    calls: list[Any] = []

    def pretend(which: str, config: Config, plan: Any, output: Path) -> None:
        calls.append((which, config, plan, output))
        raise StreamerError("enough")

    monkeypatch.setattr("stages.bench.pipeline.bench", partial(pretend, "bench"))
    monkeypatch.setattr("stages.bench.kernels.kernels", partial(pretend, "kernels"))
    return calls


def test_bench_takes_inputs_and_options_as_ever(measured: list[Any]) -> None:
    _, _, err = call("bench", "a.root", "--repeats", 3, "-o", "here", "b.root", "--set", "tagger.max_batch=7")
    assert err == "streamer: enough\n"
    call("bench")
    call("bench", "--rounds", 2, "kernels")
    call("bench", "--", "kernels")
    assert [which for which, *_ in measured] == ["bench"] * 4
    _, config, plan, output = measured[0]
    assert (config.input.files, config.tagger.max_batch) == (("a.root", "b.root"), 7)
    assert (plan, output) == (BenchPlan(repeats=3), Path("here"))
    assert measured[1][1].input.files == (packaged("samples/egamma.root"),)
    assert measured[2][1].input.files == measured[3][1].input.files == ("kernels",)
    assert measured[2][2] == BenchPlan(rounds=2)


def test_kernels_takes_inputs_and_options(measured: list[Any], tmp_path: Path) -> None:
    toml = tmp_path / "my.toml"
    toml.write_text('[taggers.eg]\ncrop = 16\n[taggers.top]\nmodel = "none.onnx"\ncrop = 64\n')
    call("bench", "kernels", "a.root", "--repeats", 4, "b.root", "-s", "framer.tracks_at=ecal", "-c", toml)
    call("bench", "kernels", "-o", "there")
    (which, config, plan, output), (_, default, default_plan, there) = measured
    assert (which, plan, output) == ("kernels", Plan(repeats=4), Path("streamer-bench"))
    assert config.input.files == ("a.root", "b.root")
    assert config.framer.tracks_at == "ecal"
    assert list(config.taggers) == ["top"]
    assert (config.taggers["top"].crop, config.taggers["top"].allow_empty) == (64, True)
    assert (default.input.files, default_plan, there) == ((), Plan(), Path("there"))
    assert default.taggers["top"].shape == (8, 128, 128)


def test_help_names_both_and_mistakes_are_told(measured: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    code, both, _ = call("bench", "--help")
    assert code == 0
    assert all(text in both for text in ("streamer bench [OPTIONS]", "--sustained", "kernels", "Commands"))
    code, own, _ = call("bench", "kernels", "--help")
    assert code == 0
    assert "streamer bench kernels [OPTIONS]" in own
    assert "--repeats" in own
    assert "--sustained" not in own
    for wrong in (("bench", "--nonsense"), ("bench", "kernels", "--rounds", 2), ("bench", "kernels", "--repeats", 0)):
        code, _, err = call(*wrong)
        assert code == 2
        assert str(wrong[-2 if len(wrong) > 2 else -1]) in err
    assert not measured
