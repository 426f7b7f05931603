"""The report on the owner's margin: what is behind what, at which price, and what is worth it."""

from typing import Any

import pytest

from experiments.catalogue import EXPERIMENTS
from experiments.report.document import Plot, Section, Table
from experiments.report.margins import sections
from experiments.report.results import Results


def cell(fm: float, sub_fm: float, corrected: float | None = None) -> dict[str, Any]:
    """A run's figures: scores before the first round and after the second."""
    scores: list[dict[str, Any]] = [
        {"round": 0, "model": "fm", "accuracy": 0.2},
        {"round": 0, "model": "sub_fm", "accuracy": 0.99},
        {"round": 2, "model": "fm", "accuracy": fm},
        {"round": 2, "model": "sub_fm", "accuracy": sub_fm},
    ]
    if corrected is not None:
        scores.append({"round": 2, "model": "corrected", "accuracy": corrected})
    return {"scores": scores, "accuracy": fm if corrected is None else corrected}


def reported(**variants: tuple[float, ...]) -> Section:
    cells = {
        ("iid", name.replace("_", "-"), seed): cell(*(value + 0.01 * seed for value in values))
        for name, values in variants.items()
        for seed in (1, 2)
    }
    (section,) = sections(Results(EXPERIMENTS["margin"], {}, cells, {}))
    return section


def test_margin_and_cost_stand_beside_the_three_scores() -> None:
    found = reported(fedpft_b=(0.80, 0.80), rank_4=(0.79, 0.77), corrected=(0.79, 0.79, 0.81))
    table, plot = found.parts
    assert isinstance(table, Table) and isinstance(plot, Plot)
    rows = {row[0]: row[1:] for row in table.rows}
    none, ranked, corrected = rows.values()
    assert none == pytest.approx((2, 20.0, 81.5, 81.5, 0.0, 0.0, None, None))
    assert ranked == pytest.approx((2, 20.0, 80.5, 78.5, 2.0, 0.0, -1.0, 0.0), abs=1e-9)
    # What is exported is the corrected FM.
    assert corrected[2] == pytest.approx(82.5) and corrected[4] == pytest.approx(2.0)
    assert plot.series[0].y == pytest.approx((2.0, 2.0)) and plot.series[1].y == pytest.approx((-1.0, 1.0))


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ((0.795, 0.77), "These have a margin of 2 points at a cost of 1 at most: attention of rank 4."),
        (
            (0.75, 0.70),
            "No variant has a margin of 2 points at a cost of 1 at most. The largest margin is +5",
        ),
        (
            (0.80, 0.79),
            "No variant has a margin of 2 points at a cost of 1 at most. The largest margin is +1",
        ),
    ],
)
def test_a_lever_is_worth_it_only_with_both(scores: tuple[float, float], told: str) -> None:
    assert told in reported(fedpft_b=(0.80, 0.80), rank_4=scores).text[1]


def test_nothing_is_said_of_levers_that_have_not_run() -> None:
    found = reported(fedpft_b=(0.80, 0.80))
    assert found.text[1] == "Nothing has been run yet."
