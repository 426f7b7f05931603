"""The accounting of sums with noise: known values, and never less than exact accounting says."""

import math

import pytest
from scipy.stats import norm

from common.privacy.gaussian import divergence, epsilon_at, noise_for_rounds


def exact_delta(noise: float, epsilon: float) -> float:
    """Of one Gaussian (Balle and Wang 2018, theorem 8)."""
    half = 0.5 / noise
    return float(norm.cdf(half - epsilon * noise) - math.exp(epsilon) * norm.cdf(-half - epsilon * noise))


def test_known_values() -> None:
    # rho = 1/2 at delta 1e-5, as the formula's own least over all orders.
    assert epsilon_at(0.5, 1e-5) == pytest.approx(4.728387, abs=1e-5)
    assert epsilon_at(0.0, 1e-5) == 0.0
    assert epsilon_at(1e-12, 0.5) == 0.0
    assert epsilon_at(math.inf, 1e-5) == math.inf
    assert divergence([1.0, 2.0]) == 0.625
    assert divergence([1e-300]) == math.inf


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-10])
def test_it_is_never_less_than_exact_accounting_and_little_more(noise: float, delta: float) -> None:
    epsilon = epsilon_at(divergence([noise]), delta)
    assert exact_delta(noise, epsilon) <= delta
    assert exact_delta(noise, 0.6 * epsilon) > delta


@pytest.mark.parametrize(("epsilon", "delta", "rounds"), [(8.0, 1e-5, 5), (1.0, 1e-6, 40), (0.1, 1e-3, 1)])
def test_the_noise_for_a_promise_keeps_it_and_no_less_would(
    epsilon: float, delta: float, rounds: int
) -> None:
    noise = noise_for_rounds(epsilon, delta, rounds)
    assert 0.9999 * epsilon < epsilon_at(divergence([noise] * rounds), delta) <= epsilon
    assert epsilon_at(divergence([noise * 0.9999] * rounds), delta) > epsilon
    assert noise_for_rounds(epsilon, delta, 4 * rounds) == pytest.approx(2 * noise, rel=1e-5)
    # Six digits, so that no machine's logarithm changes what workers are told.
    assert float(f"{noise:.5e}") == pytest.approx(noise, rel=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("rounds", [1, 10, 40])
def test_googles_accountants_say_the_same(rounds: int) -> None:
    import dp_accounting
    from dp_accounting import rdp

    from common.privacy.accounting import PrivateSteps, epsilon_of

    noise = noise_for_rounds(8.0, 1e-5, rounds)
    accountant = rdp.RdpAccountant([1 + order / 100 for order in range(1, 3000)])
    accountant.compose(dp_accounting.GaussianDpEvent(noise), rounds)
    assert accountant.get_epsilon(1e-5) == pytest.approx(8.0, abs=1e-3)
    # By privacy loss distributions it is less: what this accounting gives away.
    assert 7.2 < epsilon_of([PrivateSteps(rounds, 1.0, noise)], 1e-5) < 8.0
