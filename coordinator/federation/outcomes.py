"""Turns that ended without an update, told: as an event, a count, and to the worker that is given up."""

from common.private_task import DpUnit
from common.records import UpdateHeader, WaitTask
from coordinator.context import RunContext
from coordinator.federation.rounds import Outcome, Over
from coordinator.federation.sessions import Assignment, Sessions
from coordinator.federation.turns import OnOver


def telling(run: RunContext, sessions: Sessions) -> OnOver:
    """What `Turns` calls. A refused update and a goodbye are events where they come in, with more to tell."""
    for outcome in Outcome:
        run.metrics.turns.labels(outcome)

    def told(number: int, worker: str, over: Over) -> None:
        run.metrics.turns.labels(over.outcome).inc()
        match over.outcome:
            case Outcome.CANNOT:
                text = f"round {number}: worker {worker} cannot go on: {over.reason}"
                run.events.record("worker_cannot", text, number, worker)
            case Outcome.DIED | Outcome.STALLED | Outcome.LOST:
                text = f"worker {worker} {over.reason}; going on without it"
                run.events.record("worker_given_up", text, number, worker)
        if over.outcome is Outcome.DIED:
            # Or it would train, and die, until the round is over.
            wait = WaitTask(f"round {number} goes on without this worker: it {over.reason}")
            sessions.assign(worker, Assignment(wait))

    return told


def tell_received(run: RunContext, worker: str, header: UpdateHeader) -> None:
    """A worker's update is on disk. Of a masked one nothing is known but that it is there."""
    about = header.round, worker
    if run.spec.secure is not None:
        run.metrics.received_masked(header.size)
        text = f"round {header.round}: masked update of worker {worker}"
        run.events.record("update_received", text, *about, bytes=header.size)
        return
    if run.spec.dp is not None:
        # Its loss would tell of its examples, so it is none.
        run.metrics.received_masked(header.size)
        noise = "with noise" if run.spec.dp.unit is DpUnit.EXAMPLE else "to be added up with noise"
        text = f"round {header.round}: update of worker {worker}, {noise} for differential privacy"
        run.events.record(
            "update_received",
            text,
            *about,
            seconds=header.seconds,
            examples=header.examples,
            bytes=header.size,
        )
        return
    run.metrics.received(header.loss, worker, header.seconds, header.size)
    run.events.record(
        "update_received",
        f"round {header.round}: update of worker {worker}, training loss {header.loss:.3f}",
        *about,
        loss=header.loss,
        seconds=header.seconds,
        examples=header.examples,
        bytes=header.size,
    )
