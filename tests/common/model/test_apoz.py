"""Zero counts: exact under padding, splitting and merging."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from common.batches import Dataset
from common.model.apoz import ZeroCounter, ZeroCounts, apoz, count_zeros, from_tensors, merge, to_tensors
from common.model.families import ffns_of
from tests.conftest import FFN, write_model
from tests.small import load_model, load_texts, logits


@pytest.fixture(scope="module")
def texts(model_folder: Path) -> Dataset:
    return load_texts(model_folder, 12)


def same_counts(left: ZeroCounts, right: ZeroCounts) -> bool:
    return torch.equal(left.zeros, right.zeros) and torch.equal(left.tokens, right.tokens)


def draw(seed: int, shape: tuple[int, ...]) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_counts_are_those_worked_out_by_hand() -> None:
    pre_activation = torch.tensor([[[1.0, -1.0], [0.0, 2.0], [-3.0, -3.0]]])
    counts = count_zeros(pre_activation, torch.tensor([[1, 1, 0]]))
    assert counts.zeros.tolist() == [1, 1]
    assert counts.tokens.item() == 2
    assert counts.zeros.dtype == counts.tokens.dtype == torch.int64


@given(st.integers(0, 2**31), st.integers(1, 4), st.integers(1, 6))
def test_padding_does_not_count(seed: int, rows: int, tokens: int) -> None:
    values = draw(seed, (rows, tokens, 5))
    mask = torch.ones(rows, tokens, dtype=torch.long)
    padded = torch.cat([values, torch.full((rows, 3, 5), -1.0)], dim=1)
    padded_mask = torch.cat([mask, torch.zeros(rows, 3, dtype=torch.long)], dim=1)
    assert same_counts(count_zeros(padded, padded_mask), count_zeros(values, mask))


@given(st.integers(0, 2**31))
def test_for_relu_the_count_is_that_of_exact_zeros(seed: int) -> None:
    values = draw(seed, (3, 4, 5)).round(decimals=0)
    mask = torch.ones(3, 4)
    assert torch.equal(count_zeros(values, mask).zeros, (values.relu() == 0).sum((0, 1)))


@given(st.integers(0, 2**31), st.integers(1, 5))
def test_counts_over_parts_merge_to_counts_over_all(seed: int, cut: int) -> None:
    values = draw(seed, (6, 4, 5))
    mask = (draw(seed + 1, (6, 4)) > 0).long()
    parts = [count_zeros(values[:cut], mask[:cut]), count_zeros(values[cut:], mask[cut:])]
    assert same_counts(merge(parts), count_zeros(values, mask))
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


def test_a_counter_sees_what_the_activation_gets(tmp_path: Path, texts: Dataset) -> None:
    """With ReLU, the zeros counted before the activation are those that leave it."""
    model = load_model(write_model(tmp_path, activation="relu"))
    ffn, batch, after = ffns_of(model)[1], texts.batch(range(6)), []
    hook = ffn.down.register_forward_pre_hook(lambda module, inputs: after.append(inputs[0].detach()))
    with ZeroCounter({1: ffn}, mask=batch.mask) as counter:
        logits(model, batch)
    hook.remove()
    counts = counter.counts[1]
    assert torch.equal(counts.zeros, (after[0][batch.mask.bool()] == 0).sum(0))
    assert 0 < counts.zeros.sum() < FFN * counts.tokens
    assert counts.tokens == batch.mask.sum()


def test_a_counter_adds_up_over_batches_however_they_are_cut(model_folder: Path, texts: Dataset) -> None:
    model, totals = load_model(model_folder), []
    for batch_size in (12, 5):
        with ZeroCounter({i: ffns_of(model)[i] for i in (1, 2)}) as counter:
            for batch in texts.in_order(batch_size):
                counter.mask = batch.mask
                logits(model, batch)
        totals.append(counter.counts)
    whole, parts = totals
    assert whole.keys() == parts.keys() == {1, 2}
    assert torch.equal(whole[1].tokens, parts[1].tokens)
    # Sums in another order may move a value across zero, though hardly any.
    assert (whole[1].zeros - parts[1].zeros).abs().sum() <= 2


@pytest.mark.parametrize("fails", [False, True])
def test_a_counter_leaves_no_hooks(model_folder: Path, texts: Dataset, fails: bool) -> None:
    model, batch = load_model(model_folder), texts.batch(range(3))
    counter = ZeroCounter(dict(enumerate(ffns_of(model))), mask=batch.mask)
    try:
        with counter:
            logits(model, batch)
            if fails:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        pass
    assert not any(ffn.up._forward_hooks for ffn in ffns_of(model))
    before = counter.counts[0]
    logits(model, batch)
    assert same_counts(counter.counts[0], before)
