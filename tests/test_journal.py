"""The journal: what was synced can be read back, whatever happens to the end of the file or to a byte of it."""

import errno
import os
from pathlib import Path

import msgpack
import numpy as np
import pytest
from physics_helpers import fill_disk, small_disk

from streamer import journal
from streamer.block import Block, Column, Schema, count_column, encode
from streamer.errors import StreamerError, UsageError
from streamer.journal import Journal, recover, steps
from streamer.recordlog import in_use, read_record

SCHEMA = Schema([Column("event", "u8"), count_column("Photon"), Column("Photon_pt", "f4", "Photon")])
ABOUT = {"config": {"a": 1}}


def block(block_id: int, n: int = 2) -> Block:
    counts = np.arange(n, dtype=np.int32)
    columns = {
        "event": np.arange(n, dtype=np.uint64) + 100 * block_id,
        "nPhoton": counts,
        "Photon_pt": np.arange(counts.sum(), dtype=np.float32) + block_id,
    }
    return Block(block_id, n, columns)


async def written(path: Path, ids: list[int]) -> list[int]:
    """A closed journal of these blocks; returns where each record ends."""
    log = Journal(path, ABOUT, SCHEMA, untold)
    places = []
    for block_id in ids:
        log.add(block(block_id))
        await log.sync()
        places.append(path.stat().st_size)
    log.close()
    return places


@pytest.mark.parametrize("order", [1, -1])
async def test_its_records_are_what_encode_makes(order: int, tmp_path: Path) -> None:
    log = Journal(tmp_path / "log", ABOUT, SCHEMA, untold)
    made = block(7, 3)
    made = made.with_columns(dict(list(made.columns.items())[::order]))
    made.stamps["reader"] = 12
    log.add(made)
    await log.sync()
    with log.path.open("rb") as file:
        payload = read_record(file, log.places[0])
    log.close()
    assert payload == msgpack.packb([bytes(frame) for frame in encode(made, "journal")])


async def test_columns_of_other_types_are_told_as_they_are(tmp_path: Path) -> None:
    told: list[str] = []
    log = Journal(tmp_path / "log", ABOUT, SCHEMA, told.append)
    made = block(7)
    log.add(made.with_columns({**made.columns, "event": made.columns["event"].astype(np.int64)}))
    await log.sync()
    log.close()
    assert list(recover(tmp_path / "log", SCHEMA, told.append)) == []
    assert len(told) == 1


def untold(line: str) -> None:
    """Nothing is damaged here."""
    raise AssertionError(line)


def check(found: list[Block]) -> list[int]:
    """The ids of blocks that are whole."""
    for have in found:
        for name, column in block(have.id, have.n_events).columns.items():
            np.testing.assert_array_equal(have.columns[name], column)
    return [have.id for have in found]


def recovered(path: Path) -> tuple[list[int], list[str]]:
    """Block ids and complaints of a journal that is only read."""
    complaints: list[str] = []
    return check(list(recover(path, SCHEMA, complaints.append))), complaints


def reopened(path: Path) -> tuple[list[int], list[str]]:
    """Block ids and complaints of a journal that is opened to go on."""
    complaints: list[str] = []
    log = Journal(path, {"not": "used"}, SCHEMA, complaints.append)
    ids = check(list(log.blocks()))
    assert sorted(log.ids) == ids
    assert list(log.sizes) == [2] * len(ids)
    assert log.n_events == 2 * len(ids)
    log.close()
    return ids, complaints


async def test_blocks_come_back_in_the_order_of_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "j"
    await written(path, [3, 1, 2, 10, 7])
    assert recovered(path) == reopened(path) == ([1, 2, 3, 7, 10], [])
    assert journal.about(path) == {"format": journal.FORMAT, **ABOUT}


async def test_the_writer_itself_reads_them_back_like_that(tmp_path: Path) -> None:
    log = Journal(tmp_path / "j", ABOUT, SCHEMA, untold)
    for block_id in (2, 1, 3):
        log.add(block(block_id, block_id + 1))
    await log.sync()
    assert (list(log.ids), list(log.sizes), log.n_events) == ([2, 1, 3], [3, 2, 4], 9)
    assert check(list(log.blocks())) == [1, 2, 3]
    log.close()


async def test_only_what_was_synced_is_there(tmp_path: Path) -> None:
    log = Journal(tmp_path / "j", ABOUT, SCHEMA, untold)
    log.add(block(1))
    await log.sync()
    log.add(block(2))
    assert recovered(tmp_path / "j") == ([1], [])
    await log.sync()
    await log.sync()
    assert recovered(tmp_path / "j") == ([1, 2], [])
    log.add(block(3))
    log.close()
    assert reopened(tmp_path / "j") == ([1, 2], [])


async def test_a_journal_goes_on_behind_what_its_predecessor_left(tmp_path: Path) -> None:
    path = tmp_path / "j"
    await written(path, [4, 2])
    log = Journal(path, {"not": "used"}, SCHEMA, untold)
    assert (list(log.ids), log.n_events) == ([4, 2], 4)
    log.add(block(3))
    await log.sync()
    assert (list(log.ids), log.n_events) == ([4, 2, 3], 6)
    assert check(list(log.blocks())) == [2, 3, 4]
    log.close()
    assert reopened(path) == ([2, 3, 4], [])
    assert journal.about(path) == {"format": journal.FORMAT, **ABOUT}


async def test_a_torn_last_record_is_cut_off_wherever_it_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "j"
    *_, before, end = await written(path, [1, 2, 3])
    whole = path.read_bytes()
    for size in range(before, end):
        path.write_bytes(whole[:size])
        assert recovered(path) == ([1, 2], []), f"{size} of {end} bytes"
        assert path.stat().st_size == size, "only looked at"
        assert reopened(path) == ([1, 2], []), f"{size} of {end} bytes"
        assert path.read_bytes() == whole[:before]
        await written(path, [4])
        assert recovered(path) == ([1, 2, 4], []), f"{size} of {end} bytes"


async def test_zeros_at_the_end_are_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j"
    await written(path, [1, 2])
    with path.open("ab") as file:
        file.write(bytes(4096))
    assert recovered(path) == reopened(path) == ([1, 2], [])


async def test_a_flipped_byte_costs_its_block_and_is_told(tmp_path: Path) -> None:
    path = tmp_path / "j"
    first, second, _ = await written(path, [1, 2, 3])
    whole = bytearray(path.read_bytes())
    for place in range(first + 4, second):  # the checksum and the payload of block 2
        whole[place] ^= 0x10
        path.write_bytes(whole)
        for look in (recovered, reopened):
            ids, complaints = look(path)
            assert ids == [1, 3], f"byte {place}"
            assert complaints == [f"{path}: the block at byte {first} is damaged and left out"]
        assert path.read_bytes() == whole
        whole[place] ^= 0x10


async def test_a_flipped_length_is_told_too(tmp_path: Path) -> None:
    path = tmp_path / "j"
    first, _, _, end = await written(path, [1, 2, 3, 4])
    whole = bytearray(path.read_bytes())
    whole[first + 3] ^= 0x40  # the length of block 2 becomes huge
    path.write_bytes(whole)
    told = [f"{path}: damaged at byte {first}; {end - first} bytes from there on are left out"]
    assert recovered(path) == ([1], told)
    assert reopened(path) == ([1], told)
    assert reopened(path) == ([1], []), "that end is gone"


async def test_no_flipped_bit_makes_a_block_that_was_not_written(tmp_path: Path) -> None:
    path = tmp_path / "j"
    first, second, end = await written(path, [1, 2, 3])
    whole = bytearray(path.read_bytes())
    for bit in range(8 * first, 8 * end):
        whole[bit // 8] ^= 1 << bit % 8
        path.write_bytes(whole)
        ids, complaints = recovered(path)  # the blocks that come are whole
        torn = bit // 8 in range(second, second + 4) and not complaints  # a last record that was cut looks like that
        assert ids in ([1], [1, 2], [1, 3])
        assert complaints or torn, f"bit {bit}"
        whole[bit // 8] ^= 1 << bit % 8


async def test_a_block_that_goes_bad_behind_our_back_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "j"
    log = Journal(path, ABOUT, SCHEMA, untold)
    log.add(block(1))
    await log.sync()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StreamerError, match="block 1 cannot be read back"):
        list(log.blocks())
    log.close()


async def test_blocks_of_another_schema_are_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "j"
    await written(path, [1])
    complaints: list[str] = []
    log = Journal(path, ABOUT, Schema([Column("event", "u8")]), complaints.append)
    assert (list(log.ids), log.n_events, list(log.blocks())) == ([], 0, [])
    assert len(complaints) == 1
    log.close()


async def test_it_is_locked_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "j"
    assert not in_use(path)
    log = Journal(path, ABOUT, SCHEMA, untold)
    log.add(block(1))
    await log.sync()
    assert in_use(path)
    with pytest.raises(BlockingIOError):
        Journal(path, ABOUT, SCHEMA, untold)
    assert recovered(path) == ([1], []), "it can be looked at"
    log.close()
    assert not in_use(path)


async def test_a_sync_that_failed_can_be_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    log = Journal(tmp_path / "j", ABOUT, SCHEMA, untold)
    log.add(block(1))
    await log.sync()
    log.add(block(2))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", broken)
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output error"):
                await log.sync()
            assert recovered(log.path) == ([1], []), "cut back to what is safe"
    log.add(block(3))
    await log.sync()
    assert check(list(log.blocks())) == [1, 2, 3]
    log.close()
    assert reopened(tmp_path / "j") == ([1, 2, 3], []), "and none twice"


async def test_a_full_disk_keeps_what_was_synced_and_takes_the_rest_when_there_is_room(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "4m") as disk:
        log = Journal(disk / "j", ABOUT, SCHEMA, untold)
        log.add(block(1))
        await log.sync()
        fill_disk(disk / "ballast")
        log.add(block(2, n=300))
        with pytest.raises(OSError, match="No space left on device"):
            await log.sync()
        assert recovered(disk / "j") == ([1], [])
        (disk / "ballast").unlink()
        await log.sync()
        log.close()
        assert recovered(disk / "j") == ([1, 2], [])


def test_a_folder_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Journal(tmp_path / "no/j", ABOUT, SCHEMA, untold)


@pytest.mark.parametrize("data", [b"", b"hello", bytes(100), bytes(range(1, 256))])
def test_what_is_no_journal_is_told(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "j"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"not a (readable )?streamer journal") as error:
        journal.about(path)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == data


def test_steps_join_blocks() -> None:
    blocks = [block(i, n) for i, n in ((1, 3), (2, 4), (3, 1), (4, 6), (5, 1))]
    found = list(steps(iter(blocks), SCHEMA, 7))
    assert [len(step["event"]) for step in found] == [7, 7, 1]
    joined = {name: np.concatenate([step[name] for step in found]) for name in SCHEMA.by_name}
    wanted = SCHEMA.concat([b.columns for b in blocks])
    for name, column in wanted.items():
        np.testing.assert_array_equal(joined[name], column)
    assert list(steps(iter([]), SCHEMA, 7)) == []
