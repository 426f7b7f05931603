"""Epsilon is what the literature's accountants say, adds up, and noise keeps a promise just so."""

import math
from dataclasses import replace

import pytest
from scipy.stats import norm

from common.errors import BudgetSpent
from common.privacy.accounting import (
    PrivateSteps,
    epsilon_of,
    noise_for,
    noise_to_signal,
    steps_of,
    undisturbed,
)
from common.private_task import DpSpec, DpUnit

DELTA = 1e-5


def spec(epsilon: float = 8.0, batch: int = 64, rounds: int = 5) -> DpSpec:
    return DpSpec(DpUnit.EXAMPLE, epsilon, DELTA, 1.0, batch, rounds)


# Examples, expected batch, rounds of one pass; noise for each epsilon. Computed apart, with a finer grid.
KNOWN = [
    (400, 64, 5, {1.0: 3.58, 3.0: 1.58, 8.0: 0.89}),
    (2000, 128, 10, {1.0: 3.22, 3.0: 1.42, 8.0: 0.84}),
    (20000, 512, 20, {1.0: 2.82, 3.0: 1.25, 8.0: 0.77}),
]


@pytest.mark.parametrize(
    ("examples", "batch", "rounds", "epsilon", "noise"),
    [
        pytest.param(
            *known, epsilon, noise, marks=[] if (known[0], epsilon) == (400, 1.0) else [pytest.mark.slow]
        )
        for *known, noises in KNOWN
        for epsilon, noise in noises.items()
    ],
)
def test_noise_is_that_of_the_table(
    examples: int, batch: int, rounds: int, epsilon: float, noise: float
) -> None:
    planned, expected = undisturbed(spec(epsilon, batch, rounds), examples, 1)
    assert expected == batch
    assert planned.noise == pytest.approx(noise, abs=0.04)


def exact_gaussian(noise: float, delta: float) -> float:
    """Epsilon of one step of the Gaussian mechanism, by Balle and Wang 2018, theorem 8."""

    def spent(epsilon: float) -> float:
        half, far = 1 / (2 * noise), epsilon * noise
        return float(norm.cdf(half - far) - math.exp(epsilon) * norm.cdf(-half - far))

    low, high = 0.0, 100.0
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(middle) > delta else (low, middle)
    return high


@pytest.mark.parametrize("noise", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("steps", [1, 16])
def test_batches_of_everything_are_the_plain_gaussian_mechanism(noise: float, steps: int) -> None:
    # So many steps are one with less noise.
    exact = exact_gaussian(noise / math.sqrt(steps), DELTA)
    computed = epsilon_of([PrivateSteps(steps, 1.0, noise)], DELTA)
    assert exact <= computed <= exact * 1.001 + 0.02


def test_epsilon_grows_with_steps_and_rate_and_falls_with_noise_and_delta() -> None:
    base = PrivateSteps(30, 0.2, 1.0)
    epsilon = epsilon_of([base], DELTA)
    for more in (replace(base, steps=31), replace(base, rate=0.21), replace(base, noise=0.95)):
        assert epsilon_of([more], DELTA) > epsilon
    assert epsilon_of([base], DELTA / 10) > epsilon
    assert epsilon_of([], DELTA) == 0.0


def test_rounds_add_up_as_one_training_of_all_their_steps() -> None:
    rounds = [PrivateSteps(10, 0.2, 1.0)] * 3
    assert epsilon_of(rounds, DELTA) == epsilon_of([PrivateSteps(30, 0.2, 1.0)], DELTA)
    # And less than each for itself, added.
    assert epsilon_of(rounds, DELTA) < 3 * epsilon_of(rounds[:1], DELTA)


@pytest.mark.slow
def test_noise_is_enough_and_hardly_more() -> None:
    steps = PrivateSteps(31, 0.16, 0.0)
    noise = noise_for((), steps, 3.0, DELTA)
    assert epsilon_of([replace(steps, noise=noise)], DELTA) <= 3.0
    assert epsilon_of([replace(steps, noise=noise * 0.997)], DELTA) > 3.0


@pytest.mark.slow
def test_what_served_before_serves_while_it_keeps_the_promise() -> None:
    first = noise_for((), PrivateSteps(50, 0.16, 0.0), 3.0, DELTA)
    done = [PrivateSteps(10, 0.16, first)]
    assert noise_for(done, PrivateSteps(40, 0.16, first), 3.0, DELTA) == first
    # A training that came to nothing: the rest takes more.
    later = noise_for(2 * done, PrivateSteps(40, 0.16, first), 3.0, DELTA)
    assert later > first
    assert epsilon_of([*done, *done, PrivateSteps(40, 0.16, later)], DELTA) <= 3.0


@pytest.mark.slow
def test_no_noise_is_enough_once_a_promise_is_used_up() -> None:
    with pytest.raises(BudgetSpent, match="epsilon 3 is used up"):
        noise_for([PrivateSteps(100, 0.5, 1.0)], PrivateSteps(1, 0.5, 0.0), 3.0, DELTA)


@pytest.mark.parametrize(
    ("examples", "epochs", "batch", "expected"),
    [(400, 1, 64, (6, 0.16, 64)), (400, 20, 256, (31, 0.64, 256)), (100, 3, 256, (3, 1.0, 100))],
)
def test_steps_are_so_many_passes_on_the_average(
    examples: int, epochs: int, batch: int, expected: tuple[int, float, int]
) -> None:
    assert steps_of(spec(batch=batch), examples, epochs) == expected


def test_the_ratio_of_noise_to_signal() -> None:
    assert noise_to_signal(0.89, 148_000, 64) == pytest.approx(5.35, abs=0.01)
