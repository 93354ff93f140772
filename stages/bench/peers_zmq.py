"""A peer of the tagger for `streamer bench peers`: a batching server as one writes it by hand over ZeroMQ.

It takes whatever waits, up to the largest batch, and knows nothing of books, blocks, credit or deadlines.
`python -m stages.bench.peers_zmq CONFIG ADDRESS` serves until it is ended.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import zmq

from streamer.orphan import die_with_parent


def serve(address: str, answers: Callable[[Sequence[bytes]], list[bytes]], max_batch: int) -> None:
    """Score single crops: `[number, crop]` is answered by `[number, score]`."""
    router: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.ROUTER)
    router.set_hwm(0)
    router.bind(address)
    while True:
        waiting = [router.recv_multipart()]
        while len(waiting) < max_batch:
            try:
                waiting.append(router.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                break
        scores = answers([crop for _, _, crop in waiting])
        for (client, number, _), score in zip(waiting, scores, strict=True):
            router.send_multipart((client, number, score))


class Dealer:
    """The client's end; a `stages.bench.peers_client.Link`."""

    def __init__(self, address: str) -> None:
        self._socket: zmq.Socket[bytes] = zmq.Context.instance().socket(zmq.DEALER)
        self._socket.set_hwm(0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.connect(address)

    def fileno(self) -> int:
        return int(self._socket.fd)

    def ask(self, number: int, body: bytes) -> None:
        self._socket.send_multipart((number.to_bytes(8), body))

    def answers(self) -> Iterator[tuple[int, bytes]]:
        while True:  # to the last one: the descriptor tells only of what comes after that
            try:
                number, score = self._socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            yield int.from_bytes(number), score


if __name__ == "__main__":
    die_with_parent()
    from stages.bench.peers_server import Scorer  # the client has no need of it

    scorer = Scorer(Path(sys.argv[1]))
    serve(sys.argv[2], scorer.answers, scorer.max_batch)
