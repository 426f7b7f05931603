"""When to try again, and how long already: backoff, outages, streams on which nothing comes."""

import asyncio
import random
import time
from collections.abc import AsyncIterable, AsyncIterator, Iterator
from typing import TypeVar

from common.errors import BrokenTransfer, UnknownHost, WrongService
from common.transport.rpc import STALL_SECONDS

T = TypeVar("T")

# At its start a worker waits so long at most for a name to be known.
_UNKNOWN_HOST_SECONDS = 30.0


def backoff(first: float = 0.2, most: float = 10.0) -> Iterator[float]:
    """Seconds to wait between tries: doubling up to `most`, each with up to half taken off at random."""
    draw = random.Random()
    delay = first
    while True:
        yield delay * draw.uniform(0.5, 1.0)
        delay = min(most, delay * 2)


class Outage:
    """Failures without a success between them: how long already, and how long to wait next."""

    def __init__(self, longest: float = 10.0) -> None:
        """`longest` is the most seconds between two tries."""
        self._longest = longest
        self.damaged = 0
        self.reached = 0
        self.progressed()

    def progressed(self) -> None:
        """Something came through."""
        self._since: float | None = None
        self.delays = backoff(most=self._longest)

    def seconds(self) -> float:
        """Since the first failure; the first call is that failure."""
        now = time.monotonic()
        self._since = now if self._since is None else self._since
        return now - self._since


def patience_with(error: Exception, patience: float, known: bool) -> float:
    """Seconds for which to try again, of the most that there are; `known`: somebody has answered before.

    Where nothing has answered yet, what cannot become right is not waited for: another service at the
    address at all, a name that is not known for long; a DNS may come up after the worker.
    """
    if known or not isinstance(error, WrongService | UnknownHost):
        return patience
    return min(patience, 0.0 if isinstance(error, WrongService) else _UNKNOWN_HOST_SECONDS)


async def unstalled(messages: AsyncIterable[T]) -> AsyncIterator[T]:
    """The stream's messages. Raises BrokenTransfer when none follows for too long.

    The first may take its time: the coordinator serves only so many transfers at once.
    """
    stream, limit = aiter(messages), None
    while True:
        try:
            async with asyncio.timeout(limit):
                message = await anext(stream)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise BrokenTransfer(f"nothing came for {STALL_SECONDS:.0f} s") from None
        yield message
        limit = STALL_SECONDS
