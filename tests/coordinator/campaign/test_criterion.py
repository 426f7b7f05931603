"""Offsite-tuning's criterion, from a run's scores."""

import math
import re

import pytest

from common.records import TaskKind
from common.run_status import Evaluation
from coordinator.campaign.criterion import criterion

CLASSES, LANGUAGE = TaskKind.TEXT_CLASSIFICATION, TaskKind.CAUSAL_LM


def scores(before: float, plugged_in: float, sub_fm: float, loss: float = 1.0) -> list[Evaluation]:
    return [
        Evaluation(0, "fm", before, loss),
        Evaluation(0, "sub_fm", before, loss),
        Evaluation(2, "fm", plugged_in, 0.5),
        Evaluation(2, "sub_fm", sub_fm, 0.8),
    ]


@pytest.mark.parametrize(
    ("plugged_in", "sub_fm", "told"),
    [
        (0.90, 0.85, "gains 40.00 points; the workers' sub-FM stays 5.00 points behind"),
        (0.90, 0.89, "only 1.00 points behind it: they keep a model nearly as good"),
        (0.90, 0.91, r"not behind it \(-1.00 points\)"),
        (0.50, 0.40, "the FM gains nothing"),
    ],
)
def test_it_says_what_the_workers_keep(plugged_in: float, sub_fm: float, told: str) -> None:
    found = criterion(scores(0.5, plugged_in, sub_fm), 2, CLASSES)
    assert found is not None
    assert re.search(told, str(found)), str(found)


def test_of_language_models_it_is_about_the_loss_of_which_less_is_better() -> None:
    found = criterion(scores(0.1, 0.1, 0.1), 2, LANGUAGE)
    assert found is not None
    assert found.gain == pytest.approx(50.0)
    assert found.margin == pytest.approx(37.5)
    assert "37.50 % of the loss behind" in str(found)


def test_the_corrected_fm_is_the_owners_where_there_is_one() -> None:
    found = criterion([*scores(0.5, 0.8, 0.8), Evaluation(2, "corrected", 0.85, 0.4)], 2, CLASSES)
    assert found is not None and found.margin == pytest.approx(5.0)


def test_without_all_three_scores_it_says_nothing() -> None:
    assert criterion(scores(0.5, 0.8, 0.8)[:2], 2, CLASSES) is None
    assert criterion(scores(0.5, 0.8, 0.8), 0, CLASSES) is None
    assert criterion(scores(math.nan, 0.8, 0.8), 2, CLASSES) is None
