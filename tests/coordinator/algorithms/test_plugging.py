"""The sub-FM's adapter in the FM."""

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.model.adapter import PEFT_PREFIX, RESIDUAL, Adapted
from common.model.families import FAMILIES
from common.model.ffn import ffns_of
from common.model.layers import layers_of
from common.model.submodel import SubModelPlan, build
from common.records import AdapterSpec, AdapterTargets
from coordinator.algorithms.compression import (
    config_of,
    cut,
    ffn_widths,
    plan_ffn_pruning,
    plan_full,
    plan_layer_drop,
)
from coordinator.algorithms.plugging import plug, seen_from_below
from coordinator.algorithms.saliency import l2_norm
from tests.families import small_model
from tests.small import same_bits

SPEC = AdapterSpec(AdapterTargets.ATTENTION_FFN, rank=3, alpha=6.0, dropout=0.0)
IN_FULL = AdapterSpec(AdapterTargets.ATTENTION_NEURONS, rank=3, alpha=6.0, dropout=0.0)
either = pytest.mark.parametrize("spec", [SPEC, IN_FULL], ids=["LoRA", "in full"])
every_family = pytest.mark.parametrize("model_type", FAMILIES)


def both(model_type: str, plan_of: str, spec: AdapterSpec = SPEC) -> tuple[Adapted, Adapted, SubModelPlan]:
    fm = small_model(model_type)
    kind = FAMILIES[model_type].tasks[0]
    scores = [l2_norm(ffn) for ffn in ffns_of(fm)]
    plan = {
        "pruned": lambda: plan_ffn_pruning(scores, 0.75),
        "everything": lambda: plan_ffn_pruning(scores, 0.0, 0, 0),
        "full": lambda: plan_full(fm),
        "dropped": lambda: plan_layer_drop(fm, 0.75),
    }[plan_of]()
    sub_fm = build(config_of(fm, plan), kind, ffn_widths(fm, plan), cut(fm, plan))
    return Adapted(fm, kind, spec, seed=1), Adapted(sub_fm, kind, spec, seed=1), plan


def trained_values(adapted: Adapted) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(4)
    return {n: t + 0.3 * torch.randn(t.shape, generator=draw) for n, t in adapted.tensors().items()}


def plugged(fm: Adapted, adapter: dict[str, Tensor], plan: SubModelPlan) -> dict[str, Tensor]:
    widths = tuple(ffn.width for ffn in ffns_of(fm.base))
    return plug(adapter, plan, fm.base.config, fm.tensors(), widths)


@every_family
@either
@pytest.mark.parametrize("plan_of", ["everything", "full"])
def test_on_a_plan_that_keeps_everything_nothing_is_changed(
    model_type: str, plan_of: str, spec: AdapterSpec
) -> None:
    fm, sub_fm, plan = both(model_type, plan_of, spec)
    adapter = trained_values(sub_fm)
    assert same_bits(plugged(fm, adapter, plan), adapter)


@every_family
@either
@torch.no_grad()
def test_kept_neurons_get_their_change_and_cut_ones_none(model_type: str, spec: AdapterSpec) -> None:
    fm, sub_fm, plan = both(model_type, "pruned", spec)
    before = [p.weight.clone() for ffn in ffns_of(fm.base) for p in (*ffn.ins, ffn.out)]
    small = [p.weight.clone() for ffn in ffns_of(sub_fm.base) for p in (*ffn.ins, ffn.out)]
    adapter = trained_values(sub_fm)
    fm.load(plugged(fm, adapter, plan))
    sub_fm.load(adapter)
    merged, merged_sub = fm.merged(), sub_fm.merged()
    changes = _changes(merged, before)
    for i, layer in enumerate(plan.layers):
        sub_changes = _changes(merged_sub, small)[i]
        for (change, axis), (sub_change, _) in zip(changes[i], sub_changes, strict=True):
            neurons = layer.neurons if layer.neurons is not None else torch.arange(change.shape[axis])
            assert torch.allclose(change.index_select(axis, neurons), sub_change, atol=1e-6)
            rest = torch.ones(change.shape[axis], dtype=torch.bool)
            rest[neurons] = False
            assert not change.index_select(axis, rest.nonzero()[:, 0]).any()
            assert sub_change.abs().max() > 0.01


def _changes(model: PreTrainedModel, before: list[Tensor]) -> list[list[tuple[Tensor, int]]]:
    """By layer: what every map's weight gained, and the neurons' axis."""
    old = iter(before)
    return [
        [(p.weight - next(old), 0 if p is not ffn.out else 1) for p in (*ffn.ins, ffn.out)]
        for ffn in ffns_of(model)
    ]


@every_family
@either
@torch.no_grad()
def test_a_dropped_layer_keeps_an_adapter_that_changes_nothing(model_type: str, spec: AdapterSpec) -> None:
    fm, sub_fm, plan = both(model_type, "dropped", spec)
    sources = {layer.source for layer in plan.layers}
    (gone,) = set(range(4)) - sources
    full = plugged(fm, trained_values(sub_fm), plan)
    assert full.keys() == fm.tensors().keys()
    zero = (".lora_B.weight", RESIDUAL)
    untouched = {name for name in full if f".{gone}." in name and name.endswith(zero)}
    assert untouched and not any(full[name].any() for name in untouched)
    kept = {name for name in full if f".{plan.layers[1].source}." in name and name.endswith(zero)}
    assert all(full[name].any() for name in kept)
    fm.load(full)
    merged, original = layers_of(fm.merged()), layers_of(small_model(model_type))
    assert same_bits(merged[gone].state_dict(), original[gone].state_dict())
    assert not same_bits(merged[0].state_dict(), original[0].state_dict())


@every_family
@either
@pytest.mark.parametrize("plan_of", ["pruned", "dropped"])
def test_seen_from_below_the_plugged_adapter_is_the_sub_fms(
    model_type: str, plan_of: str, spec: AdapterSpec
) -> None:
    fm, sub_fm, plan = both(model_type, plan_of, spec)
    adapter = trained_values(sub_fm)
    full = plugged(fm, adapter, plan)
    assert same_bits(seen_from_below(adapter, full, plan, fm.base.config), adapter)


def test_a_residual_is_scattered_like_lora() -> None:
    fm, sub_fm, plan = both("bert", "pruned")
    adapter = trained_values(sub_fm)
    up, down = (
        f"{PEFT_PREFIX}bert.encoder.layer.1.{path}{RESIDUAL}"
        for path in ("intermediate.dense", "output.dense")
    )
    adapter |= {up: torch.randn(16, 32), down: torch.randn(32, 16)}
    full = plugged(fm, adapter, plan)
    neurons = plan.layers[1].neurons
    assert neurons is not None
    assert full[up].shape == (64, 32) and torch.equal(full[up][neurons], adapter[up])
    assert full[down].shape == (32, 64) and torch.equal(full[down][:, neurons], adapter[down])
    assert int((full[up].abs().sum(1) > 0).sum()) == 16
