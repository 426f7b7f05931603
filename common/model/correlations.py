"""Metrics of numbers, and what all of ours are: sums, which add up over batches, splits and workers."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric

# Bins of either side of the rank correlation, even over the labels' range and half of it on either side.
RANK_BINS = 512


class Summed(Metric):
    """All states are sums."""

    full_state_update = False


class Ranked(Summed):
    """A metric of ranks, undefined as soon as one score is no number: it has no rank."""

    spoilt: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("spoilt", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def ranked(self, scores: Tensor) -> Tensor:
        """The scores, of which those that are no number are counted and become 0."""
        self.spoilt = self.spoilt + scores.isnan().sum()
        return scores.nan_to_num(0.0)


class Pearson(Summed):
    """Pearson's correlation of a number foretold [N, 1] with the actual one [N], out of float64 sums."""

    sums: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("sums", torch.zeros(6, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """n, Σx, Σy, Σx², Σy², Σxy."""
        x, y = scores[:, 0].double(), targets.double()
        parts = (torch.ones_like(x), x, y, x * x, y * y, x * y)
        self.sums = self.sums + torch.stack([part.sum() for part in parts])

    def compute(self) -> Tensor:
        """NaN where either is constant."""
        n, x, y, xx, yy, xy = self.sums
        spread = (n * xx - x * x).clamp(min=0) * (n * yy - y * y).clamp(min=0)
        return (n * xy - x * y) / spread.sqrt() if spread > 0 else torch.tensor(math.nan)


class Spearman(Ranked):
    """Spearman's rank correlation of the same, rounded to bins: out of a table of both."""

    table: Tensor

    def __init__(self, least: float, most: float) -> None:
        super().__init__()
        self._bounds = least, most
        shape = (RANK_BINS, RANK_BINS)
        self.add_state("table", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Count pairs of bins."""
        told = rank_bins(self.ranked(scores[:, 0]), *self._bounds)
        places = told * RANK_BINS + rank_bins(targets, *self._bounds)
        # In place: the table is large, and a batch small.
        self.table.view(-1).index_add_(0, places, torch.ones_like(places))

    def compute(self) -> Tensor:
        """Pearson's of mean ranks; NaN where either is constant."""
        if self.spoilt:
            return torch.tensor(math.nan)
        table = self.table.double()
        x, y = (self._centred(table.sum(axis)) for axis in (1, 0))
        shared = (x[:, None] * y[None, :] * table).sum()
        spread = (x * x * table.sum(1)).sum() * (y * y * table.sum(0)).sum()
        return shared / spread.sqrt() if spread > 0 else torch.tensor(math.nan)

    @staticmethod
    def _centred(counts: Tensor) -> Tensor:
        ranks = counts.cumsum(0) - counts + (counts + 1) / 2
        return ranks - (ranks * counts).sum() / counts.sum()


def rank_bins(values: Tensor, least: float, most: float) -> Tensor:
    """The bin of every number [N]; labels are from `least` to `most`, what is far beyond shares the last."""
    span = (most - least) or 1.0
    share = (values.double() - least + span / 2) / (2 * span)
    return (share.clamp(0, 1) * (RANK_BINS - 1)).round().long()
