"""JSON Lines, or one JSON array of objects → columns of text, numbers as they are written."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from common.data.content import open_text
from common.data.rows import Cell, Places, Table, require_columns, shown
from common.errors import DataError
from common.listing import first_few


def read_json(path: Path, names: Sequence[str]) -> Table:
    """Rows of a file with an object on each line, or with one array of objects.

    A number is the text that stands in the file: 1.0 is not 1. A list may hold texts and numbers. Raises
    DataError naming line or row.
    """
    columns: list[list[Cell | None]] = [[] for _ in names]
    numbers: list[int] = []
    with open_text(path) as file:
        unit, rows = _rows(path, file, _decoder(names))
        for number, row in rows:
            where = f"{path}: {unit} {number}"
            _require_keys(path, where, row, names, first=not numbers)
            numbers.append(number)
            for column, name in zip(columns, names, strict=True):
                column.append(_cell(where, name, row[name]))
    return Table(columns, Places.in_file(path, unit, numbers))


def read_values(path: Path, names: Sequence[str]) -> tuple[list[list[Any]], Places]:
    """The named columns as JSON has them, lists and objects among them, and where the rows stand.

    Raises DataError naming line or row.
    """
    columns: list[list[Any]] = [[] for _ in names]
    numbers: list[int] = []
    with open_text(path) as file:
        unit, rows = _rows(path, file, _decoder(names, as_text=False))
        for number, row in rows:
            where = f"{path}: {unit} {number}"
            _require_keys(path, where, row, names, first=not numbers)
            numbers.append(number)
            for column, name in zip(columns, names, strict=True):
                column.append(row[name])
    return columns, Places.in_file(path, unit, numbers)


def _rows(path: Path, file: TextIO, decoder: json.JSONDecoder) -> tuple[str, Iterator[tuple[int, Any]]]:
    """What places are called, and the rows with their numbers."""
    begin = file.read(4096).lstrip()[:1]
    file.seek(0)
    if begin == "[":
        return "row", enumerate(_decoded(str(path), decoder, file.read()), start=1)
    return "line", _lines(path, file, decoder)


def _require_keys(path: Path, where: str, row: Any, names: Sequence[str], *, first: bool) -> None:
    """Raises DataError when a row is no object, or lacks one of the columns; NoColumn when the first does."""
    if not isinstance(row, dict):
        raise DataError(f'{where} is no object; write rows as {{"text": "…", "label": "…"}}')
    if first:
        require_columns(path, list(row), *names)
    for name in names:
        if name not in row:
            there = first_few([shown(key) for key in row], 20) or "none"
            raise DataError(f"{where} has no {name!r}; its keys are: {there}")


def _lines(path: Path, file: Iterator[str], decoder: json.JSONDecoder) -> Iterator[tuple[int, Any]]:
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield number, _decoded(f"{path}: line {number}", decoder, line)


def _decoder(names: Sequence[str], *, as_text: bool = True) -> json.JSONDecoder:
    """`as_text`: numbers become the text that stands in the file."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            keys = [key for key, _ in pairs]
            for name in names:
                if keys.count(name) > 1:
                    raise ValueError(f"has more than one {name!r}")
        return found

    def no_number(constant: str) -> Any:
        raise ValueError(f'holds {constant}, which is no value in JSON; write null, or a text ("{constant}")')

    numbers: dict[str, Any] = {"parse_float": str, "parse_int": str} if as_text else {}
    return json.JSONDecoder(object_pairs_hook=once, parse_constant=no_number, **numbers)


def _decoded(where: str, decoder: json.JSONDecoder, content: str) -> Any:
    try:
        return decoder.decode(content)
    except json.JSONDecodeError as error:
        at = f"line {error.lineno}, column {error.colno}" if error.lineno > 1 else f"column {error.colno}"
        told = f"{where} is not JSON ({error.msg.lower()}, {at})"
        raise DataError(f"{told}; write one object on each line") from error
    except RecursionError as error:
        raise DataError(f"{where} is nested too deeply") from error
    except ValueError as error:
        raise DataError(f"{where} {error}") from error


def _cell(where: str, name: str, value: Any) -> Cell | None:
    if not isinstance(value, list):
        return _text(where, name, value)
    if odd := [i for i, item in enumerate(value, start=1) if not isinstance(item, str)]:
        raise DataError(f"{where}: item {odd[0]} of {name!r} is not text")
    for item in value:
        _text(where, name, item)
    return tuple(value)


def _text(where: str, name: str, value: Any) -> str | None:
    match value:
        case None:
            return None
        case bool():
            return "true" if value else "false"
        case str():
            require_unicode(where, name, value)
            return value
    raise DataError(f"{where}: {name!r} is not text; name another column")


def require_unicode(where: str, name: str, value: str) -> None:
    """Raises DataError for a text with half of a character, which nothing can write or tokenise."""
    if value.isascii():
        return
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = value[error.start].encode(errors="backslashreplace").decode()
        raise DataError(f"{where}: {name!r} has half of a character ({found}); mend the text") from error
