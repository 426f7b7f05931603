"""What the parts of one run share, whether its clients are workers or simulated."""

import json
import struct
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING

from common.config.choices import ClassWeights, LoraAveraging, ModelDtype, SumWeights, UpdateWeights
from common.config.dp import dp_spec
from common.config.run import RunConfig
from common.records import (
    AdapterSpec,
    ArtifactKind,
    ArtifactRef,
    RunSpec,
    TaskKind,
    TaskSpec,
    TrainingSpec,
)
from common.run_offers import RunTerms
from common.secagg.records import LEAST_WORKERS
from common.secure_task import SecureSpec
from common.task_forms import FORMS, Answer
from coordinator.metrics import Metrics
from coordinator.storage.class_counts import StoredClasses
from coordinator.storage.event_log import EventLog
from coordinator.storage.store import Store
from coordinator.storage.traffic import TrafficCounter

if TYPE_CHECKING:
    # torch takes seconds to import; who only looks at a run computes nothing.
    from common.runtime.compute import Compute

# A message has room for four times as much.
_MOST_LABEL_BYTES = 256 * 1024


@dataclass
class RunContext:
    """A run's configuration and memory, and what this process counts and computes with."""

    config: RunConfig
    store: Store
    events: EventLog
    traffic: TrafficCounter
    metrics: Metrics
    compute: "Compute"
    submitter: str = field(default="", init=False)
    """Identity of the admin who submitted the run; "" where its configuration file began it."""
    label: str = field(default="", init=False)
    """The run's name for people."""

    @classmethod
    def of(cls, config: RunConfig, store: Store, compute: "Compute") -> "RunContext":
        """The context of the run that `store` holds, with metrics of its own."""
        metrics = Metrics()
        config = settled(config, store)
        return cls(config, store, EventLog(store), TrafficCounter(store, metrics), metrics, compute)

    def settle(self, classes: StoredClasses) -> None:
        """The classes that workers were asked for are known: commit them. Raises StoreError."""
        self.store.classes.commit(classes)
        self.config = settled(self.config, self.store)
        self.__dict__.pop("spec", None)

    @cached_property
    def spec(self) -> RunSpec:
        """What workers are told of the run."""
        spec = run_spec(self.config, self.store.run_id(), self._labels_file(), self.store.classes.get())
        assert spec.terms is not None
        return replace(spec, terms=replace(spec.terms, submitter=self.submitter, label=self.label))

    def _labels_file(self) -> ArtifactRef | None:
        """Labels that are too many for a message, as an artifact."""
        if not labels_apart(self.config):
            return None
        return self.store.artifacts.add(ArtifactKind.LABELS, json.dumps(self.config.task.labels).encode())


def labels_apart(config: RunConfig) -> bool:
    """Whether the labels are too many for a message."""
    return len(json.dumps(config.task.labels)) > _MOST_LABEL_BYTES


def settled(config: RunConfig, store: Store) -> RunConfig:
    """The configuration with what was left open and has been settled since.

    That are labels that workers were asked for, and what "auto" held the models in when the sub-FM was
    published: versions before `model.dtype` took float32 whatever the checkpoint. And a run whose first
    updates did not name their target tokens goes on by examples, as an earlier version began it.
    """
    if config.task.asks and (classes := store.classes.get()) is not None:
        config = config.with_labels(classes.labels)
    if config.model.dtype is ModelDtype.AUTO and (published := store.sub_model()) is not None:
        told = json.loads(published[0].config_json).get("dtype")
        held = ModelDtype(told) if told in list(ModelDtype) else ModelDtype.FLOAT32
        config = config.model_copy(update={"model": config.model.model_copy(update={"dtype": held})})
    if config.weighs_tokens and store.targets.lacking():
        by_examples = config.aggregation.model_copy(update={"weights": UpdateWeights.EXAMPLES})
        config = config.model_copy(update={"aggregation": by_examples})
    return config


def of_conversations(config: RunConfig) -> bool:
    """Whether the run is for conversations: the owner's test data are, or, without any, its public data.

    By their columns alone, for workers may join before the data are read.
    """
    source = config.data.test or config.data.public
    if config.task.kind is not TaskKind.CAUSAL_LM or source is None or source.path is None:
        return False
    # It brings pyarrow, which the owner's commands can do without.
    from common.data.conversations import holds_conversations

    return holds_conversations(source.path, source.text_column)


def run_spec(
    config: RunConfig,
    run_id: str,
    labels_file: ArtifactRef | None = None,
    classes: StoredClasses | None = None,
) -> RunSpec:
    """What workers are told of a run with this configuration, and with these counts of its classes."""
    task, t = config.task, config.training
    balanced = t.class_weights is ClassWeights.BALANCED and classes is not None
    return RunSpec(
        run_id,
        TaskSpec(
            task.kind,
            () if task.asks else task.labels,
            task.max_length,
            task.pairs,
            labels_file,
            of_conversations(config),
        ),
        adapter_spec(config),
        TrainingSpec(
            t.epochs,
            t.batch_size,
            t.learning_rate,
            t.head_learning_rate,
            t.weight_decay,
            t.max_gradient_norm,
            t.proximal,
            t.optimizer,
            t.momentum,
            class_weights(classes, task.kind) if balanced and classes is not None else (),
            t.tokens_per_step,
            t.checkpointing,
            t.neuron_learning_rate if config.adapter.targets.neurons else 0.0,
        ),
        config.run.seed,
        config.asks_classes and classes is None,
        secure_spec(config),
        config.weighs_tokens,
        config.sub_fm.quantization,
        dp_spec(config),
        RunTerms(config.rounds.count, config.sub_fm.construction),
    )


def secure_spec(config: RunConfig) -> SecureSpec | None:
    """How updates are summed, as workers are told; None where they are seen."""
    privacy = config.privacy
    if not privacy.secure:
        return None
    return SecureSpec(
        max(config.rounds.minimum, LEAST_WORKERS),
        privacy.bits,
        privacy.weights is SumWeights.EXAMPLES,
        privacy.most_examples,
        signed=not privacy.insecure_keys,
    )


def class_weights(classes: StoredClasses, kind: TaskKind) -> tuple[float, ...]:
    """Factors on the loss by class index, as float32 holds them; 1 for a class that nobody has.

    Where an example has one class, N / (K n) for n of N answers, with K classes that are there
    (scikit-learn's "balanced"). Where it has any number of them, (N - n) / n on its being there.
    """
    if FORMS[kind].answer is Answer.CLASSES:
        exact = [(classes.examples - n) / n if 0 < n < classes.examples else 1.0 for n in classes.counts]
    else:
        total, there = sum(classes.counts), sum(n > 0 for n in classes.counts)
        exact = [total / (there * n) if n else 1.0 for n in classes.counts]
    # As they are on the wire: simulated workers get the same.
    return tuple(struct.unpack("<f", struct.pack("<f", weight))[0] for weight in exact)


def adapter_spec(config: RunConfig) -> AdapterSpec:
    """What is tuned, as workers are told."""
    a = config.adapter
    freeze_a = config.aggregation.lora is LoraAveraging.FREEZE_A
    return AdapterSpec(a.targets, a.rank, a.alpha, a.dropout, freeze_a)


def identity(config: RunConfig) -> str:
    """What makes a run this run: all but where its directory is, where it listens, and for whom.

    The threads count: another number of them gives other bits.
    """
    return config.model_dump_json(
        exclude={
            "server": True,
            "tls": True,
            "admission": True,
            "limits": True,
            "tracking": True,
            "run": {"directory", "strict"},
        }
    )
