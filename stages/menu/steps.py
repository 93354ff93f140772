"""The steps of conditions (`stages.menu.codes`), each a loop over a whole column, in one compiled kernel.

So a menu costs some ten nanoseconds a step and block, and less than one a step and object, and nothing is compiled anew
for another menu.
"""

from typing import Any

import numpy as np

from stages.kernels import njit


@njit(cache=True, nogil=True, error_model="numpy")
def run_steps(steps: Any, values: Any, ends: Any, numbers: Any, flags: Any) -> None:
    """Take all steps, in order.

    Parameters
    ----------
    steps : int32, shape (n_steps, 5)
        What to do, in which scope, the register of the result, and those of up to two operands.
    values : float64, shape (n_steps,)
        A number to fill or to compare with, or how many to count at least.
    ends : int64, shape (n_scopes, n_events + 1)
        Where the members of each event begin; the first scope has one an event.
    numbers : float64, shape (n_registers, longest scope)
    flags : uint8, likewise
    """
    n_events = ends.shape[1] - 1
    for k in range(steps.shape[0]):
        what, scope, to, a, b = steps[k, 0], steps[k, 1], steps[k, 2], steps[k, 3], steps[k, 4]
        n = ends[scope, n_events]
        if what < 10:
            out, x, y = numbers[to], numbers[a], numbers[b]
            if what == 0:
                for i in range(n):
                    out[i] = x[i] + y[i]
            elif what == 1:
                for i in range(n):
                    out[i] = x[i] - y[i]
            elif what == 2:
                for i in range(n):
                    out[i] = x[i] * y[i]
            elif what == 3:
                for i in range(n):
                    out[i] = x[i] / y[i]
            elif what == 4:
                for i in range(n):
                    out[i] = -x[i]
            elif what == 5:
                for i in range(n):
                    out[i] = abs(x[i])
            elif what == 6:
                for i in range(n):
                    out[i] = np.sqrt(x[i])
            elif what == 7:
                for i in range(n):
                    out[i] = np.minimum(x[i], y[i])
            elif what == 8:
                for i in range(n):
                    out[i] = np.maximum(x[i], y[i])
            else:
                out[:n] = values[k]
        elif what < 14:
            flag, x, y = flags[to], numbers[a], numbers[b]
            if what == 10:
                for i in range(n):
                    flag[i] = x[i] < y[i]
            elif what == 11:
                for i in range(n):
                    flag[i] = x[i] <= y[i]
            elif what == 12:
                for i in range(n):
                    flag[i] = x[i] == y[i]
            else:
                for i in range(n):
                    flag[i] = x[i] != y[i]
        elif what < 20:
            flag, x, value = flags[to], numbers[a], values[k]
            if what == 14:
                for i in range(n):
                    flag[i] = x[i] < value
            elif what == 15:
                for i in range(n):
                    flag[i] = x[i] <= value
            elif what == 16:
                for i in range(n):
                    flag[i] = x[i] > value
            elif what == 17:
                for i in range(n):
                    flag[i] = x[i] >= value
            elif what == 18:
                for i in range(n):
                    flag[i] = x[i] == value
            else:
                for i in range(n):
                    flag[i] = x[i] != value
        else:
            flag, p, q = flags[to], flags[a], flags[b]
            if what == 20:
                for i in range(n):
                    flag[i] = p[i] & q[i]
            elif what == 21:
                for i in range(n):
                    flag[i] = p[i] | q[i]
            elif what == 22:
                for i in range(n):
                    flag[i] = 1 - p[i]
            elif what == 23:
                flag[:n] = 1
            else:
                first = ends[scope]
                for event in range(n_events):
                    found = 0
                    for i in range(first[event], first[event + 1]):
                        found += p[i]
                    flag[event] = found >= values[k]
