"""A table on a terminal keeps whole figures, whatever the width."""

import io

import pytest
from rich.console import Console

from experiments.report.document import Column, Document, Section, Table
from experiments.report.terminal import show

COLUMNS = (
    Column("variant"),
    Column("accuracy", ".2f", "%"),
    Column("− FedPETuning", "+.2f", "points"),
    Column("±", ".2f"),
    Column("sub-FM", ".2f", "%"),
)
ROWS = (("FedPETuning: the whole FM", 83.49, None, None, 83.50), ("FedOT: fewer", 80.07, -3.42, 0.63, 81.51))


def printed(width: int) -> str:
    table = Table("accuracy", "Accuracy", COLUMNS, ROWS)
    document = Document("An experiment", ("What is best?",), (Section("Accuracy", parts=(table,)),))
    output = io.StringIO()
    show(document, Console(file=output, width=width))
    return output.getvalue()


@pytest.mark.parametrize("width", [30, 52, 60, 80, 200])
def test_no_cell_is_broken_and_an_error_stays_with_its_difference(width: int) -> None:
    text = printed(width)
    assert "FedPETuning │" in text and "80.07" in text
    assert ("−3.42" in text) == ("0.63" in text)
    assert ("81.51" in text) == (width >= 60)
    assert ("too narrow" in text.replace("\n", " ")) == (width < 60)
