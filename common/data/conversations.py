"""Conversations, and prompts with their completions, under the columns that TRL knows them by."""

from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow

from common.data.columnar import parquet_values
from common.data.folders import look_into, shards_of
from common.data.json_rows import read_values, require_unicode
from common.data.rows import NoColumn, Places, counted
from common.data.tables import read_table
from common.errors import DataError
from common.listing import first_few

MESSAGES, PROMPT, COMPLETION = "messages", "prompt", "completion"
ASSISTANT = "assistant"
_KNOWN = ("role", "content")
_LIKE = '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'
# A name that no column has: asked for, a table's reader tells those that there are.
_NO_NAME = "\0"


@dataclass(frozen=True)
class Message:
    """What one side says."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """Messages, which a model's chat template makes a text of."""

    messages: tuple[Message, ...]
    prompt: int | None = None
    """How many of them are a prompt: all that follows is learned. None: what assistants say is."""


@dataclass(frozen=True)
class Completion:
    """A text that goes on another: it alone is learned. Neither goes through a template."""

    prompt: str
    completion: str


Chat = Conversation | Completion


def chat_columns(found: Sequence[str], text: str) -> tuple[str, ...]:
    """Those of `found` columns that hold conversations; none where there is the column of texts, `text`."""
    if text in found:
        return ()
    if MESSAGES in found:
        return (MESSAGES,)
    return (PROMPT, COMPLETION) if PROMPT in found and COMPLETION in found else ()


def holds_conversations(path: Path, text: str) -> bool:
    """Whether a file, or the first one of a folder, holds them, by its columns' names.

    False for what cannot be read: whoever reads it says why.
    """
    with suppress(DataError, OSError):
        if path.is_dir():
            path = shards_of(look_into(path))[0][0]
        try:
            read_table(path, _NO_NAME)
        except NoColumn as error:
            return bool(chat_columns(error.found, text))
    return False


def read_conversations(path: Path, columns: Sequence[str]) -> tuple[list[Chat], Places, tuple[str, ...]]:
    """What a table holds in `chat_columns`, where each row stands, and what is to be told of it.

    A row whose completion is a text of nothing but blanks is left out. Raises DataError naming the row and
    what is wrong with it.
    """
    rows, places, notes = _values(path, columns)
    chats: list[Chat] = []
    blank: list[int] = []
    more: Counter[str] = Counter()
    for i, row in enumerate(rows):
        chat = _chat(places[i], columns, row, more)
        if isinstance(chat, Completion) and not chat.completion.strip():
            blank.append(i)
        else:
            chats.append(chat)
    if not chats:
        raise DataError(f"{path} has no row with a text in column {COMPLETION!r}")
    if more:
        keys = first_few([f"{key!r} ({number:,})" for key, number in sorted(more.items())])
        notes += (f"{path}: of messages {_KNOWN[0]} and {_KNOWN[1]} are read; left out are {keys}",)
    if blank:
        where = first_few([places[i].removeprefix(f"{path}: ") for i in blank])
        notes += (f"{path}: {counted(len(blank), 'row')} left out, without a completion: {where}",)
        without = set(blank)
        places = places.take([i for i in range(len(rows)) if i not in without])
    return chats, places, notes


def chat_table(chats: Sequence[Chat]) -> dict[str, Any]:
    """Columns for a Parquet file, as `read_conversations` reads. Raises DataError for mixed forms."""
    if all(isinstance(chat, Completion) for chat in chats):
        texts = [chat for chat in chats if isinstance(chat, Completion)]
        return {PROMPT: [c.prompt for c in texts], COMPLETION: [c.completion for c in texts]}
    found = [chat for chat in chats if isinstance(chat, Conversation)]
    if len(found) < len(chats) or len({chat.prompt is None for chat in found}) > 1:
        raise DataError("conversations, and prompts with completions, cannot be written to one file")
    if found[0].prompt is None:
        return {MESSAGES: _lists([chat.messages for chat in found])}
    return {
        PROMPT: _lists([chat.messages[: chat.prompt] for chat in found]),
        COMPLETION: _lists([chat.messages[chat.prompt :] for chat in found]),
    }


def _lists(values: Sequence[Sequence[Message]]) -> Any:
    form = pyarrow.list_(pyarrow.struct([(key, pyarrow.string()) for key in _KNOWN]))
    return pyarrow.array([[{"role": m.role, "content": m.content} for m in ms] for ms in values], form)


def _values(path: Path, columns: Sequence[str]) -> tuple[list[tuple[Any, ...]], Places, tuple[str, ...]]:
    """Rows as their format has them: texts, or lists of objects."""
    ending = path.suffix.lower()
    notes: tuple[str, ...] = ()
    if ending == ".parquet":
        values, places = parquet_values(path, columns)
    elif ending in (".json", ".jsonl"):
        values, places = read_values(path, columns)
    else:
        table = read_table(path, *columns)
        values, places, notes = list(map(list, table.columns)), table.places, table.notes
    if not len(places):
        raise DataError(f"{path} is empty: it has columns but no rows")
    return list(zip(*values, strict=True)), places, notes


def _chat(where: str, columns: Sequence[str], row: tuple[Any, ...], more: Counter[str]) -> Chat:
    if columns == (MESSAGES,):
        messages = _messages(where, MESSAGES, row[0], more)
        if messages[0].role == ASSISTANT:
            raise DataError(f"{where} begins with an answer: there must be a message that it answers")
        if all(message.role != ASSISTANT for message in messages):
            roles = first_few(dict.fromkeys(repr(m.role) for m in messages))
            raise DataError(f"{where} has no message of role {ASSISTANT!r} to learn from; its roles: {roles}")
        return Conversation(messages)
    prompt, completion = row
    for name, value in ((PROMPT, prompt), (COMPLETION, completion)):
        if value is None:
            raise DataError(f"{where} has no {name!r}; fill it in, or remove the row")
    if isinstance(prompt, str) and isinstance(completion, str):
        for name, value in ((PROMPT, prompt), (COMPLETION, completion)):
            require_unicode(where, name, value)
        return Completion(prompt, completion)
    if isinstance(prompt, str) or isinstance(completion, str):
        raise DataError(
            f"{where}: {PROMPT!r} and {COMPLETION!r} must both be texts, or both be lists of messages"
        )
    given = _messages(where, PROMPT, prompt, more)
    answer = _messages(where, COMPLETION, completion, more)
    if answer[0].role != ASSISTANT:
        told = f"the first message of {COMPLETION!r} is of role {answer[0].role!r}"
        raise DataError(f"{where}: {told}; it must be of role {ASSISTANT!r}")
    return Conversation((*given, *answer), len(given))


def _messages(where: str, name: str, value: Any, more: Counter[str]) -> tuple[Message, ...]:
    """The messages in a column of a row; what else they hold is counted in `more`. Raises DataError."""
    if value is None or value == []:
        raise DataError(f"{where}: {name!r} holds no message; remove the row")
    if not isinstance(value, list):
        raise DataError(f"{where}: {name!r} is no list of messages; write {_LIKE} in JSONL or Parquet")
    messages = []
    for number, message in enumerate(value, start=1):
        which = f"{where}: message {number} of {name!r}"
        if not isinstance(message, dict):
            raise DataError(f"{which} is no object with role and content; write {_LIKE}")
        for key in _KNOWN:
            if (found := message.get(key)) is None or (key == "role" and found == ""):
                raise DataError(f"{which} has no {key}")
            if not isinstance(found, str):
                raise DataError(f"{which}: its {key} is not text")
            require_unicode(where, name, found)
        more.update(key for key, there in message.items() if key not in _KNOWN and there is not None)
        messages.append(Message(message["role"], message["content"]))
    return tuple(messages)
