"""Hops: how blocks cross from one stage to the next, and how commits come back.

Why not PUSH/PULL: a high-water mark is no flow control, and a clean close can lose what is still in a pipe. Here a
block is sent only against a credit, and nothing is forgotten before the writer has it on disk.

Ends
----
The upstream replica holds an **outlet** (ROUTER, binds). Each downstream replica holds an **inlet** (one DEALER
per outlet, connects). How commits come back stands in `streamer.commits`. Each end draws a random *life* when it is
made, so that a restarted peer is not mistaken for its predecessor.

Messages
--------
Frame 0 is MAGIC and a msgpack map with a `kind` and the run's secret `run` token (a stranger cannot know it, and
what does not carry it is refused and counted). Only BLOCK has more frames.

=========  ==================  ============================================================================
kind       who to whom         meaning
=========  ==================  ============================================================================
credit     inlet to outlet     {life, of, name, received, spare, ways}: "of the outlet life `of` I have received so
                               many events in all (refused ones too), and I can take `spare` more". Absolute, so
                               losing or repeating it does no harm; said when half of the inlet's room has come free,
                               and every `heartbeat`, so it also says "I am alive". Under a deadline `ways` tells how
                               long blocks take from each stage to the sink, {stage: [usual, least]} [ns]
                               (`streamer.deadline`), and is said at once when that has changed; else it is empty.
welcome    outlet to inlet     {life}: the answer to a credit whose `of` is not this outlet's life. The inlet
                               starts counting from zero and sends its credit again.
block      outlet to inlet     the events (see `streamer.block`).
leave      inlet to outlet     {life}: "send me nothing more"; the outlet answers with end.
end        outlet to inlet     {life, final}: nothing follows. `final`: the stream is over; else only this outlet
                               goes away, and one with another life may take its place.
bye        inlet to outlet     {life}: everything before the end has arrived; the outlet may close.
=========  ==================  ============================================================================

States
------
An outlet knows a peer as *fed* (first credit with our life) until *ended* (after its end was sent) and forgets it at
its bye; a peer that comes after the end is told at once. It may send a block to a fed peer while
`received + spare - sent > 0`, counted in events, so that flow control means the same for blocks of 1 and of 1000
events; of several, those that can take something take turns (`streamer.credits`). A peer silent for `peer_timeout`
gets nothing until it speaks again. When a connection was cut and comes back under another routing id, what was under
way in it counts as received: its blocks are not on disk, so the reader sends them again. Before the last stage a block
goes to the one replica that keeps its events (`streamer.ledger.Stripes`), and waits for it if need be.

Once and only once
------------------
The reader keeps every block in its window (`streamer.ledger.Window`) until its commit comes, and sends again, with
the next attempt number, what is overdue. The writer drops events that it has (`streamer.ledger.IdSet`). So: at least
once on the way, exactly once on disk. The stream ends from the front: the reader sends end only when its window is
empty, so that no data is under way when processes stop.
"""

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgpack

from streamer.block import MAGIC, Block, Schema, WireError, announced_events, decode_block, read_header, to_wire
from streamer.config import HopConfig
from streamer.credits import CreditBook
from streamer.deadline import Way, Ways
from streamer.sockets import MAX_CONTROL_BYTES, Unroutable, bound_router, dealer, say

Refused = Callable[[str], None]
"""Called with one of `WIRE_REASONS` for each message that is refused."""

NEWS = 1.25
"""A way that has become so many times as long or short is told at once."""


def address(config: HopConfig, run_dir: str, place: int, name: str) -> str:
    """Where the outlet `name` (such as `framer-0` or `commit-0`) binds; `place` tells their ports apart."""
    if config.transport == "ipc":
        return f"ipc://{run_dir}/{name}"
    return f"tcp://{config.host}:{config.base_port + place}"


def message(kind: str, run: str, **fields: Any) -> bytes:
    """A control message."""
    return MAGIC + bytes(msgpack.packb({"kind": kind, "run": run, **fields}))


def control(frames: Sequence[Any], run: str) -> dict[str, Any]:
    """The fields of a control message.

    Raises
    ------
    WireError
        It is none of this run.
    """
    if len(frames) != 1:
        raise WireError("frames", f"{len(frames)} frames in a control message")
    header = read_header(frames[0], MAX_CONTROL_BYTES)
    if header.get("run") != run:
        raise WireError("token", "not a message of this run")
    return header


def field(header: dict[str, Any], key: str, kind: type) -> Any:
    """One field of a message, checked."""
    value: Any = header.get(key)
    if type(value) is not kind or (isinstance(value, int) and not 0 <= value < 1 << 62):
        raise WireError("header", f"{header['kind']} without a valid {key}")
    return value


class Outlet:
    """The sending end of a hop.

    Parameters
    ----------
    at : str
        ZeroMQ address to bind.
    run : str
        The run's secret token.
    n_peers : int
        How many inlets there should be; the end waits for each of them to come and say bye.
    refused : callable
        Told the reason for each refused message.
    owner : callable, optional
        Says which peer a block must go to; without it, they take turns.
    schema : Schema, optional
        Of the hop; without it, each block says itself what its columns are.

    Raises
    ------
    UsageError
        The address is taken.
    """

    def __init__(
        self,
        context: Any,
        at: str,
        run: str,
        config: HopConfig,
        n_peers: int,
        refused: Refused,
        owner: Callable[[Block], str] | None = None,
        schema: Schema | None = None,
    ) -> None:
        self.run, self.config, self.n_peers, self._refused = run, config, n_peers, refused
        self._owner, self._schema = owner, schema
        self.life = secrets.token_hex(8)
        self.book = CreditBook(config.peer_timeout)
        self.bytes_sent = 0
        self._final: bool | None = None  # what is told to whoever comes after the end
        self._byes: set[str] = set()
        self._changed = asyncio.Event()
        self._socket = bound_router(context, at, config)
        self._listener = task(self._listen(), f"outlet {at}")

    async def _listen(self) -> None:
        while True:
            route, *frames = await self._socket.receive()
            try:
                await self._hear(bytes(route), frames)
            except WireError as error:
                self._refused(error.reason)
            self._changed.set()

    async def _hear(self, route: bytes, frames: Sequence[memoryview]) -> None:
        header = control(frames, self.run)
        kind, life = header["kind"], field(header, "life", str)
        if kind == "credit":
            if field(header, "of", str) != self.life:
                await self._say(route, "welcome")
                return
            received, spare = (field(header, key, int) for key in ("received", "spare"))
            name, ways = field(header, "name", str), _ways(field(header, "ways", dict))
            self.book.credit(route, name, life, received, spare, time.monotonic(), ways)
            if self._final is not None:
                await self._end(route, final=self._final)
        elif kind == "leave":  # also from somebody who knew only our predecessor
            await self._end(route, final=bool(self._final))
        elif kind == "bye":
            peer = self.book.peers.pop(route, None)
            if peer is not None:
                self._byes.add(peer.name)
        else:
            raise WireError("header", f"an outlet is not told {kind[:20]!r}")

    async def _say(self, route: bytes, kind: str, **fields: Any) -> None:
        if not await say(self._socket, route, message(kind, self.run, life=self.life, **fields)):
            self.book.peers.pop(route, None)

    async def _end(self, route: bytes, *, final: bool) -> None:
        if route in self.book.peers:
            self.book.peers[route].ended = True
        await self._say(route, "end", final=final)

    async def send(self, block: Block) -> None:
        """Send a block to its owner, or to the peer whose turn it is; waits until it can be taken."""
        frames = to_wire(block, self.run, self._schema)
        owner = self._owner and self._owner(block)
        while True:
            route = self.book.choose(time.monotonic(), owner)
            if route is None:
                self._changed.clear()
                await _wait(self._changed, self.config.heartbeat)
                continue
            peer = self.book.peers[route]
            try:
                await self._socket.send([route, *frames])
            except Unroutable:
                self.book.peers.pop(route, None)
                continue
            self.book.sent(peer, block.n_events)
            self.bytes_sent += sum(len(frame) for frame in frames)
            return

    @property
    def ways(self) -> Ways:
        """How long blocks take from each stage to the sink."""
        return self.book.ways

    def credits(self) -> int:
        """Events that the peers would take now."""
        return self.book.total(time.monotonic())

    async def first_credit(self) -> None:
        """Wait until somebody can take events. Readiness spreads so, from the end of the chain to its front."""
        while not self.credits():
            self._changed.clear()
            await _wait(self._changed, self.config.heartbeat)

    async def end(self, *, final: bool = True) -> None:
        """Tell every peer that nothing follows, and wait for their byes (at most `peer_timeout`).

        It is also told to peers that come only now: else they would wait for ever.
        """
        self._final = final
        deadline = time.monotonic() + self.config.peer_timeout
        while time.monotonic() < deadline:
            for route in list(self.book.peers):  # repeated, because it takes a moment to see that a peer is gone
                await self._end(route, final=final)
            if not self.book.peers and (not final or len(self._byes) >= self.n_peers):
                return
            self._changed.clear()
            await _wait(self._changed, 0.1)

    async def close(self) -> None:
        await cancel(self._listener)
        self._socket.close(linger=500)


class Inlet:
    """The receiving end of a hop: one link to each upstream replica.

    Parameters
    ----------
    addresses : sequence of str
        The outlets of all upstream replicas.
    name : str
        Who we are, such as `cropper-0`.
    schema : Schema
        What every block must hold.

    Attributes
    ----------
    ways : Ways
        How long blocks take from each stage to the sink, for those before; to be set.
    room : int
        Events to take ahead, where that is less than there are credits for; to be set.
    """

    def __init__(
        self,
        context: Any,
        addresses: Sequence[str],
        name: str,
        run: str,
        config: HopConfig,
        schema: Schema,
        refused: Refused,
    ) -> None:
        self.bytes_received = 0
        self.ways: Ways = {}
        self.room = config.credit_events * max(1, len(addresses))
        self._make: Callable[[str], Link] = lambda at: Link(self, context, at, name, run, config, schema, refused)
        # Bounded by the credits that the links grant; one entry a link marks its end.
        self._arrived: asyncio.Queue[tuple[Block, Link] | None] = asyncio.Queue()
        self._links = [self._make(at) for at in addresses]
        self._open = len(self._links)

    async def receive(self) -> "tuple[Block, Link] | None":
        """The next block and the link it came on; None when every outlet has ended.

        Call `link.done(block)` when the block has left this process, which gives its credit back.
        """
        while self._open:
            item = await self._arrived.get()
            if item is not None:
                return item
            self._open -= 1
        return None

    @property
    def complete(self) -> bool:
        """Whether the stream is over, as against broken off: every outlet has sent a final end."""
        return all(link.complete for link in self._links)

    def waiting(self) -> int:
        """Blocks that have arrived and are not taken yet."""
        return self._arrived.qsize()

    def outlet_is_over(self, place: int) -> None:
        """The outlet at this place of the addresses has ended the stream, and told so when we were not there."""
        self._links[place].over()

    async def follow(self, addresses: Sequence[str]) -> None:
        """There are more outlets now, or the last ones are gone, for good and in order."""
        for at in addresses[len(self._links) :]:
            self._links.append(self._make(at))
            self._open += 1
        gone = self._links[len(addresses) :]
        del self._links[len(addresses) :]
        for link in gone:
            link.over()
            await link.close()

    async def leave(self) -> None:
        """Ask for nothing more; `receive` gives out what is under way and then None."""
        for link in self._links:
            await link.leave()

    async def close(self) -> None:
        for link in self._links:
            await link.close()


class Link:
    """An inlet's connection to one outlet. Users only call `done`.

    Attributes
    ----------
    complete : bool
        Whether the outlet has said that the stream is over.
    """

    def __init__(
        self,
        inlet: Inlet,
        context: Any,
        at: str,
        name: str,
        run: str,
        config: HopConfig,
        schema: Schema,
        refused: Refused,
    ) -> None:
        self.life = secrets.token_hex(8)
        self._inlet, self._name, self._run, self._config = inlet, name, run, config
        self._schema, self._refused, self._budget = schema, refused, config.credit_events
        self._of = ""  # the outlet's life, once it has welcomed us
        self._received = self._held = self._told = 0
        self._told_ways: Ways = {}
        self._leaving = self._ended = False
        self.complete = False
        self._socket = dealer(context, at, config)
        self._tasks = [
            task(self._listen(), f"inlet {at}"),
            task(self._repeat_credit(), f"credit {at}"),
        ]

    async def _listen(self) -> None:
        while not self._ended:
            frames = await self._socket.receive()
            try:
                await self._hear(frames)
            except WireError as error:
                self._refused(error.reason)

    async def _hear(self, frames: Sequence[memoryview]) -> None:
        header = read_header(frames[0])
        kind = header["kind"]
        if kind == "block":
            self._take(header, frames)
            return
        header = control(frames, self._run)
        life = field(header, "life", str)
        if kind == "welcome":
            if life != self._of:
                self._of, self._received = life, 0
            await self._credit()
        elif kind == "end":
            final = field(header, "final", bool)
            await self._say("bye")
            self.complete = final
            if final or self._leaving:
                self._finish()
            else:
                self._of = ""
        else:
            raise WireError("header", f"an inlet is not told {kind[:20]!r}")

    def _take(self, header: dict[str, Any], frames: Sequence[memoryview]) -> None:
        try:
            block = decode_block(header, frames[1:], self._run, self._schema)
            if self._held >= self._budget:
                raise WireError("uncredited", "a block that we gave no credit for")
        except WireError:  # its sender has booked it all the same; the credit must not be lost with it
            self._received += announced_events(header, self._run)
            raise
        self._received += block.n_events
        self._held += block.n_events
        self._inlet.bytes_received += sum(frame.nbytes for frame in frames)
        block.stamps["arrived"] = time.time_ns()
        self._inlet._arrived.put_nowait((block, self))

    def over(self) -> None:
        """The stream is over on this link: everything is on disk."""
        if not self._ended:
            self.complete = True
            self._finish()

    def _finish(self) -> None:
        if not self._ended:
            self._ended = True
            self._inlet._arrived.put_nowait(None)

    async def _say(self, kind: str, **fields: Any) -> None:
        await self._socket.send([message(kind, self._run, life=self.life, **fields)])

    @property
    def _room(self) -> int:
        """This link's part of what may be taken ahead."""
        return max(1, min(self._budget, self._inlet.room // max(1, len(self._inlet._links))))

    async def _credit(self) -> None:
        if not self._ended and not self._leaving:
            spare = max(0, self._room - self._held)
            self._told, ways = self._received + spare, self._inlet.ways
            self._told_ways = ways
            counts = {"received": self._received, "spare": spare}
            await self._say("credit", of=self._of, name=self._name, **counts, ways=ways)

    async def _repeat_credit(self) -> None:
        while not self._ended:
            if self._leaving:
                await self._say("leave")
            await self._credit()
            await asyncio.sleep(self._config.heartbeat)

    async def done(self, block: Block) -> None:
        """The block has left this process: its events may be replaced."""
        self._held -= block.n_events
        room = self._room
        news = self._received + room - self._held - self._told
        if 2 * news >= room or _are_news(self._told_ways, self._inlet.ways):
            await self._credit()

    async def leave(self) -> None:
        self._leaving = True
        if self._of:
            await self._say("leave")
            # An outlet that is alive answers at once; one that died never does.
            asyncio.get_running_loop().call_later(self._config.peer_timeout, self._finish)
        else:  # never welcomed: nothing can be under way
            self._finish()

    async def close(self) -> None:
        for task in self._tasks:
            await cancel(task)
        self._socket.close(linger=500)


def _ways(told: dict[Any, Any]) -> Ways:
    for stage, way in told.items():
        if not (isinstance(stage, str) and isinstance(way, list) and len(way) == 2):
            raise WireError("header", "ways that are no [usual, least] by stage")
        if not all(type(ns) is int and 0 <= ns < 1 << 62 for ns in way):
            raise WireError("header", "a way that is no time")
    return {stage: Way(*way) for stage, way in told.items()}


def _are_news(told: Ways, now: Ways) -> bool:
    """Whether some way has changed by more than a little since it was told."""
    if told is now:
        return False
    pairs = [(told[stage].usual, way.usual) for stage, way in now.items() if stage in told]
    return len(pairs) < len(now) or any(max(pair) > NEWS * min(pair) for pair in pairs)


def task(work: Coroutine[Any, Any, None], name: str) -> "asyncio.Task[None]":
    """A task that does not fail in silence: what it raises goes to the loop's exception handler at once."""
    task = asyncio.create_task(work, name=name)
    task.add_done_callback(lambda done: None if done.cancelled() else done.result())
    return task


async def _wait(event: asyncio.Event, timeout: float) -> None:
    # Not wait_for: before Python 3.12 it loses a cancellation that comes together with the event.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(timeout):
            await event.wait()


async def cancel(task: "asyncio.Task[None]") -> None:
    """End a task and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
