"""JSON Lines, or one JSON array of objects → columns of text, numbers as they are written."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

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
        begin = _first_sign(file.read(4096))
        file.seek(0)
        unit, rows = "line", _lines(path, file, names)
        if begin == "[":
            unit, rows = "row", _array(path, file.read(), names)
        for number, row in rows:
            where = f"{path}: {unit} {number}"
            if not isinstance(row, dict):
                raise DataError(f'{where} is no object; write rows as {{"text": "…", "label": "…"}}')
            if not numbers:
                require_columns(path, list(row), *names)
            numbers.append(number)
            for column, name in zip(columns, names, strict=True):
                if name not in row:
                    there = first_few([shown(key) for key in row], 20) or "none"
                    raise DataError(f"{where} has no {name!r}; its keys are: {there}")
                column.append(_cell(where, name, row[name]))
    return Table(columns, Places.in_file(path, unit, numbers))


def _first_sign(begin: str) -> str:
    return begin.lstrip()[:1]


def _lines(path: Path, file: Iterator[str], names: Sequence[str]) -> Iterator[tuple[int, Any]]:
    decode = _decoder(names)
    for number, line in enumerate(file, start=1):
        if line.strip():
            yield number, _decoded(f"{path}: line {number}", decode, line)


def _array(path: Path, content: str, names: Sequence[str]) -> Iterator[tuple[int, Any]]:
    found = _decoded(str(path), _decoder(names), content)
    yield from enumerate(found, start=1)


def _decoder(names: Sequence[str]) -> json.JSONDecoder:
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

    return json.JSONDecoder(object_pairs_hook=once, parse_float=str, parse_int=str, parse_constant=no_number)


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
            if not value.isascii():
                _require_unicode(where, name, value)
            return value
    raise DataError(f"{where}: {name!r} is not text; name another column")


def _require_unicode(where: str, name: str, value: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        found = value[error.start].encode(errors="backslashreplace").decode()
        raise DataError(f"{where}: {name!r} has half of a character ({found}); mend the text") from error
