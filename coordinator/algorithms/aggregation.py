"""Workers' updates → the next adapter: many changes become one, and the one is applied.

Every function goes tensor by tensor, so that deltas that are read from disk when asked for need memory
for one tensor of each worker at a time. Updates are sorted by worker before anything is summed, and
ties go to the first: the order of arrival changes no bit.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from common.config.choices import AggregationRule, ServerOptimizer
from common.errors import BadUpdate, RunFailed
from coordinator.algorithms import ties
from coordinator.algorithms.exact_averaging import residuals

MOMENTUM, VARIANCE = "momentum", "variance"
_STATE = (MOMENTUM, VARIANCE)


@dataclass(frozen=True)
class Update:
    """A worker's change to the adapter, and its weight, at least 1: the number of examples trained on, or
    of target tokens.

    `delta` may hold fewer tensors than the adapter (a frozen A, residuals); all of a round's updates
    hold the same ones. A round has one update per worker.
    """

    worker: str
    weight: int
    delta: Mapping[str, Tensor]


@dataclass(frozen=True)
class Settings:
    """How a round is aggregated. The run's configuration has checked the ranges.

    Attributes:
        rule: how many changes become one.
        trim: share of the updates that the trimmed mean cuts from each end, in [0, 0.5).
        byzantine: how many updates Krum and Multi-Krum assume to be bad: their f.
        optimizer: how the one change is applied.
        learning_rate: the server's: what the change, or the optimizer's step, is multiplied by.
        momentum: share of the last round's momentum that stays: beta1, in [0, 1).
        second_momentum: the same of Adam's and Yogi's variance: beta2, in [0, 1).
        tau: adaptivity of Adam and Yogi: the smaller, the more each coordinate has its own step; > 0.
        density: share of a change that TIES keeps, in (0, 1].
    """

    rule: AggregationRule = AggregationRule.MEAN
    trim: float = 0.1
    byzantine: int = 1
    optimizer: ServerOptimizer = ServerOptimizer.NONE
    learning_rate: float = 1.0
    momentum: float = 0.9
    second_momentum: float = 0.99
    tau: float = 1e-3
    density: float = 0.2


@dataclass(frozen=True)
class Aggregated:
    """A tensor of the next adapter, and what the server optimizer remembers of it: name → tensor."""

    name: str
    tensor: Tensor
    state: dict[str, Tensor]


def each_aggregated(
    start: Mapping[str, Tensor],
    updates: Sequence[Update],
    state: Mapping[str, Tensor],
    settings: Settings,
    order: Iterable[str] | None = None,
) -> Iterator[Aggregated]:
    """The next adapter, tensor by tensor, in start's order or another: `combine`, then `step`.

    Needs memory for one tensor of the adapter, its state and, by the median and its kind, every update's.
    Raises as `combine` does, before the first tensor.
    """
    ordered = _in_order(updates)
    combined, changed = _combiner(ordered, settings), set(ordered[0].delta)
    for name in order or start:
        if name in changed:
            tensor, memory = _step(name, start[name], combined(name), state, settings)
        else:
            kept = (f"{part}.{name}" for part in _STATE)
            tensor, memory = start[name], {key: state[key] for key in kept if key in state}
        yield Aggregated(name, tensor, memory)


def aggregate(
    start: Mapping[str, Tensor],
    updates: Sequence[Update],
    state: Mapping[str, Tensor],
    settings: Settings,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The next adapter and the server optimizer's next state: `combine`, then `step`; raises as they do."""
    return step(start, combine(updates, settings), state, settings)


def combine(updates: Sequence[Update], settings: Settings) -> dict[str, Tensor]:
    """One change from many, with the updates' names, shapes and dtypes.

    - mean: sum_k (n_k / n) delta_k, n_k examples (FedAvg; McMahan et al. 2017, Algorithm 1).
    - median: coordinate-wise; of an even number, halfway between the two in the middle (Yin et al.
      2018, Definition 1).
    - trimmed mean: in each coordinate the mean without the ceil(trim · updates) smallest and as many
      largest (Yin et al. 2018, Definition 2, whose guarantee needs a cut of at least the share of bad
      updates; hence rounded up).
    - Krum: the update with the lowest score, the sum of its squared distances to its n - f - 2 nearest
      others; Multi-Krum: the mean of the m = n - f - 2 lowest scored (Blanchard et al. 2017, who leave
      m open). Both need n >= 2f + 3.
    - ties: in each coordinate the mean, by examples, of those that agree with the sign that all elect, the
      small ones being left out before (`ties.merged`).

    All but the mean and ties give every worker the same weight: the number of examples is a worker's own
    claim, and a bad one would claim many.

    Raises RunFailed when there are too few updates for the rule, BadUpdate when they differ in names.
    """
    ordered = _in_order(updates)
    combined = _combiner(ordered, settings)
    return {name: combined(name) for name in ordered[0].delta}


def _combiner(ordered: Sequence[Update], settings: Settings) -> Callable[[str], Tensor]:
    """Of one tensor, by name, the change that the updates make; what concerns all tensors is settled here."""
    match settings.rule:
        case AggregationRule.MEAN:
            return _mean_of(ordered, _shares(ordered))
        case AggregationRule.MEDIAN:
            return _trimmed_mean_of(ordered, (len(ordered) - 1) // 2)
        case AggregationRule.TRIMMED_MEAN:
            return _trimmed_mean_of(ordered, _cut(len(ordered), settings.trim))
        case AggregationRule.KRUM:
            return ordered[_by_krum(ordered, settings)[0]].delta.__getitem__
        case AggregationRule.MULTI_KRUM:
            best = _by_krum(ordered, settings)[: _near(len(ordered), settings)]
            return _mean_of([ordered[i] for i in best], [1 / len(best)] * len(best))
        case AggregationRule.TIES:
            shares, density = _shares(ordered), settings.density
            return lambda name: ties.merged([u.delta[name] for u in ordered], shares, density)


def step(
    start: Mapping[str, Tensor],
    change: Mapping[str, Tensor],
    state: Mapping[str, Tensor],
    settings: Settings,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The adapter after one step of the server's optimizer, and the optimizer's state after it.

    With d the change, m the momentum and v the variance, all of the tensor's shape, a step is start +
    learning_rate times

    - none: d;
    - momentum: m = beta1 m + d (FedAvgM; Hsu et al. 2019);
    - adam, yogi: m / (sqrt(v) + tau), m = beta1 m + (1 - beta1) d, without bias correction, and
      v = beta2 v + (1 - beta2) d², for Yogi v - (1 - beta2) d² sign(v - d²) (FedAdam, FedYogi; Reddi
      et al. 2021, Algorithm 2).

    `state` holds m as "momentum.NAME" and v as "variance.NAME", at least in float32: in bfloat16 a
    hundredth of a change would vanish. It is empty before the first step, where m = 0 and v = tau²,
    and stays empty with none. Tensors that the change does not hold stay as they are, in the adapter
    and in the state.
    """
    following, memory = dict(start), dict(state)
    for name, delta in change.items():
        following[name], remembered = _step(name, start[name], delta, state, settings)
        memory |= remembered
    return following, memory


def _step(
    name: str, start: Tensor, change: Tensor, state: Mapping[str, Tensor], settings: Settings
) -> tuple[Tensor, dict[str, Tensor]]:
    """`step` for one tensor."""
    delta = change.to(torch.promote_types(change.dtype, torch.float32))
    memory = {}
    match settings.optimizer:
        case ServerOptimizer.NONE:
            move = delta
        case ServerOptimizer.MOMENTUM:
            move = settings.momentum * _recall(state, f"{MOMENTUM}.{name}", delta, 0.0) + delta
            memory[f"{MOMENTUM}.{name}"] = move
        case ServerOptimizer.ADAM | ServerOptimizer.YOGI:
            momentum = _recall(state, f"{MOMENTUM}.{name}", delta, 0.0)
            momentum = settings.momentum * momentum + (1 - settings.momentum) * delta
            variance = _recall(state, f"{VARIANCE}.{name}", delta, settings.tau**2)
            variance = _next_variance(variance, delta.square(), settings)
            memory |= {f"{MOMENTUM}.{name}": momentum, f"{VARIANCE}.{name}": variance}
            move = momentum / (variance.sqrt() + settings.tau)
    if settings.learning_rate != 1:
        move = settings.learning_rate * move
    return (start + move).to(start.dtype), memory


def exact(start: Mapping[str, Tensor], updates: Sequence[Update], scale: float) -> dict[str, Tensor]:
    """The next adapter when the product of LoRA's factors is averaged: FedEx-LoRA.

    Every tensor is averaged by the updates' weights, as with Settings(). What the product of the averaged
    factors lacks is kept beside them: see `residuals`, which says how it is named and what `scale` is.
    `start` holds the residuals of the rounds before, the updates hold none. Raises as `combine` does.
    """
    ordered = _in_order(updates)
    following, _ = aggregate(start, ordered, {}, Settings())
    deltas = [u.delta for u in ordered]
    return following | residuals(start, following, deltas, _shares(ordered), scale)


def _in_order(updates: Sequence[Update]) -> list[Update]:
    """Sorted by worker. Raises RunFailed when there are none, BadUpdate when they differ in names."""
    ordered = sorted(updates, key=lambda u: u.worker)
    if not ordered:
        raise RunFailed("there is no update to aggregate; wait longer for workers, or take more of them")
    first = ordered[0]
    for update in ordered[1:]:
        # Sets of names: to look a name up in a mapping that reads from disk is to read the tensor.
        if odd := sorted(set(first.delta) ^ set(update.delta)):
            raise BadUpdate(
                f"the updates of {first.worker} and {update.worker} do not fit together: "
                f"only one of them holds tensor {odd[0]}"
            )
    return ordered


def _shares(updates: Sequence[Update]) -> list[float]:
    """Each update's weight in the mean, by everyone's together."""
    total = sum(u.weight for u in updates)
    return [u.weight / total for u in updates]


def _mean_of(updates: Sequence[Update], weights: Sequence[float]) -> Callable[[str], Tensor]:
    return lambda name: _mean((u.delta[name] for u in updates), weights)


def _mean(tensors: Iterable[Tensor], weights: Sequence[float]) -> Tensor:
    terms = zip(tensors, weights, strict=True)
    # Starts with the first term, not with zeros: one update then keeps even the sign of its zeros.
    tensor, weight = next(terms)
    total = tensor * weight
    for tensor, weight in terms:
        total.add_(tensor, alpha=weight)
    return total


def _stack(updates: Sequence[Update], name: str) -> Tensor:
    return torch.stack([u.delta[name] for u in updates])


def _trimmed_mean_of(updates: Sequence[Update], cut: int) -> Callable[[str], Tensor]:
    """In each coordinate the mean without the `cut` smallest and the `cut` largest. NaN sorts as largest."""
    kept = slice(cut, len(updates) - cut)
    return lambda name: _stack(updates, name).sort(dim=0).values[kept].mean(dim=0)


def _cut(count: int, trim: float) -> int:
    """How many updates the trimmed mean leaves out at each end. Raises RunFailed when that is all."""
    # Rounded first: 0.07 · 100 is 7.000000000000001 in floating point, and 8 would be a surprise.
    cut = math.ceil(round(trim * count, 9))
    if 2 * cut >= count:
        raise RunFailed(
            f"{AggregationRule.TRIMMED_MEAN} with trim = {trim} cuts {cut} from each end and leaves none, "
            f"got {count} updates; lower aggregation.trim or take more workers"
        )
    return cut


def _near(count: int, settings: Settings) -> int:
    """n - f - 2: how many neighbours Krum looks at. Raises RunFailed when n < 2f + 3."""
    least = 2 * settings.byzantine + 3
    if count < least:
        raise RunFailed(
            f"{settings.rule} with byzantine = {settings.byzantine} needs at least {least} updates, "
            f"got {count}; lower aggregation.byzantine or take more workers"
        )
    return count - settings.byzantine - 2


def _by_krum(updates: Sequence[Update], settings: Settings) -> list[int]:
    """Indices of the updates, lowest score first: the sum of the squared distances to the nearest others."""
    near = _near(len(updates), settings)
    squared = torch.zeros(len(updates), len(updates), dtype=torch.float64)
    for name in updates[0].delta:
        stacked = _stack(updates, name).double().flatten(1)
        squared += torch.stack([(stacked - one).square().sum(dim=1) for one in stacked])
    # No update is its own neighbour, and one with NaN in it is nobody's.
    squared = squared.nan_to_num(nan=math.inf, posinf=math.inf).fill_diagonal_(math.inf)
    scores = squared.sort(dim=1).values[:, :near].sum(dim=1)
    return scores.argsort(stable=True).tolist()


def _recall(state: Mapping[str, Tensor], name: str, like: Tensor, initial: float) -> Tensor:
    return state[name] if name in state else torch.full_like(like, initial)


def _next_variance(variance: Tensor, square: Tensor, settings: Settings) -> Tensor:
    beta2 = settings.second_momentum
    if settings.optimizer is ServerOptimizer.YOGI:
        return variance - (1 - beta2) * square * (variance - square).sign()
    return beta2 * variance + (1 - beta2) * square
