"""What is read again and again, read once: the input of a loop stays in memory, where it fits."""

import logging
from collections.abc import Callable, Iterator

from stages.formats.base import Step

log = logging.getLogger(__name__)

Read = Callable[[int], Iterator[Step]]
"""Gives the steps of a file from one of its entries on."""


class Kept:
    """Steps of files, by file and first entry.

    Parameters
    ----------
    most : int
        Bytes of all of them together. When there are more, none are kept any more: in a loop, what was read last is
        wanted last.
    """

    def __init__(self, most: int) -> None:
        self.most, self._n_bytes = most, 0
        self._steps: dict[tuple[int, int], Step] = {}

    def read(self, number: int, first: int, end: int, read: Read) -> Iterator[Step]:
        """The steps of a file, which has `end` entries, from `first` on; from the one that is not here, it is read.

        A step without some of its entries is not kept: what is wrong with them is told on each pass.
        """
        while (step := self._steps.get((number, first))) is not None:
            yield step
            first += len(step.entries)
        if first >= end:
            return
        for step in read(first):
            n = len(step.entries)
            if n and step.entries[0] == first and step.entries[-1] == first + n - 1:
                self._keep((number, first), step)
            if n:
                first = int(step.entries[-1]) + 1
            yield step

    def _keep(self, key: tuple[int, int], step: Step) -> None:
        if not self.most or key in self._steps:
            return
        self._n_bytes += sum(array.nbytes for array in (step.entries, *step.columns.values()))
        if self._n_bytes <= self.most:
            self._steps[key] = step
            return
        log.info("the input does not fit into input.keep_mb = %d; each pass reads it anew", self.most >> 20)
        self._steps.clear()
        self.most = self._n_bytes = 0
