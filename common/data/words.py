"""Texts that are cut into words already: in CoNLL's columns, or as lists under their usual names."""

from pathlib import Path

from common.data.conll import is_conll, read_conll
from common.data.rows import NoColumn, Table
from common.data.tables import read_table
from common.errors import DataError

# What their columns are usually called, beside what those of texts are.
TEXT_COLUMN, WORDS_COLUMN = "text", "tokens"
LABEL_COLUMN, TAGS_COLUMNS = "label", ("tags", "ner_tags")


def table_of(path: Path, text: str, pair: str | None, label: str | None) -> tuple[Table, str, str | None]:
    """The named columns of a table, those of CoNLL by their place; and what text and label are called there.

    Where the usual names of texts are not there, those of words are taken. Raises DataError.
    """
    if is_conll(path):
        if pair is not None:
            raise DataError(f"{path} holds words, no pairs of texts; leave out the second column's name")
        return read_conll(path, labelled=label is not None), text, label
    names = [name for name in (text, pair, label) if name is not None]
    try:
        return read_table(path, *names), text, label
    except NoColumn as error:
        words, tags = text, label
        if text == TEXT_COLUMN and text not in error.found and WORDS_COLUMN in error.found:
            words = WORDS_COLUMN
        if label == LABEL_COLUMN and label not in error.found and WORDS_COLUMN in (words, text):
            tags = next((name for name in TAGS_COLUMNS if name in error.found), label)
        if (words, tags) == (text, label):
            raise
    return table_of(path, words, pair, tags)
