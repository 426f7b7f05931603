"""TIES-merging of the workers' changes: trim, elect a sign, average those that agree. Tensors in, tensor out.

Source: Yadav et al. 2023 (arXiv 2306.01708), section 4; there a few whole models are merged, here the round's
changes, tensor by tensor, and each with its worker's weight.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def merged(changes: Sequence[Tensor], weights: Sequence[float], density: float) -> Tensor:
    """One change from many of the same shape and dtype; `weights` are positive.

    With t_k worker k's change, of which only the ceil(density · entries) largest are left, and w_k its
    weight, in each coordinate

        sign s = sign(sum_k w_k t_k),  change = sum_{k: sign(t_k) = s} w_k t_k / sum_{k: sign(t_k) = s} w_k

    and 0 where no sign is elected. So what few workers have learnt is not thinned by those that have not,
    and workers that pull in opposite directions do not cancel: the lighter side is left out. Where nothing
    is trimmed and all agree, this is the weighted mean.
    """
    dtype = torch.promote_types(changes[0].dtype, torch.float32)
    kept = [trimmed(change, density).to(dtype) for change in changes]
    total = torch.zeros_like(kept[0])
    for change, weight in zip(kept, weights, strict=True):
        total.add_(change, alpha=weight)
    sign = total.sign()
    total, mass = torch.zeros_like(total), torch.zeros_like(total)
    for change, weight in zip(kept, weights, strict=True):
        agrees = (change.sign() == sign) & (sign != 0)
        total.add_(change * agrees, alpha=weight)
        mass.add_(agrees, alpha=weight)
    return torch.where(mass > 0, total / mass, 0.0).to(changes[0].dtype)


def trimmed(change: Tensor, density: float) -> Tensor:
    """The same with zeros but for its largest entries by magnitude; of equal ones the first stay.

    They are a share of `density`, in (0, 1], rounded up.
    """
    # Rounded first: 0.07 · 100 is a little more than 7 in floating point.
    count = math.ceil(round(density * change.numel(), 9))
    if count >= change.numel():
        return change
    flat = change.flatten()
    largest = flat.abs().argsort(descending=True, stable=True)[:count]
    left = torch.zeros_like(flat)
    left[largest] = flat[largest]
    return left.reshape(change.shape)
