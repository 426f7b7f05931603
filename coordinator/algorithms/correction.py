"""Correction: after the last round, what the sub-FM has learnt is distilled into the FM's adapter.

The sub-FM learns as well as the FM would; what is lost is lost by plugging in. So the FM with the adapter
plugged in is taught, on public data, by the mean of both tuned models' predictions. Ours, not the paper's.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup

from common.data.batches import Batch
from common.model.adapter import Adapted
from common.model.passes import logits
from common.records import TaskKind
from common.task_forms import FORMS, Answer
from coordinator.algorithms import distillation_state
from coordinator.algorithms.distillation import OnCheckpoint, OnStep

# A batch → the predictions that the FM is to come to; without gradients.
Teacher = Callable[[Batch], Tensor]

_MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Settings:
    """Optimiser steps, AdamW's peak rates of LoRA and head, warm-up as a share of the steps, and the peak
    rate of neurons that are tuned in full."""

    steps: int
    learning_rate: float
    head_learning_rate: float
    warmup: float
    neuron_learning_rate: float = 1e-4


# Not in inference mode: what comes out takes part in a loss.
@torch.no_grad()
def predictions(model: nn.Module, batch: Batch, kind: TaskKind) -> Tensor:
    """What a model gives: probabilities of classes [B, C], at each token [B, T, C], of each class for itself
    [B, C], or numbers [B, 1]."""
    scores = logits(model, batch.inputs).float()
    match FORMS[kind].answer:
        case Answer.NUMBER:
            return scores
        case Answer.CLASSES:
            return scores.sigmoid()
    return scores.softmax(-1)


def mean_of(*teachers: Teacher) -> Teacher:
    """The mean of several teachers' predictions."""
    return lambda batch: torch.stack([teacher(batch) for teacher in teachers]).mean(0)


def as_now(model: Adapted) -> Teacher:
    """The model's predictions with the tuned values that it has at this moment, whatever becomes of them."""
    tuned = model.parameter_groups().all
    kept = [parameter.detach().clone() for parameter in tuned]

    @torch.no_grad()
    def teach(batch: Batch) -> Tensor:
        present = [parameter.detach().clone() for parameter in tuned]
        _copy(kept, tuned)
        try:
            return predictions(model.model, batch, model.kind)
        finally:
            _copy(present, tuned)

    return teach


def _copy(values: Sequence[Tensor], parameters: Sequence[nn.Parameter]) -> None:
    for value, parameter in zip(values, parameters, strict=True):
        parameter.copy_(value)


def divergence(answers: Tensor, targets: Tensor, mask: Tensor | None, kind: TaskKind) -> Tensor:
    """How far `answers` are from a teacher's predictions, of the same shape: mean KL divergence in nats.

    KL(targets ‖ softmax(answers)) over examples, or over tokens, `mask` [B, T] being 1 for these; of several
    classes the mean over classes; of numbers the squared error.
    """
    scores = answers.float()
    match FORMS[kind].answer:
        case Answer.NUMBER:
            return nn.functional.mse_loss(scores, targets)
        case Answer.CLASSES:
            logs = torch.stack([nn.functional.logsigmoid(scores), nn.functional.logsigmoid(-scores)], -1)
            both = torch.stack([targets, 1 - targets], -1)
            return nn.functional.kl_div(logs, both, reduction="none").sum(-1).mean()
    each = nn.functional.kl_div(torch.log_softmax(scores, -1), targets, reduction="none").sum(-1)
    if each.dim() == 2 and mask is not None:
        each = each[mask.bool()]
    return each.mean()


@torch.inference_mode()
def distance(student: nn.Module, teacher: Teacher, batches: Sequence[Batch], kind: TaskKind) -> float:
    """The mean `divergence` over batches, each weighted by its size."""
    total, count = 0.0, 0
    for batch in batches:
        value = divergence(logits(student, batch.inputs), teacher(batch), batch.mask, kind)
        size = len(next(iter(batch.inputs.values())))
        total, count = total + value.item() * size, count + size
    return total / count


def correct(
    student: Adapted,
    teacher: Teacher,
    batches: Iterator[Batch],
    settings: Settings,
    *,
    on_step: OnStep = lambda step, steps, loss: None,
    on_checkpoint: OnCheckpoint | None = None,
    checkpoint_every: int = 50,
    resume: Mapping[str, Tensor] | None = None,
) -> None:
    """Train what the student tunes, in place, until its predictions are the teacher's; without dropout.

    L(φ) = mean over the batch of KL( p_n ‖ softmax(FM(x_n; φ)) ), by AdamW without weight decay, with warm-up
    and cosine decay to 0, gradients clipped to norm 1. `resume` goes on from what `on_checkpoint` was given,
    `batches` beginning again with the first one, to the same bits. Raises StoreError, with nothing changed,
    when the checkpoint is of another correction.
    """
    student.model.eval()
    groups = student.parameter_groups()
    s = settings
    rates = (s.learning_rate, s.neuron_learning_rate, s.head_learning_rate)
    adamw = torch.optim.AdamW(
        [
            {"params": group, "lr": rate, "initial_lr": rate}
            for group, rate in zip(groups, rates, strict=True)
            if group
        ],
        weight_decay=0.0,
    )
    tuned = set(groups.all)
    trained = {name: p for name, p in student.model.named_parameters() if p in tuned}
    fixed = {"correction": torch.tensor(astuple(settings), dtype=torch.float64)}
    done = 0
    if resume is not None:
        done = distillation_state.restore(resume, settings.steps, trained, adamw, fixed)
    warmup = round(settings.warmup * settings.steps)
    schedule = get_cosine_schedule_with_warmup(adamw, warmup, settings.steps, last_epoch=done - 1)
    batches = islice(batches, done, None)
    for step in range(done + 1, settings.steps + 1):
        batch = next(batches)
        targets = teacher(batch)
        adamw.zero_grad()
        loss = divergence(logits(student.model, batch.inputs), targets, batch.mask, student.kind)
        loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), _MAX_GRADIENT_NORM)
        adamw.step()
        schedule.step()
        if on_checkpoint is not None and step % checkpoint_every == 0:
            on_checkpoint(distillation_state.to_tensors(step, trained, adamw, fixed))
        on_step(step, settings.steps, loss.item())
    adamw.zero_grad()
