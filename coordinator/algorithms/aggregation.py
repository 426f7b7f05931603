"""Workers' updates → the next adapter."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Update:
    """A worker's change to the adapter, and its weight: the number of examples trained on."""

    worker: str
    examples: int
    delta: Mapping[str, Tensor]


def fedavg(start: Mapping[str, Tensor], updates: Sequence[Update]) -> dict[str, Tensor]:
    """start + sum_k (n_k / n) delta_k, in the adapter's dtype.

    Tensor by tensor, so that deltas that are read when asked for need memory for one tensor at a
    time. Sorted by worker before summing: the order of arrival changes no bit. One update gives
    exactly start + delta. Source: McMahan et al. 2017, Algorithm 1.
    """
    ordered = sorted(updates, key=lambda u: u.worker)
    total = sum(u.examples for u in ordered)
    result = {}
    for name, value in start.items():
        change = torch.zeros_like(value)
        for update in ordered:
            change.add_(update.delta[name], alpha=update.examples / total)
        result[name] = value + change
    return result
