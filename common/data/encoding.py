"""Examples → what a model reads: token rows, or pixels on demand."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from common.data.answers import class_sets_of, numbers_of, tags_of
from common.data.batches import (
    Batch,
    CausalDataset,
    Dataset,
    Labels,
    Row,
    TaggedDataset,
    TextDataset,
    chosen,
)
from common.data.chat_encoding import encode_conversations
from common.data.examples import Examples
from common.data.images import ImageProcessor, decode
from common.data.rows import counted
from common.errors import DataError, ModelError
from common.listing import first_few
from common.model.tasks import IGNORED
from common.records import TaskKind
from common.runtime.stopping import between_pieces
from common.task_forms import FORMS, Answer, Input

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
    *,
    apart: bool = False,
) -> Dataset:
    """Examples as a task of this kind wants them; texts are tokenised here, once, outside of training.

    `processor` is the model's tokenizer, with a pad token, or its image processor. Texts and pairs
    are cut to `max_length` tokens. `labels` are the class names in order of index, () where the task has
    none; None: unlabelled.
    Lists of words are read as the text that they make with blanks between them; the first token of a word
    has its label, the others none.
    For a language model, whose labels are its texts, EOS ends every text, and all of them
    together are cut into blocks of `max_length` tokens; conversations stay apart, a row each
    (`common.data.chat_encoding`). With `apart` texts stay so, too, each cut to `max_length`: what a row
    holds is of one example.

    Raises DataError when the examples are not what `kind` needs or have a label not in `labels`,
    ModelError when the model's tokenizer or image processor does not fit.
    """
    examples.require(kind)
    if kind is TaskKind.CAUSAL_LM:
        tokenizer = _tokenizer(processor, kind)
        if examples.conversations is not None:
            return encode_conversations(tokenizer, examples, max_length)
        return CausalDataset(_causal_rows(tokenizer, examples, max_length, apart), tokenizer)
    if FORMS[kind].input is Input.IMAGES:
        if not isinstance(processor, ImageProcessor):
            raise ModelError(f"{kind} needs an image processor, not a tokenizer")
        return ImageDataset(examples, processor, None if labels is None else examples.class_indices(labels))
    tokenizer = _tokenizer(processor, kind)
    if examples.words is not None:
        return _tagged(tokenizer, examples, max_length, None if labels is None else tags_of(examples, labels))
    answers = None if labels is None else _answers(examples, kind, labels)
    rows: list[Row] = []
    for texts, pairs in _pieces(examples):
        encoded: Any = tokenizer(texts, pairs, truncation=True, max_length=max_length)
        rows += [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
    return TextDataset(_with_tokens(rows, tokenizer, examples), tokenizer, answers)


def _answers(examples: Examples, kind: TaskKind, labels: tuple[str, ...]) -> Labels:
    """What the examples' labels say. Raises DataError."""
    match FORMS[kind].answer:
        case Answer.NUMBER:
            return torch.tensor(numbers_of(examples))
        case Answer.CLASSES:
            # A byte each: there may be many of both.
            known = torch.zeros(len(examples), len(labels), dtype=torch.uint8)
            for row, indices in enumerate(class_sets_of(examples, labels)):
                known[row, indices] = 1
            return known
    return examples.class_indices(labels)


def _tagged(
    tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int, tags: list[list[int]] | None
) -> TextDataset | TaggedDataset:
    """Texts that were cut into words, with a tag for the first token of each word."""
    assert examples.words is not None
    if not tokenizer.is_fast:
        raise ModelError("the model's tokenizer does not say where its tokens stand; it must be a fast one")
    rows: list[Row] = []
    labels: list[list[int]] = []
    for start in range(0, len(examples), PIECE):
        between_pieces()
        words = examples.words[start : start + PIECE]
        texts = [" ".join(sentence) for sentence in words]
        encoded: Any = tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True)
        offsets = encoded.pop("offset_mapping")
        rows += [dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)]
        if tags is not None:
            answers = tags[start : start + PIECE]
            labels += [_by_token(*row) for row in zip(offsets, words, answers, strict=True)]
    empty = [i for i, row in enumerate(rows) if not row["input_ids"]]
    rows = _with_tokens(rows, tokenizer, examples)
    if tags is None:
        return TextDataset(rows, tokenizer, None)
    for i in empty:
        labels[i] = [IGNORED]
    return TaggedDataset(rows, tokenizer, labels)


def _by_token(offsets: Sequence[tuple[int, int]], words: Sequence[str], tags: Sequence[int]) -> list[int]:
    """For every token the tag of the word that begins in it, IGNORED for all others.

    By characters, so that it holds for every tokenizer: some count the blank before a word to its first
    token, some make a token of it.
    """
    found = [IGNORED] * len(offsets)
    begin, token = 0, 0
    for word, tag in zip(words, tags, strict=True):
        end = begin + len(word)
        # Special tokens are of no characters; a blank's token ends where the word begins.
        while token < len(offsets) and offsets[token][1] <= begin:
            token += 1
        if token < len(offsets) and offsets[token][0] < end and found[token] == IGNORED:
            found[token] = tag
        begin = end + 1
    return found


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


def _causal_rows(
    tokenizer: PreTrainedTokenizerBase, examples: Examples, max_length: int, apart: bool
) -> list[Row]:
    """Blocks of at least two tokens: one alone has none to foretell."""
    if tokenizer.eos_token_id is None:
        raise ModelError("the model's tokenizer has no EOS token to put between texts")
    # Longer texts than the model takes are no mistake here: they are cut further down.
    tokens: list[int] = []
    blocks: list[list[int]] = []
    for texts, _ in _pieces(examples):
        encoded: Any = tokenizer(texts, verbose=False)
        for text in encoded["input_ids"]:
            tokens += text
            if tokens[-1:] != [tokenizer.eos_token_id]:
                tokens.append(tokenizer.eos_token_id)
            if apart:
                blocks.append(tokens[:max_length])
                tokens = []
    blocks += [tokens[start : start + max_length] for start in range(0, len(tokens), max_length)]
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
