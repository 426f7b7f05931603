"""Waking what waits."""

import asyncio

import pytest

from common.runtime.notifier import Notifier


async def _settle() -> None:
    """Let every task that can run do so."""
    for _ in range(3):
        await asyncio.sleep(0)


async def test_one_notification_wakes_all_that_wait() -> None:
    wakeup = Notifier()
    waiting = [asyncio.create_task(wakeup.wait()) for _ in range(3)]
    await _settle()
    assert not any(task.done() for task in waiting)
    wakeup.notify()
    await asyncio.wait_for(asyncio.gather(*waiting), timeout=5)


async def test_an_earlier_notification_wakes_nobody_later() -> None:
    wakeup = Notifier()
    wakeup.notify()
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wakeup.wait(), timeout=0.02)


async def test_who_looks_and_then_waits_misses_no_change() -> None:
    wakeup, seen, value = Notifier(), [], 0

    async def follow() -> None:
        while value < 20:
            await wakeup.wait()
            seen.append(value)

    follower = asyncio.create_task(follow())
    await _settle()
    for value in range(1, 21):  # noqa: B007 (read by `follow`)
        wakeup.notify()
        await _settle()
    await asyncio.wait_for(follower, timeout=5)
    assert seen == list(range(1, 21))
