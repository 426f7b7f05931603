"""Multiple choice: a question, its choices and which of them is right, out of JSONL or Parquet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data.columnar import parquet_values
from common.data.json_rows import read_values, require_unicode
from common.data.rows import Places, cut
from common.errors import DataError
from common.listing import first_few

QUESTION, CHOICES, ANSWER = "question", "choices", "answer"
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


@dataclass(frozen=True)
class Question:
    """A prompt, what may stand behind it, and the position of what should."""

    place: str
    """Where it was found, for messages."""
    prompt: str
    choices: tuple[str, ...]
    answer: int
    part: str = ""
    """Which part of a benchmark it is of."""


def question_columns(found: Sequence[str]) -> tuple[str, ...]:
    """Those of `found` columns that hold multiple choice, or none."""
    return (QUESTION, CHOICES, ANSWER) if QUESTION in found and CHOICES in found else ()


def read_questions(path: Path) -> list[Question]:
    """Rows with question (text), choices (a list of texts) and answer: the right choice's position from 0,
    its letter from A, or its text.

    Raises DataError naming the row and what is wrong with it.
    """
    rows, places = json_or_parquet(path, (QUESTION, CHOICES, ANSWER))
    return [_question(place, *row) for place, row in zip(_each(places), rows, strict=True)]


def json_or_parquet(path: Path, columns: Sequence[str]) -> tuple[list[tuple[Any, ...]], Places]:
    """Rows with lists and objects in them, and where they stand. Raises DataError."""
    ending = path.suffix.lower()
    if ending == ".parquet":
        values, places = parquet_values(path, columns)
    elif ending in (".json", ".jsonl"):
        values, places = read_values(path, columns)
    else:
        raise DataError(
            f"{path}: choices are lists, which {ending or 'this file'} has not; use JSONL or Parquet"
        )
    if not len(places):
        raise DataError(f"{path} is empty: it has no rows")
    return list(zip(*values, strict=True)), places


def text_of(place: str, name: str, value: Any) -> str:
    """A text with something in it. Raises DataError."""
    if not isinstance(value, str):
        raise DataError(f"{place}: {name!r} is not text")
    if not value.strip():
        raise DataError(f"{place} has no {name!r}; fill it in, or remove the row")
    require_unicode(place, name, value)
    return value


def _each(places: Places) -> list[str]:
    return [places[i] for i in range(len(places))]


def _question(place: str, question: Any, choices: Any, answer: Any) -> Question:
    prompt = text_of(place, QUESTION, question)
    if not isinstance(choices, list) or len(choices) < 2:
        raise DataError(f'{place}: {CHOICES!r} must be a list of at least 2 texts, such as ["yes", "no"]')
    texts = tuple(text_of(place, f"{CHOICES}[{i}]", choice) for i, choice in enumerate(choices))
    if len(set(texts)) < len(texts):
        raise DataError(f"{place}: {CHOICES!r} holds the same text twice")
    return Question(place, prompt, texts, _position(place, texts, answer))


def _position(place: str, choices: tuple[str, ...], answer: Any) -> int:
    """Which choice is meant; a text that is a choice is that, before it is a letter or a number."""
    letters = _LETTERS[: len(choices)]
    match answer:
        case bool():
            pass
        case int() if 0 <= answer < len(choices):
            return answer
        case str() if answer in choices:
            return choices.index(answer)
        case str() if len(answer) == 1 and answer in letters:
            return letters.index(answer)
        case str() if answer.isdecimal() and int(answer) < len(choices):
            return int(answer)
    there = first_few([cut(choice) for choice in choices])
    raise DataError(
        f"{place}: {ANSWER!r} is {cut(str(answer))!r}, outside of the choices: it must be "
        f"0 to {len(choices) - 1}, {letters[0]} to {letters[-1]}, or one of: {there}"
    )
