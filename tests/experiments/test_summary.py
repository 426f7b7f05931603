"""Means, paired differences and rank correlations."""

import pytest

from experiments.summary import mean_of, paired, rank_correlation


def test_a_mean_has_a_spread_only_with_several_runs() -> None:
    assert mean_of([2.0]).sd is None and mean_of([2.0]).is_noise is None
    found = mean_of([1.0, 2.0, 3.0])
    assert (found.count, found.mean, found.sd) == (3, 2.0, 1.0)
    assert found.error == pytest.approx(3**-0.5)
    with pytest.raises(ValueError, match="at least one"):
        mean_of([])


def test_differences_are_paired_by_seed_so_that_common_chance_cancels() -> None:
    hard, easy = {1: 80.0, 2: 90.0, 3: 70.0}, {1: 81.0, 2: 91.1, 3: 71.2, 4: 99.0}
    gap = paired(easy, hard)
    assert gap is not None and gap.count == 3
    assert gap.mean == pytest.approx(1.1) and gap.sd == pytest.approx(0.1)
    # Unpaired, seeds differ by 10 and the difference would drown.
    assert gap.is_noise is False
    assert paired({1: 1.0}, {2: 1.0}) is None


@pytest.mark.parametrize(
    ("values", "noise"), [([1.0, -1.0, 0.5], True), ([4.3, 4.4], False), ([1.0, 3.0], True)]
)
def test_noise_is_told_by_students_t(values: list[float], noise: bool) -> None:
    assert mean_of(values).is_noise is noise


def test_rank_correlation_looks_at_order_only() -> None:
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 1], [3, 2, 1]) == 0
    with pytest.raises(ValueError, match="equal length"):
        rank_correlation([1], [1])
