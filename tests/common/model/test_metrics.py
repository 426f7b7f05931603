"""Every metric is scikit-learn's (scipy's, seqeval's), however the data are cut into parts that add up."""

import math
import warnings
from itertools import pairwise

import numpy
import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from seqeval.metrics import f1_score as entity_f1
from sklearn.metrics import f1_score, matthews_corrcoef, roc_auc_score
from torch import Tensor

from common.model.correlations import rank_bins
from common.model.metrics import TaskMetrics, score_bins
from common.model.tasks import IGNORED
from common.records import TaskKind

# A thousand together.
# Few every day, all of them at length.
HOW_MANY = pytest.mark.parametrize("cases", [60, pytest.param(1000, marks=pytest.mark.slow)])
TEXT, SEVERAL = TaskKind.TEXT_CLASSIFICATION, TaskKind.TEXT_MULTI_LABEL
NUMBER, WORDS = TaskKind.TEXT_REGRESSION, TaskKind.TOKEN_CLASSIFICATION
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")


def merged(
    kind: TaskKind, labels: tuple[str, ...], logits: Tensor, targets: Tensor, draw: torch.Generator
) -> dict[str, float]:
    """The metrics out of the states of up to five workers, each of several batches or of none."""
    cuts = sorted(torch.randint(0, len(logits) + 1, (4,), generator=draw).tolist())
    bounds = (float(targets.min()), float(targets.max())) if kind is NUMBER else None
    whole = TaskMetrics(kind, labels, bounds)
    for start, end in pairwise([0, *cuts, len(logits)]):
        worker = TaskMetrics(kind, labels, bounds)
        for first in range(start, end, 7):
            batch = slice(first, min(first + 7, end))
            worker.update(logits[batch], targets[batch])
        whole.add(worker.state())
    return whole.compute()


def same(found: float, wanted: float) -> bool:
    return math.isnan(found) if math.isnan(wanted) else abs(found - wanted) < 1e-5


def sure(draw: torch.Generator) -> float:
    """How sure of itself a random model is: from not at all to saturated."""
    return float(10 ** (2.5 * torch.rand((), generator=draw) - 1))


@HOW_MANY
def test_classes(cases: int) -> None:
    undefined = 0
    for case in range(cases):
        draw = torch.Generator().manual_seed(case)
        classes = int(torch.randint(2, 7, (), generator=draw))
        count = int(torch.randint(1, 80, (), generator=draw))
        shares = torch.rand(classes, generator=draw) ** 3 + 1e-3
        targets = torch.multinomial(shares, count, replacement=True, generator=draw)
        logits = sure(draw) * torch.randn(count, classes, generator=draw)
        if case % 3 == 0:
            # Ties.
            logits = logits.round()
        labels = tuple(f"class {i}" for i in range(classes))
        found = merged(TEXT, labels, logits, targets, draw)
        best = logits.argmax(-1)
        assert same(found["macro_f1"], f1_score(targets, best, average="macro"))
        for i, one in enumerate(
            f1_score(targets, best, average=None, labels=range(classes), zero_division=numpy.nan)
        ):
            assert same(found[f"f1:class {i}"], one)
        one_sided = len(targets.unique()) < 2 or len(best.unique()) < 2
        undefined += one_sided
        assert same(found["matthews"], math.nan if one_sided else matthews_corrcoef(targets, best))
        bins = score_bins(logits, several=False)
        there = [i for i in range(classes) if 0 < int((targets == i).sum()) < count]
        areas = [roc_auc_score(targets == i, bins[:, i]) for i in there]
        if classes == 2:
            areas = areas[:1]
        assert same(found["auc"], float(numpy.mean(areas)) if areas else math.nan), case
    assert undefined > 5


@pytest.mark.slow
def test_auc_of_bins_is_that_of_scores_but_for_the_resolution() -> None:
    for case in range(20):
        draw = torch.Generator().manual_seed(case)
        targets = torch.randint(0, 2, (2000,), generator=draw)
        logits = sure(draw) * (torch.randn(2000, 2, generator=draw) + torch.nn.functional.one_hot(targets, 2))
        found = merged(TEXT, ("no", "yes"), logits, targets, draw)
        odds = (logits[:, 1] - logits[:, 0]).clamp(-16, 16)
        assert abs(found["auc"] - roc_auc_score(targets, odds)) < 1e-3


@HOW_MANY
def test_several_classes(cases: int) -> None:
    for case in range(cases):
        draw = torch.Generator().manual_seed(case)
        classes = int(torch.randint(2, 7, (), generator=draw))
        count = int(torch.randint(1, 80, (), generator=draw))
        shares = torch.rand(classes, generator=draw)
        targets = (torch.rand(count, classes, generator=draw) < shares).float()
        # Some all between 0 and 1, as probabilities are.
        logits = (
            torch.rand(count, classes, generator=draw)
            if case % 4 == 0
            else sure(draw) * torch.randn(count, classes, generator=draw)
        )
        labels = tuple(f"class {i}" for i in range(classes))
        found = merged(SEVERAL, labels, logits, targets, draw)
        best = (logits > 0).int()
        each = [f1_score(targets[:, i], best[:, i], zero_division=numpy.nan) for i in range(classes)]
        assert all(same(found[f"f1:class {i}"], value) for i, value in enumerate(each))
        bins = score_bins(logits, several=True)
        there = [i for i in range(classes) if 0 < int(targets[:, i].sum()) < count]
        areas = [roc_auc_score(targets[:, i], bins[:, i]) for i in there]
        assert same(found["auc"], float(numpy.mean(areas)) if areas else math.nan)


@HOW_MANY
def test_numbers(cases: int) -> None:
    for case in range(cases):
        draw = torch.Generator().manual_seed(case)
        count = int(torch.randint(3, 100, (), generator=draw))
        targets = 5 * torch.rand(count, generator=draw)
        if case % 3 == 0:
            targets = targets.round()
        logits = (targets + sure(draw) * torch.randn(count, generator=draw))[:, None]
        if case % 10 == 0:
            logits = torch.full((count, 1), 2.5)
        found = merged(NUMBER, (), logits, targets, draw)
        bounds = float(targets.min()), float(targets.max())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pearson = pearsonr(logits[:, 0].double(), targets.double())[0]
            spearman = spearmanr(rank_bins(logits[:, 0], *bounds), rank_bins(targets, *bounds))[0]
        assert same(found["pearson"], pearson) and same(found["spearman"], spearman)


@HOW_MANY
def test_entities(cases: int) -> None:
    for case in range(cases):
        draw = torch.Generator().manual_seed(case)
        count = int(torch.randint(1, 20, (), generator=draw))
        targets = torch.randint(0, len(TAGS), (count, 9), generator=draw)
        logits = (
            torch.nn.functional.one_hot(targets, len(TAGS))
            + torch.rand(count, 9, len(TAGS), generator=draw) * 2
        )
        targets[torch.rand(count, 9, generator=draw) < 0.3] = IGNORED
        found = merged(WORDS, TAGS, logits, targets, draw)
        words = targets != IGNORED
        actual = [[TAGS[t] for t in row[there]] for row, there in zip(targets, words, strict=True)]
        told = [[TAGS[t] for t in row[there]] for row, there in zip(logits.argmax(-1), words, strict=True)]
        wanted = 0.0
        if any(tag != "O" for rows in (actual, told) for row in rows for tag in row):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                wanted = entity_f1(actual, told)
            assert same(found["entity_f1"], wanted)


@pytest.mark.parametrize("scale", [0.01, 1.0, 1e6])
def test_ranks_do_not_depend_on_the_labels_size(scale: float) -> None:
    draw = torch.Generator().manual_seed(0)
    targets = scale * (5 * torch.rand(400, generator=draw) + 1000)
    logits = (targets + scale * torch.randn(400, generator=draw))[:, None]
    found = merged(NUMBER, (), logits, targets, draw)
    assert abs(found["spearman"] - spearmanr(logits[:, 0], targets)[0]) < 5e-3


@pytest.mark.parametrize(("kind", "name"), [(TEXT, "auc"), (SEVERAL, "auc"), (NUMBER, "spearman")])
def test_a_score_that_is_no_number_has_no_rank(kind: TaskKind, name: str) -> None:
    metrics = TaskMetrics(kind, () if kind is NUMBER else ("no", "yes"), (0.0, 1.0))
    targets = torch.tensor([0, 1, 0, 1])
    scores = torch.tensor([[0.1, 0.2], [0.3, math.nan], [0.5, 0.2], [0.1, 0.9]])
    metrics.update(
        *{
            TEXT: (scores, targets),
            SEVERAL: (scores, scores.nan_to_num().round()),
            NUMBER: (scores[:, 1:], targets.float()),
        }[kind]
    )
    assert math.isnan(metrics.compute()[name])


def test_a_language_model_has_no_others() -> None:
    metrics = TaskMetrics(TaskKind.CAUSAL_LM, ())
    metrics.update(torch.randn(2, 5, 7), torch.zeros(2, 5, dtype=torch.int64))
    assert metrics.compute() == {} and metrics.state() == {}


@pytest.mark.parametrize("kind", [TEXT, SEVERAL, NUMBER, WORDS])
def test_of_nothing_nothing_is_said(kind: TaskKind) -> None:
    labels = () if kind is NUMBER else TAGS
    assert all(math.isnan(value) for value in TaskMetrics(kind, labels).compute().values())


def test_many_classes_leave_out_what_would_grow_with_their_square() -> None:
    labels = tuple(str(i) for i in range(1000))
    metrics = TaskMetrics(TEXT, labels)
    metrics.update(torch.randn(4, 1000), torch.tensor([1, 2, 3, 999]))
    assert "macro_f1" in metrics.compute() and "auc" not in metrics.compute()
    assert sum(tensor.numel() for tensor in metrics.state().values()) < 10_000
