"""Scores as sums: a model on labelled data, several workers' sums together, and what they come to.

What is summed is all that leaves a worker of its validation data: how many examples, answers and right
answers, the loss, and the states of the task's further metrics. Counts are integers, so that they can be
summed in secret as well.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from common.errors import BadScores, CannotTrain
from common.model.held import device_of
from common.model.metrics import TaskMetrics
from common.model.passes import tally
from common.records import ScoreSums, TaskKind
from common.task_forms import FORMS, Answer

# Numbers of a worker's metric states at most: a message has room for them. AUC of up to 15 classes is in
# that, Matthews' correlation of up to 200; what is beyond is left out on both sides.
MOST_NUMBERS = 2**16
# Of every count, so that sums over all workers are int64.
MOST_COUNT = 2**48
_BATCH = 32

OnProgress = Callable[[int, int], None]


class Rows(Protocol):
    """A `common.data.batches.Dataset`, which stands above this folder."""

    def __len__(self) -> int:
        """Rows."""

    def in_order(self, batch_size: int) -> Iterator[Any]:
        """Every row once, as a `Batch`."""


@torch.inference_mode()
def tallied(
    model: nn.Module,
    data: Rows,
    kind: TaskKind,
    metrics: TaskMetrics,
    on_progress: OnProgress = lambda batch, batches: None,
    batch_size: int = _BATCH,
) -> tuple[float, float, int]:
    """Right answers, summed loss and number of answers, as `common.model.tasks` has them.

    `metrics` counts, too. `on_progress` is called before every batch with batches done and in all; it may
    raise to stop.
    """
    device = device_of(model)
    right, loss, answers = 0.0, 0.0, 0
    batches = -(-len(data) // batch_size)
    for done, padded in enumerate(data.in_order(batch_size)):
        on_progress(done, batches)
        batch = padded.to(device)
        assert batch.labels is not None
        batch_right, batch_loss, batch_answers, logits = tally(model, batch.inputs, batch.labels, kind)
        if logits is not None:
            metrics.update(logits, batch.labels)
        right, loss, answers = right + batch_right, loss + batch_loss, answers + batch_answers
    return right, loss, answers


def score_sums(
    model: nn.Module,
    data: Rows,
    examples: int,
    kind: TaskKind,
    labels: Sequence[str],
    on_progress: OnProgress = lambda batch, batches: None,
) -> ScoreSums:
    """A model's sums on the rows of these `examples`. `labels` name the classes.

    Raises CannotTrain where there is nothing to score, or where scores are no numbers.
    """
    model.eval()
    metrics = _metrics(kind, labels)
    right, loss, answers = tallied(model, data, kind, metrics, on_progress)
    if not answers:
        raise CannotTrain("no example of the validation data has an answer that could be right or wrong")
    states = metrics.state().values()
    counts = tuple(n for state in states if not state.is_floating_point() for n in state.flatten().tolist())
    sums = tuple(n for state in states if state.is_floating_point() for n in state.flatten().tolist())
    if not (math.isfinite(loss) and all(map(math.isfinite, sums))):
        raise CannotTrain(f"the loss on the validation data is {loss / answers}")
    return ScoreSums(examples, answers, 0 if math.isnan(right) else int(right), loss, counts, sums)


def total(parts: Mapping[str, ScoreSums]) -> ScoreSums:
    """The sums of all workers together, added in the order of their names."""
    ordered = [parts[name] for name in sorted(parts)]
    return ScoreSums(
        sum(part.examples for part in ordered),
        sum(part.answers for part in ordered),
        sum(part.right for part in ordered),
        sum(part.loss for part in ordered),
        tuple(map(sum, zip(*(part.counts for part in ordered), strict=True))),
        tuple(map(sum, zip(*(part.sums for part in ordered), strict=True))),
    )


def figures(sums: ScoreSums, kind: TaskKind, labels: Sequence[str]) -> tuple[float, float, dict[str, float]]:
    """Accuracy (0 to 1; NaN of numbers), mean loss, and the further metrics by name."""
    metrics = _metrics(kind, labels)
    metrics.add(_state(metrics, sums))
    accuracy = math.nan if FORMS[kind].answer is Answer.NUMBER else sums.right / sums.answers
    return accuracy, sums.loss / sums.answers, metrics.compute()


def require_sound(sums: ScoreSums, examples: int, kind: TaskKind, labels: Sequence[str]) -> None:
    """Raise BadScores unless these can be the sums of a worker that keeps so many examples aside."""
    answer = FORMS[kind].answer
    if sums.examples != examples:
        raise BadScores(f"the scores name {sums.examples} examples, the worker joined with {examples}")
    if not 1 <= sums.answers <= MOST_COUNT:
        raise BadScores(f"the scores are of {sums.answers} answers, which must be 1 to 2**48")
    if answer in (Answer.CLASS, Answer.CLASSES, Answer.NUMBER) and sums.answers != examples:
        raise BadScores(f"{sums.answers} answers are given for {examples} examples")
    if not 0 <= sums.right <= (0 if answer is Answer.NUMBER else sums.answers):
        raise BadScores(f"{sums.right} of {sums.answers} answers cannot be right")
    if not all(map(math.isfinite, (sums.loss, *sums.sums))) or sums.loss < 0:
        raise BadScores(f"a sum must be a finite number and the loss >= 0, got a loss of {sums.loss}")
    metrics = _metrics(kind, labels)
    wanted = [
        sum(t.numel() for t in metrics.state().values() if t.is_floating_point() is f) for f in (False, True)
    ]
    if wanted != [len(sums.counts), len(sums.sums)]:
        raise BadScores(
            f"{len(sums.counts)} counts and {len(sums.sums)} sums are given for {len(labels)} classes, "
            f"which have {wanted[0]} and {wanted[1]}"
        )
    if sums.counts and not 0 <= min(sums.counts) <= max(sums.counts) <= sums.answers:
        raise BadScores(f"a count must be 0 to {sums.answers}, the number of answers")
    for name, told in _totals(_state(metrics, sums), answer):
        if not bool((told == sums.answers).all()):
            raise BadScores(f"the counts of {name} do not add up to the {sums.answers} answers")


def _metrics(kind: TaskKind, labels: Sequence[str]) -> TaskMetrics:
    return TaskMetrics(kind, labels, most=MOST_NUMBERS)


def _state(metrics: TaskMetrics, sums: ScoreSums) -> dict[str, Tensor]:
    """The flat numbers as the metrics' own states."""
    counts, floats = iter(sums.counts), iter(sums.sums)
    return {
        name: torch.tensor(
            list(islice(floats if empty.is_floating_point() else counts, empty.numel())), dtype=empty.dtype
        ).view(empty.shape)
        for name, empty in metrics.state().items()
    }


def _totals(state: Mapping[str, Tensor], answer: Answer) -> list[tuple[str, Tensor]]:
    """Counts that must come to the number of answers."""
    found = []
    if "f1.tp" in state:
        found.append(
            ("f1", sum((state[f"f1.{key}"] for key in ("tp", "fp", "tn", "fn")), start=torch.tensor(0)))
        )
        if answer is Answer.CLASS:
            found.append(("f1", (state["f1.tp"] + state["f1.fn"]).sum()))
    if "matthews.confmat" in state:
        found.append(("matthews", state["matthews.confmat"].sum()))
    if "auc.positives" in state:
        found.append(("auc", (state["auc.positives"] + state["auc.negatives"]).sum(1)))
    if "pearson.sums" in state:
        found.append(("pearson", state["pearson.sums"][0]))
    return found
