"""Conversations → token rows of which only answers are targets, one conversation a row.

Rows are not packed: attention would run from one conversation into the next, and not every family's attention
takes a mask that keeps it from that. Rows of like length come together instead (`Dataset.shuffled`).
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from common.data.batches import ConversationDataset, Row
from common.data.chat_template import Turn, rendered, template_of
from common.data.conversations import ASSISTANT, Chat, Completion, Conversation
from common.data.examples import Examples
from common.data.rows import counted
from common.errors import DataError, ModelError
from common.listing import first_few
from common.model.tasks import IGNORED
from common.runtime.stopping import between_pieces

log = logging.getLogger(__name__)

# Of one piece, so that it takes seconds: texts that are rendered, and characters in them, about. To begin a
# process takes most of a second.
_PIECE_TEXTS = 8000
_PIECE_CHARACTERS = 8 * 2**20
# Texts that are tokenised between two looks whether to stop.
_TOKENISED = 1000


class NoPrefix(ModelError):
    """A template changes what stands before an answer once the answer is there: nobody could mark it."""


@dataclass
class _Left:
    """Rows that are told of, by what has become of them."""

    cut: list[int] = field(default_factory=list)
    beyond: list[int] = field(default_factory=list)
    merged: list[int] = field(default_factory=list)
    apart: list[int] = field(default_factory=list)


def encode_conversations(
    tokenizer: PreTrainedTokenizerBase,
    examples: Examples,
    max_length: int,
    setting: str = "task.max_length",
) -> ConversationDataset:
    """Conversations and prompts with completions as a language model learns them, as TRL tokenises them.

    Of messages every assistant's is a target: what the chat template adds to what it makes of the messages
    before, invitation included, which is the text, the mark of its end and what the template puts behind it.
    Of a prompt with a completion all that comes behind the prompt is; a completion that is plain text ends
    with EOS. Rows are cut to `max_length` tokens. One that has no target then is left out, counted and told;
    `setting` is what people know `max_length` by.

    Raises ModelError when a template is needed and there is none, NoPrefix when it is one by which answers
    cannot be told, DataError when it refuses a conversation or no row is left.
    """
    assert examples.conversations is not None
    rows: list[Row] = []
    labels: list[list[int]] = []
    left = _Left()
    for indices in _pieces(examples.conversations):
        between_pieces()
        for i, (ids, spans) in zip(indices, _encoded(tokenizer, examples, indices, left), strict=True):
            targets = [IGNORED] * len(ids)
            for begin, end in spans:
                targets[begin:end] = ids[begin:end]
            if len(ids) > max_length:
                left.cut.append(i)
            ids, targets = ids[:max_length], targets[:max_length]
            # The first token has none before it to be foretold from.
            if any(target != IGNORED for target in targets[1:]):
                rows.append({"input_ids": ids, "attention_mask": [1] * len(ids)})
                labels.append(targets)
            elif spans:
                left.beyond.append(i)
    notes = tuple(_notes(examples, left, f"{setting} = {max_length}"))
    for note in notes:
        log.warning("%s", note)
    if not rows:
        raise DataError(
            f"{examples.source}: there is no answer to learn from within {setting} = {max_length} tokens"
        )
    return ConversationDataset(rows, tokenizer, labels, notes)


def turns_of(chat: Conversation) -> list[Turn]:
    """What to render: the whole; then what stands before each answer, and what stands there with it."""
    turns = [(len(chat.messages), False)]
    if chat.prompt is not None:
        return [*turns, (chat.prompt, True), turns[0]]
    for i, message in enumerate(chat.messages):
        if message.role == ASSISTANT:
            turns += [(i, True), (i + 1, False)]
    return turns


def require_prefixes(texts: Sequence[str], turns: Sequence[Turn]) -> None:
    """Raises NoPrefix unless each of these texts begins the whole, which is the first of them."""
    for text, (count, inviting) in zip(texts[1:], turns[1:], strict=True):
        if not texts[0].startswith(text):
            before = "with the invitation to answer " if inviting else ""
            raise NoPrefix(
                f"its chat template renders the first {counted(count, 'message')} {before}otherwise than it "
                "does once more follow, so that what is learned cannot be told from the rest; use a template "
                "that only adds to what it has rendered, or conversations of one answer"
            )


def _pieces(chats: Sequence[Chat]) -> Iterator[list[int]]:
    """Positions, so few at a time that somebody may wait for the end."""
    piece: list[int] = []
    texts = characters = 0
    for i, chat in enumerate(chats):
        piece.append(i)
        if isinstance(chat, Completion):
            texts, characters = texts + 1, characters + len(chat.prompt) + len(chat.completion)
        else:
            turns = len(turns_of(chat))
            texts += turns
            characters += turns * sum(len(message.content) for message in chat.messages)
        if texts >= _PIECE_TEXTS or characters >= _PIECE_CHARACTERS:
            yield piece
            piece, texts, characters = [], 0, 0
    if piece:
        yield piece


Encoded = tuple[list[int], list[tuple[int, int]]]
"""A row's tokens; where its targets begin and end."""


def _encoded(
    tokenizer: PreTrainedTokenizerBase, examples: Examples, indices: Sequence[int], left: _Left
) -> list[Encoded]:
    assert examples.conversations is not None
    chats = [examples.conversations[i] for i in indices]
    by_template = [i for i, chat in zip(indices, chats, strict=True) if isinstance(chat, Conversation)]
    others = [i for i, chat in zip(indices, chats, strict=True) if isinstance(chat, Completion)]
    templated = iter(_by_template(tokenizer, examples, by_template, left) if by_template else ())
    plain = iter(_plain(tokenizer, examples, others, left) if others else ())
    return [next(templated if isinstance(chat, Conversation) else plain) for chat in chats]


def _by_template(
    tokenizer: PreTrainedTokenizerBase, examples: Examples, indices: Sequence[int], left: _Left
) -> Iterator[Encoded]:
    model = f"model {tokenizer.name_or_path}"
    try:
        template = template_of(tokenizer)
        if template is None:
            raise ModelError("its tokenizer has no chat template to render messages by")
        chats = [chat for i in indices if isinstance(chat := _chat(examples, i), Conversation)]
        turns = [turns_of(chat) for chat in chats]
        found = rendered(tokenizer, template, [(c.messages, t) for c, t in zip(chats, turns, strict=True)])
    except ModelError as error:
        raise ModelError(f"{model}: {error}") from error
    texts: list[str] = []
    for i, of_chat, made in zip(indices, turns, found, strict=True):
        if isinstance(made, str):
            raise DataError(f"{examples.name_of(i)}: the chat template of {model} does not take it: {made}")
        try:
            require_prefixes(made, of_chat)
        except NoPrefix as error:
            raise NoPrefix(f"{examples.name_of(i)}: {model}: {error}") from None
        texts += made
    # The template has written what begins and ends a text.
    ids = iter(token_ids(tokenizer, texts, special=False))
    for i, of_chat in zip(indices, turns, strict=True):
        whole, *prefixes = (next(ids) for _ in of_chat)
        if any(whole[: len(prefix)] != prefix for prefix in prefixes):
            # A token would hold the end of what is given and the beginning of the answer.
            left.merged.append(i)
            yield whole, []
        else:
            ends = [len(prefix) for prefix in prefixes]
            yield whole, list(zip(ends[::2], ends[1::2], strict=True))


def _plain(
    tokenizer: PreTrainedTokenizerBase, examples: Examples, indices: Sequence[int], left: _Left
) -> Iterator[Encoded]:
    if tokenizer.eos_token_id is None:
        raise ModelError("the model's tokenizer has no EOS token to put behind completions")
    chats = [chat for i in indices if isinstance(chat := _chat(examples, i), Completion)]
    before, behind = frame_of(tokenizer)
    prompts = token_ids(tokenizer, [chat.prompt for chat in chats], special=False)
    wholes = token_ids(tokenizer, [chat.prompt + chat.completion for chat in chats], special=False)
    for i, chat, prompt, whole in zip(indices, chats, prompts, wholes, strict=True):
        if whole[: len(prompt)] != prompt:
            # As the model is asked later: by the tokens of the prompt alone.
            left.apart.append(i)
            [completion] = token_ids(tokenizer, [chat.completion], special=False)
            whole = prompt + completion
        ids = [*before, *whole, *behind]
        if ids[-1] != tokenizer.eos_token_id:
            ids.append(tokenizer.eos_token_id)
        yield ids, [(len(before) + len(prompt), len(ids))]


def _chat(examples: Examples, i: int) -> Chat:
    assert examples.conversations is not None
    return examples.conversations[i]


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], *, special: bool) -> list[list[int]]:
    """Texts as tokens, uncut; `special`: with what the tokenizer puts around them."""
    ids: list[list[int]] = []
    for start in range(0, len(texts), _TOKENISED):
        between_pieces()
        # Longer texts than the model takes are no mistake here: they are cut further down.
        piece = texts[start : start + _TOKENISED]
        encoded: Any = tokenizer(piece, add_special_tokens=special, verbose=False)
        ids += encoded["input_ids"]
    return ids


def frame_of(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before a text and behind it."""
    [bare], [framed] = (token_ids(tokenizer, ["a"], special=special) for special in (False, True))
    for start in range(len(framed) - len(bare) + 1):
        if framed[start : start + len(bare)] == bare:
            return framed[:start], framed[start + len(bare) :]
    return [], []


def _notes(examples: Examples, left: _Left, limit: str) -> Iterator[str]:
    told = (
        (left.cut, f"reach beyond {limit} tokens, and are cut there"),
        (left.beyond, "left out: no token of an answer is left there"),
        (left.merged, "left out: a token holds the end of what is given and the beginning of an answer"),
        (
            left.apart,
            "tokenised as prompt and completion apart: together a token would hold some of both (end prompts "
            "without a blank, begin completions with it)",
        ),
    )
    for rows, what in told:
        if rows:
            where = first_few([examples.name_of(i).removeprefix(f"{examples.source}: ") for i in rows])
            of = f"{counted(len(rows), 'conversation')} of {len(examples):,}"
            yield f"{examples.source}: {of} {what}: {where}"
