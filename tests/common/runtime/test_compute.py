"""The compute thread: one computation at a time, and an end to it on request."""

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from common.errors import BadUpdate, Stopped
from common.runtime.compute import Compute, ComputeThread


@pytest.fixture
def compute() -> Iterator[Compute]:
    compute = ComputeThread()
    yield compute
    compute.close()


async def test_the_result_comes_from_another_thread(compute: Compute) -> None:
    assert await compute.run(divmod, 7, 3) == (2, 1)
    assert await compute.run(threading.get_ident) != threading.get_ident()


async def test_computations_never_overlap(compute: Compute) -> None:
    running, most = 0, 0

    def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        time.sleep(0.01)
        running -= 1

    await asyncio.gather(*(compute.run(work) for _ in range(4)))
    assert most == 1


async def test_the_event_loop_goes_on_while_a_computation_runs(compute: Compute) -> None:
    done_here = threading.Event()
    work = asyncio.create_task(compute.run(done_here.wait, 10))
    await asyncio.sleep(0.01)
    done_here.set()
    assert await work


async def test_a_computations_error_reaches_the_caller(compute: Compute) -> None:
    def work() -> None:
        raise BadUpdate("tensor w is missing")

    with pytest.raises(BadUpdate, match="tensor w is missing"):
        await compute.run(work)


async def test_stop_ends_the_running_computation_at_its_next_check(compute: Compute) -> None:
    def endless() -> None:
        while True:
            compute.check()
            time.sleep(0.001)

    work = asyncio.create_task(compute.run(endless))
    await asyncio.sleep(0.01)
    compute.stop()
    with pytest.raises(Stopped):
        await asyncio.wait_for(work, timeout=5)


def test_nothing_is_stopped_before_it_was_asked_for(compute: Compute) -> None:
    compute.check()
    compute.stop()
    with pytest.raises(Stopped):
        compute.check()
