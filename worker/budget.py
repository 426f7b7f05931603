"""How much noise a round takes, and whether it may be trained at all: by the ledger, before it begins."""

import logging
from pathlib import Path

from common.errors import BudgetSpent
from common.privacy.accounting import (
    MOST_NOISE_TO_SIGNAL,
    PrivateSteps,
    epsilon_of,
    noise_for,
    noise_to_signal,
    steps_of,
    undisturbed,
)
from common.records import RunSpec
from worker.ledger import Charge, Ledger
from worker.privacy_policy import PrivacyPolicy
from worker.private_training import Mechanism

log = logging.getLogger(__name__)


class Budget:
    """What the ledger allows of one run on one worker's data. Blocking."""

    def __init__(self, folder: Path, policy: PrivacyPolicy, data: str) -> None:
        self._folder, self._policy = folder, policy
        # However much of it is kept aside: it is the same data.
        self._data = data.partition("/")[0]
        self.spent = 0.0
        """Epsilon up to now, of all runs on these data."""

    def charge(self, run: RunSpec, number: int, examples: int, values: int) -> Mechanism:
        """Write down a round that is about to be trained, and say with how much noise.

        `values` are trained. Whatever the coordinator asks for how often, the run's rounds together keep to
        its promise: noise is found with what was trained before, and what came to nothing, counted in.

        Raises BudgetSpent when that, or what the owner allows in all, is not enough for a round,
        StoreError.
        """
        dp = run.dp
        assert dp is not None
        # Read anew: it is the disk that counts.
        ledger = Ledger(self._folder)
        on_data = ledger.on(self._data)
        of_run = [charge.paid for charge in on_data if charge.run == run.run_id]
        steps, rate, batch = steps_of(dp, examples, run.training.epochs)
        left = max(1, dp.rounds + 1 - number)
        wanted = PrivateSteps(left * steps, rate, of_run[-1].noise if of_run else 0.0)
        planned = PrivateSteps(steps, rate, noise_for(of_run, wanted, dp.epsilon, dp.delta))
        own = epsilon_of((*of_run, planned), dp.delta)
        total = epsilon_of((*(charge.paid for charge in on_data), planned), dp.delta)
        if self._policy.epsilon is not None and total > self._policy.epsilon:
            raise BudgetSpent(
                f"budget spent: with round {number} these data would have told epsilon {total:.2f} in all "
                f"runs, and {self._policy.named} allows {self._policy.epsilon:g}"
            )
        ledger.write(
            Charge(
                run.run_id,
                self._data,
                dp.unit,
                number,
                steps,
                rate,
                planned.noise,
                dp.clip,
                dp.delta,
                own,
                total,
            )
        )
        self.spent = total
        ratio = noise_to_signal(planned.noise, values, batch)
        log.log(
            logging.WARNING if ratio > MOST_NOISE_TO_SIGNAL else logging.INFO,
            "round %d: epsilon %.2f of %g with it, %.2f in all runs; %d steps of some %d examples, noise to "
            "signal %.2f%s",
            number,
            own,
            dp.epsilon,
            total,
            steps,
            batch,
            ratio,
            ": next to nothing can be learnt" if ratio > MOST_NOISE_TO_SIGNAL else "",
        )
        return Mechanism(planned, dp.clip, batch)


def require_left(folder: Path, policy: PrivacyPolicy, data: str, run: RunSpec, examples: int) -> None:
    """Blocking, for a second. Raises BudgetSpent where a run that goes as planned would tell more of these
    data, with what they have told, than their owner allows; StoreError.

    A run that was begun before is judged round by round.
    """
    if run.dp is None or policy.epsilon is None:
        return
    on_data = Ledger(folder).on(data.partition("/")[0])
    if not on_data or any(charge.run == run.run_id for charge in on_data):
        return
    planned, _ = undisturbed(run.dp, examples, run.training.epochs)
    whole = PrivateSteps(planned.steps * run.dp.rounds, planned.rate, planned.noise)
    total = epsilon_of((*(charge.paid for charge in on_data), whole), run.dp.delta)
    if total > policy.epsilon:
        raise BudgetSpent(
            f"too little is left: after this run these data would have told epsilon {total:.2f} in all runs, "
            f"and {policy.named} allows {policy.epsilon:g}"
        )
