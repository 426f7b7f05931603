"""The worker's private data. It never leaves this process."""

from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedTokenizerBase

from common.batches import Dataset, encode
from common.records import TaskSpec
from common.tables import class_indices, read_columns


@dataclass(frozen=True)
class PrivateData:
    """Texts with the names of their labels."""

    path: Path
    texts: list[str]
    label_names: list[str]

    @classmethod
    def read(cls, path: Path, text_column: str, label_column: str) -> "PrivateData":
        """Raises DataError."""
        texts, names = read_columns(path, text_column, label_column)
        return cls(path, texts, names)

    def __len__(self) -> int:
        return len(self.texts)

    def class_indices(self, labels: tuple[str, ...]) -> list[int]:
        """Raises DataError for a label that the run does not know."""
        return class_indices(self.path, self.label_names, labels)

    def encoded(self, tokenizer: PreTrainedTokenizerBase, task: TaskSpec) -> Dataset:
        """Tokenised for the run's task."""
        return encode(tokenizer, self.texts, task.max_length, self.class_indices(task.labels))
