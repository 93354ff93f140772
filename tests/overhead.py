"""What it costs a stream to be watched: with its page open and scraped every second, traced at 1 %, and with all off.

    python tests/overhead.py --rounds 5 --events 120000

All ways take turns, each a run at full speed; told are the rates, and processor time of the stages per event, as ratios
to the run of the same round that nobody watched. Needs the extra `trace`.
"""

import argparse
import json
import logging
import sys
import tempfile
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from stages import PIPELINE
from stages.bench.pipeline import sustained
from stages.bench.ways import marks, run_through
from stages.config import packaged

WAYS = {"off": (False, False), "page": (True, False), "traces": (False, True), "all": (True, True)}
"""Whether somebody looks at the page, and whether a collector takes traces."""


def collector(tell: Connection) -> None:
    """Takes traces and forgets them."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    tell.send(server.server_port)
    server.serve_forever()


@contextmanager
def looked_at(page: str, seen: dict[str, int]) -> Iterator[None]:
    """Somebody has the page open, and scrapes every process once a second."""
    over = threading.Event()

    def follow() -> None:
        while not over.wait(0.1):
            try:
                with urllib.request.urlopen(f"{page}/events", timeout=3) as stream:
                    while not over.is_set() and (line := stream.readline()):
                        seen["updates"] += line.startswith(b"data")
            except OSError:
                continue

    def scrape() -> None:
        while not over.wait(1.0):
            try:
                for one in json.load(urllib.request.urlopen(f"{page}/targets", timeout=3)):
                    urllib.request.urlopen(f"http://{one['targets'][0]}/metrics", timeout=3).read()
                    seen["scrapes"] += 1
            except OSError:
                continue

    threads = [threading.Thread(target=work, daemon=True) for work in (follow, scrape)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        over.set()
        for thread in threads:
            thread.join(5)


def measure(way: str, n_events: int, port: int, endpoint: str) -> tuple[float, float]:
    """Events a second, and processor time of all stages per event [s]."""
    watched, traced = WAYS[way]
    seen = {"updates": 0, "scrapes": 0}
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        settings: dict[str, Any] = {
            "input.files": [packaged("samples/egamma.root")],
            "taggers.eg": {},
            "writer.dir": f"{folder}/out",
            "feed.loop": True,
            "feed.events": n_events,
            "monitor.on": watched,
            "monitor.port": port,
        }
        if traced:
            settings |= {"trace.share": 0.01, "trace.endpoint": endpoint}
        config = PIPELINE.load_config(None, settings)
        with looked_at(f"http://127.0.0.1:{port}", seen):
            outcome, summary = run_through(PIPELINE, config, lambda progress: None)
        rate = sustained(*marks(outcome, summary))
    cpu = sum(report["cpu_s"] for report in outcome.reports.values()) / n_events
    print(f"{way:7} {rate:8,.0f} events/s  {cpu * 1e6:6.1f} us/event  {seen}", file=sys.stderr, flush=True)
    return rate, cpu


def main() -> None:
    head, _, rest = str(__doc__).partition("\n\n")
    parser = argparse.ArgumentParser(description=head, epilog=rest, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often all take turns (default 5)")
    parser.add_argument("--events", type=int, default=120_000, help="events of a run (default 120000)")
    parser.add_argument("--port", type=int, default=9653, help="of the page (default 9653)")
    given = parser.parse_args()
    logging.getLogger().setLevel(logging.ERROR)
    told, tell = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=collector, args=(tell,), daemon=True)
    process.start()
    endpoint = f"http://127.0.0.1:{told.recv()}"
    measure("off", given.events, given.port, endpoint)  # compiles
    rounds = [{way: measure(way, given.events, given.port, endpoint) for way in WAYS} for _ in range(given.rounds)]
    process.terminate()
    for way in list(WAYS)[1:]:
        rate, cpu = (float(np.median([one[way][k] / one["off"][k] for one in rounds])) for k in (0, 1))
        print(f"{way:7} {rate:.3f} of the throughput, {cpu:.3f} of the processor time")


if __name__ == "__main__":
    main()
