"""What the parts of one run share, whether its clients are workers or simulated."""

from dataclasses import dataclass
from functools import cached_property

from common.config.choices import LoraAveraging
from common.config.run import RunConfig
from common.records import AdapterSpec, RunSpec, TaskSpec, TrainingSpec
from common.runtime.compute import Compute
from coordinator.metrics import Metrics
from coordinator.storage.event_log import EventLog
from coordinator.storage.store import Store
from coordinator.storage.traffic import TrafficCounter


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
        return run_spec(self.config, self.store.run_id())


def run_spec(config: RunConfig, run_id: str) -> RunSpec:
    """What workers are told of a run with this configuration."""
    task, t = config.task, config.training
    return RunSpec(
        run_id,
        TaskSpec(task.kind, task.labels, task.max_length, task.pairs),
        adapter_spec(config),
        TrainingSpec(
            t.epochs,
            t.batch_size,
            t.learning_rate,
            t.head_learning_rate,
            t.weight_decay,
            t.max_gradient_norm,
            t.proximal,
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
