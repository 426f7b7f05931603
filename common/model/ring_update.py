"""An update as integers that are summed modulo 2^bits, and what a sum of them says.

Everything that is a worker's own goes into the sum: the adapter's change, activation counts, and, in
`scalars`, its weight, its loss times its weight, and whether its change was larger than the clip.
"""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from torch import Tensor

from common.errors import BadUpdate, ConfigError, SecureRefused
from common.model.apoz import ZeroCounts
from common.model.update import APOZ, DELTA, update_schema, update_tensors
from common.privacy.noise import SecretDraws
from common.privacy.whole_worker import Grid, factor_within, integers, longest, noised, shared_grid
from common.private_task import DpSpec, DpUnit
from common.records import RunSpec, TrainTask
from common.secagg.context import ring_step
from common.secagg.masks import Ring
from common.secagg.records import SecureRound, VectorSpec
from common.secagg.vector import clip_factor, counted, dequantise, quantise, to_ring, to_signed
from common.secure_task import SecureSpec
from common.storage.schema import Schema, TensorSpec
from common.storage.tensor_header import in_file_order

SCALARS = "scalars"
_ZEROS, _TOKENS = ".zeros", ".tokens"
# Of a loss: in steps of a millionth nat.
_LOSS_STEPS = 2**20
# What a loss is taken for at most, so that no sum leaves the ring.
_MOST_LOSS = 2.0**16
_DTYPES = {32: torch.int32, 64: torch.int64}


@dataclass(frozen=True)
class Scalars:
    """Sums over workers: weights (examples, or the workers' number), mean loss in nats, updates clipped."""

    weight: int
    loss: float
    clipped: int


def ring_schema(adapter: Schema, run: RunSpec, counted: Mapping[int, int]) -> dict[str, TensorSpec]:
    """Schema of a masked update's file, as `update_schema` is of a plain one's."""
    assert run.secure is not None
    dtype = _DTYPES[run.secure.bits]
    return {
        name: TensorSpec(spec.shape, dtype if name.startswith(DELTA) else torch.int64)
        for name, spec in update_schema(adapter, run.adapter, counted).items()
    } | {SCALARS: TensorSpec((3,), torch.int64)}


def secure_round(run: RunSpec, task: TrainTask, schema: Schema) -> SecureRound:
    """All that the two sides of a try must agree on. `schema` is `ring_schema`'s.

    Raises SecureRefused for what cannot be.
    """
    spec, told = run.secure, task.secure
    assert spec is not None and told is not None
    if run.task.labels_file is not None:
        # Its digest stands for what is in it, which not both sides have at hand.
        run = replace(run, task=replace(run.task, labels=()))
    timeless = replace(task, seconds_left=0.0, attempt=0, traceparent="", secure=None)
    drawn, honest = len(told.drawn), told.minimum - told.colluding
    grid = _grid(run.dp, told.clip, drawn, honest, spec.bits)
    return SecureRound(
        run_id=run.run_id,
        run_digest=_digest(asdict(run)),
        task_digest=_digest(asdict(timeless)),
        round=task.round,
        attempt=task.attempt,
        drawn=told.drawn,
        electorate=told.electorate,
        colluding=told.colluding,
        threshold=told.threshold,
        minimum=told.minimum,
        clip=told.clip,
        step=grid.step if grid else ring_step(told.clip, spec.bits, drawn),
        by_examples=spec.by_examples,
        most_examples=spec.most_examples,
        vectors=tuple(
            VectorSpec(name, schema[name].shape, 8 * schema[name].dtype.itemsize) for name in sorted(schema)
        ),
    )


def noise_grid(dp: DpSpec | None, within: SecureRound) -> Grid | None:
    """How a worker's update is rounded and noised, where that hides the whole worker; else None.

    `within.minimum` workers, of whom `within.colluding` tell the coordinator their noise, make a sum at
    least: the noise of the others is enough. Raises SecureRefused.
    """
    bits = min(vector.bits for vector in within.vectors)
    return _grid(dp, within.clip, len(within.drawn), within.minimum - within.colluding, bits)


def _grid(dp: DpSpec | None, clip: float, drawn: int, honest: int, bits: int) -> Grid | None:
    if dp is None or dp.unit is not DpUnit.WORKER:
        return None
    if honest < 1:
        raise SecureRefused(
            f"of the workers of a sum {honest} would be honest: there is nobody to add the noise"
        )
    try:
        return shared_grid(dp.noise, clip, drawn, honest, bits)
    except ConfigError as error:
        raise SecureRefused(str(error)) from error


def weight_of(examples: int, spec: SecureSpec) -> int:
    """A worker's weight in the sum; it counts with this over the largest that there is."""
    return counted(examples, spec.most_examples) if spec.by_examples else 1


def ring_tensors(
    delta: Mapping[str, Tensor],
    counts: Mapping[int, ZeroCounts],
    weight: int,
    loss: float,
    within: SecureRound,
    noise: tuple[Grid, SecretDraws] | None = None,
) -> dict[str, Tensor]:
    """A worker's own vectors in the ring, before masks: the names and dtypes of `ring_schema`.

    The change is scaled down to the clip, weighed, and rounded to steps of `within.step`. With `noise` it is
    of weight 1 and so is everybody's, its share of the sum's noise is added, and nothing else is told. Raises
    BadUpdate when it, or the loss, is not finite.
    """
    if not math.isfinite(loss):
        raise BadUpdate(f"the update's loss must be finite, got {loss}")
    bits = {vector.name: vector.bits for vector in within.vectors}
    if noise is not None:
        return _hidden(delta, *noise, bits)
    factor = clip_factor(norm := l2_norm(delta), within.clip)
    share = weight / (within.most_examples if within.by_examples else 1)
    vectors: dict[str, Tensor] = {}
    for name, tensor in update_tensors(delta, counts).items():
        if name.startswith(APOZ):
            vectors[name] = tensor.to(torch.int64).contiguous()
            continue
        values = tensor.detach().cpu().float().numpy()
        ring = quantise(values, share * factor, within.step, bits[name], within.clip)
        vectors[name] = torch.from_numpy(to_signed(ring))
    told = [weight, round(min(max(loss, -_MOST_LOSS), _MOST_LOSS) * weight * _LOSS_STEPS), norm > within.clip]
    vectors[SCALARS] = torch.tensor([int(value) for value in told], dtype=torch.int64)
    return vectors


def _hidden(
    delta: Mapping[str, Tensor], grid: Grid, draws: SecretDraws, bits: Mapping[str, int]
) -> dict[str, Tensor]:
    """The vectors of a worker that is hidden as a whole: its change with noise, and that it takes part."""
    factor = factor_within(delta, l2_norm(delta), grid)
    vectors: dict[str, Tensor] = {}
    # By name, so that the same draws give the same integers.
    for name, tensor in sorted(update_tensors(delta, {}).items()):
        ring = to_ring(noised(integers(tensor, factor), grid, draws), bits[name])
        vectors[name] = torch.from_numpy(to_signed(ring)).reshape(tensor.shape)
    vectors[SCALARS] = torch.tensor([1, 0, 0], dtype=torch.int64)
    return vectors


def l2_norm(delta: Mapping[str, Tensor]) -> float:
    """Over all tensors, in float64, the same whatever their order."""
    squares = [float(tensor.detach().double().square().sum()) for tensor in delta.values()]
    return math.sqrt(math.fsum(squares))


def read_scalars(total: Tensor, spec: SecureSpec, workers: int) -> Scalars:
    """What the summed `scalars` say. Raises BadUpdate when that cannot be of so many workers."""
    weight, loss, clipped = (int(value) for value in total)
    most = workers * (spec.most_examples if spec.by_examples else 1)
    if not (
        workers <= weight <= most and 0 <= clipped <= workers and abs(loss) <= most * _MOST_LOSS * _LOSS_STEPS
    ):
        raise BadUpdate(f"the sums over {workers} workers are none that workers can have")
    return Scalars(weight, loss / _LOSS_STEPS / weight, clipped)


def mean_schema(summed: Schema) -> dict[str, TensorSpec]:
    """Schema of the mean that `mean_tensors` yields: that of a plain update's file."""
    return {
        name: TensorSpec(spec.shape, torch.float32) if name.startswith(DELTA) else spec
        for name, spec in summed.items()
        if name != SCALARS
    }


def mean_tensors(
    total: Mapping[str, Tensor], within: SecureRound, weight: int, grid: Grid | None = None
) -> Iterator[tuple[str, Tensor]]:
    """The workers' mean change and their counts, tensor by tensor in the order of a file.

    `total` are the sums in the ring, without masks; `weight` that of all workers; `grid` says how each of
    them added noise. Raises BadUpdate when the
    change is larger than the clips of all workers allow, or counts cannot be.
    """
    share = weight / (within.most_examples if within.by_examples else 1)
    squares: list[float] = []
    summed = {v.name: TensorSpec(v.shape, _DTYPES[v.bits]) for v in within.vectors}
    for name in in_file_order(mean_schema(summed)):
        tensor = total[name]
        if name.startswith(APOZ):
            # Of a layer's neurons none was at rest at more tokens than there were.
            tokens = total[name.removesuffix(_ZEROS) + _TOKENS] if name.endswith(_ZEROS) else tensor
            if int(tensor.min()) < 0 or int(tensor.max()) > int(tokens.max()):
                raise BadUpdate("the summed activation counts are none that workers can have")
            yield name, tensor
            continue
        mean = dequantise(as_ring(tensor), within.step, share)
        squares.append(float(np.square(mean).sum()))
        yield name, torch.from_numpy(mean.astype(np.float32)).reshape(tensor.shape)
    most = within.clip * 1.001 + within.step * len(within.drawn)
    if grid is not None:
        elements = sum(math.prod(v.shape) for v in within.vectors if v.name.startswith(DELTA))
        most += grid.step * longest(grid, weight, elements) / weight
    if math.sqrt(math.fsum(squares)) > most:
        raise BadUpdate(
            f"the mean of the updates is larger than {within.clip:g}, which no worker's may be: "
            "one of them sent something else"
        )


def as_ring(tensor: Tensor) -> Ring:
    """The same memory as unsigned words, flat: sums of these wrap around.

    Raises ValueError for a tensor whose words are not in order: of it there is only a copy, and what is
    added there, such as a mask, would be lost.
    """
    if not tensor.is_contiguous():
        raise ValueError(f"ring elements must be contiguous, got strides {tensor.stride()}")
    flat = tensor.flatten().numpy()
    words: Ring = flat.view(np.uint32 if flat.dtype == np.int32 else np.uint64)
    return words


def _digest(told: Mapping[str, object]) -> bytes:
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).digest()
