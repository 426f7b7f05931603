"""Metrics of a task beside accuracy and loss, out of counts that add up: over batches, splits and workers.

What torchmetrics has as sums is taken from there. AUC and the rank correlation are of scores rounded to
fixed bins, since ranks of all scores are no sum; what is undefined (a class that nobody has) is NaN.
"""

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import (
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
    MultilabelF1Score,
)

from common.model.correlations import Pearson, Ranked, Spearman, Summed
from common.model.entities import EntityCounts, entities_of
from common.model.tasks import IGNORED, targets_of
from common.records import TaskKind
from common.task_forms import FORMS, Answer

# A name and what comes after it: the class that it is of.
PER_CLASS = ":"
# Matthews' and AUC's states grow with the square of the classes, or with a thousand times them.
_MOST_CLASSES = 512
# Classes that are told one by one.
_MOST_NAMED = 100
# Bins of AUC, even in the log-odds of a score from -_MOST_LOGIT to _MOST_LOGIT: where models are sure of
# themselves, probabilities differ in the last digits only.
AUC_BINS, _MOST_LOGIT = 2048, 16.0

State = Mapping[str, Tensor]


class TaskMetrics:
    """A task's metrics: `update` them with answers, `add` others' states, `compute` what they come to.

    `labels` name the classes; `bounds` are the smallest and the largest number that is a label. Metrics
    whose states would hold more than `most` numbers together are left out, the last first.
    """

    def __init__(
        self,
        kind: TaskKind,
        labels: Sequence[str],
        bounds: tuple[float, float] | None = None,
        most: float = math.inf,
    ) -> None:
        self._kind, self._labels = kind, labels
        self._parts = _PARTS[FORMS[kind].answer](labels)
        if bounds is not None and FORMS[kind].answer is Answer.NUMBER:
            self._parts["spearman"] = Spearman(*bounds)
        while sum(count.numel() for count in self.state().values()) > most:
            self._parts.popitem()

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """A batch of answers: scores and labels as `common.model.tasks` has them."""
        scores, targets = logits.detach().float().cpu(), labels.cpu()
        if FORMS[self._kind].answer is not Answer.TAGS:
            scores, targets = targets_of(scores, targets, self._kind)
        for part in self._parts.values():
            part.update(scores, targets)

    def state(self) -> dict[str, Tensor]:
        """Counts by name, int64 or float64: those of two parts of the data add up to those of the whole."""
        return {
            f"{name}.{key}": getattr(part, key).clone()
            for name, part in self._parts.items()
            for key in part._defaults
        }

    def add(self, state: State) -> None:
        """Add what another part of the data came to."""
        for name, part in self._parts.items():
            part.merge_state({key: state[f"{name}.{key}"] for key in part._defaults})
            # Which leaves what was computed before, and a warning that nothing has come.
            part._computed, part._update_count = None, part._update_count + 1

    def compute(self) -> dict[str, float]:
        """By name; of a class alone as "f1:NAME". NaN where a metric is undefined."""
        found: dict[str, float] = {}
        for name, part in self._parts.items():
            values = part.compute() if any(bool(getattr(part, key).any()) for key in part._defaults) else None
            found |= _READINGS[name](values, self._labels)
        return found


def _of_one(name: str) -> Callable[[Tensor | None, Sequence[str]], dict[str, float]]:
    return lambda value, labels: {name: math.nan if value is None else float(value)}


def _of_f1(values: Tensor | None, labels: Sequence[str]) -> dict[str, float]:
    each = [math.nan] * len(labels) if values is None else values.tolist()
    there = [value for value in each if not math.isnan(value)]
    mean = sum(there) / len(there) if there else math.nan
    if len(labels) > _MOST_NAMED:
        return {"macro_f1": mean}
    return {"macro_f1": mean} | {
        f"f1{PER_CLASS}{label}": value for label, value in zip(labels, each, strict=True)
    }


class _ClassF1(Summed):
    """F1 of every class, NaN for one that is neither there nor foretold."""

    def __init__(self, inner: Metric, classes: int, several: bool) -> None:
        super().__init__()
        self._inner, self._several = inner, several
        for key in self._inner._defaults:
            self.add_state(key, torch.zeros(classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Count."""
        self._inner.reset()
        # Told as probabilities, or scores that happen to lie between 0 and 1 would be taken for such.
        self._inner.update(scores.sigmoid() if self._several else scores, targets.long())
        for key in self._defaults:
            setattr(self, key, getattr(self, key) + getattr(self._inner, key))

    def compute(self) -> Tensor:
        """float32 [C]."""
        tp, fp, fn = (getattr(self, key) for key in ("tp", "fp", "fn"))
        value: Tensor = 2 * tp / (2 * tp + fp + fn)
        return value


class _Auc(Ranked):
    """Area under the ROC curve, one class against the rest, the mean over classes that have both."""

    positives: Tensor
    negatives: Tensor

    def __init__(self, classes: int, several: bool) -> None:
        super().__init__()
        self._classes, self._several = classes, several
        for key in ("positives", "negatives"):
            self.add_state(key, torch.zeros(classes, AUC_BINS, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Count scores by bin."""
        scores = self.ranked(scores)
        if self._several:
            there = targets.bool()
        else:
            scores, targets = scores[targets != IGNORED], targets[targets != IGNORED]
            there = torch.nn.functional.one_hot(targets, self._classes).bool()
        bins = score_bins(scores, self._several)
        places = bins + AUC_BINS * torch.arange(self._classes)
        for key, chosen in (("positives", there), ("negatives", ~there)):
            counts = torch.bincount(places[chosen], minlength=self._classes * AUC_BINS)
            setattr(self, key, getattr(self, key) + counts.view(self._classes, AUC_BINS))

    def compute(self) -> Tensor:
        """Mann and Whitney's: the share of pairs in the right order, a tie being half of one."""
        if self.spoilt:
            return torch.tensor(math.nan)
        positives, negatives = self.positives.double(), self.negatives.double()
        below = negatives.cumsum(1) - negatives
        pairs = positives.sum(1) * negatives.sum(1)
        areas = (positives * (below + negatives / 2)).sum(1) / pairs
        defined = areas[pairs > 0]
        if self._classes == 2 and not self._several:
            # One against the rest is the same from either side, but for rounding.
            defined = areas[1:][pairs[1:] > 0]
        return defined.mean()


def score_bins(logits: Tensor, several: bool) -> Tensor:
    """The bin of every score [N, C]: of class probabilities, or with `several` of each class for itself."""
    if several:
        odds = logits
    else:
        # Doubles tell probabilities near 1 apart as far as the bins go.
        shares = logits.double().softmax(-1)
        odds = shares.log() - torch.log1p(-shares)
    share = (odds.double().clamp(-_MOST_LOGIT, _MOST_LOGIT) / _MOST_LOGIT + 1) / 2
    return (share * (AUC_BINS - 1)).round().long()


class _Matthews(Summed):
    """Matthews' correlation; the confusion matrix is torchmetrics'."""

    confmat: Tensor

    def __init__(self, classes: int) -> None:
        super().__init__()
        self._inner = MulticlassMatthewsCorrCoef(classes, ignore_index=IGNORED)
        self.add_state("confmat", torch.zeros(classes, classes, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Count."""
        self._inner.reset()
        self._inner.update(scores, targets)
        self.confmat = self.confmat + self._inner.confmat

    def compute(self) -> Tensor:
        """NaN where all are of one class, or all are said to be."""
        if not self.confmat.sum(0).bool().sum() > 1 or not self.confmat.sum(1).bool().sum() > 1:
            return torch.tensor(math.nan)
        matrix = self.confmat.double()
        right, whole = matrix.diagonal().sum(), matrix.sum()
        told, actual = matrix.sum(0), matrix.sum(1)
        spread = (whole**2 - (told**2).sum()) * (whole**2 - (actual**2).sum())
        return (right * whole - (told * actual).sum()) / spread.sqrt()


class _Entities(Summed):
    """Entities by type: right, foretold, actual; `common.model.entities` counts them."""

    counts: Tensor

    def __init__(self, tags: Sequence[str]) -> None:
        super().__init__()
        self._tags = tags
        # What has no type of its own is of type "_".
        self.types = sorted({tag[1:].split("-", maxsplit=1)[-1] or "_" for tag in tags if tag != "O"})
        self.add_state("counts", torch.zeros(3, len(self.types), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Count: logits [B, T, C], labels [B, T]."""
        found = entities_of(scores, targets, self._tags)
        rows = [[part.get(kind, 0) for kind in self.types] for part in self._of(found)]
        self.counts = self.counts + torch.tensor(rows, dtype=torch.int64)

    def compute(self) -> dict[str, float]:
        """Micro F1, precision and recall, and F1 by type."""
        parts = [dict(zip(self.types, row, strict=True)) for row in self.counts.tolist()]
        found = EntityCounts(*({k: n for k, n in part.items() if n} for part in parts))
        named = {
            "entity_f1": found.f1 if found.types else math.nan,
            "precision": found.precision if found.foretold else math.nan,
            "recall": found.recall if found.actual else math.nan,
        }
        return named | {f"f1{PER_CLASS}{kind}": found.of(kind).f1 for kind in found.types}

    @staticmethod
    def _of(found: EntityCounts) -> tuple[Mapping[str, int], ...]:
        return found.right, found.foretold, found.actual


def _multiclass(number: int) -> Metric:
    return MulticlassF1Score(number, average="none", ignore_index=IGNORED)


def _classes(labels: Sequence[str]) -> dict[str, Metric]:
    number = len(labels)
    parts: dict[str, Metric] = {"f1": _ClassF1(_multiclass(number), number, several=False)}
    if number <= _MOST_CLASSES:
        parts |= {"matthews": _Matthews(number), "auc": _Auc(number, several=False)}
    return parts


def _several(labels: Sequence[str]) -> dict[str, Metric]:
    number = len(labels)
    parts: dict[str, Metric] = {
        "f1": _ClassF1(MultilabelF1Score(number, average="none"), number, several=True)
    }
    if number <= _MOST_CLASSES:
        parts |= {"auc": _Auc(number, several=True)}
    return parts


# All that a further kind of answer needs is a row here.
_PARTS: dict[Answer, Callable[[Sequence[str]], dict[str, Metric]]] = {
    Answer.CLASS: _classes,
    Answer.CLASSES: _several,
    Answer.NUMBER: lambda labels: {"pearson": Pearson()},
    Answer.TAGS: lambda labels: {"entities": _Entities(labels)},
    # Accuracy and perplexity say what there is to say of next tokens.
    Answer.NEXT_TOKEN: lambda labels: {},
}
_READINGS: dict[str, Callable[..., dict[str, float]]] = {
    "f1": _of_f1,
    "matthews": _of_one("matthews"),
    "auc": _of_one("auc"),
    "pearson": _of_one("pearson"),
    "spearman": _of_one("spearman"),
    "entities": lambda values, labels: values or {"entity_f1": math.nan},
}
