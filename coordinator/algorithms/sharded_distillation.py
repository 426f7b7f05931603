"""`distillation.distil` of models that several processes hold together, with the result of one process.

Of every batch each process has some rows. The loss is a mean of quotients of sums over a batch's tokens
(`DistillationLoss`): each process's part of a numerator is divided by the sum of all processes' denominators,
so that the parts add up to the loss of the whole batch, and their gradients to its gradient.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, islice

import torch
from torch import Tensor
from transformers import PreTrainedModel

from common.data.batches import Batch
from common.model.ffn import ffns_of
from coordinator.algorithms import distillation_state
from coordinator.algorithms.distillation import (
    MARGIN_BATCHES,
    OnCheckpoint,
    OnStep,
    Settings,
    adamw_of,
    fixed_of,
    only_trainable,
    schedule_of,
    trained_of,
)
from coordinator.algorithms.distillation_loss import DistillationLoss, Factors
from coordinator.algorithms.margin import Taught, what_to_teach
from coordinator.algorithms.sharding import Ranks, whole


def distil_sharded(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    layers: Sequence[int],
    batches: Iterator[Batch],
    settings: Settings,
    ranks: Ranks,
    *,
    on_step: OnStep = lambda step, steps, loss: None,
    on_checkpoint: OnCheckpoint | None = None,
    checkpoint_every: int = 100,
    resume: Mapping[str, Tensor] | None = None,
) -> None:
    """As `distil` without `neurons`; both models are sharded, `batches` are whole and the same everywhere.

    `on_checkpoint` is called in the main process, with whole tensors on the CPU. `on_step` must raise in all
    processes or in none. Raises StoreError.
    """
    for model in (teacher, student):
        model.eval()
    ffns = ffns_of(student)
    trained = trained_of(student, [ffns[i] for i in layers], neurons_only=False)
    adamw = adamw_of(trained, settings)
    taught: list[Taught] = []
    if settings.margin:
        # Of whole batches, so the same in each process.
        first = list(islice(batches, MARGIN_BATCHES))
        batches = chain(first, batches)
        taught = what_to_teach(teacher, layers, first, settings.margin)
    loss = _ShardedLoss(teacher, student, layers, settings, taught, ranks)
    fixed = fixed_of(layers, settings, None)
    with only_trainable(student, trained.values()):
        done = 0
        if resume is not None:
            done = distillation_state.restore(resume, settings.steps, trained, adamw, fixed)
        schedule = schedule_of(adamw, settings, done)
        for step, batch in enumerate(islice(batches, done, settings.steps), start=done + 1):
            adamw.zero_grad()
            value = loss.backward(batch)
            adamw.step()
            schedule.step()
            if on_checkpoint is not None and step % checkpoint_every == 0:
                state = distillation_state.to_tensors(step, trained, adamw, fixed)
                kept = _gathered(state, ranks)
                if ranks.is_main:
                    on_checkpoint(kept)
            on_step(step, settings.steps, value)


def _gathered(tensors: Mapping[str, Tensor], ranks: Ranks) -> dict[str, Tensor]:
    """All of them in the main process, which alone keeps them; one at a time elsewhere."""
    kept = {}
    for name, tensor in tensors.items():
        value = whole(tensor)
        if ranks.is_main:
            kept[name] = value.cpu()
    return kept


class _ShardedLoss(DistillationLoss):
    """The loss of a batch of which each process has some rows."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        layers: Sequence[int],
        settings: Settings,
        taught: Sequence[Taught],
        ranks: Ranks,
    ) -> None:
        super().__init__(
            teacher,
            student,
            layers,
            Factors(settings.weight_term, settings.attention_term, settings.logit_term),
            taught,
        )
        self._ranks = ranks

    def backward(self, batch: Batch) -> float:
        """Leaves each process its part of the whole loss's gradient, and returns that loss."""
        own, counts = self._ranks.share(batch)
        apart, power = self._sums(own, counts)
        errors = apart / self._ranks.summed(power)
        of_outputs = self.weighed(errors, None)
        # FSDP takes the mean of the processes' gradients, and the parts are to be added.
        (of_outputs * self._ranks.count).backward()
        value = float(self._ranks.summed(of_outputs))
        if weight_term := self.factors.weight_term:
            # By itself, when no gradient of the other is under way: it reaches the parts past FSDP, which
            # would add to the same ones at the same time.
            of_weights = whole(self.weight_errors().mean() * weight_term)
            of_weights.backward()
            value += float(of_weights.detach())
        return value

    def _sums(self, batch: Batch, counts: float) -> tuple[Tensor, Tensor]:
        """Of each error the squared difference, and the teacher's power, over this process's tokens."""
        wanted, got, mask = self.observed(batch.inputs)
        tokens = ... if mask is None else mask.bool()
        apart, power = [], []
        for teacher, student in zip(wanted, got, strict=True):
            target = teacher[tokens].float()
            apart.append((student[tokens] - target).square().sum() * counts)
            power.append(target.square().sum() * counts)
        return torch.stack(apart), torch.stack(power)
