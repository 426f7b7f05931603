"""Scores on the owner's test data."""

from collections.abc import Callable, Sequence

from torch import nn

from common.data.batches import Dataset
from common.records import TaskKind


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
    # Half of a second to import, and most processes score nothing.
    from common.model.metrics import TaskMetrics
    from common.model.scores import tallied

    metrics = TaskMetrics(kind, labels, data.label_bounds)
    right, loss, answers = tallied(model, data, kind, metrics, on_progress, batch_size)
    return right / answers, loss / answers, metrics.compute()
