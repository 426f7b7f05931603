"""When neurons are aligned during the rounds, and which."""

import pytest
import torch

from common.model.apoz import ZeroCounts
from coordinator.algorithms.alignment import drifted_neurons, due


def counts(zeros: list[int], tokens: int = 10) -> ZeroCounts:
    return ZeroCounts(torch.tensor(zeros), torch.tensor(tokens))


@pytest.mark.parametrize(
    ("every", "rounds", "expected"),
    [(0, 6, []), (1, 4, [1, 2, 3]), (2, 6, [2, 4]), (2, 7, [2, 4, 6]), (10, 6, []), (6, 6, [])],
)
def test_an_alignment_is_due_every_t_rounds_but_not_after_the_last(
    every: int, rounds: int, expected: list[int]
) -> None:
    assert [r for r in range(1, rounds + 1) if due(r, every, rounds)] == expected


def test_the_neurons_most_often_at_rest_are_chosen_in_ascending_order() -> None:
    chosen = drifted_neurons({1: counts([3, 9, 1, 7]), 4: counts([0, 0, 0, 5])}, 0.5)
    assert {layer: index.tolist() for layer, index in chosen.items()} == {1: [1, 3], 4: [0, 3]}


def test_every_layer_has_its_own_number_of_tokens() -> None:
    few, many = counts([1, 0], tokens=1), counts([100, 900], tokens=1000)
    chosen = drifted_neurons({0: few, 1: many}, 0.5)
    assert chosen[0].tolist() == [0] and chosen[1].tolist() == [1]


@pytest.mark.parametrize(("proportion", "size"), [(0.01, 1), (0.3, 3), (0.8, 8), (1.0, 10)])
def test_the_proportion_fixes_how_many_and_one_at_least(proportion: float, size: int) -> None:
    assert len(drifted_neurons({2: counts(list(range(10)))}, proportion)[2]) == size
