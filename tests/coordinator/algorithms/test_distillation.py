"""Distillation brings the sub-FM closer to the FM, and touches what it may touch only."""

from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.batches import Dataset
from common.errors import Stopped
from common.model.adapter import Adapted
from common.model.families import ffn_names, ffns_of
from common.model.submodel import apply_patch, build, make_patch
from coordinator.algorithms.compression import cut, ffn_widths, plan_ffn_pruning
from coordinator.algorithms.distillation import (
    Settings,
    distil,
    hidden_error,
    layer_error,
    linear_map,
    weight_error,
)
from tests.conftest import HIDDEN
from tests.small import LORA, copies, load_model, load_texts, same_bits

COMPRESSED = (1, 2)
NEURONS = {1: torch.tensor([0, 5, 15]), 2: torch.tensor([3])}
SETTINGS = Settings(steps=30, learning_rate=3e-3, warmup=0.1, weight_term=0.01)
FEW = Settings(steps=3, learning_rate=3e-3, warmup=0.0, weight_term=0.01)


@pytest.fixture
def fm(model_folder: Path) -> PreTrainedModel:
    return load_model(model_folder)


@pytest.fixture
def sub_fm(fm: PreTrainedModel) -> PreTrainedModel:
    plan = plan_ffn_pruning(fm, drop_ratio=0.75)
    return build(fm.config, ffn_widths(fm, plan), cut(fm, plan))


@pytest.fixture(scope="module")
def texts(model_folder: Path) -> Dataset:
    return load_texts(model_folder, 64)


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


# --- the loss ---


def test_the_layer_error_is_relative_to_the_teacher_and_ignores_padding() -> None:
    teacher = torch.tensor([[[3.0, 4.0], [9.0, 9.0]]])
    student = torch.tensor([[[3.0, 3.0], [0.0, 0.0]]])
    error = layer_error(teacher, student, torch.tensor([[1, 0]]))
    # mean(0, 1) / mean(9, 16)
    assert error.item() == pytest.approx(0.5 / 12.5)
    assert layer_error(7 * teacher, 7 * student, torch.tensor([[1, 0]])).item() == pytest.approx(error.item())


def test_the_weight_error_is_zero_for_the_same_ffn_and_one_without_neurons(fm: PreTrainedModel) -> None:
    ffn = ffns_of(fm)[1]
    target = linear_map(ffn).detach()
    assert target.shape == (HIDDEN, HIDDEN)
    assert weight_error(target, ffn).item() == 0.0
    with torch.no_grad():
        ffn.down.weight.zero_()
    assert weight_error(target, ffn).item() == pytest.approx(1.0)


def test_the_weight_error_has_a_gradient_of_its_own(fm: PreTrainedModel, sub_fm: PreTrainedModel) -> None:
    ffn = ffns_of(sub_fm)[1]
    weight_error(linear_map(ffns_of(fm)[1]).detach(), ffn).backward()
    for weight in (ffn.up.weight, ffn.down.weight):
        assert weight.grad is not None and weight.grad.abs().max() > 0


def test_the_weight_term_pulls_the_linear_maps_together(
    fm: PreTrainedModel, sub_fm: PreTrainedModel, texts: Dataset
) -> None:
    target = linear_map(ffns_of(fm)[1]).detach()
    without = build(fm.config, (64, 16, 16, 64), copies(sub_fm.state_dict()))
    for student, factor in ((sub_fm, 10.0), (without, 0.0)):
        distil(fm, student, COMPRESSED, texts.endless(8, 0), Settings(20, 3e-3, 0.0, factor))
    assert weight_error(target, ffns_of(sub_fm)[1]) < weight_error(target, ffns_of(without)[1])


# --- layer level ---


def test_layer_level_lowers_the_hidden_error(
    fm: PreTrainedModel, sub_fm: PreTrainedModel, texts: Dataset
) -> None:
    before = hidden_error(fm, sub_fm, COMPRESSED, texts.in_order(16))
    distil(fm, sub_fm, COMPRESSED, texts.endless(16, seed=1), SETTINGS)
    assert hidden_error(fm, sub_fm, COMPRESSED, texts.in_order(16)) < 0.8 * before


def test_a_model_has_no_hidden_error_to_itself(fm: PreTrainedModel, texts: Dataset) -> None:
    assert hidden_error(fm, fm, range(4), texts.in_order(16)) == 0.0


def test_layer_level_changes_ffns_and_output_norms_of_compressed_layers_only(
    fm: PreTrainedModel, sub_fm: PreTrainedModel, texts: Dataset
) -> None:
    before, teacher = copies(sub_fm.state_dict()), copies(fm.state_dict())
    distil(fm, sub_fm, COMPRESSED, texts.endless(8, seed=1), FEW)
    expected = set()
    for i in COMPRESSED:
        up, down = ffn_names(fm.config, i)
        norm = down.replace("dense", "LayerNorm")
        expected |= {f"{module}.{kind}" for module in (up, down, norm) for kind in ("weight", "bias")}
    assert changed(before, sub_fm.state_dict()) == expected
    assert same_bits(fm.state_dict(), teacher)


# --- neuron level ---


def test_neuron_level_changes_the_named_neurons_and_not_a_bit_elsewhere(
    fm: PreTrainedModel, sub_fm: PreTrainedModel, texts: Dataset
) -> None:
    before = copies(sub_fm.state_dict())
    distil(fm, sub_fm, COMPRESSED, texts.endless(8, seed=1), FEW, neurons=NEURONS)
    after = sub_fm.state_dict()
    for layer, index in NEURONS.items():
        up, down = ffn_names(fm.config, layer)
        for name, axis in ((f"{up}.weight", 0), (f"{up}.bias", 0), (f"{down}.weight", 1)):
            moved = (before.pop(name) != after.pop(name)).movedim(axis, 0).reshape(16, -1).any(1)
            assert moved.nonzero().flatten().tolist() == index.tolist(), name
    assert same_bits(before, after)


def test_a_patch_of_the_named_neurons_is_all_that_workers_need(
    fm: PreTrainedModel, sub_fm: PreTrainedModel, texts: Dataset
) -> None:
    at_worker = build(fm.config, (64, 16, 16, 64), copies(sub_fm.state_dict()))
    distil(fm, sub_fm, COMPRESSED, texts.endless(8, seed=1), FEW, neurons=NEURONS)
    apply_patch(ffns_of(at_worker), make_patch(ffns_of(sub_fm), NEURONS))
    assert same_bits(at_worker.state_dict(), sub_fm.state_dict())


def test_neuron_level_lowers_the_hidden_error(
    fm: PreTrainedModel, sub_fm: PreTrainedModel, texts: Dataset
) -> None:
    neurons = {i: torch.arange(0, 16, 2) for i in COMPRESSED}
    before = hidden_error(fm, sub_fm, COMPRESSED, texts.in_order(16))
    distil(fm, sub_fm, COMPRESSED, texts.endless(16, seed=1), SETTINGS, neurons=neurons)
    assert hidden_error(fm, sub_fm, COMPRESSED, texts.in_order(16)) < 0.95 * before


# --- what is left behind ---


@pytest.mark.parametrize("neurons", [None, NEURONS], ids=["layer level", "neuron level"])
def test_requires_grad_is_left_as_it_was_and_no_gradient_stays(
    fm: PreTrainedModel, sub_fm: PreTrainedModel, texts: Dataset, neurons: dict[int, Tensor] | None
) -> None:
    adapted = [Adapted(fm, LORA), Adapted(sub_fm, LORA)]
    flags = [[p.requires_grad for p in a.model.parameters()] for a in adapted]
    assert all(True in f and False in f for f in flags)
    tensors = adapted[1].tensors()
    distil(fm, sub_fm, COMPRESSED, texts.endless(8, seed=1), FEW, neurons=neurons)
    assert [[p.requires_grad for p in a.model.parameters()] for a in adapted] == flags
    assert all(p.grad is None for a in adapted for p in a.model.parameters())
    assert same_bits(adapted[1].tensors(), tensors)


def test_a_stop_in_between_leaves_flags_and_gradients_clean_too(
    fm: PreTrainedModel, sub_fm: PreTrainedModel, texts: Dataset
) -> None:
    def stop(step: int, steps: int, loss: float) -> None:
        if step == 2:
            raise Stopped("stopped")

    flags = [p.requires_grad for p in sub_fm.parameters()]
    with pytest.raises(Stopped):
        distil(fm, sub_fm, COMPRESSED, texts.endless(8, seed=1), FEW, on_step=stop)
    assert [p.requires_grad for p in sub_fm.parameters()] == flags
    assert all(p.grad is None for p in sub_fm.parameters())


def test_the_same_batches_give_the_same_bits(
    fm: PreTrainedModel, sub_fm: PreTrainedModel, texts: Dataset
) -> None:
    again = build(fm.config, (64, 16, 16, 64), copies(sub_fm.state_dict()))
    generator = torch.get_rng_state()
    for student in (sub_fm, again):
        distil(fm, student, COMPRESSED, texts.endless(8, seed=1), FEW)
    assert same_bits(sub_fm.state_dict(), again.state_dict())
    assert torch.equal(torch.get_rng_state(), generator)


def test_every_step_is_reported_and_takes_one_batch(
    fm: PreTrainedModel, sub_fm: PreTrainedModel, texts: Dataset
) -> None:
    seen: list[tuple[int, int, float]] = []
    batches = islice(texts.endless(8, seed=1), 3)
    distil(fm, sub_fm, COMPRESSED, batches, FEW, on_step=lambda *told: seen.append(told))
    assert [(step, steps) for step, steps, _ in seen] == [(1, 3), (2, 3), (3, 3)]
    assert all(loss > 0 for *_, loss in seen)
    assert next(batches, None) is None
