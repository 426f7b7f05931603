"""The gradient gap, against what it must be in cases where that is known."""

import pytest
import torch

from common.data.batches import IMAGE_TOKENS, Batch
from common.model.adapter import Adapted
from common.model.families import FAMILIES
from common.model.ffn import ffns_of
from common.model.submodel import SubModelPlan, build
from common.records import AdapterSpec, AdapterTargets, TaskKind
from coordinator.algorithms.compression import (
    config_of,
    cut,
    ffn_widths,
    plan_ffn_pruning,
    plan_full,
    plan_layer_drop,
)
from coordinator.algorithms.gradient_gap import drift, measure
from coordinator.algorithms.saliency import l2_norm
from tests.families import small_inputs, small_model
from tests.small import same_bits

every_task = pytest.mark.parametrize(
    ("model_type", "kind"), [(name, kind) for name, family in FAMILIES.items() for kind in family.tasks]
)
SPEC = AdapterSpec(AdapterTargets.ATTENTION_FFN, rank=3, alpha=6.0, dropout=0.5)


def both(
    model_type: str, kind: TaskKind, ratio: float, spec: AdapterSpec = SPEC
) -> tuple[Adapted, Adapted, SubModelPlan]:
    fm = small_model(model_type, kind)
    plan = plan_ffn_pruning([l2_norm(ffn) for ffn in ffns_of(fm)], ratio)
    sub_fm = build(config_of(fm, plan), kind, ffn_widths(fm, plan), cut(fm, plan))
    return Adapted(fm, kind, spec, seed=1), Adapted(sub_fm, kind, spec, seed=1), plan


def batches_for(adapted: Adapted) -> list[Batch]:
    batches = []
    for seed in (1, 2):
        inputs = small_inputs(adapted.base, 6, seed)
        labels = inputs["input_ids"] if adapted.kind is TaskKind.CAUSAL_LM else None
        batches.append(Batch(inputs, labels))
    return batches


@every_task
def test_equal_models_have_no_gap(model_type: str, kind: TaskKind) -> None:
    fm, sub_fm, plan = both(model_type, kind, 0.0)
    gap = measure(fm, sub_fm, plan, batches_for(fm), 3, seed=5)
    assert gap.round == 3
    assert gap.cosine == pytest.approx(1, abs=1e-4)
    assert gap.norm_ratio == pytest.approx(1, abs=1e-3)
    assert gap.drift == pytest.approx(0, abs=1e-3)
    for layer in gap.layers:
        assert layer.output_difference < 1e-4
        assert layer.weight_difference < 1e-4
        assert layer.gradient_difference < 1e-2


@every_task
def test_a_cut_model_has_a_gap_and_only_cut_layers_differ_in_weights(model_type: str, kind: TaskKind) -> None:
    fm, sub_fm, plan = both(model_type, kind, 0.75)
    gap = measure(fm, sub_fm, plan, batches_for(fm), 0, seed=5)
    assert gap.drift > 0.01
    assert [layer.weight_difference > 0.01 for layer in gap.layers] == [False, True, True, False]
    # The first layer's outputs are the FM's; those behind a cut layer are not.
    assert gap.layers[0].output_difference < 1e-5
    assert min(layer.output_difference for layer in gap.layers[1:]) > 1e-3
    assert all(layer.gradient_difference > 0 for layer in gap.layers)


def test_measuring_leaves_both_models_as_they_were() -> None:
    fm, sub_fm, plan = both("bert", TaskKind.TEXT_CLASSIFICATION, 0.75)
    before = [dict(m.model.state_dict()) for m in (fm, sub_fm)]
    trainable = [[p.requires_grad for p in m.model.parameters()] for m in (fm, sub_fm)]
    state = torch.get_rng_state()
    first = measure(fm, sub_fm, plan, batches_for(fm), 0, seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert first == measure(fm, sub_fm, plan, batches_for(fm), 0, seed=5)
    assert first != measure(fm, sub_fm, plan, batches_for(fm), 0, seed=6)
    for m, old, flags in zip((fm, sub_fm), before, trainable, strict=True):
        assert same_bits(dict(m.model.state_dict()), old)
        assert [p.requires_grad for p in m.model.parameters()] == flags
        assert all(p.grad is None for p in m.model.parameters())


def test_padding_does_not_count() -> None:
    fm, sub_fm, plan = both("bert", TaskKind.TEXT_CLASSIFICATION, 0.75)
    (first, *_) = batches_for(fm)
    longer = {name: torch.nn.functional.pad(tensor, (0, 5)) for name, tensor in first.inputs.items()}
    gap, padded = (measure(fm, sub_fm, plan, [b], 0, seed=5) for b in (first, Batch(longer)))
    for a, b in zip(gap.layers, padded.layers, strict=True):
        assert a.output_difference == pytest.approx(b.output_difference, rel=1e-3)
        assert a.gradient_difference == pytest.approx(b.gradient_difference, rel=1e-2, abs=1e-3)


def test_dropped_layers_are_compared_with_their_sources() -> None:
    fm = small_model("bert")
    kind = TaskKind.TEXT_CLASSIFICATION
    for plan, expected in ((plan_layer_drop(fm, 0.75), False), (plan_full(fm), True)):
        sub_fm = build(config_of(fm, plan), kind, ffn_widths(fm, plan), cut(fm, plan))
        pair = [Adapted(m, kind, SPEC, seed=1) for m in (small_model("bert"), sub_fm)]
        gap = measure(pair[0], pair[1], plan, batches_for(pair[0]), 0, seed=5)
        assert len(gap.layers) == len(plan.layers)
        assert all(layer.weight_difference == 0 for layer in gap.layers)
        assert (gap.layers[1].output_difference < 1e-6) is expected


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama", "vit"])
@pytest.mark.parametrize("targets", [AdapterTargets.NEURONS, AdapterTargets.ATTENTION_NEURONS])
def test_neurons_in_full_are_compared_where_they_are_kept(model_type: str, targets: AdapterTargets) -> None:
    kind, spec = FAMILIES[model_type].tasks[0], AdapterSpec(targets, 3, 6.0, 0.5)
    fm, sub_fm, plan = both(model_type, kind, 0.0, spec)
    equal = measure(fm, sub_fm, plan, batches_for(fm), 0, seed=5)
    assert equal.drift == pytest.approx(0, abs=1e-3)
    fm, sub_fm, plan = both(model_type, kind, 0.75, spec)
    gap = measure(fm, sub_fm, plan, batches_for(fm), 0, seed=5)
    assert gap.drift > 0.01
    assert all(layer.gradient_difference > 0 for layer in gap.layers)
    assert [layer.weight_difference > 0.01 for layer in gap.layers] == [False, True, True, False]


def test_a_head_alone_has_a_gap_too() -> None:
    spec = AdapterSpec(AdapterTargets.NONE, 1, 1.0, 0.0)
    fm, sub_fm, plan = both("bert", TaskKind.TEXT_CLASSIFICATION, 0.75, spec)
    gap = measure(fm, sub_fm, plan, batches_for(fm), 0, seed=5)
    assert gap.drift > 1e-4
    assert {layer.gradient_difference for layer in gap.layers} == {0.0}


@pytest.mark.parametrize(
    ("cosine", "ratio", "expected"),
    [(1, 1, 0), (1, 2, 0.5), (1, 0.5, 0.5), (0, 1, 1), (-1, 1, 2), (0.5, 0.5, 0.75), (1, 0, 1)],
)
def test_drift_grows_with_angle_and_with_unequal_norms(cosine: float, ratio: float, expected: float) -> None:
    assert drift(cosine, ratio) == pytest.approx(expected)


@pytest.mark.slow
@every_task
def test_in_parts_it_comes_to_the_same(model_type: str, kind: TaskKind) -> None:
    fm, sub_fm, plan = both(model_type, kind, 0.75)
    batches = batches_for(fm)
    whole = measure(fm, sub_fm, plan, batches, 0, seed=5)
    tokens = 2 * (IMAGE_TOKENS if kind is TaskKind.IMAGE_CLASSIFICATION else 8)
    parts = measure(fm, sub_fm, plan, batches, 0, seed=5, tokens=tokens)
    assert len(batches[0].parts(tokens)) == 3
    assert (parts.cosine, parts.norm_ratio) == pytest.approx((whole.cosine, whole.norm_ratio), abs=1e-4)
    for one, other in zip(whole.layers, parts.layers, strict=True):
        assert other.gradient_difference == pytest.approx(one.gradient_difference, abs=1e-3)
        assert other.output_difference == pytest.approx(one.output_difference, abs=1e-4)
