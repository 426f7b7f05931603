"""Scores on the owner's test data."""

from collections.abc import Callable, Sequence

import torch
from torch import nn

from common.data.batches import Dataset
from common.model.tasks import tally
from common.records import TaskKind


@torch.inference_mode()
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

    metrics = TaskMetrics(kind, labels, data.label_bounds)
    device = next(model.parameters()).device
    right, loss, answers = 0.0, 0.0, 0
    batches = -(-len(data) // batch_size)
    for done, padded in enumerate(data.in_order(batch_size)):
        on_progress(done, batches)
        batch = padded.to(device)
        assert batch.labels is not None
        logits = model(**batch.inputs).logits
        batch_right, batch_loss, batch_answers = tally(logits, batch.labels, kind)
        metrics.update(logits, batch.labels)
        right, loss, answers = right + batch_right, loss + batch_loss, answers + batch_answers
    return right / answers, loss / answers, metrics.compute()
