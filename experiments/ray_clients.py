"""Clients trained by a pool of Ray actors: as many at a time as the cluster has processors for."""

import importlib
import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from common.errors import ConfigError
from common.model.adapter import Adapted
from experiments.clients import Clients, ClientTask, RoundTask, SubModel, Trained, train_client


class _Trainer:
    """An actor: holds the sub-FM that it was last given."""

    def __init__(self) -> None:
        self._version = ""
        self._sub_fm: Adapted | None = None

    def train(self, sub_model: SubModel, task: RoundTask, client: ClientTask) -> Trained:
        """One client's fine-tuning."""
        if sub_model.threads:
            torch.set_num_threads(sub_model.threads)
        if self._sub_fm is None or self._version != sub_model.version:
            self._sub_fm, self._version = sub_model.adapted(), sub_model.version
        # What comes out of Ray's object store is read-only.
        start = {name: tensor.clone() for name, tensor in task.start.items()}
        return train_client(self._sub_fm, replace(task, start=start), client)


class RayClients(Clients):
    """A pool of actors on a Ray cluster, or on this machine when no address is given.

    Ray moves objects by pickle: run it only on machines and networks that are all your own. Raises
    ConfigError when Ray is not installed or the cluster cannot be reached.
    """

    def __init__(self, address: str | None, threads: int, actors: int | None = None) -> None:
        try:
            ray: Any = importlib.import_module("ray")
        except ImportError:
            raise ConfigError("--engine ray needs the package ray; pip install 'fedpft[ray]'") from None
        self._ray = ray
        try:
            ray.init(
                address=address, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR
            )
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(f"no Ray cluster at {address or 'this machine'}: {error}") from error
        processors = int(ray.cluster_resources().get("CPU", 1))
        count = actors or max(1, processors // threads)
        remote: Any = ray.remote(num_cpus=threads, max_restarts=2, max_task_retries=2)(_Trainer)
        self._actors = [remote.remote() for _ in range(count)]
        self._sent: tuple[str, Any] = ("", None)

    def train(
        self,
        here: Adapted,
        elsewhere: Callable[[], SubModel],
        task: RoundTask,
        clients: Sequence[ClientTask],
    ) -> Iterator[Trained]:
        """The updates, in the order of `clients`; an actor gets its next client when it is done with one."""
        sub_model = elsewhere()
        if self._sent[0] != sub_model.version:
            self._sent = (sub_model.version, self._ray.put(sub_model))
        told = self._ray.put(task)
        waiting, running, done = deque(enumerate(clients)), {}, {}
        for actor in self._actors[: len(waiting)]:
            number, client = waiting.popleft()
            running[actor.train.remote(self._sent[1], told, client)] = (number, actor)
        for wanted in range(len(clients)):
            while wanted not in done:
                (ready,), _ = self._ray.wait(list(running))
                number, actor = running.pop(ready)
                done[number] = self._ray.get(ready)
                if waiting:
                    following, client = waiting.popleft()
                    running[actor.train.remote(self._sent[1], told, client)] = (following, actor)
            yield done.pop(wanted)

    def close(self) -> None:
        """Give the cluster's processors back."""
        self._ray.shutdown()
