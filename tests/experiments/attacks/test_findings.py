"""What the attacks reached is judged: a bound that holds is kept quiet about, one that does not is named."""

from typing import Any

import numpy as np
import pytest
import torch

from common.config.privacy import PrivacySection
from common.model.apoz import ZeroCounts
from experiments.attacks import membership, properties
from experiments.attacks.findings import Findings
from experiments.attacks.turns import LABELS, MEMBERSHIP, WORTH
from experiments.attacks.views import PLAIN, VIEWS, opened
from worker.train import LocalUpdate


def texts(view: str, size: int, seen: float, seed: int = 1) -> dict[str, Any]:
    """Of 30 workers with 10 members and 10 others; members' scores are `seen` higher, in spreads of one."""
    random = np.random.default_rng(seed)
    member = ([True] * 10 + [False] * 10) * 30
    scores = (random.normal(size=600) + seen * np.array(member)).tolist()
    workers = [f"worker-{i // 20}" for i in range(600)]
    one = {"workers": workers, "member": member} | dict.fromkeys(membership.ATTACKS, scores)
    return {"seed": seed, "size": size, "views": {view: one}}


def labels(view: str, told: bool) -> dict[str, Any]:
    """Of 20 workers with shares by chance: the attack tells each one's, or the mean of its sum."""
    random = np.random.default_rng(3)
    true = random.dirichlet([1.0] * 5, size=20)
    per = VIEWS[view].workers
    means = true.reshape(20 // per, per, 5).mean(1).repeat(per, axis=0)
    guess = true if told else means
    rows = [
        {"look": i // per, "worker": f"worker-{i}", "true": true[i].tolist(), "mean": means[i].tolist()}
        | dict.fromkeys(properties.ATTACKS, guess[i].tolist())
        for i in range(20)
    ]
    return {"seed": 1, "size": 0, "views": {view: rows}, "everybody": true.mean(0).tolist(), "classes": []}


def findings(members: list[dict[str, Any]], of_labels: list[dict[str, Any]]) -> Findings:
    return Findings({MEMBERSHIP: members, LABELS: of_labels, WORTH: []})


def test_bounds_that_hold_are_not_named() -> None:
    found = findings([texts("sum-5", 100, 0.0), texts("sum-10", 100, 0.0)], [labels("sum-5", told=False)])
    assert found.broken() == []


def test_members_that_are_told_in_a_sum_break_the_bound_by_name() -> None:
    broken = findings([texts("sum-5", 100, 0.5)], []).broken()
    assert len(broken) == len(membership.ATTACKS)
    assert "membership by gradient, sum of 5, 100 examples a worker: AUC 0.6" in broken[0]


def test_labels_that_are_told_in_a_sum_break_the_bound_by_name() -> None:
    broken = findings([], [labels("sum-5", told=True)]).broken()
    assert len(broken) == len(properties.ATTACKS)
    assert broken[0].startswith("labels by bias, sum of 5: 0.000 from a worker's shares is less than")


@pytest.mark.parametrize(("view", "size"), [("plain", 100), ("sum-3", 100), ("sum-10", 8)])
def test_nothing_is_claimed_of_single_updates_small_sums_and_few_examples(view: str, size: int) -> None:
    found = findings([texts(view, size, 2.0)], [])
    assert found.broken() == []
    assert all(m.auc.low > 0.8 for m in found.membership)


def update(value: float, zeros: int) -> LocalUpdate:
    counts = {0: ZeroCounts(torch.tensor([zeros, 10 - zeros]), torch.tensor(10))}
    return LocalUpdate({"head.bias": torch.tensor([value, -value])}, 1.0, 1, counts)


UPDATES = {"a": update(1.0, 1), "b": update(2.0, 2), "c": update(6.0, 6), "d": update(9.0, 9)}
EXAMPLES = {"a": 10, "b": 20, "c": 10, "d": 10}


def test_a_sum_shows_the_mean_by_examples_and_the_counts_of_all_and_no_look_has_too_few() -> None:
    (look,) = opened(VIEWS["sum-3"], UPDATES, EXAMPLES, PrivacySection())
    assert look.workers == ("a", "b", "c")
    assert look.delta["head.bias"].tolist() == pytest.approx([(10 + 40 + 60) / 40, -(10 + 40 + 60) / 40])
    assert look.counts[0].zeros.tolist() == [9, 21] and look.counts[0].tokens.item() == 30


def test_a_plain_look_is_the_update_itself() -> None:
    looks = list(opened(PLAIN, UPDATES, EXAMPLES, PrivacySection()))
    assert [look.workers for look in looks] == [("a",), ("b",), ("c",), ("d",)]
    assert looks[2].delta is UPDATES["c"].delta


def test_shares_are_learnt_from_shadows() -> None:
    random = np.random.default_rng(4)
    known, true = random.dirichlet([1.0] * 4, size=12), random.dirichlet([1.0] * 4, size=6)
    rates = random.uniform(size=(4, 50))
    assert np.allclose(properties.shares_by_counts(known @ rates, known, true @ rates), true)
    # A bias that goes by the shares, off by a level for each class.
    level = np.array([0.1, -0.2, 0.0, 0.1])
    assert np.allclose(properties.shares_by_bias(3 * known + level, known, 3 * true + level), true)


def test_scores_are_compared_with_the_other_looks() -> None:
    # What was not looked at, NaN, does not count.
    scores = np.array([[3.0, 1.0, 2.0], [5.0, np.nan, 4.0]])
    assert membership.calibrated(scores, np.array([0, 2])).tolist() == [1.5, -1.0]
    with pytest.raises(ValueError, match="another look"):
        membership.calibrated(scores[:, :1], np.array([0, 0]))
