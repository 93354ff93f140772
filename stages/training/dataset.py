"""Labelled crops for training, made by the kernels of the stream itself and kept sparse as it carries them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stages import records
from stages.config import Config
from stages.cropper import Cropper
from stages.detector.layout import TOWER
from stages.filling import crop_grid, fill_crops
from stages.formats import open_events
from stages.forms import Points
from stages.framer import Framer
from stages.kernels import njit
from stages.reader import with_jets
from stages.records import INPUT_BY_NAME
from stages.sources import choose
from streamer.block import Array, Block, offsets, readonly
from streamer.errors import UsageError

Floats = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]

ODD = {"TrackD0": 0, "TrackDz": 1}
"""Channels that change their sign in a mirror, and in which: 0 mirrors phi, 1 mirrors eta.

d0 = x sin(phi) - y cos(phi) changes its sign with y and phi, dz with z.
"""


@dataclass(frozen=True)
class Crops:
    """Labelled crops as their non-empty pixels, in the layout of `records.crops`.

    Attributes
    ----------
    channels : tuple of str
    size : int
        Side of a crop [pixels].
    counts : int32, shape (n, n_channels)
        Non-empty pixels (HCAL: towers) of each channel of each crop.
    index : uint16 or uint32, shape (counts.sum(),)
    value : float32, shape (counts.sum(),)
        GeV, cm or hits.
    labels : int8, shape (n,)
        1 for the tagger's signal, 0 for its background.
    pt : float32, shape (n,)
        Of the object [GeV].
    files : int32, shape (n,)
        Which file each is from.
    events : int64, shape (n,)
        Its event's entry in the file; ascending.
    """

    channels: tuple[str, ...]
    size: int
    counts: npt.NDArray[np.int32]
    index: Array
    value: Floats
    labels: npt.NDArray[np.int8]
    pt: Floats
    files: npt.NDArray[np.int32]
    events: Int64s

    @cached_property
    def _offsets(self) -> Int64s:
        return offsets(self.counts)

    @cached_property
    def _towers(self) -> Bools:
        return np.array([channel == "HCAL" for channel in self.channels])

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, rows and columns of a crop."""
        return len(self.channels), self.size, self.size

    def take(self, chosen: npt.ArrayLike) -> "Crops":
        """The chosen crops, by place or by mask, in that order."""
        chosen = np.asarray(chosen)
        chosen = np.flatnonzero(chosen) if chosen.dtype == bool else chosen.astype(np.int64)
        pixel_offsets, index, value = self._gathered(chosen, np.zeros((len(chosen), 2), np.bool_))
        ends = pixel_offsets[1:].reshape(len(chosen), len(self.channels))
        counts = np.diff(ends.ravel(), prepend=0).reshape(ends.shape).astype(np.int32)
        own = {name: getattr(self, name)[chosen] for name in ("labels", "pt", "files", "events")}
        return replace(self, counts=counts, index=index, value=value, **own)

    def dense(self, chosen: npt.ArrayLike, mirrored: Bools | None = None, out: Floats | None = None) -> Floats:
        """The chosen crops as the tagger hands them to its network, by the tagger's own kernel.

        Parameters
        ----------
        chosen : int, shape (n_chosen,)
        mirrored : bool, shape (n_chosen, 2), optional
            Which are mirrored about their seed pixel, in phi and in eta; see `ODD` for signs. The seed stands at
            size / 2 - 1: the last row or column has no partner, and is lost.
        out : float32, optional
            Memory of at least the result's size to write it in.

        Returns
        -------
        float32, shape (n_chosen, n_channels, size, size)
        """
        chosen = np.asarray(chosen, np.int64)
        n, area = len(chosen), self.size**2
        if mirrored is None:
            mirrored = np.zeros((n, 2), np.bool_)
        made = np.empty((n, *self.shape), np.float32) if out is None else out[:n]
        flat = made.reshape(n, len(self.channels), area)
        fill_crops(*self._gathered(chosen, mirrored), 0, n, self._towers, self.size, flat, 0)
        return made

    @property
    def sparse(self) -> tuple[Int64s, Array, Floats]:
        """All pixels as kernels take them: where those of each channel begin, index, value."""
        return self._offsets, readonly(self.index), readonly(self.value)

    def points(self, chosen: npt.ArrayLike, n_points: int) -> tuple[Floats, Floats]:
        """The chosen crops as a network of points is handed them, by the tagger's own kernel: points and mask."""
        chosen = np.asarray(chosen, np.int64)
        form = Points(crop_grid(self.channels, self.size), len(chosen), n_points)
        form.fill(self._gathered(chosen, np.zeros((len(chosen), 2), np.bool_)), 0, len(chosen), 0)
        points, mask = form.arrays(len(chosen))
        return points, mask

    def _gathered(self, chosen: Int64s, mirrored: Bools) -> tuple[Int64s, Array, Floats]:
        """The pixels of the chosen crops behind one another: offsets, index, value."""
        first, n_channels = self._offsets, len(self.channels)
        most = int((first[(chosen + 1) * n_channels] - first[chosen * n_channels]).sum())
        ends = np.zeros(len(chosen) * n_channels + 1, np.int64)
        index, value = np.empty(most, self.index.dtype), np.empty(most, np.float32)
        odd = np.array([ODD.get(channel, -1) for channel in self.channels])
        used = _gather(*self.sparse, chosen, mirrored, self._towers, odd, self.size, ends, index, value)
        return ends, index[:used], value[:used]

    def split(self, fraction: float) -> tuple["Crops", "Crops"]:
        """The crops of all but the last events of each file, and those of the last ones; no event is in both.

        Parameters
        ----------
        fraction : float
            Of each file's events that have crops, for the second part.
        """
        last = np.zeros(len(self), np.bool_)
        for file in np.unique(self.files):
            own = self.files == file
            events = np.unique(self.events[own])
            kept = len(events) - int(len(events) * fraction)
            last[own] = np.isin(self.events[own], events[kept:])
        return self.take(~last), self.take(last)

    def shuffled(self, seed: int) -> "Crops":
        """The same crops with each other's labels."""
        return replace(self, labels=np.random.default_rng(seed).permutation(self.labels))


@njit(cache=True, nogil=True)
def _gather(
    pixel_offsets: Any, index: Any, value: Any, chosen: Any, mirrored: Any, towers: Any, odd: Any, size: int,
    out_offsets: Any, out_index: Any, out_value: Any,
) -> int:  # fmt: skip
    n_channels = towers.size
    used = 0
    for k in range(chosen.size):
        in_phi, in_eta = mirrored[k, 0], mirrored[k, 1]
        for channel in range(n_channels):
            over = TOWER - 1 if towers[channel] else 0
            side = size + over
            turn = size - 2 + over  # an entry's place and that of its mirror image add up to this
            sign = np.float32(-1.0 if odd[channel] >= 0 and mirrored[k, odd[channel]] else 1.0)
            entry = chosen[k] * n_channels + channel
            for pixel in range(pixel_offsets[entry], pixel_offsets[entry + 1]):
                row, column = index[pixel] // side, index[pixel] % side
                if in_eta:
                    row = turn - row
                if in_phi:
                    column = turn - column
                if 0 <= row < side and 0 <= column < side:
                    out_index[used] = row * side + column
                    out_value[used] = sign * value[pixel]
                    used += 1
            out_offsets[k * n_channels + channel + 1] = used
    return used


def load_crops(files: Sequence[Path | str], config: Config, on_step: Callable[[int], None] | None = None) -> Crops:
    """The crops of all selected objects of known truth that have a seed.

    Objects whose label is neither the tagger's signal nor 0 are left out.

    Parameters
    ----------
    files : sequence of Path
        Event files with the truth of the objects.
    config : Config
        With one tagger.
    on_step : callable, optional
        Told how many events each step read.

    Raises
    ------
    UsageError
        A file that cannot be read or has no truth; no object of known truth.
    """
    (spec,) = config.taggers.values()
    label = records.LABELS[spec.objects]
    framer, cropper = Framer(config), Cropper(config)
    framer.setup()
    parts: list[dict[str, Array]] = []
    for number, path in enumerate(files):
        file = open_events(path, config.input)
        if label not in file.names:
            raise UsageError(f"{path}: no column {label}; training needs the truth, as streamer generate writes it")
        choice = choose(file, config)
        if spec.objects in choice.jets:
            raise UsageError(f"{path}: {label} has no {spec.objects} to belong to; they would be made anew")
        wanted = list({column.name: column for column in (*choice.columns, INPUT_BY_NAME[label])}.values())
        file.wanted_images = choice.images
        file.check(wanted)

        def refuse(first: int, n: int, why: str, path: Path | str = path) -> None:
            raise UsageError(f"{path}: {n} events from entry {first} on cannot be read: {why}")

        for step in file.read(wanted, refuse):
            n = len(step.entries)
            given = with_jets(step, choice)
            columns = {**framer.inputs.empty(n), **records.complete(config, given, n)}
            columns = {name: columns[name] for name in framer.inputs.by_name}
            block = cropper.process(framer.process(Block(0, n, columns)))
            made = _crops_of(block, config, step.columns[label], step.entries.astype(np.int64), number)
            parts.append(made)
            if on_step is not None:
                on_step(n)
        file.close()
    joined = {name: np.concatenate([part.pop(name) for part in parts]) for name in list(parts[0])} if parts else {}
    if not parts or not len(joined["labels"]):
        raise UsageError(
            f"{', '.join(map(str, files))}: no {spec.objects} with {label} {spec.signal} or 0, pt above "
            f"{spec.pt_min:g} GeV, |eta| below {spec.eta_max:g} and a seed; nothing to train with"
        )
    return Crops(spec.channels, spec.crop, **joined)


def _crops_of(block: Block, config: Config, truth: Array, entries: Int64s, number: int) -> dict[str, Array]:
    """The crops of a block whose truth is known, by the names of `Crops`."""
    ((name, spec),) = config.taggers.items()
    columns = block.columns
    crop, pixel = records.crop_names(name)
    events = np.repeat(np.arange(block.n_events), columns[f"n{crop}"])
    objects = offsets(columns[f"n{spec.objects}"])[events] + columns[f"{crop}_object"]
    labels = truth[objects]
    known = (labels == spec.signal) | (labels == 0)
    counts = columns[f"n{pixel}"]
    pixels = np.repeat(known, counts.sum(axis=1))
    return {
        "counts": counts[known],
        "index": columns[f"{pixel}_index"][pixels],
        "value": columns[f"{pixel}_value"][pixels],
        "labels": (labels[known] == spec.signal).astype(np.int8),
        "pt": columns[f"{spec.objects}_pt"][objects][known],
        "files": np.full(int(known.sum()), number, np.int32),
        "events": entries[events][known],
    }
