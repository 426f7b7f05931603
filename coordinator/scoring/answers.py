"""What a language model makes of the tokens that it should have said: loss, perplexity, token accuracy."""

from collections.abc import Iterator

import torch
from torch import nn

from common.data.batches import Dataset
from common.errors import DataError
from common.model.passes import target_scores
from common.model.scores import OnProgress
from common.model.tasks import IGNORED
from coordinator.scoring.figures import Figure, exponential, ratio
from coordinator.scoring.likelihood import require_finite


def token_figures(
    model: nn.Module,
    data: Dataset,
    batch_size: int,
    on_progress: OnProgress = lambda row, rows: None,
) -> dict[str, Figure]:
    """Loss (nats a token), perplexity, the share of tokens that are the model's first choice, and their
    number, over tokens that have labels, given all before them. Raises ModelError, DataError where there is
    none."""
    losses: list[float] = []
    right: list[float] = []
    counts: list[float] = []
    for done, (loss, hits, tokens) in enumerate(_rows(model, data, batch_size)):
        on_progress(done, len(data))
        losses.append(loss)
        right.append(hits)
        counts.append(tokens)
    on_progress(len(data), len(data))
    if not sum(counts):
        raise DataError("no token is there to be foretold: texts of one token each have none")
    loss_figure = ratio(losses, counts)
    return {
        "loss": loss_figure,
        "perplexity": exponential(loss_figure),
        "token_accuracy": ratio(right, counts),
        "tokens": Figure(sum(counts)),
    }


@torch.inference_mode()
def _rows(model: nn.Module, data: Dataset, batch_size: int) -> Iterator[tuple[float, float, int]]:
    """Of every row its summed loss, right tokens and tokens."""
    device = next(model.parameters()).device
    for padded in data.in_order(batch_size):
        batch = padded.to(device)
        assert batch.labels is not None
        rows, places = (batch.labels[:, 1:] != IGNORED).nonzero(as_tuple=True)
        targets = batch.labels[:, 1:][rows, places]
        values, hits = target_scores(model, batch.inputs, (rows, places), targets)
        require_finite(values)
        count = len(batch.labels)
        sums = torch.zeros(3, count, dtype=torch.float64)
        owners = rows.cpu()
        for into, each in zip(sums, (-values, hits, torch.ones_like(values)), strict=True):
            into.index_add_(0, owners, each.double().cpu())
        for loss, correct, tokens in sums.T.tolist():
            yield loss, correct, int(tokens)
