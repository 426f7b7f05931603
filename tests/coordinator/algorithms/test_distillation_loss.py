"""Every term of distillation's loss says what it should, has a gradient, and sees tokens only."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.model.families import FAMILIES, family_of
from common.model.ffn import ffns_of
from common.model.layers import encoder_of, layers_of, outputs_of
from coordinator.algorithms.distillation_loss import (
    DistillationLoss,
    Factors,
    layer_error,
    linear_map,
    weight_error,
)
from tests.coordinator.algorithms.pairs import COMPRESSED, pair
from tests.families import HIDDEN, LAYERS, TEXT_FAMILIES, small_inputs

TERMS = ("weight_term", "attention_term", "logit_term")


def loss_of(
    fm: PreTrainedModel, sub_fm: PreTrainedModel, layers: tuple[int, ...] = COMPRESSED, **factors: float
) -> DistillationLoss:
    return DistillationLoss(fm, sub_fm, layers, Factors(**factors))


def all_layers(model: PreTrainedModel, inputs: dict[str, Tensor]) -> list[Tensor]:
    """Every layer's output in a run from end to end."""
    seen: list[Tensor] = []

    def observe(module: nn.Module, args: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    hooks = [layer.register_forward_hook(observe) for layer in layers_of(model)]
    encoder_of(model)(**inputs)
    for hook in hooks:
        hook.remove()
    return seen


# --- single errors ---


def test_the_layer_error_is_relative_to_the_teacher_and_ignores_padding() -> None:
    teacher = torch.tensor([[[3.0, 4.0], [9.0, 9.0]]])
    student = torch.tensor([[[3.0, 3.0], [0.0, 0.0]]])
    error = layer_error(teacher, student, torch.tensor([[1, 0]]))
    # mean(0, 1) / mean(9, 16)
    assert error.item() == pytest.approx(0.5 / 12.5)
    assert layer_error(7 * teacher, 7 * student, torch.tensor([[1, 0]])).item() == pytest.approx(error.item())


def test_without_a_mask_every_position_counts() -> None:
    teacher, student = torch.tensor([[[3.0], [4.0]]]), torch.tensor([[[3.0], [0.0]]])
    assert layer_error(teacher, student, None).item() == pytest.approx(16 / 25)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_weight_error_is_zero_for_the_same_ffn_and_one_without_neurons(family: str) -> None:
    ffn = ffns_of(pair(family)[0])[1]
    target = linear_map(ffn).detach()
    assert target.shape == (len(ffn.ins), HIDDEN, HIDDEN)
    assert weight_error(target, ffn).item() == 0.0
    with torch.no_grad():
        ffn.out.weight.zero_()
    assert weight_error(target, ffn).item() == pytest.approx(1.0)


# --- their sum ---


@pytest.mark.parametrize("family", FAMILIES)
def test_each_term_adds_its_error_times_its_factor(family: str) -> None:
    fm, sub_fm = pair(family)
    inputs = small_inputs(fm)
    mask = inputs.get("attention_mask")
    t, s = all_layers(fm, inputs), all_layers(sub_fm, inputs)
    layers = torch.stack([layer_error(t[i], s[i], mask) for i in COMPRESSED]).mean()
    maps = [weight_error(linear_map(ffns_of(fm)[i]), ffns_of(sub_fm)[i]) for i in COMPRESSED]
    sites = family_of(fm.config).attention[-1]
    behind = [
        outputs_of(model, [layers_of(model)[i + 1].get_submodule(sites) for i in COMPRESSED], inputs)
        for model in (fm, sub_fm)
    ]
    attention = torch.stack([layer_error(a, b, mask) for a, b in zip(*behind, strict=True)]).mean()
    last = layer_error(t[-1], s[-1], mask)
    assert loss_of(fm, sub_fm)(inputs).item() == pytest.approx(layers.item())
    for term, error in zip(TERMS, (torch.stack(maps).mean(), attention, last), strict=True):
        assert error.item() > 1e-4, term
        with_term = loss_of(fm, sub_fm, **{term: 2.0})(inputs).item()
        assert with_term == pytest.approx(layers.item() + 2 * error.item(), rel=1e-4), term


@pytest.mark.parametrize("term", TERMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_term_has_a_gradient_in_every_compressed_layer(family: str, term: str) -> None:
    fm, sub_fm = pair(family)
    inputs = small_inputs(fm)
    gradients = []
    for factor in (0.0, 1.0):
        sub_fm.zero_grad()
        loss_of(fm, sub_fm, **{term: factor})(inputs).backward()
        gradients.append([ffns_of(sub_fm)[i].out.gradient.clone() for i in COMPRESSED])
    for without, with_term in zip(*gradients, strict=True):
        assert without.abs().max() > 0
        assert (with_term - without).abs().max() > 1e-6


def test_a_single_compressed_layer_still_gets_a_gradient_from_attention() -> None:
    fm, sub_fm = pair("bert")
    inputs = small_inputs(fm)
    plain, more = (loss_of(fm, sub_fm, (1,), attention_term=factor)(inputs) for factor in (0.0, 1.0))
    (gradient,) = torch.autograd.grad(more - plain, ffns_of(sub_fm)[1].out.module.weight)
    assert gradient.abs().max() > 0


def test_after_the_last_layer_nothing_attends_and_the_term_is_left_out() -> None:
    fm, sub_fm = pair("bert")
    inputs = small_inputs(fm)
    plain, more = (loss_of(fm, sub_fm, (LAYERS - 1,), attention_term=factor) for factor in (0.0, 1.0))
    assert torch.equal(plain(inputs), more(inputs))


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_what_stands_in_padding_changes_no_bit_of_the_gradient(family: str) -> None:
    fm, sub_fm = pair(family)
    inputs = small_inputs(fm)
    padding = inputs["attention_mask"] == 0
    assert padding.any()
    gradients = []
    for tokens in (inputs["input_ids"], inputs["input_ids"].where(~padding, torch.tensor(7))):
        sub_fm.zero_grad()
        loss_of(fm, sub_fm, **dict.fromkeys(TERMS, 1.0))(inputs | {"input_ids": tokens}).backward()
        gradients.append([ffns_of(sub_fm)[i].out.gradient.clone() for i in COMPRESSED])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


# --- how far the models run ---


@pytest.mark.parametrize(
    ("factors", "attends", "ends"),
    [({}, False, False), ({"attention_term": 1.0}, True, False), ({"logit_term": 1.0}, True, True)],
    ids=["layers only", "attention", "last layer"],
)
@pytest.mark.parametrize("family", FAMILIES)
def test_of_the_last_layer_only_what_the_loss_looks_at_runs(
    family: str, factors: dict[str, float], attends: bool, ends: bool
) -> None:
    fm, sub_fm = pair(family)
    ran: list[str] = []
    for model, name in ((fm, "fm"), (sub_fm, "sub-FM")):
        last = ffns_of(model)[LAYERS - 1]
        query = last.layer.get_submodule(family_of(model.config).attention[0])
        query.register_forward_hook(lambda module, args, output, name=name: ran.append(f"{name} query"))
        last.out.site.register_forward_hook(lambda module, args, output, name=name: ran.append(f"{name} out"))
    loss_of(fm, sub_fm, **factors)(small_inputs(fm))
    expected = [part for part, runs in (("query", attends), ("out", ends)) if runs]
    # DeBERTa's query projection reads positions besides.
    assert list(dict.fromkeys(ran)) == [f"{name} {part}" for name in ("fm", "sub-FM") for part in expected]


@pytest.mark.parametrize("family", FAMILIES)
def test_stopping_early_changes_no_bit_and_leaves_no_hook(family: str) -> None:
    fm, _ = pair(family)
    inputs = small_inputs(fm)
    early = outputs_of(fm, [layers_of(fm)[2], layers_of(fm)[1]], inputs)
    whole = all_layers(fm, inputs)
    assert torch.equal(early[0], whole[2]) and torch.equal(early[1], whole[1])
    assert not any(module._forward_hooks for module in fm.modules())


def test_the_teacher_is_no_part_of_the_module_that_ddp_sees() -> None:
    fm, sub_fm = pair("bert")
    loss = loss_of(fm, sub_fm, **dict.fromkeys(TERMS, 1.0))
    assert set(loss.parameters()) == set(sub_fm.parameters())
    loss(small_inputs(fm)).backward()
    assert all(parameter.grad is None for parameter in fm.parameters())
