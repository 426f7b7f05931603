"""Differential privacy: what a run promises of every example, or of every worker, and what it has to do
without for that."""

import functools
import math
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from common.config.choices import AggregationRule, LoraAveraging, NeuronChoice, SumWeights, UpdateWeights
from common.config.section import Rate, Section, Sent
from common.errors import ConfigError
from common.privacy.gaussian import noise_for_rounds
from common.private_task import DpSpec, DpUnit

if TYPE_CHECKING:
    from common.config.run import RunConfig


class DpSection(Section):
    """Differential privacy: by noise, nobody who sees the results can tell whether any one example is among a
    worker's data, or whether any one worker took part with them. docs/differential-privacy.md says what
    it wants."""

    unit: DpUnit = DpUnit.NONE
    """"none"; "example", one row of a worker's data: each worker adds the noise itself, and nobody has to
    be trusted, but workers of protocol 6 that have fedpft[privacy] are wanted; or "worker", all that one
    worker has: wants hundreds of workers a round. With privacy.secure each worker adds a share of the noise,
    without it the coordinator does, and has to be trusted."""
    epsilon: Annotated[float, Field(gt=0, le=100)] = 8.0
    """How much all rounds together may tell of an example, or a worker: whatever somebody concludes is at
    most e^epsilon times as likely with it as without it. 1 is strong, 8 usual, much more says little."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """But for so small a probability. By example: a worker with more than 1 / delta examples refuses. By
    worker: at most 1 / rounds.workers."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """By example: its gradient is scaled down to this L2 norm, in place of training.max_gradient_norm. By
    worker: its update is."""
    batch_size: Sent = 256
    """By example: so many are in a step on the average, each one drawn by itself. Larger means less noise
    beside them. training.batch_size is how many are computed with at a time."""
    clip_quantile: Rate | None = None
    """By worker, where the coordinator adds the noise: the clip, from privacy.dp.clip on, follows the norm
    that this share of the updates stays below (Andrew et al. 2021), at the price of a little more noise.
    Unset: it stays. 0.5 is usual."""


def require_private(config: "RunConfig") -> None:
    """Raise ValueError unless nothing but noised updates tells of workers' examples, if that is promised."""
    if not config.private:
        return
    if config.realigns and config.realignment.choice is not NeuronChoice.RANDOM:
        raise ValueError(
            f'realignment.choice must be "random" for privacy.dp, got "{config.realignment.choice}": counts '
            "of neurons at rest are not noised; or do without: realignment.every = 0 and no drift"
        )
    if config.asks_classes:
        raise ValueError(
            "task.labels must be listed and training.class_weights none for privacy.dp: what workers tell of "
            "their classes is not noised"
        )
    if config.validation.every:
        raise ValueError("validation.every must be 0 for privacy.dp: scores at workers are not noised")
    if config.weighs_tokens or config.aggregation.weights is UpdateWeights.TARGET_TOKENS:
        raise ValueError(
            'aggregation.weights must be "examples" for privacy.dp: numbers of target tokens are not noised'
        )
    if config.privacy.dp.unit is DpUnit.WORKER:
        _require_by_worker(config)
        return
    if config.privacy.dp.clip_quantile is not None:
        raise ValueError('privacy.dp.clip_quantile must be unset for privacy.dp.unit = "example"')
    if config.adapter.targets.neurons:
        raise ValueError(
            f'adapter.targets must be "attention", "attention+ffn" or "none" for privacy.dp, got '
            f'"{config.adapter.targets}": of neurons tuned in full no example\'s gradient is known'
        )
    if config.training.checkpointing:
        raise ValueError(
            "training.checkpointing must be false for privacy.dp: a layer would be seen twice; lower "
            "training.batch_size instead, which changes no result there"
        )


def _require_by_worker(config: "RunConfig") -> None:
    """What a sum must be so that no worker changes it by more than the clip, and what its noise needs."""
    privacy, rounds, aggregation = config.privacy, config.rounds, config.aggregation
    dp, told = privacy.dp, 'for privacy.dp.unit = "worker"'
    if privacy.weights is not SumWeights.EQUAL:
        raise ValueError(
            f'privacy.weights must be "equal" {told}, got "{privacy.weights}": a worker with many examples '
            "would change the sum by more than the noise hides"
        )
    if aggregation.rule is not AggregationRule.MEAN:
        raise ValueError(
            f'aggregation.rule must be "mean" {told}, got "{aggregation.rule}": of other rules nobody knows '
            "how far one update changes their result"
        )
    if aggregation.norm_limit is not None:
        raise ValueError(
            f"aggregation.norm_limit must be unset {told}: which updates count would tell of them; "
            "privacy.dp.clip bounds all"
        )
    if aggregation.lora is LoraAveraging.EXACT:
        raise ValueError(
            f'aggregation.lora must not be "exact" {told}: it needs every worker\'s factors without noise; '
            '"freeze-a" is exact by itself'
        )
    if dp.delta > (most := 1 / rounds.workers):
        raise ValueError(
            f"privacy.dp.delta must be <= 1 / rounds.workers, {most:.1g}, {told}, got {dp.delta:g}"
        )
    if privacy.secure:
        _require_room(config)
    else:
        _require_central(config)


def _require_room(config: "RunConfig") -> None:
    privacy, rounds = config.privacy, config.rounds
    if privacy.dp.clip_quantile is not None:
        raise ValueError(
            "privacy.dp.clip_quantile must be unset for privacy.secure: the clip there stays as it is"
        )
    if privacy.bits != 32:
        raise ValueError(
            'privacy.ring must be 32 or "auto" for privacy.dp.unit = "worker": beyond 32 bits there would be '
            "noise alone"
        )
    drawn = rounds.sample + rounds.over_select if rounds.sample else rounds.workers
    honest = max(rounds.minimum, privacy.needed_of(drawn)) - privacy.colluding_of(drawn)
    # It brings numpy, which most configurations can do without.
    from common.privacy.whole_worker import shared_grid

    try:
        shared_grid(noise_of(privacy.dp, rounds.count), privacy.dp.clip, drawn, honest, privacy.bits)
    except ConfigError as error:
        raise ValueError(f"privacy.dp.epsilon: {error}") from error


def _require_central(config: "RunConfig") -> None:
    dp, rounds = config.privacy.dp, config.rounds
    noise = noise_of(dp, rounds.count)
    from common.privacy.whole_worker import central_grid

    try:
        if dp.clip_quantile is None:
            central_grid(noise, dp.clip)
            return
        told = counting_noise(rounds.minimum)
        if noise >= told:
            raise ValueError(
                f"rounds.minimum must be > {10 * math.ceil(noise)} for privacy.dp.clip_quantile with noise "
                f"{noise:.3g}, got {rounds.minimum}: to count how many updates are below the clip would take "
                "all of the promise"
            )
        central_grid(noise_beside_count(noise, told), dp.clip)
    except ConfigError as error:
        raise ValueError(f"privacy.dp.epsilon: {error}") from error


def counting_noise(workers: int) -> int:
    """Deviation of the noise on how many more updates are below the clip than above it, of so many: a
    twentieth of them on the number below (Andrew et al. 2021)."""
    return math.ceil(workers / 10)


def noise_beside_count(noise: float, counting: int) -> float:
    """What the sum's noise must be so that both together tell as much as the sum with `noise` alone."""
    return 1 / math.sqrt(1 / noise**2 - 1 / counting**2)


@functools.lru_cache
def _noise(epsilon: float, delta: float, rounds: int) -> float:
    return noise_for_rounds(epsilon, delta, rounds)


def noise_of(dp: DpSection, rounds: int) -> float:
    """What the promise takes, by worker: the deviation of the noise in a round's sum over the clip."""
    return _noise(dp.epsilon, dp.delta, rounds)


def dp_spec(config: "RunConfig") -> DpSpec | None:
    """What workers are told of it; None where nothing is promised."""
    dp, rounds = config.privacy.dp, config.rounds.count
    if dp.unit is DpUnit.NONE:
        return None
    noise = noise_of(dp, rounds) if dp.unit is DpUnit.WORKER else 0.0
    return DpSpec(dp.unit, dp.epsilon, dp.delta, dp.clip, dp.batch_size, rounds, noise)
