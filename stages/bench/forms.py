"""The forms of a network's input, held against each other on real crops: time, bytes, and whether scores agree."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from stages.bench.crops import crops
from stages.config import Config
from stages.forms import Sparse
from stages.network import Network
from streamer.block import Array

COMPARED = 256
"""Objects that are scored in every form."""


@dataclass(frozen=True)
class OfForm:
    """One form of input.

    Attributes
    ----------
    seconds : dict of int to float
        Of a batch by its size, with the time to fill it.
    bytes_per_item : float
        What is handed to the device.
    difference : float
        The greatest one to the scores of the dense image on the CPU.
    """

    form: str
    seconds: dict[int, float]
    bytes_per_item: float
    difference: float


def forms(name: str, config: Config) -> list[OfForm]:
    """Measure a tagger's network in each form that it can have."""
    columns = crops(config)
    given = config.taggers[name].input
    wanted = ("points",) if given == "points" else ("image", "sparse")
    reference = _network(name, config, wanted[0], provider="cpu")
    n = min(reference.items_of(columns), COMPARED)
    seen = reference.sparse(columns)
    expected = _scores(reference, seen, n)
    found = []
    for form in wanted:
        network = _network(name, config, form)
        sizes = sorted({min(1 << k, network.max_batch, n) for k in range(network.max_batch.bit_length() + 1)})
        sizes = [network.padded(size) for size in sizes] if network.model.fixed_batch else sizes
        seconds = {size: network.seconds(size, seen) for size in sizes if size <= n}
        network.form.fill(seen, 0, max(seconds), 0)
        sent = network.transferred(max(seconds))[0] / max(seconds)
        difference = float(np.abs(_scores(network, seen, n) - expected).max())
        found.append(OfForm(form, seconds, sent, difference))
    return found


def _network(name: str, config: Config, form: str, **settings: Any) -> Network:
    spec = config.taggers[name].model_copy(update={"input": form})
    changed = {
        "taggers": {**config.taggers, name: spec},
        "tagger": config.tagger.model_copy(update={"policy": "fixed", "deadline": 0.0, **settings}),
    }
    network = Network(name, config.model_copy(update=changed))
    network.warm_up()
    return network


def _scores(network: Network, seen: Sparse, n: int) -> Array:
    parts = []
    for first in range(0, n, network.max_batch):
        last = min(first + network.max_batch, n)
        network.form.fill(seen, first, last, 0)
        parts.append(network.run(network.padded(last - first))[: last - first].copy())
    return np.concatenate(parts)
