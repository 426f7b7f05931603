"""The sub-FM's adapter as one of the FM, and the FM's tensors as seen from the sub-FM.

Layer i of the sub-FM is layer `source` of the FM, and its neuron k is neuron `neurons[k]`. Attention is
whole in both, so its LoRA fits unchanged (FedPFT, section 3.1). Of LoRA on the FFN, B of the maps into
neurons has a row per neuron and A of the map out of them a column.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig

from common.model.adapter import layer_pattern
from common.model.families import family_of
from common.model.submodel import SubModelPlan

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class _Place:
    """Where a tensor of the sub-FM's adapter belongs in the FM's: its name, and along which axis which
    neurons, or None for all of it. Along that axis there may be all neurons several times."""

    name: str
    axis: int = 0
    neurons: Tensor | None = None
    times: int = 1

    def rows(self, width: int) -> Tensor:
        """The neurons' places along the axis, where the layer has `width` of them."""
        assert self.neurons is not None
        return torch.cat([self.neurons + i * width for i in range(self.times)])


def _place(name: str, plan: SubModelPlan, config: PretrainedConfig) -> _Place:
    match = layer_pattern(config).fullmatch(name)
    if match is None:
        return _Place(name)
    stack, number, path, kind = match.groups()
    family, layer = family_of(config), plan.layers[int(number)]
    source = f"{stack}{layer.source}.{path}.{kind}.weight"
    if path in family.ffn_in and kind in ("lora_B", "residual"):
        return _Place(source, 0, layer.neurons, family.rows)
    if path == family.ffn_out and kind in ("lora_A", "residual"):
        return _Place(source, 1, layer.neurons)
    return _Place(source)


def plug(
    adapter: Tensors,
    plan: SubModelPlan,
    config: PretrainedConfig,
    fresh: Tensors,
    widths: tuple[int, ...],
) -> dict[str, Tensor]:
    """The FM's adapter that does to the kept neurons and layers what `adapter` does in the sub-FM.

    `fresh` is the FM's untrained adapter, which layers that the sub-FM lacks keep (LoRA that changes
    nothing); `widths` are the FM's FFN widths by layer. Cut neurons get zeros, so the rank stays. On a
    plan that keeps everything the result is `adapter` itself.
    """
    plugged = dict(fresh)
    for name, tensor in adapter.items():
        place = _place(name, plan, config)
        if place.neurons is not None:
            match = layer_pattern(config).fullmatch(place.name)
            assert match is not None
            shape, width = list(tensor.shape), widths[int(match[2])]
            shape[place.axis] = width * place.times
            rows = place.rows(width)
            tensor = torch.zeros(shape, dtype=tensor.dtype).index_copy_(place.axis, rows, tensor)
        plugged[place.name] = tensor
    return plugged


def seen_from_below(
    names: Tensors, fm: Tensors, plan: SubModelPlan, config: PretrainedConfig
) -> dict[str, Tensor]:
    """For every name of the sub-FM's adapter the FM's tensor of the same parameters: `plug`, inverted."""
    seen = {}
    for name in names:
        place = _place(name, plan, config)
        tensor = fm[place.name]
        if place.neurons is not None:
            rows = place.rows(tensor.shape[place.axis] // place.times)
            tensor = tensor.index_select(place.axis, rows.to(tensor.device))
        seen[name] = tensor
    return seen
