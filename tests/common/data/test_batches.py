"""Rows become padded batches, in orders that a seed fixes."""

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import pytest
import torch

from common.data.batches import Batch, Dataset, TextDataset
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


def test_shuffled_batches_hold_less_padding_than_chance_gives(model_folder: Path) -> None:
    texts = load_texts(model_folder, 200)
    lengths = texts.lengths

    def tokens(batches: list[Batch]) -> int:
        return sum(batch.inputs["input_ids"].numel() for batch in batches)

    grouped = list(texts.shuffled(4, seed=1))
    by_chance = torch.randperm(200, generator=torch.Generator().manual_seed(1)).tolist()
    assert tokens(grouped) < tokens([texts.batch(by_chance[i : i + 4]) for i in range(0, 200, 4)])
    # Not from short to long: that would train on a different kind of text at the end.
    longest = [batch.inputs["input_ids"].shape[1] for batch in grouped]
    assert longest != sorted(longest) and sum(lengths) <= tokens(grouped)


def test_rows_of_one_size_come_purely_by_chance() -> None:
    rows = [{"input_ids": [i, i], "attention_mask": [1, 1]} for i in range(50)]

    class Equal(Dataset):
        def __len__(self) -> int:
            return len(rows)

        def batch(self, indices: Sequence[int]) -> Batch:
            return Batch({"index": torch.tensor(list(indices))})

    found = [int(i) for batch in Equal().shuffled(8, seed=3) for i in batch.inputs["index"]]
    assert found == torch.randperm(50, generator=torch.Generator().manual_seed(3)).tolist()


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
