"""The discrete Gaussian: as likely as its formula says, in the middle and far out, from bits alone."""

import math

import numpy as np
import pytest
from scipy import stats

from common.privacy.discrete import MOST_DEVIATION, discrete_gaussians
from common.privacy.noise import KEY_BYTES, SecretDraws


def draws(number: int = 1) -> SecretDraws:
    return SecretDraws(bytes([number]) * KEY_BYTES)


def weights(deviation: int, most: int) -> np.ndarray:  # type: ignore[type-arg]
    """Of the integers from -most to most, up to a factor."""
    numbers = np.arange(-most, most + 1, dtype=np.float64)
    return np.exp(-(numbers**2) / (2.0 * deviation**2))


@pytest.mark.parametrize(
    ("deviation", "count"),
    [
        (1, 40_000),
        (3, 40_000),
        pytest.param(2, 400_000, marks=pytest.mark.slow),
        pytest.param(7, 400_000, marks=pytest.mark.slow),
        pytest.param(40, 400_000, marks=pytest.mark.slow),
    ],
)
def test_every_integer_comes_as_often_as_it_should(deviation: int, count: int) -> None:
    found = discrete_gaussians(draws(), deviation, count)
    most = 9 * deviation
    chances = weights(deviation, most) / weights(deviation, 40 * deviation).sum()
    expected = chances * count
    seen = np.bincount(np.clip(found, -most, most) + most, minlength=2 * most + 1)
    # Those that are rare are taken together, so that the test means something.
    often = expected >= 20
    rest = expected[~often].sum() + (1 - chances.sum()) * count
    chi = ((seen[often] - expected[often]) ** 2 / expected[often]).sum()
    chi += (seen[~often].sum() - rest) ** 2 / max(rest, 1e-9) if rest >= 5 else 0.0
    assert 1e-4 < stats.chi2.sf(chi, often.sum()) < 1 - 1e-4
    # The tails by themselves, beyond three deviations on either side.
    for side in (found > 3 * deviation, found < -3 * deviation):
        beyond = (weights(deviation, most)[-(6 * deviation) :] / weights(deviation, most).sum()).sum()
        assert stats.binomtest(int(side.sum()), count, beyond).pvalue > 1e-4


@pytest.mark.parametrize("deviation", [1000, 2**20, MOST_DEVIATION])
def test_where_steps_are_fine_it_is_the_gaussian(deviation: int) -> None:
    found = discrete_gaussians(draws(2), deviation, 20_000)
    assert stats.kstest(found / deviation, "norm").pvalue > 1e-3
    # The last bits carry nothing of what the noise is added to.
    assert stats.binomtest(int((found % 2).sum()), len(found)).pvalue > 1e-4
    assert abs(found.mean()) < 5 * deviation / math.sqrt(len(found))
    assert 0.96 < found.std() / deviation < 1.04


def test_the_same_key_gives_the_same_and_another_none_of_it() -> None:
    one = discrete_gaussians(draws(3), 1000, 500)
    assert (discrete_gaussians(draws(3), 1000, 500) == one).all()
    assert (discrete_gaussians(draws(4), 1000, 500) == one).mean() < 0.02
    assert (discrete_gaussians(SecretDraws(), 1000, 500) == one).mean() < 0.02
    assert len(discrete_gaussians(draws(3), 1000, 0)) == 0


@pytest.mark.parametrize("deviation", [0, -1, MOST_DEVIATION + 1])
def test_deviations_that_do_not_fit_are_refused(deviation: int) -> None:
    with pytest.raises(ValueError, match="deviation must be from 1 to"):
        discrete_gaussians(draws(), deviation, 1)
