"""The worker's private data, read and encoded for the run."""

from dataclasses import replace
from pathlib import Path

import pyarrow
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from common.data.batches import CausalDataset, Dataset, TextDataset
from common.data.encoding import ImageDataset
from common.data.examples import Columns, Examples
from common.data.processors import load_processor
from common.errors import DataError, ModelError
from common.records import TaskKind, TaskSpec
from tests.chats import write_chats
from tests.conftest import LABELS, sentences, write_pictures, write_table
from tests.families import write_family
from worker.data import PrivateData, Source

TEXT = TaskSpec(TaskKind.TEXT_CLASSIFICATION, LABELS, 8, False)
PAIRS = replace(TEXT, pairs=True)
IMAGES = TaskSpec(TaskKind.IMAGE_CLASSIFICATION, LABELS, 8, False)
CAUSAL = TaskSpec(TaskKind.CAUSAL_LM, (), 8, False)


def read(path: Path, **columns: str | None) -> PrivateData:
    return PrivateData.read(Source(path, replace(Columns(), **columns)))


def write_pairs(path: Path) -> Path:
    path.write_text("text,other,label\na cat,a dog,animals\nrain,snow,weather\n")
    return path


def write_folder(folder: Path, *names: str) -> Path:
    """An image folder FOLDER/CLASS/*.png with one small image a name."""
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 5), (40 * i, 0, 0)).save(folder / name)
    return folder


# --- reading ---


def test_data_is_read_as_it_stands_in_the_file(tmp_path: Path) -> None:
    texts, labels = sentences(5, seed=3)
    data = read(write_table(tmp_path / "data.csv", 5, seed=3))
    assert len(data) == 5
    assert (data.examples.texts, data.examples.label_names) == (texts, labels)
    assert data.examples.pairs is None and data.examples.images is None


def test_the_columns_are_those_named(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("a,b,c\nx,y,z\n")
    found = read(tmp_path / "data.csv", text="b", pair="c", label="a").examples
    assert (found.texts, found.pairs, found.label_names) == (["y"], ["z"], ["x"])


def test_a_language_models_texts_need_no_labels(tmp_path: Path) -> None:
    found = read(write_table(tmp_path / "data.csv", 3, labelled=False), label=None).examples
    assert found.texts is not None and len(found.texts) == 3
    assert found.label_names is None


def test_images_are_read_from_folders_and_tables_alike(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "images", "animals/1.png", "animals/2.png", "weather/1.png")
    by_folder = read(folder).examples
    assert by_folder.label_names == ["animals", "animals", "weather"]
    by_table = read(write_pictures(tmp_path / "data.parquet", 7)).examples
    assert len(by_table) == 7 and set(by_table.label_names or []) <= set(LABELS)
    assert by_folder.texts is None and by_table.texts is None


def test_a_preset_is_read_from_the_folder_of_data_sets(tmp_path: Path) -> None:
    folder = tmp_path / "nyu-mll" / "glue" / "sst2"
    folder.mkdir(parents=True)
    table = {"sentence": ["good", "bad"], "label": [1, 0], "idx": [0, 1]}
    parquet.write_table(pyarrow.table(table), folder / "train-00000-of-00001.parquet")
    found = PrivateData.read(Source(preset="sst2", root=tmp_path)).examples
    assert (found.texts, found.label_names) == (["good", "bad"], ["positive", "negative"])
    assert found.source == "sst2:train"


def test_a_missing_column_names_those_found(tmp_path: Path) -> None:
    path = write_table(tmp_path / "data.csv", 3, labelled=False)
    with pytest.raises(DataError, match="no column 'label'; its columns are: text"):
        read(path)


def test_data_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such data file or folder of images"):
        read(tmp_path / "data.csv")


# --- whether it is data for the run ---


def data_of(form: str, folder: Path) -> PrivateData:
    match form:
        case "texts":
            return read(write_table(folder / "texts.csv", 4))
        case "unlabelled":
            return read(write_table(folder / "bare.csv", 4, labelled=False), label=None)
        case "pairs":
            return read(write_pairs(folder / "pairs.csv"), pair="other")
        case "images":
            return read(write_pictures(folder / "images.parquet", 4))
    raise AssertionError(form)


@pytest.mark.parametrize(
    ("form", "task"),
    [
        ("texts", TEXT),
        ("pairs", PAIRS),
        ("images", IMAGES),
        ("texts", CAUSAL),
        ("unlabelled", CAUSAL),
    ],
)
def test_data_of_the_runs_form_will_do(tmp_path: Path, form: str, task: TaskSpec) -> None:
    data_of(form, tmp_path).require(task)


@pytest.mark.parametrize(
    ("form", "task", "told"),
    [
        ("images", TEXT, "images.parquet holds images, but the run is for text-classification"),
        ("images", CAUSAL, "images.parquet holds images, but the run is for causal-lm"),
        ("texts", IMAGES, "texts.csv holds texts, but the run is for image-classification"),
        ("texts", PAIRS, "the run is for pairs of texts; name the second column of .*: --pair-column"),
        ("pairs", TEXT, "the run is for single texts; leave out --pair-column for .*pairs.csv"),
        ("pairs", CAUSAL, "the run is for single texts; leave out --pair-column for .*pairs.csv"),
        ("unlabelled", TEXT, "bare.csv has no labels; name the column that holds them"),
        (
            "texts",
            replace(TEXT, labels=("animals", "traffic")),
            "line [0-9] has label 'weather'; the run knows: animals, traffic",
        ),
        (
            "images",
            replace(IMAGES, labels=("weather", "traffic")),
            "row [0-9] has label 'animals'; the run knows: weather, traffic",
        ),
    ],
)
def test_data_of_another_form_is_refused_with_what_to_do(
    tmp_path: Path, form: str, task: TaskSpec, told: str
) -> None:
    with pytest.raises(DataError, match=told):
        data_of(form, tmp_path).require(task)


def test_a_label_that_the_run_does_not_know_names_its_row(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,label\na cat,animals\na car,traffic\n")
    data = read(tmp_path / "data.csv")
    with pytest.raises(DataError, match="line 3 has label 'traffic'; the run knows: animals, weather"):
        data.require(TEXT)


def test_a_language_model_does_not_mind_labels_it_does_not_know(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,label\na cat,animals\na car,traffic\n")
    read(tmp_path / "data.csv").require(CAUSAL)


# --- encoding ---


def encoded(data: PrivateData, folder: Path, task: TaskSpec) -> Dataset:
    return data.encoded(load_processor(folder, task.kind), task)


def test_texts_are_cut_to_the_runs_length(tmp_path: Path, model_folder: Path) -> None:
    found = encoded(read(write_table(tmp_path / "data.csv", 20)), model_folder, TEXT)
    assert isinstance(found, TextDataset)
    assert max(len(row["input_ids"]) for row in found.rows) == 8
    assert len(found) == 20


def test_the_runs_order_of_labels_decides_the_class(tmp_path: Path, model_folder: Path) -> None:
    data = read(write_table(tmp_path / "data.csv", 6))
    forward = encoded(data, model_folder, TEXT)
    backward = encoded(data, model_folder, replace(TEXT, labels=LABELS[::-1]))
    assert isinstance(forward, TextDataset) and isinstance(backward, TextDataset)
    assert forward.labels is not None and backward.labels is not None
    assert [LABELS[i] for i in forward.labels] == data.examples.label_names
    assert backward.labels == [1 - i for i in forward.labels]


def test_pairs_are_one_row_each(tmp_path: Path, model_folder: Path) -> None:
    data = read(write_pairs(tmp_path / "data.csv"), pair="other")
    found = encoded(data, model_folder, PAIRS)
    single = encoded(PrivateData(Examples("x", ["a cat"], label_names=["animals"])), model_folder, TEXT)
    assert isinstance(found, TextDataset) and isinstance(single, TextDataset)
    assert len(found) == 2
    row, first = found.rows[0]["input_ids"], single.rows[0]["input_ids"]
    # [CLS] a cat [SEP] a dog [SEP]
    assert row[: len(first)] == first and len(row) == len(first) + 3


def test_a_language_models_texts_are_joined_into_blocks(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "gpt2", CAUSAL.kind)
    found = encoded(read(write_table(tmp_path / "data.csv", 20)), folder, CAUSAL)
    assert isinstance(found, CausalDataset)
    assert {len(row["input_ids"]) for row in found.rows[:-1]} == {8}
    batch = found.batch([0])
    assert batch.labels is not None and torch.equal(batch.labels, batch.inputs["input_ids"])


def test_images_become_pixels_of_the_models_size(tmp_path: Path) -> None:
    folder = write_family(tmp_path / "model", "vit", IMAGES.kind)
    data = read(write_folder(tmp_path / "images", "animals/1.png", "weather/1.png"))
    found = encoded(data, folder, IMAGES)
    assert isinstance(found, ImageDataset)
    batch = found.batch([1, 0])
    assert batch.inputs["pixel_values"].shape == (2, 3, 32, 32)
    assert batch.labels is not None and batch.labels.tolist() == [1, 0]
    assert batch.mask is None


def test_a_processor_for_other_data_is_a_model_error(tmp_path: Path, model_folder: Path) -> None:
    tokenizer = load_processor(model_folder, TEXT.kind)
    with pytest.raises(ModelError, match="image-classification needs an image processor, not a tokenizer"):
        read(write_pictures(tmp_path / "data.parquet", 2)).encoded(tokenizer, IMAGES)
    folder = write_family(tmp_path / "model", "vit", IMAGES.kind)
    processor = load_processor(folder, IMAGES.kind)
    for task in (TEXT, CAUSAL):
        with pytest.raises(ModelError, match=f"{task.kind} needs a tokenizer, not an image processor"):
            read(write_table(tmp_path / "data.csv", 2)).encoded(processor, task)


# --- what is kept aside ---


def test_a_share_is_kept_aside_and_not_trained_on(tmp_path: Path) -> None:
    source = Source(write_table(tmp_path / "data.csv", 40), validation_share=0.25)
    whole = read(tmp_path / "data.csv").examples
    data = PrivateData.read(source, "clinic-a")
    assert data.validation is not None
    assert (len(data), len(data.validation)) == (30, 10)
    together = sorted([*(data.examples.texts or ()), *(data.validation.texts or ())])
    assert together == sorted(whole.texts or ())
    # Each has its labels and its places with it.
    labels = dict(zip(whole.texts or (), whole.label_names or (), strict=True))
    for part in (data.examples, data.validation):
        assert [labels[text] for text in part.texts or ()] == part.label_names
    lines = (tmp_path / "data.csv").read_text().splitlines()
    place = data.validation.name_of(0)
    assert (data.validation.texts or [""])[0] in lines[int(place.rpartition(" ")[2]) - 1]


def test_the_share_is_drawn_by_the_workers_name_alone(tmp_path: Path) -> None:
    source = Source(write_table(tmp_path / "data.csv", 40), validation_share=0.25)
    a, again, b = (PrivateData.read(source, name) for name in ("a", "a", "b"))
    assert a.validation == again.validation != b.validation
    # An update is for what it was trained on.
    plain = read(tmp_path / "data.csv")
    more = PrivateData.read(replace(source, validation_share=0.5), "a")
    assert len({a.digest, b.digest, plain.digest, more.digest}) == 4 and a.digest == again.digest


@pytest.mark.parametrize(
    ("share", "says"),
    [(0.01, "leaves none aside"), (1.0, "leaves none to train on"), (0.99, "none to train on")],
)
def test_a_share_that_leaves_nothing_on_either_side_is_refused(
    tmp_path: Path, share: float, says: str
) -> None:
    source = Source(write_table(tmp_path / "data.csv", 10), validation_share=share)
    with pytest.raises(DataError, match=says):
        PrivateData.read(source, "a")


def test_a_validation_file_is_held_to_the_same_rules(tmp_path: Path) -> None:
    aside = tmp_path / "aside.csv"
    aside.write_text("text,label\na cat,Animals\n")
    data = PrivateData.read(Source(write_table(tmp_path / "data.csv", 10), validation=aside), "a")
    with pytest.raises(DataError, match=r"aside.csv: line 2 has label 'Animals'"):
        data.require(TEXT)
    with pytest.raises(DataError, match="no such data file"):
        PrivateData.read(Source(tmp_path / "data.csv", validation=tmp_path / "none.csv"), "a")


def test_a_run_of_conversations_takes_no_texts_and_one_of_texts_takes_both(tmp_path: Path) -> None:
    chats, texts = (
        read(write_chats(tmp_path / "c.jsonl", 2)),
        read(write_table(tmp_path / "t.csv", 2), label=None),
    )
    run = replace(CAUSAL, conversations=True)
    chats.require(run)
    for data in (chats, texts):
        data.require(CAUSAL)
    with pytest.raises(
        DataError, match=r"t\.csv holds texts, but the run is for conversations: a column 'mess"
    ):
        texts.require(run)
    with pytest.raises(DataError, match=r"holds conversations, but the run is for text-classification"):
        chats.require(TEXT)
