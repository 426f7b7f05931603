"""Clients that do harm: what they may do to their data or to their updates, for tests and experiments."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from enum import StrEnum

import torch
from torch import Tensor

from common.data.examples import Examples
from common.model.adapter import Adapted
from common.runtime import seeds
from experiments.clients import Clients, ClientTask, LocalClients, RoundTask, SubModel, Trained
from worker.train import LocalUpdate

# A poisoned change is this many times as long as an honest one.
BOOST = 10.0


class Attack(StrEnum):
    """What a bad client does.

    label-flip: trains honestly on data of which every label is wrong; sign-flip: sends its change
    backwards, ten times as long; noise: sends noise, ten times as long as its change.
    """

    LABEL_FLIP = "label-flip"
    SIGN_FLIP = "sign-flip"
    NOISE = "noise"


def flip_labels(examples: Examples, labels: Sequence[str]) -> Examples:
    """The same examples, each with the label that follows its own."""
    assert examples.label_names is not None
    following = dict(zip(labels, [*labels[1:], labels[0]], strict=True))
    return replace(examples, label_names=[following[label] for label in examples.label_names])


def poison(delta: Mapping[str, Tensor], attack: Attack, seed: int) -> dict[str, Tensor]:
    """The change that a bad client sends in place of `delta`, tensor by tensor."""
    if attack is Attack.LABEL_FLIP:
        return dict(delta)
    if attack is Attack.SIGN_FLIP:
        return {name: -BOOST * tensor for name, tensor in delta.items()}
    generator = torch.Generator().manual_seed(seed)
    poisoned = {}
    for name in sorted(delta):
        noise = torch.randn(delta[name].shape, generator=generator)
        poisoned[name] = (BOOST * delta[name].norm() / noise.norm() * noise).to(delta[name].dtype)
    return poisoned


class SomeBadClients(Clients):
    """Trains as another does, but for the bad ones, whose updates it poisons."""

    def __init__(self, bad: frozenset[str], attack: Attack, others: Clients | None = None) -> None:
        self._bad, self._attack, self._others = bad, attack, others or LocalClients()

    def train(
        self,
        here: Adapted,
        elsewhere: Callable[[], SubModel],
        task: RoundTask,
        clients: Sequence[ClientTask],
    ) -> Iterator[Trained]:
        """The updates, in the order of `clients`."""
        updates = self._others.train(here, elsewhere, task, clients)
        for client, update in zip(clients, updates, strict=True):
            if client.client in self._bad and isinstance(update, LocalUpdate):
                seed = seeds.derive(client.seed, "poison") % 2**62
                yield replace(update, delta=poison(update.delta, self._attack, seed))
            else:
                yield update
