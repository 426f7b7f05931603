"""Texts → token rows → padded batches, the same on both sides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

Row = dict[str, list[int]]


@dataclass(frozen=True)
class Batch:
    """Model inputs by the model's own names; labels if known: int64 [B], of a language model [B, T]."""

    inputs: dict[str, Tensor]
    labels: Tensor | None = None

    @property
    def mask(self) -> Tensor | None:
        """[B, T], 1 for tokens, 0 for padding; None where nothing is padded, as with images."""
        return self.inputs.get("attention_mask")

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        inputs = {name: tensor.to(device) for name, tensor in self.inputs.items()}
        return Batch(inputs, None if self.labels is None else self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """Tokenised texts, with class indices if labelled."""

    rows: list[Row]
    labels: list[int] | None
    tokenizer: PreTrainedTokenizerBase

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, indices: Sequence[int]) -> Batch:
        """The chosen rows, padded to the longest of them."""
        columns = {key: [self.rows[i][key] for i in indices] for key in self.rows[0]}
        padded: Any = self.tokenizer.pad(columns, return_tensors="pt")
        labels = None if self.labels is None else torch.tensor([self.labels[i] for i in indices])
        return Batch(dict(padded), labels)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, by length, so that batches hold little padding; the last may be smaller."""
        order = sorted(range(len(self)), key=lambda i: len(self.rows[i]["input_ids"]))
        for start in range(0, len(order), batch_size):
            yield self.batch(order[start : start + batch_size])

    def shuffled(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """Every row once, in an order drawn from `seed`; the last batch may be smaller."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        for start in range(0, len(order), batch_size):
            yield self.batch(order[start : start + batch_size])

    def endless(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """Shuffled passes, one after the other, without end."""
        epoch = 0
        while True:
            yield from self.shuffled(batch_size, seed + epoch)
            epoch += 1


def encode(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    max_length: int,
    labels: Sequence[int] | None = None,
) -> Dataset:
    """Tokenise once, outside of any training step."""
    encoded: Any = tokenizer(list(texts), truncation=True, max_length=max_length)
    keys = list(encoded.keys())
    rows = [{key: encoded[key][i] for key in keys} for i in range(len(texts))]
    return Dataset(rows, None if labels is None else list(labels), tokenizer)
