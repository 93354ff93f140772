"""`streamer top`: the live page in a terminal, for ssh."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from streamer.errors import StreamerError
from streamer.reference import LARGE, NOTABLE
from streamer.report import duration

STYLES = {"good": "green", "warn": "yellow", "bad": "bold red", "": ""}
MARKS = {"good": "✔ ", "warn": "▲ ", "bad": "✖ ", "": ""}
STATES = {"running": "green", "restarting": "red", "failed": "red", "stopped": "dim"}
BARS = " ▁▂▃▄▅▆▇█"
MOST_KEPT = 600
NARROW = 100
"""A terminal of fewer columns is not given all."""


def watch(look: Callable[[bool], dict[str, Any]], console: Console, seconds: float = 0.0, every: float = 1.0) -> None:
    """Show a run until it is over, or for some time.

    Parameters
    ----------
    look : callable
        What there is to show; with the history, where that is asked for.
    seconds : float
        0 = until it is over.
    """
    first = look(True)
    names, rows = first.pop("series"), first.pop("rows")
    rates: deque[float] = deque((row[1 + names.index("done")] or 0.0 for row in rows), maxlen=MOST_KEPT)
    end = time.monotonic() + seconds
    with Live(
        screen_of(first, rates, console), console=console, screen=console.is_terminal, auto_refresh=False
    ) as live:
        while not seconds or time.monotonic() < end:
            time.sleep(every)
            try:
                state = look(False)
            except (OSError, StreamerError):  # it is over
                return
            if state.get("rates"):
                rates.append(state["rates"]["done"])
            live.update(screen_of(state, rates, console), refresh=True)


def screen_of(state: dict[str, Any], rates: deque[float], console: Console) -> RenderableType:
    """All that fits."""
    run = state["run"]
    head = Text.assemble(("streamer ", "bold"), (f" {state['state']} ", "reverse"), f"  {run['output']}", no_wrap=True)
    if "stages" not in state:
        return head
    told = Text("   ").join(Text(MARKS[kind] + text, STYLES[kind]) for kind, text in state["verdict"])
    wide = console.width >= NARROW
    line = Text.assemble(("rate ", "dim"), (f"{state['rates']['done']:,.0f}/s", "bold"))
    for q, seconds in state["latency"].items():
        line.append(f"   p{float(q) * 100:.0f} ", "dim").append(duration(seconds))
    line.append("   dead time ", "dim").append(f"{state['dead']:.1%}")
    line.append("   in flight ", "dim").append(f"{state['totals']['in_flight']:,}")
    parts: list[RenderableType] = [
        head,
        told,
        Text(),
        line,
        _spark(rates, console.width),
        Text(),
        _chain(state, wide=wide),
    ]
    parts += [Text(), _ledger(state["totals"]), Text(), _batches(state["batches"], wide=wide)]
    if drift := _drift(state["quality"], console.width):
        parts += [Text(), drift]
    if state["said"]:
        said = [
            Text(f"{time.strftime('%H:%M:%S', time.localtime(one['at']))} {one['text']}") for one in state["said"][-5:]
        ]
        parts.append(Panel(Group(*said), title="warnings", title_align="left", border_style="dim"))
    return Group(*parts)


def _spark(rates: deque[float], width: int) -> Text:
    shown = list(rates)[-width:]
    most = max(shown, default=0.0) or 1.0
    return Text("".join(BARS[round(rate / most * (len(BARS) - 1))] for rate in shown), "cyan", no_wrap=True)


def _drift(quality: list[dict[str, Any]], width: int) -> Text | None:
    """The scores of each tagger against the reference, and what else is far from it; in a line, as much as fits."""
    known = sorted((one for one in quality if one["drift"] is not None), key=lambda one: -one["drift"])
    if not known:
        return None
    line = Text("drift ", "dim", no_wrap=True, overflow="ellipsis")
    for one in known:
        if one["quantity"] == "score" or one["drift"] >= NOTABLE:
            style = "bold red" if one["drift"] >= LARGE else "yellow" if one["drift"] >= NOTABLE else "green"
            line.append(f"  {one['quantity']} {one['value']} ", "").append(f"{one['drift']:.2f}", style)
    line.truncate(width, overflow="ellipsis")
    return line


def _table(*titles: str) -> Table:
    table = Table(box=None, header_style="dim", padding=(0, 2, 0, 0))
    for title in titles:
        table.add_column(title, justify="left" if title in ("stage", "processes", "tagger", "closed") else "right")
    return table


def _chain(state: dict[str, Any], *, wide: bool) -> Table:
    table = _table(
        "stage", "processes", "events/s", "busy", "wait", *(("credits", "MB/s", "CPU", "memory") if wide else ())
    )
    for stage in state["stages"]:
        dots = Text.assemble(*[("● ", STATES.get(one["state"], "yellow")) for one in stage["replicas"]])
        busy = Text(f"{stage['busy']:.0%}", "bold yellow" if stage["bottleneck"] else "")
        wait = "-" if stage["wait_s"] is None else duration(stage["wait_s"])
        row: list[RenderableType] = [stage["name"], dots, f"{stage['rate']:,.0f}", busy, wait]
        if wide:
            cpu = sum(one["cpu"] for one in stage["replicas"])
            memory = sum(one["rss_bytes"] for one in stage["replicas"])
            row += [
                f"{stage['credits']:,.0f}",
                f"{stage['bytes_out'] / 1e6:,.2f}",
                f"{cpu:.0%}",
                f"{memory / 1e6:,.0f} MB",
            ]
        table.add_row(*row)
    return table


def _ledger(totals: dict[str, Any]) -> Text:
    parts = [f"{totals['fed']:,} fed =", f"{totals['scored']:,} scored"]
    parts += [f"{n:,} {name}" for name, n in totals.items() if isinstance(n, int) and name not in ("fed", "scored")]
    parts += [f"{n:,} dropped ({why})" for why, n in totals["dropped"].items() if n]
    return Text(parts[0] + " " + " + ".join(parts[1:]).replace("_", " "))


def _batches(queues: dict[str, Any], *, wide: bool) -> Table:
    table = _table("tagger", "objects/s", "in a batch", "waiting", "busy", *(("closed",) if wide else ()))
    for name, one in queues.items():
        mean = "-" if one["mean"] is None else f"{one['mean']:.1f}"
        row = [name, f"{one['items']:,.0f}", mean, f"{one['waiting']:,.0f}", f"{one['seconds']:.0%}"]
        if wide:
            total = sum(one["closed"].values()) or 1.0
            row.append(", ".join(f"{why} {n / total:.0%}" for why, n in one["closed"].items() if n))
        table.add_row(*row)
    return table
