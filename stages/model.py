"""A tagger's ONNX model: loaded, and checked against what its tagger sees."""

import contextlib
import io
import logging
import os
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from stages.config import TaggerSpec, hashed, weights_of
from stages.filling import grid_of
from stages.graph import ENTRIES, SurgeryError, rebuilt
from stages.scaling import ASINH, Scaling, cut, scaling_of
from streamer.block import Array
from streamer.errors import UsageError, nearest

log = logging.getLogger(__name__)

PROVIDERS = {
    "tensorrt": "TensorrtExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "cpu": "CPUExecutionProvider",
}
FLOATS = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
CONSTANTS = {**FLOATS, "tensor(int64)": np.int64, "tensor(int32)": np.int32, "tensor(bool)": np.bool_}


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
    form : str
        What it takes: `image`, `sparse` or `points`; see `stages.forms`.
    key : str
        The setting that names its file.
    device : int
        Which GPU, where one is used.
    tried : str
        The SHA-256 that its files must have; any where it is empty.

    Attributes
    ----------
    sha256 : str
        Of its files.
    fixed_batch : int
        The batch size that it insists on, or 0.
    n_points : int
        Points that it insists on, or those of `spec`.

    Raises
    ------
    UsageError
        Not a model, a model of another shape, another one than was tried, one that was written anew meanwhile, or a
        provider that does not load.
    """

    def __init__(
        self,
        name: str,
        path: Path,
        spec: TaggerSpec,
        provider: str,
        threads: int,
        form: str = "image",
        key: str = "model",
        device: int = 0,
        tried: str = "",
    ) -> None:
        self.where, self.spec, self._name, self._path = f"tagger {name}: {path}", spec, name, path
        self._key = f"taggers.{name}.{key}"
        self._provider, self._threads, self._device = provider, threads, device
        before = _stamp(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UsageError(f"{self.where}: cannot be read ({error.strerror}); set {self._key}") from None
        others = []
        for weights in weights_of(data):
            others.append(path.parent / weights)
            if not os.access(others[-1], os.R_OK):
                raise UsageError(
                    f"{self.where}: its weights are in '{weights}', which cannot be read; put it beside the model"
                )
        self._stamps = {path: before, **{other: _stamp(other) for other in others}}
        self.sha256 = hashed(data, others)
        if tried and self.sha256 != tried:
            raise UsageError(f"{self.where}: has become another file since it was tried; ask for it again")
        here = provider == "cpu" or (provider == "auto" and not has_gpu())
        session = self._load(path, optimised=not here)  # which is sooner there, to look at its inputs and outputs
        if not here:  # where it takes long to make one
            self.session = session
        self.provider = session.get_providers()[0].removesuffix("ExecutionProvider")
        self.n_points = spec.points
        self._inputs = self._check_points(session) if form == "points" else [self._check_image(session)]
        self.fixed_batch = next((one.shape[0] for one in self._inputs if isinstance(one.shape[0], int)), 0)
        self._others = self._check_others(session)
        self._output = self._check_output(session)
        self._names = [one.name for one in self._inputs]
        self._dtypes: list[Any] = [FLOATS[one.type] for one in self._inputs]
        if form == "sparse" or spec.normalise:
            self._operate(path, sparse=form == "sparse")

    @cached_property
    def session(self) -> Any:
        """What runs: the file as it is, where nothing was put in front of it or cut off."""
        return self._load(self._path)

    def load(self) -> None:
        """Load what runs now, and not when it first does."""
        _ = self.session

    def _load(self, model: Path | bytes, *, optimised: bool = True) -> Any:
        options = ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # A spinning thread would take the core that another stage needs.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4  # what goes wrong is told in one line of our own
        asked = self._provider
        wanted = [PROVIDERS[asked]] if asked != "auto" else [PROVIDERS["cuda"]] if has_gpu() else []
        if not optimised:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        providers = list(dict.fromkeys([*wanted, PROVIDERS["cpu"]]))
        ort.set_default_logger_severity(4)
        said = io.StringIO()  # it prints to standard output, where this process tells its states
        try:
            with contextlib.redirect_stdout(said):
                if wanted and wanted != [PROVIDERS["cpu"]]:
                    ort.preload_dlls()
                given = [(one, provider_options(one, self._device)) for one in providers]
                session = ort.InferenceSession(model, options, providers=given)
        except Exception as error:  # ONNX Runtime raises its own kinds for each way to be broken
            raise UsageError(
                f"{self.where}: not a model that ONNX Runtime loads ({one_line(error)}); export it again, or set "
                f"{self._key}"
            ) from None
        if any(_stamp(path) != before for path, before in self._stamps.items()):  # or the hash may be another file's
            raise UsageError(f"{self.where}: was written anew while it was loaded; try again")
        if wanted and session.get_providers()[0] != wanted[0]:
            why = next((f" ({line})" for line in said.getvalue().splitlines() if line.startswith("Failed to load")), "")
            if asked != "auto":
                raise UsageError(
                    f"tagger.provider = '{asked}' does not load on this machine{why}; "
                    "use 'auto' or 'cpu', or install the extra 'cuda' and a driver"
                )
            log.warning("there is a GPU, but ONNX Runtime cannot use it%s; running on the CPU", why)
        return session

    def _operate(self, path: Path, *, sparse: bool) -> None:
        """Put in front of the network what its tagger wants."""
        grid = grid_of(self.spec, self.spec.channels)
        try:
            data = rebuilt(path, self._names, self.spec, grid, sparse=sparse)
        except SurgeryError as error:
            undo = (
                f"set taggers.{self._name}.input = 'image'" if sparse else f"leave out taggers.{self._name}.normalise"
            )
            raise UsageError(f"{self.where}: its graph cannot be changed: {error}; {undo}") from None
        self.session = self._load(data)
        if sparse:
            self._names, self._dtypes = list(ENTRIES), [np.int32, np.float32, np.int64]
        else:
            self._names[0], self._dtypes[0] = f"streamer_{self._names[0]}", np.float32

    def without_scaling(self) -> Scaling | None:
        """Leave to the caller what would be done to single pixels first, empty or not; None if that is nothing."""
        scaling, name = scaling_of(self.spec), self._inputs[0].name
        found = cut(self._path, name, len(self.spec.channels))
        if found is None and not scaling.factor.size:
            return None
        model: Path | bytes = self._path
        if found is not None:
            model, name, source, gain = found
            scaling = scaling.then(source, gain, np.full(gain.size, ASINH), np.zeros(gain.size))
        self.session = self._load(model)
        self._names[0], self._dtypes[0] = name, FLOATS[self._inputs[0].type]
        return scaling

    def _check_image(self, session: Any) -> Any:
        given = self._the_one(session.get_inputs(), self.spec.input_name, "input")
        wanted = ("batch", *self.spec.shape)
        if not _fits(given.shape, wanted):
            spec, shape = self.spec, tuple(given.shape)
            hint = f"change taggers.{self._name}.channels{' or .crop' if spec.crop else ''}, or the model"
            if len(shape) == 3:
                hint += f"; a network of points needs taggers.{self._name}.input = 'points'"
            raise UsageError(
                f"{self.where}: input '{given.name}' is {shape}, but channels {', '.join(spec.channels)} and "
                f"{f'crop {spec.crop}' if spec.crop else 'the whole frame'} make {wanted}; {hint}"
            )
        return given

    def _check_points(self, session: Any) -> list[Any]:
        """Points and mask."""
        inputs = [one for one in session.get_inputs() if one.name not in self.spec.constants]
        by_axes = {len(one.shape): one for one in inputs}
        wanted = ("batch", "points", 2 + len(self.spec.channels))
        if len(inputs) != 2 or by_axes.keys() != {2, 3} or not _fits(by_axes[3].shape, wanted):
            have = ", ".join(f"'{one.name}' {tuple(one.shape)}" for one in inputs)
            raise UsageError(
                f"{self.where}: its inputs are {have}, but points with {len(self.spec.channels)} channels are "
                f"{wanted}, and their mask {wanted[:2]}; change taggers.{self._name}.channels or .input, or the model"
            )
        for one in by_axes.values():
            self._check_type(one, "input")
        told = [one.shape[1] for one in by_axes.values() if isinstance(one.shape[1], int)]
        self.n_points = told[0] if told else self.n_points
        return [by_axes[3], by_axes[2]]

    def _the_one(self, candidates: list[Any], name: str, what: str) -> Any:
        """The input or output that is meant."""
        names = [one.name for one in candidates]
        open_ones = [one for one in candidates if one.name not in self.spec.constants or what == "output"]
        if name and name not in names:
            raise UsageError(
                f"{self.where}: has no {what} '{name}'{nearest(name, names)}; it has {', '.join(names) or 'none'}"
            )
        if not name and len(open_ones) != 1:
            raise UsageError(
                f"{self.where}: has {len(names)} {what}s ({', '.join(names)}); set taggers.{self._name}.{what}_name to "
                f"the one that {'takes the object' if what == 'input' else 'is the score'}"
                + (f", and taggers.{self._name}.constants for the others" if what == "input" else "")
            )
        found = next(one for one in candidates if one.name == name) if name else open_ones[0]
        self._check_type(found, what)
        return found

    def _check_type(self, one: Any, what: str) -> None:
        if one.type not in FLOATS:
            raise UsageError(f"{self.where}: {what} '{one.name}' is {one.type}; {', '.join(FLOATS)} are taken")

    def _check_others(self, session: Any) -> list[tuple[str, Any, list[Any], float]]:
        """The inputs that have a constant: name, type, shape, value."""
        taken = {one.name for one in self._inputs}
        others = [one for one in session.get_inputs() if one.name not in taken]
        names = [one.name for one in others]
        for one in others:
            if one.name not in self.spec.constants:
                raise UsageError(
                    f"{self.where}: nothing says what its input '{one.name}' {tuple(one.shape)} holds; "
                    f"set taggers.{self._name}.constants.{one.name}"
                )
            if one.type not in CONSTANTS:
                raise UsageError(f"{self.where}: input '{one.name}' is {one.type}; a constant cannot be that")
        for name in self.spec.constants.keys() - set(names):
            raise UsageError(
                f"{self.where}: taggers.{self._name}.constants.{name} is not another input{nearest(name, names)}; "
                f"there {'are ' + ', '.join(names) if names else 'is none'}"
            )
        return [(one.name, CONSTANTS[one.type], one.shape, self.spec.constants[one.name]) for one in others]

    def _check_output(self, session: Any) -> str:
        found = self._the_one(session.get_outputs(), self.spec.output_name, "output")
        shape = tuple(found.shape)
        one_each = len(shape) == 1 or ((len(shape) == 2 and shape[1] in (1, None)) or isinstance(shape[-1], str))
        if not one_each:
            raise UsageError(f"{self.where}: output is {shape} {found.type}; one score an object is needed")
        return str(found.name)

    def run(self, arrays: tuple[Array, ...], n: int) -> Array:
        """Scores of `n` items, float32.

        Parameters
        ----------
        arrays : tuple of array
            As the form that was asked for hands them out.
        """
        feed: dict[str, Array] = {
            name: array.astype(dtype, copy=False)
            for name, array, dtype in zip(self._names, arrays, self._dtypes, strict=True)
        }
        for name, dtype, shape, value in self._others:  # an axis that is open is the batch
            feed[name] = np.full([length if isinstance(length, int) else n for length in shape], value, dtype)
        scores = self.session.run([self._output], feed)[0]
        if scores.size != n:
            raise ValueError(f"{scores.size} scores for {n} objects")
        return np.asarray(scores.reshape(-1), np.float32)

    def scores(self, batch: Array) -> Array:
        """One score a crop, of a dense batch of any size up to the fixed one.

        Parameters
        ----------
        batch : float32, shape (n, n_channels, rows, columns)
        """
        n = len(batch)
        if self.fixed_batch and n < self.fixed_batch:
            padding = np.zeros((self.fixed_batch - n, *batch.shape[1:]), np.float32)
            batch = np.concatenate([batch, padding])
        return self.run((batch,), len(batch))[:n]


def provider_options(provider: str, device: int) -> dict[str, Any]:
    """What ONNX Runtime is told of a provider."""
    if provider == PROVIDERS["cuda"]:  # by default every algorithm is tried on each new shape, for seconds
        return {"device_id": device, "cudnn_conv_algo_search": "HEURISTIC"}
    if provider == PROVIDERS["tensorrt"]:  # an engine takes minutes to build
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "streamer" / "tensorrt"
        cache.mkdir(parents=True, exist_ok=True)
        kept = {f"trt_{kind}_cache_{what}": value for kind in ("engine", "timing") for what, value in
                (("enable", True), ("path", str(cache)))}  # fmt: skip
        return {"device_id": device, **kept}
    return {}


def _stamp(path: Path) -> tuple[int, ...] | None:
    """What differs once a file has been written to, or another one is in its place."""
    try:
        now = path.stat()
    except OSError:
        return None
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


def _fits(shape: list[Any], wanted: tuple[Any, ...]) -> bool:
    """Whether each axis is open or as long as it must be."""
    if len(shape) != len(wanted):
        return False
    return all(
        not isinstance(have, int) or not isinstance(want, int) or have == want
        for have, want in zip(shape, wanted, strict=True)
    )


def has_gpu() -> bool:
    """Whether ONNX Runtime sees a CUDA device. (Its list of available providers names CUDA everywhere.)"""
    try:
        return any(device.ep_name == PROVIDERS["cuda"] for device in ort.get_ep_devices()) or os.path.exists(
            "/dev/nvidia0"
        )
    except AttributeError:  # an older ONNX Runtime
        return os.path.exists("/dev/nvidia0")


def one_line(error: Exception) -> str:
    """What ONNX Runtime said, short."""
    return " ".join(str(error).split())[:200]
