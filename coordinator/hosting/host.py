"""All runs of a server: which are held open, which wait, what each comes to. Lives on the event loop."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from common.config.run import RunConfig
from common.config.serving import ServeConfig, submitted_config
from common.errors import FedPftError, RunFailed, StoreError, TooMany
from common.hosted_runs import RunEntry, RunFacts, RunState, Submission
from common.observability.logs import Subject, enter_subject, keep_lines_of, subject_of
from common.records import Phase
from common.runtime.computing_turns import ComputeInTurns, ComputingTurns
from common.runtime.notifier import Notifier
from common.storage.files import disk_problem
from coordinator.campaign.liveness import newest_step, tell_death
from coordinator.hosting.catalogue import COMPUTING_FILE, LOG_FILE, Catalogue, KeptRun, bytes_in
from coordinator.hosting.facts import facts_of
from coordinator.hosting.hosted import HostedRun, open_run
from coordinator.hosting.placing import to_begin
from coordinator.storage.store import Store
from coordinator.tracking.process import tracked

log = logging.getLogger(__name__)

# A run whose computations end the process so often, with nothing done between, is not begun again.
MOST_DEATHS = 3
# How often it is looked what runs take on disk.
_MEASURED_SECONDS = 5.0
# Calls under way when a run ends get so long.
_CALLS_SECONDS = 2.0


class Host:
    """Holds the runs of a catalogue. `about` is what a run's directory tells of where it is reached."""

    def __init__(self, config: ServeConfig, catalogue: Catalogue) -> None:
        self.config, self.catalogue = config, catalogue
        self.active: dict[str, HostedRun] = {}
        self.changed = Notifier()
        """Of which runs there are, and where they stand."""
        self.offers_changed = Notifier()
        """Of what may be offered to workers."""
        self.about: dict[str, object] = {}
        self.closed = False
        self.subjects: dict[str, Subject] = {}
        """What log lines about a run are about."""
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._given_up: dict[str, str] = {}
        """Runs that are not tried again by this process, although that could not be written down."""
        self._computing = catalogue.directory / COMPUTING_FILE
        self._turns = ComputingTurns(self._computes)
        self._threads = torch.get_num_threads()

    # --- what admins ask for ---

    def submit(self, submission: Submission, submitter: str) -> str:
        """A run's id, durable when this returns. Raises ConfigError, TooMany, StoreError."""
        if (kept := self.catalogue.of_request(submission.request)) is not None:
            return kept.entry.run
        waiting = sum(kept.entry.state is RunState.QUEUED for kept in self.catalogue)
        if waiting >= (most := self.config.runs.queue):
            raise TooMany(f"{waiting} runs wait already; runs.queue allows {most}")
        run = self.catalogue.new_id()
        self._configuration(run, submission.configuration, submission.settings)
        self.catalogue.add(run, submission, submitter)
        log.info("run %s was submitted%s", run, f" by {submitter}" if submitter else "")
        self.changed.notify()
        return run

    def cancel(self, run: str, who: str) -> None:
        """End a run for good. Raises UnknownRun, RunFailed when it has ended already, StoreError."""
        kept = self.catalogue.get(run)
        if kept.entry.state.over:
            raise RunFailed(f"run {run} has ended already: it is {kept.entry.state}")
        reason = f"cancelled by {who}" if who else "cancelled"
        self.catalogue.change(run, state=RunState.CANCELLED, reason=reason, ended=time.time())
        if (hosted := self.active.get(run)) is not None:
            hosted.stop()
        elif (task := self._tasks.get(run)) is not None:
            task.cancel()
        self.changed.notify()

    def resume(self, run: str, who: str) -> None:
        """Have a run that failed or was cancelled go on. Raises UnknownRun, RunFailed, StoreError."""
        state = self._told(self.catalogue.get(run)).state
        if state not in (RunState.FAILED, RunState.CANCELLED):
            raise RunFailed(f"run {run} is {state}; only one that failed or was cancelled is resumed")
        if run in self._tasks:
            raise RunFailed(f"run {run} is at its end; try again in a few seconds")
        self.catalogue.requeue(run)
        self._given_up.pop(run, None)
        log.info("run %s was resumed%s", run, f" by {who}" if who else "")
        self.changed.notify()

    def entries(self) -> list[RunEntry]:
        """Every run, oldest first, with how far it has come."""
        return [self._told(kept) for kept in self.catalogue]

    def _told(self, kept: KeptRun) -> RunEntry:
        entry = kept.entry
        if (hosted := self.active.get(entry.run)) is not None and not entry.state.over:
            return replace(entry, facts=facts_of(hosted))
        if entry.run in self._given_up:
            return replace(entry, state=RunState.FAILED, reason=self._given_up[entry.run])
        return entry

    @property
    def opening(self) -> bool:
        """Whether there are runs that had begun and are not open yet."""
        running = (kept.entry for kept in self._on() if kept.entry.state is RunState.RUNNING)
        return any(entry.run not in self.active for entry in running)

    # --- from the process's beginning to its end ---

    async def hold(self) -> None:
        """Hold runs until `close`, and see to it that all end in order."""
        self._look_for_deaths()
        try:
            while not self.closed:
                reason = await self._lacks_room()
                for kept in to_begin(self._on(), frozenset(self._tasks), self.config.runs.at_once):
                    if reason and kept.entry.state is RunState.QUEUED:
                        self._note(kept.entry.run, reason=reason)
                        continue
                    self._tasks[kept.entry.run] = asyncio.create_task(self._see_to(kept.entry.run))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_MEASURED_SECONDS):
                        await self.changed.wait()
        finally:
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)
            if not any(self.active):
                self._computing.unlink(missing_ok=True)

    def close(self) -> None:
        """The process ends: runs are stopped where they are, for the next one to go on."""
        self.closed = True
        for run, task in self._tasks.items():
            hosted = self.active.get(run)
            if hosted is None or hosted.over:
                task.cancel()
            else:
                hosted.stop()
        self.changed.notify()
        self.offers_changed.notify()

    def _on(self) -> list[KeptRun]:
        return [kept for kept in self.catalogue if kept.entry.run not in self._given_up]

    async def _see_to(self, run: str) -> None:
        """One run, from its beginning in this process to its end there; it harms no other."""
        enter_subject(subject := self.subjects.setdefault(run, subject_of(run)))
        folder = self.catalogue.folder(run)
        kept_lines: Callable[[], None] | None = None
        try:
            kept_lines = keep_lines_of(subject, folder / LOG_FILE)
            await self._hold_open(run, folder)
        except asyncio.CancelledError:
            log.info("broken off: %s", "the server ends" if self.closed else "the run was cancelled")
        except FedPftError as error:
            log.error("run %s failed: %s", run, error)
            self._ended(run, RunState.FAILED, str(error))
        except OSError as error:
            self._ended(run, RunState.FAILED, f"{folder}: {disk_problem(error, folder)}")
        except Exception:
            log.exception("run %s failed by a mistake in the program", run)
            self._ended(run, RunState.FAILED, "internal error; the run's log says more")
        finally:
            if kept_lines is not None:
                kept_lines()
            del self._tasks[run]
            self.changed.notify()
            self.offers_changed.notify()

    async def _hold_open(self, run: str, folder: Path) -> None:
        kept = self.catalogue.get(run)
        config = self.configured(run)
        began = kept.entry.began or time.time()
        self.catalogue.change(run, state=RunState.RUNNING, reason="", began=began)
        compute = ComputeInTurns(self._turns, run, config.compute.threads or self._threads)
        with contextlib.ExitStack() as resources:
            try:
                # An admin asks for each try after a failure.
                context = await open_run(config, run, compute, resources, again=True)
                if context is None:
                    self._ended(run, RunState.FINISHED)
                    return
                # Nobody waits here: other runs are at work on this loop.
                resources.enter_context(tracked(config, waits=False))
                context.submitter, context.label = kept.entry.submitter, kept.entry.label
                await self._take_part(run, HostedRun(context))
            finally:
                # Not on the loop: a computation may take its time to come to where it looks.
                await asyncio.to_thread(compute.close)

    async def _take_part(self, run: str, hosted: HostedRun) -> None:
        """From the run's going on to its last worker's goodbye."""
        hosted.begin()
        beside: list[asyncio.Task[None]] = []
        try:
            hosted.listens(self.about | {"run": run})
            self.active[run] = hosted
            beside.append(asyncio.create_task(self._spread(hosted)))
            if (quota := self.config.runs.run_quota) is not None:
                beside.append(asyncio.create_task(self._keep_to(quota, run, hosted)))
            self.offers_changed.notify()
            await self._until_over(run, hosted)
        finally:
            hosted.stop()
            for task in beside:
                task.cancel()
            try:
                if hosted.over and not self.closed:
                    await hosted.farewell()
            finally:
                self.active.pop(run, None)
                hosted.close()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_CALLS_SECONDS):
                        while hosted.calls:
                            await asyncio.sleep(0.05)

    async def _until_over(self, run: str, hosted: HostedRun) -> None:
        """See the campaign through, and write down what came of it before anybody waits for goodbyes."""
        try:
            await hosted.see_through()
        except FedPftError as error:
            self._ended(run, RunState.FAILED, str(error), facts_of(hosted))
            raise
        entry = self.catalogue.get(run).entry
        if entry.state is RunState.CANCELLED or run in self._given_up:
            hosted.end_early(entry.reason or self._given_up.get(run, ""))
        elif hosted.context.store.outcome() == Phase.FINISHED:
            self._ended(run, RunState.FINISHED, facts=facts_of(hosted))
        elif entry.state is RunState.FAILED:
            hosted.end_early(entry.reason)

    # --- what runs come to ---

    def _ended(self, run: str, state: RunState, reason: str = "", facts: RunFacts | None = None) -> None:
        entry = self.catalogue.get(run).entry
        if entry.state.over:
            return
        told = {"facts": facts} if facts is not None else {}
        if not self._note(run, state=state, reason=reason, ended=time.time(), **told):
            self._given_up[run] = reason or state

    def _note(self, run: str, **changes: object) -> bool:
        """Write a change down, if the disk lets it."""
        try:
            self.catalogue.change(run, **changes)
        except StoreError as error:
            log.error("what run %s came to is not kept: %s", run, error)
            return False
        self.changed.notify()
        return True

    def configured(self, run: str) -> RunConfig:
        """What a run is set to. Raises UnknownRun, ConfigError, StoreError."""
        settings = self.catalogue.get(run).settings
        return self._configuration(run, self.catalogue.configuration(run), settings)

    def _configuration(self, run: str, text: str, settings: tuple[str, ...]) -> RunConfig:
        folder = self.catalogue.directory
        return submitted_config(text, settings, self.config, folder / run, folder.parent)

    async def _spread(self, hosted: HostedRun) -> None:
        """Tell those that look for a run when somebody joins or leaves this one, or declines it."""
        waits = (hosted.sessions.changed.wait, hosted.federation.offers.changed.wait)
        while True:
            waiting = [asyncio.ensure_future(wait()) for wait in waits]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for each in waiting:
                    each.cancel()
            self.offers_changed.notify()
            # Thousands may come at once.
            await asyncio.sleep(0.1)

    async def _keep_to(self, quota: int, run: str, hosted: HostedRun) -> None:
        """End the run once it takes more than it may."""
        while True:
            held = await asyncio.to_thread(bytes_in, self.catalogue.folder(run))
            if held > quota:
                reason = f"it takes {held / 1e6:.1f} MB on disk, runs.run_quota allows {quota / 1e6:g} MB"
                log.error("run %s: %s", run, reason)
                self._ended(run, RunState.FAILED, reason, facts_of(hosted))
                hosted.stop()
                return
            await asyncio.sleep(_MEASURED_SECONDS)

    async def _lacks_room(self) -> str:
        """Why no run may begin, for people; empty where one may."""
        if (quota := self.config.runs.quota) is None:
            return ""
        held = await asyncio.to_thread(bytes_in, self.catalogue.directory)
        if held <= quota:
            return ""
        return f"waits for room on disk: all runs take more than runs.quota allows, {quota / 1e6:g} MB"

    # --- processes that died ---

    def _computes(self, run: str) -> None:
        """From a computing thread: this run computes from now on. Read only after a death."""
        with contextlib.suppress(OSError):
            self._computing.write_text(run)

    def _look_for_deaths(self) -> None:
        """A run that the process before this one died of, again and again, is not begun once more."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            run = self._computing.read_text()
            self._computing.unlink()
            if run in {kept.entry.run for kept in self.catalogue}:
                self._count_death(run)

    def _count_death(self, run: str) -> None:
        folder = self.catalogue.folder(run)
        if self.catalogue.get(run).entry.state is not RunState.RUNNING or not tell_death(folder):
            return
        try:
            with contextlib.closing(Store.existing(folder)) as store:
                step = newest_step(store)
            deaths = self.catalogue.count_death(run, step).deaths
        except StoreError as error:
            log.error("run %s: %s", run, error)
            return
        log.warning("the server died while run %s computed, %d times in a row", run, deaths)
        if deaths >= MOST_DEATHS:
            reason = f"the server died {deaths} times while it computed, with nothing done between"
            self._ended(run, RunState.FAILED, reason)
