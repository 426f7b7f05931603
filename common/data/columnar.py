"""Parquet → columns of text or of lists, or images."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.compute
from pyarrow import parquet, types

from common.data.content import require_parquet
from common.data.rows import Cell, Places, Table, require_columns
from common.errors import DataError

# Rows of images held twice while a Parquet file is read: as pyarrow's and as Python's.
_READ_ROWS = 256


def read_parquet(path: Path, names: Sequence[str]) -> Table:
    """The named columns as text, or as lists of texts. Raises DataError naming the row, counted from 1."""
    require_columns(path, parquet_columns(path), *names)
    with readable(path):
        # Columns that nobody asked for may be large: images beside their captions.
        table = parquet.ParquetFile(path).read(columns=list(dict.fromkeys(names)))
    columns = [_cells(path, name, table.column(name)) for name in names]
    return Table(columns, Places.in_file(path, "row", range(1, table.num_rows + 1)))


def parquet_values(path: Path, names: Sequence[str]) -> tuple[list[list[Any]], Places]:
    """The named columns as Python has them, lists and objects among them, and where the rows stand.

    Raises DataError.
    """
    require_columns(path, parquet_columns(path), *names)
    with readable(path):
        table = parquet.ParquetFile(path).read(columns=list(names))
        columns = [table.column(name).to_pylist() for name in names]
    return columns, Places.in_file(path, "row", range(1, table.num_rows + 1))


def read_images(path: Path, column: str) -> list[Path | bytes]:
    """The column's images: encoded bytes; or, of the hub's struct without bytes, the file that it names.

    Raises DataError naming the row, counted from 1.
    """
    require_columns(path, parquet_columns(path), column)
    images: list[Path | bytes] = []
    with readable(path):
        # Table by table: an image set may be larger than half of the memory.
        for rows in parquet.ParquetFile(path).iter_batches(_READ_ROWS, columns=[column]):
            for value in rows.column(0).to_pylist():
                images.append(_image(path, len(images) + 1, column, value))
    return images


def parquet_columns(path: Path) -> list[str]:
    """The names of a Parquet file's columns. Raises DataError when it is missing or not readable."""
    require_parquet(path)
    with readable(path):
        names: list[str] = parquet.read_schema(path).names
    return names


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """What pyarrow cannot read becomes a DataError of one line."""
    try:
        yield
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{path} cannot be read: it is damaged or incomplete ({reason})") from error


def _cells(path: Path, name: str, column: Any) -> Sequence[Cell | None]:
    if not (types.is_list(column.type) or types.is_large_list(column.type)):
        return _as_text(path, name, column)
    whole = column.combine_chunks()
    with readable(path):
        items = _as_text(path, name, pyarrow.chunked_array([whole.flatten()]))
        lengths = pyarrow.compute.fill_null(pyarrow.compute.list_value_length(whole), 0).to_pylist()
        there = whole.is_valid().to_pylist()
    classes = _class_names(path, name)
    if classes and all(item is not None and item.isdigit() and int(item) < len(classes) for item in items):
        items = [classes[int(item)] for item in items if item is not None]
    rows: list[Cell | None] = []
    start = 0
    for row, (length, given) in enumerate(zip(lengths, there, strict=True), start=1):
        found = items[start : start + length]
        if None in found:
            raise DataError(f"{path}: row {row} of column {name!r} has an item without a value")
        rows.append(tuple(item for item in found if item is not None) if given else None)
        start += length
    return rows


def _class_names(path: Path, column: str) -> list[str]:
    """What the numbers of a list stand for, where the file says so, as the hub's do; else nothing."""
    with suppress(ValueError, KeyError, TypeError, AttributeError), readable(path):
        told = json.loads(parquet.read_schema(path).metadata[b"huggingface"])
        feature = told["info"]["features"][column]["feature"]
        if feature["_type"] == "ClassLabel":
            return [str(name) for name in feature["names"]]
    return []


def _as_text(path: Path, name: str, column: Any) -> list[str | None]:
    """Values as they stand in the file; numbers, truth values and times as Arrow writes them."""
    kind = column.type
    with readable(path):
        while types.is_dictionary(kind):
            kind = kind.value_type
            column = column.cast(kind)
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        return _strings(path, name, column)
    if types.is_floating(kind):
        # Python's form tells 1.0 from 1; numpy's is the shortest for the width of the column.
        return [None if value != value else str(value) for value in column.to_numpy()]
    if types.is_integer(kind) or types.is_boolean(kind) or types.is_decimal(kind) or _is_date_or_time(kind):
        with suppress(pyarrow.ArrowException):
            return list(column.cast(pyarrow.string()).to_pylist())
    if types.is_null(kind):
        return [None] * len(column)
    raise DataError(f"{path}: column {name!r} holds {kind}, not text; name another column")


def _is_date_or_time(kind: Any) -> bool:
    return types.is_temporal(kind) and not types.is_duration(kind) and not types.is_interval(kind)


def _strings(path: Path, name: str, column: Any) -> list[str | None]:
    try:
        values: list[str | None] = column.to_pylist()
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: row {_first_not_utf8(column)} of column {name!r} is not UTF-8; write the file anew"
        ) from error
    return values


def _first_not_utf8(column: Any) -> int:
    for row, scalar in enumerate(column, start=1):
        try:
            scalar.as_py()
        except UnicodeDecodeError:
            return row
    raise AssertionError("one of them is not")


def _image(path: Path, row: int, column: str, value: Any) -> Path | bytes:
    match value:
        case bytes(encoded) | {"bytes": bytes(encoded)} if encoded:
            return encoded
        case {"bytes": None, "path": str(name)}:
            beside = path.parent.resolve()
            named = (beside / name).resolve()
            if not named.is_relative_to(beside):
                # A table from elsewhere must not choose files of this machine.
                raise DataError(f"{path}: row {row} names an image outside its folder: {name}")
            return named
        case None | b"" | {"bytes": None | b""}:
            raise DataError(f"{path}: row {row} has no value in column {column!r}")
    raise DataError(
        f"{path}: row {row} of column {column!r} holds no image; images are bytes, or the hub's "
        "struct of bytes and path"
    )
