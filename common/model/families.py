"""The only place that knows where a model family keeps its layers, FFN, attention and head.

To add a family, add an entry to FAMILIES and its small configuration to tests/families.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from common.errors import ModelError, UnsupportedFamily
from common.records import TaskKind

_TEXT = (TaskKind.TEXT_CLASSIFICATION,)
_IMAGES = (TaskKind.IMAGE_CLASSIFICATION,)
_DECODER = (TaskKind.TEXT_CLASSIFICATION, TaskKind.CAUSAL_LM)


@dataclass(frozen=True)
class Family:
    """Module paths of one architecture. Paths of a layer's parts are relative to the layer."""

    model_type: str
    tasks: tuple[TaskKind, ...]
    """What its models are built for here."""
    encoder: str
    """The module that turns inputs into hidden states, below the task model."""
    layers: str
    """The list of transformer layers, below the encoder."""
    ffn_in: tuple[str, ...]
    """The maps from hidden size to FFN neurons; of a gated FFN two, the gate first."""
    ffn_out: str
    """The map from FFN neurons back to hidden size."""
    ffn_norm: str
    """The normalisation next to the FFN: of its sum in post-norm models, of its input in pre-norm ones."""
    attention: tuple[str, ...]
    """Query, key, value and output projections."""
    head: tuple[str, ...]
    """The classifier, below the task model: what is tuned in full. A language model's is not tuned."""
    post_norm: bool = False
    """Whether `ffn_norm` normalises the sum of FFN and residual, instead of the FFN's input."""
    ffn_scale: str | None = None
    """A learned factor [d] of the FFN's output, where there is one."""
    activation: str = "hidden_act"
    """The configuration's key for the FFN's activation function."""


_BERT = Family(
    model_type="bert",
    tasks=_TEXT,
    encoder="bert",
    layers="encoder.layer",
    ffn_in=("intermediate.dense",),
    ffn_out="output.dense",
    ffn_norm="output.LayerNorm",
    post_norm=True,
    attention=(
        "attention.self.query",
        "attention.self.key",
        "attention.self.value",
        "attention.output.dense",
    ),
    head=("classifier",),
)
_VIT = Family(
    model_type="vit",
    tasks=_IMAGES,
    encoder="vit",
    layers="layers",
    ffn_in=("mlp.fc1",),
    ffn_out="mlp.fc2",
    ffn_norm="layernorm_after",
    attention=("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
    head=("classifier",),
)
_LLAMA = Family(
    model_type="llama",
    tasks=_DECODER,
    encoder="model",
    layers="layers",
    ffn_in=("mlp.gate_proj", "mlp.up_proj"),
    ffn_out="mlp.down_proj",
    ffn_norm="post_attention_layernorm",
    attention=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"),
    head=("score",),
)

FAMILIES = {
    family.model_type: family
    for family in (
        _BERT,
        replace(_BERT, model_type="roberta", encoder="roberta"),
        Family(
            model_type="distilbert",
            tasks=_TEXT,
            encoder="distilbert",
            layers="transformer.layer",
            ffn_in=("ffn.lin1",),
            ffn_out="ffn.lin2",
            ffn_norm="output_layer_norm",
            post_norm=True,
            attention=("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
            head=("pre_classifier", "classifier"),
            activation="activation",
        ),
        _VIT,
        replace(_VIT, model_type="deit", encoder="deit"),
        replace(
            _VIT,
            model_type="dinov2",
            encoder="dinov2",
            layers="encoder.layer",
            ffn_norm="norm2",
            ffn_scale="layer_scale2.lambda1",
        ),
        Family(
            model_type="gpt2",
            tasks=_DECODER,
            encoder="transformer",
            layers="h",
            ffn_in=("mlp.c_fc",),
            ffn_out="mlp.c_proj",
            ffn_norm="ln_2",
            # Query, key and value are one map here.
            attention=("attn.c_attn", "attn.c_proj"),
            head=("score",),
            activation="activation_function",
        ),
        _LLAMA,
        replace(_LLAMA, model_type="mistral"),
        replace(_LLAMA, model_type="qwen2"),
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


# --- the FFN, seen alike in every family ---


@dataclass(frozen=True)
class Projection:
    """A linear map, in nn.Linear's layout whether it is a Linear or a Conv1D (stored transposed)."""

    site: nn.Module
    """The module in the layer: the map itself, or peft's wrapper around it. Hooks go here."""

    @property
    def module(self) -> nn.Linear | Conv1D:
        """The map itself."""
        inner = getattr(self.site, "base_layer", self.site)
        if not isinstance(inner, nn.Linear | Conv1D):
            raise UnsupportedFamily(f"{type(inner).__name__} is no linear map")
        return inner

    @property
    def weight(self) -> Tensor:
        """[out, in]; writing into it writes into the model."""
        weight: Tensor = self.module.weight
        return self.stored(weight)

    def stored(self, weight: Tensor) -> Tensor:
        """A weight [out, in] in the layout in which this map's class keeps it."""
        return weight.T if isinstance(self.module, Conv1D) else weight

    @property
    def gradient(self) -> Tensor:
        """The weight's gradient, [out, in], likewise."""
        gradient = self.module.weight.grad
        assert isinstance(gradient, Tensor)
        return self.stored(gradient)

    @property
    def bias(self) -> nn.Parameter | None:
        """[out], where the family has one."""
        bias: nn.Parameter | None = self.module.bias
        return bias

    def parameters(self) -> list[nn.Parameter]:
        """Weight and bias, without an adapter's."""
        return list(self.module.parameters(recurse=False))


@dataclass(frozen=True)
class Ffn:
    """A layer's FFN. Neuron j is row j of every map in `ins`, column j of `out`.

    Plain: out(act(in(x))). Gated: out(act(gate(x)) * up(x)).
    """

    ins: tuple[Projection, ...]
    out: Projection
    norm: nn.Module
    layer: nn.Module
    post_norm: bool
    """Layer output: norm(x + ffn(x)) if post-norm, else x + scale * ffn(norm(x))."""
    scale: Tensor | None
    """[d], or None for 1."""

    @property
    def width(self) -> int:
        """Number of neurons."""
        return self.out.weight.shape[1]

    def neuron_parameters(self) -> list[nn.Parameter]:
        """What a neuron-level alignment trains: what belongs to single neurons, so not out's bias."""
        maps = [p for m in self.ins for p in m.parameters()]
        return [*maps, *(p for p in self.out.parameters() if p is not self.out.bias)]

    def parameters(self) -> list[nn.Parameter]:
        """What a layer-level alignment trains."""
        return [p for m in (*self.ins, self.out) for p in m.parameters()] + list(self.norm.parameters())


def encoder_of(model: PreTrainedModel) -> nn.Module:
    """The module that turns inputs into hidden states."""
    return model.get_submodule(family_of(model.config).encoder)


def layers_of(model: PreTrainedModel) -> Sequence[nn.Module]:
    """The transformer layers, first to last."""
    layers = encoder_of(model).get_submodule(family_of(model.config).layers)
    assert isinstance(layers, nn.ModuleList)
    return list(layers)


def ffns_of(model: PreTrainedModel) -> list[Ffn]:
    """The FFN of every layer, first to last. Raises UnsupportedFamily where a variant has another."""
    family = family_of(model.config)
    return [
        Ffn(
            tuple(_projection(layer, path, family) for path in family.ffn_in),
            _projection(layer, family.ffn_out, family),
            layer.get_submodule(family.ffn_norm),
            layer,
            family.post_norm,
            layer.get_parameter(family.ffn_scale) if family.ffn_scale else None,
        )
        for layer in layers_of(model)
    ]


def _projection(layer: nn.Module, path: str, family: Family) -> Projection:
    try:
        found = Projection(layer.get_submodule(path))
    except AttributeError:
        raise UnsupportedFamily(
            f"this {family.model_type} keeps its FFN elsewhere than the family does: no {path}"
        ) from None
    return found


def set_ffn_width(layer: nn.Module, family: Family, width: int) -> None:
    """Replace a layer's FFN maps by uninitialised ones for `width` neurons."""
    for path in family.ffn_in:
        layer.set_submodule(path, _resized(_projection(layer, path, family), out_features=width))
    out = _projection(layer, family.ffn_out, family)
    layer.set_submodule(family.ffn_out, _resized(out, in_features=width))


def _resized(
    old: Projection, in_features: int | None = None, out_features: int | None = None
) -> nn.Linear | Conv1D:
    rows, columns = out_features or old.weight.shape[0], in_features or old.weight.shape[1]
    if isinstance(old.module, Conv1D):
        return Conv1D(rows, columns)
    return nn.Linear(columns, rows, old.bias is not None)


# --- layers: names, number, outputs ---


def layer_prefix(config: PretrainedConfig, layer: int) -> str:
    """How a layer's names begin in the task model's state dict: "bert.encoder.layer.0."."""
    family = family_of(config)
    return f"{family.encoder}.{family.layers}.{layer}."


def with_layers(config: PretrainedConfig, count: int) -> PretrainedConfig:
    """The configuration of the same model with `count` layers. Raises ModelError."""
    if count > config.num_hidden_layers:
        raise ModelError(f"the model has {config.num_hidden_layers} layers, {count} were asked for")
    changed = deepcopy(config)
    changed.num_hidden_layers = count
    if getattr(config, "layer_types", None):
        changed.layer_types = config.layer_types[:count]
    return changed


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

    The encoder runs no further than to the last of them.
    """
    seen: dict[int, Tensor] = {}

    def note(index: int) -> Any:
        def observe(module: nn.Module, inputs: Any, output: Any) -> None:
            seen[index] = output[0] if isinstance(output, tuple) else output
            if len(seen) == len(modules):
                raise _SeenAll

        return observe

    hooks = [module.register_forward_hook(note(index)) for index, module in enumerate(modules)]
    try:
        with suppress(_SeenAll):
            encoder_of(model)(**inputs)
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


def is_smooth(config: PretrainedConfig) -> bool:
    """Whether the FFN's activation has next to no exact zeros: all but ReLU and its kin."""
    name = str(getattr(config, family_of(config).activation))
    return not name.startswith("relu")
