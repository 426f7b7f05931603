"""What of the FM a sub-FM shows, and whether anything that was cut can be found in what was served.

Pure: models and tensors in, counts and findings out.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.model.families import family_of, sizes_of
from common.model.family import Family
from common.model.ffn import Projection, ffns_of
from common.model.int8 import Channels, as_rounded
from common.model.layers import layer_prefix, layers_of
from common.model.submodel import SubModelPlan, own_weights
from coordinator.algorithms.compression import cut

# Two vectors whose cosine is at least this in size are the same one, scaled, rounded or negated.
SAME_COSINE = 0.999
# Vectors compared at a time, on either side.
_BLOCK = 8192


@dataclass(frozen=True)
class Exposure:
    """What workers got of the FM's parameters of one kind, in one layer (None: outside of the layers).

    `as_is` were served with the FM's own values, `aligned` with values that an alignment, or a rank cut of
    attention, has changed, `withheld` not at all; together they are all.
    """

    layer: int | None
    kind: str
    as_is: int
    aligned: int
    withheld: int

    @property
    def parameters(self) -> int:
        """All of this kind and layer."""
        return self.as_is + self.aligned + self.withheld


@dataclass(frozen=True)
class Finding:
    """A vector of the FM that was cut and that a served tensor holds all the same."""

    tensor: str
    row: int
    what: str
    cosine: float


@dataclass(frozen=True)
class Withheld:
    """Vectors of the FM that no worker may see, [C, d] of length 1, and what each is, for people."""

    vectors: Tensor
    names: tuple[str, ...]


def exposures(
    fm: PreTrainedModel,
    plan: SubModelPlan,
    served: Sequence[Mapping[str, Tensor]],
    rounded: Mapping[str, Channels] = MappingProxyType({}),
) -> list[Exposure]:
    """By layer of the FM and kind. `served` are the sub-FM's weights: first as cut and aligned, then after
    each patch. A value counts as served as it is if any of them has the FM's own; of the sub-FM's modules
    that are `rounded` to int8 (by path) the FM's own, so rounded."""
    kept = as_rounded(cut(fm, plan), rounded)
    same = {name: torch.zeros(tensor.shape, dtype=torch.bool) for name, tensor in kept.items()}
    for weights in served:
        for name, own in same.items():
            own |= weights[name].cpu() == kept[name].cpu()
    counts: dict[tuple[int | None, str], list[int]] = {}
    for name, tensor in own_weights(fm).items():
        counts.setdefault(_place(fm, name), [0, 0, 0])[2] += tensor.numel()
    for name, own in same.items():
        layer, kind = _place(fm, name)
        count = counts[None if layer is None else plan.layers[layer].source, kind]
        as_is = int(own.sum())
        count[0] += as_is
        count[1] += own.numel() - as_is
        count[2] -= own.numel()
    order = sorted(counts, key=lambda key: (key[0] is not None, key[0] or 0, key[1]))
    return [Exposure(*key, *counts[key]) for key in order]


def _place(model: PreTrainedModel, name: str) -> tuple[int | None, str]:
    """The layer of a weight and its kind."""
    family = family_of(model.config)
    stack = layer_prefix(model.config, 0).removesuffix("0.")
    if name.startswith(stack):
        number, _, part = name.removeprefix(stack).partition(".")
        return int(number), _kind_in_layer(family, part)
    if any(name.startswith(f"{head}.") for head in {*family.head, *family.token_head}):
        return None, "head"
    return None, "embeddings" if "embed" in name or ".wte." in name or ".wpe." in name else "other"


def _kind_in_layer(family: Family, part: str) -> str:
    if part.startswith(tuple(f"{path}." for path in (*family.ffn_in, family.ffn_out))):
        return "FFN"
    if part.startswith(tuple(f"{path}." for path in family.attention)):
        return "attention"
    return "normalisation"


def withheld(fm: PreTrainedModel, plan: SubModelPlan) -> Withheld:
    """Every neuron's weights that the plan cuts, and every row of the layers that it drops.

    A vector that is also one of a kept neuron, or zero, is nobody's secret and is left out.
    """
    kept_of = {layer.source: layer.neurons for layer in plan.layers}
    secret: list[tuple[str, Tensor]] = []
    open_: list[Tensor] = []
    for number, (layer, ffn) in enumerate(zip(layers_of(fm), ffns_of(fm), strict=True)):
        dropped = number not in kept_of
        kept = torch.zeros(ffn.width, dtype=torch.bool)
        if not dropped:
            neurons = kept_of[number]
            kept[slice(None) if neurons is None else neurons] = True
        for label, vectors in _neuron_vectors(ffn.ins, ffn.out):
            open_.append(vectors[kept])
            for neuron in (~kept).nonzero().flatten().tolist():
                secret.append((f"layer {number}, neuron {neuron}, {label}", vectors[neuron]))
        if dropped:
            width = sizes_of(fm.config).hidden_size
            for name, parameter in layer.named_parameters():
                if parameter.dim() == 2 and width in parameter.shape:
                    # GPT-2 keeps its weights transposed.
                    rows = parameter.detach().cpu().float()
                    rows = rows if rows.shape[1] == width else rows.T.contiguous()
                    secret += [(f"layer {number}, {name}, vector {i}", row) for i, row in enumerate(rows)]
    d = sizes_of(fm.config).hidden_size
    vectors = torch.stack([v for _, v in secret]) if secret else torch.zeros(0, d)
    shown = torch.cat(open_) if open_ else torch.zeros(0, d)
    norms = vectors.norm(dim=1)
    own = norms > 0
    unit = vectors / norms.clamp_min(torch.finfo(torch.float32).tiny).unsqueeze(1)
    for row, _, _ in _pairs(unit, _unit(shown)[1]):
        own[row] = False
    return Withheld(
        unit[own], tuple(name for (name, _), mine in zip(secret, own.tolist(), strict=True) if mine)
    )


def _neuron_vectors(ins: Sequence[Projection], out: Projection) -> Iterator[tuple[str, Tensor]]:
    """Each neuron's weights as rows, [d_ff, d]: one matrix per map of the FFN."""
    for i, projection in enumerate(ins):
        yield f"row of map {i} into it", projection.weight.detach().cpu().float()
    yield "column of the map out of it", out.weight.detach().T.cpu().float().contiguous()


def find(secret: Withheld, tensors: Mapping[str, Tensor], most: int = 100) -> list[Finding]:
    """Withheld vectors in tensors, at most so many: as rows, as columns, or laid end to end.

    Scaled, negated or rounded ones are found, too; sums of several are not.
    """
    found: list[Finding] = []
    if not len(secret.names):
        return found
    d = secret.vectors.shape[1]
    for name in sorted(tensors):
        tensor = tensors[name]
        if not tensor.is_floating_point() or tensor.numel() < d:
            continue
        for vectors in _readings(tensor.detach().cpu().float(), d):
            where, unit = _unit(vectors)
            for row, match, cosine in _pairs(unit, secret.vectors):
                found.append(Finding(name, int(where[row]), secret.names[match], cosine))
                if len(found) >= most:
                    return found
    return found


def holds_plan(plan: SubModelPlan, tensors: Mapping[str, Tensor]) -> str | None:
    """The name of a tensor that lists the kept neurons of a layer by their places in the FM."""
    lists = [layer.neurons for layer in plan.layers if layer.neurons is not None]
    for name in sorted(tensors):
        tensor = tensors[name]
        if tensor.is_floating_point() or tensor.dtype is torch.bool:
            continue
        flat = tensor.flatten().to(torch.int64)
        for neurons in lists:
            if len(neurons) != len(flat):
                continue
            # Kept ones that happen to be the first are told by the width alone.
            telling = not torch.equal(neurons, torch.arange(len(neurons)))
            if telling and torch.equal(flat.sort().values, neurons):
                return name
    return None


def _readings(tensor: Tensor, d: int) -> Iterator[Tensor]:
    """Vectors of length `d` that a tensor may hold, [N, d]."""
    fits = False
    if tensor.dim() == 2:
        rows, columns = tensor.shape
        if columns == d:
            fits = True
            yield tensor
        if rows == d:
            fits = True
            yield tensor.T.contiguous()
    if not fits:
        flat = tensor.flatten()
        yield flat[: len(flat) // d * d].view(-1, d)


def _unit(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the vectors that are not zero, and these at length 1."""
    norms = vectors.norm(dim=1)
    where = ((norms > 0) & norms.isfinite()).nonzero().flatten()
    return where, vectors[where] / norms[where].unsqueeze(1)


def _pairs(left: Tensor, right: Tensor) -> Iterator[tuple[int, int, float]]:
    """Indices of vectors, all of length 1, that are the same one but for sign and rounding."""
    for i in range(0, len(left), _BLOCK):
        for j in range(0, len(right), _BLOCK):
            cosines = left[i : i + _BLOCK] @ right[j : j + _BLOCK].T
            for a, b in (cosines.abs() >= SAME_COSINE).nonzero().tolist():
                yield i + a, j + b, float(cosines[a, b])
