"""Tagger: crops become dense only here, in the batch that ONNX Runtime is handed (`stages.network`)."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from stages import records
from stages.config import Config, digest
from stages.network import Network, threads_of
from streamer.batcher import Part
from streamer.block import FED_TIME, Array, Block, Columns, with_failures
from streamer.costs import Costs
from streamer.errors import UsageError, nearest
from streamer.stage import LATE, BatchStage

log = logging.getLogger(__name__)


class Tagger(BatchStage):
    """Runs the configured taggers' networks, each over batches of its own."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.inputs, self.outputs = records.crops(config), records.scores(config)
        self.max_wait = config.tagger.max_wait

    def setup(self) -> None:
        """Load the models, check them, and run each once at both ends of its range.

        Raises
        ------
        UsageError
            With one line for each model that cannot be used.
        """
        self.networks: dict[str, Network] = {}  # by queue: NAME, and after a change NAME#1, NAME#2, ...
        self.queues = {}
        self.costs: dict[str, Costs] = {}
        self.priorities: dict[str, int] = {}
        self._n_changes = 0
        self._use(self._loaded(self.config, [*self.config.taggers]))

    def _loaded(self, config: Config, names: Sequence[str]) -> dict[str, Network]:
        """Networks, checked and warm.

        Raises
        ------
        UsageError
            With one line for each that cannot be used.
        """
        found: dict[str, Network] = {}
        problems: list[str] = []
        for name in names:
            try:
                found[name] = Network(name, config)
                found[name].warm_up(self.inputs)
            except UsageError as error:
                problems += [line for line in str(error).splitlines() if line not in problems]
        if problems:
            raise UsageError("\n".join(problems))
        for network in found.values():
            log.info("%s on %s, %d threads", network.model.where, network.model.provider, threads_of(config))
        return found

    def _use(self, networks: Mapping[str, Network]) -> None:
        """Score with these from the next block on. What waits for others is scored by those."""
        suffix = f"#{self._n_changes}" if self._n_changes else ""
        for name, network in networks.items():
            for queue in [queue for queue in self.queues if self.networks[queue].name == name]:
                del self.queues[queue]
            queue = name + suffix
            self.networks[queue] = network
            if network.costs is not None:
                self.costs[queue] = network.costs
            self.priorities[queue] = network.spec.priority
            self.queues[queue] = network.max_batch
        self._n_changes += 1

    def prepare(self, config: Config) -> Callable[[], None]:
        """Load other networks and warm them up.

        Raises
        ------
        UsageError
            One cannot be used, or something else is to be changed.
        """
        now = self.config.taggers
        for name in config.taggers.keys() - now.keys():
            raise UsageError(
                f"there is no tagger '{name}' in this run{nearest(name, list(now))}; it has {', '.join(now)}"
            )
        models = {name: spec.model for name, spec in now.items()}
        wanted = {name: spec.model_copy(update={"model": models.get(name)}) for name, spec in config.taggers.items()}
        if wanted != now or config.tagger != self.config.tagger:
            raise UsageError("only networks (taggers.NAME.model) can be changed while a run goes on")
        current = {self.networks[queue].name: self.networks[queue] for queue in self.queues}
        others = [
            name
            for name, spec in config.taggers.items()
            if spec.model != current[name].spec.model or digest(spec.model) != current[name].model.sha256
        ]
        if not others:
            raise UsageError("the stream has these networks already")
        loaded = self._loaded(config, others)

        def change() -> None:
            self.config = config
            self._use(loaded)

        return change

    def forget(self, queue: str) -> None:
        del self.networks[queue]
        self.costs.pop(queue, None)
        del self.priorities[queue]

    def about(self) -> dict[str, Any]:
        models = {self.networks[queue].name: self.networks[queue].model for queue in self.queues}
        return {
            "provider": next(iter(models.values())).provider,
            "models": {name: {"path": str(model.spec.model), "sha256": model.sha256} for name, model in models.items()},
        }

    def items(self, block: Block) -> dict[str, int]:
        return {queue: self.networks[queue].items(block) for queue in self.queues}

    def deadlines(self, queue: str, block: Block) -> Array | None:
        after = self.config.tagger.deadline
        if not after:
            return None
        fed = np.maximum.accumulate(block.columns[FED_TIME.name])
        return np.asarray(fed[self.networks[queue].events(block)] + int(after * 1e9))

    def padded(self, queue: str, n: int) -> int:
        return self.networks[queue].padded(n)

    def transferred(self, queue: str, n: int) -> tuple[int, int]:
        size = self.padded(queue, n)
        return 4 * size * math.prod(self.networks[queue].spec.shape), 4 * size  # float32

    def infer(self, queue: str, parts: list[Part[Block]]) -> Array:
        return self.networks[queue].infer(parts)

    def failed(self, n_items: int) -> Array:
        return np.full(n_items, np.nan, np.float32)

    def finish(self, block: Block, results: dict[str, Array], why: Mapping[str, Mapping[int, str]]) -> Block:
        """Scores in the order of the objects; an event with a score that is no number is marked."""
        columns: Columns = dict(block.columns)
        failed: dict[int, str] = {}
        for queue, scores in results.items():
            network = self.networks[queue]
            bad = network.place(columns, scores, why.get(queue, {}))
            failed = {**bad, **failed}
            n_wrong = sum(text != LATE for text in bad.values())  # what was given up is counted, and no fault
            if n_wrong:
                log.error("%s: no score for %d events of block %d", network.name, n_wrong, block.id)
        columns = with_failures(columns, failed, self.mark)
        return block.with_columns({name: columns[name] for name in self.outputs.by_name})
