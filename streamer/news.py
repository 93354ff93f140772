"""What a process of a run tells its supervisor on standard output: a JSON object a line. Nothing of it is trusted: a
library may write there, too."""

import json
import math
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, field_validator, model_validator


class _Told(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class Report(_Told):
    """The last words of a process: what the final table is made of, and what its role and stage add.

    Attributes
    ----------
    metrics : dict
        What it has counted, by name and labels; numbers that are not finite are left out.
    cpu_s, moving_cpu_s : float
        Processor time since it was running [s].
    complete : bool
        Whether everything has come out.
    first_fed_ns, last_done_ns : int
        Unix time [ns].
    latency_s, commit_latency_s : dict
        Quantiles [s].
    """

    metrics: dict[str, float]
    cpu_s: float
    moving_cpu_s: float
    rss_bytes: int
    complete: bool = False
    first_fed_ns: int = 0
    last_done_ns: int = 0
    latency_s: dict[str, float] = {}
    commit_latency_s: dict[str, float] = {}
    output: str = ""
    provider: str = ""

    @field_validator("metrics")
    @classmethod
    def _finite(cls, metrics: dict[str, float]) -> dict[str, float]:
        return {name: value for name, value in metrics.items() if math.isfinite(value)}


class Failure(_Told):
    """An event that could not be processed; `again` is the command that tries it again."""

    again: str


class News(_Told):
    """One line.

    Attributes
    ----------
    state : str
        `streamer.lifecycle.STATES`.
    metrics : str
        Address of its metrics.
    error, again
        Why it has failed, and whether it may help to start it again.
    prepared, refused
        The number of a change for which it is ready, or why it is not.
    changed : int
        The number of a change that it has made.
    glimpse : dict
        An event for the page.
    """

    state: Literal["starting", "ready", "running", "draining", "stopped", "failed"]
    metrics: str | None = None
    error: str | None = None
    again: bool | None = None
    report: Report | None = None
    prepared: int | None = None
    refused: str = ""
    changed: int | None = None
    glimpse: dict[str, Any] | None = None
    failures: list[Failure] = []

    @field_validator("metrics")
    @classmethod
    def _with_port(cls, address: str | None) -> str | None:
        if address is not None and (urlsplit(address).scheme != "http" or not urlsplit(address).port):
            raise ValueError("no address of metrics")
        return address

    @model_validator(mode="after")
    def _answers(self) -> "News":
        if self.prepared is not None and "refused" not in self.model_fields_set:
            raise ValueError("'prepared' without 'refused'")
        return self


def read(line: bytes) -> News | None:
    """What a line tells; None where it is none of ours."""
    try:
        return News.model_validate(json.loads(line))
    except (ValueError, RecursionError):  # not JSON, or of another form
        return None
