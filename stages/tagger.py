"""Tagger: crops become dense only here, in the batch that ONNX Runtime is handed (`stages.network`)."""

import logging
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from stages import records
from stages.config import Config, digest
from stages.machine import cores, n_gpus
from stages.network import NO_FINDINGS, WARM_UP_S, Finding, Network, threads_of
from stages.second import OpinionMetrics, SecondOpinion, second_networks
from streamer.background import give_way
from streamer.batcher import Part
from streamer.block import FED_TIME, Array, Block, Columns, with_failures
from streamer.costs import Costs
from streamer.deadline import with_shed
from streamer.errors import UsageError, nearest
from streamer.stage import LATE, BatchStage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """A network that is ready, and what scores again for it: against what, by what, which share."""

    network: Network
    seconds: list[tuple[str, Network, float]]

    @property
    def findings(self) -> dict[str, dict[str, Any]]:
        """What is known of each since it was warmed up, as plain data: by `model`, `shadow` and `cpu`."""
        each = [("model", self.network), *((against, network) for against, network, _ in self.seconds)]
        return {what: network.finding.model_dump(mode="json") for what, network in each}


def pin(config: Config) -> None:
    """This thread, and those that it starts, use the cores that are set aside for inference.

    Raises
    ------
    UsageError
        This process may not use one of them.
    """
    if config.tagger.cpus:
        os.sched_setaffinity(0, cores(config.tagger.cpus))


def loaded(
    config: Config,
    names: Iterable[str],
    device: int = 0,
    rehearsed: Mapping[str, Mapping[str, Any]] = NO_FINDINGS,
    within: float = WARM_UP_S,
) -> list[Loaded]:
    """Networks, checked and warm, and what scores again for them.

    Parameters
    ----------
    device : int
        Which GPU, where one is used.
    rehearsed : mapping
        `Loaded.findings` by tagger, of those that were tried in a rehearsal.
    within : float
        See `stages.network.Network.warm_up`.

    Raises
    ------
    UsageError
        With one line for each that cannot be used.
    """
    made: list[Loaded] = []
    problems: list[str] = []
    for name in names:
        found = {what: Finding.model_validate(one) for what, one in rehearsed.get(name, {}).items()}
        try:
            network = Network(name, config, device=device, found=found.get("model"))
            network.get_ready(found.get("model"), within)
            made.append(Loaded(network, second_networks(name, config, device, found)))
        except UsageError as error:
            problems += [line for line in str(error).splitlines() if line not in problems]
    if problems:
        raise UsageError("\n".join(problems))
    return made


def others(now: Config, wanted: Config) -> list[str]:
    """The taggers for which another file is wanted.

    Raises
    ------
    UsageError
        Something else is to be changed.
    """
    have = [*now.taggers]
    for name in wanted.taggers.keys() - now.taggers.keys():
        raise UsageError(f"there is no tagger '{name}' in this run{nearest(name, have)}; it has {', '.join(have)}")
    models = {name: spec.model for name, spec in now.taggers.items()}
    same = {name: spec.model_copy(update={"model": models.get(name)}) for name, spec in wanted.taggers.items()}
    if same != now.taggers or wanted.tagger != now.tagger:
        raise UsageError("only networks (taggers.NAME.model) can be changed while a run goes on")
    return [name for name, spec in wanted.taggers.items() if spec.model != models[name]]


class Tagger(BatchStage):
    """Runs the configured taggers' networks, each over batches of its own."""

    tallies = {"pixels_left_out": ("no_place",)}  # noqa: RUF012

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.opinions: dict[str, list[SecondOpinion]] = {}
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
        asked = any(spec.shadow or spec.cpu_check for spec in self.config.taggers.values())
        self._opinion_metrics = OpinionMetrics(self.registry) if asked else None
        self.priorities: dict[str, int] = {}
        self._n_changes = 0
        self._unseen: set[str] = set()  # since a change, the queues that no block has been given to
        self._pinned = False
        self.at_once = not self.config.tagger.cpus  # which are for the engine's thread
        self._use(self._loaded(self.config, self.config.taggers))

    def _loaded(self, config: Config, names: Iterable[str], rehearsed: Mapping[str, Any] = NO_FINDINGS) -> list[Loaded]:
        pin(config)
        made = loaded(config, names, self.replica % max(1, n_gpus()), rehearsed)
        for one in made:
            model, threads = one.network.model, threads_of(config)
            log.info("%s on %s, %d threads", model.where, model.provider, threads)
        return made

    def _use(self, loaded: Iterable[Loaded]) -> None:
        """Score with these from the next block on. What waits for others is scored by those."""
        suffix = f"#{self._n_changes}" if self._n_changes else ""
        for one in loaded:
            network = one.network
            for queue in [queue for queue in self.queues if self.networks[queue].name == network.name]:
                del self.queues[queue]
                if queue in self._unseen:  # nobody else has heard of it
                    self.forget(queue)
            queue = network.name + suffix
            self.networks[queue] = network
            if self._opinion_metrics is not None:
                self.opinions[queue] = [
                    SecondOpinion(against, second, share, self._opinion_metrics)
                    for against, second, share in one.seconds
                ]
            if network.costs is not None:
                self.costs[queue] = network.costs
            self.priorities[queue] = network.spec.priority
            self.queues[queue] = network.max_batch
            if suffix:
                self._unseen.add(queue)
        self._n_changes += 1

    def prepare(self, now: Config, wanted: Config, rehearsed: Mapping[str, Any]) -> Callable[[], None]:
        """Load other networks, and warm up those that were not tried in a rehearsal.

        Parameters
        ----------
        rehearsed : mapping
            What `stages.rehearsing.rehearse` found.

        Raises
        ------
        UsageError
            One cannot be used or is not the file that was tried, or something else is to be changed.
        """
        have = {self.networks[queue].name: self.networks[queue].model.sha256 for queue in self.queues}
        specs = wanted.taggers.items()
        names = others(now, wanted) or [name for name, spec in specs if digest(spec.model) != have[name]]
        if not names:
            raise UsageError("the stream has these networks already")
        # What was rehearsed is short, and does not give way: a thread that has Python to itself and no processor would
        # let all others wait. A session's own threads would have to give way for ever.
        if not rehearsed.keys() >= {*names} and threads_of(wanted) == 1:
            give_way()
        networks = self._loaded(wanted, names, rehearsed)

        def change() -> None:
            self.config = wanted
            self._use(networks)

        return change

    def close(self) -> None:
        opinions = [opinion for ones in self.opinions.values() for opinion in ones]
        for opinion in opinions:
            opinion.close()
        for opinion in opinions:
            opinion.wait()

    def forget(self, queue: str) -> None:
        for opinion in self.opinions.pop(queue, ()):
            opinion.close()
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
        self._unseen.clear()
        return {queue: self.networks[queue].items(block) for queue in self.queues}

    def deadlines(self, queue: str, block: Block) -> Array | None:
        after = self.config.tagger.deadline
        if not after and self.config.feed.deadline:
            after = self.config.feed.deadline - self.way_s
        if not after:
            return None
        fed = np.maximum.accumulate(block.columns[FED_TIME.name])
        return np.asarray(fed[self.networks[queue].events(block)] + int(after * 1e9))

    def events(self, queue: str, block: Block) -> Array:
        return self.networks[queue].events(block)

    def padded(self, queue: str, n: int) -> int:
        return self.networks[queue].padded(n)

    def transferred(self, queue: str, n: int) -> tuple[int, int]:
        return self.networks[queue].transferred(n)

    def infer(self, queue: str, parts: list[Part[Block]]) -> Array:
        if not self._pinned:  # where cores are set aside, it is always the engine's thread
            pin(self.config)
            self._pinned = True
        scores = self.networks[queue].infer(parts)
        for opinion in self.opinions.get(queue, ()):
            opinion.look(parts, scores)
        self.count("pixels_left_out", "no_place", self.networks[queue].take_left_out())
        return scores

    def failed(self, n_items: int) -> Array:
        results = np.empty(n_items, np.float32)
        results.fill(np.nan)  # sooner done than `np.full`
        return results

    def finish(self, block: Block, results: dict[str, Array], why: Mapping[str, Mapping[int, str]]) -> Block:
        """Scores in the order of the objects; an event with a score that is no number is marked, and one that was given
        up for its deadline is shed."""
        columns: Columns = dict(block.columns)
        failed: dict[int, str] = {}
        late: set[int] = set()
        for queue, scores in results.items():
            network = self.networks[queue]
            bad = network.place(columns, scores, why.get(queue, {}))
            if not bad:
                continue
            late |= {event for event, text in bad.items() if text == LATE}
            wrong = {event: text for event, text in bad.items() if text != LATE}
            failed = {**wrong, **failed}
            if wrong:
                log.error("%s: no score for %d events of block %d", network.name, len(wrong), block.id)
        if failed:
            columns = with_failures(columns, failed, self.mark)
        if late:
            columns = with_shed(columns, np.array([*late]), self.mark)
        return block.with_columns({name: columns[name] for name in self.outputs.by_name})
