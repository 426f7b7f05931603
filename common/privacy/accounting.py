"""What training with noise costs in differential privacy, and how much noise a promise takes.

By privacy loss distributions of the Gaussian mechanism on Poisson-sampled batches, composed numerically
(Koskela et al. 2020; Google's dp-accounting), for neighbours that differ in one example being there or not.
Errors of the computation are on the safe side: the epsilon is never too small.
"""

import functools
import importlib.util
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from common.errors import BudgetSpent, ConfigError
from common.private_task import DpSpec

# Steps of the grid of privacy losses: 1e-4 changes the fifth digit of epsilon, and takes ten times as long.
_INTERVAL = 1e-3
# Noise is found to this share of itself, from above.
_TOLERANCE = 2e-3
# Steps in which it is looked for before that.
_ROUGHLY = 1.15
_ORDERS = (*range(2, 65), 96, 128, 192, 256, 512, 1024)
# Nothing is learnt under more.
MOST_NOISE = 1000.0
# Of a step's noise to a full-size gradient: beyond it next to nothing is learnt.
MOST_NOISE_TO_SIGNAL = 5.0
# Below, epsilon is in the hundreds, and takes minutes to compute.
_LEAST_NOISE = 0.2


@dataclass(frozen=True)
class PrivateSteps:
    """So many steps, each on a batch that has each example with probability `rate`, and the sum of whose
    clipped gradients has Gaussian noise of `noise` times the clip added."""

    steps: int
    rate: float
    noise: float


def require_installed() -> None:
    """Raises ConfigError where the packages are missing that differential privacy takes."""
    for package in ("dp_accounting", "opacus"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(
                f"differential privacy needs the package {package.replace('_', '-')}: "
                "pip install 'fedpft[privacy]'"
            )


def steps_of(spec: DpSpec, examples: int, epochs: int) -> tuple[int, float, int]:
    """Steps of a round, the probability with which an example is in a batch, and the expected batch."""
    batch = min(spec.batch_size, examples)
    return max(1, round(epochs * examples / batch)), batch / examples, batch


def epsilon_of(past: Iterable[PrivateSteps], delta: float) -> float:
    """The epsilon at `delta` of all these steps together, on the same examples."""
    if not (alike := _alike(past)):
        return 0.0
    # They take seconds to import, and most runs do without.
    from dp_accounting import pld

    return _composed(pld.PLDAccountant(value_discretization_interval=_INTERVAL), alike, delta)


def _alike(past: Iterable[PrivateSteps]) -> dict[tuple[float, float], int]:
    """How many steps there are of each rate and noise."""
    counts: dict[tuple[float, float], int] = {}
    for part in past:
        counts[part.rate, part.noise] = counts.get((part.rate, part.noise), 0) + part.steps
    return counts


def _composed(accountant: Any, alike: Mapping[tuple[float, float], int], delta: float) -> float:
    import dp_accounting

    for (rate, noise), steps in sorted(alike.items()):
        event: Any = dp_accounting.GaussianDpEvent(noise)
        accountant.compose(event if rate >= 1 else dp_accounting.PoissonSampledDpEvent(rate, event), steps)
    return float(accountant.get_epsilon(delta))


def _rough_epsilon(past: Iterable[PrivateSteps], delta: float) -> float:
    """The same by Rényi divergences (Mironov 2017): a tenth too large, and a hundred times as fast."""
    from dp_accounting import rdp

    # Whole ones: of others each is warned of.
    return _composed(rdp.RdpAccountant(orders=_ORDERS), _alike(past), delta)


def noise_for(past: Sequence[PrivateSteps], to_come: PrivateSteps, epsilon: float, delta: float) -> float:
    """The least noise, to a five-hundredth, under which all these steps together keep to (epsilon, delta).

    `to_come.noise`, where it is not 0, is tried first: what served the rounds before. Raises BudgetSpent
    when no noise is enough.
    """

    def keeps(noise: float, measure: Callable[[Iterable[PrivateSteps], float], float] = epsilon_of) -> bool:
        return measure((*past, replace(to_come, noise=noise)), delta) <= epsilon

    if to_come.noise and keeps(to_come.noise):
        return to_come.noise
    high = _LEAST_NOISE
    while high < MOST_NOISE and not keeps(high, _rough_epsilon):
        high *= _ROUGHLY
    if high >= MOST_NOISE and not (epsilon_of(past, delta) < epsilon and keeps(high := MOST_NOISE)):
        raise BudgetSpent(
            f"the promise of epsilon {epsilon:g} is used up by rounds that were begun before: no noise is "
            "enough for another"
        )
    while keeps(low := high / _ROUGHLY) and low > _LEAST_NOISE:
        high = low
    while high - low > _TOLERANCE * high:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if keeps(middle) else (middle, high)
    return high


@functools.cache
def undisturbed(spec: DpSpec, examples: int, epochs: int) -> tuple[PrivateSteps, int]:
    """A round of a worker with so many examples whose run goes as planned, and its expected batch."""
    steps, rate, batch = steps_of(spec, examples, epochs)
    noise = noise_for((), PrivateSteps(spec.rounds * steps, rate, 0.0), spec.epsilon, spec.delta)
    return PrivateSteps(steps, rate, noise), batch


def noise_to_signal(noise: float, values: int, batch: int) -> float:
    """Length of a step's noise over that of a full-size mean gradient: noise √d / B."""
    return noise * math.sqrt(values) / batch
