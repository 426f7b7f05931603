"""A round's updates brought together: the one step in which services and simulation differ."""

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from common.config.run import RunConfig
from common.errors import RunFailed
from common.model.ring_update import noise_grid
from common.model.update import DELTA, Prefixed
from common.observability import tracing
from common.records import ArtifactRef, ClassCounts, ScoreSums, StopTask, TrainTask
from common.run_status import Validation
from common.runtime.compute import one_thread
from common.runtime.fault_points import Point, reach
from common.secagg.records import Mask, SecureRound
from common.storage.tensors import TensorFile
from coordinator.algorithms.outliers import norm, outliers
from coordinator.campaign import announcements, schedule
from coordinator.campaign.noised_gathering import noised, require_promise_left, tell_spent
from coordinator.context import RunContext
from coordinator.modelling.models import Models
from coordinator.modelling.secure_sums import sum_up
from coordinator.storage.releases import Release
from coordinator.storage.store import Store, StoredUpdate


class Gathering(ABC):
    """Has clients train, round after round."""

    def __init__(self, run: RunContext) -> None:
        self._run = run

    @abstractmethod
    async def classes(self) -> Sequence[ClassCounts]:
        """What rounds.workers clients, or more, tell of their classes."""

    @abstractmethod
    def classes_known(self) -> None:
        """The run goes by what clients told: tell them, as far as they must be told."""

    @abstractmethod
    async def gather(self, models: Models, number: int, adapter: ArtifactRef) -> list[StoredUpdate]:
        """A round's updates from clients that trained from `adapter`, by client's name.

        They are the same, also in another process, once the store has them as accepted. Raises RunFailed.
        """

    async def gathered(self, models: Models, number: int, adapter: ArtifactRef) -> list[StoredUpdate]:
        """The same; with the coordinator's noise, where it adds some, and then as one. Raises RunFailed."""
        require_promise_left(self._run.config, self._run.store, number)
        tell_spent(self._run)
        updates = await noised(self._run, number, await self.gather(models, number, adapter))
        tell_spent(self._run)
        return updates

    async def validate(self, models: Models, number: int, adapter: ArtifactRef) -> None:
        """Scores after a round on examples that clients keep aside, added up and committed.

        Nothing that becomes of them ends the run: with too few answers the round has no score.
        """
        store, config = self._run.store, self._run.config
        if not schedule.validates_after(config, number) or store.validations.done_after(number):
            return
        counted = await self._scores(models, number, adapter)
        reach(Point.STEP, "validated")
        if len(counted) < config.validation.minimum:
            store.validations.close(Validation(number, 0, 0, math.nan, math.nan), (), ())
            announcements.not_validated(self._run, number, len(counted))
            return
        together, each = await self._run.compute.run(_added_up, config, number, counted)
        store.validations.close(together, each if config.validation.per_worker else (), counted)
        announcements.validated(self._run, together)

    @abstractmethod
    async def _scores(self, models: Models, number: int, adapter: ArtifactRef) -> dict[str, ScoreSums]:
        """The sums of the clients that have answered, by name, all committed."""

    @abstractmethod
    def dismiss(self, task: StopTask) -> None:
        """The run is over: tell the clients, as far as they must be told."""

    def train_task(
        self, models: Models, number: int, adapter: ArtifactRef, attempt: int
    ) -> tuple[TrainTask, Mapping[int, int]]:
        """What is asked in a try, and the layers whose activations are counted, with their widths."""
        config, stored = self._run.config, self._run.store.sub_model()
        assert stored is not None
        counted = models.counted_layers if schedule.counts_in(config, number) else {}
        task = TrainTask(
            round=number,
            sub_model=stored[0],
            adapter=adapter,
            learning_rate_factor=schedule.learning_rate_factor(config, number),
            apoz_layers=tuple(counted),
            seconds_left=config.rounds.deadline_seconds,
            attempt=attempt,
            zero_rule=models.zero_rule,
            zero_threshold=config.realignment.zero_threshold,
            traceparent=tracing.traceparent(),
        )
        return task, counted

    async def _set_aside(self, number: int, updates: Sequence[StoredUpdate]) -> dict[str, str]:
        """Clients whose updates do not count, because they are far larger than the others', and why.

        Judged when the round closes, not as updates come: which came first must not matter.
        """
        factor = self._run.config.aggregation.norm_limit
        if factor is None:
            return {}
        norms = await self._run.compute.run(update_norms, self._run.store, updates)
        aside = outliers(norms, factor, self._run.config.rounds.minimum)
        median = statistics.median(norms.values())
        reasons = {
            client: f"round {number}: the update of worker {client} is set aside: its norm is "
            f"{norms[client]:.3g}, the median {median:.3g}; aggregation.norm_limit is {factor:g}"
            for client in aside
        }
        for client, reason in reasons.items():
            self._run.metrics.updates.labels("set-aside").inc()
            self._run.events.record("update_set_aside", reason, number, client, norm=norms[client])
        return reasons


async def summed(
    run: RunContext, within: SecureRound, updates: Sequence[StoredUpdate], masks: Sequence[Mask] = ()
) -> None:
    """Add up a round's updates of ring elements, and commit what they come to. Raises RunFailed."""
    spec = run.spec.secure
    assert spec is not None
    grid = noise_grid(run.spec.dp, within)
    file, total = await run.compute.run(sum_up, run.store, spec, within, updates, masks, grid)
    reach(Point.STEP, "secure-summed")
    dp = run.spec.dp
    release = None if grid is None or dp is None else Release(within.round, within.clip, dp.noise)
    run.store.secure.commit_sum(within.round, file, total, release)
    announcements.summed(run, within.round, total)


@one_thread()
def _added_up(
    config: RunConfig, number: int, parts: Mapping[str, ScoreSums]
) -> tuple[Validation, list[Validation]]:
    """The score of all together, and of each by name; blocking."""
    from common.model.scores import figures, total

    kind, labels = config.task.kind, config.task.labels

    def of(sums: ScoreSums, workers: int, worker: str = "") -> Validation:
        return Validation(number, workers, sums.examples, *figures(sums, kind, labels), worker)

    return of(total(parts), len(parts)), [of(parts[name], 1, name) for name in sorted(parts)]


@one_thread()
def update_norms(store: Store, updates: Iterable[StoredUpdate]) -> dict[str, float]:
    """L2 norm of each client's delta; blocking."""
    files = {u.worker: TensorFile(store.artifacts.path(u.sha256)) for u in updates}
    return {client: norm(Prefixed(file, DELTA)) for client, file in files.items()}


async def without_largest(
    run: RunContext, number: int, updates: list[StoredUpdate], problem: str
) -> list[StoredUpdate]:
    """The updates without the one most likely to blame for a `problem` of what is made of all.

    Raises RunFailed when too few are left.
    """
    norms = await run.compute.run(update_norms, run.store, updates)
    worst = max(norms, key=lambda worker: (norms[worker], worker))
    told = f"round {number}: with the update of worker {worst}, whose norm is {norms[worst]:.3g}, {problem}"
    if len(updates) - 1 < max(1, run.config.rounds.minimum):
        raise RunFailed(
            f"{told}; without it there are too few. Look at that worker's data and device; then "
            f"`fedpft rewind {run.store.directory} --round {number - 1}` asks for this round again"
        )
    run.metrics.updates.labels("set-aside").inc()
    run.events.record("update_set_aside", f"{told}; it is set aside", number, worst, norm=norms[worst])
    return [u for u in updates if u.worker != worst]
