"""Scores of attacks agree with scikit-learn's, and their intervals cover what they should."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score, roc_curve

from experiments.attacks.scores import Estimate, Floats, auc, estimate, hits_at, onto_simplex, total_variation

SCORES = st.lists(st.integers(-4, 4), min_size=1, max_size=30)


@settings(max_examples=25)
@given(SCORES, SCORES)
def test_the_auc_is_scikit_learns_also_with_ties(members: list[int], others: list[int]) -> None:
    truth = [1] * len(members) + [0] * len(others)
    assert auc(np.array(members), np.array(others)) == pytest.approx(roc_auc_score(truth, members + others))


@settings(max_examples=25)
@given(SCORES, SCORES, st.sampled_from([0.01, 0.1, 0.5]))
def test_hits_are_the_best_of_scikit_learns_curve_within_the_false_alarms(
    members: list[int], others: list[int], most: float
) -> None:
    truth = [1] * len(members) + [0] * len(others)
    alarms, hits, _ = roc_curve(truth, members + others, drop_intermediate=False)
    best = max(hit for alarm, hit in zip(alarms, hits, strict=True) if alarm <= most)
    assert hits_at(np.array(members), np.array(others), most) == pytest.approx(best)


@pytest.mark.parametrize("members", [[], [float("nan")]], ids=["none", "no number"])
def test_scores_that_are_none_are_refused(members: list[float]) -> None:
    with pytest.raises(ValueError, match="score"):
        auc(np.array(members), np.array([0.0]))


@pytest.mark.slow
def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    random, covered, runs = np.random.default_rng(5), 0, 60
    # 40 workers of 3 examples; what a worker has in common counts.
    workers = np.repeat(range(40), 3).tolist()

    def found(values: Floats, seed: int) -> Estimate:
        return estimate(lambda i: float(values[i].mean()), workers, seed)

    for run in range(runs):
        one = found(np.repeat(random.normal(size=40), 3) + 0.1 * random.normal(size=120), run)
        covered += one.low <= 0.0 <= one.high
    assert 0.85 <= covered / runs <= 1.0


def test_an_interval_over_single_examples_would_be_too_short() -> None:
    values = np.repeat(np.random.default_rng(2).normal(size=20), 10)
    by_worker = estimate(lambda i: float(values[i].mean()), np.repeat(range(20), 10).tolist(), 1)
    one_by_one = estimate(lambda i: float(values[i].mean()), list(range(200)), 1)
    assert by_worker.half > 2 * one_by_one.half


@settings(max_examples=25)
@given(st.lists(st.floats(-3, 3), min_size=2, max_size=6))
def test_shares_are_the_nearest_ones(values: list[float]) -> None:
    given_values = np.array(values)
    shares = onto_simplex(given_values)
    assert shares.sum() == pytest.approx(1) and (shares >= 0).all()
    # No step from one class to another comes nearer.
    distance = ((shares - given_values) ** 2).sum()
    for i in range(len(values)):
        for j in range(len(values)):
            moved = shares.copy()
            step = min(1e-3, moved[i])
            moved[i] -= step
            moved[j] += step
            assert ((moved - given_values) ** 2).sum() >= distance - 1e-9


def test_total_variation_is_what_has_to_be_moved() -> None:
    assert total_variation(np.array([0.5, 0.5, 0.0]), np.array([0.2, 0.5, 0.3])) == pytest.approx(0.3)
