"""Work that gives way to the stream."""

import asyncio
import contextlib
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

NICE = 19
"""What gives way to everybody."""
AUTOGROUP = Path("/proc/self/autogroup")
"""How nice our session is, where Linux has that."""


async def in_own_thread(function: Callable[..., T], *args: object) -> T:
    """Call `function` in a thread that ends with it, so that it may give way."""
    own = ThreadPoolExecutor(1, thread_name_prefix="beside")
    try:
        return await asyncio.get_running_loop().run_in_executor(own, function, *args)
    finally:
        own.shutdown(wait=False)


def give_way() -> None:
    """From now on this thread, and those that it starts, have a processor when nobody else wants it.

    Where the system cannot do that for one thread, nothing happens.
    """
    if os.uname().sysname == "Linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def give_way_as_session(nice: int = NICE) -> None:
    """From now on this process gives way to all others, and so does the session that it leads, if it does.

    Linux may share the processors among sessions before it looks at niceness within each (autogroup, sched(7)). There a
    processor with nothing but the nicest on it counts as free: what wakes up goes there, and not in front of others.
    """
    os.setpriority(os.PRIO_PROCESS, 0, nice)
    if nice == NICE and hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):  # not Linux, or one without autogroups
            AUTOGROUP.write_text(str(nice))
