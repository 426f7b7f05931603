"""Prompts as a model's tokens: as they stand, or as a user's message in the model's chat template."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from common.data.chat_encoding import frame_of, token_ids
from common.data.chat_template import Turn, rendered, template_of
from common.data.conversations import Message
from common.errors import DataError, ModelError

Divided = tuple[list[int], list[list[int]]]
"""Tokens of a prompt; of the prompt with each of its choices."""


@dataclass(frozen=True)
class Prompter:
    """What makes tokens of prompts."""

    tokenizer: PreTrainedTokenizerBase
    most: int | None
    """Tokens that the model reads at once; None: any number."""
    by_template: bool = False
    """Prompts are a user's messages, rendered by the model's chat template with an invitation to answer."""
    delimiter: str = " "
    """What stands between a question and a choice; nothing behind a template, nor where the question ends
    so."""

    @property
    def pad(self) -> int:
        """A token to pad with; it is never seen."""
        return int(self.tokenizer.pad_token_id)

    @property
    def first(self) -> int:
        """What stands before a text that has nothing before it: BOS, or EOS where there is none."""
        bos = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if bos is None else bos)

    def tokens(self, prompts: Sequence[str]) -> list[list[int]]:
        """Of every prompt, ready to be gone on from. Raises ModelError, DataError."""
        if self.by_template:
            chats = [([Message("user", prompt)], [(1, True)]) for prompt in prompts]
            return token_ids(self.tokenizer, [text for [text] in self.texts(chats)], special=False)
        before = self._before
        return [[*before, *ids] for ids in token_ids(self.tokenizer, list(prompts), special=False)]

    def divided(self, asked: Sequence[tuple[str, Sequence[str]]]) -> list[Divided]:
        """Of every prompt its tokens, and those of it with each of its choices behind it. Blanks at a
        prompt's end belong to the choices, since tokens begin with them. Raises ModelError, DataError."""
        before, prompts = self._before, [prompt for prompt, _ in asked]
        if self.by_template:
            before = []
            prompts = [text for [text] in self.texts([([Message("user", p)], [(1, True)]) for p in prompts])]
        texts: list[str] = []
        for prompt, (_, choices) in zip(prompts, asked, strict=True):
            body = prompt.rstrip(" ")
            delimiter = prompt[len(body) :] or ("" if self.by_template else self.delimiter)
            texts += [body, *(f"{body}{delimiter}{choice}" for choice in choices)]
        ids = iter(token_ids(self.tokenizer, texts, special=False))
        return [([*before, *next(ids)], [[*before, *next(ids)] for _ in choices]) for _, choices in asked]

    def texts(self, chats: Sequence[tuple[Sequence[Message], Sequence[Turn]]]) -> list[list[str]]:
        """Conversations rendered by the model's template. Raises ModelError without one, DataError for one
        that the template does not take."""
        model = f"model {self.tokenizer.name_or_path}"
        template = template_of(self.tokenizer)
        if template is None:
            raise ModelError(f"{model}: its tokenizer has no chat template to render messages by")
        found = []
        for texts in rendered(self.tokenizer, template, chats):
            if isinstance(texts, str):
                raise DataError(f"the chat template of {model} does not take a conversation: {texts}")
            found.append(texts)
        return found

    @property
    def _before(self) -> list[int]:
        return frame_of(self.tokenizer)[0]
