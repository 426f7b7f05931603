"""Conversations are found by their columns, in every kind of table; what is wrong is told by its row."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from common.data.conversations import Completion, Conversation, Message, holds_conversations
from common.data.examples import Columns, Examples, join, read_examples, write_examples
from common.errors import DataError
from common.records import TaskKind
from common.task_forms import Input
from tests.chats import conversations, message, write_chats, write_jsonl
from tests.conftest import write_table

CAUSAL, TEXT = TaskKind.CAUSAL_LM, TaskKind.TEXT_CLASSIFICATION
ASK = [message("user", "a?"), message("assistant", "b.")]
READ = (Message("user", "a?"), Message("assistant", "b."))


def read(path: Path) -> Examples:
    """As a worker does, which does not know the run's kind of task yet."""
    examples = read_examples(path, Columns())
    assert examples == read_examples(path, Columns(), CAUSAL)
    assert examples.input is Input.CONVERSATIONS and not examples.labelled
    return examples


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    match path.suffix:
        case ".parquet":
            parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        case ".json":
            path.write_text(json.dumps(rows))
        case _:
            write_jsonl(path, rows)
    return path


@pytest.mark.parametrize("name", ["x.jsonl", "x.json", "x.parquet"])
def test_messages_and_prompts_of_messages_are_found_by_their_columns(name: str, tmp_path: Path) -> None:
    rows = [{"id": 7, "messages": messages} for messages in conversations(5)]
    found = read(write(tmp_path / name, rows)).conversations
    assert found == [Conversation(tuple(Message(**m) for m in row["messages"])) for row in rows]
    rows = [{"prompt": ASK, "completion": ASK[1:]}]
    assert read(write(tmp_path / name, rows)).conversations == [Conversation((*READ, READ[1]), 2)]


@pytest.mark.parametrize("name", ["x.jsonl", "x.parquet", "x.csv", "x.tsv"])
def test_prompts_and_completions_of_plain_text_are_found_in_every_table(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if name.endswith(("csv", "tsv")):
        separator = "," if name.endswith("csv") else "\t"
        path.write_text("\n".join(map(separator.join, [("completion", "prompt"), (" b.", "a?"), ("d", "")])))
    else:
        write(path, [{"prompt": "a?", "completion": " b."}, {"prompt": "", "completion": "d"}])
    assert read(path).conversations == [Completion("a?", " b."), Completion("", "d")]


def test_a_folder_of_tables_is_read_as_one(tmp_path: Path) -> None:
    for number in (1, 2):
        write_chats(tmp_path / f"part-{number}.jsonl", 3, number)
    examples = read(tmp_path)
    assert len(examples) == 6 and examples.name_of(4) == f"{tmp_path / 'part-2.jsonl'}: line 2"
    assert holds_conversations(tmp_path, "text")
    (tmp_path / "part-3.jsonl").write_text('{"text": "a"}\n')
    with pytest.raises(DataError, match="holds tables of conversations and of texts"):
        read_examples(tmp_path, Columns(label=None))


def row(*messages: Any) -> dict[str, Any]:
    return {"messages": list(messages)}


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (row({"content": "a"}), "message 1 of 'messages' has no role"),
        (row({"role": "", "content": "a"}), "message 1 of 'messages' has no role"),
        (row(ASK[0], {"role": "assistant"}), "message 2 of 'messages' has no content"),
        (row(ASK[0], {"role": "assistant", "content": None}), "message 2 of 'messages' has no content"),
        (row({"role": "user", "content": 3}), "message 1 of 'messages': its content is not text"),
        (row({"role": "user", "content": [{"text": "a"}]}), "its content is not text"),
        (row({"role": 1, "content": "a"}), "message 1 of 'messages': its role is not text"),
        (row("a"), "message 1 of 'messages' is no object with role and content"),
        (row(), "'messages' holds no message; remove the row"),
        ({"messages": None}, "'messages' holds no message; remove the row"),
        ({"messages": "a"}, "'messages' is no list of messages; write [{"),
        (row(ASK[0]), "has no message of role 'assistant' to learn from; its roles: 'user'"),
        (row(ASK[1]), "begins with an answer"),
        (row({"role": "user", "content": "\ud83d"}), "has half of a character"),
        ({"text": "a"}, "has no 'messages'; its keys are: text"),
        (["messages"], "is no object"),
    ],
)
def test_what_is_wrong_with_a_conversation_is_told_by_file_and_row(
    wrong: Any, told: str, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [row(*ASK), wrong])
    with pytest.raises(DataError) as caught:
        read_examples(path, Columns())
    assert str(caught.value).startswith(f"{path}: line 2") and told in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"prompt": "a", "completion": None}, "has no 'completion'"),
        ({"prompt": None, "completion": ASK[1:]}, "has no 'prompt'"),
        ({"prompt": "a", "completion": ASK[1:]}, "must both be texts, or both be lists of messages"),
        ({"prompt": [], "completion": ASK[1:]}, "'prompt' holds no message"),
        ({"prompt": ASK[:1], "completion": ASK[:1]}, "the first message of 'completion' is of role 'user'"),
        ({"prompt": 3, "completion": 4}, "'prompt' is no list of messages"),
    ],
)
def test_what_is_wrong_with_a_prompt_or_completion_is_told_too(
    wrong: dict[str, Any], told: str, tmp_path: Path
) -> None:
    path = write_jsonl(tmp_path / "x.jsonl", [{"prompt": "a", "completion": "b"}, wrong])
    with pytest.raises(DataError) as caught:
        read_examples(path, Columns())
    assert str(caught.value).startswith(f"{path}: line 2") and told in str(caught.value)


def test_what_is_left_out_is_told(tmp_path: Path) -> None:
    told = [*ASK[:1], {**ASK[1], "tool_calls": [1], "name": None}]
    path = write(tmp_path / "x.jsonl", [row(*told), row(*told)])
    assert read(path).notes == (
        f"{path}: of messages role and content are read; left out are 'tool_calls' (2)",
    )
    path = write(tmp_path / "y.jsonl", [{"prompt": "a", "completion": c} for c in ("b", " ", "", "c")])
    examples = read(path)
    assert examples.conversations == [Completion("a", "b"), Completion("a", "c")]
    assert examples.notes == (f"{path}: 2 rows left out, without a completion: line 2, line 3",)
    assert examples.name_of(1) == f"{path}: line 4"
    with pytest.raises(DataError, match="has no row with a text in column 'completion'"):
        read_examples(write(path, [{"prompt": "a", "completion": " "}]), Columns())


@pytest.mark.parametrize(
    "rows",
    [
        [{"messages": messages} for messages in conversations(6)],
        [{"prompt": m[:-1], "completion": m[-1:]} for m in conversations(6)],
        [{"prompt": "a", "completion": " b"}] * 6,
    ],
)
def test_what_is_written_is_read_again(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    examples = read(write(tmp_path / "x.jsonl", rows))
    parts = [examples.take([4, 1]), examples.take([0])]
    write_examples(tmp_path / "y.parquet", join("both", parts))
    assert examples.conversations is not None
    assert read(tmp_path / "y.parquet").conversations == [examples.conversations[i] for i in (4, 1, 0)]


def test_mixed_forms_are_not_written_to_one_file(tmp_path: Path) -> None:
    mixed = Examples("x", None, conversations=[Completion("a", "b"), Conversation(READ)])
    with pytest.raises(DataError, match="cannot be written to one file"):
        write_examples(tmp_path / "x.parquet", mixed)


def test_other_tasks_do_not_take_them(tmp_path: Path) -> None:
    path = write_chats(tmp_path / "x.jsonl", 2)
    with pytest.raises(DataError, match="has no column 'text'; its columns are: messages"):
        read_examples(path, Columns(), TEXT)
    with pytest.raises(DataError, match=r"text-classification needs texts, but .* holds conversations"):
        read_examples(path, Columns()).require(TEXT)
    with pytest.raises(DataError, match="has no column 'body'"):
        read_examples(write_table(tmp_path / "t.csv", 2), Columns(text="body"))


def test_whether_a_file_holds_them_is_told_by_its_columns_alone(tmp_path: Path) -> None:
    assert holds_conversations(write_chats(tmp_path / "x.jsonl", 2), "text")
    for name in ("x.json", "x.parquet"):
        assert holds_conversations(write(tmp_path / name, [{"prompt": "a", "completion": "b"}]), "text")
        assert not holds_conversations(tmp_path / name, "prompt")
    (tmp_path / "x.csv").write_text("prompt,completion\n")
    assert holds_conversations(tmp_path / "x.csv", "text")
    for name in ("nothing.jsonl", "x.zip"):
        assert not holds_conversations(tmp_path / name, "text")
    assert not holds_conversations(write_table(tmp_path / "t.csv", 2), "text")
