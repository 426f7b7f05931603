"""Table files (CSV, TSV, JSONL, Parquet) → columns of text."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import csv, json, parquet

from common.errors import DataError

Names = tuple[str, ...]


def _as_written(columns: Names) -> csv.ConvertOptions:
    """Text stays what it is: pyarrow would make 7 of "007" and True of "true". An empty cell is no value."""
    return csv.ConvertOptions(
        column_types=dict.fromkeys(columns, pyarrow.string()),
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )


def _read_csv(path: Path, columns: Names) -> Any:
    options = csv.ParseOptions(newlines_in_values=True)
    return csv.read_csv(path, parse_options=options, convert_options=_as_written(columns))


def _read_tsv(path: Path, columns: Names) -> Any:
    # Tab-separated files do not quote: GLUE's hold lone quotation marks as ordinary text.
    options = csv.ParseOptions(delimiter="\t", quote_char=False)
    return csv.read_csv(path, parse_options=options, convert_options=_as_written(columns))


def _read_jsonl(path: Path, columns: Names) -> Any:
    return json.read_json(path)


def _read_parquet(path: Path, columns: Names) -> Any:
    # Columns that nobody asked for may be large: images beside their captions.
    there = parquet.read_schema(path).names
    if set(columns) <= set(there):
        return parquet.ParquetFile(path).read(columns=list(dict.fromkeys(columns)))
    return parquet.ParquetFile(path).schema_arrow.empty_table()


_READERS: dict[str, Callable[[Path, Names], Any]] = {
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
    require_content(path)
    with readable(path):
        table = _READERS[path.suffix.lower()](path, columns)
    require_columns(path, table.column_names, *columns)
    if table.num_rows == 0:
        raise DataError(f"{path} is empty: it has columns but no rows")
    return [_as_text(path, column, table.column(column).to_pylist()) for column in columns]


def parquet_columns(path: Path) -> list[str]:
    """The names of a Parquet file's columns. Raises DataError when it is missing or not readable."""
    require_content(path)
    with readable(path):
        names: list[str] = parquet.read_schema(path).names
    return names


def require_content(path: Path) -> None:
    """Raises DataError when there is no such file, or nothing in it."""
    if not path.is_file():
        raise DataError(f"{path}: no such data file")
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty")


def require_columns(path: Path, found: Sequence[str], *columns: str) -> None:
    """Raises DataError when a column is missing (naming those found) or there twice."""
    for column in columns:
        if column not in found:
            raise DataError(f"{path} has no column {column!r}; its columns are: {', '.join(found)}")
        if found.count(column) > 1:
            raise DataError(f"{path} has more than one column {column!r}; rename all but one")


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What pyarrow cannot read becomes a DataError of one line."""
    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error


def _as_text(path: Path, column: str, values: list[Any]) -> list[str]:
    for row, value in enumerate(values, start=1):
        if value is None:
            raise DataError(f"{path}: row {row} has no value in column {column!r}")
        if isinstance(value, dict | list | bytes):
            raise DataError(f"{path}: row {row} of column {column!r} is not text; name another column")
    return [str(value) for value in values]


def class_indices(source: Path | str, names: Sequence[str], labels: tuple[str, ...]) -> list[int]:
    """Label names → class indices. Raises DataError for a label that the run does not know."""
    index = {label: i for i, label in enumerate(labels)}
    for row, name in enumerate(names, start=1):
        if name not in index:
            known = ", ".join(labels)
            raise DataError(f"{source}: row {row} has label {name!r}; the run knows: {known}")
    return [index[name] for name in names]
