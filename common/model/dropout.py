"""Dropout on the CPU with a quarter of the random numbers.

torch draws a number of 32 bits for every value, in one thread: a quarter to a third of a training step of a
small model. Here 64 random bits decide about four values.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_BITS = 16
_LEVELS = 1 << _BITS
_PER_DRAW = 64 // _BITS
_LEAST = -(1 << 63)


def dropped(values: Tensor, share: float) -> Tensor:
    """Values with a share of them, drawn anew, set to 0 and the others made larger, so that the mean stays.

    `share`, from 0 to 1, is taken to a multiple of 2^-16. Draws from torch's global generator. On another
    device than the CPU it is torch's own dropout. Source: Srivastava et al. 2014, as torch scales it.
    """
    level = round(share * _LEVELS)
    if values.device.type != "cpu" or level in (0, _LEVELS):
        return nn.functional.dropout(values, share)
    draws = torch.empty(-(-values.numel() // _PER_DRAW), dtype=torch.int64).random_(_LEAST, None)
    drawn = draws.view(torch.int16)[: values.numel()].view(values.shape)
    # 1 from this level on, 0 below: in floats, as comparisons and what comes of them take four times as long.
    kept = drawn.to(torch.float32).add_(_LEVELS // 2 + 1 - level).clamp_(0, 1).to(values.dtype)
    return values * kept.mul_(_LEVELS / (_LEVELS - level))


class Dropout(nn.Module):
    """In place of `nn.Dropout`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, values: Tensor) -> Tensor:
        """`dropped` in training, `values` otherwise."""
        return dropped(values, self.p) if self.training else values


@contextmanager
def cheap_dropout(model: nn.Module) -> Iterator[None]:
    """While open, the model's dropout modules draw by `dropped`, beginning in the mode that each is in.

    What torch drops within its own attention stays torch's.
    """
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Dropout
    ]
    for parent, name, child in found:
        parent.add_module(name, Dropout(child.p).train(child.training))
    try:
        yield
    finally:
        for parent, name, child in found:
            parent.add_module(name, child)
