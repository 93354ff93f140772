"""A second opinion: a share of the crops is scored once more by another network, beside the stream."""

import logging
import threading
from collections import deque
from collections.abc import Mapping
from itertools import repeat
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry, Counter, Histogram

from stages.config import Config
from stages.forms import Sparse
from stages.network import NO_FINDINGS, Finding, Network
from streamer.batcher import Part
from streamer.block import Array, Block
from streamer.errors import one_line

log = logging.getLogger(__name__)

MOST_WAITING = 256
"""Crops that wait for their second score; what comes on top is skipped, and counted."""
TOLERANCE = 1e-3
"""So much may scores of the same network on two devices differ."""
EDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.3, 1.0)


class OpinionMetrics:
    """What second opinions tell, by tagger and by what the score is held against: `shadow` or `cpu`."""

    def __init__(self, registry: CollectorRegistry) -> None:
        labels = ["tagger", "against"]
        self.difference = Histogram(
            "streamer_score_difference",
            "size of the difference of two scores",
            labels,
            buckets=EDGES,
            registry=registry,
        )
        self.disagreements = Counter(
            "streamer_score_disagreements",
            "crops whose scores disagree: with the shadow, on different sides of 0.5; with the CPU, by more than 0.001",
            labels,
            registry=registry,
        )
        self.skipped = Counter(
            "streamer_second_scores_skipped", "crops that no second score was made for", labels, registry=registry
        )


def second_networks(
    name: str, config: Config, device: int = 0, rehearsed: Mapping[str, Finding] = NO_FINDINGS
) -> list[tuple[str, Network, float]]:
    """What scores again for a tagger, warm: against what, by what network, which share of the objects.

    Parameters
    ----------
    rehearsed : mapping
        What a rehearsal found, by what it is against.

    Raises
    ------
    UsageError
        The shadow cannot be used.
    """
    spec, made = config.taggers[name], []
    if spec.shadow is not None:
        network = _second(name, config, "shadow", rehearsed.get("shadow"), device, model=spec.shadow)
        made.append(("shadow", network, spec.shadow_share))
    if spec.cpu_check:
        form = "points" if spec.input == "points" else "image"
        network = _second(name, config, "model", rehearsed.get("cpu"), provider="cpu", input=form)
        made.append(("cpu", network, spec.cpu_check))
    return made


def _second(
    name: str,
    config: Config,
    key: str,
    found: Finding | None,
    device: int = 0,
    provider: str = "",
    **changed: Any,
) -> Network:
    spec = config.taggers[name].model_copy(update=changed)
    runs = {"policy": "fixed", "deadline": 0.0, "max_batch": 16, **({"provider": provider} if provider else {})}
    settings = {"taggers": {**config.taggers, name: spec}, "tagger": config.tagger.model_copy(update=runs)}
    network = Network(name, config.model_copy(update=settings), key, device, found=found)
    network.get_ready(found)
    return network


class SecondOpinion:
    """Scores crops once more in a thread of its own.

    The thread does not give way: it needs Python's lock now and then, and then all would wait for it. What bounds it is
    the share, and `MOST_WAITING`.

    Parameters
    ----------
    against : str
        `shadow` or `cpu`.
    network : Network
        What scores again; it is used by nobody else.
    share : float
        Of the crops.
    """

    def __init__(self, against: str, network: Network, share: float, metrics: OpinionMetrics) -> None:
        labels = network.name, against
        self._network, self._share, self._against = network, share, against
        self._difference = metrics.difference.labels(*labels)
        self._disagreements = metrics.disagreements.labels(*labels)
        self._skipped = metrics.skipped.labels(*labels)
        self._seen = self._compared = self._disagreed = 0
        self._sum = 0.0
        self._waiting: deque[tuple[Sparse, int, float]] = deque()
        self._changed = threading.Condition(threading.RLock())
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=f"{network.name} {against}", daemon=True)
        self._thread.start()

    def look(self, parts: list[Part[Block]], scores: Array) -> None:
        """Take the share of these items, evenly; never waits."""
        first = np.arange(self._seen, self._seen + scores.size + 1)
        self._seen += scores.size
        chosen = np.flatnonzero(np.diff(np.floor(first * self._share)))
        if not chosen.size:
            return
        ends = np.cumsum([part.size for part in parts])
        with self._changed:
            taken = chosen[: MOST_WAITING - len(self._waiting)]
            self._skipped.inc(chosen.size - taken.size)
            part_of = np.searchsorted(ends, taken, side="right")
            for k in np.unique(part_of):
                sparse, part = self._network.sparse(parts[k].key.columns), parts[k]
                items = taken[part_of == k]
                places = items + (part.stop - ends[k])
                self._waiting += zip(repeat(sparse), places.tolist(), scores[items].tolist())
            self._changed.notify()

    def close(self) -> None:
        """Nothing more will come: what waits is finished, and then told what was found."""
        with self._changed:
            self._closing = True
            self._changed.notify()

    def wait(self) -> None:
        """Wait a while until all is told."""
        self._thread.join(timeout=5)

    def _tell(self) -> None:
        if self._compared:
            log.info(
                "%s against its %s: %d scores compared, mean difference %.2g, %d disagree",
                self._network.name,
                self._against,
                self._compared,
                self._sum / self._compared,
                self._disagreed,
            )

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._waiting and not self._closing:
                    self._changed.wait()
                if not self._waiting:
                    break
                n = min(len(self._waiting), self._network.max_batch)
                batch = [self._waiting.popleft() for _ in range(n)]
            try:
                self._compare(batch)
            except Exception as error:
                self._skipped.inc(len(batch))
                log.warning("%s: %s", self._network.model.where, one_line(error))
        self._tell()

    def _compare(self, batch: list[tuple[Sparse, int, float]]) -> None:
        network = self._network
        for place, (sparse, item, _) in enumerate(batch):
            network.form.fill(sparse, item, item + 1, place)
        again = network.run(network.padded(len(batch)))[: len(batch)]
        scores = np.array([score for *_, score in batch])
        good = np.isfinite(scores) & np.isfinite(again)
        difference = np.abs(scores - again)[good]
        if self._against == "cpu":
            disagree = int(np.count_nonzero(difference > TOLERANCE) + np.count_nonzero(~good))
        else:
            disagree = int(np.count_nonzero((scores > 0.5) != (again > 0.5)))
        for one in difference:
            self._difference.observe(one)
        self._disagreements.inc(disagree)
        self._compared += len(batch)
        self._disagreed += disagree
        self._sum += float(difference.sum())
