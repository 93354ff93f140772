"""The alarm, against the real clock."""

import asyncio
import ctypes
import time

import pytest

from streamer.alarm import Alarm


async def slept(alarm: Alarm, seconds: float) -> float:
    begin = time.monotonic()
    await alarm.sleep(seconds)
    return time.monotonic() - begin


@pytest.mark.parametrize("kernel", [True, False])
async def test_it_sleeps_no_less_than_it_was_told(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernel:  # a C library without such timers
        monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: object())
    alarm = Alarm()
    try:
        for seconds in (0.02, 300e-6, 1e-9, 0.0, -1.0):
            assert await asyncio.wait_for(slept(alarm, seconds), 10) >= seconds - 1e-4
    finally:
        alarm.close()


async def test_one_that_was_given_up_does_not_end_the_next_sleep() -> None:
    alarm = Alarm()
    try:
        for _ in range(20):
            giving_up = asyncio.ensure_future(alarm.sleep(0.001))
            await asyncio.sleep(0)
            giving_up.cancel()
            time.sleep(0.002)  # it has rung, and nobody has listened yet
            assert await slept(alarm, 0.005) >= 0.0049
    finally:
        alarm.close()


@pytest.mark.parametrize("kernel", [True, False])
async def test_nobody_sleeps_after_a_stop(kernel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernel:
        monkeypatch.setattr(ctypes, "CDLL", lambda name, use_errno: object())
    alarm = Alarm()
    try:
        sleeping = asyncio.ensure_future(alarm.sleep(1000))
        await asyncio.sleep(0.01)
        assert not sleeping.done()
        alarm.stop()
        await asyncio.wait_for(sleeping, 10)
        await asyncio.wait_for(alarm.sleep(1000), 10)
    finally:
        alarm.close()


async def test_it_can_be_closed_twice_and_while_somebody_sleeps() -> None:
    alarm = Alarm()
    sleeping = asyncio.ensure_future(alarm.sleep(60))
    await asyncio.sleep(0.01)
    sleeping.cancel()
    alarm.close()
    alarm.close()
