"""A menu, ready for use: its expressions compiled against the columns that the configured taggers give."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from stages import records
from stages.config import TAGGERS, Config
from stages.menu.config import DEFAULT
from stages.menu.grammar import parse
from stages.menu.program import Available, Program, compiled
from stages.menu.seeds import paths_in_seeds, saves, seeds_of
from streamer.block import CORE_COLUMNS, Array, Column

_KINEMATICS = ("pt", "eta", "phi")
_NOT_FOR_PATHS = {
    *(column.name for column in CORE_COLUMNS),
    *("sourceFile", "sourceEntry", "sourceInput", "replay"),
    *records.LABELS.values(),  # the truth is not known to a trigger
}


@dataclass(frozen=True)
class Menu:
    """A menu at work.

    Attributes
    ----------
    paths : tuple of str
    program : Program
        A condition a path, in their order, and where any path has a seed, then one for each path's seed.
    seeds : Program
        Those of the seeds alone, which need only what is known before events are framed.
    columns : tuple of str
        Prescale columns, `default` first.
    prescales : int64, shape (n_columns, n_paths)
        0 = off.
    seeded : bool
        Some path has a seed.
    saves : bool
        There can be events that no path's seed wants, which are not worked on.
    """

    paths: tuple[str, ...]
    program: Program
    seeds: Program
    columns: tuple[str, ...]
    prescales: Array
    seeded: bool
    saves: bool

    @property
    def n_bytes(self) -> int:
        """Bytes of an event's flags, one bit a path."""
        return -(-len(self.paths) // 8)


def menu_of(config: Config) -> Menu | None:
    """The menu of a configuration, which has been checked; None where there is none."""
    settings = config.menu
    if not settings.paths:
        return None
    (program, seeds), _ = _programs(config)
    assert program is not None and seeds is not None  # noqa: PT018
    return Menu(
        paths=tuple(settings.paths),
        program=program,
        seeds=seeds,
        columns=(DEFAULT, *settings.columns),
        prescales=np.array(settings.prescale_table(), np.int64),
        seeded=any(text != "true" for _, text in seeds_of(config)),
        saves=saves(config),
    )


def problems(config: Config) -> list[str]:
    """What is wrong with a menu's expressions, one line each."""
    return [*paths_in_seeds(config), *_programs(config)[1]]


def _programs(config: Config) -> tuple[tuple[Program | None, Program | None], list[str]]:
    paths = tuple((name, spec.expression) for name, spec in config.menu.paths.items())
    models = {records.model_column(name).name for name in config.taggers}
    columns = tuple(c for c in records.scored(config) if c.name not in _NOT_FOR_PATHS | models)
    own = tuple((name, spec.seed) for name, spec in config.menu.paths.items() if spec.seed)
    return _compiled(paths, seeds_of(config), own, columns)


@lru_cache(8)
def _compiled(
    paths: tuple[tuple[str, str], ...],
    seeds: tuple[tuple[str, str], ...],
    own: tuple[tuple[str, str], ...],
    columns: tuple[Column, ...],
) -> tuple[tuple[Program | None, Program | None], list[str]]:
    late = _available(columns)
    absent = _absent({*late.event, *late.members, *(name for own in late.members.values() for name in own)})
    late = replace(late, absent=absent)
    early = _available([c for c in columns if c.name.partition("_")[2] in ("", *_KINEMATICS)])  # no scores
    early = replace(early, absent={name: told for name, told in absent.items() if name in records.LABELS})
    taken = [*late.event, *late.members]
    found = [f"a path cannot be called '{name}', which is a column already" for name, _ in paths if name in taken]
    first, wrong_seeds = compiled(dict(seeds), early)
    program, wrong = compiled({**dict(paths), **_apart(seeds, own)} if first else dict(paths), late,
                              {name: parse(text) for name, text in own} if first else {})  # fmt: skip
    return (program, first), [*found, *wrong, *(f"seed of {line}" for line in wrong_seeds if line not in wrong)]


def _apart(seeds: tuple[tuple[str, str], ...], own: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """Seeds as conditions beside the paths, if there are any."""
    if all(text == "true" for _, text in seeds):
        return {}
    given = {name for name, _ in own}

    def text_of(name: str, text: str) -> str:
        if name in given or text == "true":
            return text
        return " or ".join(f"{other}_seed" for other in text.split(" or "))

    return {f"{name}_seed": text_of(name, text) for name, text in seeds}


def _absent(there: set[str]) -> dict[str, str]:
    """Collections and scores that are not there, to the built-in taggers that would give them, in words."""
    out: dict[str, str] = {}
    for tagger, spec in TAGGERS.items():
        objects = spec["objects"]
        if objects not in there:
            out[objects] = f"{out[objects]} or" if objects in out else "it comes with"
            out[objects] += f" --tagger {tagger}"
        if f"{tagger}Score" not in there:
            out[f"{tagger}Score"] = f"{objects} has it with --tagger {tagger}"
    return out


def _available(columns: Sequence[Column]) -> Available:
    event = {c.name: c.name for c in columns if c.per == "event"}
    members: dict[str, dict[str, str]] = {}
    for column in columns:
        if column.per != "event":
            members.setdefault(column.per, {})[column.name.partition("_")[2]] = column.name
    return Available(event, members)
