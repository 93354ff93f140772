"""Scored events as Parquet: a column each, collections as lists, a row group a step."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import awkward as ak
import numpy as np

from streamer.block import Columns, Schema, offsets
from streamer.disk import appearing
from streamer.errors import UsageError

NEEDS = "Parquet files need pyarrow: pip install 'e2e-streamer[parquet]'"


def require_pyarrow() -> Any:
    """PyArrow's module for Parquet.

    Raises
    ------
    UsageError
        It is not installed; the line names the extra that brings it.
    """
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise UsageError(f"{NEEDS} ({error})") from None
    return pyarrow.parquet


def write_parquet(
    path: Path, schema: Schema, steps: Iterable[Columns], *, title: str = "", metadata: dict[str, str] | None = None
) -> int:
    """Write events to a Parquet file that appears under its name only when it is complete; returns their number.

    Parameters
    ----------
    schema : Schema
        The columns; only collections directly under the event.
    metadata : dict of str to str
        Stands in the file's own metadata, as `title` and each column's meaning and unit do.

    Raises
    ------
    OSError
        The disk is full.
    """
    parquet = require_pyarrow()
    arrow = _schema(schema, {"title": title, **(metadata or {})})
    n = 0
    with (
        appearing(path) as part,
        part.open("wb") as file,
        parquet.ParquetWriter(file, arrow, compression="zstd", compression_level=3) as writer,
    ):
        for columns in steps:
            n_step = len(columns[schema.columns[0].name])
            if n_step:
                writer.write_table(_table(schema, columns, arrow))
                n += n_step
    return n


def _schema(schema: Schema, metadata: dict[str, str]) -> Any:
    import pyarrow as pa

    fields = []
    for column in schema.columns:
        kind = pa.from_numpy_dtype(column.wire_dtype)
        if column.per != "event":
            kind = pa.list_(pa.field("item", kind, nullable=False))
        about = {"doc": column.doc, "unit": column.unit}
        fields.append(pa.field(column.name, kind, nullable=False, metadata={k: v for k, v in about.items() if v}))
    return pa.schema(fields, metadata)


def _table(schema: Schema, columns: Columns, arrow: Any) -> Any:
    import pyarrow as pa

    ends = {c.counts: offsets(columns[c.name]).astype(np.int32) for c in schema.columns if c.counts}
    arrays = []
    for column, field in zip(schema.columns, arrow, strict=True):
        values = np.ascontiguousarray(columns[column.name])
        if column.per == "event":
            arrays.append(pa.array(values, field.type))
        else:
            flat = pa.array(values, field.type.value_type)
            arrays.append(pa.ListArray.from_arrays(pa.array(ends[column.per]), flat, type=field.type))
    return pa.Table.from_arrays(arrays, schema=arrow)


class ParquetEvents:
    """A Parquet file of events, to be read."""

    def __init__(self, path: Path) -> None:
        self._file = require_pyarrow().ParquetFile(path)
        about = self._file.metadata
        self.n_events: int = about.num_rows
        self.names: list[str] = self._file.schema_arrow.names
        self._texts = self._file.schema_arrow.metadata or {}
        groups = [about.row_group(k).num_rows for k in range(about.num_row_groups)]
        self._begins = np.cumsum([0, *groups])

    def text(self, name: str) -> str:
        """What stands beside the events under this name."""
        return str(self._texts[name.encode()].decode())

    def arrays(self, names: Sequence[str], first: int, last: int) -> dict[str, ak.Array]:
        """Some columns of the events `first` to `last`."""
        begin = int(np.searchsorted(self._begins, first, side="right")) - 1
        end = int(np.searchsorted(self._begins, last))
        table = self._file.read_row_groups(range(begin, end), columns=list(names))
        found = ak.from_arrow(table.slice(first - int(self._begins[begin]), last - first))
        return {name: found[name] for name in names}

    def close(self) -> None:
        self._file.close()
