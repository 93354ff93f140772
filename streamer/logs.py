"""The log: structured records, a line each, which one process writes in one form.

A process of a stage hands its records to the supervisor on standard error: a JSON object behind a record separator (as
in RFC 7464), so that a line of a C library is not mistaken for one. Whoever has no supervisor writes them itself, for
people or as JSON lines:

=====================  ======================================================================================
time                   UTC, such as `2026-11-29T13:43:08.123Z`
level, logger          `WARNING`, `streamer.hop`
message                text; where there was an exception `traceback` beside it
run, stage, replica    who says it; `supervisor` where it is no stage
block, or blocks       what was worked on: the first event's sequence number, of each block of a batch
event                  the sequence number, where it is about one event
trace_id               of that event, where it is traced (`streamer.tracing`)
run_number,            of that event, or of the whole block
lumisection
left_out               so many lines like this were not written (`streamer.thinning`)
=====================  ======================================================================================
"""

import json
import logging
import os
import sys
from collections.abc import AsyncIterator
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Protocol

from streamer.thinning import Thinning

if TYPE_CHECKING:
    from streamer.block import Block
    from streamer.config import LogConfig
    from streamer.tracing import Sampling

FIELDS = ("run", "stage", "replica", "block", "blocks", "event", "trace_id", "run_number", "lumisection", "left_out")
MOST_CHARS = 8192
"""A longer message or traceback loses its middle."""
MOST_BLOCKS = 64
"""Of a batch that spans more blocks, the first ones are named."""
MAX_LINE = 1 << 17
"""A longer line of a process is taken for several."""
SEPARATOR = "\x1e"
FOREIGN = "stderr"
"""The logger's name of what is no record: words of a C library, or of the interpreter."""
FOREIGN_BURST = 200
NOISY = ("asyncio", "fsspec", "matplotlib", "numba", "urllib3")
"""Libraries that have much to say; warnings of theirs are told."""
SUPERVISOR = "supervisor"

working: ContextVar[tuple["Block", ...]] = ContextVar("working", default=())
"""The blocks that are worked on by the code that runs; set by the black box."""

_CONTROL = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if code != ord("\t")}
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))
_who: dict[str, Any] = {}
_json = False
_levels: list[str] = []
_sampling: "Sampling | None" = None


class _Stream(Protocol):
    async def read(self, n: int = -1, /) -> bytes: ...


# ---- records


def stamp(record: logging.LogRecord) -> None:
    """Give a record the fields that are known where and when it is made."""
    fields = record.__dict__
    if "stage" not in fields:
        fields.update(_who)
    blocks = working.get()
    if not blocks or "block" in fields or "blocks" in fields:
        return
    if len(blocks) > 1:
        fields["blocks"] = [block.id for block in blocks[:MOST_BLOCKS]]
        return
    from streamer.fedbook import lumis_of  # which logs, too

    (block,) = blocks
    fields["block"] = block.id
    if block.n_events == 1:
        fields.setdefault("event", block.id)
    place = fields.get("event", -1) - block.id
    if _sampling is not None and "event" in fields and _sampling.of(fields["event"], 1):
        fields["trace_id"] = f"{_sampling.trace_id(fields['event']):032x}"
    lumis = lumis_of(block, slice(place, place + 1) if 0 <= place < block.n_events else slice(None))
    if len(lumis) == 1:
        fields["run_number"], fields["lumisection"] = lumis[0][:2]


def to_json(record: logging.LogRecord) -> str:
    """A record as one line of JSON."""
    told = {
        "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": record.levelname,
        "logger": record.name,
        "message": _clipped(record.getMessage()),
        **{name: record.__dict__[name] for name in FIELDS if name in record.__dict__},
    }
    if traceback := _traceback(record):
        told["traceback"] = _clipped(traceback)
    return json.dumps(told, ensure_ascii=False)


def from_json(line: bytes) -> logging.LogRecord | None:
    """The record of a line; None where it is none."""
    try:
        told = json.loads(line)
        number = logging.getLevelNamesMapping()[told["level"]]
        record = logging.makeLogRecord({name: told[name] for name in FIELDS if _is_plain(told.get(name))})
        record.created = datetime.fromisoformat(told["time"]).astimezone(UTC).timestamp()
        record.name, record.msg = str(told["logger"]), str(told["message"])
        record.exc_text = str(told.get("traceback") or "")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    record.levelno, record.levelname = number, told["level"]
    return record


def _is_plain(value: object) -> bool:
    return isinstance(value, str | int) or (isinstance(value, list) and all(isinstance(one, int) for one in value))


def to_text(record: logging.LogRecord) -> str:
    """A record for people, without its time and level: `[tagger-0 block 512] ...`."""
    fields = record.__dict__
    stage = fields.get("stage", SUPERVISOR)
    who = [f"{stage}-{fields.get('replica', '?')}"] if stage != SUPERVISOR else []
    if "block" in fields:
        who.append(f"block {fields['block']}")
    text = _clipped(record.getMessage()).translate(_CONTROL)
    return f"[{' '.join(who)}] {text}" if who else text


def _traceback(record: logging.LogRecord) -> str:
    if record.exc_info and not record.exc_text:
        record.exc_text = logging.Formatter().formatException(record.exc_info)
    return record.exc_text or ""


def _clipped(text: str) -> str:
    half = MOST_CHARS // 2
    short = text if len(text) <= MOST_CHARS else f"{text[:half]} ... {text[-half:]}"
    return short.encode(errors="replace").decode()  # names of files may hold what is no text


# ---- how they are written


class Pretty(logging.Formatter):
    """For people.

    Parameters
    ----------
    level, time : bool
        Whether lines begin with these; a terminal shows the level itself, and needs no time.
    journal : bool
        Whether systemd's journal reads them: it knows the time, and is told the level of each line.
    """

    def __init__(self, *, level: bool = True, time: bool = False, journal: bool = False) -> None:
        super().__init__()
        self._level, self._time, self._journal = level, time and not journal, journal

    def format(self, record: logging.LogRecord) -> str:
        words = [to_text(record)]
        if self._level:
            words.insert(0, record.levelname)
        if self._time:
            at = datetime.fromtimestamp(record.created, UTC)
            words.insert(0, f"{at:%Y-%m-%d %H:%M:%S}.{at.microsecond // 1000:03d}Z")
        traceback = _traceback(record)
        text = " ".join(words) + (f"\n{traceback}" if traceback else "")
        if self._journal:
            return "\n".join(f"{_priority(record.levelno)}{line}" for line in text.splitlines())
        return text


def to_journal() -> bool:
    """Whether standard error goes to systemd's journal, by `$JOURNAL_STREAM`."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _priority(level: int) -> str:
    """A level as sd-daemon(3) has it, which the journal takes off the line: `journalctl --priority=warning`."""
    return f"<{next(number for least, number in _PRIORITIES if level >= least)}>"


class Json(logging.Formatter):
    """JSON lines; a process of a stage puts a separator in front of each."""

    def __init__(self, separator: str = "") -> None:
        super().__init__()
        self._separator = separator

    def format(self, record: logging.LogRecord) -> str:
        return self._separator + to_json(record)


class Teller(logging.StreamHandler[Any]):
    """Writes records to standard error, with all their fields.

    Parameters
    ----------
    thinning : Thinning, optional
        Without it, every line is written.
    """

    def __init__(self, formatter: logging.Formatter, thinning: Thinning | None = None) -> None:
        super().__init__(sys.stderr)
        self.setFormatter(formatter)
        self._thinning = thinning

    def emit(self, record: logging.LogRecord) -> None:
        stamp(record)
        if self._thinning is None or self._thinning.takes(record):
            super().emit(record)

    def tidy(self, *, all_: bool = False) -> None:
        """Tell how many lines were left out, of those kinds whose time is over."""
        if self._thinning is not None:
            self.acquire()
            try:
                for record in self._thinning.left_out(all_=all_):
                    super().emit(record)
            finally:
                self.release()

    def close(self) -> None:
        self.tidy(all_=True)
        super().close()


def set_up(config: "LogConfig", handler: logging.Handler | None = None, *, time: bool = False) -> None:
    """Log to standard error, by the configuration.

    Parameters
    ----------
    handler : logging.Handler, optional
        For people in place of plain lines.
    time : bool
        Whether plain lines begin with it.
    """
    global _json
    _json = config.format == "json"
    if _json or handler is None:
        handler = Teller(Json() if _json else Pretty(time=time, journal=to_journal()))
    _install(config, handler)


def set_up_stage(config: "LogConfig", run: str, stage: str, replica: int, *, supervised: bool) -> None:
    """Log from a process of a stage: by the configuration, or as records for the supervisor."""
    identify(run=run, stage=stage, replica=replica)
    structured = Json(SEPARATOR) if supervised else Json()
    formatter = structured if supervised or config.format == "json" else Pretty(time=True, journal=to_journal())
    _install(config, Teller(formatter, Thinning()))


def _install(config: "LogConfig", handler: logging.Handler) -> None:
    logging.captureWarnings(config.format == "json")
    logging.basicConfig(handlers=[handler], force=True)
    for name in _levels:
        logging.getLogger(name).setLevel(logging.NOTSET)
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    levels = config.levels
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    _levels[:] = [name for name in levels if name]


def identify(**who: Any) -> None:
    """Name the run, stage and replica that this process's records are of."""
    global _sampling
    _who.clear()
    _who.update(who)
    _sampling = None


def name_traces(sampling: "Sampling") -> None:
    """Name the trace in a line about an event that is traced."""
    global _sampling
    _sampling = sampling


def tidy() -> None:
    """Tell what was left out; to be called now and then."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, Teller):
            handler.tidy()


def is_structured() -> bool:
    """Whether JSON is written, and nothing else may stand between."""
    return _json


def say(text: str, level: int = logging.ERROR, who: str = "streamer: ") -> None:
    """A word of the command itself on standard error; a record where these are wanted."""
    if _json:
        logging.getLogger("streamer").log(level, "%s", text)
    else:
        print(f"{_priority(level) if to_journal() else ''}{who}{text}", file=sys.stderr, flush=True)


# ---- what comes from a process of a stage


async def lines(stream: _Stream, most: int = MAX_LINE) -> AsyncIterator[bytes]:
    """The lines of a process; one of more than `most` bytes comes in pieces."""
    rest = b""
    while chunk := await stream.read(1 << 16):
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line
        while len(rest) > most:
            yield rest[:most]
            rest = rest[most:]
    if rest:
        yield rest


class Passing:
    """Passes on what a process of a stage says: its records with their fields, and other text as a warning of its."""

    def __init__(self, stage: str, replica: int) -> None:
        self._who = {"stage": stage, "replica": replica}
        self._thinning = Thinning(FOREIGN_BURST)

    def line(self, line: bytes) -> None:
        """Pass on a line."""
        text, *records = line.split(SEPARATOR.encode())
        self._foreign(text)
        for data in records:
            record = from_json(data)
            if record is None:
                self._foreign(data)
            else:
                _pass_on(record)
        self.tidy()

    def tidy(self, *, all_: bool = False) -> None:
        """Tell how much text was left out."""
        for record in self._thinning.left_out(all_=all_):
            _pass_on(record)

    def _foreign(self, text: bytes) -> None:
        if not text.strip():
            return
        fields = {"name": FOREIGN, "msg": text.decode(errors="replace").rstrip(), **_who, **self._who}
        record = logging.makeLogRecord({"levelno": logging.WARNING, "levelname": "WARNING", **fields})
        if self._thinning.takes(record):
            _pass_on(record)


def _pass_on(record: logging.LogRecord) -> None:
    logger = logging.getLogger(record.name)
    if logger.isEnabledFor(record.levelno):
        logger.handle(record)
