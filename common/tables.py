"""Table files (CSV, TSV, JSONL, Parquet) → columns of text."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import csv, json, parquet

from common.errors import DataError

Columns = tuple[str, ...]


def _as_written(columns: Columns) -> csv.ConvertOptions:
    """Text stays what it is: pyarrow would make 7 of "007" and True of "true". An empty cell is no value."""
    return csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pyarrow.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )


def _read_csv(path: Path, columns: Columns) -> Any:
    options = csv.ParseOptions(newlines_in_values=True)
    return csv.read_csv(path, parse_options=options, convert_options=_as_written(columns))


def _read_tsv(path: Path, columns: Columns) -> Any:
    # Tab-separated files do not quote: GLUE's hold lone quotation marks as ordinary text.
    options = csv.ParseOptions(delimiter="\t", quote_char=False)
    return csv.read_csv(path, parse_options=options, convert_options=_as_written(columns))


def _read_jsonl(path: Path, columns: Columns) -> Any:
    return json.read_json(path)


def _read_parquet(path: Path, columns: Columns) -> Any:
    return parquet.read_table(path)


_READERS: dict[str, Callable[[Path, Columns], Any]] = {
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".parquet": _read_parquet,
}


def read_columns(path: Path, *columns: str) -> list[list[str]]:
    """The named columns as text, each as long as the table has rows.

    Raises DataError when the file is missing, empty, of no known kind or not readable, lacks a
    column (naming those found), or has a row without a value.
    """
    if path.suffix.lower() not in _READERS:
        kinds = ", ".join(_READERS)
        raise DataError(f"{path}: {path.suffix or 'no ending'} is not a known kind; use {kinds}")
    if not path.is_file():
        raise DataError(f"{path}: no such data file")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")
    try:
        table = _READERS[path.suffix.lower()](path, columns)
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    for column in columns:
        if column not in table.column_names:
            found = ", ".join(table.column_names)
            raise DataError(f"{path} has no column {column!r}; its columns are: {found}")
        if table.column_names.count(column) > 1:
            raise DataError(f"{path} has more than one column {column!r}; rename all but one")
    if table.num_rows == 0:
        raise DataError(f"{path} is empty: it has columns but no rows")
    return [_as_text(path, column, table.column(column).to_pylist()) for column in columns]


def _as_text(path: Path, column: str, values: list[Any]) -> list[str]:
    for row, value in enumerate(values, start=1):
        if value is None:
            raise DataError(f"{path}: row {row} has no value in column {column!r}")
    return [str(value) for value in values]


def class_indices(path: Path, names: list[str], labels: tuple[str, ...]) -> list[int]:
    """Label names → class indices. Raises DataError for a label that the run does not know."""
    index = {label: i for i, label in enumerate(labels)}
    for row, name in enumerate(names, start=1):
        if name not in index:
            known = ", ".join(labels)
            raise DataError(f"{path}: row {row} has label {name!r}; the run knows: {known}")
    return [index[name] for name in names]
