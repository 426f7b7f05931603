"""Waking whatever waits for a change, on one event loop."""

import asyncio


class Notifier:
    """`notify` wakes all that `wait`; who looks and then waits, without awaiting between, misses nothing."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def notify(self) -> None:
        """Wake everything that waits now."""
        self._event.set()
        self._event = asyncio.Event()

    async def wait(self) -> None:
        """Until the next `notify`."""
        await self._event.wait()
