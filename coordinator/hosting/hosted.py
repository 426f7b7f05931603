"""One run in a process: opened, gone on with, seen to its end, closed. Who listens is not its matter."""

import asyncio
import contextlib
import json
import logging
import os
from collections.abc import Mapping
from functools import partial

from common.config.run import RunConfig
from common.errors import FedPftError, Stopped, StoreError
from common.observability.logs import log_about
from common.records import Phase
from common.run_status import RunStatus
from common.runtime.compute import Compute
from common.runtime.fault_points import Point, reach
from common.storage.files import locked, write_atomically
from common.trust.signing import Verifier, verifier
from coordinator.campaign.best import kept_rounds
from coordinator.campaign.liveness import ENDPOINT_FILE, require_no_repetition, tell_death
from coordinator.campaign.loop import Campaign
from coordinator.campaign.progress import RunProgress
from coordinator.campaign.secure_gathering import SecureGathering
from coordinator.campaign.status import live_status
from coordinator.campaign.worker_gathering import WorkerGathering
from coordinator.context import RunContext, identity
from coordinator.federation.inbox import Inbox
from coordinator.federation.outcomes import telling
from coordinator.federation.secure_exchange import SecureExchange
from coordinator.federation.service import FederationService
from coordinator.federation.sessions import COALESCED_SECONDS, Sessions
from coordinator.federation.turns import Turns
from coordinator.modelling.content import require_same
from coordinator.storage import retention
from coordinator.storage.store import Store

log = logging.getLogger(__name__)

# After the run's end workers are told to stop; the server waits this long for their goodbyes.
_FAREWELL_SECONDS = 10.0


async def open_run(
    config: RunConfig, new_id: str, compute: Compute, resources: contextlib.ExitStack, again: bool = False
) -> RunContext | None:
    """Hold the run's directory and read it; None where the run is finished, and its workers know.

    `new_id` names the run, unless its directory holds it already; `resources` closes what was opened.
    `again`: although it failed several times in the same way. Raises StoreError, ModelError, DataError.
    """
    resources.enter_context(locked(config.run.directory, "a coordinator"))
    store = Store(config.run.directory)
    resources.callback(store.close)
    log_about(run=store.open_run(new_id, identity(config)))
    if store.outcome() == Phase.FINISHED and store.dismissed():
        return None
    if not again:
        require_no_repetition(store)
    # Before anybody is let in: what is read from now on is what the run was begun with.
    await asyncio.to_thread(require_same, store, config)
    return RunContext.of(config, store, compute)


class HostedRun:
    """A process's work on a run, between opening what it needs and closing it. Lives on the event loop."""

    def __init__(self, run: RunContext) -> None:
        self.context, self._store = run, run.store
        self.sessions = Sessions(run.config.server.heartbeat_seconds)
        turns = Turns(telling(run, self.sessions), run.config.rounds.stall_seconds)
        self._inbox = Inbox(run.store, run.config.limits, turns)
        self._progress = RunProgress(run)
        keys_seconds = run.config.privacy.keys_seconds
        exchange = SecureExchange(run.store, keys_seconds, _verifier(run.config), self.sessions.notify_all)
        self.sessions.news_for = exchange.news
        gathering = (
            SecureGathering(run, self._progress, self.sessions, self._inbox, exchange)
            if run.config.privacy.secure
            else WorkerGathering(run, self._progress, self.sessions, self._inbox)
        )
        self._campaign = Campaign(run, self._progress, gathering)
        self.federation = FederationService(run, self.sessions, self._inbox, exchange)
        self.calls = 0
        """Of workers and owners, under way."""
        self._task: asyncio.Task[None] | None = None
        self._watch: asyncio.Task[None] | None = None

    @property
    def status(self) -> "partial[RunStatus]":
        """What tells where the run stands now."""
        return partial(live_status, self.context, self._progress, self.sessions, self._inbox)

    @property
    def over(self) -> bool:
        """Whether the run has come to an end, as opposed to this process."""
        return self._campaign.over

    @property
    def phase(self) -> Phase:
        """Where it stands, in a word."""
        return self._progress.phase

    def begin(self) -> None:
        """Go on where the run was, beside whatever else this process does. Raises StoreError."""
        self._recover()
        finished = self._store.outcome() == Phase.FINISHED
        self._task = asyncio.create_task(self._dismiss() if finished else self._campaign.run())

    def listens(self, about: Mapping[str, object]) -> None:
        """Write down where this run can be reached, for those who look at its directory."""
        told = dict(about) | {"pid": os.getpid()}
        write_atomically(self._store.directory / ENDPOINT_FILE, json.dumps(told).encode())
        self._watch = asyncio.create_task(self._watch_sessions())

    def stop(self) -> None:
        """End this process's work on the run; begun again, it goes on from the last committed step."""
        self.context.compute.stop()
        if self._task is not None:
            self._task.cancel()

    async def see_through(self) -> None:
        """Wait for the campaign, and let everybody know how it ended. Raises what the campaign raises."""
        assert self._task is not None
        try:
            await self._task
        except (asyncio.CancelledError, Stopped):
            self._campaign.stopped()
        except StoreError as error:
            # The run is as good as its disk: mended, the same command goes on, and workers wait for that.
            self._campaign.stopped(str(error))
            raise
        except FedPftError as error:
            self._campaign.fail(str(error))
            raise
        except Exception:
            self._campaign.fail("internal error; the coordinator's log says more")
            raise

    def end_early(self, reason: str) -> None:
        """The run will not go on: workers are told, and why."""
        self._campaign.fail(reason)

    async def farewell(self) -> None:
        """Until every worker has heard of the end and said goodbye, but not for ever.

        Workers of the last round that have not joined since this process began may still come.
        """
        expected = set(self._store.last_selected())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_FAREWELL_SECONDS):
                while self.sessions.present() or expected - {s.worker for s in self.sessions.all()}:
                    await self.sessions.changed.wait()
        reach(Point.STEP, "farewell")
        self.context.events.record(
            "workers_dismissed", "workers know that the run is over", self.context.traffic.round
        )

    def moved_on(self, worker: str) -> None:
        """The worker takes part in another run of this process: it is drawn by this one no more."""
        for session in self.sessions.all():
            if session.worker == worker and session.progress.activity.present:
                self.sessions.leave(session, "it takes part in another run")
                self._inbox.turns.left(worker, "left: it takes part in another run")
                text = f"worker {worker} left: it takes part in another run"
                self.context.events.record("worker_quit", text, self.context.traffic.round, worker)

    def close(self) -> None:
        """Nobody is to wait for this run any more: streams end."""
        if self._watch is not None:
            self._watch.cancel()
        (self._store.directory / ENDPOINT_FILE).unlink(missing_ok=True)
        self.sessions.close()
        self.federation.offers.close()
        self.context.events.close()

    def _recover(self) -> None:
        """Find out what an earlier process left, and whether it is whole. Raises StoreError."""
        run = self.context
        if death := tell_death(self._store.directory):
            run.events.record("run_crashed", f"going on: {death}", run.traffic.round)
        retention.sweep(self._store)
        for number, worker in retention.verify(self._store, kept_rounds(self._store, run.config)):
            run.events.record(
                "update_damaged",
                f"round {number}: the update of worker {worker} is damaged; it is asked for again",
                number,
                worker,
            )
        if self._store.outcome() == Phase.FAILED:
            # What made it fail may have been mended; the tries of the open round begin anew.
            self._store.reopen_run()

    async def _watch_sessions(self) -> None:
        """Notice workers that fall silent or come no further, and keep the workers' gauge."""
        sessions = self.sessions
        while True:
            for worker in sessions.sweep():
                self._inbox.turns.lost(worker)
                self.context.events.record(
                    "worker_lost",
                    f"worker {worker} is silent; it counts as lost",
                    self.context.traffic.round,
                    worker,
                )
            self._inbox.turns.look()
            with contextlib.suppress(OSError):
                # Should this process die, others see until when it lived.
                os.utime(self._store.directory / ENDPOINT_FILE)
            self.context.metrics.workers_are([s.progress.activity for s in sessions.all()])
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(1.0, sessions.heartbeat_seconds)):
                    await sessions.changed.wait()
            await asyncio.sleep(COALESCED_SECONDS)

    async def _dismiss(self) -> None:
        """The run was finished when its process died: its workers may not know."""
        self._campaign.finished_before()


def _verifier(config: RunConfig) -> Verifier | None:
    """What tells whether a worker's keys are its own; None where they are not signed. Raises
    CertificateError."""
    tls = config.tls
    if tls.ca is None or config.privacy.insecure_keys or not config.privacy.secure:
        return None
    return verifier(tls.ca, tls.revoked)
