"""Scores of any split over workers are scikit-learn's of the whole; sums that cannot be are refused."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr
from seqeval.metrics import f1_score as entity_f1
from sklearn.metrics import accuracy_score, f1_score, log_loss, matthews_corrcoef, roc_auc_score
from torch import Tensor, nn
from transformers import LlamaConfig

from common.data.batches import Batch
from common.errors import BadScores, CannotTrain
from common.model.metrics import score_bins
from common.model.scores import MOST_NUMBERS, figures, require_sound, score_sums, total
from common.model.tasks import IGNORED
from common.records import ScoreSums, TaskKind

CLASSES = ("a", "b", "c")
TEXT, SEVERAL = TaskKind.TEXT_CLASSIFICATION, TaskKind.TEXT_MULTI_LABEL
NUMBER, WORDS, LANGUAGE = TaskKind.TEXT_REGRESSION, TaskKind.TOKEN_CLASSIFICATION, TaskKind.CAUSAL_LM
TOKENS = 7
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
LABELS: dict[TaskKind, tuple[str, ...]] = {
    TEXT: CLASSES,
    SEVERAL: CLASSES,
    NUMBER: (),
    WORDS: TAGS,
    LANGUAGE: (),
}


class Echo(nn.Module):
    """Answers with its inputs, those of a language model through a head."""

    config = LlamaConfig()

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(TOKENS, TOKENS, bias=False)
        nn.init.eye_(self.head.weight)

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, scores: Tensor, use_cache: bool) -> Any:
        answers = self.head(scores) if scores.shape[-1] == TOKENS else scores
        return type("Answer", (), {"logits": answers})


@dataclass
class Rows:
    """Scores and labels, in batches of their order."""

    scores: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.scores)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        for start in range(0, len(self), batch_size):
            rows = slice(start, start + batch_size)
            yield Batch({"scores": self.scores[rows]}, self.labels[rows])

    def part(self, indices: Sequence[int]) -> "Rows":
        return Rows(self.scores[list(indices)], self.labels[list(indices)])


def drawn(kind: TaskKind, count: int, seed: int) -> Rows:
    draw = torch.Generator().manual_seed(seed)
    match kind:
        case TaskKind.TEXT_CLASSIFICATION:
            return Rows(torch.randn(count, 3, generator=draw), torch.randint(0, 3, (count,), generator=draw))
        case TaskKind.TEXT_MULTI_LABEL:
            labels = (torch.rand(count, 3, generator=draw) < 0.4).float()
            return Rows(torch.randn(count, 3, generator=draw), labels)
        case TaskKind.TEXT_REGRESSION:
            labels = torch.rand(count, generator=draw) * 5
            return Rows((labels + torch.randn(count, generator=draw))[:, None], labels)
        case TaskKind.TOKEN_CLASSIFICATION:
            labels = torch.randint(0, len(TAGS), (count, 6), generator=draw)
            scores = torch.nn.functional.one_hot(labels, len(TAGS)) + 1.5 * torch.rand(
                count, 6, len(TAGS), generator=draw
            )
            labels[:, 1:][torch.rand(count, 5, generator=draw) < 0.3] = IGNORED
            return Rows(scores, labels)
    scores = torch.randn(count, 5, TOKENS, generator=draw)
    return Rows(scores, torch.randint(0, TOKENS, (count, 5), generator=draw))


def summed(kind: TaskKind, rows: Rows) -> ScoreSums:
    sums = score_sums(Echo(), rows, len(rows), kind, LABELS[kind])
    require_sound(sums, len(rows), kind, LABELS[kind])
    return sums


def same(found: float, wanted: float) -> bool:
    return math.isnan(found) if math.isnan(wanted) else abs(found - wanted) < 1e-5


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_scores_of_any_split_over_workers_are_those_of_the_whole(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(list(LABELS)))
    count, seed = data.draw(st.integers(3, 60)), data.draw(st.integers(0, 2**32))
    whole = drawn(kind, count, seed)
    owner = data.draw(st.lists(st.integers(0, 4), min_size=count, max_size=count))
    parts = {
        f"worker-{w}": whole.part([i for i in range(count) if owner[i] == w]) for w in sorted(set(owner))
    }
    sums = total({name: summed(kind, rows) for name, rows in parts.items()})
    assert sums.examples == count
    accuracy, loss, metrics = figures(sums, kind, LABELS[kind])
    told = figures(summed(kind, whole), kind, LABELS[kind])
    assert same(accuracy, told[0]) and same(loss, told[1])
    assert metrics.keys() == told[2].keys() and all(same(metrics[key], told[2][key]) for key in metrics)
    for name, wanted in judged_by_others(kind, whole).items():
        assert same({"accuracy": accuracy, "loss": loss, **metrics}[name], wanted), name


def judged_by_others(kind: TaskKind, rows: Rows) -> dict[str, float]:
    """The same by scikit-learn, scipy, seqeval."""
    scores, labels = rows.scores, rows.labels
    match kind:
        case TaskKind.TEXT_CLASSIFICATION:
            best, shares = scores.argmax(-1), scores.double().softmax(-1)
            one_sided = len(labels.unique()) < 2 or len(best.unique()) < 2
            bins = score_bins(scores, several=False)
            there = [i for i in range(3) if 0 < int((labels == i).sum()) < len(labels)]
            areas = [roc_auc_score(labels == i, bins[:, i]) for i in there]
            return {
                "accuracy": accuracy_score(labels, best),
                "loss": log_loss(labels, shares, labels=range(3)),
                "macro_f1": f1_score(labels, best, average="macro"),
                "matthews": math.nan if one_sided else matthews_corrcoef(labels, best),
                "auc": float(numpy.mean(areas)) if areas else math.nan,
            }
        case TaskKind.TEXT_MULTI_LABEL:
            best = (scores > 0).int()
            each = [f1_score(labels[:, i], best[:, i], zero_division=numpy.nan) for i in range(3)]
            found = {f"f1:{name}": value for name, value in zip(CLASSES, each, strict=True)}
            return {"accuracy": accuracy_score(labels, best), **found}
        case TaskKind.TEXT_REGRESSION:
            squares = (scores[:, 0].double() - labels.double()).square().mean()
            pearson = pearsonr(scores[:, 0].double(), labels.double())[0]
            return {"accuracy": math.nan, "loss": float(squares), "pearson": float(pearson)}
        case TaskKind.TOKEN_CLASSIFICATION:
            there = labels != IGNORED
            best = scores.argmax(-1)
            actual = [[TAGS[t] for t in row[mask]] for row, mask in zip(labels, there, strict=True)]
            told = [[TAGS[t] for t in row[mask]] for row, mask in zip(best, there, strict=True)]
            if not any(tag != "O" for row in (*actual, *told) for tag in row):
                return {}
            found = entity_f1(actual, told, zero_division=0)
            return {"accuracy": accuracy_score(labels[there], best[there]), "entity_f1": float(found)}
    following, foretold = labels[:, 1:].flatten(), scores[:, :-1].flatten(0, 1)
    return {
        "accuracy": accuracy_score(following, foretold.argmax(-1)),
        "loss": log_loss(following, foretold.double().softmax(-1), labels=range(7)),
    }


SOUND = summed(TEXT, drawn(TEXT, 10, 1))
BAD: dict[str, ScoreSums] = {
    "a loss of NaN": replace(SOUND, loss=math.nan),
    "an infinite loss": replace(SOUND, loss=math.inf),
    "a negative loss": replace(SOUND, loss=-1.0),
    "other examples than at joining": replace(SOUND, examples=11),
    "more answers than examples": replace(SOUND, answers=11),
    "no answers": replace(SOUND, answers=0),
    "more right than there are": replace(SOUND, right=11),
    "a negative number of right ones": replace(SOUND, right=-1),
    "a count above the answers": replace(SOUND, counts=(11, *SOUND.counts[1:])),
    "a negative count": replace(SOUND, counts=(-1, *SOUND.counts[1:])),
    "counts that do not add up": replace(SOUND, counts=(*SOUND.counts[:-1], (SOUND.counts[-1] + 1) % 11)),
    "counts of other classes": replace(SOUND, counts=SOUND.counts[:-1]),
    "no counts": replace(SOUND, counts=()),
    "sums that the task has not": replace(SOUND, sums=(1.0,)),
}


@pytest.mark.parametrize("what", BAD)
def test_sums_that_cannot_be_are_refused_in_one_line(what: str) -> None:
    with pytest.raises(BadScores) as refused:
        require_sound(BAD[what], 10, TEXT, CLASSES)
    assert "\n" not in str(refused.value)


def test_sums_of_numbers_are_finite_and_have_no_right_answers() -> None:
    sums = summed(NUMBER, drawn(NUMBER, 8, 1))
    for bad in (replace(sums, sums=(*sums.sums[:-1], math.nan)), replace(sums, right=1)):
        with pytest.raises(BadScores):
            require_sound(bad, 8, NUMBER, ())


def test_what_cannot_be_scored_says_so() -> None:
    rows = drawn(TEXT, 4, 1)
    with pytest.raises(CannotTrain, match="the loss on the validation data is nan"):
        score_sums(Echo(), Rows(rows.scores * math.nan, rows.labels), 4, TEXT, CLASSES)
    with pytest.raises(CannotTrain, match="no example"):
        score_sums(Echo(), Rows(torch.zeros(2, 1, 7), torch.zeros(2, 1, dtype=torch.int64)), 2, LANGUAGE, ())


@pytest.mark.parametrize(("classes", "told"), [(15, True), (16, False), (3000, False)])
def test_metrics_of_many_classes_are_left_out_where_a_message_has_no_room(classes: int, told: bool) -> None:
    labels = tuple(map(str, range(classes)))
    rows = Rows(torch.randn(5, classes), torch.arange(5))
    sums = score_sums(Echo(), rows, 5, TEXT, labels)
    require_sound(sums, 5, TEXT, labels)
    assert len(sums.counts) <= MOST_NUMBERS
    metrics = figures(sums, TEXT, labels)[2]
    assert ("auc" in metrics) is told and ("matthews" in metrics) is (classes < 200) and "macro_f1" in metrics


def test_floats_are_added_in_the_order_of_names() -> None:
    parts = {name: ScoreSums(1, 1, 0, loss) for name, loss in (("b", 1e-17), ("a", 1.0), ("c", 1e-17))}
    assert total(parts) == total(dict(reversed(parts.items())))
    assert total(parts).loss == (1.0 + 1e-17) + 1e-17
