"""Examples become what a model reads: token rows, blocks of tokens, pixels."""

import io
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, ViTImageProcessorPil

from common.data import encoding
from common.data.batches import CausalDataset, TextDataset
from common.data.encoding import ImageDataset, encode
from common.data.examples import Examples
from common.data.images import ImageProcessor
from common.data.processors import load_processor
from common.errors import DataError, ModelError
from common.model.tasks import IGNORED
from common.records import TaskKind
from tests.conftest import LABELS

TEXT, IMAGE, CAUSAL = TaskKind.TEXT_CLASSIFICATION, TaskKind.IMAGE_CLASSIFICATION, TaskKind.CAUSAL_LM
PAD, EOS, BOS = 0, 1, 2


@pytest.fixture(scope="module")
def bert(model_folder: Path) -> PreTrainedTokenizerBase:
    return load_processor(model_folder, TEXT)


def decoder_tokenizer(begins: bool = False, **tokens: str) -> PreTrainedTokenizerBase:
    """Word w3 is token 3, w4 is 4, …; with `begins`, BOS goes before every text as in LLaMA."""
    words = ["<pad>", "<eos>", "<bos>", *(f"w{i}" for i in range(3, 40))]
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if begins:
        inner.post_processor = processors.TemplateProcessing("<bos> $A", special_tokens=[("<bos>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, model_max_length=16, **({"pad_token": "<pad>", "eos_token": "<eos>"} | tokens)
    )


def words(*numbers: int) -> str:
    return " ".join(f"w{number}" for number in numbers)


def image_processor() -> ImageProcessor:
    return ImageProcessor(ViTImageProcessorPil(size={"height": 8, "width": 8}))


def png(colour: tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def picture_set(count: int) -> Examples:
    images: list[Path | bytes] = [png((10 * i, 0, 0)) for i in range(count)]
    return Examples("pictures.parquet", None, images=images, label_names=["b", "a", "b", "a", "b"][:count])


# Texts and pairs.


def test_long_texts_are_cut_and_labels_become_positions(bert: PreTrainedTokenizerBase) -> None:
    examples = Examples("x", ["the cat was near " * 20, "rain"], label_names=["animals", "weather"])
    data = encode(bert, examples, TEXT, 8, LABELS)
    assert isinstance(data, TextDataset)
    assert [len(row["input_ids"]) for row in data.rows] == [8, 3]
    assert data.labels == [0, 1]


def test_without_class_names_nothing_is_labelled(bert: PreTrainedTokenizerBase) -> None:
    data = encode(bert, Examples("x", ["a cat"], label_names=["animals"]), TEXT, 8, None)
    assert data.batch([0]).labels is None


def test_labels_are_asked_for_where_there_are_none(bert: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match=r"x\.csv has no labels"):
        encode(bert, Examples("x.csv", ["a cat"]), TEXT, 8, LABELS)


def test_the_second_text_of_a_pair_is_marked_as_such(model_folder: Path) -> None:
    names = ["input_ids", "token_type_ids", "attention_mask"]
    bert = PreTrainedTokenizerFast.from_pretrained(model_folder, model_input_names=names)
    data = encode(bert, Examples("x", ["a cat", "rain"], ["the dog", "snow and sun"]), TEXT, 32, None)
    batch = data.batch([0, 1])
    for i, (first, second) in enumerate([("a cat", "the dog"), ("rain", "snow and sun")]):
        expected = bert(first, second)
        length = len(expected["input_ids"])
        assert batch.inputs["input_ids"][i, :length].tolist() == expected["input_ids"]
        assert batch.inputs["token_type_ids"][i, :length].tolist() == expected["token_type_ids"]
    assert 1 in batch.inputs["token_type_ids"]


# Language models.


def test_packed_texts_run_on_with_eos_after_each_and_lose_no_token() -> None:
    texts = [words(3, 4, 5), words(6), words(7, 8, 9, 10, 11, 12)]
    data = encode(decoder_tokenizer(), Examples("x", texts), CAUSAL, 4, None)
    assert isinstance(data, CausalDataset)
    blocks = [row["input_ids"] for row in data.rows]
    assert blocks == [[3, 4, 5, EOS], [6, EOS, 7, 8], [9, 10, 11, 12]]
    # The last EOS stood alone: it has no token before it to be foretold from.


def test_a_short_last_block_is_kept_and_its_padding_is_no_target() -> None:
    data = encode(decoder_tokenizer(), Examples("x", [words(3, 4, 5, 6, 7)]), CAUSAL, 4, None)
    batch = data.batch([0, 1])
    assert batch.inputs["input_ids"].tolist() == [[3, 4, 5, 6], [7, EOS, PAD, PAD]]
    assert batch.mask is not None and batch.mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert batch.labels is not None
    assert batch.labels.tolist() == [[3, 4, 5, 6], [7, EOS, IGNORED, IGNORED]]
    assert batch.labels.dtype == torch.int64


def test_eos_that_pads_is_a_target_where_it_ends_a_text() -> None:
    """GPT-2 has no pad token of its own: EOS serves, and only the mask tells them apart."""
    tokenizer = decoder_tokenizer(pad_token="<eos>")
    batch = encode(tokenizer, Examples("x", [words(3, 4, 5), words(6, 7)]), CAUSAL, 4, None).batch([0, 1])
    assert batch.inputs["input_ids"].tolist() == [[3, 4, 5, EOS], [6, 7, EOS, EOS]]
    assert batch.labels is not None
    assert batch.labels.tolist() == [[3, 4, 5, EOS], [6, 7, EOS, IGNORED]]


def test_padding_comes_last_even_for_a_tokenizer_that_pads_in_front() -> None:
    tokenizer = decoder_tokenizer(padding_side="left")
    data = encode(tokenizer, Examples("x", [words(3, 4, 5), words(6, 7)]), CAUSAL, 4, None)
    assert data.batch([0, 1]).inputs["input_ids"].tolist() == [[3, 4, 5, EOS], [6, 7, EOS, PAD]]


def test_what_begins_a_text_stays_before_each() -> None:
    data = encode(decoder_tokenizer(begins=True), Examples("x", [words(3), words(4)]), CAUSAL, 16, None)
    assert data.batch([0]).inputs["input_ids"].tolist() == [[BOS, 3, EOS, BOS, 4, EOS]]


def test_a_text_longer_than_the_model_takes_is_packed_without_a_warning(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    data = encode(decoder_tokenizer(), Examples("x", [words(*range(3, 40))]), CAUSAL, 16, None)
    assert len(data) == 3
    assert "longer than" not in caplog.text + capfd.readouterr().err


def test_nothing_to_learn_from_and_no_eos_say_so() -> None:
    with pytest.raises(DataError, match=r"x\.txt: there is no text to learn from"):
        encode(decoder_tokenizer(), Examples("x.txt", [""]), CAUSAL, 8, None)
    with pytest.raises(ModelError, match="no EOS token"):
        encode(decoder_tokenizer(eos_token=None), Examples("x", [words(3, 4)]), CAUSAL, 8, None)


# Images.


def test_images_become_pixels_in_the_order_asked_for_with_nothing_to_mask() -> None:
    data = encode(image_processor(), picture_set(3), IMAGE, 0, ("a", "b"))
    batch = data.batch([2, 0])
    pixels = batch.inputs["pixel_values"]
    assert pixels.shape == (2, 3, 8, 8) and pixels.dtype == torch.float32
    # ViT scales by 1/255, then takes mean and deviation of 0.5.
    numpy.testing.assert_allclose(pixels[:, 0, 0, 0], [20 / 127.5 - 1, -1], atol=1e-6)
    assert batch.mask is None
    assert batch.labels is not None and batch.labels.tolist() == [1, 1]


def test_every_image_comes_once_in_a_shuffled_pass() -> None:
    data = encode(image_processor(), picture_set(5), IMAGE, 0, None)
    reds = [batch.inputs["pixel_values"][:, 0, 0, 0] for batch in data.shuffled(2, seed=1)]
    assert len(reds) == 3
    assert torch.cat(reds).sort().values.unique().numel() == 5


@pytest.mark.parametrize("limit", [0, 5 * 3 * 8 * 8 * 4 - 1, 5 * 3 * 8 * 8 * 4])
def test_images_are_decoded_once_when_all_fit_and_the_pixels_are_the_same(
    monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    monkeypatch.setattr(encoding, "CACHE_BYTES", limit)
    decoded: list[str] = []
    real = encoding.decode
    monkeypatch.setattr(encoding, "decode", lambda image, name: (decoded.append(name), real(image, name))[1])
    data = encode(image_processor(), picture_set(5), IMAGE, 0, None)
    assert isinstance(data, ImageDataset) and not decoded
    first, second = (data.batch(range(5)).inputs["pixel_values"] for _ in range(2))
    assert torch.equal(first, second)
    assert len(decoded) == (5 if limit == 5 * 3 * 8 * 8 * 4 else 10)


def test_an_image_that_cannot_be_decoded_is_named_when_its_batch_comes(tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(png((1, 2, 3))[:40])
    images: list[Path | bytes] = [png((1, 2, 3)), b"no image", tmp_path / "broken.png"]
    data = encode(image_processor(), Examples("pictures.parquet", None, images=images), IMAGE, 0, None)
    data.batch([0])
    with pytest.raises(DataError, match=r"pictures\.parquet: row 2 cannot be decoded: not an image"):
        data.batch([0, 1])
    with pytest.raises(DataError, match=r"broken\.png cannot be decoded"):
        data.batch([2])


# What does not fit together.


def test_a_task_refuses_examples_of_another_kind(bert: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="image-classification needs images, but x holds texts"):
        encode(image_processor(), Examples("x", ["a cat"]), IMAGE, 8, None)
    for kind in (TEXT, CAUSAL):
        with pytest.raises(DataError, match=f"{kind} needs texts, but pictures.parquet holds images"):
            encode(bert, picture_set(1), kind, 8, None)
    with pytest.raises(DataError, match="causal-lm needs single texts, but x holds pairs"):
        encode(decoder_tokenizer(), Examples("x", ["w3 w4"], ["w5"]), CAUSAL, 8, None)


def test_a_processor_of_another_kind_is_refused(bert: PreTrainedTokenizerBase) -> None:
    with pytest.raises(ModelError, match="needs an image processor"):
        encode(bert, picture_set(1), IMAGE, 8, None)
    with pytest.raises(ModelError, match="needs a tokenizer"):
        encode(image_processor(), Examples("x", ["a cat"]), TEXT, 8, None)
