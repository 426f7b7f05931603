"""Where the clients of a simulated round are trained: here, one after the other, or all over a Ray cluster.

Both run the worker's own `fine_tune`, with the same seeds and threads, so both give the same bits; but for
differential privacy's noise, which has no seed.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from common.data.batches import Dataset
from common.errors import CannotTrain
from common.model.adapter import Adapted
from common.model.apoz import ZeroCounter
from common.model.ffn import ffns_of
from common.model.submodel import AS_IT_IS, Held, apply_patch, build
from common.model.wire_config import read_config
from common.privacy.accounting import undisturbed
from common.private_task import DpSpec, DpUnit
from common.records import AdapterSpec, TaskSpec, TrainingSpec, ZeroRule
from worker.private_training import Mechanism, fine_tune_privately
from worker.train import LocalUpdate, fine_tune

# What comes of a client's turn.
Trained = LocalUpdate | CannotTrain


@dataclass(frozen=True)
class RoundTask:
    """What all clients of a round are told."""

    start: Mapping[str, Tensor]
    training: TrainingSpec
    factor: float
    counted: tuple[int, ...]
    zero_rule: ZeroRule
    zero_threshold: float
    dp: DpSpec | None = None


@dataclass(frozen=True)
class ClientTask:
    """A client's part: its data, and the seed of its draws."""

    client: str
    data: Dataset
    seed: int


@dataclass(frozen=True)
class SubModel:
    """What it takes to build the sub-FM elsewhere; `version` differs when the weights do."""

    version: str
    config_json: str
    task: TaskSpec
    ffn_widths: tuple[int, ...]
    weights: Mapping[str, Tensor]
    patches: tuple[Mapping[str, Tensor], ...]
    adapter: AdapterSpec
    threads: int | None
    held: Held = AS_IT_IS

    def adapted(self) -> Adapted:
        """The module with an adapter, made as a worker makes it, on the CPU."""
        config = read_config(self.config_json, self.task)
        # Where the weights come from, they may be shared and read-only.
        weights = {name: tensor.clone() for name, tensor in self.weights.items()}
        module = build(config, self.task.kind, self.ffn_widths, weights, held=self.held)
        adapted = Adapted(module, self.task.kind, self.adapter, new=self.held.new_modules)
        for patch in self.patches:
            apply_patch(ffns_of(adapted.base), patch)
        return adapted


class Clients(ABC):
    """Trains the clients of a round."""

    @abstractmethod
    def train(
        self,
        here: Adapted,
        elsewhere: Callable[[], SubModel],
        task: RoundTask,
        clients: Sequence[ClientTask],
    ) -> Iterator[Trained]:
        """The updates, in the order of `clients`, or why there is none.

        `here` is the coordinator's own sub-FM, `elsewhere` gives what it takes to build it anew.
        """


class LocalClients(Clients):
    """One client after the other, on the coordinator's own sub-FM."""

    def train(
        self,
        here: Adapted,
        elsewhere: Callable[[], SubModel],
        task: RoundTask,
        clients: Sequence[ClientTask],
    ) -> Iterator[Trained]:
        """The updates, each trained when it is asked for."""
        return (train_client(here, task, client) for client in clients)


def train_client(sub_fm: Adapted, task: RoundTask, client: ClientTask) -> Trained:
    """A client's local fine-tuning, as worker.local_model does it."""
    ffns = ffns_of(sub_fm.base)
    try:
        if task.dp is not None and task.dp.unit is DpUnit.EXAMPLE:
            planned, batch = undisturbed(task.dp, len(client.data), task.training.epochs)
            return fine_tune_privately(
                sub_fm,
                task.start,
                client.data,
                task.training,
                Mechanism(planned, task.dp.clip, batch),
                factor=task.factor,
            )
        update = fine_tune(
            sub_fm,
            task.start,
            client.data,
            task.training,
            factor=task.factor,
            seed=client.seed,
            counter=ZeroCounter({i: ffns[i] for i in task.counted}, task.zero_rule, task.zero_threshold),
        )
        return update if task.dp is None else replace(update, loss=0.0)
    except CannotTrain as error:
        return error
