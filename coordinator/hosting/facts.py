"""How far a held run has come, in a few figures: for the list of runs."""

from common.hosted_runs import RunFacts
from common.run_status import reported
from coordinator.campaign.status import reading
from coordinator.campaign.time_left import rounds_left
from coordinator.hosting.hosted import HostedRun


def facts_of(hosted: HostedRun) -> RunFacts:
    """Raises StoreError."""
    run = hosted.context
    rounds = run.config.rounds.count
    return RunFacts(
        phase=hosted.phase,
        round=run.traffic.round,
        rounds=rounds,
        workers=len(hosted.sessions.present()),
        score=_score(hosted),
        seconds_left=0.0 if hosted.over else rounds_left(run.store, rounds),
    )


def _score(hosted: HostedRun) -> str:
    newest = reported(hosted.context.store.evaluations())
    if newest is None:
        return ""
    name, values = reading([newest], hosted.context.config.task.kind)
    return f"{name} {values[newest.model]}"
