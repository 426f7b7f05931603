"""Scores on the owner's test data."""

from collections.abc import Callable

import torch
from torch import nn

from common.batches import Dataset


@torch.inference_mode()
def score(
    model: nn.Module,
    data: Dataset,
    on_progress: Callable[[int, int], None] = lambda batch, batches: None,
    batch_size: int = 32,
) -> tuple[float, float]:
    """Accuracy (0 to 1) and mean cross entropy (nats) of a classifier on labelled data.

    `on_progress` is called before every batch with batches done and in all; it may raise to stop.
    """
    device = next(model.parameters()).device
    right, loss = 0, 0.0
    batches = -(-len(data) // batch_size)
    for done, padded in enumerate(data.in_order(batch_size)):
        on_progress(done, batches)
        batch = padded.to(device)
        assert batch.labels is not None
        logits = model(**batch.inputs).logits
        right += int((logits.argmax(-1) == batch.labels).sum())
        loss += float(nn.functional.cross_entropy(logits, batch.labels, reduction="sum"))
    return right / len(data), loss / len(data)
