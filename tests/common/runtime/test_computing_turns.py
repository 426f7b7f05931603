"""Computations by turns: each as if it were alone, none waits for ever."""

import asyncio
import random
import threading
import time

import numpy as np
import pytest
import torch

from common.errors import Stopped
from common.runtime.computing_turns import ComputeInTurns, ComputingTurns


def drawn(compute: ComputeInTurns, seed: int, pieces: int) -> list[float]:
    """Draws from every generator that libraries share, with a look for others after each."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    found = []
    for _ in range(pieces):
        found += [torch.rand(1).item(), random.random(), float(np.random.rand())]
        time.sleep(0.002)
        compute.check()
    return found


@pytest.mark.asyncio
async def test_what_each_draws_is_what_it_draws_alone() -> None:
    alone = ComputeInTurns(ComputingTurns(), "a", 1)
    expected = [await alone.run(drawn, alone, seed, 20) for seed in (1, 2)]
    alone.close()
    order: list[str] = []
    turns = ComputingTurns(order.append, slice_seconds=0.01)
    both = [ComputeInTurns(turns, name, 1) for name in "ab"]
    found = await asyncio.gather(*(c.run(drawn, c, s, 20) for c, s in zip(both, (1, 2), strict=True)))
    for compute in both:
        compute.close()
    assert found == expected
    # They did take turns, and in the end nobody computes.
    assert len(order) > 4 and {"a", "b"} < set(order)
    assert order[-1] == ""


@pytest.mark.asyncio
async def test_threads_and_dtype_are_as_they_were_when_the_turn_comes_back() -> None:
    turns = ComputingTurns(slice_seconds=0.0)
    one, two = ComputeInTurns(turns, "one", 1), ComputeInTurns(turns, "two", 2)

    def looked(compute: ComputeInTurns, dtype: torch.dtype) -> set[tuple[int, torch.dtype]]:
        torch.set_default_dtype(dtype)
        seen = set()
        for _ in range(10):
            time.sleep(0.002)
            compute.check()
            seen.add((torch.get_num_threads(), torch.get_default_dtype()))
        torch.set_default_dtype(torch.float32)
        return seen

    found = await asyncio.gather(one.run(looked, one, torch.float32), two.run(looked, two, torch.float64))
    one.close()
    two.close()
    assert found == [{(1, torch.float32)}, {(2, torch.float64)}]


@pytest.mark.asyncio
async def test_who_waits_for_a_turn_can_be_stopped_and_others_go_on() -> None:
    turns, release = ComputingTurns(slice_seconds=0.0), threading.Event()
    busy, waiting, last = (ComputeInTurns(turns, name, 1) for name in ("busy", "waiting", "last"))
    working = asyncio.create_task(busy.run(release.wait))
    stopped = asyncio.create_task(waiting.run(int))
    await asyncio.sleep(0.05)
    waiting.stop()
    with pytest.raises(Stopped):
        await stopped
    release.set()
    await working
    assert await last.run(int) == 0
    for compute in (busy, waiting, last):
        compute.close()


@pytest.mark.asyncio
async def test_who_is_stopped_in_the_middle_undoes_nothing_under_anothers_hands() -> None:
    """A context that is left sets the process's generator back: only in the run's own turn."""
    alone = ComputeInTurns(ComputingTurns(), "a", 1)
    expected = await alone.run(drawn, alone, 1, 40)
    alone.close()
    turns, begun = ComputingTurns(slice_seconds=0.0), threading.Event()
    cancelled, other = ComputeInTurns(turns, "cancelled", 1), ComputeInTurns(turns, "other", 1)

    def within() -> None:
        torch.set_default_dtype(torch.float64)
        try:
            with torch.random.fork_rng(devices=[]):
                while True:
                    begun.set()
                    time.sleep(0.002)
                    cancelled.check()
        finally:
            torch.set_default_dtype(torch.float32)

    def stops() -> list[float]:
        found = drawn(other, 1, 20)
        state = torch.get_rng_state()
        cancelled.stop()
        time.sleep(0.5)
        # It has not left its contexts: this is not its turn.
        assert torch.equal(torch.get_rng_state(), state)
        for _ in range(20):
            found += [torch.rand(1).item(), random.random(), float(np.random.rand())]
            time.sleep(0.002)
            other.check()
        return found

    going = asyncio.create_task(cancelled.run(within))
    await asyncio.to_thread(begun.wait)
    assert await other.run(stops) == expected
    with pytest.raises(Stopped):
        await going
    cancelled.close()
    other.close()
    assert torch.get_default_dtype() is torch.float32
