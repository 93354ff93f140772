"""A peer of the tagger for `streamer bench peers`: mosec, a batching server in Rust with workers in Python.

`python -m stages.bench.peers_mosec CONFIG --address 127.0.0.1 --port N --path FOLDER` serves until it is ended; the
options are mosec's own.
"""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from mosec import Server, Worker

from stages.bench.peers_server import Scorer, load
from streamer.orphan import die_with_parent

CONFIG = "STREAMER_PEERS_CONFIG"


class CropWorker(Worker):  # type: ignore[misc]
    """Scores requests whose body is a crop and nothing else."""

    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self._scorer = Scorer(Path(os.environ[CONFIG]))

    def deserialize(self, data: bytes) -> bytes:
        return data

    def serialize(self, data: bytes) -> bytes:
        return data

    def forward(self, data: Sequence[bytes]) -> list[bytes]:
        return self._scorer.answers(data)


def serve(config: Path) -> None:
    """Serve with one worker, and the configured largest batch and longest wait."""
    tagger = load(config).tagger
    wait_ms = max(1, round(tagger.max_wait * 1e3))
    server = Server()
    server.append_worker(
        CropWorker, max_batch_size=tagger.max_batch, max_wait_time=wait_ms, env=[{CONFIG: str(config)}]
    )
    server.run()


if __name__ == "__main__":
    die_with_parent(signal.SIGTERM)  # on which mosec ends its other processes
    serve(Path(sys.argv[1]))
