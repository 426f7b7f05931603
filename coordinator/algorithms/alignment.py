"""When the sub-FM is aligned during the rounds, and which neurons then."""

from collections.abc import Mapping

from torch import Tensor

from common.model.apoz import ZeroCounts, apoz
from coordinator.algorithms.saliency import top_k


def due(round_number: int, every: int, rounds: int) -> bool:
    """Whether neuron-level alignment follows this round: every t rounds, but not after the last."""
    return every > 0 and round_number % every == 0 and round_number < rounds


def drifted_neurons(counts: Mapping[int, ZeroCounts], proportion: float) -> dict[int, Tensor]:
    """Per layer, the share `proportion` of neurons with the highest APoZ, ascending, int64 [N].

    Source: FedPFT, section 3.3 (p = 0.5 best there).
    """
    chosen = {}
    for layer, c in sorted(counts.items()):
        shares = apoz(c)
        chosen[layer] = top_k(shares, max(1, round(proportion * len(shares))))
    return chosen
