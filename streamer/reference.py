"""What a run's quantities looked like, as a small JSON file: left by each run, and kept of a good one as its reference.

How far two distributions are apart is told by one number, the population stability index (`apart`).
"""

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamer import __version__
from streamer.errors import UsageError
from streamer.quality import Quantity

FORMAT = "streamer quality 1"
FILE = "quality.json"
"""What a run leaves in its output folder."""
MOST_BYTES = 16 << 20
NOTABLE, LARGE = 0.1, 0.25
"""From here on a drift is worth a look, and from here on something has changed."""
MIXED = "several"
"""Said of a distribution in place of a network's hash, when the network was changed while it was taken."""

Key = tuple[str, str]
"""A quantity's name, and a value of its label."""


@dataclass(frozen=True)
class Distribution:
    """One quantity for one value of its label.

    Attributes
    ----------
    counts : int64, shape (n_bins,)
    total : float
        Sum of the values.
    of : str
        What it depends on beside the data (`Quantity.of`).
    edges : tuple of float
        As `Quantity.edges`.
    """

    counts: npt.NDArray[np.int64]
    total: float
    of: str
    edges: tuple[float, ...]

    @property
    def entries(self) -> int:
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """NaN where there is nothing."""
        return self.total / self.entries if self.entries else math.nan


@dataclass(frozen=True)
class Taken:
    """The distributions of a run.

    Attributes
    ----------
    made : str
        When [UTC].
    drift : mapping
        Where there was a reference: the largest drift of each that was seen.
    """

    found: dict[Key, Distribution]
    made: str = ""
    drift: Mapping[Key, float] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "format": FORMAT,
            "version": __version__,
            "made": self.made or time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "quantities": [
                {
                    "name": name,
                    "value": value,
                    "of": one.of,
                    "edges": list(one.edges),
                    "counts": one.counts.tolist(),
                    "sum": one.total,
                    **({"largest_drift": self.drift[name, value]} if (name, value) in self.drift else {}),
                }
                for (name, value), one in self.found.items()
            ],
        }

    def write(self, path: Path) -> None:
        """Store it, whole or not at all; a line for each distribution.

        Raises
        ------
        OSError
            It cannot be written.
        """
        head = self.plain()
        lines = ",\n  ".join(json.dumps(one) for one in head.pop("quantities"))
        part = path.with_name(path.name + ".part")
        try:
            part.write_text(json.dumps(head)[:-1] + f', "quantities": [\n  {lines}\n]}}\n', encoding="utf-8")
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


def taken(plain: Any) -> Taken:
    """What `Taken.plain` told.

    Raises
    ------
    ValueError, TypeError, LookupError
        It is none.
    """
    if plain["format"] != FORMAT:
        raise ValueError
    found: dict[Key, Distribution] = {}
    drift: dict[Key, float] = {}
    for one in plain["quantities"]:
        key = str(one["name"]), str(one["value"])
        counts, edges = np.array(one["counts"], np.int64), tuple(map(float, one["edges"]))
        if counts.shape != (len(edges) + 1,) or (counts < 0).any() or key in found:
            raise ValueError
        found[key] = Distribution(counts, float(one["sum"]), str(one["of"]), edges)
        if "largest_drift" in one:
            drift[key] = float(one["largest_drift"])
    return Taken(found, str(plain["made"]), drift)


def read(path: Path) -> Taken:
    """What a file tells.

    Raises
    ------
    UsageError
        It cannot be read, or is none.
    """
    helps = "make one of a good run: streamer reference DIR -o FILE"
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UsageError(f"{path}: too large for a reference; {helps}")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); {helps}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path}: not a reference; {helps}") from None
    try:
        return taken(json.loads(text))
    except (ValueError, TypeError, LookupError, OverflowError, RecursionError):
        cut = ", or cut off" if text.startswith("{") and FORMAT in text[:200] else " of this version of streamer"
        raise UsageError(f"{path}: not a reference{cut}; {helps}") from None


def fitting(path: Path, quantities: Iterable[Quantity]) -> Taken:
    """The reference of a file, for a run that measures these quantities.

    Raises
    ------
    UsageError
        It cannot be read, or is that of another kind of run.
    """
    reference = read(path)
    for quantity in quantities:
        for value, of in quantity.of.items():
            what = f"the {quantity.called} of {quantity.label} '{value}'"
            one = reference.found.get((quantity.name, value))
            if one is None:
                known = ", ".join(other for name, other in reference.found if name == quantity.name) or "none"
                raise UsageError(f"{path}: has nothing of {what} (of {known}); {_ANOTHER}")
            if one.edges != quantity.edges:
                raise UsageError(f"{path}: has other bins for {what}; {_ANOTHER}")
            if one.of not in (of, quantity.began.get(value, of)):
                raise UsageError(f"{path}: has {what} with another network; {_ANOTHER}")
    return reference


_ANOTHER = "make one of a good run with the same taggers: streamer reference DIR -o FILE"


def apart(counts: Sequence[int] | npt.NDArray[np.int64], reference: Sequence[int] | npt.NDArray[np.int64]) -> float:
    """How far two distributions in the same bins are apart: their population stability index, less what chance makes.

    The index is the sum of `(p - q) log(p / q)` over the bins, with the shares p and q: Kullback and Leibler's
    divergence in both directions. Every bin is given half an entry more, so that none is empty. If both are drawn from
    the same distribution, the index is `(n_bins - 1) (1 / n + 1 / m)` on average, as a chi2 is, which is taken off.

    Returns
    -------
    float
        0 at least; NaN where one is empty.
    """
    one, other = np.asarray(counts, np.float64), np.asarray(reference, np.float64)
    some = one + other > 0
    one, other = one[some], other[some]
    n, m = float(one.sum()), float(other.sum())
    if not n or not m:
        return math.nan
    p, q = (one + 0.5) / (n + 0.5 * one.size), (other + 0.5) / (m + 0.5 * other.size)
    index = float(((p - q) * np.log(p / q)).sum())
    return max(0.0, index - (one.size - 1) * (1 / n + 1 / m))


def compared(now: Taken, reference: Taken, least: int) -> Iterator[tuple[Key, float]]:
    """How far the distributions of a run are from their references, where both have so many entries."""
    for key, one in now.found.items():
        other = reference.found.get(key)
        if other is None or other.edges != one.edges or other.of != one.of:
            continue
        if min(one.entries, other.entries) >= least:
            yield key, apart(one.counts, other.counts)
