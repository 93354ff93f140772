"""Files of scored events in all their forms, written and read back."""

import sys
from collections.abc import Iterator
from pathlib import Path

import awkward as ak
import numpy as np
import pytest

from stages.skim import accepted, any_of
from stages.stored import SUFFIX, Form, opened, require, write
from streamer.block import Column, Columns, Schema, count_column
from streamer.errors import UsageError

N = 20
SCHEMA = Schema(
    [
        Column("run", "u4"),
        Column("luminosityBlock", "u4"),
        Column("event", "u8", doc="event number"),
        Column("sourceFile", "i4"),
        Column("sourceEntry", "i8"),
        Column("HLT_Odd_v1", "b1"),
        count_column("Jet"),
        Column("Jet_pt", "f4", "Jet", unit="GeV"),
        Column("Jet_genLabel", "i1", "Jet"),
    ]
)


def columns(first: int, last: int) -> Columns:
    """Event `k` has `k % 3` jets of `k` GeV; odd ones are accepted."""
    numbers = np.arange(first, last)
    n_jets = (numbers % 3).astype(np.int32)
    return {
        **{name: np.ones(numbers.size, np.uint32) for name in ("run", "luminosityBlock")},
        "event": numbers.astype(np.uint64) + (1 << 63),
        "sourceFile": (numbers // 10).astype(np.int32),
        "sourceEntry": numbers.astype(np.int64) % 10,
        "HLT_Odd_v1": numbers % 2 == 1,
        "nJet": n_jets,
        "Jet_pt": np.repeat(numbers, n_jets).astype(np.float32),
        "Jet_genLabel": np.full(n_jets.sum(), -1, np.int8),
    }


def steps() -> Iterator[Columns]:
    for first, last in ((0, 7), (7, 7), (7, 8), (8, N)):
        yield columns(first, last)


@pytest.mark.parametrize("form", ["ttree", "rntuple", "parquet"])
def test_any_range_of_events_is_read_back_as_it_was_written(tmp_path: Path, form: Form) -> None:
    path = tmp_path / f"some:thing{SUFFIX[form]}"
    assert write(path, form, SCHEMA, steps(), "events", {"streamer_version": "1"}) == N
    assert [*tmp_path.iterdir()] == [path]
    with opened(path) as file:
        assert (file.n_events, file.text("streamer_version")) == (N, "1")
        assert sorted(file.names) == sorted(SCHEMA.by_name)
        for first in range(N):
            for last in range(first + 1, N + 1):
                found = file.arrays(["event", "Jet_pt", "nJet"], first, last)
                assert found["event"].tolist() == [(1 << 63) + k for k in range(first, last)]
                assert found["Jet_pt"].tolist() == [[k] * (k % 3) for k in range(first, last)]
        whole = file.arrays(file.names, 0, N)
    for column in SCHEMA.columns:
        values = ak.to_numpy(whole[column.name] if column.per == "event" else ak.flatten(whole[column.name]))
        assert values.dtype == column.wire_dtype
    picked = accepted([path], any_of(["HLT_Odd_v1"]))
    assert {number: one.entries.tolist() for number, one in picked.items()} == {0: [1, 3, 5, 7, 9], 1: [1, 3, 5, 7, 9]}
    assert picked[1].numbers[2].tolist() == [(1 << 63) + k for k in (11, 13, 15, 17, 19)]
    with pytest.raises(UsageError, match="'Jet_pt' is a list an event"):
        accepted([path], any_of(["Jet_pt"]))


@pytest.mark.parametrize("form", ["ttree", "rntuple", "parquet"])
def test_a_file_without_events_can_be_read(tmp_path: Path, form: Form) -> None:
    path = tmp_path / f"none{SUFFIX[form]}"
    assert write(path, form, SCHEMA, [], "", {}) == 0
    with opened(path) as file:
        assert file.n_events == 0
    assert accepted([path], any_of(["HLT_Odd_v1"])) == {}


def test_parquet_tells_what_columns_mean(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    write(tmp_path / "a.parquet", "parquet", SCHEMA, steps(), "", {})
    schema = parquet.read_schema(tmp_path / "a.parquet")
    assert schema.field("event").metadata == {b"doc": b"event number"}
    assert schema.field("Jet_pt").metadata == {b"unit": b"GeV"}
    assert not schema.field("Jet_pt").nullable


def test_what_is_missing_for_parquet_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyarrow"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match=r"need pyarrow: pip install 'e2e-streamer\[parquet\]'"):
        require("parquet")
    require("rntuple")
