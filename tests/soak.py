"""Soak: lets the chain stream for long under a load that it can bear, and says whether it stays as it is.

    python tests/soak.py --minutes 10 --load 0.8

First the capacity of the chain on this machine is measured with a short stream at full speed. Then events are fed at
the given share of it, for the given time, and every two seconds each process is looked at. The first fifth of the time
is warm-up. What is left is flat when, for each process,

* memory (USS: what is its alone) grows by less than 2 % or 2 MB over that time, or by less than twice the uncertainty
  of its slope, or in the second half less than half as fast: what leaks goes on. The slope is that of a straight line
  through the means of 20 equal pieces of the time, as samples that lie near each other are not independent; its
  uncertainty comes from how far the means lie from the line;
* it has no more files in the last third than in the first one, at least (one that is being made is open for a moment),
  and no more than two more threads (a pool of them fills up);

and for the whole stream blocks in flight and the p99 of the latency are in the last third less than 1.5 times what they
are in the first one (and a little, for what is small). Then the stream is stopped as by Ctrl-C; its books must close.

What may grow for a while and is no leak: what malloc keeps of its highest tide (all that is in use at once is seen only
now and then), and Python's own lists of freed objects. Whether bytes *in use* grow, `mallinfo2` tells from within.

Exit code 0: flat, and the books close; 1: not; 2: it could not be measured.
"""

import argparse
import contextlib
import json
import shutil
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from signal import SIGTERM
from typing import Any

import numpy as np
import psutil
from physics_helpers import Process, Processes, command_of
from prometheus_client.parser import text_string_to_metric_families

from stages.config import packaged
from streamer.report import duration

EVERY_S = 2.0
WARM_UP = 0.2
PIECES = 20
FILES = 20
"""Files of scores that the writer makes meanwhile, so that what each costs shows in every piece of the time."""
MORE = {"files": 0, "threads": 2}
"""So many more are no growth: a pool of threads fills up."""
DONE = "streamer_events_total/ok"
LATENCY = "streamer_event_latency_seconds"


class MeasurementError(Exception):
    """The stream did not behave so that there would be something to measure."""


@dataclass
class Series:
    """What was seen of one process: seconds since the start, bytes, and numbers."""

    at_s: list[float] = field(default_factory=list)
    rss: list[float] = field(default_factory=list)
    uss: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)
    threads: list[float] = field(default_factory=list)
    in_flight: list[float] = field(default_factory=list)


@dataclass
class Seen:
    """Everything that was seen: each process, and the events done and the p99 [s] of the stream."""

    processes: dict[str, Series] = field(default_factory=dict)
    at_s: list[float] = field(default_factory=list)
    done: list[float] = field(default_factory=list)
    p99_s: list[float] = field(default_factory=list)


def main() -> int:
    options = parsed()
    if options.output is None:
        options.output = Path(tempfile.mkdtemp(prefix="soak-"))
    else:
        options.output.mkdir(parents=True)
    try:
        with Processes(options.output) as start:
            return soak(start, options)
    except MeasurementError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    finally:
        if not options.keep:
            shutil.rmtree(options.output, ignore_errors=True)


def parsed(words: list[str] | None = None) -> argparse.Namespace:
    head, _, rest = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(description=head, epilog=rest, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("inputs", nargs="*", default=[packaged("samples/egamma.root")], metavar="INPUT")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long to feed (default 10)")
    parser.add_argument("--load", type=float, default=0.8, help="share of the capacity (default 0.8)")
    parser.add_argument("--rate", type=float, help="events a second, in place of --load")
    parser.add_argument("--calibrate", type=float, default=15.0, metavar="S", help="seconds at full speed (default 15)")
    parser.add_argument("--tagger", action="append", default=[], help="as of streamer run; may be repeated")
    parser.add_argument("--replicas", help="as of streamer run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of streamer run")
    parser.add_argument("--output", type=Path, help="a new folder for the results (default: in /tmp)")
    parser.add_argument("--keep", action="store_true", help="leave the results there")
    parser.add_argument("--save", type=Path, metavar="FILE.json", help="every sample, to look at")
    return parser.parse_args(words)


def soak(start: Processes, options: argparse.Namespace) -> int:
    rate = options.rate or options.load * capacity(start, options)
    seconds = 60 * options.minutes
    out = options.output / "out"
    segment = max(1000, int(rate * seconds / FILES))
    run = begun(start, options, out, "--rate", rate, "--set", f"writer.segment_events={segment}")
    say(f"feeding {rate:,.0f} events/s for {options.minutes:g} minutes; {segment:,} events a file")
    seen = watched(run, seconds)
    if options.save:
        options.save.write_text(json.dumps(asdict(seen)))
    run.signal(SIGTERM)
    code = run.wait(120)
    if code:
        print(run.err, file=sys.stderr)
    ledger = start("ledger", out)
    closed = ledger.wait() == 0 and not code
    print(ledger.out.splitlines()[-2].strip() + "\n" + ledger.out.splitlines()[-1])
    wrong = told(seen, rate)
    if not closed:
        wrong.append(f"the run ended with {code}, or its books do not close")
    for line in wrong:
        print(f"not flat: {line}")
    if not wrong:
        print("flat")
    return int(bool(wrong))


def say(text: str) -> None:
    print(f"soak: {text}", file=sys.stderr, flush=True)


def begun(start: Processes, options: argparse.Namespace, out: Path, *more: object) -> Process:
    """A stream without end."""
    words = [word for name in options.tagger for word in ("--tagger", name)]
    words += [word for setting in options.set for word in ("--set", setting)]
    words += ["--replicas", options.replicas] if options.replicas else []
    run = start("run", *options.inputs, "--output", out, "--loop", *words, *more)
    run.wait_for_events(1)
    return run


def capacity(start: Processes, options: argparse.Namespace) -> float:
    """Events a second at full speed, without the first third of the time."""
    say(f"measuring the capacity for {options.calibrate:g} s")
    run = begun(start, options, options.output / "calibration")
    begin = time.monotonic()
    marks = []
    while time.monotonic() - begin < options.calibrate:
        time.sleep(0.5)
        if values := run.metrics("writer-0"):
            marks.append((time.monotonic(), values[DONE]))
    run.signal(SIGTERM)
    if run.wait(60) or len(marks) < 4:
        raise MeasurementError(f"the stream failed:\n{run.err}")
    (t0, n0), (t1, n1) = marks[len(marks) // 3], marks[-1]
    shutil.rmtree(options.output / "calibration")
    say(f"capacity {(n1 - n0) / (t1 - t0):,.0f} events/s")
    return (n1 - n0) / (t1 - t0)


# ---- looking


def named(run: Process) -> dict[str, psutil.Process]:
    """The processes of a run by their names."""
    out = {"supervisor": psutil.Process(run.popen.pid)}
    for child in run.children():
        with contextlib.suppress(psutil.Error):
            command = command_of(child)
            if "stage" in command:
                stage, replica = command[command.index("stage") + 1], command[command.index("--replica") + 1]
                out[f"{stage}-{replica}"] = child
    return out


def watched(run: Process, seconds: float) -> Seen:
    """Look at the processes of a run until the time is over."""
    processes = named(run)
    urls = {name: f"http://127.0.0.1:{port}/metrics" for name, port in run.ports().items()}
    seen, begin = Seen({name: Series() for name in processes}), time.monotonic()
    before: dict[float, float] = {}
    while (now := time.monotonic() - begin) < seconds:
        if run.popen.poll() is not None:
            raise MeasurementError(f"the run ended too early:\n{run.err}")
        pages = {name: dict(page(url)) for name, url in urls.items()}
        for name, process in processes.items():
            look(process, now, pages.get(name, {}), seen.processes[name])
        writers = [values for name, values in pages.items() if name.startswith("writer-")]
        buckets: dict[float, float] = {}
        for values in writers:
            for key, n in values.items():
                if key.startswith(f"{LATENCY}_bucket/"):
                    edge = float(key.partition("/")[2])
                    buckets[edge] = buckets.get(edge, 0.0) + n
        seen.at_s.append(now)
        seen.done.append(sum(values[DONE] for values in writers))
        seen.p99_s.append(quantile(0.99, {edge: n - before.get(edge, 0.0) for edge, n in buckets.items()}))
        before = buckets
        time.sleep(max(0.0, EVERY_S - (time.monotonic() - begin - now)))
    if len(seen.at_s) < 2 * PIECES:
        raise MeasurementError(f"{len(seen.at_s)} samples are too few; give it more --minutes")
    return seen


def look(process: psutil.Process, now: float, values: dict[str, float], into: Series) -> None:
    memory = process.memory_full_info()
    into.at_s.append(now)
    into.rss.append(memory.rss)
    into.uss.append(memory.uss)
    into.files.append(process.num_fds())
    into.threads.append(process.num_threads())
    into.in_flight.append(values.get("streamer_blocks_in_flight", 0.0))


def page(url: str) -> Iterator[tuple[str, float]]:
    """The samples of a metrics page, buckets included."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(v for k, v in sorted(sample.labels.items()) if k != "stage")
            yield (f"{sample.name}/{labels}" if labels else sample.name), sample.value


def quantile(q: float, below: dict[float, float]) -> float:
    """The value below which the share `q` lies, interpolated in its bucket; `below` counts by upper edges."""
    edges = sorted(below)
    if not edges or not below[edges[-1]]:
        return float("nan")
    wanted, low, n_low = q * below[edges[-1]], 0.0, 0.0
    for edge in edges:
        if below[edge] >= wanted:
            return edge if np.isinf(edge) else low + (edge - low) * (wanted - n_low) / (below[edge] - n_low)
        low, n_low = edge, below[edge]
    raise AssertionError("unreachable")


# ---- judging


def line(at_s: Any, values: Any) -> tuple[float, float]:
    """The slope of a straight line through the means of `PIECES` equal pieces, and its uncertainty, per second."""
    pieces = np.array_split(np.arange(len(at_s)), PIECES)
    t = np.array([np.mean(at_s[piece]) for piece in pieces])
    y = np.array([np.mean(values[piece]) for piece in pieces])
    t -= t.mean()
    slope = float(t @ y / (t @ t))
    rest = y - y.mean() - slope * t
    return slope, float(np.sqrt(rest @ rest / (PIECES - 2) / (t @ t)))


def thirds(values: Any) -> tuple[Any, Any]:
    n = len(values) // 3
    return values[:n], values[-n:]


def told(seen: Seen, rate: float) -> list[str]:
    """Print what was seen; returns what is not flat."""
    from rich.console import Console
    from rich.table import Table

    at_s = np.array(seen.at_s)
    late = at_s >= WARM_UP * at_s[-1]
    span = float(at_s[-1] - at_s[late][0])
    table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
    for title in ("process", "RSS", "USS", "USS slope", "2nd half", "growth", "files", "threads", "in flight"):
        table.add_column(title, justify="left" if title == "process" else "right")
    wrong = []
    for name, series in seen.processes.items():
        uss, in_flight = np.array(series.uss)[late] / 1e6, np.array(series.in_flight)[late]
        slope, error = line(at_s[late], uss)
        growth = slope * span
        files, threads = (thirds(np.array(values)[late]) for values in (series.files, series.threads))
        half = len(uss) // 2
        later, _ = line(at_s[late][half:], uss[half:])
        table.add_row(
            name,
            f"{series.rss[-1] / 1e6:.0f} MB",
            f"{uss[-1]:.0f} MB",
            f"{slope * 3600:+.1f} +- {error * 3600:.1f} MB/h",
            f"{later * 3600:+.1f} MB/h",
            f"{growth:+.2f} MB",
            f"{files[0].min():.0f} > {files[1].min():.0f}",
            f"{threads[0].min():.0f} > {threads[1].min():.0f}",
            " > ".join(f"{third.mean():.1f}" for third in thirds(in_flight)),
        )
        if growth > max(2.0, 0.02 * uss.mean()) and slope > 2 * error and later > slope / 2:
            wrong.append(f"{name} grows by {slope * 3600:.0f} +- {error * 3600:.0f} MB an hour")
        for what, (first, last) in {"files": files, "threads": threads}.items():
            if last.min() > first.min() + MORE[what]:
                wrong.append(f"{name} had at least {first.min():.0f} {what}, and then {last.min():.0f}")
    reader = np.sum([s.in_flight for name, s in seen.processes.items() if name.startswith("reader-")], axis=0)[late]
    first, last = (third.mean() for third in thirds(reader))
    if last > 1.5 * first + 2:
        wrong.append(f"{first:.1f} blocks were in flight, and then {last:.1f}")
    p99 = np.array(seen.p99_s)[late]
    early, end = (float(np.nanmedian(third)) for third in thirds(p99))
    if end > 1.5 * early + 0.005:
        wrong.append(f"the p99 of the latency was {duration(early)}, and then {duration(end)}")
    done = np.array(seen.done)[late]
    got = (done[-1] - done[0]) / span
    if got < 0.95 * rate:
        wrong.append(f"only {got:,.0f} of {rate:,.0f} events a second came through")
    console = Console(width=140)
    console.print(
        f"[bold]{span:.0f} s[/] after a warm-up of {at_s[late][0]:.0f} s, {late.sum()} samples; {got:,.0f} events/s; "
        f"p99 {duration(early)} > {duration(end)}; a > b: in the first and in the last third"
    )
    console.print(table)
    return wrong


if __name__ == "__main__":
    sys.exit(main())
