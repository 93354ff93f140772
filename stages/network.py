"""A tagger's network at work: its batch, what batches cost, and whose score is whose."""

import logging
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import psutil
from pydantic import BaseModel, ConfigDict

from stages import records
from stages.config import Config
from stages.filling import grid_of, scores_of_objects
from stages.forms import Entries, Form, Images, Points, Sparse, typical
from stages.graph import normalised
from stages.kernels import argument, ends
from stages.machine import cores, n_cores
from stages.model import Model, one_line
from stages.scaling import Scaling
from streamer.batcher import Part
from streamer.block import Array, Block, Columns, readonly
from streamer.costs import Costs, largest_useful, useful_sizes
from streamer.errors import UsageError

log = logging.getLogger(__name__)

WARM_UP_S = 0.005
"""Each batch size is measured for about so long at the start; running tells the rest."""
REHEARSAL_S = 0.1
"""... and for so long in a rehearsal by the clock on the wall, as others are served first there."""
OVERHEAD_S = 0.2e-3
"""About what the tagger spends on a batch besides."""
TOLERANCE = 1e-5
"""Scores of a changed graph may differ so much from those of the network as it was."""


class Finding(BaseModel):
    """What a rehearsal found of a network.

    Attributes
    ----------
    sha256 : str
        Of the files that were tried.
    provider : str
        What it ran on.
    form : str
        How it is given what it sees (`stages.forms`).
    max_batch : int
    costs : dict of int to float or None
        Seconds by size, where batches are to adapt.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str
    provider: str
    form: str
    max_batch: int
    costs: dict[int, float] | None


NO_FINDINGS: Mapping[str, Any] = MappingProxyType({})


class Network:
    """One tagger at work: its model, and the batch that its crops or frames are written into.

    Parameters
    ----------
    key : str
        The setting that names the network's file.
    device : int
        Which GPU, where one is used.
    whole : bool
        Nothing is cut off the graph (`stages.scaling`): the network as anybody else would run it.
    found : Finding, optional
        What a rehearsal found of it; another network than was tried there is refused.

    Attributes
    ----------
    form : Form
        How it is given what it sees.
    costs : Costs or None
        What batches cost, once it is warm and where batches are to adapt.
    exact : bool
        A batch of a new size costs nothing; nothing is padded.

    Raises
    ------
    UsageError
        Whatever is wrong with the model.
    """

    def __init__(
        self,
        name: str,
        config: Config,
        key: str = "model",
        device: int = 0,
        whole: bool = False,
        found: Finding | None = None,
    ) -> None:
        self.name, self.spec, self._key, self._device, self._whole = name, config.taggers[name], key, device, whole
        self._settings, self._threads, self._within = config.tagger, threads_of(config), config.feed.deadline
        self._grid = grid_of(self.spec, config.channels)
        self._index_dtype = np.dtype(records.crop_index_dtype(self.spec.crop) if self.spec.crop else "i4")
        form = "image" if self.spec.input == "auto" else self.spec.input
        self._take(*self._made(found.form if found else form, found.sha256 if found else ""))
        self.exact = self.model.provider == "CPU"
        self.costs: Costs | None = None
        if found and self.model.provider != found.provider:
            raise UsageError(
                f"{self.model.where}: would run on {self.model.provider} here, and was tried on {found.provider}"
            )
        self.pixel = "Pixel"
        if self.spec.crop:
            self.crop, self.pixel = records.crop_names(config.crops[name])
            self._objects, self._crops, self._object = f"n{self.spec.objects}", f"n{self.crop}", f"{self.crop}_object"
        self._pixels = f"n{self.pixel}", f"{self.pixel}_index", f"{self.pixel}_value"
        self._ids = readonly(np.full(1, int(self.model.sha256[:16], 16), np.uint64))  # for as many events as have come
        self.score = records.score_column(name, self.spec).name
        self.model_is = records.model_column(name).name

    def _take(self, model: Model, form: Form, max_batch: int, scaling: Scaling | None) -> None:
        self.model, self.form, self.max_batch, self._scaling = model, form, max_batch, scaling

    def _made(self, form: str, tried: str = "") -> tuple[Model, Form, int, Scaling | None]:
        """The model and the batch in one form, how many the batch holds, and what is cut off the model."""
        spec, settings, grid = self.spec, self._settings, self._grid
        how = settings.provider, self._threads, form, self._key, self._device
        model = Model(self.name, spec.model, spec, *how, tried)
        to_cut = form == "image" and model.provider == "CPU" and not self._whole
        scaling = model.without_scaling() if to_cut else None
        model.load()
        n_channels = scaling.source.size if scaling else len(spec.channels)
        per_item = model.n_points * (3 + n_channels) if form == "points" else n_channels * grid.rows * grid.columns
        item = 4 * per_item
        max_batch = model.fixed_batch or max(1, min(settings.max_batch, (settings.batch_mb << 20) // item))
        needed, there = max_batch * item, psutil.virtual_memory().available
        if needed > there // 2:
            raise UsageError(
                f"{model.where}: a batch of {max_batch} objects takes {needed / 1e9:,.1f} GB, and "
                f"{there / 1e9:,.1f} GB of memory are free; export it with an open batch dimension or a smaller one"
            )
        if form == "points":
            return model, Points(grid, max_batch, model.n_points), max_batch, None
        if form == "sparse":
            if needed // 4 >= 1 << 31:
                raise UsageError(f"{model.where}: input = 'sparse' counts up to 2^31 pixels; lower tagger.batch_mb")
            return model, Entries(grid, exact=model.provider == "CPU"), max_batch, None
        return model, Images(spec, grid, max_batch, scaling), max_batch, scaling

    def warm_up(self, within: float = WARM_UP_S) -> None:
        """Compile, run the network, choose its form where that is left open, and learn what batches cost.

        Parameters
        ----------
        within : float
            Seconds for which a size is measured by the clock on the wall.

        Raises
        ------
        UsageError
            The network fails, a changed graph gives other scores, or no crop could be scored before its deadline.
        """
        try:
            seen = self._run_made_up(self.max_batch)  # that compiles, and takes the memory
            if self.form.name == "sparse" or self.spec.normalise or self._scaling:
                self._check(seen)
            if self.spec.input == "auto":
                self._choose(seen)
                seen = self._run_made_up(self.max_batch)  # which may be larger as pixels than as images
            if self._settings.policy == "adaptive":
                self.costs = self._learned(seen, within)
            else:
                self.form.fill(seen, 0, 1, 0)
                self.run(self.padded(1))
        except UsageError:
            raise
        except Exception as error:
            raise self._failing(error) from None
        self.take_left_out()  # of what was made up
        least = self.costs.of(self.padded(1)) if self.costs else 0.0
        self._check_deadline(least)

    def _run_made_up(self, n: int) -> Sparse:
        """Run a batch of made-up objects; returns what was filled in."""
        seen = typical(self._grid, n, self._index_dtype)
        none = readonly(np.zeros(0, np.int32))
        ends(none.reshape(0, self._grid.n_channels))
        scores_of_objects(none, none, none, np.zeros(0, np.float32))
        self.form.fill(seen, 0, n, 0)
        self.run(n)
        return seen

    def _failing(self, error: Exception) -> UsageError:
        return UsageError(f"{self.model.where}: fails on made-up objects ({one_line(error)})")

    @property
    def finding(self) -> Finding:
        """What is known since it was warmed up."""
        costs = {n: self.costs.of(n) for n in self.costs.sizes} if self.costs else None
        return Finding(
            sha256=self.model.sha256,
            provider=self.model.provider,
            form=self.form.name,
            max_batch=self.max_batch,
            costs=costs,
        )

    def get_ready(self, found: Finding | None, within: float = WARM_UP_S) -> None:
        """Go by what a rehearsal found; without that, `warm_up`.

        Raises
        ------
        UsageError
            The network cannot be used.
        """
        if found is None:
            self.warm_up(within)
            return
        self.max_batch = min(self.max_batch, found.max_batch)
        try:
            if self.exact:  # the largest batch would take longer than its memory will, and events are waiting
                self._run_made_up(self.padded(1))
            else:  # so that nothing is compiled when events are waiting
                seen = self._run_made_up(self.max_batch)
                for n in found.costs or [self.padded(1)]:
                    self._run_anew(min(n, self.max_batch), seen)
        except Exception as error:
            raise self._failing(error) from None
        self.take_left_out()  # of what was made up
        self.costs = Costs(found.costs) if found.costs else None

    def _check_deadline(self, least: float) -> None:
        """Hold the deadline against an inference of one crop [s]."""
        told = f"one inference of {self.model.where} takes {least * 1e3:.3g} ms here"
        if 0 < self._settings.deadline < least:
            raise UsageError(
                f"tagger.deadline = {self._settings.deadline * 1e3:g} ms, but {told}; the events' way to the tagger "
                "comes on top"
            )
        if 0 < self._within < least:
            log.warning("feed.deadline = %g ms, but %s: no crop can be scored in time", self._within * 1e3, told)

    def _check(self, seen: Sparse) -> None:
        """Hold a changed graph against the network as it was, on the same objects."""
        n = self.model.fixed_batch or min(8, self.max_batch)
        self.form.fill(seen, 0, n, 0)
        scores = self.model.run(self.form.arrays(n), n)
        plain = self.spec.model_copy(update={"normalise": {}})
        how = self._settings.provider, self._threads, self._plain_form
        unchanged = Model(self.name, plain.model, plain, *how, tried=self.model.sha256)
        if self.form.name == "points":
            points, mask = self.form.arrays(n)
            values = np.moveaxis(points[:, :, 2:], 2, 1)[..., None]  # (n, n_channels, n_points, 1)
            changed = np.moveaxis(normalised(values, self.spec)[..., 0], 1, 2)
            arrays: tuple[Array, ...] = np.concatenate([points[:, :, :2], changed], axis=2), mask
        else:
            image = Images(self.spec, self._grid, n)
            image.fill(seen, 0, n, 0)
            arrays = (normalised(image.arrays(n)[0], self.spec),)
        wanted = unchanged.run(arrays, n)
        if not np.allclose(scores, wanted, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True):
            difference = float(np.abs(scores - wanted).max())
            raise UsageError(
                f"{self.model.where}: with input = '{self.form.name}' and normalise as they are, its scores differ by "
                f"{difference:.2g} from those of the unchanged network; set taggers.{self.name}.input = 'image'"
            )

    @property
    def _plain_form(self) -> str:
        return "points" if self.form.name == "points" else "image"

    def _choose(self, seen: Sparse) -> None:
        """Of image and sparse, what is faster here."""
        image, n = (self.model, self.form, self.max_batch, self._scaling), self.max_batch
        took = {"image": self.seconds(n, seen, clock=self._clock)}
        try:
            self._take(*self._made("sparse", tried=self.model.sha256))
            self._check(seen)
            took["sparse"] = self.seconds(n, seen, clock=self._clock)
        except UsageError as error:
            log.info("input = 'auto': %s", error)
        if took["image"] <= took.get("sparse", np.inf):
            self._take(*image)
        told = ", ".join(f"{form} {seconds * 1e3:.3g} ms" for form, seconds in took.items())
        log.info("%s: input = '%s' (%d objects: %s)", self.model.where, self.form.name, n, told)

    @property
    def _clock(self) -> Callable[[], float]:
        """At a start all processes compile, and a rehearsal gives way to the stream: a long batch is interrupted more
        than a short one."""
        return time.thread_time if self.exact and self._threads == 1 else time.perf_counter

    def _learned(self, seen: Sparse, within: float) -> Costs:
        """What batches cost, from sizes that are each four times the one before."""
        some = {1 << k for k in range(0, self.max_batch.bit_length(), 2)}
        ends = [self.max_batch] if self.model.fixed_batch else sorted({*some, self.max_batch})
        within = within if self._clock is time.perf_counter else WARM_UP_S
        measured = {n: self.seconds(n, seen, within, self._clock) for n in ends}
        self.max_batch = largest_useful(measured, OVERHEAD_S)
        ends = [n for n in ends if n <= self.max_batch]
        sizes = useful_sizes({n: measured[n] for n in ends})
        if not self.exact:
            for n in sizes:  # so that nothing is compiled when events are waiting
                self._run_anew(n, seen)
        return Costs(dict(zip(sizes, np.interp(sizes, ends, [measured[n] for n in ends]).tolist(), strict=True)))

    def seconds(
        self,
        n: int,
        seen: Sparse | None = None,
        within: float = 0.05,
        clock: Callable[[], float] = time.perf_counter,
    ) -> float:
        """Seconds of a batch: the least of some, measured for about so long [s].

        With the time to fill in what is `seen`, where that is given.
        """
        if not self.exact:  # a new size is compiled
            self._run_anew(n, seen)
        took: list[float] = []
        while len(took) < 3 or (len(took) < 20 and sum(took) < within):
            begin = clock()
            self._run_anew(n, seen)
            took.append(clock() - begin)
            if sum(took) > 3 * within:
                break
        return min(took)

    def _run_anew(self, n: int, seen: Sparse | None) -> None:
        """Run a batch of what is `seen`; without that, of what was filled in last, which must have been as many."""
        if seen is not None:
            self.form.fill(seen, 0, n, 0)
        self.run(n)

    def items(self, block: Block) -> int:
        """How many crops or frames of a block it is to score."""
        return self.items_of(block.columns)

    def items_of(self, columns: Columns) -> int:
        if self.spec.crop:
            return columns[self._object].size
        return columns["error"].tobytes().count(0)

    def infer(self, parts: list[Part[Block]]) -> Array:
        n = 0
        for part in parts:
            self.form.fill(self.sparse(part.key.columns), part.start, part.stop, n)
            n += part.size
        return self.run(self.padded(n))[:n]  # what is padded is anything; its scores are not looked at

    def padded(self, n: int) -> int:
        """The batch size that `n` items are run at."""
        if self.model.fixed_batch:
            return self.model.fixed_batch
        return self.costs.size(n) if self.costs and not self.exact else n

    def take_left_out(self) -> int:
        """Pixels that there was no place for since the last call; only a cloud of points can be too small."""
        if not isinstance(self.form, Points):
            return 0
        left_out, self.form.left_out = self.form.left_out, 0
        return left_out

    def run(self, n: int) -> Array:
        """Scores of what has been filled in."""
        return self.model.run(self.form.arrays(n), n)

    def transferred(self, n: int) -> tuple[int, int]:
        """Bytes that the last batch, of `n` items, had to and from the device."""
        n = self.padded(n)
        return self.form.n_bytes(n), 4 * n

    def events(self, block: Block) -> Array:
        """The event of each item."""
        if not self.spec.crop:
            return np.flatnonzero(block.columns["error"] == 0)
        return np.repeat(np.arange(block.n_events), block.columns[self._crops])

    def sparse(self, columns: Columns) -> Sparse:
        """The non-empty pixels of the items of a block. An event that failed or was shed is no item, and has none."""
        count, index, value = self._pixels
        counts = columns[count]
        if not self.spec.crop and columns["error"].any():
            counts = counts[columns["error"] == 0]
        return ends(argument(counts)), argument(columns[index]), argument(columns[value])

    def place(self, columns: Columns, results: Array, why: Mapping[int, str]) -> dict[int, str]:
        """Put the scores where their objects are, -1 elsewhere; returns the events with a score that is no number.

        Parameters
        ----------
        why : mapping of int to str
            The items that failed, and what was said.
        """
        n_events = columns["error"].size
        ids = self._ids
        if ids.size < n_events:
            ids = self._ids = readonly(np.full(n_events, ids[0]))
        columns[self.model_is] = ids[:n_events]
        if self.spec.crop:
            n_crops = columns[self._crops]
            given = columns[self._objects], n_crops, columns[self._object]
            columns[self.score], n_bad = scores_of_objects(*map(argument, given), results)
            if not n_bad and not why:
                return {}
            return self._failed(np.repeat(np.arange(n_events), n_crops), results, why)
        events = np.flatnonzero(columns["error"] == 0)
        columns[self.score] = np.full(n_events, -1, np.float32)
        columns[self.score][events] = np.where(np.isfinite(results), results, np.float32(-1))
        return self._failed(events, results, why)

    def _failed(self, events: Array, results: Array, why: Mapping[int, str]) -> dict[int, str]:
        bad = np.flatnonzero(~np.isfinite(results))
        failed = {int(events[i]): f"the score of the {self.name} tagger is {results[i]}" for i in bad}
        return failed | {int(events[i]): text for i, text in why.items()}


def threads_of(config: Config) -> int:
    """Threads of one inference: by default taggers share one for each two cores, as other stages need the rest; where
    cores are named for it, one for each of these."""
    if config.tagger.cpus and not config.tagger.threads:
        return len(cores(config.tagger.cpus))
    return config.tagger.threads or max(1, n_cores() // 2 // config.n_replicas("tagger"))
