"""How much each FFN neuron matters.

Of a layer: a_tj is neuron j's activation at token t (the input of the out map; of a gated FFN the
product of gate and up), W2 [d, K] the out map. Padded tokens never count.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.config.choices import Saliency
from common.data.batches import Batch
from common.errors import DataError
from common.model.ffn import Ffn, ffns_of
from common.model.layers import encoder_of, layer_outputs, tokens_of
from coordinator.algorithms.activation_capture import (
    attention_received,
    undisturbed,
    watch_activations,
    watch_attention,
)

# Called with work done and work in all; may raise to stop.
OnProgress = Callable[[int, int], None]

INTEGRATION_STEPS = 8


def score_layers(
    fm: PreTrainedModel,
    metric: Saliency,
    batches: Sequence[Batch],
    seed: int,
    on_progress: OnProgress = lambda done, total: None,
) -> list[Tensor]:
    """Every layer's scores by `metric`, float [K], first layer to last; higher is more worth keeping.

    `batches` on the model's device; L2 and RANDOM look at none, and only RANDOM uses `seed`. The model
    runs without dropout and is left as found. Raises DataError when the metric needs tokens and gets none.
    """
    ffns = ffns_of(fm)
    match metric:
        case Saliency.L2:
            return [l2_norm(ffn) for ffn in ffns]
        case Saliency.RANDOM:
            return random_scores(ffns, seed)
    if not any(batch.mask is None or bool(batch.mask.any()) for batch in batches):
        raise DataError(f"saliency by {metric} needs data to look at; there is not one token")
    with undisturbed(fm):
        match metric:
            case Saliency.ACTIVATION:
                return activation_aware(fm, batches, on_progress)
            case Saliency.ATTENTION:
                return attention_based(fm, batches, on_progress)
            case Saliency.INTEGRATED_GRADIENTS:
                return [a.abs() for a in integrated_gradients(fm, batches, on_progress=on_progress)]


def top_k(score: Tensor, k: int) -> Tensor:
    """Indices of the `k` highest scores, ascending, int64 [k]; of equals the first counts as higher."""
    return score.argsort(descending=True, stable=True)[:k].sort().values


# --- without data ---


def l2_norm(ffn: Ffn) -> Tensor:
    """L2 norm of each neuron's incoming and outgoing weights together, float [K].

    s_j = sqrt(|W1[j, :]|^2 + |W2[:, j]|^2). Source: FedPFT, section 3.2.
    """
    incoming = torch.stack([m.weight.detach().float().square().sum(1) for m in ffn.ins]).sum(0)
    outgoing = ffn.out.weight.detach().float().square().sum(0)
    return (incoming + outgoing).sqrt()


def random_scores(ffns: Sequence[Ffn], seed: int) -> list[Tensor]:
    """Uniform in [0, 1), float [K] a layer: the control that any other metric has to beat."""
    draw = torch.Generator().manual_seed(seed)
    return [torch.rand(ffn.width, generator=draw).to(ffn.out.weight.device) for ffn in ffns]


# --- by what the neurons do on data; the model must be `undisturbed` ---


@torch.no_grad()
def activation_aware(
    fm: PreTrainedModel, batches: Sequence[Batch], on_progress: OnProgress = lambda done, total: None
) -> list[Tensor]:
    """Activation-aware magnitude, float [K] a layer.

    s_j = sqrt(mean_t a_tj^2) * |W2[:, j]|: the root mean square of what j adds to the residual stream.
    Source: Wanda (Sun et al. 2023, arXiv 2306.11695, equation 1), whose |weight| * |input| is taken
    over j's whole column instead of single weights. Progress: batches.
    """
    ffns = ffns_of(fm)
    sums = _zeros(ffns)
    counts = [0] * len(ffns)

    def add(layer: int, mask: Tensor | None, activation: Tensor) -> None:
        tokens = tokens_of(activation, mask).float()
        # Of a spread FM the weights may be elsewhere than the activations.
        sums[layer] += tokens.square().sum(0).to(sums[layer].device)
        counts[layer] += len(tokens)

    for done, batch in enumerate(batches, start=1):
        with ExitStack() as watched:
            for i, ffn in enumerate(ffns):
                watched.enter_context(watch_activations(ffn, partial(add, i, batch.mask)))
            encoder_of(fm)(**batch.inputs)
        on_progress(done, len(batches))
    means = [total / count for total, count in zip(sums, counts, strict=True)]
    return [mean.sqrt().float() * _outgoing(ffn) for mean, ffn in zip(means, ffns, strict=True)]


@torch.no_grad()
def attention_based(
    fm: PreTrainedModel, batches: Sequence[Batch], on_progress: OnProgress = lambda done, total: None
) -> list[Tensor]:
    """Activation where the layer's attention looks, float [K] a layer.

    s_j = sum_t w_t |a_tj| / sum_t w_t * |W2[:, j]|, w_t the mean over heads and unpadded queries of the
    attention probability that token t receives in the same layer, so that each text has weight 1.
    Source: ours, for the paper's open question after attention-based saliency; that a token matters by
    the attention it receives, over heads and queries, is PoWER-BERT's (Goyal et al. 2020, arXiv
    2001.08950). In causal models the first tokens receive most. Progress: batches.
    """
    ffns = ffns_of(fm)
    sums = _zeros(ffns)
    weight_sums = [0.0] * len(ffns)
    received: dict[int, Tensor] = {}

    def keep(mask: Tensor | None, layer: int, probabilities: Tensor) -> None:
        received[layer] = tokens_of(attention_received(probabilities, mask), mask)

    def add(layer: int, mask: Tensor | None, activation: Tensor) -> None:
        # A layer's attention comes before its FFN.
        weights = received.pop(layer)
        more = weights.to(activation.device) @ tokens_of(activation, mask).float().abs()
        sums[layer] += more.to(sums[layer].device)
        weight_sums[layer] += float(weights.sum())

    for done, batch in enumerate(batches, start=1):
        with ExitStack() as watched:
            watched.enter_context(watch_attention(fm, partial(keep, batch.mask)))
            for i, ffn in enumerate(ffns):
                watched.enter_context(watch_activations(ffn, partial(add, i, batch.mask)))
            encoder_of(fm)(**batch.inputs)
        on_progress(done, len(batches))
    means = [total / weight for total, weight in zip(sums, weight_sums, strict=True)]
    return [mean.float() * _outgoing(ffn) for mean, ffn in zip(means, ffns, strict=True)]


def integrated_gradients(
    fm: PreTrainedModel,
    batches: Sequence[Batch],
    steps: int = INTEGRATION_STEPS,
    on_progress: OnProgress = lambda done, total: None,
) -> list[Tensor]:
    """Signed attributions, float [K] a layer, of the change that scaling a layer's activations makes.

    Path: the layer's activations are alpha * a, alpha from 0 to 1, all else following from them.
    Scalar: F(a') = sum_t |h_t(a') - h_t(a)|^2 / sum_t |h_t(a)|^2, with h the last layer's output before
    any final norm, over the tokens of all batches: `layer_error` of the last layer, to which all that
    a neuron does to the model must come. It asks for no labels and no head, so it serves every task.
    attribution_j = sum_t a_tj * (1/m) sum_k dF/da_tj at alpha_k = (k - 1/2) / m: the midpoint rule,
    m = `steps`. Completeness: sum_j attribution_j = F(a) - F(0) = -F(0), the damage of losing the whole
    layer, shared out among its neurons; most are negative, for a neuron's return lessens the change.
    (Without the path there is nothing to see: F has its minimum, and no gradient, at a itself.)
    A norm of the FFN's output divides all along by what it divides by at alpha = 1, or it would undo alpha.
    Sources: Sundararajan et al. 2017 (arXiv 1703.01365, equation 1 and proposition 1); for FFN neurons
    Dai et al. 2022 (arXiv 2104.08696, section 3.2); for the norm Ali et al. 2022 (arXiv 2202.07304).
    Progress: passes, batches * layers * steps.
    """
    ffns = ffns_of(fm)
    sums = _zeros(ffns)
    power = 0.0
    done, passes = 0, len(batches) * len(ffns) * steps
    for batch in batches:
        with torch.no_grad():
            unchanged = tokens_of(layer_outputs(fm, batch.inputs)[-1], batch.mask).float()
        power += float(unchanged.square().sum())
        for i, ffn in enumerate(ffns):
            for k in range(steps):
                slope = _slope(fm, ffn, (k + 0.5) / steps, batch, unchanged)
                sums[i] += slope.to(sums[i].device) / steps
                done += 1
                on_progress(done, passes)
    return [(total / power).float() for total in sums]


def _slope(fm: PreTrainedModel, ffn: Ffn, alpha: float, batch: Batch, unchanged: Tensor) -> Tensor:
    """sum_t a_tj * d/da_tj of sum_t |h_t - unchanged_t|^2 at alpha * a, float [K]; `unchanged` [N, d]."""
    seen: list[Tensor] = []

    def scale(activation: Tensor) -> Tensor:
        # A leaf of the graph, which therefore begins in this layer.
        seen.extend([activation.detach(), (alpha * activation.detach()).requires_grad_()])
        return seen[1]

    with watch_activations(ffn, scale), _held_norm(ffn, seen), torch.enable_grad():
        changed = tokens_of(layer_outputs(fm, batch.inputs)[-1], batch.mask).float()
        error = (changed - unchanged).square().sum()
    activation, scaled = seen
    (gradient,) = torch.autograd.grad(error, scaled)
    return tokens_of(activation.float() * gradient.float(), batch.mask).sum(0)


@contextmanager
def _held_norm(ffn: Ffn, seen: list[Tensor]) -> Iterator[None]:
    """While open, the norm of the FFN's output is the factor that it is at the activations `seen` first."""
    norm = ffn.out_norm
    if norm is None:
        yield
        return

    def after(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        with torch.no_grad():
            weight, bias = ffn.out.weight.to(seen[0].device), ffn.out.bias
            whole = nn.functional.linear(seen[0], weight, None if bias is None else bias.to(weight.device))
            # What is 0 stays 0, by any factor.
            factor = torch.where(whole == 0, 0.0, norm.forward(whole) / whole)
        return inputs[0] * factor

    hook = norm.register_forward_hook(after)
    try:
        yield
    finally:
        hook.remove()


def _zeros(ffns: Sequence[Ffn]) -> list[Tensor]:
    """A sum [K] for every layer; in float64, so that the number of batches costs no accuracy."""
    return [torch.zeros(f.width, dtype=torch.float64, device=f.out.weight.device) for f in ffns]


def _outgoing(ffn: Ffn) -> Tensor:
    """|W2[:, j]|, float [K]."""
    return ffn.out.weight.detach().float().square().sum(0).sqrt()
