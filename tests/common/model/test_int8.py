"""Frozen weights as int8: half a step off at most, and otherwise the plain model of the same values."""

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from common.errors import BadUpdate, ModelError, UnsupportedFamily
from common.model import int8, passes
from common.model.adapter import Adapted
from common.model.families import FAMILIES
from common.model.ffn import ffns_of
from common.model.int8 import (
    Channels,
    Int8,
    Int8Embedding,
    Int8Linear,
    as_rounded,
    channels_of,
    each_as_int8,
    from_int8,
    rounded,
    schema_as_int8,
    values_of,
)
from common.model.layers import layers_of
from common.model.submodel import Held, apply_patch, build, in_full, make_patch, own_weights, tied_names
from common.quantization import Quantization
from common.records import AdapterTargets, TaskKind
from common.storage.schema import schema_of
from tests.families import EVERYDAY, LAYERS, small_inputs, small_model
from tests.small import LORA, same_bits

WIDTHS = (64,) * LAYERS
CAUSAL = TaskKind.CAUSAL_LM
HELD = Held(Quantization.INT8)
EVERY = AdapterTargets.ATTENTION_FFN
every_task = pytest.mark.parametrize(
    ("model_type", "kind"),
    [
        pytest.param(name, kind, marks=() if name in EVERYDAY else pytest.mark.slow)
        for name, family in FAMILIES.items()
        for kind in dict.fromkeys((family.tasks[0], family.tasks[-1]))
    ],
)


def published(model: PreTrainedModel, kind: TaskKind, new: tuple[str, ...] = ()) -> dict[str, Tensor]:
    axes, weights = channels_of(model, kind, new), own_weights(model)
    return dict(each_as_int8(weights, axes, list(schema_as_int8(weights, axes))))


def both(model: PreTrainedModel, kind: TaskKind) -> tuple[PreTrainedModel, PreTrainedModel]:
    """The model as int8, and the plain model of the same values."""
    weights, axes = published(model, kind), channels_of(model, kind)
    held = build(model.config, kind, WIDTHS, weights, held=HELD)
    return held, build(model.config, kind, WIDTHS, from_int8(weights, axes))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("axis", [0, 1])
def test_what_is_rounded_is_half_a_step_off_at_most(axis: int, dtype: torch.dtype) -> None:
    values = torch.randn(40, 60, generator=torch.Generator().manual_seed(1)).to(dtype)
    values.select(axis, 3).zero_()
    values.select(axis, 4).mul_(1000)
    steps, scale = rounded(values, axis)
    assert (steps.dtype, scale.dtype, scale.shape) == (torch.int8, dtype, (values.shape[axis],))
    exact = steps.double() * scale.double().unsqueeze(1 - axis)
    apart = (exact - values.double()).abs().amax(1 - axis) / scale.double()
    # The largest of a channel may lie beyond 127 steps, where bfloat16 has rounded the scale down.
    assert apart.max() <= (0.5 + 1e-3 if dtype is torch.float32 else 0.75)
    assert not steps.select(axis, 3).any() and scale.isfinite().all() and (scale > 0).all()
    assert torch.equal(values_of(steps, scale, axis), exact.to(dtype))


def test_rounding_as_worked_out_by_hand() -> None:
    steps, scale = rounded(torch.tensor([[1.27, -0.64, 0.004], [0.0, 25.4, -12.7]]), 0)
    assert torch.equal(steps, torch.tensor([[127, -64, 0], [0, 127, -64]], dtype=torch.int8))
    assert torch.allclose(scale, torch.tensor([0.01, 0.2]))


def test_outputs_of_large_weights_do_not_make_all_columns_coarse() -> None:
    """Of the map out of an FFN: an output beyond all others, as language models have them."""
    values = torch.randn(40, 60, generator=torch.Generator().manual_seed(1))
    values[7] *= 300
    spread = int8.spread_of(values, 1)
    assert torch.equal(spread, spread.log2().round().exp2()) and spread[7] > 200 * spread[6]
    apart = []
    for evened in (None, spread):
        steps, scale = rounded(values, 1, evened)
        off = (values_of(steps, scale, 1, evened) - values).norm(dim=1) / values.norm(dim=1)
        apart.append(off[torch.arange(40) != 7].max())
    assert apart[1] < 0.02 < 0.5 < apart[0]


@every_task
def test_every_family_answers_as_the_plain_model_of_the_same_values(model_type: str, kind: TaskKind) -> None:
    model = small_model(model_type, kind)
    held, plain = both(model, kind)
    inputs = small_inputs(model)
    for one in (held, plain):
        one.requires_grad_(False)
    with torch.no_grad():
        answers = [passes.logits(one, inputs) for one in (model, held, plain)]
    assert torch.equal(answers[1], answers[2])
    assert not torch.equal(answers[0], answers[1])
    # All of its maps, and no more than rounding apart.
    assert sum(isinstance(m, Int8) for layer in layers_of(held) for m in layer.modules()) == sum(
        type(m) in (nn.Linear, Conv1D) for layer in layers_of(plain) for m in layer.modules()
    )
    assert (answers[0] - answers[1]).norm() < 0.2 * answers[0].norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "bert", "vit"])
def test_gradients_are_those_of_the_plain_model(model_type: str, dtype: torch.dtype) -> None:
    kind = (
        FAMILIES[model_type].tasks[-1] if model_type in ("llama", "gpt2") else FAMILIES[model_type].tasks[0]
    )
    model = small_model(model_type, kind).to(dtype)  # type: ignore[arg-type]
    model.config.dtype = dtype
    inputs, found, start = small_inputs(model), [], dict[str, Tensor]()
    if "pixel_values" in inputs:
        inputs = {"pixel_values": inputs["pixel_values"].to(dtype)}
    for base in both(model, kind):
        adapted = Adapted(base, kind, replace(LORA, targets=EVERY, dropout=0.0), seed=1)
        # B begins as zero: then A has no gradient.
        start = start or {name: tensor + 0.01 for name, tensor in adapted.tensors().items()}
        adapted.load(start)
        labels = (
            inputs.get("input_ids", torch.tensor([0, 1, 0])) if kind is CAUSAL else torch.tensor([0, 1, 0])
        )
        passes.loss(adapted.model, inputs, labels, kind).backward()
        found.append({n: p.grad for n, p in adapted.model.named_parameters() if p.requires_grad})
    assert found[0] and all(gradient is not None and gradient.any() for gradient in found[0].values())
    assert same_bits(*found)


def test_nothing_plain_is_kept_for_the_gradient() -> None:
    linear = nn.Linear(30, 50)
    held = Int8Linear(linear, Channels(0))
    held.load_state_dict(
        dict(zip(("weight", "scale"), rounded(linear.weight.detach(), 0), strict=True))
        | {"bias": linear.bias}
    )
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        held(torch.randn(2, 7, 30, requires_grad=True))
    assert {(tuple(t.shape), t.dtype) for t in kept} == {((50, 30), torch.int8), ((50,), torch.float32)}


def test_large_tables_are_computed_with_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("llama", CAUSAL)
    held, _ = both(model, CAUSAL)
    inputs, found = small_inputs(model), []
    for block in (int8._BLOCK, 700):
        monkeypatch.setattr(int8, "_BLOCK", block)
        adapted = Adapted(deepcopy(held), CAUSAL, replace(LORA, dropout=0.0), seed=1)
        value = passes.loss(adapted.model, inputs, inputs["input_ids"], CAUSAL)
        value.backward()
        found.append(
            [value.detach(), *(p.grad for p in adapted.parameter_groups().lora if p.grad is not None)]
        )
    for one, other in zip(*found, strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_a_tied_head_is_the_table_and_a_new_one_is_plain() -> None:
    tied = small_model("gpt2", CAUSAL)
    held, _ = both(tied, CAUSAL)
    table, head = held.get_input_embeddings(), held.get_output_embeddings()
    assert isinstance(table, Int8Embedding) and isinstance(head, Int8Linear)
    assert head.weight is table.weight and head.scale is table.scale
    assert tied_names(held) == {"lm_head.weight", "lm_head.scale"}
    assert not any(name.startswith("lm_head") for name in own_weights(held))
    own = small_model("llama", CAUSAL, tie_word_embeddings=False)
    assert "lm_head" in channels_of(own, CAUSAL) and "lm_head" not in channels_of(own, CAUSAL, ("lm_head",))
    new = build(
        own.config,
        CAUSAL,
        WIDTHS,
        published(own, CAUSAL, ("lm_head",)),
        held=replace(HELD, new_modules=("lm_head",)),
    )
    assert type(new.get_output_embeddings()) is nn.Linear


def test_published_weights_are_a_byte_each_and_what_they_are_said_to_be() -> None:
    model = small_model("llama", CAUSAL)
    axes, weights = channels_of(model, CAUSAL), own_weights(model)
    found = schema_of(published(model, CAUSAL))
    assert found == schema_as_int8(weights, axes)
    assert {name for name, spec in found.items() if spec.dtype is torch.int8} == {
        f"{path}.weight" for path in axes
    }
    assert all(tensor.dim() < 2 for name, tensor in weights.items() if found[name].dtype is not torch.int8)
    same = as_rounded(weights, axes)
    assert same.keys() == weights.keys() and not same_bits(same, weights)


@pytest.mark.parametrize("without", ["model.layers.1.mlp.up_proj.scale", "model.embed_tokens.weight"])
def test_weights_that_are_not_all_there_are_refused(without: str) -> None:
    model = small_model("llama", CAUSAL)
    weights = published(model, CAUSAL)
    del weights[without]
    with pytest.raises(ModelError, match=f"{without} is on one side only"):
        build(model.config, CAUSAL, WIDTHS, weights, held=HELD)


def test_a_model_whose_maps_are_of_another_class_is_refused() -> None:
    class Other(nn.Linear):
        pass

    model = small_model("llama", CAUSAL)
    layers_of(model)[2].set_submodule("mlp.up_proj", Other(32, 64, bias=False))
    with pytest.raises(UnsupportedFamily, match=r"layers\.2\.mlp\.up_proj is no linear map; set sub_fm"):
        channels_of(model, CAUSAL)


# --- alignment during the rounds ---

NEURONS = {1: torch.tensor([0, 3, 63]), 2: torch.tensor([7])}


def trained_in_full(model: PreTrainedModel, neurons: Mapping[int, Tensor]) -> None:
    ffns = ffns_of(model)
    with in_full(ffns, neurons), torch.no_grad():
        for layer, index in neurons.items():
            for projection in ffns[layer].ins:
                assert projection.module.weight.dtype is torch.float32
                projection.weight[index] *= 3
            ffns[layer].out.weight[:, index] -= 0.5


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "glm4"])
def test_a_patch_brings_the_rounded_neurons_and_leaves_the_others(model_type: str) -> None:
    model = small_model(model_type, CAUSAL)
    here, before = both(model, CAUSAL)
    there = deepcopy(here)
    trained_in_full(here, NEURONS)
    patch = make_patch(ffns_of(here), NEURONS)
    assert {t.dtype for n, t in patch.items() if n.endswith("weight")} == {torch.int8}
    apply_patch(ffns_of(there), patch)
    assert same_bits(own_weights(here), own_weights(there))
    for layer, (new, old) in enumerate(zip(ffns_of(here), ffns_of(before), strict=True)):
        index = NEURONS.get(layer, torch.tensor([], dtype=torch.int64))
        others = torch.ones(64, dtype=torch.bool).index_fill_(0, index, False)
        for a, b in zip(new.ins, old.ins, strict=True):
            assert torch.equal(a.weight[others], b.weight[others])
            assert torch.allclose(a.weight[index], 3 * b.weight[index], atol=0.02)
        assert torch.equal(new.out.weight[:, others], old.out.weight[:, others])
        assert torch.allclose(new.out.weight[:, index], old.out.weight[:, index] - 0.5, atol=0.01)


def test_a_training_that_fails_leaves_int8_as_it_was() -> None:
    held, _ = both(small_model("llama", CAUSAL), CAUSAL)
    before = {name: tensor.clone() for name, tensor in own_weights(held).items()}
    with pytest.raises(ZeroDivisionError), in_full(ffns_of(held), NEURONS):
        ffns_of(held)[1].out.weight.detach().zero_()
        raise ZeroDivisionError
    assert same_bits(own_weights(held), before)


@pytest.mark.parametrize("spoilt", ["1.in.0.scale", "1.out.weight"])
def test_a_patch_without_its_scales_or_of_plain_values_is_refused(spoilt: str) -> None:
    held, plain = both(small_model("llama", CAUSAL), CAUSAL)
    patch = make_patch(ffns_of(held), NEURONS)
    if spoilt.endswith("scale"):
        del patch[spoilt]
    else:
        patch[spoilt] = make_patch(ffns_of(plain), NEURONS)[spoilt]
    with pytest.raises(BadUpdate, match=rf"patch for layer 1 must hold {spoilt[2:]}"):
        apply_patch(ffns_of(held), patch)
