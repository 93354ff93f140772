"""Configuration: typed, checked as a whole before anything starts, printable with comments.

A pipeline subclasses `CoreConfig` with the sections of its own stages. A TOML file, `--set key=value` and the
command line's own options are laid over the defaults in that order. Every problem is reported at once, an unknown
key with the nearest known one.
"""

import contextlib
import json
import math
import pkgutil
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, time
from importlib import import_module
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from streamer.arrivals import FILLING, ORBIT_HZ, filling_of, rate_of_pileup
from streamer.errors import UsageError, nearest

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "min": 60.0, "h": 3600.0}


def _seconds(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*(us|ms|s|min|h)?\s*", value)
    if match is None:
        raise ValueError(f"{value!r} is not a time; write '5 ms', '2 s' or a number of seconds")
    return float(match[1]) * _UNITS[match[2] or "s"]


Seconds = Annotated[float, BeforeValidator(_seconds), Field(ge=0, allow_inf_nan=False)]
"""A span of time: a number of seconds, or a text such as '5 ms'."""

PositiveSeconds = Annotated[Seconds, Field(gt=0)]


MAX_REPLICAS = 64

SHORTEST_S = 0.1
"""Lumisections are at least so long; the books hold a line for each."""


def lumisection_of(text: str) -> tuple[float, int]:
    """How long the feed's lumisections are: seconds, or events; the other is 0, and both are for an empty text.

    Raises
    ------
    ValueError
        It is neither.
    """
    if not text.strip():
        return 0.0, 0
    if match := re.fullmatch(r"\s*(\d+)\s*events?\s*", text):
        seconds, events = 0.0, int(match[1])
    else:
        seconds, events = (_seconds(text) if re.search("[a-z]", text) else 0.0), 0
    if not events and not SHORTEST_S <= seconds < math.inf:
        raise ValueError(f"{text!r} is no length of a lumisection; write '23.31 s', '10000 events', at least 0.1 s")
    return seconds, events


class Section(BaseModel):
    """A table of the configuration. Unknown keys are errors, and so are numbers that are not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)


class FeedConfig(Section):
    """How events leave the reader."""

    events: int = Field(0, ge=0)
    """Stop after this many events; 0 = all there are."""
    duration: Seconds = 0.0
    """Stop before the first event that is due later than this after the start; 0 = never. A feed without a rate stops
    after this time, and so does one that waits for the chain. A run that goes on, and a reader that is started again,
    have what was left."""
    lumisection: str = ""
    """Count lumisections by the feed's clock, each so long: '23.31 s', as CMS has them, or '10000 events'; empty = as
    the input tells them."""
    lumisections: int = Field(0, ge=0)
    """Stop before the first event of another lumisection when so many have been fed; 0 = never."""
    rate: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Events per second; 0 = as fast as the chain takes them."""
    arrivals: Literal["even", "poisson", "bunches", "recorded"] = "even"
    """With a rate: events come at equal distances; at random ones, independent of each other; or when bunches meet.
    `recorded`, without a rate: as the input's own time stamps say."""
    speed: float = Field(1.0, gt=0)
    """For `recorded`: so many times as fast as that."""
    max_gap: PositiveSeconds = 60.0
    """For `recorded`: events are at most so long apart; a longer gap, as of a wrong time stamp, is cut to this."""
    profile: tuple[tuple[PositiveSeconds, Annotated[float, Field(ge=0)]], ...] = ()
    """The rate by time instead: `[["10 s", 500], ["1 s", 3000]]` is 500 a second for 10 s, then 3000, and so on."""
    filling: str = FILLING
    """The bunches of an orbit, for `bunches`: 12b are bunches, 35e empty slots, 3(48b 7e) three times what it holds."""
    pileup: float = Field(0.0, ge=0)
    """For `bunches` in place of a rate: the mean number of collisions, by which a crossing is fed by chance."""
    seed: int = Field(0, ge=0, le=(1 << 32) - 1)
    """Of random arrivals."""
    overflow: Literal["wait", "drop"] = "wait"
    """What the chain cannot take when it is due waits, or is dropped and counted as dead time, as in a trigger."""
    deadline: Seconds = 0.0
    """An event that cannot be answered so long after it was due is shed as early as possible; 0 = never."""
    loop: bool = False
    """Start again at the end of the input until stopped; the output column `replay` counts the passes."""
    block_events: int = Field(256, ge=1, le=65536)
    """At most so many events travel in one block."""
    block_wait: Seconds = 0.001
    """At low rates a block is closed when its first event has waited so long; where blocks are long on their way, half
    of that, and at most 32 times as long as this, for fewer blocks are less work. With a `deadline` it is never longer
    than a sixteenth of that, however long this is."""
    read_ahead: int = Field(2, ge=1, le=64)
    """Steps of the input read before they are needed."""
    max_in_flight: int = Field(8192, ge=1)
    """Events that may be under way, fed but not yet on disk. This is the back-pressure."""
    max_in_flight_mb: int = Field(1024, ge=1, le=1 << 20)
    """... and no more are fed while these hold so much [MB]."""
    redeliver_after: PositiveSeconds = 30.0
    """A block that is not on disk after this time is sent again."""

    @field_validator("lumisection")
    @classmethod
    def _time_or_events(cls, text: str) -> str:
        lumisection_of(text)
        return text

    @field_validator("filling")
    @classmethod
    def _with_bunches(cls, filling: str) -> str:
        filling_of(filling)
        return filling

    @model_validator(mode="after")
    def _one_rate(self) -> "FeedConfig":
        if self.arrivals == "recorded":
            if self.hertz:
                raise ValueError("'arrivals' = \"recorded\" has times of its own; leave out 'rate' and 'profile'")
        elif self.speed != 1 or self.max_gap != type(self).model_fields["max_gap"].default:
            raise ValueError("'speed' and 'max_gap' have an effect only with 'arrivals' = \"recorded\"")
        elif self.overflow == "drop" and not self.hertz:
            raise ValueError("'overflow' = \"drop\" is for live feeds; set a 'rate' or a 'profile'")
        elif self.arrivals == "poisson" and not self.hertz:
            raise ValueError("'arrivals' = \"poisson\" needs a 'rate' above 0, or a 'profile'")
        if self.deadline and not self.hertz and self.arrivals != "recorded":
            raise ValueError(
                "'deadline' counts from when events are due, and these never are; set a 'rate' or a 'profile'"
            )
        if self.profile and not any(rate for _, rate in self.profile):
            raise ValueError("'profile' has no rate above 0; no event would ever come")
        if self.profile and (self.rate or self.arrivals == "bunches"):
            raise ValueError("'profile' has rates of its own; leave out 'rate', and 'arrivals' = \"bunches\"")
        if self.pileup and (self.rate or self.arrivals != "bunches"):
            raise ValueError("'pileup' takes the place of 'rate', with 'arrivals' = \"bunches\"")
        crossings = ORBIT_HZ * len(filling_of(self.filling))
        if self.arrivals == "bunches" and not 0 < self.hertz <= crossings:
            raise ValueError(f"bunches meet {crossings:,.0f} times a second; set 'rate' to at most that, or 'pileup'")
        return self

    @property
    def hertz(self) -> float:
        """Events a second on average; 0 = as fast as the chain takes them."""
        if self.profile:
            return sum(length * rate for length, rate in self.profile) / sum(length for length, _ in self.profile)
        return rate_of_pileup(filling_of(self.filling), self.pileup) if self.pileup else self.rate


class HopConfig(Section):
    """The ZeroMQ links between the stages."""

    transport: str = Field("ipc", pattern="^(ipc|tcp)$")
    """`ipc` (this machine, the fastest) or `tcp` (loopback)."""
    host: str = Field("127.0.0.1", pattern=r"^(127\.\d+\.\d+\.\d+)$")
    """Address that tcp links bind to; loopback only."""
    base_port: int = Field(15550, ge=1024, le=65000)
    """First tcp port; the replicas of a stage take up to 64, those of the next stage the next 64."""
    credit_events: int = Field(512, ge=1)
    """Events that a replica takes ahead from each replica before it."""
    heartbeat: PositiveSeconds = 1.0
    """How often a replica repeats what it can take."""
    peer_timeout: PositiveSeconds = 10.0
    """A replica that was silent for so long is given nothing more until it speaks again."""
    max_message_mb: int = Field(256, ge=1, le=4096)
    """A larger frame is refused and its sender disconnected."""

    @model_validator(mode="after")
    def _alive_between_heartbeats(self) -> "HopConfig":
        if self.peer_timeout <= self.heartbeat:
            raise ValueError("'peer_timeout' must be longer than 'heartbeat', or every replica seems dead in between")
        return self


class SupervisorConfig(Section):
    """How `streamer run` keeps its processes alive."""

    restart_limit: int = Field(20, ge=0)
    """A process that has died more often within `restart_interval` is given up, and the run stops."""
    restart_interval: PositiveSeconds = 300.0
    """See `restart_limit`."""
    backoff: PositiveSeconds = 0.1
    """Wait before a process is started again; twice as long after each death, up to `backoff_max`."""
    backoff_max: PositiveSeconds = 10.0
    """See `backoff`."""
    stall_timeout: PositiveSeconds = 60.0
    """A process that is at one piece of work for so long, or does not answer, is killed and started again."""
    start_timeout: PositiveSeconds = 600.0
    """... and so is one that is not ready after this time; some models take minutes to compile."""


class MetricsConfig(Section):
    """Where every process serves /metrics and /healthz."""

    host: str = Field("127.0.0.1", pattern=r"^(127\.\d+\.\d+\.\d+)$")
    """Loopback address to serve on."""
    base_port: int = Field(0, ge=0, le=65000)
    """Port of the first process, the others follow in chain order; 0 = any free port."""


class MonitorConfig(Section):
    """The live page of a run."""

    on: bool = False
    """Serve it."""
    host: str = "127.0.0.1"
    """Address to serve on. Beyond loopback the page asks for a token."""
    port: int = Field(0, ge=0, le=65535)
    """0 = any free port."""
    token: str = ""
    """What the address must carry; made up where it is needed and none is given."""
    token_file: Path | None = None
    """A file that holds it instead, so that it stands in no configuration and no log."""

    @model_validator(mode="after")
    def _one_token(self) -> "MonitorConfig":
        if self.token and self.token_file:
            raise ValueError("'token' and 'token_file' are two tokens; leave one out")
        return self

    @property
    def is_loopback(self) -> bool:
        return self.host == "localhost" or self.host.startswith("127.") or self.host == "::1"


class QualityConfig(Section):
    """How the data are held against those of a good run."""

    reference: Path | None = None
    """The file of a good run, made by `streamer reference`; without one nothing is compared."""
    window: PositiveSeconds = 60.0
    """The distributions of the last so many seconds are compared."""
    events: int = Field(500, ge=50)
    """With fewer entries in the window, or in the reference, nothing is said."""

    @field_validator("reference", mode="before")
    @classmethod
    def _none(cls, reference: Any) -> Any:
        """`--set quality.reference=` leaves it out."""
        return None if reference == "" else reference


class TraceConfig(Section):
    """Traces of some events' ways through the chain, for OpenTelemetry."""

    share: float = Field(0.0, ge=0, le=1)
    """So large a share of the events is traced; 0 = none. Needs the extra `trace`."""
    endpoint: str = ""
    """Where a collector takes OTLP over HTTP, such as http://127.0.0.1:4318; empty = as OTEL_EXPORTER_OTLP_ENDPOINT
    says, or else there."""

    @field_validator("endpoint")
    @classmethod
    def _open(cls, endpoint: str) -> str:
        if endpoint and not re.fullmatch(r"https?://[^\s/?#]+(/[^\s?#]*)?", endpoint):
            raise ValueError("not an address such as http://127.0.0.1:4318")
        if "@" in endpoint:
            raise ValueError("a password would stand in the run's books; put it into OTEL_EXPORTER_OTLP_HEADERS")
        return endpoint


LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL")


class LogConfig(Section):
    """What is told on standard error, and how."""

    level: str = "INFO"
    """The least that is told: DEBUG, INFO, WARNING, ERROR or CRITICAL; of some packages apart, as in
    'INFO,streamer.hop=DEBUG'."""
    format: Literal["pretty", "json"] = "pretty"
    """For people, or a JSON object a line."""

    @field_validator("level")
    @classmethod
    def _known(cls, text: str) -> str:
        levels_of(text)
        return text

    @property
    def levels(self) -> dict[str, str]:
        """The level of each package that is named, and under "" that of all others."""
        return levels_of(self.level)


def levels_of(text: str) -> dict[str, str]:
    """`WARNING,streamer.hop=DEBUG` as a level for each package; "" stands for all others.

    Raises
    ------
    ValueError
        It names a level that there is not.
    """
    levels = {"": "INFO"}
    for part in text.split(","):
        package, _, level = part.rpartition("=")
        name = level.strip().upper()
        if name not in LEVELS:
            known = f"{', '.join(LEVELS)}, or streamer.hop=DEBUG for a package"
            raise ValueError(f"{level.strip()!r} is no level{nearest(name, LEVELS)}; write {known}")
        levels[package.strip()] = name
    return levels


def _modules(package: str) -> list[str]:
    """A package and all that is in it, by name; nothing is imported but the package."""
    paths = getattr(import_module(package), "__path__", ())
    found = [package]
    for module in pkgutil.iter_modules(paths, f"{package}."):
        found += _modules(module.name) if module.ispkg else [module.name]
    return found


class CoreConfig(Section):
    """What every pipeline can be told. Pipelines add the sections of their stages."""

    feed: FeedConfig = FeedConfig()
    hop: HopConfig = HopConfig()
    log: LogConfig = LogConfig()
    metrics: MetricsConfig = MetricsConfig()
    monitor: MonitorConfig = MonitorConfig()
    quality: QualityConfig = QualityConfig()
    supervisor: SupervisorConfig = SupervisorConfig()
    trace: TraceConfig = TraceConfig()
    replicas: dict[str, Annotated[int, Field(ge=1, le=MAX_REPLICAS)]] = {}
    """Processes per stage, such as `framer = 2`; 1 where nothing is said."""

    @model_validator(mode="after")
    def _our_packages(self) -> "CoreConfig":
        names = [name for name in self.log.levels if name]
        if names:
            ours = {kind.__module__.partition(".")[0] for kind in type(self).__mro__ if issubclass(kind, CoreConfig)}
            known = [name for package in sorted(ours) for name in _modules(package)]
            for name in names:
                if name not in known:
                    packages = " and ".join(sorted(ours))
                    raise ValueError(
                        f"'log.level' names '{name}', which is no package or module of {packages}{nearest(name, known)}"
                    )
        return self

    @property
    def books(self) -> Path | None:
        """Folder for the books of what was fed; None keeps none."""
        return None

    @property
    def disk_patience(self) -> float:
        """For how long a disk that does not take the books is tried again [s]."""
        return 0.0

    @property
    def commit_interval(self) -> float:
        """How often results are brought to disk [s]."""
        return 0.0

    @property
    def deadline(self) -> float:
        """When an event is worth nothing any more, from when it was due [s]; 0 = never."""
        return self.feed.deadline

    @property
    def output(self) -> Path | None:
        """The folder that people know the run by."""
        return None

    def n_replicas(self, stage: str) -> int:
        return self.replicas.get(stage, 1)

    def for_this_machine(self, stages: Sequence[str]) -> "CoreConfig":
        """With what is left open filled in, for a run of these stages on one machine. Processes that are started one by
        one, perhaps on several machines, must agree without that."""
        return self


C = TypeVar("C", bound=CoreConfig)


def load(model: type[C], path: Path | None = None, overrides: Mapping[str, Any] | None = None) -> C:
    """The effective configuration.

    Parameters
    ----------
    model : type
        The pipeline's `CoreConfig`.
    path : Path, optional
        A TOML file.
    overrides : mapping, optional
        Dotted keys (`tagger.max_batch`) to values, laid over the file.

    Raises
    ------
    UsageError
        With one line per problem.
    """
    data: dict[str, Any] = {}
    if path is not None:
        try:
            data = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"{path}: cannot be read ({error.strerror})") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UsageError(f"{path}: not valid TOML: {error}") from None
    return _laid_over(model, data, overrides or {}, str(path) if path else "configuration")


def changed(config: C, settings: Mapping[str, Any]) -> C:
    """A configuration with some settings changed (dotted keys to values).

    Raises
    ------
    UsageError
        With one line per problem.
    """
    return _laid_over(type(config), config.model_dump(mode="json"), settings, "settings")


def _laid_over(model: type[C], data: dict[str, Any], settings: Mapping[str, Any], where: str) -> C:
    for key, value in settings.items():
        _set(data, key, value)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UsageError("\n".join(f"{where}: {line}" for line in problems(error, model))) from None


def parse_set(text: str) -> tuple[str, Any]:
    """`key=value` of `--set`; the value is read as TOML, and as plain text where it is none."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"--set {text!r}: write key=value, such as --set tagger.max_batch=32")
    with contextlib.suppress(tomllib.TOMLDecodeError):
        read = tomllib.loads(f"value = {value}")
        if len(read) == 1 and not isinstance(read["value"], date | time):  # no setting is a date, but a folder may be
            return key.strip(), read["value"]
    return key.strip(), value.strip()


def _set(data: dict[str, Any], key: str, value: Any) -> None:
    *tables, last = key.split(".")
    for table in tables:
        data = data.setdefault(table, {})
        if not isinstance(data, dict):
            raise UsageError(f"--set {key}: '{table}' is a value, not a table")
    if value != {}:  # an empty table only says that there is one
        data[last] = value
    else:
        data.setdefault(last, {})


def problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One line per problem that pydantic found, with the nearest known key for an unknown one."""
    lines = []
    for item in error.errors():
        location = [str(part) for part in item["loc"]]
        name = ".".join(location)
        if item["type"] == "extra_forbidden":
            known = _fields_at(model, location[:-1])
            lines.append(f"unknown key '{name}'{nearest(location[-1], known)}")
        else:
            message = item["msg"].removeprefix("Value error, ")
            given = "" if isinstance(item.get("input"), dict | list) else f" (it is {item.get('input')!r})"
            lines += [f"'{name}': {line}{given}" if name else line for line in message.splitlines()]
    return lines


def _fields_at(model: type[BaseModel], location: Iterable[str]) -> list[str]:
    current: Any = model
    for part in location:
        if isinstance(current, type) and issubclass(current, BaseModel):
            field = current.model_fields.get(part)
            current = field.annotation if field else None
        elif get_origin(current) is dict:
            current = get_args(current)[1]
        if get_origin(current) in (Union, UnionType):
            current = get_args(current)[0]
    return list(current.model_fields) if isinstance(current, type) and issubclass(current, BaseModel) else []


def to_toml(config: CoreConfig) -> str:
    """The effective configuration as commented TOML, which `load` reads back to an equal object."""
    lines: list[str] = []
    _write_table(config, "", lines)
    return "\n".join(lines).strip() + "\n"


def _write_table(section: BaseModel, prefix: str, lines: list[str]) -> None:
    tables: list[tuple[str, Any, str]] = []
    for name, info in type(section).model_fields.items():
        value = getattr(section, name)
        doc = " ".join((info.description or "").split())
        if isinstance(value, BaseModel | dict):
            tables.append((name, value, doc))
            continue
        if doc:
            lines.append(f"# {doc}")
        lines.append(f"{name} = {_toml(value)}" if value is not None else f"# {name} =")
    for name, value, doc in tables:
        path = f"{prefix}{name}"
        if isinstance(value, BaseModel):
            lines += ["", f"[{path}]"]
            summary = (type(value).__doc__ or "").strip().splitlines()
            lines += [f"# {summary[0]}"] if summary else []
            _write_table(value, f"{path}.", lines)
        elif value and all(isinstance(entry, BaseModel) for entry in value.values()):
            for key, entry in value.items():
                quoted = key if re.fullmatch("[A-Za-z0-9_-]+", key) else _toml(key)
                lines += ["", f"[{path}.{quoted}]"]
                _write_table(entry, f"{path}.{quoted}.", lines)
        elif value and all(isinstance(entry, dict) for entry in value.values()):
            for key, entry in value.items():
                lines += ["", f"[{path}.{_toml(key)}]"] + ([f"# {doc}"] if doc else [])
                lines += [f"{_toml(inner)} = {_toml(one)}" for inner, one in entry.items()]
        else:
            lines += ["", f"[{path}]"] + ([f"# {doc}"] if doc else [])
            lines += [f"{_toml(key)} = {_toml(entry)}" for key, entry in value.items()]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_toml(entry) for entry in value) + "]"
    # TOML's basic strings are JSON's, but for DEL and for characters that JSON may write as two.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
