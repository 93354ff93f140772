"""Kills, freezes, stops and cuts at random moments, over and over: no event is lost, doubled or changed.

`pytest -m chaos` takes half a minute and is part of every run; `pytest -m chaos --long -n 0 -s` takes twenty
minutes, strikes hundreds of times, and prints how long each kind of fault was felt.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos import Storm
from chaos_checks import OwnNetwork, Sample, Throughput, judge
from chaos_plan import (
    ALL,
    CUT,
    DRAIN,
    FREEZE,
    FULL_STOPS,
    LONG,
    ONE_OF_TWO,
    RESET,
    SHORT,
    Outcome,
    Scenario,
    counts,
    table,
)

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(600)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "scenario" in metafunc.fixturenames:
        scenarios = LONG if metafunc.config.getoption("--long") else SHORT
        metafunc.parametrize("scenario", scenarios, ids=[scenario.name for scenario in scenarios])


class Campaign:
    """The scenarios of one session, which share their input."""

    def __init__(self, folder: Path, seed: int, scenarios: tuple[Scenario, ...]) -> None:
        self.folder, self.seed, self.sample = folder, seed, Sample(folder / "sample")
        self.sample.undisturbed(max(scenario.n_events for scenario in scenarios))
        self.outcomes: list[Outcome] = []

    def run(self, scenario: Scenario) -> Outcome:
        folder = self.folder / scenario.name.replace(" ", "-")
        print(f"\n{scenario.name} (seed {self.seed}), logs in {folder}")
        outcome = Storm(scenario, self.sample, folder, self.seed, print).run()
        self.outcomes.append(outcome)
        return outcome


@pytest.fixture(scope="module")
def campaign(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Campaign]:
    seed = request.config.getoption("--seed")
    seed = random.randrange(1 << 32) if seed is None else seed
    long = request.config.getoption("--long")
    made = Campaign(tmp_path_factory.mktemp("chaos"), seed, LONG if long else SHORT)
    yield made
    if made.outcomes:
        print(f"\nseed {seed}\n{table(made.outcomes)}")


def test_whatever_is_done_to_a_run_every_event_comes_out_once(campaign: Campaign, scenario: Scenario) -> None:
    if scenario.own_network and (why_not := OwnNetwork.why_not()):
        pytest.skip(f"no network of its own: {why_not}")
    outcome = campaign.run(scenario)
    assert outcome.good, f"seed {campaign.seed}\n{outcome}"


def test_there_was_enough_of_it(request: pytest.FixtureRequest, campaign: Campaign) -> None:
    if not request.config.getoption("--long"):
        pytest.skip("only with --long")
    n = counts(campaign.outcomes)
    full_stops = sum(n[kind] for kind in FULL_STOPS)
    assert n["events"] >= 200_000
    assert n["kills"] >= 200
    assert n[FREEZE] >= 40
    assert full_stops >= 20
    assert min(n[DRAIN], n[ALL]) > 0
    assert OwnNetwork.why_not() or (n[CUT] > 0 and n[RESET] > 0)


@pytest.mark.long
def test_with_one_of_two_taggers_killed_the_stream_never_stops(campaign: Campaign) -> None:
    outcome = campaign.run(ONE_OF_TWO)
    print(outcome)
    assert outcome.good
    timed = [fault for fault in outcome.faults if fault.back is not None]
    assert len(timed) >= 8
    assert all(fault.least and fault.least > 0 for fault in timed)
    assert max(fault.back or 0.0 for fault in timed) < 5.0


def test_the_verdict_sees_what_is_lost_doubled_and_changed(campaign: Campaign) -> None:
    out, reference = campaign.sample.folder / "undisturbed", campaign.sample.reference
    n = len(reference["run"])
    assert judge(out, n, reference).good
    fewer, more = judge(out, n - 1, reference), judge(out, n + 3, reference)
    assert (fewer.lost, more.lost) == (0, 3)
    assert not fewer.good
    changed = judge(out, n, reference | {"event": reference["event"] + 1})
    assert "column event is not the same as undisturbed" in changed.wrong
    scores = out / "scores.root"
    (out / "scores_9.root").write_bytes(scores.read_bytes())
    assert judge(out, n, reference).doubled == n
    (out / "scores_9.root").unlink()


@pytest.mark.parametrize(
    ("low", "back"),
    [([], 0.0), ([(0.0, 1.5)], 1.9), ([(0.0, 1.5), (1.9, 2.5)], 2.9), ([(0.0, 1.5), (3.0, 4.0)], 1.9)],
    ids=["never low", "low once", "not yet back between", "low again later"],
)
def test_the_throughput_is_back_when_it_stays(low: list[tuple[float, float]], back: float) -> None:
    throughput, total, found = Throughput(), 0.0, None
    for tick in range(-100, 500):
        now = tick / 100
        total += 10 * (not any(begin <= now < end for begin, end in low))
        throughput.add(now, int(total), 1000.0)
        if now > 0 and found is None:
            found = throughput.back(0.0, 0.0)
    assert found == pytest.approx(back, abs=0.03)
    longest = max((end - begin for begin, end in low), default=0.0)
    assert throughput.least(0.0) == pytest.approx(1000 * max(0.0, 1.0 - longest), abs=30)
