"""A round's updates brought together: the one step in which services and simulation differ."""

import statistics
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from common.model.update import DELTA, Prefixed
from common.records import ArtifactRef, ClassCounts, StopTask
from common.runtime.compute import one_thread
from common.storage.tensors import TensorFile
from coordinator.algorithms.outliers import norm, outliers
from coordinator.context import RunContext
from coordinator.modelling.models import Models
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

    @abstractmethod
    def dismiss(self, task: StopTask) -> None:
        """The run is over: tell the clients, as far as they must be told."""

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


@one_thread()
def update_norms(store: Store, updates: Iterable[StoredUpdate]) -> dict[str, float]:
    """L2 norm of each client's delta; blocking."""
    files = {u.worker: TensorFile(store.artifacts.path(u.sha256)) for u in updates}
    return {client: norm(Prefixed(file, DELTA)) for client, file in files.items()}
