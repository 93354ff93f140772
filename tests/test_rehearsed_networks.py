"""Networks that are tried before a tagger loads them: what is found, and what the tagger takes over. Real networks."""

import json
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any, cast

import numpy as np
import pytest
from physics_helpers import Chain, columns_of, conv_model, event, per_event, sum_model
from prometheus_client import CollectorRegistry

from stages.config import Config
from stages.detector.ecal import eb_detid
from stages.network import Network
from stages.rehearsing import rehearse
from stages.tagger import Tagger
from streamer.batcher import REASONS
from streamer.blackbox import BlackBox
from streamer.block import Block
from streamer.changes import Changes
from streamer.config import changed
from streamer.engine import Engine
from streamer.errors import UsageError
from streamer.metrics import BatchMetrics, StageMetrics
from streamer.testing import toy_block

Found = dict[str, dict[str, dict[str, Any]]]


def config(model: Path, **spec: Any) -> Config:
    given = {"provider": "cpu", "threads": 1}
    return Config.model_validate({"taggers": {"eg": {"model": model, **spec}}, "tagger": given})


def other(now: Config, model: Path) -> Config:
    return changed(now, {"taggers.eg.model": str(model)})


def tried(now: Config, wanted: Config) -> Found:
    """What a rehearsal found, as it reaches a tagger."""
    found: Found = json.loads(json.dumps(rehearse(now, wanted)))
    return found


def working(now: Config) -> Tagger:
    tagger = Tagger(now)
    tagger.setup()
    return tagger


def nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("that was done in the rehearsal")

    for name in ("_check", "_choose", "_learned", "seconds", "warm_up"):
        monkeypatch.setattr(Network, name, never)


@pytest.mark.parametrize("form", ["image", "sparse", "auto"])
def test_a_tagger_takes_over_what_was_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    old, new = sum_model(tmp_path / "old.onnx"), sum_model(tmp_path / "new.onnx", limit=3.0)
    chain = Chain(config(old, input=form))
    wanted = other(chain.config, new)
    found = tried(chain.config, wanted)
    told = found["eg"]["model"]
    assert [*found], [*found["eg"]] == (["eg"], ["model"])
    assert told["form"] in (("image", "sparse") if form == "auto" else (form,))
    assert told["provider"] == "CPU"
    assert told["max_batch"] == max(map(int, told["costs"]))
    told["form"] = "sparse" if form == "auto" else form  # whichever was faster here
    told["costs"], told["max_batch"] = {"1": 0.25, "8": 0.5, "16": 0.75}, 16
    nothing_is_tried(monkeypatch)
    chain.tagger.prepare(chain.config, wanted, found)()
    queue = "eg#1"
    network, costs = chain.tagger.networks[queue], chain.tagger.costs[queue]
    assert chain.tagger.queues == {queue: 16}
    assert {n: costs.of(n) for n in costs.sizes} == {1: 0.25, 8: 0.5, 16: 0.75}
    assert network.form.name == told["form"]
    assert network.model.sha256 == told["sha256"]
    hit = int(eb_detid(20, 11))
    scores = chain.scores(columns_of([event(1, EBRecHit=[(hit, 2.0)], Photon=[(34.0, 0.34, 0.005)])]), 1).columns
    assert per_event(scores, "Photon_egScore") == [[2.0]]


def test_what_scores_again_is_tried_and_taken_over_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shadow = conv_model(tmp_path / "shadow.onnx")
    now = config(sum_model(tmp_path / "old.onnx"), shadow=shadow, cpu_check=0.5)
    tagger, wanted = working(now), other(now, sum_model(tmp_path / "new.onnx", limit=3.0))
    found = tried(now, wanted)["eg"]
    assert [*found] == ["model", "shadow", "cpu"]
    assert [found[what]["costs"] is None for what in found] == [False, True, True]
    assert found["cpu"]["sha256"] == found["model"]["sha256"] != found["shadow"]["sha256"]
    nothing_is_tried(monkeypatch)
    tagger.prepare(now, wanted, {"eg": found})()
    assert len(tagger.opinions["eg#1"]) == 2
    conv_model(shadow, seed=1)
    third = sum_model(tmp_path / "third.onnx", limit=2.0)
    found["model"]["sha256"] = found["cpu"]["sha256"] = Network("eg", other(now, third)).model.sha256
    with pytest.raises(UsageError, match=r"shadow.onnx: has become another file since it was tried; ask for it again"):
        tagger.prepare(now, other(now, third), {"eg": found})
    tagger.close()


def test_another_file_or_provider_than_was_tried_is_refused(tmp_path: Path) -> None:
    now, new = config(sum_model(tmp_path / "old.onnx")), sum_model(tmp_path / "new.onnx", limit=3.0)
    tagger, wanted = working(now), other(now, new)
    found = tried(now, wanted)
    told = found["eg"]["model"]
    with pytest.raises(UsageError, match=rf"^tagger eg: {new}: would run on CPU here, and was tried on CUDA$"):
        tagger.prepare(now, wanted, {"eg": {"model": {**told, "provider": "CUDA"}}})
    conv_model(new)
    with pytest.raises(UsageError) as error:
        tagger.prepare(now, wanted, found)
    assert str(error.value) == f"tagger eg: {new}: has become another file since it was tried; ask for it again"
    assert tagger.queues.keys() == {"eg"}


def test_a_file_that_was_written_anew_is_tried(tmp_path: Path) -> None:
    now = config(sum_model(tmp_path / "model.onnx"))
    tagger = working(now)
    with pytest.raises(UsageError, match="the stream has these networks already"):
        tagger.prepare(now, now, tried(now, now))
    sum_model(tmp_path / "model.onnx", limit=3.0)
    tagger.prepare(now, now, tried(now, now))()
    assert tagger.queues.keys() == {"eg#1"}


async def test_a_change_goes_on_from_those_that_wait_for_their_place(tmp_path: Path) -> None:
    old, first, second, third = (sum_model(tmp_path / f"{k}.onnx", limit=float(k)) for k in (1, 2, 3, 4))
    taggers = {"eg": {"model": old}, "two": {"model": old, "score": "twoScore"}}
    now = Config.model_validate({"taggers": taggers, "tagger": {"provider": "cpu", "threads": 1}})
    tagger = working(now)
    changes = Changes(tagger)
    for number, (name, model) in enumerate([("eg", first), ("two", second), ("two", third), ("eg", old)], 1):
        before = cast(Config, changes.coming or tagger.config)
        wanted = changed(before, {f"taggers.{name}.model": str(model)})
        assert await changes.prepare(number, before, wanted, tried(before, wanted)) == ""
        changes.make(number, at_lumisection=number == 1)
        if number == 3:
            assert changes.before(block_of(1)) is None, "the first one waits, and so do those behind it"
            assert changes.before(block_of(2)) == wanted
            assert scoring(tagger) == {"eg": first, "two": third}
    changes.before(block_of(2))
    assert scoring(tagger) == {"eg": old, "two": third}


def block_of(lumi: int) -> Block:
    block = toy_block(1, 2)
    return block.with_columns({**block.columns, "run": np.full(2, 1), "luminosityBlock": np.full(2, lumi)})


def scoring(tagger: Tagger) -> dict[str, Path]:
    """The networks that the next block is scored by."""
    return {tagger.networks[queue].name: tagger.networks[queue].model.spec.model for queue in tagger.queues}


def test_a_network_that_is_replaced_before_it_had_a_block_is_forgotten(tmp_path: Path) -> None:
    shadow = conv_model(tmp_path / "shadow.onnx")
    chain = Chain(config(sum_model(tmp_path / "old.onnx"), shadow=shadow))
    tagger, now, done = chain.tagger, chain.config, SimpleQueue[Block]()
    batches = BatchMetrics.of(CollectorRegistry(), tagger.queues, REASONS)
    said = BlackBox(tmp_path / "box"), lambda block, _: done.put(block), lambda error: None
    engine: Engine[str] = Engine(tagger, StageMetrics("tagger", 0, {}), batches, *said)
    opinions = dict(tagger.opinions)
    for limit in (2.0, 3.0, 4.0):
        wanted = other(now, sum_model(tmp_path / f"{limit}.onnx", limit=limit))
        tagger.prepare(now, wanted, tried(now, wanted))()
        opinions |= tagger.opinions
        now = wanted
    hit = int(eb_detid(20, 11))
    block = chain.crops(columns_of([event(1, EBRecHit=[(hit, 3.5)], Photon=[(34.0, 0.34, 0.005)])]), 1)
    engine.submit(block, "", timed=False)
    assert per_event(done.get(timeout=20).columns, "Photon_egScore") == [[3.5]]
    engine.close()
    for kept in (tagger.queues, tagger.networks, tagger.opinions, tagger.costs, tagger.priorities):
        assert [*kept] == ["eg#3"]
    for queue in ("eg", "eg#1", "eg#2"):
        for opinion in opinions[queue]:
            opinion.wait()
            assert not opinion._thread.is_alive()
    tagger.close()


def two_channels(path: Path) -> None:
    conv_model(path, ("batch", 2, 32, 32))


def no_network(path: Path) -> None:
    path.write_bytes(b"no network")


def no_file(path: Path) -> None:
    """There is none."""


@pytest.mark.parametrize("spoil", [two_channels, no_network, no_file])
def test_what_is_refused_is_refused_in_the_same_words(tmp_path: Path, spoil: Any) -> None:
    now = config(sum_model(tmp_path / "old.onnx"))
    spoil(tmp_path / "bad.onnx")
    wanted = other(now, tmp_path / "bad.onnx")
    said = []
    tagger = working(now)
    for ask in (Tagger(wanted).setup, lambda: rehearse(now, wanted), lambda: tagger.prepare(now, wanted, {})):
        with pytest.raises(UsageError) as error, ThreadPoolExecutor(1) as own:  # which may give way
            own.submit(ask).result()
        said.append(str(error.value))
    assert said[0].startswith(f"tagger eg: {tmp_path / 'bad.onnx'}: ")
    assert said == [said[0]] * 3


def test_nothing_but_networks_is_rehearsed(tmp_path: Path) -> None:
    now = config(sum_model(tmp_path / "old.onnx"))
    with pytest.raises(UsageError, match=r"only networks \(taggers.NAME.model\) can be changed"):
        rehearse(now, changed(now, {"taggers.eg.pt_min": 3.0}))
    with pytest.raises(UsageError, match="no tagger 'gg' in this run; it has eg"):
        rehearse(now, changed(now, {"taggers.gg.model": str(tmp_path / "old.onnx")}))


def test_only_what_was_not_rehearsed_gives_way(tmp_path: Path) -> None:
    now = config(sum_model(tmp_path / "old.onnx"))
    wanted = other(now, sum_model(tmp_path / "new.onnx", limit=3.0))
    tagger = working(now)

    def niceness(found: Mapping[str, Any]) -> int:
        tagger.prepare(now, wanted, found)
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    for found, nice in ((tried(now, wanted), os.getpriority(os.PRIO_PROCESS, 0)), ({}, 19)):
        with ThreadPoolExecutor(1) as own:
            assert own.submit(niceness, found).result() == nice
