"""A plan → a sub-FM: the FM's layers with fewer FFN neurons, built without the FM."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from common.errors import BadUpdate, ModelError
from common.model.families import family_of
from common.model.ffn import Ffn, set_ffn_width
from common.model.held import value_of
from common.model.int8 import Int8, hold_as_int8, rounded, scale_of, tie_scales, values_of
from common.model.layers import layers_of
from common.model.tasks import from_config
from common.quantization import Quantization
from common.records import TaskKind


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


@dataclass(frozen=True)
class Held:
    """What a sub-FM's frozen weights are held in, and the modules that are new, tuned, and so stay plain."""

    quantization: Quantization = Quantization.NONE
    new_modules: tuple[str, ...] = ()


AS_IT_IS = Held()


def build(
    config: PretrainedConfig,
    kind: TaskKind,
    ffn_widths: Sequence[int],
    weights: Mapping[str, Tensor],
    device: torch.device | None = None,
    held: Held = AS_IT_IS,
) -> PreTrainedModel:
    """A sub-FM in eval mode, whose parameters are `weights` themselves, not copies, if on `device`.

    Built on the meta device, so that memory is used once, by what the weights already occupy. Weights
    that the model ties to others need not be there. Raises ModelError when the family cannot do the
    task, or widths or weights do not fit the configuration.
    """
    model = empty(config, kind, ffn_widths, held)
    tied = tied_names(model)
    own = {name: tensor.to(device) for name, tensor in weights.items() if name not in tied}
    try:
        missing, unexpected = model.load_state_dict(own, strict=False, assign=True)
    except RuntimeError as error:
        first = " ".join(str(error).split())[:300]
        raise ModelError(f"the weights do not fit the sub-FM: {first}") from None
    if odd := sorted({*missing, *unexpected} - tied):
        raise ModelError(f"the weights do not fit the sub-FM: {odd[0]} is on one side only")
    model.tie_weights()
    tie_scales(model)
    if device is not None:
        # Buffers that no file holds, such as rotary frequencies.
        model.to(device)  # type: ignore[arg-type]  # mistyped in transformers 5
    model.eval()
    return model


def empty(
    config: PretrainedConfig,
    kind: TaskKind,
    ffn_widths: Sequence[int],
    held: Held = AS_IT_IS,
    buffers: bool = False,
) -> PreTrainedModel:
    """A sub-FM without values: parameters on the meta device, and `buffers` as well if asked for.

    Raises ModelError when the family cannot do the task, or widths do not fit the configuration.
    """
    with init_empty_weights(include_buffers=buffers):
        model = from_config(config, kind)
        layers = layers_of(model)
        if len(layers) != len(ffn_widths):
            raise ModelError(f"{len(ffn_widths)} FFN widths given for {len(layers)} layers")
        for layer, width in zip(layers, ffn_widths, strict=True):
            set_ffn_width(layer, family_of(config), width)
    if held.quantization is Quantization.INT8:
        hold_as_int8(model, kind, held.new_modules)
    return model


def tied_names(model: PreTrainedModel) -> set[str]:
    """Names in the state dict that are another parameter: a language model's head, say."""
    if not getattr(model.config, "tie_word_embeddings", False):
        return set()
    tied = set(model._tied_weights_keys or {})
    return (tied | {scale_of(name) for name in tied}) & model.state_dict().keys()


def own_weights(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state dict without what is tied to another of its tensors."""
    tied, found = tied_names(model), {}
    for name, tensor in model.state_dict().items():
        if name not in tied:
            path, _, part = name.rpartition(".")
            found[name] = (value_of(model.get_submodule(path), part) if tensor.is_meta else tensor).detach()
    return found


# --- patches: the neurons that an alignment changed, indexed within the sub-FM ---


def make_patch(ffns: Sequence[Ffn], neurons: Mapping[int, Tensor]) -> dict[str, Tensor]:
    """Per layer in `neurons` (int64 [N]): indices, in rows [N, d], in biases [N], out columns [d, N]; of int8
    with their scales [N]."""
    patch: dict[str, Tensor] = {}
    for layer, index in neurons.items():
        patch[f"{layer}.neurons"] = index
        for part, values in _parts(ffns[layer]).items():
            chosen = index.to(values.device)
            patch[f"{layer}.{part}"] = values.detach().index_select(_neuron_axis(part), chosen)
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
        parts = _parts(ffn)
        held = {n.removeprefix(f"{layer}.") for n in patch if n.startswith(f"{layer}.")}
        if odd := sorted(held - parts.keys() - {"neurons"}):
            raise BadUpdate(f"patch for layer {layer} holds {odd[0]}, which the model has not")
        for part, values in parts.items():
            new = patch.get(f"{layer}.{part}")
            axis = _neuron_axis(part)
            wanted = list(values.shape)
            wanted[axis] = len(index)
            if new is None or list(new.shape) != wanted or new.dtype != values.dtype:
                # Assignment would stretch a single neuron's values over all that are named.
                raise BadUpdate(f"patch for layer {layer} must hold {part}, {values.dtype} {wanted}")
            values.index_copy_(axis, index.to(values.device), new.to(values))


def plain_patch(ffns: Sequence[Ffn], patch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The values that a patch for these FFNs brings, where they are held as int8, too."""
    plain = {}
    for name, tensor in patch.items():
        stem, _, part = name.rpartition(".")
        if part != "weight" or tensor.dtype is not torch.int8:
            plain[name] = tensor
            continue
        layer, side = int(stem.partition(".")[0]), stem.partition(".")[2]
        out = ffns[layer].out.module
        spread = out.spread if side == "out" and isinstance(out, Int8) else None
        plain[name] = values_of(tensor, patch[f"{stem}.scale"], _neuron_axis(f"{side}.weight"), spread)
    return plain


@contextmanager
def in_full(ffns: Sequence[Ffn], neurons: Mapping[int, Tensor]) -> Iterator[None]:
    """While open, FFN maps that are held as int8 have plain weights, in the layers of `neurons`, so that they
    can be trained. Then they are int8 again, of these neurons (int64 [N]) rounded anew; after an error as
    they were.
    """
    maps = [(p, index) for layer, index in neurons.items() for p in (*ffns[layer].ins, ffns[layer].out)]
    held = {m: m.weight for m in (projection.module for projection, _ in maps) if isinstance(m, Int8)}
    for module in held:
        module.weight = nn.Parameter(module.values, requires_grad=False)
    trained: dict[nn.Module, Tensor] = {}
    try:
        yield
        trained = {module: module.weight.detach() for module in held}
    finally:
        for module, weight in held.items():
            module.weight = weight
    for projection, index in maps:
        inner = projection.module
        if isinstance(inner, Int8):
            weight, axis = projection.own(projection.stored(trained[inner])), 0 if inner.spread is None else 1
            chosen = index.to(weight.device)
            steps, scale = rounded(weight.index_select(axis, chosen), axis, inner.spread)
            projection.held["weight"].index_copy_(axis, chosen, steps)
            projection.held["scale"].index_copy_(0, chosen, scale)


def _parts(ffn: Ffn) -> dict[str, Tensor]:
    """What belongs to single neurons, in nn.Linear's layout."""
    parts: dict[str, Tensor] = {}
    maps = {f"in.{i}": projection for i, projection in enumerate(ffn.ins)} | {"out": ffn.out}
    for name, projection in maps.items():
        parts |= {f"{name}.{part}": tensor for part, tensor in projection.held.items()}
        if projection.bias is not None and projection is not ffn.out:
            parts[f"{name}.bias"] = projection.bias
    return parts


def _neuron_axis(part: str) -> int:
    return 1 if part == "out.weight" else 0
