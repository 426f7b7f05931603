"""The search for settings: on a grid, the same for the same scores, and it says where it did not look."""

import math

import pytest

from common.records import LocalOptimizer
from experiments.search import Trial, at_edge, first_design, neighbours, next_trials, ranked, stepped

ADAMW, SGD = LocalOptimizer.ADAMW, LocalOptimizer.SGD


def searched(with_adapter: bool, budget: int, target: Trial) -> list[Trial]:
    """All trials of a search whose scores fall with the distance to `target`, in the order of running."""

    def value(trial: Trial) -> tuple[float, float]:
        far = abs(math.log(trial.head_learning_rate / target.head_learning_rate))
        if trial.learning_rate and target.learning_rate:
            far += abs(math.log(trial.learning_rate / target.learning_rate))
        far += abs(math.log2(trial.epochs / target.epochs)) + abs(
            math.log2(trial.batch_size / target.batch_size)
        )
        return -far - 10 * (trial.optimizer is not target.optimizer), far

    tried = first_design(with_adapter)
    while new := next_trials({t: value(t) for t in tried}, budget):
        assert not set(new) & set(tried) and len(set(new)) == len(new)
        tried += new
    assert value(ranked({t: value(t) for t in tried})[0]) == max(map(value, tried), key=lambda v: v[0])
    return tried


@pytest.mark.parametrize("with_adapter", [True, False])
@pytest.mark.parametrize("budget", [6, 7, 13, 40])
def test_every_method_gets_the_same_number_of_trials(with_adapter: bool, budget: int) -> None:
    target = Trial(SGD, 1.0 if with_adapter else None, 20.0, 4, 32)
    tried = searched(with_adapter, budget, target)
    assert len(tried) == len(set(tried)) == budget
    assert tried == searched(with_adapter, budget, target), "chance"


@pytest.mark.parametrize(
    "target",
    [
        Trial(SGD, 2.0, 20.0, 2, 32),
        Trial(ADAMW, 1e-3, 2e-2, 4, 8),
        Trial(SGD, None, 100.0, 4, 64),
        Trial(ADAMW, None, 0.2, 1, 4),
    ],
)
def test_the_search_comes_to_what_is_best_on_its_grid(target: Trial) -> None:
    tried = searched(target.learning_rate is not None, 40, target)
    assert target in tried
    assert at_edge(target, tried) == [] or target.batch_size in (4, 64)


def test_rates_step_on_a_grid_of_1_2_5() -> None:
    assert [stepped(2e-3, n) for n in (-2, -1, 0, 1, 2, 3)] == [5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2]
    assert stepped(5.0, 1) == 10.0 and stepped(10.0, -1) == 5.0
    with pytest.raises(ValueError):
        stepped(3e-3, 1)


def test_neighbours_differ_in_one_coordinate_and_stay_within_bounds() -> None:
    near = neighbours(Trial(ADAMW, 0.2, 0.5, 1, 4))
    # AdamW's rates end at 0.5, an epoch and 4 examples are the least.
    assert near["learning rates"] == [Trial(ADAMW, 0.1, 0.2, 1, 4)]
    assert near["head's learning rate"] == [Trial(ADAMW, 0.2, 0.2, 1, 4)]
    assert near["epochs"] == [Trial(ADAMW, 0.2, 0.5, 2, 4)]
    assert near["batch size"] == [Trial(ADAMW, 0.2, 0.5, 1, 8)]
    assert neighbours(Trial(SGD, None, 5.0))["head's learning rate"] == [
        Trial(SGD, None, 20.0),
        Trial(SGD, None, 1.0),
    ]


def test_where_nothing_was_tried_beyond_the_best_is_told() -> None:
    best = Trial(SGD, 0.5, 5.0, 2, 16)
    tried = [best, Trial(SGD, 0.1, 1.0), Trial(ADAMW, 2.0e-3, 20.0, 1, 8)]
    # AdamW's rates say nothing of SGD's.
    assert at_edge(best, tried) == [
        "larger LoRA's learning rate",
        "larger head's learning rate",
        "larger epochs",
        "larger batch size",
    ]
    assert at_edge(Trial(SGD, 0.1, 1.0), [*tried, Trial(SGD, 0.05, 0.5, 1, 32)]) == []


def test_of_equal_scores_the_lower_loss_and_then_the_lesser_work_is_first() -> None:
    slow, quick, sure = Trial(SGD, None, 1.0, 4), Trial(SGD, None, 1.0, 1), Trial(SGD, None, 2.0, 8)
    assert ranked({slow: (0.5, 1.0), quick: (0.5, 1.0), sure: (0.5, 0.9)}) == [sure, quick, slow]
    assert ranked({slow: (-math.inf, math.inf), quick: (0.1, 9.0)})[0] == quick
