"""Examples → what a model reads: token rows, or pixels on demand."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from common.data.batches import Batch, CausalDataset, Dataset, Row, TextDataset, chosen
from common.data.examples import Examples
from common.data.images import ImageProcessor, decode
from common.data.rows import counted
from common.errors import DataError, ModelError
from common.listing import first_few
from common.records import TaskKind
from common.runtime.stopping import between_pieces

log = logging.getLogger(__name__)

# Bytes of preprocessed images that a data set may keep, so that later passes need not decode.
CACHE_BYTES = 256 * 2**20
# Texts that are tokenised between two looks whether to stop: a second of work at most.
PIECE = 2000


@dataclass(frozen=True)
class ImageDataset(Dataset):
    """Images, decoded and preprocessed when a batch needs them, with class indices if labelled."""

    examples: Examples
    processor: ImageProcessor
    labels: list[int] | None
    _kept: dict[int, Tensor] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        return len(self.examples)

    def batch(self, indices: Sequence[int]) -> Batch:
        """pixel_values [B, 3, H, W]. Raises DataError for an image that cannot be decoded, naming it."""
        pixels = torch.stack([self._pixels(i) for i in indices])
        return Batch({"pixel_values": pixels}, chosen(self.labels, indices))

    def _pixels(self, i: int) -> Tensor:
        """One image [3, H, W], kept when all of them fit."""
        if i in self._kept:
            return self._kept[i]
        assert self.examples.images is not None
        image = decode(self.examples.images[i], self.examples.name_of(i))
        pixels = self.processor.pixel_values([image])[0]
        if pixels.nbytes * len(self) <= CACHE_BYTES:
            self._kept[i] = pixels
        return pixels


def encode(
    processor: PreTrainedTokenizerBase | ImageProcessor,
    examples: Examples,
    kind: TaskKind,
    max_length: int,
    labels: tuple[str, ...] | None,
) -> Dataset:
    """Examples as a task of this kind wants them; texts are tokenised here, once, outside of training.

    `processor` is the model's tokenizer, with a pad token, or its image processor. Texts and pairs
    are cut to `max_length` tokens. `labels` are the class names in order of index; None: unlabelled.
    For a language model, whose labels are its texts, EOS ends every text, and all of them
    together are cut into blocks of `max_length` tokens.

    Raises DataError when the examples are not what `kind` needs or have a label not in `labels`,
    ModelError when the model's tokenizer or image processor does not fit.
    """
    examples.require(kind)
    if kind is TaskKind.CAUSAL_LM:
        tokenizer = _tokenizer(processor, kind)
        return CausalDataset(_causal_rows(tokenizer, examples, max_length), tokenizer)
    indices = None if labels is None else examples.class_indices(labels)
    if kind is TaskKind.IMAGE_CLASSIFICATION:
        if not isinstance(processor, ImageProcessor):
            raise ModelError(f"{kind} needs an image processor, not a tokenizer")
        return ImageDataset(examples, processor, indices)
    tokenizer = _tokenizer(processor, kind)
    rows: list[Row] = []
    for texts, pairs in _pieces(examples):
        encoded: Any = tokenizer(texts, pairs, truncation=True, max_length=max_length)
        rows += [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
    return TextDataset(_with_tokens(rows, tokenizer, examples), tokenizer, indices)


def _with_tokens(rows: list[Row], tokenizer: PreTrainedTokenizerBase, examples: Examples) -> list[Row]:
    """A text of which the tokenizer leaves nothing becomes one token: a model cannot read none."""
    empty = [i for i, row in enumerate(rows) if not row["input_ids"]]
    if not empty:
        return rows
    marks = (tokenizer.eos_token_id, tokenizer.bos_token_id, tokenizer.unk_token_id, tokenizer.pad_token_id)
    mark = next((token for token in marks if token is not None), None)
    where = first_few([examples.name_of(i) for i in empty])
    told = f"{counted(len(empty), 'text')} of which the model's tokenizer leaves nothing: {where}"
    if mark is None:
        raise DataError(f"{told}; remove them")
    log.warning("%s: %s; each is read as one special token", examples.source, told)
    # Segments are 0, the mask of a token that is there is 1.
    values = {"input_ids": mark, "attention_mask": 1}
    for i in empty:
        rows[i] = {key: [values.get(key, 0)] for key in rows[i]}
    return rows


def _pieces(examples: Examples) -> Iterator[tuple[list[str], list[str] | None]]:
    """Texts, and their pairs, so few at a time that somebody may wait for the end. Raises Stopped."""
    assert examples.texts is not None
    for start in range(0, len(examples), PIECE):
        between_pieces()
        piece = slice(start, start + PIECE)
        yield examples.texts[piece], None if examples.pairs is None else examples.pairs[piece]


def _causal_rows(tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int) -> list[Row]:
    """Blocks of at least two tokens: one alone has none to foretell."""
    if tokenizer.eos_token_id is None:
        raise ModelError("the model's tokenizer has no EOS token to put between texts")
    # Longer texts than the model takes are no mistake here: they are cut further down.
    tokens: list[int] = []
    for texts, _ in _pieces(examples):
        encoded: Any = tokenizer(texts, verbose=False)
        for text in encoded["input_ids"]:
            tokens += text
            if tokens[-1:] != [tokenizer.eos_token_id]:
                tokens.append(tokenizer.eos_token_id)
    blocks = [tokens[start : start + max_length] for start in range(0, len(tokens), max_length)]
    rows = [block for block in blocks if len(block) > 1]
    if not rows:
        raise DataError(f"{examples.source}: there is no text to learn from")
    return [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows]


def _tokenizer(
    processor: PreTrainedTokenizerBase | ImageProcessor, kind: TaskKind
) -> PreTrainedTokenizerBase:
    if isinstance(processor, ImageProcessor):
        raise ModelError(f"{kind} needs a tokenizer, not an image processor")
    return processor
