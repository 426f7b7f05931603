"""Local fine-tuning under which no example can be told to have been there: DP-SGD on the adapter.

Abadi et al. 2016: each example's gradient by itself, clipped; their sum over a batch in which each example is
by chance of its own (Poisson sampling), with Gaussian noise. All that follows, the optimiser's steps
included, sees nothing else of the data.

Dropout is off: its draws come from a seed that the coordinator can compute, and which example gets which
would depend on the others.
"""

import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from common.data.batches import Batch, Dataset
from common.errors import ModelError
from common.model import passes, tasks
from common.model.adapter import Adapted
from common.privacy.accounting import PrivateSteps
from common.privacy.noise import SecretDraws
from common.records import TrainingSpec
from worker.train import LocalUpdate, OnStep, change, optimizer_of

# Of the clip: what it is missed by when norms are rounded.
_WITHIN = 1 - 1e-6


@dataclass(frozen=True)
class Mechanism:
    """What a round does to gradients: steps with their rate and noise, the clip, the expected batch."""

    planned: PrivateSteps
    clip: float
    batch: int


def fine_tune_privately(
    adapted: Adapted,
    start: Mapping[str, Tensor],
    data: Dataset,
    spec: TrainingSpec,
    mechanism: Mechanism,
    *,
    factor: float,
    draws: SecretDraws | None = None,
    on_step: OnStep = lambda step, steps, loss: None,
) -> LocalUpdate:
    """As `train.fine_tune`, under differential privacy; no row of `data` may hold two examples.

    `spec.batch_size` is how many examples are computed with at a time, and `spec.max_gradient_norm` and
    `spec.epochs` say nothing here. There is no loss: 0. `draws` is for tests alone. Raises Diverged, and
    ModelError where something is trained that has no gradient of its own for each example.
    """
    adapted.load(start)
    planned, draws = mechanism.planned, draws or SecretDraws()
    tuned = adapted.parameter_groups().all
    optimizer = optimizer_of(adapted.parameter_groups(), spec, factor)
    anchors = [p.detach().clone() for p in tuned] if spec.proximal else []
    with per_example_gradients(adapted):
        for step in range(1, planned.steps + 1):
            chosen = draws.chosen(len(data), planned.rate)
            sums = clipped_sum(adapted, data, chosen, mechanism.clip, spec)
            for i, (parameter, total) in enumerate(zip(tuned, sums, strict=True)):
                noise = draws.normals(parameter.shape) * (planned.noise * mechanism.clip)
                noisy = total.double().cpu() + torch.from_numpy(noise)
                # By the expected size: the drawn one tells who is in.
                parameter.grad = (noisy / mechanism.batch).to(parameter)
                if anchors:
                    # FedProx's term is not of the data.
                    parameter.grad += spec.proximal * (parameter.detach() - anchors[i])
            optimizer.step()
            on_step(step, planned.steps, 0.0)
    for parameter in tuned:
        parameter.grad = None
    return LocalUpdate(change(adapted, start, planned.steps), 0.0, planned.steps, {})


def clipped_sum(
    adapted: Adapted, data: Dataset, rows: Sequence[int], clip: float, spec: TrainingSpec
) -> list[Tensor]:
    """The sum over rows of their gradients, each scaled down to L2 norm `clip`, by trained parameter.

    One row more or less moves it by at most `clip`, all parameters together. A row whose gradient is no
    finite number adds nothing. Within `per_example_gradients`.
    """
    tuned = adapted.parameter_groups().all
    sums = [torch.zeros_like(parameter, dtype=torch.float32) for parameter in tuned]
    device = tuned[0].device
    # Alike in length they need little padding; it is a sum, so the order says nothing.
    lengths = data.lengths
    ordered = rows if lengths is None else sorted(rows, key=lengths.__getitem__)
    for begin in range(0, len(ordered), spec.batch_size):
        padded = data.batch(ordered[begin : begin + spec.batch_size]).to(device)
        for batch in padded.parts(spec.tokens_per_step):
            gradients = _gradients(adapted, batch, tuned)
            squares = torch.stack([g.flatten(1).square().sum(1) for g in gradients]).sum(0)
            finite = squares.isfinite()
            factors = torch.where(finite, _WITHIN * clip / squares.sqrt().clamp(min=clip), 0.0)
            for total, gradient in zip(sums, gradients, strict=True):
                gradient[~finite] = 0.0
                total += torch.tensordot(factors, gradient, dims=1)
    return sums


def _trained(adapted: Adapted) -> list[nn.Module]:
    modules = adapted.model.modules()
    return [m for m in modules if any(p.requires_grad for p in m.parameters(recurse=False))]


@contextmanager
def _each_used_once(adapted: Adapted) -> Iterator[None]:
    """Raises ModelError where a trained module is used twice in a pass: what comes of its use on what is no
    row of the batch, such as relative positions, would be in every row's gradient and in none's bound."""
    used: Counter[nn.Module] = Counter()

    def note(module: nn.Module, inputs: object) -> None:
        used[module] += 1
        if used[module] > 1:
            raise ModelError(
                f"privacy.dp cannot bound what an example changes in a {adapted.family.model_type} model: a "
                "trained part of it is used more than once for each; take another family, or tune the head "
                'alone (adapter.targets = "none")'
            )

    hooks = [module.register_forward_pre_hook(note) for module in _trained(adapted)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _gradients(adapted: Adapted, batch: Batch, tuned: Sequence[nn.Parameter]) -> list[Tensor]:
    """Of each row its own, [B, ...] by parameter. Raises ModelError."""
    assert batch.labels is not None
    with _each_used_once(adapted):
        losses = tasks.losses(passes.logits(adapted.model, batch.inputs), batch.labels, adapted.kind)
    losses.sum().backward()
    found = []
    for parameter in tuned:
        each = getattr(parameter, "grad_sample", None)
        if not isinstance(each, Tensor) or len(each) != len(losses):
            raise ModelError(
                f"privacy.dp needs each example's gradient, and of a {adapted.family.model_type} model "
                "something is trained that has none"
            )
        found.append(each.float())
        parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
    return found


@contextmanager
def per_example_gradients(adapted: Adapted) -> Iterator[None]:
    """While open, every backward pass leaves each example's gradient with the parameters that are trained.

    By Opacus' hooks (Yousefpour et al. 2021), which look at modules in training mode only: these are the
    maps that are trained. All else is as in use, without dropout. Raises ModelError.
    """
    # It takes seconds, and most workers do without.
    from opacus.grad_sample.grad_sample_module import GradSampleHooks

    adapted.model.eval()
    trained = _trained(adapted)
    if odd := [module for module in trained if not isinstance(module, nn.Linear)]:
        raise ModelError(f"privacy.dp trains linear maps alone, and there is a {type(odd[0]).__name__}")
    for module in trained:
        module.train()
    # Not strict: buffers such as tables of positions are refused else.
    hooks = GradSampleHooks(adapted.model, loss_reduction="sum", strict=False)
    try:
        with warnings.catch_warnings():
            # Where a map's input has no gradient, as a head's that is trained alone.
            warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
            yield
    finally:
        hooks.cleanup()
        adapted.model.eval()
