"""The run, the model, the task and the owner's data."""

from pathlib import Path

from pydantic import Field, field_validator, model_validator

from common.config.choices import ModelDtype
from common.config.section import Section
from common.records import TaskKind
from common.task_forms import FORMS, SEPARATORS, Answer

# What stands for labels that are asked for. No list of labels has one name alone.
ASK = ("ask",)


class RunSection(Section):
    """The run as a whole."""

    directory: Path = Path("runs/run")
    """Folder that holds everything of the run; the same folder continues the same run."""
    seed: int = Field(default=7, ge=0, lt=2**32)
    """Fixes every random choice."""
    strict: bool = False
    """End the run where the sub-FM is found to be no stand-in for the FM before the first round, instead of
    only saying so."""


class ModelSection(Section):
    """The foundation model (FM). It never leaves the coordinator."""

    path: str
    """Local directory in the Hugging Face layout, or a hub id."""
    dtype: ModelDtype = ModelDtype.AUTO
    """What FM and sub-FM are held in, sent in and computed with: "float32", "bfloat16" (half the memory and
    bytes), or "auto": bfloat16 where the checkpoint is, else float32. LoRA and head are float32 always."""


class TaskSection(Section):
    """What the model learns."""

    kind: TaskKind = TaskKind.TEXT_CLASSIFICATION
    """"text-classification", "text-multi-label" (any number of classes), "text-regression" (a number),
    "token-classification" (a class for every word), "image-classification" or "causal-lm" (next tokens)."""
    labels: tuple[str, ...] = ()
    """Names of the classes, as they stand in the label column; order is class index. None for causal-lm and
    text-regression; for token-classification the tags, such as "O", "B-PER", "I-PER". "ask": those that the
    first rounds.workers workers and the test data have; each worker tells its own and their numbers."""
    pairs: bool = False
    """Whether every example is a pair of texts."""
    max_length: int = Field(default=128, ge=8, lt=2**32)
    """Longer texts are cut to this many tokens; for causal-lm texts are joined and cut into such pieces, and
    conversations stay apart, each cut to so many."""

    @field_validator("labels", mode="before")
    @classmethod
    def _ask(cls, given: object) -> object:
        return ASK if given == ASK[0] else given

    @property
    def asks(self) -> bool:
        """Whether the labels are not known, and workers are asked for theirs."""
        return self.labels == ASK

    @model_validator(mode="after")
    def _consistent(self) -> "TaskSection":
        if self.asks and FORMS[self.kind].named:
            return self
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels must be distinct")
        for label in self.labels:
            if not label or label != label.strip():
                raise ValueError(f"labels must neither be empty nor begin or end with a blank, got {label!r}")
        form = FORMS[self.kind]
        if self.labels and not form.named:
            raise ValueError(f"labels must be left out for {self.kind}, which has no classes")
        if form.named and len(self.labels) < 2:
            raise ValueError(f"labels must name at least 2 classes, got {list(self.labels)}")
        if form.answer is Answer.CLASSES:
            for label in self.labels:
                if set(label) & set(SEPARATORS):
                    raise ValueError(
                        f"labels of {self.kind} must not hold any of {SEPARATORS}, which stand between "
                        f"classes, got {label!r}"
                    )
        if self.pairs and not form.pairs:
            raise ValueError(f"pairs must be false for {self.kind}")
        return self


class DataSource(Section):
    """A file, an image folder, or a named data set."""

    path: Path | None = None
    """CSV, TSV, JSONL, Parquet or CoNLL file, a folder with the parts of one, or a folder of images."""
    preset: str | None = None
    """Instead of a path, a data set by name, such as "sst2:validation"; `fedpft datasets` lists them."""
    text_column: str = "text"
    """Column that holds the text, or the list of words; where that is the default and not there: tokens. For
    causal-lm, where it is not there: messages, or prompt and completion."""
    image_column: str = "image"
    """Column that holds the image."""

    @model_validator(mode="after")
    def _one_source(self) -> "DataSource":
        if (self.path is None) == (self.preset is None):
            raise ValueError("exactly one of path and preset must be set")
        return self


class PublicData(DataSource):
    """Public, unlabelled texts or images on which the sub-FM is aligned to the FM."""


class TestData(DataSource):
    """The owner's labelled test data; without it nothing is scored."""

    pair_column: str | None = None
    """Column that holds the second text of pairs."""
    label_column: str = "label"
    """Column that holds the label: a class, several of them, a number, or the list of the words' tags (where
    the default is not there: tags or ner_tags). Not read for causal-lm, nor of image folders."""


class DataSection(Section):
    """The owner's own data. Workers' data never appears here."""

    root: Path | None = None
    """Folder with local copies of presets, laid out as on the hub; unset asks the hub."""
    public: PublicData | None = None
    """Public, unlabelled texts or images on which the sub-FM is aligned to the FM."""
    test: TestData | None = None
    """The owner's labelled test data; without it nothing is scored."""
