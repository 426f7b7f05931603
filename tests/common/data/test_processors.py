"""What turns examples into inputs reaches workers as files, and is there what it was here."""

import json
from pathlib import Path

import numpy
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from common.data.images import ImageProcessor
from common.data.processors import FILES, load_processor, processor_files, save_processor, write_processor
from common.errors import ModelError
from common.records import ArtifactKind, TaskKind
from tests.conftest import sentences, write_tokenizer

TEXT, IMAGES, CAUSAL = TaskKind.TEXT_CLASSIFICATION, TaskKind.IMAGE_CLASSIFICATION, TaskKind.CAUSAL_LM
TOKENIZER_FILES = {ArtifactKind.TOKENIZER, ArtifactKind.TOKENIZER_CONFIG}


def tokenizer_at(folder: Path, kind: TaskKind = TEXT) -> PreTrainedTokenizerBase:
    loaded = load_processor(folder, kind)
    assert isinstance(loaded, PreTrainedTokenizerBase)
    return loaded


def write_image_processor(folder: Path, **settings: object) -> Path:
    """A ViT's configuration for images of 32 by 32."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "image_processor_type": "ViTImageProcessor",
        "size": {"height": 32, "width": 32},
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [0.5, 0.6, 0.7],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(config | settings))
    return folder


def images(count: int = 3) -> list[Image.Image]:
    """Of different sizes."""
    draw = numpy.random.default_rng(0)
    return [
        Image.fromarray(draw.integers(0, 256, (20 + i, 40 - i, 3), dtype=numpy.uint8)) for i in range(count)
    ]


def image_processor_at(folder: Path) -> ImageProcessor:
    loaded = load_processor(folder, IMAGES)
    assert isinstance(loaded, ImageProcessor)
    return loaded


# --- tokenizers ---


@pytest.mark.parametrize("kind", [TEXT, CAUSAL])
def test_a_tokenizer_survives_its_files(model_folder: Path, tmp_path: Path, kind: TaskKind) -> None:
    here = tokenizer_at(model_folder, kind)
    files = processor_files(here)
    assert files.keys() == TOKENIZER_FILES
    there = write_processor(tmp_path / "worker", files, kind)
    assert isinstance(there, PreTrainedTokenizerBase)
    texts, _ = sentences(6)
    assert there(texts, texts[::-1], padding=True).data == here(texts, texts[::-1], padding=True).data
    assert (there.pad_token, there.eos_token, there.padding_side) == (here.pad_token, here.eos_token, "right")


def test_the_same_tokenizer_has_the_same_files(model_folder: Path, tmp_path: Path) -> None:
    files = processor_files(tokenizer_at(model_folder))
    assert processor_files(write_processor(tmp_path, files, TEXT)) == files
    assert processor_files(tokenizer_at(model_folder)) == files


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_goes_to_the_right_whatever_the_model_says(tmp_path: Path, side: str) -> None:
    write_tokenizer(tmp_path, padding_side=side)
    assert tokenizer_at(tmp_path).padding_side == "right"
    rows = tokenizer_at(tmp_path)(["cat dog fish", "cat"], padding=True)["attention_mask"]
    assert rows == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]


def write_unpadded(folder: Path, **tokens: str) -> Path:
    """A tokenizer as decoders have it, without a pad token."""
    backend = Tokenizer(models.WordLevel({"<unk>": 0, "<end>": 1, "cat": 2, "dog": 3}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", **tokens).save_pretrained(folder)
    return folder


def test_a_tokenizer_without_a_pad_token_pads_with_eos_here_and_at_workers(tmp_path: Path) -> None:
    here = tokenizer_at(write_unpadded(tmp_path / "model", eos_token="<end>"), CAUSAL)
    there = write_processor(tmp_path / "worker", processor_files(here), CAUSAL)
    for tokenizer in (here, there):
        assert isinstance(tokenizer, PreTrainedTokenizerBase)
        assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<end>", 1)
        padded = tokenizer(["cat cat", "cat"], padding=True)
        assert padded["input_ids"] == [[2, 2], [2, 1]]
        assert padded["attention_mask"] == [[1, 1], [1, 0]]


def test_a_pad_token_of_its_own_is_kept(tmp_path: Path) -> None:
    loaded = tokenizer_at(write_unpadded(tmp_path, eos_token="<end>", pad_token="cat"), CAUSAL)
    assert loaded.pad_token == "cat"


def test_a_folder_without_a_tokenizer_is_a_model_error_on_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="its tokenizer cannot be loaded") as caught:
        load_processor(tmp_path, TEXT)
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


# --- image processors ---


def test_an_image_processor_survives_its_files(tmp_path: Path) -> None:
    here = image_processor_at(write_image_processor(tmp_path / "model"))
    files = processor_files(here)
    assert files.keys() == {ArtifactKind.IMAGE_PROCESSOR}
    there = write_processor(tmp_path / "worker", files, IMAGES)
    assert isinstance(there, ImageProcessor)
    pixels = here.pixel_values(images())
    assert pixels.shape == (3, 3, 32, 32)
    assert torch.equal(there.pixel_values(images()), pixels)
    assert processor_files(there) == files


def test_the_models_own_settings_reach_the_worker(tmp_path: Path) -> None:
    folder = write_image_processor(tmp_path / "model", size={"height": 16, "width": 24}, do_normalize=False)
    there = write_processor(tmp_path / "worker", processor_files(image_processor_at(folder)), IMAGES)
    assert isinstance(there, ImageProcessor)
    pixels = there.pixel_values(images(1))
    assert pixels.shape == (1, 3, 16, 24)
    # Not normalised: between black and white.
    assert pixels.min() >= 0 and pixels.max() <= 1


def test_a_folder_without_an_image_processor_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="holds no preprocessor_config"):
        load_processor(tmp_path, IMAGES)


# --- both ---


def test_a_saved_processor_loads_from_its_folder(model_folder: Path, tmp_path: Path) -> None:
    save_processor(tokenizer_at(model_folder), tmp_path / "text")
    save_processor(image_processor_at(write_image_processor(tmp_path / "model")), tmp_path / "images")
    assert (
        tokenizer_at(tmp_path / "text")("cat")["input_ids"] == tokenizer_at(model_folder)("cat")["input_ids"]
    )
    assert image_processor_at(tmp_path / "images").pixel_values(images(1)).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("kind", sorted(set(ArtifactKind) - FILES.keys()))
def test_a_file_of_another_kind_is_refused_and_not_written(
    model_folder: Path, tmp_path: Path, kind: ArtifactKind
) -> None:
    with pytest.raises(ModelError, match=f"a file of kind {kind} belongs to no tokenizer or image processor"):
        write_processor(tmp_path / "worker", {kind: b"{}"}, TEXT)
    assert not (tmp_path / "worker").exists()


def test_files_get_names_chosen_here(model_folder: Path, tmp_path: Path) -> None:
    files = processor_files(tokenizer_at(model_folder))
    write_processor(tmp_path / "worker", files, TEXT)
    assert {p.name for p in (tmp_path / "worker").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}


@pytest.mark.parametrize(
    "content", [b"", b"nonsense", b"[]", b"{}", b'{"added_tokens": []}', b'{"added_tokens": 3}']
)
def test_a_tokenizer_that_cannot_be_read_is_a_model_error(
    model_folder: Path, tmp_path: Path, content: bytes
) -> None:
    files = processor_files(tokenizer_at(model_folder)) | {ArtifactKind.TOKENIZER: content}
    with pytest.raises(ModelError, match="its tokenizer cannot be loaded"):
        write_processor(tmp_path / "worker", files, TEXT)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"[]", b"{}"])
def test_an_image_processor_that_cannot_be_read_is_a_model_error(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ModelError, match=r"cannot be (loaded|read)"):
        write_processor(tmp_path / "worker", {ArtifactKind.IMAGE_PROCESSOR: content}, IMAGES)


def test_files_for_another_kind_of_task_are_a_model_error(model_folder: Path, tmp_path: Path) -> None:
    files = processor_files(tokenizer_at(model_folder))
    with pytest.raises(ModelError, match="holds no preprocessor_config"):
        write_processor(tmp_path / "worker", files, IMAGES)


# --- from the other side ---


def test_what_a_tokenizers_configuration_says_of_files_and_code_is_dropped(tmp_path: Path) -> None:
    write_tokenizer(tmp_path / "sent")
    files = processor_files(tokenizer_at(tmp_path / "sent"))
    fields = json.loads(files[ArtifactKind.TOKENIZER_CONFIG])
    evil = {
        "auto_map": {"AutoTokenizer": ["elsewhere--code.Tokenizer", None]},
        "tokenizer_file": "/etc/hostname",
        "vocab_file": "/etc/hostname",
        "name_or_path": "elsewhere/model",
        "chat_template": "{{ 1 }}",
    }
    files[ArtifactKind.TOKENIZER_CONFIG] = json.dumps(fields | evil).encode()
    got = write_processor(tmp_path / "got", files, TEXT)
    written = json.loads((tmp_path / "got" / "tokenizer_config.json").read_text())
    assert not evil.keys() & written.keys()
    assert {k: v for k, v in fields.items() if k in written} == written
    assert isinstance(got, PreTrainedTokenizerBase)
    texts, _ = sentences(20)
    assert got(texts)["input_ids"] == tokenizer_at(tmp_path / "sent")(texts)["input_ids"]


@pytest.mark.parametrize(
    ("kind", "content", "reason"),
    [
        (ArtifactKind.TOKENIZER_CONFIG, b" " * (4 * 2**20 + 1), "allowed are"),
        (ArtifactKind.IMAGE_PROCESSOR, b"{}" + b" " * 2**16, "allowed are"),
        (ArtifactKind.TOKENIZER_CONFIG, b"[]", "cannot be read"),
        (ArtifactKind.TOKENIZER_CONFIG, b"[" * 100_000, "cannot be read"),
        (ArtifactKind.IMAGE_PROCESSOR, b'{"size": {"height": 100000, "width": 1}}', "pixels a side"),
        (ArtifactKind.IMAGE_PROCESSOR, b'{"size": [1, [1e300]]}', "pixels a side"),
        (ArtifactKind.ADAPTER, b"", "belongs to no tokenizer"),
    ],
)
def test_a_file_that_is_too_large_or_asks_for_too_much_is_refused(
    tmp_path: Path, kind: ArtifactKind, content: bytes, reason: str
) -> None:
    with pytest.raises(ModelError, match=reason):
        write_processor(tmp_path, {kind: content}, TEXT)
