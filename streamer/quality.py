"""What is measured of the data themselves: quantities in fixed bins, told to Prometheus as histograms.

A pipeline says which there are (`streamer.pipeline.Pipeline.quality`), its stages fill them, and the supervisor holds
them against a reference (`streamer.monitor.drift`).
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from streamer.block import Array

MOST_WAITING = 2048
"""So many events wait to be sorted into bins, and then all are at once: that costs less than block by block."""


@dataclass(frozen=True)
class Quantity:
    """Something that is counted in fixed bins, apart for each value of a label.

    Attributes
    ----------
    name : str
        Of the metric, such as `streamer_score`.
    called : str
        What people call it, such as `score`.
    doc : str
    label : str
        Such as `tagger`.
    of : mapping of str to str
        The label's values; each with what its distribution depends on beside the data, such as a network's hash.
    edges : tuple of float
        Upper edges of the bins, which belong to the bin below; beyond the last edge there is one bin more.
    began : mapping of str to str
        As `of`, when the run began, for what has been replaced since; nothing is held against references of that.
    """

    name: str
    called: str
    doc: str
    label: str
    of: Mapping[str, str]
    edges: tuple[float, ...]
    began: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def les(self) -> list[str]:
        """The edges as Prometheus writes them."""
        return [*(repr(float(edge)) for edge in self.edges), "+Inf"]

    def keys(self, value: str) -> list[str]:
        """What the cumulative counts of one value are called in a scraped page (`streamer.child.scrape`)."""
        labels = ({"le": le, self.label: value} for le in self.les)
        return [f"{self.name}_bucket/" + ",".join(one[name] for name in sorted(one)) for one in labels]


Waiting = tuple[Array, ...]
"""What some events brought."""


class Histograms(Collector):
    """The histograms of a quantity in one process.

    Parameters
    ----------
    values_of : callable
        Handed what `add` was given, array by array and joined over many calls, returns the values that are to be
        counted: for each value of the label, in order, an array of any length. What is not finite does not count.
    """

    def __init__(
        self, quantity: Quantity, registry: CollectorRegistry, values_of: Callable[..., Iterable[Array]]
    ) -> None:
        self.quantity = quantity
        self._values_of = values_of
        self._edges = np.array(quantity.edges)
        self._counts = np.zeros((len(quantity.of), len(quantity.edges) + 1), np.int64)  # axes: value of the label, bin
        self._sums = np.zeros(len(quantity.of))
        self._waiting: list[Waiting] = []
        self._n_waiting = 0
        self._lock = threading.Lock()  # the page is made in another thread
        registry.register(self)

    def add(self, n_events: int, *arrays: Array) -> None:
        """Take what some events bring; the arrays are kept for a while, and must not change."""
        with self._lock:
            self._waiting.append(arrays)
            self._n_waiting += n_events
            if self._n_waiting >= MOST_WAITING:
                self._sort()

    def _sort(self) -> None:
        if self._waiting:
            joined = [np.concatenate(arrays) for arrays in zip(*self._waiting, strict=True)]
            self._waiting, self._n_waiting = [], 0
            for place, given in enumerate(self._values_of(*joined)):
                values = given[np.isfinite(given)]
                bins = np.searchsorted(self._edges, values)
                self._counts[place] += np.bincount(bins, minlength=self._counts.shape[1])
                self._sums[place] += values.sum(dtype=np.float64)

    def now(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """What was counted: for each value of the label (first axis) the entries of each bin, and the sum of values."""
        with self._lock:
            self._sort()
            return self._counts.copy(), self._sums.copy()

    def collect(self) -> Iterator[HistogramMetricFamily]:
        quantity, (counts, sums) = self.quantity, self.now()
        family = HistogramMetricFamily(quantity.name, quantity.doc, labels=[quantity.label])
        for value, below, total in zip(quantity.of, counts.cumsum(1).tolist(), sums.tolist(), strict=True):
            family.add_metric([value], list(zip(quantity.les, below, strict=True)), sum_value=total)
        yield family
