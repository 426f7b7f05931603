"""How far a held run has come, in a few figures: for the list of runs."""

from itertools import pairwise

from common.hosted_runs import RunFacts
from common.run_status import reported
from coordinator.campaign.status import reading
from coordinator.hosting.hosted import HostedRun
from coordinator.storage.store import Store

# Rounds whose length the estimate goes by.
_LATELY = 3


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
        seconds_left=0.0 if hosted.over else seconds_left(run.store, rounds),
    )


def _score(hosted: HostedRun) -> str:
    newest = reported(hosted.context.store.evaluations())
    if newest is None:
        return ""
    name, values = reading([newest], hosted.context.config.task.kind)
    return f"{name} {values[newest.model]}"


def seconds_left(store: Store, rounds: int) -> float:
    """What the rounds to come take if they last as the last ones did; 0 where there is nothing to go by."""
    closed = sorted(store.events.last_of(("round_closed",), _LATELY + 1), key=lambda event: event.sequence)
    lengths = [b.time - a.time for a, b in pairwise(closed) if b.round == a.round + 1]
    if not lengths:
        return 0.0
    return sum(lengths) / len(lengths) * max(0, rounds - closed[-1].round)
