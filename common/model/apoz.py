"""APoZ: the average percentage of zeros of a neuron's activations (Hu et al. 2016; FedPFT, section 3.3).

Workers exchange counts, not percentages, so that merging is exact whatever their data's sizes.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from common.model.ffn import Ffn, Projection
from common.model.layers import tokens_of
from common.records import ZeroRule


@dataclass(frozen=True)
class ZeroCounts:
    """Of one layer: how often each neuron was at rest (int64 [K]), over how many tokens (int64 [])."""

    zeros: Tensor
    tokens: Tensor


def count_at_rest(values: Tensor, mask: Tensor | None, rule: ZeroRule, threshold: float) -> ZeroCounts:
    """Count, per neuron, the unpadded tokens at which it is at rest.

    By PRE_ACTIVATION where the activation function's argument is <= 0: for ReLU exactly the zero
    activations; smooth functions (GELU, SiLU) have next to no exact zeros, but rest below 0 just the
    same. By NEAR_ZERO where the activation itself is within `threshold` of 0. `values` [B, T, K] or
    [B * T, K] are what the rule looks at; `mask` [B, T], 1 = token, None = all.
    """
    seen = values.detach()
    tokens = tokens_of(seen, mask) if mask is not None else seen.flatten(0, -2)
    at_rest = tokens <= 0 if rule is ZeroRule.PRE_ACTIVATION else tokens.abs() <= threshold
    return ZeroCounts(at_rest.sum(0), torch.tensor(at_rest.shape[0]))


@dataclass
class ZeroCounter:
    """Counts during forward passes, while used as a context; set `mask` before each pass."""

    ffns: Mapping[int, Ffn]
    rule: ZeroRule = ZeroRule.PRE_ACTIVATION
    threshold: float = 0.0
    mask: Tensor | None = None
    counts: dict[int, ZeroCounts] = field(default_factory=dict)
    _hooks: list[Any] = field(default_factory=list)

    def __enter__(self) -> Self:
        for layer, ffn in self.ffns.items():
            if self.rule is ZeroRule.PRE_ACTIVATION:
                # A gated neuron rests when its gate does.
                hook = ffn.ins[0].site.register_forward_hook(self._after_in(layer, ffn.ins[0]))
            else:
                hook = ffn.out.site.register_forward_pre_hook(self._before_out(layer))
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

    @contextmanager
    def paused(self) -> Iterator[None]:
        """While open nothing counts: a gradient may compute activations anew that have counted already."""
        kept, self.counts = self.counts, {}
        try:
            yield
        finally:
            self.counts = kept

    def _after_in(self, layer: int, gate: Projection) -> Any:
        def observe(module: nn.Module, inputs: Any, output: Tensor) -> None:
            self._note(layer, gate.outputs(output))

        return observe

    def _before_out(self, layer: int) -> Any:
        def observe(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._note(layer, inputs[0])

        return observe

    def _note(self, layer: int, values: Tensor) -> None:
        seen = count_at_rest(values, self.mask, self.rule, self.threshold)
        before = self.counts.get(layer)
        self.counts[layer] = merge([before, seen]) if before else seen


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
