"""What a coordinator with t - 1 workers in league sees of two others has no trace of who sent which vector.

The test can fail: it is run once more with one mask left off.
"""

import numpy as np
import pytest
from scipy import stats
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from common.secagg import context, masks, vector
from common.secagg.masks import Ring
from common.secagg.records import VectorSpec
from tests.common.secagg.parties import Parties, a_round, masked, workers

RUNS, SIZE = 2000, 64
NAMES = workers(4)
V, A = NAMES[:2]
LEAGUE = NAMES[2:]
# Of so many comparisons one is that far off in a million test runs.
UNLIKELY = 1e-6


def view(parties: Parties, inputs: dict[str, Ring], open_masks: bool) -> np.ndarray:
    """All that is left of V's and A's vectors when every mask is off that the coordinator can compute.

    Those with its own workers, by their secrets; V's and A's own, by a sum that was opened. And the shares of
    V's and A's keys that its workers hold, one too few.
    """
    told = parties.round
    worn = {name: parties.masks_of(name) for name in NAMES}
    recovered = dict(zip(NAMES, parties.recover(parties.open(parties.endorse())), strict=True))
    seen: list[np.ndarray] = []
    for name in (V, A):
        own = worn[name]
        if open_masks and name == V:
            # The mask of the pair V and A comes first after V's own.
            own = (own[0], *own[2:])
        left = masked(inputs[name], own, "delta", told)
        masks.add(left, recovered[name], "delta", context.digest(told))
        for other in LEAGUE:
            # In order of names: its own, then V's, then A's.
            masks.add(left, worn[other][1 + NAMES.index(name)], "delta", context.digest(told))
        seen.append(np.frombuffer(left.tobytes(), np.uint8))
        for other in LEAGUE:
            seen.append(np.frombuffer(parties.held(other).shares[name][1][1:], np.uint8))
    return np.concatenate(seen)


def views(open_masks: bool) -> tuple[np.ndarray, np.ndarray]:
    """RUNS rounds, and of each whether V's and A's inputs were exchanged."""
    told = a_round(len(NAMES), vectors=(VectorSpec("delta", (SIZE,), 32),))
    assert len(LEAGUE) == told.threshold - 1
    random = np.random.default_rng(0)
    floats = random.normal(0, 1, (2, SIZE)) + np.array([[0.2], [-0.2]])
    pair = [vector.quantise(row, 1.0, told.step, 32, told.clip) for row in floats]
    exchanged = random.permutation(np.arange(RUNS) % 2)
    found = []
    for swap in exchanged:
        parties = Parties(told, None)
        parties.offer_keys()
        parties.deal()
        parties.receive()
        parties.survive()
        found.append(view(parties, {V: pair[swap], A: pair[1 - swap]}, open_masks))
    return np.array(found), exchanged


def auc(seen: np.ndarray, exchanged: np.ndarray) -> float:
    """How well gradient-boosted trees tell, on rounds that they were not trained on."""
    trees = HistGradientBoostingClassifier(max_iter=25, max_leaf_nodes=8, random_state=0)
    told = cross_val_predict(trees, seen, exchanged, cv=3, method="predict_proba")[:, 1]
    return float(roc_auc_score(exchanged, told))


@pytest.mark.slow
def test_who_sent_which_of_two_vectors_leaves_no_trace() -> None:
    seen, exchanged = views(open_masks=False)
    counts = np.stack([np.bincount(column, minlength=256) for column in seen.T])
    assert stats.chisquare(counts, axis=1).pvalue.min() > UNLIKELY / len(counts)
    assert stats.chisquare(counts.sum(0)).pvalue > UNLIKELY
    one, two = seen[exchanged == 0], seen[exchanged == 1]
    assert stats.ks_2samp(one, two, axis=0, method="asymp").pvalue.min() > UNLIKELY / len(counts)
    # Of a coin's AUC, 4.9 standard deviations: RUNS / 2 of each.
    assert abs(auc(seen, exchanged) - 0.5) < 4.9 * ((RUNS + 1) / 12 / (RUNS / 2) ** 2) ** 0.5


@pytest.mark.slow
def test_with_one_mask_off_it_leaves_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.common.secagg.test_statistics.RUNS", 300)
    seen, exchanged = views(open_masks=True)
    counts = np.stack([np.bincount(column, minlength=256) for column in seen.T])
    assert stats.chisquare(counts, axis=1).pvalue.min() < UNLIKELY / len(counts)
    one, two = seen[exchanged == 0], seen[exchanged == 1]
    assert stats.ks_2samp(one, two, axis=0, method="asymp").pvalue.min() < UNLIKELY / len(counts)
    assert auc(seen, exchanged) == 1.0
