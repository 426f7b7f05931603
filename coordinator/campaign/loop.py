"""THE LOOP: a run from the foundation model to the tuned one, whoever trains its clients.

Every step is committed to the store before the next begins, and every step asks the store whether
it is already done: started again, the loop goes on where it was.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TypeVar

from common.config.run import RunConfig
from common.errors import StoreError
from common.records import ArtifactKind, ArtifactRef, Phase, StopTask, SubModelRef
from common.run_status import Evaluation
from common.runtime.fault_points import Point, reach
from coordinator.campaign import announcements, schedule, stand_in
from coordinator.campaign.best import best_round, kept_rounds, result_round, scores_of
from coordinator.campaign.gathering import Gathering, without_largest
from coordinator.campaign.progress import RunProgress
from coordinator.campaign.schedule import Scoring
from coordinator.context import RunContext
from coordinator.modelling.building import CHECKPOINT_FILE
from coordinator.modelling.classes import agreed
from coordinator.modelling.correcting import CORRECTION_FILE
from coordinator.modelling.models import Models
from coordinator.storage import retention
from coordinator.storage.corrections import StoredCorrection
from coordinator.storage.store import StoredUpdate

T = TypeVar("T")


class Campaign:
    """Runs one run; maths goes to the run's compute."""

    def __init__(
        self, run: RunContext, progress: RunProgress, gathering: Gathering, scoring: Scoring | None = None
    ) -> None:
        self._run, self._progress, self._gathering = run, progress, gathering
        self._scoring = scoring or Scoring()
        self._store, self._events = run.store, run.events
        self.seconds: defaultdict[str, float] = defaultdict(float)
        """How long the steps took, by name, in this process."""

    async def run(self) -> None:
        """The whole run (FedPFT, Algorithm 1).

        Raises RunFailed, StoreError, and what loading the model and data raises.
        """
        with self._progress.traced("build", 0):
            await self._ask_for_classes()
            models = await self._load()
            sub_fm = await self._sub_model(models)
            done, adapter = await self._first_adapter(models, *sub_fm)
            await self._clear_up()
            await self._evaluate(models, done)
            await self._validate(models, done, adapter)
        while (number := done + 1) <= self._config.rounds.count and not self._stops_early():
            with self._progress.traced("round", number):
                with self._run.metrics.round_seconds.time():
                    updates = await self._gather(models, number, adapter)
                    adapter, updates = await self._aggregate(models, number, adapter, updates)
                await self._measure(models, number)
                await self._realign(models, number, updates)
                await self._evaluate(models, number)
                await self._validate(models, number, adapter)
                done = number
                await self._clear_up()
        done, adapter = await self._result(models, done, adapter)
        if self._config.correction.steps and models.correctable:
            with self._progress.traced("correction", done):
                await self._correct(models, done, adapter)
                await self._clear_up()
        self._finish(done, adapter)

    @property
    def _config(self) -> RunConfig:
        return self._run.config

    # --- the steps ---

    async def _ask_for_classes(self) -> None:
        """Where the configuration asks: the clients' classes, before anything is made for them."""
        if self._config.asks_classes and self._store.classes.get() is None:
            told = await self._gathering.classes()
            classes = await self._timed("loading", agreed, self._config, told)
            self._run.settle(classes)
            self._gathering.classes_known()
            announcements.classes_agreed(self._run, classes)
            reach(Point.STEP, "classes")

    async def _load(self) -> Models:
        self._progress.enter(Phase.BUILDING, "loading the foundation model")
        return await self._timed("loading", Models, self._config, self._store)

    async def _sub_model(self, models: Models) -> tuple[SubModelRef, ArtifactRef]:
        """Cut the sub-FM and align it, or find it done."""
        if stored := self._store.sub_model():
            return stored[:2]
        on_step = self._progress.on_step
        self._progress.enter(Phase.BUILDING, "cutting the sub-FM")
        plan, module = await self._timed("building", models.cut, on_step)
        reach(Point.STEP, "cut")
        if self._config.prunes and self._config.sub_fm.path is None and self._config.aligns_layers:
            self._progress.enter(Phase.ALIGNING, "aligning the sub-FM to the FM")
            before, after = await self._timed("building", models.align_layers, plan, module, on_step)
            announcements.aligned(self._run, 0, before, after)
            reach(Point.STEP, "aligned")
        reference, plan_file, facts = await self._timed("building", models.publish, plan, module)
        self._store.commit_sub_model(reference, plan_file, facts)
        (self._store.directory / CHECKPOINT_FILE).unlink(missing_ok=True)
        self._events.record(
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
        fresh = await self._timed("building", models.equip, reference, plan)
        if self._store.latest_adapter() is None:
            self._store.commit_adapter(0, self._store.artifacts.add_tensors(ArtifactKind.ADAPTER, fresh))
        latest = self._store.latest_adapter()
        assert latest is not None
        number, adapter = latest
        models.plug_in(adapter)
        await self._measure(models, number)
        if not number:
            await self._judge(models)
        if number:
            self._events.record("run_resumed", f"going on after round {number}", number)
            # A run that an earlier version began has no record of what was accepted: it was everything.
            await self._realign(models, number, self._store.accepted(number) or self._store.updates(number))
        return number, adapter

    async def _gather(self, models: Models, number: int, adapter: ArtifactRef) -> list[StoredUpdate]:
        """Have clients train from the adapter."""
        with self._timing("training"):
            return await self._gathering.gathered(models, number, adapter)

    async def _aggregate(
        self, models: Models, number: int, adapter: ArtifactRef, updates: list[StoredUpdate]
    ) -> tuple[ArtifactRef, list[StoredUpdate]]:
        """Combine the updates and plug the result into both models: the round is done.

        What would spoil the models is set aside before anything is decided; returns what counts, too.
        """
        self._progress.enter(Phase.AGGREGATING, "the aggregation")
        before = self._store.server_state(number - 1)
        while True:
            result, state = await self._timed("aggregating", models.aggregate, adapter, updates, before)
            problem = await self._timed("inspecting", models.inspect, result)
            if problem is None:
                break
            updates = await without_largest(self._run, number, updates, problem)
        reach(Point.STEP, "aggregated")
        made_of = None if self._config.sums_only else [u.worker for u in updates]
        self._store.commit_adapter(number, result, state, made_of)
        self._run.traffic.save()
        models.plug_in(result)
        reach(Point.STEP, "plugged-in")
        count = len(self._store.survivors(number) or updates)
        self._events.record(
            "round_closed",
            f"round {number}: {count} updates aggregated, adapter {result.sha256[:12]}…",
            number,
            updates=count,
            examples=sum(u.examples for u in updates),
        )
        return result, updates

    async def _measure(self, models: Models, number: int) -> None:
        """Measure the gradient gap, when it can be and is not done."""
        if not models.gap_measurable or not self._config.gradient_gap.batches:
            return
        if any(gap.round == number for gap in self._store.gaps()):
            return
        gap = await self._timed("measuring", models.measure_gap, number)
        reach(Point.STEP, "gap-measured")
        self._store.commit_gap(gap)
        self._run.metrics.gap_measured(gap)
        self._events.record(
            "gradient_gap",
            f"round {number}: the sub-FM's gradient has cosine {gap.cosine:.3f} with the FM's "
            f"and {gap.norm_ratio:.2f} times its norm: drift {gap.drift:.3f}",
            number,
            cosine=gap.cosine,
            norm_ratio=gap.norm_ratio,
            drift=gap.drift,
        )

    async def _judge(self, models: Models) -> None:
        """Say how good a stand-in the sub-FM is, before anything is tuned on it, if that is not done."""
        if models.gap_measurable and not self._store.events.last_of(stand_in.KINDS, 1):
            gap = next((gap for gap in self._store.gaps() if gap.round == 0), None)
            stand_in.judge(self._run, gap, await self._timed("measuring", models.perplexities))
        for judgement in self._store.events.last_of(stand_in.KINDS, 1):
            stand_in.require(self._run, judgement)

    def _realigns_after(self, number: int) -> bool:
        """Whether an alignment follows this round."""
        drift = next((gap.drift for gap in self._store.gaps() if gap.round == number), None)
        return schedule.realigns_after(self._config, number, drift)

    async def _realign(self, models: Models, number: int, updates: list[StoredUpdate]) -> None:
        """Neuron-level alignment, when it is due and not done."""
        if not self._realigns_after(number) or self._store.alignments.done_after(number):
            return
        self._progress.enter(Phase.ALIGNING, "re-aligning the sub-FM's neurons")
        patch, before, after = await self._timed(
            "re-aligning", models.align_neurons, updates, number, self._progress.on_step
        )
        reach(Point.STEP, "re-aligned")
        self._store.alignments.commit(number, patch, before, after)
        announcements.aligned(self._run, number, before, after)

    async def _evaluate(self, models: Models, number: int, result: bool = False) -> None:
        """Score the models, when it is due or they are the `result`, on test data, when it is not done."""
        count = number if result else self._config.rounds.count
        if not (models.scored and self._scoring.due(number, count)):
            return
        if any(e.round == number for e in self._store.evaluations()):
            return
        await self._score(models.evaluate, number, self._scoring.fm_only(number, count))

    async def _score(self, score: Callable[..., list[Evaluation]], *arguments: object) -> None:
        self._progress.enter(Phase.EVALUATING, "the evaluation")
        evaluations = await self._timed("scoring", score, *arguments, self._progress.on_step)
        reach(Point.STEP, "evaluated")
        self._store.commit_evaluation(*evaluations)
        announcements.evaluated(self._run, evaluations)

    async def _validate(self, models: Models, number: int, adapter: ArtifactRef) -> None:
        """Have clients score the sub-FM with the adapter on what they keep aside, when it is due."""
        with self._timing("validating"):
            await self._gathering.validate(models, number, adapter)
        self._run.metrics.best.set(best_round(self._store, self._config) or 0)

    def _stops_early(self) -> bool:
        """Whether the scores have not become better for as long as the run is patient."""
        patience = self._config.rounds.patience
        return patience is not None and scores_of(self._store, self._config).stale(patience)

    async def _result(self, models: Models, done: int, adapter: ArtifactRef) -> tuple[int, ArtifactRef]:
        """The round whose adapter is the run's result: both models are as they were after it."""
        if done < self._config.rounds.count:
            announcements.stopped_early(self._run, done, scores_of(self._store, self._config))
        number = result_round(self._store, self._config)
        if number == done:
            await self._evaluate(models, number, result=True)
            return done, adapter
        kept, stored = self._store.adapter_after(number), self._store.sub_model(number)
        if kept is None or stored is None:
            raise StoreError(f"the adapter after round {number}, the best one, is not kept any more")
        await self._timed("building", models.go_back, stored[0])
        models.plug_in(kept)
        await self._evaluate(models, number, result=True)
        return number, kept

    async def _correct(self, models: Models, number: int, adapter: ArtifactRef) -> None:
        """Distil what the sub-FM has learnt into the FM, and score that, when it is not done."""
        if (correction := self._store.corrections.of(number)) is None:
            correction = await self._corrected(models, number, adapter)
        done = any(e.model == "corrected" and e.round == number for e in self._store.evaluations())
        if correction.adapter is not None and models.scored and not done:
            await self._score(models.evaluate_corrected, correction.adapter, number)

    async def _corrected(self, models: Models, number: int, adapter: ArtifactRef) -> StoredCorrection:
        self._progress.enter(Phase.CORRECTING, "the correction")
        before = self._store.adapter_after(number - 1)
        found = await self._timed("correcting", models.correct, adapter, before, self._progress.on_step)
        reach(Point.STEP, "corrected")
        file = None
        if found.adapter is not None:
            file = self._store.artifacts.add_tensors(ArtifactKind.CORRECTED, found.adapter)
        correction = StoredCorrection(file, found.before, found.after)
        self._store.corrections.commit(number, correction)
        (self._store.directory / CORRECTION_FILE).unlink(missing_ok=True)
        announcements.corrected(self._run, number, correction)
        return correction

    async def _clear_up(self) -> None:
        """Delete what nothing needs any more, and say what the rest takes."""
        best = kept_rounds(self._store, self._config)
        freed = await self._run.compute.run(retention.collect, self._store, self._config.rounds.kept, best)
        self._run.metrics.collected.inc(freed)
        self._run.metrics.disk_holds(await self._run.compute.run(retention.sizes, self._store))

    def _finish(self, number: int, adapter: ArtifactRef) -> None:
        self._run.traffic.save()
        reach(Point.STEP, "finishing")
        self._store.end_run(Phase.FINISHED, "all rounds are done")
        self._progress.enter(Phase.FINISHED, "")
        newest = self._store.latest_adapter()
        which = f", the best one, of round {number}" if newest and newest[0] != number else ""
        text = f"finished: adapter {adapter.sha256}{which}"
        self._events.record("run_finished", text, self._progress.round)
        self._gathering.dismiss(StopTask(True, "the run is finished"))

    # --- how it ended otherwise ---

    def finished_before(self) -> None:
        """An earlier process finished the run: tell those who ask."""
        self._progress.enter(Phase.FINISHED, "")
        self._gathering.dismiss(StopTask(True, "the run is finished"))

    @property
    def over(self) -> bool:
        """Whether the run has come to an end, as opposed to this process."""
        return self._progress.phase in (Phase.FINISHED, Phase.FAILED)

    def fail(self, reason: str) -> None:
        """The run ended with an error."""
        self._run.traffic.save()
        if self._store.outcome() is None and self._progress.phase is not Phase.BUILDING:
            self._store.end_run(Phase.FAILED, reason)
        self._progress.enter(Phase.FAILED, "")
        self._events.record("run_failed", f"failed: {reason}", self._progress.round)
        self._gathering.dismiss(StopTask(False, reason))

    def stopped(self, why: str = "") -> None:
        """This process ends, because the owner wants it or for `why`; the run can go on later."""
        with suppress(StoreError):
            self._run.traffic.save()
        self._progress.enter(Phase.STOPPED, why)
        text = f"stopped{f' ({why})' if why else ''}; the same command goes on"
        self._events.record("run_stopped", text, self._progress.round)

    # --- parts ---

    async def _timed(self, step: str, work: Callable[..., T], *arguments: object) -> T:
        """The result of `work`, computed where the run computes."""
        with self._timing(step):
            return await self._run.compute.run(work, *arguments)

    @contextmanager
    def _timing(self, step: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self.seconds[step] += time.monotonic() - begun
