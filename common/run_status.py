"""What people are told of a run: where it stands, scores, gaps, bytes, events. Plain, as `records`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from common.records import Phase, Progress, TaskKind
from common.run_offers import Declined


@dataclass(frozen=True)
class Traffic:
    """Bytes of gRPC messages in a round, by content; in a status of all rounds, under round 0."""

    round: int
    kind: str
    bytes_down: int
    bytes_up: int


@dataclass(frozen=True)
class WorkerStatus:
    """A worker as the coordinator sees it."""

    worker: str
    progress: Progress
    examples: int
    traffic: tuple[Traffic, ...] = ()


# What is scored: the FM with the adapter plugged in, the sub-FM with it, the FM after a correction.
SCORED = {"fm": "FM", "sub_fm": "sub-FM", "corrected": "corrected FM"}


# As a model beside these: the sub-FM, scored at the workers.
AT_WORKERS = "workers"


@dataclass(frozen=True)
class Evaluation:
    """A score on the owner's test data. `model` is one of `SCORED`."""

    round: int
    model: str
    accuracy: float
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Further metrics of the task by name; of a class alone as "f1:NAME". NaN where undefined."""

    @property
    def told(self) -> dict[str, float]:
        """The metrics that are of all classes together."""
        return {name: value for name, value in self.metrics.items() if ":" not in name}


@dataclass(frozen=True)
class Validation:
    """A score of the sub-FM at `workers` workers, on `examples` that they keep aside; of one alone, where
    `worker` names it. Figures as of an `Evaluation`; NaN where too few workers answered: none then."""

    round: int
    workers: int
    examples: int
    accuracy: float
    loss: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    worker: str = ""

    @property
    def as_evaluation(self) -> Evaluation:
        """The same figures beside those of the owner."""
        return Evaluation(self.round, AT_WORKERS, self.accuracy, self.loss, self.metrics)


# Metrics as people know them.
METRIC_TITLES = {
    "macro_f1": "macro F1",
    "matthews": "Matthews correlation",
    "auc": "AUC",
    "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
    "entity_f1": "entity F1",
    "precision": "entity precision",
    "recall": "entity recall",
}


def told_metrics(evaluations: Sequence[Evaluation]) -> dict[str, str]:
    """Names and titles of the metrics over all classes that any of these has."""
    there = {name for evaluation in evaluations for name in evaluation.told}
    return {name: title for name, title in METRIC_TITLES.items() if name in there}


def reported(evaluations: Sequence[Evaluation], number: int | None = None) -> Evaluation | None:
    """The last score of the tuned FM, or the one after round `number`: corrected, where that was done.

    None where nothing was scored.
    """
    own = [e for e in evaluations if e.model in ("fm", "corrected") and number in (None, e.round)]
    return max(own, key=lambda e: (e.round, e.model == "corrected"), default=None)


@dataclass(frozen=True)
class LayerGap:
    """How far the sub-FM's layer is from the FM's, on public data with the round's adapter in both.

    Cosine and norm ratio (sub-FM / FM) of the adapter's gradients; relative norms of the differences of
    those gradients, of the layer's outputs, and of the FFN's linearised weights.
    """

    layer: int
    cosine: float
    norm_ratio: float
    gradient_difference: float
    output_difference: float
    weight_difference: float


@dataclass(frozen=True)
class GradientGap:
    """The quantities of FedPFT's theorems 1 and 2 after a round: over all layers, and by layer."""

    round: int
    cosine: float
    norm_ratio: float
    drift: float
    layers: tuple[LayerGap, ...]


@dataclass(frozen=True)
class ModelFacts:
    """Sizes of the two models, in parameters; `fm_bytes` as held by the coordinator."""

    fm_parameters: int
    sub_fm_parameters: int
    fm_layer_parameters: int
    sub_fm_layer_parameters: int
    adapter_parameters: int
    fm_bytes: int


@dataclass(frozen=True)
class RunStatus:
    """Where a run stands."""

    run_id: str
    phase: Phase
    round: int
    rounds: int
    waiting_for: str
    step: int
    steps: int
    workers: tuple[WorkerStatus, ...]
    evaluations: tuple[Evaluation, ...]
    gaps: tuple[GradientGap, ...]
    models: ModelFacts | None
    adapter_sha256: str
    directory: str
    task: TaskKind = TaskKind.TEXT_CLASSIFICATION
    validations: tuple[Validation, ...] = ()
    best: int = 0
    """The round with the best score; 0 where none is known."""
    result: int = 0
    """The round whose adapter is the run's result: the best one under rounds.patience, else the newest."""

    privacy: tuple[str, ...] = ()
    """What the coordinator does not see of its workers, in lines for people."""
    declined: tuple[Declined, ...] = ()
    """Workers that take no part, by name."""
    phase_seconds_left: float = 0.0
    """Estimated, until the present computation's last step; 0 where there is nothing to go by."""
    run_seconds_left: float = 0.0
    """Estimated, of the rounds to come, by the last ones; 0 where there is nothing to go by."""

    @property
    def at_workers(self) -> tuple[Validation, ...]:
        """The scores of all workers together, where there are any."""
        return tuple(v for v in self.validations if v.workers and not v.worker)


@dataclass(frozen=True)
class Event:
    """Something that happened in a run; `text` is one line for people."""

    sequence: int
    time: float
    kind: str
    text: str
    round: int = 0
    worker: str = ""
    values: dict[str, float] = field(default_factory=dict)
