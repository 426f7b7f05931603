"""What a worker's owner asks of secure aggregation."""

from collections.abc import Callable
from dataclasses import dataclass

from common.errors import AgainstPolicy, CannotTrain, NotAllowed, SecureRefused
from common.records import EvaluateTask, ModelTask, RunSpec, TrainTask
from common.secagg.context import default_colluding
from common.secagg.records import LEAST_WORKERS, SecureRound, Verifier
from common.trust.signing import Signing


@dataclass(frozen=True)
class SecurePolicy:
    """What this worker's owner asks of secure aggregation, and by what keys are signed and judged."""

    required: bool = False
    """Take part in no run that does not sum masked updates."""
    floor: int = LEAST_WORKERS
    """Open no sum of fewer workers."""
    signing: Callable[[], Signing] | None = None
    """Asked at every try: certificates are renewed while a worker runs."""
    verify: Verifier | None = None
    """None without TLS, or where keys are not signed."""

    def require_known(self) -> None:
        """Raises NotAllowed: the coordinator knows nothing of secure aggregation."""
        raise NotAllowed(
            "the coordinator is older than secure aggregation, which --require-secure asks for; upgrade it"
        )

    def require(self, run: RunSpec) -> None:
        """Raises AgainstPolicy for a run that this worker's owner does not want it to take part in."""
        spec = run.secure
        if spec is None:
            if self.required:
                raise AgainstPolicy(
                    "the run's coordinator would see this worker's updates, and --require-secure forbids "
                    "that; ask the run's owner for privacy.secure = true"
                )
            return
        if spec.minimum < self.floor:
            raise AgainstPolicy(
                f"the run sums {spec.minimum} workers at least, and --min-aggregate wants {self.floor}; ask "
                "the run's owner for a larger rounds.minimum"
            )
        if spec.signed and self.signing is None:
            raise AgainstPolicy("the run's workers know each other by certificates: give --tls")
        if not spec.signed and self.verify is not None:
            raise AgainstPolicy(
                "the run's keys are not signed (privacy.insecure_keys), though this worker has a certificate "
                "to sign with, so that its coordinator could read everything; ask the run's owner to leave "
                "privacy.insecure_keys out"
            )
        if self.required and not spec.signed:
            raise AgainstPolicy(
                "the run's keys are not signed (privacy.insecure_keys), so that its coordinator could read "
                "everything, and --require-secure forbids that"
            )

    def require_try(self, run: RunSpec, within: SecureRound) -> None:
        """Raises SecureRefused for a try that falls short of what the run spoke of, or this owner asks
        for."""
        told = f"round {within.round}: "
        least = max(self.floor, run.secure.minimum if run.secure else 0)
        if within.minimum < least:
            raise SecureRefused(
                f"{told}a sum of {within.minimum} workers is asked for; the run and this worker's owner "
                f"spoke of {least} at least"
            )
        wanted = default_colluding(len(within.drawn))
        if self.required and within.colluding < wanted:
            raise SecureRefused(
                f"{told}only {within.colluding} of {len(within.drawn)} workers may be in league with the "
                f"coordinator, and --require-secure wants {wanted}; ask the run's owner for privacy.colluding"
            )


def require_as_joined(run: RunSpec, task: ModelTask) -> None:
    """Raises CannotTrain for a task that asks for more, or for other, than the run that was joined."""
    told = f"round {task.round}: "
    if run.terms is not None and task.round > run.terms.rounds:
        raise CannotTrain(f"{told}the run was said to have {run.terms.rounds} rounds")
    if run.secure is None:
        if isinstance(task, TrainTask) and task.secure is not None:
            raise CannotTrain(f"{told}the task sums masked updates, and the run does not")
        return
    if isinstance(task, EvaluateTask):
        raise CannotTrain(f"{told}scores of this worker alone are asked for, and the run takes sums only")
    if task.secure is None:
        raise CannotTrain(
            f"{told}an update without masks is asked for, and the run takes sums only; this worker sends none"
        )


def require_same_sums(before: RunSpec, now: RunSpec) -> None:
    """Raises NotAllowed when a coordinator tells otherwise than before what it sees of updates, or promises
    of examples."""
    if before.dp != now.dp:
        raise NotAllowed(
            "the coordinator promises other differential privacy now than before; ask the run's owner why "
            "[privacy.dp] has changed"
        )
    if before.secure != now.secure:
        raise NotAllowed(
            f"the coordinator takes {_seen(now)} now, and spoke of {_seen(before)} before; ask the run's "
            "owner why [privacy] has changed"
        )


def _seen(run: RunSpec) -> str:
    spec = run.secure
    if spec is None:
        return "updates as they are"
    weighed = f"by up to {spec.most_examples} examples" if spec.by_examples else "alike"
    keys = "signed" if spec.signed else "unsigned"
    return f"sums of {spec.minimum} or more, weighed {weighed}, of {spec.bits} bits, by {keys} keys"
