"""How much noise a round takes, and whether it may be trained at all: by the ledger, before it begins."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import replace
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
from common.privacy.gaussian import ROUNDING, divergence, epsilon_at
from common.private_task import DpSpec, DpUnit
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
        total = epsilon_of((*map(_of_example, on_data), planned), dp.delta)
        self._require_allowed(total, number, _whose(dp))
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

    # --- where noise hides the whole worker ---

    def require_sum(self, run: RunSpec, number: int) -> None:
        """Before a round is trained: raise BudgetSpent unless it could be paid for, StoreError."""
        self._judged(run, number, Ledger(self._folder))

    def charge_sum(self, run: RunSpec, number: int, key: bytes) -> None:
        """Write down that this worker's update is about to be in a sum with noise, its share drawn by this
        key; once for each key. Raises BudgetSpent, StoreError."""
        dp, draw = run.dp, hashlib.sha256(b"draw" + key).hexdigest()
        assert dp is not None
        ledger = Ledger(self._folder)
        paid = [c for c in ledger.on(self._data) if (c.run, c.round, c.draw) == (run.run_id, number, draw)]
        if paid:
            self.spent = paid[-1].epsilon
            return
        own, total = self._judged(run, number, ledger)
        ledger.write(
            Charge(
                run.run_id, self._data, dp.unit, number, 1, 1.0, dp.noise, dp.clip, dp.delta, own, total, draw
            )
        )
        self.spent = total
        log.info(
            "round %d: epsilon %.2f of %g with it, %.2f in all runs, of this worker as a whole; %s",
            number,
            own,
            dp.epsilon,
            total,
            "it adds its share of the noise" if run.secure else "the coordinator adds the noise",
        )

    def _judged(self, run: RunSpec, number: int, ledger: Ledger) -> tuple[float, float]:
        """Epsilon with one more sum, of the run and of all on these data."""
        dp = run.dp
        assert dp is not None
        on_data = ledger.on(self._data)
        of_run = [charge for charge in on_data if charge.run == run.run_id]
        own, total = _of_sums(of_run, 1, dp), _of_sums(on_data, 1, dp)
        if own > dp.epsilon * ROUNDING:
            raise BudgetSpent(
                f"the promise of epsilon {dp.epsilon:g} is used up: with round {number} {len(of_run) + 1} "
                f"sums of the run would tell epsilon {own:.2f} of this worker"
            )
        self._require_allowed(total, number, _whose(dp))
        return own, total

    def _require_allowed(self, total: float, number: int, whose: str) -> None:
        if self._policy.epsilon is not None and total > self._policy.epsilon * ROUNDING:
            raise BudgetSpent(
                f"budget spent: with round {number} {whose} would have told epsilon {total:.2f} in all "
                f"runs, and {self._policy.named} allows {self._policy.epsilon:g}"
            )


def _of_example(charge: Charge) -> PrivateSteps:
    """What a charge tells of an example: a whole worker's update moves by two clips at most where one example
    is another, for it has norm of one with each."""
    halved = charge.noise / 2 if charge.unit == DpUnit.WORKER else charge.noise
    return replace(charge.paid, noise=halved)


def _of_sums(paid: Sequence[Charge], further: int, dp: DpSpec) -> float:
    """Epsilon of the worker as a whole with so many further sums of a run. Of what its examples paid nothing
    is known as to the whole of it."""
    by_worker = [charge.noise for charge in paid if charge.unit == DpUnit.WORKER]
    return epsilon_at(divergence(by_worker) + further * divergence([dp.noise]), dp.delta)


def _whose(dp: DpSpec) -> str:
    return "this worker" if dp.unit is DpUnit.WORKER else "these data"


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
    if run.dp.unit is DpUnit.WORKER:
        total = _of_sums(on_data, run.dp.rounds, run.dp)
    else:
        planned, _ = undisturbed(run.dp, examples, run.training.epochs)
        whole = PrivateSteps(planned.steps * run.dp.rounds, planned.rate, planned.noise)
        total = epsilon_of((*map(_of_example, on_data), whole), run.dp.delta)
    if total > policy.epsilon * ROUNDING:
        raise BudgetSpent(
            f"too little is left: after this run {_whose(run.dp)} would have told epsilon {total:.2f} in all "
            f"runs, and {policy.named} allows {policy.epsilon:g}"
        )
