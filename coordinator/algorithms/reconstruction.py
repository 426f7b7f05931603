"""Closed-form alignment: out maps refitted by ridge regression, so that residual sums match the FM's.

One layer, at a token: the student's residual sum is z = x + scale * (W2 a + b), the teacher's is zt.
Were W2 the only thing to change, z would match zt with the FFN's output Y = (W2 a + b) + (zt - z) / scale.
With A = [a, 1] (rows are tokens), V0 = [W2, b]^T the present weights, G = A^T A and C = A^T Y,

    V = (G + R)^-1 (C + R V0),  R = ridge * mean(diag G) * I, without the bias's 1 in the mean and 0 on it.

As C = G V0 + A^T D with D = (zt - z) / scale, that is V = V0 + (G + R)^-1 A^T D: a correction, which is 0
where nothing is to be corrected. For a subset of neurons, A has their columns only: D already is the
right-hand side less what the others contribute. Dividing G, C by the number of tokens would change nothing.

Where the FFN's output is normalised before it is added (Gemma 2, OLMo 2), z and zt are what that norm is
given, scale * (W2 a + b) without x: the norm then makes them alike. What layers before have left in x is not
made up for there, since no W2 can add to x but through the norm.

Sources: least-squares reconstruction after pruning, layer by layer in order, against the whole model's
outputs: He et al. 2017 (arXiv 1707.06168); ridge regression towards V0 instead of 0: Tikhonov's general form.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.data.batches import Batch
from common.errors import DataError
from common.model.ffn import Ffn, ffns_of
from common.model.layers import tokens_of
from coordinator.algorithms.activation_capture import undisturbed
from coordinator.algorithms.layer_stream import LayerStream

# Called after every layer with layers done and layers in all; may raise to stop.
OnLayer = Callable[[int, int], None]


@torch.no_grad()
def reconstruct(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    layers: Sequence[int],
    batches: Sequence[Batch],
    ridge: float,
    *,
    neurons: Mapping[int, Tensor] | None = None,
    on_layer: OnLayer = lambda done, total: None,
) -> None:
    """Refit the student's out maps, weight and bias, in `layers` (same indices in both models), in place.

    In ascending order, each layer seeing what the refitted ones before it give. With `neurons`
    (layer → int64 [N]) only these neurons' columns change, and nothing else by a single bit, the bias
    included. `ridge` > 0 is relative to the activations' power: the larger, the nearer to the present
    weights. Both models run without dropout and are otherwise left as found. Streams: every layer of each
    model runs once on every batch, from hidden states that are kept, and the refitted layer's output follows
    from that without another pass. Takes both models' hidden states of all batches, one layer's activations,
    and float64 [K, K + d]. Raises DataError when there is not one token, ValueError when `ridge` is not
    positive.
    """
    if not ridge > 0:
        raise ValueError(f"ridge must be > 0, got {ridge}")
    if not any(batch.mask is None or bool(batch.mask.any()) for batch in batches):
        raise DataError("closed-form alignment needs data to look at; there is not one token")
    wanted, done = set(layers), 0
    student_ffns = ffns_of(student)
    with undisturbed(teacher, student):
        wholes, parts = (LayerStream(model, batches) for model in (teacher, student))
        for i in range(max(wanted, default=-1) + 1):
            if i not in wanted:
                wholes.advance()
                parts.advance()
                continue
            ffn = student_ffns[i]
            chosen = None if neurons is None else neurons[i].to(ffn.out.weight.device)
            system, seen = _System(ffn, chosen), []
            for whole, part, batch in zip(wholes.steps(), parts.steps(), batches, strict=True):
                seen_of = part.activation, part.total, whole.total.to(part.total.device)
                system.add(*(tokens_of(values, batch.mask) for values in seen_of))
                seen.append(part.activation)
            change = system.solve(ridge)
            _correct(ffn, chosen, change)
            parts.correct(system.added(activation, change) for activation in seen)
            done += 1
            on_layer(done, len(wanted))


class _System:
    """G and A^T D of one layer, summed over batches; float64, for G's condition is a square."""

    def __init__(self, ffn: Ffn, neurons: Tensor | None) -> None:
        self._neurons = neurons
        self._scale = ffn.scale
        self._with_bias = neurons is None and ffn.out.bias is not None
        self._count = ffn.width if neurons is None else len(neurons)
        rows = self._count + self._with_bias
        weight = ffn.out.weight
        self._gram = torch.zeros(rows, rows, dtype=torch.float64, device=weight.device)
        self._right = torch.zeros(rows, weight.shape[0], dtype=torch.float64, device=weight.device)

    def add(self, activation: Tensor, total: Tensor, target: Tensor) -> None:
        """Tokens of one batch: the student's activations [n, K] and residual sum [n, d], the teacher's."""
        A = self._columns(activation.double())
        D = target.double() - total.double()
        if self._scale is not None:
            # A dimension that the scale switches off cannot be corrected.
            D = torch.where(self._scale == 0, 0.0, D / self._scale.double())
        self._gram += A.T @ A
        self._right += A.T @ D

    def added(self, activation: Tensor, change: Tensor) -> Tensor:
        """What V - V0 = `change` adds to the residual sum, [..., d], where activations are [..., K]."""
        more = self._columns(activation) @ change.to(activation.dtype)
        return more if self._scale is None else more * self._scale

    def _columns(self, activation: Tensor) -> Tensor:
        """A: the neurons that change, and 1 for the bias."""
        A = activation if self._neurons is None else activation[..., self._neurons]
        return torch.cat([A, A.new_ones(*A.shape[:-1], 1)], -1) if self._with_bias else A

    def solve(self, ridge: float) -> Tensor:
        """V - V0, [K (+ 1), d], the bias last."""
        power = float(self._gram.diagonal()[: self._count].sum()) / max(1, self._count)
        # Neurons that are all silent have no power to be relative to, and any R > 0 leaves them alone.
        ridges = torch.full_like(self._gram.diagonal(), ridge * power or ridge)
        ridges[self._count :] = 0
        change: Tensor = torch.linalg.solve(self._gram + ridges.diag(), self._right)
        return change


def _correct(ffn: Ffn, neurons: Tensor | None, change: Tensor) -> None:
    """Add `change` to the out map: in float64, rounded once."""
    weight, bias = ffn.out.weight, ffn.out.bias
    if neurons is not None:
        weight[:, neurons] = (weight[:, neurons].double() + change.T).to(weight.dtype)
        return
    weight.copy_(weight.double() + change[: ffn.width].T)
    if bias is not None:
        bias.copy_(bias.double() + change[ffn.width])
