"""A run in one process: the coordinator's and the worker's own code, without the network between.

The same configuration and data give the same bits as a run of real services, which beside this
move artifacts and survive interruptions.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import torch

from common import seeds
from common.batches import Dataset
from common.config import RunConfig
from common.examples import Examples
from common.model import apoz
from common.records import ArtifactKind, ArtifactRef, Evaluation, Phase
from common.tensors import Prefixed
from coordinator import schedule
from coordinator.algorithms.outliers import outliers
from coordinator.gathering import update_norms
from coordinator.inbox import APOZ, DELTA
from coordinator.models import Models
from coordinator.process import identity, run_spec
from coordinator.store import Store, StoredUpdate
from experiments.clients import Clients, ClientTask, LocalClients, RoundTask, SubModel

# Told what goes on: what is done, steps of it done and in all.
OnProgress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Simulated:
    """What a run came to. `seconds` are by phase, of this process; empty when it was done before."""

    evaluations: tuple[Evaluation, ...]
    seconds: Mapping[str, float]


def simulate(
    config: RunConfig,
    clients: Mapping[str, Examples],
    on_progress: OnProgress = lambda what, step, steps: None,
    *,
    score_every: int | None = None,
    score_sub_fm: bool = False,
    trained_by: Clients | None = None,
) -> Simulated:
    """Run `config` on these clients' data, by name.

    Both models are scored after the last round, after every `score_every`-th the FM with the adapter
    plugged in; with `score_sub_fm` also the sub-FM.
    `trained_by` says where the clients are trained: None, in this process.

    The store in config.run.directory holds everything else. A finished run is not run again.
    """
    store = Store(config.run.directory)
    try:
        store.open_run(uuid4().hex[:12], identity(config))
        seconds: Mapping[str, float] = {}
        if store.outcome() != Phase.FINISHED:
            run = _Simulation(config, store, clients, on_progress, trained_by or LocalClients())
            run.run(score_every, score_sub_fm)
            seconds = run.seconds
        return Simulated(store.evaluations(), seconds)
    finally:
        store.close()


class _Simulation:
    def __init__(
        self,
        config: RunConfig,
        store: Store,
        clients: Mapping[str, Examples],
        on_progress: OnProgress,
        trained_by: Clients,
    ) -> None:
        self._config, self._store, self._clients = config, store, clients
        self._on_progress, self._trained_by = on_progress, trained_by
        self.seconds: dict[str, float] = defaultdict(float)
        if config.compute.threads:
            torch.set_num_threads(config.compute.threads)
        self._models = Models(config, store)
        self._spec = run_spec(store.run_id(), config)
        self._data: dict[str, Dataset] = {}

    def run(self, score_every: int | None, score_sub_fm: bool) -> None:
        """The loop of coordinator.campaign, with the clients' training in its middle."""
        models, store, config = self._models, self._store, self._config
        with self._timed("building"):
            plan, sub_fm = models.cut(self._in("cutting"))
            if config.prunes and config.sub_fm.path is None and config.aligns_layers:
                models.align_layers(plan, sub_fm, self._in("aligning"))
            store.commit_sub_model(*models.publish(plan, sub_fm))
        stored = store.sub_model()
        assert stored is not None
        adapter = store.add_tensors(ArtifactKind.ADAPTER, models.equip(*stored[:2]))
        store.commit_adapter(0, adapter)
        models.plug_in(adapter)
        self._measure(0)
        for number in range(1, config.rounds.count + 1):
            with self._timed("training"):
                updates = self._counted(self._train(number, adapter))
            with self._timed("aggregating"):
                adapter, state = models.aggregate(adapter, updates, store.server_state(number - 1))
                store.commit_adapter(number, adapter, state)
                models.plug_in(adapter)
            if schedule.realigns_after(config, number, self._measure(number)):
                with self._timed("re-aligning"):
                    aligned = models.align_neurons(updates, number, self._in("re-aligning"))
                    store.commit_alignment(number, *aligned)
            last = number == config.rounds.count
            if models.scored and (last or (score_every is not None and number % score_every == 0)):
                fm_only = not (last or score_sub_fm)
                with self._timed("scoring"):
                    for evaluation in models.evaluate(number, self._in("scoring"), fm_only):
                        store.commit_evaluation(evaluation)
        store.end_run(Phase.FINISHED, "all rounds are done")

    def _counted(self, updates: list[StoredUpdate]) -> list[StoredUpdate]:
        """Without those that are far larger than the others, as a coordinator sets them aside."""
        factor = self._config.aggregation.norm_limit
        if factor is None:
            return updates
        norms = update_norms(self._store, updates)
        aside = outliers(norms, factor, self._config.rounds.minimum)
        return [update for update in updates if update.worker not in aside]

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        begun = time.monotonic()
        yield
        self.seconds[phase] += time.monotonic() - begun

    def _measure(self, number: int) -> float | None:
        """The drift after a round, where it is measured."""
        if not self._models.gap_measurable or not self._config.gradient_gap.batches:
            return None
        with self._timed("measuring"):
            gap = self._models.measure_gap(number)
        self._store.commit_gap(gap)
        return gap.drift

    def _train(self, number: int, adapter: ArtifactRef) -> list[StoredUpdate]:
        """Every drawn client's local fine-tuning."""
        models, store, config = self._models, self._store, self._config
        drawn = schedule.select(config, number, sorted(self._clients))
        task = RoundTask(
            models.tensors(adapter),
            self._spec.training,
            schedule.learning_rate_factor(config, number),
            tuple(models.counted_layers) if schedule.may_realign_after(config, number) else (),
            models.zero_rule,
            config.realignment.zero_threshold,
        )
        clients = [
            ClientTask(
                name,
                self._dataset(name),
                seeds.derive(self._spec.seed, "train", name, number) % 2**62,
            )
            for name in drawn
        ]
        updates = self._trained_by.train(models.tuned_sub_fm, self._sub_model, task, clients)
        for done, (name, update) in enumerate(zip(drawn, updates, strict=True), start=1):
            tensors = Prefixed.add(update.delta, DELTA)
            tensors |= Prefixed.add(apoz.to_tensors(update.counts), APOZ)
            artifact = store.add_tensors(ArtifactKind.UPDATE, tensors)
            received = StoredUpdate(name, artifact.sha256, len(self._clients[name]), update.loss, 0.0)
            store.commit_update(number, received, artifact.size)
            self._on_progress(f"round {number}", done, len(drawn))
        return store.updates(number)

    def _sub_model(self) -> SubModel:
        """The sub-FM as it is now, to be built elsewhere."""
        stored = self._store.sub_model()
        assert stored is not None
        reference, models = stored[0], self._models
        return SubModel(
            "/".join(artifact.sha256 for artifact in (reference.base, *reference.patches)),
            reference.config_json,
            self._spec.task,
            reference.ffn_widths,
            models.tensors(reference.base),
            tuple(models.tensors(patch) for patch in reference.patches),
            self._spec.adapter,
            self._config.compute.threads,
        )

    def _dataset(self, name: str) -> Dataset:
        if name not in self._data:
            self._data[name] = self._models.encoded(self._clients[name])
        return self._data[name]

    def _in(self, what: str) -> Callable[[int, int], None]:
        return lambda step, steps: self._on_progress(what, step, steps)
