"""Zero counts: exact under padding, splitting and merging, whatever the rule and the family."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import PreTrainedModel

from common.data.batches import Dataset
from common.model.adapter import Adapted
from common.model.apoz import ZeroCounter, ZeroCounts, apoz, count_at_rest, from_tensors, merge, to_tensors
from common.model.families import FAMILIES
from common.model.ffn import Ffn, ffns_of
from common.model.layers import tokens_of
from common.records import AdapterSpec, AdapterTargets, TaskKind, ZeroRule
from tests.conftest import FFN, write_model
from tests.families import is_gated, small_inputs, small_model
from tests.small import TEXT, load_model, load_texts, logits

BEFORE, NEAR = ZeroRule.PRE_ACTIVATION, ZeroRule.NEAR_ZERO

every_rule = pytest.mark.parametrize("rule", ZeroRule)
every_family = pytest.mark.parametrize("model_type", FAMILIES)


@pytest.fixture(scope="module")
def texts(model_folder: Path) -> Dataset:
    return load_texts(model_folder, 12)


def same_counts(left: ZeroCounts, right: ZeroCounts) -> bool:
    return torch.equal(left.zeros, right.zeros) and torch.equal(left.tokens, right.tokens)


def draw(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# --- counting ---


def test_counts_are_those_worked_out_by_hand() -> None:
    values = torch.tensor([[[1.0, -1.0], [0.0, 2.0], [-3.0, -3.0]]])
    counts = count_at_rest(values, torch.tensor([[1, 1, 0]]), BEFORE, 0.0)
    assert counts.zeros.tolist() == [1, 1]
    assert counts.tokens.item() == 2
    assert counts.zeros.dtype == counts.tokens.dtype == torch.int64


@pytest.mark.parametrize(
    ("rule", "threshold", "zeros"),
    [(BEFORE, 0.0, 4), (BEFORE, 9.0, 4), (NEAR, 0.0, 1), (NEAR, 0.5, 3), (NEAR, 1.0, 5)],
)
def test_a_rule_decides_what_is_at_rest_and_only_near_zero_has_a_threshold(
    rule: ZeroRule, threshold: float, zeros: int
) -> None:
    values = torch.tensor([-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])[None, :, None]
    assert count_at_rest(values, None, rule, threshold).zeros.tolist() == [zeros]


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 6), st.sampled_from(ZeroRule))
def test_padding_does_not_count(seed: int, rows: int, tokens: int, rule: ZeroRule) -> None:
    values = draw(seed, (rows, tokens, 5))
    mask = torch.ones(rows, tokens, dtype=torch.long)
    padded = torch.cat([values, torch.zeros(rows, 3, 5)], dim=1)
    padded_mask = torch.cat([mask, torch.zeros(rows, 3, dtype=torch.long)], dim=1)
    wanted = count_at_rest(values, mask, rule, 0.3)
    assert same_counts(count_at_rest(padded, padded_mask, rule, 0.3), wanted)
    assert count_at_rest(padded, None, rule, 0.3).tokens == rows * (tokens + 3)


@given(st.integers(0, 2**31), st.sampled_from(ZeroRule))
def test_without_a_mask_everything_counts(seed: int, rule: ZeroRule) -> None:
    values = draw(seed, (3, 4, 5))
    counts = count_at_rest(values, None, rule, 0.3)
    assert counts.tokens == 12
    assert same_counts(counts, count_at_rest(values, torch.ones(3, 4), rule, 0.3))


@given(st.integers(0, 2**31), st.sampled_from(ZeroRule))
def test_tokens_laid_end_to_end_count_the_same(seed: int, rule: ZeroRule) -> None:
    values, mask = draw(seed, (3, 4, 5)), (draw(seed + 1, (3, 4)) > 0).long()
    for given_mask in (mask, None):
        wanted = count_at_rest(values, given_mask, rule, 0.3)
        assert same_counts(count_at_rest(values.flatten(0, 1), given_mask, rule, 0.3), wanted)


@given(st.integers(0, 2**31))
def test_for_relu_both_rules_count_the_exact_zeros(seed: int) -> None:
    values = draw(seed, (3, 4, 5)).round(decimals=0)
    mask = torch.ones(3, 4)
    counts = count_at_rest(values, mask, BEFORE, 0.0)
    assert torch.equal(counts.zeros, (values.relu() == 0).sum((0, 1)))
    assert same_counts(counts, count_at_rest(values.relu(), mask, NEAR, 0.0))


@given(st.integers(0, 2**31), st.integers(1, 5), st.sampled_from(ZeroRule))
def test_counts_over_parts_merge_to_counts_over_all(seed: int, cut: int, rule: ZeroRule) -> None:
    values = draw(seed, (6, 4, 5))
    mask = (draw(seed + 1, (6, 4)) > 0).long()
    parts = [count_at_rest(values[part], mask[part], rule, 0.3) for part in (slice(cut), slice(cut, None))]
    assert same_counts(merge(parts), count_at_rest(values, mask, rule, 0.3))
    assert same_counts(merge(parts[::-1]), merge(parts))


def test_apoz_is_the_share_of_zeros_and_zero_without_tokens() -> None:
    assert apoz(ZeroCounts(torch.tensor([0, 1, 4]), torch.tensor(4))).tolist() == [0.0, 0.25, 1.0]
    assert apoz(ZeroCounts(torch.tensor([0, 0]), torch.tensor(0))).tolist() == [0.0, 0.0]


def test_counts_survive_their_tensors() -> None:
    counts = {i: ZeroCounts(torch.tensor([i, 2]), torch.tensor(i + 5)) for i in (2, 10)}
    read = from_tensors(to_tensors(counts))
    assert list(read) == [2, 10]
    assert all(same_counts(read[i], counts[i]) for i in counts)
    assert from_tensors(to_tensors({})) == {}


# --- counting during forward passes ---


@contextmanager
def watched(ffn: Ffn) -> Iterator[dict[str, Tensor]]:
    """What leaves every map into neurons ("in.0", "in.1"), and what enters the map out of them."""
    seen: dict[str, Tensor] = {}

    def note(part: str, value: Tensor) -> None:
        seen[part] = value.detach()

    hooks = [
        projection.site.register_forward_hook(
            lambda m, x, y, i=i, own=projection: note(f"in.{i}", own.outputs(y))
        )
        for i, projection in enumerate(ffn.ins)
    ]
    hooks.append(ffn.out.site.register_forward_pre_hook(lambda m, x: note("out", x[0])))
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def counted(
    model: torch.nn.Module, ffn: Ffn, inputs: dict[str, Tensor], rule: ZeroRule, threshold: float = 0.0
) -> tuple[ZeroCounts, dict[str, Tensor]]:
    """A counter's counts over one pass, and what it could see there."""
    mask = inputs.get("attention_mask")
    with watched(ffn) as seen, ZeroCounter({1: ffn}, rule, threshold, mask) as counter:
        model(**inputs)
    assert counter.counts.keys() == {1}
    return counter.counts[1], seen


def test_with_relu_both_rules_count_the_zeros_that_leave_the_activation(
    tmp_path: Path, texts: Dataset
) -> None:
    model = load_model(write_model(tmp_path, activation="relu"))
    ffn, batch = ffns_of(model)[1], texts.batch(range(6))
    assert batch.mask is not None
    before, seen = counted(model, ffn, batch.inputs, BEFORE)
    assert torch.equal(before.zeros, (seen["out"][batch.mask.bool()] == 0).sum(0))
    assert 0 < before.zeros.sum() < FFN * before.tokens
    assert before.tokens == batch.mask.sum()
    assert same_counts(counted(model, ffn, batch.inputs, NEAR)[0], before)


@every_family
def test_the_rules_look_before_and_after_the_activation(model_type: str) -> None:
    """Of a gated family: at the gate alone, and at the product of gate and up."""
    model = small_model(model_type)
    ffn, inputs = ffns_of(model)[1], small_inputs(model)
    assert (len(ffn.ins) == 2) is is_gated(model_type)
    mask = inputs.get("attention_mask")
    before, seen = counted(model, ffn, inputs, BEFORE)
    near, _ = counted(model, ffn, inputs, NEAR, 0.05)
    tokens = {part: tokens_of(v, mask) for part, v in seen.items()}
    assert torch.equal(before.zeros, (tokens["in.0"] <= 0).sum(0))
    assert torch.equal(near.zeros, (tokens["out"].abs() <= 0.05).sum(0))
    assert before.tokens == near.tokens == len(tokens["out"])
    assert near.zeros.sum() > 0 and not torch.equal(before.zeros, near.zeros)
    if is_gated(model_type):
        assert not torch.equal(before.zeros, (tokens["in.1"] <= 0).sum(0))


@pytest.mark.parametrize("model_type", ["bert", "gpt2", "llama"])
def test_what_lora_on_the_ffn_adds_is_counted_too(model_type: str) -> None:
    model = small_model(model_type)
    ffn, inputs = ffns_of(model)[1], small_inputs(model)
    plain, _ = counted(model, ffn, inputs, BEFORE)
    spec = AdapterSpec(AdapterTargets.ATTENTION_FFN, rank=4, alpha=8.0, dropout=0.0)
    adapted = Adapted(model, TEXT, spec)
    ffn = ffns_of(adapted.base)[1]
    assert all(projection.site is not projection.module for projection in (*ffn.ins, ffn.out))
    fresh, _ = counted(adapted.model, ffn, inputs, BEFORE)
    assert same_counts(fresh, plain)
    values = {n: t + 0.3 * draw(7, tuple(t.shape)) for n, t in adapted.tensors().items()}
    # In the FFN of layer 1 only, so that its input is what it was.
    inner = {
        n: v for n, v in values.items() if ".1." in n and "lora_B" in n and ("mlp" in n or "interm" in n)
    }
    assert inner
    adapted.load(adapted.tensors() | inner)
    tuned, seen = counted(adapted.model, ffn, inputs, BEFORE)
    assert not same_counts(tuned, plain)
    gate = seen["in.0"][inputs["attention_mask"].bool()]
    assert torch.equal(tuned.zeros, (gate <= 0).sum(0))
    merged: PreTrainedModel = adapted.merged()
    by_weights, _ = counted(merged, ffns_of(merged)[1], inputs, BEFORE)
    # Merging rounds: a value may cross zero, though hardly any.
    assert (tuned.zeros - by_weights.zeros).abs().sum() <= 2


def test_images_have_no_padding_and_all_their_patches_count() -> None:
    model = small_model("vit", TaskKind.IMAGE_CLASSIFICATION)
    counts, _ = counted(model, ffns_of(model)[1], small_inputs(model, 3), BEFORE)
    # 16 patches of 8 by 8, and the token of the class.
    assert counts.tokens == 3 * 17


@every_rule
def test_a_counter_adds_up_over_batches_however_they_are_cut(
    model_folder: Path, texts: Dataset, rule: ZeroRule
) -> None:
    model, totals = load_model(model_folder), []
    for batch_size in (12, 5):
        with ZeroCounter({i: ffns_of(model)[i] for i in (1, 2)}, rule, 0.05) as counter:
            for batch in texts.in_order(batch_size):
                counter.mask = batch.mask
                logits(model, batch)
        totals.append(counter.counts)
    whole, parts = totals
    assert whole.keys() == parts.keys() == {1, 2}
    assert torch.equal(whole[1].tokens, parts[1].tokens)
    # Sums in another order may move a value across the limit, though hardly any.
    assert (whole[1].zeros - parts[1].zeros).abs().sum() <= 2
    assert whole[1].zeros.sum() > 20


@every_rule
@pytest.mark.parametrize("fails", [False, True])
def test_a_counter_leaves_no_hooks(model_folder: Path, texts: Dataset, rule: ZeroRule, fails: bool) -> None:
    model, batch = load_model(model_folder), texts.batch(range(3))
    counter = ZeroCounter(dict(enumerate(ffns_of(model))), rule, mask=batch.mask)
    try:
        with counter:
            assert any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
            logits(model, batch)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    before = counter.counts[0]
    logits(model, batch)
    assert same_counts(counter.counts[0], before)
