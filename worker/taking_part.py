"""One run of a worker's process, from finding out what it is to its line in the history."""

import asyncio
import logging
import time
from dataclasses import dataclass, replace
from pathlib import Path

from common.errors import AgainstPolicy, FedPftError, NotAllowed, StoreError
from common.observability.logs import log_about
from common.records import RunSpec
from common.runtime.compute import Compute
from worker.client import CoordinatorClient
from worker.connection import Endpoint
from worker.data import PrivateData
from worker.history import History, PastRun
from worker.ledger import Ledger
from worker.local_model import Place
from worker.loop import Worker
from worker.metrics import Metrics
from worker.sent_log import SentLog

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Means:
    """What all runs of one process have in common."""

    name: str
    endpoint: Endpoint
    compute: Compute
    metrics: Metrics
    sent: SentLog
    history: History


async def take_part(means: Means, place: Place, data: PrivateData, coordinator: CoordinatorClient) -> int:
    """Join and work until the run is over; returns for how many rounds an update was delivered.

    Raises what `Worker.run` does; whatever comes of it is in the history.
    """
    worker = Worker(means.name, coordinator, data, place, means.compute, means.metrics)
    up, down = (means.metrics.transferred_bytes(direction) for direction in ("up", "down"))
    noted: PastRun | None = None

    def joined(run: RunSpec) -> None:
        nonlocal noted
        noted = PastRun(run.run_id, place.coordinator, label=run.terms.label if run.terms else "")
        means.history.put(noted)

    worker.joined = joined
    outcome = "stopped here"
    try:
        await worker.run()
        outcome = "finished"
    except FedPftError as error:
        outcome = " ".join(str(error).split())
        raise
    finally:
        means.metrics.runs.labels("finished" if outcome == "finished" else "ended").inc()
        if noted is not None:
            ended = replace(
                noted,
                ended=time.time(),
                rounds=worker.rounds,
                bytes_up=means.metrics.transferred_bytes("up") - up,
                bytes_down=means.metrics.transferred_bytes("down") - down,
                epsilon=epsilon_of_run(place.folder, noted.run),
                outcome=outcome,
            )
            means.history.put(ended)
        # Between runs no heartbeat is due: that none is answered is no silence.
        means.metrics.contact.set(0)
        log_about(run="", round=0)
    return worker.rounds


def epsilon_of_run(folder: Path, run: str) -> float | None:
    """What these data have paid for a run; None where it promised nothing, or the ledger is broken."""
    try:
        of_run = [charge.epsilon_of_run for charge in Ledger(folder).charges if charge.run == run]
    except StoreError:
        # It is told where it is gone by; a line of history does not end anything.
        return None
    return of_run[-1] if of_run else None


async def take_part_once(
    means: Means, place: Place, data: PrivateData, coordinator: CoordinatorClient, state: str
) -> None:
    """The same, of a worker that ends with its run; why it takes no part is told to the run's owner."""
    try:
        await take_part(means, place, data, coordinator)
    except NotAllowed as error:
        await declined(means, place, coordinator, state, error)
        raise


async def declined(
    means: Means, place: Place, coordinator: CoordinatorClient, state: str, error: FedPftError
) -> None:
    """Have it known here, and by the run's owner, why this worker takes no part in the run."""
    run = coordinator.run or coordinator.known
    if run is None:
        return
    means.metrics.runs.labels("declined").inc()
    why = " ".join(str(error).split())
    label = run.terms.label if run.terms else ""
    entry = PastRun(run.run_id, place.coordinator, label=label, ended=time.time(), outcome=f"declined: {why}")
    await asyncio.to_thread(means.history.declined, entry)
    coordinator.expect(run.run_id)
    await coordinator.decline(state, told_outside(error))


def told_outside(error: FedPftError) -> str:
    """What of an error may leave this host: a rule of the owner's may; numbers of examples, what they have
    paid in other runs, and what is in them may not."""
    if isinstance(error, AgainstPolicy):
        return str(error)
    return f"it cannot take part: {type(error).__name__}"
