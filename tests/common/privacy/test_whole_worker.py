"""A whole worker hidden in a sum: no update changes it by more than its bound, and the noise is enough."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from torch import Tensor

from common.errors import BadUpdate, ConfigError
from common.model.ring_update import l2_norm
from common.privacy.discrete import Integers
from common.privacy.gaussian import noise_for_rounds
from common.privacy.noise import KEY_BYTES, SecretDraws
from common.privacy.whole_worker import (
    Grid,
    central_grid,
    factor_within,
    integers,
    longest,
    noised,
    shared_grid,
)

EPSILON, DELTA = 1.0, 0.02
RUNS = 60_000


def draws(number: int) -> SecretDraws:
    return SecretDraws(bytes([number]) * KEY_BYTES)


def as_integers(delta: dict[str, Tensor], grid: Grid) -> list[Integers]:
    factor = factor_within(delta, l2_norm(delta), grid)
    return [integers(tensor, factor) for tensor in delta.values()]


def length_squared(parts: list[Integers]) -> int:
    return sum(int(value) ** 2 for part in parts for value in part)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-(2.0**99), 2.0**99, width=32), min_size=1, max_size=40),
    st.floats(1e-3, 1e3),
    st.floats(0.2, 100.0),
)
def test_no_update_is_longer_than_the_bound_to_the_bit(
    values: list[float], clip: float, noise: float
) -> None:
    delta = {"x": torch.tensor(values), "y": torch.tensor(values[:3])}
    for grid in (central_grid(noise, clip), shared_grid(noise, clip, 10, 4, 32)):
        assert length_squared(as_integers(delta, grid)) <= grid.bound**2


@pytest.mark.parametrize("size", [1, 7, 20_000])
def test_an_update_at_the_clip_loses_next_to_nothing(size: int) -> None:
    made = torch.randn(size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    delta = {"x": made / made.norm() * 2.0}
    grid = shared_grid(4.0, 2.0, 10, 4, 32)
    (found,) = as_integers(delta, grid)
    assert np.abs(found * grid.step - delta["x"].numpy()).max() <= 1.1 * grid.step
    # What is shorter is not stretched, and one of zeros stays.
    (small,) = as_integers({"x": delta["x"] / 8}, grid)
    assert np.abs(small * grid.step - delta["x"].numpy() / 8).max() <= 1.1 * grid.step
    assert not as_integers({"x": torch.zeros(3)}, grid)[0].any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    with pytest.raises(BadUpdate, match="norm must be a finite number"):
        as_integers({"x": torch.tensor([value, 1.0])}, central_grid(1.0, 1.0))


@pytest.mark.parametrize("noise", [0.2, 1.0, 8.0, 300.0])
@pytest.mark.parametrize(("workers", "honest"), [(3, 1), (10, 4), (128, 44)])
def test_the_ring_has_room_and_the_honest_alone_add_enough(noise: float, workers: int, honest: int) -> None:
    grid = shared_grid(noise, 1.0, workers, honest, 32)
    assert math.sqrt(honest) * grid.deviation >= noise * grid.bound
    assert workers * grid.bound + 12 * math.sqrt(workers) * grid.deviation < 2**31
    assert grid.clip == pytest.approx(1.0)
    # Fine enough that rounding is nothing beside the noise.
    assert grid.deviation > 10_000


def test_a_ring_without_room_says_so() -> None:
    with pytest.raises(ConfigError, match="8 bits have no room for sums of 20 workers with noise"):
        shared_grid(0.5, 1.0, 20, 10, 8)
    with pytest.raises(ConfigError, match="64 bits have no room"):
        shared_grid(0.5, 1.0, 20, 10, 64)
    with pytest.raises(ConfigError, match="noise must be <="):
        central_grid(1e9, 1.0)


def test_the_sum_s_noise_has_the_promised_deviation_with_the_fewest() -> None:
    noise, honest = 3.0, 5
    grid = shared_grid(noise, 1.0, 12, honest, 32)
    zeros = np.zeros(10_000, dtype=np.int64)
    total = sum((noised(zeros, grid, draws(n)) for n in range(1, honest + 1)), start=zeros)
    assert total.std() / grid.bound == pytest.approx(noise, rel=0.04)
    assert np.linalg.norm(total) <= longest(grid, honest, total.size)
    central = central_grid(noise, 1.0)
    assert noised(zeros, central, draws(9)).std() / central.bound == pytest.approx(noise, rel=0.04)


def told_apart(grid: Grid, honest: int, scale: float = 1.0) -> float:
    """Lower 99.9 % bound on the delta at EPSILON of many runs of the mechanism: by the threshold at which a
    worker at the bound is likeliest told from one of zeros. `scale` is a mistake in its noise."""
    mistaken = Grid(grid.step, grid.bound, math.ceil(grid.deviation * scale))

    def sums(value: int, first: int) -> Integers:
        total = np.full(RUNS, value, dtype=np.int64)
        for number in range(honest):
            total = noised(total, mistaken, draws(first + number))
        return total

    there, absent = sums(grid.bound, 10), sums(0, 100)
    thresholds = np.linspace(0.5, 6.0, 12) * grid.bound
    doubt = 0.001 / 2 / len(thresholds)
    found = []
    for at in thresholds:
        one, other = int((there > at).sum()), int((absent > at).sum())
        low = beta.ppf(doubt, one, RUNS - one + 1) if one else 0.0
        found.append(low - math.exp(EPSILON) * beta.ppf(1 - doubt, other + 1, RUNS - other))
    return float(max(found))


@pytest.mark.slow
@pytest.mark.parametrize("place", ["coordinator", "workers"])
def test_nobody_tells_more_than_is_claimed_and_with_too_little_noise_it_shows(place: str) -> None:
    noise = noise_for_rounds(EPSILON, DELTA, 1)
    central = place == "coordinator"
    grid = central_grid(noise, 1.0) if central else shared_grid(noise, 1.0, 5, 3, 32)
    honest = 1 if central else 3
    assert told_apart(grid, honest) <= DELTA
    # The canaries: noise too small by the root of two, or added by a worker alone.
    assert told_apart(grid, honest, 1 / math.sqrt(2)) > DELTA
    assert central or told_apart(grid, 1) > DELTA
