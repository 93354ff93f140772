"""Numba's decorators for kernels, without the extensions that other packages register with it.

Numba loads those of every installed package with the first kernel: beside FastJet these are awkward, vector and with it
SymPy, 0.7 s in each process that has kernels, of which none uses them. Code of your own that hands awkward arrays to
compiled functions calls `awkward.numba.register()` first.
"""

from typing import Any

import numpy as np
from numba import njit, vectorize
from numba.core import entrypoints

from streamer.block import Array, readonly

__all__ = ["argument", "ends", "njit", "vectorize"]

entrypoints._already_initialized = True


def argument(column: Array) -> Array:
    """A column as kernels take it: one that comes from the wire as it is, any other as a view that cannot be written.

    So that they see one type of array and are compiled once.
    """
    return readonly(column) if column.flags.writeable else column


@njit(cache=True, nogil=True)
def ends(counts: Any) -> Any:
    """`streamer.block.offsets` for kernels, which are called sooner with counts of any shape than with offsets."""
    out = np.empty(counts.size + 1, np.int64)
    out[0] = total = 0
    for place, count in enumerate(counts.flat):
        total += count
        out[place + 1] = total
    return out
