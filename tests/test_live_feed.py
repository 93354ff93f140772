"""Live feeds: what the chain cannot take is dropped, and every event is accounted for. Real processes and files."""

import contextlib
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
import uproot
from physics_helpers import Processes, call, sum_model, wait_until

from stages import PIPELINE
from stages.books import read_books
from stages.config import packaged
from streamer.arrivals import Poisson
from streamer.block import SHED

EVENTS = packaged("samples/egamma.root")
LIVE = ("--set", "feed.overflow=drop", "--set", "feed.max_in_flight=400", "--set", "feed.block_events=50")


@pytest.fixture
def streamer(tmp_path: Path) -> Iterator[Processes]:
    with Processes(tmp_path) as made:
        yield made


def numbers(out: Path) -> np.ndarray:
    """The sequence numbers of all events on disk, in order."""
    parts = []
    for path in out.glob("scores*.root"):
        with uproot.open(path) as file:
            parts.append(file["Events"]["sourceEntry"].array(library="np"))
    return np.concatenate(parts)


def test_what_the_chain_cannot_take_is_dropped_and_accounted_for(streamer: Processes, tmp_path: Path) -> None:
    out, model = tmp_path / "out", sum_model(tmp_path / "sum.onnx")
    done = streamer("run", EVENTS, "-o", out, "--feed", "poisson 1e6", *LIVE, "--tagger", f"eg={model}").check()
    head = re.search(r"([\d,]+) fed = ([\d,]+) scored \+ 0 errors \+ ([\d,]+) dropped", done.out)
    assert head, done.out
    fed, scored, dropped = (int(text.replace(",", "")) for text in head.groups())
    assert fed == scored + dropped
    assert dropped > 0
    assert re.search(r"live time +\d+\.\d% \(dropped: .*(window|credit)", done.out)
    found = numbers(out)
    assert found.size == np.unique(found).size == scored
    books = read_books(out)
    assert not books.why_not
    assert (books.ledger.fed, books.ledger.scored, books.ledger.dropped) == (fed, scored, dropped)
    assert books.dropped.total() == books.reasons.total() == dropped
    told = streamer("ledger", out, "--json").check()
    assert json.loads(told.out)["total"]["dropped"] == dropped
    assert sum(line["dropped"] for line in json.loads(told.out)["lumisections"]) == dropped


def test_a_reader_that_is_killed_in_an_overload_drops_nothing_that_it_had_fed(
    streamer: Processes, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    live = ("--set", "feed.overflow=drop", "--set", "feed.block_events=50", "--set", "hop.credit_events=64")
    one = ("--replicas", "tagger=1")
    process = streamer("run", EVENTS, "-o", out, "--loop", "--events", 40_000, "--feed", "poisson 20000", *live, *one)

    def is_full() -> bool:
        return process.metrics("reader-0").get("streamer_credits_available") == 0

    def is_back() -> bool:
        port = process.ports()["reader-0"]
        with contextlib.suppress(OSError):
            return port not in ports and bool(urlopen(f"http://127.0.0.1:{port}/healthz", timeout=10).read())
        return False

    ports = set[int]()
    for n in (200, 800):
        process.wait_for_events(n)
        tagger, reader = process.stage("tagger-0"), process.stage("reader-0")
        tagger.suspend()  # what is before it stays in the chain until there is another reader
        wait_until(is_full, "the chain to be full")
        ports.add(process.ports()["reader-0"])
        reader.kill()
        wait_until(is_back, "another reader")
        tagger.resume()
    process.check()
    assert process.err.count("reader-0 died of SIGKILL") == 2
    books = read_books(out)
    assert not books.why_not
    assert books.ledger.dropped > 0
    assert books.ledger.fed == books.ledger.scored + books.ledger.dropped == books.fed.total() == 40_000
    assert books.n_entries == books.n_kept == books.ledger.scored


@pytest.mark.long
def test_dropped_events_are_not_fed_again_when_the_run_goes_on(streamer: Processes, tmp_path: Path) -> None:
    out, model = tmp_path / "out", sum_model(tmp_path / "sum.onnx")
    live = ("--loop", "--events", 60_000, "--feed", "fixed 20000", *LIVE)
    first = streamer("run", EVENTS, "-o", out, *live, "--tagger", f"eg={model}")
    first.wait_for_events(4000)
    first.signal(signal.SIGKILL)
    first.wait()
    before = read_books(out)
    streamer("run", "--resume", out).check()
    books = read_books(out)
    assert not books.why_not
    assert books.ledger.fed == 60_000
    assert books.ledger.dropped >= before.ledger.dropped
    assert books.n_kept + books.ledger.dropped == 60_000


@pytest.mark.long
def test_a_feed_that_waits_drops_nothing(streamer: Processes, tmp_path: Path) -> None:
    out, model = tmp_path / "out", sum_model(tmp_path / "sum.onnx")
    small = ("--set", "feed.max_in_flight=100", "--set", "feed.block_events=50")
    streamer("run", EVENTS, "-o", out, "--feed", "bunches 100000", *small, "--tagger", f"eg={model}").check()
    assert read_books(out).ledger.dropped == 0
    refused = streamer("run", EVENTS, "-o", out, "--set", "feed.overflow=drop")
    assert refused.wait() == 2
    assert "'overflow' = \"drop\" is for live feeds; set a 'rate' or a 'profile'" in refused.err


def test_feeds_stop_by_time_and_by_lumisections(streamer: Processes, tmp_path: Path) -> None:
    model = sum_model(tmp_path / "sum.onnx")
    timed, lumis = (tmp_path / name for name in ("timed", "lumis"))
    short = ("--feed", "steps 250ms:1000 250ms:0", "--for", "1250 ms", "--loop")
    first = streamer("run", EVENTS, "-o", timed, *short, "--tagger", f"eg={model}")
    second = streamer("run", EVENTS, "-o", lumis, "--lumisections", 2, "--tagger", f"eg={model}")
    first.check()
    assert read_books(timed).ledger.fed == 3 * 250
    second.check()
    books = read_books(lumis)
    assert dict(books.fed) == {(1, 1): 999, (1, 2): 1000}
    for args, said in (
        (("--feed", "fixed 0"), "--feed 'fixed 0': nothing would ever come; write a number above 0, or 'max'"),
        (("--rate", 0), "--rate 0: nothing would ever come"),
        (("--for", "soon"), "'soon' is not a time; write '5 ms'"),
        (("--set", "feed.arrivals=bunches", "--set", "feed.filling=7e"), "a filling pattern without a bunch"),
    ):
        code, _, err = call("run", EVENTS, "-o", tmp_path / "none", *args)
        assert code == 2
        assert said in err
        assert len(err.splitlines()) == 1


@pytest.mark.long
def test_a_timed_feed_that_broke_off_goes_on_for_what_was_left(streamer: Processes, tmp_path: Path) -> None:
    out, model = tmp_path / "out", sum_model(tmp_path / "sum.onnx")
    timed = ("--loop", "--feed", "poisson 2000", "--for", "4 s")
    first = streamer("run", EVENTS, "-o", out, *timed, "--tagger", f"eg={model}")
    first.wait_for_events(500)
    first.signal(signal.SIGKILL)
    first.wait()
    streamer("run", "--resume", out).check()
    books = read_books(out)
    assert not books.why_not
    schedule = Poisson(np.random.default_rng((0, 0))).take(10_000) / 2000
    assert books.n_kept == np.searchsorted(schedule, 4.0), "as many as if nothing had happened"


# --- Deadlines


def outcomes(out: Path) -> np.ndarray:
    """The column `error` of all events on disk."""
    parts = []
    for path in out.glob("scores*.root"):
        with uproot.open(path) as file:
            parts.append(file["Events"]["error"].array(library="np"))
    return np.concatenate(parts)


def check_shed(streamer: Processes, out: Path, n_fed: int) -> None:
    """The books close, and agree with what is on disk; nothing that was shed is an error."""
    books = read_books(out)
    ledger = books.ledger
    assert not books.why_not
    assert ledger.fed == n_fed == ledger.scored + ledger.shed + ledger.dropped
    assert ledger.scored >= ledger.late
    assert ledger.shed == books.shed.total() == books.shed_at.total()
    assert not (out / "errors").exists()
    codes = outcomes(out)
    assert (codes.size, np.count_nonzero(codes)) == (ledger.scored + ledger.shed, ledger.shed)
    for stage, n in books.shed_at.items():
        assert np.count_nonzero(codes == SHED + 1 + PIPELINE.place(stage)) == n
    told = json.loads(streamer("ledger", out, "--json").check().out)
    assert (told["total"]["shed"], told["total"]["late"], told["shed"]) == (ledger.shed, ledger.late, books.shed_at)
    for line in told["lumisections"]:
        assert line["fed"] == line["scored"] + line["shed"] + line["dropped"]
        assert line["late"] <= line["scored"]


def test_what_comes_too_late_is_shed_once_whatever_dies_and_is_no_error(streamer: Processes, tmp_path: Path) -> None:
    out, model = tmp_path / "out", sum_model(tmp_path / "sum.onnx")
    late = ("--loop", "--events", 30_000, "--feed", "poisson 1e5", "--deadline", "100 ms", "--tagger", f"eg={model}")
    first = streamer("run", EVENTS, "-o", out, *late)
    first.wait_for_events(100)
    for stage in ("framer-0", "tagger-0", "writer-0"):
        first.stage(stage).send_signal(signal.SIGKILL)
    wait_until(lambda: read_books(out).ledger.shed > 2000, "events to be shed")
    first.signal(signal.SIGKILL)
    first.wait()
    before = read_books(out)
    done = streamer("run", "--resume", out).check()
    check_shed(streamer, out, 30_000)
    books = read_books(out)
    assert all(books.shed_at[stage] >= n for stage, n in before.shed_at.items())
    assert books.n_kept == books.n_entries == 30_000
    assert re.search(r"30,000 fed = [\d,]+ scored \+ 0 errors \+ [\d,]+ shed", done.out), done.out
    assert re.search(r"in time +\d+\.\d%", done.out)


@pytest.mark.long
def test_a_feed_that_does_not_wait_drops_what_is_too_late_before_it_is_sent(
    streamer: Processes, tmp_path: Path
) -> None:
    out, model = tmp_path / "out", sum_model(tmp_path / "sum.onnx")
    live = ("--feed", "poisson 1e6", "--deadline", "20 ms", "--set", "feed.overflow=drop", "--tagger", f"eg={model}")
    streamer("run", EVENTS, "-o", out, *live, "--loop", "--events", 20_000).check()
    check_shed(streamer, out, 20_000)
    assert read_books(out).ledger.dropped > 0


@pytest.mark.long
def test_a_deadline_that_is_shorter_than_the_way(streamer: Processes, tmp_path: Path) -> None:
    out, model = tmp_path / "out", sum_model(tmp_path / "sum.onnx")
    short = ("--feed", "fixed 500", "--deadline", "10 us", "--events", 500, "--tagger", f"eg={model}")
    done = streamer("run", EVENTS, "-o", out, *short).check()
    assert re.search(r"feed.deadline = 0.01 ms, but the way through the chain takes at least [\d.]+ ms here", done.err)
    check_shed(streamer, out, 500)
    assert read_books(out).ledger.in_time == 0
