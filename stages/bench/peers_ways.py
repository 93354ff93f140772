"""The ways that `streamer bench peers` holds beside each other, each as a function from an offered rate to a `Load`."""

import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np

from stages import records
from stages.bench.crops import SCORES, crops
from stages.bench.peers_client import ANSWERS, CROPS, PATIENCE_S, START_S
from stages.bench.peers_server import Served, end, serving, start
from stages.bench.pipeline import GPU_TOLERANCE, TOLERANCE
from stages.bench.plot import Told
from stages.bench.tagger import LEAST_EVENTS, bare_rate, stream
from stages.config import Config
from stages.filling import fill_crops
from stages.network import Network
from streamer.block import Array, Columns, offsets
from streamer.config import to_toml
from streamer.errors import StreamerError, UsageError

QUANTILES = ("0.5", "0.99")
MOST_BYTES = 64 << 20
"""Of the dense crops that are sent; they are sent again and again."""
UNANSWERED = 4
"""So many batches may be unanswered ..."""
MOST_UNANSWERED = 512
"""... and so many crops: each is a connection to an HTTP server."""
WARM_UP_S = 0.3


@dataclass(frozen=True)
class Load:
    """One stream: crops that were offered (0: as many as are taken) and answered a second, and latencies [s].

    `client_busy` is the share of its time that the client's thread worked, for a way that has one.
    """

    offered: float
    crops_per_s: float
    cpu_s_per_crop: float
    latency_s: dict[str, float]
    client_busy: float = 0.0


Way = Callable[[float, bool], Load]
"""Takes the offered rate [crops/s], 0 for full speed, and whether each event is to be alone in its block."""


class Material:
    """Crops for all ways, and what the network says of them.

    Attributes
    ----------
    dense : float32, shape (n, n_channels, rows, columns)
        The first crops, as far as they fit into `MOST_BYTES`.
    dense_scores : float32, shape (n,)
    scores : float32, shape (n_objects,)
        As the tagger leaves them in one pass over the events: -1 for an object without a crop.
    per_event : float
        Crops of an event.
    largest : float
        Difference that was found up to now.
    """

    def __init__(self, name: str, config: Config, network: Network) -> None:
        self.name, self.largest = name, 0.0
        self.tolerance = TOLERANCE if network.model.provider == "CPU" else GPU_TOLERANCE
        spec = config.taggers[name]
        if not spec.crop:
            raise UsageError(f"bench peers: the tagger {name} sees whole frames; choose one that sees crops of objects")
        made = crops(config)
        crop = records.crop_names(config.crops[name])[0]
        n = int(made[f"n{crop}"].sum())
        if not n:
            raise UsageError(f"bench peers: no crop for the tagger {name} in {', '.join(map(str, config.input.files))}")
        each = 4 * int(np.prod(spec.shape))
        self.dense = np.empty((min(n, max(1, MOST_BYTES // each)), *spec.shape), np.float32)
        found = []
        for first in range(0, n, network.max_batch):
            batch = _dense(config, name, made, first, min(first + network.max_batch, n))
            self.dense[first : first + len(batch)] = batch[: max(0, len(self.dense) - first)]
            found.append(network.model.scores(batch))
        events = np.repeat(np.arange(made[f"n{crop}"].size), made[f"n{crop}"])
        scores = np.concatenate(found)
        self.dense_scores = scores[: len(self.dense)]
        self.scores = np.full(int(made[f"n{spec.objects}"].sum()), -1, np.float32)
        self.scores[offsets(made[f"n{spec.objects}"])[events] + made[f"{crop}_object"]] = scores
        self.per_event = n / made[f"n{crop}"].size

    def check(self, way: str, scores: Array, wanted: Array) -> None:
        """Compare scores with those that are wanted; relative above 1.

        Raises
        ------
        StreamerError
            They differ.
        """
        difference = float((np.abs(scores - wanted) / np.maximum(1, np.abs(wanted))).max(initial=0))
        if not difference <= self.tolerance:
            raise StreamerError(f"bench peers: {way}: scores differ by up to {difference:.2g} from the bare network's")
        self.largest = max(self.largest, difference)


def _dense(config: Config, name: str, made: Columns, first: int, last: int) -> Array:
    """The crops `first` to `last` as the tagger fills them in, shape (last - first, n_channels, rows, columns)."""
    spec, pixel = config.taggers[name], records.crop_names(config.crops[name])[1]
    towers = np.array([channel == "HCAL" for channel in spec.channels])
    batch = np.empty((last - first, len(spec.channels), spec.crop * spec.crop), np.float32)
    sparse = offsets(made[f"n{pixel}"]), made[f"{pixel}_index"], made[f"{pixel}_value"]
    fill_crops(*sparse, first, last, towers, spec.crop, batch, 0)
    return batch.reshape(-1, *spec.shape)


def bare(network: Network, size: int, seconds: float) -> Load:
    """The network alone, on batches that are ready."""
    begin, used = time.perf_counter(), time.process_time()
    rate = bare_rate(network, size, seconds)
    n = rate * (time.perf_counter() - begin)
    return Load(0.0, rate, (time.process_time() - used) / n, {})


def streamed(config: Config, material: Material, seconds: float, expected: float, told: Told) -> Way:
    """The tagger's process between two real hops.

    Parameters
    ----------
    config : Config
        Whose answers have a folder (`stages.bench.tagger.answering_into`).
    expected : float
        Crops a second at full speed, about.
    """
    full = expected / material.per_event

    def offer(rate: float, alone: bool) -> Load:
        nonlocal full
        events_per_s = rate / material.per_event
        n = seconds * (events_per_s or full)
        found = stream(
            material.name, config, told, events=n, deadline=np.inf, rate=events_per_s, block_events=int(alone)
        )
        got = np.load(config.writer.dir / SCORES.format(material.name))
        material.check("streamer", got, np.resize(material.scores, got.size))
        full = full if rate else found.events_per_s
        latency_s = {q: found.latency_s[q] for q in QUANTILES}
        return Load(rate, found.items_per_s, found.cpu_s_per_item, latency_s)

    return offer


@contextmanager
def asked(kind: str, config: Config, material: Material, seconds: float, folder: Path) -> Iterator[Way]:
    """A server that is asked for one crop at a time.

    Parameters
    ----------
    kind : str
        `zmq` or `mosec`.
    folder : Path
        For its sockets, and for what the client is given and leaves.

    Raises
    ------
    StreamerError
        Server or client failed.
    """
    folder.mkdir()
    settings = folder / "config.toml"
    settings.write_text(to_toml(config), encoding="utf-8")
    np.save(folder / CROPS, material.dense)
    if kind == "zmq":
        address = f"ipc://{folder}/zmq"
        options = [address]
    else:
        host, port = "127.0.0.1", str(free_port())
        address = f"{host}:{port}"
        options = ["--address", host, "--port", port, "--path", str(folder / "mosec"), "--log-level", "warning"]
    most = min(UNANSWERED * config.tagger.max_batch, MOST_UNANSWERED)
    seeds = count()

    with serving(kind, f"stages.bench.peers_{kind}", [str(settings), *options], folder / "server.log") as server:

        def offer(rate: float, lasting: float) -> Load:
            arguments = [kind, address, folder, rate, lasting, most, next(seeds)]
            used = server.cpu_s()
            _client(server, [str(one) for one in arguments], folder / "client.log", lasting)
            return _load(material, kind, folder / ANSWERS, rate, lasting, server.cpu_s() - used)

        offer(0.0, WARM_UP_S)  # its start is not to count
        yield lambda rate, alone: offer(rate, max(seconds, LEAST_EVENTS / rate) if rate else seconds)


def _load(material: Material, kind: str, answers: Path, rate: float, seconds: float, cpu_s: float) -> Load:
    """What a client has left, once its scores were checked."""
    with np.load(answers) as found:
        due, at, scores, busy = (found[name] for name in ("due", "at", "scores", "busy"))
    answered = np.isfinite(at)
    if not answered.any():
        raise StreamerError(f"bench peers: {kind} has not answered within {PATIENCE_S:g} s")
    material.check(kind, scores[answered], np.resize(material.dense_scores, at.size)[answered])
    late = (at - due)[at.size // 10 :]
    latency_s = {q: float(np.quantile(late, float(q), method="higher")) for q in QUANTILES} if rate else {}
    n_counted = int(np.count_nonzero((at >= seconds / 10) & (at < seconds)))
    return Load(rate, n_counted / (0.9 * seconds), cpu_s / int(answered.sum()), latency_s, float(busy))


def _client(server: Served, arguments: list[str], log: Path, seconds: float) -> None:
    with log.open("wb") as said:
        client = start("stages.bench.peers_client", arguments, said.fileno())
    try:
        server.watch(client, log, START_S + seconds + 2 * PATIENCE_S)
    finally:
        end(client)


def free_port() -> int:
    """A port on loopback that nobody has just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
