"""Multiple choice is read out of JSONL and Parquet, and what is wrong with a row is told."""

from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from common.data.questions import Question, question_columns, read_questions
from common.errors import DataError
from tests.chats import write_jsonl


def row(**changed: Any) -> dict[str, Any]:
    return {"question": "Is snow cold?", "choices": ["yes", "no", "B"], "answer": 0} | changed


@pytest.mark.parametrize(
    ("answer", "meant"), [(1, 1), ("1", 1), ("no", 1), ("A", 0), ("C", 2), ("B", 2), (0, 0)]
)
def test_an_answer_is_a_position_a_letter_or_a_choice_itself(answer: Any, meant: int, tmp_path: Path) -> None:
    # "B" is a choice here, and that comes before the letter.
    path = write_jsonl(tmp_path / "q.jsonl", [row(answer=answer)])
    assert read_questions(path) == [Question(f"{path}: line 1", "Is snow cold?", ("yes", "no", "B"), meant)]


def test_parquet_holds_the_same(tmp_path: Path) -> None:
    path = tmp_path / "q.parquet"
    parquet.write_table(pyarrow.Table.from_pylist([row(), row(answer=2)]), path)
    assert [question.answer for question in read_questions(path)] == [0, 2]
    assert read_questions(path)[1].place == f"{path}: row 2"


def test_columns_of_multiple_choice_are_told_from_others() -> None:
    assert question_columns(["id", "choices", "question"]) == ("question", "choices", "answer")
    assert question_columns(["question", "text"]) == ()


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (row(answer=3), "'answer' is '3', outside of the choices: it must be 0 to 2, A to C, or one of: yes"),
        (row(answer=-1), "'answer' is '-1', outside of the choices"),
        (row(answer="D"), "'answer' is 'D', outside of the choices"),
        (row(answer=True), "'answer' is 'True', outside of the choices"),
        (row(answer=None), "'answer' is 'None', outside of the choices"),
        (row(choices=["yes"]), "'choices' must be a list of at least 2 texts"),
        (row(choices="yes"), "'choices' must be a list of at least 2 texts"),
        (row(choices=["yes", " "]), r"has no 'choices\[1\]'; fill it in, or remove the row"),
        (row(choices=["yes", 3]), r"'choices\[1\]' is not text"),
        (row(choices=["yes", "yes"]), "'choices' holds the same text twice"),
        (row(question=""), "has no 'question'; fill it in"),
        ({"question": "a", "choices": ["b", "c"]}, "has no 'answer'; its keys are: question, choices"),
    ],
)
def test_a_bad_row_is_named_with_what_is_wrong(bad: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "q.jsonl", [row(), bad])
    with pytest.raises(DataError, match=rf"q\.jsonl: line 2.*{told}"):
        read_questions(path)


def test_what_cannot_hold_lists_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "q.csv"
    path.write_text("question,choices,answer\na,b,0\n")
    with pytest.raises(DataError, match=r"choices are lists, which \.csv has not; use JSONL or Parquet"):
        read_questions(path)
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match="empty"):
        read_questions(empty)
