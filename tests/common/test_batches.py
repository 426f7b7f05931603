"""Rows become padded batches, in orders that a seed fixes."""

from itertools import islice
from pathlib import Path

import pytest
import torch

from common.batches import Batch, TextDataset
from tests.small import load_texts


@pytest.fixture(scope="module")
def texts(model_folder: Path) -> TextDataset:
    return load_texts(model_folder, 21)


def row_of(batch: Batch, i: int) -> tuple[int, ...]:
    """A row without its padding."""
    return tuple(batch.inputs["input_ids"][i][batch.mask[i].bool()].tolist())


def all_rows(batches: list[Batch]) -> list[tuple[int, ...]]:
    return [row_of(batch, i) for batch in batches for i in range(len(batch.mask))]


def test_a_batch_is_padded_to_its_longest_row_and_masks_the_padding(texts: TextDataset) -> None:
    indices = [4, 0, 7]
    batch = texts.batch(indices)
    lengths = [len(texts.rows[i]["input_ids"]) for i in indices]
    assert len(set(lengths)) > 1
    assert batch.mask.shape == (3, max(lengths))
    assert batch.mask.sum(1).tolist() == lengths
    assert batch.labels is not None and texts.labels is not None
    assert batch.labels.tolist() == [texts.labels[i] for i in indices]


@pytest.mark.parametrize("batch_size", [1, 4, 21, 50])
def test_every_row_comes_once(texts: TextDataset, batch_size: int) -> None:
    expected = sorted(tuple(row["input_ids"]) for row in texts.rows)
    assert sorted(all_rows(list(texts.in_order(batch_size)))) == expected
    assert sorted(all_rows(list(texts.shuffled(batch_size, seed=1)))) == expected


def test_rows_in_order_come_by_length(texts: TextDataset) -> None:
    lengths = [len(row) for row in all_rows(list(texts.in_order(4)))]
    assert lengths == sorted(lengths)


def test_a_seed_fixes_the_order(texts: TextDataset) -> None:
    first = all_rows(list(texts.shuffled(4, seed=1)))
    assert all_rows(list(texts.shuffled(4, seed=1))) == first
    assert all_rows(list(texts.shuffled(4, seed=2))) != first


def test_shuffling_leaves_torchs_generator_alone(texts: TextDataset) -> None:
    before = torch.get_rng_state()
    list(texts.shuffled(4, seed=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_endless_passes_differ_in_order_but_each_holds_every_row(texts: TextDataset) -> None:
    per_pass = 6
    batches = list(islice(texts.endless(4, seed=1), 2 * per_pass))
    first, second = all_rows(batches[:per_pass]), all_rows(batches[per_pass:])
    assert sorted(first) == sorted(second) and len(first) == len(texts)
    assert first != second
