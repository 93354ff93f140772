"""Work that gives way to the stream."""

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


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
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
