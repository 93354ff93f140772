"""The way back: the last stage tells the first which events are safely on disk, and who was started again, why.

Each sink replica holds a **commit sender** to each source replica, which holds a **commit receiver**. The messages are
control messages as in `streamer.hop`; events are closed intervals of sequence numbers.

=========  =================  =============================================================================
kind       who to whom        meaning
=========  =================  =============================================================================
commit     sink to source     {life, of, ids, way, answered}: these events are on disk, blocks take so long from the
                              source to the sink [ns], and so large a share of their events was not shed. Said also
                              without any, every `heartbeat`.
welcome    source to sink     {life}: the answer to a commit whose `of` is not this source's life, and to one
                              of a sink that has not yet told everything it has.
have       sink to source     {life, of, name, part, parts, ids}: everything that I have on disk, in so many
                              parts; `ids` count the sink's own events only (`streamer.ledger.Stripes`).
died       anybody to source  {life, name, how, ids}: my predecessor, whose life that was, has died while it
                              worked on these events. Said every `heartbeat` until it is noted.
noted      source to anybody  {life}: the answer to that.
=========  =================  =============================================================================

A source feeds nothing before every sink has told what it has: so one that was started again, or a whole run that was,
goes on behind what is on disk. A sink with another life than before has lost what it had not on disk; the source is
told so, and sends that again.
"""

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from streamer import hop
from streamer.blackbox import Death
from streamer.block import WireError
from streamer.config import HopConfig
from streamer.ledger import Intervals
from streamer.sockets import bound_router, dealer, say

_PER_MESSAGE = 100
"""Intervals; keeps a message under `sockets.MAX_CONTROL_BYTES`."""
_MOST_PARTS = 1 << 16
_DEATHS = 1000


@dataclass
class _Teller:
    """A sink that is telling what it has."""

    life: str
    parts: dict[int, Intervals] = field(default_factory=dict)
    complete: bool = False


class CommitReceiver:
    """A source's end.

    Parameters
    ----------
    sinks : list of str
        Who there is to be heard, such as `writer-0`.
    on_commit : callable
        Given intervals of events that are on disk, how long blocks take to that sink at present [s], and the share
        of their events that was not shed.
    on_have : callable
        Given the place of a sink among `sinks`, its own events that it has on disk, and whether another life of it
        has told so before.
    on_death : callable
        Given who has died (such as `tagger-0`), how, and the events it was working on. May raise `WireError`.
    """

    def __init__(
        self,
        context: Any,
        at: str,
        run: str,
        config: HopConfig,
        sinks: list[str],
        on_commit: Callable[[Intervals, float, float], None],
        on_have: Callable[[int, Intervals, bool], None],
        on_death: Callable[[str, str, Intervals], None],
        refused: hop.Refused,
    ) -> None:
        self.life = secrets.token_hex(8)
        self._run, self._sinks, self._refused = run, sinks, refused
        self._on_commit, self._on_have, self._on_death = on_commit, on_have, on_death
        self._deaths: deque[str] = deque(maxlen=_DEATHS)  # lives whose end was told
        self._tellers: dict[str, _Teller] = {}  # by the sinks' names
        self._complete = asyncio.Event()
        self._socket = bound_router(context, at, config)
        self._listener = hop.task(self._listen(), "commits")

    async def _listen(self) -> None:
        while True:
            route, *frames = await self._socket.receive()
            try:
                await self._hear(bytes(route), frames)
            except WireError as error:
                self._refused(error.reason)

    async def _hear(self, route: bytes, frames: list[memoryview]) -> None:
        header = hop.control(frames, self._run)
        kind, life, ids = header["kind"], hop.field(header, "life", str), _intervals(hop.field(header, "ids", list))
        if kind == "died":
            if life not in self._deaths:
                self._on_death(hop.field(header, "name", str), hop.field(header, "how", str), ids)
                self._deaths.append(life)
            await say(self._socket, route, hop.message("noted", self._run, life=self.life))
            return
        of = hop.field(header, "of", str)
        if kind == "commit":
            way, answered = hop.field(header, "way", int), hop.field(header, "answered", float)
            if not 0 <= answered <= 1:
                raise WireError("header", "a share that is none")
            self._on_commit(ids, way * 1e-9, answered)
            known = any(teller.complete and teller.life == life for teller in self._tellers.values())
            if of != self.life or not known:
                await say(self._socket, route, hop.message("welcome", self._run, life=self.life))
        elif kind == "have":
            if of == self.life:  # else it was meant for our predecessor
                self._collect(header, life, ids)
        else:
            raise WireError("header", f"a source is not told {kind[:20]!r}")

    def _collect(self, header: dict[str, Any], life: str, ids: Intervals) -> None:
        name = hop.field(header, "name", str)
        part, parts = hop.field(header, "part", int), hop.field(header, "parts", int)
        if name not in self._sinks:
            raise WireError("header", "a have of a sink that does not belong to this run")
        if not part < parts <= _MOST_PARTS:
            raise WireError("header", "a have with impossible parts")
        before = self._tellers.get(name)
        if before is None or before.life != life:
            self._tellers[name] = _Teller(life)
        teller = self._tellers[name]
        teller.parts[part] = ids
        if len(teller.parts) < parts or teller.complete:
            return
        teller.complete = True
        everything = [interval for k in sorted(teller.parts) for interval in teller.parts[k]]
        teller.parts.clear()
        self._on_have(self._sinks.index(name), everything, before is not None and before is not teller)
        if len(self._tellers) == len(self._sinks) and all(t.complete for t in self._tellers.values()):
            self._complete.set()

    async def everything(self) -> None:
        """Wait until every sink has told what it has."""
        await self._complete.wait()

    async def close(self) -> None:
        await hop.cancel(self._listener)
        self._socket.close(linger=0)


class CommitSender:
    """A sink's end, towards one source.

    Parameters
    ----------
    have : callable
        Gives the sink's own events that are on disk.
    """

    def __init__(
        self,
        context: Any,
        at: str,
        run: str,
        config: HopConfig,
        name: str,
        have: Callable[[], Iterable[tuple[int, int]]],
        refused: hop.Refused,
    ) -> None:
        self.life = secrets.token_hex(8)
        self._run, self._config, self._name, self._have, self._refused = run, config, name, have, refused
        self._of, self._way, self._answered = "", 0, 1.0
        self._socket = dealer(context, at, config)
        self._tasks = [hop.task(self._listen(), f"welcome {at}"), hop.task(self._repeat(), f"commit {at}")]

    async def _listen(self) -> None:
        while True:
            frames = await self._socket.receive()
            try:
                header = hop.control(frames, self._run)
                if header["kind"] != "welcome":
                    raise WireError("header", f"a sink is not told {header['kind'][:20]!r}")
                self._of = hop.field(header, "life", str)
                await self._tell_all()
            except WireError as error:
                self._refused(error.reason)

    async def _tell_all(self) -> None:
        ids = [list(interval) for interval in self._have()]
        parts = [ids[start : start + _PER_MESSAGE] for start in range(0, len(ids), _PER_MESSAGE)] or [[]]
        for number, part in enumerate(parts):
            await self._say("have", name=self._name, part=number, parts=len(parts), ids=part)

    async def _repeat(self) -> None:
        while True:
            await self._commit([])
            await asyncio.sleep(self._config.heartbeat)

    async def _say(self, kind: str, **fields: Any) -> None:
        await self._socket.send([hop.message(kind, self._run, life=self.life, of=self._of, **fields)])

    async def commit(self, intervals: Iterable[tuple[int, int]], way: float, answered: float) -> None:
        """Tell the source which events (closed intervals) are safely on disk, how long blocks take to here [s], and the
        share of their events that was not shed."""
        self._way, self._answered = int(way * 1e9), answered
        ids = [list(interval) for interval in intervals]
        for start in range(0, len(ids), _PER_MESSAGE):
            await self._commit(ids[start : start + _PER_MESSAGE])

    async def _commit(self, ids: list[list[int]]) -> None:
        await self._say("commit", ids=ids, way=self._way, answered=self._answered)

    async def close(self) -> None:
        for task in self._tasks:
            await hop.cancel(task)
        self._socket.close(linger=500)


async def report_death(context: Any, at: str, run: str, config: HopConfig, name: str, how: str, death: Death) -> None:
    """Tell a source what our predecessor has died of, until it has noted that."""
    text = hop.message("died", run, life=death.life, name=name, how=how[:200], ids=[list(i) for i in death.working])
    socket = dealer(context, at, config)
    try:
        noted = False
        while not noted:
            await socket.send([text])
            with contextlib.suppress(TimeoutError, WireError):
                async with asyncio.timeout(config.heartbeat):
                    noted = hop.control(await socket.receive(), run)["kind"] == "noted"
    finally:
        socket.close(linger=0)


def _intervals(ids: list[Any]) -> Intervals:
    for pair in ids:
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(i) is int for i in pair)):
            raise WireError("header", "ids that are no intervals")
        if not 0 <= pair[0] <= pair[1] < 1 << 62:
            raise WireError("header", "ids that are no intervals of natural numbers")
    return [(first, last) for first, last in ids]
