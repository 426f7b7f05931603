"""A report before it has a form: text, tables and plots. `html` and `files` give it one."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

# A table's cell: text and whole numbers are shown as they are; None is an empty cell.
Cell = str | int | float | None


@dataclass(frozen=True)
class Column:
    """A table's column. `form` is a format specification for numbers, such as ".4f" or ",d"."""

    title: str
    form: str = ""
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells. `name` is the file's name (NAME.csv); `emphasised` are indices of rows to stand out."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    emphasised: frozenset[int] = frozenset()


class PlotKind(StrEnum):
    """How a plot's series are drawn."""

    LINES = "lines"
    """Points joined by lines, over a numeric axis."""
    BARS = "bars"
    """A group of bars for every category of the x axis."""
    POINTS = "points"
    """Horizontal: a dot for every category, with its error bar; for comparing means."""


@dataclass(frozen=True)
class Series:
    """A line, or one bar of every group. `errors` are half-lengths of error bars or of a band."""

    label: str
    x: tuple[float, ...] | tuple[str, ...]
    y: tuple[float, ...]
    errors: tuple[float, ...] | None = None
    is_reference: bool = False
    """Drawn in grey and dashed: something to compare with, such as the paper's figures."""


@dataclass(frozen=True)
class Plot:
    """Series over the same axes. `name` is unique in the document."""

    name: str
    title: str
    kind: PlotKind
    x_title: str
    y_title: str
    series: tuple[Series, ...]
    log_y: bool = False
    marks: tuple[tuple[float, str], ...] = ()
    """Vertical lines with a word on each: where something happened."""


@dataclass(frozen=True)
class Section:
    """A heading with paragraphs, then tables and plots in order."""

    title: str
    text: tuple[str, ...] = ()
    parts: tuple[Table | Plot, ...] = ()


@dataclass(frozen=True)
class Document:
    """A report. `facts` are what it rests on: model, data, seeds, versions, machine."""

    title: str
    lead: tuple[str, ...]
    sections: tuple[Section, ...]
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def tables(self) -> Sequence[Table]:
        """All tables, in order."""
        return [part for section in self.sections for part in section.parts if isinstance(part, Table)]


def formatted(cell: Cell, column: Column) -> str:
    """A cell as people read it; an empty one as nothing."""
    if cell is None or isinstance(cell, str):
        return cell or ""
    text = format(cell, column.form) if column.form else str(cell)
    return text.replace("-", "−")
