"""Closed-form alignment finds the least-squares out maps, and touches nothing else."""

from collections.abc import Mapping, Sequence
from copy import deepcopy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.data.batches import Batch
from common.errors import DataError, Stopped
from common.model.families import FAMILIES, family_of
from common.model.ffn import Ffn, ffns_of
from common.model.layers import encoder_of, tokens_of
from common.model.submodel import build
from coordinator.algorithms.compression import config_of, cut, ffn_widths, plan_ffn_pruning, plan_full
from coordinator.algorithms.distillation import hidden_error
from coordinator.algorithms.reconstruction import reconstruct
from coordinator.algorithms.saliency import l2_norm
from tests.families import BUILDS, TEXT_FAMILIES, small_inputs, small_model

COMPRESSED = (1, 2)
NEURONS = {1: torch.tensor([0, 5, 15]), 2: torch.tensor([3])}
RIDGE = 1e-3


def pair(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """A teacher, and the student that keeps 16 of 64 neurons in its layers 1 and 2."""
    teacher = small_model(family)
    with torch.no_grad():
        for i, ffn in enumerate(ffns_of(teacher)):
            assert (ffn.scale is None) is (FAMILIES[family].ffn_scale is None)
            if isinstance(ffn.scale, nn.Parameter):
                ffn.scale.copy_(torch.linspace(0.5, 2.0, len(ffn.scale)) + i)
    plan = plan_ffn_pruning([l2_norm(ffn) for ffn in ffns_of(teacher)], 0.75)
    kind = FAMILIES[family].tasks[0]
    return teacher, build(config_of(teacher, plan), kind, ffn_widths(teacher, plan), cut(teacher, plan))


def batches_for(model: PreTrainedModel, count: int = 4) -> list[Batch]:
    return [Batch(small_inputs(model, count=6, seed=seed)) for seed in range(count)]


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def out_map_names(model: PreTrainedModel, layers: Sequence[int] = COMPRESSED) -> set[str]:
    ffns = ffns_of(model)
    own = {id(p) for i in layers for p in ffns[i].out.parameters()}
    return {name for name, parameter in model.named_parameters() if id(parameter) in own}


def observed(model: PreTrainedModel, layer: int, batches: Sequence[Batch]) -> tuple[Tensor, ...]:
    """Activations [N, K], FFN outputs [N, d] and residual sums [N, d] of a layer, by complete passes."""
    ffn: Ffn = ffns_of(model)[layer]
    a: list[Tensor] = []
    y: list[Tensor] = []
    z: list[Tensor] = []

    def out(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        a.append(inputs[0])
        y.append(output)

    hooks = [ffn.out.site.register_forward_hook(out)]
    if ffn.norm_behind is not None:
        hooks.append(ffn.norm_behind.register_forward_hook(lambda m, x, o: z.append(x[0])))
    else:
        hooks.append(
            ffn.layer.register_forward_hook(lambda m, x, o: z.append(o[0] if isinstance(o, tuple) else o))
        )
    with torch.no_grad():
        for batch in batches:
            encoder_of(model)(**batch.inputs)
    for hook in hooks:
        hook.remove()
    masks = [batch.mask for batch in batches]
    return tuple(
        torch.cat([tokens_of(t, mask) for t, mask in zip(seen, masks, strict=True)]) for seen in (a, y, z)
    )


def least_squares(a: Tensor, y: Tensor, present: Tensor, ridge: float, free: int) -> Tensor:
    """argmin |a V - y|^2 + r |V - present|^2 with r on the first `free` rows, by one big lstsq."""
    r = torch.zeros(len(present), dtype=torch.float64)
    r[:free] = ridge * a[:, :free].square().sum(0).mean()
    stacked = torch.cat([a, r.sqrt().diag()]), torch.cat([y, r.sqrt()[:, None] * present])
    solution: Tensor = torch.linalg.lstsq(*stacked).solution
    return solution


# --- the optimum ---


@pytest.mark.parametrize("kind", BUILDS)
def test_the_solution_is_the_optimum_however_the_layer_is_built(kind: str) -> None:
    test_the_solution_is_that_of_direct_least_squares(BUILDS[kind])


@pytest.mark.parametrize("family", FAMILIES)
def test_the_solution_is_that_of_direct_least_squares(family: str) -> None:
    teacher, student = pair(family)
    batches = batches_for(teacher)
    ffn = ffns_of(student)[1]
    a, y, z = (t.double() for t in observed(student, 1, batches))
    target = observed(teacher, 1, batches)[2].double()
    Y = y + (target - z) / (1.0 if ffn.scale is None else ffn.scale.detach())
    V0 = ffn.out.weight.detach().T.double()
    A = a
    if ffn.out.bias is not None:
        A = torch.cat([a, torch.ones(len(a), 1)], 1)
        V0 = torch.cat([V0, ffn.out.bias.detach()[None].double()])
    expected = least_squares(A, Y, V0, RIDGE, free=ffn.width)
    reconstruct(teacher, student, (1,), batches, RIDGE)
    torch.testing.assert_close(
        ffn.out.weight.detach().T.double(), expected[: ffn.width], rtol=1e-3, atol=1e-4
    )
    if ffn.out.bias is not None:
        torch.testing.assert_close(ffn.out.bias.detach().double(), expected[ffn.width], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_for_some_neurons_the_others_go_to_the_right_hand_side(family: str) -> None:
    teacher, student = pair(family)
    batches = batches_for(teacher)
    ffn, chosen = ffns_of(student)[1], NEURONS[1]
    a, y, z = (t.double() for t in observed(student, 1, batches))
    target = observed(teacher, 1, batches)[2].double()
    Y = y + (target - z) / (1.0 if ffn.scale is None else ffn.scale.detach())
    others = torch.ones(ffn.width, dtype=torch.bool).index_fill(0, chosen, False)
    fixed = a[:, others] @ ffn.out.weight.detach()[:, others].T.double()
    if ffn.out.bias is not None:
        fixed += ffn.out.bias.detach()
    V0 = ffn.out.weight.detach()[:, chosen].T.double()
    expected = least_squares(a[:, chosen], Y - fixed, V0, RIDGE, free=len(chosen))
    reconstruct(teacher, student, (1,), batches, RIDGE, neurons=NEURONS)
    solved = ffn.out.weight.detach()[:, chosen].T.double()
    torch.testing.assert_close(solved, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_it_lowers_the_error_on_what_it_sees(family: str) -> None:
    teacher, student = pair(family)
    batches = batches_for(teacher)
    before = hidden_error(teacher, student, COMPRESSED, iter(batches))
    reconstruct(teacher, student, COMPRESSED, batches, RIDGE)
    assert hidden_error(teacher, student, COMPRESSED, iter(batches)) < 0.8 * before


@pytest.mark.parametrize("family", FAMILIES)
def test_a_student_that_lost_nothing_stays_as_it_is(family: str) -> None:
    teacher = small_model(family)
    plan = plan_full(teacher)
    kind = FAMILIES[family].tasks[0]
    student = build(config_of(teacher, plan), kind, ffn_widths(teacher, plan), cut(teacher, plan))
    before = values(student)
    reconstruct(teacher, student, range(4), batches_for(teacher), RIDGE)
    torch.testing.assert_close(values(student), before, rtol=1e-6, atol=1e-6)


def test_the_larger_the_ridge_the_nearer_to_the_present_weights() -> None:
    teacher, student = pair("bert")
    batches = batches_for(teacher)
    present = ffns_of(student)[1].out.weight.detach().clone()
    distances = []
    for ridge in (1e-4, 1e-1, 1e2, 1e9):
        moved = deepcopy(student)
        reconstruct(teacher, moved, (1,), batches, ridge)
        distances.append((ffns_of(moved)[1].out.weight - present).norm().item())
    assert distances == sorted(distances, reverse=True)
    assert distances[0] > 0.1 and distances[-1] < 1e-5


def test_each_layer_is_solved_with_what_the_refitted_ones_before_it_give() -> None:
    teacher, student = pair("bert")
    batches = batches_for(teacher)
    at_once, in_turn, alone = deepcopy(student), deepcopy(student), deepcopy(student)
    reconstruct(teacher, at_once, (2, 1), batches, RIDGE)
    reconstruct(teacher, in_turn, (1,), batches, RIDGE)
    reconstruct(teacher, in_turn, (2,), batches, RIDGE)
    reconstruct(teacher, alone, (2,), batches, RIDGE)
    # Not to the bit: the stream goes on from the refitted layer's output without running it again.
    torch.testing.assert_close(values(at_once), values(in_turn), rtol=1e-4, atol=1e-5)
    assert changed(values(at_once), values(alone)) >= out_map_names(student, (2,))


@pytest.mark.parametrize("family", FAMILIES)
def test_how_data_are_batched_changes_next_to_nothing(family: str) -> None:
    teacher, student = pair(family)
    batches = batches_for(teacher, 2)
    other = deepcopy(student)
    joined = {name: torch.cat([b.inputs[name] for b in batches]) for name in batches[0].inputs}
    reconstruct(teacher, student, COMPRESSED, batches, 0.1)
    reconstruct(teacher, other, COMPRESSED, [Batch(joined)], 0.1)
    torch.testing.assert_close(values(student), values(other), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", TEXT_FAMILIES)
def test_what_stands_in_the_padding_changes_nothing(family: str) -> None:
    teacher, student = pair(family)
    batches, garbage = batches_for(teacher, 2), []
    for batch in batches:
        assert batch.mask is not None
        ids = batch.inputs["input_ids"].where(batch.mask.bool(), 7)
        garbage.append(Batch({**batch.inputs, "input_ids": ids}))
    other = deepcopy(student)
    reconstruct(teacher, student, COMPRESSED, batches, RIDGE)
    reconstruct(teacher, other, COMPRESSED, garbage, RIDGE)
    assert not changed(values(student), values(other))


# --- what is touched ---


@pytest.mark.parametrize("family", FAMILIES)
def test_only_the_out_maps_of_the_layers_change(family: str) -> None:
    teacher, student = pair(family)
    batches = batches_for(teacher)
    whole, before = values(teacher), values(student)
    reconstruct(teacher, student, COMPRESSED, batches, RIDGE)
    assert changed(before, values(student)) == out_map_names(student)
    assert not changed(whole, values(teacher))


@pytest.mark.parametrize("family", FAMILIES)
def test_of_chosen_neurons_only_the_columns_change_and_the_error_falls(family: str) -> None:
    teacher, student = pair(family)
    batches = batches_for(teacher)
    before = values(student)
    columns = {i: ffns_of(student)[i].out.weight.detach().clone() for i in COMPRESSED}
    error = hidden_error(teacher, student, COMPRESSED, iter(batches))
    reconstruct(teacher, student, COMPRESSED, batches, RIDGE, neurons=NEURONS)
    assert changed(before, values(student)) == {n for n in out_map_names(student) if n.endswith("weight")}
    for i, old in columns.items():
        moved = (ffns_of(student)[i].out.weight != old).any(0).nonzero().flatten()
        assert moved.tolist() == NEURONS[i].tolist()
    assert hidden_error(teacher, student, COMPRESSED, iter(batches)) < error


def test_choosing_no_neuron_changes_nothing() -> None:
    teacher, student = pair("bert")
    before = values(student)
    nobody = dict.fromkeys(COMPRESSED, torch.empty(0, dtype=torch.int64))
    reconstruct(teacher, student, COMPRESSED, batches_for(teacher), RIDGE, neurons=nobody)
    assert not changed(before, values(student))


def test_silent_neurons_and_switched_off_dimensions_stay_as_they_are() -> None:
    teacher, student = pair("dinov2")
    ffn = ffns_of(student)[1]
    assert ffn.scale is not None and ffn.ins[0].bias is not None
    with torch.no_grad():
        ffn.ins[0].weight.zero_()
        ffn.ins[0].bias.zero_()
        ffn.scale[3] = 0
    assert ffn.out.bias is not None
    weight, bias = ffn.out.weight.detach().clone(), ffn.out.bias.detach().clone()
    reconstruct(teacher, student, (1,), batches_for(teacher), RIDGE)
    assert torch.equal(ffn.out.weight, weight)
    assert (ffn.out.bias == bias).nonzero().flatten().tolist() == [3]


@pytest.mark.parametrize("family", ["bert", "gpt2", "llama"])
def test_an_adapter_is_counted_and_left_alone(family: str) -> None:
    teacher, student = pair(family)
    batches = batches_for(teacher)
    parts = [*family_of(student.config).attention[:1], family_of(student.config).ffn_out]
    lora = LoraConfig(r=2, target_modules=parts, init_lora_weights=False, fan_in_fan_out=family == "gpt2")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        get_peft_model(student, lora)
    before, error = values(student), hidden_error(teacher, student, COMPRESSED, iter(batches))
    reconstruct(teacher, student, COMPRESSED, batches, RIDGE)
    assert changed(before, values(student)) == out_map_names(student)
    assert hidden_error(teacher, student, COMPRESSED, iter(batches)) < error


def state_of(model: PreTrainedModel) -> tuple[object, ...]:
    return (
        [module.training for module in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()],
    )


def test_both_models_are_left_as_found_even_when_stopped() -> None:
    teacher, student = pair("bert")
    student.train()
    ffns_of(student)[0].out.module.requires_grad_(False)
    before = state_of(teacher), state_of(student)

    def stop(done: int, total: int) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        reconstruct(teacher, student, COMPRESSED, batches_for(teacher), RIDGE, on_layer=stop)
    assert (state_of(teacher), state_of(student)) == before
    reconstruct(teacher, student, COMPRESSED, batches_for(teacher), RIDGE)
    assert (state_of(teacher), state_of(student)) == before


def test_dropout_is_off_while_a_student_in_training_is_refitted() -> None:
    teacher, student = pair("bert")
    in_training = deepcopy(student).train()
    reconstruct(teacher, student, COMPRESSED, batches_for(teacher), RIDGE)
    reconstruct(teacher.train(), in_training, COMPRESSED, batches_for(teacher), RIDGE)
    assert not changed(values(student), values(in_training))


def test_every_layer_is_told_of() -> None:
    teacher, student = pair("bert")
    told: list[tuple[int, int]] = []
    reconstruct(
        teacher,
        student,
        COMPRESSED,
        batches_for(teacher),
        RIDGE,
        on_layer=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 2), (2, 2)]


# --- what is refused ---


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan")])
def test_a_ridge_that_anchors_nothing_is_refused(ridge: float) -> None:
    teacher, student = pair("bert")
    with pytest.raises(ValueError, match="ridge must be > 0"):
        reconstruct(teacher, student, COMPRESSED, batches_for(teacher), ridge)


def test_data_without_a_token_are_refused() -> None:
    teacher, student = pair("bert")
    padding = {name: torch.zeros_like(t) for name, t in small_inputs(teacher).items()}
    for nothing in ([], [Batch(padding)]):
        with pytest.raises(DataError, match="not one token"):
            reconstruct(teacher, student, COMPRESSED, nothing, RIDGE)
