"""A tagger's network: an ONNX model that was checked, and the dense batches that it is handed."""

import contextlib
import hashlib
import io
import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from stages import records
from stages.config import Config, TaggerSpec
from stages.detector.layout import N_COLUMNS, N_PIXELS, N_TOWER_COLUMNS, N_TOWERS, TOWER
from stages.kernels import njit
from streamer.batcher import Part
from streamer.block import Array, Block, Columns, Schema, offsets, readonly
from streamer.costs import Costs, useful_sizes
from streamer.errors import UsageError

log = logging.getLogger(__name__)

WARM_UP_S = 0.005
"""Each batch size is measured for about so long at the start; running tells the rest."""

PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}


class Model:
    """An ONNX network that was checked against what its tagger sees.

    Parameters
    ----------
    path : Path
    spec : TaggerSpec
    provider : str
        `auto`, `cuda`, `tensorrt` or `cpu`.
    threads : int
        Of one inference on the CPU.

    Raises
    ------
    UsageError
        Not a model, a model of another shape, or a provider that does not load.
    """

    def __init__(self, name: str, path: Path, spec: TaggerSpec, provider: str, threads: int) -> None:
        self.where, self.spec = f"tagger {name}: {path}", spec
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{self.where}: cannot be read ({error.strerror}); set taggers.{name}.model") from None
        self.sha256 = hashlib.sha256(data).hexdigest()
        self.session = self._load(name, path, provider, threads)
        self.provider = self.session.get_providers()[0].removesuffix("ExecutionProvider")
        self.fixed_batch = self._check_input(name)
        self._check_output()

    def _load(self, name: str, path: Path, provider: str, threads: int) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        # A spinning thread would take the core that another stage needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what goes wrong is told in one line of our own
        wanted = [PROVIDERS[provider]] if provider != "auto" else [PROVIDERS["cuda"]] if has_gpu() else []
        providers = list(dict.fromkeys([*wanted, PROVIDERS["cpu"]]))
        ort.set_default_logger_severity(4)
        said = io.StringIO()  # it prints to standard output, where this process tells its states
        try:
            with contextlib.redirect_stdout(said):
                if wanted and wanted != [PROVIDERS["cpu"]]:
                    ort.preload_dlls()
                session = ort.InferenceSession(path, options, providers=providers)
        except Exception as error:  # ONNX Runtime raises its own kinds for each way to be broken
            raise UsageError(
                f"{self.where}: not a model that ONNX Runtime loads ({_line(error)}); export it again, or set "
                f"taggers.{name}.model"
            ) from None
        if wanted and session.get_providers()[0] != wanted[0]:
            why = next((f" ({line})" for line in said.getvalue().splitlines() if line.startswith("Failed to load")), "")
            if provider != "auto":
                raise UsageError(
                    f"tagger.provider = '{provider}' does not load on this machine{why}; "
                    "use 'auto' or 'cpu', or install the extra 'cuda' and a driver"
                )
            log.warning("there is a GPU, but ONNX Runtime cannot use it%s; running on the CPU", why)
        return session

    def _check_input(self, name: str) -> int:
        """Returns the batch size that the model insists on, or 0."""
        inputs = self.session.get_inputs()
        if len(inputs) != 1:
            raise UsageError(f"{self.where}: has {len(inputs)} inputs; one is needed")
        given = inputs[0]
        if given.type != "tensor(float)":
            raise UsageError(f"{self.where}: input '{given.name}' is {given.type}; float32 is needed")
        wanted = ("batch", *self.spec.shape)
        shape = tuple(given.shape)
        fits = len(shape) == 4 and all(
            not isinstance(have, int) or have == want for have, want in zip(shape[1:], wanted[1:], strict=True)
        )
        if not fits:
            raise UsageError(
                f"{self.where}: input '{given.name}' is {shape}, but channels {', '.join(self.spec.channels)} and "
                f"{f'crop {self.spec.crop}' if self.spec.crop else 'the whole frame'} make {wanted}; "
                f"change taggers.{name}.channels{' or .crop' if self.spec.crop else ''}, or the model"
            )
        self.input_name = given.name
        return shape[0] if isinstance(shape[0], int) else 0

    def _check_output(self) -> None:
        outputs = self.session.get_outputs()
        shape = tuple(outputs[0].shape)
        one_each = len(shape) == 1 or ((len(shape) == 2 and shape[1] in (1, None)) or isinstance(shape[-1], str))
        if len(outputs) != 1 or outputs[0].type != "tensor(float)" or not one_each:
            raise UsageError(f"{self.where}: output is {shape} {outputs[0].type}; one float32 score a crop is needed")

    def scores(self, batch: Array) -> Array:
        """One score a crop.

        Parameters
        ----------
        batch : float32, shape (n, n_channels, rows, columns)
        """
        n = len(batch)
        if self.fixed_batch and n < self.fixed_batch:
            padding = np.zeros((self.fixed_batch - n, *batch.shape[1:]), np.float32)
            batch = np.concatenate([batch, padding])
        scores = self.session.run(None, {self.input_name: batch})[0]
        if scores.size != len(batch):
            raise ValueError(f"{scores.size} scores for {len(batch)} crops")
        return np.asarray(scores.reshape(-1)[:n])


def has_gpu() -> bool:
    """Whether ONNX Runtime sees a CUDA device. (Its list of available providers names CUDA everywhere.)"""
    try:
        return any(device.ep_name == PROVIDERS["cuda"] for device in ort.get_ep_devices()) or os.path.exists(
            "/dev/nvidia0"
        )
    except AttributeError:  # an older ONNX Runtime
        return os.path.exists("/dev/nvidia0")


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


@njit(cache=True, nogil=True)
def fill_crops(
    pixel_offsets: Any, index: Any, value: Any, first: int, last: int, towers: Any, size: int, batch: Any, place: int
) -> None:
    """Write the crops `first` to `last` of a block into rows `place` and following of a dense batch.

    Parameters
    ----------
    pixel_offsets : int64, shape (n_crops * n_channels + 1,)
    towers : bool, shape (n_channels,)
        The channels whose entries are towers: 5 x 5 pixels with 1/25 of the value each.
    batch : float32, shape (n, n_channels, size * size)
        Overwritten, zeros included.
    """
    n_channels, area = batch.shape[1], size * size
    over = TOWER - 1
    for crop in range(first, last):
        for channel in range(n_channels):
            image = batch[place + crop - first, channel]
            image[:] = 0
            entry = crop * n_channels + channel
            for pixel in range(pixel_offsets[entry], pixel_offsets[entry + 1]):
                if not towers[channel]:
                    if index[pixel] < area:
                        image[index[pixel]] += value[pixel]
                    continue
                row, column = index[pixel] // (size + over) - over, index[pixel] % (size + over) - over
                share = value[pixel] / np.float32(TOWER * TOWER)
                for i in range(max(row, 0), min(row + TOWER, size)):
                    for j in range(max(column, 0), min(column + TOWER, size)):
                        image[i * size + j] += share


@njit(cache=True, nogil=True)
def fill_frames(
    pixel_offsets: Any, index: Any, value: Any, first: int, last: int, n_channels: int, picked: Any, towers: Any,
    batch: Any, place: int,
) -> None:  # fmt: skip
    """Write the frames of the events `first` to `last` of a block into rows `place` and following of a dense batch.

    Parameters
    ----------
    pixel_offsets : int64, shape (n_events * n_channels + 1,)
    picked : int64, shape (n_picked,)
        The frame's channels that the network sees, in its order.
    towers : bool, shape (n_picked,)
        Those that hold towers.
    batch : float32, shape (n, n_picked, 280 * 360)
        Overwritten, zeros included.
    """
    for event in range(first, last):
        for k in range(picked.size):
            image = batch[place + event - first, k]
            image[:] = 0
            entry = event * n_channels + picked[k]
            for pixel in range(pixel_offsets[entry], pixel_offsets[entry + 1]):
                if not towers[k]:
                    if 0 <= index[pixel] < N_PIXELS:
                        image[index[pixel]] += value[pixel]
                elif 0 <= index[pixel] < N_TOWERS:
                    corner = index[pixel] // N_TOWER_COLUMNS * TOWER * N_COLUMNS
                    corner += index[pixel] % N_TOWER_COLUMNS * TOWER
                    share = value[pixel] / np.float32(TOWER * TOWER)
                    for i in range(TOWER):
                        for j in range(TOWER):
                            image[corner + i * N_COLUMNS + j] += share


class Network:
    """One tagger at work: its model, and the dense batch that its crops or frames are written into.

    Raises
    ------
    UsageError
        Whatever is wrong with the model.
    """

    def __init__(self, name: str, config: Config) -> None:
        self.name, self.spec = name, config.taggers[name]
        self.model = Model(name, self.spec.model, self.spec, config.tagger.provider, threads_of(config))
        n_channels, rows, columns = self.spec.shape
        fitting = (config.tagger.batch_mb << 20) // (4 * n_channels * rows * columns)
        self._config = config.tagger
        self.costs: Costs | None = None
        self.exact = self.model.provider == "CPU"  # where a new size costs nothing, nothing is padded
        self.max_batch = self.model.fixed_batch or max(1, min(config.tagger.max_batch, fitting))
        self._batch = np.zeros((self.max_batch, n_channels, rows * columns), np.float32)
        self._towers = np.array([channel == "HCAL" for channel in self.spec.channels])
        self._picked = np.array([config.channels.index(channel) for channel in self.spec.channels])
        if self.spec.crop:
            self.crop, self.pixel = records.crop_names(config.crops[name])
        self.score = records.score_column(name, self.spec).name
        self.model_is = records.model_column(name).name

    def warm_up(self, inputs: Schema) -> None:
        """Compile, run the network, and where batches are to adapt, learn what they cost.

        Raises
        ------
        UsageError
            The network fails, or no crop could be scored before its deadline.
        """
        self._fill(inputs.empty(), 0, 0, 0)
        try:
            if self._config.policy == "adaptive":
                self.costs = self._learned()
            else:
                for n in {1, self.max_batch}:
                    self.run(n)
        except Exception as error:
            raise UsageError(f"{self.model.where}: fails on empty crops ({_line(error)})") from None
        least = self.costs.of(1) if self.costs else 0.0
        if 0 < self._config.deadline < least:
            raise UsageError(
                f"tagger.deadline = {self._config.deadline * 1e3:g} ms, but one inference of {self.model.where} takes "
                f"{least * 1e3:.3g} ms here; the events' way to the tagger comes on top"
            )

    def _learned(self) -> Costs:
        """What batches cost, from sizes that are each four times the one before."""
        some = {1 << k for k in range(0, self.max_batch.bit_length(), 2)}
        ends = [self.max_batch] if self.model.fixed_batch else sorted({*some, self.max_batch})
        self.run(self.max_batch)  # takes the memory
        measured = {n: self.seconds(n, WARM_UP_S) for n in ends}
        sizes = useful_sizes(measured)
        if not self.exact:
            for n in sizes:  # so that nothing is compiled when events are waiting
                self.run(n)
        return Costs(dict(zip(sizes, np.interp(sizes, ends, list(measured.values())).tolist(), strict=True)))

    def seconds(self, n: int, within: float = 0.05) -> float:
        """Seconds of a batch: the least of some, measured for about so long [s]."""
        if not self.exact:  # a new size is compiled
            self.run(n)
        took: list[float] = []
        while len(took) < 3 or (len(took) < 20 and sum(took) < within):
            begin = time.perf_counter()
            self.run(n)
            took.append(time.perf_counter() - begin)
            if sum(took) > 3 * within:
                break
        return min(took)

    def items(self, block: Block) -> int:
        return int(block.columns[f"n{self.crop}"].sum()) if self.spec.crop else block.n_events

    def infer(self, parts: list[Part[Block]]) -> Array:
        n = 0
        for part in parts:
            self._fill(part.key.columns, part.start, part.stop, n)
            n += part.size
        return self.run(self.padded(n))[:n]  # what is padded holds earlier crops; their scores are not looked at

    def padded(self, n: int) -> int:
        """The batch size that `n` items are run at."""
        if self.model.fixed_batch:
            return self.model.fixed_batch
        return self.costs.size(n) if self.costs and not self.exact else n

    def run(self, n: int) -> Array:
        return self.model.scores(self._batch[:n].reshape(n, *self.spec.shape))

    def events(self, block: Block) -> Array:
        """The event of each item."""
        if not self.spec.crop:
            return np.arange(block.n_events)
        return np.repeat(np.arange(block.n_events), block.columns[f"n{self.crop}"])

    def _fill(self, columns: Columns, first: int, last: int, place: int) -> None:
        pixel = self.pixel if self.spec.crop else "Pixel"
        counts = columns[f"n{pixel}"]
        sparse = offsets(counts), readonly(columns[f"{pixel}_index"]), readonly(columns[f"{pixel}_value"])
        if self.spec.crop:
            fill_crops(*sparse, first, last, self._towers, self.spec.crop, self._batch, place)
        else:
            fill_frames(*sparse, first, last, counts.shape[1], self._picked, self._towers, self._batch, place)

    def place(self, columns: Columns, results: Array, why: Mapping[int, str]) -> dict[int, str]:
        """Put the scores where their objects are, -1 elsewhere; returns the events with a score that is no number.

        Parameters
        ----------
        why : mapping of int to str
            The items that failed, and what was said.
        """
        columns[self.model_is] = np.full(columns["error"].size, int(self.model.sha256[:16], 16), np.uint64)
        good = np.isfinite(results)
        found = np.where(good, results, np.float32(-1))
        if not self.spec.crop:
            columns[self.score] = np.where(columns["error"] == 0, found, np.float32(-1))
            return self._failed(np.arange(good.size), results, why)
        n_objects = columns[f"n{self.spec.objects}"]
        events = np.repeat(np.arange(n_objects.size), columns[f"n{self.crop}"])
        scores = np.full(int(n_objects.sum()), -1, np.float32)
        scores[offsets(n_objects)[events] + columns[f"{self.crop}_object"]] = found
        columns[self.score] = scores
        return self._failed(events, results, why)

    def _failed(self, events: Array, results: Array, why: Mapping[int, str]) -> dict[int, str]:
        bad = np.flatnonzero(~np.isfinite(results))
        failed = {int(events[i]): f"the score of the {self.name} tagger is {results[i]}" for i in bad}
        return failed | {int(events[i]): text for i, text in why.items()}


def threads_of(config: Config) -> int:
    """Threads of one inference; by default one for each two cores: the other stages need the rest."""
    return config.tagger.threads or max(1, len(os.sched_getaffinity(0)) // 2)
