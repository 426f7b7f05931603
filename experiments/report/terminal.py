"""A document on a terminal: what it found, and the first table of every section."""

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as RichTable

from experiments.report.document import Document, Table, formatted

# Space on either side of a cell, and the line between two.
_PADDING = 3
# Titles of columns that say more of the one before.
_OF_THE_ONE_BEFORE = ("±", "")


def show(document: Document, console: Console) -> None:
    """Print the lead and the first table of every section."""
    for paragraph in document.lead[1:]:
        console.print(paragraph)
    for section in document.sections:
        tables = [part for part in section.parts if isinstance(part, Table)]
        if tables:
            console.print()
            console.print(_drawn(tables[0], console.width))


def _drawn(table: Table, width: int) -> RichTable:
    """The table, of as many columns as the width has room for; what a row is about is said in short."""
    cells = [
        [formatted(cell, column) for cell, column in zip(row, table.columns, strict=True)]
        for row in table.rows
    ]
    cells = [[row[0].partition(":")[0], *row[1:]] for row in cells]
    titles = [f"{c.title} ({c.unit})" if c.unit else c.title for c in table.columns]
    # One run of each has no errors to show.
    full = [i for i in range(len(titles)) if any(row[i] for row in cells)]
    titles, cells = [titles[i] for i in full], [[row[i] for i in full] for row in cells]
    widths = _fitting(titles, cells, width)
    notes = list(table.notes)
    if len(widths) < len(titles):
        notes.append("Columns that this terminal is too narrow for are in the report.")
    drawn = RichTable(
        title=table.title, title_justify="left", caption="\n".join(notes), caption_justify="left"
    )
    for i, (title, least) in enumerate(zip(titles, widths, strict=False)):
        drawn.add_column(title, justify="left" if i == 0 else "right", overflow="fold", width=least)
    for i, row in enumerate(cells):
        drawn.add_row(*row[: len(widths)], style="bold" if i in table.emphasised else None)
    return drawn


def _fitting(titles: list[str], cells: list[list[str]], width: int) -> list[int]:
    """Widths of as many columns as fit, from the left; titles may break between words, figures may not.

    A difference and what its title does not name, its error and mark, stay together. At least two columns.
    """
    widths = [
        max(cell_len(text) for text in [*title.split(), *(row[i] for row in cells), ""])
        for i, title in enumerate(titles)
    ]
    shown = len(titles)
    while shown > 2 and sum(w + _PADDING for w in widths[:shown]) >= width:
        shown -= 1
        while shown > 2 and titles[shown] in _OF_THE_ONE_BEFORE:
            shown -= 1
    return widths[:shown]
