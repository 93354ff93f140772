"""`streamer bench`: that its figures mean what they say. How fast anything is, no test asserts."""

import json
from pathlib import Path

import numpy as np
import pytest
import uproot
from physics_helpers import Processes, conv_model, event, write_hits

from stages import PIPELINE
from stages.bench.menu import many_paths
from stages.bench.pipeline import WAYS, Plan, copy_events, ways_of
from stages.bench.plot import COLOURS, plot, show
from stages.bench.unsafe import UNSAFE
from stages.bench.ways import COPY_EVENTS, MODULES, Stream, limit, seed_way
from stages.config import TAGGERS, Config
from stages.detector.ecal import eb_detid, ee_crystals, ee_detid
from stages.menu.config import MenuConfig
from stages.menu.menu import menu_of
from streamer.errors import UsageError

PLAN = ("--events", 60, "--drop", 20, "--repeats", 2, "--sustained", 200, "--rounds", 1)


def stream(done: list[int], at_s: list[float]) -> Stream:
    return Stream(np.array(done), np.array(at_s), dict.fromkeys(MODULES, 0.0), np.zeros(0, np.float32))


@pytest.fixture
def hits(tmp_path: Path) -> Path:
    """Forty events with hits everywhere and photons of all sorts: at the phi seam, at the barrel's end, without
    a crystal near, too soft, too far forward, and with a seed crystal that the input names."""
    rng = np.random.default_rng(1)
    crystals = np.argwhere(ee_crystals()) + 1
    events = []
    for number in range(40):
        ieta, iphi = rng.integers(1, 86, 300) * rng.choice([-1, 1], 300), rng.integers(1, 361, 300)
        barrel = np.unique(eb_detid(ieta, iphi))
        ix, iy = crystals[rng.integers(0, len(crystals), 100)].T
        endcap = np.unique(ee_detid(ix, iy, rng.choice([-1, 1], 100)))
        photons = [
            (50.0, 0.3, -0.1745, 0),
            (45.0, float(rng.uniform(-1.43, 1.43)), float(rng.uniform(-np.pi, np.pi)), 0),
            (40.0, 1.43, 3.14159, 0),
            (9.0, 0.1, 0.1, 0),
            (60.0, 2.1, 1.0, 0),
            (30.0, -0.5, 1.0, int(barrel[number])),
        ]
        events.append(
            event(
                number,
                EBRecHit=[(int(d), float(e)) for d, e in zip(barrel, rng.exponential(2.0, barrel.size), strict=True)],
                EERecHit=[(int(d), float(e)) for d, e in zip(endcap, rng.exponential(2.0, endcap.size), strict=True)],
                Photon=photons[: 1 + number % 6] if number else [],
            )
        )
    return write_hits(tmp_path / "hits.root", events)


def test_windows_of_a_steady_stream_have_its_rate() -> None:
    plan = Plan(events=100, drop=30, repeats=4)
    steady = stream([0, 250, 500, 750, 1000], [5.0, 5.25, 5.5, 5.75, 6.0])
    np.testing.assert_allclose(plan.seconds(steady), 0.07)


def test_what_is_dropped_does_not_count() -> None:
    plan = Plan(events=100, drop=30, repeats=1)
    slow_start = stream([0, 30, 100], [0.0, 10.0, 10.07])
    np.testing.assert_allclose(plan.seconds(slow_start), 0.07)


def test_first_and_last_window_are_the_ends_of_the_stream() -> None:
    plan = Plan(events=100, drop=0, repeats=2)
    uneven = stream([0, 100, 900, 1000], [0.0, 1.0, 1.5, 3.5])
    np.testing.assert_allclose(plan.seconds(uneven), [1.0, 2.0])


def test_plans_that_cannot_be() -> None:
    with pytest.raises(UsageError, match="--drop 60"):
        Plan(events=60, drop=60)
    with pytest.raises(UsageError, match="block_events"):
        Plan(events=100, drop=0).seconds(stream([900, 950], [0.0, 1.0]))


def test_the_copy_repeats_the_input_in_order(hits: Path, tmp_path: Path) -> None:
    config = Config.model_validate({"input": {"files": [str(hits)]}})
    path = tmp_path / "copy.root"
    n_input, n_copied = copy_events(config, path)
    with uproot.open(path) as file:
        numbers = file["Events"]["event"].array(library="np")
    assert (n_input, n_copied) == (40, len(numbers))
    assert n_copied >= COPY_EVENTS
    assert numbers.tolist() == [i % 40 for i in range(n_copied)]


@pytest.mark.parametrize("threads", [1, 2])
def test_the_seeds_way_and_our_kernels_score_alike(hits: Path, tmp_path: Path, threads: int) -> None:
    model = conv_model(tmp_path / "random.onnx")
    config = Config.model_validate({"input": {"files": [str(hits)]}, "taggers": {"eg": {"model": str(model)}}})
    ours, theirs = limit(config, threads, 100, 40), seed_way(config, 100, 40)
    assert theirs.scores.size == sum(1 + n % 6 for n in range(1, 40))
    assert len(np.unique(theirs.scores)) > 50
    assert (theirs.scores == -1).any()
    np.testing.assert_allclose(ours.scores, theirs.scores, atol=1e-5)
    assert theirs.done[-1] == 100
    assert ours.done[-1] >= 100
    assert theirs.modules_s.keys() == ours.modules_s.keys() == set(MODULES)


@pytest.mark.slow
def test_bench_measures_and_shows(hits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, output = conv_model(tmp_path / "random.onnx"), tmp_path / "bench"
    with Processes(tmp_path) as start:
        command = start("bench", hits, "--output", output, "--tagger", f"eg={model}", *PLAN).check()
    assert sorted(path.name for path in output.iterdir()) == ["bench.json", "bench.png"]
    assert (output / "bench.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")

    result = json.loads((output / "bench.json").read_text())
    assert result["plan"] == {"events": 60, "drop": 20, "repeats": 2, "sustained": 200, "rounds": 1}
    assert list(result["ways"]) == list(WAYS)
    for way in result["ways"].values():
        assert way["modules_s"].keys() == COLOURS.keys() == set(MODULES)
        assert all(seconds >= 0 for seconds in way["modules_s"].values())
        rates = np.array(way["windows"][0])
        assert len(rates) == 2
        assert way["throughput"] == way["rounds"][0] == pytest.approx(2 / np.sum(1 / rates))
    best = max(("limit_1", "limit_2"), key=lambda way: result["ways"][way]["throughput"])
    assert result["limit"] == best
    for other in ("seed", best):
        ratio = result["ways"]["pipeline"]["throughput"] / result["ways"][other]["throughput"]
        assert result["ratios"][f"pipeline/{other}"] == pytest.approx(ratio)
    assert result["sustained"]["throughput"] > 0
    for load in ("saturated", "paced"):
        assert 0 < result["latency_s"][load]["0.5"] <= result["latency_s"][load]["0.99"]
    assert result["max_score_difference"] <= 1e-5
    about = result["about"]
    assert about["events_read"] == 40
    assert {"date", "cpu", "cores", "versions", "model_sha256", "provider", "input"} <= about.keys()

    show(result)
    assert "pipeline / seed's way" in capsys.readouterr().out
    assert "pipeline / seed's way" in command.out
    plot(result, tmp_path / "again.png")
    assert (tmp_path / "again.png").stat().st_size > 10_000

    for part in (result["ways"], result["ratios"]):
        del part["seed" if "seed" in part else "pipeline/seed"]
    show(result)  # as for a tagger that the seed's way is not known for
    plot(result, tmp_path / "without.png")
    assert (tmp_path / "without.png").stat().st_size > 10_000
    assert "seed" not in capsys.readouterr().out


def test_the_seeds_way_is_only_known_for_photons_in_the_ecal() -> None:
    assert list(ways_of(Config.model_validate({"taggers": {"eg": {}}}))) == list(WAYS)
    assert list(ways_of(Config.model_validate({"taggers": {"top": {}}}))) == ["limit_1", "limit_2", "pipeline"]


def test_the_chain_without_safety_lacks_just_that() -> None:
    assert UNSAFE.chain[:-1] == PIPELINE.chain[:-1]
    assert UNSAFE.names == PIPELINE.names
    with_, without = PIPELINE.load_config(None), UNSAFE.load_config(None)
    assert with_.model_dump() == without.model_dump()
    assert (with_.books is None, without.books is None) == (False, True)
    assert PIPELINE.chain[-1].make(with_).inputs.by_name == UNSAFE.chain[-1].make(without).inputs.by_name


@pytest.mark.long
def test_bench_safety_compares_and_leaves_only_its_figures(hits: Path, tmp_path: Path) -> None:
    model, output = conv_model(tmp_path / "random.onnx"), tmp_path / "bench"
    with Processes(tmp_path) as start:
        more = ("--tagger", f"eg={model}", "--events", 1000, "--rounds", 1)
        command = start("bench", "safety", hits, "--output", output, *more).check()
    assert [path.name for path in output.iterdir()] == ["safety.json"]
    result = json.loads((output / "safety.json").read_text())
    assert result["plan"] == {"events": 1000, "rounds": 1}
    with_, without = result["ways"]["with"], result["ways"]["without"]
    assert result["ratios"] == [with_["rounds"][0] / without["rounds"][0]]
    assert result["cost"] == pytest.approx(1 - result["ratios"][0])
    assert with_["cpu_s"].keys() == without["cpu_s"].keys() == set(PIPELINE.names)
    assert 0 < with_["latency_s"]["0.5"] <= with_["commit_latency_s"]["0.5"]
    assert f"{result['cost']:.1%} of the throughput; at most 10%: " in command.out


@pytest.mark.long
def test_bench_menu_tells_what_a_menu_costs(hits: Path, tmp_path: Path) -> None:
    model, output = conv_model(tmp_path / "random.onnx"), tmp_path / "bench"
    with Processes(tmp_path) as start:
        more = ("--tagger", f"eg={model}", "--events", 1000, "--rounds", 1, "--paths", 30)
        command = start("bench", "menu", hits, "--output", output, *more).check()
    assert [path.name for path in output.iterdir()] == ["menu.json"]
    result = json.loads((output / "menu.json").read_text())
    assert result["plan"] == {"paths": 30, "events": 1000, "rounds": 1}
    assert result["ratios"] == [result["rates"]["with"][0] / result["rates"]["without"][0]]
    own = result["decide_s"]["256"] + result["file_s"]
    assert result["share"] == pytest.approx(own / result["cpu_s"]["without"])
    assert f"{result['share']:.1%} of an event; at most 2%: " in command.out


def test_the_menu_that_bench_makes_fits_all_taggers() -> None:
    config = PIPELINE.load_config(None, {f"taggers.{name}": {} for name in TAGGERS})
    assert isinstance(config, Config)
    paths = many_paths(config, 200)
    made = menu_of(config.model_copy(update={"menu": MenuConfig.model_validate({"paths": paths})}))
    assert made is not None
    assert len(made.paths) == len({str(path) for path in paths.values()}) == 200


@pytest.mark.slow
def test_without_events_bench_says_so(tmp_path: Path) -> None:
    empty = write_hits(tmp_path / "empty.root", [])
    with Processes(tmp_path) as start:
        command = start("bench", empty, "--output", tmp_path / "bench").check(code=2)
    assert command.complaints == [f"{empty}: no events to measure with"]
