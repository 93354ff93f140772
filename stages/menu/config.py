"""The settings of a menu. What its expressions mean is checked in `stages.menu.menu`, which knows the taggers."""

import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from streamer.config import Section
from streamer.errors import nearest

DEFAULT = "default"
"""The prescale column that holds the paths' own prescales."""
SEVERAL = "several writers agree on lumisections that the feed counts; run with --lumisection '23.31 s'"
"""Why a prescale column cannot hold from some lumisection on."""
MOST_COLUMNS = 256
MOST_PATHS = 1000
RESERVED = ("and", "or", "not", "true")

Prescale = Annotated[int, Field(ge=0, lt=1 << 32)]


class PathSpec(Section):
    """One path: what it wants, and how many of its accepts are kept."""

    expression: str
    """What an event must have, such as `Photon: pt > 40 and egScore > 0.9`."""
    seed: str = ""
    """What is looked at first, before an event is framed: pt, eta and phi of objects; empty = every event is."""
    prescale: Prescale = 1
    """Of the path's accepts each so-many-th is kept; 0 = the path is off."""

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, data: Any) -> Any:
        return {"expression": data} if isinstance(data, str) else data


class StreamSpec(Section):
    """A file of accepted events: those of its datasets."""

    content: Literal["scores", "scores+objects", "crops", "source", "crops+source"] = "scores+objects"
    """What is kept of an event: scores and decisions; the scored objects' pt, eta, phi and truth, too; `crops`: also
    the pixels that the networks saw; `source`: a file beside it with the complete events, made when the run ends."""
    datasets: dict[str, tuple[str, ...]] = Field({})
    """Names to the paths whose events they hold."""
    format: Literal["", "ttree", "rntuple", "parquet"] = ""
    """What its files hold; empty = as `writer.format`."""
    without: tuple[str, ...] = ()
    """Of `source`, columns that are left out, or patterns such as 'L1_*'."""

    @property
    def keeps_crops(self) -> bool:
        """Whether what the networks saw is kept."""
        return "crops" in self.content

    @property
    def keeps_source(self) -> bool:
        """Whether complete events are."""
        return "source" in self.content


class MenuConfig(Section):
    """Which events are accepted; without paths there is no menu, and every event is one entry of the output."""

    file: Path | None = None
    """A TOML file with the other settings of this section; it is read at the start."""
    prescale_column: str = DEFAULT
    """The prescale column that holds; `default` is the paths' own prescales."""
    prescale_from: int = Field(0, ge=0, lt=1 << 32)
    """... from this lumisection on; 0 = at once."""
    paths: dict[str, PathSpec] = Field({})
    """Names to expressions, or to tables with `expression`, `seed`, `prescale`."""
    columns: dict[str, dict[str, Prescale]] = Field({})
    """Prescale columns: names to the prescales of paths; others have their own."""
    streams: dict[str, StreamSpec] = Field({})
    """Files of accepted events."""

    @model_validator(mode="before")
    @classmethod
    def _with_file(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not data.get("file"):
            return data
        path, rest = Path(data["file"]), {key: value for key, value in data.items() if key != "file"}
        read = read_menu(path)
        twice = [key for key in ("paths", "columns", "streams") if key in rest and key in read]
        if twice:
            raise ValueError(f"'{twice[0]}' stands in {path} and in the configuration; keep one")
        return {**read, **rest}

    @model_validator(mode="after")
    def _fits_together(self) -> "MenuConfig":
        problems = [*self._wrong_names(), *self._wrong_columns(), *self._wrong_streams()]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def prescale_table(self) -> list[list[int]]:
        """The prescales of all paths, by prescale column; `default` is the first."""
        columns: list[dict[str, int]] = [{}, *self.columns.values()]
        return [[given.get(name, spec.prescale) for name, spec in self.paths.items()] for given in columns]

    def dataset_places(self) -> dict[str, list[int]]:
        """The datasets of all streams, with the places of their paths."""
        place = {name: k for k, name in enumerate(self.paths)}
        return {
            name: [place[path] for path in paths]
            for stream in self.streams.values()
            for name, paths in stream.datasets.items()
        }

    def places_of(self, streams: Iterable[str]) -> list[int]:
        """The places of the paths that put events into these streams."""
        own = {name for stream in streams for name in self.streams[stream].datasets}
        return sorted({place for name, places in self.dataset_places().items() if name in own for place in places})

    def _wrong_names(self) -> Iterator[str]:
        if not self.paths:
            fields = type(self).model_fields
            for key in ("columns", "streams", "prescale_column", "prescale_from"):
                if getattr(self, key) != fields[key].default:
                    yield f"'{key}' has no effect without paths"
        if len(self.paths) > MOST_PATHS:
            yield f"there are {len(self.paths)} paths; at most {MOST_PATHS} are possible"
        datasets = [name for stream in self.streams.values() for name in stream.datasets]
        for what, names in (("path", [*self.paths]), ("stream", [*self.streams]), ("dataset", datasets)):
            for name in names:
                if not re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name):
                    yield f"a {what} cannot be called '{name}'; letters, digits and _, please"
                elif what == "stream" and "_" in name:  # which stands before the number of a file
                    yield f"a stream cannot be called '{name}'; letters and digits, please"
                elif what == "path" and f"HLT_{name}" in self.paths:
                    yield f"the paths '{name}' and 'HLT_{name}' have the same column; rename one"
                elif name in RESERVED or name.endswith(("_prescale", "_seed")):
                    yield f"a {what} cannot be called '{name}', which has another meaning"

    def _wrong_columns(self) -> Iterator[str]:
        if len(self.columns) >= MOST_COLUMNS:
            yield f"there are {len(self.columns)} prescale columns; at most {MOST_COLUMNS - 1} are possible"
        if DEFAULT in self.columns:
            yield f"a prescale column cannot be called '{DEFAULT}', which are the paths' own prescales"
        for column, prescales in self.columns.items():
            yield from _unknown(prescales, self.paths, f"prescale column '{column}'")
        if self.paths and self.prescale_column not in (known := [DEFAULT, *self.columns]):
            hint = nearest(self.prescale_column, known) or f"; there are {', '.join(known)}"
            yield f"there is no prescale column '{self.prescale_column}'{hint}"

    def _wrong_streams(self) -> Iterator[str]:
        homes: dict[str, str] = {}
        for name, stream in self.streams.items():
            if name == "error":
                yield (
                    "the stream 'error' is there without being asked for: events that could not be processed are told "
                    "in the folder 'errors' of the output; leave it out"
                )
            elif not stream.datasets:
                yield f"stream '{name}' has no datasets"
            if stream.without and not stream.keeps_source:
                yield f"stream '{name}': 'without' has no effect without content = \"source\"; leave it out"
            for dataset, paths in stream.datasets.items():
                if homes.setdefault(dataset, name) != name:
                    yield f"dataset '{dataset}' is in the streams '{homes[dataset]}' and '{name}'; rename one"
                if not paths:
                    yield f"dataset '{dataset}' has no paths"
                yield from _unknown(paths, self.paths, f"dataset '{dataset}'")
                for path, n in Counter(paths).items():
                    if n > 1:
                        yield f"dataset '{dataset}' names the path '{path}' twice"


def _unknown(paths: Iterable[str], known: Iterable[str], where: str) -> Iterator[str]:
    known = list(known)
    for path in dict.fromkeys(paths):
        if path not in known:
            yield f"{where}: there is no path '{path}'{nearest(path, known)}"


def read_menu(path: Path) -> dict[str, Any]:
    """What a menu's file says.

    Raises
    ------
    ValueError
        It cannot be read, or is no menu.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        told = str(error)
        twice = "; does a name stand twice?" if "overwrite" in told else ""
        raise ValueError(f"{path}: not valid TOML: {told}{twice}") from None
    if "file" in data:
        raise ValueError(f"{path}: a menu's file cannot name another one")
    if not data.get("paths"):
        raise ValueError(f"{path}: there are no paths; write them below [paths]")
    return data


def same_menu(before: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two menus, as plain data, are the same but for the prescale column in force; nothing is no menu.

    What one does not say, as another version has written it, means what it means by default.
    """
    in_force = {"prescale_column": DEFAULT, "prescale_from": 0}
    try:
        one, other = (MenuConfig.model_validate(menu | in_force) for menu in (before, now))
    except ValidationError:
        return False
    return one == other
