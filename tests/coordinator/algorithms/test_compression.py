"""The sub-FM: which neurons stay, and that everything else is the FM's."""

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from common.batches import Dataset
from common.model.families import ffn_names, ffns_of, layers_of
from common.model.submodel import SubModelPlan, build
from coordinator.algorithms.compression import cut, ffn_widths, plan_ffn_pruning, plan_full
from coordinator.algorithms.saliency import l2_norm
from tests.conftest import FFN, HIDDEN, LAYERS
from tests.small import copies, load_model, load_texts, logits, same_bits


@pytest.fixture(scope="module")
def fm(model_folder: Path) -> PreTrainedModel:
    return load_model(model_folder)


@pytest.fixture(scope="module")
def texts(model_folder: Path) -> Dataset:
    return load_texts(model_folder, 16)


def sub_fm_of(fm: PreTrainedModel, plan: SubModelPlan) -> PreTrainedModel:
    return build(fm.config, ffn_widths(fm, plan), cut(fm, plan))


def test_a_plan_that_keeps_every_neuron_gives_the_fms_logits(fm: PreTrainedModel, texts: Dataset) -> None:
    plan, batch = plan_ffn_pruning(fm, drop_ratio=0), texts.batch(range(16))
    assert ffn_widths(fm, plan) == (FFN,) * LAYERS
    assert (logits(sub_fm_of(fm, plan), batch) - logits(fm, batch)).abs().max() < 1e-5


def test_the_full_plan_gives_the_fm_itself(fm: PreTrainedModel) -> None:
    plan = plan_full(fm)
    assert plan.compressed == ()
    assert same_bits(cut(fm, plan), fm.state_dict())


def test_cut_neurons_are_missed(fm: PreTrainedModel, texts: Dataset) -> None:
    sub_fm, batch = sub_fm_of(fm, plan_ffn_pruning(fm, drop_ratio=0.75)), texts.batch(range(16))
    assert (logits(sub_fm, batch) - logits(fm, batch)).abs().max() > 1e-3


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
    fm: PreTrainedModel, drop_ratio: float, keep_first: int, keep_last: int, widths: tuple[int, ...]
) -> None:
    plan = plan_ffn_pruning(fm, drop_ratio, keep_first, keep_last)
    assert ffn_widths(fm, plan) == widths
    assert plan.compressed == tuple(i for i, width in enumerate(widths) if width < FFN)


def test_parameters_are_as_many_as_the_widths_say(fm: PreTrainedModel) -> None:
    sub_fm = sub_fm_of(fm, plan_ffn_pruning(fm, drop_ratio=0.75))
    # A cut neuron takes with it a row of up, a bias and a column of down; 48 go in each of two layers.
    lost = 2 * 48 * (2 * HIDDEN + 1)
    assert sum(p.numel() for p in sub_fm.parameters()) == sum(p.numel() for p in fm.parameters()) - lost
    for whole, layer in zip(layers_of(fm), layers_of(sub_fm), strict=True):
        kept = set(dict(whole.named_parameters())) == set(dict(layer.named_parameters()))
        assert kept


def test_the_most_salient_neurons_stay_in_their_order(fm: PreTrainedModel) -> None:
    plan = plan_ffn_pruning(fm, drop_ratio=0.75)
    for layer in plan.layers[1:-1]:
        assert layer.neurons is not None
        kept = layer.neurons.tolist()
        assert kept == sorted(kept)
        saliency = l2_norm(ffns_of(fm)[layer.source])
        dropped = sorted(set(range(FFN)) - set(kept))
        assert saliency[kept].min() >= saliency[dropped].max()


def test_equally_salient_neurons_are_kept_from_the_first(fm: PreTrainedModel) -> None:
    plan = plan_ffn_pruning(fm, drop_ratio=0.75, saliency=lambda ffn: torch.ones(ffn.width))
    assert plan.layers[1].neurons is not None
    assert plan.layers[1].neurons.tolist() == list(range(16))


def test_a_kept_neuron_is_the_fms_and_so_is_everything_but_ffns(fm: PreTrainedModel) -> None:
    plan = plan_ffn_pruning(fm, drop_ratio=0.75)
    weights, whole = cut(fm, plan), fm.state_dict()
    for i in plan.compressed:
        neurons = plan.layers[i].neurons
        assert neurons is not None
        up, down = ffn_names(fm.config, i)
        for new, old in enumerate(neurons.tolist()):
            assert torch.equal(weights[f"{up}.weight"][new], whole[f"{up}.weight"][old])
            assert torch.equal(weights[f"{up}.bias"][new], whole[f"{up}.bias"][old])
            assert torch.equal(weights[f"{down}.weight"][:, new], whole[f"{down}.weight"][:, old])
        for name in (f"{up}.weight", f"{up}.bias", f"{down}.weight"):
            del weights[name], whole[name]
    assert same_bits(weights, whole)


def test_the_sub_fm_shares_no_memory_with_the_fm(fm: PreTrainedModel) -> None:
    before = copies(fm.state_dict())
    weights = cut(fm, plan_ffn_pruning(fm, drop_ratio=0.75))
    for tensor in weights.values():
        tensor.zero_()
    assert same_bits(fm.state_dict(), before)
