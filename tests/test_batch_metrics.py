"""What a running tagger tells of its batches, held against what came out of the stream."""

import signal
from collections.abc import Iterator
from pathlib import Path

import awkward as ak
import numpy as np
import pytest
import uproot
from physics_helpers import Process, Processes, wait_until

from stages.config import TAGGERS, Config, packaged
from stages.network import Network
from streamer.batcher import REASONS
from streamer.config import load
from streamer.metrics import OUTCOMES

STAGES = ("framer-0", "cropper-0", "writer-0")


@pytest.fixture
def streamer(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as made:
        yield made


def at_rest(process: Process) -> dict[str, float] | None:
    """The tagger's page, when all that came to the first stage has left the last one."""
    page = process.metrics("tagger-0")
    others = {n_events(process.metrics(stage)) for stage in STAGES}
    again = process.metrics("tagger-0")
    told = {key: n for key, n in page.items() if "batch" in key or "events" in key}
    same = told == {key: again.get(key) for key in told}
    return page if same and others == {n_events(page)} and not page["streamer_blocks_in_flight"] else None


def n_events(page: dict[str, float]) -> int:
    return int(sum(page.get(f"streamer_events_total/{outcome}", 0) for outcome in OUTCOMES))


@pytest.mark.parametrize("deadline", [0.0, 0.03], ids=["no deadline", "a deadline"])
def test_every_crop_is_accounted_for(deadline: float, streamer: Processes, tmp_path: Path) -> None:
    """By default, with all packaged networks."""
    out = tmp_path / "out"
    samples = [packaged(f"samples/{name}.root") for name in ("qg", "top", "tau", "egamma")]
    process = streamer(
        *("run", *samples, "--output", out, "--rate", 200, "--set", f"tagger.deadline={deadline}"),
        *(part for name in TAGGERS for part in ("--tagger", name)),
        *("--set", "feed.block_events=16", "--set", "writer.error_files=0", "--replicas", "tagger=1"),
        *("--set", "feed.max_in_flight=100", "--set", "supervisor.stall_timeout=300"),  # it rests soon, and is let rest
    )
    wait_until(lambda: n_events(process.metrics("writer-0")) >= 350, "350 events")  # of which a slow machine sheds most
    process.stage("reader-0").send_signal(signal.SIGSTOP)
    page = wait_until(lambda: at_rest(process), "all that was fed to come out")
    process.stage("reader-0").send_signal(signal.SIGCONT)
    process.signal(signal.SIGINT)
    process.check()
    config = load(Config, None, {f"taggers.{name}": {} for name in TAGGERS})
    with uproot.open(out / "scores.root") as file:
        rows = file["Events"].arrays(entry_stop=n_events(page))
    assert len(rows) == n_events(page)
    for name, spec in config.taggers.items():
        objects = spec.objects
        selected = (rows[f"{objects}_pt"] > spec.pt_min) & (abs(rows[f"{objects}_eta"]) < spec.eta_max)
        n_crops = int(ak.sum(selected & (rows[f"{objects}_seedRow"] >= 0)))
        n_scored = int(ak.sum(rows[f"{objects}_{spec.score}"] != -1))
        answered, shed = page[f"streamer_batch_size_sum/{name}"], page[f"streamer_items_shed_total/{name}"]
        assert n_crops > 0
        assert (answered, answered + shed) == (n_scored, n_crops)
        n_batches = page[f"streamer_batch_size_count/{name}"]
        assert sum(page[f"streamer_batch_closed_total/{name},{reason}"] for reason in REASONS) == n_batches
        assert page[f"streamer_batch_wait_seconds_count/{name}"] == answered
        assert page[f"streamer_batch_items_waiting/{name}"] == 0
        places = answered + page[f"streamer_batch_padding_total/{name}"]
        moved = {way: page[f"streamer_batch_transfer_bytes_total/{way},{name}"] for way in ("in", "out")}
        given = sum(array.nbytes for array in Network(name, config).form.arrays(1))
        assert given >= 4 * np.prod(spec.shape)
        assert moved == {"in": places * given, "out": places * 4}
        if not deadline:
            assert shed == 0
    seconds = sum(page[f"streamer_batch_seconds_total/{name}"] for name in TAGGERS)
    assert seconds == pytest.approx(page["streamer_busy_seconds_total"])
