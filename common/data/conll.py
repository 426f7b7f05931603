"""CoNLL's columns → lists of words and of their tags: a word a line, a blank line between sentences."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from common.data.content import open_text
from common.data.rows import Cell, Places, Table
from common.errors import DataError

CONLL_ENDINGS = (".conll", ".iob", ".bio")
_DOCUMENT = "-DOCSTART-"


def is_conll(path: Path) -> bool:
    """Whether the name is that of such a file; CoNLL's own end with .txt."""
    return path.suffix.lower() in (*CONLL_ENDINGS, ".txt")


def read_conll(path: Path, labelled: bool) -> Table:
    """Words and, if wanted, tags: a row for every sentence, placed where it begins.

    The word is the first column, its tag the last; tabs or blanks separate them. Lines that begin with
    -DOCSTART- are left out, and so are comments: "# " and what is no word with its columns. Raises DataError
    naming the line.
    """
    words: list[Cell | None] = []
    tags: list[Cell | None] = []
    numbers: list[int] = []
    with open_text(path) as file:
        for first, sentence in _sentences(path, file, labelled):
            numbers.append(first)
            words.append(tuple(row[0] for row in sentence))
            tags.append(tuple(row[-1] for row in sentence))
    if not numbers:
        raise DataError(f"{path} is empty: it has no sentence")
    return Table([words, tags] if labelled else [words], Places.in_file(path, "line", numbers))


def _sentences(path: Path, file: TextIO, labelled: bool) -> Iterator[tuple[int, list[Sequence[str]]]]:
    """The line on which each begins, counted from 1, and its lines as columns."""
    sentence: list[Sequence[str]] = []
    first, columns = 0, 0
    for number, line in enumerate(file, start=1):
        plain = line.strip(" \r\n")
        row = [field.strip(" ") for field in plain.split("\t")] if "\t" in plain else plain.split()
        comment = not sentence and plain.startswith("# ") and len(row) != (columns or 2)
        if not any(row) or row[0] == _DOCUMENT or comment:
            if sentence:
                yield first, sentence
                sentence = []
            continue
        columns = columns or len(row)
        if len(row) != columns or not row[0]:
            raise DataError(
                f"{path}: line {number} has {len(row)} columns, the first has {columns}; a line is to hold a "
                "word and its tag, and a blank line to stand between sentences"
            )
        if labelled and (columns == 1 or not row[-1]):
            raise DataError(f"{path}: line {number} has a word without a tag")
        if not sentence:
            first = number
        sentence.append(row)
    if sentence:
        yield first, sentence
