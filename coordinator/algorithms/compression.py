"""FM → plan → the sub-FM's weights: neurons cut from FFNs, or layers left out; the rest as it was."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from common.model.families import family_of
from common.model.ffn import Ffn, ffns_of
from common.model.layers import layer_prefix, layers_of, with_layers
from common.model.submodel import LayerPlan, SubModelPlan, own_weights
from coordinator.algorithms.saliency import top_k


def plan_full(fm: PreTrainedModel) -> SubModelPlan:
    """Every layer whole: the sub-FM is the FM (FedPETuning)."""
    return SubModelPlan(tuple(LayerPlan(i, None) for i in range(len(layers_of(fm)))))


def plan_ffn_pruning(
    scores: Sequence[Tensor], drop_ratio: float, keep_first: int = 1, keep_last: int = 1
) -> SubModelPlan:
    """Keep the most salient (1 - drop_ratio) of the neurons of each layer between the whole ones.

    `scores` is each layer's saliency, [d_ff]. Source: FedPFT, section 3.2.
    """
    layers = []
    for i, score in enumerate(scores):
        whole = i < keep_first or i >= len(scores) - keep_last
        keep = max(1, round(len(score) * (1 - drop_ratio)))
        layers.append(LayerPlan(i, None if whole else top_k(score, keep).cpu()))
    return SubModelPlan(tuple(layers))


def plan_layer_drop(
    fm: PreTrainedModel, drop_ratio: float, keep_first: int = 1, keep_last: int = 1
) -> SubModelPlan:
    """As many whole layers, spread evenly, as have the parameters of `plan_ffn_pruning`'s sub-FM.

    The emulator of offsite tuning (Xiao et al. 2023, section 3.2), and so the FedPFT paper's FedOT.
    First and last layer stay, as long as at least two do.
    """
    layers, ffns = layers_of(fm), ffns_of(fm)
    whole = sum(p.numel() for p in layers[0].parameters())
    neuron = (whole_ffn := sum(p.numel() for p in ffns[0].neuron_parameters())) / ffns[0].width
    cut = whole_ffn - max(1, round(ffns[0].width * (1 - drop_ratio))) * neuron
    compressed = max(0, len(layers) - keep_first - keep_last)
    kept = max(1, round(len(layers) - compressed * cut / whole))
    if kept == 1:
        return SubModelPlan((LayerPlan(0, None),))
    spread = [round(i * (len(layers) - 1) / (kept - 1)) for i in range(kept)]
    return SubModelPlan(tuple(LayerPlan(source, None) for source in spread))


def ffn_widths(fm: PreTrainedModel, plan: SubModelPlan) -> tuple[int, ...]:
    """Number of FFN neurons in each layer of the sub-FM."""
    ffns = ffns_of(fm)
    return tuple(
        ffns[layer.source].width if layer.neurons is None else len(layer.neurons) for layer in plan.layers
    )


def config_of(fm: PreTrainedModel, plan: SubModelPlan) -> PretrainedConfig:
    """The sub-FM's configuration: the FM's with the plan's layers."""
    return with_layers(fm.config, [layer.source for layer in plan.layers])


def cut(fm: PreTrainedModel, plan: SubModelPlan) -> dict[str, Tensor]:
    """The sub-FM's weights: the FM's, without the layers and neurons that the plan leaves out.

    Of layers that lose neurons they are copies, since alignment changes them; the others are the FM's own.
    """
    weights, ffns = own_weights(fm), ffns_of(fm)
    stack = layer_prefix(fm.config, 0).removesuffix("0.")
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith(stack)}
    for i, layer in enumerate(plan.layers):
        prefix = layer_prefix(fm.config, layer.source)
        fewer = {} if layer.neurons is None else _cut_neurons(fm, ffns[layer.source], layer.neurons)
        for name, tensor in weights.items():
            if name.startswith(prefix):
                part = name.removeprefix(prefix)
                tensor = fewer.get(part, tensor if layer.neurons is None else tensor.clone())
                kept[f"{stack}{i}.{part}"] = tensor
    return kept


def _cut_neurons(fm: PreTrainedModel, ffn: Ffn, neurons: Tensor) -> dict[str, Tensor]:
    """What is left of a layer's FFN, by name within the layer."""
    family = family_of(fm.config)
    parts: dict[str, Tensor] = {}
    for i, path in enumerate(family.ffn_in):
        maps = ffn.ins[i * family.rows : (i + 1) * family.rows]
        rows = torch.cat([one.weight.detach()[neurons] for one in maps])
        parts[f"{path}.weight"] = maps[0].stored(rows).contiguous()
        if biases := [one.bias.detach()[neurons] for one in maps if one.bias is not None]:
            parts[f"{path}.bias"] = torch.cat(biases)
    parts[f"{family.ffn_out}.weight"] = ffn.out.stored(ffn.out.weight.detach()[:, neurons]).contiguous()
    return parts
