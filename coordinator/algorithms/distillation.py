"""Distillation of the FM into the sub-FM by gradient: the one training of both alignments.

Layer level (before the rounds) trains the compressed layers' FFNs and output normalisation whole;
neuron level (during the rounds) trains chosen neurons only. Source: FedPFT, section 3.3.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from itertools import chain, islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from common.data.batches import Batch
from common.model.ffn import Ffn, ffns_of
from common.model.layers import layers_of, outputs_of
from coordinator.algorithms import distillation_state
from coordinator.algorithms.distillation_loss import DistillationLoss, Factors, layer_error
from coordinator.algorithms.margin import Taught, what_to_teach

# Called after every step with steps done, steps in all and the loss; may raise to stop.
OnStep = Callable[[int, int, float], None]
# Called with all that `distil` needs to go on from there, to be written before it returns: no copies.
OnCheckpoint = Callable[[dict[str, Tensor]], None]


@dataclass(frozen=True)
class Settings:
    """Optimiser steps, AdamW's peak rate, warm-up as a share of steps, factors of the loss's terms."""

    steps: int
    learning_rate: float
    warmup: float
    weight_term: float
    # Not the paper's, for experiments; see DistillationLoss.
    attention_term: float = 0.0
    logit_term: float = 0.0
    margin: float = 0.0
    """Share of the variance of layers' outputs that the student is not taught; see `margin`."""


# So many batches, the first ones, tell the variance.
MARGIN_BATCHES = 16


@torch.no_grad()
def hidden_error(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    layers: Sequence[int],
    batches: Iterator[Batch],
) -> float:
    """Mean `layer_error` over the given layers and batches."""
    of_teacher, of_student = ([layers_of(model)[i] for i in layers] for model in (teacher, student))
    errors = []
    for batch in batches:
        wanted = outputs_of(teacher, of_teacher, batch.inputs)
        got = outputs_of(student, of_student, batch.inputs)
        pairs = zip(wanted, got, strict=True)
        errors += [layer_error(t.to(s.device), s, batch.mask).item() for t, s in pairs]
    return sum(errors) / len(errors)


def distil(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    layers: Sequence[int],
    batches: Iterator[Batch],
    settings: Settings,
    *,
    neurons: Mapping[int, Tensor] | None = None,
    on_step: OnStep = lambda step, steps, loss: None,
    accelerator: Accelerator | None = None,
    on_checkpoint: OnCheckpoint | None = None,
    checkpoint_every: int = 100,
    resume: Mapping[str, Tensor] | None = None,
) -> None:
    """Train the student's FFNs in `layers` (same indices in both models), in place.

    With `neurons` (layer → int64 [N]) only these neurons' rows, biases and columns change, and
    nothing else by a single bit. The loss is `DistillationLoss`, with a gradient through every term
    (FedPFT, equation 4). Both models run without dropout. Every parameter's `requires_grad` is left
    as it was found.

    What is trained of a model in bfloat16 is float32 meanwhile.

    With an `accelerator` both models and every batch move to its device. Of several processes each
    gives its own `batches`; gradients and the reported loss are the processes' means, and all end
    with the same weights. `on_step` is called in every process, and must raise in all or in none.
    What the accelerator had prepared before is released.

    `on_checkpoint` is called in the main process every `checkpoint_every` steps, before that step's
    `on_step`. `resume` goes on from what it was given, `batches` beginning again with the first one:
    to the same bits if there are as many processes (but not in fp16, whose loss scale is not kept).
    Raises StoreError, with both models' values unchanged, when the checkpoint is of another distillation.
    """
    for model in (teacher, student):
        model.eval()
        if accelerator is not None:
            model.to(accelerator.device)
    ffns = ffns_of(student)
    trained = trained_of(student, [ffns[i] for i in layers], neurons is not None)
    adamw = adamw_of(trained, settings)
    taught: list[Taught] = []
    if settings.margin:
        first = list(islice(batches, MARGIN_BATCHES))
        batches = chain(first, batches)
        taught = _taught(teacher, layers, first, settings.margin, accelerator)
    loss = DistillationLoss(
        teacher,
        student,
        layers,
        Factors(settings.weight_term, settings.attention_term, settings.logit_term),
        taught,
    )
    fixed = fixed_of(layers, settings, neurons)
    with (
        _in_float32(trained.values()),
        only_trainable(student, trained.values()),
        _processes(accelerator, loss, adamw) as run,
    ):
        done = 0
        if resume is not None:
            done = distillation_state.restore(resume, settings.steps, trained, adamw, fixed)
        batches = islice(batches, done, None)
        schedule = schedule_of(adamw, settings, done)
        for step in range(done + 1, settings.steps + 1):
            value = run.backward(next(batches))
            if neurons is not None:
                for i in layers:
                    _keep_gradient_of(ffns[i], neurons[i])
            run.optimizer.step()
            schedule.step()
            if on_checkpoint is not None and step % checkpoint_every == 0 and run.is_main:
                on_checkpoint(distillation_state.to_tensors(step, trained, adamw, fixed))
            on_step(step, settings.steps, value)


@dataclass(frozen=True)
class _Run:
    """What a step differs in alone and among several processes."""

    loss_of: nn.Module
    optimizer: Any
    accelerator: Accelerator | None

    @property
    def is_main(self) -> bool:
        return self.accelerator is None or self.accelerator.is_main_process

    def backward(self, batch: Batch) -> float:
        """Leaves the gradients of the processes' mean loss, and returns that loss."""
        self.optimizer.zero_grad()
        if self.accelerator is None:
            loss: Tensor = self.loss_of(batch.inputs)
            loss.backward()
        else:
            loss = self.loss_of(batch.to(self.accelerator.device).inputs)
            self.accelerator.backward(loss)
            loss = self.accelerator.reduce(loss.detach(), "mean")
        return loss.item()


@contextmanager
def _processes(
    accelerator: Accelerator | None, loss: nn.Module, optimizer: torch.optim.Optimizer
) -> Iterator[_Run]:
    if accelerator is None:
        yield _Run(loss, optimizer, None)
        return
    try:
        prepared, wrapped = accelerator.prepare(loss, optimizer)
        yield _Run(prepared, wrapped, accelerator)
    finally:
        # Else the accelerator keeps both models in memory for as long as it lives itself.
        accelerator.free_memory()


def _taught(
    teacher: PreTrainedModel,
    layers: Sequence[int],
    batches: Sequence[Batch],
    margin: float,
    accelerator: Accelerator | None,
) -> list[Taught]:
    """Of several processes the same in each."""
    if accelerator is None:
        return what_to_teach(teacher, layers, batches, margin)
    batches = [batch.to(accelerator.device) for batch in batches]
    return what_to_teach(teacher, layers, batches, margin, lambda own: accelerator.reduce(own, "sum"))


def trained_of(student: nn.Module, ffns: Sequence[Ffn], neurons_only: bool) -> dict[str, nn.Parameter]:
    """What is trained, by name in the student."""
    parts = [ffn.neuron_parameters() if neurons_only else ffn.parameters() for ffn in ffns]
    chosen = {parameter for part in parts for parameter in part}
    return {name: parameter for name, parameter in student.named_parameters() if parameter in chosen}


def adamw_of(trained: Mapping[str, nn.Parameter], settings: Settings) -> torch.optim.AdamW:
    """What trains them."""
    # A schedule that does not begin at step 0 wants to be told the initial rate.
    group = {"params": list(trained.values()), "initial_lr": settings.learning_rate}
    # Weight decay would move frozen neurons, and pulls kept ones from where distillation puts them.
    return torch.optim.AdamW([group], lr=settings.learning_rate, weight_decay=0.0)


def schedule_of(adamw: torch.optim.AdamW, settings: Settings, done: int) -> LambdaLR:
    """Its rates, where so many steps are done.

    Not for accelerate to prepare: it takes as many of its steps at once as there are processes.
    """
    warmup = round(settings.warmup * settings.steps)
    schedule: LambdaLR = get_cosine_schedule_with_warmup(adamw, warmup, settings.steps, last_epoch=done - 1)
    return schedule


def fixed_of(
    layers: Sequence[int], settings: Settings, neurons: Mapping[int, Tensor] | None
) -> dict[str, Tensor]:
    """What a checkpoint and the distillation that goes on from it must have in common."""
    *others, margin = astuple(settings)
    return {
        "settings": torch.tensor(others, dtype=torch.float64),
        # Not where there is none: checkpoints of earlier versions go on.
        **({"margin": torch.tensor([margin], dtype=torch.float64)} if margin else {}),
        "layers": torch.tensor(list(layers)),
        **{f"neurons.{i}": neurons[i].cpu() for i in layers if neurons is not None},
    }


def _keep_gradient_of(ffn: Ffn, neurons: Tensor) -> None:
    """Zero every other neuron's gradient: AdamW without decay then leaves it exactly where it is."""
    others = torch.ones(ffn.width, dtype=torch.bool, device=ffn.out.weight.device)
    others[neurons] = False
    for projection in ffn.ins:
        projection.gradient[others] = 0
        if (of_bias := projection.bias_gradient) is not None:
            of_bias[others] = 0
    ffn.out.gradient[:, others] = 0


@contextmanager
def _in_float32(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """While open they are float32, at least: in bfloat16 most of a step's changes would be rounded away."""
    held = [(parameter, parameter.dtype) for parameter in parameters]
    for parameter, dtype in held:
        parameter.data = parameter.data.to(torch.promote_types(dtype, torch.float32))
    try:
        yield
    finally:
        for parameter, dtype in held:
            parameter.data = parameter.data.to(dtype)


@contextmanager
def only_trainable(model: nn.Module, parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """While open, only these parameters of the model are trainable."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    model.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    try:
        yield
    finally:
        for parameter, trainable in before:
            parameter.requires_grad_(trainable)
            parameter.grad = None
