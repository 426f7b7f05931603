"""The adapter: LoRA on attention plus the head, the same tensors for FM and sub-FM."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from common.batches import Dataset
from common.errors import BadUpdate
from common.model.adapter import Adapted, difference, lora_config, plus
from common.model.families import family_named
from common.records import AdapterSpec
from tests.conftest import HIDDEN, LAYERS
from tests.small import HEAD_ONLY, LORA, copies, load_model, load_texts, logits, same_bits

HEAD = {"base_model.model.classifier.weight", "base_model.model.classifier.bias"}


@pytest.fixture
def model(model_folder: Path) -> PreTrainedModel:
    return load_model(model_folder)


@pytest.fixture(scope="module")
def texts(model_folder: Path) -> Dataset:
    return load_texts(model_folder, 8)


def other_values(adapted: Adapted) -> dict[str, Tensor]:
    """An adapter that does something."""
    generator = torch.Generator().manual_seed(3)
    return {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in adapted.tensors().items()}


@pytest.mark.parametrize("spec", [LORA, HEAD_ONLY], ids=["attention", "none"])
def test_a_fresh_adapter_changes_nothing(model: PreTrainedModel, texts: Dataset, spec: AdapterSpec) -> None:
    batch = texts.batch(range(8))
    plain = logits(model, batch)
    adapted = Adapted(model, spec)
    assert not adapted.model.training
    assert torch.equal(logits(adapted.model, batch), plain)


def test_lora_sits_on_attention_only_and_has_the_size_its_rank_says(model: PreTrainedModel) -> None:
    tensors = Adapted(model, LORA).tensors()
    lora = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    assert tensors.keys() - lora.keys() == HEAD
    assert all(".attention." in name for name in lora)
    # Four square projections in every layer, each with A [r, d] and B [d, r].
    assert sum(t.numel() for t in lora.values()) == LAYERS * 4 * 2 * LORA.rank * HIDDEN


def test_without_targets_the_head_is_all(model: PreTrainedModel) -> None:
    adapted = Adapted(model, HEAD_ONLY)
    lora, head = adapted.parameter_groups()
    assert adapted.tensors().keys() == HEAD
    assert lora == []
    assert {id(p) for p in head} == {id(p) for p in model.classifier.parameters()}


def test_what_is_trainable_is_what_travels(model: PreTrainedModel) -> None:
    adapted = Adapted(model, LORA)
    lora, head = adapted.parameter_groups()
    assert sum(p.numel() for p in [*lora, *head]) == sum(t.numel() for t in adapted.tensors().values())
    assert sum(p.numel() for p in head) == 2 * HIDDEN + 2


def test_a_seed_fixes_the_first_adapter_and_leaves_torchs_generator_alone(model_folder: Path) -> None:
    before = torch.get_rng_state()
    first, again, other = (Adapted(load_model(model_folder), LORA, seed).tensors() for seed in (1, 1, 2))
    assert same_bits(first, again)
    assert not same_bits(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("spec", [LORA, HEAD_ONLY], ids=["attention", "none"])
def test_an_adapter_comes_back_as_it_went_in(
    model: PreTrainedModel, texts: Dataset, spec: AdapterSpec
) -> None:
    adapted, batch = Adapted(model, spec), texts.batch(range(8))
    before = logits(adapted.model, batch)
    wanted = other_values(adapted)
    adapted.load(wanted)
    assert same_bits(adapted.tensors(), wanted)
    assert not torch.allclose(logits(adapted.model, batch), before)


def test_the_tensors_are_copies(model: PreTrainedModel) -> None:
    adapted = Adapted(model, LORA)
    taken = adapted.tensors()
    before = copies(taken)
    adapted.load(other_values(adapted))
    assert same_bits(taken, before)


@pytest.mark.parametrize("spec", [LORA, HEAD_ONLY], ids=["attention", "none"])
@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_an_adapter_of_another_model_is_refused_and_nothing_is_loaded(
    model: PreTrainedModel, spec: AdapterSpec, fault: str
) -> None:
    adapted = Adapted(model, spec)
    before, tensors = adapted.tensors(), other_values(adapted)
    name = "base_model.model.classifier.bias"
    match fault:
        case "missing":
            del tensors[name]
        case "unknown":
            name = "base_model.model.odd"
            tensors[name] = torch.zeros(1)
        case "shape":
            tensors[name] = torch.zeros(3)
    with pytest.raises(BadUpdate, match=f"the adapter does not fit the model: tensor {name}"):
        adapted.load(tensors)
    assert same_bits(adapted.tensors(), before)


@pytest.mark.parametrize("spec", [LORA, HEAD_ONLY], ids=["attention", "none"])
def test_a_merged_model_is_plain_and_computes_the_same(
    model: PreTrainedModel, texts: Dataset, spec: AdapterSpec
) -> None:
    names, batch = set(model.state_dict()), texts.batch(range(8))
    adapted = Adapted(model, spec)
    adapted.load(other_values(adapted))
    wanted = logits(adapted.model, batch)
    merged = adapted.merged()
    assert not isinstance(merged, PeftModel)
    assert set(merged.state_dict()) == names
    assert (logits(merged, batch) - wanted).abs().max() < 1e-5


def test_the_pattern_of_targets_does_not_hit_ffn_or_pooler(model: PreTrainedModel) -> None:
    Adapted(model, LORA)
    carriers = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert len(carriers) == 4 * LAYERS
    assert not any("intermediate" in name or "pooler" in name for name in carriers)
    assert lora_config(LORA, family_named("bert")).lora_alpha == LORA.alpha


@given(st.lists(st.floats(-2, 2, width=32), min_size=1), st.floats(-1, 1, width=32))
def test_the_difference_leads_back_up_to_rounding(values: list[float], step: float) -> None:
    start = {"w": torch.tensor(values)}
    tuned = {"w": torch.tensor(values) + step}
    back = plus(start, difference(tuned, start))
    assert torch.allclose(back["w"], tuned["w"], atol=1e-6)
    assert same_bits(plus(start, difference(start, start)), start)
