"""The adapter: LoRA on attention or attention and FFN, plus the head; the same tensors for FM and sub-FM."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedModel

from common.data.batches import Dataset
from common.errors import BadUpdate
from common.model.adapter import (
    PEFT_PREFIX,
    RESIDUAL,
    Adapted,
    difference,
    heads_of,
    is_transposed,
    layer_pattern,
    lora_config,
    plus,
    trained,
)
from common.model.families import FAMILIES, family_named
from common.model.ffn import Projection
from common.model.layers import layers_of
from common.records import AdapterSpec, AdapterTargets, TaskKind
from tests.conftest import HIDDEN, LAYERS
from tests.families import small_inputs, small_model
from tests.small import HEAD_ONLY, LORA, TEXT, copies, load_model, load_texts, logits, same_bits

HEAD = {"base_model.model.classifier.weight", "base_model.model.classifier.bias"}
FFN_TOO = AdapterSpec(AdapterTargets.ATTENTION_FFN, rank=3, alpha=6.0, dropout=0.1)
FROZEN_A = AdapterSpec(AdapterTargets.ATTENTION, rank=4, alpha=8.0, dropout=0.1, freeze_a=True)
NEURONS = AdapterSpec(AdapterTargets.NEURONS, rank=3, alpha=6.0, dropout=0.1)
BOTH = AdapterSpec(AdapterTargets.ATTENTION_NEURONS, rank=3, alpha=6.0, dropout=0.1)
CAUSAL = TaskKind.CAUSAL_LM

every_spec = pytest.mark.parametrize(
    "spec",
    [LORA, FFN_TOO, HEAD_ONLY, FROZEN_A, NEURONS, BOTH],
    ids=["attention", "ffn", "none", "frozen A", "neurons", "attention and neurons"],
)
every_family = pytest.mark.parametrize("model_type", FAMILIES)


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


@every_spec
def test_a_fresh_adapter_changes_nothing(model: PreTrainedModel, texts: Dataset, spec: AdapterSpec) -> None:
    batch = texts.batch(range(8))
    plain = logits(model, batch)
    adapted = Adapted(model, TEXT, spec)
    assert not adapted.model.training
    assert torch.equal(logits(adapted.model, batch), plain)


def test_lora_sits_on_attention_only_and_has_the_size_its_rank_says(model: PreTrainedModel) -> None:
    tensors = Adapted(model, TEXT, LORA).tensors()
    lora = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    assert tensors.keys() - lora.keys() == HEAD
    assert all(".attention." in name for name in lora)
    # Four square projections in every layer, each with A [r, d] and B [d, r].
    assert sum(t.numel() for t in lora.values()) == LAYERS * 4 * 2 * LORA.rank * HIDDEN


def test_without_targets_the_head_is_all(model: PreTrainedModel) -> None:
    adapted = Adapted(model, TEXT, HEAD_ONLY)
    lora, _, head = adapted.parameter_groups()
    assert adapted.tensors().keys() == HEAD
    assert lora == []
    assert {id(p) for p in head} == {id(p) for p in model.classifier.parameters()}


def test_what_is_trainable_is_what_travels(model: PreTrainedModel) -> None:
    adapted = Adapted(model, TEXT, LORA)
    lora, _, head = adapted.parameter_groups()
    assert sum(p.numel() for p in [*lora, *head]) == sum(t.numel() for t in adapted.tensors().values())
    assert sum(p.numel() for p in head) == 2 * HIDDEN + 2


def test_a_seed_fixes_the_first_adapter_and_leaves_torchs_generator_alone(model_folder: Path) -> None:
    before = torch.get_rng_state()
    first, again, other = (
        Adapted(load_model(model_folder), TEXT, LORA, seed).tensors() for seed in (1, 1, 2)
    )
    assert same_bits(first, again)
    assert not same_bits(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@every_spec
def test_an_adapter_comes_back_as_it_went_in(
    model: PreTrainedModel, texts: Dataset, spec: AdapterSpec
) -> None:
    adapted, batch = Adapted(model, TEXT, spec), texts.batch(range(8))
    before = logits(adapted.model, batch)
    wanted = other_values(adapted)
    adapted.load(wanted)
    assert same_bits(adapted.tensors(), wanted)
    assert not torch.allclose(logits(adapted.model, batch), before)


def test_the_tensors_are_copies(model: PreTrainedModel) -> None:
    adapted = Adapted(model, TEXT, LORA)
    taken = adapted.tensors()
    before = copies(taken)
    adapted.load(other_values(adapted))
    assert same_bits(taken, before)


@every_spec
@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_an_adapter_of_another_model_is_refused_and_nothing_is_loaded(
    model: PreTrainedModel, spec: AdapterSpec, fault: str
) -> None:
    adapted = Adapted(model, TEXT, spec)
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


@every_spec
def test_a_merged_model_is_plain_and_computes_the_same(
    model: PreTrainedModel, texts: Dataset, spec: AdapterSpec
) -> None:
    names, batch = set(model.state_dict()), texts.batch(range(8))
    adapted = Adapted(model, TEXT, spec)
    adapted.load(other_values(adapted))
    wanted = logits(adapted.model, batch)
    merged = adapted.merged()
    assert not isinstance(merged, PeftModel)
    assert set(merged.state_dict()) == names
    assert (logits(merged, batch) - wanted).abs().max() < 1e-5


def test_the_pattern_of_targets_does_not_hit_ffn_or_pooler(model: PreTrainedModel) -> None:
    Adapted(model, TEXT, LORA)
    carriers = {name.partition(".lora_A")[0] for name, _ in model.named_parameters() if ".lora_A" in name}
    assert len(carriers) == 4 * LAYERS
    assert not any("intermediate" in name or "pooler" in name for name in carriers)
    assert lora_config(LORA, family_named("bert"), TEXT).lora_alpha == LORA.alpha


@given(st.lists(st.floats(-2, 2, width=32), min_size=1), st.floats(-1, 1, width=32))
def test_the_difference_leads_back_up_to_rounding(values: list[float], step: float) -> None:
    start = {"w": torch.tensor(values)}
    tuned = {"w": torch.tensor(values) + step}
    back = plus(start, difference(tuned, start, LORA))
    assert torch.allclose(back["w"], tuned["w"], atol=1e-6)
    assert same_bits(plus(start, difference(start, start, LORA)), start)


# --- every family, attention and FFN ---


def lora_by_map(adapted: Adapted) -> dict[str, dict[str, Tensor]]:
    """A and B [r, in], [out, r] by the path of the map that carries them."""
    found: dict[str, dict[str, Tensor]] = {}
    pattern = layer_pattern(adapted.base.config)
    for name, tensor in adapted.tensors().items():
        if match := pattern.fullmatch(name):
            path = name.removeprefix(PEFT_PREFIX).partition(".lora_")[0]
            found.setdefault(path, {})[match[4]] = tensor
    return found


@every_family
def test_lora_on_attention_and_ffn_has_the_size_its_rank_says(model_type: str) -> None:
    model, family = small_model(model_type), FAMILIES[model_type]
    paths = (*family.attention, *family.ffn_in, family.ffn_out)
    maps = [layer.get_submodule(path) for layer in layers_of(model) for path in paths]
    wanted = sum(FFN_TOO.rank * sum(m.weight.shape) for m in maps)  # type: ignore[misc, arg-type, union-attr]
    heads = sum(p.numel() for head in family.head for p in model.get_submodule(head).parameters())
    adapted = Adapted(model, family.tasks[0], FFN_TOO)
    lora = lora_by_map(adapted)
    assert len(lora) == LAYERS * len(paths)
    assert sum(t.numel() for parts in lora.values() for t in parts.values()) == wanted
    trainable = [p for group in adapted.parameter_groups() for p in group]
    assert sum(p.numel() for p in trainable) == wanted + heads
    assert sum(t.numel() for t in adapted.tensors().values()) == wanted + heads


@every_family
def test_an_adapter_goes_into_any_family_and_comes_back(model_type: str) -> None:
    model = small_model(model_type)
    inputs = small_inputs(model)
    with torch.no_grad():
        plain = model(**inputs).logits
        adapted = Adapted(model, FAMILIES[model_type].tasks[0], FFN_TOO, seed=1)
        assert torch.equal(adapted.model(**inputs).logits, plain)
        wanted = other_values(adapted)
        adapted.load(wanted)
        tuned = adapted.model(**inputs).logits
        assert same_bits(adapted.tensors(), wanted)
        assert not torch.allclose(tuned, plain, atol=1e-3)
        assert torch.allclose(adapted.merged()(**inputs).logits, tuned, atol=1e-4)


@every_family
def test_what_lora_adds_to_a_map_is_scale_times_b_a_however_the_map_is_stored(model_type: str) -> None:
    adapted = Adapted(small_model(model_type), FAMILIES[model_type].tasks[0], FFN_TOO)
    adapted.load(other_values(adapted))
    lora = lora_by_map(adapted)
    before = {path: Projection(adapted.base.get_submodule(path)).weight.clone() for path in lora}
    merged = adapted.merged()
    scale = FFN_TOO.alpha / FFN_TOO.rank
    for path, parts in lora.items():
        gained = Projection(merged.get_submodule(path)).weight - before[path]
        assert torch.allclose(gained, scale * parts["lora_B"] @ parts["lora_A"], atol=1e-5), path
        assert gained.abs().max() > 0.01


@every_family
def test_only_conv1d_is_transposed(model_type: str) -> None:
    model = small_model(model_type)
    assert is_transposed(model) is (model_type == "gpt2")
    kind, family = FAMILIES[model_type].tasks[0], FAMILIES[model_type]
    assert lora_config(LORA, family, kind, is_transposed(model)).fan_in_fan_out is (model_type == "gpt2")


# --- heads ---


@pytest.mark.parametrize("model_type", [n for n, family in FAMILIES.items() if CAUSAL in family.tasks])
def test_a_language_model_has_no_head_to_tune(model_type: str) -> None:
    adapted = Adapted(small_model(model_type, CAUSAL), CAUSAL, LORA)
    assert heads_of(adapted.family, CAUSAL) == ()
    assert adapted.parameter_groups().head == []
    assert all(".lora_" in name for name in adapted.tensors())


@every_spec
def test_distilberts_head_has_two_parts(spec: AdapterSpec) -> None:
    adapted = Adapted(small_model("distilbert"), TEXT, spec)
    heads = {n for n in adapted.tensors() if ".lora_" not in n and not n.endswith(RESIDUAL)}
    assert heads == {
        f"{PEFT_PREFIX}{part}.{kind}"
        for part in ("pre_classifier", "classifier")
        for kind in ("weight", "bias")
    }
    assert len(adapted.parameter_groups().head) == 4
    wanted = other_values(adapted)
    adapted.load(wanted)
    assert same_bits(adapted.tensors(), wanted)


# --- frozen A (FFA-LoRA) ---


def test_a_frozen_a_is_part_of_the_adapter_but_not_trained(model: PreTrainedModel) -> None:
    adapted = Adapted(model, TEXT, FROZEN_A)
    names = set(adapted.tensors())
    frozen = {name for name in names if not trained(name, FROZEN_A)}
    assert frozen == {name for name in names if name.endswith(".lora_A.weight")} != set()
    trainable = {name for name, p in adapted.model.named_parameters() if p.requires_grad}
    assert not any(".lora_A." in name for name in trainable)
    assert len(trainable) == len(names - frozen)
    assert all(trained(name, LORA) for name in names)


def test_a_frozen_a_does_not_travel_and_stays_where_it_was(model: PreTrainedModel) -> None:
    adapted = Adapted(model, TEXT, FROZEN_A)
    start, tuned = adapted.tensors(), other_values(adapted)
    delta = difference(tuned, start, FROZEN_A)
    assert delta.keys() == {name for name in start if not name.endswith(".lora_A.weight")}
    result = plus(start, delta)
    assert result.keys() == start.keys()
    for name, value in result.items():
        expected = start[name] if name.endswith(".lora_A.weight") else start[name] + delta[name]
        assert torch.equal(value, expected)


# --- residuals (FedEx-LoRA) ---


def residuals_for(adapted: Adapted) -> dict[str, Tensor]:
    """What the first layer's attention output and the second's FFN gain, [out, in]."""
    stack = f"{adapted.family.encoder}.{adapted.family.layers}"
    paths = [f"{stack}.0.{adapted.family.attention[-1]}", f"{stack}.1.{adapted.family.ffn_out}"]
    draw = torch.Generator().manual_seed(5)
    shapes = {path: Projection(adapted.base.get_submodule(path)).weight.shape for path in paths}
    return {
        f"{PEFT_PREFIX}{path}{RESIDUAL}": torch.randn(shape, generator=draw) for path, shape in shapes.items()
    }


def maps_of(adapted: Adapted) -> dict[str, Tensor]:
    """Copies of the weights [out, in] below LoRA."""
    family = adapted.family
    return {
        f"{PEFT_PREFIX}{family.encoder}.{family.layers}.{i}.{path}{RESIDUAL}": Projection(
            layer.get_submodule(path)
        )
        .weight.detach()
        .clone()
        for i, layer in enumerate(layers_of(adapted.base))
        for path in (*family.attention, *family.ffn_in, family.ffn_out)
    }


@every_family
def test_residuals_add_to_the_base_weights_and_are_taken_off_to_the_bit(model_type: str) -> None:
    adapted = Adapted(small_model(model_type), FAMILIES[model_type].tasks[0], LORA)
    plain, residuals, before = adapted.tensors(), residuals_for(adapted), maps_of(adapted)
    adapted.load(plain | residuals)
    assert same_bits(adapted.tensors(), plain | residuals)
    after = maps_of(adapted)
    for name, weight in before.items():
        assert torch.equal(after[name], weight + residuals[name] if name in residuals else weight)
    # Not on top of each other: a second load replaces the first.
    adapted.load(plain | {name: 2 * tensor for name, tensor in residuals.items()})
    twice = maps_of(adapted)
    assert all(torch.equal(twice[name], before[name] + 2 * residuals[name]) for name in residuals)
    adapted.load(plain)
    assert same_bits(maps_of(adapted), before)
    assert same_bits(adapted.tensors(), plain)


@every_family
def test_a_merged_model_contains_the_residuals(model_type: str) -> None:
    adapted = Adapted(small_model(model_type), FAMILIES[model_type].tasks[0], LORA)
    plain, residuals, before = adapted.tensors(), residuals_for(adapted), maps_of(adapted)
    inputs = small_inputs(adapted.base)
    with torch.no_grad():
        without = adapted.model(**inputs).logits
        adapted.load(plain | residuals)
        wanted = adapted.model(**inputs).logits
        merged = adapted.merged()
        assert torch.allclose(merged(**inputs).logits, wanted, atol=1e-4)
    assert not torch.allclose(wanted, without, atol=1e-3)
    for name, residual in residuals.items():
        path = name.removeprefix(PEFT_PREFIX).removesuffix(RESIDUAL)
        gained = Projection(merged.get_submodule(path)).weight - before[name]
        assert torch.allclose(gained, residual, atol=1e-5)


@pytest.mark.parametrize("fault", ["no such path", "no map", "shape", "transposed"])
def test_a_residual_that_fits_nothing_is_refused_and_changes_nothing(fault: str) -> None:
    adapted = Adapted(small_model("gpt2"), FAMILIES["gpt2"].tasks[0], LORA)
    plain, residuals, before = adapted.tensors(), residuals_for(adapted), maps_of(adapted)
    # After those that fit, in the order of names.
    name, tensor = {
        "no such path": (f"{PEFT_PREFIX}transformer.h.9.attn.c_proj{RESIDUAL}", torch.ones(HIDDEN, HIDDEN)),
        "no map": (f"{PEFT_PREFIX}transformer.h.3.ln_2{RESIDUAL}", torch.ones(HIDDEN)),
        "shape": (f"{PEFT_PREFIX}transformer.h.3.attn.c_proj{RESIDUAL}", torch.ones(HIDDEN)),
        "transposed": (f"{PEFT_PREFIX}transformer.h.3.attn.c_attn{RESIDUAL}", torch.ones(HIDDEN, 3 * HIDDEN)),
    }[fault]
    with pytest.raises(BadUpdate, match="the adapter does not fit the model"):
        adapted.load(plain | residuals | {name: tensor})
    assert same_bits(maps_of(adapted), before)
    assert same_bits(adapted.tensors(), plain)


def test_residuals_are_never_trained() -> None:
    adapted = Adapted(small_model("bert"), TEXT, LORA)
    start = adapted.tensors() | residuals_for(adapted)
    adapted.load(start)
    residuals = {name for name in start if name.endswith(RESIDUAL)}
    assert len(residuals) == 2
    assert difference(adapted.tensors(), start, LORA).keys() == start.keys() - residuals
    assert same_bits(plus(start, difference(start, start, LORA)), start)
