"""Starts one process per replica, starts again what dies, and lets the stream end in order.

The end comes from the front: the reader stops feeding (end of input, or SIGTERM), waits until everything it fed is
on disk, and says so down the chain; each process leaves after the one before it. So a stop is one signal to the
reader. A process that dies is started again, after a wait that grows; the stream goes on meanwhile, and nothing is lost
(`streamer.hop`). One that cannot come back stops the run, and the reason is told.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from streamer import control, logs
from streamer.child import SCRAPE_S, WANTED, Child, died, scrape
from streamer.config import MAX_REPLICAS, CoreConfig, changed, to_toml
from streamer.errors import EXIT_FAILED, EXIT_OK, EXIT_USAGE, StreamerError, UsageError, one_line
from streamer.forkserver import ForkServer, Running
from streamer.monitor.shown import Shown, targets
from streamer.news import read
from streamer.notify import Notifier, Pulse
from streamer.pipeline import Pipeline, resolve
from streamer.reference import Taken
from streamer.rehearsing import Rehearsal
from streamer.run_folder import run_folder
from streamer.runner import Run
from streamer.tracing import require

if TYPE_CHECKING:
    from streamer.monitor.drawing import Drawer
    from streamer.monitor.server import Page

log = logging.getLogger(__name__)

POLL_S = 1.0
"""So often each process is looked at."""
QUALITY_POLLS = 2
"""Of so many looks at a process, one takes in the distributions: their many buckets cost more than all the rest."""
STOP_GRACE_S = 5.0
CATCH_UP_S = 0.2
"""What a rehearsal, or a replica that gets ready, took from the stream is made up for in about so long."""
MAX_LINE = 1 << 20


@dataclass(frozen=True)
class Progress:
    """What the live line shows."""

    state: str
    fed: int
    done: int
    errors: int
    rate: float
    latency_s: float
    batch: float
    shed: int = 0


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `reports` is per process, in chain order; `history` has looks of the whole run
    (`streamer.monitor.watch`); `quality` is what its data looked like; `stopped` says that somebody ended it, and not
    the feed."""

    exit_code: int
    error: str
    reports: dict[str, dict[str, Any]]
    history: list[list[float | None]]
    quality: Taken
    stopped: bool = False


class Supervisor:
    """Runs a pipeline on this machine.

    Parameters
    ----------
    on_progress : callable, optional
        Told once a second how the stream does.
    """

    def __init__(
        self, pipeline: Pipeline, config: CoreConfig, on_progress: Callable[[Progress], None] | None = None
    ) -> None:
        self.pipeline, self.config, self.on_progress = pipeline, config.for_this_machine(pipeline.names), on_progress
        self.children: list[Child] = []
        self._keepers: set[asyncio.Task[None]] = set()
        self._retired: list[Child] = []
        self._failure: Child | None = None
        self._unfinished = False
        self._signals = 0
        self._asked: dict[str, asyncio.Future[str]] = {}  # by replica: whether it is ready for a change
        self._n_changes = 0
        self._changing: dict[str, tuple[int, Running]] = {}  # by replica: what it is to make
        self._last = (time.monotonic(), 0)
        self._seen: Progress | None = None
        self._dir = Path()
        self._shown = Shown(pipeline, config)
        self._n_polls = 0
        self._manager = Notifier.of_environment()
        patience = config.supervisor.stall_timeout + config.feed.redeliver_after + config.disk_patience
        self._pulse = Pulse(patience)
        require(config)
        modules = [*pipeline.modules, *(["streamer.spans"] if config.trace.share else [])]
        self._forks = ForkServer(pipeline.program, modules, MAX_LINE)
        self._rehearsal = Rehearsal(self._forks, config.supervisor.start_timeout)
        self.page = self._page()

    async def run(self) -> Outcome:
        """Run until the stream is over; SIGINT and SIGTERM drain it, a second one breaks it off."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._signalled)
        async with contextlib.AsyncExitStack() as stack:
            await self._forks.open()
            stack.push_async_callback(self._forks.close)
            self._dir = stack.enter_context(run_folder())
            self._save_config(self._dir)
            logs.identify(run=Run.open(self._dir).id, stage=logs.SUPERVISOR, replica=0)
            await stack.enter_async_context(control.listening(self._dir, self._answer))
            stack.enter_context(self._shown.hearing())
            if self.page is not None:
                await stack.enter_async_context(self.page.serving())
                log.info("live page: %s", self.page.address)
            try:
                for stage, replica in self.pipeline.replicas(self.config):
                    await self._add(stage, replica)
                    if self._broken_off:
                        break
                poller = asyncio.create_task(self._poll())
                while self._keepers:
                    done, _ = await asyncio.wait(self._keepers, return_when=asyncio.FIRST_COMPLETED)
                    self._keepers -= done  # others may have come meanwhile
                    for keeper in done:
                        keeper.result()
                if self._unfinished and not self._broken_off:
                    await asyncio.to_thread(resolve(self.pipeline.finish), self.config)
                poller.cancel()
            finally:
                self._rehearsal.break_off()
                for child in self.children:
                    self._signal(child, signal.SIGKILL)
                for number in (signal.SIGINT, signal.SIGTERM):
                    loop.remove_signal_handler(number)
        outcome = self._outcome()
        ready = {"READY": "1"} if outcome.exit_code == EXIT_OK else {}  # also what was over at once had begun in order
        self._manager.tell(**ready, WATCHDOG_USEC="0")  # what is still made of the results has no pulse
        return outcome

    def _save_config(self, run_dir: Path) -> None:
        """What processes that are started from now on find."""
        part = run_dir / "config.part"
        part.write_text(to_toml(self.config), encoding="utf-8")
        part.replace(run_dir / "config.toml")

    async def _add(self, stage: str, replica: int) -> None:
        """Start a process that was not there before."""
        slot = len(self.children) + len(self._retired)
        child = Child(stage, replica, await self._start(stage, replica, slot), slot=slot)
        at = max((i for i, c in enumerate(self.children) if c.stage == stage), default=len(self.children) - 1)
        self.children.insert(at + 1, child)
        self._end_if_too_late(child)
        self._keepers.add(asyncio.create_task(self._keep(child)))

    async def _start(self, stage: str, replica: int, slot: int, predecessor: str = "") -> Running:
        arguments = [
            "stage",
            stage,
            "--replica",
            str(replica),
            "--config",
            str(self._dir / "config.toml"),
            "--run-dir",
            str(self._dir),
            "--slot",
            str(slot),
            *(("--predecessor", predecessor) if predecessor else ()),
            "--supervised",
        ]
        return await self._forks.start(arguments)

    async def _keep(self, child: Child) -> None:
        """Watch a process to its end, and those that are started in its place."""
        while True:
            await asyncio.gather(self._hear(child), self._pass_log(child))
            code = await child.process.wait()
            child.exit_code, child.ended_at = code, time.monotonic()
            how = child.error or died(code)
            self._said_ready(child, 0, f"{child.name} {how} while it got ready for that; everything stays as it was")
            if self._broken_off:
                return
            if code == EXIT_OK and child.report.get("complete"):
                self._tell_over(self.children)
                return
            if child.retiring:
                self._retire(child)
                return
            child.error = child.error or died(code)
            if self._over:  # everything is on disk; what is left is to close the files
                log.warning("%s, at the end of the stream: %s", child.name, child.error)
                self._unfinished = True
                await self._break_off()
                return
            wait = self._backoff(child) if child.again and code != EXIT_USAGE else None
            if wait is None:
                self._failure = child
                await self._break_off()
                return
            log.warning("%s %s; it is started again in %.1f s", child.name, child.error, wait)
            await asyncio.sleep(wait)
            if self._broken_off:
                return
            if child.retiring:
                self._retire(child)
                return
            how = child.error
            child.state, child.metrics_url, child.error, child.report = "starting", "", "", {}
            child.exit_code = child.ended_at = None
            child.since = child.looked = time.monotonic()
            child.silent_s, child.restarts, child.values = 0.0, child.restarts + 1, {}
            child.process = await self._start(child.stage, child.replica, child.slot, how)
            self._end_if_too_late(child)
            self._tell_over([child])

    def _end_if_too_late(self, child: Child) -> None:
        """Everybody may have been ended while this one was being started."""
        if self._broken_off:
            self._signal(child, signal.SIGKILL)

    def _tell_over(self, children: list[Child]) -> None:
        """Tell who has ended the stream: a process that was started again may have missed it."""
        over = [child.name for child in self.children if child.report.get("complete")]
        if over:
            self._tell(children, {"over": over})

    def _tell(self, children: list[Child], news: dict[str, Any]) -> None:
        for child in children:
            if child.exit_code is None and child.process.stdin is not None:
                with contextlib.suppress(ConnectionError):  # it is just leaving
                    child.process.stdin.write(json.dumps(news).encode() + b"\n")

    # ---- what people ask for

    async def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Do what was asked for at the control socket."""
        what = request.get("do")
        if what == "status":
            return self.status()
        if what == "watch":
            return {**self._everything(), **(self._shown.history() if request.get("history") is True else {})}
        if what == "quality":
            return self._shown.drift.whole().plain()
        if what == "stop":
            self.stop(now=request.get("now") is True)
            return {}
        if what == "scale":
            await self.scale(str(request.get("stage")), request.get("replicas"))
            return {}
        if what == "change":
            settings = request.get("settings")
            if not isinstance(settings, dict) or not settings:
                raise UsageError("a change needs settings")
            await self.change(str(request.get("stage")), settings, at_lumisection=request.get("at_lumisection") is True)
            return {}
        raise UsageError(f"a run cannot {what!r}; it knows status, watch, quality, stop, scale and change")

    def status(self) -> dict[str, Any]:
        """How the run does, for people: totals, and a row for each process."""
        output = self.config.output
        progress = self._seen or self._progress()
        return {
            "pid": os.getpid(),
            "output": str(output) if output else "",
            "state": "stopping" if self._signals else progress.state,
            "fed": progress.fed,
            "done": progress.done,
            "errors": progress.errors,
            "shed": progress.shed,
            "rate": progress.rate,
            "processes": [child.status() for child in self.children],
        }

    def stop(self, *, now: bool) -> None:
        """Drain the stream, or break it off."""
        self._signalled()
        if now and self._signals < 2:
            self._signalled()

    async def scale(self, stage: str, n: Any) -> None:
        """Have `n` replicas of a stage in the middle.

        Raises
        ------
        UsageError
            It cannot be scaled.
        """
        place = self.pipeline.place(stage)
        if place in (0, len(self.pipeline.names) - 1):
            raise UsageError(
                f"{stage}s cannot be scaled while a run goes on: they share the events among them; stop it, and "
                f"begin another with --replicas {stage}=N"
            )
        if type(n) is not int or not 1 <= n <= MAX_REPLICAS:
            raise UsageError(f"{stage} = {n}: 1 to {MAX_REPLICAS} replicas are possible")
        if self._signals or self._failure is not None or self._over:
            raise UsageError("the run is stopping")
        if self._asked or any(child.retiring for child in self.children):
            raise UsageError("a replica is just leaving or changing; try again in a moment")
        have = self.config.n_replicas(stage)
        if n > have:
            self._set_replicas(stage, n)
            for replica in range(have, n):
                await self._add(stage, replica)
        for child in [child for child in self.children if child.stage == stage and child.replica >= n]:
            child.retiring = True
            self._signal(child, signal.SIGTERM)
        log.warning("%s: %d replicas instead of %d", stage, n, have)

    async def change(self, stage: str, settings: dict[str, Any], *, at_lumisection: bool = False) -> None:
        """Let a stage go on with other settings, all its replicas or none.

        Raises
        ------
        UsageError
            They are wrong, or a replica cannot change them; everything stays as it is.
        StreamerError
            They cannot be kept, as where a disk is full; everything stays as it is.
        """
        rehearse = self.pipeline.chain[self.pipeline.place(stage)].rehearse
        config, children = changed(self.config, settings), [c for c in self.children if c.stage == stage]
        if self._signals or self._failure is not None or self._over:
            raise UsageError("the run is stopping")
        for child in children:
            if child.state != "running" or child.exit_code is not None or child.retiring:
                raise UsageError(f"{child.name} is not running now; try again in a moment")
        if self._asked:
            raise UsageError("another change is just being prepared; try again in a moment")
        asked, before = {child.name: child.process for child in children}, self.config
        self._n_changes += 1
        self._asked = {child.name: asyncio.get_running_loop().create_future() for child in children}
        try:
            rehearsed = await self._rehearsal.of(stage, settings, self._dir) if rehearse else {}
            if refused := await self._prepared(children, settings, rehearsed) or await self._keep_change(config):
                raise UsageError(refused[0])
            quantities = await asyncio.to_thread(self.pipeline.quantities, config)
            for child in children:  # from here on, none can be started again before all is told
                if child.process is not asked[child.name] or child.exit_code is not None:
                    raise UsageError(f"{child.name} was started again meanwhile; everything stays as it was, try again")
            self.config = config.model_copy(update={"replicas": self.config.replicas})
            self._save_config(self._dir)
        except BaseException as error:  # replicas that have promised wait for a word
            self._tell(children, {"drop": self._n_changes})
            self.config = before.model_copy(update={"replicas": self.config.replicas})
            for why in await self._keep_change(self.config):
                log.warning("%s: what was refused is still kept in the output: %s", stage, why)
            if isinstance(error, StreamerError) or not isinstance(error, Exception):
                raise
            log.debug("traceback", exc_info=True)
            raise StreamerError(f"{stage}: not changed, everything stays as it was ({one_line(error)})") from error
        else:
            self._tell(children, {"change": self._n_changes, "at_lumisection": at_lumisection})
            if self._shown.drift.change(quantities):
                self._changing |= {child.name: (self._n_changes, child.process) for child in children}
        finally:
            self._asked = {}
        told = ", ".join(f"{key} = {value}" for key, value in settings.items())
        log.warning("%s: %s%s", stage, told, ", from the next lumisection on" if at_lumisection else "")

    async def _prepared(self, children: list[Child], settings: dict[str, Any], rehearsed: dict[str, Any]) -> list[str]:
        """Let replicas get ready for a change; why one cannot.

        One after the other: what that costs is taken from the stream, and the other ones go on with it meanwhile. Where
        it costs so much that it was rehearsed, the stream catches up before each.
        """
        patience = self.config.supervisor.start_timeout
        for child in children:
            if rehearsed:
                await asyncio.sleep(CATCH_UP_S)
            self._tell([child], {"prepare": self._n_changes, "settings": settings, "rehearsed": rehearsed})
            try:
                async with asyncio.timeout(patience):
                    refused = await self._asked[child.name]
            except TimeoutError:
                refused = f"{child.name} was not ready for it after {patience:g} s"
            if refused:
                return [refused]
        return []

    async def _keep_change(self, config: CoreConfig) -> list[str]:
        """Keep what a run that goes on must know of a configuration; or why it cannot be kept."""
        try:
            if self.pipeline.changed:
                await asyncio.to_thread(resolve(self.pipeline.changed), config)
        except StreamerError as error:
            return [str(error)]
        except Exception as error:
            return [one_line(error)]
        return []

    def _see_changed(self) -> None:
        """Judge what a change brings once all replicas have made it; one that was started again has begun with it."""
        if not self._changing:
            return
        alive = {child.name: child for child in self.children if child.exit_code is None}
        self._changing = {
            name: (number, process)
            for name, (number, process) in self._changing.items()
            if name in alive and alive[name].process is process and alive[name].changed < number
        }
        if not self._changing:
            self._shown.drift.changed()

    def _said_ready(self, child: Child, number: int, refused: str) -> None:
        """A replica is ready for a change, or is not and never will be."""
        answer = self._asked.get(child.name)
        if answer is not None and number in (self._n_changes, 0) and not answer.done():
            answer.set_result(refused)

    def _retire(self, child: Child) -> None:
        """A replica has left for good; the last of those that were to leave makes it known."""
        self._shown.leaves(child)
        self.children.remove(child)
        self._retired.append(child)
        if not any(other.retiring for other in self.children):
            self._set_replicas(child.stage, sum(other.stage == child.stage for other in self.children))

    def _set_replicas(self, stage: str, n: int) -> None:
        self.config = self.config.model_copy(update={"replicas": {**self.config.replicas, stage: n}})
        self._save_config(self._dir)
        self._tell(self.children, {"replicas": self.config.replicas})

    # ---- watching

    @property
    def _over(self) -> bool:
        """Whether every source has left in order: then all that was fed is on disk."""
        return all(c.report.get("complete") for c in self.children if c.stage == self.pipeline.names[0])

    @property
    def _broken_off(self) -> bool:
        return self._failure is not None or self._signals >= 2

    def _backoff(self, child: Child) -> float | None:
        """How long to wait before a process is started again; None when it has died too often."""
        settings, now = self.config.supervisor, time.monotonic()
        child.deaths = [at for at in child.deaths if now - at < settings.restart_interval] + [now]
        if len(child.deaths) > settings.restart_limit:
            child.error += f", and {len(child.deaths) - 1} times in the last {settings.restart_interval:g} s"
            return None
        return min(settings.backoff * 2.0 ** (len(child.deaths) - 1), settings.backoff_max)

    async def _hear(self, child: Child) -> None:
        assert child.process.stdout is not None
        async for line in logs.lines(child.process.stdout, MAX_LINE):
            news = read(line)
            if news is None:
                child.log.line(line)
                continue
            child.state = news.state
            child.metrics_url = news.metrics or child.metrics_url
            child.error = news.error or child.error
            child.again = child.again if news.again is None else news.again
            if news.report is not None:
                child.report = news.report.model_dump(exclude_unset=True)
                child.values = {**child.values, **news.report.metrics}  # its last words are exact
            self._shown.hear(news)
            if news.prepared is not None:
                self._said_ready(child, news.prepared, news.refused)
            child.changed = child.changed if news.changed is None else news.changed
            if self._signals == 1 and child.stage == self.pipeline.names[0] and child.state == "starting":
                self._signal(child, signal.SIGTERM)  # it could not hear that before
            everybody = len(self.children) >= len(self.pipeline.replicas(self.config))
            if news.metrics and everybody and all(c.metrics_url for c in self.children):
                self._tell_metrics()

    def _tell_metrics(self) -> None:
        ports = ", ".join(f"{c.name} {urlsplit(c.metrics_url).port}" for c in self.children)
        log.info("/metrics and /healthz on %s: %s", self.config.metrics.host, ports)

    async def _pass_log(self, child: Child) -> None:
        assert child.process.stderr is not None
        async for line in logs.lines(child.process.stderr):
            child.log.line(line)
        child.log.tidy(all_=True)

    async def _poll(self) -> None:
        """Look at all processes again and again. What goes wrong with that is told, and does not end the run."""
        told = ""
        while True:
            try:
                await self._look()
            except Exception as error:
                why = one_line(error)
                if why != told:  # it may come every second
                    log.error("the processes could not be looked at as they should (%s); it is tried again", why)
                    log.debug("traceback", exc_info=True)
                told = why

    async def _look(self) -> None:
        """Read every process's own metrics, as Prometheus would, and act on them.

        A page costs the process that makes it, and us, some milliseconds in which blocks wait, so they are read at even
        distances: all at once, they would take a processor from the stream for long enough to be seen in its latencies.
        """
        self._n_polls += 1
        looks: list[asyncio.Future[None]] = []
        children = [*self.children]
        for child in children:
            await asyncio.sleep(POLL_S / len(children))
            if child.metrics_url and child.exit_code is None:
                looks.append(asyncio.ensure_future(self._look_at(child)))
        if not children:
            await asyncio.sleep(POLL_S)
        await asyncio.gather(*looks)
        for child in self.children:
            child.log.tidy()
        self._end_stalled()
        self._end_stragglers()
        self._seen = self._progress()
        self._see_changed()
        self._shown.look(self.children)
        self._tell_manager(self._seen)
        if self.page is not None:
            self.page.tell()
            self.page.tidy()
        if self.on_progress is not None:
            self.on_progress(self._seen)

    async def _look_at(self, child: Child) -> None:
        process = child.process
        try:
            wanted = WANTED if self._n_polls % QUALITY_POLLS else WANTED | self._shown.drift.names
            values = await asyncio.to_thread(scrape, child.metrics_url, wanted)
        except (OSError, ValueError):
            # No more than a scrape may take: while we were stopped ourselves, nobody is to blame.
            child.silent_s += min(time.monotonic() - child.looked, POLL_S + SCRAPE_S)
        else:
            if child.process is process and not child.report:
                child.silent_s, child.values = 0.0, values
        child.looked = time.monotonic()

    def _end_stalled(self) -> None:
        """End what makes no progress; it is started again. Judged by our clock, never by the events' times."""
        settings = self.config.supervisor
        for child in self.children:
            if child.exit_code is not None or child.state in ("stopped", "failed"):
                continue
            age = child.values.get("streamer_work_age_seconds", 0.0) if not child.silent_s else child.silent_s
            if child.state == "starting":
                if time.monotonic() - child.since > settings.start_timeout:
                    child.error = f"was not ready after {settings.start_timeout:g} s"
                    self._signal(child, signal.SIGKILL)
            elif age > settings.stall_timeout:
                what = "did not answer" if child.silent_s else "was at the same piece of work"
                child.error = f"{what} for {age:.0f} s"
                self._signal(child, signal.SIGKILL)

    def _end_stragglers(self) -> None:
        """End a process that everybody before it has left long ago, and that has not noticed."""
        patience = self.config.hop.peer_timeout + STOP_GRACE_S
        for child in self.children:
            before = [c for c in self.children if self.pipeline.place(c.stage) == self.pipeline.place(child.stage) - 1]
            left = [c.ended_at for c in before if c.ended_at is not None]
            waiting = child.exit_code is None and child.state in ("starting", "ready", "running")
            if waiting and left and len(left) == len(before) and time.monotonic() - max(left) > patience:
                child.error = "heard nothing of the end of the stream"
                self._signal(child, signal.SIGKILL)

    def _tell_manager(self, seen: Progress) -> None:
        """Tell who keeps us alive whether the run goes on."""
        working = [child for child in self.children if not child.report.get("complete")]  # others ended in order
        settled = all(child.exit_code is None and child.state in ("running", "draining") for child in working)
        if settled:
            self._manager.tell(READY="1")
        if self._signals:
            self._manager.tell(STOPPING="1")
        state = "draining" if self._signals else seen.state
        self._manager.tell(STATUS="; ".join(text for _, text in self._shown.verdict(state)))
        readers = [child for child in working if child.stage == self.pipeline.names[0]]
        n_blocks = sum(child.values.get("streamer_blocks_in_flight", 0.0) for child in readers)
        if self._pulse.beats(time.monotonic(), seen.done, n_blocks, settled=settled):
            self._manager.beat()
        elif self._pulse.just_stopped:
            told = f"nothing has been written for {self._pulse.patience:g} s, and {n_blocks:.0f} blocks are under way"
            log.error("%s; a service manager with a watchdog will start the run again", told)

    def _progress(self) -> Progress:
        def total(stage: str, key: str) -> float:
            return sum(child.values.get(key, 0.0) for child in self.children if child.stage == stage)

        first, last = self.pipeline.names[0], self.pipeline.names[-1]
        errors = int(total(last, "streamer_events_total/error"))
        shed = int(total(last, "streamer_events_total/shed"))
        done = int(total(last, "streamer_events_total/ok")) + errors + shed
        now = time.monotonic()
        rate = (done - self._last[1]) / max(now - self._last[0], 1e-6)
        self._last = (now, done)
        n_latency = total(last, "streamer_event_latency_seconds_count")
        values = [pair for child in self.children for pair in child.values.items()]
        n_batches = sum(value for key, value in values if key.startswith("streamer_batch_size_count/"))
        batched = sum(value for key, value in values if key.startswith("streamer_batch_size_sum/"))
        return Progress(
            state=self.children[0].state if self.children else "starting",
            fed=int(total(first, "streamer_events_total/ok") + total(first, "streamer_events_total/shed")),
            done=done,
            errors=errors,
            rate=rate,
            latency_s=total(last, "streamer_event_latency_seconds_sum") / n_latency if n_latency else float("nan"),
            batch=batched / n_batches if n_batches else float("nan"),
            shed=shed,
        )

    # ---- what the page shows

    def _page(self) -> "Page | None":
        if not self.config.monitor.on:
            return None
        from streamer.monitor.run_metrics import RunMetrics
        from streamer.monitor.server import Page  # a web server takes time to load

        metrics = RunMetrics(lambda: self._shown.watch.state, self._shown.drift.metrics, self.config.output)
        return Page(
            self.config.monitor, self._everything, self._shown.history, self._targets, metrics.page, self._drawer()
        )

    def _drawer(self) -> "Callable[[], Drawer] | None":
        from streamer.monitor.drawing import Drawer

        program = self.pipeline.program
        return (lambda: Drawer(program, self._dir / "config.toml")) if self.pipeline.draw else None

    def _everything(self) -> dict[str, Any]:
        return self._shown.everything("draining" if self._signals else self._seen.state if self._seen else "starting")

    def _targets(self) -> list[dict[str, Any]]:
        assert self.page is not None
        return targets(self.children, self._dir.name, self.page.place)

    def _signalled(self) -> None:
        self._signals += 1
        self._rehearsal.break_off()
        self._manager.tell(STOPPING="1")
        if self._signals == 1:
            log.warning("stopping: what was fed comes out first (again to break off)")
            for child in self.children:
                if child.stage == self.pipeline.names[0] and child.metrics_url:  # else with its first sign of life
                    self._signal(child, signal.SIGTERM)
        else:
            for child in self.children:
                self._signal(child, signal.SIGKILL)

    async def _break_off(self) -> None:
        """Only the sinks have something to save, and they leave quickly while those before them are there; the others
        would wait for events that cannot come out any more."""
        sinks = [child for child in self.children if child.stage == self.pipeline.names[-1]]
        for child in sinks:
            self._signal(child, signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(STOP_GRACE_S):
                await asyncio.gather(*(child.process.wait() for child in sinks))
        for child in self.children:
            self._signal(child, signal.SIGKILL)

    @staticmethod
    def _signal(child: Child, number: int) -> None:
        leaving = number == signal.SIGTERM and child.state in ("stopped", "failed")  # it no longer catches signals
        if child.process.returncode is None and not leaving:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.process.pid, number)

    def _outcome(self) -> Outcome:
        history = self._shown.watch.whole
        for child in self.children:
            self._shown.leaves(child)
        quality = self._shown.drift.whole()
        reports = {child.name: child.report for child in (*self._retired, *self.children)}
        if self._failure is not None:
            code = self._failure.exit_code or EXIT_FAILED
            if len(self._failure.deaths):  # it had been running: no mistake of the start
                code = EXIT_FAILED
            where = "" if code == 2 else f"{self._failure.name}: "
            return Outcome(
                code if code in (1, 2) else EXIT_FAILED, where + self._failure.error, reports, history, quality
            )
        if self._signals > 1:
            return Outcome(130, "broken off; results that were committed are in the journal", reports, history, quality)
        return Outcome(EXIT_OK, "", reports, history, quality, stopped=self._signals > 0)
