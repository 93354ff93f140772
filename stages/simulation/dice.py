"""Random numbers for compiled kernels: one independent, reproducible stream per event.

A stream is the splitmix64 generator (Steele, Lea, Flood, OOPSLA 2014, doi:10.1145/2660193.2660195), a
uint64[1] counter that is mixed into an output. It starts at a hash of (seed, event number), so that an event
is the same whatever was generated before it.
"""

import math
from typing import Any

import numpy as np

from stages.kernels import njit

_STEP = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)
_S27, _S30, _S31, _S11 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(11)


@njit(cache=True, nogil=True)
def mix(word: Any) -> Any:
    """Hash of a uint64: the output function of splitmix64."""
    word = (word ^ (word >> _S30)) * _MIX_1
    word = (word ^ (word >> _S27)) * _MIX_2
    return word ^ (word >> _S31)


@njit(cache=True, nogil=True)
def start(stream: Any, seed: Any, event: Any) -> None:
    """Set a stream (uint64[1]) to the beginning of one event of one seed (both uint64)."""
    stream[0] = mix(mix(seed + _STEP) ^ mix(event * _STEP + _MIX_1))


@njit(cache=True, nogil=True)
def uniform(stream: Any) -> Any:
    """Uniform in the open interval (0, 1), in steps of 2^-53."""
    stream[0] += _STEP
    return (np.float64(mix(stream[0]) >> _S11) + 0.5) * 1.1102230246251565e-16


@njit(cache=True, nogil=True)
def exponential(stream: Any) -> Any:
    """Exponential of mean 1."""
    return -math.log(uniform(stream))


@njit(cache=True, nogil=True)
def normal(stream: Any) -> Any:
    """Standard normal (Box and Muller 1958, one of the pair)."""
    return math.sqrt(-2.0 * math.log(uniform(stream))) * math.cos(2.0 * math.pi * uniform(stream))
