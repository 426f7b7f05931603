"""Where a family keeps its parts."""

from pathlib import Path

import pytest
from torch import nn
from transformers import BertConfig, GPT2Config

from common.errors import UnsupportedFamily
from common.model.families import (
    FAMILIES,
    encoder_of,
    family_named,
    family_of,
    ffn_names,
    ffns_of,
    layers_of,
    set_ffn_width,
)
from tests.conftest import FFN, HIDDEN, LAYERS
from tests.small import load_model


def test_an_unknown_family_names_the_supported_ones() -> None:
    with pytest.raises(UnsupportedFamily, match=r"'gpt2' is not supported; supported are: .*bert"):
        family_of(GPT2Config())
    assert family_of(BertConfig()) is family_named("bert")


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_family_is_registered_under_its_own_name(model_type: str) -> None:
    assert FAMILIES[model_type].model_type == model_type


def test_every_part_of_the_model_is_found(model_folder: Path) -> None:
    model = load_model(model_folder)
    family = family_of(model.config)
    layers, ffns = layers_of(model), ffns_of(model)
    assert len(layers) == len(ffns) == LAYERS
    for layer, ffn in zip(layers, ffns, strict=True):
        assert ffn.width == FFN
        assert ffn.up.weight.shape == (FFN, HIDDEN)
        assert ffn.down.weight.shape == (HIDDEN, FFN)
        assert isinstance(ffn.norm, nn.LayerNorm)
        for path in family.attention:
            assert isinstance(layer.get_submodule(path), nn.Linear)
    assert isinstance(encoder_of(model), nn.Module)
    assert model.get_submodule(family.head).out_features == 2


def test_ffn_names_are_those_of_the_state_dict(model_folder: Path) -> None:
    model = load_model(model_folder)
    state = model.state_dict()
    for i, ffn in enumerate(ffns_of(model)):
        up, down = ffn_names(model.config, i)
        assert state[f"{up}.weight"].data_ptr() == ffn.up.weight.data_ptr()
        assert state[f"{down}.bias"].data_ptr() == ffn.down.bias.data_ptr()


def test_setting_a_width_changes_that_layers_ffn_only(model_folder: Path) -> None:
    model = load_model(model_folder)
    set_ffn_width(layers_of(model)[1], family_of(model.config), 5)
    assert [ffn.width for ffn in ffns_of(model)] == [FFN, 5, FFN, FFN]
    changed = ffns_of(model)[1]
    assert changed.up.weight.shape == (5, HIDDEN) and changed.down.weight.shape == (HIDDEN, 5)


def test_a_neuron_level_alignment_trains_nothing_that_neurons_share(model_folder: Path) -> None:
    ffn = ffns_of(load_model(model_folder))[0]
    neuron_level = {id(p) for p in ffn.neuron_parameters()}
    assert neuron_level == {id(ffn.up.weight), id(ffn.up.bias), id(ffn.down.weight)}
    layer_level = {id(p) for p in ffn.parameters()}
    assert layer_level == neuron_level | {id(ffn.down.bias)} | {id(p) for p in ffn.norm.parameters()}
