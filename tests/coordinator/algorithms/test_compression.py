"""The sub-FM: which neurons and layers stay, and that everything else is the FM's."""

import pytest
import torch
from transformers import PreTrainedModel

from common.model.families import FAMILIES
from common.model.ffn import Ffn, ffns_of
from common.model.layers import layer_prefix, layers_of
from common.model.submodel import SubModelPlan, build, own_weights
from common.records import TaskKind
from coordinator.algorithms.compression import (
    config_of,
    cut,
    ffn_widths,
    plan_ffn_pruning,
    plan_full,
    plan_layer_drop,
)
from coordinator.algorithms.saliency import l2_norm
from tests.families import FFN, LAYERS, small_inputs, small_model
from tests.small import copies, same_bits

every_task = pytest.mark.parametrize(
    ("model_type", "kind"), [(name, kind) for name, family in FAMILIES.items() for kind in family.tasks]
)
every_family = pytest.mark.parametrize("model_type", FAMILIES)


@pytest.fixture(scope="module")
def bert() -> PreTrainedModel:
    return small_model("bert")


def pruned(fm: PreTrainedModel, ratio: float, first: int = 1, last: int = 1) -> SubModelPlan:
    return plan_ffn_pruning([l2_norm(ffn) for ffn in ffns_of(fm)], ratio, first, last)


def sub_fm_of(fm: PreTrainedModel, plan: SubModelPlan, kind: TaskKind | None = None) -> PreTrainedModel:
    kind = kind or FAMILIES[fm.config.model_type].tasks[0]
    return build(config_of(fm, plan), kind, ffn_widths(fm, plan), cut(fm, plan))


@torch.no_grad()
def distance(fm: PreTrainedModel, sub_fm: PreTrainedModel) -> float:
    inputs = small_inputs(fm, 8)
    return float((sub_fm(**inputs).logits - fm(**inputs).logits).abs().max())


@every_task
def test_a_plan_that_keeps_every_neuron_gives_the_fms_outputs(model_type: str, kind: TaskKind) -> None:
    fm = small_model(model_type, kind)
    plan = pruned(fm, 0)
    assert ffn_widths(fm, plan) == (FFN,) * LAYERS
    assert all(layer.neurons is not None for layer in plan.layers[1:-1])
    assert distance(fm, sub_fm_of(fm, plan, kind)) < 1e-5


@every_task
def test_the_full_plan_gives_the_fm_itself(model_type: str, kind: TaskKind) -> None:
    fm = small_model(model_type, kind)
    plan = plan_full(fm)
    assert plan.compressed == ()
    assert same_bits(cut(fm, plan), own_weights(fm))
    assert distance(fm, sub_fm_of(fm, plan, kind)) == 0


@every_family
def test_cut_neurons_are_missed(model_type: str) -> None:
    fm = small_model(model_type)
    assert distance(fm, sub_fm_of(fm, pruned(fm, 0.75))) > 1e-3


@pytest.mark.parametrize(
    ("drop_ratio", "keep_first", "keep_last", "widths"),
    [
        (0.75, 1, 1, (64, 16, 16, 64)),
        (0.5, 0, 0, (32, 32, 32, 32)),
        (0.75, 2, 1, (64, 64, 16, 64)),
        (0.75, 0, 3, (16, 64, 64, 64)),
        (0.75, 3, 3, (64, 64, 64, 64)),
        (0.999, 1, 1, (64, 1, 1, 64)),
        (0.3, 1, 1, (64, 45, 45, 64)),
    ],
)
def test_widths_are_what_ratio_and_whole_layers_say(
    bert: PreTrainedModel, drop_ratio: float, keep_first: int, keep_last: int, widths: tuple[int, ...]
) -> None:
    plan = pruned(bert, drop_ratio, keep_first, keep_last)
    assert ffn_widths(bert, plan) == widths
    assert plan.compressed == tuple(i for i, width in enumerate(widths) if width < FFN)


def neuron_size(ffn: Ffn) -> int:
    """Parameters that go with a neuron: its rows, their biases, its column."""
    rows = sum(p.weight.shape[1] + (p.bias is not None) for p in ffn.ins)
    return rows + ffn.out.weight.shape[0]


@every_family
def test_ffn_parameters_are_as_many_as_the_widths_say(model_type: str) -> None:
    fm = small_model(model_type)
    sub_fm = sub_fm_of(fm, pruned(fm, 0.75))
    # 48 of 64 neurons go in each of two layers.
    lost = 2 * 48 * neuron_size(ffns_of(fm)[1])
    assert sum(p.numel() for p in sub_fm.parameters()) == sum(p.numel() for p in fm.parameters()) - lost
    for whole, layer in zip(layers_of(fm), layers_of(sub_fm), strict=True):
        assert set(dict(whole.named_parameters())) == set(dict(layer.named_parameters()))


def test_the_most_salient_neurons_stay_in_their_order(bert: PreTrainedModel) -> None:
    for layer in pruned(bert, 0.75).layers[1:-1]:
        assert layer.neurons is not None
        kept = layer.neurons.tolist()
        assert kept == sorted(kept)
        saliency = l2_norm(ffns_of(bert)[layer.source])
        dropped = sorted(set(range(FFN)) - set(kept))
        assert saliency[kept].min() >= saliency[dropped].max()


def test_equally_salient_neurons_are_kept_from_the_first() -> None:
    plan = plan_ffn_pruning([torch.ones(FFN)] * LAYERS, 0.75)
    assert plan.layers[1].neurons is not None
    assert plan.layers[1].neurons.tolist() == list(range(16))


@every_family
def test_a_kept_neuron_is_the_fms_and_so_is_everything_but_ffns(model_type: str) -> None:
    fm = small_model(model_type)
    plan = pruned(fm, 0.75)
    sub_fm = sub_fm_of(fm, plan)
    for i in plan.compressed:
        neurons = plan.layers[i].neurons
        assert neurons is not None
        old, new = ffns_of(fm)[i], ffns_of(sub_fm)[i]
        for below, above in zip(new.ins, old.ins, strict=True):
            assert torch.equal(below.weight, above.weight[neurons])
            if above.bias is not None:
                assert below.bias is not None
                assert torch.equal(below.bias, above.bias[neurons])
        assert torch.equal(new.out.weight, old.out.weight[:, neurons])
    changed = {id(p) for i in plan.compressed for p in ffns_of(sub_fm)[i].neuron_parameters()}
    rest = {name: p for name, p in sub_fm.named_parameters() if id(p) not in changed}
    whole = dict(fm.named_parameters())
    assert same_bits(rest, {name: whole[name] for name in rest})


@every_family
def test_layers_that_lose_neurons_share_no_memory_with_the_fm(model_type: str) -> None:
    """What an alignment may write into; the rest is the FM's own."""
    fm = small_model(model_type)
    before = copies(fm.state_dict())
    plan = pruned(fm, 0.75)
    cut_layers = tuple(layer_prefix(fm.config, i) for i in plan.compressed)
    written = [tensor for name, tensor in cut(fm, plan).items() if name.startswith(cut_layers)]
    for tensor in written:
        tensor.zero_()
    assert written and same_bits(fm.state_dict(), before)


@every_family
def test_layer_drop_keeps_whole_layers_of_matching_size(model_type: str) -> None:
    fm = small_model(model_type)
    plan = plan_layer_drop(fm, 0.75)
    sources = [layer.source for layer in plan.layers]
    assert sources[0] == 0 and sources[-1] == LAYERS - 1 and sources == sorted(set(sources))
    assert all(layer.neurons is None for layer in plan.layers)

    def size(model: PreTrainedModel) -> int:
        return sum(p.numel() for layer in layers_of(model) for p in layer.parameters())

    one = size(fm) / LAYERS
    emulator, sub_fm = sub_fm_of(fm, plan), sub_fm_of(fm, pruned(fm, 0.75))
    assert abs(size(emulator) - size(sub_fm)) <= one / 2
    assert distance(fm, emulator) > 1e-3
    for i, source in enumerate(sources):
        prefix, own = layer_prefix(fm.config, source), layer_prefix(fm.config, i)
        for name, tensor in emulator.state_dict().items():
            if name.startswith(own):
                assert torch.equal(tensor, fm.state_dict()[prefix + name.removeprefix(own)])


def test_layer_drop_of_minilms_shape_keeps_four_of_six() -> None:
    """The packaged MiniLM: 7.10 of 10.65 million parameters are four layers of six."""
    fm = small_model("bert", num_hidden_layers=6, intermediate_size=128)
    assert [layer.source for layer in plan_layer_drop(fm, 0.75).layers] == [0, 2, 3, 5]
    assert [layer.source for layer in plan_layer_drop(fm, 0.0).layers] == list(range(6))
