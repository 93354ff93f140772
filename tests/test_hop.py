"""Hops over real sockets: flow control, ends, restarts, commits, and strangers at the door."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import hostile_wire
import pytest
import zmq
import zmq.asyncio
from hostile_wire import RUN, Hostile, good, header_of, message

from streamer import hop
from streamer.blackbox import Death
from streamer.block import Block, Column, Schema, decode, encode, read_header
from streamer.commits import CommitReceiver, CommitSender, report_death
from streamer.config import HopConfig
from streamer.deadline import Way
from streamer.errors import UsageError
from streamer.ledger import Intervals
from streamer.runner import Run
from streamer.sockets import bound_router, dealer, new_context
from streamer.testing import TOY, toy_block, until

HEARTBEAT_S = 0.02
LONG_S = 60.0  # so long that a test that waits for it fails


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Bench:
    """One hop's address; whatever is opened on it is closed at the end.

    Attributes
    ----------
    refused : list of str
        The reasons that the real ends gave, in order.
    """

    def __init__(self, transport: str, run: Run) -> None:
        self.transport, self.folder = transport, str(run.dir)
        self.config = HopConfig(
            transport=transport,
            base_port=free_port() if transport == "tcp" else 15550,
            heartbeat=HEARTBEAT_S,
            peer_timeout=LONG_S,
            credit_events=32,
        )
        self.refused: list[str] = []
        self.told: list[Any] = []
        self.ways: list[tuple[float, float]] = []
        self.deaths: list[Any] = []
        self.context = zmq.asyncio.Context()
        self._made: list[Any] = []

    def set(self, **settings: object) -> None:
        self.config = HopConfig.model_validate({**self.config.model_dump(), **settings})

    @property
    def at(self) -> str:
        return hop.address(self.config, self.folder, 0, "reader-0")

    def outlet(self, n_peers: int = 1) -> hop.Outlet:
        return self._keep(hop.Outlet(self.context, self.at, RUN, self.config, n_peers, self.refused.append, schema=TOY))

    def inlet(self, name: str = "framer-0", at: Sequence[str] = (), schema: Schema = TOY) -> hop.Inlet:
        addresses = at or [self.at]
        inlet = hop.Inlet(self.context, addresses, name, RUN, self.config, schema, self.refused.append)
        return self._keep(inlet)

    def commits(self, came: list[tuple[int, int]], n_writers: int = 1) -> CommitReceiver:
        """A reader's end; what writers have comes into `self.told`, and how long blocks take and the share
        that is answered into `self.ways`."""
        writers = [f"writer-{k}" for k in range(n_writers)]
        hear = lambda *told: self.told.append(told)  # noqa: E731
        died = lambda *told: self.deaths.append(told)  # noqa: E731
        at, refused = self.at, self.refused.append

        def commit(intervals: Intervals, way: float, answered: float) -> None:
            came.extend(intervals)
            self.ways.append((way, answered))

        return self._keep(CommitReceiver(self.context, at, RUN, self.config, writers, commit, hear, died, refused))

    def committer(self, have: Sequence[tuple[int, int]] = (), run: str = RUN, name: str = "writer-0") -> CommitSender:
        at, refused = self.at, self.refused.append
        return self._keep(CommitSender(self.context, at, run, self.config, name, lambda: have, refused))

    def hand_made(self, name: str = "hand-made-0", run: str = RUN, at: str = "") -> "HandMade":
        return self._keep(HandMade(self.context, at or self.at, name, run))

    def router(self) -> zmq.asyncio.Socket:
        """A hand-made outlet."""
        router = self.context.socket(zmq.ROUTER)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.bind(self.at)
        return router

    def _keep(self, made: Any) -> Any:
        self._made.append(made)
        return made

    async def successor(self) -> hop.Outlet:
        """An outlet in the place of one that was closed; ZeroMQ lets go of a port only a moment later."""
        bound: list[hop.Outlet] = []

        def bind() -> bool:
            with contextlib.suppress(UsageError):
                bound.append(self.outlet())
            return bool(bound)

        await until(bind)
        return bound[0]

    async def close(self) -> None:
        for made in self._made:
            await made.close()
        self.context.destroy(linger=0)


class HandMade:
    """A downstream end that says just what the test wants."""

    def __init__(self, context: zmq.asyncio.Context, at: str, name: str, run: str) -> None:
        self.name, self.run, self.life, self.of = name, run, f"life of {name}", ""
        self.blocks: list[Block] = []
        self.received = 0
        self.socket = context.socket(zmq.DEALER)
        self.socket.connect(at)

    async def say(self, kind: str, **fields: object) -> None:
        await self.socket.send(message({"kind": kind, "run": self.run, "life": self.life, **fields}))

    async def credit(self, spare: int) -> None:
        await self.say("credit", of=self.of, name=self.name, received=self.received, spare=spare, ways={})

    async def join(self, spare: int) -> None:
        await self.credit(spare)
        welcome = await self.hear()
        assert welcome["kind"] == "welcome"
        self.of = welcome["life"]
        await self.credit(spare)

    async def hear(self) -> dict[str, Any]:
        """The header of the next message; a block is kept."""
        frames = await asyncio.wait_for(self.socket.recv_multipart(), 20)
        header = header_of(frames)
        if header["kind"] == "block":
            self.blocks.append(decode(frames, RUN, TOY))
            self.received += self.blocks[-1].n_events
        return header

    async def close(self) -> None:
        self.socket.close(linger=0)


@contextlib.asynccontextmanager
async def bench(transport: str, run: Run) -> AsyncIterator[Bench]:
    bench = Bench(transport, run)
    try:
        yield bench
    finally:
        await bench.close()


both = pytest.mark.parametrize("transport", ["ipc", "tcp"])


async def send_all(outlet: hop.Outlet, ids: Sequence[int], n_events: int = 4) -> None:
    for block_id in ids:
        await outlet.send(toy_block(block_id, n_events))


async def take(inlet: hop.Inlet) -> Block | None:
    """The next block, done with at once."""
    item = await asyncio.wait_for(inlet.receive(), 20)
    if item is None:
        return None
    block, link = item
    await link.done(block)
    return block


async def take_ids(inlet: hop.Inlet, n: int) -> list[int]:
    taken = [await take(inlet) for _ in range(n)]
    return [block.id for block in taken if block is not None]


# --- Blocks and credits ---


@both
async def test_blocks_cross_whole_and_in_order(transport: str, run: Run) -> None:
    async with bench(transport, run) as ends:
        outlet, inlet = ends.outlet(), ends.inlet()
        sending = asyncio.create_task(send_all(outlet, range(1, 101), 10))
        for block_id in range(1, 101):
            block = await take(inlet)
            assert block is not None
            assert block.id == block_id
            assert block.columns["Hit_energy"].tolist() == toy_block(1, 10).columns["Hit_energy"].tolist()
            assert block.stamps["arrived"] > 0
        await sending
        assert outlet.bytes_sent == inlet.bytes_received > 0
        assert ends.refused == []


@both
async def test_never_more_than_granted_and_one_block(transport: str, run: Run) -> None:
    async with bench(transport, run) as ends:
        outlet, peer = ends.outlet(), ends.hand_made()
        await peer.join(10)
        granted = 10
        # Two senders at once, as a reader that feeds and sends again.
        senders = [asyncio.create_task(send_all(outlet, range(k, 200, 2))) for k in (0, 1)]
        for n in range(200):
            assert (await peer.hear())["kind"] == "block"
            if peer.received >= granted:
                # A question whose answer comes behind whatever was sent: it must be the next that we hear.
                await peer.say("credit", of="somebody else", name=peer.name, received=0, spare=0)
                assert (await peer.hear())["kind"] == "welcome", "a block came that nobody had asked for"
                granted = peer.received + n % 9 + 1
                await peer.credit(n % 9 + 1)
        await asyncio.gather(*senders)
        assert sorted(block.id for block in peer.blocks) == list(range(200))


async def test_inlet_holds_no_more_than_its_budget_and_one_block(run: Run) -> None:
    async with bench("ipc", run) as ends:
        outlet, inlet = ends.outlet(), ends.inlet()
        sending = asyncio.create_task(send_all(outlet, range(40), 10))
        await until(lambda: inlet.waiting() == 4)  # 40 events for a budget of 32
        for _ in range(40):
            item = await inlet.receive()
            assert item is not None
            assert 10 * (inlet.waiting() + 1) <= 40
            await item[1].done(item[0])
        await sending
        assert ends.refused == []


async def test_an_inlet_can_take_less_ahead_and_hands_on_the_ways_at_once(run: Run) -> None:
    async with bench("ipc", run) as ends:
        ends.set(heartbeat=5.0, peer_timeout=50.0)
        outlet, inlet = ends.outlet(), ends.inlet()
        await until(lambda: outlet.credits() == 32)
        inlet.room = 6
        sending = asyncio.create_task(send_all(outlet, range(40), 2))
        for n in range(40):
            inlet.ways = {"reader": Way(100 + n, 10), "to framer": Way(90 + n, 5)}
            item = await inlet.receive()
            assert item is not None
            await item[1].done(item[0])
            if n == 0:
                await until(lambda: outlet.ways == {"reader": (100, 10), "to framer": (90, 5)})
            elif n >= 16:  # what was granted before has come
                assert inlet.waiting() <= 3
        await sending
        assert outlet.ways["reader"].usual > 110, "a little more is no news, but told with the next credit"
        assert ends.refused == []


async def test_blocks_go_in_turns(run: Run) -> None:
    async with bench("ipc", run) as ends:
        outlet, one, other = ends.outlet(), ends.hand_made("one-0"), ends.hand_made("other-0")
        await one.join(80)
        await other.join(80)
        await until(lambda: outlet.credits() == 160)
        await send_all(outlet, range(20))
        for _ in range(10):
            await one.hear()
            await other.hear()
        for peer in (one, other):
            assert [block.id % 2 for block in peer.blocks] in ([0] * 10, [1] * 10)


async def test_who_can_take_little_is_passed_over_while_others_can_take_more(run: Run) -> None:
    async with bench("ipc", run) as ends:
        outlet, poor, rich = ends.outlet(), ends.hand_made("poor-0"), ends.hand_made("rich-0")
        await poor.join(8)
        await rich.join(80)
        await until(lambda: outlet.credits() == 88)
        await send_all(outlet, range(12))
        for _ in range(12):
            await rich.hear()
        assert [block.id for block in rich.blocks] == list(range(12))
        await outlet.send(toy_block(12))
        await poor.hear()
        assert [block.id for block in poor.blocks] == [12]


async def test_silent_peer_gets_nothing_until_it_speaks_again(run: Run) -> None:
    async with bench("ipc", run) as ends:
        ends.set(peer_timeout=0.2)
        outlet, silent, alive = ends.outlet(), ends.hand_made("silent-0"), ends.hand_made("alive-0")
        await silent.join(1000)
        await alive.join(20)

        async def keep_alive() -> None:
            while True:
                await alive.credit(20 - alive.received)
                await asyncio.sleep(HEARTBEAT_S)

        beating = asyncio.create_task(keep_alive())
        await until(lambda: outlet.credits() == 20)  # the thousand of the silent one do not count any more
        await outlet.send(toy_block(1))
        await alive.hear()
        await silent.credit(1000)
        await until(lambda: outlet.credits() > 1000)
        await outlet.send(toy_block(2))
        await silent.hear()
        assert [block.id for block in alive.blocks] == [1]
        assert [block.id for block in silent.blocks] == [2]
        beating.cancel()


async def test_peer_whose_connection_is_gone_does_not_hold_the_block(run: Run) -> None:
    async with bench("tcp", run) as ends:
        outlet, gone, alive = ends.outlet(), ends.hand_made("gone-0"), ends.hand_made("alive-0")
        await gone.join(1000)
        await until(outlet.credits)
        await gone.close()
        await alive.join(20)
        await until(lambda: outlet.credits() == 1020)

        async def feed() -> None:  # what left before the disconnection was noticed is lost; the reader knows that
            for block_id in range(1000):
                await outlet.send(toy_block(block_id))
                await asyncio.sleep(0)

        feeding = asyncio.create_task(feed())
        await alive.hear()
        assert alive.blocks
        feeding.cancel()


async def test_a_peer_that_reads_late_is_not_forgotten(run: Run) -> None:
    """It has asked for more messages than ZeroMQ queues by itself."""
    async with bench("ipc", run) as ends:
        ends.set(credit_events=4000)
        outlet, peer = ends.outlet(), ends.hand_made()
        await peer.join(4000)
        await send_all(outlet, range(4000), 1)
        for _ in range(4000):
            await peer.hear()
        assert [block.id for block in peer.blocks] == list(range(4000))
        assert outlet.credits() == 0


async def test_refused_blocks_give_their_credit_back(run: Run) -> None:
    async with bench("ipc", run) as ends:
        outlet, inlet = ends.outlet(), ends.inlet()
        other = Block(0, 10, Schema([Column("x", "f4")]).empty(10))
        for _ in range(20):  # 200 events, for a budget of 32
            await asyncio.wait_for(outlet.send(other), 20)
        await asyncio.wait_for(outlet.send(toy_block(7)), 20)
        assert await take_ids(inlet, 1) == [7]
        assert ends.refused == ["schema"] * 20
        await until(lambda: outlet.credits() == 32)


async def test_uncredited_blocks_are_refused(run: Run) -> None:
    async with bench("ipc", run) as ends:
        router, inlet = ends.router(), ends.inlet()
        route, _ = await router.recv_multipart()
        for block_id in range(20):  # 200 events for a budget of 32, from somebody who knows the token
            await router.send_multipart([route, *encode(toy_block(block_id, 10), RUN)])
        await until(lambda: len(ends.refused) == 16)
        assert ends.refused == ["uncredited"] * 16
        assert await take_ids(inlet, 4) == [0, 1, 2, 3]
        router.close(linger=0)


@pytest.mark.parametrize("n_turns", range(6))
async def test_a_send_that_is_cancelled_when_news_come_is_cancelled(n_turns: int, run: Run) -> None:
    """Whatever the loop is at in between. A process that is told to fail would live on else."""
    async with bench("ipc", run) as ends:
        outlet = ends.outlet()
        sending = asyncio.create_task(outlet.send(toy_block(1)))
        for _ in range(5):
            await asyncio.sleep(0)
        outlet._changed.set()
        for _ in range(n_turns):
            await asyncio.sleep(0)
        sending.cancel()
        done, _ = await asyncio.wait([sending], timeout=5)
        assert done


# --- Connections and lives ---


async def test_same_life_over_a_new_connection_is_the_same_peer(run: Run) -> None:
    async with bench("tcp", run) as ends:
        outlet, peer = ends.outlet(), ends.hand_made()
        await peer.join(4)
        await outlet.send(toy_block(1))
        again = ends.hand_made()  # block 1 is under way in the old connection
        again.life, again.of = peer.life, peer.of
        await peer.close()
        await again.credit(4)
        await asyncio.wait_for(outlet.send(toy_block(2)), 20)
        await again.hear()
        assert [block.id for block in again.blocks] == [2]
        assert len(outlet.book.peers) == 1
        assert outlet.credits() == 0


class Relay:
    """A TCP connection in the middle that can be cut."""

    def __init__(self, to: int) -> None:
        self.to, self.port = to, free_port()
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> "Relay":
        self._server = await asyncio.start_server(self._join, "127.0.0.1", self.port)
        return self

    async def _join(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to_reader, to_writer = await asyncio.open_connection("127.0.0.1", self.to)
        self._open += [writer, to_writer]
        for pair in ((reader, to_writer), (to_reader, writer)):
            self._tasks.add(asyncio.create_task(self._pass(*pair)))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    def cut(self) -> None:
        for writer in self._open:
            writer.transport.abort()
        self._open.clear()

    async def __aexit__(self, *_: object) -> None:
        self.cut()
        for task in self._tasks:
            task.cancel()
        self._server.close()


async def test_after_a_cut_the_blocks_flow_and_no_credit_is_lost(run: Run) -> None:
    async with bench("tcp", run) as ends, Relay(ends.config.base_port) as relay:
        outlet, inlet = ends.outlet(), ends.inlet(at=[f"tcp://127.0.0.1:{relay.port}"])
        came: list[int] = []

        async def consume() -> None:
            while (block := await take(inlet)) is not None:
                came.append(block.id)

        consuming = asyncio.create_task(consume())
        for cut in range(3):
            n_before = len(came)
            feeding = asyncio.create_task(send_all(outlet, range(1000 * cut, 1000 * cut + 1000)))
            await until(lambda n=n_before: len(came) > n + 50)  # type: ignore[misc]
            relay.cut()
            await until(feeding.done)  # some blocks are lost in the cut; it goes on
        await outlet.send(toy_block(9999))
        await until(lambda: 9999 in came)
        await until(lambda: outlet.credits() == 32)
        assert len(outlet.book.peers) == 1
        assert came == sorted(set(came))
        assert ends.refused == []
        consuming.cancel()


@both
async def test_restarted_outlet_is_accepted(transport: str, run: Run) -> None:
    async with bench(transport, run) as ends:
        first, inlet = ends.outlet(), ends.inlet()
        await send_all(first, [1, 2])
        assert await take_ids(inlet, 2) == [1, 2]
        await first.close()  # without a word, as a process that dies
        second = await ends.successor()
        assert second.life != first.life
        sending = asyncio.create_task(send_all(second, range(3, 60)))
        assert await take_ids(inlet, 57) == list(range(3, 60))
        await sending
        await until(lambda: second.credits() == 32)


@both
async def test_restarted_inlet_gets_a_full_budget(transport: str, run: Run) -> None:
    async with bench(transport, run) as ends:
        outlet, first = ends.outlet(), ends.inlet()
        await send_all(outlet, range(8))
        await until(lambda: first.waiting() == 8)  # 32 events, none done
        await first.close()
        second = ends.inlet()
        await send_all(outlet, range(8, 16))
        assert await take_ids(second, 8) == list(range(8, 16))


async def test_one_inlet_takes_from_several_outlets(run: Run) -> None:
    async with bench("ipc", run) as ends:
        outlets = [hop.Outlet(ends.context, f"{ends.at}{k}", RUN, ends.config, 1, ends.refused.append) for k in (0, 1)]
        inlet = ends.inlet(at=[f"{ends.at}{k}" for k in (0, 1)])
        await outlets[0].send(toy_block(1))
        await outlets[1].send(toy_block(2))
        assert sorted(await take_ids(inlet, 2)) == [1, 2]
        ending = [asyncio.create_task(outlets[0].end())]
        await outlets[1].send(toy_block(3))  # one end is not all ends
        assert await take_ids(inlet, 1) == [3]
        ending.append(asyncio.create_task(outlets[1].end()))
        assert await take(inlet) is None
        await asyncio.wait_for(asyncio.gather(*ending), 20)
        for outlet in outlets:
            await outlet.close()


# --- Ends ---


@both
async def test_final_end_comes_after_the_last_block(transport: str, run: Run) -> None:
    async with bench(transport, run) as ends:
        outlet, inlet = ends.outlet(), ends.inlet()
        await send_all(outlet, range(5))
        ending = asyncio.create_task(outlet.end())
        assert await take_ids(inlet, 5) == list(range(5))
        assert await take(inlet) is None
        await asyncio.wait_for(ending, 20)


async def test_end_without_anybody_waits_no_longer_than_the_peer_timeout(run: Run) -> None:
    async with bench("ipc", run) as ends:
        ends.set(peer_timeout=0.1)
        await asyncio.wait_for(ends.outlet().end(), 20)


async def test_late_peer_is_told_the_end(run: Run) -> None:
    async with bench("ipc", run) as ends:
        outlet, early = ends.outlet(n_peers=2), ends.inlet("framer-0")
        await outlet.send(toy_block(1))
        ending = asyncio.create_task(outlet.end())
        assert await take_ids(early, 2) == [1]
        assert not ending.done()
        late = ends.inlet("framer-1")
        assert await take(late) is None
        await asyncio.wait_for(ending, 20)


async def test_the_end_waits_for_nobody_whose_successor_has_said_bye(run: Run) -> None:
    async with bench("ipc", run) as ends:
        outlet, first = ends.outlet(), ends.inlet()
        await outlet.send(toy_block(1))
        assert await take_ids(first, 1) == [1]
        await first.close()  # dies
        second = ends.inlet()
        await until(lambda: len(outlet.book.peers) == 2)
        ending = asyncio.create_task(outlet.end())
        assert await take(second) is None
        await asyncio.wait_for(ending, 20)


async def test_who_leaves_gets_what_is_under_way_and_no_more(run: Run) -> None:
    async with bench("ipc", run) as ends:
        outlet, leaving, staying = ends.outlet(2), ends.inlet("framer-0"), ends.inlet("framer-1")
        await until(lambda: outlet.credits() == 64)
        await send_all(outlet, range(10))
        await leaving.leave()
        left = []
        while (block := await take(leaving)) is not None:
            left.append(block.id)
        await until(lambda: len(outlet.book.peers) == 1)
        sending = asyncio.create_task(send_all(outlet, range(10, 20)))
        stayed = await take_ids(staying, 20 - len(left))
        await sending
        assert sorted(left + stayed) == list(range(20))
        assert left
        assert max(left) < 10


async def test_nothing_is_lost_when_one_leaves_amid_the_stream(run: Run) -> None:
    async with bench("ipc", run) as ends:
        outlet, leaving, staying = ends.outlet(2), ends.inlet("framer-0"), ends.inlet("framer-1")
        came: list[int] = []
        await until(lambda: outlet.credits() == 64)
        sending = asyncio.create_task(send_all(outlet, range(300)))

        async def stay() -> None:
            while (block := await take(staying)) is not None:
                came.append(block.id)

        stayer = asyncio.create_task(stay())
        for n in range(300):
            if n == 7:
                await leaving.leave()
            block = await take(leaving)
            if block is None:
                break
            came.append(block.id)
        await sending
        await asyncio.wait_for(outlet.end(), 20)
        await stayer
        assert sorted(came) == list(range(300))


async def test_a_late_replica_takes_its_share(run: Run) -> None:
    async with bench("ipc", run) as ends:
        outlet, early = ends.outlet(2), ends.inlet("framer-0")
        await asyncio.wait_for(outlet.first_credit(), 20)
        sending = asyncio.create_task(send_all(outlet, range(12)))
        await until(lambda: early.waiting() == 8)  # it is full
        late = ends.inlet("framer-1")
        assert await take_ids(late, 4) == [8, 9, 10, 11]
        await sending


async def test_leaving_before_the_first_welcome_ends_at_once(run: Run) -> None:
    async with bench("ipc", run) as ends:
        inlet = ends.inlet()  # nobody is there to welcome it
        await inlet.leave()
        assert await take(inlet) is None


async def test_leaving_an_outlet_that_died_ends_after_the_peer_timeout(run: Run) -> None:
    async with bench("ipc", run) as ends:
        ends.set(peer_timeout=0.2)
        outlet, inlet = ends.outlet(), ends.inlet()
        await outlet.send(toy_block(1))
        assert await take_ids(inlet, 1) == [1]
        await outlet.close()
        await inlet.leave()
        assert await take(inlet) is None


async def test_leaving_an_outlet_that_was_restarted_is_answered(run: Run) -> None:
    async with bench("ipc", run) as ends:
        first, inlet = ends.outlet(), ends.inlet()
        await first.send(toy_block(1))
        assert await take_ids(inlet, 1) == [1]
        await first.close()
        await inlet.leave()
        await ends.successor()  # it has never heard of the one who leaves
        assert await take(inlet) is None


async def test_an_outlet_that_goes_away_can_have_a_successor(run: Run) -> None:
    async with bench("ipc", run) as ends:
        first, inlet = ends.outlet(), ends.inlet()
        await first.send(toy_block(1))
        await asyncio.wait_for(first.end(final=False), 20)
        await first.close()
        second = await ends.successor()
        await second.send(toy_block(2))
        assert await take_ids(inlet, 2) == [1, 2]


async def test_peer_that_comes_while_the_outlet_goes_away_does_not_hold_it(run: Run) -> None:
    async with bench("ipc", run) as ends:
        outlet, slow, other = ends.outlet(2), ends.hand_made("slow-0"), ends.hand_made("other-0")
        await slow.join(10)
        await until(outlet.credits)
        ending = asyncio.create_task(outlet.end(final=False))
        assert (await slow.hear())["kind"] == "end"
        await other.join(10)
        end = await other.hear()
        assert (end["kind"], end["final"]) == ("end", False)
        await other.say("bye")
        await slow.say("bye")
        await asyncio.wait_for(ending, 20)


# --- Commits ---


@both
async def test_commits_arrive(transport: str, run: Run) -> None:
    async with bench(transport, run) as ends:
        came: list[tuple[int, int]] = []
        ends.commits(came)
        sender = ends.committer()
        await sender.commit([], 0.0, 1.0)
        await sender.commit([(1, 3), (5, 5)], 0.0, 1.0)
        many = [(i, i + 1) for i in range(1 << 40, (1 << 40) + 3000, 3)]  # ten messages
        await sender.commit(many, 0.125, 0.75)
        await until(lambda: len(came) == 1002)
        assert came == [(1, 3), (5, 5), *many]
        assert set(ends.ways) == {(0.0, 1.0), (0.125, 0.75)}
        assert ends.refused == []


@both
async def test_a_reader_learns_what_every_writer_has_before_it_feeds(transport: str, run: Run) -> None:
    async with bench(transport, run) as ends:
        much = [(i, i + 1) for i in range(1 << 40, (1 << 40) + 3000, 3)]  # ten messages
        reader = ends.commits([], n_writers=2)
        knows = asyncio.create_task(reader.everything())
        ends.committer(much)
        await until(lambda: ends.told)
        assert ends.told == [(0, much, False)]
        assert not knows.done()
        ends.committer([], name="writer-1")
        await asyncio.wait_for(knows, 20)
        assert ends.told[1:] == [(1, [], False)]
        assert ends.refused == []


async def test_a_reader_that_is_started_again_is_told_anew(run: Run) -> None:
    async with bench("ipc", run) as ends:
        have = [(0, 9)]
        first = ends.commits([])
        writer = ends.committer(have)
        await asyncio.wait_for(first.everything(), 20)
        await first.close()
        have.append((20, 29))
        second = ends.commits([])
        await asyncio.wait_for(second.everything(), 20)
        assert ends.told == [(0, [(0, 9)], False), (0, have, False)]
        await writer.commit([(30, 30)], 0.0, 1.0)


async def test_a_writer_that_is_started_again_is_known_to_be_another(run: Run) -> None:
    async with bench("ipc", run) as ends:
        reader = ends.commits([])
        first = ends.committer([(0, 9)])
        await asyncio.wait_for(reader.everything(), 20)
        await first.close()
        ends.committer([(0, 4)])
        await until(lambda: len(ends.told) == 2)
        assert ends.told == [(0, [(0, 9)], False), (0, [(0, 4)], True)]


# --- Strangers ---


def of_router(hostile: Hostile) -> str:
    """The reason for which a socket for control messages refuses a message of the corpus."""
    if len(hostile.frames) != 1:
        return "frames"
    return hostile.reason if hostile.reason in ("magic", "token") else "header"


async def throw(socket: zmq.asyncio.Socket, hostiles: Sequence[Hostile], route: Sequence[bytes] = ()) -> None:
    for hostile in hostiles:
        await socket.send_multipart([*route, *hostile.frames])


async def assert_refused(ends: Bench, hostiles: Sequence[Hostile], wanted: Sequence[str]) -> None:
    await until(lambda: len(ends.refused) >= len(wanted))
    told = dict(zip([hostile.name for hostile in hostiles], ends.refused, strict=False))
    assert told == dict(zip([hostile.name for hostile in hostiles], wanted, strict=True))


FOR_ROUTERS = [hostile for hostile in hostile_wire.BLOCKS if hostile.fits_router]
TOO_LONG = [hostile for hostile in hostile_wire.BLOCKS if not hostile.fits_router]


@both
async def test_outlet_refuses_the_corpus_and_goes_on(transport: str, run: Run) -> None:
    async with bench(transport, run) as ends:
        outlet, inlet, stranger = ends.outlet(), ends.inlet(), ends.hand_made("stranger-0")
        corpus = [*FOR_ROUTERS, *hostile_wire.TO_OUTLET, *hostile_wire.false_credits(outlet.life)]
        await outlet.first_credit()
        await throw(stranger.socket, corpus)
        wanted = [of_router(h) for h in FOR_ROUTERS] + [h.reason for h in corpus[len(FOR_ROUTERS) :]]
        await assert_refused(ends, corpus, wanted)
        assert [peer.name for peer in outlet.book.peers.values()] == ["framer-0"]
        await outlet.send(toy_block(1))
        assert await take_ids(inlet, 1) == [1]


@both
async def test_reader_refuses_the_corpus_and_goes_on(transport: str, run: Run) -> None:
    async with bench(transport, run) as ends:
        came: list[tuple[int, int]] = []
        reader = ends.commits(came)
        writer, stranger = ends.committer(), ends.hand_made("stranger-0")
        corpus = [*FOR_ROUTERS, *hostile_wire.TO_READER, *hostile_wire.false_haves(reader.life)]
        await throw(stranger.socket, corpus)
        wanted = [of_router(h) for h in FOR_ROUTERS] + [h.reason for h in corpus[len(FOR_ROUTERS) :]]
        await assert_refused(ends, corpus, wanted)
        assert came == ends.deaths == []
        await writer.commit([(7, 8)], 0.0, 1.0)
        await until(lambda: came == [(7, 8)])


async def test_a_death_is_told_until_it_is_noted_and_counts_once(run: Run) -> None:
    async with bench("ipc", run) as ends:
        death, tell = Death("a life", [(8, 15), (40, 40)]), (RUN, ends.config, "tagger-0", "died of SIGFPE")
        telling = [asyncio.create_task(report_death(ends.context, ends.at, *tell, death)) for _ in range(2)]
        await asyncio.sleep(0)
        ends.commits([])  # only now somebody listens
        await asyncio.gather(*telling)
        assert ends.deaths == [("tagger-0", "died of SIGFPE", [(8, 15), (40, 40)])]


async def test_writer_refuses_the_corpus_and_goes_on(run: Run) -> None:
    async with bench("ipc", run) as ends:
        router, _ = ends.router(), ends.committer([(3, 4)])
        route, _ = await router.recv_multipart()
        await throw(router, hostile_wire.TO_WRITER, [route])
        await assert_refused(ends, hostile_wire.TO_WRITER, [h.reason for h in hostile_wire.TO_WRITER])
        await router.send_multipart([route, message({"kind": "welcome", "run": RUN, "life": "new"})])
        while (said := read_header((await router.recv_multipart())[1]))["kind"] != "have":
            pass
        assert (said["of"], said["name"], said["ids"]) == ("new", "writer-0", [[3, 4]])
        router.close(linger=0)


@both
async def test_inlet_refuses_the_corpus_and_goes_on(transport: str, run: Run) -> None:
    async with bench(transport, run) as ends:
        router, inlet = ends.router(), ends.inlet()
        route, _ = await router.recv_multipart()
        corpus = [*hostile_wire.BLOCKS, *hostile_wire.TO_INLET]
        # What has a kind of its own is not taken for a block.
        await throw(router, corpus, [route])
        await assert_refused(ends, corpus, [hostile.reason for hostile in corpus])
        await router.send_multipart([route, *good()])
        block = await take(inlet)
        assert block is not None
        assert block.n_events == 5
        router.close(linger=0)


@both
@pytest.mark.parametrize("hostile", TOO_LONG, ids=lambda hostile: hostile.name)
async def test_who_sends_too_much_to_an_outlet_is_cut_off(transport: str, hostile: Hostile, run: Run) -> None:
    async with bench(transport, run) as ends:
        outlet, inlet, stranger = ends.outlet(), ends.inlet(), ends.hand_made("stranger-0")
        watch = stranger.socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        await stranger.socket.send_multipart(hostile.frames)
        await asyncio.wait_for(watch.recv_multipart(), 20)
        await outlet.send(toy_block(1))
        assert await take_ids(inlet, 1) == [1]
        stranger.socket.disable_monitor()


async def test_stranger_without_the_token_gets_nothing(run: Run) -> None:
    async with bench("tcp", run) as ends:
        outlet = ends.outlet()
        stranger = ends.hand_made("stranger-0", run="a guess")
        await stranger.credit(1_000_000)
        stranger.of = outlet.life  # even if it knew whom to ask
        await stranger.credit(1_000_000)
        await stranger.say("leave")
        await until(lambda: len(ends.refused) == 3)
        assert ends.refused == ["token"] * 3
        assert outlet.credits() == 0
        inlet = ends.inlet()
        sending = asyncio.create_task(send_all(outlet, range(20)))
        assert await take_ids(inlet, 20) == list(range(20))
        await sending
        assert not await stranger.socket.poll(0)


async def test_stranger_without_the_token_cannot_commit(run: Run) -> None:
    async with bench("tcp", run) as ends:
        came: list[tuple[int, int]] = []
        ends.commits(came)
        await ends.committer(run="a guess").commit([(1, 1000)], 0.0, 1.0)
        await until(lambda: ends.refused)
        await ends.committer().commit([(2, 2)], 0.0, 1.0)
        await until(lambda: came)
        assert came == [(2, 2)]
        assert set(ends.refused) == {"token"}


async def test_stranger_cannot_end_the_stream(run: Run) -> None:
    async with bench("ipc", run) as ends:
        router, inlet = ends.router(), ends.inlet()
        route, _ = await router.recv_multipart()
        await router.send_multipart([route, message({"kind": "end", "run": "a guess", "life": "l", "final": True})])
        await router.send_multipart([route, *good()])
        assert await take(inlet) is not None
        assert ends.refused == ["token"]
        router.close(linger=0)


# --- Addresses ---


async def test_port_in_use_is_told_with_a_hint(run: Run) -> None:
    async with bench("tcp", run) as ends:
        ends.outlet()
        with pytest.raises(UsageError, match=r"127\.0\.0\.1:\d+ cannot be bound .*in use.*hop\.base_port"):
            ends.outlet()
        with pytest.raises(UsageError, match=r"hop\.base_port"):
            ends.commits([])


async def test_folder_that_cannot_hold_a_socket_is_told_with_a_hint(run: Run) -> None:
    async with bench("ipc", run) as ends:
        ends.folder = f"{run.dir}/{'long' * 40}"
        with pytest.raises(UsageError, match=r"cannot be bound .*too long.*the run's folder"):
            ends.outlet()


async def test_what_was_left_open_does_not_keep_who_leaves(run: Run) -> None:
    context, config = new_context(), HopConfig()
    ends = [bound_router(context, f"ipc://{run.dir}/left", config), dealer(context, f"ipc://{run.dir}/away", config)]
    leaving = threading.Thread(target=context.destroy, args=(0,), daemon=True)
    leaving.start()
    await asyncio.to_thread(leaving.join, 20)
    assert not leaving.is_alive()
    assert len(ends) == 2, "they were there all the time"


def test_every_outlet_has_its_own_address() -> None:
    tcp = HopConfig(transport="tcp", base_port=20000)
    assert hop.address(tcp, "/run/x", 3, "framer-1") == "tcp://127.0.0.1:20003"
    assert hop.address(HopConfig(), "/run/x", 3, "framer-1") == "ipc:///run/x/framer-1"
