"""What a run's data looked like: the file, the distance, and the command."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from physics_helpers import call, hits_block, reference_of, sum_model
from prometheus_client import CollectorRegistry

from stages import PIPELINE, records
from stages.config import Config, digest, packaged
from stages.conversion import schema_of
from stages.formats import open_events
from stages.framer import Framer
from stages.manifest import OpenManifest
from stages.quality import ENERGY, OCCUPANCY, SCORE, ScoreQuality
from stages.swapped import keep
from streamer.config import to_toml
from streamer.errors import UsageError
from streamer.monitor.shown import Shown
from streamer.reference import FILE, LARGE, MIXED, NOTABLE, Distribution, Taken, apart, compared, fitting, read

EDGES = np.linspace(-3, 3, 25)


def binned(values: Any) -> Any:
    return np.bincount(np.searchsorted(EDGES, values), minlength=EDGES.size + 1)


def test_the_same_is_not_apart_and_a_shift_is_as_far_as_it_should_be() -> None:
    dice = np.random.default_rng(1)
    large = binned(dice.normal(0, 1, 200_000))
    small = [apart(binned(dice.normal(0, 1, 500)), large) for _ in range(200)]
    assert np.mean(small) < 0.015, "what chance makes is taken off"
    assert np.max(small) < NOTABLE
    for shift in (0.3, 0.5, 1.0):  # of Gaussians, the index is the shift squared
        assert apart(binned(dice.normal(shift, 1, 50_000)), large) == pytest.approx(shift**2, rel=0.1)
    dead = np.zeros_like(large)
    dead[0] = 1000
    assert apart(dead, large) > 5
    assert apart(dead, large) == pytest.approx(apart(large, dead))
    assert np.isnan(apart(dead * 0, large))


def frames(sample: str, first: int, last: int, change: Callable[[dict[str, Any]], None] = lambda _: None) -> Taken:
    """What the channels of packaged events look like, with a framer as it is in a run."""
    config = Config.model_validate({"taggers": {"eg": {}, "qg": {}}})
    framer = Framer(config)
    framer.setup()
    file = open_events(packaged(f"samples/{sample}.root"), config.input)
    given = [column for column in records.needed(config) if column.name in file.names]
    schema = schema_of(given)
    for step in file.read(given, lambda *_: None, first):
        n = min(step.entries.size, last - first)
        if n <= 0:
            break
        columns = dict(schema.slice(step.columns, 0, n))
        change(columns)
        framer.process(hits_block(config, columns, n))
        first += n
    file.close()
    found = {}
    for family in framer.registry.collect():
        for channel in {sample.labels["channel"] for sample in family.samples}:
            of = {
                one.labels.get("le", one.name): one.value for one in family.samples if one.labels["channel"] == channel
            }
            below = [value for key, value in of.items() if not key.startswith("streamer_")]
            edges = tuple(float(key) for key in of if not key.startswith("streamer_"))[:-1]
            counts = np.diff(below, prepend=0).astype(np.int64)
            found[family.name, channel] = Distribution(counts, of[f"{family.name}_sum"], "", edges)
    return Taken(found)


def test_a_real_change_is_seen_and_other_events_of_the_same_kind_are_none() -> None:
    def dead(columns: dict[str, Any]) -> None:
        columns["EBRecHit_energy"] = np.zeros_like(columns["EBRecHit_energy"])

    def tired(columns: dict[str, Any]) -> None:
        columns["EBRecHit_energy"] = columns["EBRecHit_energy"] * np.float32(0.7)

    good = frames("egamma", 0, 1250)
    again = dict(compared(frames("egamma", 1250, 2500), good, 500))
    assert again.keys() >= {(OCCUPANCY, "ECAL"), (ENERGY, "ECAL")}
    assert max(again.values()) < 0.03
    broken = dict(compared(frames("egamma", 1250, 2500, dead), good, 500))
    assert broken[OCCUPANCY, "ECAL"] > 1
    assert broken[OCCUPANCY, "HCAL"] < 0.03
    assert dict(compared(frames("egamma", 1250, 2500, tired), good, 500))[ENERGY, "ECAL"] > LARGE
    jets = frames("qg", 0, 75)
    assert dict(compared(jets, good, 50))[OCCUPANCY, "HCAL"] > 1


def test_scores_of_another_sample_are_seen() -> None:
    def scored(seed: int, signal: float) -> Taken:
        registry, dice = CollectorRegistry(), np.random.default_rng(seed)
        quality = ScoreQuality(Config(), registry)
        is_signal = dice.random(2000) < signal
        scores = np.where(is_signal, dice.beta(4, 2, 2000), dice.beta(2, 4, 2000)).astype(np.float32)
        columns = records.scores(Config()).empty(2000)
        quality.add(columns | {"nPhoton": np.ones(2000, np.int32), "Photon_egScore": scores})
        (counts,), (total,) = quality._scores.now()
        return Taken({(SCORE, "eg"): Distribution(counts, total, "", quality._scores.quantity.edges)})

    good = scored(1, 0.1)
    assert dict(compared(scored(2, 0.1), good, 500))[SCORE, "eg"] < 0.03
    assert dict(compared(scored(3, 0.5), good, 500))[SCORE, "eg"] > LARGE


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """The reference of a run of the tagger eg, with 1000 entries of everything."""
    made = reference_of(Config(), lambda name, _: np.full(1000, 0.5))
    made.write(tmp_path / "good.json")
    return tmp_path / "good.json"


def test_a_reference_is_kept_as_it_was(good: Path) -> None:
    once = read(good)
    again = good.with_name("again.json")
    once.write(again)
    assert again.read_text() == good.read_text()
    assert not list(good.parent.glob("*.part"))
    one = once.found[SCORE, "eg"]
    assert (one.entries, one.mean) == (1000, 0.5)
    assert fitting(good, PIPELINE.quantities(Config())).found.keys() == once.found.keys()


def test_the_packaged_reference_is_that_of_the_packaged_networks() -> None:
    config = PIPELINE.load_config(None, {f"taggers.{name}": {} for name in ("eg", "qg", "top", "tau")})
    reference = fitting(Path(packaged("samples/demo.json")), PIPELINE.quantities(config))
    assert min(one.entries for one in reference.found.values()) > 2000


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda text: text[: len(text) // 2], "not a reference, or cut off"),
        (lambda text: "", "not a reference of this version"),
        (lambda text: "[1, 2]", "not a reference of this version"),
        (lambda text: "[" * 100_000, "not a reference of this version"),
        (lambda text: text.replace("quality 1", "quality 9"), "not a reference of this version"),
        (lambda text: text.replace("1000", "-1000"), "not a reference, or cut off"),
        (lambda text: text.replace('"sum"', '"some"'), "not a reference, or cut off"),
        (lambda text: text + " " * (17 << 20), "too large"),
    ],
)
def test_a_file_that_is_no_reference_is_one_line(good: Path, spoil: Callable[[str], str], told: str) -> None:
    good.write_text(spoil(good.read_text()))
    with pytest.raises(UsageError, match=told) as error:
        read(good)
    assert len(str(error.value).splitlines()) == 1
    assert "streamer reference DIR -o FILE" in str(error.value)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ({"taggers": {"qg": {}}}, r"has nothing of the occupancy of channel 'TrackPt' \(of ECAL\)"),
        ({"taggers": {"mine": {"model": packaged("models/eg.onnx")}}}, r"the score of tagger 'mine' \(of eg\)"),
        (
            {"taggers": {"eg": {"model": packaged("models/qg.onnx")}}},
            "has the score of tagger 'eg' with another network",
        ),
    ],
)
def test_a_reference_of_another_kind_of_run_is_one_line(good: Path, data: dict[str, Any], told: str) -> None:
    with pytest.raises(UsageError, match=told) as error:
        fitting(good, PIPELINE.quantities(Config.model_validate(data)))
    assert "\n" not in str(error.value)


def test_a_run_whose_network_was_replaced_goes_on_with_its_reference(good: Path, tmp_path: Path) -> None:
    out, new = tmp_path / "out", sum_model(tmp_path / "new.onnx")
    began = Config.model_validate({"writer": {"dir": out}, "quality": {"reference": good}})
    now = Config.model_validate({**began.model_dump(), "taggers": {"eg": {"model": new}}})
    toml = tmp_path / "my.toml"
    toml.write_text(to_toml(now))
    refused = "has the score of tagger 'eg' with another network; make one"
    code, _, err = call("check", toml)
    assert code == 2
    assert refused in err.splitlines()[-1]
    began.books.mkdir(parents=True, exist_ok=True)
    manifest = OpenManifest(began.books / "writer-0.manifest")
    manifest.begin({"run": "r", "networks": {"eg": digest(began.taggers["eg"].model)}})
    manifest.close()
    keep(now)
    for overwrite in ("false", "true"):
        assert call("check", toml, "--set", f"writer.overwrite={overwrite}")[0] == 0
    shown = {(one["quantity"], one["value"]): one["why_not"] for one in Shown(PIPELINE, now).drift.shown}
    assert shown["score", "eg"] == "another network than the reference's"
    assert shown["occupancy", "ECAL"] == "0 entries so far, 500 are needed"
    anew = now.model_copy(update={"writer": now.writer.model_copy(update={"overwrite": True})})
    with pytest.raises(UsageError, match=refused):
        Shown(PIPELINE, anew)
    other = sum_model(tmp_path / "other.onnx", limit=3.0)
    with pytest.raises(UsageError, match=refused):
        Shown(PIPELINE, Config.model_validate({**began.model_dump(), "taggers": {"eg": {"model": other}}}))


def test_a_reference_can_be_left_out_again(good: Path) -> None:
    settings = {"quality.reference": str(good)}
    assert PIPELINE.load_config(None, settings).quality.reference == good
    assert PIPELINE.load_config(None, settings | {"quality.reference": ""}).quality.reference is None


def test_other_bins_are_one_line(good: Path) -> None:
    good.write_text(good.read_text().replace("0.45, ", "0.46, "))
    with pytest.raises(UsageError, match="has other bins for the score of tagger 'eg'"):
        fitting(good, PIPELINE.quantities(Config()))


def test_a_run_refuses_it_before_anything_starts(good: Path, hits_file: Path, tmp_path: Path) -> None:
    good.write_text(good.read_text()[:-20])
    code, _, err = call("run", hits_file, "--output", tmp_path / "out", "--reference", good)
    assert code == 2
    assert err.splitlines()[-1].startswith(f"streamer: {good}: not a reference, or cut off")
    assert not (tmp_path / "out").exists()
    toml = tmp_path / "my.toml"
    toml.write_text(f'[quality]\nreference = "{good}"\n[writer]\ndir = "{tmp_path / "out"}"\n')
    code, _, err = call("check", toml)
    assert code == 2
    assert "cut off" in err


def test_the_command_keeps_a_run_and_compares_others(good: Path, tmp_path: Path) -> None:
    other = tmp_path / "out"
    other.mkdir()
    reference_of(Config(), lambda name, _: np.full(1000, 0.1 if name == SCORE else 0.5)).write(other / FILE)
    code, out, err = call("reference", other, "-o", tmp_path / "kept.json")
    assert (code, out.strip()) == (0, str(tmp_path / "kept.json"))
    code, _, err = call("reference", other, "-o", tmp_path / "kept.json")
    assert code == 2
    assert "exists; choose another name, or --overwrite" in err
    assert call("reference", other, "--against", tmp_path / "kept.json")[0] == 0
    code, out, _ = call("reference", other, "--against", good)
    assert code == 1, "something has changed"
    first = out.splitlines()[1].split()
    assert first[:2] == ["score", "eg"]
    assert float(first[-1]) > LARGE
    code, out, _ = call("reference", other)
    assert code == 0
    assert "1,000" in out
    code, _, err = call("reference", tmp_path / "none")
    assert code == 2
    assert "cannot be read" in err
    (tmp_path / "empty").mkdir()
    code, _, err = call("reference", tmp_path / "empty")
    assert code == 2
    assert f"none has left its {FILE} at its end" in err


def test_what_several_networks_scored_is_no_reference(good: Path, tmp_path: Path) -> None:
    head = json.loads(good.read_text())
    for one in head["quantities"]:
        if one["name"] == SCORE:
            one["of"] = MIXED
    good.write_text(json.dumps(head))
    code, _, err = call("reference", good, "-o", tmp_path / "kept.json")
    assert code == 2
    assert "the network of 'eg' was changed while the run went on" in err
