"""Generated events as an event file."""

import contextlib
import json
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np
import uproot

from stages.conversion import schema_of
from stages.formats.root import write_events
from stages.records import INPUT
from stages.simulation import egamma
from stages.simulation.processes import PROCESSES
from streamer import __version__
from streamer.block import Columns, Schema
from streamer.errors import StreamerError, UsageError

STEP_EVENTS = 2000
"""Events of `egamma` to a step."""
CHUNKS_AHEAD = 2
"""So many chunks for each process may be waiting or under way."""
CHUNKS_PER_STEP = 10
"""Chunks that are written at a time."""
MAX_PILEUP = 200

_COLLECTIONS = (
    "EBRecHit",
    "EERecHit",
    "HBHERecHit",
    "Track",
    "PixelHit",
    "StripHit",
    "Photon",
    "Jet",
    "FatJet",
    "PV",
    "",
)
_UNKNOWN = ("Photon_seedDetId", "Photon_superClusterIdx", "HBHERecHit_time")
_COLUMNS = [c for c in INPUT if c.collection in _COLLECTIONS and c.name not in _UNKNOWN]
EGAMMA = "single electrons and photons in the ECAL barrel"


def settings_of(path: Path) -> dict[str, Any]:
    """How a file was generated: process, events, seed ...; empty for a file that was not."""
    with uproot.open(path) as file:
        found: dict[str, Any] = json.loads(str(file["generator"])) if "generator;1" in file else {}
    return found


def command_of(path: Path) -> str:
    """The command that generates a file with these events; empty for a file that was not generated."""
    about = settings_of(path)
    if not about:
        return ""
    more = f" --pileup {about['pileup']:g}" if about.get("pileup") else ""
    more += "" if about.get("strips", True) else " --no-strips"
    name = about.get("sample", "egamma")
    return f"streamer generate {name} -n {about['events']} -o {path.name} --seed {about['seed']}{more}"


def generate_file(
    n_events: int,
    out: Path,
    seed: int,
    on_step: Callable[[int], None] | None = None,
    *,
    process: str = "egamma",
    pileup: float = 0.0,
    jobs: int = 1,
    strips: bool = True,
    overwrite: bool = False,
) -> None:
    """Write generated events; the same seed gives the same events, whatever the number of jobs.

    Parameters
    ----------
    on_step : callable, optional
        Told how many events each step made.
    process : str
        `egamma`, or a key of `PROCESSES`.
    pileup : float
        Mean number of minimum bias events on top of each event; 0 for `egamma`.
    jobs : int
        Processes that generate.
    strips : bool
        Keep the hits in the silicon strips, which are half of a file.
    overwrite : bool
        Replace `out`.

    Raises
    ------
    UsageError
        A setting is out of range, a package is missing, or there cannot be such a file.
    StreamerError
        The disk is full, or a process ended. Nothing is left then.
    """
    if process == "egamma" and pileup:
        raise UsageError("egamma: single particles have no pile-up; leave --pileup out")
    if not 0 <= pileup <= MAX_PILEUP:
        raise UsageError(f"--pileup {pileup:g}: 0 to {MAX_PILEUP} minimum bias events can be added")
    if n_events < 1 or jobs < 1:
        raise UsageError("at least one event and one job are needed")
    if not out.parent.is_dir() or out.is_dir() or not os.access(out.parent, os.W_OK):
        raise UsageError(f"{out}: cannot be written; name a file in a folder that is there")
    if out.exists() and not overwrite:
        raise UsageError(f"{out}: exists; choose another name, or --overwrite")
    schema = schema_of([column for column in _COLUMNS if strips or column.collection != "StripHit"])
    settings: dict[str, Any] = {"sample": process, "seed": seed, "events": n_events, "strips": strips}
    settings["version"] = __version__
    if process == "egamma":
        steps = _egamma(n_events, seed, jobs)
        settings |= {"process": EGAMMA, "pt_gev": egamma.PT_GEV, "max_eta": egamma.MAX_ETA}
    else:
        _require_packages()
        steps = _collisions(process, n_events, seed, pileup, jobs)
        sources = {source.name: list(source.settings) for source in PROCESSES[process].sources}
        settings |= {"process": PROCESSES[process].name, "pileup": pileup, "pythia": sources}
    packages = ("numpy",) if process == "egamma" else ("numpy", "pythia8mc", "fastjet")
    settings["packages"] = {name: _version(name) for name in packages}
    try:
        write_events(
            out,
            schema,
            _filled(steps, schema, on_step),
            title="generated events",
            metadata={"generator": json.dumps(settings)},
        )
    except OSError as error:
        why = error.strerror or str(error)
        raise StreamerError(f"{out}: cannot be written ({why}); nothing is kept of it, make room") from None
    except BrokenProcessPool:
        raise StreamerError(f"{out}: a generating process ended by itself, perhaps for lack of memory") from None
    finally:
        steps.close()
        with contextlib.suppress(OSError):
            out.with_name(out.name + ".part").unlink(missing_ok=True)


def _filled(steps: Iterator[Columns], schema: Schema, on_step: Callable[[int], None] | None) -> Iterator[Columns]:
    """Each step with what it lacks, empty."""
    for made in steps:
        n = len(made["event"])
        nothing = {name: array for name, array in schema.empty(n).items() if name not in made}
        yield {**nothing, **made}
        if on_step is not None:
            on_step(n)


def _egamma(n_events: int, seed: int, jobs: int) -> Any:
    """Single particles in their order, by threads: the kernel lets go of the interpreter."""
    pieces = [(first, min(STEP_EVENTS, n_events + 1 - first)) for first in range(1, n_events + 1, STEP_EVENTS)]
    with ThreadPoolExecutor(jobs) as pool:
        yield from _in_order(pool, lambda first, n: egamma.generate(n, seed, first), pieces, CHUNKS_AHEAD * jobs)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


_simulator: Any = None  # of a generating process


def _begin(process: str, seed: int, pileup: float) -> None:
    from stages.simulation.events import Simulator

    global _simulator
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _simulator = Simulator(process, seed, pileup)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _make(first: int, n: int) -> Columns:
    made: Columns = _simulator.make(first, n)
    return made


def _require_packages() -> None:
    """Tell here what is missing, and not by a process that ends. Ctrl-C in the middle would look as if it were."""
    from stages.jets import require_fastjet
    from stages.simulation.collisions import require_pythia

    with _sigint_waits():
        require_pythia()
        require_fastjet()


def _collisions(process: str, n_events: int, seed: int, pileup: float, jobs: int) -> Any:
    """The events in steps of some chunks, in their order."""
    from stages.simulation.events import CHUNK, Simulator

    pieces = [(first, min(CHUNK, n_events - first)) for first in range(0, n_events, CHUNK)]
    if jobs == 1:
        simulator = Simulator(process, seed, pileup)
        yield from _joined(simulator.make(*piece) for piece in pieces)
        return
    pool = ProcessPoolExecutor(
        min(jobs, len(pieces)), get_context("spawn"), initializer=_begin, initargs=(process, seed, pileup)
    )
    try:
        yield from _joined(_in_order(pool, _make, pieces, CHUNKS_AHEAD * jobs))
    finally:
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _sigint_waits() -> Iterator[None]:
    """Ctrl-C comes afterwards, and never to a process that is started meanwhile: this one says when it is over."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _in_order(
    pool: Executor, work: Callable[[int, int], Columns], pieces: list[tuple[int, int]], most: int
) -> Iterator[Columns]:
    """The pieces as they come back, with at most so many under way."""
    waiting: deque[Future[Columns]] = deque()
    for piece in pieces:
        with _sigint_waits():
            waiting.append(pool.submit(work, *piece))
        if len(waiting) == most:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def _joined(chunks: Iterator[Columns]) -> Iterator[Columns]:
    """Some chunks at a time as one step."""
    some: list[Columns] = []
    for chunk in chunks:
        some.append(chunk)
        if len(some) == CHUNKS_PER_STEP:
            yield {name: np.concatenate([one[name] for one in some]) for name in chunk}
            some = []
    if some:
        yield {name: np.concatenate([one[name] for one in some]) for name in some[0]}
