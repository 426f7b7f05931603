"""What many tests share: a small random BERT with a real tokenizer, and small labelled texts."""

import csv
import io
import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

# Before transformers is imported anywhere: no test may ask a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

# Tests run side by side on small models: more threads would only wait for each other.
torch.set_num_threads(1)

LABELS = ("animals", "weather")
WORDS = {
    "animals": ["cat", "dog", "horse", "bird", "fish", "cow", "sheep", "wolf", "bear", "fox"],
    "weather": ["rain", "snow", "wind", "sun", "cloud", "storm", "fog", "hail", "frost", "thunder"],
}
FILLERS = [
    "the",
    "a",
    "some",
    "many",
    "old",
    "new",
    "big",
    "small",
    "near",
    "far",
    "is",
    "was",
    "and",
    "then",
]
LAYERS, HIDDEN, FFN, HEADS = 4, 32, 64, 4


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS["animals"], *WORDS["weather"], *FILLERS]


def write_model(folder: Path, seed: int = 0, activation: str = "gelu") -> Path:
    """A random BERT of 4 layers (hidden 32, FFN 64) with a word-level tokenizer, as a hub directory."""
    config = BertConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=HIDDEN,
        intermediate_size=FFN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=64,
        hidden_act=activation,
        # Larger than the usual 0.02: a random model's layers must do something to be told apart.
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        BertForSequenceClassification(config).save_pretrained(folder)
    write_tokenizer(folder)
    return folder


def write_tokenizer(folder: Path, **settings: Any) -> None:
    """A word-level tokenizer that knows the words of `sentences`."""
    words = {word: i for i, word in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        # As the tokenizers of most families say: segments are BERT's own.
        model_input_names=["input_ids", "attention_mask"],
        **settings,
    ).save_pretrained(folder)


def sentences(count: int, seed: int = 0) -> tuple[list[str], list[str]]:
    """Texts of 3 to 12 words, and the label that some of their words give away."""
    draw = random.Random(seed)
    texts, labels = [], []
    for _ in range(count):
        label = draw.choice(LABELS)
        told = draw.sample(WORDS[label], draw.randint(1, 4))
        words = [*told, *draw.choices(FILLERS, k=draw.randint(2, 8))]
        draw.shuffle(words)
        texts.append(" ".join(words))
        labels.append(label)
    return texts, labels


def write_table(path: Path, count: int, seed: int = 0, labelled: bool = True) -> Path:
    """A CSV file of `sentences`."""
    texts, labels = sentences(count, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"] if labelled else ["text"])
        writer.writerows(zip(texts, labels, strict=True) if labelled else ([t] for t in texts))
    return path


# What each kind of task calls its answers in tests.
TAGS = ("O", "B-ANIMAL", "I-ANIMAL", "B-WEATHER", "I-WEATHER")


def tagged(count: int, seed: int = 0) -> tuple[list[list[str]], list[list[str]]]:
    """Sentences of words with tags by IOB2: animals and weather, each of one word or of two.

    The second is one of those that never come first.
    """
    draw = random.Random(seed)
    sentences, tags = [], []
    for _ in range(count):
        words, labels = [], []
        for _ in range(draw.randint(1, 3)):
            plain = draw.choices(FILLERS, k=draw.randint(1, 3))
            kind = draw.choice(LABELS)
            entity = [draw.choice(WORDS[kind][:5]), draw.choice(WORDS[kind][5:])][: draw.randint(1, 2)]
            mark = kind.removesuffix("s").upper()
            words += [*plain, *entity]
            labels += ["O"] * len(plain) + [f"{'I' if i else 'B'}-{mark}" for i in range(len(entity))]
        sentences.append(words)
        tags.append(labels)
    return sentences, tags


def write_conll(path: Path, count: int, seed: int = 0, labelled: bool = True) -> Path:
    """Columns as CoNLL-2003 has them, of `tagged`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["-DOCSTART- O", ""]
    for words, tags in zip(*tagged(count, seed), strict=True):
        lines += [f"{w} {t}" if labelled else w for w, t in zip(words, tags, strict=True)] + [""]
    path.write_text("\n".join(lines if labelled else lines[2:]))
    return path


def write_data(path: Path, kind: str, count: int, seed: int = 0, labelled: bool = True) -> Path:
    """Examples for a kind of task, in a file of its usual form beside `path`."""
    match kind:
        case "image-classification":
            return write_pictures(path.with_suffix(".parquet"), count, seed)
        case "token-classification":
            return write_conll(path.with_suffix(".conll"), count, seed, labelled)
        case "text-regression" | "text-multi-label":
            return write_answers(path.with_suffix(".csv"), kind, count, seed, labelled)
    return write_table(path.with_suffix(".csv"), count, seed, labelled)


def labels_of(kind: str) -> tuple[str, ...]:
    """The classes of `write_data`."""
    if kind in ("causal-lm", "text-regression"):
        return ()
    return TAGS if kind == "token-classification" else LABELS


def write_answers(path: Path, kind: str, count: int, seed: int = 0, labelled: bool = True) -> Path:
    """A CSV file of `sentences` for regression (the share of animals among telling words) or several classes.

    Of several: those of whose words there is one, and none, written [], where there is neither.
    """
    draw = random.Random(seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"] if labelled else ["text"])
        for _ in range(count):
            animals, weather = draw.randint(0, 3), draw.choice([0, 0, 2, 3])
            words = draw.sample(WORDS["animals"], animals) + draw.sample(WORDS["weather"], weather)
            words += draw.choices(FILLERS, k=draw.randint(2, 6))
            draw.shuffle(words)
            if kind == "text-regression":
                label = str(animals / 3)
            else:
                there = [name for name, found in zip(LABELS, (animals, weather), strict=True) if found]
                label = "; ".join(there) or "[]"
            writer.writerow([" ".join(words), label] if labelled else [" ".join(words)])
    return path


def write_pictures(path: Path, count: int, seed: int = 0) -> Path:
    """A Parquet file of small PNGs as the hub has them: "animals" are dark, "weather" is light."""
    draw = numpy.random.default_rng(seed)
    images, labels = [], []
    for _ in range(count):
        label = LABELS[int(draw.integers(2))]
        pixels = draw.integers(0, 120, (12, 12, 3)) + (120 if label == "weather" else 0)
        file = io.BytesIO()
        Image.fromarray(pixels.astype("uint8")).save(file, "PNG")
        images.append({"bytes": file.getvalue(), "path": None})
        labels.append(label)
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table({"image": images, "label": labels}), path)
    return path


@pytest.fixture(autouse=True)
def own_logging() -> Iterator[None]:
    """What a command sets up for its terminal ends with its test, as it ends with its process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small random BERT."""
    return write_model(tmp_path_factory.mktemp("model"))


# Directories whose files take longest.
LONGEST = ("experiments", "integration", "faults", "security", "coordinator")


# Of these, families beyond the everyday ones are `make test-all`'s.
AT_LENGTH = ("common", "coordinator", "field", "integration", "worker")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first: a worker that takes one last leaves the other idle."""
    from common.model.families import FAMILIES
    from tests.families import EVERYDAY

    here = Path(__file__).parent
    rank = {name: i for i, name in enumerate(LONGEST)}
    for item in items:
        told = getattr(item, "callspec", None)
        names = {told.params.get("model_type"), told.params.get("family")} if told else set()
        rest = names & (FAMILIES.keys() - EVERYDAY)
        if rest and item.path.relative_to(here).parts[0] in AT_LENGTH:
            item.add_marker(pytest.mark.slow)

    def key(item: pytest.Item) -> int:
        return rank.get(item.path.relative_to(here).parts[0], len(rank))

    items.sort(key=key)
