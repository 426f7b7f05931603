"""APoZ: the average percentage of zeros of a neuron's activations (Hu et al. 2016; FedPFT, section 3.3).

Workers exchange counts, not percentages, so that merging is exact whatever their data's sizes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from common.model.families import Ffn


@dataclass(frozen=True)
class ZeroCounts:
    """Of one layer: how often each neuron was at rest (int64 [K]), over how many tokens (int64 [])."""

    zeros: Tensor
    tokens: Tensor


def count_zeros(pre_activation: Tensor, mask: Tensor) -> ZeroCounts:
    """Count, per neuron, the unpadded tokens whose pre-activation is <= 0.

    For ReLU these are exactly the zero activations. Smooth activations (GELU, SiLU) have next to no
    exact zeros, but rest below 0 just the same. `pre_activation` [B, T, K]; `mask` [B, T], 1 = token.
    """
    at_rest = pre_activation.detach()[mask.bool()] <= 0
    return ZeroCounts(at_rest.sum(0), torch.tensor(at_rest.shape[0]))


@dataclass
class ZeroCounter:
    """Counts during forward passes, while used as a context; set `mask` before each pass."""

    ffns: Mapping[int, Ffn]
    mask: Tensor | None = None
    counts: dict[int, ZeroCounts] = field(default_factory=dict)
    _hooks: list[Any] = field(default_factory=list)

    def __enter__(self) -> Self:
        for layer, ffn in self.ffns.items():
            hook = ffn.up.register_forward_hook(self._observer(layer))
            self._hooks.append(hook)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _observer(self, layer: int) -> Any:
        def observe(module: nn.Module, inputs: Any, output: Tensor) -> None:
            assert self.mask is not None, "mask must be set before the forward pass"
            seen = count_zeros(output, self.mask)
            before = self.counts.get(layer)
            self.counts[layer] = merge([before, seen]) if before else seen

        return observe


def merge(counts: Sequence[ZeroCounts]) -> ZeroCounts:
    """The counts over all tokens of all given counts."""
    return ZeroCounts(
        torch.stack([c.zeros for c in counts]).sum(0),
        torch.stack([c.tokens for c in counts]).sum(),
    )


def apoz(counts: ZeroCounts) -> Tensor:
    """Share of zeros per neuron, float64 [K] in [0, 1]; NaN-free: no tokens give 0."""
    return counts.zeros.double() / counts.tokens.clamp(min=1)


def to_tensors(counts: Mapping[int, ZeroCounts]) -> dict[str, Tensor]:
    """For the wire: `{layer}.zeros` and `{layer}.tokens`."""
    tensors: dict[str, Tensor] = {}
    for layer, c in counts.items():
        tensors[f"{layer}.zeros"] = c.zeros
        tensors[f"{layer}.tokens"] = c.tokens
    return tensors


def from_tensors(tensors: Mapping[str, Tensor]) -> dict[int, ZeroCounts]:
    """Inverse of `to_tensors`."""
    layers = sorted(int(name.partition(".")[0]) for name in tensors if name.endswith(".zeros"))
    return {i: ZeroCounts(tensors[f"{i}.zeros"], tensors[f"{i}.tokens"]) for i in layers}
