"""A run in one process: the services' own campaign, with clients that are trained here or on a cluster.

The same configuration and data give the same bits as a run of real services, which beside this
move artifacts and are talked to.
"""

from collections import Counter
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from uuid import uuid4

import torch

from common.config.run import RunConfig
from common.data.answers import names_in
from common.data.batches import Dataset
from common.data.examples import Examples
from common.errors import CannotTrain, RunFailed
from common.listing import first_workers
from common.model.ring_update import noise_grid, ring_schema, ring_tensors, secure_round, weight_of
from common.model.scores import score_sums
from common.model.submodel import Held
from common.model.update import update_tensors
from common.privacy.accounting import require_installed
from common.privacy.noise import SecretDraws
from common.records import ArtifactKind, ArtifactRef, ClassCounts, Phase, ScoreSums, StopTask
from common.run_status import Evaluation
from common.runtime import seeds
from common.runtime.compute import InlineCompute
from common.secagg.records import SecureRound
from common.storage.tensors import TensorFile
from coordinator.campaign import schedule
from coordinator.campaign.gathering import Gathering, summed
from coordinator.campaign.loop import Campaign
from coordinator.campaign.progress import RunProgress
from coordinator.campaign.schedule import Scoring
from coordinator.campaign.secure_gathering import told
from coordinator.context import RunContext, identity
from coordinator.federation.rounds import RoundPhase
from coordinator.modelling.content import require_same
from coordinator.modelling.models import Models
from coordinator.storage.store import Store, StoredUpdate
from coordinator.tracking.process import tracked
from experiments.clients import Clients, ClientTask, LocalClients, RoundTask, SubModel

T = TypeVar("T")

# Told what goes on: what is done, steps of it done and in all.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Simulated:
    """What a run came to. `seconds` are by step, of this process; empty when it was done before."""

    evaluations: tuple[Evaluation, ...]
    seconds: Mapping[str, float]


def simulate(
    config: RunConfig,
    clients: Mapping[str, Examples],
    on_progress: OnProgress = lambda what, step, steps: None,
    *,
    score_every: int | None = None,
    score_sub_fm: bool = False,
    score_before: bool = False,
    trained_by: Clients | None = None,
    validation: Mapping[str, Examples] | None = None,
) -> Simulated:
    """Run `config` on these clients' data, by name; a run that broke off goes on, a finished one is not run.

    Both models are scored after the last round, after every `score_every`-th the FM with the adapter
    plugged in; with `score_sub_fm` also the sub-FM, with `score_before` both before the first round.
    `trained_by` says where the clients are trained: None, in this process. `validation` is what clients
    keep aside, by name: scored after the rounds that config.validation names.

    The store in config.run.directory holds everything else.
    """
    if config.compute.threads:
        torch.set_num_threads(config.compute.threads)
    store = Store(config.run.directory)
    try:
        store.open_run(uuid4().hex[:12], identity(config))
        if store.outcome() == Phase.FINISHED:
            return Simulated(store.evaluations(), {})
        require_same(store, config)
        if config.private_examples:
            require_installed()
        run = RunContext.of(config, store, InlineCompute())
        progress = RunProgress(run, lambda: on_progress(progress.waiting_for, *progress.steps))
        gathering = ClientGathering(run, progress, clients, trained_by or LocalClients(), validation or {})
        if config.rounds.patience is not None and not config.validation.every:
            # The owner's scores decide when it ends.
            score_every = 1
        scoring = Scoring(before=score_before, every=score_every, sub_fm=score_sub_fm)
        campaign = Campaign(run, progress, gathering, scoring)
        with tracked(config):
            _run_at_once(campaign.run())
        return Simulated(store.evaluations(), campaign.seconds)
    finally:
        store.close()


def _run_at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that never waits: everything it asks for is there at once.

    So that nothing stands between a Ctrl-C and the computation that it ends, as an event loop would.
    """
    try:
        coroutine.send(None)
    except StopIteration as ended:
        result: T = ended.value
        return result
    raise RuntimeError("a simulated run waits for something")


class ClientGathering(Gathering):
    """Has simulated clients train, one call for all that are drawn."""

    def __init__(
        self,
        run: RunContext,
        progress: RunProgress,
        clients: Mapping[str, Examples],
        trained_by: Clients,
        validation: Mapping[str, Examples],
    ) -> None:
        super().__init__(run)
        self._progress, self._clients, self._trained_by = progress, clients, trained_by
        self._validation = validation
        self._data: dict[str, Dataset] = {}
        self._aside: dict[str, Dataset] = {}

    async def classes(self) -> list[ClassCounts]:
        """Of all clients: none of them is late."""
        kind = self._run.config.task.kind
        return [
            ClassCounts(name, len(examples), Counter(names_in(examples, kind)))
            for name, examples in sorted(self._clients.items())
        ]

    def classes_known(self) -> None:
        """Nobody waits."""

    async def gather(self, models: Models, number: int, adapter: ArtifactRef) -> list[StoredUpdate]:
        """Every drawn client's local fine-tuning."""
        config, store = self._run.config, self._run.store
        if (accepted := store.accepted(number)) is not None:
            return accepted
        drawn = schedule.select(config, number, sorted(self._clients))
        attempt = store.open_try(number, drawn)
        self._progress.enter_round(number)
        self._progress.enter(Phase.TRAINING, f"round {number}")
        within = self._within(models, number, adapter, attempt, drawn) if config.privacy.secure else None
        cannot = self._train(models, number, adapter, drawn, within)
        updates = store.updates(number)
        minimum = config.rounds.minimum if within is None else within.minimum
        if len(updates) < minimum:
            store.close_try(number, attempt, RoundPhase.SHORT)
            missing = first_workers(f"{name} ({reason})" for name, reason in cannot.items())
            raise RunFailed(f"round {number} missed its minimum of {minimum} updates; missing: {missing}")
        aside = await self._set_aside(number, updates)
        store.close_try(number, attempt, RoundPhase.CLOSED, {u.worker for u in updates} - aside.keys())
        if within is not None:
            await summed(self._run, within, updates)
        accepted = store.accepted(number)
        assert accepted is not None
        return accepted

    async def _scores(self, models: Models, number: int, adapter: ArtifactRef) -> dict[str, ScoreSums]:
        """Of every drawn client on what it keeps aside: the worker's own arithmetic, on the same sub-FM."""
        validations, spec = self._run.store.validations, self._run.spec
        drawn = schedule.validators(self._run.config, number, sorted(self._validation))
        validations.open_try(number, drawn)
        self._progress.enter(Phase.EVALUATING, f"scores after round {number}")
        sub_fm = models.tuned_sub_fm
        sub_fm.load(models.tensors(adapter))
        for done, name in enumerate(drawn, start=1):
            if name not in self._aside:
                self._aside[name] = models.encoded(self._validation[name])
            try:
                scores = score_sums(
                    sub_fm.model,
                    self._aside[name],
                    len(self._validation[name]),
                    spec.task.kind,
                    spec.task.labels,
                )
            except CannotTrain as error:
                text = f"round {number}: worker {name} cannot go on: {error}"
                self._run.events.record("worker_cannot", text, number, name)
                continue
            validations.commit_scores(number, name, scores)
            self._progress.on_step(done, len(drawn))
        return validations.scores(number)

    def dismiss(self, task: StopTask) -> None:
        """Nobody waits."""

    def _within(
        self, models: Models, number: int, adapter: ArtifactRef, attempt: int, drawn: list[str]
    ) -> SecureRound:
        """Of a run that takes only sums: what bounds and rounds the clients' updates, as the workers'."""
        task, counted = self.train_task(models, number, adapter, attempt)
        schema = TensorFile(self._run.store.artifacts.path(adapter.sha256)).schema()
        spec = self._run.spec
        return secure_round(
            spec,
            replace(task, secure=told(self._run, number, drawn, {})),
            ring_schema(schema, spec, counted),
        )

    def _train(
        self,
        models: Models,
        number: int,
        adapter: ArtifactRef,
        drawn: list[str],
        within: SecureRound | None = None,
    ) -> dict[str, CannotTrain]:
        """Commit the clients' updates; returns why some have none."""
        config, store, spec = self._run.config, self._run.store, self._run.spec
        task = RoundTask(
            models.tensors(adapter),
            spec.training,
            schedule.learning_rate_factor(config, number),
            tuple(models.counted_layers) if schedule.counts_in(config, number) else (),
            models.zero_rule,
            config.realignment.zero_threshold,
            spec.dp,
        )
        clients = [
            ClientTask(
                name, self._dataset(models, name), seeds.derive(spec.seed, "train", name, number) % 2**62
            )
            for name in drawn
        ]
        updates = self._trained_by.train(models.tuned_sub_fm, lambda: self._sub_model(models), task, clients)
        cannot = {}
        for done, (name, update) in enumerate(zip(drawn, updates, strict=True), start=1):
            self._progress.on_step(done, len(drawn))
            if isinstance(update, CannotTrain):
                text = f"round {number}: worker {name} cannot go on: {update}"
                self._run.events.record("worker_cannot", text, number, name)
                cannot[name] = update
                continue
            examples, loss = len(self._clients[name]), update.loss
            if within is None:
                tensors = update_tensors(update.delta, update.counts)
            else:
                assert spec.secure is not None
                weight = weight_of(examples, spec.secure)
                grid = noise_grid(spec.dp, within)
                noise = None if grid is None else (grid, SecretDraws())
                tensors = ring_tensors(update.delta, update.counts, weight, loss, within, noise)
                examples, loss = 0, 0.0
            artifact = store.artifacts.add_tensors(ArtifactKind.UPDATE, tensors)
            targets = update.targets if spec.asks_targets else 0
            received = StoredUpdate(name, artifact.sha256, examples, loss, 0.0, targets)
            store.commit_update(number, received, artifact.size)
        return cannot

    def _sub_model(self, models: Models) -> SubModel:
        """The sub-FM as it is now, to be built elsewhere."""
        stored = self._run.store.sub_model()
        assert stored is not None
        reference, spec = stored[0], self._run.spec
        return SubModel(
            "/".join(artifact.sha256 for artifact in (reference.base, *reference.patches)),
            reference.config_json,
            spec.task,
            reference.ffn_widths,
            models.tensors(reference.base),
            tuple(models.tensors(patch) for patch in reference.patches),
            spec.adapter,
            self._run.config.compute.threads,
            Held(spec.quantization, reference.new_modules),
        )

    def _dataset(self, models: Models, name: str) -> Dataset:
        if name not in self._data:
            self._data[name] = models.encoded(self._clients[name])
        return self._data[name]
