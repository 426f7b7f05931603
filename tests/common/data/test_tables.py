"""Table files of four kinds give the same columns, and tell what is wrong with them."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from common.data.tables import read_table
from common.errors import DataError

TEXTS = ["plain", 'a "quoted" word', "a comma, here", 'a lone " mark', "naïve — ünïcode", "007"]
LABELS = ["true", "false", "true", "false", "true", "false"]


def write_csv(path: Path, texts: list[str], labels: list[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("text", "label"), *zip(texts, labels, strict=True)])


def write_tsv(path: Path, texts: list[str], labels: list[str]) -> None:
    rows = [f"{text}\t{label}\n" for text, label in zip(texts, labels, strict=True)]
    path.write_text("text\tlabel\n" + "".join(rows), encoding="utf-8")


def write_jsonl(path: Path, texts: list[str], labels: list[str]) -> None:
    rows = [json.dumps({"text": t, "label": n}) for t, n in zip(texts, labels, strict=True)]
    path.write_text("\n".join(rows), encoding="utf-8")


def write_parquet(path: Path, texts: list[str], labels: list[str]) -> None:
    parquet.write_table(pyarrow.table({"text": texts, "label": labels}), path)


def read_columns(path: Path, *columns: str) -> list[list[str | None]]:
    return read_table(path, *columns).columns


Writer = Callable[[Path, list[str], list[str]], None]
WRITERS = {".csv": write_csv, ".tsv": write_tsv, ".jsonl": write_jsonl, ".parquet": write_parquet}


@pytest.mark.parametrize("ending", [*WRITERS, ".CSV"])
def test_every_kind_of_file_gives_the_same_columns(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"data{ending}"
    WRITERS[ending.lower()](path, TEXTS, LABELS)
    assert read_columns(path, "text", "label") == [TEXTS, LABELS]
    assert read_columns(path, "label") == [LABELS]


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_a_text_may_hold_newlines(tmp_path: Path, ending: str) -> None:
    texts = ["first\nsecond", 'a "quote"\nand more', "one line"]
    path = tmp_path / f"data{ending}"
    WRITERS[ending](path, texts, ["a", "b", "c"])
    assert read_columns(path, "text", "label") == [texts, ["a", "b", "c"]]


def test_quotation_marks_are_ordinary_text_in_tsv(tmp_path: Path) -> None:
    texts = ['" opens and never closes', "plain", '"all of it"', 'closes only "']
    write_tsv(tmp_path / "data.tsv", texts, ["a", "b", "c", "d"])
    assert read_columns(tmp_path / "data.tsv", "text", "label") == [texts, ["a", "b", "c", "d"]]


def test_a_newline_may_fall_anywhere_in_a_large_file(tmp_path: Path) -> None:
    """pyarrow parses in blocks of 1 MiB, which must not begin within a text."""
    texts = ["one line\n" * (40 + i % 7) for i in range(6000)]
    write_csv(tmp_path / "data.csv", texts, ["a"] * len(texts))
    assert (tmp_path / "data.csv").stat().st_size > 2 * 2**20
    assert read_columns(tmp_path / "data.csv", "text") == [texts]


@pytest.mark.parametrize("ending", [".csv", ".tsv"])
@pytest.mark.parametrize("texts", [["007", "1e3"], ["true", "FALSE"], ["2020-01-01", "2020-01-02"]])
def test_text_that_looks_like_another_type_stays_as_written(
    tmp_path: Path, ending: str, texts: list[str]
) -> None:
    path = tmp_path / f"data{ending}"
    WRITERS[ending](path, texts, ["0", "1"])
    assert read_columns(path, "text", "label") == [texts, ["0", "1"]]


def test_numbers_become_text(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')
    assert read_columns(path, "label") == [["0", "1"]]


def test_a_missing_column_names_those_found(tmp_path: Path) -> None:
    write_csv(tmp_path / "data.csv", TEXTS, LABELS)
    with pytest.raises(DataError, match=r"data.csv has no column 'sentence'; its columns are: text, label"):
        read_columns(tmp_path / "data.csv", "sentence")


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_text("text,text\na,b\n")
    with pytest.raises(DataError, match="more than one column 'text'"):
        read_columns(tmp_path / "data.csv", "text")


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_a_row_without_a_value_is_none(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"data{ending}"
    WRITERS[ending](path, ["a", None, "c"], ["x", "y", "z"])  # type: ignore[list-item]
    assert read_columns(path, "text") == [["a", None, "c"]]


@pytest.mark.parametrize("ending", WRITERS)
def test_an_empty_file_says_so(tmp_path: Path, ending: str) -> None:
    (tmp_path / f"data{ending}").touch()
    with pytest.raises(DataError, match=f"data{ending} is empty"):
        read_columns(tmp_path / f"data{ending}", "text")


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet"])
def test_a_file_with_columns_but_no_rows_says_so(tmp_path: Path, ending: str) -> None:
    WRITERS[ending](tmp_path / f"data{ending}", [], [])
    with pytest.raises(DataError, match="columns but no rows"):
        read_columns(tmp_path / f"data{ending}", "text")


def test_a_missing_file_and_an_unknown_kind_say_so(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: no such data file"):
        read_columns(tmp_path / "gone.csv", "text")
    with pytest.raises(DataError, match=r".xlsx is not a known kind; use .csv, .tsv"):
        read_columns(tmp_path / "data.xlsx", "text")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("data.csv", b"text,label\na,b,c\n", "line 2 has 3 fields, the header has 2"),
        ("data.csv", b"text\n\xff\xfe\n", "line 2 is not UTF-8"),
        ("data.jsonl", b'{"text": ', "line 1 is not JSON"),
        ("data.parquet", b"not parquet", "cannot be read: it is no Parquet file"),
    ],
    ids=["ragged", "not UTF-8", "cut off", "another format"],
)
def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=told) as caught:
        read_columns(tmp_path / name, "text")
    assert "\n" not in str(caught.value)
