"""Back to an earlier round: what came after it is forgotten."""

from common.errors import StoreError
from coordinator.storage.store import Store

# What is decided or measured round by round; traffic and events stay, whatever became of their round.
_BY_ROUND = (
    "adapters",
    "server_states",
    "alignments",
    "whole_patches",
    "corrections",
    "gradient_gaps",
    "evaluations",
    "evaluation_metrics",
    "validation_tries",
    "worker_scores",
    "validations",
    "tries",
    "accepted",
    "updates",
    "secure_tries",
    "secure_said",
    "secure_sets",
    "secure_sums",
    "update_targets",
)


def rewind(store: Store, number: int) -> None:
    """Forget all that came after this round, and the run's outcome: it goes on from there.

    Raises StoreError when the round is not done, or its adapter is not kept any more.
    """
    held = {artifact.sha256 for artifact in store.artifacts.held()}
    kept = [done for done, sha256 in store.adapters().items() if sha256 in held]
    if number not in kept:
        told = f"{min(kept)} to {max(kept)}" if kept else "none"
        raise StoreError(
            f"{store.directory}: cannot go back to round {number}; rounds whose adapter is there: {told}"
        )
    with store.database.transaction("rewind") as db:
        for table in _BY_ROUND:
            db.execute(f"DELETE FROM {table} WHERE round > ?", (number,))
        db.execute("UPDATE run SET outcome = NULL, reason = NULL")
