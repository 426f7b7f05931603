"""A model on a batch, without what nobody reads.

No cache of keys and values, and of a language model never the scores of all tokens at once, which take as
much memory as the rest of a pass together.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from common.model import tasks
from common.model.families import without_cache
from common.model.int8 import plain_if_small
from common.model.tasks import IGNORED
from common.records import TaskKind

# Of scores at a time: 16 MiB as float32, enough rows for matrix products at full speed.
MOST_SCORES = 2**22

# A head's outputs → the model's scores.
_Finish = Callable[[Tensor], Tensor]


def logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """All of a model's scores; `inputs` by its own names."""
    config: Any = model.config
    scores: Tensor = model(**inputs, **without_cache(config)).logits
    return scores


def loss(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    labels: Tensor,
    kind: TaskKind,
    weights: Tensor | None = None,
) -> Tensor:
    """`tasks.loss` of the model's scores. A language model's are formed a part at a time, those of tokens
    that have a target only, and with each part its gradient: none is kept, none computed twice."""
    if kind is not TaskKind.CAUSAL_LM:
        return tasks.loss(logits(model, inputs), labels, kind, weights)
    hidden, targets, head = _next_tokens(model, inputs, labels)
    if not len(targets):
        return hidden.sum() * 0.0
    tuned = [parameter for parameter in head.parameters() if parameter.requires_grad]
    with plain_if_small(head):
        total: Tensor = _SummedLoss.apply(  # type: ignore[no-untyped-call]
            hidden, targets, head, _finish(model), *tuned
        )
    return total / len(targets)


@torch.no_grad()
def tally(
    model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor, kind: TaskKind
) -> tuple[float, float, int, Tensor | None]:
    """`tasks.tally` of the model's scores, and the scores; None of a language model's."""
    if kind is not TaskKind.CAUSAL_LM:
        scores = logits(model, inputs)
        return *tasks.tally(scores, labels, kind), scores
    hidden, targets, head = _next_tokens(model, inputs, labels)
    right, total, finish = 0, 0.0, _finish(model)
    with plain_if_small(head):
        for part, wanted in _parts(hidden, targets, head):
            found = finish(head(part)).float()
            right += int((found.argmax(-1) == wanted).sum())
            total += float(nn.functional.cross_entropy(found, wanted, reduction="sum"))
    return right, total, len(targets), None


@torch.inference_mode()
def target_scores(
    model: nn.Module, inputs: Mapping[str, Tensor], places: tuple[Tensor, Tensor], targets: Tensor
) -> tuple[Tensor, Tensor]:
    """A language model's log-likelihoods of tokens, float32 [N] in nats, and whether each is its first
    choice.

    Token `targets[i]`, int64 [N], is looked for behind the one at row `places[0][i]`, position
    `places[1][i]`. Scores are formed a part at a time. A model that does more to what comes out of its head
    than is known here (a cap, another factor) has them formed by itself, a row at a time.
    """
    owner: Any = model
    head: nn.Module = owner.get_output_embeddings()
    finish = _finish(model)
    found: list[tuple[Tensor, Tensor]] = []
    if not _known_end(model, inputs, head, finish):
        for row in range(len(inputs["input_ids"])):
            chosen = places[0] == row
            whole = logits(model, {name: values[row : row + 1] for name, values in inputs.items()})[0]
            found.append(_likelihoods(whole[places[1][chosen]].float(), targets[chosen]))
        # Put back into the order that was asked for.
        order = torch.cat([(places[0] == row).nonzero()[:, 0] for row in range(len(inputs["input_ids"]))])
        back = order.argsort()
        return torch.cat([each for each, _ in found])[back], torch.cat([each for _, each in found])[back]
    with _headless(head) as seen:
        logits(model, inputs)
    (hidden,) = seen
    for part, wanted in _parts(hidden[places], targets, head):
        found.append(_likelihoods(finish(head(part)).float(), wanted))
    return torch.cat([each for each, _ in found]), torch.cat([each for _, each in found])


def _likelihoods(scores: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    return -nn.functional.cross_entropy(scores, targets, reduction="none"), scores.argmax(-1) == targets


def _known_end(model: nn.Module, inputs: Mapping[str, Tensor], head: nn.Module, finish: _Finish) -> bool:
    """Whether the model's scores are what `finish` makes of its head's, seen on the first two tokens."""
    few = {name: values[:1, :2] for name, values in inputs.items()}
    whole = logits(model, few).float()
    with _headless(head) as seen:
        logits(model, few)
    own = finish(head(seen[0])).float()
    return bool(torch.allclose(own, whole, rtol=1e-3, atol=1e-3))


def _next_tokens(
    model: nn.Module, inputs: Mapping[str, Tensor], labels: Tensor
) -> tuple[Tensor, Tensor, nn.Module]:
    """What the head reads at tokens whose next one is a target, [N, d]; the targets int64 [N]; the head."""
    owner: Any = model
    head: nn.Module = owner.get_output_embeddings()
    with _headless(head) as seen:
        logits(model, inputs)
    # Of a spread model the last layer may be elsewhere.
    hidden = seen[0].to(labels.device)
    wanted = labels[:, 1:] != IGNORED
    return hidden[:, :-1][wanted], labels[:, 1:][wanted], head


@contextmanager
def _headless(head: nn.Module) -> Iterator[list[Tensor]]:
    """While open, the head is given no token; the list holds what it would have been given."""
    seen: list[Tensor] = []

    def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        seen.append(inputs[0])
        return (inputs[0][:, :0], *inputs[1:])

    hook = head.register_forward_pre_hook(before)
    try:
        yield seen
    finally:
        hook.remove()


def _finish(model: nn.Module) -> _Finish:
    """What the model itself does to what comes out of its head: in some families a factor (Cohere), a divisor
    (Granite), or a bound that scores come near but never reach (Gemma 2)."""
    config: Any = model.config
    factor = float(getattr(config, "logit_scale", None) or 1.0)
    divisor = float(getattr(config, "logits_scaling", None) or 1.0)
    bound = getattr(config, "final_logit_softcapping", None)

    def finish(scores: Tensor) -> Tensor:
        scores = scores if factor == 1.0 else scores * factor
        scores = scores if divisor == 1.0 else scores / divisor
        return scores if bound is None else torch.tanh(scores / bound) * bound

    return finish


def _parts(hidden: Tensor, targets: Tensor, head: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    rows = max(1, MOST_SCORES // next(head.parameters()).shape[0])
    yield from zip(hidden.split(rows), targets.split(rows), strict=True)


class _SummedLoss(torch.autograd.Function):
    """Cross entropy in nats, summed. Gradients are formed with it, since the scores are gone after."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: nn.Module, finish: _Finish, *tuned: nn.Parameter
    ) -> Tensor:
        """`hidden` [N, d], `targets` int64 [N]; `tuned` are the head's trainable parameters."""
        to_hidden = ctx.needs_input_grad[0]
        gradients = [torch.zeros_like(parameter) for parameter in tuned]
        parts, total = [], hidden.new_zeros((), dtype=torch.float32)
        for rows, wanted in _parts(hidden, targets, head):
            part = rows.detach().requires_grad_(to_hidden)
            inputs = [part] * to_hidden + list(tuned)
            with torch.set_grad_enabled(bool(inputs)):
                scores = finish(head(part)).float()
                value = nn.functional.cross_entropy(scores, wanted, reduction="sum")
            total += value.detach()
            found = list(torch.autograd.grad(value, inputs)) if inputs else []
            if to_hidden:
                parts.append(found.pop(0))
            for gradient, more in zip(gradients, found, strict=True):
                gradient += more
        ctx.save_for_backward(*([torch.cat(parts)] if to_hidden else []), *gradients)
        ctx.to_hidden = to_hidden
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients, times that of the sum."""
        found = [gradient * outer[0].to(gradient.dtype) for gradient in ctx.saved_tensors]
        of_hidden = found.pop(0) if ctx.to_hidden else None
        return of_hidden, None, None, None, *found
