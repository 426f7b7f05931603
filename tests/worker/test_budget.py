"""The budget: noise for what is to come, with all that was paid before counted in."""

from dataclasses import replace
from pathlib import Path

import pytest

from common.errors import BadMessage, BudgetSpent, NotAllowed
from common.privacy import accounting
from common.privacy.accounting import epsilon_of
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
from worker.budget import Budget
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
