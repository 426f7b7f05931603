"""Exact noise on integers: the discrete Gaussian, by integer arithmetic on random bits alone.

Canonne, Kamath and Steinke 2020, algorithms 1 to 3, many numbers at a time. Nothing is rounded, so none of
the attacks on the last bits of floating-point noise applies. Deviations are whole numbers, which leaves every
quantity within 64 bits.
"""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.privacy.noise import SecretDraws

Integers: TypeAlias = NDArray[np.int64]
Booleans: TypeAlias = NDArray[np.bool_]

MOST_DEVIATION = 2**28
# A number beyond this many deviations would be kept with a probability below e^-264: it counts as refused,
# and squares stay within 64 bits.
_MOST_MULTIPLE = 24
# Drawn at a time, and so many more than are asked for: about half are kept.
_AT_ONCE = 1 << 17


def discrete_gaussians(draws: SecretDraws, deviation: int, count: int) -> Integers:
    """[count] integers, y with probability proportional to exp(-y² / (2 deviation²)).

    Raises ValueError for a deviation that is no whole number from 1 to 2^28.
    """
    if not 1 <= deviation <= MOST_DEVIATION:
        raise ValueError(f"deviation must be from 1 to {MOST_DEVIATION}, got {deviation}")
    found = np.empty(count, dtype=np.int64)
    done = 0
    while done < count:
        some = _proposed(draws, deviation, min(_AT_ONCE, 2 * (count - done) + 64))
        part = some[: count - done]
        found[done : done + len(part)] = part
        done += len(part)
    return found


def _proposed(draws: SecretDraws, deviation: int, tries: int) -> Integers:
    """What of so many tries is kept: a discrete Laplace number y of scale s = deviation, with probability
    exp(-(|y| - s)² / (2 s²))."""
    proposed = _laplace(draws, deviation, tries)
    beyond = np.abs(proposed) - deviation
    kept: Integers = proposed[_exponential(draws, beyond * beyond, 2 * deviation * deviation)]
    return kept


def _laplace(draws: SecretDraws, scale: int, tries: int) -> Integers:
    """y with probability proportional to exp(-|y| / scale), of so many tries those that are kept."""
    rest = _below(draws, np.full(tries, scale, dtype=np.uint64))
    rest = rest[_exponential(draws, rest, scale)]
    multiple = _geometric(draws, len(rest))
    within = multiple < _MOST_MULTIPLE
    size = rest[within] + scale * multiple[within]
    negative = _below(draws, np.full(len(size), 2, dtype=np.uint64)) == 1
    # Or 0 would come twice as often.
    signed: Integers = np.where(negative, -size, size)[~(negative & (size == 0))]
    return signed


def _geometric(draws: SecretDraws, count: int) -> Integers:
    """How often in a row something of probability 1 / e happens; counted to _MOST_MULTIPLE at most."""
    found = np.zeros(count, dtype=np.int64)
    going = np.arange(count)
    while len(going) and found[going[0]] < _MOST_MULTIPLE:
        going = going[_exponential(draws, np.ones(len(going), dtype=np.int64), 1)]
        found[going] += 1
    return found


def _exponential(draws: SecretDraws, numerators: Integers, denominator: int) -> Booleans:
    """True with probability exp(-numerator / denominator) each; numerators >= 0."""
    whole, part = np.divmod(numerators, denominator)
    held = np.ones(len(numerators), dtype=bool)
    # exp(-1) as often as it fits, then the rest: all must hold.
    for step in range(int(whole.max(initial=0))):
        going = np.flatnonzero(held & (whole > step))
        if not len(going):
            break
        held[going] = _below_one(draws, np.ones(len(going), dtype=np.int64), 1)
    going = np.flatnonzero(held)
    held[going] = _below_one(draws, part[going], denominator)
    return held


def _below_one(draws: SecretDraws, numerators: Integers, denominator: int) -> Booleans:
    """True with probability exp(-x), x = numerator / denominator from 0 to 1.

    In round k = 1, 2, … something of probability x / k happens or not; the first time that it does not, k is
    odd with probability exp(-x).
    """
    odd = np.zeros(len(numerators), dtype=bool)
    going, k = np.arange(len(numerators)), 0
    while len(going):
        k += 1
        # x / k as two independent ones, so that no denominator outgrows 64 bits.
        first = _below(draws, np.full(len(going), denominator, dtype=np.uint64)) < numerators[going]
        second = _below(draws, np.full(len(going), k, dtype=np.uint64)) == 0
        happened = first & second
        odd[going[~happened]] = k % 2 == 1
        going = going[happened]
    return odd


def _below(draws: SecretDraws, limits: NDArray[np.uint64]) -> Integers:
    """Integers from 0 to below each limit (>= 1, < 2^63), all as likely: those beyond the last multiple of a
    limit are drawn again."""
    found = np.empty(len(limits), dtype=np.int64)
    missing = np.arange(len(limits))
    while len(missing):
        words, limit = draws.words(len(missing)), limits[missing]
        # 2^64 mod limit, in 64 bits.
        lost = (np.uint64(2**64 - 1) % limit + np.uint64(1)) % limit
        fits = words <= np.uint64(2**64 - 1) - lost
        found[missing[fits]] = (words[fits] % limit[fits]).astype(np.int64)
        missing = missing[~fits]
    return found
