"""FedAvg: the weighted mean of the updates, the same bits in whatever order they came."""

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.model.adapter import plus
from coordinator.algorithms.aggregation import Update, fedavg
from tests.small import copies, same_bits


def random_tensors(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {"a": torch.randn(3, 5, generator=generator), "b": torch.randn(7, generator=generator)}


START = random_tensors(0)


def test_weights_are_by_examples_as_worked_out_by_hand() -> None:
    start = {"w": torch.tensor([1.0, 10.0])}
    updates = [
        Update("a", 30, {"w": torch.tensor([4.0, 0.0])}),
        Update("b", 10, {"w": torch.tensor([0.0, -8.0])}),
    ]
    # 1 + (30 · 4 + 10 · 0) / 40, 10 + (30 · 0 - 10 · 8) / 40
    assert fedavg(start, updates)["w"].tolist() == [4.0, 8.0]


@given(st.integers(1, 2**31), st.integers(1, 10**9))
def test_one_update_gives_exactly_start_plus_delta(seed: int, examples: int) -> None:
    delta = random_tensors(seed)
    assert same_bits(fedavg(START, [Update("alice", examples, delta)]), plus(START, delta))


def test_the_order_of_updates_changes_no_bit() -> None:
    updates = [Update(f"w{i}", 10 + 7 * i, random_tensors(i + 1)) for i in range(4)]
    expected = fedavg(START, updates)
    for order in permutations(updates):
        assert same_bits(fedavg(START, order), expected)


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=5))
def test_workers_that_agree_get_what_they_agree_on(examples: list[int]) -> None:
    delta = random_tensors(9)
    result = fedavg(START, [Update(f"w{i}", n, delta) for i, n in enumerate(examples)])
    agreed = plus(START, delta)
    assert all(torch.allclose(result[name], agreed[name], atol=1e-5) for name in START)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_keeps_the_adapters_dtype_and_leaves_its_inputs_alone(dtype: torch.dtype) -> None:
    start = {name: tensor.to(dtype) for name, tensor in START.items()}
    update = Update("a", 5, {name: tensor.to(dtype) for name, tensor in random_tensors(1).items()})
    before = copies(start), copies(dict(update.delta))
    result = fedavg(start, [update, Update("b", 3, update.delta)])
    assert all(tensor.dtype == dtype for tensor in result.values())
    assert same_bits(start, before[0]) and same_bits(dict(update.delta), before[1])
