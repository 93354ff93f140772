"""Chaos: runs whose processes are killed, frozen, stopped and cut off at random moments, over and over.

    python tests/chaos.py [--long] [--seed N] [SCENARIO...]

Whatever is done to it, a run must lose, double and change no event: what comes out is held, event by event and column
by column, against an undisturbed run of the same input. `pytest -m chaos` does the same (`tests/test_chaos.py`).

How long a fault is felt is seen from outside, from the growth of the writers' journals: the time from the fault until
events come to disk at 80 % of the rate at which they are fed again, and stay so for half a second.
"""

import argparse
import contextlib
import math
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from chaos_checks import OwnNetwork, Sample, Watch, closed, judge, torn, writing
from chaos_plan import (
    ALL,
    CUT,
    DRAIN,
    FREEZE,
    FULL_STOPS,
    KILL,
    LIMIT_S,
    LONG,
    RESET,
    SEVERAL,
    SHORT,
    STAGES,
    SUPERVISOR,
    Fault,
    Outcome,
    Scenario,
    table,
)
from physics_helpers import Process, Processes, command_of

PATIENCE_S = 60.0
"""Whatever else takes longer is a failure."""
ORPHAN_S = 5.0
"""After this time nobody may be left whose supervisor was killed."""
TICK_S = 0.03
AGAIN = 1 / 3
"""How often a run that was just resumed is stopped once more, while everybody is starting."""

SETTINGS = {
    "supervisor.restart_limit": 1000,
    "supervisor.backoff": 0.05,
    "supervisor.backoff_max": 0.2,
    "hop.heartbeat": 0.2,
    "hop.peer_timeout": 1.0,
    "feed.block_wait": 0.02,
    "writer.segment_events": 3000,
}


class Over(Exception):  # noqa: N818 (no error)
    """The stream has ended."""


class Storm:
    """One scenario: streams, strikes, and judges what came out.

    Parameters
    ----------
    folder : Path
        For the run and its logs; it is made.
    say : callable
        Told each fault in a line.
    """

    def __init__(self, scenario: Scenario, sample: Sample, folder: Path, seed: int, say: Callable[[str], Any]) -> None:
        self.scenario, self.sample, self.folder, self.say = scenario, sample, folder, say
        folder.mkdir()
        self.random = random.Random(f"{seed} {scenario.name}")
        self.out = folder / "out"
        self.faults: list[Fault] = []
        self.wrong: list[str] = []
        self.watch = Watch(self.out / "books", scenario.n_replicas("reader"), scenario.n_events, scenario.rate)

    # ---- from begin to end

    def run(self) -> Outcome:
        self.begun = time.monotonic()
        with Processes(self.folder) as self.start, contextlib.closing(self.watch):
            try:
                self._run()
            except BaseException:
                self.say("\n".join([*map(str, self.faults), *self.wrong, f"logs: {self.folder}", self.process.err]))
                raise
        verdict = judge(self.out, self.scenario.n_events, self.sample.reference)
        return Outcome(self.scenario, self.faults, verdict, time.monotonic() - self.begun, self.wrong)

    def _run(self) -> None:
        scenario = self.scenario
        options = [f"--set={key}={value}" for key, value in SETTINGS.items()]
        options += ["--replicas", ",".join(f"{stage}={scenario.n_replicas(stage)}" for stage in STAGES)]
        if scenario.own_network:
            options += ["--set", "hop.transport=tcp"]
        more = ["--rate", scenario.rate, *options]
        self._launch(*self.sample.arguments(self.out, scenario.n_events, *more))
        with contextlib.suppress(Over):
            self.until(lambda: self.watch.total, "the first events")
            self._until_back(began := time.monotonic(), began)
            for kind in self._plan():
                self.strike(kind)
            if sum(self.watch.left) > 4 * scenario.rate:
                self.say(f"{self.now():7.2f} s  the rest without a rate")
                self._stop()
                self._resume("--feed", "max")
        try:
            code = self.process.wait(PATIENCE_S + scenario.n_events / 2000)
        finally:
            self.watch.look()
        if code:
            self.wrong.append(f"the last run ended with code {code}: {self.process.complaints}")

    def _plan(self) -> list[str]:
        kinds = [kind for kind, n in self.scenario.plan.items() for _ in range(n)]
        self.random.shuffle(kinds)
        return kinds

    def _launch(self, *arguments: object) -> None:
        prefix = OwnNetwork.PREFIX if self.scenario.own_network else ()
        self.process: Process = self.start(*arguments, prefix=prefix)

    def _resume(self, *more: object) -> None:
        self._launch("run", "--resume", self.out, *more)

    # ---- time

    def now(self) -> float:
        return time.monotonic() - self.begun

    def tick(self) -> bool:
        """Let a moment pass; False when the stream is over."""
        time.sleep(TICK_S)
        self.watch.look()
        return self.process.popen.poll() is None

    def until(self, check: Callable[[], Any], what: str, seconds: float = PATIENCE_S) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := check()):
            if time.monotonic() > deadline:
                raise AssertionError(f"waited {seconds:g} s in vain for {what}")
            if not self.tick():
                raise Over
        return found

    def _until_back(self, begin: float, end: float) -> float:
        """Seconds from the begin of a fault until the throughput was back, at most `LIMIT_S` after its end."""
        while (back := self.watch.throughput.back(begin, end)) is None:
            if not self.tick():
                raise Over
            if time.monotonic() - end > LIMIT_S:
                return math.inf
        return back

    def pause(self, most: float, least: float = 0.0) -> None:
        """A random time."""
        deadline = time.monotonic() + self.random.uniform(least, most)
        while time.monotonic() < deadline:
            self.tick()

    # ---- processes

    def stages(self) -> dict[str, psutil.Process]:
        """The stages' processes that are there, by names such as `framer-0`, whoever their parent is."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                command = command_of(process)
                if "stage" in command and any(part.startswith(str(self.start.runtime)) for part in command):
                    stage, replica = command[command.index("stage") + 1], command[command.index("--replica") + 1]
                    found[f"{stage}-{replica}"] = process
        return found

    def present(self, name: str) -> psutil.Process:
        """A process; it is waited for where it has just died."""
        found: psutil.Process = self.until(lambda: self.stages().get(name), f"the process {name}")
        return found

    def any_of(self, stage: str) -> str:
        return f"{stage}-{self.random.randrange(self.scenario.n_replicas(stage))}"

    def anyone(self) -> str:
        return self.any_of(self.random.choice(STAGES))

    # ---- faults

    def strike(self, kind: str, *, again: bool = False) -> None:
        """Do something bad at a random moment, and wait until the throughput is back.

        A run that was just resumed is sometimes stopped `again`, while everybody is still starting.
        """
        if not again:
            self.pause(0.6)
        if not again and min(self.watch.left) * self.scenario.n_replicas("reader") < 2 * self.scenario.rate:
            raise Over  # too little is left to see the throughput come back
        fault = Fault(kind, self.now())
        self.faults.append(fault)
        begin = time.monotonic()
        try:
            if kind in _STRIKES:
                _STRIKES[kind](self, fault)
            else:
                self._kill(fault, self.any_of(kind.removeprefix(KILL.format(""))))
            fault.lasted = time.monotonic() - begin
            if kind in FULL_STOPS and not again and self.random.random() < AGAIN:
                fault.cut_short = True
                self.pause(4.0)
            else:
                fault.back = self._until_back(begin, begin + fault.lasted)
                fault.least = self.watch.throughput.least(begin)
        finally:
            self.say(str(fault))
        if fault.cut_short:
            self.strike(self.random.choice(FULL_STOPS), again=True)

    def _kill(self, fault: Fault, name: str) -> None:
        process = self.present(name)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
            fault.kills += 1
            fault.what += f"{name} "

    def _several(self, fault: Fault) -> None:
        """Two or three, at once or shortly after one another; also one that is just coming back."""
        name = ""
        for _ in range(self.random.choice([2, 2, 3])):
            name = name if name and self.random.random() < 0.3 else self.anyone()
            self._kill(fault, name)
            if self.random.random() < 0.7:
                self.pause(1.5)

    def _freeze(self, fault: Fault) -> None:
        name = self.random.choice([*self.stages(), "supervisor"])
        fault.what = name
        process = psutil.Process(self.process.popen.pid) if name == "supervisor" else self.present(name)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
            try:
                self.pause(2.5, 0.2)
            finally:
                process.resume()

    def _kill_supervisor(self, fault: Fault) -> None:
        """Its processes must go with it, also one that is frozen."""
        family = {name: process for name, process in self.stages().items() if _has_begun(process)}
        if family and self.random.random() < 0.5:
            frozen = self.random.choice([*family])
            with contextlib.suppress(psutil.NoSuchProcess):
                family[frozen].suspend()
                fault.what += f"while {frozen} is frozen "
        self.process.popen.kill()
        self._dead(fault)

    def _kill_all(self, fault: Fault) -> None:
        family = self.stages()
        everybody = [psutil.Process(self.process.popen.pid), *family.values()]
        self.random.shuffle(everybody)
        for process in everybody:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        fault.what += f"{len(everybody)} processes "
        self._dead(fault)

    def _dead(self, fault: Fault) -> None:
        """The supervisor was killed: see that nobody outlives it, look at the books, and go on."""
        fault.kills += 1
        self.process.popen.wait(PATIENCE_S)
        deadline = time.monotonic() + ORPHAN_S
        while ((left := self.stages()) or writing(self.out)) and time.monotonic() < deadline:
            self.tick()
        if left:
            self.wrong.append(f"{fault.at:.2f} s: {', '.join(left)} outlived the supervisor by {ORPHAN_S:g} s")
            for process in left.values():
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
        fault.what += "and nobody is left" if not left else "and some were left"
        self.wrong += [f"{fault.at:.2f} s: {line}" for line in torn(self.out)]
        self._resume()

    def _drain(self, fault: Fault) -> None:
        """A stop in order, sometimes while a process is just dying."""
        when = self.random.choice(["", "before", "after"])
        if when == "before":
            fault.what += "after "
            self._kill(fault, self.anyone())
            self.pause(0.5)
        self.process.signal(signal.SIGTERM)
        fault.what += "SIGTERM "
        if when == "after":
            self.pause(0.3)
            with contextlib.suppress(psutil.NoSuchProcess, IndexError):
                name, process = self.random.choice([*self.stages().items()])
                process.kill()
                fault.kills += 1
                fault.what += f"and {name} killed "
        self._stopped(fault.what)
        self._resume()

    def _stop(self) -> None:
        self.process.signal(signal.SIGTERM)
        self._stopped("")

    def _stopped(self, what: str) -> None:
        """A run that was told to stop has done so, and everything that was fed is on disk."""
        deadline = time.monotonic() + PATIENCE_S
        while self.tick():
            if time.monotonic() > deadline:
                raise AssertionError(f"the run does not stop, {PATIENCE_S:g} s after {what}")
        code, complaints = self.process.popen.poll(), self.process.complaints
        lacking = code == 1 and any("were fed and are not on disk" in line for line in complaints)
        if code == -signal.SIGTERM or lacking:  # it had hardly begun, and not yet fed again what a killed one had lost
            told = torn(self.out)
        else:
            told = [f"code {code}: {complaints}"] if code else []
            told += closed(self.out)
        self.wrong += [f"{self.now():.2f} s: {what}: {line}" for line in told]

    def _cut(self, fault: Fault) -> None:
        network = OwnNetwork(self.process.popen.pid)
        network.down()
        try:
            self.pause(3.0, 0.5)
        finally:
            network.up()

    def _reset(self, fault: Fault) -> None:
        network = OwnNetwork(self.process.popen.pid)
        some = self.random.sample(network.ports, self.random.randint(1, len(network.ports)))
        n = sum(network.reset(port) for port in some)
        fault.what = f"{n} connections of {len(some)} ports"


def _has_begun(process: psutil.Process) -> bool:
    """Whether a process has its sockets; one that is frozen earlier may not yet have asked to die with its parent."""
    with contextlib.suppress(OSError):
        return any(path.read_text().startswith("ZMQ") for path in Path(f"/proc/{process.pid}/task").glob("*/comm"))
    return False


_STRIKES: dict[str, Callable[[Storm, Fault], None]] = {
    SEVERAL: Storm._several,
    FREEZE: Storm._freeze,
    SUPERVISOR: Storm._kill_supervisor,
    ALL: Storm._kill_all,
    DRAIN: Storm._drain,
    CUT: Storm._cut,
    RESET: Storm._reset,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill, freeze, stop and cut off runs, and look what comes out.")
    parser.add_argument("names", nargs="*", metavar="SCENARIO", help="only these")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    options = parser.parse_args()
    scenarios = [s for s in (LONG if options.long else SHORT) if not options.names or s.name in options.names]
    print(f"seed {options.seed}", flush=True)
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    sample = Sample(folder / "sample")
    sample.undisturbed(max(scenario.n_events for scenario in scenarios))
    outcomes = []
    for number, scenario in enumerate(scenarios):
        if scenario.own_network and (why_not := OwnNetwork.why_not()):
            print(f"{scenario.name}: left out, {why_not}")
            continue
        print(f"{scenario.name}: {folder}/{number}", flush=True)
        storm = Storm(scenario, sample, folder / f"{number}", options.seed, lambda line: print(line, flush=True))
        outcomes.append(storm.run())
        print(*outcomes[-1].verdict.wrong, *outcomes[-1].wrong, sep="\n")
    print(table(outcomes))
    sys.exit(not all(outcome.good for outcome in outcomes))


if __name__ == "__main__":
    main()
