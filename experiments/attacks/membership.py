"""Was this text trained on? From one look at a round, by losses and by gradients.

The coordinator has the sub-FM, the adapter that the round began with, and what it saw. A text's score is
compared with what the round's other looks give for the same text, so that easy texts do not pass for members.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from common.data.batches import Dataset
from common.model import passes
from common.model.adapter import Adapted, plus
from experiments.attacks.views import Opened

GRADIENT, LOSS = "gradient", "loss"
ATTACKS = (GRADIENT, LOSS)
# A text's loss is compared for so many other looks: more cost a pass each, and say little more.
COMPARED = 4
_BATCH = 64


@dataclass(frozen=True)
class Candidates:
    """Texts to judge: worker `workers[i]` trained on row i of `data`, if `member[i]`; else nobody did."""

    data: Dataset
    workers: tuple[str, ...]
    member: tuple[bool, ...]


def gradient_scores(adapted: Adapted, texts: Dataset, looks: Sequence[Opened]) -> NDArray[np.float64]:
    """−⟨sign ∇ℓ(text), change⟩, float64 [texts, looks]: how far the change goes down the text's own slope.

    The sign, because AdamW's first steps are of its size whatever the gradient's. `adapted` holds the adapter
    that the round began with.
    """
    named = {
        name.replace(".modules_to_save", "").replace(".default", ""): parameter
        for name, parameter in adapted.model.named_parameters()
        if parameter.requires_grad
    }
    names = sorted(named.keys() & looks[0].delta.keys())
    changes = torch.stack([_flat([look.delta[name] for name in names]) for look in looks])
    scores = np.empty((len(texts), len(looks)))
    for i in range(len(texts)):
        batch = texts.batch([i])
        assert batch.labels is not None
        loss = passes.loss(adapted.model, batch.inputs, batch.labels, adapted.kind)
        slopes = torch.autograd.grad(loss, [named[name] for name in names])
        scores[i] = -(changes @ _flat(slopes).sign()).double().numpy()
    return scores


def loss_scores(
    adapted: Adapted, start: Mapping[str, Tensor], candidates: Candidates, looks: Sequence[Opened]
) -> NDArray[np.float64]:
    """By how many nats the change lowers a text's loss, float64 [texts, looks].

    For the text's own look and the `COMPARED` looks after it, around the end; NaN for others, and for
    texts that are in no look.
    """
    before = _losses(adapted, start, candidates.data, range(len(candidates.data)))
    scores = np.full((len(candidates.data), len(looks)), np.nan)
    rows, own = own_look(candidates, looks)
    for i, look in enumerate(looks):
        chosen = rows[(i - own) % len(looks) <= COMPARED]
        after = _losses(adapted, plus(start, look.delta), candidates.data, chosen.tolist())
        scores[chosen, i] = before[chosen] - after
    return scores


def calibrated(scores: NDArray[np.float64], own: NDArray[np.intp]) -> NDArray[np.float64]:
    """Each text's score for its `own` look less the mean for those others that have one; [texts].

    `scores` is [texts, looks], NaN where there is none. Raises ValueError when there is no other look.
    """
    rows = np.arange(len(scores))
    others = scores.copy()
    others[rows, own] = np.nan
    if np.isnan(others).all(1).any():
        raise ValueError("there must be another look to compare with")
    return np.asarray(scores[rows, own] - np.nanmean(others, axis=1))


def own_look(candidates: Candidates, looks: Sequence[Opened]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows whose worker is in one of the looks, and which look that is."""
    place = {worker: i for i, look in enumerate(looks) for worker in look.workers}
    rows = [i for i, worker in enumerate(candidates.workers) if worker in place]
    return np.array(rows), np.array([place[candidates.workers[i]] for i in rows])


def _losses(
    adapted: Adapted, adapter: Mapping[str, Tensor], texts: Dataset, rows: Sequence[int]
) -> NDArray[np.float64]:
    adapted.load(adapter)
    found = []
    with torch.no_grad():
        for first in range(0, len(rows), _BATCH):
            batch = texts.batch(rows[first : first + _BATCH])
            assert batch.labels is not None
            scores = passes.logits(adapted.model, batch.inputs).float()
            found.append(cross_entropy(scores, batch.labels, reduction="none"))
    return np.asarray(torch.cat(found).double().numpy())


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().float().flatten() for tensor in tensors])
