"""Distillation of the FM into the sub-FM by gradient: the one loss of both alignments.

Layer level (before the rounds) trains the compressed layers' FFNs and output normalisation whole;
neuron level (during the rounds) trains chosen neurons only. Source: FedPFT, section 3.3.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from common.batches import Batch
from common.model.families import Ffn, encoder_of, ffns_of

# Called after every step with steps done, steps in all and the loss; may raise to stop.
OnStep = Callable[[int, int, float], None]


@dataclass(frozen=True)
class Settings:
    """Optimiser steps, AdamW's peak rate, warm-up as a share of steps, factor of the weight term."""

    steps: int
    learning_rate: float
    warmup: float
    weight_term: float


def layer_error(teacher: Tensor, student: Tensor, mask: Tensor) -> Tensor:
    """Mean squared difference of two layers' outputs [B, T, d] over tokens, relative to the teacher's.

    MSE(h_t / s, h_s / s) with s the root mean square of h_t. `mask` [B, T], 1 = token.
    """
    tokens = mask.bool()
    target = teacher[tokens]
    return (student[tokens] - target).square().mean() / target.square().mean()


def linear_map(ffn: Ffn) -> Tensor:
    """The FFN without its activation, W2 W1 [d, d]: defined whatever the number of neurons."""
    return ffn.down.weight @ ffn.up.weight


def weight_error(teacher_map: Tensor, student: Ffn) -> Tensor:
    """Squared difference of the linearised FFNs, relative to the teacher's."""
    return (linear_map(student) - teacher_map).square().sum() / teacher_map.square().sum()


def hidden_states(model: PreTrainedModel, batch: Batch) -> Sequence[Tensor]:
    """The output [B, T, d] of every layer, first to last."""
    output = encoder_of(model)(**batch.inputs, output_hidden_states=True)
    states: Sequence[Tensor] = output.hidden_states[1:]
    return states


@torch.no_grad()
def hidden_error(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    layers: Sequence[int],
    batches: Iterator[Batch],
) -> float:
    """Mean `layer_error` over the given layers and batches."""
    errors = []
    for batch in batches:
        t, s = hidden_states(teacher, batch), hidden_states(student, batch)
        errors += [layer_error(t[i], s[i], batch.mask).item() for i in layers]
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
) -> None:
    """Train the student's FFNs in `layers` (same indices in both models), in place.

    With `neurons` (layer → int64 [N]) only these neurons' rows, biases and columns change, and
    nothing else by a single bit. Loss: mean over layers of `layer_error` + weight_term ·
    `weight_error`, with a gradient through both terms (FedPFT, equation 4). Both models run without
    dropout. Every parameter's `requires_grad` is left as it was found.
    """
    teacher_ffns, student_ffns = ffns_of(teacher), ffns_of(student)
    with torch.no_grad():
        targets = {i: linear_map(teacher_ffns[i]) for i in layers}
    parameters = [p for i in layers for p in _trained(student_ffns[i], neurons is not None)]
    # Weight decay would move frozen neurons, and pulls kept ones from where distillation puts them.
    optimizer = torch.optim.AdamW(parameters, lr=settings.learning_rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(
        optimizer, round(settings.warmup * settings.steps), settings.steps
    )
    teacher.eval()
    student.eval()
    with _only_trainable(student, parameters):
        for step in range(1, settings.steps + 1):
            batch = next(batches)
            with torch.no_grad():
                teacher_states = hidden_states(teacher, batch)
            student_states = hidden_states(student, batch)
            loss = torch.stack(
                [
                    layer_error(teacher_states[i], student_states[i], batch.mask)
                    + settings.weight_term * weight_error(targets[i], student_ffns[i])
                    for i in layers
                ]
            ).mean()
            optimizer.zero_grad()
            loss.backward()
            if neurons is not None:
                for i in layers:
                    _keep_gradient_of(student_ffns[i], neurons[i])
            optimizer.step()
            schedule.step()
            on_step(step, settings.steps, loss.item())


def _trained(ffn: Ffn, neurons_only: bool) -> list[nn.Parameter]:
    return ffn.neuron_parameters() if neurons_only else ffn.parameters()


def _keep_gradient_of(ffn: Ffn, neurons: Tensor) -> None:
    """Zero every other neuron's gradient: AdamW without decay then leaves it exactly where it is."""
    others = torch.ones(ffn.width, dtype=torch.bool, device=ffn.up.weight.device)
    others[neurons] = False
    assert ffn.up.weight.grad is not None and ffn.up.bias.grad is not None
    assert ffn.down.weight.grad is not None
    ffn.up.weight.grad[others] = 0
    ffn.up.bias.grad[others] = 0
    ffn.down.weight.grad[:, others] = 0


@contextmanager
def _only_trainable(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
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
