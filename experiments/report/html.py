"""A document as one page of HTML that needs nothing else: no network, no script."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from experiments.report.document import Document, Plot, PlotKind, Table, formatted
from experiments.report.plots import to_svg


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("experiments.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["table"] = lambda part: isinstance(part, Table)
    environment.filters["svg"] = lambda plot: Markup(to_svg(plot))
    environment.filters["told"] = _told
    environment.globals["formatted"] = formatted
    environment.globals["numeric"] = _is_numeric
    return environment.get_template("document.html")


def to_html(document: Document) -> str:
    """The page. Every text in it is escaped; plots are SVG elements."""
    return _template().render(document=document)


def _is_numeric(table: Table, index: int) -> bool:
    """Whether a column holds numbers, which stand to the right."""
    return not any(isinstance(row[index], str) and row[index] for row in table.rows)


def _told(plot: Plot) -> str:
    """A plot in words, for those who do not see it."""
    kind = {PlotKind.LINES: "Lines", PlotKind.BARS: "Bars", PlotKind.POINTS: "Points"}[plot.kind]
    names = ", ".join(series.label for series in plot.series)
    axes = ", ".join(title for title in (plot.x_title, plot.y_title) if title)
    return f"{plot.title}. {kind} over {axes}: {names}."
