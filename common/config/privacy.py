"""What the coordinator may see of a worker: its update, or sums over workers alone."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from common.config.choices import AggregationRule, LoraAveraging, SumWeights, UpdateWeights
from common.config.dp import DpSection
from common.config.section import Section
from common.secagg.context import default_colluding, threshold
from common.secagg.records import LEAST_WORKERS, MOST_WORKERS
from common.secure_task import MOST_COUNTED

if TYPE_CHECKING:
    from common.config.run import RunConfig


class PrivacySection(Section):
    """What the coordinator sees of a worker's update: all of it, or, by secure aggregation, sums alone."""

    secure: bool = False
    """Take sums only: updates, activation counts, losses and numbers of examples come masked, and the masks
    cancel in the sum of all. Needs [tls], rounds.minimum >= 3, and aggregation.rule = "mean"."""
    colluding: Annotated[int, Field(ge=0)] | None = None
    """So many workers of a round may tell the coordinator all that they know, and the others' updates stay
    hidden. Fewer let more drop out. Unset: a third of them, rounded down below that."""
    clip: Annotated[float, Field(gt=0)] = 32.0
    """Largest L2 norm of an update in the first round; larger ones are scaled down to it. Doubled for the
    next round where that happened."""
    ring: Literal["auto", 32, 64] = "auto"
    """Bits of a summed number: 64 are exact to 1e-15 and twice the upload. "auto" takes 32 for equal weights,
    which lose nothing to float32, and 64 otherwise."""
    weights: SumWeights = SumWeights.EXAMPLES
    """How much an update counts in a sum, under privacy.secure or where whole workers are hidden by noise: by
    its worker's "examples", which nobody learns, or "equal", which the latter demands."""
    most_examples: Annotated[int, Field(ge=1, le=MOST_COUNTED)] = 65_536
    """A worker with more examples weighs as if it had so many."""
    keys_seconds: Annotated[float, Field(gt=0)] = 60.0
    """A worker that has brought no keys, or no shares, for so long is left out of the try."""
    insecure_keys: bool = False
    """Do without certificates: keys are not signed, so whoever is between coordinator and workers, or runs
    the coordinator, can read everything. For trying it on one machine only."""
    dp: DpSection = DpSection()
    """Differential privacy: by noise, nobody who sees the results can tell whether any one example is among a
    worker's data, or whether any one worker took part with them. docs/differential-privacy.md says what
    it wants."""

    @property
    def bits(self) -> int:
        """Of the ring."""
        if self.ring == "auto":
            return 32 if self.weights is SumWeights.EQUAL else 64
        return self.ring

    def colluding_of(self, drawn: int) -> int:
        """How many of so many workers may collude."""
        return default_colluding(drawn) if self.colluding is None else self.colluding

    def needed_of(self, drawn: int) -> int:
        """Fewest of so many workers that a sum may be of."""
        return max(threshold(drawn, self.colluding_of(drawn)), LEAST_WORKERS)


def require_summable(config: "RunConfig", stored: bool = False) -> None:
    """Raise ValueError unless the run can do with sums alone, if it is to.

    What is `stored` of a run does not say by which certificates workers are let in.
    """
    privacy, rounds, aggregation = config.privacy, config.rounds, config.aggregation
    if not privacy.secure:
        return
    drawn = rounds.sample + rounds.over_select if rounds.sample else rounds.workers
    if config.tls.certificate is None and not (privacy.insecure_keys or stored):
        raise ValueError(
            "privacy.secure needs [tls]: workers know each other by their certificates; to try it on one "
            "machine set privacy.insecure_keys = true"
        )
    if (colluding := privacy.colluding_of(drawn)) >= drawn - 1:
        raise ValueError(f"privacy.colluding must be < {drawn - 1} with {drawn} workers, got {colluding}")
    if rounds.minimum < (needed := privacy.needed_of(drawn)):
        raise ValueError(
            f"rounds.minimum must be >= {needed} for privacy.secure with {drawn} workers of which "
            f"{colluding} may collude, got {rounds.minimum}"
        )
    if drawn > MOST_WORKERS:
        raise ValueError(f"privacy.secure takes {MOST_WORKERS} workers a round at most: set rounds.sample")
    if aggregation.rule is not AggregationRule.MEAN:
        raise ValueError(
            f'aggregation.rule must be "mean" for privacy.secure, got "{aggregation.rule}": no single update '
            "is seen that could be judged"
        )
    if aggregation.weights is UpdateWeights.TARGET_TOKENS:
        raise ValueError(
            'aggregation.weights must not be "target-tokens" for privacy.secure: privacy.weights says what '
            "counts in the sum"
        )
    if aggregation.norm_limit is not None:
        raise ValueError(
            "aggregation.norm_limit must be unset for privacy.secure: no single update is seen; "
            "privacy.clip bounds them"
        )
    if aggregation.lora is LoraAveraging.EXACT:
        raise ValueError(
            'aggregation.lora must not be "exact" for privacy.secure: it needs every worker\'s factors; '
            '"freeze-a" is exact by itself'
        )
    if config.asks_classes:
        raise ValueError(
            "task.labels must be listed and training.class_weights none for privacy.secure: what workers "
            "tell of their classes is not summed"
        )
    if config.validation.every:
        raise ValueError(
            "validation.every must be 0 for privacy.secure: scores at workers do not come masked"
        )
