"""Whether a worker can take part in a run at all, asked before it is let in."""

from common.errors import BadMessage, ClassesWanted, ProtocolMismatch, TooMany
from common.records import CLASSES_SINCE, LABELS_FILE_SINCE, JoinRequest
from common.task_forms import FORMS
from coordinator.context import RunContext
from coordinator.federation.sessions import Sessions


def require_able(run: RunContext, sessions: Sessions, joining: JoinRequest) -> None:
    """Raise BadMessage or TooMany for a worker with too many examples, or one worker too many;
    ProtocolMismatch for one that cannot do what the run asks; ClassesWanted for one that is to tell its
    classes before."""
    limits, spec = run.config.limits, run.spec
    if (examples := max(joining.examples, joining.validation)) > limits.examples:
        raise BadMessage(
            f"worker {joining.worker} names {examples} examples, limits.examples allows {limits.examples}"
        )
    if not sessions.knows(joining.worker) and len(sessions) >= limits.workers:
        raise TooMany(f"{limits.workers} workers have joined; limits.workers allows no more")
    kind = spec.task.kind
    for since, told in (
        (LABELS_FILE_SINCE if spec.task.labels_file else 0, "this run's classes are too many for"),
        (FORMS[kind].since, f"this run is for {kind}, unknown to"),
        (CLASSES_SINCE if run.config.asks_classes else 0, "this run asks for workers' classes, not so"),
    ):
        if joining.protocol_max < since:
            raise ProtocolMismatch(f"{told} protocol {joining.protocol_max}: upgrade the worker")
    if spec.asks_classes:
        raise ClassesWanted("this run asks a worker for its classes, before it may join")
