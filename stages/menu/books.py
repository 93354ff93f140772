"""The books of a menu: what each path took and kept, by lumisection and in total, with rates."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from stages.menu.flags import OUTCOMES, STEPS
from stages.menu.tally import Counts, MenuTally, Row, read_row
from streamer.block import Array
from streamer.fedbook import Lumi


@dataclass
class MenuBooks:
    """What a menu made of the events that are on disk.

    Attributes
    ----------
    paths : tuple of str
    n_readers : int
        How many fed at the same time, each its own lumisections.
    lumis : dict
        Counts by run and lumisection.
    """

    paths: tuple[str, ...]
    n_readers: int = 1
    lumis: dict[Lumi, Counts] = field(default_factory=dict)
    _seconds: dict[tuple[Lumi, int], float] = field(default_factory=dict)

    def add(self, counts: Iterable[tuple[Lumi, Counts]], writer: int) -> None:
        """Add what a writer has counted."""
        for lumi, some in counts:
            mine = lumi, writer
            self._seconds[mine] = self._seconds.get(mine, 0.0) + some.seconds
            found = self.lumis.setdefault(lumi, Counts.none(len(self.paths)))
            most = max(found.seconds, self._seconds[mine])  # writers share the events of the same time
            found.add(some)
            found.seconds = most

    def add_rows(self, rows: Iterable[Row], writer: int) -> None:
        """Add those of a finished file."""
        self.add((read_row(row, len(self.paths)) for row in rows), writer)

    def add_tally(self, tally: MenuTally, writer: int) -> None:
        """Add those of a journal."""
        self.add(tally.counts().items(), writer)

    @property
    def total(self) -> Counts:
        """The sums."""
        out = Counts.none(len(self.paths))
        for counts in self.lumis.values():
            out.add(counts)
        out.seconds /= self.n_readers
        return out

    def problems(self, scored: dict[Lumi, int]) -> Iterator[str]:
        """Why these books do not close, one line each.

        Parameters
        ----------
        scored : dict
            Events on disk that were processed, by run and lumisection.
        """
        for lumi in sorted(scored.keys() | self.lumis.keys()):
            counts = self.lumis.get(lumi, Counts.none(len(self.paths)))
            n, where = scored.get(lumi, 0), f"run {lumi[0]}, lumisection {lumi[1]}"
            if n != counts.outcomes.sum():
                accepted, rejected, prescaled = counts.outcomes.tolist()
                yield (
                    f"{where}: {n:,} events were scored, and {accepted:,} accepted, {rejected:,} rejected, "
                    f"{prescaled:,} prescaled"
                )
            seeded, passed, accepted = counts.paths
            for k in np.flatnonzero((seeded > n) | (passed > seeded) | (accepted > passed)):
                yield f"{where}: path {self.paths[k]} has more events than were there for it"

    def plain(self, counts: Counts) -> dict[str, Any]:
        """Counts and rates for JSON; a rate is null where there is no time to refer to."""
        steps = counts.paths.tolist()
        return {
            **dict(zip(OUTCOMES, counts.outcomes.tolist(), strict=True)),
            "seconds": round(counts.seconds, 6),
            "paths": {
                name: {
                    **{step: steps[row][k] for row, step in enumerate(STEPS)},
                    **_plain_rate(counts.paths[2, k], counts.seconds),
                }
                for k, name in enumerate(self.paths)
            },
        }

    def show(self, most: int = 20) -> None:
        """Print a table of the paths, in total."""
        from rich.console import Console
        from rich.table import Table

        total = self.total
        table = Table(box=None, header_style="bold", padding=(0, 2, 0, 0))
        for name in ("path", *STEPS, "rate"):
            table.add_column(name, justify="left" if name == "path" else "right")
        for k, name in list(enumerate(self.paths))[:most]:
            table.add_row(name, *(f"{n:,}" for n in total.paths[:, k].tolist()), _rate(total.paths[2, k], total))
        if len(self.paths) > most:
            table.add_row(f"{len(self.paths) - most:,} more, see --json")
        accepted, rejected, prescaled = total.outcomes.tolist()
        scored = int(total.outcomes.sum())
        table.add_row(
            "any", f"{scored:,}", f"{accepted + prescaled:,}", f"{accepted:,}", _rate(accepted, total), style="bold"
        )
        console = Console()
        console.print(table)
        console.print(
            f"{scored:,} scored = {accepted:,} accepted + {rejected:,} rejected + {prescaled:,} prescaled",
            highlight=False,
        )


def rate(n: int, seconds: float) -> tuple[float, float]:
    """Events a second, and the standard error (n events are sqrt(n) off)."""
    return (n / seconds, math.sqrt(n) / seconds) if seconds > 0 else (math.nan, math.nan)


def _plain_rate(n: int, seconds: float) -> dict[str, float | None]:
    hertz, error = (None if math.isnan(x) else float(f"{x:.6g}") for x in rate(n, seconds))
    return {"rate_hz": hertz, "rate_error_hz": error}


def _rate(n: "int | Array", counts: Counts) -> str:
    hertz, error = rate(int(n), counts.seconds)
    return "-" if math.isnan(hertz) else f"{hertz:,.3g} +- {error:,.2g} Hz"
