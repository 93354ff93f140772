"""One process of the pipeline: life cycle, signals, worker thread, links and metrics around one stage.

The asyncio loop only moves blocks and always answers; the stage works in a thread (its kernels release the GIL).
A process tells its life on standard output, one JSON object a line: `{"state": "ready", "metrics": "http://..."}`,
at the end `{"state": "stopped", "report": {...}}` or `{"state": "failed", "error": "..."}`. Its log goes to
standard error (`streamer.logs`).

The states are those of `streamer.lifecycle`.
"""

import asyncio
import contextlib
import contextvars
import ctypes
import gc
import hashlib
import json
import logging
import os
import secrets
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import psutil

from streamer import hop, logs
from streamer.blackbox import BlackBox
from streamer.block import SHED, Block
from streamer.changes import Changes
from streamer.commits import report_death
from streamer.config import MAX_REPLICAS, CoreConfig, changed
from streamer.deadline import taken
from streamer.errors import EXIT_FAILED, EXIT_OK, StreamerError, UsageError
from streamer.folders import make_private
from streamer.ledger import Stripes
from streamer.lifecycle import LifeCycle
from streamer.metrics import OUTCOMES, StageMetrics, serve
from streamer.orphan import die_with_parent
from streamer.pipeline import Pipeline
from streamer.roles import play
from streamer.sockets import new_context
from streamer.stage import Unit
from streamer.tracing import Tracer, tracer_of

log = logging.getLogger(__name__)

MAX_SOCKET_PATH = 107
"""Bytes that Linux takes as the path of a socket."""

TICK_S = 1.0
SWITCH_S = 0.5e-3
"""A thread that has waited so long for Python has its turn: blocks do not wait for the whole of a metrics page."""

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """What the processes of one run share: a private folder for sockets, and a secret that strangers do not know."""

    dir: Path
    token: str

    @property
    def id(self) -> str:
        """A name that may be told, unlike the token."""
        return hashlib.sha256(self.token.encode()).hexdigest()[:16]

    @classmethod
    def open(cls, path: Path) -> "Run":
        """Join the run of a folder, or begin one: whoever comes first draws the token.

        Raises
        ------
        UsageError
            The folder cannot be used.
        """
        try:
            make_private(path)
            draft = path / f".token-{os.getpid()}"
            draft.touch(mode=0o600)
            draft.write_text(secrets.token_hex(16))
            with contextlib.suppress(FileExistsError):
                os.link(draft, path / "token")
            draft.unlink()
            return cls(path, (path / "token").read_text())
        except OSError as error:
            raise UsageError(
                f"{path}: no folder for the run's sockets ({error.strerror}); set XDG_RUNTIME_DIR to a folder of yours"
            ) from None


def run_stage(
    pipeline: Pipeline,
    name: str,
    replica: int,
    config: CoreConfig,
    run: Run,
    *,
    supervised: bool = False,
    predecessor: str = "died",
    slot: int | None = None,
) -> int:
    """Run one process of the pipeline to its end; returns the exit code.

    Parameters
    ----------
    predecessor : str
        What became of the process in whose place this one is started.
    slot : int, optional
        Its metrics are at so many ports behind the first; by default its place in the chain.
    """
    logs.set_up_stage(config.log, run.id, name, replica, supervised=supervised)
    sys.setswitchinterval(SWITCH_S)
    keep_freed_memory()
    fill_numpy_cache()
    process = Process(pipeline, name, replica, config, run, supervised=supervised, predecessor=predecessor, slot=slot)
    return asyncio.run(process.main())


class Process:
    """One replica of one stage, alive.

    Attributes
    ----------
    stopping : asyncio.Event
        Set by SIGTERM or SIGINT: feed or take nothing new, finish what is here.
    facts : dict
        What a role adds to the final report.
    box : BlackBox
        Told what is being worked on; there before the role is played.
    tracer : Tracer or None
        Where some events are traced.
    reading_since : float or None
        When a source began what it reads now (`time.monotonic`).
    worked_in_loop_s : float
        Processor time of the stage's own code in the thread of the loop [s].
    """

    def __init__(
        self,
        pipeline: Pipeline,
        name: str,
        replica: int,
        config: CoreConfig,
        run: Run,
        *,
        supervised: bool,
        predecessor: str = "died",
        slot: int | None = None,
    ) -> None:
        self.pipeline, self.name, self.replica, self.config, self.run = pipeline, name, replica, config, run
        self.place = pipeline.place(name)
        self._our_stamps = "arrived", name, taken(name)
        self.life = LifeCycle()
        self.stopping = asyncio.Event()
        self.facts: dict[str, Any] = {}
        self._supervised, self._predecessor, self._slot = supervised, predecessor, slot
        self._half_line = b""
        self._stdout = sys.stdout  # a stage that loads something may turn the name elsewhere meanwhile
        self._changes: Changes | None = None
        self._over: set[str] = set()
        self._inlet: hop.Inlet | None = None
        self._crashed: asyncio.Future[None] | None = None
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="worker")
        self._bytes_in = self._bytes_out = 0
        self._cpu_at_start = self._moving_at_start = 0.0
        self.worked_in_loop_s = 0.0
        self.reading_since: float | None = None
        self._ticked = time.monotonic()
        self._outlet: hop.Outlet | None = None
        self.tracer: Tracer | None = None

    # ---- life cycle

    @property
    def state(self) -> str:
        return self.life.state

    async def main(self) -> int:
        loop = asyncio.get_running_loop()
        self._crashed = loop.create_future()
        loop.set_exception_handler(self._unforeseen)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stopping.set)
        if self._supervised:
            die_with_parent()
            loop.add_reader(sys.stdin.fileno(), self._hear_supervisor)
        server = unit = context = None
        deaths: list[asyncio.Task[None]] = []
        ticking = None
        try:
            unit = self.pipeline.chain[self.place].make(self.config)
            unit.mark, unit.run_id = self.place + 1, self.run.id
            unit.replica, unit.n_replicas = self.replica, self.config.n_replicas(self.name)
            self._changes = Changes(unit)
            self.metrics = StageMetrics(self.name, self.replica, unit.tallies)
            unit.registry = self.metrics.registry
            self.box = BlackBox(self.run.dir / f"{self.name}-{self.replica}.box")
            self.life.publish(self.metrics.registry, self.name)
            self.tracer = tracer_of(self.config, self.run, self.name, self.replica, unit.mark, self.metrics.registry)
            self.metrics.work_age.set_function(self._work_age)
            ticking = self.background(self._tick())
            host, port = self.config.metrics.host, self.config.metrics.base_port
            if port:
                mine = self.pipeline.replicas(self.config).index((self.name, self.replica))
                port += mine if self._slot is None else self._slot
            server, port = serve(self.metrics.registry, host, port, lambda: self.life.state)
            self.tell("starting", metrics=f"http://{host}:{port}/metrics")
            context = self.context = new_context()
            deaths = self._report_death()
            await self.in_worker(unit.setup)
            gc.freeze()  # what is there now stays: no collection looks at it in the middle of the stream
            await self._until_crash(play(self, unit))
            if self.tracer is not None:
                await asyncio.to_thread(self.tracer.close)
            self.tell("stopped", report=self._report(unit))
            return EXIT_OK
        except StreamerError as error:
            return self._fail(str(error), error.exit_code, again=error.again)
        except MemoryError:
            line = "out of memory; lower feed.max_in_flight or feed.block_events"
            return self._fail(line, EXIT_FAILED)
        except OSError as error:
            return self._fail(f"{error.filename or 'system'}: {error.strerror or error}", EXIT_FAILED)
        except Exception as error:
            log.debug("traceback", exc_info=True)
            return self._fail(f"{type(error).__name__}: {error}", EXIT_FAILED)
        finally:
            for report in deaths:
                report.cancel()
            if ticking is not None:
                ticking.cancel()
            if unit is not None:
                unit.close()
            if server is not None:
                server.shutdown()
                server.server_close()
            if context is not None:  # the last words go out; what a failure left open must not keep us here
                context.destroy(linger=0)
            self._worker.shutdown(wait=False)

    async def _tick(self) -> None:
        """Show that the loop goes round, and tell which lines of the log were left out."""
        while True:
            self._ticked = time.monotonic()
            logs.tidy()
            await asyncio.sleep(TICK_S)

    def _work_age(self) -> float:
        now = time.monotonic()
        since = [at for at in (self.box.since, self.reading_since) if at is not None]
        late = now - self._ticked - TICK_S
        return max(0.0, late if late > TICK_S else 0.0, *(now - at for at in since))

    def _report_death(self) -> "list[asyncio.Task[None]]":
        """Tell the sources if our predecessor has died at work."""
        death = self.box.before
        if death is None:
            return []
        sources = range(self.config.n_replicas(self.pipeline.names[0]))
        me = f"{self.name}-{self.replica}"
        to = self.context, self.run.token, self.config.hop
        return [
            self.background(report_death(to[0], self.commit_address(k), *to[1:], me, self._predecessor, death))
            for k in sources
        ]

    def tell(self, state: str, **facts: Any) -> None:
        """Enter a state and say so on standard output, once."""
        if state == self.life.state and not facts:
            return
        if state != self.life.state and state == "running":
            self._cpu_at_start, self._moving_at_start = _cpu_seconds(), _moving_cpu_seconds()
        self.life.enter(state)
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"state": state, "pid": os.getpid(), **facts}), flush=True, file=self._stdout)

    def _fail(self, line: str, code: int, *, again: bool = True) -> int:
        self.tell("failed", error=line, exit=code, again=again)
        if not self._supervised:
            for part in line.splitlines():
                log.error("%s", part)
        return code

    def _hear_supervisor(self) -> None:
        """Standard input: a JSON object a line. `{"over": ["reader-0", ...]}` names who has ended the stream, and
        `{"replicas": {"tagger": 3}}` tells that there are more or fewer now. `{"prepare": 7, "settings": {...},
        "rehearsed": {...}}` asks to get ready for a change, `{"change": 7, "at_lumisection": false}` to make it,
        `{"drop": 7}` to forget it.

        At its end our supervisor has died: leave at once. What is on disk is safe, and the run can be resumed.
        """
        said = os.read(sys.stdin.fileno(), 1 << 16)
        if not said:
            os._exit(EXIT_FAILED)
        *lines, self._half_line = (self._half_line + said).split(b"\n")
        for line in lines:
            news = json.loads(line)
            self._over.update(news.get("over", ()))
            if "replicas" in news:
                self.config = self.config.model_copy(update={"replicas": news["replicas"]})
            if "prepare" in news:
                self.background(self._prepare(news["prepare"], news["settings"], news["rehearsed"]))
            if self._changes is not None and "change" in news:
                self._changes.make(news["change"], at_lumisection=news["at_lumisection"])
            if self._changes is not None and "drop" in news:
                self._changes.drop(news["drop"])
        if self._outlet is not None:
            self._outlet.n_peers = self.config.n_replicas(self.pipeline.names[self.place + 1])
        if self._inlet is not None:
            self._tell_over(self._inlet)
            self.background(self._inlet.follow(self._upstream()))

    async def _prepare(self, number: int, settings: dict[str, Any], rehearsed: dict[str, Any]) -> None:
        """Get ready for a change, and say whether we are."""
        assert self._changes is not None
        now = self._changes.coming or self.config
        try:
            refused = await self._changes.prepare(number, now, changed(now, settings), rehearsed)
        except UsageError as error:
            refused = str(error)
        self.tell(self.state, prepared=number, refused=refused)

    def _upstream(self) -> list[str]:
        """Where the replicas of the stage before listen."""
        before = self.pipeline.names[self.place - 1]
        return [self._address(before, k) for k in range(self.config.n_replicas(before))]

    def _tell_over(self, inlet: hop.Inlet) -> None:
        for place, name in enumerate(self.replicas_of(self.pipeline.names[self.place - 1])):
            if name in self._over:
                inlet.outlet_is_over(place)

    async def _until_crash(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work`, unless something in the background reports that it cannot go on."""
        assert self._crashed is not None
        task = asyncio.ensure_future(work)
        await asyncio.wait([task, self._crashed], return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        if self._crashed.done():
            self._crashed.result()
        await task

    def crash(self, error: BaseException) -> None:
        """This process cannot go on. Callable from any thread."""
        crashed = self._crashed
        assert crashed is not None
        crashed.get_loop().call_soon_threadsafe(lambda: None if crashed.done() else crashed.set_exception(error))

    def _unforeseen(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What nobody caught, in a link's task or a callback: better to fail than to hang."""
        self.crash(context.get("exception") or RuntimeError(context["message"]))

    def background(self, work: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """A task whose failure ends the process."""

        def check(task: "asyncio.Task[None]") -> None:
            if not task.cancelled() and (error := task.exception()) is not None:
                self.crash(error)

        task = asyncio.ensure_future(work)
        task.add_done_callback(check)
        return task

    async def in_worker(self, function: Callable[..., T], *args: Any) -> T:
        """Call `function` in the worker thread, in our context."""
        run = contextvars.copy_context().run  # the log there names the same block
        return await asyncio.get_running_loop().run_in_executor(self._worker, run, partial(function, *args))

    async def or_stopped(self, work: Awaitable[Any]) -> None:
        """Await `work`, but no longer than until we are told to stop."""
        tasks = [asyncio.ensure_future(work), asyncio.ensure_future(self.stopping.wait())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()

    # ---- links

    def _address(self, name: str, replica: int) -> str:
        return self._socket(self.pipeline.place(name) * MAX_REPLICAS + replica, f"{name}-{replica}")

    def commit_address(self, source: int) -> str:
        """Where this replica of the first stage listens for commits."""
        return self._socket(len(self.pipeline.names) * MAX_REPLICAS + source, f"commit-{source}")

    def replicas_of(self, stage: str) -> list[str]:
        """The names of all processes of a stage, such as `writer-0`."""
        return [f"{stage}-{k}" for k in range(self.config.n_replicas(stage))]

    @property
    def stripes(self) -> Stripes:
        """Which replica of the last stage keeps which events."""
        return Stripes(self.config.n_replicas(self.pipeline.names[-1]), self.config.feed.block_events)

    def _socket(self, place: int, name: str) -> str:
        at = hop.address(self.config.hop, str(self.run.dir), place, name)
        if at.startswith("ipc:") and len(os.fsencode(at)) - len("ipc://") > MAX_SOCKET_PATH:
            raise UsageError(
                f"{self.run.dir}: too long a path for sockets; set XDG_RUNTIME_DIR (or --run-dir) to a short one, "
                "or hop.transport = 'tcp'"
            )
        return at

    def _sink_of(self, block: Block) -> str:
        return f"{self.pipeline.names[-1]}-{self.stripes.owner(block.id)}"

    def refused(self, reason: str) -> None:
        """Book a message that was refused."""
        self.metrics.refused[reason].inc()
        log.warning("a message was refused: %s", reason)

    @contextlib.asynccontextmanager
    async def outlet(self, unit: Unit) -> AsyncIterator[hop.Outlet]:
        """The way to the next stage. It is bound when this is entered, which makes the process ready."""
        at = self._address(self.name, self.replica)
        n_peers = self.config.n_replicas(self.pipeline.names[self.place + 1])
        owner = self._sink_of if self.place + 2 == len(self.pipeline.names) else None
        to = self.run.token, self.config.hop, n_peers
        outlet = hop.Outlet(self.context, at, *to, self.refused, owner, unit.outputs)
        self.metrics.credits.set_function(outlet.credits)
        self._outlet = outlet
        try:
            self.tell("ready")
            yield outlet
        finally:
            self._outlet = None
            await outlet.close()

    @contextlib.asynccontextmanager
    async def inlet(self, unit: Unit) -> AsyncIterator[hop.Inlet]:
        """The way from the stage before. Events begin to come."""
        addresses = self._upstream()
        budget = self.config.hop.credit_events
        inlet = hop.Inlet(
            self.context,
            addresses,
            f"{self.name}-{self.replica}",
            self.run.token,
            self.config.hop,
            unit.inputs,
            self.refused,
        )
        self.metrics.limits(inlet_events=budget * len(addresses))
        stopper = asyncio.create_task(self._leave_when_stopped(inlet))
        self._inlet = inlet
        self._tell_over(inlet)
        self.tell("running")
        try:
            yield inlet
        finally:
            self._inlet = None
            self.facts["complete"] = inlet.complete
            stopper.cancel()
            await inlet.close()

    async def _leave_when_stopped(self, inlet: hop.Inlet) -> None:
        await self.stopping.wait()
        self.tell("draining")
        await inlet.leave()

    async def settled(self, block: Block) -> None:
        """Wait where a change that is being prepared may decide what becomes of a block."""
        if self._changes is not None:
            await self._changes.settled(block)

    def change_before(self, block: Block) -> None:
        """Make the changes that are to be made before this block."""
        if self._changes is not None and (config := self._changes.before(block)) is not None:
            self.config = config.model_copy(update={"replicas": self.config.replicas})
            self.tell(self.state, changed=self._changes.last_made)

    def book_arrival(self, block: Block, inlet: hop.Inlet, at: int) -> None:
        """Count a block that came in and was taken up at that time [Unix ns]; it may have left meanwhile."""
        self.metrics.bytes_in.inc(inlet.bytes_received - self._bytes_in)
        self._bytes_in = inlet.bytes_received
        sent = max([ns for stage, ns in block.stamps.items() if stage not in self._our_stamps], default=0)
        self.metrics.queue_wait.observe(max(0, at - sent) * 1e-9)

    def book_done(self, block: Block, unit: Unit, counts: tuple[int, int] | None = None) -> None:
        """Count a block that is done here, and `counts` of the events that failed and that were shed (by default those
        that this stage marked)."""
        if counts is None:
            error = block.columns["error"].tobytes()  # a byte an event; NumPy takes longer to begin
            counts = error.count(unit.mark), error.count(SHED + unit.mark)
        for outcome, n in zip(OUTCOMES, (block.n_events - sum(counts), *counts), strict=True):
            if n:
                self.metrics.events[outcome].inc(n)
        self.metrics.blocks.inc()
        self.metrics.count(unit.take_tally())

    async def send(self, outlet: hop.Outlet, block: Block) -> None:
        """Stamp a block and send it on."""
        block.stamps.pop("arrived", None)
        block.stamps[self.name] = time.time_ns()
        await outlet.send(block)
        self.metrics.bytes_out.inc(outlet.bytes_sent - self._bytes_out)
        self._bytes_out = outlet.bytes_sent

    # ---- the end

    def _report(self, unit: Unit) -> dict[str, Any]:
        """What the final table is made of: the metrics, read once more, and what the role and the stage add."""
        values: dict[str, float] = {}
        for family in self.metrics.registry.collect():
            for sample in family.samples:
                if sample.name.startswith("streamer_"):
                    labels = ",".join(v for k, v in sorted(sample.labels.items()) if k != "stage")
                    values[f"{sample.name}/{labels}" if labels else sample.name] = sample.value
        return {
            "metrics": values,
            "cpu_s": _cpu_seconds() - self._cpu_at_start,
            "moving_cpu_s": _moving_cpu_seconds() - self._moving_at_start - self.worked_in_loop_s,
            "rss_bytes": psutil.Process().memory_info().rss,
            **self.facts,
            **unit.about(),
        }


def keep_freed_memory() -> None:
    """Let glibc's malloc keep what is freed. Every block needs a megabyte or two again, and new pages cost more
    time (a third of the framer's) than the work on them."""
    m_trim_threshold, m_mmap_threshold, size = -1, -3, 256 << 20
    with contextlib.suppress(OSError, AttributeError):  # another C library: nothing to tell it
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(m_trim_threshold, size)
        libc.mallopt(m_mmap_threshold, size)


def fill_numpy_cache() -> None:
    """NumPy keeps some freed buffers (7) of each size below 1 kB. Seldom sizes fill this in hours, which looks like a
    leak of some MB an hour in a process that does nothing wrong; so it is filled at once (3.7 MB, some ms)."""
    for size in range(1024):
        kept = [np.empty(size, np.uint8) for _ in range(8)]
        del kept


def _cpu_seconds() -> float:
    usage = psutil.Process().cpu_times()
    return usage.user + usage.system


def _moving_cpu_seconds() -> float:
    """Processor time of what moves blocks: the loop, which is this thread, and ZeroMQ's threads (only Linux tells)."""
    seconds = time.thread_time()
    for path in Path("/proc/self/task").glob("*/stat"):
        with contextlib.suppress(OSError):  # the thread has just ended
            name, _, rest = path.read_text().partition("(")[2].rpartition(")")
            if name.startswith("ZMQ"):
                user, system = rest.split()[11:13]
                seconds += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return seconds
