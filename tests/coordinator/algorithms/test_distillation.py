"""Distillation brings the sub-FM closer to the FM, and touches what it may touch only."""

from itertools import islice

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.data.batches import Batch
from common.errors import Stopped
from common.model.families import FAMILIES
from common.model.ffn import Ffn, ffns_of
from common.model.submodel import apply_patch, make_patch
from coordinator.algorithms.distillation import Settings, distil, hidden_error
from coordinator.algorithms.distillation_loss import linear_map, weight_error
from tests.coordinator.algorithms.pairs import (
    COMPRESSED,
    add_lora,
    batches,
    pair,
    same_bits,
    values,
)
from tests.families import TEXT_FAMILIES

NEURONS = {1: torch.tensor([0, 5, 15]), 2: torch.tensor([3])}
SETTINGS = Settings(steps=30, learning_rate=3e-3, warmup=0.1, weight_term=0.01)
FEW = Settings(steps=3, learning_rate=3e-3, warmup=0.0, weight_term=0.01)
LEVELS = pytest.mark.parametrize("neurons", [None, NEURONS], ids=["layer level", "neuron level"])


def some(model: PreTrainedModel) -> list[Batch]:
    """Batches that no training here sees."""
    return list(islice(batches(model, seed=9), 4))


def differing(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name in before if not torch.equal(before[name], after[name])}


def moved_neurons(ffn: Ffn, before: Ffn) -> dict[str, list[int]]:
    """By part of the FFN, the neurons of which something changed."""
    parts = {"out": (ffn.out.weight.T, before.out.weight.T)}
    for i, (now, then) in enumerate(zip(ffn.ins, before.ins, strict=True)):
        parts[f"in {i}"] = now.weight, then.weight
        if now.bias is not None and then.bias is not None:
            parts[f"bias {i}"] = now.bias[:, None], then.bias[:, None]
    return {name: (a != b).any(1).nonzero().flatten().tolist() for name, (a, b) in parts.items()}


# --- layer level ---


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_level_lowers_the_hidden_error(family: str) -> None:
    fm, sub_fm = pair(family)
    before = hidden_error(fm, sub_fm, COMPRESSED, iter(some(fm)))
    distil(fm, sub_fm, COMPRESSED, batches(fm), SETTINGS)
    assert hidden_error(fm, sub_fm, COMPRESSED, iter(some(fm))) < 0.95 * before


def test_a_model_has_no_hidden_error_to_itself() -> None:
    fm, _ = pair("bert")
    assert hidden_error(fm, fm, range(4), iter(some(fm))) == 0.0


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_level_changes_ffns_and_norms_of_compressed_layers_only(family: str) -> None:
    fm, sub_fm = pair(family)
    before, teacher = values(sub_fm), values(fm)
    distil(fm, sub_fm, COMPRESSED, batches(fm), FEW)
    names = {parameter: name for name, parameter in sub_fm.named_parameters()}
    expected = {names[parameter] for i in COMPRESSED for parameter in ffns_of(sub_fm)[i].parameters()}
    assert differing(before, values(sub_fm)) == expected
    assert same_bits(values(fm), teacher)


def test_the_weight_term_pulls_the_linear_maps_together() -> None:
    errors = []
    for factor in (10.0, 0.0):
        fm, sub_fm = pair("bert")
        distil(fm, sub_fm, COMPRESSED, batches(fm), Settings(20, 3e-3, 0.0, factor))
        errors.append(weight_error(linear_map(ffns_of(fm)[1]), ffns_of(sub_fm)[1]).item())
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    "settings",
    [
        Settings(3, 3e-3, 0.0, weight_term=0.0),
        Settings(3, 3e-3, 0.0, weight_term=0.01, attention_term=1.0),
        Settings(3, 3e-3, 0.0, weight_term=0.01, logit_term=1.0),
    ],
    ids=["no weight term", "attention term", "logit term"],
)
def test_each_term_changes_the_result(settings: Settings) -> None:
    results = []
    for chosen in (FEW, settings):
        fm, sub_fm = pair("bert")
        distil(fm, sub_fm, COMPRESSED, batches(fm), chosen)
        results.append(values(sub_fm))
    assert differing(*results)


def test_the_logit_term_brings_the_last_layer_closer() -> None:
    errors = []
    for factor in (0.0, 10.0):
        fm, sub_fm = pair("bert")
        distil(fm, sub_fm, COMPRESSED, batches(fm), Settings(30, 3e-3, 0.0, 0.01, logit_term=factor))
        errors.append(hidden_error(fm, sub_fm, [3], iter(some(fm))))
    assert errors[1] < errors[0]


# --- neuron level ---


@pytest.mark.parametrize("lora", [False, True], ids=["plain", "LoRA around the FFN"])
@pytest.mark.parametrize("family", FAMILIES)
def test_neuron_level_changes_the_named_neurons_and_not_a_bit_elsewhere(family: str, lora: bool) -> None:
    (fm, sub_fm), (_, untouched) = pair(family), pair(family)
    if lora:
        for model in (fm, sub_fm, untouched):
            add_lora(model)
    before, teacher = values(sub_fm), values(fm)
    distil(fm, sub_fm, COMPRESSED, batches(fm), FEW, neurons=NEURONS)
    for i, (ffn, then) in enumerate(zip(ffns_of(sub_fm), ffns_of(untouched), strict=True)):
        expected = NEURONS[i].tolist() if i in NEURONS else []
        assert all(moved == expected for moved in moved_neurons(ffn, then).values()), i
    names = {parameter: name for name, parameter in sub_fm.named_parameters()}
    allowed = {names[parameter] for i in COMPRESSED for parameter in ffns_of(sub_fm)[i].neuron_parameters()}
    assert differing(before, values(sub_fm)) == allowed
    assert same_bits(values(fm), teacher)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_patch_of_the_named_neurons_is_all_that_workers_need(family: str) -> None:
    (fm, sub_fm), (_, at_worker) = pair(family), pair(family)
    distil(fm, sub_fm, COMPRESSED, batches(fm), FEW, neurons=NEURONS)
    assert not same_bits(values(at_worker), values(sub_fm))
    apply_patch(ffns_of(at_worker), make_patch(ffns_of(sub_fm), NEURONS))
    assert same_bits(values(at_worker), values(sub_fm))


@pytest.mark.parametrize("family", FAMILIES)
def test_neuron_level_lowers_the_hidden_error(family: str) -> None:
    fm, sub_fm = pair(family)
    neurons = {i: torch.arange(0, 16, 2) for i in COMPRESSED}
    before = hidden_error(fm, sub_fm, COMPRESSED, iter(some(fm)))
    distil(fm, sub_fm, COMPRESSED, batches(fm), SETTINGS, neurons=neurons)
    assert hidden_error(fm, sub_fm, COMPRESSED, iter(some(fm))) < 0.98 * before


# --- what counts, and what is left behind ---


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_what_stands_in_padding_changes_no_bit_of_the_result(family: str) -> None:
    results = []
    for filler in (0, 7):
        fm, sub_fm = pair(family)
        filled = (
            Batch(b.inputs | {"input_ids": b.inputs["input_ids"].where(b.mask == 1, torch.tensor(filler))})
            for b in batches(fm)
        )
        distil(fm, sub_fm, COMPRESSED, filled, FEW)
        results.append(values(sub_fm))
    assert same_bits(*results)


@LEVELS
@pytest.mark.parametrize("family", FAMILIES)
def test_requires_grad_is_left_as_it_was_and_no_gradient_stays(
    family: str, neurons: dict[int, Tensor] | None
) -> None:
    models = pair(family)
    for model in models:
        add_lora(model)
    flags = [[p.requires_grad for p in model.parameters()] for model in models]
    assert all(True in f and False in f for f in flags)
    lora = {name: value for name, value in values(models[1]).items() if ".lora_" in name}
    distil(*models, COMPRESSED, batches(models[0]), FEW, neurons=neurons)
    assert [[p.requires_grad for p in model.parameters()] for model in models] == flags
    assert all(p.grad is None for model in models for p in model.parameters())
    assert same_bits({name: values(models[1])[name] for name in lora}, lora)


def test_a_stop_in_between_leaves_flags_and_gradients_clean_too() -> None:
    def stop(step: int, steps: int, loss: float) -> None:
        if step == 2:
            raise Stopped("stopped")

    fm, sub_fm = pair("bert")
    add_lora(sub_fm)
    flags = [p.requires_grad for p in sub_fm.parameters()]
    with pytest.raises(Stopped):
        distil(fm, sub_fm, COMPRESSED, batches(fm), FEW, on_step=stop)
    assert [p.requires_grad for p in sub_fm.parameters()] == flags
    assert all(p.grad is None for p in sub_fm.parameters())
    assert not any(module._forward_hooks for model in (fm, sub_fm) for module in model.modules())


def test_the_same_batches_give_the_same_bits_without_dropout_or_a_draw() -> None:
    generator = torch.get_rng_state()
    results = []
    for training in (True, False):
        fm, sub_fm = pair("bert")
        for model in (fm, sub_fm):
            add_lora(model)
            model.train(training)
        state = torch.get_rng_state()
        distil(fm, sub_fm, COMPRESSED, batches(fm), FEW)
        assert torch.equal(torch.get_rng_state(), state)
        results.append(values(sub_fm))
    torch.set_rng_state(generator)
    assert same_bits(*results)


def test_every_step_is_reported_and_takes_one_batch() -> None:
    fm, sub_fm = pair("bert")
    seen: list[tuple[int, int, float]] = []
    three = islice(batches(fm), 3)
    distil(fm, sub_fm, COMPRESSED, three, FEW, on_step=lambda *told: seen.append(told))
    assert [(step, steps) for step, steps, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(loss > 0 for *_, loss in seen)
    assert next(three, None) is None
