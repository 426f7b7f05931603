"""Where a run stands: the same picture out of its store and, with more of it, while it runs."""

import asyncio
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from common.config.run import RunConfig
from common.listing import first_workers
from common.records import Activity, Phase, Progress, TaskKind
from common.run_status import Evaluation, RunStatus, Traffic, WorkerStatus
from common.task_forms import FORMS, Answer
from coordinator.campaign import privacy_told
from coordinator.campaign.best import judged, result_among
from coordinator.campaign.progress import RunProgress
from coordinator.campaign.time_left import rounds_left
from coordinator.context import RunContext, settled
from coordinator.federation.rounds import Over, RoundState, Work
from coordinator.federation.sessions import Session, Sessions
from coordinator.storage.declined import DeclinedTable
from coordinator.storage.store import Store

if TYPE_CHECKING:
    # It brings torch, which takes seconds to import.
    from coordinator.federation.inbox import Inbox

# Where a run stands while workers are asked for something.
_PHASES = {Work.UPDATES: Phase.TRAINING, Work.SCORES: Phase.EVALUATING}
_CONTESTED = "two workers work under this name; give each its own --name and its own --folder"


def stored_status(store: Store, config: RunConfig, workers: bool = True) -> RunStatus:
    """What the store knows of the run; its `workers` may be left out, as a live coordinator knows better."""
    outcome, adapters, sub_model = store.outcome(), store.adapters(), store.sub_model()
    traffic = store.traffic.in_all() if workers else {}
    seen = worker_statuses(store, [], lambda worker: traffic.get(worker, ())) if workers else ()
    evaluations, validations = store.evaluations(), store.validations.all()
    scores, newest = judged(config, evaluations, validations), max(adapters, default=0)
    result = result_among(config, scores, newest)
    return RunStatus(
        run_id=store.run_id(),
        phase=Phase(outcome) if outcome else Phase.STOPPED,
        round=newest,
        rounds=config.rounds.count,
        waiting_for="",
        step=0,
        steps=0,
        workers=seen,
        evaluations=evaluations,
        gaps=store.gaps(),
        models=sub_model[2] if sub_model else None,
        adapter_sha256=adapters.get(result if outcome == Phase.FINISHED else newest, ""),
        directory=str(store.directory),
        task=config.task.kind,
        validations=validations,
        best=scores.best or 0,
        result=result,
        privacy=privacy_told.lines(config, store),
        declined=DeclinedTable(store.database).all(),
    )


def live_status(run: RunContext, progress: RunProgress, sessions: Sessions, inbox: "Inbox") -> RunStatus:
    """Where a run that workers are connected to stands, now; on the event loop."""
    step, steps = progress.steps
    state, waiting_for = inbox.state, progress.waiting_for
    over: dict[str, Over] = {}
    if state is not None and progress.phase is _PHASES[state.work]:
        now = asyncio.get_running_loop().time()
        over = state.outcomes(now)
        if state.missing:
            waiting_for = awaited(state, now)
    contested = sessions.contested()
    known = worker_statuses(run.store, sessions.all(), run.traffic.of)
    troubled = [_troubled(w, over.get(w.worker), w.worker in contested) for w in known]
    return replace(
        stored_status(run.store, run.config, workers=False),
        phase=progress.phase,
        round=progress.round,
        waiting_for=waiting_for,
        step=step,
        steps=steps,
        workers=tuple(troubled),
        phase_seconds_left=progress.seconds_left,
        run_seconds_left=0.0 if progress.phase.over else rounds_left(run.store, run.config.rounds.count),
    )


def _troubled(status: WorkerStatus, over: Over | None, contested: bool) -> WorkerStatus:
    """With how the worker's turn in the open round ended, if it did, and whether there are two of it."""
    trouble = over.reason if over else status.progress.trouble
    if contested:
        trouble = "; ".join(filter(None, [_CONTESTED, trouble]))
    return replace(status, progress=replace(status.progress, trouble=trouble))


def reading(evaluations: Sequence[Evaluation], kind: TaskKind) -> tuple[str, dict[str, str]]:
    """What people look at, "accuracy", "perplexity" or "mean squared error", and its value by model."""
    if FORMS[kind].answer is Answer.NUMBER:
        return "mean squared error", {e.model: f"{e.loss:.4f}" for e in evaluations}
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


def open_run(directory: Path, model: str | None = None) -> tuple[Store, RunConfig]:
    """The store and configuration of a run's directory; `model` says where its FM is now, if elsewhere.

    Raises StoreError when the directory holds no run.
    """
    store = Store.existing(directory)
    config = RunConfig.of_stored(store.config())
    if model is not None:
        config = config.model_copy(update={"model": config.model.model_copy(update={"path": model})})
    return store, settled(config, store)


def awaited(state: RoundState, now: float) -> str:
    """What an open round waits for, how long at most for those that are lost, and for whom not any more."""
    names = []
    for worker in sorted(state.missing):
        if worker not in state.lost:
            names.append(worker)
        elif (left := min(state.lost[worker], state.closes_at) - now) > 0:
            names.append(f"{worker} ({Activity.LOST}, waited for another {left:.0f} s)")
    more = (state.needed or len(state.selected)) - len(state.received)
    some = f"{more} more update(s), of " if more < len(names) else f"{state.work} of "
    without = [f"{worker} ({over.reason})" for worker, over in sorted(state.outcomes(now).items())]
    return f"{some}{first_workers(names)}{'; not of ' if without else ''}{first_workers(without)}"
