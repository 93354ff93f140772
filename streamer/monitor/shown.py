"""What people are shown of a run: on the page, in `top`, and by the service manager."""

import contextlib
import logging
import os
import time
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import urlsplit

from streamer import __version__, logs
from streamer.child import Child
from streamer.config import CoreConfig
from streamer.monitor.drift import Drift
from streamer.monitor.watch import SERIES, Seen, Watch, verdict
from streamer.news import News
from streamer.pipeline import Pipeline
from streamer.reference import fitting

log = logging.getLogger(__name__)

SHOWN_DOWN_S = 3.0
"""A process that has just been started again is shown so: it is back sooner than anybody looks."""
GLIMPSES = 24
"""So many events can be looked at."""
FAILURES = 20
"""So many of the last events that failed are shown."""
SAID, MOST_SAID = 50, 500
"""So many warnings are kept, and so many characters of each."""


class Shown:
    """A run as it is seen.

    Attributes
    ----------
    watch : Watch
        Rates, latencies and states over time.
    drift : Drift
        What the data look like, against the reference.
    """

    def __init__(self, pipeline: Pipeline, config: CoreConfig) -> None:
        self._config, self._begun = config, time.time()
        self.watch = Watch(pipeline.names)
        quantities, reference = pipeline.quantities(config), config.quality.reference
        self.drift = Drift(quantities, config.quality, fitting(reference, quantities) if reference else None)
        self._said: deque[dict[str, Any]] = deque(maxlen=SAID)
        self._glimpses: deque[dict[str, Any]] = deque(maxlen=GLIMPSES)
        self._failures: dict[str, dict[str, Any]] = {}  # the last ones, by the command that tries each again

    def look(self, children: Iterable[Child]) -> None:
        """Take in what the processes count now; to be called once a second."""
        now, seen = time.time(), [as_seen(child) for child in children]
        self.watch.look(now, seen)
        self.drift.look(now, seen)
        for line in self.drift.news():
            log.warning(line)

    def leaves(self, child: Child) -> None:
        """Take in the last words of a process that is not looked at any more."""
        self.drift.take(as_seen(child))

    def hear(self, news: News) -> None:
        """Keep the events that a process tells of."""
        if news.glimpse:
            self._glimpses.append(news.glimpse)
        remember(self._failures, [failure.model_dump() for failure in news.failures])

    @contextlib.contextmanager
    def hearing(self) -> Iterator[None]:
        """Keep what is logged as a warning or worse."""
        said = self._said

        class Hearing(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                try:
                    text = logs.to_text(record)[:MOST_SAID]
                    said.append({"at": record.created, "level": record.levelname, "text": text})
                except Exception:
                    self.handleError(record)

        handler = Hearing(logging.WARNING)
        logging.getLogger().addHandler(handler)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(handler)

    def everything(self, state: str) -> dict[str, Any]:
        """What the page and `top` show, as plain data; `state` is the run's, in one word."""
        output = self._config.output
        run = {
            "output": str(output) if output else "",
            "pid": os.getpid(),
            "begun": self._begun,
            "version": __version__,
        }
        told: dict[str, Any] = {}
        if self.watch.state:
            told = {"verdict": self.verdict(state), "quality": self.drift.shown, "window": self._config.quality.window}
        last = {"said": list(self._said), "events": list(self._glimpses), "failures": [*self._failures.values()]}
        return {"state": state, "run": run, **self.watch.state, **told, **last}

    def verdict(self, state: str) -> list[tuple[str, str]]:
        """How the run does, in a few words."""
        return verdict(state, self.watch.state, self.drift.largest_now())

    def history(self) -> dict[str, Any]:
        """The last minutes, for charts."""
        return {"series": SERIES, "rows": list(self.watch.history)}


def as_seen(child: Child) -> Seen:
    """A process at this moment."""
    row = child.status()
    about = {key: row[key] for key in ("pid", "up_s", "restarts", "rss_bytes")}
    back = bool(child.restarts) and row["up_s"] < SHOWN_DOWN_S and child.exit_code is None
    state = "restarting" if back or (row["state"] == "starting" and child.restarts) else row["state"]
    return Seen(child.stage, child.replica, state, child.restarts, child.values, about)


def targets(children: Iterable[Child], run: str, page: str) -> list[dict[str, Any]]:
    """Where metrics are, in the form of Prometheus' HTTP service discovery; `page` is the live page's host and port."""
    places = [(c.stage, c.replica, urlsplit(c.metrics_url).netloc) for c in children if c.exit_code is None]
    return [
        {"targets": [place], "labels": {"run": run, "stage": stage, "replica": str(replica)}}
        for stage, replica, place in (("supervisor", 0, page), *places)
        if place
    ]


def remember(kept: dict[str, dict[str, Any]], failures: Iterable[dict[str, Any]]) -> None:
    """Keep the last events that failed, each once, by the command that tries it again."""
    for one in failures:
        kept.pop(one["again"], None)  # it has failed before, in an earlier pass over the input
        kept[one["again"]] = one
    while len(kept) > FAILURES:
        del kept[next(iter(kept))]
