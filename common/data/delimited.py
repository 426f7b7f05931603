"""CSV and TSV → columns of text. What stands in a field is its value; what is ambiguous is refused."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from common.data.content import open_text
from common.data.rows import Places, Table, counted, require_columns
from common.errors import DataError
from common.listing import first_few

# Python's own limit is 131,072 characters; a text may be longer. The largest C long of any platform.
csv.field_size_limit(2**31 - 1)

_THOUSANDS = re.compile(r"\d,\d{3}(?!\d)")


class _Lines:
    """The lines of a file, one by one; those of the record that is being read are kept."""

    def __init__(self, path: Path, file: TextIO) -> None:
        self._path, self._file = path, file
        self.number = 0
        self.of_record: list[str] = []

    def __iter__(self) -> Iterator[str]:
        for line in self._file:
            self.number += 1
            self.of_record.append(line)
            if "\0" in line:
                raise DataError(
                    f"{self._path}: line {self.number} has a NUL byte; the file is damaged, or is not UTF-8"
                )
            yield line

    @property
    def first(self) -> int:
        """The line on which the record begins."""
        return self.number - len(self.of_record) + 1


def read_csv(path: Path, names: Sequence[str]) -> Table:
    """Fields may be quoted, and go over several lines. Raises DataError naming the line."""
    return _Reader(path, names, ",", quoted=True).table()


def read_tsv(path: Path, names: Sequence[str]) -> Table:
    """Quotation marks are text: GLUE's files hold lone ones. Raises DataError naming the line."""
    return _Reader(path, names, "\t", quoted=False).table()


class _Reader:
    """One pass over one file."""

    def __init__(self, path: Path, names: Sequence[str], delimiter: str, quoted: bool) -> None:
        self._path, self._names = path, names
        self._delimiter, self._quoted = delimiter, quoted
        self._blank: list[int] = []
        self._long: list[int] = []
        self._marked: list[int] = []

    def table(self) -> Table:
        with open_text(self._path) as file:
            lines = _Lines(self._path, file)
            records = self._records(lines)
            header = next(records, None)
            if header is None:
                raise DataError(f"{self._path} is empty: it has nothing but blank lines")
            require_columns(self._path, header, *self._names)
            positions = [header.index(name) for name in self._names]
            columns: list[list[str | None]] = [[] for _ in positions]
            numbers: list[int] = []
            for record in records:
                if len(record) != len(header):
                    raise self._ragged(lines, len(record), len(header))
                if len(lines.of_record) > 1:
                    self._require_one_row(lines, len(header))
                numbers.append(lines.first)
                for column, position in zip(columns, positions, strict=True):
                    column.append(self._value(record[position], lines))
        return Table(columns, Places.in_file(self._path, "line", numbers), tuple(self._notes(lines.number)))

    def _records(self, lines: _Lines) -> Iterator[list[str]]:
        """Those with something in them; a line of nothing but separators is a blank one too."""
        reader = csv.reader(
            lines,
            delimiter=self._delimiter,
            quoting=csv.QUOTE_MINIMAL if self._quoted else csv.QUOTE_NONE,
            strict=True,
        )
        while True:
            lines.of_record = []
            try:
                record = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise self._misquoted(lines, str(error)) from error
            if any(field.strip() for field in record):
                yield record
            else:
                self._blank.append(lines.first)

    def _value(self, value: str, lines: _Lines) -> str:
        if not self._quoted:
            if len(value) > 1 and value[0] == value[-1] == '"':
                self._marked.append(lines.first)
        elif value[:1].isspace() and value.lstrip()[:1] == '"' and value in lines.of_record[0]:
            raise DataError(
                f"{self._path}: line {lines.first} has a blank before a quotation mark, which then does not "
                "quote; remove the blank"
            )
        return value

    def _require_one_row(self, lines: _Lines, width: int) -> None:
        """Raises DataError when the lines of a quoted text look like rows of their own.

        Then two stray quotation marks have made one row of several, and their labels are gone.
        """
        last = lines.number
        self._long.append(lines.first)
        if width > 1 and all(self._looks_like_a_row(line, width) for line in lines.of_record):
            raise DataError(
                f"{self._path}: lines {lines.first} to {last} are one row by their quotation marks, and "
                f"{counted(last - lines.first + 1, 'row')} by their separators; double a quotation mark that "
                'is text ("") and quote its field, or write the table as JSONL or Parquet'
            )

    def _looks_like_a_row(self, line: str, width: int) -> bool:
        # In a text a blank follows the comma, unless it stands in a number.
        fields = _THOUSANDS.sub("", line).rstrip("\r\n").split(self._delimiter)
        return len(fields) == width and not any(field[:1].isspace() or not field for field in fields[1:])

    def _ragged(self, lines: _Lines, found: int, wanted: int) -> DataError:
        where = f"{self._path}: line {lines.first}"
        has = f"{where} has {counted(found, 'field')}, the header has {wanted}"
        if not self._quoted:
            return DataError(f"{has}; a text in TSV holds neither tabs nor line ends: write JSONL or Parquet")
        if found > wanted:
            return DataError(f'{has}; put a text that holds a comma in quotation marks ("")')
        return DataError(f"{has}; put a text that holds a line end in quotation marks, or complete the row")

    def _misquoted(self, lines: _Lines, told: str) -> DataError:
        begin = f"{self._path}: line {lines.first}"
        if "unexpected end" in told:
            return DataError(
                f"{begin} opens a quotation mark that is never closed; close it, or double it where it is "
                'text ("") and quote its field'
            )
        if "expected after" in told:
            until = "" if len(lines.of_record) < 2 else f" (closed on line {lines.number})"
            return DataError(
                f"{begin} has more than a separator behind a closing quotation mark{until}; double quotation "
                'marks within a quoted text ("")'
            )
        return DataError(f"{begin} cannot be read: {told}")

    def _notes(self, lines: int) -> Iterator[str]:
        # Those at the end are how files end.
        end = lines
        while self._blank and self._blank[-1] == end:
            self._blank.pop()
            end -= 1
        if self._blank:
            told = f"{counted(len(self._blank), 'blank line')} left out"
            yield f"{self._path}: {told}: line {first_few(self._blank)}"
        if self._long:
            told = f"{counted(len(self._long), 'row')} of several lines each, by their quotation marks"
            yield f"{self._path}: {told}: from line {first_few(self._long)}"
        if self._marked:
            told = f"{counted(len(self._marked), 'value')} in quotation marks, which are text in TSV"
            yield f"{self._path}: {told}: line {first_few(self._marked)}"
