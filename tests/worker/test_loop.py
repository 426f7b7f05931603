"""What a worker makes of what goes wrong in a round."""

import pytest
import torch

from common.errors import BadUpdate, CannotTrain, DataError, StaleRound, UnknownArtifact
from worker.cannot import as_cannot_train

OF_THE_CPU = "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: error code 12"


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), "out of memory"),
        (RuntimeError(OF_THE_CPU), "out of memory"),
        (RuntimeError("MPS backend out of memory"), "out of memory"),
        (MemoryError(), "out of memory"),
        (UnknownArtifact("gone"), "cannot be fetched: gone"),
        (BadUpdate("tensor x is missing"), "not what the task announced: tensor x"),
    ],
)
def test_what_may_pass_until_the_next_round_is_told_and_does_not_end_the_worker(
    error: Exception, told: str
) -> None:
    with pytest.raises(CannotTrain, match=told), as_cannot_train():
        raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), DataError("row 3"), StaleRound("over")])
def test_everything_else_is_what_it_is(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, as_cannot_train():
        raise error
    assert raised.value is error
