"""The measurement of the tagger: that it measures what it says, with the real process between real hops."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from stages import PIPELINE
from stages.bench.crops import crops
from stages.bench.forms import OfForm
from stages.bench.plot import Told
from stages.bench.policies import Rehearsed
from stages.bench.tagger import Answered, OfTagger, Plan, Result, bench_tagger, stream
from stages.bench.tagger_plot import plot, show
from stages.config import Config, packaged

PLAN = Plan(seconds=0.2, rounds=1, loads=(), shares=(), items=300)


@pytest.fixture(scope="module")
def config() -> Config:
    wanted = {"input.files": [packaged("samples/egamma.root")], "tagger.threads": 1}
    loaded = PIPELINE.load_config(None, wanted)
    assert isinstance(loaded, Config)
    return loaded


def test_crops_are_those_of_the_chain(config: Config) -> None:
    made = crops(config)
    assert made["nPhoton"].size >= 2048
    assert 0 < made["nEgCrop"].sum() <= made["nPhoton"].sum()
    assert made["nEgPixel"].size == made["nEgCrop"].sum() * 1


def test_a_stream_is_measured_between_two_hops(config: Config, tmp_path: Path) -> None:
    writer = config.writer.model_copy(update={"dir": tmp_path})
    mine = config.model_copy(update={"writer": writer})
    with Told(1) as told:
        late = stream("eg", mine, told, events=500, deadline=10.0, rate=1000.0, block_events=1)
    due, at, good = np.load(tmp_path / "answers.npy")
    assert due.size == 500
    assert np.all(good == 1)
    assert np.all(at > due)
    assert np.mean(np.diff(due)) * 1e-9 == pytest.approx(1e-3, rel=0.25), "a Poisson process of 1000 a second"
    assert np.std(np.diff(due)) == pytest.approx(np.mean(np.diff(due)), rel=0.25)
    assert late.policy == "adaptive"
    assert late.in_time == 1.0
    assert sum(late.closed.values()) * late.mean_batch == pytest.approx(
        late.items_per_s / late.events_per_s * 500, rel=0.1
    )
    assert 0 < late.latency_s["0.5"] <= late.latency_s["0.99"] <= late.latency_s["0.999"] < 10.0
    assert late.cpu_s_per_item > 0


@pytest.mark.long
def test_everything_is_measured(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = replace(PLAN, loads=(0.5,), shares=(1.5,))
    result = bench_tagger({"eg": config}, plan, tmp_path / "out")
    assert json.loads((tmp_path / "out/tagger.json").read_text())["taggers"]["eg"]["network"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tagger.json"], "nothing else is left"
    one = result.taggers["eg"]
    assert 0 < one.ratio < 1.2
    assert [form.form for form in one.forms] == ["image", "sparse"]
    assert all(form.difference < 1e-5 for form in one.forms)
    assert one.forms[0].bytes_per_item == 4096 > 5 * one.forms[1].bytes_per_item
    assert {stream.policy for stream in one.thin} == {stream.policy for stream in one.loads} == {"fixed", "adaptive"}
    overloaded = {stream.policy: stream.in_time for stream in one.deadlines}
    assert overloaded["adaptive"] > overloaded["fixed"]


def answered(policy: str, offered: float, late: float) -> Answered:
    latency = {"0.5": late, "0.9": late, "0.99": 2 * late, "0.999": float("inf")}
    return Answered(policy, offered, offered, offered * 1.1, 40e-6, 12.5, {"full": 3}, latency, 0.75)


def test_it_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    both = ("fixed", "adaptive")
    one = OfTagger(
        "eg.onnx", {1: 2e-4, 64: 2e-3}, [32_000.0, 31_000.0], [answered("fixed", rate, 0.1) for rate in (0, 26_000.0)],
        thin=[answered(policy, 500.0, 1e-3) for policy in both],
        loads=[answered(policy, rate, 3e-3) for rate in (5000.0, 9000.0) for policy in both],
        forms=[OfForm("sparse", {1: 2e-4, 32: 1e-3}, 263.5, 2e-7)],
        rehearsed=[Rehearsed("Poisson, 1.2 of the peak", 1.2, 300, 0.8, 0.1, (64, 0.0), 0.7, (64, 0.0, 0.01))],
        deadlines=[answered(policy, 40_000.0, 0.2) for policy in both],
    )  # fmt: skip
    about = {"cores": 2, "cpu": "a CPU", "threads": 1, "load_before": 0.1, "input": ["egamma.root"]}
    result = Result(about, Plan(), {"eg": one, "qg": one})
    monkeypatch.setenv("COLUMNS", "140")
    show(result)
    said = capsys.readouterr().out
    for text in (
        "a CPU",
        "31,500/s",
        "500/s, one a block",
        "80.0%",
        "75.0%",
        "sparse",
        "32,000",
        "adaptive",
        "Poisson, 1.2 of the peak",
    ):
        assert text in said, text
    plot(result, tmp_path / "tagger.png")
    assert (tmp_path / "tagger.png").stat().st_size > 20_000
