"""What sums with Gaussian noise tell of one who is in all of them, and how much noise a promise takes.

By Rényi divergences, for that is how the noise in use is bounded: one discrete Gaussian costs what a
continuous one of the same deviation does (Canonne, Kamath and Steinke 2020, theorem 14), and a sum of several
but for a part that vanishes (Kairouz, Liu and Steinke 2021, theorem 11). For Gaussians these add up to a
single number, so no package of accounting is needed: coordinators and all workers judge a promise alike.
"""

import math
from collections.abc import Iterable

# Noise is found to this share of itself, from above, and has so many digits: what a coordinator tells must
# not change with the last bit of another machine's logarithm.
_DIGITS = 6
# Of an epsilon: what is reckoned on another machine may differ in its last digits.
ROUNDING = 1 + 1e-9
_LEAST_ORDER, _MOST_ORDER = 1e-9, 1e9
_STEPS = 200


def divergence(noises: Iterable[float]) -> float:
    """rho of sums whose noise is these multiples of what one can change them by: the Rényi divergence of
    order a is at most a · rho, of all of them together."""
    return math.fsum(0.5 / noise / noise for noise in noises)


def epsilon_at(rho: float, delta: float) -> float:
    """The least epsilon that follows at `delta` (Canonne et al. 2020, proposition 12), never below 0.

    epsilon(a) = a rho + log((a - 1) / a) - log(delta a) / (a - 1), the least over orders a > 1.
    """
    if rho <= 0:
        return 0.0

    def at(beyond: float) -> float:
        order = 1 + beyond
        return order * rho + math.log(beyond / order) - (math.log(delta) + math.log(order)) / beyond

    # Falls, then rises, in the logarithm of the order: thirds are cut off where it is larger.
    low, high = math.log(_LEAST_ORDER), math.log(_MOST_ORDER)
    for _ in range(_STEPS):
        third = (high - low) / 3
        if at(math.exp(low + third)) < at(math.exp(high - third)):
            high -= third
        else:
            low += third
    return max(0.0, at(math.exp((low + high) / 2)))


def noise_for_rounds(epsilon: float, delta: float, rounds: int) -> float:
    """The least noise, as a multiple, under which so many sums together keep to (epsilon, delta)."""
    low, high = 1e-12, 1e12
    while high / low > 1 + 1e-12:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if epsilon_at(middle, delta) <= epsilon else (low, middle)
    exact = math.sqrt(0.5 * rounds / low)
    unit = 10.0 ** (math.floor(math.log10(exact)) - _DIGITS + 1)
    return math.ceil(exact / unit + 1e-3) * unit
