"""Second opinions: which crops are scored again, by what, and what is told of it."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from physics_helpers import Chain, columns_of, conv_model, event, infer_all, sum_model, wait_until
from prometheus_client import CollectorRegistry

from stages.config import Config
from stages.detector.ecal import eb_detid
from stages.second import MOST_WAITING, OpinionMetrics, SecondOpinion, second_networks
from streamer.batcher import Part
from streamer.errors import UsageError


def config(model: Path, **spec: Any) -> Config:
    given = {"provider": "cpu", "threads": 1}
    return Config.model_validate({"taggers": {"eg": {"model": model, **spec}}, "tagger": given})


def columns(n: int) -> tuple[Any, int]:
    """Events with a photon of so much energy each, from 0."""
    hit = int(eb_detid(20, 11))
    events = [event(i, EBRecHit=[(hit, 0.01 * (i + 1))], Photon=[(34.0, 0.34, 0.005)]) for i in range(n)]
    return columns_of(events), n


def counted(registry: CollectorRegistry, name: str, against: str) -> float:
    value = registry.get_sample_value(f"streamer_{name}", {"tagger": "eg", "against": against})
    assert value is not None, "it is there from the start"
    return value


def test_a_shadow_scores_its_share_and_tells_how_far_both_agree(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    model, shadow = sum_model(tmp_path / "sum.onnx"), conv_model(tmp_path / "other.onnx")
    chain = Chain(config(model, shadow=shadow, shadow_share=0.25))
    assert counted(chain.tagger.registry, "score_difference_count", "shadow") == 0
    block = chain.crops(*columns(90))
    scores = infer_all(chain.tagger, block).columns["Photon_egScore"]
    chain.tagger.close()
    assert counted(chain.tagger.registry, "score_difference_count", "shadow") == 22
    alone = Chain(config(shadow))
    again = infer_all(alone.tagger, block).columns["Photon_egScore"]
    chosen = slice(3, None, 4)
    wanted = np.abs(scores - again)[chosen]
    assert counted(chain.tagger.registry, "score_difference_sum", "shadow") == pytest.approx(wanted.sum(), rel=1e-4)
    sides = int(np.count_nonzero((scores > 0.5) != (again > 0.5)) and np.count_nonzero(
        (scores[chosen] > 0.5) != (again[chosen] > 0.5)))  # fmt: skip
    assert counted(chain.tagger.registry, "score_disagreements_total", "shadow") == sides > 0
    assert f"eg against its shadow: 22 scores compared, mean difference {wanted.mean():.2g}, {sides} disagree" in (
        caplog.text
    )


def test_the_cpu_agrees_with_itself(tmp_path: Path) -> None:
    for form in ("image", "sparse"):
        chain = Chain(config(conv_model(tmp_path / "m.onnx"), cpu_check=1.0, input=form))
        infer_all(chain.tagger, chain.crops(*columns(40)))
        chain.tagger.close()
        assert counted(chain.tagger.registry, "score_difference_count", "cpu") == 40
        assert counted(chain.tagger.registry, "score_difference_sum", "cpu") < 1e-3
        assert counted(chain.tagger.registry, "score_disagreements_total", "cpu") == 0


def test_a_device_that_miscounts_is_found(tmp_path: Path) -> None:
    made = config(sum_model(tmp_path / "sum.onnx"), cpu_check=0.5)
    ((against, network, share),) = second_networks("eg", made)
    registry = CollectorRegistry()
    opinion = SecondOpinion(against, network, share, OpinionMetrics(registry))
    chain = Chain(config(tmp_path / "sum.onnx"))
    block = chain.crops(*columns(40))
    right = infer_all(chain.tagger, block).columns["Photon_egScore"]
    wrong = np.where(np.arange(40) % 4 == 1, right + 0.002, right)
    wrong[7] = np.nan
    opinion.look([Part(block, 0, 15), Part(block, 15, 40)], wrong)
    opinion.close()
    opinion.wait()
    assert counted(registry, "score_difference_count", "cpu") == 19
    assert counted(registry, "score_disagreements_total", "cpu") == 11, "ten that are off, and no number"


def test_the_thread_that_scores_again_does_not_keep_the_others_waiting(tmp_path: Path) -> None:
    made = config(sum_model(tmp_path / "sum.onnx"), cpu_check=1.0)
    ((against, network, share),) = second_networks("eg", made)
    registry = CollectorRegistry()
    opinion = SecondOpinion(against, network, share, OpinionMetrics(registry))
    block = Chain(config(tmp_path / "sum.onnx")).crops(*columns(1))
    opinion.look([Part(block, 0, 1)], np.zeros(1, np.float32))
    wait_until(lambda: counted(registry, "score_difference_count", "cpu") == 1, "its first score")
    thread = opinion._thread.native_id
    assert thread is not None
    assert os.getpriority(os.PRIO_PROCESS, thread) == os.getpriority(os.PRIO_PROCESS, 0)
    opinion.close()
    opinion.wait()


def test_what_is_too_much_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = config(sum_model(tmp_path / "sum.onnx"), cpu_check=1.0)
    ((against, network, share),) = second_networks("eg", made)
    registry = CollectorRegistry()
    opinion = SecondOpinion(against, network, share, OpinionMetrics(registry))
    block = Chain(config(tmp_path / "sum.onnx")).crops(*columns(300))
    with opinion._changed:  # so that nothing is taken meanwhile
        opinion.look([Part(block, 0, 300)], np.zeros(300, np.float32))
    opinion.close()
    opinion.wait()
    assert counted(registry, "second_scores_skipped_total", "cpu") == 300 - MOST_WAITING
    assert counted(registry, "score_difference_count", "cpu") == MOST_WAITING


def test_a_shadow_that_does_not_fit_is_told_by_its_own_name(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none.onnx: cannot be read .*; set taggers.eg.shadow"):
        Chain(config(conv_model(tmp_path / "m.onnx"), shadow=tmp_path / "none.onnx"))
