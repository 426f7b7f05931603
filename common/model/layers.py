"""A model's layers: where they are, how their weights are named, what they put out."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from typing import Any

from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from transformers import PretrainedConfig, PreTrainedModel

from common.errors import ModelError
from common.model.families import family_of, sizes_of, without_cache


def encoder_of(model: PreTrainedModel) -> nn.Module:
    """The module that turns inputs into hidden states."""
    return model.get_submodule(family_of(model.config).encoder)


def layers_of(model: PreTrainedModel) -> Sequence[nn.Module]:
    """The transformer layers, first to last."""
    layers = encoder_of(model).get_submodule(family_of(model.config).layers)
    assert isinstance(layers, nn.ModuleList)
    return list(layers)


def positions_of(model: PreTrainedModel) -> int | None:
    """How many tokens a text can have; None where there is no table of positions, and no text is too long."""
    path = family_of(model.config).positions
    if path is None:
        return None
    owner, _, name = path.rpartition(".")
    table = getattr(encoder_of(model).get_submodule(owner), name)
    if table is None:
        # DeBERTa's may be relative alone.
        return None
    assert isinstance(table, nn.Embedding)
    # RoBERTa's begin behind the row that stands for padding, OPT's behind as many as it says.
    behind = getattr(table, "offset", 0) if table.padding_idx is None else table.padding_idx + 1
    return table.num_embeddings - int(behind)


def layer_prefix(config: PretrainedConfig, layer: int) -> str:
    """How a layer's names begin in the task model's state dict: "bert.encoder.layer.0."."""
    family = family_of(config)
    return f"{family.encoder}.{family.layers}.{layer}."


# Of a configuration: lists that say of each layer what it is, such as sliding or full attention.
_BY_LAYER = ("layer_types", "no_rope_layers")


def with_layers(config: PretrainedConfig, sources: Sequence[int]) -> PretrainedConfig:
    """The configuration of the model that has these layers of this one. Raises ModelError."""
    changed = deepcopy(config)
    sizes = sizes_of(changed)
    layers = sizes.num_hidden_layers
    if odd := [source for source in sources if not 0 <= source < layers]:
        raise ModelError(f"the model has {layers} layers, number {odd[0]} was asked for")
    sizes.num_hidden_layers = len(sources)
    for name in _BY_LAYER:
        if kinds := getattr(sizes, name, None):
            setattr(sizes, name, [kinds[source] for source in sources])
    return changed


def tokens_of(values: Tensor, mask: Tensor | None) -> Tensor:
    """[B, T, ...] → [N, ...], padding left out: chosen, not multiplied by 0, for padding may hold NaN.

    With a mask [B, T] also of values that a layer has laid end to end, [B * T, ...] (OPT).
    """
    if mask is None:
        return values.flatten(0, 1)
    if values.shape[:2] != mask.shape:
        values = values.unflatten(0, mask.shape)
    return values[mask.bool()]


def layer_outputs(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    """The output [B, T, d] of every layer, first to last, before any final normalisation.

    By hooks: what the models themselves return as hidden states differs, the last one in some
    families being normalised.
    """
    return outputs_of(model, layers_of(model), inputs)


class _SeenAll(Exception):
    """Ends a forward pass of which nothing more is wanted."""


def outputs_of(
    model: PreTrainedModel, modules: Sequence[nn.Module], inputs: dict[str, Tensor]
) -> list[Tensor]:
    """What each of these parts of the encoder puts out, [B, T, d], in their order.

    The encoder runs no further than to the last of them, unless processes share it: then it must come to its
    end, for they gather and let go of its weights along the way.
    """
    seen: dict[int, Tensor] = {}
    encoder = encoder_of(model)
    breaks_off = not isinstance(encoder, FSDPModule)

    def note(index: int) -> Any:
        def observe(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[index] = output[0] if isinstance(output, tuple) else output
            if breaks_off and len(seen) == len(modules):
                raise _SeenAll

        return observe

    hooks = [module.register_forward_hook(note(index)) for index, module in enumerate(modules)]
    try:
        with suppress(_SeenAll):
            encoder(**inputs, **without_cache(model.config))
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[index] for index in range(len(modules))]


@contextmanager
def watch_outputs(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """A list that every module's output is appended to as it is computed."""
    seen: list[Tensor] = []

    def observe(module: nn.Module, inputs: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    hooks = [module.register_forward_hook(observe) for module in modules]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
