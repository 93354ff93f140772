"""Any readable kind of event file to one ROOT file with our columns."""

import logging
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from rich.progress import track

from stages.config import InputConfig
from stages.formats import open_events
from stages.formats.root import WRITE_EVENTS, write_events
from stages.inputs import expand
from stages.records import INPUT_BY_NAME, READABLE, InputColumn
from streamer.block import Columns, Schema, count_column
from streamer.errors import UsageError

log = logging.getLogger(__name__)


def schema_of(columns: list[InputColumn]) -> Schema:
    """The schema of a file that holds these columns."""
    out = []
    known: set[str] = set()
    for column in columns:
        if column.collection and column.collection not in known:
            known.add(column.collection)
            out.append(count_column(column.collection))
        out.append(column.wire)
    return Schema(out)


def convert_files(inputs: list[str], out: Path, *, rntuple: bool = False, overwrite: bool = False) -> int:
    """Write the events of `inputs` to `out`; returns their number. Columns that any input lacks are left out.

    Raises
    ------
    UsageError
        An input that cannot be read, or `out` is there already.
    """
    if out.exists() and not overwrite:
        raise UsageError(f"{out}: exists; choose another name, or --overwrite")
    config = InputConfig(step_events=WRITE_EVENTS)
    files = [open_events(path, config) for path in expand(inputs)]
    columns = [c for c in READABLE if all(c.name in file.names for file in files)]
    schema = schema_of(columns)
    for file in files:
        lost = dict.fromkeys(
            INPUT_BY_NAME[name].collection for name in file.names if INPUT_BY_NAME[name] not in columns
        )
        if lost:
            told = ", ".join(filter(None, lost))
            log.warning("%s: not all of it is converted; other inputs lack columns of %s", file.path, told)

    def steps() -> Iterator[Columns]:
        for file in track(files, "converting", transient=True):

            def report(first: int, n: int, why: str, path: Path | str = file.path) -> None:
                log.error("%s: %d events from entry %d on cannot be read and are left out: %s", path, n, first, why)

            for step in file.read(columns, report):
                yield {name: np.ascontiguousarray(step.columns[name]) for name in schema.by_name}
            file.close()

    try:
        return write_events(out, schema, steps(), rntuple=rntuple)
    except OSError as error:
        raise UsageError(f"{out}: cannot be written ({error.strerror or error})") from None
