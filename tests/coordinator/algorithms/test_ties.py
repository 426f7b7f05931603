"""TIES-merging: by its formula, written down once more; and what holds whatever the numbers."""

import math
from itertools import permutations

import pytest
import torch
from torch import Tensor

from common.config.choices import AggregationRule
from coordinator.algorithms.aggregation import Settings, Update, combine
from coordinator.algorithms.ties import merged, trimmed
from tests.small import same_bits


def updates(seed: int, workers: int, *, positive: bool = False) -> list[Update]:
    generator = torch.Generator().manual_seed(seed)

    def tensor(*shape: int) -> Tensor:
        drawn = torch.randn(*shape, generator=generator)
        return drawn.abs() if positive else drawn

    return [
        Update(
            f"w{i}", int(torch.randint(1, 50, (), generator=generator)), {"a": tensor(4, 3), "b": tensor(9)}
        )
        for i in range(workers)
    ]


def by_hand(rows: list[list[float]], weights: list[int], density: float) -> list[float]:
    """Coordinate by coordinate, in Python's numbers."""
    keep = math.ceil(density * len(rows[0]) - 1e-9)
    kept = []
    for row in rows:
        largest = sorted(range(len(row)), key=lambda i: (-abs(row[i]), i))[:keep]
        kept.append([value if i in largest else 0.0 for i, value in enumerate(row)])
    result = []
    for column in zip(*kept, strict=True):
        elected = sum(w * v for w, v in zip(weights, column, strict=True))
        agreeing = [(w, v) for w, v in zip(weights, column, strict=True) if v * elected > 0]
        mass = sum(w for w, _ in agreeing)
        result.append(sum(w * v for w, v in agreeing) / mass if mass else 0.0)
    return result


@pytest.mark.parametrize("density", [0.07, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("workers", [1, 2, 5, 8])
@pytest.mark.parametrize("seed", range(5))
def test_it_is_the_formula(seed: int, workers: int, density: float) -> None:
    given = updates(seed, workers)
    change = combine(given, Settings(AggregationRule.TIES, density=density))
    for name in ("a", "b"):
        rows = [u.delta[name].flatten().tolist() for u in given]
        expected = by_hand(rows, [u.weight for u in given], density)
        assert change[name].flatten().tolist() == pytest.approx(expected, abs=1e-6)
        assert change[name].shape == given[0].delta[name].shape


@pytest.mark.parametrize("seed", range(5))
def test_one_worker_is_exact(seed: int) -> None:
    (one,) = updates(seed, 1)
    assert same_bits(combine([one], Settings(AggregationRule.TIES, density=1.0)), dict(one.delta))
    thin = combine([one], Settings(AggregationRule.TIES, density=0.4))
    assert same_bits(thin, {name: trimmed(delta, 0.4) for name, delta in one.delta.items()})


@pytest.mark.parametrize("seed", range(5))
def test_without_conflict_and_trimming_it_is_fedavg(seed: int) -> None:
    given = updates(seed, 6, positive=True)
    ties, mean = combine(given, Settings(AggregationRule.TIES, density=1.0)), combine(given, Settings())
    for name in mean:
        assert torch.allclose(ties[name], mean[name], rtol=1e-5)


def test_the_order_of_arrival_changes_no_bit() -> None:
    given, settings = updates(3, 4), Settings(AggregationRule.TIES, density=0.5)
    first = combine(given, settings)
    assert all(same_bits(combine(list(order), settings), first) for order in permutations(given))


def test_the_lighter_side_of_a_conflict_is_left_out() -> None:
    changes = [torch.tensor([4.0]), torch.tensor([-1.0]), torch.tensor([2.0])]
    # Signs are elected by weight times size: 4 + 2 against 1, then 4 + 2 against 10.
    assert merged(changes, [1, 1, 1], 1.0).item() == 3.0
    assert merged(changes, [1, 10, 1], 1.0).item() == -1.0
    # A draw elects nothing.
    assert merged([torch.tensor([1.0]), torch.tensor([-1.0])], [0.5, 0.5], 1.0).item() == 0.0


def test_what_only_one_worker_moved_is_not_thinned_by_the_others() -> None:
    changes = [torch.tensor([8.0, 0.0, 0.1]), torch.tensor([0.1, 6.0, 0.0])]
    assert merged(changes, [0.5, 0.5], 1 / 3).tolist() == [8.0, 6.0, 0.0]


def test_trimming_keeps_the_largest_and_of_equals_the_first() -> None:
    change = torch.tensor([[1.0, -3.0], [3.0, 2.0]])
    assert trimmed(change, 0.25).tolist() == [[0.0, -3.0], [0.0, 0.0]]
    assert trimmed(change, 0.5).tolist() == [[0.0, -3.0], [3.0, 0.0]]
    assert trimmed(change, 0.51).tolist() == [[0.0, -3.0], [3.0, 2.0]]
    assert trimmed(change, 1e-9).count_nonzero() == 1
    # 0.07 · 100 is a little more than 7 in floating point.
    assert trimmed(torch.arange(1.0, 101.0), 0.07).count_nonzero() == 7


def test_half_precision_stays_half_precision() -> None:
    changes = [
        torch.tensor([1.0, -2.0], dtype=torch.bfloat16),
        torch.tensor([3.0, 1.0], dtype=torch.bfloat16),
    ]
    change = merged(changes, [0.5, 0.5], 1.0)
    assert change.dtype == torch.bfloat16 and change.tolist() == [2.0, -2.0]
