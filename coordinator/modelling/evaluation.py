"""Scores on the owner's test data."""

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn

from common.data.batches import Batch, Dataset
from common.model.passes import tally
from common.records import TaskKind

# Of which exp is still a number.
_LARGEST = 700.0


def score(
    model: nn.Module,
    data: Dataset,
    kind: TaskKind,
    labels: Sequence[str],
    on_progress: Callable[[int, int], None] = lambda batch, batches: None,
    batch_size: int = 32,
) -> tuple[float, float, dict[str, float]]:
    """Accuracy (0 to 1), mean loss, as `common.model.tasks` has them for this kind, and further metrics, on
    labelled data. `labels` name the classes.

    The loss is cross entropy in nats; of a language model over its next tokens, so that its perplexity is
    exp of it. Of numbers it is the mean squared error, and there is no accuracy: NaN. `on_progress`
    is called before every batch with batches done and in all; it may raise to stop.
    """
    # A second and more to import, and most processes score nothing.
    from common.model.metrics import TaskMetrics
    from common.model.scores import tallied

    metrics = TaskMetrics(kind, labels, data.label_bounds)
    right, loss, answers = tallied(model, data, kind, metrics, on_progress, batch_size)
    return right / answers, loss / answers, metrics.compute()


@torch.inference_mode()
def perplexity(model: nn.Module, batches: Iterable[Batch]) -> float:
    """A language model's, on batches on its device, of the tokens that are learned; infinite beyond what a
    number holds."""
    loss, answers = 0.0, 0
    for batch in batches:
        assert batch.labels is not None
        _, batch_loss, batch_answers, _ = tally(model, batch.inputs, batch.labels, TaskKind.CAUSAL_LM)
        loss, answers = loss + batch_loss, answers + batch_answers
    mean = loss / answers if answers else math.nan
    return math.exp(mean) if mean < _LARGEST else math.inf
