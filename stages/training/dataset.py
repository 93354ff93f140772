"""Labelled crops for training, made by the kernels of the stream itself."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stages import records
from stages.config import Config
from stages.cropper import Cropper
from stages.formats import open_events
from stages.framer import Framer
from stages.records import INPUT_BY_NAME
from stages.sources import choose
from stages.tagger import fill_crops
from streamer.block import Block, Columns, offsets, readonly
from streamer.errors import UsageError

LABEL = "Photon_genLabel"


def load_crops(
    files: Sequence[Path], config: Config, on_step: Callable[[int], None] | None = None
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int8]]:
    """The dense crops of all selected objects with a seed, and their truth.

    Parameters
    ----------
    files : sequence of Path
        Event files with `Photon_genLabel`.
    on_step : callable, optional
        Told how many events each step read.

    Returns
    -------
    crops : float32, shape (n, n_channels, crop, crop)
    labels : int8, shape (n,)

    Raises
    ------
    UsageError
        A file that cannot be read or has no truth.
    """
    framer, cropper = Framer(config), Cropper(config)
    framer.setup()
    crops, labels = [], []
    for path in files:
        file = open_events(path, config.input)
        if LABEL not in file.names:
            raise UsageError(f"{path}: no column {LABEL}; a sample for training needs the truth")
        wanted = [*choose(file, config).columns, INPUT_BY_NAME[LABEL]]
        file.check(wanted)

        def refuse(first: int, n: int, why: str, path: Path = path) -> None:
            raise UsageError(f"{path}: {n} events from entry {first} on cannot be read: {why}")

        for step in file.read(wanted, refuse):
            n = len(step.entries)
            columns = {**framer.inputs.empty(n), **records.complete(config, step.columns, n)}
            truth = step.columns[LABEL]
            block = cropper.process(framer.process(Block(0, n, columns)))
            made, objects = _dense(block.columns, config)
            crops.append(made)
            labels.append(truth[objects].astype(np.int8))
            if on_step is not None:
                on_step(n)
        file.close()
    if not crops:
        raise UsageError(f"{', '.join(map(str, files))}: no events to train with")
    return np.concatenate(crops), np.concatenate(labels)


def _dense(columns: Columns, config: Config) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """The crops of a block, and where their objects stand in the block's flat object columns."""
    ((name, spec),) = config.taggers.items()
    crop, pixel = records.crop_names(name)
    n, n_channels, area = columns[f"{crop}_object"].size, len(spec.channels), spec.crop**2
    dense = np.empty((n, n_channels, area), np.float32)
    index, value = readonly(columns[f"{pixel}_index"]), readonly(columns[f"{pixel}_value"])
    towers = np.array([channel == "HCAL" for channel in spec.channels])
    fill_crops(offsets(columns[f"n{pixel}"]), index, value, 0, n, towers, spec.crop, dense, 0)
    events = np.repeat(np.arange(len(columns["event"])), columns[f"n{crop}"])
    objects = offsets(columns[f"n{spec.objects}"])[events] + columns[f"{crop}_object"]
    return dense.reshape(n, n_channels, spec.crop, spec.crop), objects
