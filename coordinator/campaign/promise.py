"""Differential privacy before the first round: what is promised, and how much noise that takes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from common.config.dp import dp_spec
from common.config.run import RunConfig
from common.errors import ConfigError
from common.model.adapter import trained
from common.privacy.accounting import (
    MOST_NOISE_TO_SIGNAL,
    noise_to_signal,
    require_installed,
    undisturbed,
)
from common.private_task import DpSpec, DpUnit
from common.records import ArtifactRef
from common.storage.tensors import TensorFile
from coordinator.context import RunContext


@dataclass(frozen=True)
class NoiseTold:
    """Of workers with so many examples: a step's noise over a full-size gradient."""

    examples: int
    ratio: float


def noise_by_examples(config: RunConfig, values: int, sizes: Sequence[int]) -> list[NoiseTold]:
    """How much noise the promise takes where `values` are trained, by a worker's number of examples.

    Takes seconds. Raises ConfigError where fedpft[privacy] is not installed.
    """
    dp = dp_spec(config)
    assert dp is not None
    require_installed()
    told = []
    for examples in sizes:
        planned, batch = undisturbed(dp, examples, config.training.epochs)
        told.append(NoiseTold(examples, noise_to_signal(planned.noise, values, batch)))
    return told


def noise_to_sum(dp: DpSpec, values: int, workers: int) -> float:
    """Length of the noise in a round's mean over that of full-size updates of so many workers: noise √d / n.

    Where workers add it, it is more by as many as are beyond those that certainly do.
    """
    return noise_to_signal(dp.noise, values, workers)


def _trained_values(run: RunContext, adapter: ArtifactRef) -> int:
    schema = TensorFile(run.store.artifacts.path(adapter.sha256)).schema()
    return sum(math.prod(spec.shape) for name, spec in schema.items() if trained(name, run.spec.adapter))


def _tell_by_worker(run: RunContext, dp: DpSpec, values: int) -> None:
    rounds, secure = run.config.rounds, run.config.privacy.secure
    workers = rounds.sample or rounds.workers
    ratio = noise_to_sum(dp, values, workers)
    by = "the workers add" if secure else "the coordinator adds"
    run.events.record(
        "privacy_promised",
        f"workers are promised epsilon {dp.epsilon:g}, delta {dp.delta:g} over {dp.rounds} rounds; {by} "
        f"noise of {dp.noise:.3g} times an update of norm {dp.clip:g}; noise to signal of the mean of "
        f"{workers} workers, {values:,} values trained: {ratio:.2g}",
        epsilon=dp.epsilon,
        delta=dp.delta,
    )
    if ratio > MOST_NOISE_TO_SIGNAL:
        run.events.record(
            "noise_too_large",
            f"noise to signal is {ratio:.2g}; above {MOST_NOISE_TO_SIGNAL:g} next to nothing is learnt: "
            'train fewer values (adapter.targets = "none", a lower adapter.rank), have more workers in a '
            "round, fewer rounds, or a larger privacy.dp.epsilon",
        )


async def tell(run: RunContext, adapter: ArtifactRef) -> None:
    """Before the first round: what is promised, and how much noise that takes of workers as they are here.

    Where their numbers of examples are masked: of workers with one, four and sixteen batches.
    """
    dp = dp_spec(run.config)
    if dp is None:
        return
    run.metrics.epsilon.labels(dp.unit).set(dp.epsilon)
    run.metrics.delta.labels(dp.unit).set(dp.delta)
    if dp.unit is DpUnit.WORKER:
        _tell_by_worker(run, dp, _trained_values(run, adapter))
        return
    known = sorted({examples for examples in run.store.workers().values() if examples})
    sizes = (known[0], known[-1]) if known else tuple(dp.batch_size * factor for factor in (1, 4, 16))
    values = _trained_values(run, adapter)
    text = f"examples are promised epsilon {dp.epsilon:g}, delta {dp.delta:g} over {dp.rounds} rounds"
    try:
        noise = await run.compute.run(noise_by_examples, run.config, values, sorted(set(sizes)))
    except ConfigError as error:
        run.events.record("privacy_promised", f"{text}; how much noise that takes is not known here: {error}")
        return
    ratios = ", ".join(f"{n.ratio:.2g} with {n.examples:,} examples" for n in noise)
    text = f"{text}; noise to signal of a worker's step, {values:,} values trained: {ratios}"
    run.events.record("privacy_promised", text, epsilon=dp.epsilon, delta=dp.delta)
    if (largest := max(n.ratio for n in noise)) > MOST_NOISE_TO_SIGNAL:
        run.events.record(
            "noise_too_large",
            f"noise to signal is {largest:.2g}; above {MOST_NOISE_TO_SIGNAL:g} next to nothing is learnt: "
            'train fewer values (adapter.targets = "none", a lower adapter.rank), or set a larger '
            "privacy.dp.batch_size or privacy.dp.epsilon",
        )
