"""Local fine-tuning of the adapter on private data, with activation counts. Tensors in, tensors out."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from common.data.batches import Batch, Dataset
from common.errors import CannotTrain
from common.model import passes, tasks
from common.model.adapter import Adapted, Trainable, difference, plus
from common.model.apoz import ZeroCounter, ZeroCounts
from common.model.checkpointing import checkpointing
from common.model.dropout import cheap_dropout
from common.records import LocalOptimizer, TaskKind, TrainingSpec

# Called after every step with steps done, steps in all and the running loss; may raise to stop.
OnStep = Callable[[int, int, float], None]


class Diverged(CannotTrain):
    """Training ran away: there is no update to send. Says nothing of the data."""


@dataclass(frozen=True)
class LocalUpdate:
    """What a round's training gives: the adapter's change, its mean loss in nats, zero counts; of a language
    model the target tokens of a pass over the data, else 0."""

    delta: dict[str, Tensor]
    loss: float
    steps: int
    counts: dict[int, ZeroCounts]
    targets: int = 0


def fine_tune(
    adapted: Adapted,
    start: Mapping[str, Tensor],
    data: Dataset,
    spec: TrainingSpec,
    *,
    factor: float,
    seed: int,
    counter: ZeroCounter | None = None,
    on_step: OnStep = lambda step, steps, loss: None,
) -> LocalUpdate:
    """Train from the adapter `start` for `spec.epochs` passes, with learning rates times `factor`.

    `counter` counts neurons at rest for APoZ (FedPFT, section 3.3), over the unpadded tokens of all
    passes. With `spec.proximal` > 0 the loss has FedProx's term (Li et al. 2020). Afterwards `adapted`
    holds exactly `start` plus the delta: what the coordinator computes from this update alone. Source:
    FedPFT, Algorithm 1, client update.

    Raises Diverged as soon as the loss is no finite number, or when the delta is not finite at the end.
    """
    adapted.load(start)
    model = adapted.model
    device = next(model.parameters()).device
    tuned = adapted.parameter_groups()
    optimizer = optimizer_of(tuned, spec, factor)
    per_epoch = -(-len(data) // spec.batch_size)
    steps, step, total, targets = per_epoch * spec.epochs, 0, 0.0, 0
    counter = counter or ZeroCounter({})
    weights = torch.tensor(spec.class_weights, device=device) if spec.class_weights else None
    anchors = [p.detach().clone() for p in tuned.all] if spec.proximal else []

    # Dropout draws from torch's global generator: fence it off, so that nothing else shows through.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        with counter, cheap_dropout(model), checkpointing(adapted.base, spec.checkpointing):
            model.train()
            for padded in _passes(data, spec, seed):
                optimizer.zero_grad()
                value = 0.0
                for batch, share in _parts(padded.to(device), spec, adapted.kind, weights):
                    assert batch.labels is not None
                    counter.mask = batch.mask
                    loss = passes.loss(model, batch.inputs, batch.labels, adapted.kind, weights) * share
                    # With every part its share, too.
                    pull = spec.proximal / 2 * share * _distance(tuned.all, anchors)
                    with counter.paused():
                        (loss + pull).backward()
                    value += loss.item()
                torch.nn.utils.clip_grad_norm_(tuned.all, spec.max_gradient_norm)
                optimizer.step()
                targets += _targets(padded, adapted.kind)
                step += 1
                total += value
                if not math.isfinite(value):
                    raise _diverged(f"the loss is {value} in step {step} of {steps}")
                on_step(step, steps, total / step)
        model.eval()

    delta = change(adapted, start, steps)
    return LocalUpdate(delta, total / step, step, counter.counts, targets // spec.epochs)


def change(adapted: Adapted, start: Mapping[str, Tensor], steps: int) -> dict[str, Tensor]:
    """What so many steps from `start` have made of it; `adapted` then holds exactly start plus this.

    Raises Diverged when it is not finite.
    """
    delta = difference(adapted.tensors(), start, adapted.spec)
    if spoilt := [name for name in sorted(delta) if not delta[name].isfinite().all()]:
        raise _diverged(f"after {steps} steps {len(spoilt)} of {len(delta)} tensors are not finite")
    adapted.load(plus(start, delta))
    return delta


def optimizer_of(tuned: Trainable, spec: TrainingSpec, factor: float) -> torch.optim.Optimizer:
    """AdamW; or SGD, whose weight decay is decoupled as AdamW's is (Loshchilov and Hutter 2019). Learning
    rates are times `factor`."""
    each = [
        {"params": tuned.lora, "lr": spec.learning_rate * factor},
        {"params": tuned.neurons, "lr": spec.neuron_learning_rate * factor},
        {"params": tuned.head, "lr": spec.head_learning_rate * factor},
    ]
    groups: list[dict[str, Any]] = [group for group in each if group["params"]]
    match spec.optimizer:
        case LocalOptimizer.ADAMW:
            return torch.optim.AdamW(groups, weight_decay=spec.weight_decay)
        case LocalOptimizer.SGD:
            return _Sgd(groups, spec)


class _Sgd(torch.optim.SGD):
    """p ← (1 − rate · decay) p − rate · m, m = momentum · m + gradient; torch puts the decay into m."""

    def __init__(self, groups: list[dict[str, Any]], spec: TrainingSpec) -> None:
        super().__init__(groups, momentum=spec.momentum)
        self._decay = spec.weight_decay

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step."""
        for group in self.param_groups if self._decay else ():
            for parameter in group["params"]:
                parameter.mul_(1 - group["lr"] * self._decay)
        return super().step(closure)


def _diverged(how: str) -> Diverged:
    return Diverged(
        f"training diverged: {how}; lower training.learning_rate (the owner of the run can), look for odd "
        "values in the data, or try another --device"
    )


def _distance(parameters: Sequence[Tensor], anchors: Sequence[Tensor]) -> Tensor | float:
    """Squared distance of the parameters from where the round began; 0 without anchors."""
    if not anchors:
        return 0.0
    return torch.stack([(p - a).square().sum() for p, a in zip(parameters, anchors, strict=True)]).sum()


def _parts(
    batch: Batch, spec: TrainingSpec, kind: TaskKind, weights: Tensor | None
) -> Iterator[tuple[Batch, float]]:
    """What of a batch is computed at a time, and how much of the batch's loss is its own."""
    parts = batch.parts(spec.tokens_per_step)
    if len(parts) == 1:
        yield batch, 1.0
        return
    own = [tasks.weight_of(part.labels, kind, weights) for part in parts if part.labels is not None]
    yield from ((part, one / max(sum(own), 1e-30)) for part, one in zip(parts, own, strict=True))


def _targets(batch: Batch, kind: TaskKind) -> int:
    """How many next tokens a language model learns from a batch."""
    if kind is not TaskKind.CAUSAL_LM or batch.labels is None:
        return 0
    return int(tasks.weight_of(batch.labels, kind))


def _passes(data: Dataset, spec: TrainingSpec, seed: int) -> Iterator[Batch]:
    for epoch in range(spec.epochs):
        yield from data.shuffled(spec.batch_size, seed + epoch)
