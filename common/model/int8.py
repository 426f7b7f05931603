"""The sub-FM's frozen weights as int8: whole numbers from -127 to 127, and a scale for every channel.

Half of bfloat16's bytes, a quarter of float32's, on the wire and in memory (absmax, rounded to the nearest:
Dettmers et al. 2022, "LLM.int8()", section 2). Only what is stored is small: a map computes with the values
that they stand for, in the scales' dtype, which is the model's. They are made anew in each pass, backwards as
forwards, and kept by none.

A channel is an output; of an FFN's maps it is a neuron, a row of those into it and a column of the one out of
it, so that a patch is of its neurons alone. There an output whose weights are all large would make every
column coarse: a power of two for each evens them out beforehand. Of tables of tokens a channel is a token.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from common.errors import UnsupportedFamily
from common.model.families import family_of
from common.model.layers import layer_prefix, layers_of
from common.records import TaskKind
from common.storage.schema import TensorSpec

MOST = 127
SCALE, SPREAD = "scale", "spread"
# Values made at a time: of a table of 128,256 tokens all would take a gigabyte.
_BLOCK = 2**25

_LM_HEAD = "lm_head"


class Channels(NamedTuple):
    """How a matrix is held as int8: its channels' axis, and whether it is evened out along the other."""

    axis: int
    even: bool = False


def rounded(values: Tensor, axis: int, spread: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A matrix as int8 of its shape, and scales [channels] in its dtype; `axis` is that of its channels, and
    `spread` what it is divided by along the other."""
    exact = values.float()
    if spread is not None:
        exact = exact / _along(spread.float(), 1 - axis)
    largest = exact.abs().amax(1 - axis)
    # A channel of zeros has any scale.
    scale = torch.where(largest > 0, largest / MOST, 1.0).to(values.dtype)
    steps = (exact / _along(scale.float(), axis)).round_().clamp_(-MOST, MOST)
    return steps.to(torch.int8), scale


def spread_of(values: Tensor, axis: int) -> Tensor:
    """Along the other axis than that of the channels, the power of two next to the largest value, in the
    dtype of the matrix: to multiply by it rounds nothing."""
    largest = values.float().abs().amax(axis)
    return torch.where(largest > 0, largest, 1.0).log2().round().exp2().to(values.dtype)


def values_of(steps: Tensor, scale: Tensor, axis: int, spread: Tensor | None = None) -> Tensor:
    """What int8, scales and, if there is one, spread stand for, in the scales' dtype."""
    values = steps.to(scale.dtype).mul_(_along(scale, axis))
    return values if spread is None else values.mul_(_along(spread, 1 - axis))


def _along(vector: Tensor, axis: int) -> Tensor:
    return vector.unsqueeze(1 - axis)


class Int8(nn.Module):
    """What all modules with an int8 weight have in common; nothing of them is trained.

    Their `weight` may be replaced by a plain one for a time: then they do what their class does.
    """

    weight: Tensor
    scale: Tensor
    spread: Tensor | None
    axis: int

    def _hold(self, plain: Tensor, channels: Channels) -> None:
        """Room for what stands for a weight; its values are still to come."""
        steps = torch.empty(plain.shape, dtype=torch.int8, device=plain.device)
        self.weight = nn.Parameter(steps, requires_grad=False)
        self.axis = channels.axis
        for name, axis in ((SCALE, self.axis), (SPREAD, 1 - self.axis)):
            room = torch.empty(plain.shape[axis], dtype=plain.dtype, device=plain.device)
            self.register_buffer(name, room if name == SCALE or channels.even else None)

    @property
    def rests(self) -> bool:
        """Whether the weight is int8 now."""
        return self.weight.dtype is torch.int8

    @property
    def values(self) -> Tensor:
        """The weight as it is computed with; while it is int8, a copy."""
        if not self.rests:
            return self.weight
        return values_of(self.weight, self.scale, self.axis, self.spread)


class Int8Linear(Int8, nn.Linear):
    """nn.Linear with an int8 weight."""

    def __init__(self, plain: nn.Linear, channels: Channels) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = plain.in_features, plain.out_features
        self.bias = plain.bias
        self._hold(plain.weight, channels)

    def forward(self, values: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        if not self.rests:
            return nn.Linear.forward(self, values)
        return _mapped(values, self, False)


class Int8Conv1D(Int8, Conv1D):  # type: ignore[misc]  # its weight is a Parameter, as far as mypy sees
    """transformers' Conv1D, a linear map stored as [in, out], with an int8 weight."""

    def __init__(self, plain: Conv1D, channels: Channels) -> None:
        nn.Module.__init__(self)
        self.nf, self.nx = plain.nf, plain.nx
        self.bias = plain.bias
        self._hold(plain.weight, channels)

    def forward(self, values: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        if not self.rests:
            plain: Tensor = Conv1D.forward(self, values)
            return plain
        return _mapped(values, self, True)


class Int8Embedding(Int8, nn.Embedding):
    """nn.Embedding with an int8 weight."""

    def __init__(self, plain: nn.Embedding, channels: Channels) -> None:
        nn.Module.__init__(self)
        self.num_embeddings, self.embedding_dim = plain.num_embeddings, plain.embedding_dim
        self.padding_idx = plain.padding_idx
        self._hold(plain.weight, channels)

    def forward(self, tokens: Tensor) -> Tensor:
        """int64 [...] → [..., d]."""
        return values_of(self.weight[tokens].flatten(0, -2), self.scale[tokens].flatten(), 0).view(
            *tokens.shape, -1
        )


_CLASSES: dict[type[nn.Module], Any] = {
    nn.Linear: Int8Linear,
    Conv1D: Int8Conv1D,
    nn.Embedding: Int8Embedding,
}


def _mapped(values: Tensor, module: Int8Linear | Int8Conv1D, transposed: bool) -> Tensor:
    held = module.weight, module.scale, module.spread
    result: Tensor = _Map.apply(  # type: ignore[no-untyped-call]
        values, module.bias, *held, module.axis, transposed
    )
    return result


class _Map(torch.autograd.Function):
    """A linear map whose weight is never kept but as int8; neither weight nor bias is trained."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, bias: Tensor | None, *held: Any) -> Tensor:
        """`held`: int8, scales and spread, the channels' axis, and whether the weight is [in, out]."""
        ctx.save_for_backward(*held[:3])
        ctx.how = held[3:]
        parts = [
            nn.functional.linear(values, weight, None if bias is None else bias[rows])
            for rows, weight in _blocks(*held)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """The gradient of what went in."""
        total: Tensor | None = None
        for rows, weight in _blocks(*ctx.saved_tensors, *ctx.how):
            part = outer[0][..., rows] @ weight
            total = part if total is None else total.add_(part)
        return total, None, None, None, None, None, None


def _blocks(
    steps: Tensor, scale: Tensor, spread: Tensor | None, axis: int, transposed: bool
) -> Iterator[tuple[slice, Tensor]]:
    """The weight's values [out, in], so many outputs at a time as make a block."""
    of_outputs = 1 if transposed else 0
    outputs = steps.shape[of_outputs]
    each = max(1, _BLOCK // (steps.numel() // outputs))
    for start in range(0, outputs, each):
        rows = slice(start, start + each)
        own = steps[:, rows] if transposed else steps[rows]
        if axis == of_outputs:
            weight = values_of(own, scale[rows], axis, spread)
        else:
            weight = values_of(own, scale, axis, None if spread is None else spread[rows])
        yield rows, weight.T if transposed else weight


@contextmanager
def plain_if_small(module: nn.Module) -> Iterator[None]:
    """While open, a module with an int8 weight of a block at most has the plain one: a language model's head,
    called with a few rows after the other, makes its values once. The bits are the same."""
    if not isinstance(module, Int8) or not module.rests or module.weight.numel() > _BLOCK:
        yield
        return
    held = module.weight
    module.weight = nn.Parameter(module.values, requires_grad=False)
    try:
        yield
    finally:
        module.weight = held


# --- in a model ---


def channels_of(model: PreTrainedModel, kind: TaskKind, new: Sequence[str] = ()) -> dict[str, Channels]:
    """Modules whose weights are held as int8, by path, and how.

    In every layer the maps of attention and FFN; the table of tokens; a language model's head, unless it is
    among the modules that are `new` and tuned. Raises UnsupportedFamily.
    """
    family = family_of(model.config)
    found: dict[str, Channels] = {}
    for i in range(len(layers_of(model))):
        prefix = layer_prefix(model.config, i)
        for path in (*family.attention, *family.ffn_in, family.ffn_out):
            module = _map_at(model, prefix + path)
            outputs = 1 if isinstance(module, Conv1D) else 0
            out = path == family.ffn_out
            found[prefix + path] = Channels(1 - outputs if out else outputs, even=out)
    paths = {module: path for path, module in model.named_modules()}
    table = _table_of(model)
    # A table of another class does more than to look up: it stays as it is, and so does what is tied to it.
    if held := table is not None and _can_be(table):
        found[paths[table]] = Channels(0)
    tied = getattr(model.config, "tie_word_embeddings", False)
    if kind is TaskKind.CAUSAL_LM and _LM_HEAD not in new and (held or not tied):
        found[paths[model.get_output_embeddings()]] = Channels(0)
    return found


def _table_of(model: PreTrainedModel) -> nn.Module | None:
    """The table of tokens; None of images."""
    try:
        return model.get_input_embeddings()
    except NotImplementedError:
        return None


def _can_be(module: nn.Module | None) -> bool:
    return isinstance(module, Int8) or type(module) in _CLASSES


def _map_at(model: PreTrainedModel, path: str) -> nn.Module:
    try:
        module = model.get_submodule(path)
    except AttributeError:
        module = None
    if module is None or not _can_be(module):
        raise UnsupportedFamily(
            f"this {model.config.model_type} cannot be held as int8: {path} is no linear map; set "
            'sub_fm.quantization = "none"'
        )
    return module


def hold_as_int8(model: PreTrainedModel, kind: TaskKind, new: Sequence[str] = ()) -> None:
    """Make room for int8 in place of a model's frozen weights; the model has no values yet."""
    for path, channels in channels_of(model, kind, new).items():
        plain = model.get_submodule(path)
        model.set_submodule(path, _CLASSES[type(plain)](plain, channels))


def schema_as_int8(weights: Mapping[str, Tensor], held: Mapping[str, Channels]) -> dict[str, TensorSpec]:
    """Names, shapes and dtypes of what `each_as_int8` gives."""
    schema = {}
    for name, tensor in weights.items():
        path, _, part = name.rpartition(".")
        if (channels := held.get(path)) is None or part != "weight":
            schema[name] = TensorSpec(tuple(tensor.shape), tensor.dtype)
            continue
        schema[name] = TensorSpec(tuple(tensor.shape), torch.int8)
        schema[f"{path}.{SCALE}"] = TensorSpec((tensor.shape[channels.axis],), tensor.dtype)
        if channels.even:
            schema[f"{path}.{SPREAD}"] = TensorSpec((tensor.shape[1 - channels.axis],), tensor.dtype)
    return schema


def each_as_int8(
    weights: Mapping[str, Tensor], held: Mapping[str, Channels], names: Iterable[str]
) -> Iterator[tuple[str, Tensor]]:
    """A plain model's weights as they are published, one at a time in the order of `names`: what is `held` as
    int8 so, and beside it its scales and spread."""
    for name in names:
        path, _, part = name.rpartition(".")
        if (channels := held.get(path)) is None or part not in ("weight", SCALE, SPREAD):
            yield name, weights[name]
            continue
        plain = weights[f"{path}.weight"]
        spread = spread_of(plain, channels.axis) if channels.even else None
        if part == SPREAD and spread is not None:
            yield name, spread
        else:
            yield name, rounded(plain, channels.axis, spread)[part == SCALE]


def from_int8(weights: Mapping[str, Tensor], held: Mapping[str, Channels]) -> dict[str, Tensor]:
    """Copies of the plain weights that published ones stand for."""
    plain = {}
    for name, tensor in weights.items():
        path, _, part = name.rpartition(".")
        if (channels := held.get(path)) is None or part not in ("weight", SCALE, SPREAD):
            plain[name] = tensor.clone()
        elif part == "weight":
            beside = weights[f"{path}.{SCALE}"], channels.axis, weights.get(f"{path}.{SPREAD}")
            plain[name] = values_of(tensor, *beside)
    return plain


def as_rounded(weights: Mapping[str, Tensor], held: Mapping[str, Channels]) -> dict[str, Tensor]:
    """Plain weights with the values that they have once they were int8."""
    return from_int8(dict(each_as_int8(weights, held, schema_as_int8(weights, held))), held)


def scale_of(name: str) -> str:
    """Beside a weight of this name, the name of its scales."""
    return f"{name.removesuffix('weight')}{SCALE}"


def tie_scales(model: PreTrainedModel) -> None:
    """A head whose weight is the table of tokens has its scales, too."""
    table, head = _table_of(model), model.get_output_embeddings()
    if isinstance(table, Int8) and isinstance(head, Int8) and head.weight is table.weight:
        head.scale = table.scale
