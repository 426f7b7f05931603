"""Slots for sending artifacts: so many at a time, and none for who does not take what is sent."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from common.errors import BrokenTransfer


class TransferSlot:
    """One transfer's right to send. It is lost when the other side takes nothing for too long."""

    def __init__(self, slots: asyncio.Semaphore, seconds: float) -> None:
        self._slots, self._seconds = slots, seconds
        self._held = True

    @contextmanager
    def taking(self) -> Iterator[None]:
        """While a chunk is handed over. Raises BrokenTransfer afterwards when that took too long.

        A stream that nobody reads does not come back by itself, so it is given up from outside: others
        that wait for its slot shall have it.
        """
        task = asyncio.current_task()
        assert task is not None
        watch = asyncio.get_running_loop().call_later(self._seconds, self._give_up, task)
        try:
            yield
        finally:
            watch.cancel()
        if not self._held:
            raise BrokenTransfer(f"nothing was taken for {self._seconds:.0f} s")

    def _give_up(self, task: "asyncio.Task[object]") -> None:
        self.release()
        task.cancel()

    def release(self) -> None:
        """Let another transfer have the slot."""
        if self._held:
            self._held = False
            self._slots.release()


class TransferSlots:
    """`most` transfers at a time; the others wait. A slot is lost after `seconds` without progress."""

    def __init__(self, most: int, seconds: float) -> None:
        self._slots, self._seconds = asyncio.Semaphore(most), seconds

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[TransferSlot]:
        """Wait for a slot and hold it."""
        await self._slots.acquire()
        slot = TransferSlot(self._slots, self._seconds)
        try:
            yield slot
        finally:
            slot.release()
