"""How far the sub-FM is from the FM where it matters: in the adapter's gradients.

FedPFT's theorem 1 bounds the difference between the two gradients by the differences between the
layers' outputs and weights; theorem 2 makes convergence depend on it. Here all of them are measured,
on public data, with the same adapter in both models.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from common.data.batches import Batch
from common.model.adapter import PEFT_PREFIX, Adapted, layer_pattern
from common.model.ffn import ffns_of
from common.model.held import device_of
from common.model.layers import layers_of, watch_outputs
from common.model.passes import logits, loss
from common.model.submodel import SubModelPlan
from common.model.tasks import drawn_labels, weight_of
from common.records import TaskKind
from common.run_status import GradientGap, LayerGap
from coordinator.algorithms.distillation_loss import linear_map
from coordinator.algorithms.plugging import seen_from_below

Tensors = Mapping[str, Tensor]


def measure(
    fm: Adapted,
    sub_fm: Adapted,
    plan: SubModelPlan,
    batches: Sequence[Batch],
    round_number: int,
    seed: int,
    tokens: int = 0,
) -> GradientGap:
    """Compare both models, neither of which is changed.

    Public data has no labels: they are drawn from the FM's own predictions with `seed`, the same for
    both models (the gradients then are those of the Fisher information); a language model's are its
    tokens. Both models run without dropout, on so many `tokens` at a time, 0 being all of a batch.
    """
    above, below = _zeros(fm), _zeros(sub_fm)
    # Of each layer, over the batches: no more than one batch's outputs are held.
    differences = [0.0] * len(plan.layers)
    for i, batch in enumerate(batches):
        parts = _labelled(fm, batch, seed + i).parts(tokens)
        counts = [weight_of(part.labels, fm.kind) for part in parts if part.labels is not None]
        squares = torch.zeros(len(plan.layers), 2, dtype=torch.float64)
        for part, count in zip(parts, counts, strict=True):
            share = count / max(sum(counts), 1.0) / len(batches)
            wanted, got = _observe(fm, part, above, share), _observe(sub_fm, part, below, share)
            for total, layer, output in zip(squares, plan.layers, got, strict=True):
                total += _squares(wanted[layer.source], output, part.mask)
        for k, (apart, whole) in enumerate(squares.sqrt().tolist()):
            differences[k] += apart / whole / len(batches)
    gradients = {_saved_name(name): value for name, value in below.items()}
    fm_gradients = seen_from_below(
        gradients, {_saved_name(name): value for name, value in above.items()}, plan, fm.base.config
    )
    # Of a spread FM they are where its layers compute.
    fm_gradients = {name: value.to(gradients[name].device) for name, value in fm_gradients.items()}
    fm_ffns, sub_ffns = ffns_of(fm.base), ffns_of(sub_fm.base)
    pattern = layer_pattern(fm.base.config)
    layers = []
    for i, layer in enumerate(plan.layers):
        names = [n for n in gradients if (m := pattern.fullmatch(n)) and int(m[2]) == i]
        cosine, ratio, difference = _compare(fm_gradients, gradients, names)
        with torch.no_grad():
            own = linear_map(sub_ffns[i])
            target = linear_map(fm_ffns[layer.source]).to(own.device)
        weights = float((own - target).norm() / target.norm())
        layers.append(LayerGap(i, cosine, ratio, difference, differences[i], weights))
    cosine, ratio, _ = _compare(fm_gradients, gradients, list(gradients))
    return GradientGap(round_number, cosine, ratio, drift(cosine, ratio), tuple(layers))


def drift(cosine: float, norm_ratio: float) -> float:
    """1 - cosine * min(ratio, 1 / ratio): 0 for equal gradients, 1 for unrelated, 2 for opposite ones."""
    if norm_ratio <= 0:
        return 1.0
    return 1.0 - cosine * min(norm_ratio, 1.0 / norm_ratio)


@torch.no_grad()
def _labelled(fm: Adapted, batch: Batch, seed: int) -> Batch:
    if fm.kind is TaskKind.CAUSAL_LM:
        return batch
    drawn = drawn_labels(logits(fm.model, batch.inputs), batch.mask, fm.kind, seed)
    return Batch(batch.inputs, drawn.to(device_of(fm.model)))


def _trainable(adapted: Adapted) -> dict[str, nn.Parameter]:
    return {n: p for n, p in adapted.model.named_parameters() if p.requires_grad}


def _zeros(adapted: Adapted) -> dict[str, Tensor]:
    return {name: torch.zeros_like(p) for name, p in _trainable(adapted).items()}


def _observe(adapted: Adapted, batch: Batch, sums: dict[str, Tensor], share: float) -> list[Tensor]:
    """Adds the batch's gradient times its share to `sums`, and leaves none; returns the layers' outputs."""
    trainable = _trainable(adapted)
    assert batch.labels is not None
    with watch_outputs(layers_of(adapted.base)) as states:
        value = loss(adapted.model, batch.inputs, batch.labels, adapted.kind)
    gradients = torch.autograd.grad(value, list(trainable.values()))
    for name, gradient in zip(trainable, gradients, strict=True):
        sums[name] += gradient * share
    return [state.detach() for state in states]


def _saved_name(name: str) -> str:
    """A parameter's name as PEFT saves it."""
    if not name.startswith(PEFT_PREFIX):
        return PEFT_PREFIX + name
    return name.replace(".modules_to_save.default.", ".").replace(".default.", ".")


def _compare(fm: Tensors, sub_fm: Tensors, names: Sequence[str]) -> tuple[float, float, float]:
    """Cosine, norm ratio (sub-FM / FM) and relative difference, over the named tensors together."""
    if not names:
        return 1.0, 1.0, 0.0
    dot = sum(float((fm[n].double() * sub_fm[n].double()).sum()) for n in names)
    a = sum(float(fm[n].double().square().sum()) for n in names) ** 0.5
    b = sum(float(sub_fm[n].double().square().sum()) for n in names) ** 0.5
    if a == 0 or b == 0:
        return (1.0, 1.0, 0.0) if a == b else (0.0, b / a if a else 0.0, 1.0)
    gap = sum(float((sub_fm[n].double() - fm[n].double()).square().sum()) for n in names) ** 0.5
    return dot / (a * b), b / a, gap / a


def _squares(teacher: Tensor, student: Tensor, mask: Tensor | None) -> Tensor:
    """Of the difference and of the teacher's outputs, summed: float64 [2]."""
    tokens = ... if mask is None else mask.bool()
    target = teacher.to(student.device)[tokens].float()
    norms = torch.stack([(student[tokens] - target).norm(), target.norm()])
    return norms.double().cpu().square()
