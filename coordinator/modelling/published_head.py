"""A published classifier's head: its rows are taken by the names of their classes, or not at all."""

from collections.abc import Mapping, Sequence

import torch
from torch import nn
from transformers import PreTrainedModel

from common.model.adapter import heads_of
from common.model.families import family_of
from common.records import TaskKind
from coordinator.modelling.weights import Brought


def rows_by_name(published: Mapping[int, str], labels: Sequence[str]) -> list[int] | None:
    """Which class of the published model each label is; None unless all of them are found, each once.

    Case and blanks around a name do not matter, unless they tell published classes apart.
    """
    for told in (str, lambda name: str(name).strip().casefold()):
        names = [told(published[i]) for i in sorted(published)]
        wanted = [told(label) for label in labels]
        if len(set(names)) == len(names) and len(set(wanted)) == len(wanted) and set(wanted) <= set(names):
            return [names.index(name) for name in wanted]
    return None


def output_of(model: PreTrainedModel, kind: TaskKind) -> tuple[nn.Module, str, nn.Linear]:
    """The map that gives the scores: the last of the head. Its parent, its name there, itself."""
    head = heads_of(family_of(model.config), kind)[-1]
    found = [
        f"{head}.{name}".removesuffix(".")
        for name, module in model.get_submodule(head).named_modules()
        if isinstance(module, nn.Linear)
    ]
    parent, _, name = found[-1].rpartition(".")
    linear = model.get_submodule(found[-1])
    assert isinstance(linear, nn.Linear)
    return model.get_submodule(parent), name, linear


def brings_output(model: PreTrainedModel, kind: TaskKind, brought: Brought) -> bool:
    """Whether the scores' map is the checkpoint's."""
    wanted = {id(parameter) for parameter in output_of(model, kind)[2].parameters()}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in wanted}
    return not names & {*brought.missing, *brought.mismatched}


@torch.no_grad()
def take_rows(model: PreTrainedModel, kind: TaskKind, rows: Sequence[int]) -> None:
    """Make the scores' map these rows of itself, in this order."""
    parent, name, old = output_of(model, kind)
    if list(rows) == list(range(old.out_features)):
        return
    new = nn.Linear(old.in_features, len(rows), old.bias is not None, dtype=old.weight.dtype)
    new.weight.copy_(old.weight[list(rows)])
    if old.bias is not None:
        new.bias.copy_(old.bias[list(rows)])
    setattr(parent, name, new)


def draw_output(model: PreTrainedModel, kind: TaskKind, seed: int) -> None:
    """Make the scores' map a new one, as the family draws it."""
    parent, name, old = output_of(model, kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new = nn.Linear(old.in_features, old.out_features, old.bias is not None, dtype=old.weight.dtype)
        model._init_weights(new)
    setattr(parent, name, new)
