"""An update is set aside when it is far larger than the round's others, whichever came first."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.algorithms.outliers import norm, outliers

NORMS = st.dictionaries(st.text("abcdef", min_size=1, max_size=3), st.floats(0, 1e30), max_size=9)


def test_the_norm_is_that_of_all_tensors_together() -> None:
    delta = {"x": torch.tensor([3.0, 0.0]), "y": torch.full((2, 2), 2.0)}
    assert norm(delta) == pytest.approx(5.0)
    assert norm({"x": torch.full((10,), 1e30)}) == pytest.approx(math.sqrt(10) * 1e30)
    assert norm({"x": torch.ones(4, dtype=torch.bfloat16)}) == pytest.approx(2.0)


def test_what_is_beyond_the_limit_goes_the_largest_first() -> None:
    norms = {"a": 1.0, "b": 1.2, "c": 0.8, "d": 50.0, "e": 20.0}
    assert outliers(norms, 10.0, 1) == ["d", "e"]
    assert outliers(norms, 20.0, 1) == ["d"]
    assert outliers(norms, 10.0, 4) == ["d"]
    assert outliers(norms, 10.0, 5) == []


def test_two_updates_have_no_median_worth_the_name() -> None:
    assert outliers({"a": 1.0, "b": 1e9}, 2.0, 1) == []


@settings(max_examples=50)
@given(NORMS, st.floats(1.01, 100), st.integers(1, 5))
def test_at_least_half_and_the_minimum_stay_in_whatever_order_they_came(
    norms: dict[str, float], factor: float, minimum: int
) -> None:
    aside = outliers(norms, factor, minimum)
    assert len(norms) - len(aside) >= min(minimum, len(norms))
    assert len(aside) <= len(norms) / 2
    assert aside == outliers(dict(reversed(norms.items())), factor, minimum)
