"""FFN neurons tuned in full: a dense change beside every matrix, whatever the family's layout."""

import re

import pytest
import torch
from safetensors.torch import load
from torch import Tensor

from common.errors import BadUpdate
from common.model.adapter import PEFT_PREFIX, RESIDUAL, Adapted, difference, layer_pattern, trained
from common.model.families import FAMILIES
from common.model.ffn import ffns_of
from common.model.layers import layers_of
from common.model.neurons import Changed
from common.model.submodel import apply_patch, make_patch
from common.model.update import update_schema, update_tensors
from common.records import AdapterSpec, AdapterTargets
from common.storage.schema import check_specs, schema_of
from common.storage.tensors import to_bytes
from tests.families import FFN, HIDDEN, small_inputs, small_model
from tests.small import TEXT, same_bits

NEURONS = AdapterSpec(AdapterTargets.NEURONS, rank=3, alpha=6.0, dropout=0.1)
BOTH = AdapterSpec(AdapterTargets.ATTENTION_NEURONS, rank=3, alpha=6.0, dropout=0.1)
every_family = pytest.mark.parametrize("model_type", FAMILIES)
either = pytest.mark.parametrize("spec", [NEURONS, BOTH], ids=["alone", "with attention"])


def adapted(model_type: str, spec: AdapterSpec = NEURONS) -> Adapted:
    return Adapted(small_model(model_type), FAMILIES[model_type].tasks[0], spec, seed=1)


def moved(tensors: dict[str, Tensor], by: float = 0.1) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {n: t + by * torch.randn(t.shape, generator=draw) for n, t in tensors.items()}


def dense(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if name.endswith(RESIDUAL)}


@every_family
@either
@torch.no_grad()
def test_it_begins_as_no_change_and_ends_as_another_weight(model_type: str, spec: AdapterSpec) -> None:
    plain, one = small_model(model_type), adapted(model_type, spec)
    inputs, family = small_inputs(plain), FAMILIES[model_type]
    assert torch.equal(one.model(**inputs).logits, plain(**inputs).logits)
    start, paths = one.tensors(), (*family.ffn_in, family.ffn_out)
    changes = dense(start)
    stack = f"{PEFT_PREFIX}{family.encoder}.{family.layers}"
    layers = range(len(layers_of(plain)))
    assert changes.keys() == {f"{stack}.{i}.{path}{RESIDUAL}" for i in layers for path in paths}
    assert not any(change.any() for change in changes.values())
    # In nn.Linear's layout, however the family keeps its weights.
    assert {tuple(t.shape) for t in changes.values()} == {(FFN * family.rows, HIDDEN), (HIDDEN, FFN)}
    matches = [m for name in start if (m := layer_pattern(plain.config).fullmatch(name))]
    assert {m[3] for m in matches if m[4] == "residual"} == set(paths)
    lora = set(family.attention) if spec.targets.lora else set()
    assert {m[3] for m in matches if m[4] != "residual"} == lora

    wanted = moved(start)
    one.load(wanted)
    assert same_bits(one.tensors(), wanted)
    tuned = one.model(**inputs).logits
    assert not torch.allclose(tuned, plain(**inputs).logits, atol=1e-3)
    merged = one.merged()
    assert type(merged) is type(plain) and merged.state_dict().keys() == plain.state_dict().keys()
    assert torch.allclose(merged(**inputs).logits, tuned, atol=1e-4)
    pattern = layer_pattern(plain.config)
    for name, change in dense(wanted).items():
        match = pattern.fullmatch(name)
        assert match is not None and match[4] == "residual"
        before, after = (layers_of(m)[int(match[2])].get_submodule(match[3]) for m in (plain, merged))
        gained = after.weight - before.weight  # type: ignore[operator]
        assert torch.allclose(gained.T if model_type == "gpt2" else gained, change, atol=1e-6)


@every_family
@either
def test_what_is_trainable_is_what_travels(model_type: str, spec: AdapterSpec) -> None:
    one = adapted(model_type, spec)
    groups, start = one.parameter_groups(), one.tensors()
    trainable = {id(p) for p in one.model.parameters() if p.requires_grad}
    assert {id(p) for p in groups.all} == trainable and len(groups.all) == len(trainable)
    rows = FFN * FAMILIES[model_type].rows
    assert {tuple(p.shape) for p in groups.neurons} == {(rows, HIDDEN), (HIDDEN, FFN)}
    assert bool(groups.lora) is spec.targets.lora
    assert difference(moved(start), start, spec).keys() == start.keys()
    assert all(trained(name, spec) for name in start)
    assert sum(p.numel() for p in groups.all) == sum(t.numel() for t in start.values())


@every_family
def test_they_travel_as_files_do(model_type: str) -> None:
    """GPT-2 keeps its weights transposed; what is written must not."""
    start = moved(adapted(model_type).tensors())
    assert same_bits(load(to_bytes(start)), start)
    schema = adapted(model_type).schema()
    assert schema.keys() == start.keys()
    assert all(tuple(schema[name].shape) == tuple(start[name].shape) for name in start)


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
@torch.no_grad()
def test_a_patch_of_the_weights_leaves_the_change_and_the_change_the_weights(model_type: str) -> None:
    one, other = adapted(model_type), adapted(model_type)
    wanted, neurons = moved(one.tensors()), {1: torch.tensor([0, 5, 6])}
    one.load(wanted)
    for ffn in ffns_of(other.base):
        for parameter in ffn.neuron_parameters():
            parameter.mul_(1.5)
    patch = make_patch(ffns_of(other.base), neurons)
    before = [p.weight.clone() for ffn in ffns_of(one.base) for p in (*ffn.ins, ffn.out)]
    apply_patch(ffns_of(one.base), patch)
    assert same_bits(one.tensors(), wanted)
    after = [p.weight.clone() for ffn in ffns_of(one.base) for p in (*ffn.ins, ffn.out)]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    # In any order the same model.
    other = adapted(model_type)
    apply_patch(ffns_of(other.base), patch)
    other.load(wanted)
    inputs = small_inputs(one.base)
    assert torch.equal(one.model(**inputs).logits, other.model(**inputs).logits)
    assert not torch.equal(one.model(**inputs).logits, small_model(model_type)(**inputs).logits)


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape", "transposed", "of attention"])
@either
def test_changes_that_do_not_fit_are_refused_and_nothing_is_loaded(fault: str, spec: AdapterSpec) -> None:
    one = adapted("gpt2", spec)
    start = one.tensors()
    tensors = moved(start)
    name = f"{PEFT_PREFIX}transformer.h.1.mlp.c_fc{RESIDUAL}"
    match fault:
        case "missing":
            del tensors[name]
        case "unknown":
            name = f"{PEFT_PREFIX}transformer.h.9.mlp.c_fc{RESIDUAL}"
            tensors[name] = torch.zeros(FFN, HIDDEN)
        case "shape":
            tensors[name] = torch.zeros(FFN)
        case "transposed":
            tensors[name] = torch.zeros(HIDDEN, FFN)
        case "of attention":
            # As of exact averaging, which does not go with it.
            name = f"{PEFT_PREFIX}transformer.h.1.attn.c_proj{RESIDUAL}"
            tensors[name] = torch.zeros(HIDDEN, HIDDEN)
    with pytest.raises(BadUpdate, match=f"the adapter does not fit the model: tensor {name}"):
        one.load(tensors)
    assert same_bits(one.tensors(), start)


def test_nothing_is_drawn_and_no_other_adapter_has_them() -> None:
    before = torch.get_rng_state()
    first, other = (Adapted(small_model("bert"), TEXT, NEURONS, seed).tensors() for seed in (1, 2))
    assert same_bits(dense(first), dense(other)) and dense(first)
    assert torch.equal(torch.get_rng_state(), before)
    for targets in (AdapterTargets.NONE, AdapterTargets.ATTENTION, AdapterTargets.ATTENTION_FFN):
        lora = Adapted(small_model("bert"), TEXT, AdapterSpec(targets, 3, 6.0, 0.1))
        assert not dense(lora.tensors()) and lora.parameter_groups().neurons == []
        assert not any(isinstance(module, Changed) for module in lora.model.modules())


@pytest.mark.parametrize("model_type", ["bert", "gpt2"])
@pytest.mark.parametrize("fault", ["none", "missing", "transposed", "LoRA", "float64"])
def test_an_update_holds_every_change_in_its_own_shape(model_type: str, fault: str) -> None:
    one, family = adapted(model_type, BOTH), FAMILIES[model_type]
    schema = update_schema(one.schema(), BOTH, {})
    sent = update_tensors(difference(moved(one.tensors()), one.tensors(), BOTH), {})
    path = f"{PEFT_PREFIX}{family.encoder}.{family.layers}.1.{family.ffn_in[0]}"
    name = f"delta.{path}{RESIDUAL}"
    match fault:
        case "missing":
            del sent[name]
        case "transposed":
            sent[name] = sent[name].T.contiguous()
        case "LoRA":
            sent[f"delta.{path}.lora_A.weight"] = torch.zeros(3, HIDDEN)
            sent[f"delta.{path}.lora_B.weight"] = torch.zeros(FFN, 3)
        case "float64":
            sent[name] = sent[name].double()
    if fault == "none":
        check_specs(schema_of(sent), schema)
    else:
        with pytest.raises(BadUpdate, match=re.escape(path)):
            check_specs(schema_of(sent), schema)
