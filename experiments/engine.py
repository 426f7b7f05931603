"""A run in one process: the coordinator's and the worker's own code, without the network between.

The same configuration and data give the same bits as a run of real services, which beside this
move artifacts and survive interruptions.
"""

from collections.abc import Callable, Mapping
from uuid import uuid4

import torch

from common import seeds
from common.batches import Dataset
from common.config import RunConfig
from common.examples import Examples
from common.model import apoz
from common.model.apoz import ZeroCounter
from common.model.families import ffns_of
from common.records import ArtifactKind, ArtifactRef, Evaluation, Phase
from common.tensors import Prefixed
from coordinator import schedule
from coordinator.inbox import APOZ, DELTA
from coordinator.models import Models
from coordinator.process import identity, run_spec
from coordinator.store import Store, StoredUpdate
from worker.train import fine_tune

# Told what goes on: what is done, steps of it done and in all.
OnProgress = Callable[[str, int, int], None]


def simulate(
    config: RunConfig,
    clients: Mapping[str, Examples],
    on_progress: OnProgress = lambda what, step, steps: None,
    *,
    score_every_round: bool = False,
    fm_only: bool = False,
) -> tuple[Evaluation, ...]:
    """Run `config` on these clients' data, by name; returns the scores, of the last round at least.

    `fm_only` leaves the sub-FM unscored: the FM with the adapter plugged in is the result.

    The store in config.run.directory holds everything else. A finished run is not run again.
    """
    store = Store(config.run.directory)
    try:
        store.open_run(uuid4().hex[:12], identity(config))
        if store.outcome() != Phase.FINISHED:
            _Simulation(config, store, clients, on_progress).run(score_every_round, fm_only)
        return store.evaluations()
    finally:
        store.close()


class _Simulation:
    def __init__(
        self, config: RunConfig, store: Store, clients: Mapping[str, Examples], on_progress: OnProgress
    ) -> None:
        self._config, self._store, self._clients = config, store, clients
        self._on_progress = on_progress
        if config.compute.threads:
            torch.set_num_threads(config.compute.threads)
        self._models = Models(config, store)
        self._spec = run_spec(store.run_id(), config)
        self._data: dict[str, Dataset] = {}

    def run(self, score_every_round: bool, fm_only: bool) -> None:
        """The loop of coordinator.campaign, with the clients' training in its middle."""
        models, store, config = self._models, self._store, self._config
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
            updates = self._train(number, adapter)
            tensors, state = models.aggregate(adapter, updates, store.server_state(number - 1))
            adapter = store.add_tensors(ArtifactKind.ADAPTER, tensors)
            kept = store.add_tensors(ArtifactKind.SERVER_STATE, state) if state else None
            store.commit_adapter(number, adapter, kept)
            models.plug_in(adapter)
            if schedule.realigns_after(config, number, self._measure(number)):
                aligned = models.align_neurons(updates, number, self._in("re-aligning"))
                store.commit_alignment(number, *aligned)
            if models.scored and (score_every_round or number == config.rounds.count):
                for evaluation in models.evaluate(number, self._in("scoring"), fm_only):
                    store.commit_evaluation(evaluation)
        store.end_run(Phase.FINISHED, "all rounds are done")

    def _measure(self, number: int) -> float | None:
        """The drift after a round, where it is measured."""
        if not self._models.gap_measurable or not self._config.gradient_gap.batches:
            return None
        gap = self._models.measure_gap(number)
        self._store.commit_gap(gap)
        return gap.drift

    def _train(self, number: int, adapter: ArtifactRef) -> list[StoredUpdate]:
        """Every drawn client's local fine-tuning, one after the other, on the coordinator's own sub-FM."""
        models, store = self._models, self._store
        start = models.tensors(adapter)
        sub_fm = models.tuned_sub_fm
        ffns = ffns_of(sub_fm.base)
        counted = models.counted_layers if schedule.may_realign_after(self._config, number) else ()
        drawn = schedule.select(self._config, number, sorted(self._clients))
        for done, name in enumerate(drawn):
            self._on_progress(f"round {number}", done, len(drawn))
            update = fine_tune(
                sub_fm,
                start,
                self._dataset(name),
                self._spec.training,
                factor=schedule.learning_rate_factor(self._config, number),
                seed=seeds.derive(self._spec.seed, "train", name, number) % 2**62,
                counter=ZeroCounter(
                    {layer: ffns[layer] for layer in counted},
                    models.zero_rule,
                    self._config.realignment.zero_threshold,
                ),
            )
            tensors = Prefixed.add(update.delta, DELTA)
            tensors |= Prefixed.add(apoz.to_tensors(update.counts), APOZ)
            artifact = store.add_tensors(ArtifactKind.UPDATE, tensors)
            examples = len(self._clients[name])
            received = StoredUpdate(name, artifact.sha256, examples, update.loss, 0.0)
            store.commit_update(number, received, artifact.size)
        return store.updates(number)

    def _dataset(self, name: str) -> Dataset:
        if name not in self._data:
            self._data[name] = self._models.encoded(self._clients[name])
        return self._data[name]

    def _in(self, what: str) -> Callable[[int, int], None]:
        return lambda step, steps: self._on_progress(what, step, steps)
