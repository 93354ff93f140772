"""Single events for people to look at while a run goes on: who they are, their scores, and their pixels."""

from pathlib import Path
from typing import Any

import numpy as np

from stages import records
from stages.config import Config
from streamer.block import Block, offsets

MOST_PIXELS = 8000
"""Of a channel, so many of the brightest are drawn."""


def glimpse(block: Block, config: Config) -> dict[str, Any] | None:
    """The event of a block with the largest score, as plain data; None where none has one."""
    columns = block.columns
    best, event = -1.0, -1
    for name, spec in config.taggers.items():
        scores = columns[records.score_column(name, spec).name]
        if scores.size and scores.max() > best:
            best, place = float(scores.max()), int(scores.argmax())
            ends = np.cumsum(columns[f"n{spec.objects}"]) if spec.crop else np.arange(1, block.n_events + 1)
            event = int(np.searchsorted(ends, place, side="right"))
    if best < 0:
        return None
    names = ("run", "luminosityBlock", "event", "sourceFile", "sourceEntry")
    return {
        "number": block.id + event,
        **{name: int(columns[name][event]) for name in names},
        "objects": [one for objects in config.objects for one in _objects(objects, block, event, config)],
        "scores": {
            spec.score: round(float(columns[records.score_column(name, spec).name][event]), 4)
            for name, spec in config.taggers.items()
            if not spec.crop
        },
    }


def _objects(objects: str, block: Block, event: int, config: Config) -> list[dict[str, Any]]:
    columns = block.columns
    first, last = offsets(columns[f"n{objects}"])[event : event + 2]
    scores = {
        spec.score: columns[records.score_column(name, spec).name][first:last]
        for name, spec in config.taggers.items()
        if spec.objects == objects
    }
    return [
        {
            "kind": objects,
            "pt": round(float(columns[f"{objects}_pt"][first + k]), 2),
            "scores": {name: round(float(values[k]), 4) for name, values in scores.items() if values[k] >= 0},
        }
        for k in range(int(last - first))
    ]


def draw(config: Config, one: dict[str, Any]) -> dict[str, Any]:
    """An event's frame, channel by channel, and where its objects and their crops lie; read from its source once more.

    Parameters
    ----------
    one : dict
        As `glimpse` gave it.

    Raises
    ------
    StreamerError
        It cannot be read any more.
    """
    from stages.view import see  # the writer, which only glimpses, does not load what draws

    path = config.input.expanded()[one["sourceFile"]]
    seen, _ = see(path, one["sourceEntry"], config.model_copy(update={"taggers": {}}))
    channels = []
    for name, image in seen.images.items():
        flat = image.reshape(-1)
        index = np.flatnonzero(flat)
        if index.size > MOST_PIXELS:
            index = np.sort(index[np.argsort(-np.abs(flat[index]))[:MOST_PIXELS]])
        values = [float(f"{value:.3g}") for value in flat[index]]
        channels.append({"name": name, "unit": seen.units[name], "index": index.tolist(), "value": values})
    crops: dict[str, int] = {spec.objects: spec.crop for spec in config.taggers.values()}
    return {
        "title": f"{Path(str(path)).name}, entry {one['sourceEntry']}",
        "rows": 280,
        "columns": 360,
        "channels": [channel for channel in channels if channel["index"]],
        "objects": [
            {"kind": thing.kind, "pt": thing.pt, "eta": thing.eta, "phi": thing.phi, "seed": thing.seed,
             "crop": crops.get(thing.kind, 0)}
            for thing in seen.objects
        ],
    }  # fmt: skip
