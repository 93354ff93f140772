"""Numba's decorators for kernels, without the extensions that other packages register with it.

Numba loads those of every installed package with the first kernel: beside FastJet these are awkward, vector and with it
SymPy, 0.7 s in each process that has kernels, of which none uses them. Code of your own that hands awkward arrays to
compiled functions calls `awkward.numba.register()` first.
"""

from numba import njit, vectorize
from numba.core import entrypoints

__all__ = ["njit", "vectorize"]

entrypoints._already_initialized = True
