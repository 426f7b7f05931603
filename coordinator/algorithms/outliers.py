"""Updates far larger than the others of their round: what the mean could not bear."""

import math
import statistics
from collections.abc import Mapping

import torch
from torch import Tensor


def norm(delta: Mapping[str, Tensor]) -> float:
    """L2 norm over all tensors; one is read at a time."""
    squares = (float(torch.linalg.vector_norm(delta[name].double())) ** 2 for name in sorted(delta))
    return math.sqrt(sum(squares))


def outliers(norms: Mapping[str, float], factor: float, minimum: int) -> list[str]:
    """Workers whose update's norm is more than `factor` times the median, the largest first.

    Fewer than three have no median worth the name. At least `minimum` stay. The order in which updates
    came does not matter; equal norms go by name.
    """
    if len(norms) < 3:
        return []
    limit = factor * statistics.median(norms.values())
    beyond = sorted((w for w in norms if norms[w] > limit), key=lambda w: (-norms[w], w))
    return beyond[: max(0, len(norms) - minimum)]
