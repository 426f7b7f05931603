"""Where a family keeps its parts."""

import pytest
import torch
from torch import nn
from transformers import BertConfig, Dinov2Config, Dinov2ForImageClassification, T5Config

from common.errors import ModelError, UnsupportedFamily
from common.model.families import FAMILIES, family_named, family_of, sizes_of
from common.model.ffn import ffns_of, is_smooth, set_ffn_width
from common.model.layers import encoder_of, layer_outputs, layer_prefix, layers_of, with_layers
from tests.families import FFN, HIDDEN, LAYERS, small_config, small_inputs, small_model

every_family = pytest.mark.parametrize("model_type", FAMILIES)


def test_an_unknown_family_names_the_supported_ones() -> None:
    with pytest.raises(UnsupportedFamily, match="'t5' is not supported; supported are: ") as refused:
        family_of(T5Config())
    assert all(name in str(refused.value) for name in FAMILIES)
    assert family_of(BertConfig()) is family_named("bert")


@pytest.mark.parametrize(("model_type", "why"), [("albert", "share one set"), ("mixtral", "experts")])
def test_a_family_that_is_built_otherwise_is_refused_with_the_reason(model_type: str, why: str) -> None:
    with pytest.raises(UnsupportedFamily, match=f"'{model_type}' is not supported: .*{why}.*; supported are"):
        family_named(model_type)


def test_a_variant_that_keeps_its_ffn_elsewhere_is_unsupported() -> None:
    config = Dinov2Config(**{**small_config("dinov2").to_dict(), "use_swiglu_ffn": True})
    with pytest.raises(UnsupportedFamily, match=r"this dinov2 keeps its FFN elsewhere .*: no mlp.fc1"):
        ffns_of(Dinov2ForImageClassification(config))


def test_a_variant_that_normalises_its_ffn_elsewhere_is_unsupported() -> None:
    with pytest.raises(UnsupportedFamily, match=r"this stablelm normalises .*: no post_attention_layernorm"):
        ffns_of(small_model("stablelm", use_parallel_residual=True))


@pytest.mark.parametrize("before", [True, False])
def test_a_norm_before_or_behind_the_ffn_as_the_configuration_says(before: bool) -> None:
    ffn = ffns_of(small_model("opt", do_layer_norm_before=before))[0]
    assert ffn.post_norm is not before
    assert (ffn.norm_behind is ffn.norm) is not before


@every_family
def test_a_family_is_registered_under_its_own_name(model_type: str) -> None:
    assert FAMILIES[model_type].model_type == small_config(model_type).model_type == model_type


@every_family
def test_every_part_of_the_model_is_found(model_type: str) -> None:
    model = small_model(model_type)
    family = family_of(model.config)
    layers, ffns = layers_of(model), ffns_of(model)
    assert len(layers) == len(ffns) == LAYERS
    for layer, ffn in zip(layers, ffns, strict=True):
        assert ffn.width == FFN
        assert all(projection.weight.shape == (FFN, HIDDEN) for projection in ffn.ins)
        assert ffn.out.weight.shape == (HIDDEN, FFN)
        for path in family.attention:
            assert layer.get_submodule(path).weight.dim() == 2  # type: ignore[union-attr,operator]
    assert isinstance(encoder_of(model), nn.Module)
    for head in family.head:
        model.get_submodule(head)


@every_family
@torch.no_grad()
def test_a_neuron_is_a_row_going_in_and_a_column_coming_out(model_type: str) -> None:
    """Zeroing a neuron's column does what zeroing its rows does: it is the same neuron in both."""
    model = small_model(model_type)
    inputs = small_inputs(model)
    ffn = ffns_of(model)[1]
    whole = layer_outputs(model, inputs)[1]
    column = ffn.out.weight[:, 7].clone()
    ffn.out.weight[:, 7] = 0
    by_column = layer_outputs(model, inputs)[1]
    ffn.out.weight[:, 7] = column
    for projection in ffn.ins:
        projection.weight[7] = 0
        if projection.bias is not None:
            projection.bias[7] = 0
    by_rows = layer_outputs(model, inputs)[1]
    # act(0) = 0 for GELU and SiLU.
    assert torch.allclose(by_column, by_rows, atol=1e-5)
    assert not torch.allclose(by_column, whole, atol=1e-5)


@every_family
@torch.no_grad()
def test_a_layers_output_is_what_the_next_layer_takes(model_type: str) -> None:
    model = small_model(model_type)
    taken: list[torch.Tensor] = []
    layers = layers_of(model)
    hook = layers[2].register_forward_pre_hook(
        lambda module, args, kwargs: taken.append(args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    outputs = layer_outputs(model, small_inputs(model))
    hook.remove()
    assert len(outputs) == LAYERS
    assert torch.equal(outputs[1], taken[0])


@every_family
def test_setting_a_width_changes_that_layers_ffn_only(model_type: str) -> None:
    model = small_model(model_type)
    before = [type(p.module) for p in (*ffns_of(model)[1].ins, ffns_of(model)[1].out)]
    set_ffn_width(layers_of(model)[1], family_of(model.config), 5)
    assert [ffn.width for ffn in ffns_of(model)] == [FFN, 5, FFN, FFN]
    changed = ffns_of(model)[1]
    assert all(projection.weight.shape == (5, HIDDEN) for projection in changed.ins)
    assert changed.out.weight.shape == (HIDDEN, 5)
    assert [type(p.module) for p in (*changed.ins, changed.out)] == before


@every_family
def test_a_neuron_level_alignment_trains_nothing_that_neurons_share(model_type: str) -> None:
    ffn = ffns_of(small_model(model_type))[0]
    neuron_level = {id(p) for p in ffn.neuron_parameters()}
    # Where gate and up are one module, it has twice as many rows.
    assert all({FFN, FFN * len(ffn.ins)} & set(p.shape) for p in ffn.neuron_parameters())
    assert len(neuron_level) == len(ffn.neuron_parameters())
    shared = {id(p) for norm in (ffn.norm, ffn.out_norm) if norm is not None for p in norm.parameters()}
    assert shared
    if ffn.out.bias is not None:
        shared.add(id(ffn.out.bias))
    assert {id(p) for p in ffn.parameters()} == neuron_level | shared
    assert not neuron_level & shared


@every_family
def test_a_layers_names_begin_as_told(model_type: str) -> None:
    model = small_model(model_type)
    prefix = layer_prefix(model.config, 2)
    named = {name for name, _ in model.named_parameters() if name.startswith(prefix)}
    assert named == {prefix + name for name, _ in layers_of(model)[2].named_parameters()}


@every_family
def test_a_configuration_with_fewer_layers_is_the_same_otherwise(model_type: str) -> None:
    config = small_config(model_type)
    fewer = with_layers(config, (0, 3))
    assert (sizes_of(config).num_hidden_layers, sizes_of(fewer).num_hidden_layers) == (LAYERS, 2)
    for name in ("layer_types", "no_rope_layers"):
        if kinds := getattr(config, name, None):
            assert getattr(fewer, name) == [kinds[0], kinds[3]]
    with pytest.raises(ModelError, match="the model has 4 layers, number 4 was asked for"):
        with_layers(config, (0, 4))


@every_family
def test_only_relu_has_exact_zeros(model_type: str) -> None:
    config = small_config(model_type)
    for name, smooth in (("gelu", True), ("silu", True), ("relu", False), ("relu2", False)):
        setattr(sizes_of(config), family_of(config).activation, name)
        assert is_smooth(config) is smooth
