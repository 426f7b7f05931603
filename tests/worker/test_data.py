"""The worker's private data, read and tokenised for the run."""

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from common.errors import DataError
from common.records import TaskSpec
from tests.conftest import LABELS, sentences, write_table
from worker.data import PrivateData


def test_data_is_read_as_it_stands_in_the_file(tmp_path: Path) -> None:
    texts, labels = sentences(5, seed=3)
    data = PrivateData.read(write_table(tmp_path / "data.csv", 5, seed=3), "text", "label")
    assert (len(data), data.texts, data.label_names) == (5, texts, labels)


def test_the_runs_order_of_labels_decides_the_class(tmp_path: Path) -> None:
    data = PrivateData.read(write_table(tmp_path / "data.csv", 6), "text", "label")
    forward, backward = data.class_indices(LABELS), data.class_indices(LABELS[::-1])
    assert [LABELS[i] for i in forward] == data.label_names
    assert [1 - i for i in forward] == backward


def test_texts_are_cut_to_the_runs_length(tmp_path: Path, model_folder: Path) -> None:
    data = PrivateData.read(write_table(tmp_path / "data.csv", 20), "text", "label")
    encoded = data.encoded(AutoTokenizer.from_pretrained(model_folder), TaskSpec(LABELS, 8))
    assert max(len(row["input_ids"]) for row in encoded.rows) == 8
    assert encoded.labels == data.class_indices(LABELS)


def test_a_label_that_the_run_does_not_know_names_its_row(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,label\na cat,animals\na car,traffic\n")
    data = PrivateData.read(tmp_path / "data.csv", "text", "label")
    with pytest.raises(DataError, match="row 2 has label 'traffic'; the run knows: animals, weather"):
        data.class_indices(LABELS)


def test_a_missing_column_names_those_found(tmp_path: Path) -> None:
    path = write_table(tmp_path / "data.csv", 3, labelled=False)
    with pytest.raises(DataError, match="no column 'label'; its columns are: text"):
        PrivateData.read(path, "text", "label")
