"""What was found in a file: texts, pairs of texts, lists of words, images or conversations; their labels."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from common.data.conversations import Chat
from common.data.rows import Places
from common.task_forms import Input


@dataclass(frozen=True)
class Reading:
    """What was found out about examples when they were read."""

    places: Places | None = None
    """Where each stands; None: in the rows of the source."""
    notes: tuple[str, ...] = ()
    """What their owner should know, a line each: what was left out, and what looks like a mistake."""


@dataclass(frozen=True)
class Found:
    """Texts, words, images or conversations as they were found, not yet tokenised or decoded."""

    source: str
    """Where they come from, for messages: a path, or the name of a preset."""
    texts: list[str] | None
    pairs: list[str] | None = None
    """Second texts, of pairs."""
    images: list[Path | bytes] | None = None
    """Files, or encoded bytes. Exactly one of texts, images, words and conversations is there."""
    label_names: list[str] | None = None
    """As text, whatever the task makes of it: a class, a number, or several classes. None: unlabelled."""
    words: list[tuple[str, ...]] | None = None
    """Texts that are cut into words already."""
    label_lists: list[tuple[str, ...]] | None = None
    """Labels that were found as lists, in place of `label_names`: tags of words, or several classes."""
    reading: Reading = field(default=Reading(), compare=False, repr=False)
    conversations: list[Chat] | None = None
    """Messages, or prompts with their completions, for a language model."""

    def __post_init__(self) -> None:
        if sum(given is not None for given in self._forms().values()) != 1:
            raise ValueError("examples are either texts or images or words or conversations")
        if self.label_names is not None and self.label_lists is not None:
            raise ValueError("labels are either texts or lists")
        for beside in (self.pairs, self.label_names, self.label_lists, self.reading.places):
            if beside is not None and len(beside) != len(self):
                raise ValueError(f"{len(self)} examples with {len(beside)} pairs, labels or places")

    def __len__(self) -> int:
        return len(self._inputs())

    def _forms(self) -> dict[Input, Sequence[str | Path | bytes | tuple[str, ...] | Chat] | None]:
        return {
            Input.TEXTS: self.texts,
            Input.IMAGES: self.images,
            Input.WORDS: self.words,
            Input.CONVERSATIONS: self.conversations,
        }

    def _inputs(self) -> Sequence[str | Path | bytes | tuple[str, ...] | Chat]:
        return next(given for given in self._forms().values() if given is not None)

    @property
    def input(self) -> Input:
        """What they are."""
        return next(form for form, given in self._forms().items() if given is not None)

    @property
    def labelled(self) -> bool:
        """Whether there are labels."""
        return self.label_names is not None or self.label_lists is not None
