"""A model's scores on a file, a data set known by name, or a benchmark: what each asks, and what comes of
it."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from common.data.chat_encoding import encode_conversations
from common.data.chat_template import template_of
from common.data.columnar import parquet_columns
from common.data.content import opened
from common.data.conversations import Chat, Completion, Conversation, Message, chat_columns
from common.data.encoding import encode
from common.data.examples import Columns, Examples, read_examples
from common.data.presets import is_preset, load_preset
from common.data.questions import Question, question_columns, read_questions
from common.data.rows import NoColumn
from common.data.tables import read_table
from common.errors import ConfigError, DataError, ModelError
from common.listing import first_few
from common.model.scores import OnProgress
from common.records import TaskKind
from common.task_forms import FORMS, Answer
from coordinator.modelling.evaluation import score
from coordinator.scoring.answers import token_figures
from coordinator.scoring.figures import Answered, Figure, Scores, macro, mean
from coordinator.scoring.flowertune import BENCHMARKS, GROUPS, Benchmark, read_benchmark
from coordinator.scoring.generation import asked_of, generated, score_answers
from coordinator.scoring.likelihood import score_questions
from coordinator.scoring.loading import Subject
from coordinator.scoring.prompts import Prompter

NEW_TOKENS = 128
# A name that no column has: asked for, a table's reader tells those that there are.
_NO_NAME = "\0"

Progress = Callable[[str], OnProgress]
"""What is done → where to tell how far it is."""


class Template(StrEnum):
    """When prompts go through the model's chat template."""

    AUTO = "auto"
    """Messages do; texts are read as they stand, which is how a run learns them."""
    ON = "on"
    """Texts, too: as a user's message."""
    OFF = "off"
    """Nothing may: messages are refused."""


@dataclass(frozen=True)
class Settings:
    """How it is scored."""

    batch_size: int = 8
    limit: int | None = None
    """The first so many examples of each source; None: all."""
    max_length: int | None = None
    """Tokens of a text at most; None: what the model has positions for, 1,024 at most."""
    max_new_tokens: int | None = None
    """None: 128, and in benchmarks what their own evaluation allows."""
    template: Template = Template.AUTO
    generate: bool = True


@dataclass(frozen=True)
class Place:
    """Where data are, and under which names."""

    root: Path | None = None
    """Copies of the hub's data sets."""
    columns: Columns = field(default_factory=Columns)


def expanded(sources: Sequence[str]) -> list[str]:
    """Groups of benchmarks become their members, each once."""
    found: dict[str, None] = {}
    for source in sources:
        # What is there under a group's name is meant.
        members = (source,) if Path(source).exists() else GROUPS.get(source, (source,))
        found |= dict.fromkeys(members)
    return list(found)


def groups_in(sources: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """The groups of which all members are among `sources`, and these."""
    there = expanded(sources)
    return {name: members for name, members in GROUPS.items() if all(member in there for member in members)}


def require_known(source: str) -> None:
    """Before a model is loaded. Raises DataError for what is neither a path nor a name."""
    path = Path(source)
    with opened(path):
        there = path.exists()
    if not (there or source in BENCHMARKS or is_preset(source)):
        names = ", ".join((*GROUPS, *BENCHMARKS))
        raise DataError(f"{source}: no such file, nor a data set of `fedpft datasets`, nor one of: {names}")


def score_source(
    subject: Subject, source: str, place: Place, settings: Settings, progress: Progress
) -> Scores:
    """The scores on one file, preset or benchmark. Raises DataError, ModelError, ConfigError."""
    if settings.max_length is not None and subject.positions and settings.max_length > subject.positions:
        raise ConfigError(
            f"--max-length must be at most {subject.positions:,}, the model's positions, "
            f"got {settings.max_length:,}"
        )
    named = not Path(source).exists()
    if subject.kind is not TaskKind.CAUSAL_LM:
        if source in BENCHMARKS and named:
            raise ModelError(f"{source} asks a language model, but this model does {subject.kind}")
        return _classes(subject, source, place, settings, progress)
    if source in BENCHMARKS and named:
        return _benchmark(subject, BENCHMARKS[source], place, settings, progress)
    if is_preset(source):
        raise ModelError(
            f"{source} is for classifiers, but this model is a language model; name a file for it"
        )
    return _language(subject, Path(source), place, settings, progress)


def _classes(subject: Subject, source: str, place: Place, settings: Settings, progress: Progress) -> Scores:
    kind = subject.kind
    if is_preset(source):
        examples = load_preset(source, place.root, test=True).require(kind)
    else:
        examples = read_examples(Path(source), place.columns, kind)
    if not examples.labelled:
        raise DataError(f"{source} has no labels to compare with; name the column that holds them")
    examples = _first(examples, settings.limit)
    length = settings.max_length or min(512, subject.usual_length)
    data = encode(subject.processor, examples, kind, length, subject.labels)
    told = progress(source)
    accuracy, loss, further = score(
        subject.model, data, kind, subject.labels, told, batch_size=settings.batch_size
    )
    figures = {}
    if not math.isnan(accuracy):
        each = FORMS[kind].answer in (Answer.CLASS, Answer.CLASSES)
        figures["accuracy"] = _share(accuracy, len(data)) if each else Figure(accuracy)
    figures["loss"] = Figure(loss)
    figures |= {name: Figure(value) for name, value in further.items()}
    return Scores(source, str(kind), len(examples), figures, examples.notes)


def _share(value: float, count: int) -> Figure:
    """A mean of zeros and ones: its error follows from it."""
    return Figure(value, math.sqrt(value * (1 - value) / (count - 1)) if count > 1 else math.nan)


def _language(subject: Subject, path: Path, place: Place, settings: Settings, progress: Progress) -> Scores:
    """By the columns of the file."""
    found, text = _columns(path), place.columns.text
    if question_columns(found):
        questions = read_questions(path)[: settings.limit]
        prompter = _prompter(subject, settings, settings.template is Template.ON)
        return score_questions(
            subject.model, prompter, str(path), questions, settings.batch_size, progress(str(path))
        )
    if not chat_columns(found, text) and text not in found:
        raise DataError(
            f"{path} has no columns that a language model is scored on: question, choices and answer; "
            f"messages; prompt and completion; or {text}; its columns are: {first_few(found, 20)}"
        )
    examples = _first(read_examples(path, place.columns, TaskKind.CAUSAL_LM), settings.limit)
    if examples.conversations is None:
        data = encode(subject.processor, examples, subject.kind, _length(subject, settings), ())
        figures = token_figures(subject.model, data, settings.batch_size, progress(str(path)))
        return Scores(str(path), "text", len(examples), figures, examples.notes)
    return _answers(subject, _asked_by_template(examples, settings.template), settings, progress)


def _answers(subject: Subject, examples: Examples, settings: Settings, progress: Progress) -> Scores:
    prompter = _prompter(subject, settings, by_template=False)
    data = encode_conversations(prompter.tokenizer, examples, _length(subject, settings), "--max-length")
    figures = token_figures(subject.model, data, settings.batch_size, progress(f"{examples.source}: tokens"))
    notes = (*examples.notes, *data.notes)
    answered: tuple[Answered, ...] = ()
    if settings.generate:
        asked = asked_of(prompter, examples)
        own, more, answered = score_answers(
            subject.model,
            prompter,
            asked,
            settings.max_new_tokens or NEW_TOKENS,
            settings.batch_size,
            progress(f"{examples.source}: answers"),
        )
        figures, notes = own | figures, (*notes, *more)
    return Scores(examples.source, "answers", len(examples), figures, notes, answers=answered)


def _asked_by_template(examples: Examples, template: Template) -> Examples:
    """With texts as messages, or without messages, as the template's use demands. Raises DataError."""
    chats = examples.conversations or []
    if template is Template.ON:
        messages: list[Chat] = [
            Conversation((Message("user", c.prompt), Message("assistant", c.completion)), 1)
            if isinstance(c, Completion)
            else c
            for c in chats
        ]
        return replace(examples, conversations=messages)
    if template is Template.OFF and any(isinstance(chat, Conversation) for chat in chats):
        raise DataError(
            f"{examples.source} holds messages, which only a template makes a text of; not --template off"
        )
    return examples


def _benchmark(
    subject: Subject, benchmark: Benchmark, place: Place, settings: Settings, progress: Progress
) -> Scores:
    questions = _of_each_part(read_benchmark(benchmark, place.root), settings.limit)
    # The benchmark's prompts bring marks of their own.
    prompter = replace(_prompter(subject, settings, by_template=False), delimiter="")
    name, size = benchmark.name, settings.batch_size
    scores = score_questions(subject.model, prompter, name, questions, size, progress(f"{name}: choices"))
    if not settings.generate:
        return scores
    prompts = prompter.tokens([question.prompt for question in questions])
    most = [_most_new(benchmark, prompter, question, settings) for question in questions]
    if benchmark.tokens is not None:
        most = [max(1, min(m, benchmark.tokens - len(p))) for m, p in zip(most, prompts, strict=True)]
    room = prompter.most
    if room is not None:
        # The newest of a prompt stays; the answer needs some of the room.
        most = [min(m, max(1, room - 1)) for m in most]
        prompts = [p[-(room - m) :] for p, m in zip(prompts, most, strict=True)]
    answers = generated(subject.model, prompter, prompts, most, size, progress(f"{name}: answers"))
    right = [
        float(benchmark.said(answer) == question.choices[question.answer].lower())
        for answer, question in zip(answers, questions, strict=True)
    ]
    figures = {"answered_right": mean(right)} | dict(scores.figures)
    answered = [
        Answered(question.place, question.choices[question.answer], answer)
        for question, answer in zip(questions, answers, strict=True)
    ]
    return replace(scores, figures=figures, answers=tuple(answered))


def _of_each_part(questions: Sequence[Question], limit: int | None) -> list[Question]:
    """The first so many of each: of all together they would be of the first part alone."""
    taken: Counter[str] = Counter()
    found = []
    for question in questions:
        taken[question.part] += 1
        if limit is None or taken[question.part] <= limit:
            found.append(question)
    return found


def _most_new(benchmark: Benchmark, prompter: Prompter, question: Question, settings: Settings) -> int:
    if settings.max_new_tokens is not None:
        return settings.max_new_tokens
    if benchmark.tokens is not None:
        return benchmark.tokens
    return len(prompter.tokenizer(question.choices[0], add_special_tokens=False)["input_ids"])


def group_means(scores: Sequence[Scores], sources: Sequence[str]) -> dict[str, dict[str, Figure]]:
    """Of every group that is whole: the mean over its members of each figure that all of them have."""
    by_name = {each.source: each for each in scores}
    found = {}
    for group, members in groups_in(sources).items():
        own = [by_name[member].figures for member in members]
        shared = [name for name in own[0] if all(name in figures for figures in own)]
        found[group] = {name: macro([figures[name] for figures in own]) for name in shared}
    return found


def _prompter(subject: Subject, settings: Settings, by_template: bool) -> Prompter:
    tokenizer = subject.processor
    assert isinstance(tokenizer, PreTrainedTokenizerBase)
    if by_template and template_of(tokenizer) is None:
        raise ModelError("the model's tokenizer has no chat template; leave --template at auto")
    most = settings.max_length or subject.positions
    return Prompter(tokenizer, most, by_template)


def _length(subject: Subject, settings: Settings) -> int:
    return settings.max_length or subject.usual_length


def _first(examples: Examples, limit: int | None) -> Examples:
    return examples if limit is None or limit >= len(examples) else examples.take(range(limit))


def _columns(path: Path) -> tuple[str, ...]:
    """A file's columns. Raises DataError when it cannot be read."""
    if path.is_dir():
        raise DataError(
            f"{path} is a folder; a language model is scored on a file: CSV, TSV, JSONL or Parquet"
        )
    if path.suffix.lower() == ".parquet":
        return tuple(parquet_columns(path))
    try:
        read_table(path, _NO_NAME)
    except NoColumn as error:
        return error.found
    return ()
