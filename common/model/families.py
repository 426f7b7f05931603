"""The only place that knows where a model family keeps its layers, FFN and attention.

To add a family, add an entry to FAMILIES and its model to the tests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from common.errors import UnsupportedFamily


@dataclass(frozen=True)
class Family:
    """Module paths of one architecture. Paths of a layer's parts are relative to the layer."""

    model_type: str
    encoder: str
    """The module that turns inputs into hidden states, below the task model."""
    layers: str
    """The list of transformer layers, below the encoder."""
    ffn_in: str
    """The linear map from hidden size to FFN neurons."""
    ffn_out: str
    """The linear map from FFN neurons back to hidden size."""
    ffn_norm: str
    """The normalisation of the layer's output."""
    attention: tuple[str, ...]
    """Query, key, value and output projections."""
    head: str
    """The task head, below the task model: what is tuned in full."""


FAMILIES = {
    family.model_type: family
    for family in (
        Family(
            model_type="bert",
            encoder="bert",
            layers="encoder.layer",
            ffn_in="intermediate.dense",
            ffn_out="output.dense",
            ffn_norm="output.LayerNorm",
            attention=(
                "attention.self.query",
                "attention.self.key",
                "attention.self.value",
                "attention.output.dense",
            ),
            head="classifier",
        ),
    )
}


def family_of(config: PretrainedConfig) -> Family:
    """The family of a model with this configuration. Raises UnsupportedFamily."""
    return family_named(config.model_type)


def family_named(model_type: str) -> Family:
    """Raises UnsupportedFamily naming the supported ones."""
    if model_type not in FAMILIES:
        raise UnsupportedFamily(
            f"model family {model_type!r} is not supported; supported are: {', '.join(FAMILIES)}"
        )
    return FAMILIES[model_type]


@dataclass(frozen=True)
class Ffn:
    """A layer's FFN: `norm(x + down(act(up(x))))`; neuron j is row j of up, column j of down."""

    up: nn.Linear
    down: nn.Linear
    norm: nn.Module

    @property
    def width(self) -> int:
        """Number of neurons."""
        return self.up.out_features

    def neuron_parameters(self) -> list[nn.Parameter]:
        """What a neuron-level alignment trains: what belongs to single neurons, so not down's bias."""
        return [parameter for name, parameter in self.down.named_parameters() if name != "bias"] + [
            *self.up.parameters()
        ]

    def parameters(self) -> list[nn.Parameter]:
        """What a layer-level alignment trains."""
        return [*self.up.parameters(), *self.down.parameters(), *self.norm.parameters()]


def encoder_of(model: PreTrainedModel) -> nn.Module:
    """The module that turns inputs into hidden states."""
    return model.get_submodule(family_of(model.config).encoder)


def layers_of(model: PreTrainedModel) -> Sequence[nn.Module]:
    """The transformer layers, first to last."""
    layers = encoder_of(model).get_submodule(family_of(model.config).layers)
    assert isinstance(layers, nn.ModuleList)
    return list(layers)


def ffns_of(model: PreTrainedModel) -> list[Ffn]:
    """The FFN of every layer, first to last."""
    family = family_of(model.config)
    return [
        Ffn(
            _linear(layer, family.ffn_in),
            _linear(layer, family.ffn_out),
            layer.get_submodule(family.ffn_norm),
        )
        for layer in layers_of(model)
    ]


def set_ffn_width(layer: nn.Module, family: Family, width: int) -> None:
    """Replace a layer's FFN maps by uninitialised ones for `width` neurons."""
    up, down = _linear(layer, family.ffn_in), _linear(layer, family.ffn_out)
    layer.set_submodule(family.ffn_in, nn.Linear(up.in_features, width, up.bias is not None))
    layer.set_submodule(family.ffn_out, nn.Linear(width, down.out_features, down.bias is not None))


def ffn_names(config: PretrainedConfig, layer: int) -> tuple[str, str]:
    """State-dict prefixes of a layer's up and down maps, such as "bert.encoder.layer.0.output.dense"."""
    family = family_of(config)
    prefix = f"{family.encoder}.{family.layers}.{layer}"
    return f"{prefix}.{family.ffn_in}", f"{prefix}.{family.ffn_out}"


def _linear(layer: nn.Module, path: str) -> nn.Linear:
    module = layer.get_submodule(path)
    assert isinstance(module, nn.Linear), f"{path} is {type(module).__name__}, not Linear"
    return module
