"""Whether a worker can take part in a run at all, asked before it is let in."""

from common.errors import BadMessage, ClassesWanted, TooMany
from common.records import JoinRequest
from coordinator.context import RunContext
from coordinator.federation.needs import require_protocol
from coordinator.federation.sessions import Sessions


def require_able(run: RunContext, sessions: Sessions, joining: JoinRequest) -> None:
    """Raise BadMessage or TooMany for a worker with too many examples, or one worker too many;
    ProtocolMismatch for one that cannot do what the run asks; ClassesWanted for one that is to tell its
    classes before."""
    limits, spec = run.config.limits, run.spec
    if joining.examples < 1 and spec.secure is None:
        raise BadMessage("a worker needs at least one example")
    if (examples := max(joining.examples, joining.validation)) > limits.examples:
        raise BadMessage(
            f"worker {joining.worker} names {examples} examples, limits.examples allows {limits.examples}"
        )
    if not sessions.knows(joining.worker) and len(sessions) >= limits.workers:
        raise TooMany(f"{limits.workers} workers have joined; limits.workers allows no more")
    require_protocol(spec, joining.protocol_max)
    if spec.asks_classes:
        raise ClassesWanted("this run asks a worker for its classes, before it may join")
