"""Noise is normal, of variance 1, batches are drawn at their rate, and nobody can know either."""

import math

import numpy as np
import pytest
from scipy import stats

from common.privacy.noise import KEY_BYTES, SecretDraws

COUNT = 200_000
# Two-sided: a right sampler fails once in a million.
LIKELY = 1e-6
KEY = bytes(range(KEY_BYTES))


def variance_is_likely(values: np.ndarray, expected: float) -> bool:
    """Whether the sum of squares of normal numbers fits their variance, by chi-square."""
    statistic, count = float((values**2).sum() / expected), values.size
    tails = stats.chi2.cdf(statistic, count), stats.chi2.sf(statistic, count)
    return 2 * min(tails) > LIKELY


def test_the_variance_is_one() -> None:
    assert variance_is_likely(SecretDraws(KEY).normals((COUNT,)), 1.0)


@pytest.mark.parametrize("wrong", [1 / math.sqrt(2), 0.98, 1.02])
def test_another_variance_would_show(wrong: float) -> None:
    assert not variance_is_likely(SecretDraws(KEY).normals((COUNT,)) * wrong, 1.0)


def test_the_numbers_are_normal() -> None:
    drawn = SecretDraws(KEY).normals((COUNT // 4, 4)).ravel()
    assert stats.kstest(drawn, "norm").pvalue > LIKELY
    # The next one does not depend on the last.
    assert abs(np.corrcoef(drawn[1:], drawn[:-1])[0, 1]) < 5 / math.sqrt(COUNT)
    assert not stats.kstest(drawn * 1.02, "norm").pvalue > LIKELY


def test_uniform_numbers_are_strictly_between_0_and_1() -> None:
    class Extremes(SecretDraws):
        def __init__(self, byte: int) -> None:
            self._stream = type("Stream", (), {"update": lambda s, zeros: bytes([byte]) * len(zeros)})()

    low, high = Extremes(0).uniforms(1)[0], Extremes(255).uniforms(1)[0]
    assert 0 < low < high < 1
    assert np.isfinite(Extremes(0).normals((2,))).all() and np.isfinite(Extremes(255).normals((2,))).all()


@pytest.mark.parametrize("rate", [0.01, 0.5, 1.0])
def test_each_example_is_drawn_at_the_rate_and_by_itself(rate: float) -> None:
    draws = SecretDraws(KEY)
    sizes = np.array([len(draws.chosen(1000, rate)) for _ in range(400)])
    spread = math.sqrt(1000 * rate * (1 - rate))
    assert abs(sizes.mean() - 1000 * rate) <= 5 * spread / math.sqrt(400)
    # Of shuffled batches the size is always the same.
    assert sizes.std() == pytest.approx(spread, rel=0.25)


def test_a_key_of_one_s_own_gives_the_same_numbers_and_none_gives_others() -> None:
    again = SecretDraws(KEY).normals((3, 2))
    assert (SecretDraws(KEY).normals((3, 2)) == again).all()
    assert not (SecretDraws().normals((3, 2)) == SecretDraws().normals((3, 2))).any()
    draws = SecretDraws(KEY)
    assert not (draws.normals((3, 2)) == draws.normals((3, 2))).any()


def test_large_tensors_are_drawn_in_pieces_that_go_on() -> None:
    drawn = SecretDraws(KEY).normals((700_000,))
    assert len(np.unique(drawn)) == len(drawn)
    assert variance_is_likely(drawn, 1.0)
