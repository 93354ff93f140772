"""The ledger as files beside the scores: everything as JSON, and the complete lumisections in CMS's format."""

import contextlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from streamer.reference import FILE as QUALITY

if TYPE_CHECKING:
    from streamer.supervisor import Outcome

LEDGER, MASK, HISTORY = "ledger.json", "lumi_mask.json", "history.json"

NAMES = ("run", "luminosityBlock", "fed", "scored", "late", "errors", "shed", "dropped", "in_flight")
"""Of what is told of a lumisection; `late` are among the scored."""


def lines_of(books: Any) -> list[tuple[int, ...]]:
    """One for each lumisection, as `NAMES` says."""
    out: list[tuple[int, ...]] = []
    for run, lumi in sorted(books.fed | books.kept):
        key = run, lumi
        fed = max(books.fed[key], books.kept[key])
        errors, shed, dropped = books.errors[key], books.shed[key], books.dropped[key]
        scored = books.kept[key] - errors - shed
        in_flight = fed - books.kept[key] - dropped
        out.append((run, lumi, fed, scored, books.late[key], errors, shed, dropped, in_flight))
    return out


def plain(books: Any) -> dict[str, Any]:
    """The ledger as plain data."""
    return {
        "total": asdict(books.ledger),
        "dropped": dict(books.reasons),
        "shed": dict(books.shed_at),
        "lumisections": [dict(zip(NAMES, line, strict=True)) for line in lines_of(books)],
        "running": books.running,
        "closes": not books.why_not,
        "problems": books.why_not,
        **({} if books.menu is None else {"menu": _menu(books.menu)}),
    }


def _menu(menu: Any) -> dict[str, Any]:
    lumis = [
        {"run": run, "luminosityBlock": lumi, **menu.plain(counts)}
        for (run, lumi), counts in sorted(menu.lumis.items())
    ]
    return {**menu.plain(menu.total), "lumisections": lumis}


def lumi_mask(books: Any) -> dict[str, list[list[int]]]:
    """The lumisections of which every event that was fed is on disk, as CMS lists them: `{"1": [[1, 5], [7, 7]]}`.

    One of which events were shed or dropped is not complete, nor is one with errors.
    """
    whole = [line[:2] for line in lines_of(books) if not any(line[5:])]
    out: dict[str, list[list[int]]] = {}
    for run, lumi in whole:
        ranges = out.setdefault(str(run), [])
        if ranges and ranges[-1][1] == lumi - 1:
            ranges[-1][1] = lumi
        else:
            ranges.append([lumi, lumi])
    return out


def leave(folder: Path, books: Any, outcome: "Outcome") -> None:
    """Write the files of a run that has ended. A full disk costs these files and nothing else."""
    with contextlib.suppress(OSError):
        (folder / LEDGER).write_text(json.dumps(plain(books), indent=1) + "\n")
        (folder / MASK).write_text(json.dumps(lumi_mask(books)) + "\n")
        (folder / "books" / HISTORY).write_text(json.dumps(outcome.history) + "\n")
        outcome.quality.write(folder / QUALITY)
