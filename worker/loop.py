"""THE LOOP of a worker: take the newest task, bring the sub-FM up to date, train or score, submit."""

import asyncio
import logging
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from common.errors import (
    BadMessage,
    BadScores,
    BadUpdate,
    CannotTrain,
    RunFailed,
    StaleRound,
    Stopped,
)
from common.model.update import update_tensors
from common.observability import tracing
from common.observability.logs import log_about
from common.records import (
    Activity,
    ArtifactRef,
    EvaluateTask,
    JoinReply,
    ModelTask,
    Progress,
    RunSpec,
    StopTask,
    SubmittedScores,
    Task,
    TrainTask,
    UpdateHeader,
    WaitTask,
)
from common.runtime.compute import Compute
from common.runtime.fault_points import Point, reach
from common.storage.tensors import header_of, to_bytes
from worker.cannot import as_cannot_train
from worker.client import CoordinatorClient
from worker.contact import Contact
from worker.data import PrivateData
from worker.download_limits import named
from worker.joining import joined, require_wanted, require_weights, with_labels
from worker.local_model import LocalModel, Place
from worker.metrics import Metrics
from worker.outbox import Outbox, question_of
from worker.same_work import same_try, same_work
from worker.secure import SecureDesk
from worker.secure_policy import require_as_joined

log = logging.getLogger(__name__)


class Worker:
    """One worker in one run. Several can share a process and its compute thread."""

    def __init__(
        self,
        name: str,
        coordinator: CoordinatorClient,
        data: PrivateData,
        place: Place,
        compute: Compute,
        metrics: Metrics,
    ) -> None:
        self._name, self._coordinator, self._data = name, coordinator, data
        self._place, self._compute, self._metrics = place, compute, metrics
        self._outbox = Outbox(place.folder / "outbox")
        self._contact = Contact(coordinator, metrics)
        self.joined: Callable[[RunSpec], None] = lambda run: None  # Told of the run, once it is entered.
        self.rounds = 0  # For which an update was delivered.

    async def run(self) -> None:
        """Join, work, and leave when the run is over.

        Raises RunFailed when the run failed, DataError when the run does not know a label, and what
        the connection raises for good.
        """
        reply = await joined(self._name, self._coordinator, self._data, self._place)
        reply = replace(reply, run=await with_labels(reply.run, self._coordinator, self._place))
        log_about(run=reply.run.run_id)
        log.info("joined run %s", reply.run.run_id)
        self.joined(reply.run)
        reason = "stopped"
        try:
            require_wanted(self._place, reply.run, self._data)
            require_weights(reply.run)
            self._data.require(reply.run.task)
            stop = await self._accompanied(reply)
            reason = stop.reason
        except Exception as error:
            # Its text could hold private data, such as a label; the class does not.
            reason = f"cannot go on: {type(error).__name__}"
            raise
        finally:
            await self._coordinator.leave(reason)
        if not stop.finished:
            raise RunFailed(f"the run ended early: {stop.reason}")
        log.info("the run is finished")

    async def _accompanied(self, reply: JoinReply) -> StopTask:
        """Work, with the watch for tasks and the heartbeat beside it."""
        model = LocalModel(self._name, reply.run, self._data, self._place)
        if reply.run.secure is not None:
            folder = self._place.folder / "secure"
            self._contact.desk = SecureDesk(
                self._name, reply.run, self._coordinator, self._outbox, folder, self._place.secure
            )
        try:
            async with asyncio.TaskGroup() as group:
                beside = [
                    group.create_task(self._contact.watch()),
                    group.create_task(self._contact.beat(reply.heartbeat_seconds)),
                    group.create_task(self._contact.attend()),
                ]
                stop = await self._work(model)
                for task in beside:
                    task.cancel()
        except ExceptionGroup as failures:
            # One of them failed for good; the others were cancelled with it.
            raise failures.exceptions[0] from None
        if stop.finished and self._contact.desk is not None:
            self._contact.desk.finished()
        return stop

    async def _work(self, model: LocalModel) -> StopTask:
        """Do task after task, always the newest, until told to stop."""
        done: Task | None = None
        # What a coordinator refused that had just started again is done anew when it tells of it again.
        stale = math.inf
        while True:
            task, told = self._contact.task, self._contact.told
            if task is None or (done and same_try(task, done) and told <= stale):
                await self._contact.changed.wait()
                continue
            done, stale = task, math.inf
            match task:
                case StopTask():
                    return task
                case WaitTask(reason):
                    log.info("waiting: %s", reason)
                case TrainTask() | EvaluateTask():
                    trouble = ""
                    try:
                        with self._traced(model.run, task):
                            await self._do(model, task)
                    except Stopped:
                        log.info("round %d goes on without this worker", task.round)
                    except StaleRound as error:
                        stale = told
                        log.warning("round %d: %s", task.round, error)
                    except CannotTrain as error:
                        trouble = str(error)
                        log.error("round %d: %s", task.round, error)
                    self._contact.report(
                        Progress(Activity.IDLE, task.round, trouble=trouble, attempt=task.attempt)
                    )
                    if trouble:
                        self._contact.hurry()

    async def _do(self, model: LocalModel, task: ModelTask) -> None:
        require_as_joined(model.run, task)
        self._place.rest.require()
        match task:
            case TrainTask():
                await self._train(model, task)
            case EvaluateTask():
                await self._score(model, task)

    async def _train(self, model: LocalModel, task: TrainTask) -> None:
        """One round: fetch what is missing, fine-tune, deliver the change."""
        log_about(round=task.round)
        reach(Point.STEP, "task-taken")
        if task.secure is not None:
            await self._bring_keys(model, task)
        question = question_of(model.run, self._name, self._data.digest, task)
        finished = await asyncio.to_thread(self._outbox.find, question)
        if finished is None:
            finished = await self._fine_tune(model, task, question)
        else:
            log.info("round %d: its update is finished already", task.round)
        self._metrics.epsilon.set(await asyncio.to_thread(model.pay, task, self._outbox.noise_key))
        if task.secure is not None:
            finished = await self._mask(task, *finished)
        self._contact.report(replace(self._contact.progress, activity=Activity.UPLOADING, round=task.round))
        with self._metrics.timed("upload"):
            duplicate = await self._submit(*finished)
        log.info("round %d: receipt for update %s", task.round, finished[0].sha256)
        reach(Point.STEP, "delivered")
        self.rounds += 1
        self._metrics.updates.labels("duplicate" if duplicate else "accepted").inc()

    async def _bring_keys(self, model: LocalModel, task: TrainTask) -> None:
        """Of a round that sums masked updates: have a part in the masks. Raises CannotTrain."""
        desk = self._contact.desk
        assert desk is not None
        with as_cannot_train():
            await self._compute.run(model.judge, task)
            folder = self._place.folder / "artifacts"
            adapter = await self._coordinator.download(task.adapter, folder)
            await desk.begin(task, header_of(adapter))

    async def _mask(self, task: TrainTask, header: UpdateHeader, path: Path) -> tuple[UpdateHeader, Path]:
        """The update as it goes out, once it is known with whom masks are shared. Raises CannotTrain,
        Stopped."""
        desk = self._contact.desk
        assert desk is not None
        while not desk.agreed:
            if desk.refused:
                raise CannotTrain(desk.refused)
            if self._contact.task is None or not same_try(self._contact.task, task):
                raise Stopped("another task came")
            await self._contact.changed.wait()
        with as_cannot_train():
            return await asyncio.to_thread(desk.masked, header, path, len(self._data))

    async def _submit(self, header: UpdateHeader, path: Path) -> bool:
        """Deliver; returns whether it had been before. Raises CannotTrain when it is refused for good."""
        try:
            return await self._coordinator.submit(header, path)
        except StaleRound:
            self._metrics.updates.labels("refused").inc()
            raise
        except (BadUpdate, BadMessage) as error:
            self._metrics.updates.labels("refused").inc()
            # Asked again, this worker trains again: what spoilt this one may have passed.
            await asyncio.to_thread(self._outbox.drop)
            raise CannotTrain(f"the coordinator refused the update: {error}") from error

    async def _fine_tune(
        self, model: LocalModel, task: TrainTask, question: str
    ) -> tuple[UpdateHeader, Path]:
        """Fetch what is missing, train, and keep the update. Raises CannotTrain when that cannot be."""
        with as_cannot_train():
            files = await self._bring_up(model, task)
            begun = time.monotonic()
            with self._metrics.timed("train"), self._place.rest.training():
                update = await self._compute.run(
                    model.train, task, files[task.adapter.sha256], self._stepper(task)
                )
        seconds = time.monotonic() - begun
        # Under differential privacy there is none.
        loss = "" if model.run.dp else f", loss {update.loss:.3f}"
        log.info("round %d: %d steps in %.1f s%s", task.round, update.steps, seconds, loss)
        reach(Point.STEP, "trained")
        tensors = update_tensors(update.delta, update.counts)
        header = UpdateHeader(
            session="",
            round=task.round,
            adapter_sha256=task.adapter.sha256,
            size=0,
            sha256="",
            examples=len(self._data),
            loss=update.loss,
            seconds=seconds,
            targets=update.targets if model.run.asks_targets else 0,
        )
        return await asyncio.to_thread(self._outbox.keep, question, header, to_bytes(tensors))

    async def _score(self, model: LocalModel, task: EvaluateTask) -> None:
        """Between rounds: score the sub-FM on what is kept aside, and deliver the sums."""
        log_about(round=task.round)
        reach(Point.STEP, "evaluation-taken")
        with as_cannot_train():
            files = await self._bring_up(model, task)
            with self._metrics.timed("score"):
                adapter = files[task.adapter.sha256]
                scores = await self._compute.run(model.score, adapter, self._score_stepper(task))
        reach(Point.STEP, "scored")
        submitted = SubmittedScores("", task.round, task.adapter.sha256, scores)
        try:
            await self._coordinator.submit_scores(submitted)
        except (BadScores, BadMessage) as error:
            raise CannotTrain(f"the coordinator refused the scores: {error}") from error
        log.info("round %d: receipt for scores on %d examples", task.round, scores.examples)
        reach(Point.STEP, "scores-delivered")

    async def _bring_up(self, model: LocalModel, task: ModelTask) -> dict[str, Path]:
        """Fetch what is missing, and have the sub-FM at the task's version."""
        await self._compute.run(model.judge, task)
        self._contact.report(Progress(Activity.DOWNLOADING, task.round))
        with self._metrics.timed("download"):
            files = await self._fetch(task, model.lacks(task.sub_model))
        reach(Point.STEP, "fetched")
        await self._compute.run(model.equip, task.sub_model, files)
        reach(Point.STEP, "equipped")
        return files

    async def _fetch(self, task: ModelTask, lacking: list[ArtifactRef]) -> dict[str, Path]:
        """Download into the cache, and drop from it what this task does not name."""
        folder = self._place.folder / "artifacts"
        wanted = [*lacking, task.adapter]
        files = {a.sha256: await self._coordinator.download(a, folder) for a in wanted}
        kept = {a.sha256 for a in named(task)}
        for path in folder.iterdir():
            if path.name not in kept:
                path.unlink()
        return files

    # --- parts ---

    def _stepper(self, task: TrainTask) -> Callable[[int, int, float], None]:
        """Called from the compute thread after every step."""

        def on_step(step: int, steps: int, loss: float) -> None:
            self._contact.report(Progress(Activity.TRAINING, task.round, step, steps, loss))
            self._metrics.steps.inc()
            self._place.rest.look()
            reach(Point.STEP, "trained-a-step")
            self._compute.check()
            if self._contact.task is None or not same_work(self._contact.task, task):
                raise Stopped("another task came")

        return on_step

    def _score_stepper(self, task: EvaluateTask) -> Callable[[int, int], None]:
        """Called from the compute thread before every batch."""

        def on_step(step: int, steps: int) -> None:
            self._contact.report(Progress(Activity.SCORING, task.round, step, steps))
            reach(Point.STEP, "scored-a-batch")
            self._compute.check()
            if self._contact.task is None or not same_work(self._contact.task, task):
                raise Stopped("another task came")

        return on_step

    def _traced(self, run: RunSpec, task: ModelTask) -> AbstractContextManager[None]:
        """A span around the work on a task, below the coordinator's round."""
        about = {"run": run.run_id, "worker": self._name}
        return tracing.span("task", task.traceparent, **about, round=task.round, attempt=task.attempt)
