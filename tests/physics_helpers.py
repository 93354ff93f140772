"""What the tests of the physics chain share: small events, small networks, and real processes."""

import contextlib
import io
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import copied
import numpy as np
import onnx
import psutil
import uproot
from onnx import TensorProto, helper, numpy_helper

from stages import PIPELINE, quality, records
from stages.config import Config
from stages.conversion import schema_of
from stages.cropper import Cropper
from stages.detector.layout import N_PIXELS
from stages.formats.root import write_events
from stages.framer import Framer
from stages.records import INPUT
from stages.tagger import Tagger
from streamer import cli
from streamer.batcher import Part
from streamer.block import Block, Columns, core_columns
from streamer.child import scrape
from streamer.reference import Distribution, Taken

ROOT = Path(__file__).resolve().parents[1]
PACKAGED_MODEL = ROOT / "stages/models/eg.onnx"

Event = dict[str, Any]
"""run, luminosityBlock, event, and lists of rows: EBRecHit and EERecHit (detid, energy, time), Photon (pt, eta, phi,
seedDetId, genLabel). What is missing is 0 or empty, or what it means that it is missing."""

_MEMBERS = {
    "EBRecHit": ("detid", "energy", "time"),
    "EERecHit": ("detid", "energy", "time"),
    "Photon": ("pt", "eta", "phi", "seedDetId", "genLabel"),
}
_COLUMNS = [c for c in INPUT if not c.collection or c.name.partition("_")[2] in _MEMBERS.get(c.collection, ())]


# ---- real events


def cms_open_data() -> Path:
    """The folder with the real events and the published geometry; skips the test where it is missing."""
    for base in (ROOT / "shared", ROOT.parent / "shared"):
        if (base / "cms-open-data").is_dir():
            return base / "cms-open-data"
    import pytest  # only here: whoever is no test does without

    pytest.skip("the real CMS events are not here (../shared/cms-open-data)")


# ---- events


def event(number: int = 0, **collections: Sequence[Sequence[float]]) -> Event:
    """An event with rows that may be shorter than the full ones."""
    return {"run": 1, "luminosityBlock": 2, "event": number, **collections}


def columns_of(events: Sequence[Event], without: Iterable[str] = ()) -> Columns:
    """Flat columns of events, as an input file holds them."""
    out: Columns = {}
    for column in _COLUMNS:
        if column.name in without:
            continue
        if not column.collection:
            values = [e.get(column.name, 0) for e in events]
        else:
            place = _MEMBERS[column.collection].index(column.name.partition("_")[2])
            counts = [len(e.get(column.collection, ())) for e in events]
            out.setdefault(f"n{column.collection}", np.array(counts, np.int32))
            rows = [row for e in events for row in e.get(column.collection, ())]
            values = [row[place] if place < len(row) else column.default for row in rows]
        out[column.name] = np.array(values).astype(column.wire.wire_dtype)
    return out


def write_hits(path: Path, events: Sequence[Event], *, rntuple: bool = False, without: Iterable[str] = ()) -> Path:
    """An event file as `streamer convert` makes it."""
    schema = schema_of([c for c in _COLUMNS if c.name not in without])
    write_events(path, schema, [columns_of(events, without)], rntuple=rntuple)
    return path


def ig_text(e: Event, quote: str = '"', brackets: str = "[]") -> str:
    """One event as the event display writes it."""
    left, right = brackets
    vector = f"{left}0.0, 0.0, 0.0{right}"
    types = {
        "Event_V2": ["run", "event", "ls", "time"],
        "EBRecHits_V2": ["energy", "eta", "phi", "time", "detid", "front_1"],
        "EERecHits_V2": ["energy", "eta", "phi", "time", "detid", "front_1"],
        "Photons_V1": ["energy", "et", "eta", "phi", "pos"],
    }
    rows: dict[str, list[list[str]]] = {
        "Event_V2": [[str(e["run"]), str(e["event"]), str(e["luminosityBlock"]), f"{quote}2012-May-14 (nan){quote}"]]
    }
    for ours, theirs in (("EBRecHit", "EBRecHits_V2"), ("EERecHit", "EERecHits_V2")):
        hits = [[*hit, 0, 0][:3] for hit in e.get(ours, ())]
        rows[theirs] = [[repr(float(en)), "0.0", "0.0", repr(float(t)), str(int(d)), vector] for d, en, t in hits]
    photons = e.get("Photon", ())
    rows["Photons_V1"] = [[repr(float(p[0])), *(repr(float(x)) for x in p[:3]), vector] for p in photons]

    def quoted(text: str) -> str:
        return f"{quote}{text}{quote}"

    def entry(values: Iterable[str]) -> str:
        return f"{left}{', '.join(values)}{right}"

    type_text = ",\n".join(
        f"{quoted(name)}: [{', '.join(entry([quoted(f), quoted('double')]) for f in fields)}]"
        for name, fields in types.items()
    )
    row_text = ",\n".join(f"{quoted(name)}: [{', '.join(map(entry, table))}]" for name, table in rows.items())
    parts = (f"{quoted(name)}: {{{body}}}" for name, body in (("Types", type_text), ("Collections", row_text)))
    return f"{{{', '.join(parts)}}}"


def write_ig(path: Path, texts: Sequence[str], run: int = 1) -> Path:
    """An archive of event texts."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("Header", "{}")
        for i, text in enumerate(texts):
            archive.writestr(f"Events/Run_{run}/Event_{i}", text)
    return path


# ---- networks


def save_graph(
    path: Path,
    nodes: list[Any],
    shape: Sequence[int | str] = ("batch", 1, 32, 32),
    *,
    dtype: int = TensorProto.FLOAT,
    output: Sequence[int | str] = ("batch", 1),
    weights: dict[str, Any] | None = None,
    extra_inputs: int = 0,
    extra_outputs: Sequence[str] = (),
) -> Path:
    """A network whose input is `crops` and whose output is `score`, and others of the same shapes."""
    inputs = [helper.make_tensor_value_info("crops", dtype, list(shape))]
    inputs += [helper.make_tensor_value_info(f"more{k}", dtype, list(shape)) for k in range(extra_inputs)]
    outputs = [helper.make_tensor_value_info(name, dtype, list(output)) for name in ("score", *extra_outputs)]
    tensors = [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()]
    graph = helper.make_graph(nodes, "test", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, path)
    return path


def conv_model(path: Path, shape: Sequence[int | str] = ("batch", 1, 32, 32), seed: int = 0) -> Path:
    """A random convolutional network; its score depends on every pixel and on where it is."""
    rng = np.random.default_rng(seed)
    channels, side = int(shape[1]), int(shape[2])
    weights = {
        "w1": (rng.standard_normal((4, channels, 3, 3)) * 0.3).astype(np.float32),
        "d1": (rng.standard_normal((4 * (side // 2) ** 2, 16)) * 0.1).astype(np.float32),
        "d2": (rng.standard_normal((16, 1)) * 0.3).astype(np.float32),
        "scale": np.array(0.1, np.float32),
    }
    nodes = [
        helper.make_node("Mul", ["crops", "scale"], ["scaled"]),
        helper.make_node("Conv", ["scaled", "w1"], ["a"], pads=[1] * 4),
        helper.make_node("Tanh", ["a"], ["b"]),
        helper.make_node("AveragePool", ["b"], ["c"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("Gemm", ["d", "d1"], ["e"]),
        helper.make_node("Tanh", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "d2"], ["g"]),
        helper.make_node("Sigmoid", ["g"], ["score"]),
    ]
    return save_graph(path, nodes, shape, output=(shape[0], 1), weights=weights)


def sum_model(path: Path, shape: Sequence[int | str] = ("batch", 1, 32, 32), limit: float | None = None) -> Path:
    """The score is the energy in the crop; with a `limit`, crops that hold more give NaN."""
    nodes = [helper.make_node("ReduceSum", ["crops", "axes"], ["sum" if limit else "score"], keepdims=0)]
    weights: dict[str, Any] = {"axes": np.array([1, 2, 3], np.int64)}
    if limit is not None:
        weights["limit"] = np.array(limit, np.float32)
        nodes += [
            helper.make_node("Sub", ["limit", "sum"], ["rest"]),
            helper.make_node("Sqrt", ["rest"], ["root"]),
            helper.make_node("Mul", ["root", "root"], ["square"]),
            helper.make_node("Sub", ["limit", "square"], ["score"]),
        ]
    return save_graph(path, nodes, shape, output=(shape[0],), weights=weights)


def deadly_model(path: Path, energy: float) -> Path:
    """The score is the energy in the crop; a crop of exactly this energy kills the process that runs the network.

    The least integer is divided by -1, which is more than the greatest; the processor refuses, and ONNX Runtime does
    not look: SIGFPE.
    """
    nodes = [
        helper.make_node("ReduceSum", ["crops", "axes"], ["sum"], keepdims=0),
        helper.make_node("Equal", ["sum", "deadly"], ["dies"]),
        helper.make_node("Where", ["dies", "minus_one", "one"], ["divisor"]),
        helper.make_node("Div", ["least", "divisor"], ["quotient"]),
        helper.make_node("Cast", ["quotient"], ["large"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["large", "zero"], ["nothing"]),
        helper.make_node("Add", ["sum", "nothing"], ["score"]),
    ]
    weights = {
        "axes": np.array([1, 2, 3], np.int64),
        "deadly": np.array(energy, np.float32),
        "minus_one": np.array([-1], np.int64),
        "one": np.array([1], np.int64),
        "least": np.array([-(1 << 63)], np.int64),
        "zero": np.array([0], np.float32),
    }
    return save_graph(path, nodes, ("batch", 1, 32, 32), output=("batch",), weights=weights)


def model_for_scores(folder: Path) -> Path:
    """The packaged network where there is one, else a random one."""
    return PACKAGED_MODEL if PACKAGED_MODEL.exists() else conv_model(folder / "random.onnx")


# ---- the chain in this process


def hits_block(config: Config, columns: Columns, n_events: int, block_id: int = 1) -> Block:
    """Input columns as the reader sends them; what is missing is zero, or what it means that it is missing."""
    schema = records.hits(config)
    out = core_columns(np.zeros(n_events, np.int64)) | columns | records.complete(config, columns, n_events)
    out["sourceEntry"] = np.arange(n_events, dtype=np.int64)
    for column in schema.columns:
        if column.name not in out:
            out[column.name] = np.zeros(n_events, column.wire_dtype)
    block = Block(block_id, n_events, {name: out[name] for name in schema.by_name})
    schema.check(block.columns, n_events)
    return block


class Chain:
    """Framer, cropper and tagger as objects, each one's output checked against the schema of its hop."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.framer, self.cropper, self.tagger = Framer(config), Cropper(config), Tagger(config)
        for place, stage in enumerate((self.framer, self.cropper, self.tagger), 2):
            stage.mark = place
            stage.setup()

    def crops(self, columns: Columns, n_events: int) -> Block:
        block = hits_block(self.config, columns, n_events)
        for stage in (self.framer, self.cropper):
            block = stage.process(block)
            stage.outputs.check(block.columns, n_events)
        return block

    def scores(self, columns: Columns, n_events: int) -> Block:
        return infer_all(self.tagger, self.crops(columns, n_events))


def infer_all(tagger: Tagger, block: Block) -> Block:
    """A block through the tagger in batches of at most `max_batch`."""
    results = {}
    for queue, n in tagger.items(block).items():
        size = tagger.queues[queue]
        parts = [[Part(block, first, min(first + size, n))] for first in range(0, n, size)]
        results[queue] = np.concatenate([tagger.failed(0), *(tagger.infer(queue, part).copy() for part in parts)])
    done = tagger.finish(block, results, {})
    tagger.outputs.check(done.columns, block.n_events)
    return done


def per_event(columns: Columns, name: str, collection: str = "Photon") -> list[list[float]]:
    """A collection's column as one list an event."""
    ends = np.cumsum(columns[f"n{collection}"])
    return [part.tolist() for part in np.split(columns[name], ends[:-1])]


# ---- data quality


def reference_of(config: Config, values: Callable[[str, str], Any]) -> Taken:
    """A reference with these values of each quantity, by the name of its metric and the value of its label."""
    found = {}
    for quantity in PIPELINE.quantities(config):
        for value, of in quantity.of.items():
            some = np.asarray(values(quantity.name, value), np.float64)
            counts = np.bincount(np.searchsorted(quantity.edges, some), minlength=len(quantity.edges) + 1)
            found[quantity.name, value] = Distribution(counts, float(some.sum()), of, quantity.edges)
    return Taken(found)


def single_hits(model: Path, events: int, scored: int = 0) -> Taken:
    """The reference of events with a hit (1, 2, ... GeV) and a photon each, whose score is its energy (`sum_model`).

    Parameters
    ----------
    scored : int
        So many of the events have a score; 0: all.
    """
    config = Config.model_validate({"taggers": {"eg": {"model": model}}})
    n = 100 * events
    given = {quality.OCCUPANCY: np.full(n, 1 / N_PIXELS), quality.OBJECTS: np.ones(n)}
    given[quality.ENERGY] = np.tile(np.arange(1, events + 1), 100)
    given[quality.SCORE] = np.tile(np.arange(1, (scored or events) + 1), 100)
    return reference_of(config, lambda name, _: given[name])


# ---- real processes


def wait_until(check: Callable[[], Any], what: str, seconds: float = 120.0) -> Any:
    """Poll until `check` gives something true."""
    deadline = time.monotonic() + seconds
    while not (found := check()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.05)
    return found


def assert_end(family: list[psutil.Process], seconds: float = 20.0) -> None:
    """They end soon. Whoever takes them in may wait for them late or never: one that is a zombie has ended."""
    for one in family:
        wait_until(lambda one=one: has_ended(one), f"the end of {one}", seconds)


def has_ended(process: psutil.Process) -> bool:
    """Whether it has let go of what it had."""
    try:
        return not process.is_running() or process.status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def command_of(process: psutil.Process) -> list[str]:
    """The words of its command; a title that is shorter than what was there before is one word, and empty ones."""
    return " ".join(process.cmdline()).split()


def call(*args: object) -> tuple[int, str, str]:
    """The command line inside this process, for what starts no others: exit code, output, error output."""
    root, old = logging.getLogger(), sys.argv
    handlers, level = root.handlers[:], root.level
    commands, groups = cli.app.registered_commands, cli.app.registered_groups
    cli.app.registered_commands, cli.app.registered_groups = commands[:], groups[:]  # else there are more each time
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    sys.argv = ["streamer", *map(str, args)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            cli.main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = old
        cli.app.registered_commands, cli.app.registered_groups = commands, groups
        root.handlers[:] = handlers
        root.setLevel(level)
    return code, out.getvalue(), err.getvalue()


def free_ports(n: int) -> int:
    """The first of `n` neighbouring ports that are free."""
    import socket

    for first in range(21000 + os.getpid() % 1000 * 8, 60000, n):
        with contextlib.ExitStack() as stack:
            try:
                for port in range(first, first + n):
                    stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


class Process:
    """A `streamer` command in a process of its own; its output goes to files, so that it never waits for a reader.

    A `prefix` is a command that becomes it, such as `unshare -n`.
    """

    def __init__(self, folder: Path, runtime: Path, *args: object, prefix: Sequence[str] = ()) -> None:
        self.args = [str(arg) for arg in args]
        number = len(list(folder.glob("command-*.err")))
        self._out, self._err = folder / f"command-{number}.out", folder / f"command-{number}.err"
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(runtime), "COLUMNS": "200", "NO_COLOR": "1"}
        with self._out.open("wb") as out, self._err.open("wb") as err, open(os.devnull, "rb") as nothing:
            copy = None if prefix else copied.started(self.args, environment, [f.fileno() for f in (nothing, out, err)])
            self.popen = copy or subprocess.Popen(
                [*prefix, sys.executable, "-m", "streamer", *self.args],
                stdin=nothing,
                stdout=out,
                stderr=err,
                env=environment,
                start_new_session=True,
            )
        self._family: dict[int, psutil.Process] = {}

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    @property
    def complaints(self) -> list[str]:
        """The lines that tell the user what is wrong: `streamer: ...`."""
        return [line.removeprefix("streamer: ") for line in self.err.splitlines() if line.startswith("streamer: ")]

    def children(self) -> list[psutil.Process]:
        """All processes that this one was seen to have."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.popen.pid).children(recursive=True):
                self._family.setdefault(child.pid, child)
        return list(self._family.values())

    def stage(self, name: str) -> psutil.Process:
        """The process of a stage's replica, such as `framer-0`."""
        stage, _, replica = name.partition("-")

        def look() -> psutil.Process | None:
            for child in self.children():
                with contextlib.suppress(psutil.Error):
                    command = command_of(child)
                    if "stage" not in command:  # what rehearses a change, such as
                        continue
                    if stage in command and command[command.index("--replica") + 1] == replica:
                        return child
            return None

        found: psutil.Process = wait_until(look, f"the process {name}")
        return found

    def ports(self) -> dict[str, int]:
        """Where the stage processes serve their metrics."""
        told = "".join(re.findall(r"/metrics and /healthz on .*", self.err))
        return {name: int(port) for name, port in re.findall(r"(\w+-\d+) (\d+)", told)}

    def metrics(self, name: str) -> dict[str, float]:
        """The samples of one stage process, or nothing while it does not answer."""
        ports = self.ports()
        if name not in ports:
            return {}
        with contextlib.suppress(OSError, ValueError):
            return scrape(f"http://127.0.0.1:{ports[name]}/metrics")
        return {}

    def wait_for_events(self, n: int = 1) -> None:
        """Until the writer has had `n` events."""

        def enough() -> bool:
            assert self.popen.poll() is None, self.err
            return self.metrics("writer-0").get("streamer_events_total/ok", 0) >= n

        wait_until(enough, f"{n} events at the writer")

    def signal(self, number: signal.Signals) -> None:
        self.popen.send_signal(number)

    def wait(self, seconds: float = 180.0) -> int:
        """The exit code."""
        return self.popen.wait(seconds)

    def check(self, code: int = 0, seconds: float = 180.0) -> "Process":
        """Wait for the end and assert the exit code."""
        got = self.wait(seconds)
        assert got == code, f"exit code {got}, not {code}: {' '.join(self.args)}\n{self.out}\n{self.err}"
        return self

    def end(self) -> None:
        """Leave nothing behind."""
        family = self.children()
        if self.popen.poll() is None:
            self.popen.kill()
            self.popen.wait()
        for child in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()
        psutil.wait_procs(family, timeout=10)


class Processes:
    """Makes `Process`es with a runtime folder of their own; whatever is left at the end is killed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.runtime = Path(tempfile.mkdtemp(prefix="st-", dir="/tmp"))  # short, because socket paths must be
        self.made: list[Process] = []

    def __enter__(self) -> "Processes":
        return self

    def __call__(self, *args: object, prefix: Sequence[str] = ()) -> Process:
        self.made.append(Process(self.folder, self.runtime, *args, prefix=prefix))
        return self.made[-1]

    def run_dir(self) -> Path:
        """The folder of the one run that is going on."""
        (path,) = (self.runtime / "streamer").glob("run-*")
        return path

    def __exit__(self, *_: object) -> None:
        for process in self.made:
            process.end()
        shutil.rmtree(self.runtime)


def read_scores(path: Path) -> dict[str, list[Any]]:
    """Every column of a file of scores, as one entry (a number or a list) an event."""
    if path.suffix == ".parquet":
        import pyarrow.parquet

        found: dict[str, list[Any]] = pyarrow.parquet.read_table(path).to_pydict()
        return found
    with uproot.open(path) as file:
        arrays = file["Events"].arrays(how=dict)
    return {name: array.tolist() for name, array in arrays.items()}


def fed_and_done(table: str) -> tuple[int, int, int]:
    """fed, scored and errors of the table that a run prints."""
    match = re.search(r"events\s+([\d,]+) fed = ([\d,]+) scored \+ ([\d,]+) errors", table)
    assert match, f"no table in the output:\n{table}"
    fed, scored, errors = (int(text.replace(",", "")) for text in match.groups())
    return fed, scored, errors


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A disk of its own that is soon full; skips the test where nothing may be mounted."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if done.returncode:
        import pytest

        pytest.skip(f"a small disk cannot be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill_disk(path: Path) -> None:
    """Make a file so large that nothing is left on its disk."""
    with path.open("wb", buffering=0) as file:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    file.write(bytes(size))
