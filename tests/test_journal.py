"""The journal: what was synced can be read back, whatever happens to the end of the file or to a byte of it."""

import os
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
import pytest

from stages import journal
from stages.journal import Journal, in_use, read_about, recover, steps
from streamer.block import Block, Column, Schema, count_column
from streamer.errors import StreamerError, UsageError

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
    """A closed journal of these blocks; returns where each record begins, and the end."""
    log = Journal(path, ABOUT)
    places = []
    for block_id in ids:
        log.add(block(block_id))
        await log.sync()
        places.append(path.stat().st_size)
    log.close()
    return places


def recovered(path: Path) -> tuple[list[int], list[str]]:
    """Block ids and complaints; the blocks that come are whole."""
    complaints: list[str] = []
    found = list(recover(path, SCHEMA, complaints.append))
    for have in found:
        for name, column in block(have.id).columns.items():
            np.testing.assert_array_equal(have.columns[name], column)
    return [have.id for have in found], complaints


async def test_blocks_come_back_in_the_order_of_their_ids(tmp_path: Path) -> None:
    path = tmp_path / "j"
    await written(path, [3, 1, 2, 10, 7])
    assert recovered(path) == ([1, 2, 3, 7, 10], [])
    assert read_about(path) == {"format": journal.FORMAT, **ABOUT}


async def test_the_writer_itself_reads_them_back_like_that(tmp_path: Path) -> None:
    log = Journal(tmp_path / "j", ABOUT)
    for block_id in (2, 1, 3):
        log.add(block(block_id))
    await log.sync()
    assert log.n_events == 6
    assert [b.id for b in log.blocks(SCHEMA)] == [1, 2, 3]
    log.close()


async def test_only_what_was_synced_is_there(tmp_path: Path) -> None:
    log = Journal(tmp_path / "j", ABOUT)
    log.add(block(1))
    await log.sync()
    log.add(block(2))
    assert recovered(tmp_path / "j") == ([1], [])
    await log.sync()
    await log.sync()
    assert recovered(tmp_path / "j") == ([1, 2], [])
    log.close()


async def test_a_torn_last_record_is_cut_off_wherever_it_is_torn(tmp_path: Path) -> None:
    path = tmp_path / "j"
    *_, before, end = await written(path, [1, 2, 3])
    whole = path.read_bytes()
    for size in range(before, end):
        path.write_bytes(whole[:size])
        assert recovered(path) == ([1, 2], []), f"{size} of {end} bytes"


async def test_zeros_at_the_end_are_nothing(tmp_path: Path) -> None:
    path = tmp_path / "j"
    await written(path, [1, 2])
    with path.open("ab") as file:
        file.write(bytes(4096))
    assert recovered(path) == ([1, 2], [])


async def test_a_flipped_byte_costs_its_block_and_is_told(tmp_path: Path) -> None:
    path = tmp_path / "j"
    first, second, _ = await written(path, [1, 2, 3])
    whole = bytearray(path.read_bytes())
    for place in range(first + 4, second):  # the checksum and the payload of block 2
        whole[place] ^= 0x10
        path.write_bytes(whole)
        ids, complaints = recovered(path)
        assert ids == [1, 3], f"byte {place}"
        assert [f"the block at byte {first}" in line for line in complaints] == [True]
        whole[place] ^= 0x10


async def test_a_flipped_length_is_told_too(tmp_path: Path) -> None:
    path = tmp_path / "j"
    first, _, _, end = await written(path, [1, 2, 3, 4])
    whole = bytearray(path.read_bytes())
    whole[first + 3] ^= 0x40  # the length of block 2 becomes huge
    path.write_bytes(whole)
    assert recovered(path) == (
        [1],
        [f"{path}: damaged at byte {first}; {end - first} bytes from there on are left out"],
    )


async def test_a_block_that_goes_bad_behind_our_back_is_no_result(tmp_path: Path) -> None:
    path = tmp_path / "j"
    log = Journal(path, ABOUT)
    log.add(block(1))
    await log.sync()
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StreamerError, match="block 1 cannot be read back"):
        list(log.blocks(SCHEMA))
    log.close()


async def test_it_is_locked_while_it_is_written(tmp_path: Path) -> None:
    path = tmp_path / "j"
    assert not in_use(path)
    log = Journal(path, ABOUT)
    assert in_use(path)
    with pytest.raises(UsageError, match="cannot be written"):
        Journal(path, ABOUT)
    log.close()
    assert not in_use(path)


async def test_a_disk_that_takes_nothing_fails_the_sync_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    log = Journal(tmp_path / "j", ABOUT)
    log.add(block(1))
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StreamerError) as error:
        await log.sync()
    assert str(error.value).startswith(f"{tmp_path / 'j'}: results cannot be written (No space left on device)")
    assert f"streamer finish {tmp_path}" in str(error.value)
    log.close()


def test_a_folder_that_is_not_there_is_the_users_to_fix(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="No such file or directory"):
        Journal(tmp_path / "no/j", ABOUT)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        bytes(100),
        journal._record(msgpack.packb({"format": "something else"})),
        journal._record(msgpack.packb([1, 2])),
        journal._record(b"\xc1\xc1"),
        os.urandom(500),
    ],
)
def test_what_is_no_journal_is_told(tmp_path: Path, data: Any) -> None:
    path = tmp_path / "j"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"not a (readable )?journal") as error:
        read_about(path)
    assert "\n" not in str(error.value)


def test_steps_join_blocks() -> None:
    blocks = [block(i, n) for i, n in ((1, 3), (2, 4), (3, 1), (4, 6), (5, 1))]
    found = list(steps(iter(blocks), SCHEMA, 7))
    assert [len(step["event"]) for step in found] == [7, 7, 1]
    joined = {name: np.concatenate([step[name] for step in found]) for name in SCHEMA.by_name}
    wanted = SCHEMA.concat([b.columns for b in blocks])
    for name, column in wanted.items():
        np.testing.assert_array_equal(joined[name], column)
    assert list(steps(iter([]), SCHEMA, 7)) == []
