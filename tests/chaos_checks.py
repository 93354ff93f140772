"""What the chaos suite holds a battered run against: an undisturbed one, and the growth of the journals on disk."""

import math
import os
import re
import struct
import subprocess
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import awkward as ak
import msgpack
import numpy as np
import uproot
from physics_helpers import Processes, event, sum_model, write_hits

from stages.books import read_books
from stages.detector.ecal import eb_detid
from stages.stored import opened
from streamer.block import Array, read_header
from streamer.recordlog import in_use

N_FILES, N_ENTRIES = 6, 500  # six files can be shared by one, two and three readers
N_PASS = N_FILES * N_ENTRIES
IDENTITY = "replay", "sourceFile", "sourceEntry"
LIMIT = 2.0 * N_PASS
"""A crop that holds more energy gets no score [GeV]."""
PATHS = {"All": "true", "High": "Photon: egScore > 300.5 and pt > 30", "Two": "2 Photon: egScore > 100"}
STREAM = '[streams.seen]\ncontent = "crops"\nformat = "parquet"\ndatasets.High = ["High"]\n'
EACH = 7
"""A prescale: which events it keeps depends on their order, how many does not."""


# ---- the input, and what comes out of it undisturbed


class Sample:
    """Files of events whose scores tell which event it is; every 499th event cannot be scored."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        firsts = range(0, N_PASS, N_ENTRIES)
        self.files = [
            write_hits(folder / f"{first}.root", [_event(i) for i in range(first, first + N_ENTRIES)])
            for first in firsts
        ]
        self.model = sum_model(folder / "sum.onnx", limit=LIMIT)
        self.menu = folder / "menu.toml"
        self.menu.write_text("[paths]\n" + "".join(_paths()) + STREAM)

    def arguments(self, out: Path, n_events: int, *more: object) -> list[object]:
        """The command that streams it."""
        return ["run", *self.files, "--output", out, "--tagger", f"eg={self.model}", "--menu", self.menu, "--loop",
                "--events", n_events, *more]  # fmt: skip

    def undisturbed(self, n_events: int) -> None:
        """Stream so many events in peace; what came out is in `reference`."""
        out = self.folder / "undisturbed"
        with Processes(self.folder) as start:
            start(*self.arguments(out, n_events)).check(seconds=300)
        numbers, self.reference = read_all(out)
        np.testing.assert_array_equal(numbers, np.arange(n_events))
        scores = self.reference["Photon_egScore"]
        assert len(np.unique(ak.flatten(scores))) > N_PASS * 0.99, "the scores do not tell the events apart"


def _paths() -> Iterator[str]:
    """Each expression without a prescale, and with one."""
    for name, text in PATHS.items():
        yield f'{name} = "{text}"\n'
        yield f'{name}_each = {{ expression = "{text}", prescale = {EACH} }}\n'


def _event(i: int) -> Any:
    """None, one or two photons, each on a hit of its own."""
    far = [(int(eb_detid(20, 11)), float(i + 1), 0.1), (int(eb_detid(-40, 200)), 0.25 + i / 2, -0.2)]
    near = [(20.0 + i % 50, 0.34, 0.005), (15.0 + i % 70, -0.68, -2.976)]
    n = (i + 1) % 3
    if i % 499 == 0 and n:
        far[0] = (far[0][0], LIMIT + 1 + i, 0.0)
    return event(i, luminosityBlock=1 + i // 400, EBRecHit=far[:n], Photon=near[:n])


def read_all(out: Path) -> tuple[Array, dict[str, ak.Array]]:
    """The number of each event in all files of scores, sorted, and all columns in that order."""
    parts = []
    for path in sorted(out.glob("scores*.root")):
        with uproot.open(path) as file:
            parts.append(file["Events"].arrays(how=dict))
    columns = {name: ak.concatenate([part[name] for part in parts]) for name in parts[0]}
    replay, file, entry = (ak.to_numpy(columns[name]).astype(np.int64) for name in IDENTITY)
    numbers = _numbers(replay, file, entry)
    order = np.argsort(numbers, kind="stable")
    return numbers[order], {name: column[order] for name, column in columns.items()}


def _numbers(replay: Array, file: Array, entry: Array) -> Array:
    return replay * N_PASS + file * N_ENTRIES + entry


@dataclass
class Verdict:
    """What became of the events of a run: how many are lost and doubled, and what else is wrong, one line each."""

    lost: int
    doubled: int
    wrong: list[str]

    @property
    def good(self) -> bool:
        return not (self.lost or self.doubled or self.wrong)


def judge(out: Path, n_events: int, reference: dict[str, ak.Array]) -> Verdict:
    """Hold a run that has ended against the undisturbed one, event by event, and look at its books."""
    numbers, columns = read_all(out)
    unique, first, counts = np.unique(numbers, return_index=True, return_counts=True)
    known = unique < n_events
    verdict = Verdict(n_events - int(known.sum()), int((counts - 1).sum()), [])
    if not known.all():
        verdict.wrong.append(f"{(~known).sum()} events that were not to be fed, such as {unique[~known][0]}")
    if columns.keys() != reference.keys():
        verdict.wrong.append(f"columns {sorted(columns.keys() ^ reference.keys())} are new or missing")
    for name in columns.keys() & reference.keys():
        if name.startswith("HLT_") and name.endswith("_each"):
            continue
        if not _same(columns[name][first[known]], reference[name][unique[known]]):
            verdict.wrong.append(f"column {name} is not the same as undisturbed")
    verdict.wrong += [*closed(out, n_events), *miscounted(out), *misplaced(out, numbers[columns["HLT_High"]])]
    left = [path.name for path in (out / "books").glob("*.journal")]
    if left:
        verdict.wrong.append(f"journals are left: {left}")
    return verdict


def miscounted(out: Path) -> Iterator[str]:
    """Where a prescale has kept another number than each so-many-th of what its writer had."""
    names = [f"HLT_{name}{end}" for name in PATHS for end in ("", "_each")]
    sums: dict[str, Counter[str]] = {}
    for path in sorted(out.glob("scores*.root")):
        with uproot.open(path) as file:
            flags = file["Events"].arrays(names, library="np")
        writer = sums.setdefault(path.stem.partition("_")[0], Counter())
        writer.update({name: int(column.sum()) for name, column in flags.items()})
    for writer, counts in sums.items():
        for name in PATHS:
            passed, kept = counts[f"HLT_{name}"], counts[f"HLT_{name}_each"]
            if kept != passed // EACH:
                yield f"{writer}: of {passed} accepts of {name} a prescale of {EACH} has kept {kept}"


def misplaced(out: Path, accepted: Array) -> Iterator[str]:
    """What is wrong with the stream: it must have the accepted events, each once, and the crops that were scored."""
    numbers: list[int] = []
    for path in sorted((out / "streams").glob("seen*.parquet")):
        with opened(path) as file:
            columns = file.arrays(file.names, 0, file.n_events)
        identity = (ak.to_numpy(columns[name]).astype(np.int64) for name in IDENTITY)
        numbers += _numbers(*identity).tolist()
        scored = columns["Photon_egScore"][columns["EgCrop_photonIdx"]]
        of_crop = columns["EgPixel_value"][columns["EgPixel_cropIdx"] == 0]
        if not np.allclose(ak.sum(of_crop, axis=1), scored[:, 0], rtol=1e-5, atol=0):
            yield f"{path.name}: crops are not those that were scored"
    if sorted(numbers) != accepted.tolist():
        yield f"the stream has {len(numbers)} events, not the {accepted.size} that were accepted"


def _same(some: ak.Array, others: ak.Array) -> bool:
    if some.ndim > 1 and not np.array_equal(ak.num(some), ak.num(others)):
        return False
    one, other = (ak.to_numpy(ak.flatten(array, axis=None)) for array in (some, others))
    return one.dtype == other.dtype and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def closed(out: Path, n_events: int | None = None) -> list[str]:
    """What is wrong with the books of a run that has ended in order."""
    books = read_books(out)
    wrong = list(books.why_not)
    total = books.ledger
    if books.running or total.in_flight or not total.closes or total.fed != total.scored + total.errors:
        wrong.append(f"the books do not close: {total}")
    if n_events is not None and total.fed != n_events:
        wrong.append(f"{total.fed} events were fed, not {n_events}")
    return wrong


def writing(out: Path) -> bool:
    """Whether a process writes there."""
    return any(in_use(path) for path in (out / "books").glob("writer-*.manifest"))


def torn(out: Path) -> list[str]:
    """What is wrong with the books of a run that was killed; that events are under way is not."""
    books = read_books(out)
    wrong = [*books.problems]
    if books.running:
        wrong.append("somebody still writes there")
    if books.n_entries != books.n_kept:
        wrong.append(f"{books.n_entries - books.n_kept} events are on disk more than once")
    if books.n_unfed:
        wrong.append(f"{books.n_unfed} events are on disk that were never fed")
    return wrong


# ---- how much is on disk, seen from outside


class Tail:
    """A journal that grows: the blocks that have become whole since the last look."""

    _PREFIX = struct.Struct("<II")

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.place = file, 0

    def look(self) -> Iterator[tuple[int, int]]:
        """First event and size of each new block."""
        size = os.fstat(self.file.fileno()).st_size
        while self.place + self._PREFIX.size <= size:
            self.file.seek(self.place)
            length = self._PREFIX.unpack(self.file.read(self._PREFIX.size))[0]
            if self.place + self._PREFIX.size + length > size:  # torn, or on its way
                return
            if self.place:  # behind what the journal says about itself
                header = read_header(msgpack.unpackb(self.file.read(length))[0])
                yield header["id"], header["n"]
            self.place += self._PREFIX.size + length


class Throughput:
    """Whether events come to disk as fast as they are fed. Pure: time is given."""

    WINDOW_S = 0.5
    ENOUGH = 0.8

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._last_low = -math.inf
        self.history: list[tuple[float, int]] = []

    def add(self, now: float, total: int, fed_rate: float) -> None:
        """So many events are on disk now, and so many are fed a second."""
        self._seen.append((now, total))
        self.history.append((now, total))
        while len(self._seen) > 1 and self._seen[1][0] <= now - self.WINDOW_S:
            self._seen.popleft()
        (begin, before), (end, after) = self._seen[0], self._seen[-1]
        if (after - before) / max(end - begin, self.WINDOW_S) < self.ENOUGH * fed_rate:
            self._last_low = now

    def back(self, begin: float, end: float) -> float | None:
        """Seconds from the `begin` of a fault until the throughput was back; 0 when it was never low; None: not yet.

        Back means that it has not been low for a whole window since, and is looked for at least so long after the `end`
        of the fault.
        """
        now = self._seen[-1][0]
        if now - max(self._last_low, end) < self.WINDOW_S or now - begin < 2 * self.WINDOW_S:
            return None
        return max(0.0, self._last_low - begin)

    def least(self, begin: float) -> int:
        """The fewest events that came to disk in any whole second since `begin`."""
        since = [(at, total) for at, total in self.history if at >= begin - 1.0]
        found, first = [], 0
        for at, total in since:
            while since[first + 1 :] and since[first + 1][0] <= at - 1.0:
                first += 1
            if since[first][0] <= at - 1.0:
                found.append(total - since[first][1])
        return min(found)


class Watch:
    """How many events are on disk.

    The writers' journals hold each event once, whatever happens to the processes, also those that have become files
    and are unlinked: they stay open here.

    Parameters
    ----------
    n_readers : int
    n_events : int
        How many there will be.
    rate : float
        Events that all readers together feed a second.
    """

    def __init__(self, books: Path, n_readers: int, n_events: int, rate: float) -> None:
        self.books, self.n_readers, self.n_events, self.rate = books, n_readers, n_events, rate
        self._tails: dict[tuple[int, int], Tail] = {}
        self.left = [n_events // n_readers] * n_readers
        self.throughput = Throughput()

    @property
    def total(self) -> int:
        """Events on disk."""
        return self.n_events - sum(self.left)

    @property
    def fed_rate(self) -> float:
        """What is fed a second: a reader whose share is on disk feeds no more."""
        return self.rate * sum(left > 0 for left in self.left) / self.n_readers

    def look(self) -> None:
        """Read what is new; to be called every few hundredths of a second."""
        for path in sorted(self.books.glob("writer-*.journal")):
            try:
                status = path.stat()
                if (key := (status.st_dev, status.st_ino)) not in self._tails:
                    self._tails[key] = Tail(path.open("rb"))
            except FileNotFoundError:  # it has become a file just now
                continue
        for tail in self._tails.values():
            for block_id, n in tail.look():
                self.left[block_id // N_ENTRIES % N_FILES % self.n_readers] -= n
        self.throughput.add(time.monotonic(), self.total, self.fed_rate)

    def close(self) -> None:
        for tail in self._tails.values():
            tail.file.close()


# ---- a network that can be cut


class OwnNetwork:
    """A network namespace in which a command runs, with nothing but its loopback device."""

    PREFIX = ("unshare", "-n", "sh", "-c", 'ip link set lo up && exec "$@"', "sh")

    @staticmethod
    def why_not() -> str:
        """Why there can be none here; empty where it can."""
        test = ["unshare", "-n", "sh", "-c", "ip link set lo up && ip link set lo down && ss -tn && nsenter --version"]
        try:
            done = subprocess.run(test, capture_output=True, text=True)
        except OSError as error:
            return str(error)
        return done.stderr.strip() or "no network namespaces here" if done.returncode else ""

    def __init__(self, pid: int) -> None:
        self._enter = ["nsenter", "-t", str(pid), "-n"]

    @cached_property
    def ports(self) -> list[int]:
        """Where somebody listens for streams of events and commits."""
        return sorted({int(port) for port in re.findall(r"127\.0\.0\.1:(155\d\d)\s", self.do("ss", "-ltn"))})

    def do(self, *command: str) -> str:
        return subprocess.run([*self._enter, *command], capture_output=True, text=True, check=True).stdout

    def down(self) -> None:
        self.do("ip", "link", "set", "lo", "down")

    def up(self) -> None:
        self.do("ip", "link", "set", "lo", "up")

    def reset(self, port: int) -> int:
        """Break the connections with a port; returns how many the kernel took."""
        return self.do("ss", "-K", "-tn", "sport", "=", f":{port}").count("ESTAB")
