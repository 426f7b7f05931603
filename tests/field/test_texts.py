"""Texts with nothing in them for a model: they end no training, and do not go by without a word."""

import logging
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from common.data.batches import TextDataset
from common.data.encoding import encode
from common.data.examples import Columns, Examples, read_examples
from common.data.processors import load_processor
from common.errors import DataError
from common.records import TaskKind, TaskSpec
from tests.conftest import write_model
from worker.data import PrivateData, Source

TEXT = TaskKind.TEXT_CLASSIFICATION
NOTHING = "\u200b"


def tokenizer(**marks: str) -> PreTrainedTokenizerFast:
    """One that adds no marks of its own, as GPT-2's, and drops invisible characters, as BERT's."""
    words = {"[UNK]": 0, "cat": 1, "rain": 2, "<end>": 3, "<pad>": 4}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.normalizer = normalizers.Replace(NOTHING, "")
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **marks)


def test_a_text_of_which_nothing_is_left_is_one_token_and_told(caplog: pytest.LogCaptureFixture) -> None:
    examples = Examples("x.csv", ["cat rain", NOTHING, "rain"], label_names=["a", "b", "a"])
    with caplog.at_level(logging.WARNING):
        found = encode(tokenizer(eos_token="<end>", pad_token="<pad>"), examples, TEXT, 8, ("a", "b"))
    assert isinstance(found, TextDataset)
    assert [row["input_ids"] for row in found.rows] == [[1, 2], [3], [2]]
    assert all(len(set(map(len, row.values()))) == 1 for row in found.rows)
    (line,) = caplog.messages
    assert line == (
        "x.csv: 1 text of which the model's tokenizer leaves nothing: x.csv: row 2; each is read as one "
        "special token"
    )
    # One at a time: this was a traceback of 410 lines.
    for batch in found.in_order(1):
        assert batch.inputs["input_ids"].shape[1] > 0 and batch.mask is not None and batch.mask.any()
    assert torch.equal(found.batch([0, 1]).inputs["attention_mask"], torch.tensor([[1, 1], [1, 0]]))


def test_without_any_mark_to_put_there_it_is_refused() -> None:
    with pytest.raises(DataError, match=r"leaves nothing: x\.csv: row 1; remove them"):
        encode(tokenizer(), Examples("x.csv", [NOTHING]), TEXT, 8, None)


def test_a_workers_empty_texts_are_left_out_before_it_says_how_many_it_has(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('text,label\na cat,animals\n"",weather\n,weather\nrain,weather\n')
    data = PrivateData.read(Source(tmp_path / "x.csv"))
    assert len(data) == 2
    assert data.examples.notes == (f"{tmp_path}/x.csv: 2 rows of 4 left out, without a text: line 3, line 4",)
    folder = write_model(tmp_path / "model")
    encoded = data.encoded(load_processor(folder, TEXT), TaskSpec(TEXT, ("animals", "weather"), 8, False))
    assert len(encoded) == 2


def test_pairs_with_a_blank_side_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("text,other,label\na,b,x\nc,,y\n,d,y\ne,f,y\n")
    examples = read_examples(tmp_path / "x.csv", Columns(pair="other"))
    assert (examples.texts, examples.pairs, examples.label_names) == (["a", "e"], ["b", "f"], ["x", "y"])
