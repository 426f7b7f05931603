"""FedEx-LoRA: averaged factors plus a residual have exactly the average of the workers' products."""

from collections.abc import Mapping, Sequence
from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from common.errors import RunFailed
from common.model.adapter import plus
from coordinator.algorithms.aggregation import Settings, Update, aggregate, exact
from tests.small import copies, same_bits

PATH = "base_model.model.bert.encoder.layer.0.attention.self.query"
A, B, RESIDUAL = f"{PATH}.lora_A.weight", f"{PATH}.lora_B.weight", f"{PATH}.residual.weight"
HEAD = "base_model.model.classifier.bias"
IN, OUT, RANK, SCALE = 6, 5, 2, 4.0


def random_tensors(seed: int) -> dict[str, Tensor]:
    """An adapter of one projection and a head, or a change to it."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {A: (RANK, IN), B: (OUT, RANK), HEAD: (3,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def weight(adapter: Mapping[str, Tensor]) -> Tensor:
    """What the adapter adds to the frozen weight, [out, in], in float64."""
    added = SCALE * adapter[B].double() @ adapter[A].double()
    return added + adapter[RESIDUAL].double() if RESIDUAL in adapter else added


def average(start: dict[str, Tensor], updates: Sequence[Update]) -> Tensor:
    """The mean of what the workers' own adapters add to the frozen weight, by examples."""
    total = sum(u.weight for u in updates)
    tuned = [start | plus({name: start[name] for name in u.delta}, u.delta) for u in updates]
    return sum((u.weight / total * weight(t) for u, t in zip(updates, tuned, strict=True)), torch.tensor(0.0))


START = random_tensors(0)
UPDATES = [Update(f"w{i}", 10 + 7 * i, random_tensors(i + 1)) for i in range(4)]


def test_the_residual_is_as_worked_out_by_hand() -> None:
    start = {A: torch.zeros(1, 2), B: torch.zeros(1, 1)}
    updates = [
        Update("ann", 3, {A: torch.tensor([[4.0, 0.0]]), B: torch.tensor([[4.0]])}),
        Update("bob", 1, {A: torch.tensor([[0.0, 8.0]]), B: torch.tensor([[-4.0]])}),
    ]
    adapter = exact(start, updates, scale=2.0)
    # A: 3/4 [4, 0] + 1/4 [0, 8]; B: 3/4 · 4 - 1/4 · 4.
    assert adapter[A].tolist() == [[3.0, 2.0]] and adapter[B].tolist() == [[2.0]]
    # Products [16, 0] and [0, -32], their mean [12, -8]; the means' product [6, 4]; twice the difference.
    assert adapter[RESIDUAL].tolist() == [[12.0, -24.0]]


@given(st.integers(1, 2**20), st.lists(st.integers(1, 1000), min_size=2, max_size=5))
def test_the_models_weight_is_the_mean_of_the_workers_weights(seed: int, examples: list[int]) -> None:
    start = random_tensors(seed)
    updates = [Update(f"w{i}", n, random_tensors(seed + 1 + i)) for i, n in enumerate(examples)]
    expected = average(start, updates)
    assert torch.allclose(weight(exact(start, updates, SCALE)), expected, rtol=0, atol=1e-5)
    plain, _ = aggregate(start, updates, {}, Settings())
    assert not torch.allclose(weight(plain), expected, rtol=0, atol=1e-5)


def test_the_layers_output_is_the_mean_of_the_workers_outputs() -> None:
    inputs = torch.randn(7, IN, generator=torch.Generator().manual_seed(99))
    layer = nn.Linear(IN, OUT, bias=False)

    def output(added: Tensor) -> Tensor:
        with torch.no_grad():
            layer.weight.copy_(added)
            result: Tensor = layer(inputs)
            return result

    total = sum(u.weight for u in UPDATES)
    outputs = [u.weight / total * output(weight(plus(START, u.delta))) for u in UPDATES]
    result = output(weight(exact(START, UPDATES, SCALE)))
    assert torch.allclose(result, torch.stack(outputs).sum(dim=0), atol=1e-4)


def test_the_residual_gathers_what_every_round_lacks() -> None:
    first = exact(START, UPDATES, SCALE)
    later = [Update(u.worker, u.weight, random_tensors(50 + i)) for i, u in enumerate(UPDATES)]
    second = exact(first, later, SCALE)
    # The workers of the second round trained on top of the first round's residual.
    assert torch.allclose(weight(second), average(first, later), rtol=0, atol=1e-4)
    alone = exact({name: t for name, t in first.items() if name != RESIDUAL}, later, SCALE)
    assert torch.allclose(second[RESIDUAL], first[RESIDUAL] + alone[RESIDUAL], atol=1e-4)
    assert not torch.allclose(second[RESIDUAL], alone[RESIDUAL], atol=1e-2)


def test_factors_and_head_are_averaged_as_without_residuals() -> None:
    plain, _ = aggregate(START, UPDATES, {}, Settings())
    adapter = exact(START, UPDATES, SCALE)
    assert adapter.keys() == START.keys() | {RESIDUAL}
    assert same_bits({name: adapter[name] for name in START}, plain)
    assert adapter[RESIDUAL].shape == (OUT, IN) and adapter[RESIDUAL].dtype == START[B].dtype


def test_one_update_leaves_nothing_to_make_good() -> None:
    adapter = exact(START, UPDATES[:1], SCALE)
    assert torch.equal(adapter[RESIDUAL], torch.zeros(OUT, IN))
    assert same_bits({name: adapter[name] for name in START}, plus(START, UPDATES[0].delta))


def test_a_frozen_factor_leaves_next_to_nothing_to_make_good() -> None:
    updates = [Update(u.worker, u.weight, {n: t for n, t in u.delta.items() if n != A}) for u in UPDATES]
    adapter = exact(START, updates, SCALE)
    assert torch.equal(adapter[A], START[A])
    # With one A the products' mean is the means' product, but for rounding.
    assert adapter[RESIDUAL].abs().max() < 1e-5
    assert torch.allclose(weight(adapter), average(START, updates), rtol=0, atol=1e-6)


@pytest.mark.parametrize("residual", [{}, {RESIDUAL: torch.full((OUT, IN), 0.1)}], ids=["without", "with"])
def test_what_no_update_holds_stays_as_it_is_to_the_bit(residual: dict[str, Tensor]) -> None:
    start = START | residual
    updates = [Update(u.worker, u.weight, {HEAD: u.delta[HEAD]}) for u in UPDATES]
    adapter = exact(start, updates, SCALE)
    assert adapter.keys() == start.keys()
    assert all(torch.equal(adapter[name], start[name]) == (name != HEAD) for name in start)


def test_every_pair_has_its_own_residual() -> None:
    def doubled(tensors: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
        return dict(tensors) | {n.replace("query", "value"): factor * t for n, t in tensors.items()}

    updates = [Update(u.worker, u.weight, doubled(u.delta, 2.0)) for u in UPDATES]
    adapter = exact(doubled(START, 2.0), updates, SCALE)
    # Twice both factors: four times the product.
    assert torch.allclose(adapter[RESIDUAL.replace("query", "value")], 4 * adapter[RESIDUAL], atol=1e-4)


def test_the_order_of_updates_changes_no_bit_and_inputs_stay_alone() -> None:
    start = exact(START, UPDATES, SCALE)
    before = copies(start), [copies(dict(u.delta)) for u in UPDATES]
    expected = exact(start, UPDATES, SCALE)
    for order in permutations(UPDATES):
        assert same_bits(exact(start, order, SCALE), expected)
    assert same_bits(start, before[0])
    assert all(same_bits(dict(u.delta), copy) for u, copy in zip(UPDATES, before[1], strict=True))


def test_no_updates_are_refused() -> None:
    with pytest.raises(RunFailed, match="no update"):
        exact(START, [], SCALE)
