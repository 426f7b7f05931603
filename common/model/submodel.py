"""A plan → a sub-FM: the FM's layers with fewer FFN neurons, built without the FM."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PretrainedConfig, PreTrainedModel

from common.errors import BadUpdate, ModelError
from common.model.families import Ffn, family_of, layers_of, set_ffn_width


@dataclass(frozen=True)
class LayerPlan:
    """A layer of the sub-FM: the FM's layer `source`, with `neurons` (int64 [K], ascending) or all."""

    source: int
    neurons: Tensor | None


@dataclass(frozen=True)
class SubModelPlan:
    """All layers of a sub-FM, first to last."""

    layers: tuple[LayerPlan, ...]

    @property
    def compressed(self) -> tuple[int, ...]:
        """Indices, within the sub-FM, of layers that lost neurons."""
        return tuple(i for i, layer in enumerate(self.layers) if layer.neurons is not None)

    def to_tensors(self) -> dict[str, Tensor]:
        """For the coordinator's own store: which neurons were cut must not leave it."""
        tensors = {"sources": torch.tensor([layer.source for layer in self.layers])}
        for i, layer in enumerate(self.layers):
            if layer.neurons is not None:
                tensors[f"neurons.{i}"] = layer.neurons
        return tensors

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "SubModelPlan":
        """Inverse of `to_tensors`."""
        sources = tensors["sources"].tolist()
        return cls(tuple(LayerPlan(s, tensors.get(f"neurons.{i}")) for i, s in enumerate(sources)))


def build(
    config: PretrainedConfig,
    ffn_widths: Sequence[int],
    weights: Mapping[str, Tensor],
    device: torch.device | None = None,
) -> PreTrainedModel:
    """A sub-FM in eval mode, whose parameters are `weights` themselves, not copies, if on `device`.

    Built on the meta device, so that memory is used once, by what the weights already occupy.
    Raises ModelError when widths or weights do not fit the configuration.
    """
    with init_empty_weights():
        model: PreTrainedModel = AutoModelForSequenceClassification.from_config(config)
        layers = layers_of(model)
        if len(layers) != len(ffn_widths):
            raise ModelError(f"{len(ffn_widths)} FFN widths given for {len(layers)} layers")
        for layer, width in zip(layers, ffn_widths, strict=True):
            set_ffn_width(layer, family_of(config), width)
    try:
        model.load_state_dict({n: t.to(device) for n, t in weights.items()}, assign=True)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise ModelError(f"the weights do not fit the sub-FM: {first}") from None
    model.eval()
    return model


# --- patches: the neurons that an alignment changed, indexed within the sub-FM ---


def make_patch(ffns: Sequence[Ffn], neurons: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """Per layer in `neurons` (int64 [N]): indices, up rows [N, d], up biases [N], down columns [d, N]."""
    patch: dict[str, Tensor] = {}
    for layer, index in neurons.items():
        ffn = ffns[layer]
        patch[f"{layer}.neurons"] = index
        patch[f"{layer}.up.weight"] = ffn.up.weight.detach()[index].clone()
        patch[f"{layer}.up.bias"] = ffn.up.bias.detach()[index].clone()
        patch[f"{layer}.down.weight"] = ffn.down.weight.detach()[:, index].clone()
    return patch


@torch.no_grad()
def apply_patch(ffns: Sequence[Ffn], patch: Mapping[str, Tensor]) -> None:
    """Lay a patch over a sub-FM, in place. Raises BadUpdate when it does not fit."""
    for name in patch:
        layer_text, _, kind = name.partition(".")
        if kind != "neurons":
            continue
        layer = int(layer_text) if layer_text.isdecimal() else -1
        index = patch[name]
        if not 0 <= layer < len(ffns):
            raise BadUpdate(f"patch names layer {layer_text}, the sub-FM has {len(ffns)}")
        ffn = ffns[layer]
        if index.dtype != torch.int64 or index.dim() != 1:
            raise BadUpdate(f"patch for layer {layer} must name neurons as int64 [N]")
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < ffn.width:
            raise BadUpdate(f"patch for layer {layer} names neurons beyond {ffn.width}")
        try:
            rows, biases, columns = (
                patch[f"{layer}.{part}"] for part in ("up.weight", "up.bias", "down.weight")
            )
            if not len(index) == rows.shape[0] == biases.shape[0] == columns.shape[1]:
                # Assignment would stretch a single neuron's values over all that are named.
                raise BadUpdate(f"patch for layer {layer} has other than one value for each neuron")
            ffn.up.weight[index] = rows
            ffn.up.bias[index] = biases
            ffn.down.weight[:, index] = columns
        except (KeyError, IndexError, RuntimeError) as error:
            raise BadUpdate(f"patch for layer {layer} does not fit: {error}") from error
