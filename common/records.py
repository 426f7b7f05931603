"""Plain records that travel through the system: ids, references, tasks, status.

They are what protobuf messages become at the edge (`common.transport.wire`); nothing inside imports protobuf.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from common.private_task import DpSpec
from common.quantization import Quantization
from common.run_offers import RunTerms
from common.secure_task import SecureSpec, SecureTask


class ArtifactKind(StrEnum):
    """What an artifact holds; those that the wire knows may be served."""

    SUB_MODEL = "sub_model"
    NEURON_PATCH = "neuron_patch"
    ADAPTER = "adapter"
    TOKENIZER = "tokenizer"
    TOKENIZER_CONFIG = "tokenizer_config"
    IMAGE_PROCESSOR = "image_processor"
    LABELS = "labels"
    # These never leave the coordinator.
    PLAN = "plan"
    UPDATE = "update"
    SERVER_STATE = "server_state"
    CORRECTED = "corrected"


class TaskKind(StrEnum):
    """What the model learns to do."""

    TEXT_CLASSIFICATION = "text-classification"
    TEXT_MULTI_LABEL = "text-multi-label"
    TEXT_REGRESSION = "text-regression"
    TOKEN_CLASSIFICATION = "token-classification"
    IMAGE_CLASSIFICATION = "image-classification"
    CAUSAL_LM = "causal-lm"


class AdapterTargets(StrEnum):
    """What is tuned in every layer: modules that carry LoRA; FFN neurons whose weights are tuned in full."""

    NONE = "none"
    ATTENTION = "attention"
    ATTENTION_FFN = "attention+ffn"
    NEURONS = "neurons"
    ATTENTION_NEURONS = "attention+neurons"

    @property
    def lora(self) -> bool:
        """Whether anything carries LoRA."""
        return self not in (AdapterTargets.NONE, AdapterTargets.NEURONS)

    @property
    def neurons(self) -> bool:
        """Whether FFN matrices are tuned in full."""
        return self in (AdapterTargets.NEURONS, AdapterTargets.ATTENTION_NEURONS)


class LocalOptimizer(StrEnum):
    """What takes a worker's steps."""

    ADAMW = "adamw"
    SGD = "sgd"


class ZeroRule(StrEnum):
    """When a neuron counts as at rest: its pre-activation is <= 0, or its activation is near zero."""

    PRE_ACTIVATION = "pre-activation"
    NEAR_ZERO = "near-zero"


class Phase(StrEnum):
    """Where a run stands."""

    BUILDING = "building"
    ALIGNING = "aligning"
    WAITING = "waiting"
    TRAINING = "training"
    AGGREGATING = "aggregating"
    EVALUATING = "evaluating"
    CORRECTING = "correcting"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"
    DIED = "died"  # As others find it: its process ended, but not in order.

    @property
    def over(self) -> bool:
        """Whether this process does nothing more for the run."""
        return self in (Phase.FINISHED, Phase.FAILED, Phase.STOPPED, Phase.DIED)


class Activity(StrEnum):
    """What a worker is doing."""

    IDLE = "idle"
    DOWNLOADING = "downloading"
    TRAINING = "training"
    UPLOADING = "uploading"
    SCORING = "scoring"
    LOST = "lost"
    LEFT = "left"

    @property
    def present(self) -> bool:
        """Whether the worker can be given a task."""
        return self not in (Activity.LOST, Activity.LEFT)


@dataclass(frozen=True)
class ArtifactRef:
    """An immutable file, named by its content: lower-case hexadecimal SHA-256, size in bytes."""

    kind: ArtifactKind
    sha256: str
    size: int


@dataclass(frozen=True)
class Chunk:
    """A piece of a file, beginning at byte `offset`."""

    offset: int
    data: bytes | memoryview


@dataclass(frozen=True)
class TaskSpec:
    """The learning task: label names (position is class index), tokens per input at most, text pairs."""

    kind: TaskKind
    labels: tuple[str, ...]
    max_length: int
    pairs: bool
    labels_file: "ArtifactRef | None" = None
    """Where the labels are as JSON when they are too many for a message; on the wire they are there alone."""
    conversations: bool = False
    """Whether examples are conversations, or prompts with completions: only answers are learned."""


@dataclass(frozen=True)
class AdapterSpec:
    """What is tuned; of LoRA rank, alpha (scale is alpha / rank), dropout, whether A is frozen.

    A classifier's head is always tuned in full.
    """

    targets: AdapterTargets
    rank: int
    alpha: float
    dropout: float
    freeze_a: bool = False


@dataclass(frozen=True)
class TrainingSpec:
    """How a worker trains in every round; learning rates before the round's factor.

    `proximal` is FedProx's mu: 0 is none. `momentum` is SGD's. `class_weights` are factors on the loss by
    class index; none: 1. `neuron_learning_rate` is for FFN neurons that are tuned in full.
    """

    epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    weight_decay: float
    max_gradient_norm: float
    proximal: float = 0.0
    optimizer: LocalOptimizer = LocalOptimizer.ADAMW
    momentum: float = 0.0
    class_weights: tuple[float, ...] = ()
    tokens_per_step: int = 0  # Of a batch computed with at a time, at most; 0: all. Changes no result.
    checkpointing: bool = False  # Activations computed again for the gradient; changes no result.
    neuron_learning_rate: float = 0.0


@dataclass(frozen=True)
class RunSpec:
    """What a worker knows of a run before its first task."""

    run_id: str
    task: TaskSpec
    adapter: AdapterSpec
    training: TrainingSpec
    seed: int
    asks_classes: bool = False  # Before workers may join they tell their classes; labels may be none then.
    secure: SecureSpec | None = None  # Set: the coordinator gets sums over workers alone.
    asks_targets: bool = False  # Whether an update is to name its target tokens, which it is weighed by.
    quantization: Quantization = Quantization.NONE  # Of the sub-FM's frozen weights.
    dp: DpSpec | None = None  # Set: differential privacy.
    terms: RunTerms | None = None  # None of a coordinator from before protocol 7.


@dataclass(frozen=True)
class ClassCounts:
    """What a worker tells of its classes: names, and how many of its answers each is; its examples in all."""

    worker: str
    examples: int
    counts: Mapping[str, int]


@dataclass(frozen=True)
class SubModelRef:
    """A version of the sub-FM: configuration, FFN widths by layer, base, patches in order, the files of
    its tokenizer or image processor, and the modules that the FM's checkpoint did not bring."""

    config_json: str
    ffn_widths: tuple[int, ...]
    base: ArtifactRef
    patches: tuple[ArtifactRef, ...]
    processor: tuple[ArtifactRef, ...]
    new_modules: tuple[str, ...] = ()


@dataclass(frozen=True)
class JoinRequest:
    """A worker asks to enter."""

    worker: str
    protocol_min: int
    protocol_max: int
    software: str
    examples: int
    process: str = ""  # Drawn at random when it began; "" of one that does not say.
    validation: int = 0  # Examples kept aside, to score the sub-FM on; 0 of one that does not score.


@dataclass(frozen=True)
class JoinReply:
    """A worker has entered."""

    session: str
    protocol: int
    run: RunSpec
    heartbeat_seconds: float


@dataclass(frozen=True)
class TrainTask:
    """Train `adapter` on `sub_model`, counting APoZ in `apoz_layers` by a rule, and submit the change."""

    round: int
    sub_model: SubModelRef
    adapter: ArtifactRef
    learning_rate_factor: float
    apoz_layers: tuple[int, ...]
    seconds_left: float
    attempt: int
    zero_rule: ZeroRule = ZeroRule.PRE_ACTIVATION
    zero_threshold: float = 0.0
    traceparent: str = field(default="", compare=False)
    """The round's span, by W3C Trace Context; another one does not make it another task."""
    secure: SecureTask | None = None  # Set where the update is to be masked.


@dataclass(frozen=True)
class EvaluateTask:
    """Score `sub_model` with the adapter after `round` on the examples kept aside, and submit the sums."""

    round: int
    sub_model: SubModelRef
    adapter: ArtifactRef
    seconds_left: float
    attempt: int
    traceparent: str = field(default="", compare=False)  # As of a TrainTask.


# Tasks that a worker needs the sub-FM and an adapter for.
ModelTask = TrainTask | EvaluateTask


@dataclass(frozen=True)
class WaitTask:
    """Nothing to do yet; `reason` is for people."""

    reason: str


@dataclass(frozen=True)
class StopTask:
    """No more tasks will come; `reason` is for people."""

    finished: bool
    reason: str


Task = TrainTask | EvaluateTask | WaitTask | StopTask


@dataclass(frozen=True)
class Progress:
    """How far a worker has come with its task; loss in nats. `trouble`: why nothing will come of a try."""

    activity: Activity = Activity.IDLE
    round: int = 0
    step: int = 0
    steps: int = 0
    loss: float = 0.0
    trouble: str = ""
    attempt: int = 0


@dataclass(frozen=True)
class UpdateHeader:
    """What an update is, known before its first byte."""

    session: str
    round: int
    adapter_sha256: str
    size: int
    sha256: str
    examples: int
    loss: float
    seconds: float
    attempt: int = 0  # Of a masked update, for which the three before are 0: the try, and its context.
    context: bytes = b""
    targets: int = 0  # Next tokens that a pass over its data learns; 0 where the run does not ask.


@dataclass(frozen=True)
class ScoreSums:
    """What scores are made of, all of it sums over examples; `common.model.scores` makes and reads them.
    Answers are what is right or wrong: an example, or one of its words or tokens. `loss` in nats, or squared
    errors. `counts` and `sums` are the states of the task's further metrics, in a fixed order.
    """

    examples: int
    answers: int
    right: int
    loss: float
    counts: tuple[int, ...] = ()
    sums: tuple[float, ...] = ()


@dataclass(frozen=True)
class SubmittedScores:
    """A worker's answer to an EvaluateTask."""

    session: str
    round: int
    adapter_sha256: str
    scores: ScoreSums
