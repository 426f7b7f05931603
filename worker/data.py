"""The worker's private data. It never leaves this process."""

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from common.data.answers import names_in, require_answers
from common.data.batches import Dataset
from common.data.conversations import COMPLETION, MESSAGES, PROMPT
from common.data.encoding import encode
from common.data.examples import Columns, Examples, read_examples
from common.data.inspection import inspected
from common.data.presets import load_preset, preset_files
from common.data.processors import Processor
from common.errors import DataError
from common.records import ClassCounts, TaskKind, TaskSpec
from common.runtime import seeds
from common.storage.files import digest_of
from common.task_forms import FORMS, Input


@dataclass(frozen=True)
class Source:
    """Where private data lies: a file or image folder and its columns, or a preset's name."""

    path: Path | None = None
    columns: Columns = field(default_factory=Columns)
    preset: str | None = None
    root: Path | None = None
    """Folder with local copies of presets."""
    validation: Path | None = None
    """A file or folder like `path`, to score on and not to train on."""
    validation_share: float = 0.0
    """Share of the private data that is kept aside for that instead."""


@dataclass(frozen=True)
class PrivateData:
    """Texts, pairs, words or images, as a rule with their labels."""

    examples: Examples
    digest: str = ""
    """Of the files' contents: an update answers for these data, and for no others of the same length.
    Empty of data that nobody trains on."""
    validation: Examples | None = None
    """What is kept aside to score on. It is not among the examples."""

    @classmethod
    def read(cls, source: Source, worker: str = "") -> "PrivateData":
        """The data of a worker of this name. Raises DataError."""
        read, digest = inspected(examples_of(source)), digest_of(files_of(source))
        if source.validation is not None:
            return cls(read, digest, inspected(read_examples(source.validation, source.columns)))
        if source.validation_share:
            rest, aside = held_out(read, source.validation_share, worker)
            # Other examples of the same files: another share, another name.
            return cls(rest, f"{digest}/{source.validation_share}/{worker}", aside)
        return cls(read, digest)

    def __len__(self) -> int:
        return len(self.examples)

    @property
    def notes(self) -> tuple[str, ...]:
        """What their owner should know, a line each."""
        aside = () if self.validation is None else self.validation.notes
        return tuple(dict.fromkeys((*self.examples.notes, *aside)))

    def require(self, task: TaskSpec) -> None:
        """Raises DataError when this is no data for the task, or has a label that the run does not know."""
        self.require_form(task)
        for examples in filter(None, (self.examples, self.validation)):
            require_answers(examples, task.kind, task.labels)

    def require_form(self, task: TaskSpec) -> None:
        """The same, whatever the labels are. Raises DataError."""
        for examples in filter(None, (self.examples, self.validation)):
            _require_form(examples, task)

    def class_counts(self, worker: str, kind: TaskKind) -> ClassCounts:
        """The names of the classes that there are, and how often each is there."""
        counts: Counter[str] = Counter()
        for examples in filter(None, (self.examples, self.validation)):
            counts.update(sorted(names_in(examples, kind)))
        return ClassCounts(worker, len(self) + len(self.validation or ()), counts)

    def encoded(self, processor: Processor, task: TaskSpec, *, apart: bool = False) -> Dataset:
        """What is trained on, ready for the run's model; `apart`: no row holds more than one example."""
        return _encoded(self.examples, processor, task, apart)

    def encoded_validation(self, processor: Processor, task: TaskSpec) -> Dataset | None:
        """What is kept aside, the same."""
        return None if self.validation is None else _encoded(self.validation, processor, task)


def _encoded(examples: Examples, processor: Processor, task: TaskSpec, apart: bool = False) -> Dataset:
    labels = task.labels if FORMS[task.kind].labelled else None
    return encode(processor, examples, task.kind, task.max_length, labels, apart=apart)


def _require_form(examples: Examples, task: TaskSpec) -> None:
    source = examples.source
    form = FORMS[task.kind]
    if not form.takes(examples.input):
        raise DataError(f"{source} holds {examples.input}, but the run is for {task.kind}")
    if task.conversations and examples.input is not Input.CONVERSATIONS:
        raise DataError(
            f"{source} holds {examples.input}, but the run is for conversations: a column {MESSAGES!r}, or "
            f"{PROMPT!r} and {COMPLETION!r}, and none that is called by --text-column"
        )
    if task.pairs and examples.pairs is None:
        raise DataError(f"the run is for pairs of texts; name the second column of {source}: --pair-column")
    if not task.pairs and examples.pairs is not None:
        raise DataError(f"the run is for single texts; leave out --pair-column for {source}")
    if form.named and not examples.labelled:
        raise DataError(f"{source} has no labels; name the column that holds them: --label-column")


def held_out(examples: Examples, share: float, worker: str) -> tuple[Examples, Examples]:
    """What a worker of this name trains on, and the share that it keeps aside, each in its order.

    Drawn by the name alone: the same in every run, and known before the worker joins one. Raises
    DataError when either is empty.
    """
    aside = round(share * len(examples))
    if not 0 < aside < len(examples):
        raise DataError(
            f"{examples.source}: a validation share of {share:g} of {len(examples)} examples leaves "
            f"{'none aside' if not aside else 'none to train on'}"
        )
    drawn = set(random.Random(seeds.derive(0, "validation", worker)).sample(range(len(examples)), aside))
    rest = [i for i in range(len(examples)) if i not in drawn]
    return examples.take(rest), examples.take(sorted(drawn))


def examples_of(source: Source) -> Examples:
    """What lies there, not looked at yet. Raises DataError."""
    if source.preset is not None:
        return load_preset(source.preset, source.root)
    assert source.path is not None
    return read_examples(source.path, source.columns)


def files_of(source: Source) -> list[Path]:
    """The files, or folder, that hold the data. Raises DataError."""
    if source.preset is not None:
        return preset_files(source.preset, source.root)
    assert source.path is not None
    return [source.path]
