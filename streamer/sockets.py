"""ZeroMQ sockets in the event loop. The only file that speaks ZeroMQ.

pyzmq's own asynchronous sockets make futures for each message and ask ZeroMQ several times what it may do next; with
small blocks that was a third of what moving one costs. Here a message that is there is taken, one that can be sent is
sent, and the loop is only asked when there is nothing to take.
"""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import zmq

from streamer.config import HopConfig
from streamer.errors import UsageError

MAX_CONTROL_BYTES = 4096

_NOBLOCK = int(zmq.NOBLOCK)
_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_IN = int(zmq.POLLIN)
RETRY_S = 1e-3
"""A message that ZeroMQ does not take now is tried again so soon; only control messages to somebody who is away."""


class Unroutable(Exception):  # noqa: N818 - the field's word
    """The connection of whom a router was to tell something is gone."""


def new_context() -> zmq.Context[Any]:
    return zmq.Context()


class Socket:
    """A socket of which one task receives."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket, self._fd = socket, int(socket.getsockopt(zmq.FD))
        self._loop = asyncio.get_running_loop()
        self._waiter: asyncio.Future[None] | None = None
        self._loop.add_reader(self._fd, self._stirred)

    def _stirred(self) -> None:
        """Something has changed, perhaps; ZeroMQ tells so once."""
        if self._waiter is not None:
            if not self._waiter.done():
                self._waiter.set_result(None)
        else:  # it is to fall silent; whoever receives next looks first
            self._socket.getsockopt(zmq.EVENTS)

    async def receive(self) -> list[memoryview]:
        """The frames of the next message."""
        while True:
            try:
                return [frame.buffer for frame in self._socket.recv_multipart(_NOBLOCK, copy=False)]
            except zmq.Again:
                pass
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None

    async def send(self, frames: Sequence[Any]) -> None:
        """Send a message; a router's begins with whom it is for.

        Raises
        ------
        Unroutable
            The connection is gone.
        """
        while True:
            try:
                for frame in frames[:-1]:
                    self._socket.send(frame, _MORE, copy=False)
                self._socket.send(frames[-1], _NOBLOCK, copy=False)
                break
            except zmq.Again:
                await asyncio.sleep(RETRY_S)
            except zmq.ZMQError as error:
                if error.errno == zmq.EHOSTUNREACH:
                    raise Unroutable from None
                raise
        if self._waiter is not None and int(self._socket.getsockopt(zmq.EVENTS)) & _IN:
            self._stirred()  # what came while ZeroMQ sent, it does not tell of again

    def close(self, linger: int) -> None:
        """Let go of it; what was sent has `linger` ms to go out."""
        if not self._socket.closed:
            self._loop.remove_reader(self._fd)
            self._socket.close(linger=linger)


def dealer(context: zmq.Context[Any], at: str, config: HopConfig) -> Socket:
    """A socket that goes on trying to reach `at`."""
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER, socket_class=zmq.Socket)
    socket.setsockopt(zmq.MAXMSGSIZE, config.max_message_mb << 20)
    socket.setsockopt(zmq.RECONNECT_IVL, 50)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 200)  # who was started again is found as soon as it listens
    socket.connect(at)
    return Socket(socket)


def bound_router(context: zmq.Context[Any], at: str, config: HopConfig) -> Socket:
    """A socket that answers whoever comes to `at`.

    Raises
    ------
    UsageError
        The address is taken.
    """
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER, socket_class=zmq.Socket)
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_CONTROL_BYTES)  # a router is only ever told control messages
    socket.setsockopt(zmq.SNDHWM, 0)  # the credits bound what is queued; ZeroMQ's own limit would drop a slow peer
    try:
        socket.bind(at)
    except zmq.ZMQError as error:
        socket.close(linger=0)
        hint = "set hop.base_port to free ports"
        if config.transport == "ipc":
            hint = "the run's folder must be there, be writable and have a short path"
        raise UsageError(f"{at} cannot be bound ({os.strerror(error.errno or 0)}); {hint}") from None
    return Socket(socket)


async def say(socket: Socket, route: bytes, text: bytes) -> bool:
    """Send a router's control message; False when the peer's connection is gone."""
    try:
        await socket.send([route, text])
    except Unroutable:  # when it comes back it will speak first
        return False
    return True
