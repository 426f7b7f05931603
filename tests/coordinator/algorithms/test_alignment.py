"""When neurons are aligned during the rounds, and which."""

import pytest
import torch

from common.config.choices import NeuronChoice
from common.model.apoz import ZeroCounts
from coordinator.algorithms.alignment import chosen_neurons, due

HIGHEST, LOWEST, RANDOM = NeuronChoice.HIGHEST, NeuronChoice.LOWEST, NeuronChoice.RANDOM


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


def chosen(
    counted: dict[int, ZeroCounts], proportion: float, choice: NeuronChoice = HIGHEST, seed: int = 0
) -> dict[int, list[int]]:
    found = chosen_neurons(counted, proportion, choice, seed)
    assert all(index.dtype == torch.int64 for index in found.values())
    return {layer: index.tolist() for layer, index in found.items()}


def test_the_neurons_most_often_at_rest_are_chosen_in_ascending_order() -> None:
    counted = {1: counts([3, 9, 1, 7]), 4: counts([0, 0, 0, 5])}
    assert chosen(counted, 0.5) == {1: [1, 3], 4: [0, 3]}


def test_the_lowest_are_those_least_often_at_rest() -> None:
    counted = {1: counts([3, 9, 1, 7]), 4: counts([0, 0, 0, 5])}
    assert chosen(counted, 0.5, LOWEST) == {1: [0, 2], 4: [0, 1]}


def test_highest_and_lowest_halves_share_nothing_and_leave_nothing() -> None:
    counted = {0: counts([5, 2, 9, 1, 7, 0])}
    high, low = chosen(counted, 0.5)[0], chosen(counted, 0.5, LOWEST)[0]
    assert sorted(high + low) == list(range(6))


def test_every_layer_has_its_own_number_of_tokens() -> None:
    few, many = counts([1, 0], tokens=1), counts([100, 900], tokens=1000)
    assert chosen({0: few, 1: many}, 0.5) == {0: [0], 1: [1]}
    assert chosen({0: few, 1: many}, 0.5, LOWEST) == {0: [1], 1: [0]}


@pytest.mark.parametrize(("proportion", "size"), [(0.01, 1), (0.3, 3), (0.8, 8), (1.0, 10)])
@pytest.mark.parametrize("choice", NeuronChoice)
def test_the_proportion_fixes_how_many_and_one_at_least(
    proportion: float, size: int, choice: NeuronChoice
) -> None:
    found = chosen({2: counts(list(range(10)))}, proportion, choice)[2]
    assert len(found) == size and found == sorted(set(found))


def test_random_neurons_depend_on_the_seed_and_not_on_the_counts() -> None:
    one, other = {2: counts(list(range(40)))}, {2: counts(list(range(40, 0, -1)), tokens=50)}
    assert chosen(one, 0.5, RANDOM, 1) == chosen(other, 0.5, RANDOM, 1)
    assert chosen(one, 0.5, RANDOM, 1) != chosen(one, 0.5, RANDOM, 2)
    assert chosen(one, 0.5, RANDOM, 2**80) == chosen(one, 0.5, RANDOM, 2**80)


def test_random_neurons_of_layers_are_drawn_apart_and_alone() -> None:
    both = chosen({2: counts([0] * 40), 3: counts([0] * 40)}, 0.5, RANDOM)
    assert both[2] != both[3]
    assert chosen({3: counts([0] * 40)}, 0.5, RANDOM)[3] == both[3]


def test_a_random_choice_leaves_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    chosen({2: counts([0] * 40)}, 0.5, RANDOM)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("choice", [HIGHEST, LOWEST])
def test_without_a_draw_the_seed_says_nothing_and_the_first_of_equals_are_chosen(
    choice: NeuronChoice,
) -> None:
    counted = {2: counts([3] * 10)}
    assert chosen(counted, 0.3, choice, 1) == chosen(counted, 0.3, choice, 2) == {2: [0, 1, 2]}
