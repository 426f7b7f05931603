"""A document as files: the page, every table as CSV, and everything as JSON."""

import csv
import importlib.util
import io
import json
from dataclasses import asdict
from pathlib import Path

from common.errors import ConfigError
from common.storage.files import write_atomically
from experiments.report.document import Cell, Document, Table

# A spreadsheet would take a text that begins like this for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def require_packages() -> None:
    """Raises ConfigError when a package that reports are computed or drawn with is not installed."""
    for package in ("scipy", "matplotlib", "jinja2"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"reports need {package}; pip install 'fedpft[experiments]'")


def write_document(folder: Path, document: Document) -> Path:
    """report.html, report.json and a CSV file for every table; returns the page.

    Raises ConfigError when a package for it is not installed.
    """
    require_packages()
    from experiments.report.html import to_html

    page = folder / "report.html"
    write_atomically(page, to_html(document).encode())
    for table in document.tables:
        write_atomically(folder / f"{table.name}.csv", to_csv(table).encode())
    content = json.dumps(asdict(document), indent=1, default=sorted)
    write_atomically(folder / "report.json", content.encode())
    return page


def to_csv(table: Table) -> str:
    """A header, then the rows with numbers in full; units stand in the header."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([f"{c.title} ({c.unit})" if c.unit else c.title for c in table.columns])
    writer.writerows([_plain(cell) for cell in row] for row in table.rows)
    return file.getvalue()


def _plain(cell: Cell) -> Cell:
    if isinstance(cell, str) and cell.startswith(_FORMULA):
        return "'" + cell
    return cell
