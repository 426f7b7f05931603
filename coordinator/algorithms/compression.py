"""FM → plan → the sub-FM's weights: neurons cut from FFNs, everything else as it was."""

from collections.abc import Callable

from torch import Tensor
from transformers import PreTrainedModel

from common.model.families import Ffn, ffn_names, ffns_of
from common.model.submodel import LayerPlan, SubModelPlan
from coordinator.algorithms.saliency import l2_norm, top_k


def plan_full(fm: PreTrainedModel) -> SubModelPlan:
    """Every layer whole: the sub-FM is the FM (FedPETuning)."""
    return SubModelPlan(tuple(LayerPlan(i, None) for i in range(len(ffns_of(fm)))))


def plan_ffn_pruning(
    fm: PreTrainedModel,
    drop_ratio: float,
    keep_first: int = 1,
    keep_last: int = 1,
    saliency: Callable[[Ffn], Tensor] = l2_norm,
) -> SubModelPlan:
    """Keep the most salient (1 - drop_ratio) of the neurons of each layer between the whole ones.

    Source: FedPFT, section 3.2.
    """
    ffns = ffns_of(fm)
    layers = []
    for i, ffn in enumerate(ffns):
        whole = i < keep_first or i >= len(ffns) - keep_last
        keep = max(1, round(ffn.width * (1 - drop_ratio)))
        layers.append(LayerPlan(i, None if whole else top_k(saliency(ffn), keep)))
    return SubModelPlan(tuple(layers))


def ffn_widths(fm: PreTrainedModel, plan: SubModelPlan) -> tuple[int, ...]:
    """Number of FFN neurons in each layer of the sub-FM."""
    ffns = ffns_of(fm)
    return tuple(
        ffns[layer.source].width if layer.neurons is None else len(layer.neurons) for layer in plan.layers
    )


def cut(fm: PreTrainedModel, plan: SubModelPlan) -> dict[str, Tensor]:
    """The sub-FM's weights: copies of the FM's, without the neurons that the plan leaves out."""
    weights = {name: tensor.detach().clone() for name, tensor in fm.state_dict().items()}
    for i, layer in enumerate(plan.layers):
        if layer.neurons is None:
            continue
        up, down = ffn_names(fm.config, i)
        weights[f"{up}.weight"] = weights[f"{up}.weight"][layer.neurons]
        weights[f"{up}.bias"] = weights[f"{up}.bias"][layer.neurons]
        weights[f"{down}.weight"] = weights[f"{down}.weight"][:, layer.neurons]
    return weights
