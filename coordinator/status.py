"""Where a run stands, out of its store: the same picture live and after the end."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

from common.config import RunConfig
from common.records import (
    Activity,
    Evaluation,
    Phase,
    Progress,
    RunStatus,
    TaskKind,
    Traffic,
    WorkerStatus,
)
from coordinator.sessions import Session
from coordinator.store import Store


def stored_status(store: Store, config: RunConfig, workers: bool = True) -> RunStatus:
    """What the store knows of the run; its `workers` may be left out, as a live coordinator knows better."""
    outcome, latest, sub_model = store.outcome(), store.latest_adapter(), store.sub_model()
    traffic = store.traffic() if workers else {}
    seen = worker_statuses(store, [], lambda worker: tuple(traffic.get(worker, ()))) if workers else ()
    return RunStatus(
        run_id=store.run_id(),
        phase=Phase(outcome) if outcome else Phase.STOPPED,
        round=latest[0] if latest else 0,
        rounds=config.rounds.count,
        waiting_for="",
        step=0,
        steps=0,
        workers=seen,
        evaluations=store.evaluations(),
        gaps=store.gaps(),
        models=sub_model[2] if sub_model else None,
        adapter_sha256=latest[1].sha256 if latest else "",
        directory=str(store.directory),
        task=config.task.kind,
    )


def reading(evaluations: Sequence[Evaluation], kind: TaskKind) -> tuple[str, dict[str, str]]:
    """What people look at, "accuracy" or "perplexity", and its value by model."""
    if kind is TaskKind.CAUSAL_LM:
        return "perplexity", {e.model: f"{math.exp(min(e.loss, 700.0)):.2f}" for e in evaluations}
    return "accuracy", {e.model: f"{e.accuracy:.4f}" for e in evaluations}


def worker_statuses(
    store: Store, sessions: Sequence[Session], traffic: Callable[[str], tuple[Traffic, ...]]
) -> tuple[WorkerStatus, ...]:
    """Every worker that ever joined, by name; without a session it has left."""
    live = {session.worker: session for session in sessions}
    gone = Progress(Activity.LEFT)
    return tuple(
        WorkerStatus(name, live[name].progress if name in live else gone, examples, traffic(name))
        for name, examples in store.workers().items()
    )


def open_run(directory: Path) -> tuple[Store, RunConfig]:
    """The store and configuration of a run's directory. Raises StoreError when it holds none."""
    store = Store.existing(directory)
    return store, RunConfig.model_validate_json(store.config())
