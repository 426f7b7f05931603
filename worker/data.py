"""The worker's private data. It never leaves this process."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from common.data.answers import names_in, require_answers
from common.data.batches import Dataset
from common.data.encoding import encode
from common.data.examples import Columns, Examples, read_examples
from common.data.inspection import inspected
from common.data.presets import load_preset, preset_files
from common.data.processors import Processor
from common.errors import DataError
from common.records import ClassCounts, TaskKind, TaskSpec
from common.storage.files import digest_of
from common.task_forms import FORMS


@dataclass(frozen=True)
class Source:
    """Where private data lies: a file or image folder and its columns, or a preset's name."""

    path: Path | None = None
    columns: Columns = field(default_factory=Columns)
    preset: str | None = None
    root: Path | None = None
    """Folder with local copies of presets."""


@dataclass(frozen=True)
class PrivateData:
    """Texts, pairs, words or images, as a rule with their labels."""

    examples: Examples
    digest: str = ""
    """Of the files' contents: an update answers for these data, and for no others of the same length.
    Empty of data that nobody trains on."""

    @classmethod
    def read(cls, source: Source) -> "PrivateData":
        """Raises DataError."""
        return cls(inspected(examples_of(source)), digest_of(files_of(source)))

    def __len__(self) -> int:
        return len(self.examples)

    def require(self, task: TaskSpec) -> None:
        """Raises DataError when this is no data for the task, or has a label that the run does not know."""
        self.require_form(task)
        require_answers(self.examples, task.kind, task.labels)

    def require_form(self, task: TaskSpec) -> None:
        """The same, whatever the labels are. Raises DataError."""
        source = self.examples.source
        form = FORMS[task.kind]
        if self.examples.input is not form.input:
            raise DataError(f"{source} holds {self.examples.input}, but the run is for {task.kind}")
        if task.pairs and self.examples.pairs is None:
            raise DataError(
                f"the run is for pairs of texts; name the second column of {source}: --pair-column"
            )
        if not task.pairs and self.examples.pairs is not None:
            raise DataError(f"the run is for single texts; leave out --pair-column for {source}")
        if form.named and not self.examples.labelled:
            raise DataError(f"{source} has no labels; name the column that holds them: --label-column")

    def class_counts(self, worker: str, kind: TaskKind) -> ClassCounts:
        """The names of the classes that there are, and how often each is there."""
        return ClassCounts(worker, len(self), Counter(sorted(names_in(self.examples, kind))))

    def encoded(self, processor: Processor, task: TaskSpec) -> Dataset:
        """Ready for the run's model."""
        labels = task.labels if FORMS[task.kind].labelled else None
        return encode(processor, self.examples, task.kind, task.max_length, labels)


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
