"""What each kind of task asks of a model: its class, its loss, what counts as right.

What it reads and answers stands in `common.task_forms`.
"""

import math
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
    AutoModelForTokenClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from common.errors import ModelError
from common.model.families import family_of
from common.records import TaskKind
from common.task_forms import FORMS, Answer

# Positions that carry no target: padding, as in transformers.
IGNORED = -100


@dataclass(frozen=True)
class _Task:
    auto_class: Any
    peft_type: TaskType | None
    """None where peft has no type of its own; its general model then serves."""
    problem_type: str | None = None
    """What a configuration has to say besides, for transformers to take the same loss."""


_TASKS = {
    TaskKind.TEXT_CLASSIFICATION: _Task(AutoModelForSequenceClassification, TaskType.SEQ_CLS),
    TaskKind.TEXT_MULTI_LABEL: _Task(
        AutoModelForSequenceClassification, TaskType.SEQ_CLS, "multi_label_classification"
    ),
    TaskKind.TEXT_REGRESSION: _Task(AutoModelForSequenceClassification, TaskType.SEQ_CLS, "regression"),
    TaskKind.TOKEN_CLASSIFICATION: _Task(AutoModelForTokenClassification, TaskType.TOKEN_CLS),
    TaskKind.IMAGE_CLASSIFICATION: _Task(AutoModelForImageClassification, None),
    TaskKind.CAUSAL_LM: _Task(AutoModelForCausalLM, TaskType.CAUSAL_LM),
}


def auto_class(kind: TaskKind) -> Any:
    """transformers' AutoModelFor… of this kind."""
    return _TASKS[kind].auto_class


def peft_type(kind: TaskKind) -> TaskType | None:
    """peft's name for this kind."""
    return _TASKS[kind].peft_type


def problem_type(kind: TaskKind) -> str | None:
    """What an exported configuration says of the loss; None where the kind of model says it."""
    return _TASKS[kind].problem_type


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
    """Scores [N, C] and what they should be: class indices int64 [N], IGNORED where there is none.

    A classifier's logits [B, C] and labels [B] as they are; a language model's [B, T, V] and
    [B, T] with every token's scores beside the token that follows; of token classification every
    token's [B, T, C] and [B, T]. Of several classes the labels are 0 or 1, float32 [B, C]; a
    regression's scores are [B, 1], its labels numbers, float32 [B].
    """
    match FORMS[kind].answer:
        case Answer.NEXT_TOKEN:
            return logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
        case Answer.TAGS:
            return logits.flatten(0, 1), labels.flatten()
    return logits, labels


def loss(logits: Tensor, labels: Tensor, kind: TaskKind, weights: Tensor | None = None) -> Tensor:
    """What training makes small, a mean: transformers' own loss of this kind of task.

    Cross entropy in nats, per example or per token that has a label (of a language model: that has one
    before it); binary cross entropy over examples and classes; squared error. 0 for a batch without a
    label, such as texts of one token each: the mean of nothing is NaN.

    `weights` [C]: factors on what each class adds, the mean being divided by their sum; where there may be
    several classes, on what a class adds when it is there.
    """
    scores, targets = targets_of(logits, labels, kind)
    match FORMS[kind].answer:
        case Answer.NUMBER:
            return nn.functional.mse_loss(scores[:, 0], targets)
        case Answer.CLASSES:
            return nn.functional.binary_cross_entropy_with_logits(scores, targets, pos_weight=weights)
        case Answer.NEXT_TOKEN | Answer.TAGS if not (targets != IGNORED).any():
            return scores.sum() * 0.0
    return nn.functional.cross_entropy(scores, targets, weights, ignore_index=IGNORED)


def losses(logits: Tensor, labels: Tensor, kind: TaskKind) -> Tensor:
    """The same for each example by itself, [B]: of a text's tokens the mean over its own alone.

    So what one example adds to the gradient depends on no other.
    """
    match FORMS[kind].answer:
        case Answer.NUMBER:
            return nn.functional.mse_loss(logits[:, 0], labels, reduction="none")
        case Answer.CLASSES:
            return nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)
    scores, targets = targets_of(logits, labels, kind)
    each = nn.functional.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="none")
    counted = (targets != IGNORED).view(len(labels), -1).sum(-1)
    return each.view(len(labels), -1).sum(-1) / counted.clamp(min=1)


def weight_of(labels: Tensor, kind: TaskKind, weights: Tensor | None = None) -> float:
    """What `loss` divides by, so that the losses of parts of a batch add up to that of the whole."""
    match FORMS[kind].answer:
        case Answer.NUMBER | Answer.CLASSES:
            return float(len(labels))
        case Answer.NEXT_TOKEN:
            labels = labels[:, 1:]
    counted = labels[labels != IGNORED]
    return float(len(counted) if weights is None else weights[counted].sum())


@torch.no_grad()
def tally(logits: Tensor, labels: Tensor, kind: TaskKind) -> tuple[float, float, int]:
    """Right answers, summed loss, and how many answers there were.

    Of several classes an answer is right when each of them is. Numbers are not right or wrong: NaN.
    """
    scores, targets = targets_of(logits, labels, kind)
    match FORMS[kind].answer:
        case Answer.NUMBER:
            squares = nn.functional.mse_loss(scores[:, 0], targets, reduction="sum")
            return float("nan"), float(squares), len(targets)
        case Answer.CLASSES:
            each = nn.functional.binary_cross_entropy_with_logits(scores, targets, reduction="none")
            right = int(((scores > 0) == targets.bool()).all(-1).sum())
            return right, float(each.mean(-1).sum()), len(targets)
    counted = targets != IGNORED
    right = int(((scores.argmax(-1) == targets) & counted).sum())
    total = nn.functional.cross_entropy(scores, targets, ignore_index=IGNORED, reduction="sum")
    return right, float(total), int(counted.sum())


@torch.no_grad()
def drawn_labels(logits: Tensor, mask: Tensor | None, kind: TaskKind, seed: int) -> Tensor:
    """Labels drawn from a model's own predictions, on the CPU: by them gradients are the Fisher's.

    `mask` [B, T] is 1 where token classification has a label. Of a number the distribution is the one
    whose surprise is the loss: normal, of variance 1/2.
    """
    draw = torch.Generator().manual_seed(seed % 2**63)
    scores: Tensor = logits.float()
    match FORMS[kind].answer:
        case Answer.NUMBER:
            means = scores[:, 0].cpu()
            noise = torch.randn(means.shape, generator=draw)
            return means + noise * math.sqrt(0.5)
        case Answer.CLASSES:
            return torch.bernoulli(scores.sigmoid().cpu(), generator=draw)
        case Answer.TAGS:
            assert mask is not None
            shares = scores.softmax(-1).cpu()
            tags = torch.multinomial(shares.flatten(0, 1), 1, generator=draw).view(shares.shape[:-1])
            return tags.masked_fill(mask.cpu() == 0, IGNORED)
    return torch.multinomial(scores.softmax(-1).cpu(), 1, generator=draw)[:, 0]
