"""Token rows → padded batches, the same on both sides."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from common.model.tasks import IGNORED

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


class Dataset(ABC):
    """What a model is trained on or scored with, in batches of any order."""

    @abstractmethod
    def __len__(self) -> int:
        """Rows: texts, images, or blocks of a language model's texts."""

    @abstractmethod
    def batch(self, indices: Sequence[int]) -> Batch:
        """The chosen rows. Raises DataError when one of them cannot be used."""

    def order(self) -> Sequence[int]:
        """The order in which `in_order` goes."""
        return range(len(self))

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, always in the same order; the last batch may be smaller."""
        return self._cut(self.order(), batch_size)

    def shuffled(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """Every row once, in an order drawn from `seed`; the last batch may be smaller."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed)).tolist()
        return self._cut(order, batch_size)

    def endless(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """Shuffled passes, one after the other, without end."""
        epoch = 0
        while True:
            yield from self.shuffled(batch_size, seed + epoch)
            epoch += 1

    def _cut(self, order: Sequence[int], batch_size: int) -> Iterator[Batch]:
        for start in range(0, len(order), batch_size):
            yield self.batch(order[start : start + batch_size])


@dataclass(frozen=True)
class _TokenRows(Dataset):
    """Rows of tokens, padded to the longest of their batch."""

    rows: list[Row]
    tokenizer: PreTrainedTokenizerBase

    def __len__(self) -> int:
        return len(self.rows)

    def order(self) -> Sequence[int]:
        """By length, so that batches hold little padding."""
        return sorted(range(len(self)), key=lambda i: len(self.rows[i]["input_ids"]))

    def padded(self, indices: Sequence[int], **options: Any) -> dict[str, Tensor]:
        """The chosen rows by the model's names, int64 [B, T]."""
        columns = {key: [self.rows[i][key] for i in indices] for key in self.rows[0]}
        rows: Any = self.tokenizer.pad(columns, return_tensors="pt", **options)
        return dict(rows)


@dataclass(frozen=True)
class TextDataset(_TokenRows):
    """Tokenised texts or pairs of texts, with class indices if labelled."""

    labels: list[int] | None

    def batch(self, indices: Sequence[int]) -> Batch:
        """The chosen texts, padded to the longest of them."""
        return Batch(self.padded(indices), chosen(self.labels, indices))


@dataclass(frozen=True)
class CausalDataset(_TokenRows):
    """Texts, or blocks of them, for a language model: every token is the label of its place."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """The chosen rows, padded to the longest of them; labels int64 [B, T], IGNORED in the padding."""
        # At the end: with padding in front, GPT-2 would count positions from the first of it.
        inputs = self.padded(indices, padding_side="right")
        return Batch(inputs, inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORED))


def chosen(labels: list[int] | None, indices: Sequence[int]) -> Tensor | None:
    """The labels of a batch, int64 [B]."""
    return None if labels is None else torch.tensor([labels[i] for i in indices])
