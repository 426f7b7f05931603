"""Which round is the best, when a run ends with it, and whose adapter is its result."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config.file import parse_config
from common.config.run import RunConfig
from common.errors import ConfigError
from common.run_status import Evaluation, Validation
from coordinator.campaign.best import Scores, judged, result_among
from coordinator.campaign.schedule import validates_after, validators


def config(**settings: Any) -> RunConfig:
    values = {
        "model.path": "m",
        "task.labels": ("no", "yes"),
        "alignment.steps": 0,
        "data.test.path": "t.csv",
    }
    dotted = {key.replace("__", "."): value for key, value in settings.items()}
    return parse_config(values | dotted, "a test")


def owners(*losses: float) -> list[Evaluation]:
    return [Evaluation(n, "fm", 0.5, loss) for n, loss in enumerate(losses)]


def workers(*losses: float) -> list[Validation]:
    return [Validation(n, 2, 20, 0.5, loss) for n, loss in enumerate(losses)]


def test_the_workers_scores_decide_and_the_owners_where_there_are_none() -> None:
    told = judged(config(), owners(0, 3, 2, 1), workers(0, 1, 2, 3))
    assert told.at_workers and told.best == 1
    told = judged(config(), owners(0, 3, 2, 1), [])
    assert not told.at_workers and told.best == 3


def test_what_was_scored_before_the_first_round_is_no_candidate() -> None:
    assert judged(config(), [], workers(0.0)).best is None
    assert judged(config(), [], workers(0.0, 5.0)).best == 1


def test_a_round_with_too_few_workers_has_no_score_and_one_workers_own_is_none() -> None:
    short = Validation(1, 0, 0, math.nan, math.nan)
    own = Validation(2, 1, 9, 0.9, 0.01, {}, "a")
    assert judged(config(), [], [short, own, *workers(9, 9, 9, 2)[3:]]).best == 3


def test_of_equal_rounds_the_first_is_best() -> None:
    assert judged(config(), [], workers(9, 1, 1, 1)).best == 1


def test_another_score_can_decide() -> None:
    found = [
        Evaluation(1, "fm", 0.9, 5.0, {"macro_f1": 0.1}),
        Evaluation(2, "fm", 0.1, 1.0, {"macro_f1": 0.3}),
    ]
    assert judged(config(rounds__best_by="accuracy"), found, []).best == 1
    assert judged(config(rounds__best_by="macro_f1"), found, []).best == 2
    # Nobody has it, or it is undefined: no round is the best one.
    assert judged(config(rounds__best_by="auc"), found, []).best is None


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=12), st.integers(1, 4))
def test_a_run_is_stale_once_the_last_scores_are_no_better_than_the_best(
    values: list[float], patience: int
) -> None:
    scores = Scores(tuple(enumerate(values, 1)))
    best = max(values)
    waited = len(values) - 1 - values.index(best)
    assert scores.best == values.index(best) + 1
    assert scores.stale(patience) is (waited >= patience)


def test_patience_counts_scores_not_rounds() -> None:
    assert not Scores(((5, 1.0), (10, 0.5))).stale(2)
    assert Scores(((5, 1.0), (10, 0.5), (15, 0.5))).stale(2)
    assert not Scores(()).stale(1)


def test_the_result_is_the_best_round_only_where_the_run_is_patient() -> None:
    told = Scores(((1, 2.0), (2, 1.0), (3, 1.0)))
    assert result_among(config(), told, 3) == 3
    assert result_among(config(rounds__patience=2), told, 3) == 1
    assert result_among(config(rounds__patience=2), Scores(()), 3) == 3


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"rounds__patience": 0}, "rounds.patience"),
        ({"rounds__best_by": "pearson"}, "rounds.best_by must be one of"),
        ({"validation__every": 1, "rounds__workers": 1}, "validation.minimum must not exceed"),
        ({"validation__every": 1, "validation__workers": 1}, "validation.minimum must not exceed"),
        ({"validation__every": -1}, "validation.every"),
    ],
)
def test_settings_that_do_not_go_together_are_one_clear_line(settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        config(**settings)


def test_workers_score_at_the_beginning_when_due_and_at_the_end() -> None:
    due = config(validation__every=2, rounds__count=5)
    assert [n for n in range(6) if validates_after(due, n)] == [0, 2, 4, 5]
    assert not any(validates_after(config(rounds__count=5), n) for n in range(6))


def test_the_workers_that_score_are_drawn_by_seed_and_round() -> None:
    some = config(validation__every=1, validation__workers=3)
    names = [f"w{i}" for i in range(9)]
    draws = [validators(some, n, names) for n in range(8)]
    assert all(draw == sorted(draw) and len(draw) == 3 for draw in draws)
    assert draws == [validators(some, n, names[::-1]) for n in range(8)] and len(set(map(tuple, draws))) > 2
    assert validators(config(validation__every=1), 1, names[::-1]) == names
