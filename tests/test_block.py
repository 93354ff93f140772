"""Blocks: the schema's arithmetic, the way over the wire and back, and what is refused."""

from itertools import pairwise
from typing import Any

import hostile_wire
import msgpack
import numpy as np
import pytest
from hostile_wire import RUN, Hostile, good, good_small, header_of, message
from hypothesis import given
from hypothesis import strategies as st

from streamer.block import (
    CORE_COLUMNS,
    MAGIC,
    MAX_COLUMNS,
    PACKED_BYTES,
    Block,
    Column,
    Columns,
    Schema,
    WireError,
    count_column,
    decode,
    encode,
    failures,
    offsets,
    read_header,
    readonly,
    to_wire,
    with_failures,
)
from streamer.testing import TOY, toy_block, toy_columns

DTYPES = ["b1", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f4", "f8"]


def travel(block: Block, schema: Schema | None = None, *, small: bool = False) -> Block:
    frames = to_wire(block, RUN, schema if small else None)
    assert small == (len(frames) == 1)
    return decode([bytes(frame) for frame in frames], RUN, schema)


def schema_of(columns: Columns, n_events: int) -> Schema:
    """A schema for some columns: what is not one entry an event is of a collection of its own."""
    told: list[Column] = []
    for name, array in columns.items():
        per = "event" if len(array) == n_events else name.upper()
        told += [] if per == "event" else [count_column(per)]
        told.append(Column(name, array.dtype.str[1:], per, array.shape[1:]))
    return Schema(told)


def assert_same(columns: Columns, wanted: Columns) -> None:
    assert list(columns) == list(wanted)
    for name, array in wanted.items():
        assert columns[name].dtype == array.dtype, name
        np.testing.assert_array_equal(columns[name], array, err_msg=name)


# --- There and back ---


@pytest.mark.parametrize("small", [False, True])
def test_block_comes_back_as_it_was(small: bool) -> None:
    block = toy_block(7, 10)
    block.attempt, block.stamps = 3, {"reader": 1 << 60, "framer": 5}
    back = travel(block, TOY, small=small)
    assert (back.id, back.n_events, back.attempt, back.stamps) == (7, 10, 3, block.stamps)
    assert_same(back.columns, block.columns)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(6,), (0,), (6, 2), (0, 3), (6, 0), (6, 2, 3)])
def test_every_dtype_and_shape_travels(dtype: str, shape: tuple[int, ...]) -> None:
    kind = np.dtype(dtype)
    values = np.random.default_rng(1).integers(0, 256, int(np.prod(shape)) * kind.itemsize, np.uint8)
    array = (values % 2).astype(bool) if dtype == "b1" else values.view(kind)
    block = Block(1, 6, {"x": array.reshape(shape), "y": np.arange(3, dtype=np.int8)})
    assert_same(travel(block).columns, block.columns)
    schema = schema_of(block.columns, 6)
    counts = {c.name: np.array([0, 0, 0, 0, 0, len(block.columns[c.counts.lower()])], np.int32)
              for c in schema.columns if c.counts}  # fmt: skip
    whole = {name: {**block.columns, **counts}[name] for name in schema.by_name}
    back = travel(block.with_columns(whole), schema, small=True).columns
    assert_same(back, whole)
    assert all(array.flags.aligned and not array.flags.writeable for array in back.values())


def test_special_floats_travel_bit_by_bit() -> None:
    values = np.array([np.nan, -np.nan, np.inf, -np.inf, -0.0, 5e-324], np.float64)
    back = travel(Block(1, 6, {"x": values})).columns["x"]
    np.testing.assert_array_equal(back.view(np.uint64), values.view(np.uint64))


def test_what_is_not_contiguous_is_made_so() -> None:
    table = np.arange(24, dtype=np.int32).reshape(4, 6)
    columns = {"strided": table[0, ::2], "turned": table.T, "reversed": table[0, ::-1], "spread": np.broadcast_to(7, 3)}
    assert_same(travel(Block(1, 3, columns)).columns, columns)


def test_what_is_contiguous_is_not_copied() -> None:
    block = toy_block(1, 8)
    for frame, array in zip(encode(block, RUN)[1:], block.columns.values(), strict=True):
        assert not array.size or np.shares_memory(np.frombuffer(frame, np.uint8), array)


@pytest.mark.parametrize("array", [np.array([None, 1]), np.array(["a"]), np.zeros(2, "f4,f4"), np.zeros(2, "c8")])
def test_other_dtypes_do_not_travel(array: Any) -> None:
    with pytest.raises(TypeError, match="column x"):
        encode(Block(1, 2, {"x": array}), RUN)


def test_big_endian_does_not_travel_silently() -> None:
    with pytest.raises(TypeError, match=">f4"):
        encode(Block(1, 2, {"x": np.zeros(2, ">f4")}), RUN)


def test_decoded_arrays_share_the_frame_and_cannot_be_written() -> None:
    values = np.arange(100_000, dtype=np.float64)
    frames = [bytes(frame) for frame in encode(Block(1, 100_000, {"x": values}), RUN)]
    array = decode(frames, RUN).columns["x"]
    assert np.shares_memory(array, np.frombuffer(frames[1], np.uint8))
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


@pytest.mark.parametrize("shift", range(9))
def test_decoded_arrays_are_aligned_wherever_the_frame_lies(shift: int) -> None:
    values = np.arange(20, dtype=np.float64)
    header, data = encode(Block(1, 20, {"x": values}), RUN)
    lies_at = np.zeros(200, np.uint8)
    lies_at[shift : shift + data.nbytes] = np.frombuffer(data, np.uint8)
    array = decode([header, lies_at[shift : shift + data.nbytes].data], RUN).columns["x"]
    assert array.flags.aligned
    assert not array.flags.writeable
    np.testing.assert_array_equal(array, values)


def test_small_blocks_travel_in_one_frame_and_large_ones_as_they_are() -> None:
    schema = Schema([Column("x", "f8"), Column("y", "i1")])
    small, large = (Block(1, n, {"x": np.zeros(n), "y": np.ones(n, np.int8)}) for n in (10, 10_000))
    assert len(to_wire(small, RUN, schema)) == 1
    assert list(map(len, to_wire(large, RUN, schema)[1:])) == [80_000, 10_000]
    most = PACKED_BYTES // 9
    fits, does_not = (Block(1, n, {"x": np.zeros(n), "y": np.ones(n, np.int8)}) for n in (most, most + 1))
    assert travel(fits, schema, small=True).n_events == most
    assert len(to_wire(does_not, RUN, schema)) == 3


def test_a_small_block_that_is_not_contiguous_travels_too() -> None:
    table = np.arange(40.0).reshape(4, 10)
    columns = {"x": table[:, ::3], "y": table[::-1, 0]}
    schema = Schema([Column("x", "f8", shape=(4,)), Column("y", "f8")])
    assert_same(travel(Block(1, 4, columns), schema, small=True).columns, columns)


@pytest.mark.parametrize(
    "columns",
    [
        {"x": np.zeros(3), "y": np.zeros((3, 2), np.int8)},
        {"x": np.zeros(3, np.float32), "y": np.zeros((3, 1), np.int8)},
        {"x": np.zeros(3)},
        {"x": np.zeros(3), "y": np.zeros((3, 1), np.int8), "z": np.zeros(3)},
    ],
    ids=["another shape", "another dtype", "a column less", "a column more"],
)
def test_what_a_stage_made_against_its_schema_is_told_by_whom_it_is_sent_to(columns: Columns) -> None:
    schema = Schema([Column("x", "f8"), Column("y", "i1", shape=(1,))])
    with pytest.raises(WireError):
        decode([bytes(frame) for frame in to_wire(Block(1, 3, columns), RUN, schema)], RUN, schema)


def test_empty_columns_are_read_only_too() -> None:
    array = travel(Block(1, 1, {"x": np.zeros((0, 2), np.float32)})).columns["x"]
    assert array.shape == (0, 2)
    assert not array.flags.writeable


# --- The schema ---


def test_schema_wants_a_count_column_before_a_collection() -> None:
    with pytest.raises(ValueError, match="Hit has no count column before it"):
        Schema([Column("Hit_energy", "f4", "Hit"), count_column("Hit")])


def test_schema_has_each_name_once() -> None:
    with pytest.raises(ValueError, match="twice"):
        Schema([Column("x", "f4"), Column("x", "f4")])


@pytest.mark.parametrize("n_events", [0, 1, 5])
def test_empty_events_are_as_the_schema_says(n_events: int) -> None:
    columns = TOY.empty(n_events)
    TOY.check(columns, n_events)
    assert columns["nHit"].shape == (n_events,)
    assert columns["nCell"].shape == (0, 2)


def test_slice_takes_the_members_of_its_events() -> None:
    block = toy_block(1, 9)
    part = TOY.slice(block.columns, 4, 6)  # events 4 and 5, of 1 and 2 hits
    TOY.check(part, 2)
    assert part["event"].tolist() == [4, 5]
    assert part["Hit_energy"].tolist() == [4, 5, 5]
    assert np.shares_memory(part["Hit_energy"], block.columns["Hit_energy"])


@given(st.integers(0, 12), st.lists(st.integers(0, 12), max_size=5))
def test_slices_put_together_are_the_whole(n_events: int, cuts: list[int]) -> None:
    columns = {**TOY.empty(n_events), **toy_columns(n_events)}
    edges = [0, *sorted(min(cut, n_events) for cut in cuts), n_events]
    parts = [TOY.slice(columns, first, last) for first, last in pairwise(edges)]
    for part, (first, last) in zip(parts, pairwise(edges), strict=True):
        TOY.check(part, last - first)
    whole = TOY.concat(parts)
    TOY.check(whole, n_events)
    assert_same(whole, {name: columns[name] for name in TOY.by_name})


def test_emptied_events_keep_who_they_are() -> None:
    block = toy_block(1, 6)
    left = TOY.emptied(block.columns)
    TOY.check(left, 6)
    assert left["event"].tolist() == list(range(6))
    assert left["nHit"].tolist() == [0] * 6
    assert left["Hit_energy"].size == left["nCell"].size == 0
    assert block.columns["nHit"].tolist() == [0, 1, 2, 0, 1, 2]


def test_the_first_events_can_be_emptied_alone_and_copy_nothing_of_the_others() -> None:
    block = toy_block(1, 6)
    left = TOY.emptied(with_failures(block.columns, {0: "why"}, 1), 3)
    TOY.check(left, 6)
    assert left["event"].tolist() == list(range(6))
    assert left["nHit"].tolist() == [0, 0, 0, 0, 1, 2]
    assert left["Hit_energy"].tolist() == [4, 5, 5]
    assert np.shares_memory(left["Hit_energy"], block.columns["Hit_energy"])
    assert failures(left) == {0: "why"}


def test_bare_events_are_as_another_hop_declares_them() -> None:
    block = toy_block(1, 5)
    columns = with_failures(block.columns, {2: "why"}, 1)
    other = Schema(
        [*CORE_COLUMNS, count_column("Crop", shape=(2,)), Column("Crop_x", "f4", "Crop"), TOY.by_name["event"]]
    )
    bare = other.bare(columns)
    assert bare is not None
    other.check(bare, 5)
    assert bare["event"].tolist() == list(range(5))
    assert not bare["nCrop"].any()
    assert failures(bare) == {2: "why"}
    assert Schema([*CORE_COLUMNS, Column("score", "f4")]).bare(columns) is None, "it has more to say of an event"


def test_offsets_say_where_members_begin() -> None:
    assert offsets(np.array([2, 0, 3], np.int32)).tolist() == [0, 2, 2, 5]
    assert offsets(np.array([[2, 1], [0, 3]], np.int32)).tolist() == [0, 2, 3, 3, 6]
    assert offsets(np.zeros(0, np.int32)).tolist() == [0]


def test_readonly_is_a_view() -> None:
    array = np.arange(3)
    view = readonly(array)
    array[0] = 9
    assert view[0] == 9
    assert array.flags.writeable
    assert not view.flags.writeable


def test_with_columns_keeps_the_block_and_its_stamps() -> None:
    block = toy_block(5, 3)
    block.attempt = 2
    other = block.with_columns({})
    assert (other.id, other.n_events, other.attempt, other.stamps) == (5, 3, 2, block.stamps)
    assert block.columns


@pytest.mark.parametrize("n_events", [1, 2, 5, 200])
def test_a_block_is_the_same_whichever_way_it_travels(n_events: int) -> None:
    block = toy_block(3, n_events)
    small, large = travel(block, TOY, small=True), travel(block, TOY)
    assert_same(small.columns, large.columns)
    assert not any(array.flags.writeable for array in small.columns.values())


def test_schemas_that_differ_have_different_digests() -> None:
    hit = [count_column("Hit"), Column("Hit_energy", "f4", "Hit")]
    others = [
        [count_column("Hit"), Column("Hit_energy", "f8", "Hit")],
        [count_column("Hit"), Column("Hit_energy", "f4")],
        [count_column("Hit"), Column("Hit_energy", "f4", "Hit", (2,))],
        [count_column("Hit"), Column("Hit_e", "f4", "Hit")],
        [*hit, Column("x", "f4")],
        [Column("x", "f4"), *hit],
    ]
    digests = {Schema(columns).digest for columns in [hit, *others]}
    assert len(digests) == 1 + len(others)
    assert Schema(hit).digest == Schema([*hit]).digest


# --- What is refused ---


def test_the_good_message_of_the_corpus_is_good() -> None:
    assert decode(good(), RUN, TOY).n_events == decode(good_small(), RUN, TOY).n_events == 5


@pytest.mark.parametrize("hostile", hostile_wire.BLOCKS, ids=lambda hostile: hostile.name)
def test_hostile_message_is_refused_with_its_reason(hostile: Hostile) -> None:
    with pytest.raises(WireError) as refusal:
        decode(hostile.frames, RUN, TOY)
    assert refusal.value.reason == hostile.reason, refusal.value


def test_a_message_without_frames_is_refused() -> None:
    with pytest.raises(WireError):
        decode([], RUN, TOY)


def test_as_many_columns_as_allowed_travel() -> None:
    columns = {f"c{i}": np.zeros(1, np.float32) for i in range(MAX_COLUMNS)}
    assert len(travel(Block(1, 1, columns)).columns) == MAX_COLUMNS


def test_reason_and_detail_are_told() -> None:
    with pytest.raises(WireError, match="size: column 'Hit_energy' announces") as refusal:
        decode([*good()[:7], b"", *good()[8:]], RUN, TOY)
    assert refusal.value.reason == "size"


def assert_refused_or_sound(frames: list[bytes]) -> None:
    try:
        block = decode(frames, RUN, TOY)
    except WireError:
        return
    TOY.check(block.columns, block.n_events)
    for array in block.columns.values():
        array.sum()


@given(st.lists(st.binary(max_size=40), max_size=8))
def test_random_frames_raise_nothing_else(frames: list[bytes]) -> None:
    assert_refused_or_sound(frames)


@given(st.binary(max_size=200), st.lists(st.binary(max_size=16), max_size=4))
def test_random_headers_raise_nothing_else(header: bytes, frames: list[bytes]) -> None:
    assert_refused_or_sound([MAGIC + header, *frames])


_PLAIN: st.SearchStrategy[Any] = st.one_of(
    *(st.none(), st.booleans(), st.integers(-(1 << 63), (1 << 64) - 1), st.floats(), st.text(max_size=8)),
    *(st.binary(max_size=8), st.sampled_from(["block", RUN, "<f4", "|O", "nHit"])),
)
ANYTHING = st.recursive(
    _PLAIN, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)


@given(ANYTHING | st.dictionaries(st.just("kind") | st.text(max_size=5), ANYTHING, max_size=4))
def test_any_msgpack_is_a_header_or_refused(content: Any) -> None:
    if isinstance(content, dict) and isinstance(content.get("kind"), str):
        assert read_header(message(content))["kind"] == content["kind"]
        return
    with pytest.raises(WireError) as refusal:
        read_header(message(content))
    assert refusal.value.reason == "header"


GOOD = st.sampled_from([good, good_small]).map(lambda make: make())


@given(GOOD, st.data())
def test_a_good_message_with_changed_bytes(message: list[bytes], data: st.DataObject) -> None:
    frames = [bytearray(frame) for frame in message]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = frames[data.draw(st.integers(0, len(frames) - 1))]
        if frame:
            frame[data.draw(st.integers(0, len(frame) - 1))] = data.draw(st.integers(0, 255))
    assert_refused_or_sound([bytes(frame) for frame in frames])


@given(GOOD, st.data())
def test_a_good_message_with_a_changed_field(frames: list[bytes], data: st.DataObject) -> None:
    header = header_of(frames)
    target, key = header, data.draw(st.sampled_from(sorted(header)))
    if key in ("columns", "rows") and data.draw(st.booleans()):
        target, key = header[key], data.draw(st.integers(0, len(header[key]) - 1))
        if isinstance(target[key], list) and data.draw(st.booleans()):
            target, key = target[key], data.draw(st.integers(0, 2))
    target[key] = data.draw(ANYTHING)
    assert_refused_or_sound([MAGIC + msgpack.packb(header), *frames[1:]])


@given(GOOD, st.data())
def test_a_good_message_with_changed_frames(frames: list[bytes], data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, max(0, len(frames) - 1)))
        change = data.draw(st.sampled_from(["drop", "repeat", "cut", "grow", "swap"]))
        if not frames:
            break
        if change == "drop":
            frames.pop(place)
        elif change == "repeat":
            frames.insert(place, frames[place])
        elif change == "cut":
            frames[place] = frames[place][: data.draw(st.integers(0, len(frames[place])))]
        elif change == "grow":
            frames[place] += data.draw(st.binary(min_size=1, max_size=8))
        else:
            other = data.draw(st.integers(0, len(frames) - 1))
            frames[place], frames[other] = frames[other], frames[place]
    assert_refused_or_sound(frames)
