"""A document on a terminal: what it found, and its first table."""

from rich.console import Console
from rich.table import Table as RichTable

from experiments.report.document import Document, Table, formatted


def show(document: Document, console: Console) -> None:
    """Print the lead and the first table of every section that begins with one."""
    for paragraph in document.lead[1:]:
        console.print(paragraph)
    if document.tables:
        console.print(_drawn(document.tables[0]))


def _drawn(table: Table) -> RichTable:
    drawn = RichTable(
        title=table.title, title_justify="left", caption="\n".join(table.notes), caption_justify="left"
    )
    for i, column in enumerate(table.columns):
        title = f"{column.title} ({column.unit})" if column.unit else column.title
        drawn.add_column(title, justify="left" if i == 0 else "right", overflow="fold")
    for i, row in enumerate(table.rows):
        cells = [formatted(cell, column) for cell, column in zip(row, table.columns, strict=True)]
        drawn.add_row(*cells, style="bold" if i in table.emphasised else None)
    return drawn
