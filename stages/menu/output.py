"""The menu's decisions in the output: columns of scores.root, and the streams' own files of accepted events."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from stages import records
from stages.config import Config
from stages.formats.root import WRITE_EVENTS
from stages.menu.crops import flat
from stages.menu.flags import unpacked
from stages.stored import SUFFIX, SUFFIXES, Form, sha256_of, write
from streamer.block import Columns, Schema
from streamer.gather import gather
from streamer.journal import Written, steps

FOLDER = "streams"
SOURCE = "-source"
"""Stands behind a stream's name in that of its file of complete events."""
STEPS = 5
"""So many times `WRITE_EVENTS` are written at a time where there is a menu: each of its many columns costs a while."""


class Expander:
    """Writes decisions out: a boolean a path, stream and dataset, and the prescales."""

    def __init__(self, config: Config) -> None:
        menu = config.menu
        self._paths, self._datasets = tuple(menu.paths), menu.dataset_places()
        self._prescales = np.array(menu.prescale_table(), np.uint32)  # axes: column, path
        self._prescaled = {records.path_column(name): self._paths.index(name) for name in records.prescaled(config)}
        self._streams = {name: tuple(stream.datasets) for name, stream in menu.streams.items()}

    def __call__(self, columns: Columns) -> Columns:
        accepted = unpacked(columns["pathAccepted"], len(self._paths)).T.astype(bool)  # axes: path, event
        held = columns["prescaleColumn"]
        datasets = {name: accepted[places].any(0) for name, places in self._datasets.items()}
        streams = {name: np.any([datasets[one] for one in of], axis=0) for name, of in self._streams.items()}
        return {
            **columns,
            **{records.path_column(name): accepted[k] for k, name in enumerate(self._paths)},
            **{f"{name}_prescale": self._prescales[:, k][held] for name, k in self._prescaled.items()},
            **{f"Stream_{name}": flags for name, flags in streams.items()},
            **{f"Dataset_{name}": flags for name, flags in datasets.items()},
        }


def output_steps(blocks: Any, config: Config, *, crops: bool = False) -> Iterator[Columns]:
    """The columns of the output, in large steps.

    Parameters
    ----------
    crops : bool
        With what the networks saw, where a stream keeps it.
    """
    needed = {*records.output(config).by_name, *(column.name for column in records.decisions(config))}
    journal = records.journal(config)
    schema = journal if crops else Schema(column for column in journal.columns if column.name in needed)
    if not config.menu.paths:
        return steps(blocks, schema, WRITE_EVENTS)
    expand = Expander(config)
    if crops:
        return (flat(expand(columns), config) for columns in steps(blocks, schema, WRITE_EVENTS))
    return (expand(columns) for columns in steps(blocks, schema, STEPS * WRITE_EVENTS))


def stream_schema(config: Config, stream: str) -> Schema:
    """The columns of a stream's file."""
    whole = records.output(config)
    spec = config.menu.streams[stream]
    ours = {f"Dataset_{name}" for name in spec.datasets}
    gone = {c.name for c in whole.columns if c.name.startswith(("Stream_", "Dataset_"))} - ours
    if spec.content == "scores":
        kept = {records.score_column(name, of).name for name, of in config.taggers.items()}
        gone |= {c.name for c in whole.columns if c.per != "event" and c.name not in kept}
    crops = records.kept_crops(config) if spec.keeps_crops else []
    return Schema([*(c for c in whole.columns if c.name not in gone), *crops])


class StreamFiles:
    """The files that one writer keeps of the streams: `streams/physics.root`, `streams/physics_1.root`, ...

    Parameters
    ----------
    replica : int
        With several writers `streams/physics-1.root` and so on are beside them.
    """

    def __init__(self, config: Config, replica: int) -> None:
        self._config, self._replica = config, replica
        self._folder = config.writer.dir / FOLDER

    def _path(self, stream: str, segment: int) -> Path:
        stem = f"{stream}-{self._replica}" if self._replica else stream
        return self._folder / f"{stem}{f'_{segment}' if segment else ''}{SUFFIX[self._form(stream)]}"

    def _form(self, stream: str) -> Form:
        return self._config.menu.streams[stream].format or self._config.writer.format

    def write(self, journal: Written, segment: int, metadata: dict[str, str]) -> list[list[Any]]:
        """Write those of a segment; returns `[file, events, bytes, sha256]` of each.

        Raises
        ------
        OSError
            The disk is full.
        """
        return [self._write(journal, segment, stream, metadata) for stream in self._config.menu.streams]

    def _write(self, journal: Written, segment: int, stream: str, metadata: dict[str, str]) -> list[Any]:
        path, schema = self._path(stream, segment), stream_schema(self._config, stream)
        path.parent.mkdir(exist_ok=True)
        crops = self._config.menu.streams[stream].keeps_crops
        some = (
            gather(schema, columns, np.flatnonzero(columns[f"Stream_{stream}"]))
            for columns in output_steps(journal.blocks(), self._config, crops=crops)
        )
        n = write(path, self._form(stream), schema, some, f"stream {stream}", metadata)
        return [f"{FOLDER}/{path.name}", n, path.stat().st_size, sha256_of(path)]

    def all(self) -> list[Path]:
        """Files of streams that are there, also of other menus; those of complete events are the first writer's."""
        mine = [f"-{self._replica}"] if self._replica else ["", SOURCE]
        found = sorted(path for path in self._folder.glob("*.*") if path.suffix in (*SUFFIXES, ".ig"))
        return [path for path in found if _owner(path.stem) in mine]


def _owner(stem: str) -> str:
    """`-1` of `physics-1_3`, `-source` of `physics-source`, nothing of `physics_3`: names of streams have no `-`."""
    _, dash, rest = stem.partition("-")
    return f"-{rest.partition('_')[0]}" if dash else ""


def is_complete(path: Path) -> bool:
    """Whether a file of results is one of complete events."""
    return _owner(path.stem) == SOURCE


def menu_metadata(config: Config) -> dict[str, str]:
    """What files of events tell of the menu."""
    if not config.menu.paths:
        return {}
    return {"streamer_menu": json.dumps(config.menu.model_dump(mode="json", exclude={"file"}))}
