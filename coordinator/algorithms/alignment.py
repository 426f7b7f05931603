"""When the sub-FM is aligned during the rounds, and which neurons then."""

from collections.abc import Mapping

import torch
from torch import Tensor

from common.config.choices import NeuronChoice
from common.model.apoz import ZeroCounts, apoz
from coordinator.algorithms.saliency import top_k


def due(round_number: int, every: int, rounds: int) -> bool:
    """Whether neuron-level alignment follows this round: every t rounds, but not after the last."""
    return every > 0 and round_number % every == 0 and round_number < rounds


def chosen_neurons(
    counts: Mapping[int, ZeroCounts], proportion: float, choice: NeuronChoice, seed: int
) -> dict[int, Tensor]:
    """Per layer, the share `proportion` of neurons with the highest APoZ, ascending, int64 [N].

    Source: FedPFT, section 3.3 (p = 0.5 best there). The lowest and random ones are controls.
    """
    chosen = {}
    for layer, c in sorted(counts.items()):
        shares = apoz(c)
        match choice:
            case NeuronChoice.HIGHEST:
                scores = shares
            case NeuronChoice.LOWEST:
                scores = -shares
            case NeuronChoice.RANDOM:
                draw = torch.Generator().manual_seed((seed + layer) % 2**63)
                scores = torch.rand(len(shares), generator=draw)
        chosen[layer] = top_k(scores, max(1, round(proportion * len(shares))))
    return chosen
