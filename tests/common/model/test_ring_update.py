"""Tensors of ring elements: masks change them, and not a copy."""

import pytest
import torch

from common.model.ring_update import as_ring


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
@pytest.mark.parametrize("shape", [(), (0,), (2, 3)])
def test_words_are_the_tensors_own_memory(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = torch.zeros(shape, dtype=dtype)
    words = as_ring(tensor)
    words -= 1
    assert torch.equal(tensor, torch.full(shape, -1, dtype=dtype))


def test_a_tensor_of_which_there_would_be_a_copy_is_refused() -> None:
    with pytest.raises(ValueError, match="must be contiguous"):
        as_ring(torch.zeros((2, 3), dtype=torch.int64).T)
    with pytest.raises(ValueError, match="must be contiguous"):
        as_ring(torch.zeros(6, dtype=torch.int32)[::2])
