"""Answers that a language model generates, greedily: exact match and ROUGE-L with those that were wanted."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

from common.data.chat_encoding import token_ids
from common.data.chat_template import Turn
from common.data.conversations import ASSISTANT, Chat, Completion, Conversation, Message
from common.data.examples import Examples
from common.data.rows import counted
from common.errors import DataError
from common.listing import first_few
from common.model.scores import OnProgress
from coordinator.scoring.figures import Answered, Figure, mean
from coordinator.scoring.matching import exact_match, has_words, rouge_l
from coordinator.scoring.prompts import Prompter


@dataclass(frozen=True)
class Asked:
    """What is to be gone on from, and what should come."""

    place: str
    tokens: tuple[int, ...]
    wanted: str


def asked_of(prompter: Prompter, examples: Examples) -> list[Asked]:
    """Every answer of the conversations, behind the true messages before it; of a prompt, its completion.

    Messages go through the model's template; texts do not, unless the prompter says so. Raises ModelError,
    DataError.
    """
    chats = examples.conversations or []
    rendered: list[tuple[Sequence[Message], Sequence[Turn]]] = []
    plain: list[str] = []
    for chat in chats:
        if isinstance(chat, Conversation):
            rendered.append((chat.messages, [(i, True) for i in _answers(chat)]))
        else:
            plain.append(chat.prompt)
    texts = [text for of_chat in (prompter.texts(rendered) if rendered else []) for text in of_chat]
    of_turns = iter(token_ids(prompter.tokenizer, texts, special=False))
    of_prompts = iter(prompter.tokens(plain))
    found = []
    for i, chat in enumerate(chats):
        for wanted in _wanted(chat):
            tokens = next(of_prompts if isinstance(chat, Completion) else of_turns)
            # An empty prompt is gone on from the beginning of a text.
            found.append(Asked(examples.name_of(i), tuple(tokens or [prompter.first]), wanted))
    return found


def _answers(chat: Conversation) -> list[int]:
    """Positions of the messages that are to be generated."""
    if chat.prompt is not None:
        return [chat.prompt]
    return [i for i, message in enumerate(chat.messages) if message.role == ASSISTANT]


def _wanted(chat: Chat) -> list[str]:
    if isinstance(chat, Completion):
        return [chat.completion]
    return [chat.messages[i].content for i in _answers(chat)]


def generated(
    model: PreTrainedModel,
    prompter: Prompter,
    prompts: Sequence[Sequence[int]],
    most_new: Sequence[int],
    batch_size: int,
    on_progress: OnProgress = lambda done, prompts: None,
) -> list[str]:
    """What the model goes on with, greedily, until it ends the text or has said so many tokens: without
    special tokens. Prompts of like length come together, padded in front."""
    answers = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    for start in range(0, len(order), batch_size):
        on_progress(start, len(order))
        batch = order[start : start + batch_size]
        told = _greedy(model, prompter, [prompts[i] for i in batch], max(most_new[i] for i in batch))
        for i, ids in zip(batch, told, strict=True):
            text: Any = prompter.tokenizer.decode(ids[: most_new[i]], skip_special_tokens=True)
            answers[i] = str(text)
    on_progress(len(order), len(order))
    return answers


@torch.inference_mode()
def _greedy(
    model: PreTrainedModel, prompter: Prompter, prompts: Sequence[Sequence[int]], most: int
) -> list[list[int]]:
    """New tokens of each, up to its end."""
    longest, ends = max(map(len, prompts)), ends_of(model, prompter)
    ids = torch.tensor([[prompter.pad] * (longest - len(each)) + list(each) for each in prompts])
    mask = torch.tensor([[0] * (longest - len(each)) + [1] * len(each) for each in prompts])
    how = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=most,
        eos_token_id=sorted(ends),
        pad_token_id=prompter.pad,
        use_cache=True,
    )
    # What the model was published with, such as a penalty for what was said before, would mix in.
    kept, model.generation_config = model.generation_config, how
    try:
        generate: Any = model.generate
        whole: Any = generate(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), generation_config=how
        )
    finally:
        model.generation_config = kept
    found = []
    for row in whole[:, longest:].tolist():
        end = next((i for i, token in enumerate(row) if token in ends), len(row))
        found.append(row[:end])
    return found


def ends_of(model: PreTrainedModel, prompter: Prompter) -> set[int]:
    """Tokens that end an answer: the tokenizer's EOS, and those of the model's generation_config.json."""
    own: Any = getattr(model.generation_config, "eos_token_id", None)
    told = own if isinstance(own, list) else [own]
    return {int(token) for token in (*told, prompter.tokenizer.eos_token_id) if token is not None}


def score_answers(
    model: PreTrainedModel,
    prompter: Prompter,
    asked: Sequence[Asked],
    most_new: int,
    batch_size: int,
    on_progress: OnProgress = lambda done, prompts: None,
) -> tuple[dict[str, Figure], tuple[str, ...], tuple[Answered, ...]]:
    """Exact match and ROUGE-L of `most_new` tokens at most, what is to be told, and what was said.

    A prompt that leaves no room for these is cut from its beginning. Raises DataError where there is no room
    for a prompt at all.
    """
    room = None if prompter.most is None else prompter.most - most_new
    if room is not None and room < 1:
        raise DataError(
            f"--max-new-tokens must be less than the {prompter.most:,} tokens that the model reads, "
            f"got {most_new:,}"
        )
    cut = [each.place for each in asked if room is not None and len(each.tokens) > room]
    prompts = [each.tokens if room is None else each.tokens[-room:] for each in asked]
    told = generated(model, prompter, prompts, [most_new] * len(prompts), batch_size, on_progress)
    pairs = [(answer.strip(), each.wanted) for answer, each in zip(told, asked, strict=True)]
    figures = {
        "exact_match": mean([float(exact_match(*pair)) for pair in pairs]),
        "rouge_l": mean([rouge_l(*pair) for pair in pairs]),
    }
    notes = []
    if cut:
        what = (
            f"{counted(len(cut), 'prompt')} cut from the beginning, to leave room for {most_new:,} new tokens"
        )
        notes.append(f"{what}: {first_few(cut)}")
    if strange := [each.place for each in asked if not has_words(each.wanted)]:
        what = f"{counted(len(strange), 'answer')} without a letter from a to z or a digit: its ROUGE-L is 0"
        notes.append(f"{what}: {first_few(strange)}")
    answered = [Answered(each.place, each.wanted, said) for each, (said, _) in zip(asked, pairs, strict=True)]
    return figures, tuple(notes), tuple(answered)
