"""What each kind of task reads and answers: all that data, settings and messages need to know of it.

What it asks of a model stands beside it, in `common.model.tasks`; here nothing imports torch.
"""

from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from common.protocol import PROTOCOL_MIN
from common.records import TaskKind

# transformers' own name for an output that has none: what a regression gives.
NUMBER_NAME = "LABEL_0"
# What may stand between the classes of one cell, and so in no name of a class.
SEPARATORS = ",;|"


class Input(StrEnum):
    """What an example is."""

    TEXTS = "texts"
    IMAGES = "images"
    WORDS = "lists of words"
    """Texts cut into words, one answer for each."""
    CONVERSATIONS = "conversations"
    """Messages, or prompts with completions: texts of which a part is learned."""


class Answer(StrEnum):
    """What is to be foretold of it."""

    CLASS = "one class"
    CLASSES = "any number of classes"
    NUMBER = "a number"
    TAGS = "a class for every word"
    NEXT_TOKEN = "the next token"


# By what score the best round can be told; the loss is smallest there, all others are largest.
BEST_BY = MappingProxyType(
    {
        Answer.CLASS: ("loss", "accuracy", "macro_f1", "matthews", "auc"),
        Answer.CLASSES: ("loss", "accuracy", "macro_f1", "auc"),
        Answer.NUMBER: ("loss", "pearson"),
        Answer.TAGS: ("loss", "accuracy", "entity_f1"),
        Answer.NEXT_TOKEN: ("loss", "accuracy"),
    }
)


@dataclass(frozen=True)
class TaskForm:
    """A kind of task, seen from the data."""

    input: Input
    answer: Answer
    pipeline: str
    """The hub's name for it."""
    pairs: bool = False
    """Whether an example may be a pair of texts."""
    conversations: bool = False
    """Whether an example may be a conversation."""
    since: int = PROTOCOL_MIN
    """The protocol that first knew it."""

    @property
    def named(self) -> bool:
        """Whether its answers are classes that have names."""
        return self.answer in (Answer.CLASS, Answer.CLASSES, Answer.TAGS)

    @property
    def labelled(self) -> bool:
        """Whether examples come with labels: a language model's texts are their own."""
        return self.answer is not Answer.NEXT_TOKEN

    def takes(self, given: Input) -> bool:
        """Whether an example of the task may be this."""
        return given is self.input or (self.conversations and given is Input.CONVERSATIONS)

    def outputs(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        """Names of the head's outputs in order; none of a language model, which has no head of its own."""
        return (NUMBER_NAME,) if self.answer is Answer.NUMBER else labels


FORMS = MappingProxyType(
    {
        TaskKind.TEXT_CLASSIFICATION: TaskForm(Input.TEXTS, Answer.CLASS, "text-classification", pairs=True),
        TaskKind.TEXT_MULTI_LABEL: TaskForm(
            Input.TEXTS, Answer.CLASSES, "text-classification", pairs=True, since=4
        ),
        TaskKind.TEXT_REGRESSION: TaskForm(
            Input.TEXTS, Answer.NUMBER, "text-classification", pairs=True, since=4
        ),
        TaskKind.TOKEN_CLASSIFICATION: TaskForm(Input.WORDS, Answer.TAGS, "token-classification", since=4),
        TaskKind.IMAGE_CLASSIFICATION: TaskForm(Input.IMAGES, Answer.CLASS, "image-classification"),
        TaskKind.CAUSAL_LM: TaskForm(Input.TEXTS, Answer.NEXT_TOKEN, "text-generation", conversations=True),
    }
)
