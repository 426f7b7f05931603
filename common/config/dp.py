"""Differential privacy: what a run promises of every example, and what it has to do without for that."""

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from common.config.choices import NeuronChoice
from common.config.section import Section, Sent
from common.private_task import DpSpec, DpUnit

if TYPE_CHECKING:
    from common.config.run import RunConfig


class DpSection(Section):
    """Differential privacy: by noise, nobody who sees what a worker sends can tell whether any one example is
    among its data. Wants "sgd", large batches and many passes; docs/differential-privacy.md says why."""

    unit: DpUnit = DpUnit.NONE
    """"none"; or "example", one row of a worker's data: each worker adds the noise itself, and nobody has to
    be trusted. Wants workers of protocol 6 that have fedpft[privacy]."""
    epsilon: Annotated[float, Field(gt=0, le=100)] = 8.0
    """How much all rounds together may tell of an example: whatever somebody concludes is at most
    e^epsilon times as likely with it as without it. 1 is strong, 8 usual, much more says little."""
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    """But for so small a probability. A worker with more than 1 / delta examples refuses."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """An example's gradient is scaled down to this L2 norm. Takes the place of training.max_gradient_norm."""
    batch_size: Sent = 256
    """Examples per step on the average: each one is drawn by itself. Larger means less noise beside them.
    training.batch_size is how many are computed with at a time."""


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
    if config.weighs_tokens:
        raise ValueError(
            'aggregation.weights must be "examples" for privacy.dp: numbers of target tokens are not noised'
        )
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


def dp_spec(config: "RunConfig") -> DpSpec | None:
    """What workers are told of it; None where nothing is promised."""
    dp = config.privacy.dp
    if dp.unit is DpUnit.NONE:
        return None
    return DpSpec(dp.unit, dp.epsilon, dp.delta, dp.clip, dp.batch_size, config.rounds.count)
