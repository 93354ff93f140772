"""What a menu makes of blocks: seeds, prescales, and which column holds for which lumisection."""

import itertools
import random
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from stages import records
from stages.config import Config
from stages.finishing import resumed
from stages.manifest import Manifest, OpenManifest, Tally
from stages.menu.books import MenuBooks
from stages.menu.config import DEFAULT
from stages.menu.flags import FLAGS, sections, unpacked
from stages.menu.menu import menu_of
from stages.menu.metrics import MenuMetrics
from stages.menu.schedule import MOST_SWITCHES, Asked, Place, Schedule, Section
from stages.menu.switching import begun_trigger
from stages.menu.tally import read_row
from stages.menu.trigger import Trigger
from stages.order import TURN_PAGES, Order
from stages.results import Results
from streamer.block import Block
from streamer.journal import Journal
from streamer.ledger import Stripes

PATHS: dict[str, Any] = {f"Run{k}_v1": f"run == {k} or run > 8" for k in range(9)}  # more than a byte of bits
PATHS |= {
    "Seeded_v1": {"expression": "run > 2", "seed": "luminosityBlock > 1", "prescale": 2},
    "Joined_v1": "Seeded_v1 or (Run3_v1 and Seeded_v1)",
    "All_v1": "true",
}


def config(**menu: Any) -> Config:
    return Config.model_validate({"menu": {"paths": PATHS, "columns": {"off": {"All_v1": 0, "Seeded_v1": 3}}, **menu}})


def trigger_of(settings: Config, column: str = DEFAULT) -> Trigger:
    menu = menu_of(settings)
    assert menu is not None
    return Trigger(menu, Schedule(column, 100))


def block_of(runs: list[int], lumis: list[int], errors: list[int] | None = None, first: int = 0) -> Block:
    """Events without objects that are due a second apart."""
    n = len(runs)
    columns = {name: column.copy() for name, column in records.scores(config()).empty(n).items()}
    columns["run"][:], columns["luminosityBlock"][:] = runs, lumis
    columns["error"][:] = errors or 0
    columns["fedTime"][:] = (first + np.arange(n)) * 1_000_000_000
    return Block(first, n, columns)


def flags_of(block: Block) -> dict[str, Any]:
    return {name: unpacked(block.columns[name], len(PATHS)).astype(bool) for name in FLAGS}


def test_the_menu_of_a_configuration_knows_its_seeds_and_prescales() -> None:
    menu = menu_of(config())
    assert menu is not None
    assert (menu.seeded, menu.saves) == (True, False), "paths without a seed want every event"
    assert menu.columns == (DEFAULT, "off")
    assert menu.prescales[:, -3:].tolist() == [[2, 1, 1], [3, 1, 0]]
    assert menu_of(Config()) is None


def test_seeds_errors_and_prescales_of_some_events() -> None:
    trigger = trigger_of(config())
    decided = trigger.decide(block_of([3, 3, 3, 9, 3], [1, 2, 2, 2, 2], [0, 0, 1, 0, 0]))
    records.journal(config()).check(decided.columns, 5)
    flags, place = flags_of(decided), [*PATHS].index
    seeded, joined, everything = place("Seeded_v1"), place("Joined_v1"), place("All_v1")
    assert flags["pathSeeded"][:, seeded].tolist() == [False, True, False, True, True]
    assert flags["pathPassed"][:, seeded].tolist() == [False, True, False, True, True]
    assert flags["pathAccepted"][:, seeded].tolist() == [False, False, False, True, False], "each second"
    assert flags["pathPassed"][:, joined].tolist() == [False, True, False, True, True], "what passes, not what is kept"
    assert flags["pathAccepted"][:, everything].tolist() == [True, True, False, True, True], "none of a failed event"
    assert flags["pathPassed"][:, place("Run3_v1")].tolist() == [True, True, False, True, True]
    assert trigger.outcomes.tolist() == [4, 0, 0]
    assert trigger.counts[:, seeded].tolist() == [3, 3, 1]


def test_events_are_accepted_rejected_or_prescaled_away() -> None:
    paths = {"A": {"expression": "run == 1", "prescale": 2}, "B": {"expression": "run == 2", "prescale": 0}}
    settings = Config.model_validate({"menu": {"paths": paths}})
    trigger = trigger_of(settings)
    trigger.decide(block_of([1, 1, 1, 2, 3, 1], [1] * 6, [0, 0, 0, 0, 0, 1]))
    assert trigger.outcomes.tolist() == [1, 1, 3], "the second; run 3; the others of run 1, and what is off"


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 3), st.booleans()), min_size=1, max_size=60), st.data())
def test_each_nth_accept_is_kept_however_events_are_cut_into_blocks_and_lives(
    events: list[tuple[int, int, bool]], data: st.DataObject
) -> None:
    settings = config()
    whole = block_of([e[0] for e in events], [e[1] for e in events], [int(e[2]) for e in events])
    at_once = trigger_of(settings).decide(whole)
    trigger, blocks, first = trigger_of(settings), [], 0
    while first < len(events):
        n = data.draw(st.integers(1, len(events) - first))
        blocks.append(trigger.decide(whole.part(records.scores(settings), first, first + n)))
        first += n
        if data.draw(st.booleans()):
            trigger = trigger_of(settings)
            trigger.remember(blocks)
    joined = records.journal(settings).concat([block.columns for block in blocks])
    for name in (*FLAGS, "prescaleColumn"):
        np.testing.assert_array_equal(joined[name], at_once.columns[name])
    flags = flags_of(at_once)
    for path, spec in settings.menu.paths.items():
        k = [*PATHS].index(path)
        places = np.flatnonzero(flags["pathPassed"][:, k])
        assert (
            np.flatnonzero(flags["pathAccepted"][:, k]).tolist() == places[spec.prescale - 1 :: spec.prescale].tolist()
        )


def test_what_is_counted_from_blocks_is_what_the_trigger_counted_and_closes() -> None:
    trigger, tally = trigger_of(config()), Tally(Stripes(), n_paths=len(PATHS))
    blocks = [trigger.decide(block_of([1, 1, 2, 3, 3], [1, 1, 1, 1, 2], [0, 0, 1, 0, 0], first)) for first in (0, 5)]
    assert [*tally.count(blocks)] == blocks
    assert tally.menu is not None
    books = MenuBooks(tuple(PATHS))
    books.add_rows(tally.menu.rows(), 0)
    total = books.total
    np.testing.assert_array_equal(total.paths, trigger.counts)
    np.testing.assert_array_equal(total.outcomes, trigger.outcomes)
    scored = {lumi: n - tally.errors[lumi] for lumi, n in tally.events.items()}
    assert [*books.problems(scored)] == []
    assert books.lumis[1, 1].seconds == pytest.approx(10 / 3), "three of nine distances, and a ninth more"
    assert books.lumis[3, 2].seconds == pytest.approx(20 / 9)
    assert total.seconds == pytest.approx(10), "ten events, a second apart"
    assert books.plain(books.lumis[1, 1])["paths"]["Run1_v1"] == {
        **{"seeded": 4, "passed": 4, "accepted": 4},
        **{"rate_hz": 1.2, "rate_error_hz": 0.6},
    }
    books.add_rows(tally.menu.rows(), 1)
    assert books.lumis[1, 1].seconds == pytest.approx(10 / 3), "another writer has the other events of the same time"
    assert books.lumis[1, 1].outcomes.sum() == 8
    told = [*books.problems(scored)]
    assert told[0] == "run 1, lumisection 1: 4 events were scored, and 8 accepted, 0 rejected, 0 prescaled"
    books.lumis[1, 1].paths[2, 0] += 9
    assert "run 1, lumisection 1: path Run0_v1 has more events than were there for it" in [*books.problems(scored)]


def test_a_run_goes_on_with_the_column_that_any_writer_was_told_last(tmp_path: Path) -> None:
    (tmp_path / "books").mkdir()
    for writer, columns in enumerate((["off"], ["off", DEFAULT])):
        manifest = OpenManifest(tmp_path / "books" / f"writer-{writer}.manifest")
        manifest.begin({"run": "x", "config": config().model_dump(mode="json")})
        schedule = Schedule(DEFAULT, 10)
        for since, column in enumerate(columns, 5):
            schedule.ask(Asked(column, since))
            manifest.ask(schedule.state())
        manifest.close()
    menu = resumed(tmp_path)["menu"]
    assert (menu["prescale_column"], menu["prescale_from"]) == (DEFAULT, 6), "the first writer was killed before that"


def test_a_pause_in_a_run_is_no_time_of_its_feed() -> None:
    trigger, tally = trigger_of(config()), Tally(Stripes(), n_paths=len(PATHS), went_on=[100_000_000_000])
    early, again, rest, late = (block_of([1] * 5, [lumi] * 5, first=first) for lumi, first in
                                ((1, 0), (1, 200), (2, 5), (3, 205)))  # fmt: skip
    numbers = iter(range(0, 20, 5))
    blocks = [Block(next(numbers), 5, one.columns) for one in (early, again, rest, late)]
    assert len([*tally.count([trigger.decide(one) for one in blocks])]) == 4
    assert tally.menu is not None
    counts = tally.menu.counts()
    assert sum(found.seconds for found in counts.values()) == pytest.approx(20), "twenty events, a second apart"
    assert counts[1, 2].seconds == pytest.approx(5)


def test_rows_of_the_manifest_are_read_back() -> None:
    tally = Tally(Stripes(), n_paths=len(PATHS))
    assert len([*tally.count([trigger_of(config()).decide(block_of([3, 3], [1, 2]))])]) == 1
    assert tally.menu is not None
    for row in tally.menu.rows():
        lumi, counts = read_row(row, len(PATHS))
        np.testing.assert_array_equal(counts.paths, tally.menu.counts()[lumi].paths)
        np.testing.assert_array_equal(counts.outcomes, tally.menu.counts()[lumi].outcomes)


def test_the_lumisections_of_a_block() -> None:
    same = block_of([1, 1], [2, 2])
    assert [*sections(same)] == [((0, 1, 2), slice(None))]
    mixed = block_of([1, 2, 1], [7, 7, 7])
    assert [(section, some.tolist()) for section, some in sections(mixed)] == [((0, 1, 7), [0, 2]), ((0, 2, 7), [1])]


async def test_a_writer_goes_on_behind_what_its_predecessor_has_on_disk(tmp_path: Path) -> None:
    settings = config(streams={"physics": {"datasets": {"All": ["All_v1"]}}})
    settings = settings.model_copy(update={"writer": settings.writer.model_copy(update={"dir": tmp_path})})
    results = Results(settings, 0, 1)
    results.books.mkdir()
    results.manifest = manifest = OpenManifest(results.manifest_path)
    manifest.begin({"run": "one", "config": settings.model_dump(mode="json")})
    trigger = trigger_of(settings)
    journals = [Journal(results.journal_path(k), {}, results.schema, print) for k in range(2)]
    for k, journal in enumerate(journals):
        first = 3 * k
        journal.add(trigger.decide(block_of([3, 3, 9], [2 + k] * 3, [0, 1, 0], first)))
        await journal.sync()
    results.convert(journals[0], 0)
    # It dies, and its successor finds that another column was asked for meanwhile.
    journals[1].close()
    manifest.close()
    manifest = OpenManifest(results.manifest_path)
    left = Journal(results.journal_path(1), {}, results.schema, print)
    wanted = settings.model_copy(update={"menu": settings.menu.model_copy(update={"prescale_column": "off"})})
    again = begun_trigger(wanted, manifest, left)
    np.testing.assert_array_equal(again.passed, trigger.passed)
    assert again.passed[[*PATHS].index("Seeded_v1")] == 4
    held = [again.decide(block_of([3], [lumi], None, 5 + lumi)).columns["prescaleColumn"][0] for lumi in (3, 4)]
    assert held == [0, 1], "what had begun keeps its column"
    manifest.close()
    assert Manifest(results.manifest_path).prescales["asked"] == ["off", 0]
    manifest = OpenManifest(results.manifest_path)
    size = manifest.size
    assert begun_trigger(wanted, manifest, left).schedule.asked == Asked("off")
    assert manifest.size == size, "which was entered already"
    manifest.close()
    left.close()
    assert (tmp_path / "streams" / "physics.root").exists()
    segment = Manifest(results.manifest_path).segments()[0]
    assert [file for file, *_ in segment.streams] == ["streams/physics.root"]
    assert Manifest(results.manifest_path).knows(tmp_path / "streams" / "physics.root")


# --- Prescale columns ---


def columns_of(schedule: Schedule, *found: Section) -> list[str]:
    """Of lumisections with a thousand events each, in passes of a hundred of them."""
    return [schedule.column(one, Place(1000 * (10_000 * one[0] + 100 * one[1] + one[2]))) for one in found]


def test_a_lumisection_that_has_begun_keeps_its_column_and_so_do_those_before() -> None:
    schedule = Schedule("a", 10)
    assert columns_of(schedule, (0, 1, 1), (0, 1, 3)) == ["a", "a"]
    schedule.ask(Asked("b"))
    assert columns_of(schedule, (0, 1, 4), (0, 1, 3), (0, 1, 1), (0, 1, 2), (0, 1, 4)) == ["b", "a", "a", "a", "b"]
    schedule.ask(Asked("a"))
    assert columns_of(schedule, (0, 1, 4), (1, 1, 1)) == ["b", "a"]


def test_readers_get_on_at_their_own_pace() -> None:
    schedule = Schedule("a", 10)
    assert schedule.column((0, 1, 1), Place(10, 0)) == schedule.column((0, 2, 1), Place(900, 1)) == "a"
    schedule.ask(Asked("b"))
    assert schedule.column((0, 1, 2), Place(20, 0)) == "b", "behind what its reader had"
    assert schedule.column((0, 2, 9), Place(899, 1)) == "a"


def test_a_column_is_asked_for_from_a_lumisection_on() -> None:
    schedule = Schedule("a", 100)
    columns_of(schedule, (0, 1, 4))
    schedule.ask(Asked("b", 6))
    schedule.ask(Asked("c", 8))
    found = columns_of(schedule, *((0, 1, lumi) for lumi in (5, 7, 6, 8, 9)))
    assert found == ["a", "b", "b", "c", "c"]
    assert columns_of(schedule, (0, 2, 1), (1, 1, 1)) == ["c", "c"], "the next run, the next pass"
    schedule.ask(Asked("d", 12))
    assert columns_of(schedule, (1, 1, 2), (1, 1, 12), (2, 1, 1)) == ["c", "d", "d"]
    schedule.ask(Asked("a"))
    assert columns_of(schedule, (2, 1, 1), (2, 1, 2)) == ["d", "a"]


def test_what_is_asked_for_before_the_first_event_means_the_first_run() -> None:
    schedule = Schedule("a", 100)
    schedule.ask(Asked("b", 3))
    assert columns_of(schedule, (0, 1, 2), (0, 1, 3), (0, 1, 1), (0, 2, 1)) == ["a", "b", "a", "b"]


def test_which_lumisection_has_begun_is_told() -> None:
    schedule = Schedule("a", 100)
    assert schedule.begun_since(1) is None
    assert schedule.last() is None
    columns_of(schedule, (0, 1, 9), (1, 1, 1), (1, 1, 3), (1, 1, 2))
    assert schedule.last() == (1, 1, 2)
    assert schedule.begun_since(2) == (1, 1, 3)
    assert schedule.begun_since(4) is None, "the pass before does not count"


@pytest.mark.parametrize("arranged", [{"weights": [1, 9]}, {"shuffle": True}])
def test_readers_that_share_an_arranged_input_get_on_at_their_own_pace(
    tmp_path: Path, arranged: dict[str, Any]
) -> None:
    """A page is a block and half of a lumisection; the readers are at the same lumisections, many pages apart."""
    settings = Config.model_validate({
        "input": {"files": ["a", "b"], "step_events": 3, **arranged}, "replicas": {"reader": 2},
        "menu": {"paths": PATHS, "columns": {"off": {"All_v1": 0}}},
    })  # fmt: skip
    manifest = OpenManifest(tmp_path / "manifest")
    manifest.begin({"run": "one", "config": settings.model_dump(mode="json")})
    journal = Journal(tmp_path / "journal", {}, records.journal(settings), print)
    trigger = begun_trigger(settings, manifest, journal)
    order = Order([10_000] * 2, [1, 9], settings.input.step_events, 0, loop=True)
    held: dict[int, int] = {}
    for k, pages in enumerate(itertools.islice(zip(order.pages(0, 2), order.pages(1, 2), strict=True), 3 * TURN_PAGES)):
        if k == TURN_PAGES // 2:
            trigger.schedule.ask(Asked("off"))
        for page in pages if k % 4 else reversed(pages):
            block = block_of([1] * 3, [1 + k // 2] * 3, None, page.begin)
            block.columns["sourceFile"][:] = page.lines
            column = trigger.decide(block).columns["prescaleColumn"][0]
            assert held.setdefault(1 + k // 2, column) == column
    assert [*held.values()] == [0] * (TURN_PAGES // 4) + [1] * (TURN_PAGES * 5 // 4)
    manifest.close()
    journal.close()


def test_metrics_are_asked_for_while_lumisections_begin() -> None:
    """The writer's loop gets its turn between any two instructions of the thread that serves metrics."""
    trigger, n_turns = trigger_of(config()), 0
    registry = CollectorRegistry()
    MenuMetrics(trigger, registry)

    def turn(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal n_turns
        if not frame.f_code.co_filename.endswith(("menu/schedule.py", "menu/metrics.py")):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            n_turns += 1
            trigger.schedule.saw((0, 1, 1 + n_turns % 50), Place(n_turns), DEFAULT)
        return turn

    trigger.schedule.saw((0, 1, 50), Place(0), DEFAULT)
    before = sys.gettrace()
    sys.settrace(turn)
    try:
        told = registry.get_sample_value("streamer_lumisection")
    finally:
        sys.settrace(before)
    assert told == 50
    assert n_turns > 100


def test_what_is_long_past_is_forgotten() -> None:
    schedule = Schedule("a", 3)
    columns_of(schedule, *((0, 1, lumi) for lumi in (1, 2, 3)))
    columns_of(schedule, (0, 1, 1))  # still goes on
    schedule.ask(Asked("b"))
    assert columns_of(schedule, (0, 1, 4), (0, 1, 1)) == ["b", "a"]
    assert len(schedule.state()["begun"]) == 3
    for k in range(2 * MOST_SWITCHES):
        schedule.ask(Asked(f"c{k}"))
    assert len(schedule.state()["switches"]) == MOST_SWITCHES
    assert columns_of(schedule, (0, 1, 5)) == [f"c{2 * MOST_SWITCHES - 1}"]


@given(st.randoms(use_true_random=False), st.integers(0, 7), st.integers(0, 2))
def test_columns_change_once_and_between_lumisections_whatever_the_order_of_the_events(
    chance: random.Random, since: int, restart: int
) -> None:
    """Events come nearly in order; somewhere another column is asked for, and somewhere the writer begins anew."""
    numbers = sorted(range(100), key=lambda i: i + chance.uniform(0, 15))
    sections_of = [(i // 50, 1, 1 + i % 50 // 5) for i in range(100)]
    schedule, found = Schedule("a", 40), {}
    for k, number in enumerate(numbers):
        if k == 30:
            if since and schedule.begun_since(since):
                since = 0
            schedule.ask(Asked("b", since))
        if k == 30 + 10 * restart:
            schedule = Schedule.of(schedule.state(), 40)
            assert schedule.asked == Asked("b", since)
        found[number] = schedule.column(sections_of[number], Place(number))
    told = [found[number] for number in range(100)]
    first = told.index("b")
    assert told == ["a"] * first + ["b"] * (100 - first)
    assert sections_of[first] != sections_of[first - 1], "at an edge"
    if since:
        assert sections_of[first][2] == since
    else:
        assert max(numbers[:30]) < first <= max(numbers[:30]) + 5, "the next one"
