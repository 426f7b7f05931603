"""A worker's update as integers of bounded length, and how much noise hides that it was there at all.

Neighbours differ in one worker's update being there or being zero; who takes part is no secret. All from the
clip on is in integers: what is promised holds to the bit, whatever floating point does.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from common.errors import BadUpdate, ConfigError
from common.privacy.discrete import MOST_DEVIATION, Integers, discrete_gaussians
from common.privacy.noise import SecretDraws

if TYPE_CHECKING:
    # Seconds to import, and the configuration alone wants none of it.
    from torch import Tensor

# What is bounded for one discrete Gaussian is so for a sum of several, but for less than e^-600, from here.
LEAST_DEVIATION = 8
# Of a sum's noise: so many deviations have room in the ring. Beyond them is one number in 10^32.
_ROOM = 12.0
# Of the noise that the coordinator adds, which no ring bounds: a step is this small a part of it.
_DEVIATION_OF_SUM = 2**24
# Integers too long by rounding are made from a vector shorter by this.
_SHORTER = 1 - 1e-9


@dataclass(frozen=True)
class Grid:
    """What an update's integers are: steps of `step`, of L2 norm `bound` at most, and each noise's deviation.

    Where workers add it, each adds noise of `deviation`; where the coordinator does, the sum has it once.
    """

    step: float
    bound: int
    deviation: int

    @property
    def clip(self) -> float:
        """The norm of an update that fits as it is."""
        return self.step * self.bound


def shared_grid(noise: float, clip: float, workers: int, honest: int, bits: int) -> Grid:
    """For sums of `workers` in a ring of so many bits, `honest` of which certainly add their noise.

    The noise of these alone is `noise` times `bound`. Raises ConfigError where the ring has no room.
    """
    room, spread = 2.0 ** (bits - 1) - 1, _ROOM * math.sqrt(workers)
    bound = math.floor((room - spread) / (workers + spread * noise / math.sqrt(honest)))
    deviation = math.ceil(noise * bound / math.sqrt(honest)) if bound >= 1 else 0
    if not LEAST_DEVIATION <= deviation <= MOST_DEVIATION:
        raise ConfigError(
            f"{bits} bits have no room for sums of {workers} workers with noise {noise:g}: a worker's own "
            f"would have deviation {deviation}, and must have {LEAST_DEVIATION} to {MOST_DEVIATION} steps"
        )
    return Grid(clip / bound, bound, deviation)


def central_grid(noise: float, clip: float) -> Grid:
    """For a sum to which the coordinator adds the noise. Raises ConfigError for noise beyond all bounds."""
    bound = math.floor(_DEVIATION_OF_SUM / noise)
    if bound < LEAST_DEVIATION:
        raise ConfigError(f"noise must be <= {_DEVIATION_OF_SUM / LEAST_DEVIATION:g}, got {noise:g}")
    bound = min(bound, _DEVIATION_OF_SUM)
    return Grid(clip / bound, bound, max(LEAST_DEVIATION, math.ceil(noise * bound)))


def factor_within(delta: "Mapping[str, Tensor]", norm: float, grid: Grid) -> float:
    """What an update of this norm is multiplied by before `integers`, so that all of these together have
    norm `grid.bound` at most: reckoned in integers, tensor by tensor. Raises BadUpdate for NaN."""
    if not math.isfinite(norm):
        raise BadUpdate(f"an update's norm must be a finite number, got {norm}")
    factor = min(1.0, grid.clip / norm) / grid.step if norm > 0 else 0.0
    while _squared(delta, factor) > grid.bound**2:
        factor *= _SHORTER
    return factor


def integers(tensor: "Tensor", factor: float) -> Integers:
    """[elements] integers, rounded towards zero: none is longer than what it stands for."""
    flat = tensor.detach().cpu().double().flatten().numpy()
    rounded: Integers = np.trunc(flat * factor).astype(np.int64)
    return rounded


def noised(values: Integers, grid: Grid, draws: SecretDraws) -> Integers:
    """With noise of `grid.deviation` added."""
    drawn: Integers = discrete_gaussians(draws, grid.deviation, values.size)
    return values + drawn


def longest(grid: Grid, workers: int, elements: int) -> float:
    """Norm that the sum of so many noised updates does not go beyond but by a chance of e^-72."""
    return workers * grid.bound + grid.deviation * math.sqrt(workers) * (math.sqrt(elements) + _ROOM)


def _squared(delta: "Mapping[str, Tensor]", factor: float) -> int:
    # Python's integers have no end; a tensor's own sum, within a bound of 2^31, fits 63 bits.
    total = 0
    for name in delta:
        values = integers(delta[name], factor)
        total += int(np.dot(values, values))
    return total
