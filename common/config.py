"""A coordinator's run configuration: typed, frozen, valid from birth. `common.config_file` reads it.

The descriptions below are the only place where a key is explained: `fedpft init` and
docs/configuration.md are made from them.
"""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from common.records import AdapterTargets

Positive = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class RunSection(Section):
    """The run as a whole."""

    directory: Path = Path("runs/run")
    """Folder that holds everything of the run; the same folder continues the same run."""
    seed: int = Field(default=7, ge=0, lt=2**32)
    """Fixes every random choice."""


class ModelSection(Section):
    """The foundation model (FM). It never leaves the coordinator."""

    path: str
    """Local directory in the Hugging Face layout, or a hub id."""


class TaskSection(Section):
    """What the model learns."""

    labels: tuple[str, ...] = Field(min_length=2)
    """Names of the classes, as they stand in the label column; order is class index."""
    max_length: int = Field(default=128, ge=8)
    """Longer texts are cut to this many tokens."""

    @model_validator(mode="after")
    def _distinct(self) -> "TaskSection":
        if len(set(self.labels)) < len(self.labels):
            raise ValueError("labels must be distinct")
        return self


class PublicData(Section):
    """Public, unlabelled text on which the sub-FM is aligned to the FM."""

    path: Path
    """CSV, TSV, JSONL or Parquet file."""
    text_column: str = "text"
    """Column that holds the text."""


class TestData(Section):
    """The owner's labelled test data; without it nothing is scored."""

    path: Path
    """CSV, TSV, JSONL or Parquet file."""
    text_column: str = "text"
    """Column that holds the text."""
    label_column: str = "label"
    """Column that holds the label's name."""


class DataSection(Section):
    """The owner's own data. Workers' data never appears here."""

    public: PublicData | None = None
    """Public, unlabelled text on which the sub-FM is aligned to the FM."""
    test: TestData | None = None
    """The owner's labelled test data; without it nothing is scored."""


class SubModelSection(Section):
    """How the sub-FM is cut from the FM."""

    construction: Literal["ffn-pruning", "full"] = "ffn-pruning"
    """"ffn-pruning" is FedPFT; "full" sends the whole FM (FedPETuning, the upper reference)."""
    drop_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.75
    """Share of FFN neurons cut from every compressed layer."""
    keep_first: int = Field(default=1, ge=0)
    """This many first layers stay whole."""
    keep_last: int = Field(default=1, ge=0)
    """This many last layers stay whole."""


class Distillation(Section):
    """Settings of a distillation of the FM into the sub-FM."""

    batch_size: Positive = 16
    """Texts per step."""
    learning_rate: Rate = 1e-3
    """AdamW's peak learning rate; cosine decay after warm-up."""
    warmup: Share = 0.06
    """Share of the steps in which the learning rate rises."""
    weight_term: Annotated[float, Field(ge=0)] = 0.01
    """Factor of the loss term on the FFN's linearised map (alpha in the paper)."""


class AlignmentSection(Distillation):
    """Layer-level alignment, before the first round."""

    steps: int = Field(default=200, ge=0)
    """Optimiser steps; 0 leaves the sub-FM as it was cut."""


class RealignmentSection(Distillation):
    """Neuron-level alignment during the rounds, guided by the workers' APoZ counts."""

    every: int = Field(default=0, ge=0)
    """Align after every so many rounds (t in the paper, 10 there); 0 never."""
    steps: Positive = 20
    """Optimiser steps of each alignment."""
    proportion: Annotated[float, Field(gt=0, le=1)] = 0.5
    """Share of each compressed layer's neurons that are updated (p in the paper)."""


class AdapterSection(Section):
    """The tuned parameters: LoRA and the task head."""

    targets: AdapterTargets = AdapterTargets.ATTENTION
    """"attention": LoRA on query, key, value and output of every layer; "none": the head alone."""
    rank: Positive = 8
    """Rank of LoRA."""
    alpha: Annotated[float, Field(gt=0)] = 32.0
    """LoRA's scale is alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout on LoRA's input."""


class TrainingSection(Section):
    """How workers train in a round."""

    epochs: Positive = 1
    """Passes over the private data."""
    batch_size: Positive = 16
    """Examples per step."""
    learning_rate: Rate = 2e-3
    """AdamW's learning rate for LoRA."""
    head_learning_rate: Rate = 5e-3
    """AdamW's learning rate for the head."""
    weight_decay: Share = 0.01
    """AdamW's decoupled weight decay."""
    max_gradient_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this L2 norm."""
    decay: Literal["linear", "constant"] = "linear"
    """How the learning rates change over the rounds."""


class RoundsSection(Section):
    """The federated rounds."""

    count: Positive = 5
    """Rounds in all."""
    workers: Positive = 3
    """A round starts when this many workers are there."""
    sample: Positive | None = None
    """Workers drawn for each round; unset draws all that are there."""
    minimum: Positive = 1
    """A round whose deadline has passed counts with at least this many updates."""
    deadline_seconds: Annotated[float, Field(gt=0)] = 3600.0
    """A round closes after this time at the latest."""
    tries: Positive = 3
    """A round that misses its minimum is repeated this often before the run fails."""


class ServerSection(Section):
    """Where the coordinator listens."""

    listen: str = "127.0.0.1:7070"
    """HOST:PORT for workers and `fedpft status`; port 0 takes a free one."""
    metrics: str | None = "127.0.0.1:7071"
    """HOST:PORT of the Prometheus metrics; port 0 takes a free one, unset serves none."""
    insecure: bool = False
    """Allow plain text on addresses other machines can reach."""
    heartbeat_seconds: Annotated[float, Field(gt=0)] = 5.0
    """Workers report this often; one silent for three intervals counts as lost."""
    max_transfers: Positive = 8
    """Artifact downloads served at the same time; more wait their turn."""


class ComputeSection(Section):
    """Where the coordinator computes."""

    device: str = "cpu"
    """A torch device, such as "cpu" or "cuda:0"."""
    threads: Positive | None = None
    """CPU threads of torch; unset takes all cores. Part of what makes a result repeat."""


class RunConfig(Section):
    """The whole file."""

    run: RunSection = RunSection()
    """The run as a whole."""
    model: ModelSection
    """The foundation model (FM). It never leaves the coordinator."""
    task: TaskSection
    """What the model learns."""
    data: DataSection = DataSection()
    """The owner's own data."""
    sub_fm: SubModelSection = SubModelSection()
    """How the sub-FM is cut from the FM."""
    alignment: AlignmentSection = AlignmentSection()
    """Layer-level alignment, before the first round."""
    realignment: RealignmentSection = RealignmentSection()
    """Neuron-level alignment during the rounds, guided by the workers' APoZ counts."""
    adapter: AdapterSection = AdapterSection()
    """The tuned parameters: LoRA and the task head."""
    training: TrainingSection = TrainingSection()
    """How workers train in a round."""
    rounds: RoundsSection = RoundsSection()
    """The federated rounds."""
    server: ServerSection = ServerSection()
    """Where the coordinator listens."""
    compute: ComputeSection = ComputeSection()
    """Where the coordinator computes."""

    @model_validator(mode="after")
    def _consistent(self) -> "RunConfig":
        if self.aligns and self.data.public is None:
            raise ValueError(
                "data.public.path must be set for an alignment; "
                "or set alignment.steps = 0 and realignment.every = 0"
            )
        if self.rounds.minimum > (self.rounds.sample or self.rounds.workers):
            raise ValueError("rounds.minimum must not exceed the workers of a round")
        return self

    @property
    def compresses(self) -> bool:
        """Whether the sub-FM is smaller than the FM."""
        return self.sub_fm.construction == "ffn-pruning"

    @property
    def aligns(self) -> bool:
        """Whether any alignment will run."""
        return self.compresses and (self.alignment.steps > 0 or self.realignment.every > 0)
