"""Scores on the owner's test data."""

from collections.abc import Callable

import torch
from torch import nn

from common.batches import Dataset


@torch.inference_mode()
def score(
    model: nn.Module,
    data: Dataset,
    batch_size: int = 32,
    on_batch: Callable[[], None] = lambda: None,
) -> tuple[float, float]:
    """Accuracy (0 to 1) and mean cross entropy (nats) of a classifier on labelled data."""
    device = next(model.parameters()).device
    right, loss = 0, 0.0
    for batch in data.in_order(batch_size):
        on_batch()
        batch = batch.to(device)
        assert batch.labels is not None
        logits = model(**batch.inputs).logits
        right += int((logits.argmax(-1) == batch.labels).sum())
        loss += float(nn.functional.cross_entropy(logits, batch.labels, reduction="sum"))
    return right / len(data), loss / len(data)
