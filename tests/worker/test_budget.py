"""The budget: noise for what is to come, with all that was paid before counted in."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import BadMessage, BudgetSpent, NotAllowed
from common.privacy import accounting
from common.privacy.accounting import PrivateSteps, epsilon_of
from common.privacy.gaussian import divergence, epsilon_at, noise_for_rounds
from common.private_task import DpSpec, DpUnit
from common.records import (
    AdapterSpec,
    AdapterTargets,
    ArtifactKind,
    ArtifactRef,
    EvaluateTask,
    RunSpec,
    SubModelRef,
    TaskKind,
    TaskSpec,
    TrainingSpec,
    TrainTask,
)
from common.secure_task import SecureSpec
from worker.budget import Budget, require_left
from worker.ledger import Ledger
from worker.privacy_policy import PrivacyPolicy, require_private_task

DP = DpSpec(DpUnit.EXAMPLE, 3.0, 1e-5, 1.0, 64, 3)
RUN = RunSpec(
    "run",
    TaskSpec(TaskKind.TEXT_CLASSIFICATION, ("no", "yes"), 16, False),
    AdapterSpec(AdapterTargets.ATTENTION, 8, 32.0, 0.1),
    TrainingSpec(1, 16, 2e-3, 5e-3, 0.01, 1.0),
    7,
    dp=DP,
)
NO_DP = replace(RUN, dp=None)
DATA = "da7a" * 16


def budget(folder: Path, epsilon: float | None = None, data: str = DATA) -> Budget:
    return Budget(folder, PrivacyPolicy(epsilon=epsilon), data)


@pytest.mark.slow
def test_a_run_that_goes_as_planned_keeps_its_promise_with_one_noise(tmp_path: Path) -> None:
    noises = [budget(tmp_path).charge(RUN, number, 400, 1000).planned.noise for number in (1, 2, 3)]
    assert noises[0] == noises[1] == noises[2]
    paid = Ledger(tmp_path).charges
    assert [charge.round for charge in paid] == [1, 2, 3]
    assert paid[0].epsilon < paid[1].epsilon < paid[2].epsilon <= DP.epsilon
    assert paid[2].epsilon > 0.98 * DP.epsilon
    assert paid[2].epsilon == epsilon_of([charge.paid for charge in paid], DP.delta)


@pytest.mark.slow
def test_a_coordinator_that_asks_again_and_again_does_not_get_beyond_the_promise(tmp_path: Path) -> None:
    noises = []
    with pytest.raises(BudgetSpent, match="used up by rounds that were begun before"):
        for _ in range(40):
            noises.append(budget(tmp_path).charge(RUN, 3, 400, 1000).planned.noise)
    assert noises
    paid = Ledger(tmp_path).charges
    assert len(paid) == len(noises)
    assert epsilon_of([charge.paid for charge in paid], DP.delta) <= DP.epsilon


@pytest.mark.slow
def test_a_training_that_came_to_nothing_is_made_up_for_by_noise(tmp_path: Path) -> None:
    first = budget(tmp_path).charge(RUN, 1, 400, 1000).planned.noise
    again = budget(tmp_path).charge(RUN, 1, 400, 1000).planned.noise
    assert again > first
    for number in (2, 3):
        budget(tmp_path).charge(RUN, number, 400, 1000)
    assert epsilon_of([charge.paid for charge in Ledger(tmp_path).charges], DP.delta) <= DP.epsilon


@pytest.mark.slow
def test_the_owner_s_limit_is_for_all_runs_on_the_same_data(tmp_path: Path) -> None:
    own = budget(tmp_path, epsilon=3.0)
    assert own.charge(RUN, 3, 400, 1000).planned.steps == 6
    assert 2.9 < own.spent <= 3.0
    # The same data, though a part of it is kept aside now.
    with pytest.raises(BudgetSpent, match=r"budget spent: with round 3 .* --epsilon allows 3"):
        budget(tmp_path, 3.0, f"{DATA}/0.1/worker").charge(replace(RUN, run_id="next"), 3, 360, 1000)
    # What was refused was not paid for, and other data have a budget of their own.
    assert len(Ledger(tmp_path).charges) == 1
    assert budget(tmp_path, 3.0, "other").charge(replace(RUN, run_id="next"), 3, 400, 1000)


def test_a_run_without_privacy_is_refused_where_it_is_asked_for() -> None:
    PrivacyPolicy().require(NO_DP, 400)
    PrivacyPolicy(DpUnit.EXAMPLE, 5.0).require(RUN, 400)
    with pytest.raises(NotAllowed, match="promises no differential privacy, and --require-dp asks for it"):
        PrivacyPolicy(DpUnit.EXAMPLE).require(NO_DP, 400)
    with pytest.raises(NotAllowed, match="and --epsilon asks for it"):
        PrivacyPolicy(epsilon=1.0).require(NO_DP, 400)
    with pytest.raises(NotAllowed, match="older than differential privacy"):
        PrivacyPolicy(epsilon=1.0).require_known()


def test_a_run_that_would_tell_too_much_is_refused() -> None:
    with pytest.raises(NotAllowed, match="as much as epsilon 3, and --epsilon allows 1"):
        PrivacyPolicy(epsilon=1.0).require(RUN, 400)
    with pytest.raises(NotAllowed, match=r"delta is 1e-05: with 200000 examples .* for 5e-06 or less"):
        PrivacyPolicy().require(RUN, 200_000)


@pytest.mark.parametrize(
    "run",
    [
        replace(RUN, asks_classes=True),
        replace(RUN, asks_targets=True),
        replace(RUN, training=replace(RUN.training, class_weights=(1.0, 2.0))),
        replace(RUN, training=replace(RUN.training, checkpointing=True)),
        replace(RUN, adapter=replace(RUN.adapter, targets=AdapterTargets.NEURONS)),
    ],
)
def test_a_run_that_asks_for_what_breaks_its_promise_is_refused(run: RunSpec) -> None:
    with pytest.raises(BadMessage, match="promises differential privacy, and"):
        PrivacyPolicy().require(run, 400)
    PrivacyPolicy().require(replace(run, dp=None), 400)


def test_so_is_such_a_task() -> None:
    ref = ArtifactRef(ArtifactKind.ADAPTER, "ab" * 32, 1)
    model = SubModelRef("{}", (64,), ref, (), ())
    plain = TrainTask(1, model, ref, 1.0, (), 60.0, 1)
    require_private_task(RUN, plain)
    for task in (replace(plain, apoz_layers=(1,)), EvaluateTask(1, model, ref, 60.0, 1)):
        with pytest.raises(BadMessage, match="promises differential privacy, and asks for"):
            require_private_task(RUN, task)
        require_private_task(NO_DP, task)


def test_a_missing_package_is_named_with_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from common.errors import ConfigError

    monkeypatch.setattr(accounting.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ConfigError, match=r"needs the package dp-accounting: pip install 'fedpft\[privacy\]'"
    ):
        PrivacyPolicy().require(RUN, 400)
    PrivacyPolicy().require(NO_DP, 400)


# --- where noise hides the whole worker ---

NOISE = noise_for_rounds(3.0, 1e-5, 3)
BY_WORKER = replace(RUN, dp=DpSpec(DpUnit.WORKER, 3.0, 1e-5, 1.0, 64, 3, NOISE))
KEYS = [bytes([number]) * 32 for number in range(9)]


def test_a_worker_pays_once_for_each_sum_and_the_run_keeps_its_promise(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        budget(tmp_path).require_sum(BY_WORKER, number)
        for _ in range(3):
            # Killed and started again, it makes the same of the same update.
            budget(tmp_path).charge_sum(BY_WORKER, number, KEYS[number])
    paid = Ledger(tmp_path).charges
    assert [(charge.round, charge.unit, charge.noise) for charge in paid] == [
        (number, "worker", NOISE) for number in (1, 2, 3)
    ]
    assert 2.999 < paid[-1].epsilon_of_run <= 3.0
    with pytest.raises(BudgetSpent, match="epsilon 3 is used up: with round 4 4 sums of the run would tell"):
        budget(tmp_path).require_sum(BY_WORKER, 4)
    # What has been paid for may go out again.
    last = budget(tmp_path)
    last.charge_sum(BY_WORKER, 3, KEYS[3])
    assert last.spent == paid[-1].epsilon


def test_another_draw_of_the_same_round_is_another_charge(tmp_path: Path) -> None:
    for key in KEYS[:3]:
        budget(tmp_path).charge_sum(BY_WORKER, 1, key)
    assert [charge.round for charge in Ledger(tmp_path).charges] == [1, 1, 1]
    with pytest.raises(BudgetSpent, match="is used up"):
        budget(tmp_path).charge_sum(BY_WORKER, 1, KEYS[3])
    assert len(Ledger(tmp_path).charges) == 3


def test_the_owner_s_limit_adds_up_the_sums_of_all_runs(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        budget(tmp_path, 3.5).charge_sum(BY_WORKER, number, KEYS[number])
    following = replace(BY_WORKER, run_id="next")
    with pytest.raises(BudgetSpent, match=r"with round 1 this worker would have told epsilon 3\.\d+ in all"):
        budget(tmp_path, 3.3).require_sum(following, 1)
    budget(tmp_path, 5.0).require_sum(following, 1)
    budget(tmp_path, 3.3, "other").require_sum(following, 1)


@pytest.mark.slow
def test_what_was_told_of_the_worker_counts_for_its_examples(tmp_path: Path) -> None:
    budget(tmp_path).charge_sum(BY_WORKER, 1, KEYS[1])
    own = budget(tmp_path)
    own.charge(replace(RUN, run_id="next"), 1, 400, 1000)
    one, other = Ledger(tmp_path).charges
    # One example changed moves an update from one place within the clip to another: twice as far.
    assert own.spent == epsilon_of([PrivateSteps(1, 1.0, one.noise / 2), other.paid], 1e-5)
    # Of what examples paid the worker as a whole has no promise, and it is not mixed in.
    budget(tmp_path).charge_sum(BY_WORKER, 2, KEYS[2])
    assert Ledger(tmp_path).charges[-1].epsilon == pytest.approx(epsilon_at(divergence([NOISE] * 2), 1e-5))


def test_a_promise_of_another_unit_is_refused_where_one_is_asked_for() -> None:
    PrivacyPolicy(DpUnit.WORKER, 5.0).require(BY_WORKER, 10**9)
    with pytest.raises(NotAllowed, match=r"promises .* of each worker, and --require-dp asks for .* example"):
        PrivacyPolicy(DpUnit.EXAMPLE).require(BY_WORKER, 400)
    with pytest.raises(NotAllowed, match='unit = "worker"'):
        PrivacyPolicy(DpUnit.WORKER).require(RUN, 400)
    with pytest.raises(NotAllowed, match='unit = "worker"'):
        PrivacyPolicy(DpUnit.WORKER).require(NO_DP, 400)
    with pytest.raises(NotAllowed, match="may tell of this worker as much as epsilon 3, and --epsilon"):
        PrivacyPolicy(epsilon=1.0).require(BY_WORKER, 400)


@pytest.mark.parametrize("noise", [NOISE / math.sqrt(2), NOISE * 0.999, 1e-300])
def test_noise_that_does_not_keep_the_promise_is_refused(noise: float) -> None:
    dp = BY_WORKER.dp
    assert dp is not None
    with pytest.raises(BadMessage, match=r"promises epsilon 3, and its noise of .* keeps"):
        PrivacyPolicy().require(replace(BY_WORKER, dp=replace(dp, noise=noise)), 400)


def test_a_promise_to_workers_that_weighs_them_is_refused() -> None:
    PrivacyPolicy().require(replace(BY_WORKER, secure=SecureSpec(3, 32, False, 1, True)), 400)
    with pytest.raises(BadMessage, match="weighs workers by their examples"):
        PrivacyPolicy().require(replace(BY_WORKER, secure=SecureSpec(3, 32, True, 64, True)), 400)
    for task in (replace(BY_WORKER, asks_classes=True), replace(BY_WORKER, asks_targets=True)):
        with pytest.raises(BadMessage, match="promises differential privacy, and asks for"):
            PrivacyPolicy().require(task, 400)


@pytest.mark.slow
def test_a_run_is_not_begun_that_would_take_more_than_is_left(tmp_path: Path) -> None:
    """Told before anything is fetched; a run that was begun before is judged round by round."""
    allowed = PrivacyPolicy(epsilon=3.5, named="privacy.epsilon of the policy")
    require_left(tmp_path, allowed, DATA, RUN, 400)
    budget(tmp_path, 3.5).charge(RUN, 1, 400, 1000)
    require_left(tmp_path, allowed, DATA, RUN, 400)
    other = replace(RUN, run_id="another")
    with pytest.raises(BudgetSpent, match=r"too little is left.*of the policy allows 3$"):
        require_left(tmp_path, replace(allowed, epsilon=3.0), DATA, other, 400)
    for policy, data, run in (
        (PrivacyPolicy(epsilon=30.0), DATA, other),
        (PrivacyPolicy(), DATA, other),
        (allowed, "0" * 64, other),
        (allowed, DATA, replace(other, dp=None)),
    ):
        require_left(tmp_path, policy, data, run, 400)
