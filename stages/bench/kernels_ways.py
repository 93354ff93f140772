"""The events and the two ways that `streamer bench kernels` compares; see `stages.bench.kernels` for what they mean."""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stages import records
from stages.channels import Channels
from stages.config import Config
from stages.cropper import Cropper
from stages.detector.ecal import eb_detid, ee_crystals, ee_detid, ee_pixel_table, load_ee_geometry
from stages.detector.grid import ETA_EDGES, column_of_phi, eta_of_row, phi_of_column, row_of_eta
from stages.detector.hcal import hcal_detid, tower_of_direction
from stages.detector.layout import (
    EB_FIRST_ROW,
    EB_LAST_ROW,
    N_COLUMNS,
    N_PIXELS,
    N_ROWS,
    N_TOWER_COLUMNS,
    N_TOWER_ROWS,
    N_TOWERS,
    TOWER,
)
from stages.filling import fill_crops
from stages.framer import ENERGIES, Framer
from stages.inputs import shown
from stages.reader import Reader
from stages.seeds import JET_REACH, MAX_JET_SEED_IETA, selected
from streamer.block import Array, Block, Columns, Schema, core_columns, offsets, readonly
from streamer.errors import StreamerError, UsageError

STEPS = ("frames", "crops", "tensor")
"""What an event goes through: detector frames, seeds and crops, dense tensor of its crops."""

BATCH = 64
"""Crops in a tensor."""
TOLERANCE = 1e-5
"""Largest difference between the tensors of the two ways, relative to values above 1."""

MIX = {"EBRecHit": 400, "EERecHit": 270, "HBHERecHit": 50, "Track": 130, "PixelHit": 390}
"""Hits of a generated event: about those of real ones of 2012, and three pixel hits a track."""
N_HITS = sum(MIX.values())
N_JETS = 5
MAX_JET_ETA = 1.3
NEAR_JETS = 0.2
"""So many of the generated hits lie around a jet, the others anywhere."""
_SPREAD = 0.3
_PIXEL_RADII_CM = (4.4, 7.3, 10.2)

_clock = time.thread_time  # wall-clock time on a busy machine also counts the turns of others

Floats = npt.NDArray[np.float64]
Float32s = npt.NDArray[np.float32]


# ---- the events


@dataclass(frozen=True)
class Taken:
    """What became of the input: events read, those with a jet that has a seed, and such jets in each on average."""

    files: list[str]
    events_read: int
    events_with_jets: int
    jets: float


def input_events(config: Config, n_events: int) -> tuple[Columns, Taken]:
    """Events of the input files with `N_JETS` jets each.

    These are the leading ones that have a seed; where an event has fewer, they are repeated. Events without any are
    left out, and if there are not enough events, those that there are stand there several times.

    Raises
    ------
    UsageError
        The files cannot be read, or no jet has a seed.
    """
    reader = _opened(config)
    schema = records.hits(config)
    framer, cropper = Framer(config), Cropper(config)
    framer.setup()
    cropper.setup()
    parts: list[Columns] = []
    n_read = n_jets = 0
    for step in reader.read():
        n = len(step["event"])
        columns = _with_core(schema, step, n)
        seeds = cropper.process(framer.process(Block(0, n, columns))).columns["FatJet_seedRow"]
        ends = offsets(columns["nFatJet"])
        for event in range(n):
            jets = np.flatnonzero(seeds[ends[event] : ends[event + 1]] >= 0)
            n_read += 1
            if jets.size:
                one = schema.slice(columns, event, event + 1)
                jets = jets[np.argsort(-one["FatJet_pt"][jets], kind="stable")][:N_JETS]
                parts.append(_with_jets(one, np.resize(jets, N_JETS)))
                n_jets += jets.size
            if len(parts) == n_events:
                break
        if len(parts) == n_events:
            break
    reader.close()
    files = [str(shown(file)) for file in config.input.files]
    if not parts:
        raise UsageError(f"{', '.join(files)}: no jet with a seed in {n_read} events to measure with")
    taken = Taken(files, n_read, len(parts), n_jets / len(parts))
    return schema.concat([parts[k % len(parts)] for k in range(n_events)]), taken


def _opened(config: Config) -> Reader:
    """A reader; where files have no large jets, and nothing to make them of, their small ones stand in."""
    reader = Reader(config)
    try:
        reader.setup()
    except UsageError as problem:
        reader.close()
        if config.input.fat_jets != "auto":
            raise
        reader = Reader(config.model_copy(update={"input": config.input.model_copy(update={"fat_jets": "Jet"})}))
        try:
            reader.setup()
        except UsageError:
            reader.close()
            raise problem from None
    return reader


def _with_jets(columns: Columns, jets: Array) -> Columns:
    """One event with these of its jets."""
    own = {name: columns[name][jets] for name in columns if name.startswith("FatJet_")}
    return {**columns, **own, "nFatJet": np.array([jets.size], np.int32)}


def _with_core(schema: Schema, columns: Columns, n_events: int) -> Columns:
    """With zeros in the columns of the core, and in what names an event."""
    given = {**core_columns(np.zeros(n_events, np.int64)), **columns}
    return {
        name: given[name] if name in given else np.zeros(n_events, column.wire_dtype)
        for name, column in schema.by_name.items()
    }


def generated_events(
    config: Config, n_events: int, n_hits: int = N_HITS, n_jets: int = N_JETS, seed: int = 1
) -> tuple[Columns, int]:
    """Events with about `n_hits` hits each, shared among the collections as in `MIX`, and how many there are exactly.

    Jets have an axis within |eta| < 1.3, near an HCAL tower with energy. No physics beyond that.
    """
    rng = np.random.default_rng(seed)
    n = {collection: max(1, round(n_hits * share / N_HITS)) for collection, share in MIX.items()}
    n["PixelHit"] = len(_PIXEL_RADII_CM) * n["Track"]
    n["FatJet"] = n_jets

    # The first HCAL hits are the towers of the jets, which share them if there are more jets than hits.
    reach = int(tower_of_direction(MAX_JET_ETA - 0.1, 0.0)) // N_TOWER_COLUMNS
    n_own = min(n_jets, n["HBHERecHit"])
    own_row = rng.integers(N_TOWER_ROWS - 1 - reach, reach + 1, (n_events, n_own))
    own_column = rng.integers(0, N_TOWER_COLUMNS, (n_events, n_own))
    of_jet = np.arange(n_jets) % max(n_own, 1)
    middle = TOWER // 2
    jet_eta = eta_of_row(TOWER * own_row + middle)[:, of_jet] + rng.normal(0, 0.03, (n_events, n_jets))
    jet_phi = phi_of_column(TOWER * own_column + middle)[:, of_jet] + rng.normal(0, 0.03, (n_events, n_jets))
    jet_eta = np.clip(jet_eta, -MAX_JET_ETA + 1e-3, MAX_JET_ETA - 1e-3)

    def directions(n_each: int, eta_max: float) -> tuple[Floats, Floats]:
        shape = (n_events, n_each)
        eta, phi = rng.uniform(-eta_max, eta_max, shape), rng.uniform(-np.pi, np.pi, shape)
        if n_jets:
            near, which = rng.random(shape) < NEAR_JETS, rng.integers(0, n_jets, shape)
            eta = np.where(near, np.take_along_axis(jet_eta, which, 1) + rng.normal(0, _SPREAD, shape), eta)
            phi = np.where(near, np.take_along_axis(jet_phi, which, 1) + rng.normal(0, _SPREAD, shape), phi)
        return np.clip(eta, -eta_max, eta_max), phi

    barrel_eta = float(ETA_EDGES[EB_LAST_ROW]) - 0.01
    eta, phi = directions(n["EBRecHit"], barrel_eta)
    ring = row_of_eta(eta) - (EB_FIRST_ROW + EB_LAST_ROW + 1) // 2
    out: Columns = {"EBRecHit_detid": eb_detid(np.where(ring >= 0, ring + 1, ring), column_of_phi(phi) + 1)}
    crystals = np.argwhere(ee_crystals()) + 1
    shape = (n_events, n["EERecHit"])
    ix, iy = np.moveaxis(crystals[rng.integers(0, len(crystals), shape)], -1, 0)
    out["EERecHit_detid"] = ee_detid(ix, iy, rng.choice([-1, 1], shape))
    towers = tower_of_direction(*directions(n["HBHERecHit"], barrel_eta - 0.1))
    towers[:, :n_own] = own_row * N_TOWER_COLUMNS + own_column
    ring, sector = towers // N_TOWER_COLUMNS - N_TOWER_ROWS // 2, towers % N_TOWER_COLUMNS
    out["HBHERecHit_detid"] = hcal_detid(np.where(ring >= 0, ring + 1, ring), (sector - 2) % N_TOWER_COLUMNS + 1, 1)
    for collection in ("EBRecHit", "EERecHit", "HBHERecHit"):
        out[f"{collection}_energy"] = rng.exponential(2.0, (n_events, n[collection]))
    out["HBHERecHit_energy"][:, :n_own] += 30.0

    eta, phi = directions(n["Track"], 2.5)
    shape = eta.shape
    out |= {"Track_eta": eta, "Track_phi": (phi + np.pi) % (2 * np.pi) - np.pi}
    out |= {"Track_pt": 0.5 + rng.exponential(1.5, shape), "Track_charge": rng.choice([-1, 1], shape)}
    out |= {"Track_d0": rng.normal(0, 0.02, shape), "Track_dz": rng.normal(0, 0.05, shape)}
    out["Track_highPurity"] = np.ones(shape)
    radius = np.tile(_PIXEL_RADII_CM, n["Track"])
    eta, phi = np.repeat(eta, len(_PIXEL_RADII_CM), 1), np.repeat(phi, len(_PIXEL_RADII_CM), 1)
    out |= {"PixelHit_x": radius * np.cos(phi), "PixelHit_y": radius * np.sin(phi), "PixelHit_z": radius * np.sinh(eta)}
    out["PixelHit_layer"] = np.broadcast_to(np.arange(n["PixelHit"]) % len(_PIXEL_RADII_CM) + 1, eta.shape)

    out |= {"FatJet_eta": jet_eta, "FatJet_phi": (jet_phi + np.pi) % (2 * np.pi) - np.pi}
    out["FatJet_pt"] = rng.uniform(100.0, 500.0, (n_events, n_jets))

    dtypes = {column.name: column.wire.wire_dtype for column in records.INPUT}
    flat = {name: np.ascontiguousarray(value).reshape(-1).astype(dtypes[name]) for name, value in out.items()}
    flat |= {f"n{collection}": np.full(n_events, each, np.int32) for collection, each in n.items()}
    flat |= records.complete(config, flat, n_events)
    return _with_core(records.hits(config), flat, n_events), sum(n[collection] for collection in MIX)


# ---- our way


class Sparse:
    """Framer, cropper and the tagger's dense fill, as they stand in the pipeline."""

    def __init__(self, config: Config) -> None:
        ((name, self._spec),) = config.taggers.items()
        self._crop, self._pixel = records.crop_names(name)
        self._framer, self._cropper = Framer(config), Cropper(config)
        self._framer.setup()
        self._cropper.setup()
        self._towers = np.array([channel == "HCAL" for channel in self._spec.channels])
        self._batch = np.zeros((BATCH, len(self._spec.channels), self._spec.crop**2), np.float32)

    def __call__(self, block: Block) -> Floats:
        """Processor time of each of `STEPS` [s]."""
        at = [_clock()]
        framed = self._framer.process(block)
        at.append(_clock())
        cropped = self._cropper.process(framed)
        at.append(_clock())
        n = self.n_crops(cropped)
        for first in range(0, n, BATCH):
            self.fill(cropped, first, min(first + BATCH, n))
        at.append(_clock())
        return np.diff(at)

    def cropped(self, block: Block) -> Block:
        return self._cropper.process(self._framer.process(block))

    def n_crops(self, cropped: Block) -> int:
        return cropped.columns[f"{self._crop}_object"].size

    def fill(self, cropped: Block, first: int, last: int) -> Float32s:
        """The tensor of the crops `first` to `last`, valid until the next call."""
        columns = cropped.columns
        sparse = (readonly(columns[f"{self._pixel}_{name}"]) for name in ("index", "value"))
        ends = offsets(columns[f"n{self._pixel}"])
        fill_crops(ends, *sparse, first, last, self._towers, self._spec.crop, self._batch, 0)
        n = last - first
        return self._batch[:n].reshape(n, *self._spec.shape)

    def contents(self, block: Block) -> dict[str, float]:
        """What there is in an event, and in a crop, on average."""
        collections = {name for sources in records.SOURCES.values() for source in sources for name in source}
        hits = sum(int(block.columns[f"n{name}"].sum()) for name in collections if f"n{name}" in block.columns)
        framed = self._framer.process(block)
        n_crops = self.n_crops(cropped := self._cropper.process(framed))
        n_pixels = cropped.columns[f"{self._pixel}_index"].size
        return {
            "hits": hits / block.n_events,
            "frame_pixels": framed.columns["Pixel_index"].size / block.n_events,
            "crops": n_crops / block.n_events,
            "crop_pixels": n_pixels / max(n_crops, 1),
        }


# ---- the dense way


@dataclass(frozen=True)
class _Hits:
    """What some hits of a block add to one dense image: pixels and values, event by event between the offsets."""

    offsets: npt.NDArray[np.int64]
    pixel: npt.NDArray[np.int32]
    value: Float32s


class Dense:
    """Dense frames event by event, crops cut out of them, crops copied into the tensor.

    With numpy, on pixels that our compiled lookups find for a whole block.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        ((_, self._spec),) = config.taggers.items()
        path = config.framer.ee_geometry
        self._ee_table = load_ee_geometry(path) if path else ee_pixel_table()
        channels, size = self._spec.channels, self._spec.crop
        self._frames = np.zeros((len(channels), N_ROWS, N_COLUMNS), np.float32)
        self._towers = np.zeros((N_TOWER_ROWS, N_TOWER_COLUMNS), np.float32)
        self._batch = np.zeros((BATCH, len(channels), size, size), np.float32)

    def __call__(self, block: Block, use: Callable[[Float32s], None] = lambda tensor: None) -> Floats:
        """Processor time of each of `STEPS` [s].

        Parameters
        ----------
        use : callable
            Is handed every tensor, of `BATCH` crops or of those that are left at the end.
        """
        spent = np.zeros(len(STEPS))
        before = _clock()

        def lap(step: int) -> None:
            nonlocal before
            now = _clock()
            spent[step] += now - before
            before = now

        columns = block.columns
        hits = self._hits(columns)
        lap(0)
        jets = offsets(columns["nFatJet"])
        axes = tower_of_direction(columns["FatJet_eta"], columns["FatJet_phi"])
        axes = np.where(selected(columns, self._spec), axes, -1)
        lap(1)
        place = 0
        for event in range(block.n_events):
            self._fill_frames(hits, event)
            lap(0)
            crops = self._crops(axes[jets[event] : jets[event + 1]].tolist())
            lap(1)
            for crop in crops:
                self._batch[place] = crop
                place += 1
                if place == BATCH:
                    use(self._batch)
                    place = 0
            lap(2)
        if place:
            use(self._batch[:place])
        return spent

    def _hits(self, columns: Columns) -> dict[str, list[_Hits]]:
        """Of each channel, without those that are not part of it."""
        made = Channels(self._config, columns, self._ee_table)
        out: dict[str, list[_Hits]] = {}
        for channel in self._config.channels:
            for entries in made.entries(channel):
                pixel, value, ends = entries.pixel, entries.value, offsets(entries.counts)
                good = np.isfinite(value) & (pixel >= 0)
                if channel in ENERGIES:
                    good &= value > 0
                copies = good.astype(np.int64)
                if channel == "HCAL":  # a cell two towers wide gives half of its energy to each
                    copies[good & (pixel >= N_TOWERS)] = 2
                    value = np.where(copies == 2, value / np.float32(2), value)
                taken = np.repeat(np.arange(pixel.size), copies)
                ends = offsets(copies)[ends]
                pixel, value = pixel[taken], value[taken]
                if channel == "HCAL":
                    first, second = np.flatnonzero(pixel >= N_TOWERS).reshape(-1, 2).T
                    pixel[first] -= N_TOWERS
                    pixel[second] = pixel[first] + 1  # in the same row: such a cell begins in an even column
                out.setdefault(channel, []).append(_Hits(ends, pixel, value))
        return out

    def _fill_frames(self, hits: dict[str, list[_Hits]], event: int) -> None:
        self._frames[:] = 0
        towers = np.zeros(N_TOWERS)
        for part in hits.get("HCAL", []):
            span = slice(part.offsets[event], part.offsets[event + 1])
            towers += np.bincount(part.pixel[span], part.value[span], N_TOWERS)
        self._towers[:] = towers.reshape(self._towers.shape)
        for channel, frame in zip(self._spec.channels, self._frames, strict=True):
            if channel == "HCAL":
                share = self._towers / np.float32(TOWER * TOWER)
                frame.reshape(N_TOWER_ROWS, TOWER, N_TOWER_COLUMNS, TOWER)[:] = share[:, None, :, None]
                continue
            image = frame.reshape(N_PIXELS)
            for part in hits.get(channel, []):
                span = slice(part.offsets[event], part.offsets[event + 1])
                np.add.at(image, part.pixel[span], part.value[span])

    def _crops(self, axes: list[int]) -> Float32s:
        """Shape (n, n_channels, size, size), of the jets with a seed."""
        seeds = [seed for axis in axes if axis >= 0 and (seed := self._seed(axis)) is not None]
        size = self._spec.crop
        crops = np.empty((len(seeds), *self._frames.shape[:1], size, size), np.float32)
        for crop, (row, column) in zip(crops, seeds, strict=True):
            top, left = row - (size // 2 - 1), (column - (size // 2 - 1)) % N_COLUMNS
            first, last = max(top, 0), min(top + size, N_ROWS)
            crop[:, : first - top] = 0
            crop[:, last - top :] = 0
            inside, before_seam = crop[:, first - top : last - top], min(size, N_COLUMNS - left)
            inside[:, :, :before_seam] = self._frames[:, first:last, left : left + before_seam]
            inside[:, :, before_seam:] = self._frames[:, first:last, : size - before_seam]
        return crops

    def _seed(self, axis: int) -> tuple[int, int] | None:
        """Row and column of the seed pixel of a jet whose axis points to a tower."""
        row, column = divmod(axis, N_TOWER_COLUMNS)
        top = max(row - JET_REACH, 0)
        columns = np.sort(np.arange(column - JET_REACH, column + JET_REACH + 1) % N_TOWER_COLUMNS)
        near = self._towers[top : row + JET_REACH + 1][:, columns]
        down, right = divmod(int(near.argmax()), columns.size)
        if near[down, right] <= 0:
            return None
        row, half = top + down, N_TOWER_ROWS // 2
        if not half - MAX_JET_SEED_IETA <= row < half + MAX_JET_SEED_IETA:
            return None
        return TOWER * row + TOWER // 2, TOWER * int(columns[right]) + TOWER // 2


# ---- both


def largest_difference(sparse: Sparse, dense: Dense, block: Block) -> float:
    """Between the tensors of the two ways; relative for values above 1.

    Raises
    ------
    StreamerError
        It is larger than `TOLERANCE`, or they do not have the same crops.
    """
    cropped = sparse.cropped(block)
    n_crops, done, largest = sparse.n_crops(cropped), 0, 0.0

    def compare(tensor: Float32s) -> None:
        nonlocal done, largest
        first, done = done, done + len(tensor)
        if done <= n_crops:
            ours = sparse.fill(cropped, first, done)
            difference = np.abs(ours - tensor) / np.maximum(1, np.abs(tensor))
            largest = float(np.maximum(largest, difference.max()))  # stays nan

    dense(block, compare)
    if done != n_crops:
        raise StreamerError(f"{n_crops} crops with sparse frames, but {done} with dense ones")
    if not largest <= TOLERANCE:
        raise StreamerError(f"the tensors of sparse and of dense frames differ by up to {largest:.2g}")
    return largest


def block_of(columns: Columns) -> Block:
    """As it would come from the wire."""
    return Block(1, len(columns["event"]), {name: readonly(column) for name, column in columns.items()})
