"""Where torch computes: in a thread of its own beside the event loop, or at once."""

import asyncio
import contextvars
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from common.errors import Stopped
from common.runtime.allocator import give_back
from common.runtime.stopping import stoppable

T = TypeVar("T")


class Compute(ABC):
    """Runs blocking computations one at a time; they look at `check` often, so that they can end."""

    @abstractmethod
    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """The result of `work`."""

    @abstractmethod
    def check(self) -> None:
        """Called from within computations. Raises Stopped after `stop`."""

    @abstractmethod
    def stop(self) -> None:
        """End the running computation at its next `check`."""


class InlineCompute(Compute):
    """Computes at once, where it is asked: for a run beside which nothing else happens."""

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """The result of `work`; nothing else runs meanwhile."""
        return work(*arguments)

    def check(self) -> None:
        """Nothing asks for an end: whoever could is computing."""

    def stop(self) -> None:
        """Nothing runs when this is called."""


class ComputeThread(Compute):
    """Computes in a thread of its own, beside the event loop."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="compute")
        self._stopping = threading.Event()

    async def run(self, work: Callable[..., T], *arguments: object) -> T:
        """The result of `work`, computed in the thread."""
        loop = asyncio.get_running_loop()
        # As `asyncio.to_thread` does: log lines are about what they are about here.
        context = contextvars.copy_context()
        return await loop.run_in_executor(self._pool, context.run, self._computed, work, *arguments)

    def _computed(self, work: Callable[..., T], *arguments: object) -> T:
        try:
            return stoppable(self.check, work, *arguments)
        finally:
            give_back()

    def check(self) -> None:
        """Called from within computations. Raises Stopped after `stop`."""
        if self._stopping.is_set():
            raise Stopped("stopped")

    def stop(self) -> None:
        """End the running computation at its next `check`."""
        self._stopping.set()

    def close(self) -> None:
        """Wait for the thread to end."""
        self.stop()
        self._pool.shutdown(wait=True, cancel_futures=True)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out; on the CPU torch has no class for it."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    told = str(error)
    return isinstance(error, RuntimeError) and ("out of memory" in told or "allocate memory" in told)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch's operations in this thread without helpers: for passes over memory, which are bound by that.

    Helpers would spin between one short operation and the next, on cores that transfers need. A thread that
    first uses torch while another is within stays without helpers: in a pool, use it for all such work.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def device_problem(name: str) -> str | None:
    """Why torch cannot compute on a device of this name, in a line; None where it can."""
    try:
        torch.ones(64, 64, device=name).square().sum().item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        # What torch raises for a name that is none, a build without the device, one that is not there.
        return str(error).strip().splitlines()[0][:200]
    return None
