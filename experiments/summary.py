"""Many runs in few figures: means, spreads, and differences paired by seed."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Mean:
    """Of several runs: sample standard deviation `sd`, None for one run."""

    count: int
    mean: float
    sd: float | None

    @property
    def error(self) -> float | None:
        """Standard error of the mean."""
        return None if self.sd is None else self.sd / math.sqrt(self.count)

    @property
    def is_noise(self) -> bool | None:
        """Whether 0 is within the confidence interval by Student's t; None: one run cannot tell."""
        if self.error is None:
            return None
        quantile = float(stats.t.ppf((1 + CONFIDENCE) / 2, self.count - 1))
        return abs(self.mean) <= quantile * self.error


def mean_of(values: Sequence[float]) -> Mean:
    """Raises ValueError for no values."""
    if not values:
        raise ValueError("a mean needs at least one value")
    sd = statistics.stdev(values) if len(values) > 1 else None
    return Mean(len(values), statistics.fmean(values), sd)


def paired(values: Mapping[int, float], others: Mapping[int, float]) -> Mean | None:
    """Mean difference to `others` over the seeds that both have; None when there are none.

    Runs of one seed share data and draws, so that most of the chance in them cancels.
    """
    both = sorted(values.keys() & others.keys())
    return mean_of([values[seed] - others[seed] for seed in both]) if both else None


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's, with mean ranks for ties; 0 where one of them is constant.

    Raises ValueError when the lengths differ or are below 2.
    """
    if len(a) != len(b) or len(a) < 2:
        raise ValueError(f"two series of equal length >= 2 are needed, got {len(a)} and {len(b)}")
    if len(set(a)) == 1 or len(set(b)) == 1:
        return 0.0
    return float(stats.spearmanr(a, b).statistic)
