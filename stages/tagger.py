"""Tagger: crops become dense only here, in the batch that ONNX Runtime is handed."""

import contextlib
import hashlib
import io
import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numba import njit

from stages import records
from stages.config import Config, TaggerSpec
from streamer.batcher import Part
from streamer.block import Array, Block, Columns, offsets, readonly
from streamer.errors import UsageError
from streamer.stage import BatchStage

log = logging.getLogger(__name__)

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
        side, n_channels = self.spec.crop, len(self.spec.channels)
        if len(inputs) != 1:
            raise UsageError(f"{self.where}: has {len(inputs)} inputs; one is needed")
        given = inputs[0]
        if given.type != "tensor(float)":
            raise UsageError(f"{self.where}: input '{given.name}' is {given.type}; float32 is needed")
        wanted = ("batch", n_channels, side, side)
        shape = tuple(given.shape)
        fits = len(shape) == 4 and all(
            not isinstance(have, int) or have == want for have, want in zip(shape[1:], wanted[1:], strict=True)
        )
        if not fits:
            raise UsageError(
                f"{self.where}: input '{given.name}' is {shape}, but channels {', '.join(self.spec.channels)} and "
                f"crop {side} make {wanted}; change taggers.{name}.channels or .crop, or the model"
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
        batch : float32, shape (n, n_channels, crop, crop)
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
def fill(
    crop_offsets: Any, index: Any, value: Any, first: int, last: int, n_channels: int, batch: Any, place: int
) -> None:
    """Write the crops `first` to `last` of a block into rows `place` and following of a dense batch.

    Parameters
    ----------
    crop_offsets : int64, shape (n_crops * n_channels + 1,)
    batch : float32, shape (n, n_channels, area)
        Overwritten, zeros included.
    """
    area = batch.shape[2]
    for crop in range(first, last):
        for channel in range(n_channels):
            image = batch[place + crop - first, channel]
            image[:] = 0
            entry = crop * n_channels + channel
            for pixel in range(crop_offsets[entry], crop_offsets[entry + 1]):
                if index[pixel] < area:
                    image[index[pixel]] += value[pixel]


class Tagger(BatchStage):
    """Runs the configured tagger's network over batches of crops."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.inputs, self.outputs = records.crops(config), records.scores(config)
        ((self.name, self.spec),) = config.taggers.items()
        self.crop, self.pixel = records.crop_names(self.name)
        self.max_batch, self.max_wait = config.tagger.max_batch, config.tagger.max_wait

    def setup(self) -> None:
        """Load the model, check it, run it once at every end of its range."""
        threads = self.config.tagger.threads or default_threads()
        self.model = Model(self.name, self.spec.model, self.spec, self.config.tagger.provider, threads)
        if self.model.fixed_batch:
            self.max_batch = self.model.fixed_batch
        self._batch = np.zeros((self.max_batch, len(self.spec.channels), self.spec.crop**2), np.float32)
        try:
            for n in {1, self.max_batch}:
                self._run(n)
        except Exception as error:
            raise UsageError(f"{self.model.where}: fails on empty crops ({_line(error)})") from None
        no_pixels = readonly(np.zeros(0, np.uint16)), readonly(np.zeros(0, np.float32))
        fill(np.zeros(1, np.int64), *no_pixels, 0, 0, len(self.spec.channels), self._batch, 0)
        log.info("%s on %s, %d threads", self.model.where, self.model.provider, threads)

    def about(self) -> dict[str, Any]:
        return {
            "provider": self.model.provider,
            "model": str(self.spec.model),
            "model_sha256": self.model.sha256,
        }

    def _run(self, n: int) -> Array:
        side = self.spec.crop
        return self.model.scores(self._batch[:n].reshape(n, -1, side, side))

    def items(self, block: Block) -> int:
        return int(block.columns[f"n{self.crop}"].sum())

    def infer(self, parts: list[Part[Block]]) -> Array:
        n = 0
        for part in parts:
            columns = part.key.columns
            fill(
                offsets(columns[f"n{self.pixel}"]),
                readonly(columns[f"{self.pixel}_index"]),
                readonly(columns[f"{self.pixel}_value"]),
                part.start,
                part.stop,
                len(self.spec.channels),
                self._batch,
                n,
            )
            n += part.size
        return self._run(n)

    def failed(self, n_items: int) -> Array:
        return np.full(n_items, np.nan, np.float32)

    def finish(self, block: Block, results: Array) -> Block:
        """Scores in the order of the objects; an event with a score that is no number is marked."""
        columns: Columns = dict(block.columns)
        n_objects = columns[f"n{self.spec.objects}"]
        scores = np.full(int(n_objects.sum()), -1, np.float32)
        events = np.repeat(np.arange(block.n_events), columns[f"n{self.crop}"])
        good = np.isfinite(results)
        scores[offsets(n_objects)[events] + columns[f"{self.crop}_object"]] = np.where(good, results, -1)
        columns[f"{self.spec.objects}_{self.spec.score}"] = scores
        if not good.all():
            error = columns["error"].copy()
            error[events[~good]] = self.mark
            columns["error"] = error
            log.error("block %d: %d crops without a finite score", block.id, int((~good).sum()))
        return block.with_columns({name: columns[name] for name in self.outputs.by_name})


def default_threads() -> int:
    """One thread for each two cores: the other stages need the rest."""
    return max(1, len(os.sched_getaffinity(0)) // 2)
