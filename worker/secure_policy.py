"""What a worker's owner asks of secure aggregation."""

from dataclasses import dataclass

from common.errors import NotAllowed
from common.records import RunSpec
from common.secagg.records import LEAST_WORKERS, Signer, Verifier


@dataclass(frozen=True)
class SecurePolicy:
    """What this worker's owner asks of secure aggregation, and by what keys are signed and judged."""

    required: bool = False
    """Take part in no run that does not sum masked updates."""
    floor: int = LEAST_WORKERS
    """Open no sum of fewer workers."""
    sign: Signer | None = None
    certificate: bytes = b""
    verify: Verifier | None = None
    """None without TLS, or where keys are not signed."""

    def require_known(self) -> None:
        """Raises NotAllowed: the coordinator knows nothing of secure aggregation."""
        raise NotAllowed(
            "the coordinator is older than secure aggregation, which --require-secure asks for; upgrade it"
        )

    def require(self, run: RunSpec) -> None:
        """Raises NotAllowed for a run that this worker's owner does not want it to take part in."""
        spec = run.secure
        if spec is None:
            if self.required:
                raise NotAllowed(
                    "the run's coordinator would see this worker's updates, and --require-secure forbids "
                    "that; ask the run's owner for privacy.secure = true"
                )
            return
        if spec.minimum < self.floor:
            raise NotAllowed(
                f"the run sums {spec.minimum} workers at least, and --min-aggregate wants {self.floor}; ask "
                "the run's owner for a larger rounds.minimum"
            )
        if spec.signed and self.sign is None:
            raise NotAllowed("the run's workers know each other by certificates: give --tls")
        if self.required and not spec.signed:
            raise NotAllowed(
                "the run's keys are not signed (privacy.insecure_keys), so that its coordinator could read "
                "everything, and --require-secure forbids that"
            )
