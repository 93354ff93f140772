"""Waking up in time: the event loop's own timers are only good to a millisecond."""

import asyncio
import ctypes
import os

CLOCK_MONOTONIC = 1


class _Spec(ctypes.Structure):
    """The C library's `struct itimerspec`: how often, and after how long first."""

    _fields_ = (
        ("every_s", ctypes.c_long),
        ("every_ns", ctypes.c_long),
        ("after_s", ctypes.c_long),
        ("after_ns", ctypes.c_long),
    )


class Alarm:
    """Sleeps to some ten microseconds, by a timer of the kernel that the loop listens to like to a socket.

    (Python has this as `os.timerfd_create` from 3.13 on.) Where there is none, the loop's own timers have to do.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._sleeper: asyncio.Future[None] | None = None
        self._over = False
        self._after = _Spec()
        try:
            self._libc = ctypes.CDLL(None, use_errno=True)
            self._fd = self._libc.timerfd_create(CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        except AttributeError:
            self._fd = -1
        if self._fd >= 0:
            self._loop.add_reader(self._fd, self._ring)

    def _ring(self) -> None:
        try:
            os.read(self._fd, 8)
        except BlockingIOError:  # it was set anew meanwhile
            return
        self._wake()

    def _wake(self) -> None:
        if self._sleeper is not None and not self._sleeper.done():
            self._sleeper.set_result(None)

    async def sleep(self, seconds: float) -> None:
        """Sleep so long, and not at all after `stop`. One sleeper at a time."""
        ns = int(seconds * 1e9)
        if ns <= 0 or self._over:
            return
        self._sleeper = self._loop.create_future()
        self._after.after_s, self._after.after_ns = divmod(ns, 10**9)
        if self._fd < 0 or self._libc.timerfd_settime(self._fd, 0, ctypes.byref(self._after), None):
            timer = self._loop.call_later(seconds, self._wake)
            try:
                await self._sleeper
            finally:
                timer.cancel()
        else:
            await self._sleeper

    def stop(self) -> None:
        """Nobody is to sleep any longer."""
        self._over = True
        self._wake()

    def close(self) -> None:
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
