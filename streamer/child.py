"""One process of the pipeline as its supervisor sees it."""

import contextlib
import re
import signal
import time
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

import psutil
from prometheus_client.parser import text_string_to_metric_families

from streamer.errors import one_line
from streamer.forkserver import Running
from streamer.logs import Passing

SCRAPE_S = 2.0
"""A metrics page has so long to answer."""
MOST_BYTES = 4 << 20
"""... and is no longer than this."""
WANTED = frozenset({"process_cpu_seconds_total", "streamer_event_latency_seconds_bucket"})
"""Samples that are looked at besides our own counters and gauges."""

_NAME = re.compile(r"[a-z_]+")


@dataclass
class Child:
    """One process of the pipeline as the supervisor sees it.

    Attributes
    ----------
    slot : int
        Counts the processes; tells their metrics ports apart.
    since : float
        When it was started (`time.monotonic`).
    looked : float
        When we had its metrics page last, or had waited for it in vain (`time.monotonic`).
    silent_s : float
        For how long that page has not answered.
    restarts : int
        How many were started in its place.
    retiring : bool
        It is to leave for good, because fewer replicas are wanted.
    changed : int
        The number of the last change that it has made.
    log : Passing
        Passes on what it says on standard error.
    """

    stage: str
    replica: int
    process: Running
    state: str = "starting"
    metrics_url: str = ""
    error: str = ""
    again: bool = True  # whether it may help to start it again
    exit_code: int | None = None
    ended_at: float | None = None
    slot: int = 0
    since: float = field(default_factory=time.monotonic)
    looked: float = field(default_factory=time.monotonic)
    silent_s: float = 0.0
    restarts: int = 0
    retiring: bool = False
    changed: int = 0
    deaths: list[float] = field(default_factory=list)
    report: dict[str, Any] = field(default_factory=dict)
    values: dict[str, float] = field(default_factory=dict)
    log: Passing = field(init=False)

    def __post_init__(self) -> None:
        self.log = Passing(self.stage, self.replica)

    @property
    def name(self) -> str:
        return f"{self.stage}-{self.replica}"

    def status(self) -> dict[str, Any]:
        """A row for people."""
        memory = 0
        with contextlib.suppress(psutil.Error):
            memory = psutil.Process(self.process.pid).memory_info().rss
        return {
            "name": self.name,
            "state": "restarting" if self.exit_code is not None and not self.report else self.state,
            "pid": self.process.pid,
            "up_s": time.monotonic() - self.since,
            "restarts": self.restarts,
            "events": int(self.values.get("streamer_events_total/ok", 0)),
            "errors": int(self.values.get("streamer_events_total/error", 0)),
            "blocks": int(self.values.get("streamer_blocks_in_flight", 0)),
            "work_age_s": self.values.get("streamer_work_age_seconds", 0.0),
            "rss_bytes": memory,
            "metrics": self.metrics_url,
        }


def died(code: int) -> str:
    """How a process ended, by its exit code."""
    if code < 0:
        return f"died of {signal.Signals(-code).name}"
    return f"ended with code {code}" if code else "left before the end of the stream"


def fetched(url: str) -> bytes:
    """A metrics page as it stands.

    Raises
    ------
    OSError
        Nobody answers, or what answers does not speak HTTP.
    """
    try:
        with urllib.request.urlopen(url, timeout=SCRAPE_S) as page:
            found: bytes = page.read(MOST_BYTES)
    except HTTPException as error:
        raise ConnectionError(f"{url}: answers in no HTTP ({one_line(error)})") from error
    return found


def scrape(url: str, wanted: frozenset[str] = WANTED) -> dict[str, float]:
    """The samples of a metrics page: name, or name/label for the one label that is not `stage`.

    Parameters
    ----------
    wanted : set of str
        Names of samples that are looked at besides our own counters and gauges, such as those of buckets.

    Raises
    ------
    OSError
        As `fetched`.
    ValueError
        It is no page of metrics.
    """

    def is_wanted(line: str) -> bool:
        found = _NAME.match(line)
        name = found[0] if found else ""
        return name in wanted or (name.startswith("streamer_") and not name.endswith("_bucket"))

    lines = fetched(url).decode().splitlines(keepends=True)
    values: dict[str, float] = {}
    try:
        families = [*text_string_to_metric_families("".join(filter(is_wanted, lines)))]  # parsing is what costs
    except IndexError as error:  # the parser's, for some lines
        raise ValueError(f"{url}: is no page of metrics") from error
    for family in families:
        for sample in family.samples:
            labels = ",".join(v for k, v in sorted(sample.labels.items()) if k != "stage")
            values[f"{sample.name}/{labels}" if labels else sample.name] = sample.value
    return values
