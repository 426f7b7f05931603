"""THE LOOP: a run from the foundation model to the tuned one.

Every step is committed to the store before the next begins, and every step asks the store whether
it is already done: started again, the loop goes on where it was.
"""

import asyncio
from contextlib import suppress

from common.compute import Compute
from common.config import RunConfig
from common.errors import StoreError
from common.faultpoints import Point, reach
from common.records import ArtifactKind, ArtifactRef, Phase, StopTask, SubModelRef
from coordinator import retention, schedule
from coordinator.building import CHECKPOINT_FILE
from coordinator.gathering import Gathering
from coordinator.inbox import Inbox
from coordinator.journal import Journal
from coordinator.meter import Meter
from coordinator.metrics import Metrics
from coordinator.models import Models
from coordinator.sessions import Sessions
from coordinator.standing import Standing
from coordinator.status import reading
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
        self._sessions = sessions
        self._journal, self._meter, self._metrics = journal, meter, metrics
        self._compute = compute
        standing = Standing(config, store, sessions, inbox, journal, meter, metrics, compute)
        self._standing, self.status = standing, standing.status
        self._enter, self._on_progress = standing.enter, standing.on_progress
        self._gathering = Gathering(config, store, sessions, inbox, journal, metrics, standing)

    async def run(self) -> None:
        """The whole run. Raises RunFailed, StoreError, and what loading the model and data raises."""
        with self._standing.traced("build", 0):
            self._enter(Phase.BUILDING, "loading the foundation model")
            models = await self._compute.run(Models, self._config, self._store)
            sub_fm = await self._sub_model(models)
            done, adapter = await self._first_adapter(models, *sub_fm)
            await self._clear_up()
            await self._evaluate(models, done)
        while (number := done + 1) <= self._config.rounds.count:
            with self._standing.traced("round", number):
                with self._metrics.round_seconds.time():
                    updates = await self._gathering.gather(models, number, adapter)
                    adapter = await self._aggregate(models, number, adapter, updates)
                await self._measure(models, number)
                await self._realign(models, number, updates)
                await self._evaluate(models, number)
                done = number
                await self._clear_up()
        self._finish(adapter)

    # --- the steps ---

    async def _sub_model(self, models: Models) -> tuple[SubModelRef, ArtifactRef]:
        """Cut the sub-FM and align it, or find it done."""
        if stored := self._store.sub_model():
            return stored[:2]
        self._enter(Phase.BUILDING, "cutting the sub-FM")
        plan, module = await self._compute.run(models.cut, self._on_progress)
        reach(Point.STEP, "cut")
        if self._config.prunes and self._config.sub_fm.path is None and self._config.aligns_layers:
            self._enter(Phase.ALIGNING, "aligning the sub-FM to the FM")
            before, after = await self._compute.run(models.align_layers, plan, module, self._on_progress)
            self._aligned(0, before, after)
            reach(Point.STEP, "aligned")
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
            # A run that an earlier version began has no record of what was accepted: it was everything.
            await self._realign(models, number, self._store.accepted(number) or self._store.updates(number))
        return number, adapter

    async def _aggregate(
        self, models: Models, number: int, adapter: ArtifactRef, updates: list[StoredUpdate]
    ) -> ArtifactRef:
        """Combine the updates and plug the result into both models: the round is done."""
        self._enter(Phase.AGGREGATING, "the aggregation")
        before = self._store.server_state(number - 1)
        result, state = await self._compute.run(models.aggregate, adapter, updates, before)
        reach(Point.STEP, "aggregated")
        self._store.commit_adapter(number, result, state)
        self._meter.save()
        await self._compute.run(models.plug_in, result)
        reach(Point.STEP, "plugged-in")
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
        reach(Point.STEP, "gap-measured")
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
        reach(Point.STEP, "re-aligned")
        self._store.commit_alignment(number, patch, before, after)
        self._aligned(number, before, after)

    async def _evaluate(self, models: Models, number: int) -> None:
        """Score both models, when there is test data and it is not done."""
        if not models.scored or any(e.round == number for e in self._store.evaluations()):
            return
        self._enter(Phase.EVALUATING, "the evaluation")
        evaluations = await self._compute.run(models.evaluate, number, self._on_progress)
        reach(Point.STEP, "evaluated")
        self._store.commit_evaluation(*evaluations)
        for evaluation in evaluations:
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

    async def _clear_up(self) -> None:
        """Delete what nothing needs any more, and say what the rest takes."""
        freed = await asyncio.to_thread(retention.collect, self._store)
        self._metrics.collected.inc(freed)
        self._metrics.disk_holds(await asyncio.to_thread(retention.sizes, self._store))

    def _finish(self, adapter: ArtifactRef) -> None:
        self._meter.save()
        reach(Point.STEP, "finishing")
        self._store.end_run(Phase.FINISHED, "all rounds are done")
        self._enter(Phase.FINISHED, "")
        self._journal.record("run_finished", f"finished: adapter {adapter.sha256}", self._standing.round)
        self._sessions.assign_all(StopTask(True, "the run is finished"))

    def finished_before(self) -> None:
        """An earlier process finished the run: tell those who ask."""
        self._enter(Phase.FINISHED, "")
        self._sessions.assign_all(StopTask(True, "the run is finished"))

    @property
    def over(self) -> bool:
        """Whether the run has come to an end, as opposed to this process."""
        return self._standing.phase in (Phase.FINISHED, Phase.FAILED)

    def fail(self, reason: str) -> None:
        """The run ended with an error."""
        self._meter.save()
        if self._store.outcome() is None and self._standing.phase is not Phase.BUILDING:
            self._store.end_run(Phase.FAILED, reason)
        self._enter(Phase.FAILED, "")
        self._journal.record("run_failed", f"failed: {reason}", self._standing.round)
        self._sessions.assign_all(StopTask(False, reason))

    def stopped(self, why: str = "") -> None:
        """This process ends, because the owner wants it or for `why`; the run can go on later."""
        with suppress(StoreError):
            self._meter.save()
        self._enter(Phase.STOPPED, why)
        text = f"stopped{f' ({why})' if why else ''}; the same command goes on"
        self._journal.record("run_stopped", text, self._standing.round)

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
