"""Networks that took the place of those that a run began with: kept beside its books, so that a run that goes on has
them again. Which network an event had stands in its own entry (`egModel`)."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.config import Config, digest
from stages.manifest import Manifest
from streamer.disk import sync_folder
from streamer.errors import StreamerError, UsageError

NAME = "networks.json"


def swapped(books: Path) -> dict[str, dict[str, str]]:
    """Taggers to the file (`model`) and the SHA-256 (`sha256`) of the network that they have instead.

    Raises
    ------
    UsageError
        The file that says so cannot be read.
    """
    path = books / NAME
    try:
        found: dict[str, dict[str, str]] = json.loads(path.read_text())
        return {name: {key: str(one[key]) for key in ("model", "sha256")} for name, one in found.items()}
    except (FileNotFoundError, NotADirectoryError):  # of a file in the way, whoever wants to write there will tell
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{path}: cannot be read ({error}); without it the run goes on as it began") from None


def keep(config: Config) -> None:
    """Keep the networks of a configuration; on disk when this returns.

    Raises
    ------
    StreamerError
        The disk does not take it.
    """
    began = Manifest(config.books / "writer-0.manifest").about.get("networks", {})
    now = {name: {"model": str(spec.model), "sha256": digest(spec.model)} for name, spec in config.taggers.items()}
    others = {name: one for name, one in now.items() if one["sha256"] != began.get(name)}
    path = config.books / NAME
    if not others and not path.exists():
        return
    part = path.with_suffix(".part")
    try:
        with part.open("w") as file:
            json.dump(others, file)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise StreamerError(f"{path}: cannot be written ({error.strerror}); everything stays as it was") from None


def forget(books: Path) -> None:
    """A new run begins."""
    (books / NAME).unlink(missing_ok=True)


def models(config: Config, began: dict[str, Any]) -> dict[str, str]:
    """Settings with which a run has again the networks that it had last.

    Parameters
    ----------
    began : dict
        What its manifest says of its beginning. A tagger for which the configuration has another network than then
        keeps that, and the writer refuses it if it is not the run's.
    """
    return {
        f"taggers.{name}.model": one["model"]
        for name, one in swapped(config.books).items()
        if name in config.taggers and digest(config.taggers[name].model) == began["networks"].get(name)
    }


def began_with_others(config: Config, networks: Mapping[str, str]) -> dict[str, str]:
    """The networks with which the run of the output folder began, where a configuration has those that have taken their
    places. Whether their files still hold these is the writer's to complain about.

    Parameters
    ----------
    networks : mapping of str to str
        Taggers to the SHA-256 of the configuration's networks.

    Raises
    ------
    UsageError
        What the folder tells cannot be read.
    """
    if config.writer.overwrite or not (others := swapped(config.books)):
        return {}
    began = Manifest(config.books / "writer-0.manifest").about.get("networks", {})
    return {
        name: began[name]
        for name, one in others.items()
        if name in began and name in networks
        if one["sha256"] == networks[name] or one["model"] == str(config.taggers[name].model)
    }
