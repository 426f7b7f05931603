"""What readers of tables give: columns of text, where each row stands, and what is to be told of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Self

from common.errors import DataError
from common.listing import first_few

# What stands in a row and column: text; or, where the format knows lists, a list of texts.
Cell = str | tuple[str, ...]

_COLUMNS_NAMED = 20
_SHOWN = 60


@dataclass(frozen=True)
class Places:
    """Where rows stand, as a person finds them: in which file, on which line or in which row from 1."""

    files: tuple[str, ...]
    """A file with its unit: "data.csv: line", "data.parquet: row"."""
    file_of: Sequence[int]
    """For every row its position in `files`."""
    numbers: Sequence[int]

    @classmethod
    def in_file(cls, source: object, unit: str, numbers: Sequence[int]) -> Self:
        """Rows of one file."""
        return cls((f"{source}: {unit}",), [0] * len(numbers), numbers)

    @classmethod
    def joined(cls, parts: Sequence["Places"]) -> Self:
        """Rows of several files, one file after the other."""
        starts = [0]
        for part in parts:
            starts.append(starts[-1] + len(part.files))
        of = [start + file for start, part in zip(starts, parts, strict=False) for file in part.file_of]
        numbers = list(chain.from_iterable(part.numbers for part in parts))
        return cls(tuple(chain.from_iterable(part.files for part in parts)), of, numbers)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, row: int) -> str:
        return f"{self.files[self.file_of[row]]} {self.numbers[row]}"

    def take(self, rows: Sequence[int]) -> Self:
        """The chosen rows."""
        return type(self)(self.files, [self.file_of[i] for i in rows], [self.numbers[i] for i in rows])


@dataclass(frozen=True)
class Table:
    """The columns that were asked for, as text or lists of texts; None where a row has no value."""

    columns: Sequence[Sequence[Cell | None]]
    places: Places
    notes: tuple[str, ...] = ()
    """What its owner should know of it, a line each."""

    def __len__(self) -> int:
        return len(self.places)


def cut(name: str) -> str:
    """A name for messages: one that is a whole text, as where another column is meant, is cut."""
    return name if len(name) <= _SHOWN else f"{name[:_SHOWN]}…"


def shown(name: str) -> str:
    """The same, in quotation marks where its ends could not be seen."""
    short = cut(name)
    return short if short == short.strip() and short.isprintable() and short else repr(short)


def counted(number: int, what: str) -> str:
    """ "1 row", "3 rows"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


class NoColumn(DataError):
    """A column is not there; `found` are."""

    def __init__(self, message: str, found: Sequence[str]) -> None:
        super().__init__(message)
        self.found = tuple(found)


def require_columns(path: Path, found: Sequence[str], *columns: str) -> None:
    """Raises NoColumn when a column is missing (naming those found), DataError when it is there twice."""
    for column in columns:
        if column not in found:
            there = first_few([shown(name) for name in found], _COLUMNS_NAMED)
            hint = _hint(found, column, columns)
            raise NoColumn(f"{path} has no column {column!r}; its columns are: {there}{hint}", found)
        if found.count(column) > 1:
            raise DataError(f"{path} has more than one column {column!r}; rename all but one")


def _hint(found: Sequence[str], column: str, wanted: Sequence[str]) -> str:
    if len(found) == 1:
        names = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
        for separator, name in names.items():
            if column in [part.strip(' "') for part in found[0].split(separator)] and separator in found[0]:
                wanted = "with tabs as .tsv" if separator == "," else "with commas"
                return f"; {name} separate them: save the file {wanted}, or with the ending of what it is"
    for name in found:
        if name.strip().casefold() == column.strip().casefold():
            return f"; {name!r} differs in blanks or case only"
    if not any(name in found for name in wanted):
        return "; if these are a row, the header is missing"
    return ""


def filled(cell: Cell | None) -> bool:
    """Whether there is something in it that can be seen."""
    if isinstance(cell, tuple):
        return len(cell) > 0
    return cell is not None and cell != "" and not cell.isspace()


def told_apart(table: Table, column: int, name: str) -> tuple[list[str] | None, list[tuple[str, ...]] | None]:
    """A column as texts or as lists, whichever it holds; "" or () in a row without a value.

    Raises DataError where it holds both.
    """
    cells = table.columns[column]
    given = [cell for cell in cells if cell is not None]
    are_lists = bool(given) and isinstance(given[0], tuple)
    texts, lists = [], []
    for row, cell in enumerate(cells):
        if cell is not None and isinstance(cell, tuple) != are_lists:
            there, elsewhere = ("a text", "a list") if are_lists else ("a list", "a text")
            raise DataError(f"{table.places[row]}: {name!r} is {there}, but {elsewhere} in rows before")
        texts.append(cell if isinstance(cell, str) else "")
        lists.append(cell if isinstance(cell, tuple) else ())
    return (None, lists) if are_lists else (texts, None)
