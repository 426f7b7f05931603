"""A layer's FFN, seen alike in every family."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from common.errors import UnsupportedFamily
from common.model.families import family_of, sizes_of
from common.model.family import Family
from common.model.held import value_of
from common.model.int8 import Int8
from common.model.layers import layers_of


@dataclass(frozen=True)
class Projection:
    """A linear map, in nn.Linear's layout whether it is a Linear or a Conv1D (stored transposed).

    Of a module that is several maps, one under the other, it is one of them.
    """

    site: nn.Module
    """The module in the layer: the map itself, or peft's wrapper around it. Hooks go here."""
    part: int = 0
    parts: int = 1
    """Which of how many maps of equal height in the module."""

    @property
    def module(self) -> nn.Linear | Conv1D:
        """The map itself."""
        inner = getattr(self.site, "base_layer", self.site)
        if not isinstance(inner, nn.Linear | Conv1D):
            raise UnsupportedFamily(f"{type(inner).__name__} is no linear map")
        return inner

    @property
    def weight(self) -> Tensor:
        """[out, in]; writing into it writes into the model, unless that holds it as int8 or elsewhere."""
        module = self.module
        weight: Tensor = module.values if isinstance(module, Int8) else value_of(module, "weight")
        return self.own(self.stored(weight))

    @property
    def held(self) -> dict[str, Tensor]:
        """What the model holds of the weight, to be written into: [out, in]; of int8 with its scales."""
        module = self.module
        found = {"weight": self.own(self.stored(module.weight))}
        return found | {"scale": self.own(module.scale)} if isinstance(module, Int8) else found

    def own(self, rows: Tensor) -> Tensor:
        """This map's, of rows that are the module's."""
        if self.parts == 1:
            return rows
        height = rows.shape[0] // self.parts
        # Not `chunk`, whose gradient several processes cannot form of parts of their own.
        return rows.narrow(0, self.part * height, height)

    def outputs(self, values: Tensor) -> Tensor:
        """This map's [..., out], of what the module puts out."""
        return values if self.parts == 1 else values.chunk(self.parts, -1)[self.part]

    def stored(self, weight: Tensor) -> Tensor:
        """A weight [out, in] in the layout in which this map's class keeps it."""
        return weight.T if isinstance(self.module, Conv1D) else weight

    @property
    def gradient(self) -> Tensor:
        """The weight's gradient, [out, in], likewise."""
        gradient = self.module.weight.grad
        assert isinstance(gradient, Tensor)
        return self.own(self.stored(gradient))

    @property
    def bias(self) -> Tensor | None:
        """[out], where the family has one; writing into it writes into the model."""
        bias: Tensor | None = value_of(self.module, "bias")
        return None if bias is None else self.own(bias)

    @property
    def bias_gradient(self) -> Tensor | None:
        """The bias's gradient [out], where there is a bias."""
        bias: Tensor | None = self.module.bias
        if bias is None:
            return None
        assert bias.grad is not None
        return self.own(bias.grad)

    def parameters(self) -> list[nn.Parameter]:
        """Weight and bias of the module, without an adapter's."""
        return list(self.module.parameters(recurse=False))


@dataclass(frozen=True)
class Ffn:
    """A layer's FFN. Neuron j is row j of every map in `ins`, column j of `out`.

    Plain: out(act(in(x))). Gated: out(act(gate(x)) * up(x)).
    """

    ins: tuple[Projection, ...]
    out: Projection
    norm: nn.Module | None
    layer: nn.Module
    post_norm: bool
    """Layer output: norm(x + ffn(x)) if post-norm, else x + out_norm(scale * ffn(norm(x)))."""
    out_norm: nn.Module | None
    scale: Tensor | None
    """[d], one number [], or None for 1."""

    @property
    def width(self) -> int:
        """Number of neurons."""
        return self.out.weight.shape[1]

    @property
    def norm_behind(self) -> nn.Module | None:
        """What normalises the FFN's output, with the residual (post-norm) or without it."""
        return self.norm if self.post_norm else self.out_norm

    def neuron_parameters(self) -> list[nn.Parameter]:
        """What a neuron-level alignment trains: what belongs to single neurons, so not out's bias."""
        return [*self._in_parameters(), *(p for p in self.out.parameters() if p is not self.out.bias)]

    def parameters(self) -> list[nn.Parameter]:
        """What a layer-level alignment trains."""
        norms = [norm for norm in (self.norm, self.out_norm) if norm is not None]
        maps = [*self._in_parameters(), *self.out.parameters()]
        return maps + [p for norm in norms for p in norm.parameters()]

    def _in_parameters(self) -> list[nn.Parameter]:
        # Each once, where one module is two maps.
        return list(dict.fromkeys(p for m in self.ins for p in m.parameters()))


def ffns_of(model: PreTrainedModel) -> list[Ffn]:
    """The FFN of every layer, first to last. Raises UnsupportedFamily where a variant has another."""
    family = family_of(model.config)
    key = family.pre_norm_key
    post_norm = family.post_norm if key is None else not getattr(sizes_of(model.config), key)
    return [
        Ffn(
            tuple(
                _projection(layer, path, family, part)
                for path in family.ffn_in
                for part in range(family.rows)
            ),
            _projection(layer, family.ffn_out, family),
            _norm(layer, family.ffn_norm, family),
            layer,
            post_norm,
            _norm(layer, family.ffn_post_norm, family),
            _scale(layer, family),
        )
        for layer in layers_of(model)
    ]


def _norm(layer: nn.Module, path: str | None, family: Family) -> nn.Module | None:
    if path is None:
        return None
    try:
        return layer.get_submodule(path)
    except AttributeError:
        # StableLM with parallel residuals, say: attention and FFN share one.
        raise UnsupportedFamily(
            f"this {family.model_type} normalises its FFN's input elsewhere than the family does: no {path}"
        ) from None


def _scale(layer: nn.Module, family: Family) -> Tensor | None:
    if family.ffn_scale is None:
        return None
    owner, _, name = family.ffn_scale.rpartition(".")
    found: Tensor | float = value_of(layer.get_submodule(owner), name)
    if isinstance(found, Tensor):
        return found
    device = _projection(layer, family.ffn_out, family).weight.device
    return None if found == 1 else torch.tensor(found, dtype=torch.float64, device=device)


def _projection(layer: nn.Module, path: str, family: Family, part: int | None = None) -> Projection:
    """What is at a path of the layer: one of its maps into neurons by its number, or all of the module."""
    try:
        module = layer.get_submodule(path)
        found = Projection(module) if part is None else Projection(module, part, family.rows)
    except AttributeError:
        raise UnsupportedFamily(
            f"this {family.model_type} keeps its FFN elsewhere than the family does: no {path}"
        ) from None
    return found


def set_ffn_width(layer: nn.Module, family: Family, width: int) -> None:
    """Replace a layer's FFN maps by uninitialised ones for `width` neurons."""
    for path in family.ffn_in:
        whole = _projection(layer, path, family)
        layer.set_submodule(path, _resized(whole, out_features=width * family.rows))
    out = _projection(layer, family.ffn_out, family)
    layer.set_submodule(family.ffn_out, _resized(out, in_features=width))


def _resized(
    old: Projection, in_features: int | None = None, out_features: int | None = None
) -> nn.Linear | Conv1D:
    rows, columns = out_features or old.weight.shape[0], in_features or old.weight.shape[1]
    if isinstance(old.module, Conv1D):
        return Conv1D(rows, columns).to(old.weight.dtype)
    return nn.Linear(columns, rows, old.bias is not None, dtype=old.weight.dtype)


def is_smooth(config: PretrainedConfig) -> bool:
    """Whether the FFN's activation has next to no exact zeros: all but ReLU and its kin."""
    name = str(getattr(sizes_of(config), family_of(config).activation))
    return not name.startswith("relu")
