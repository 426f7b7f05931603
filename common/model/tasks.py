"""What each kind of task asks of a model: its class, its loss, what counts as right."""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from peft import TaskType
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from common.errors import ModelError
from common.model.families import family_of
from common.records import TaskKind

# Positions that carry no target: padding, as in transformers.
IGNORED = -100


@dataclass(frozen=True)
class _Task:
    auto_class: Any
    peft_type: TaskType | None
    """None where peft has no type of its own; its general model then serves."""


_TASKS = {
    TaskKind.TEXT_CLASSIFICATION: _Task(AutoModelForSequenceClassification, TaskType.SEQ_CLS),
    TaskKind.IMAGE_CLASSIFICATION: _Task(AutoModelForImageClassification, None),
    TaskKind.CAUSAL_LM: _Task(AutoModelForCausalLM, TaskType.CAUSAL_LM),
}


def auto_class(kind: TaskKind) -> Any:
    """transformers' AutoModelFor… of this kind."""
    return _TASKS[kind].auto_class


def peft_type(kind: TaskKind) -> TaskType | None:
    """peft's name for this kind."""
    return _TASKS[kind].peft_type


def require_task(config: PretrainedConfig, kind: TaskKind) -> None:
    """Raises ModelError when models of this family are not built for `kind` here."""
    family = family_of(config)
    if kind not in family.tasks:
        raise ModelError(
            f"a {family.model_type} model cannot do {kind}; it can do: {', '.join(family.tasks)}"
        )


def from_config(config: PretrainedConfig, kind: TaskKind) -> PreTrainedModel:
    """A model of this kind with fresh weights. Raises ModelError."""
    require_task(config, kind)
    model: PreTrainedModel = auto_class(kind).from_config(plain(config))
    return model


def plain(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration without what the kind of task decides on: class, loss, and what comes out.

    The saved class would pick DeiT's two-headed one, and its absence trips transformers 5.24.
    """
    changed = deepcopy(config)
    changed.architectures = []
    changed.problem_type = None
    changed.return_dict = True
    changed.output_hidden_states = False
    return changed


def targets_of(logits: Tensor, labels: Tensor, kind: TaskKind) -> tuple[Tensor, Tensor]:
    """Scores [N, C] and class indices int64 [N], IGNORED where there is none.

    A classifier's logits [B, C] and labels [B] as they are; a language model's [B, T, V] and
    [B, T] with every token's scores beside the token that follows.
    """
    if kind is TaskKind.CAUSAL_LM:
        return logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    return logits, labels


def loss(logits: Tensor, labels: Tensor, kind: TaskKind) -> Tensor:
    """Mean cross entropy in nats: per example, or of a language model per token that has one before it.

    0 for a batch of texts of one token each: no token has one before it, and the mean of nothing is NaN.
    """
    scores, targets = targets_of(logits, labels, kind)
    if kind is TaskKind.CAUSAL_LM and not (targets != IGNORED).any():
        return scores.sum() * 0.0
    return nn.functional.cross_entropy(scores, targets, ignore_index=IGNORED)


@torch.no_grad()
def tally(logits: Tensor, labels: Tensor, kind: TaskKind) -> tuple[int, float, int]:
    """Right answers, summed cross entropy in nats, and how many answers there were."""
    scores, targets = targets_of(logits, labels, kind)
    counted = targets != IGNORED
    right = int(((scores.argmax(-1) == targets) & counted).sum())
    total = nn.functional.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum")
    return right, float(total), int(counted.sum())
