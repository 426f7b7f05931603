"""What a sub-FM shows of its FM, counted; and cut vectors, found however they are laid."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.model.families import FAMILIES
from common.model.ffn import ffns_of
from common.model.int8 import as_rounded, channels_of
from common.model.layers import layers_of
from common.model.submodel import LayerPlan, SubModelPlan, build, own_weights
from common.records import TaskKind
from coordinator.algorithms import compression, exposure
from coordinator.algorithms.saliency import l2_norm
from tests.families import small_model

Tensors = dict[str, Tensor]


def pruned(fm: PreTrainedModel) -> SubModelPlan:
    return compression.plan_ffn_pruning([l2_norm(ffn) for ffn in ffns_of(fm)], drop_ratio=0.75)


every_family = pytest.mark.parametrize("model_type", FAMILIES)


@pytest.fixture
def fm(model_type: str) -> PreTrainedModel:
    return small_model(model_type, FAMILIES[model_type].tasks[0])


@pytest.fixture
def bert() -> PreTrainedModel:
    return small_model("bert", FAMILIES["bert"].tasks[0])


@every_family
def test_a_sub_fm_shows_no_cut_neuron_and_counts_add_up(fm: PreTrainedModel) -> None:
    plan = pruned(fm)
    weights = compression.cut(fm, plan)
    secret = exposure.withheld(fm, plan)
    ffns = ffns_of(fm)
    cut = sum(ffns[i].width - len(plan.layers[i].neurons) for i in plan.compressed)  # type: ignore[arg-type]
    assert len(secret.names) == cut * (len(ffns[0].ins) + 1)
    assert exposure.find(secret, weights) == []
    assert exposure.holds_plan(plan, weights) is None
    counted = exposure.exposures(fm, plan, [weights])
    assert sum(e.parameters for e in counted) == sum(t.numel() for t in own_weights(fm).values())
    assert sum(e.as_is for e in counted) == sum(t.numel() for t in weights.values())
    assert sum(e.aligned for e in counted) == 0
    assert {e.layer for e in counted if e.withheld} == set(plan.compressed)
    assert {e.kind for e in counted if e.withheld} == {"FFN"}
    assert {"attention", "FFN", "normalisation"} <= {e.kind for e in counted}


@every_family
def test_every_vector_of_a_cut_neuron_is_found_in_the_whole_fm(fm: PreTrainedModel) -> None:
    secret = exposure.withheld(fm, pruned(fm))
    found = exposure.find(secret, own_weights(fm), most=10**6)
    assert {f.what for f in found} == set(secret.names)


HIDDEN: dict[str, Callable[[Tensor], Tensor]] = {
    "row": lambda v: torch.stack([torch.randn_like(v), v]),
    "column": lambda v: torch.stack([torch.randn_like(v), v, torch.randn_like(v)], dim=1),
    "vector": lambda v: v,
    "end to end": lambda v: torch.cat([torch.randn_like(v), v, torch.randn(5)]),
    "batched": lambda v: torch.stack([torch.randn_like(v), v]).reshape(1, 2, -1),
    "half precision": lambda v: v.to(torch.bfloat16).unsqueeze(0),
    "scaled": lambda v: -3.5 * v.unsqueeze(0),
    "noisy": lambda v: (v + 0.005 * v.norm() * torch.nn.functional.normalize(torch.randn_like(v), dim=0))[
        None
    ],
}


@pytest.mark.parametrize("how", HIDDEN)
@pytest.mark.parametrize("part", ["in", "out"])
def test_a_planted_vector_is_found(bert: PreTrainedModel, how: str, part: str) -> None:
    plan = pruned(bert)
    kept = plan.layers[1].neurons
    assert kept is not None
    neuron = next(n for n in range(1000) if n not in kept)
    ffn = ffns_of(bert)[1]
    vector = (ffn.ins[0].weight[neuron] if part == "in" else ffn.out.weight[:, neuron]).detach()
    torch.manual_seed(0)
    planted: Tensors = {"innocent": torch.randn(7, len(vector)), "planted": HIDDEN[how](vector)}
    found = exposure.find(exposure.withheld(bert, plan), planted)
    assert {f.tensor for f in found} == {"planted"}
    assert any(f.what.startswith(f"layer 1, neuron {neuron}, ") for f in found)


def test_what_an_alignment_changed_counts_as_aligned(bert: PreTrainedModel) -> None:
    plan = pruned(bert)
    weights = compression.cut(bert, plan)
    aligned = {name: t + 1 if "layer.1.intermediate" in name else t for name, t in weights.items()}
    (changed,) = [e for e in exposure.exposures(bert, plan, [aligned]) if e.aligned]
    assert (changed.layer, changed.kind) == (1, "FFN")
    # A value that was served as it is before an alignment stays shown.
    assert not any(e.aligned for e in exposure.exposures(bert, plan, [weights, aligned]))


def test_of_int8_the_fms_own_values_count_as_such_and_planted_ones_are_found() -> None:
    fm = small_model("llama", TaskKind.CAUSAL_LM)
    plan = pruned(fm)
    weights = compression.cut(fm, plan)
    module = build(
        compression.config_of(fm, plan), TaskKind.CAUSAL_LM, compression.ffn_widths(fm, plan), weights
    )
    held = channels_of(module, TaskKind.CAUSAL_LM)
    served = as_rounded(weights, held)
    assert not any(e.aligned for e in exposure.exposures(fm, plan, [served], held))
    assert any(e.aligned for e in exposure.exposures(fm, plan, [served]))
    secret = exposure.withheld(fm, plan)
    assert exposure.find(secret, served) == []
    layer = plan.compressed[0]
    neurons = plan.layers[layer].neurons
    assert neurons is not None
    cut = next(i for i in range(ffns_of(fm)[layer].width) if i not in neurons.tolist())
    name = f"model.layers.{layer}.mlp.down_proj.weight"
    weights[name] = weights[name].clone()
    weights[name][:, 2] = ffns_of(fm)[plan.layers[layer].source].out.weight[:, cut].detach()
    (finding,) = exposure.find(secret, as_rounded(weights, held))
    assert (finding.tensor, finding.row) == (name, 2)


def test_a_dropped_layer_is_withheld_as_a_whole(bert: PreTrainedModel) -> None:
    plan = SubModelPlan((LayerPlan(0, None), LayerPlan(3, None)))
    weights = compression.cut(bert, plan)
    secret = exposure.withheld(bert, plan)
    assert exposure.find(secret, weights) == []
    gone = {e.layer for e in exposure.exposures(bert, plan, [weights]) if e.withheld}
    assert gone == {1, 2}
    query = layers_of(bert)[2].attention.self.query.weight  # type: ignore[union-attr]
    assert exposure.find(secret, {"w": query[4:5]})[0].what.startswith("layer 2, ")


def test_a_whole_sub_fm_withholds_nothing(bert: PreTrainedModel) -> None:
    plan = compression.plan_full(bert)
    assert exposure.withheld(bert, plan).names == ()
    assert not any(e.withheld for e in exposure.exposures(bert, plan, [compression.cut(bert, plan)]))


def test_a_list_of_kept_neurons_is_found(bert: PreTrainedModel) -> None:
    plan = pruned(bert)
    neurons = plan.layers[1].neurons
    assert neurons is not None
    assert exposure.holds_plan(plan, {"1.neurons": neurons.flip(0).to(torch.int32)}) == "1.neurons"
    assert exposure.holds_plan(plan, {"1.neurons": torch.arange(len(neurons))}) is None


def test_a_copy_of_a_kept_neuron_is_no_secret(bert: PreTrainedModel) -> None:
    plan = pruned(bert)
    kept = plan.layers[1].neurons
    assert kept is not None
    twin = next(n for n in range(1000) if n not in kept)
    weight = ffns_of(bert)[1].ins[0].weight
    with torch.no_grad():
        weight[twin] = weight[kept[0]]
    names = exposure.withheld(bert, replace(plan)).names
    assert f"layer 1, neuron {twin}, row of map 0 into it" not in names
    assert f"layer 1, neuron {twin}, column of the map out of it" in names
