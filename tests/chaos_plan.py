"""What is done to runs in the chaos suite, and the table of what came of it."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from chaos_checks import N_PASS, Verdict

from stages import PIPELINE

STAGES = PIPELINE.names
KILL = "kill {}"
SEVERAL = "kill several"
SUPERVISOR = "kill supervisor + resume"
FREEZE = "stop (SIGSTOP)"
DRAIN = "full stop (SIGTERM) + resume"
ALL = "full stop (kill -9) + resume"
CUT = "network cut"
RESET = "connections cut"
KINDS = (*map(KILL.format, STAGES), SEVERAL, SUPERVISOR, FREEZE, DRAIN, ALL, CUT, RESET)
FULL_STOPS = SUPERVISOR, DRAIN, ALL

LIMIT_S = 20.0
"""A throughput that is not back after this time is booked as such."""


@dataclass(frozen=True)
class Scenario:
    """A run, and what is done to it: kinds of faults, and how often each comes.

    Attributes
    ----------
    replicas : str
        As for `--replicas`.
    n_events : int
        As many as may be needed to keep it going; what is left after the last fault is streamed without a rate.
    rate : float
        Events fed a second; well below what the machine can do.
    own_network : bool
        Over tcp, in a network of its own.
    """

    name: str
    replicas: str
    plan: Mapping[str, int]
    n_events: int
    rate: float = 2000.0
    own_network: bool = False

    def n_replicas(self, stage: str) -> int:
        given = dict(pair.split("=") for pair in self.replicas.split(",") if pair)
        return int(given.get(stage, 1))


def _everywhere(n: int) -> str:
    return ",".join(f"{stage}={n}" for stage in STAGES)


_SHORT = {SEVERAL: 1, FREEZE: 1, SUPERVISOR: 1}
_LONG = {**{KILL.format(stage): 3 for stage in STAGES}, SEVERAL: 5, FREEZE: 6, SUPERVISOR: 1, DRAIN: 1, ALL: 1}
_CUTS = {CUT: 8, RESET: 4}

ONE_OF_TWO = Scenario("one of two taggers", "tagger=2", {KILL.format("tagger"): 10}, 30 * N_PASS)

SHORT = (Scenario("short", "reader=2,writer=2", _SHORT, 6 * N_PASS),)
LONG = (
    Scenario("one of each", "", _LONG, 80 * N_PASS),
    Scenario("two framers, croppers and taggers", "framer=2,cropper=2,tagger=2", _LONG, 80 * N_PASS),
    Scenario("three framers, croppers and taggers", "framer=3,cropper=3,tagger=3", _LONG, 80 * N_PASS),
    Scenario("two readers and writers", "reader=2,writer=2", _LONG, 80 * N_PASS),
    Scenario("two of each", _everywhere(2), _LONG, 80 * N_PASS, 1500.0),
    Scenario("three of each", _everywhere(3), _LONG, 80 * N_PASS, 1000.0),
    Scenario("one of each over tcp", "", {**_LONG, **_CUTS}, 80 * N_PASS, 2000.0, True),
    Scenario("two of each over tcp", _everywhere(2), {**_LONG, **_CUTS}, 80 * N_PASS, 1500.0, True),
)


@dataclass
class Fault:
    """What was done.

    Attributes
    ----------
    at : float
        Seconds since the scenario began.
    what : str
        In words.
    lasted : float
        Seconds until it was done: of a frozen process, until it went on; of a full stop, until the resumed run began.
    kills : int
        How many times a process was killed with SIGKILL; a whole family counts once.
    back : float or None
        Seconds until the throughput was back, 0 where nothing was felt, infinite when it took longer than `LIMIT_S`;
        None where the stream ended first, or the next fault came on purpose before (`cut_short`).
    least : int or None
        The fewest events that came to disk in any second from the fault until the throughput was back.
    """

    kind: str
    at: float
    what: str = ""
    lasted: float = 0.0
    kills: int = 0
    back: float | None = None
    least: int | None = None
    cut_short: bool = False

    def __str__(self) -> str:
        none = "the next one follows" if self.cut_short else "the stream is over"
        back = none if self.back is None else f"back after {self.back:.2f} s, never less than {self.least}/s"
        return f"{self.at:7.2f} s  {self.kind}: {self.what} ({self.lasted:.2f} s); {back}"


@dataclass
class Outcome:
    """A scenario that is over."""

    scenario: Scenario
    faults: list[Fault]
    verdict: Verdict
    seconds: float
    wrong: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return self.verdict.good and not self.wrong

    def __str__(self) -> str:
        lines = [*map(str, self.faults), f"lost {self.verdict.lost}, doubled {self.verdict.doubled}"]
        return "\n".join([self.scenario.name, *lines, *self.verdict.wrong, *self.wrong])


def table(outcomes: Iterable[Outcome]) -> str:
    """What was done and what became of it. An event that a scenario lost or doubled counts for each of its kinds."""
    outcomes = list(outcomes)
    lines = [
        f"{'':30} {'':5} {'':5} {'':7}   throughput back after [s]",
        f"{'fault':30} {'tries':>5} {'lost':>5} {'doubled':>7} {'median':>7} {'maximum':>8} {f'> {LIMIT_S:g} s':>7} "
        f"{'not timed':>9}",
    ]
    for kind in KINDS:
        faults = [fault for outcome in outcomes for fault in outcome.faults if fault.kind == kind]
        if not faults:
            continue
        hit = [outcome.verdict for outcome in outcomes if any(f.kind == kind for f in outcome.faults)]
        lost, doubled = sum(v.lost for v in hit), sum(v.doubled for v in hit)
        back = [fault.back for fault in faults if fault.back is not None and math.isfinite(fault.back)]
        n_late = sum(fault.back == math.inf for fault in faults)
        median, most = (f"{statistics.median(back):.2f}", f"{max(back):.2f}") if back else ("-", "-")
        lines.append(
            f"{kind:30} {len(faults):5} {lost:5} {doubled:7} {median:>7} {most:>8} {n_late:7} "
            f"{sum(fault.back is None for fault in faults):9}"
        )
    n = counts(outcomes)
    lines.append(
        f"{n['events']:,} events in {len(outcomes)} scenarios and {sum(o.seconds for o in outcomes):.0f} s: "
        f"{n['kills']} kill -9, {n[FREEZE]} SIGSTOP, {sum(n[kind] for kind in FULL_STOPS)} full stops, "
        f"{n[CUT] + n[RESET]} cuts; {n['lost']} events lost, {n['doubled']} doubled"
    )
    return "\n".join(lines)


def counts(outcomes: Iterable[Outcome]) -> Counter[str]:
    """How often each kind of fault came, and `kills`, `events`, `lost` and `doubled` in all."""
    n: Counter[str] = Counter()
    for outcome in outcomes:
        n.update(fault.kind for fault in outcome.faults)
        n["kills"] += sum(fault.kills for fault in outcome.faults)
        n["events"] += outcome.scenario.n_events
        n["lost"] += outcome.verdict.lost
        n["doubled"] += outcome.verdict.doubled
    return n
