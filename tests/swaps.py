"""Networks replaced under load: what it does to latency, and whether each event says which network it had.

    python tests/swaps.py --swaps 20 --seconds 60 --load 0.7

First the capacity of the chain on this machine is measured with a short stream at full speed. Then events are fed at
the given share of it: for the given time undisturbed, and for the same time with so many changes between two networks
that differ only in their hash. The two take turns every few seconds, so that a machine that becomes slower meanwhile
does so for both. The stream is stopped as by Ctrl-C; its books must close, and in the order of the events
the network must have changed exactly as often as it was replaced.

Exit code 0: the p99 of the latency with changes is at most 1.5 times the one without, and all is well; 1: not.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from signal import SIGTERM

import numpy as np
import onnx
import uproot
from physics_helpers import Process, Processes, wait_until
from soak import LATENCY, begun, capacity, page, parsed, quantile, say

from stages.config import packaged
from streamer import control
from streamer.report import duration

MOST = 1.5
TURNS = 10
"""Of the undisturbed stream and of the one with changes; a change is long over when the next turn begins."""


def main() -> int:
    head, _, rest = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(description=head, epilog=rest, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--swaps", type=int, default=20, help="so many changes (default 20)")
    parser.add_argument("--seconds", type=float, default=60.0, help="within so many seconds (default 60)")
    parser.add_argument("--load", type=float, default=0.7, help="share of the capacity (default 0.7)")
    parser.add_argument("--policy", default="adaptive", help="tagger.policy (default adaptive)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swaps-") as folder, Processes(Path(folder)) as start:
        return swapped(start, Path(folder), given)


def swapped(start: Processes, folder: Path, given: argparse.Namespace) -> int:
    one = ["--replicas", "tagger=1"]  # two change one after the other, and their blocks mix
    options = parsed(["--set", f"tagger.policy={given.policy}", *one])
    options.output = folder
    rate = given.load * capacity(start, options)
    networks = [Path(packaged("models/eg.onnx")), twin(folder / "twin.onnx")]
    whole = ["--set", f"writer.segment_events={10**9}"]  # to finish a file costs latency, too, but not for a change
    run = begun(start, options, folder / "out", "--rate", rate, *whole)
    wait_until(lambda: all(row["state"] == "running" for row in rows(start)), "all processes to run")
    run.wait_for_events(int(5 * rate))
    took: list[float] = []

    def swap() -> None:
        begin = time.monotonic()
        settings = {"taggers.eg.model": str(networks[(len(took) + 1) % 2])}
        control.ask(start.run_dir(), {"do": "change", "stage": "tagger", "settings": settings}, 60)
        took.append(time.monotonic() - begin)

    undisturbed, changing = [], []
    for turn in range(TURNS):
        say(f"{rate:,.0f} events/s, turn {turn + 1} of {TURNS}")
        n = given.swaps * (turn + 1) // TURNS - given.swaps * turn // TURNS
        undisturbed.append(late(run, given.seconds / TURNS, lambda: None, n))
        changing.append(late(run, given.seconds / TURNS, swap, n))
    without, with_swaps = quantiles(undisturbed), quantiles(changing)
    run.signal(SIGTERM)
    code = run.wait(120) or start("ledger", folder / "out").wait()
    changes, n_events = seen(folder / "out")
    ratio = with_swaps[0.99] / without[0.99]
    print(f"{n_events:,} events at {rate:,.0f}/s; the books {'do not ' if code else ''}close")
    print(f"{given.swaps} changes in {given.seconds:g} s, {changes} seen in the order of the events")
    for q in (0.5, 0.99):
        print(f"p{q * 100:g}: {duration(without[q])} without, {duration(with_swaps[q])} with changes")
    print(f"ratio of the p99: {ratio:.2f}; a change took {np.median(took):.2f} s, at most {max(took):.2f} s")
    return int(bool(code) or changes != given.swaps or ratio > MOST)


def twin(path: Path) -> Path:
    """The same network with another hash."""
    model = onnx.load(packaged("models/eg.onnx"))
    model.doc_string = "its twin"
    onnx.save(model, path)
    return path


def rows(start: Processes) -> list[dict[str, object]]:
    found: list[dict[str, object]] = control.ask(start.run_dir(), {"do": "status"})["processes"]
    return found


def late(run: Process, seconds: float, do: Callable[[], None], n: int) -> dict[float, float]:
    """Events by latency [s], up to each edge, in so many seconds, in which `do` is called `n` times."""
    before, begin = buckets(run), time.monotonic()
    for k in range(n):
        do()
        time.sleep(max(0.0, begin + (k + 1) * seconds / n - time.monotonic()))
    time.sleep(max(0.0, begin + seconds - time.monotonic()))
    return {edge: n - before.get(edge, 0.0) for edge, n in buckets(run).items()}


def quantiles(turns: list[dict[float, float]]) -> dict[float, float]:
    """Of the latency [s] in all turns together."""
    counts = {edge: sum(turn[edge] for turn in turns) for edge in turns[0]}
    return {q: quantile(q, counts) for q in (0.5, 0.99)}


def buckets(run: Process) -> dict[float, float]:
    values = page(f"http://127.0.0.1:{run.ports()['writer-0']}/metrics")
    return {float(key.partition("/")[2]): n for key, n in values if key.startswith(f"{LATENCY}_bucket/")}


def seen(out: Path) -> tuple[int, int]:
    """How often the network changes in the order of the events, and how many events there are."""
    parts = []
    for path in out.glob("scores*.root"):
        with uproot.open(path) as file:
            parts.append(file["Events"].arrays(["egModel", "replay", "sourceEntry"], library="np"))
    place = np.concatenate([part["replay"].astype(np.int64) << 32 | part["sourceEntry"] for part in parts])
    models = np.concatenate([part["egModel"] for part in parts])[np.argsort(place)]
    return int(np.count_nonzero(models[1:] != models[:-1])), place.size


if __name__ == "__main__":
    sys.exit(main())
