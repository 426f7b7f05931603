"""A document as page, tables and JSON: complete, safe against what is in it, the same every time."""

import csv
import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from common.errors import ConfigError
from experiments.report import files
from experiments.report.document import Cell, Column, Document, Plot, PlotKind, Section, Series, Table
from experiments.report.files import to_csv, write_document
from experiments.report.plots import to_svg

NASTY = '<script>alert(1)</script> & "quoted"'
SVG = "{http://www.w3.org/2000/svg}"


def table(*rows: tuple[Cell, ...]) -> Table:
    columns = (Column("name"), Column("score", ".2f", "%"), Column("count", ",d"))
    return Table("scores", f"Scores {NASTY}", columns, rows, (NASTY,), frozenset({0}))


def plot(kind: PlotKind, labels: tuple[str, ...] = ("one", "two")) -> Plot:
    x: tuple[float, ...] | tuple[str, ...] = (1.0, 2.0, 3.0) if kind is PlotKind.LINES else ("a", "b", "c")
    series = tuple(
        Series(label, x, tuple(10.0 * i + n for n in range(3)), (0.1, 0.2, 0.3))
        for i, label in enumerate(labels)
    )
    return Plot(f"plot-{kind}", "A plot", kind, "across", "up", series, marks=((2.0, "here"),))


def document() -> Document:
    rows: tuple[tuple[Cell, ...], ...] = ((NASTY, 1.234, 12345), ("=SUM(A1)", None, None))
    parts = (table(*rows), *(plot(kind) for kind in PlotKind))
    return Document(NASTY, ("Question?", NASTY), (Section(NASTY, (NASTY,), parts),), {"model": NASTY})


class Seen(HTMLParser):
    """Tags opened and the text between them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def test_the_page_holds_everything_and_needs_nothing_else(tmp_path: Path) -> None:
    page = write_document(tmp_path / "report", document())
    seen = Seen()
    seen.feed(page.read_text())
    text = "".join(seen.text)
    for wanted in ("1.23", "12,345", "Question?", "A plot", "here", "across", "up", "one", "two"):
        assert wanted in text
    assert text.count("alert(1)") >= 6 and "script" not in seen.tags
    assert seen.tags.count("svg") == 3 and seen.tags.count("table") == 1
    # Within the page only.
    assert all(link.startswith("#") for link in seen.links)


def test_tables_are_written_in_full_and_harmless_in_a_spreadsheet(tmp_path: Path) -> None:
    write_document(tmp_path, document())
    header, *rows = list(csv.reader((tmp_path / "scores.csv").read_text().splitlines()))
    assert header == ["name", "score (%)", "count"]
    assert rows == [[NASTY, "1.234", "12345"], ["'=SUM(A1)", "", ""]]
    assert to_csv(table(("−1", -1.5, -2))).splitlines()[1] == "−1,-1.5,-2"


def test_the_json_holds_what_the_page_shows(tmp_path: Path) -> None:
    write_document(tmp_path, document())
    found = json.loads((tmp_path / "report.json").read_text())
    assert found["sections"][0]["parts"][0]["rows"][0] == [NASTY, 1.234, 12345]
    assert found["sections"][0]["parts"][1]["series"][0]["y"] == [0.0, 1.0, 2.0]


@pytest.mark.parametrize("kind", PlotKind)
def test_a_plot_has_all_series_and_is_the_same_every_time(kind: PlotKind) -> None:
    drawn = to_svg(plot(kind, ("first", "second & third")))
    assert to_svg(plot(kind, ("first", "second & third"))) == drawn
    words = ["".join(e.itertext()).strip() for e in ElementTree.fromstring(drawn).iter(f"{SVG}text")]
    for wanted in ("first", "second & third", "across", "up"):
        assert wanted in words
    if kind is not PlotKind.LINES:
        assert [word for word in words if word in "abc"] == ["a", "b", "c"]


def test_twenty_series_are_told_apart() -> None:
    names = tuple(f"series {i}" for i in range(20))
    drawn = ElementTree.fromstring(to_svg(plot(PlotKind.LINES, names)))
    words = {"".join(e.itertext()).strip() for e in drawn.iter(f"{SVG}text")}
    assert set(names) <= words


@pytest.mark.parametrize("absent", ["scipy", "matplotlib", "jinja2"])
def test_a_package_that_is_not_installed_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, absent: str
) -> None:
    find = files.importlib.util.find_spec
    monkeypatch.setattr(
        files.importlib.util, "find_spec", lambda name: None if name == absent else find(name)
    )
    with pytest.raises(ConfigError, match=rf"reports need {absent}; pip install 'fedpft\[experiments\]'"):
        write_document(tmp_path, document())
    assert not list(tmp_path.iterdir())
