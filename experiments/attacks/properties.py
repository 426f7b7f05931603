"""What shares of the classes does a worker have? From the head's bias, and from activation counts.

The coordinator has some labelled documents of its own. It trains shadow workers on draws from them whose
shares it knows, in the same round, and learns from those what a worker's shares look like.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from common.errors import DataError
from common.model.apoz import apoz
from experiments.attacks.scores import onto_simplex
from experiments.attacks.views import Opened

BIAS, COUNTS = "bias", "counts"
ATTACKS = (BIAS, COUNTS)

Shares = NDArray[np.float64]


def bias_changes(looks: Sequence[Opened], classes: int) -> NDArray[np.float64]:
    """The change of the head's bias in every look, [looks, classes], without what all classes have alike.

    Raises DataError where a model's head has no bias.
    """
    names = [n for n, t in looks[0].delta.items() if n.endswith(".bias") and tuple(t.shape) == (classes,)]
    if not names:
        raise DataError("the label attack needs a head with a bias for every class; this model's has none")
    found = np.stack([look.delta[names[0]].double().numpy() for look in looks])
    return np.asarray(found - found.mean(1, keepdims=True))


def rates_at_rest(looks: Sequence[Opened]) -> NDArray[np.float64]:
    """Share of tokens at which each counted neuron rested, [looks, neurons of all counted layers]."""
    return np.stack(
        [np.concatenate([apoz(look.counts[i]).numpy() for i in sorted(look.counts)]) for look in looks]
    )


def shares_by_bias(shadows: NDArray[np.float64], known: Shares, seen: NDArray[np.float64]) -> Shares:
    """Shares by the shadows' regression: one slope for all classes, a level for each.

    `shadows` and `seen` are `bias_changes` [S, C] and [V, C]; `known` the shadows' shares [S, C].
    """
    centred = shadows - shadows.mean(0)
    slope = (centred * (known - known.mean(0))).sum() / max(float((centred**2).sum()), 1e-30)
    guesses = known.mean(0) + slope * (seen - shadows.mean(0))
    return np.stack([onto_simplex(guess) for guess in guesses])


def shares_by_counts(shadows: NDArray[np.float64], known: Shares, seen: NDArray[np.float64]) -> Shares:
    """Shares by non-negative least squares on the classes' rates, which the shadows tell, [V, C].

    A worker's rates are the mean of its classes' rates, by shares, where classes are about equally long.
    """
    by_class = np.linalg.lstsq(known, shadows, rcond=None)[0]
    found = np.stack([nnls(by_class.T, rates)[0] for rates in seen])
    return np.asarray(found / np.maximum(found.sum(1, keepdims=True), 1e-30))
