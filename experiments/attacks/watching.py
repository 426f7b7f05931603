"""A run of the engine, and what its workers sent in the first round."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from common.config.run import RunConfig
from common.data.examples import Examples
from common.errors import CannotTrain, RunFailed
from common.model.adapter import Adapted
from experiments.clients import Clients, ClientTask, LocalClients, RoundTask, SubModel, Trained
from experiments.simulation import OnProgress, simulate
from worker.train import LocalUpdate


@dataclass(frozen=True)
class FirstRound:
    """Where the workers began, the sub-FM that they had, and their updates by name."""

    start: Mapping[str, Tensor]
    sub_model: SubModel
    updates: Mapping[str, LocalUpdate]


class Watched(Clients):
    """Trains as workers do, and keeps what they sent in the first round that it is asked for."""

    def __init__(self) -> None:
        self.first: FirstRound | None = None

    def train(
        self,
        here: Adapted,
        elsewhere: Callable[[], SubModel],
        task: RoundTask,
        clients: Sequence[ClientTask],
    ) -> Iterator[Trained]:
        """The updates, in the order of `clients`. Raises RunFailed for a client that cannot train."""
        found: dict[str, LocalUpdate] = {}
        for client, update in zip(clients, LocalClients().train(here, elsewhere, task, clients), strict=True):
            if isinstance(update, CannotTrain):
                raise RunFailed(f"worker {client.client} cannot go on: {update}")
            found[client.client] = update
            yield update
        if self.first is None:
            self.first = FirstRound(dict(task.start), elsewhere(), found)


def first_round(config: RunConfig, clients: Mapping[str, Examples], on_progress: OnProgress) -> FirstRound:
    """Run `config` on these clients' data to its end; returns its first round. Raises as `simulate`."""
    watched = Watched()
    simulate(config, clients, on_progress, trained_by=watched)
    assert watched.first is not None
    return watched.first
