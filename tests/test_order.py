"""Orders: every event once a pass, the same again from anywhere, and the shares that were asked for."""

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.cursor import Cursor
from stages.order import Line, Order, Piece
from streamer.block import Column, Columns, Schema, count_column
from streamer.gather import gather

SIZES = st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(any)
SCHEMA = Schema([Column("entry", "i8"), count_column("Hit"), Column("Hit_x", "i4", "Hit")])


def numbered(sizes: list[int]) -> list[tuple[int, int]]:
    return list(enumerate(sizes))


def events(file: int, entries: np.ndarray) -> Columns:
    """Events that hold as many hits as the last digit of their entry, each with the event's own name."""
    counts = (entries % 10).astype(np.int32)
    return {
        "entry": 1000 * file + entries,
        "nHit": counts,
        "Hit_x": np.repeat(1000 * file + entries, counts).astype("i4"),
    }


class Files:
    """What a cursor reads; entries whose number is in `broken` cannot be read."""

    def __init__(self, broken: tuple[int, ...] = (), step: int = 7) -> None:
        self.broken, self.step, self.n_read = broken, step, 0

    def read(self, piece: Piece, replay: int) -> Iterator[tuple[np.ndarray, Columns]]:
        for first in range(piece.first, piece.last, self.step):
            entries = np.arange(first, min(first + self.step, piece.last))
            entries = entries[~np.isin(1000 * piece.file + entries, self.broken)]
            self.n_read += entries.size
            if entries.size:
                yield entries, events(piece.file, entries)


@given(SIZES, st.integers(1, 20), st.booleans(), st.integers(0, 3))
def test_a_pass_has_every_event_once(sizes: list[int], piece: int, shuffled: bool, replay: int) -> None:
    line = Line(numbered(sizes), piece, (5, 0) if shuffled else None)
    n = line.n_events
    places, columns = Cursor(line, SCHEMA, Files().read).take(replay * n, n)
    assert places.tolist() == list(range(n))
    SCHEMA.check(columns, n)
    every = [1000 * file + entry for file, size in numbered(sizes) for entry in range(size)]
    assert sorted(columns["entry"].tolist()) == every
    assert shuffled or columns["entry"].tolist() == every
    counts = columns["nHit"]
    assert counts.tolist() == (columns["entry"] % 10).tolist()
    assert columns["Hit_x"].tolist() == np.repeat(columns["entry"], counts).tolist(), "hits go with their events"


@given(SIZES, st.booleans(), st.lists(st.tuples(st.integers(0, 90), st.integers(1, 40)), max_size=8))
def test_a_line_is_the_same_from_wherever_it_is_read(
    sizes: list[int], shuffled: bool, takes: list[tuple[int, int]]
) -> None:
    broken = (3, 4, 2005)
    line = Line(numbered(sizes), 8, (1, 2) if shuffled else None)
    there, whole = Cursor(line, SCHEMA, Files(broken).read).take(0, 1200)
    by_place = dict(zip(there.tolist(), whole["entry"].tolist(), strict=True))
    cursor, at = Cursor(line, SCHEMA, Files(broken).read), 0
    for skipped, n in takes:
        at += skipped
        places, columns = cursor.take(at, n)
        wanted = {place: by_place[at + place] for place in range(n) if at + place in by_place}
        assert dict(zip(places.tolist(), columns["entry"].tolist(), strict=True)) == wanted
        at += n
    assert not set(broken) & set(by_place.values())


def test_what_is_read_in_order_is_read_once_and_what_is_shuffled_comes_from_everywhere() -> None:
    files = Files()
    cursor = Cursor(Line([(0, 4000)], 100), SCHEMA, files.read)
    for first in range(0, 4000, 50):
        cursor.take(first, 50)
    assert files.n_read == 4000
    line, files = Line([(0, 4000)], 100, (0,)), Files()
    cursor = Cursor(line, SCHEMA, files.read)
    order = np.concatenate([cursor.take(first, 50)[1]["entry"] for first in range(0, 4000, 50)])
    assert files.n_read == 4000
    assert abs(np.corrcoef(order, np.arange(4000))[0, 1]) < 0.3
    assert np.mean(np.abs(np.diff(order)) == 1) < 0.05
    again = Cursor(line, SCHEMA, files.read).take(4000, 4000)[1]["entry"]
    assert again.tolist() != order.tolist(), "each pass has an order of its own"
    other = Cursor(Line([(0, 4000)], 100, (1,)), SCHEMA, files.read).take(0, 4000)[1]["entry"]
    assert other.tolist() != order.tolist(), "and so has each seed"


def test_a_mix_has_the_shares_of_independent_draws() -> None:
    order = Order([10, 10, 10], [1, 6, 3], 100, 4, loop=True)
    pages = [page for page, _ in zip(order.pages(), range(500), strict=False)]
    lines = np.concatenate([page.lines for page in pages])
    n = lines.size
    for line, share in enumerate((0.1, 0.6, 0.3)):
        assert np.sum(lines == line) == pytest.approx(n * share, abs=5 * np.sqrt(n * share * (1 - share)))
        counts = np.array([np.sum(page.lines == line) for page in pages])
        assert counts.var() == pytest.approx(100 * share * (1 - share), rel=0.35)
    after_signal = lines[1:][lines[:-1] == 0]
    assert np.mean(after_signal == 0) == pytest.approx(0.1, abs=5 * 0.3 / np.sqrt(after_signal.size))


@given(st.lists(st.tuples(st.integers(1, 400), st.floats(0.01, 10)), min_size=1, max_size=4), st.integers(1, 50))
def test_a_mix_ends_with_the_first_line_that_has_no_more(lines: list[tuple[int, float]], n_page: int) -> None:
    sizes, weights = zip(*lines, strict=True)
    order = Order(sizes, weights, n_page, 3, loop=False)
    pages = list(order.pages())
    assert [page.begin for page in pages] == list(range(0, order.end, n_page))
    dealt = np.concatenate([page.lines for page in pages] or [np.zeros(0, int)])
    assert dealt.size == order.end
    counts = np.bincount(dealt, minlength=len(sizes))
    assert counts.tolist() == order.needs(order.end).tolist()
    assert np.all(counts <= sizes)
    assert counts[order.ends_with] == sizes[order.ends_with]
    assert order.needs(order.end + 1)[order.ends_with] == sizes[order.ends_with] + 1
    starts = np.zeros(len(sizes), int)
    for page in pages:
        assert page.firsts.tolist() == starts.tolist()
        starts += np.bincount(page.lines, minlength=len(sizes))


def test_replicas_share_the_pages() -> None:
    order = Order([9999], [1.0], 20, 0, loop=False)
    shares = [[page.begin for page in order.pages(k, 3)] for k in range(3)]
    assert sorted(begin for share in shares for begin in share) == list(range(0, 9999, 20))
    assert all(len(share) > 100 for share in shares)


@given(st.lists(st.integers(0, 9), max_size=30))
def test_events_are_gathered_with_what_is_theirs(picked: list[int]) -> None:
    nested = Schema(
        [
            *SCHEMA.columns,
            count_column("Pixel", "Hit", (2,)),
            Column("Pixel_v", "i4", "Pixel"),
        ]
    )
    columns = events(0, np.arange(10))
    hits = columns["Hit_x"].size
    columns |= {"nPixel": np.tile(np.array([[1, 2]], np.int32), (hits, 1)), "Pixel_v": np.arange(3 * hits)}
    found = gather(nested, columns, np.array(picked, np.int64))
    one_by_one = nested.concat([nested.slice(columns, k, k + 1) for k in picked] or [nested.slice(columns, 0, 0)])
    for name, array in found.items():
        assert array.tolist() == one_by_one[name].tolist(), name
