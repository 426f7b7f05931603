"""What the parts of one run share, whether its clients are workers or simulated."""

import json
from dataclasses import dataclass
from functools import cached_property

from common.config.choices import LoraAveraging
from common.config.run import RunConfig
from common.records import AdapterSpec, ArtifactKind, ArtifactRef, RunSpec, TaskSpec, TrainingSpec
from common.runtime.compute import Compute
from coordinator.metrics import Metrics
from coordinator.storage.event_log import EventLog
from coordinator.storage.store import Store
from coordinator.storage.traffic import TrafficCounter

# A message has room for four times as much.
_MOST_LABEL_BYTES = 256 * 1024


@dataclass(frozen=True)
class RunContext:
    """A run's configuration and memory, and what this process counts and computes with."""

    config: RunConfig
    store: Store
    events: EventLog
    traffic: TrafficCounter
    metrics: Metrics
    compute: Compute

    @classmethod
    def of(cls, config: RunConfig, store: Store, compute: Compute) -> "RunContext":
        """The context of the run that `store` holds, with metrics of its own."""
        metrics = Metrics()
        return cls(config, store, EventLog(store), TrafficCounter(store, metrics), metrics, compute)

    @cached_property
    def spec(self) -> RunSpec:
        """What workers are told of the run."""
        return run_spec(self.config, self.store.run_id(), self._labels_file())

    def _labels_file(self) -> ArtifactRef | None:
        """Labels that are too many for a message, as an artifact."""
        if not labels_apart(self.config):
            return None
        return self.store.artifacts.add(ArtifactKind.LABELS, json.dumps(self.config.task.labels).encode())


def labels_apart(config: RunConfig) -> bool:
    """Whether the labels are too many for a message."""
    return len(json.dumps(config.task.labels)) > _MOST_LABEL_BYTES


def run_spec(config: RunConfig, run_id: str, labels_file: ArtifactRef | None = None) -> RunSpec:
    """What workers are told of a run with this configuration."""
    task, t = config.task, config.training
    return RunSpec(
        run_id,
        TaskSpec(task.kind, task.labels, task.max_length, task.pairs, labels_file),
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
        ),
        config.run.seed,
    )


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
        exclude={"server": True, "tls": True, "admission": True, "limits": True, "run": {"directory"}}
    )
