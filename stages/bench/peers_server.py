"""What the servers of `streamer bench peers` have in common: the network behind them, and how they start and end."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil

from stages import PIPELINE
from stages.config import Config
from stages.model import Model
from stages.network import threads_of
from streamer.child import died
from streamer.errors import StreamerError

END_S = 10.0
"""So long a server may take for its end; what is then left of it is killed."""


def load(path: Path) -> Config:
    """The configuration that a server is given."""
    config = PIPELINE.load_config(path)
    assert isinstance(config, Config)
    return config


class Scorer:
    """The network of a configuration's one tagger, for requests that hold a dense crop of float32 each."""

    def __init__(self, config: Path) -> None:
        loaded = load(config)
        ((name, spec),) = loaded.taggers.items()
        self.model = Model(name, spec.model, spec, loaded.tagger.provider, threads_of(loaded))
        self.shape, self.max_batch = spec.shape, loaded.tagger.max_batch

    def answers(self, bodies: Sequence[bytes]) -> list[bytes]:
        """A float32 for each request."""
        batch = np.frombuffer(b"".join(bodies), np.float32).reshape(len(bodies), *self.shape)
        return [score.tobytes() for score in self.model.scores(batch)]


@contextmanager
def serving(name: str, module: str, arguments: Sequence[str], log: Path) -> Iterator["Served"]:
    """Run a server, `python -m module arguments`, and end it with all its children, come what may."""
    with log.open("wb") as said:
        process = start(module, arguments, said.fileno())
    try:
        yield Served(name, process, log)
    finally:
        end(process)


def start(module: str, arguments: Sequence[str], stderr: int) -> subprocess.Popen[bytes]:
    """Start a process that Ctrl-C does not reach, and whose standard input ends with this one."""
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=stderr,
        start_new_session=True,
    )


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process to end, and kill what is left of its session after `END_S`."""
    try:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


class Served:
    """A server that runs."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name, self._process, self._log = name, process, log

    def cpu_s(self) -> float:
        """Processor time of all its processes up to now [s]."""
        main = psutil.Process(self._process.pid)
        times = [one.cpu_times() for one in (main, *main.children(recursive=True))]
        return sum(one.user + one.system for one in times)

    def watch(self, client: subprocess.Popen[bytes], log: Path, timeout: float) -> None:
        """Wait for the end of a client.

        Raises
        ------
        StreamerError
            The server or the client failed, or the client has not ended after `timeout` seconds.
        """
        until = time.monotonic() + timeout
        while client.poll() is None:
            if (code := self._process.poll()) is not None:
                raise StreamerError(f"bench peers: the server {self.name} {died(code)}{_last_words(self._log)}")
            if time.monotonic() > until:
                raise StreamerError(f"bench peers: {self.name} has not answered within {timeout:g} s")
            time.sleep(0.02)
        if client.returncode:
            raise StreamerError(f"bench peers: the client of {self.name} {died(client.returncode)}{_last_words(log)}")


def _last_words(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return f": {' '.join(lines[-1].split())[:300]}" if lines else ""
