"""Token rows → padded batches, the same on both sides."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from common.model.tasks import IGNORED

Row = dict[str, list[int]]
# Class indices; or a number for each row; or 0 and 1 for each row and class.
Labels = list[int] | Tensor

# Batches in which neighbours in a shuffled order are sorted by length: little padding, and still by chance.
GROUPED_BATCHES = 8

# What an image counts for where tokens are counted: about as many patches as usual sizes have.
IMAGE_TOKENS = 256


@dataclass(frozen=True)
class Batch:
    """Model inputs by the model's own names; labels if known, as `common.model.tasks` takes them:
    int64 [B] or, of every token, [B, T]; float32 [B] of numbers, [B, C] of several classes."""

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

    def parts(self, tokens: int) -> "list[Batch]":
        """The rows in batches of at most so many tokens, padding and all, or of one row; 0: as it is."""
        rows, length = next(iter(self.inputs.values())).shape[:2]
        if "input_ids" not in self.inputs:
            length = IMAGE_TOKENS
        each = max(1, tokens // length) if tokens else rows
        if each >= rows:
            return [self]
        columns = {name: values.split(each) for name, values in self.inputs.items()}
        parts = [{name: column[i] for name, column in columns.items()} for i in range(-(-rows // each))]
        labels = [None] * len(parts) if self.labels is None else self.labels.split(each)
        return [Batch(inputs, own) for inputs, own in zip(parts, labels, strict=True)]


class Dataset(ABC):
    """What a model is trained on or scored with, in batches of any order."""

    @abstractmethod
    def __len__(self) -> int:
        """Rows: texts, images, or blocks of a language model's texts."""

    @abstractmethod
    def batch(self, indices: Sequence[int]) -> Batch:
        """The chosen rows. Raises DataError when one of them cannot be used."""

    @property
    def lengths(self) -> Sequence[int] | None:
        """Tokens of every row; None where all rows are of one size."""
        return None

    @property
    def label_bounds(self) -> tuple[float, float] | None:
        """The smallest and the largest label, where labels are numbers."""
        return None

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, always in the same order, by length; the last batch may be smaller."""
        order, lengths = range(len(self)), self.lengths
        return self._cut(order if lengths is None else sorted(order, key=lengths.__getitem__), batch_size)

    def shuffled(self, batch_size: int, seed: int) -> Iterator[Batch]:
        """Every row once, in an order drawn from `seed`; one batch may be smaller.

        Rows of similar length come together, for padding costs as much as tokens do: of every
        GROUPED_BATCHES batches the rows are sorted by length, then the batches shuffled.
        """
        draw = torch.Generator().manual_seed(seed)
        order: list[int] = torch.randperm(len(self), generator=draw).tolist()
        lengths = self.lengths
        if lengths is None:
            return self._cut(order, batch_size)
        window = GROUPED_BATCHES * batch_size
        grouped: list[int] = []
        for start in range(0, len(order), window):
            grouped += sorted(order[start : start + window], key=lengths.__getitem__)
        batches = list(range(0, len(grouped), batch_size))
        shuffled = [batches[i] for i in torch.randperm(len(batches), generator=draw).tolist()]
        return (self.batch(grouped[start : start + batch_size]) for start in shuffled)

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
class Subset(Dataset):
    """Some rows of a dataset, in the order given."""

    whole: Dataset
    rows: Sequence[int]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Sequence[int] | None:
        """Tokens of every row."""
        lengths = self.whole.lengths
        return None if lengths is None else [lengths[i] for i in self.rows]

    def batch(self, indices: Sequence[int]) -> Batch:
        """The chosen rows."""
        return self.whole.batch([self.rows[i] for i in indices])


@dataclass(frozen=True)
class _TokenRows(Dataset):
    """Rows of tokens, padded to the longest of their batch."""

    rows: list[Row]
    tokenizer: PreTrainedTokenizerBase

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of every row."""
        return [len(row["input_ids"]) for row in self.rows]

    def padded(self, indices: Sequence[int], **options: Any) -> dict[str, Tensor]:
        """The chosen rows by the model's names, int64 [B, T]."""
        columns = {key: [self.rows[i][key] for i in indices] for key in self.rows[0]}
        rows: Any = self.tokenizer.pad(columns, return_tensors="pt", **options)
        return dict(rows)


@dataclass(frozen=True)
class TextDataset(_TokenRows):
    """Tokenised texts or pairs of texts, with their labels if known."""

    labels: Labels | None

    @property
    def label_bounds(self) -> tuple[float, float] | None:
        """The smallest and the largest label, where labels are numbers."""
        labels = self.labels
        if not isinstance(labels, Tensor) or labels.dim() != 1 or not len(labels):
            return None
        return float(labels.min()), float(labels.max())

    def batch(self, indices: Sequence[int]) -> Batch:
        """The chosen texts, padded to the longest of them."""
        return Batch(self.padded(indices), chosen(self.labels, indices))


@dataclass(frozen=True)
class TaggedDataset(_TokenRows):
    """Tokenised texts with a class for every token, IGNORED where it has none."""

    labels: list[list[int]]

    def batch(self, indices: Sequence[int]) -> Batch:
        """The chosen texts, padded to the longest of them; labels int64 [B, T], IGNORED in the padding."""
        return Batch(self.padded(indices, padding_side="right"), _padded_labels(self.labels, indices))


@dataclass(frozen=True)
class CausalDataset(_TokenRows):
    """Texts, or blocks of them, for a language model: every token is the label of its place."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """The chosen rows, padded to the longest of them; labels int64 [B, T], IGNORED in the padding."""
        # At the end: with padding in front, GPT-2 would count positions from the first of it.
        inputs = self.padded(indices, padding_side="right")
        return Batch(inputs, inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, IGNORED))


@dataclass(frozen=True)
class ConversationDataset(_TokenRows):
    """Conversations for a language model, one a row: answers' tokens are labels of their places."""

    labels: list[list[int]]
    notes: tuple[str, ...] = ()
    """What has become of conversations that are not here, or not as they were: a line each."""

    def batch(self, indices: Sequence[int]) -> Batch:
        """The chosen rows, padded to the longest of them; labels int64 [B, T], IGNORED but in answers."""
        return Batch(self.padded(indices, padding_side="right"), _padded_labels(self.labels, indices))


def _padded_labels(labels: list[list[int]], indices: Sequence[int]) -> Tensor:
    rows = [torch.tensor(labels[i], dtype=torch.int64) for i in indices]
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=IGNORED)


def chosen(labels: Labels | None, indices: Sequence[int]) -> Tensor | None:
    """The labels of a batch: int64 [B], or float32 [B] or [B, C]."""
    if isinstance(labels, Tensor):
        return labels[list(indices)].float()
    return None if labels is None else torch.tensor([labels[i] for i in indices])
