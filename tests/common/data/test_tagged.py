"""Words with tags become tokens with labels: the first token of a word has its tag, the others none."""

from collections.abc import Callable

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from common.data.batches import TaggedDataset, TextDataset
from common.data.encoding import encode
from common.data.examples import Examples
from common.errors import DataError
from common.model.tasks import IGNORED
from common.records import TaskKind

KIND = TaskKind.TOKEN_CLASSIFICATION
NAMES = ("O", "B-PER", "I-PER")
CORPUS = [
    "the tokenizer of Überlingen tokenizes words into tokens",
    "Johanna Überlinger naïve (the) so-called",
] * 8
SENTENCES: list[tuple[tuple[str, ...], tuple[str, ...]]] = [
    (("Johanna", "Überlinger", "tokenizes"), ("B-PER", "I-PER", "O")),
    (("the", "so-called", "(", "Johanna", ")"), ("O", "O", "O", "B-PER", "O")),
    (("naïve",), ("B-PER",)),
]


def byte_level(prefix: bool) -> Tokenizer:
    """As GPT-2's and RoBERTa's: the blank before a word belongs to its first token."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=330, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    )
    inner.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=prefix)
    return inner


def word_pieces() -> Tokenizer:
    """As BERT's: lower case, punctuation apart, ## within words."""
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer = normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["<s>", "</s>", "[UNK]"]
    inner.train_from_iterator(CORPUS, trainers.WordPieceTrainer(vocab_size=60, special_tokens=special))
    inner.post_processor = processors.BertProcessing(("</s>", 1), ("<s>", 0))
    return inner


def sentence_pieces() -> Tokenizer:
    """As LLaMA's: a blank is ▁, and may be a token of its own."""
    inner = Tokenizer(models.BPE(unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = decoders.Metaspace()
    inner.train_from_iterator(
        [" ".join(word) for word in CORPUS],
        trainers.BpeTrainer(vocab_size=60, special_tokens=["<s>", "</s>", "<unk>"]),
    )
    inner.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 0)])
    return inner


TOKENIZERS: dict[str, Callable[[], Tokenizer]] = {
    "byte level": lambda: byte_level(False),
    "byte level, trimmed": lambda: byte_level(True),
    "word pieces": word_pieces,
    "sentence pieces": sentence_pieces,
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerFast:
    inner = TOKENIZERS[request.param]()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="</s>",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    )


def examples(labelled: bool = True) -> Examples:
    tags = [tags for _, tags in SENTENCES] if labelled else None
    return Examples("x.conll", None, words=[words for words, _ in SENTENCES], label_lists=tags)


def test_every_word_has_its_tag_once_at_its_first_token(tokenizer: PreTrainedTokenizerFast) -> None:
    data = encode(tokenizer, examples(), KIND, 200, NAMES)
    assert isinstance(data, TaggedDataset)
    several = 0
    for row, (words, tags), labels in zip(data.rows, SENTENCES, data.labels, strict=True):
        text = " ".join(words)
        spans = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        assert len(row["input_ids"]) == len(labels) == len(spans)
        assert [NAMES[label] for label in labels if label != IGNORED] == list(tags)
        begins = [text.index(word) for word in words]
        ends = [begin + len(word) for begin, word in zip(begins, words, strict=True)]
        found = [i for i, label in enumerate(labels) if label != IGNORED]
        for token, begin, end in zip(found, begins, ends, strict=True):
            # Its first character is in it, and no earlier token has a part of the word.
            assert spans[token][0] <= begin < spans[token][1] <= end
            assert not any(s < end and e > begin for s, e in spans[:token])
        several += len(spans) - len(words)
    # More than the special tokens, two at most to a sentence.
    assert several > 2 * len(SENTENCES)


def test_what_is_cut_off_has_no_label_and_padding_neither(tokenizer: PreTrainedTokenizerFast) -> None:
    data = encode(tokenizer, examples(), KIND, 8, NAMES)
    assert isinstance(data, TaggedDataset)
    assert max(data.lengths) == 8 and [len(labels) for labels in data.labels] == list(data.lengths)
    batch = data.batch([0, 2])
    assert batch.labels is not None and batch.mask is not None
    assert batch.labels.shape == batch.inputs["input_ids"].shape
    assert (batch.labels[batch.mask == 0] == IGNORED).all()


@pytest.mark.parametrize("side", ["left", "right"])
def test_labels_stand_beside_their_tokens_whatever_side_the_tokenizer_pads(
    tokenizer: PreTrainedTokenizerFast, side: str
) -> None:
    tokenizer.padding_side = side
    data = encode(tokenizer, examples(), KIND, 200, NAMES)
    assert isinstance(data, TaggedDataset)
    batch = data.batch([0, 1, 2])
    assert batch.labels is not None
    for i in range(3):
        length = data.lengths[i]
        assert batch.inputs["input_ids"][i, :length].tolist() == data.rows[i]["input_ids"]
        assert batch.labels[i, :length].tolist() == data.labels[i]


def test_without_tags_the_words_are_a_text(tokenizer: PreTrainedTokenizerFast) -> None:
    words = encode(tokenizer, examples(labelled=False), KIND, 200, None)
    texts = Examples("x.csv", [" ".join(words) for words, _ in SENTENCES])
    whole = encode(tokenizer, texts, KIND, 200, None)
    assert isinstance(words, TextDataset) and isinstance(whole, TextDataset)
    assert words.rows == whole.rows and words.batch([0]).labels is None


def test_a_word_of_which_nothing_is_left_has_no_label() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_pieces(), pad_token="</s>")
    odd = Examples(
        "x", None, words=[("\u200b", "Johanna"), ("\u200b",)], label_lists=[("I-PER", "B-PER"), ("O",)]
    )
    data = encode(tokenizer, odd, KIND, 200, NAMES)
    assert isinstance(data, TaggedDataset)
    assert [label for label in data.labels[0] if label != IGNORED] == [NAMES.index("B-PER")]
    assert set(data.labels[1]) == {IGNORED}


def test_texts_with_classes_are_no_words() -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_pieces(), pad_token="</s>")
    with pytest.raises(DataError, match="needs lists of words, but x holds texts; give CoNLL"):
        encode(tokenizer, Examples("x", ["a text"], label_names=["O"]), KIND, 200, NAMES)


@pytest.mark.parametrize(
    ("kind", "cells", "labels", "expected"),
    [
        (TaskKind.TEXT_REGRESSION, ["0.5", "-2"], (), torch.tensor([0.5, -2.0])),
        (TaskKind.TEXT_MULTI_LABEL, ["y|x", "[]"], ("x", "y", "z"), torch.tensor([[1.0, 1, 0], [0, 0, 0]])),
    ],
)
def test_numbers_and_several_classes_are_float_labels(
    kind: TaskKind, cells: list[str], labels: tuple[str, ...], expected: torch.Tensor
) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=word_pieces(), pad_token="</s>")
    texts = Examples("x", ["the words", "into tokens"], label_names=cells)
    batch = encode(tokenizer, texts, kind, 16, labels).batch([0, 1])
    assert batch.labels is not None and batch.labels.dtype is torch.float32
    assert torch.equal(batch.labels, expected)
    pairs = Examples("x", ["the words", "into tokens"], ["a", "b"], label_names=cells)
    assert torch.equal(encode(tokenizer, pairs, kind, 16, labels).batch([1]).labels, expected[1:])
