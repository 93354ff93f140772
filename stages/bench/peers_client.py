"""The client of `streamer bench peers`, in a process of its own: asks when it is time, notes when the answer came.

`python -m stages.bench.peers_client KIND ADDRESS FOLDER RATE SECONDS MOST SEED`: the crops are in `FOLDER/crops.npy`,
and what came of them is left in `FOLDER/answers.npz`.
"""

import select
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from stages.bench.peers_zmq import Dealer
from streamer.block import Array
from streamer.orphan import die_with_parent

CROPS, ANSWERS = "crops.npy", "answers.npz"
SCORE = struct.Struct("=f")
START_S, PATIENCE_S = 60.0, 10.0
"""So long a server may take to start, and for its last answers."""


class Link(Protocol):
    """A connection to a server."""

    def fileno(self) -> int:
        """What is readable when there are answers."""

    def ask(self, number: int, body: bytes) -> None:
        """Send a request."""

    def answers(self) -> Iterator[tuple[int, bytes]]:
        """Numbers and scores that have come."""


class Http:
    """So many kept connections to an HTTP server on loopback, with one request at a time on each."""

    def __init__(self, address: str, connections: int) -> None:
        host, _, port = address.partition(":")
        self._head = f"POST /inference HTTP/1.1\r\nHost: {address}\r\nContent-Length: ".encode()
        self._epoll = select.epoll()
        self._free: list[socket.socket] = []
        self._busy: dict[int, tuple[int, socket.socket, bytes]] = {}  # by descriptor: what has come of the answer
        until = time.monotonic() + START_S
        while len(self._free) < connections:
            try:
                made = socket.create_connection((host, int(port)))
            except ConnectionRefusedError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)
                continue
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._epoll.register(made, select.EPOLLIN)
            self._free.append(made)

    def close(self) -> None:
        for connection in (*self._free, *(connection for _, connection, _ in self._busy.values())):
            connection.close()
        self._epoll.close()

    def fileno(self) -> int:
        return self._epoll.fileno()

    def ask(self, number: int, body: bytes) -> None:
        connection = self._free.pop()
        self._busy[connection.fileno()] = number, connection, b""
        connection.sendall(b"%b%d\r\n\r\n%b" % (self._head, len(body), body))

    def answers(self) -> Iterator[tuple[int, bytes]]:
        for descriptor, _ in self._epoll.poll(0):
            number, connection, came = self._busy[descriptor]
            got = connection.recv(65536)
            if not got:
                raise ConnectionError("the server closed a connection")
            came += got
            head, complete, body = came.partition(b"\r\n\r\n")
            if not complete or len(body) < _length(head):
                self._busy[descriptor] = number, connection, came
                continue
            if b" 200 " not in head.partition(b"\r\n")[0]:
                raise ConnectionError(f"the server answered {came[:200].decode(errors='replace')}")
            del self._busy[descriptor]
            self._free.append(connection)
            yield number, body


def _length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])


def first_answer(link: Link, body: bytes) -> None:
    """Wait until the server is there, and warm."""
    until = time.monotonic() + START_S
    link.ask(0, body)
    while not list(link.answers()):
        if time.monotonic() > until:
            raise TimeoutError(f"no answer within {START_S:g} s of the start")
        select.select([link], [], [], 0.1)


def poisson(rate: float, seconds: float, seed: int) -> Iterator[float]:
    """When requests are due [s], `rate` a second at random distances."""
    random, due = np.random.default_rng(seed), 0.0
    while (due := due + random.exponential(1 / rate)) < seconds:
        yield due


def always(seconds: float) -> Iterator[float]:
    """A request is due whenever one can be sent."""
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        yield 0.0


def drive(
    link: Link, bodies: Sequence[bytes], due: Iterator[float], seconds: float, most: int
) -> tuple[Array, Array, Array]:
    """Send requests, the bodies again and again, and wait for their answers.

    Parameters
    ----------
    due : iterator of float
        When each request is due [s from now], for `seconds`.
    most : int
        So many may be unanswered; what is due then has to wait.

    Returns
    -------
    due, at : float64, shape (n,)
        When each request was due, and answered [s]; infinite if it was not.
    scores : float32, shape (n,)
    """
    asked: list[float] = []
    at: list[float] = []
    scores: list[float] = []
    n_open, upcoming = 0, next(due, np.inf)
    begin = time.perf_counter()
    while n_open or upcoming < np.inf:
        now = time.perf_counter() - begin
        while upcoming <= now and n_open < most:
            link.ask(len(asked), bodies[len(asked) % len(bodies)])
            asked.append(upcoming)
            at.append(np.inf)
            scores.append(np.nan)
            n_open, upcoming = n_open + 1, next(due, np.inf)
        n_before = n_open
        for number, score in link.answers():
            at[number] = time.perf_counter() - begin
            (scores[number],) = SCORE.unpack(score)
            n_open -= 1
        if now > seconds + PATIENCE_S:
            break
        if n_open == n_before:
            wait_s = upcoming - (time.perf_counter() - begin) if n_open < most else np.inf
            select.select([link], [], [], min(max(0.0, wait_s), 0.1))
    return np.array(asked), np.array(at), np.array(scores, np.float32)


def main(kind: str, address: str, folder: Path, rate: float, seconds: float, most: int, seed: int) -> None:
    """One stream of requests."""
    bodies = [crop.tobytes() for crop in np.load(folder / CROPS)]
    link: Link = Dealer(address) if kind == "zmq" else Http(address, most)
    first_answer(link, bodies[0])
    arrivals = poisson(rate, seconds, seed) if rate else always(seconds)
    begin, used = time.perf_counter(), time.thread_time()
    due, at, scores = drive(link, bodies, arrivals, seconds, most)
    busy = (time.thread_time() - used) / (time.perf_counter() - begin)
    np.savez(folder / ANSWERS, due=due, at=at, scores=scores, busy=busy)


if __name__ == "__main__":
    die_with_parent()
    kind, address, folder, rate, seconds, most, seed = sys.argv[1:]
    main(kind, address, Path(folder), float(rate), float(seconds), int(most), int(seed))
