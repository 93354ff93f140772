"""Lumisections that the feed counts: by its clock or its events, over passes, deaths and resumed runs."""

import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import uproot
from physics_helpers import Processes, sum_model
from pydantic import ValidationError

from stages.books import read_books
from stages.config import Config, packaged
from streamer.config import FeedConfig
from streamer.fedbook import FedBook
from streamer.feed import Feed, LumiClock
from streamer.testing import toy_block

S = 1_000_000_000


def due(*seconds: float) -> Any:
    return np.array([1_700_000_000 * S + int(second * S) for second in seconds], np.int64)


def test_time_is_counted_from_the_first_event_on() -> None:
    clock = LumiClock("23.31 s")
    assert clock.of(0, due(5.0, 28.3, 28.31, 28.32)).tolist() == [1, 1, 2, 2]
    assert clock.of(4, due(100.0)).tolist() == [5]


def test_a_life_begins_another_one_but_for_what_is_fed_again() -> None:
    clock = LumiClock("1 min", last=7, before=[(14, 15, 7), (10, 11, 5)])
    assert clock.of(10, due(0, 1)).tolist() == [5, 5]
    assert clock.of(12, due(2, 3, 4, 5, 6)).tolist() == [7, 7, 7, 7, 8], "12 and 13 were not booked, 16 is new"
    assert clock.of(17, due(65.9, 66.0)).tolist() == [8, 9], "a minute after the first that is new"


@pytest.mark.parametrize("before", [0, 1, 1234, 3777, 3801])
def test_each_lumisection_of_an_even_feed_has_as_many_events(before: int) -> None:
    feed, clock = Feed(FeedConfig(rate=2500, block_events=500), 17), LumiClock("0.3 s")
    feed.skip(before, 0)
    found = np.concatenate([clock.of(0, feed.next(500, 1 << 40)) for _ in range(60)])
    assert set(np.bincount(found)[1:]) == {750}


def test_events_are_counted_by_their_numbers() -> None:
    clock = LumiClock("10 events", last=3, before=[(0, 5, 9)])
    assert clock.of(8, due(0, 0, 0)).tolist() == [1, 1, 2]
    assert LumiClock("1 event").of(4, due(0, 0)).tolist() == [5, 6]


def test_a_feed_ends_before_the_first_event_of_one_too_many() -> None:
    assert LumiClock("1 s", most=2).of(0, due(0, 1, 1.5, 2, 2.5)).tolist() == [1, 2, 2]
    assert LumiClock("1 s", last=2, before=[(3, 3, 2)], most=2).of(3, due(0, 1)).tolist() == [2]
    after_drops = LumiClock("1 s", last=10, before=[(104, 109, 10)], most=10)
    assert after_drops.of(100, due(*range(12))).tolist() == [10] * 10
    assert LumiClock("10 events", most=2).of(20, due(0, 1)).tolist() == []


@pytest.mark.parametrize("length", ["23.31", "0 s", "0 events", "-1 s", "10 ms", "soon", "5 lumisections"])
def test_what_is_no_length_is_told(length: str) -> None:
    with pytest.raises(ValidationError, match=r"is no length of a lumisection; write '23.31 s'|is not a time"):
        Config.model_validate({"feed": {"lumisection": length}})


def test_several_readers_cannot_count_together() -> None:
    with pytest.raises(ValidationError, match=r"is counted by one reader; set replicas\.reader = 1"):
        Config.model_validate({"feed": {"lumisection": "23.31 s"}, "replicas": {"reader": 2}})


def test_the_book_knows_the_lumisections_of_what_is_fed_again(tmp_path: Path) -> None:
    book = FedBook(tmp_path / "b.fed", "run", [], goes_on=False)
    for first, lumis in ((0, [1, 1, 1, 2]), (4, [2, 2, 3, 4]), (8, [4, 4, 4, 4])):
        block = toy_block(first, 4)
        counted = {**block.columns, "run": np.array([8, 7, 8, 7]), "feedLumisection": np.array(lumis, np.uint32)}
        book.add(block.with_columns(counted))
    assert book.fed.lumis == {(1, 1): 3, (1, 2): 3, (1, 3): 1, (1, 4): 5}, "whatever the input calls its runs"
    assert book.lumis_before() == [(0, 2, 1), (3, 5, 2), (6, 6, 3), (7, 11, 4)]
    book.close()


def test_drops_that_were_not_booked_go_to_a_lumisection_of_their_neighbours(tmp_path: Path) -> None:
    def counted(first: int, lumi: int) -> Any:
        block = toy_block(first, 10)
        return block.with_columns({**block.columns, "feedLumisection": np.full(10, lumi, np.uint32)})

    book = FedBook(tmp_path / "b.fed", "run", [], goes_on=False)
    for first, lumi in ((0, 5), (20, 5), (40, 6)):  # all of it is on disk, and nothing is fed again
        book.add(counted(first, lumi))
    assert book.lumis_before() == [(0, 29, 5), (40, 49, 6)]
    clock = LumiClock("1 s", last=6, before=book.lumis_before(), most=6)
    assert clock.of(10, due(*range(10))).tolist() == [5] * 10
    assert clock.of(30, due(*range(10))).tolist() == [6] * 10
    assert clock.of(50, due(*range(10))).tolist() == [], "these are new, and of one too many"
    book.add(counted(10, 5))
    assert book.lumis_before() == [(0, 29, 5), (40, 49, 6)]
    book.close()


@pytest.fixture
def streamer(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as made:
        yield made


def rows_of(out: Path) -> dict[str, Any]:
    names = ["sourceEntry", "replay", "run", "luminosityBlock", "feedLumisection", "HLT_All_v1_prescale"]
    with uproot.open(out / "scores.root") as file:
        rows = file["Events"].arrays(names, library="np")
    order = np.argsort(rows["replay"].astype(int) * 2500 + rows["sourceEntry"])
    return {name: column[order] for name, column in rows.items()}


def test_a_looped_feed_repeats_no_lumisection_and_a_pause_is_in_none(streamer: Processes, tmp_path: Path) -> None:
    out, menu = tmp_path / "out", tmp_path / "menu.toml"
    os.mkfifo(menu)  # as `--menu <(command)` is: it can be read once
    text = '[paths]\nAll_v1 = "true"\n[columns.other]\nAll_v1 = 3\n'
    threading.Thread(target=menu.write_text, args=(text,), daemon=True).start()
    first = streamer(
        *("run", packaged("samples/egamma.root"), "-o", out, "--loop", "--rate", 2500, "--lumisection", "0.3 s"),
        *("--menu", menu, "--tagger", f"eg={sum_model(tmp_path / 'sum.onnx')}", "--set", "feed.block_events=64"),
    )
    first.wait_for_events(2600)  # into the second pass
    streamer("prescale", "other").check()
    first.wait_for_events(3800)
    streamer("stop", "--now").check()
    assert first.wait() == 130
    begun, stopped = read_books(out), time.monotonic()
    refused = streamer("run", "--resume", out, "--set", "feed.lumisection=1 s")
    assert refused.wait() == 2
    assert "the run there was begun with another feed.lumisection" in refused.err
    again = streamer("run", "--resume", out)
    again.wait_for_events(1500)
    pause = time.monotonic() - stopped - 1500 / 2500
    streamer("stop").check()
    again.check()

    rows, books = rows_of(out), read_books(out)
    lumi, n = rows["feedLumisection"], rows["run"].size
    assert not books.why_not
    assert np.all(np.diff(lumi.astype(int)) >= 0)
    assert lumi[0] == 1
    assert set(rows["run"]) == {1}
    assert set(rows["luminosityBlock"]) == {1, 2, 3}, "what the input tells stays"
    assert len(set(rows["replay"][lumi == 4])) == 2, "one goes on over the end of the input"
    counts = dict(zip(*np.unique(lumi, return_counts=True), strict=True))
    assert {int(key): int(value) for key, value in counts.items()} == {one: k for (_, one), k in books.kept.items()}
    last = max(one for _, one in begun.fed)
    for one in range(1, last + 1):
        assert books.kept[1, one] == begun.fed[1, one], "what was lost came again in its own, and nothing else"
    whole = [counts[one] for one in range(1, max(counts)) if one != last]
    assert set(whole) == {750}, "0.3 s of 2500 events a second"
    held = rows["HLT_All_v1_prescale"]
    assert set(held[lumi == 1]) == {1}
    assert all(len(set(held[lumi == one])) == 1 for one in counts), "a column holds for a whole lumisection"
    assert books.menu is not None
    assert books.menu.total.seconds == pytest.approx(n / 2500, abs=0.2 * pause), "without the pause"
    mask = json.loads((out / "lumi_mask.json").read_text())
    assert mask == {"1": [[1, max(counts)]]}
