"""THE LOOP: a run from the foundation model to the tuned one.

Every step is committed to the store before the next begins, and every step asks the store whether
it is already done: started again, the loop goes on where it was.
"""

import asyncio
from dataclasses import replace

from common.compute import Compute
from common.config import RunConfig
from common.errors import RunFailed
from common.records import (
    ArtifactKind,
    ArtifactRef,
    Phase,
    RunStatus,
    StopTask,
    SubModelRef,
    TrainTask,
    WaitTask,
)
from common.schema import schema_of
from common.tensors import TensorFile
from coordinator import schedule
from coordinator.building import CHECKPOINT_FILE
from coordinator.inbox import Expected, Inbox, update_schema
from coordinator.journal import Journal
from coordinator.meter import Meter
from coordinator.metrics import Metrics
from coordinator.models import Models
from coordinator.rounds import RoundPhase, RoundState
from coordinator.sessions import Assignment, Sessions
from coordinator.status import reading, stored_status, worker_statuses
from coordinator.store import Store, StoredUpdate


class Campaign:
    """Runs one run, on the event loop; maths goes to the compute thread."""

    def __init__(
        self,
        config: RunConfig,
        store: Store,
        sessions: Sessions,
        inbox: Inbox,
        journal: Journal,
        meter: Meter,
        metrics: Metrics,
        compute: Compute,
    ) -> None:
        self._config, self._store = config, store
        self._sessions, self._inbox = sessions, inbox
        self._journal, self._meter, self._metrics = journal, meter, metrics
        self._compute = compute
        self._phase = Phase.BUILDING
        self._round = 0
        self._progress = (0, 0)
        self._waiting_for = ""
        metrics.rounds.set(config.rounds.count)

    async def run(self) -> None:
        """The whole run. Raises RunFailed, and what loading the model and data raises."""
        self._enter(Phase.BUILDING, "loading the foundation model")
        models = await self._compute.run(Models, self._config, self._store)
        sub_fm = await self._sub_model(models)
        done, adapter = await self._first_adapter(models, *sub_fm)
        await self._evaluate(models, done)
        while (number := done + 1) <= self._config.rounds.count:
            updates = await self._collect(models, number, adapter)
            adapter = await self._aggregate(models, number, adapter, updates)
            await self._measure(models, number)
            await self._realign(models, number, updates)
            await self._evaluate(models, number)
            done = number
        self._finish(adapter)

    # --- the steps ---

    async def _sub_model(self, models: Models) -> tuple[SubModelRef, ArtifactRef]:
        """Cut the sub-FM and align it, or find it done."""
        if stored := self._store.sub_model():
            return stored[:2]
        self._enter(Phase.BUILDING, "cutting the sub-FM")
        plan, module = await self._compute.run(models.cut, self._on_progress)
        if self._config.prunes and self._config.sub_fm.path is None and self._config.aligns_layers:
            self._enter(Phase.ALIGNING, "aligning the sub-FM to the FM")
            before, after = await self._compute.run(models.align_layers, plan, module, self._on_progress)
            self._aligned(0, before, after)
        reference, plan_file, facts = await self._compute.run(models.publish, plan, module)
        self._store.commit_sub_model(reference, plan_file, facts)
        (self._store.directory / CHECKPOINT_FILE).unlink(missing_ok=True)
        self._journal.record(
            "sub_model_ready",
            f"sub-FM ready: {facts.sub_fm_parameters:,} of {facts.fm_parameters:,} parameters, "
            f"{reference.base.size / 1e6:.1f} MB",
            fm_parameters=facts.fm_parameters,
            sub_fm_parameters=facts.sub_fm_parameters,
            bytes=reference.base.size,
        )
        return reference, plan_file

    async def _first_adapter(
        self, models: Models, reference: SubModelRef, plan: ArtifactRef
    ) -> tuple[int, ArtifactRef]:
        """The last round done and its adapter; a fresh run begins with round 0."""
        fresh = await self._compute.run(models.equip, reference, plan)
        if self._store.latest_adapter() is None:
            self._store.commit_adapter(0, self._store.add_tensors(ArtifactKind.ADAPTER, fresh))
        latest = self._store.latest_adapter()
        assert latest is not None
        number, adapter = latest
        await self._compute.run(models.plug_in, adapter)
        await self._measure(models, number)
        if number:
            self._journal.record("run_resumed", f"going on after round {number}", number)
            await self._realign(models, number, self._store.updates(number))
        return number, adapter

    async def _collect(self, models: Models, number: int, adapter: ArtifactRef) -> list[StoredUpdate]:
        """Have workers train, until the round closes with enough updates."""
        rounds = self._config.rounds
        for attempt in range(1, rounds.tries + 1):
            selected = await self._select(number)
            state = await self._train(models, number, adapter, selected)
            if state.phase is RoundPhase.CLOSED:
                return [u for u in self._store.updates(number) if u.worker in state.received]
            missing = ", ".join(sorted(state.selected - state.received))
            self._journal.record(
                "round_short",
                f"round {number}, try {attempt}: {len(state.received)} of at least "
                f"{rounds.minimum} updates; missing: {missing}",
                number,
            )
        raise RunFailed(
            f"round {number} missed its minimum of {rounds.minimum} updates {rounds.tries} times; "
            f"missing: {missing}"
        )

    async def _select(self, number: int) -> list[str]:
        """Wait for enough workers, then draw those of this round."""
        rounds = self._config.rounds
        needed = max(rounds.workers, rounds.sample or 0)
        while len(present := self._sessions.present()) < needed:
            waiting = f"{needed - len(present)} more worker(s): {len(present)} of {needed} are here"
            if waiting != self._waiting_for:
                self._enter(Phase.WAITING, waiting)
                self._sessions.assign_all(WaitTask(f"the run waits for {waiting}"))
            await self._sessions.changed.wait()
        drawn = schedule.select(self._config, number, present)
        # An update that holds a receipt counts, also when the try in which it came fell short.
        return sorted({*drawn, *(u.worker for u in self._store.updates(number))})

    async def _train(
        self, models: Models, number: int, adapter: ArtifactRef, selected: list[str]
    ) -> RoundState:
        """One try at a round."""
        rounds = self._config.rounds
        stored = self._store.sub_model()
        assert stored is not None
        attempt = self._store.open_try(number, selected)
        counted = models.counted_layers if schedule.may_realign_after(self._config, number) else {}
        task = TrainTask(
            round=number,
            sub_model=stored[0],
            adapter=adapter,
            learning_rate_factor=schedule.learning_rate_factor(self._config, number),
            apoz_layers=tuple(counted),
            seconds_left=rounds.deadline_seconds,
            attempt=attempt,
            zero_rule=models.zero_rule,
            zero_threshold=self._config.realignment.zero_threshold,
        )
        closes_at = asyncio.get_running_loop().time() + rounds.deadline_seconds
        received = frozenset(u.worker for u in self._store.updates(number))
        state = RoundState(number, frozenset(selected), rounds.minimum, closes_at, received=received)
        self._round = self._meter.round = number
        self._metrics.round.set(number)
        schema = schema_of(TensorFile(self._store.path(adapter.sha256)))
        self._sessions.assign_all(WaitTask(f"round {number} is under way without this worker"))
        self._inbox.open(state, Expected(adapter, update_schema(schema, models.adapter_spec, counted)))
        for worker in sorted(state.missing):
            self._sessions.assign(worker, Assignment(task, closes_at))
        self._enter(Phase.TRAINING, f"updates of {', '.join(selected)}")
        self._journal.record(
            "round_opened", f"round {number} of {rounds.count}: {', '.join(selected)}", number
        )
        state = await self._inbox.collect()
        self._sessions.assign_all(WaitTask(f"round {number} is being aggregated"))
        self._store.close_try(number, attempt, state.phase)
        return state

    async def _aggregate(
        self, models: Models, number: int, adapter: ArtifactRef, updates: list[StoredUpdate]
    ) -> ArtifactRef:
        """Combine the updates and plug the result into both models: the round is done."""
        self._enter(Phase.AGGREGATING, "the aggregation")
        before = self._store.server_state(number - 1)
        tensors, state = await self._compute.run(models.aggregate, adapter, updates, before)
        result = await asyncio.to_thread(self._store.add_tensors, ArtifactKind.ADAPTER, tensors)
        kept = self._store.add_tensors(ArtifactKind.SERVER_STATE, state) if state else None
        self._store.commit_adapter(number, result, kept)
        self._meter.save()
        await self._compute.run(models.plug_in, result)
        self._journal.record(
            "round_closed",
            f"round {number}: {len(updates)} updates aggregated, adapter {result.sha256[:12]}…",
            number,
            updates=len(updates),
            examples=sum(u.examples for u in updates),
        )
        return result

    async def _measure(self, models: Models, number: int) -> None:
        """Measure the gradient gap, when it can be and is not done."""
        if not models.gap_measurable or not self._config.gradient_gap.batches:
            return
        if any(gap.round == number for gap in self._store.gaps()):
            return
        gap = await self._compute.run(models.measure_gap, number)
        self._store.commit_gap(gap)
        self._metrics.gap_measured(gap)
        self._journal.record(
            "gradient_gap",
            f"round {number}: the sub-FM's gradient has cosine {gap.cosine:.3f} with the FM's "
            f"and {gap.norm_ratio:.2f} times its norm: drift {gap.drift:.3f}",
            number,
            cosine=gap.cosine,
            norm_ratio=gap.norm_ratio,
            drift=gap.drift,
        )

    def _realigns_after(self, number: int) -> bool:
        """Whether an alignment follows this round."""
        drift = next((gap.drift for gap in self._store.gaps() if gap.round == number), None)
        return schedule.realigns_after(self._config, number, drift)

    async def _realign(self, models: Models, number: int, updates: list[StoredUpdate]) -> None:
        """Neuron-level alignment, when it is due and not done."""
        if not self._realigns_after(number) or self._store.aligned_after(number):
            return
        self._enter(Phase.ALIGNING, "re-aligning the sub-FM's neurons")
        patch, before, after = await self._compute.run(
            models.align_neurons, updates, number, self._on_progress
        )
        self._store.commit_alignment(number, patch, before, after)
        self._aligned(number, before, after)

    async def _evaluate(self, models: Models, number: int) -> None:
        """Score both models, when there is test data and it is not done."""
        if not models.scored or any(e.round == number for e in self._store.evaluations()):
            return
        self._enter(Phase.EVALUATING, "the evaluation")
        evaluations = await self._compute.run(models.evaluate, number, self._on_progress)
        for evaluation in evaluations:
            self._store.commit_evaluation(evaluation)
            self._metrics.evaluated(evaluation)
        figures = {e.model: e for e in evaluations}
        measure, shown = reading(evaluations, self._config.task.kind)
        self._journal.record(
            "evaluated",
            f"round {number}: {measure} of the FM {shown['fm']}, of the sub-FM {shown['sub_fm']}",
            number,
            fm_accuracy=figures["fm"].accuracy,
            fm_loss=figures["fm"].loss,
            sub_fm_accuracy=figures["sub_fm"].accuracy,
            sub_fm_loss=figures["sub_fm"].loss,
        )

    def _finish(self, adapter: ArtifactRef) -> None:
        self._meter.save()
        self._store.end_run(Phase.FINISHED, "all rounds are done")
        self._enter(Phase.FINISHED, "")
        self._journal.record("run_finished", f"finished: adapter {adapter.sha256}", self._round)
        self._sessions.assign_all(StopTask(True, "the run is finished"))

    def fail(self, reason: str) -> None:
        """The run ended with an error."""
        self._meter.save()
        if self._store.outcome() is None and self._phase is not Phase.BUILDING:
            self._store.end_run(Phase.FAILED, reason)
        self._enter(Phase.FAILED, "")
        self._journal.record("run_failed", f"failed: {reason}", self._round)
        self._sessions.assign_all(StopTask(False, reason))

    def stopped(self) -> None:
        """The owner ended this process; the run can go on later."""
        self._meter.save()
        self._enter(Phase.STOPPED, "")
        self._journal.record("run_stopped", "stopped; the same command goes on", self._round)

    # --- what others see ---

    def status(self) -> RunStatus:
        """Where the run stands, now."""
        step, steps = self._progress
        return replace(
            stored_status(self._store, self._config),
            phase=self._phase,
            round=self._round,
            waiting_for=self._awaited(),
            step=step,
            steps=steps,
            workers=worker_statuses(self._store, self._sessions.all(), self._meter.of),
        )

    def _awaited(self) -> str:
        """What the run waits for; in a round, whose updates are still missing."""
        state = self._inbox.state
        if self._phase is Phase.TRAINING and state is not None and state.missing:
            return f"updates of {', '.join(sorted(state.missing))}"
        return self._waiting_for

    def _enter(self, phase: Phase, waiting_for: str) -> None:
        if phase is not self._phase:
            self._journal.record("phase_entered", f"phase: {phase}", self._round)
        self._phase, self._waiting_for, self._progress = phase, waiting_for, (0, 0)
        self._metrics.entered(phase)

    def _on_progress(self, step: int, steps: int) -> None:
        """From the compute thread."""
        self._progress = (step, steps)
        self._compute.check()

    def _aligned(self, number: int, before: float, after: float) -> None:
        self._metrics.alignment_error.labels("before").set(before)
        self._metrics.alignment_error.labels("after").set(after)
        level = "neuron" if number else "layer"
        self._journal.record(
            "aligned",
            f"{level}-level alignment: hidden-state error {before:.4f} → {after:.4f}",
            number,
            error_before=before,
            error_after=after,
        )
