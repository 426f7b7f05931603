"""Tables that compare variants: what sees more than accuracy, and what the correction brings within a run."""

import math
from typing import Any

import pytest

from experiments.catalogue import EXPERIMENTS
from experiments.report.comparison import accuracies
from experiments.report.document import Table
from experiments.report.results import Results


def cell(seed: int, fm: float, corrected: float | None, auc: float) -> dict[str, Any]:
    """A run's figures: scores after round 2."""
    scores = [
        {"round": 1, "model": "fm", "accuracy": 0.1, "loss": 9.0, "metrics": {"auc": 0.1}},
        {"round": 2, "model": "fm", "accuracy": fm, "loss": 0.5, "metrics": {"auc": auc}},
        {"round": 2, "model": "sub_fm", "accuracy": 0.7, "loss": 0.6, "metrics": {"auc": 0.7}},
    ]
    if corrected is not None:
        better = {"round": 2, "model": "corrected", "accuracy": corrected, "loss": 0.4}
        scores.append(better | {"metrics": {"auc": auc + 0.01}})
    return {"scores": scores, "accuracy": fm if corrected is None else corrected}


@pytest.fixture
def tables() -> dict[str, Table]:
    experiment = EXPERIMENTS["correction"]
    cells: dict[tuple[str, str, int], dict[str, Any]] = {}
    for seed in (1, 2):
        cells["iid", "fedpetuning", seed] = cell(seed, 0.8 + 0.01 * seed, None, 0.9 + 0.01 * seed)
        cells["iid", "corrected", seed] = cell(seed, 0.78 + 0.01 * seed, 0.79 + 0.02 * seed, 0.88)
    sections = accuracies(Results(experiment, {}, cells, {}))
    return {part.name: part for section in sections for part in section.parts if isinstance(part, Table)}


def test_auc_and_loss_stand_beside_accuracy_with_paired_errors(tables: dict[str, Table]) -> None:
    rows = {row[0]: row[1:] for row in tables["auc-iid"].rows}
    whole, corrected = rows.values()
    assert whole[0] == pytest.approx(91.5) and whole[4] == pytest.approx(0.5)
    # The corrected model's, not that before the correction; differences of one seed: 89 - 91 and 89 - 92.
    assert corrected[:3] == pytest.approx((89.0, -2.5, 0.5)) and corrected[4] == pytest.approx(0.4)
    assert corrected[5] == pytest.approx(-0.1)


def test_what_the_correction_brings_is_told_within_each_run(tables: dict[str, Table]) -> None:
    (row,) = tables["correction-iid"].rows
    # 0.81 - 0.79 and 0.83 - 0.80, in points.
    assert row[1] == 2 and row[2] == pytest.approx(2.5) and row[3] == pytest.approx(0.5)
    assert row[5] == pytest.approx(1.0)


def test_an_area_that_is_undefined_is_left_out() -> None:
    cells = {("iid", "corrected", 1): cell(1, 0.8, None, math.nan)}
    sections = accuracies(Results(EXPERIMENTS["correction"], {}, cells, {}))
    (table,) = (p for p in sections[0].parts if isinstance(p, Table) and p.name == "auc-iid")
    assert table.rows[0][1] is None
