"""What a process does with its memory before it begins."""

import subprocess
import sys

PROGRAM = """
import ctypes
import numpy as np
from streamer.runner import fill_numpy_cache

class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena o s h hblkhd u f uordblks fordblks k".split()]

def used():
    libc = ctypes.CDLL("libc.so.6")
    libc.mallinfo2.restype = Info
    return libc.mallinfo2().uordblks

def arrays_of_all_sizes():
    before = used()
    for size in range(1024):
        some = [np.zeros(size, np.uint8) for _ in range(7)]
        del some
    return used() - before

used()
if {filled}:
    fill_numpy_cache()
print(arrays_of_all_sizes())
"""


def grown(filled: bool) -> int:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("{filled}", str(filled))], check=True, capture_output=True, text=True
    )
    return int(done.stdout)


def test_small_arrays_of_seldom_sizes_do_not_look_like_a_leak() -> None:
    assert grown(filled=True) < 200_000 < 2_000_000 < grown(filled=False)
