"""Labels as they stand in files become numbers, several classes or tags; what they are not is told."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from common.data.answers import class_sets_of, names_in, numbers_of, require_answers, tags_of
from common.data.examples import Columns, Examples, read_examples, write_examples
from common.errors import DataError
from common.records import TaskKind
from common.task_forms import FORMS, SEPARATORS, Answer

LABELS = ("x", "y", "z")


def labelled(*labels: str) -> Examples:
    return Examples("data.csv", ["a text"] * len(labels), label_names=list(labels))


# Numbers.


def test_numbers_are_read_as_they_are_written() -> None:
    assert numbers_of(labelled("3", "-2.5", "1e-3", " 4.0 ", "+.5")) == [3.0, -2.5, 0.001, 4.0, 0.5]


@pytest.mark.parametrize(
    "text", ["nan", "inf", "-Infinity", "1e39", "1_000", "high", "1,000.5", "0x10", "1 2", "true"]
)
def test_what_is_no_finite_number_is_refused_with_its_row(text: str) -> None:
    with pytest.raises(DataError) as caught:
        numbers_of(labelled("1", text))
    assert str(caught.value) == f"data.csv: row 2 has label {text!r}, which is no finite number"


def test_a_decimal_comma_is_told_as_one() -> None:
    with pytest.raises(
        DataError, match=r"row 1 has label '3,5', which is no finite number; write it with a point$"
    ):
        numbers_of(labelled("3,5"))


@pytest.mark.parametrize("ending", ["csv", "jsonl", "json", "parquet"])
def test_every_kind_of_table_holds_numbers(tmp_path: Path, ending: str) -> None:
    path, numbers = tmp_path / f"x.{ending}", [0.5, 3.0, -1.25]
    rows = [{"text": "a text", "label": number} for number in numbers]
    match ending:
        case "csv":
            path.write_text("text,label\n" + "".join(f"a text,{number}\n" for number in numbers))
        case "jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        case "json":
            path.write_text(json.dumps(rows))
        case "parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert numbers_of(read_examples(path, Columns(), TaskKind.TEXT_REGRESSION)) == numbers


def test_a_number_that_is_missing_is_refused_when_it_is_read(tmp_path: Path) -> None:
    table = pyarrow.table({"text": ["a", "b"], "label": [1.0, float("nan")]})
    parquet.write_table(table, tmp_path / "x.parquet")
    with pytest.raises(DataError, match=r"row 2 has no value in column 'label'"):
        read_examples(tmp_path / "x.parquet", Columns())


# Several classes.


@pytest.mark.parametrize("separator", SEPARATORS)
def test_several_classes_stand_in_a_cell(separator: str) -> None:
    cells = [f"z{separator}x", "y", f" x {separator} y ", f"x{separator}", "[]", '["y", "x"]']
    found = class_sets_of(labelled(*cells), LABELS)
    assert found == [[2, 0], [1], [0, 1], [0], [], [1, 0]]


def test_lists_of_json_and_parquet_are_several_classes(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": "a", "label": ["z", "x"]}, {"text": "b", "label": []}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.parquet"):
        found = read_examples(tmp_path / name, Columns(), TaskKind.TEXT_MULTI_LABEL)
        assert class_sets_of(found, LABELS) == [[2, 0], []]
        # And back again.
        write_examples(tmp_path / "again.parquet", found)
        again = read_examples(tmp_path / "again.parquet", Columns())
        assert again.label_lists == found.label_lists == [("z", "x"), ()]


def test_a_list_that_is_missing_is_not_taken_for_an_empty_one(tmp_path: Path) -> None:
    rows = [{"text": "a", "label": ["x"]}, {"text": "b", "label": None}]
    (tmp_path / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DataError, match=r"line 2 has no value in column 'label'; write an empty list"):
        read_examples(tmp_path / "x.jsonl", Columns())


def test_a_class_that_the_run_does_not_know_is_named_with_its_row() -> None:
    with pytest.raises(DataError) as caught:
        class_sets_of(labelled("x", "y; X", "w"), LABELS)
    assert str(caught.value) == (
        "data.csv: row 2 has label 'X'; the run knows: x, y, z; it differs from 'x' in blanks or case only "
        "(and 1 more row with labels unknown to it)"
    )


# Tags.


def tagged(words: list[tuple[str, ...]], tags: list[tuple[str, ...]]) -> Examples:
    return Examples("data.conll", None, words=words, label_lists=tags)


def test_tags_become_positions() -> None:
    assert tags_of(tagged([("a", "b"), ("c",)], [("z", "x"), ("y",)]), LABELS) == [[2, 0], [1]]


@pytest.mark.parametrize(
    ("tags", "told"),
    [
        ([("x",), ("x", "y")], "data.conll: row 2 has 1 word and 2 tags; there must be as many"),
        ([("x",), ("w",)], "data.conll: row 2 has label 'w'; the run knows: x, y, z"),
    ],
)
def test_tags_that_do_not_fit_are_named_with_their_row(tags: list[tuple[str, ...]], told: str) -> None:
    with pytest.raises(DataError) as caught:
        tags_of(tagged([("a",), ("b",)], tags), LABELS)
    assert str(caught.value) == told


@pytest.mark.parametrize("column", ["tags", "ner_tags"])
def test_words_are_found_under_their_usual_names(tmp_path: Path, column: str) -> None:
    rows = [{"id": "0", "tokens": ["EU", "calls"], column: ["B-ORG", "O"]}]
    (tmp_path / "x.jsonl").write_text(json.dumps(rows[0]) + "\n")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    for name in ("x.jsonl", "x.parquet"):
        found = read_examples(tmp_path / name, Columns(), TaskKind.TOKEN_CLASSIFICATION)
        assert (found.words, found.label_lists) == ([("EU", "calls")], [("B-ORG", "O")])
        assert read_examples(tmp_path / name, Columns(label=None)).words == [("EU", "calls")]
        with pytest.raises(DataError, match="has no column 'other_tags'"):
            read_examples(tmp_path / name, Columns(label="other_tags"))


def test_the_hubs_numbers_of_tags_have_their_names_in_the_file(tmp_path: Path) -> None:
    features = {
        "tokens": {"feature": {"dtype": "string", "_type": "Value"}, "_type": "Sequence"},
        "ner_tags": {"feature": {"names": ["O", "B-ORG"], "_type": "ClassLabel"}, "_type": "Sequence"},
    }
    table = pyarrow.table({"tokens": [["EU", "calls"], ["a"]], "ner_tags": [[1, 0], [0]]})
    plain = tmp_path / "plain.parquet"
    parquet.write_table(table, plain)
    assert read_examples(plain, Columns()).label_lists == [("1", "0"), ("0",)]
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    parquet.write_table(table.replace_schema_metadata(metadata), tmp_path / "x.parquet")
    assert read_examples(tmp_path / "x.parquet", Columns()).label_lists == [("B-ORG", "O"), ("O",)]


# What does not fit together.


@pytest.mark.parametrize("kind", [kind for kind in TaskKind if FORMS[kind].labelled])
def test_data_without_labels_is_told_to_name_their_column(kind: TaskKind) -> None:
    with pytest.raises(DataError, match=r"data\.csv has no labels; name the column that holds them"):
        require_answers(Examples("data.csv", ["a"]), kind, LABELS)


def test_a_language_model_asks_for_none() -> None:
    require_answers(Examples("data.csv", ["a"]), TaskKind.CAUSAL_LM, ())


@pytest.mark.parametrize(
    ("kind", "examples", "told"),
    [
        (TaskKind.TEXT_CLASSIFICATION, ([("x",)]), "has lists of labels, but every example is of one class"),
        (TaskKind.TEXT_REGRESSION, ([("1",)]), "has a list for each label, but the task wants a number"),
    ],
)
def test_lists_where_one_is_wanted_are_refused(
    kind: TaskKind, examples: list[tuple[str, ...]], told: str
) -> None:
    with pytest.raises(DataError, match=told):
        require_answers(Examples("data.csv", ["a"], label_lists=examples), kind, LABELS)


def test_names_are_counted_as_often_as_they_stand_there() -> None:
    several = labelled("x;y", "x")
    assert list(names_in(several, TaskKind.TEXT_MULTI_LABEL)) == ["x", "y", "x"]
    assert list(names_in(several, TaskKind.TEXT_CLASSIFICATION)) == ["x;y", "x"]
    assert list(names_in(several, TaskKind.TEXT_REGRESSION)) == []
    assert list(names_in(tagged([("a", "b")], [("x", "x")]), TaskKind.TOKEN_CLASSIFICATION)) == ["x", "x"]


def test_every_kind_of_task_has_a_form() -> None:
    assert FORMS.keys() == set(TaskKind)
    assert {form.answer for form in FORMS.values()} == set(Answer)
